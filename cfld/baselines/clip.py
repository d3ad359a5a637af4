"""CLIP's image encoder, ViT-L/14, for baseline B2 only (Table 3; Radford et al., 2021; Dosovitskiy et al., 2021).

A photo becomes one vector, the "pooled output" of CLIP before its projection to the space that it shares with text.

Letters in shapes: B images, N = 1 + (H / patch)^2 tokens, of which the first stands for the whole image, D their width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cfld.tools.checks import check_config, check_tensor

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training photos


@dataclass(frozen=True)
class CLIPConfig:
    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    depth: int = 24
    num_heads: int = 16

    def __post_init__(self) -> None:
        check_config(self, "clip")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"clip.image_size {self.image_size} must be a multiple of clip.patch_size {self.patch_size}"
            )
        if self.width % self.num_heads:
            raise ValueError(f"clip.width {self.width} must be a multiple of clip.num_heads {self.num_heads}")


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> the same."""
        return x * torch.sigmoid(1.702 * x)


class SelfAttention(nn.Module):
    """Multi-head self-attention whose four projections have biases."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, N, D) -> (B, N, D)."""
        q, k, v = (
            rearrange(project(tokens), "b n (h d) -> b h n d", h=self.num_heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class CLIPBlock(nn.Module):
    """Self-attention, then an MLP; each after a LayerNorm, each with a residual."""

    def __init__(self, width: int, num_heads: int, activation: nn.Module):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), activation, nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, N, D) -> (B, N, D)."""
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class CLIPImageEncoder(nn.Module):
    """A photo to one vector; in the place of Swin it is B2's source encoder."""

    def __init__(self, config: CLIPConfig = CLIPConfig()):
        super().__init__()
        self.config = config
        positions = (config.image_size // config.patch_size) ** 2
        self.patch_embed = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size, bias=False)
        self.class_token = nn.Parameter(torch.empty(config.width).normal_(std=0.02))
        self.positions = nn.Parameter(torch.empty(1 + positions, config.width).normal_(std=0.02))
        self.norm_in = nn.LayerNorm(config.width)
        self.blocks = nn.Sequential(
            *(CLIPBlock(config.width, config.num_heads, QuickGELU()) for _ in range(config.depth))
        )
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, images: Tensor, depth_draws: Tensor | None = None) -> list[Tensor]:
        """Encode source images; arguments and result have the form of Swin's.

        images (B, 3, 224, 224) in [-1, 1]; CLIP's own normalisation is done here
        depth_draws: without effect, since nothing is dropped here
        -> a list of one: the pooled output (B, 1024)
        """
        size = self.config.image_size
        check_tensor("images", images, ("B", 3, size, size), self.patch_embed.weight)
        mean, std = (images.new_tensor(x).view(3, 1, 1) for x in (MEAN, STD))
        patches = rearrange(self.patch_embed((images / 2 + 0.5 - mean) / std), "b d h w -> b (h w) d")
        tokens = torch.cat([self.class_token.expand(len(images), 1, -1), patches], dim=1) + self.positions
        tokens = self.blocks(self.norm_in(tokens))
        return [self.norm_out(tokens[:, 0])]
