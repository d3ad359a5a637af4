"""The official method as its authors run it: diffusers' UNet and VAE around our source encoder, PRD, HGA and adapter.

What the other benchmarks measure against. Both sides have the same weights, so that both must give the same result.
Needs diffusers.
"""

import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cfld import CFLD, VAE, Conditions
from cfld.convert.export import in_layout
from cfld.convert.layouts import layout_of

sys.path.append(str(Path(__file__).parents[1] / "tests"))


class BiasedAttention:
    """diffusers' attention, with Eq. 4's bias of the image added to the query."""

    bias: Tensor | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        temb: Any = None,
    ) -> Tensor:
        query = attn.to_q(hidden_states)
        if self.bias is not None:
            query = query + self.bias
        key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        out = nn.functional.scaled_dot_product_attention(query, key, value)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


class Official:
    """diffusers' UNet and VAE with the weights of ours."""

    def __init__(self, model: CFLD, vae: VAE):
        from references import diffusers_unet, diffusers_vae

        unet, of_vae = model.config.unet, vae.config
        self.unet = diffusers_unet(unet.channels, unet.context_width, unet.groups, unet.latent_channels, unet.num_heads)
        self.unet.load_state_dict(in_layout(model.unet, layout_of("UNet", "diffusers")))
        self.vae = diffusers_vae(of_vae.channels, of_vae.groups, of_vae.latent_channels, of_vae.depth)
        self.vae.load_state_dict(in_layout(vae, layout_of("VAE", "diffusers")))
        self.scale = vae.config.scale
        self.biased = [x.transformer_blocks[0].attn2 for up in self.unet.up_blocks[1:] for x in up.attentions]
        self.processors = [BiasedAttention() for _ in self.biased]
        for attention, processor in zip(self.biased, self.processors, strict=True):
            attention.set_processor(processor)
        for module in (self.unet, self.vae):
            module.to(model.null_prompt.device, model.null_prompt.dtype).requires_grad_(False)

    def __call__(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """As CFLD.forward: noise_pred."""
        for processor, bias in zip(self.processors, conditions.query_biases or (), strict=True):
            processor.bias = bias
        return self.unet(
            noisy_latents,
            timesteps,
            conditions.prompt,
            down_intrablock_additional_residuals=[*(conditions.pose_features or ())],
        )[0]
