"""Hybrid-granularity attention: H_A (Sec. 3.2, Fig. 2c, Eq. 4, Table 1: K = 4).

    Q = W_q F_h,  K = W_k F_d^out,  V = W_v F_d^out,  B = phi_A(f_l),  F_o = softmax((Q + B) K^T / sqrt(d)) V

This file is phi_A: for each cross-attention of the UNet's up path, one branch turns a source feature f_l into the query
bias B. Q + B and the rest of Eq. 4 stand in cfld.unet.Attention. Each branch begins and ends with a convolution that
starts at zero, so a fresh H_A gives biases of exactly 0, and textures enter slowly: coarse to fine.

Letters in shapes: B images, C channels of f_l, h x w its positions, N = h * w tokens, D width inside a branch.
Table 1's K is HGAConfig.depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from cfld.tools.checks import check_config, check_tensor
from cfld.unet import Attention, FeedForward


@dataclass(frozen=True)
class HGAConfig:
    source_widths: tuple[int, ...] = (128, 256, 512)  # of f_1, f_2, f_3
    output_widths: tuple[int, ...] = (1280, 640, 320)  # of the UNet's up levels in execution order: for f_3, f_2, f_1
    branches: int = 3  # per level: one for each of its cross-attentions
    depth: int = 4
    head_width: int = 32

    def __post_init__(self) -> None:
        check_config(self, "hga")
        if len(self.source_widths) != len(self.output_widths):
            found = f"{self.source_widths} and {self.output_widths}"
            raise ValueError(f"hga.source_widths and hga.output_widths must have equal length, found {found}")
        multiple = 2 * self.head_width
        if any(width % multiple for width in self.source_widths):
            raise ValueError(
                f"hga.source_widths {self.source_widths} must be multiples of 2 * hga.head_width = {multiple}"
            )


def zero_conv(channels: int, out_channels: int) -> nn.Conv2d:
    """A 1x1 convolution that starts as the zero function (Sec. 3.2, after ControlNet)."""
    conv = nn.Conv2d(channels, out_channels, 1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class HGABlock(nn.Module):
    """Self-attention, twice as in the released code, and feed-forward; each after a LayerNorm, each with a residual."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention1 = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.attention2 = Attention(width, num_heads)
        self.norm3 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, N, D) -> (B, N, D)."""
        tokens = tokens + self.attention1(self.norm1(tokens))
        tokens = tokens + self.attention2(self.norm2(tokens))
        return tokens + self.feed_forward(self.norm3(tokens))


class HGABranch(nn.Module):
    """B = phi_A(f_l) for one cross-attention: zero convolution, K blocks at half the width, zero convolution."""

    def __init__(self, source_width: int, output_width: int, depth: int, head_width: int):
        super().__init__()
        width = source_width // 2
        self.conv_in = zero_conv(source_width, width)
        self.blocks = nn.Sequential(*(HGABlock(width, width // head_width) for _ in range(depth)))
        self.conv_out = zero_conv(width, output_width)

    def forward(self, source_feature: Tensor) -> Tensor:
        """source_feature (B, C, h, w) -> query bias (B, h*w, C'), row-major."""
        x = self.conv_in(source_feature)
        tokens = self.blocks(rearrange(x, "b c h w -> b (h w) c"))
        x = rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])
        return rearrange(self.conv_out(x), "b c h w -> b (h w) c")


class HybridGranularityAttention(nn.Module):
    """All query biases of the UNet's up path, from the source features."""

    def __init__(self, config: HGAConfig = HGAConfig()):
        super().__init__()
        self.config = config
        self.levels = nn.ModuleList(
            nn.ModuleList(
                HGABranch(source_width, output_width, config.depth, config.head_width) for _ in range(config.branches)
            )
            for source_width, output_width in zip(reversed(config.source_widths), config.output_widths, strict=True)
        )

    def forward(self, source_features: Sequence[Tensor]) -> list[Tensor]:
        """Compute the query biases B of Eq. 4.

        source_features: f_1 (B, 128, 64, 64), f_2 (B, 256, 32, 32), f_3 (B, 512, 16, 16)
        -> nine query biases in execution order: three of (B, 256, 1280) from f_3, three of (B, 1024, 640) from f_2,
            three of (B, 4096, 320) from f_1
        Raises ValueError for another number of features, or another width, dtype or device of one.
        """
        widths = self.config.source_widths
        if len(source_features) != len(widths):
            raise ValueError(f"source_features must be {len(widths)}, without f_4, found {len(source_features)}")
        for number, (feature, width) in enumerate(zip(source_features, widths, strict=True), start=1):
            check_tensor(f"f_{number}", feature, ("B", width, "h", "w"), self.levels[0][0].conv_in.weight)  # type: ignore[index]
        coarse_to_fine = reversed(source_features)
        return [branch(f) for f, level in zip(coarse_to_fine, self.levels, strict=True) for branch in level]  # type: ignore[attr-defined]
