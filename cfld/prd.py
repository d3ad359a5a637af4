"""Perception-refined decoder: H_D (Sec. 3.2, Fig. 2b, Table 1: R = 8, Q = 16, C = 768).

Q learnt queries F_d^in attend to the coarsest source feature f_4 in R blocks and become the coarse-grained prompt
F_d^out, which takes the place of a text encoder's tokens.

Letters in shapes: B images, Q queries, D their width (Table 1's C), C channels of f_4, M = h * w its positions.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from cfld.tools.checks import check_config, check_tensor
from cfld.unet import Attention, FeedForward


@dataclass(frozen=True)
class PRDConfig:
    num_queries: int = 16
    width: int = 768
    depth: int = 8
    num_heads: int = 24
    source_width: int = 1024
    source_positions: int = 64  # number of positions of f_4

    def __post_init__(self) -> None:
        check_config(self, "prd")
        if self.width % self.num_heads:
            raise ValueError(f"prd.width {self.width} must be a multiple of prd.num_heads {self.num_heads}")


class PRDBlock(nn.Module):
    """The queries attend to the source, then to each other, then feed-forward; each after a LayerNorm, each with a
    residual."""

    def __init__(self, width: int, num_heads: int, source_width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.cross_attention = Attention(width, num_heads, source_width)
        self.norm2 = nn.LayerNorm(width)
        self.self_attention = Attention(width, num_heads)
        self.norm3 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(self, queries: Tensor, query_positions: Tensor, source_tokens: Tensor) -> Tensor:
        """queries (B, Q, D), query_positions (Q, D), source_tokens (B, M, C) -> (B, Q, D)."""
        # Added to the residual stream, twice per block (DETR adds them to queries and keys only).
        queries = queries + query_positions
        queries = queries + self.cross_attention(self.norm1(queries), source_tokens)
        queries = queries + query_positions
        queries = queries + self.self_attention(self.norm2(queries))
        return queries + self.feed_forward(self.norm3(queries))


class PerceptionRefinedDecoder(nn.Module):
    """F_d^out = H_D(f_4)."""

    def __init__(self, config: PRDConfig = PRDConfig()):
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(torch.empty(config.num_queries, config.width).normal_(std=0.02))
        self.query_positions = nn.Parameter(torch.empty(config.num_queries, config.width).normal_(std=0.02))
        positions = torch.empty(1, config.source_positions, config.source_width)
        self.source_positions = nn.Parameter(positions.normal_(std=0.02))
        self.blocks = nn.ModuleList(
            PRDBlock(config.width, config.num_heads, config.source_width) for _ in range(config.depth)
        )

    def forward(self, source_feature: Tensor) -> Tensor:
        """source_feature f_4 (B, 1024, 8, 8) -> prompt F_d^out (B, 16, 768), without a final norm or projection. Raises
        ValueError for a feature of another shape, dtype or device."""
        check_tensor("source_feature", source_feature, ("B", self.config.source_width, "h", "w"), self.source_positions)
        if (found := source_feature.shape[2] * source_feature.shape[3]) != self.config.source_positions:
            raise ValueError(f"source_feature must have {self.config.source_positions} positions, found {found}")
        source_tokens = rearrange(source_feature, "b c h w -> b (h w) c") + self.source_positions
        prompt = self.queries.expand(len(source_feature), -1, -1)
        for block in self.blocks:
            prompt = block(prompt, self.query_positions, source_tokens)
        return prompt
