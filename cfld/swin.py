"""Swin Transformer: the source image encoder H_S (Sec. 3.2, Table 1; Liu et al., ICCV 2021).

A source image becomes four maps F_s = [f_1, f_2, f_3, f_4], finest first. f_4 feeds the perception-refined decoder,
f_1 to f_3 feed hybrid-granularity attention. Swin-B's public weights are for images of 384 pixels and windows of 12.

Letters in shapes: B images, H x W positions, C channels, U side of a window, N = U * U tokens, K windows, S heads.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from cfld.tools.checks import check_config, check_tensor


@dataclass(frozen=True)
class SwinConfig:
    image_size: int = 256
    patch_size: int = 4
    width: int = 128  # of the first stage; each stage doubles it
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 16  # side; a stage whose map is no larger is one window
    mlp_ratio: int = 4
    stochastic_depth: float = 0.2  # rate of the last block; the rate grows linearly from 0

    def __post_init__(self) -> None:
        check_config(self, "swin")
        if len(self.depths) != len(self.num_heads):
            raise ValueError(f"swin.depths {self.depths} and swin.num_heads {self.num_heads} must have equal length")
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"swin.stochastic_depth must be at least 0 and below 1, found {self.stochastic_depth}")
        for width, heads in zip(self.widths, self.num_heads, strict=True):
            if width % heads:
                raise ValueError(f"swin.num_heads {self.num_heads} must divide the stage widths {self.widths}")
        coarsest = self.patch_size * 2 ** (len(self.depths) - 1)
        if self.image_size % coarsest or any(size % min(size, self.window) for size in self.map_sizes):
            raise ValueError(
                f"swin.image_size {self.image_size} must be a multiple of {coarsest} and each stage's map must hold "
                f"whole windows of swin.window {self.window}, found maps of {self.map_sizes}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each map, finest first."""
        return tuple(self.width * 2**stage for stage in range(len(self.depths)))

    @property
    def map_sizes(self) -> tuple[int, ...]:
        """Side of each map, finest first."""
        return tuple(self.image_size // (self.patch_size * 2**stage) for stage in range(len(self.depths)))


def to_windows(x: Tensor, window: int) -> Tensor:
    """x (B, H, W, C) -> (B, K, N, C), windows row by row, tokens row by row."""
    return rearrange(x, "b (i u) (j v) c -> b (i j) (u v) c", u=window, v=window)


def from_windows(x: Tensor, window: int, size: int) -> Tensor:
    """x (B, K, N, C) -> (B, H, W, C), H = W = size."""
    return rearrange(x, "b (i j) (u v) c -> b (i u) (j v) c", i=size // window, u=window)


def relative_positions(window: int) -> Tensor:
    """-> (N, N): for each query and key of a window, the row of the bias table for their offset."""
    axis = torch.arange(window, device="cpu")
    y, x = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="ij"))
    rows, columns = (p[:, None] - p[None, :] + window - 1 for p in (y, x))
    return rows * (2 * window - 1) + columns


def shift_mask(size: int, window: int, shift: int) -> Tensor:
    """-> (K, N, N): 0 where query and key were neighbours before the map was rolled by the shift, -100 elsewhere."""
    axis = torch.arange(size, device="cpu")
    band = (axis >= size - window).long() + (axis >= size - shift).long()
    region = to_windows((3 * band[:, None] + band[None, :])[None, :, :, None], window)[0, :, :, 0]
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, -100.0)


class WindowAttention(nn.Module):
    """Attention within windows, with a learnt bias for each offset: softmax(q k^T / sqrt(d) + bias + mask) v."""

    def __init__(self, width: int, num_heads: int, window: int, mask: Tensor | None):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.proj = nn.Linear(width, width)
        self.positions: Tensor
        self.mask: Tensor | None
        self.register_buffer("positions", relative_positions(window), persistent=False)
        self.register_buffer("mask", mask, persistent=False)
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, K, N, C) -> (B, K, N, C)."""
        q, k, v = rearrange(self.qkv(x), "b k n (three s d) -> three b k s n d", three=3, s=self.num_heads)
        bias = rearrange(self.bias_table[self.positions], "n m s -> s n m")
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias  # (B, K, S, N, N)
        if self.mask is not None:
            logits = logits + self.mask[:, None]
        return self.proj(rearrange(logits.softmax(dim=-1).to(v.dtype) @ v, "b k s n d -> b k n (s d)"))


class SwinBlock(nn.Module):
    """Attention within (shifted) windows, then an MLP; each after a LayerNorm, each with a residual, and each dropped
    at random by stochastic depth."""

    def __init__(self, config: SwinConfig, stage: int, shifted: bool, drop_rate: float):
        super().__init__()
        width, self.size, self.drop_rate = config.widths[stage], config.map_sizes[stage], drop_rate
        self.window = min(self.size, config.window)
        self.shift = self.window // 2 if shifted and self.window < self.size else 0
        mask = shift_mask(self.size, self.window, self.shift) if self.shift else None
        self.norm1 = nn.LayerNorm(width)
        self.attention = WindowAttention(width, config.num_heads[stage], self.window, mask)
        self.norm2 = nn.LayerNorm(width)
        hidden = config.mlp_ratio * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def keep(self, branch: Tensor, draws: Tensor | None) -> Tensor:
        """Stochastic depth: branch (B, H, W, C) -> 0 for samples where draws (B,) < rate, branch / (1 - rate) for the
        others."""
        if draws is None:
            return branch
        kept = (draws >= self.drop_rate).to(branch.dtype) / (1 - self.drop_rate)
        return branch * kept[:, None, None, None]

    def forward(self, x: Tensor, draws: tuple[Tensor, Tensor] | None) -> Tensor:
        """x (B, H, W, C), draws: two of (B,) or None -> (B, H, W, C)."""
        attention_draws, mlp_draws = draws or (None, None)
        h = torch.roll(self.norm1(x), (-self.shift, -self.shift), dims=(1, 2))
        h = from_windows(self.attention(to_windows(h, self.window)), self.window, self.size)
        x = x + self.keep(torch.roll(h, (self.shift, self.shift), dims=(1, 2)), attention_draws)
        return x + self.keep(self.mlp(self.norm2(x)), mlp_draws)


class PatchMerging(nn.Module):
    """Halves a map: concatenate the four tokens of each 2x2 patch, LayerNorm, projection to twice the width."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H/2, W/2, 2C); the four are concatenated column by column: (0,0) (1,0) (0,1) (1,1)."""
        return self.reduction(self.norm(rearrange(x, "b (h i) (w j) c -> b h w (j i c)", i=2, j=2)))


class Swin(nn.Module):
    """H_S: a source image to its multi-scale features F_s."""

    def __init__(self, config: SwinConfig = SwinConfig()):
        super().__init__()
        self.config = config
        self.patch_embed = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.patch_norm = nn.LayerNorm(config.width)
        rates = iter(torch.linspace(0, config.stochastic_depth, sum(config.depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.ModuleList(SwinBlock(config, stage, shifted=bool(i % 2), drop_rate=next(rates)) for i in range(depth))
            for stage, depth in enumerate(config.depths)
        )
        self.merges = nn.ModuleList(PatchMerging(width) for width in config.widths[:-1])

    def forward(self, images: Tensor, depth_draws: Tensor | None = None) -> list[Tensor]:
        """Encode source images.

        images (B, 3, 256, 256) in [-1, 1]
        depth_draws (B, 2 * blocks), uniform in [0, 1): which branches of each sample stochastic depth drops, two per
            block in execution order; None drops nothing, in train and in eval mode
        -> f_1 (B, 128, 64, 64), f_2 (B, 256, 32, 32), f_3 (B, 512, 16, 16), f_4 (B, 1024, 8, 8), no norm after the last
        Raises ValueError for images of another shape, dtype or device.
        """
        size, weight = self.config.image_size, self.patch_embed.weight
        check_tensor("images", images, ("B", 3, size, size), weight)
        if depth_draws is not None:
            check_tensor("depth_draws", depth_draws, (images.shape[0], 2 * sum(self.config.depths)))
        draws = iter(depth_draws.unbind(dim=1) if depth_draws is not None else ())
        x = self.patch_norm(rearrange(self.patch_embed(images), "b c h w -> b h w c"))
        maps: list[Tensor] = []
        for stage, blocks in enumerate(self.stages):
            if stage:
                x = self.merges[stage - 1](x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, (next(draws), next(draws)) if depth_draws is not None else None)
            maps.append(rearrange(x, "b h w c -> b c h w"))
        return maps
