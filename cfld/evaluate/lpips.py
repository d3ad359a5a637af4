"""LPIPS (Zhang et al. 2018), version 0.1 with AlexNet.

Letters in shapes: B images, H, W their sides, C channels, h, w sides of a map.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from cfld.evaluate.metrics import check_images
from cfld.evaluate.weights import ALEXNET, LPIPS_HEADS, fill, read_public


class LPIPS(nn.Module):
    """Learned perceptual similarity: squared differences of AlexNet's five feature maps, normalised to length 1 at each
    position and weighted by channel. Its parameters have the names of torchvision's AlexNet; no classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )
        self.heads = nn.ParameterList(torch.full((width,), 1 / width) for width in (64, 192, 384, 256, 256))
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) in [0, 1] -> five maps (B, C, h, w), the features of each position of length 1."""
        x = (2 * images - 1 - self.shift) / self.scale
        maps = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return maps

    def forward(self, images: Tensor, truths: Tensor) -> Tensor:
        """images, truths (B, 3, H, W) in [0, 1] -> (B,), 0 where they are equal."""
        check_images(images, truths)
        distances = [
            (x - y).square().mean(dim=(2, 3)) @ head  # (B,)
            for x, y, head in zip(self.maps(images), self.maps(truths), self.heads, strict=True)
        ]
        return torch.stack(distances).sum(dim=0)


def load_lpips(alexnet: str | Path, heads: str | Path) -> LPIPS:
    """LPIPS with torchvision's AlexNet and the heads of the lpips package's version 0.1, frozen. Raises UserError."""
    model = LPIPS()
    features = {  # features.0.weight -> 0.weight
        name.removeprefix("features."): x
        for name, x in read_public(alexnet, ALEXNET).items()
        if not name.startswith("classifier.")
    }
    weights = {  # lin0.model.1.weight (1, C, 1, 1) -> 0 (C,)
        name.removeprefix("lin").removesuffix(".model.1.weight"): x.flatten()
        for name, x in read_public(heads, LPIPS_HEADS).items()
    }
    fill(model.features, features, alexnet, ALEXNET)
    fill(model.heads, weights, heads, LPIPS_HEADS)
    return model
