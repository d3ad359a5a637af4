"""Table 3's baselines (Sec. 4.5): what stands in the place of H_S, H_D and H_A in B1 to B5.

              prompt                                                   biases of the queries
    B1        the multi-scale features themselves, as keys and values  none
    B2        CLIP's image encoder, kept frozen                        none
    B3, B4    H_D, as in the whole method                              none      (B4 also trains to_q of the UNet)
    B5        f_4, projected                                           H_A, as in the whole method

cfld.config.ABLATIONS says the same in the config's fields, docs/ablations.md how the paper is read where it is silent.

Letters in shapes: B images, C channels of f_4, h x w its positions, D width of the prompt.
"""

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from cfld.baselines.clip import CLIPBlock, CLIPImageEncoder
from cfld.config import CFLDConfig
from cfld.hga import HGAConfig, HybridGranularityAttention


class ZeroPrompt(nn.Module):
    """B1: what the branches of MultiScaleContext are added to; the down and mid blocks see it as it is."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, source_feature: Tensor) -> Tensor:
        """source_feature f_4 (B, C, 8, 8) -> zeros (B, 64, D)."""
        return source_feature.new_zeros(len(source_feature), source_feature[0, 0].numel(), self.width)


class MultiScaleContext(HybridGranularityAttention):
    """B1: the branches of H_A, from patches of f_l that make as many tokens as f_4 has, to the width of the prompt."""

    def __init__(self, config: HGAConfig, context_width: int):
        super().__init__(replace(config, output_widths=(context_width,) * len(config.output_widths)))
        for number, level in enumerate(self.levels, start=1):
            for branch in level:  # type: ignore[attr-defined]
                conv, patch = branch.conv_in, 2**number  # 2 for f_3, 4 for f_2, 8 for f_1
                branch.conv_in = nn.Conv2d(conv.in_channels, conv.out_channels, patch, stride=patch)
                nn.init.zeros_(branch.conv_in.weight)
                nn.init.zeros_(branch.conv_in.bias)


class CLIPPrompt(nn.Module):
    """B2: CLIP's vector as a prompt of one token, through five blocks with one head (after Paint by Example)."""

    def __init__(self, source_width: int, width: int, depth: int = 5):
        super().__init__()
        self.proj = nn.Linear(source_width, width, bias=False)
        self.blocks = nn.Sequential(*(CLIPBlock(width, 1, nn.GELU()) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled output (B, 1024) -> prompt (B, 1, D)."""
        return self.norm(self.blocks(self.proj(pooled)[:, None]))


class SwinPrompt(nn.Module):
    """B5: every position of f_4 is a token."""

    def __init__(self, source_width: int, width: int):
        super().__init__()
        self.proj = nn.Linear(source_width, width, bias=False)

    def forward(self, source_feature: Tensor) -> Tensor:
        """source_feature f_4 (B, C, 8, 8) -> prompt (B, 64, D), row-major."""
        return self.proj(rearrange(source_feature, "b c h w -> b (h w) c"))


def substitutes(config: CFLDConfig) -> dict[str, nn.Module | nn.Parameter | None]:
    """The parts of CFLD that are not the whole method's, fresh, by the name of the attribute: none for that method."""
    parts: dict[str, nn.Module | nn.Parameter | None] = {}
    width = config.unet.context_width
    if not config.biases:
        parts["hga"] = None
    if config.prompt == "multi_scale":
        parts |= {"prd": ZeroPrompt(width), "hga": MultiScaleContext(config.hga, width)}
    if config.prompt == "clip":
        parts |= {"source_encoder": CLIPImageEncoder(config.clip), "prd": CLIPPrompt(config.clip.width, width)}
    if config.prompt == "swin":
        parts["prd"] = SwinPrompt(config.swin.widths[-1], width)
    if config.prompt != "prd":
        parts["null_prompt"] = nn.Parameter(torch.randn(1, config.prompt_tokens, width))
    return parts
