"""Pose adapter: H_P (Sec. 3.2, Fig. 2a; the lightweight ResNet of T2I-Adapter).

A 21-channel pose map x_p (cfld.pose) becomes three pose features. Each is added to the last map of one of the UNet's
first three down blocks.

Letters in shapes: B poses.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from cfld.tools.checks import check_config, check_tensor
from cfld.unet import ResBlock


@dataclass(frozen=True)
class AdapterConfig:
    pose_channels: int = 21
    pose_size: int = 256
    patch_size: int = 4
    channels: tuple[int, ...] = (320, 640, 1280)
    groups: int = 32

    def __post_init__(self) -> None:
        check_config(self, "adapter")
        for channels in self.channels:
            if channels % self.groups:
                raise ValueError(
                    f"adapter.channels must be multiples of adapter.groups {self.groups}, found {self.channels}"
                )
        if self.pose_size % self.patch_size:
            raise ValueError(
                f"adapter.pose_size {self.pose_size} must be a multiple of adapter.patch_size {self.patch_size}"
            )


class PoseAdapter(nn.Module):
    """Pixel-unshuffle, 1x1 convolution, then one residual block per level, with average pooling between levels."""

    def __init__(self, config: AdapterConfig = AdapterConfig()):
        super().__init__()
        self.config = config
        self.conv_in = nn.Conv2d(config.pose_channels * config.patch_size**2, config.channels[0], 1)
        entering = (config.channels[0], *config.channels[:-1])
        self.resnets = nn.ModuleList(
            ResBlock(c, out_channels, config.groups, eps=1e-6)
            for c, out_channels in zip(entering, config.channels, strict=True)
        )

    def forward(self, poses: Tensor) -> list[Tensor]:
        """poses (B, 21, 256, 256) in [0, 1] -> pose features, finest first: (B, 320, 64, 64), (B, 640, 32, 32),
        (B, 1280, 16, 16). Raises ValueError for poses of another shape, dtype or device."""
        size = self.config.pose_size
        check_tensor("poses", poses, ("B", self.config.pose_channels, size, size), self.conv_in.weight)
        x = self.conv_in(F.pixel_unshuffle(poses, self.config.patch_size))
        pose_features = []
        for level, resnet in enumerate(self.resnets):
            x = resnet(F.avg_pool2d(x, 2) if level else x)
            pose_features.append(x)
        return pose_features
