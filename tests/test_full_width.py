"""Stable Diffusion 1.5's own widths, against diffusers. Slow: about a minute and 8 GB. Run: make test-slow."""

import pytest
import torch
from references import BiasedAttention, bias_widths, diffusers_unet, noise, relative_error

from cfld.convert.export import in_layout
from cfld.convert.layouts import UNET_DIFFUSERS, layout_of, rename
from cfld.folder import assign
from cfld.unet import UNet


@pytest.mark.slow
@torch.no_grad()
def test_a_full_width_unet_equals_diffusers_at_64x64_latents() -> None:
    torch.manual_seed(0)
    theirs = diffusers_unet((320, 640, 1280, 1280), 768)
    with torch.device("meta"):
        ours = UNet()
    assign(ours, {rename(name, dict(UNET_DIFFUSERS)): x for name, x in theirs.state_dict().items()}, "the reference")
    assert in_layout(ours, layout_of("UNet", "diffusers")).keys() == theirs.state_dict().keys()
    latents, prompt, timesteps = noise(2, 4, 64, 64), noise(2, 16, 768, seed=1), torch.tensor([981, 1])
    poses = [noise(2, c, 64 // 2**i, 64 // 2**i, seed=2 + i) for i, c in enumerate((320, 640, 1280))]
    biases = [noise(2, (16 * 2 ** (i // 3)) ** 2, w, seed=5 + i) for i, w in enumerate(bias_widths(ours.config))]
    plain = theirs(latents, timesteps, prompt).sample
    assert relative_error(ours(latents, timesteps, prompt), plain) <= 1e-5
    blocks = [a.transformer_blocks[0] for up in theirs.up_blocks[1:] for a in up.attentions]
    for block, bias in zip(blocks, biases, strict=True):
        block.attn2.processor = BiasedAttention(bias)
    conditioned = theirs(latents, timesteps, prompt, down_intrablock_additional_residuals=list(poses)).sample
    assert relative_error(plain, conditioned) > 0.1
    assert relative_error(ours(latents, timesteps, prompt, poses, biases), conditioned) <= 1e-5
