"""Table 3's baselines (Sec. 4.5) as subclasses of CFLD, each with a config of its own.

              prompt                                              query biases
    B1        f_1 to f_3, as keys and values of the up path       none
    B2        CLIP's image encoder, frozen, and a mapper          none
    B3, B4    H_D, as in the full model                           none      (B4 also trains to_q of the UNet)
    B5        f_4, projected                                      H_A, as in the full model

docs/ablations.md says how the paper is read where it is silent.

Letters in shapes: B images, C channels of f_4, h x w its positions, L prompt tokens of width P.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from cfld.baselines.clip import CLIPBlock, CLIPConfig, CLIPImageEncoder
from cfld.config import CFLDConfig
from cfld.hga import HGAConfig, HybridGranularityAttention
from cfld.model import CFLD, Conditions
from cfld.unet import Attention


@dataclass(frozen=True)
class B1Config(CFLDConfig):
    @property
    def prompt_tokens(self) -> int:
        return self.swin.map_sizes[-1] ** 2


class ZeroPrompt(nn.Module):
    """A prompt of zeros, as many tokens as f_4 has positions. The down path and the mid block attend to it."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, source_feature: Tensor) -> Tensor:
        """source_feature f_4 (B, C, 8, 8) -> zeros (B, 64, D)."""
        return source_feature.new_zeros(len(source_feature), source_feature[0, 0].numel(), self.width)


class MultiScaleFeatures(HybridGranularityAttention):
    """The branches of H_A, from patches of f_l that make as many tokens as f_4 has, to the width of the prompt."""

    def __init__(self, config: HGAConfig, context_width: int):
        super().__init__(replace(config, output_widths=(context_width,) * len(config.output_widths)))
        for number, level in enumerate(self.levels, start=1):
            for branch in level:  # type: ignore[attr-defined]
                conv, patch = branch.conv_in, 2**number  # 2 for f_3, 4 for f_2, 8 for f_1
                branch.conv_in = nn.Conv2d(conv.in_channels, conv.out_channels, patch, stride=patch)
                nn.init.zeros_(branch.conv_in.weight)
                nn.init.zeros_(branch.conv_in.bias)


class MultiScaleAttention(Attention):
    """A cross-attention to features, which take the place of query biases, instead of to the prompt."""

    def __init__(self, attention: Attention):
        """attention: the UNet's, whose weights this one takes over."""
        nn.Module.__init__(self)
        self.num_heads = attention.num_heads
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.to_out = attention.to_out

    def forward(self, tokens: Tensor, context: Tensor | None = None, query_bias: Tensor | None = None) -> Tensor:
        """tokens (B, N, C), context (B, L, P): the prompt, query_bias (B, L, P) or None: features -> (B, N, C).

        As in the official code, features are added only to a prompt of zeros: a sample with the unconditional prompt
        attends to that, even where --recipe released keeps its features.
        """
        if context is not None and query_bias is not None:
            conditional = (context == 0).all(dim=2, keepdim=True).all(dim=1, keepdim=True)  # (B, 1, 1)
            context = torch.where(conditional, context + query_bias, context)
        return super().forward(tokens, context)


class B1(CFLD):
    """Multi-scale features as prompt, without H_D. In its Conditions query_biases are nine of (B, L, P)."""

    def __init__(self, config: B1Config = B1Config(), **pretrained: Any):
        super().__init__(config, **pretrained)
        self.prd = ZeroPrompt(config.prd.width)  # type: ignore[assignment]
        self.hga = MultiScaleFeatures(config.hga, config.prd.width)
        self.null_prompt = nn.Parameter(torch.empty(1, config.prompt_tokens, config.prd.width).normal_())
        for up in self.unet.up:
            for transformer in up.attentions:  # type: ignore[union-attr]
                transformer.block.cross_attention = MultiScaleAttention(transformer.block.cross_attention)
        self.freeze()

    def freeze(self) -> None:
        """As CFLD's; also freezes what only f_4 needs, since nothing reads f_4."""
        super().freeze()
        for modules in (self.source_encoder.stages, self.source_encoder.merges):
            modules[-1].requires_grad_(False)


@dataclass(frozen=True)
class B3Config(CFLDConfig):
    pass


class B3(CFLD):
    """The full model without H_A."""

    def __init__(self, config: CFLDConfig = B3Config(), **pretrained: Any):
        super().__init__(config, **pretrained)
        del self.hga

    def encode_source(self, source_images: Tensor, depth_draws: Tensor | None = None) -> Conditions:
        return Conditions(self.prd(self.source_encoder(source_images, depth_draws)[-1]), None, None)


@dataclass(frozen=True)
class B2Config(CFLDConfig):
    clip: CLIPConfig = field(default_factory=CLIPConfig)

    @property
    def source_size(self) -> int:
        return self.clip.image_size

    @property
    def prompt_tokens(self) -> int:
        return 1


class CLIPPrompt(nn.Module):
    """CLIP's vector as a prompt of one token, through five blocks with one head (after Paint by Example)."""

    def __init__(self, source_width: int, width: int, depth: int = 5):
        super().__init__()
        self.proj = nn.Linear(source_width, width, bias=False)
        self.blocks = nn.Sequential(*(CLIPBlock(width, 1, nn.GELU()) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled output (B, 1024) -> prompt (B, 1, D)."""
        return self.norm(self.blocks(self.proj(pooled)[:, None]))


class B2(B3):
    """CLIP's image encoder, frozen, in the place of H_S, and a mapper in the place of H_D; no H_A, as in B3."""

    def __init__(self, config: B2Config = B2Config(), **pretrained: Any):
        super().__init__(config, **pretrained)
        if pretrained.get("source_encoder") is None:
            self.source_encoder = CLIPImageEncoder(config.clip)  # type: ignore[assignment]
        self.prd = CLIPPrompt(config.clip.width, config.prd.width)  # type: ignore[assignment]
        self.null_prompt = nn.Parameter(torch.empty(1, config.prompt_tokens, config.prd.width).normal_())
        self.freeze()

    def freeze(self) -> None:
        """As CFLD's; also CLIP."""
        super().freeze()
        self.source_encoder.requires_grad_(False)


@dataclass(frozen=True)
class B5Config(CFLDConfig):
    @property
    def prompt_tokens(self) -> int:
        return self.swin.map_sizes[-1] ** 2


class SwinPrompt(nn.Module):
    """Every position of f_4 is a token."""

    def __init__(self, source_width: int, width: int):
        super().__init__()
        self.proj = nn.Linear(source_width, width, bias=False)

    def forward(self, source_feature: Tensor) -> Tensor:
        """source_feature f_4 (B, C, 8, 8) -> prompt (B, 64, D), row-major."""
        return self.proj(rearrange(source_feature, "b c h w -> b (h w) c"))


class B5(CFLD):
    """f_4, projected, as prompt, without H_D; H_A as in the full model."""

    def __init__(self, config: B5Config = B5Config(), **pretrained: Any):
        super().__init__(config, **pretrained)
        self.prd = SwinPrompt(config.swin.widths[-1], config.prd.width)  # type: ignore[assignment]
        self.null_prompt = nn.Parameter(torch.empty(1, config.prompt_tokens, config.prd.width).normal_())
        self.freeze()
