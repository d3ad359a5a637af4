"""The stages before the full model."""

import dataclasses

import torch
from einops import rearrange
from torch import Tensor, nn

from cfld.config import CFLDConfig
from cfld.data.batch import Batch
from cfld.model import CFLD, Conditions
from cfld.objective import DROP_RATE, Draws, denoising_error, encode, mirrored
from cfld.photos.pixels import to_range
from cfld.scheduler import Scheduler
from cfld.swin import Swin
from cfld.unet import ResBlock, SpatialTransformer, UNet
from cfld.vae import VAE, SpatialAttention

FEATURE_SIZE = 1e-3  # of the source stage: weight of the mean square of features, beside the attributes' error


class AttributePrompt(nn.Module):
    """What a text encoder is to Stable Diffusion: the attributes of a person become a prompt."""

    def __init__(self, num_attributes: int, config: CFLDConfig):
        super().__init__()
        self.num_tokens = config.prompt_tokens
        self.layers = nn.Sequential(
            nn.Linear(num_attributes, 2 * config.prd.width),
            nn.SiLU(),
            nn.Linear(2 * config.prd.width, self.num_tokens * config.prd.width),
        )

    def forward(self, attributes: Tensor) -> Tensor:
        """attributes (B, A) -> prompt (B, Q, D)."""
        return rearrange(self.layers(attributes), "b (q d) -> b q d", q=self.num_tokens)


def base_loss(
    model: CFLD,
    attribute_prompt: AttributePrompt,
    vae: VAE,
    scheduler: Scheduler,
    batch: Batch,
    draws: Draws,
    min_snr: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Eq. 2 with attributes as its condition, over the 2B photos of a batch: as training_loss."""
    assert batch.attributes is not None
    latents = encode(vae, batch, draws.vae_noise)
    timesteps = scheduler.cubic_timesteps(draws.timesteps)
    prompt = attribute_prompt(batch.attributes).repeat(2, 1, 1)
    conditions = model.drop(Conditions(prompt, None, None), draws.drops < DROP_RATE, "released")
    return denoising_error(model, scheduler, latents, draws.noise, timesteps, conditions, min_snr), timesteps


class AttributeHead(nn.Module):
    """What ImageNet's classes are to the public Swin: the attributes of a person, told from f_4."""

    def __init__(self, num_attributes: int, config: CFLDConfig):
        super().__init__()
        features = config.swin.widths[-1] * config.swin.map_sizes[-1] ** 2
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(features, num_attributes))

    def forward(self, source_feature: Tensor) -> Tensor:
        """source_feature f_4 (B, C, h, w) -> attributes (B, A)."""
        return self.layers(source_feature)


def source_loss(source_encoder: Swin, attribute_head: AttributeHead, batch: Batch, draws: Draws) -> Tensor:
    """The mean squared error of the attributes of the B sources, and a little for the size of f_1 .. f_4, which Swin's
    norms would let grow to hundreds (docs/tiny.md)."""
    assert batch.attributes is not None
    features = source_encoder(mirrored(to_range(batch.source_images), draws), draws.depth)
    error = (attribute_head(features[-1]).float() - batch.attributes).square().mean()
    return error + FEATURE_SIZE * sum(f.float().square().mean() for f in features)


@torch.no_grad()
def standardise(source_encoder: Swin, features: list[Tensor]) -> None:
    """Stretch f_1 .. f_4 so that these, of many photos, deviate by 1 from their channels' means, and shift f_4 so that
    its means are 0. Else one channel that is tens of times as large in every photo, as Swin grows it, hides from PRD
    what differs between photos.

    Swin computes what it did: the residual stream of a stage is read through LayerNorms alone, so all that is added to
    it may be stretched; f_4 is read by none, so the last bias can take its means.
    """
    for stage, (blocks, feature) in enumerate(zip(source_encoder.stages, features, strict=True)):
        means = feature.mean(dim=(0, 2, 3))
        deviation = (feature - means[:, None, None]).square().mean().sqrt()
        adding = [source_encoder.merges[stage - 1].reduction if stage else source_encoder.patch_norm]
        for block in blocks:  # type: ignore[attr-defined]
            adding += [block.attention.proj, block.mlp[-1]]
        if feature is features[-1]:
            adding[-1].bias.sub_(means)  # type: ignore[operator, union-attr]
        for layer in adding:
            for parameter in layer.parameters():  # type: ignore[union-attr]
                parameter.div_(deviation)


def vae_loss(vae: VAE, batch: Batch, draws: Draws, kl_weight: float) -> Tensor:
    """Absolute and squared error of the reconstruction and a little KL divergence from N(0, 1), over the 2B photos of a
    batch."""
    assert batch.images is not None
    images = to_range(batch.images)
    mean, logvar = vae.moments(images)
    mean, logvar = mean.float(), logvar.float()
    latents = vae.sample(mean, logvar, draws.vae_noise)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
    errors = vae.decode(latents).float() - images
    return errors.abs().mean() + errors.square().mean() + kl_weight * kl


@torch.no_grad()
def whiten(vae: VAE, mean: Tensor, logvar: Tensor) -> None:
    """Turn and stretch a VAE's latents so that these, as moments() gave them for many images, have the mean 0 and the
    covariance 1 over all positions: whatever the images' colours and brightness do to them, noise then drowns all of
    it at the same timestep. The VAE's scale is 1 from here on.

    The 1x1 convolutions at both ends of the latents take that in, so images are decoded as before. The variance of the
    posterior cannot be turned; it becomes its average over all positions, one number a channel.
    """
    positions = rearrange(mean.double(), "b c h w -> c (b h w)")
    center, (variances, directions) = positions.mean(1), torch.linalg.eigh(torch.cov(positions))
    deviations = variances.clamp(min=1e-8 * variances.max().item()).sqrt()
    forth, back = (directions * x @ directions.T for x in (1 / deviations, deviations))  # covariance^(-1/2), ^(1/2)
    spread = forth.square() @ rearrange(logvar.double().exp(), "b c h w -> c (b h w)").mean(1)

    encoder, decoder, channels = vae.encoder.to_moments, vae.decoder.from_latents, len(center)
    assert encoder.bias is not None and decoder.bias is not None
    weight, bias = encoder.weight[:channels, :, 0, 0].double(), encoder.bias[:channels].double()
    encoder.weight.copy_(torch.cat([forth @ weight, torch.zeros_like(weight)])[:, :, None, None])
    encoder.bias.copy_(torch.cat([forth @ (bias - center), spread.log()]))
    weight = decoder.weight[:, :, 0, 0].double()
    decoder.bias.add_(weight @ center)
    decoder.weight.copy_((weight @ back)[:, :, None, None])
    vae.config = dataclasses.replace(vae.config, scale=1.0)


FIRST_LOGVAR = -8.0  # of the VAE stage's posterior


def begin_at_identity(module: nn.Module) -> None:
    """Initialise what trains from nothing: every residual block begins as its skip (Dhariwal and Nichol, 2021), and
    convolutions keep the size of what they get and add nothing. With torch's own initialisation their biases drown it:
    the VAE then needs ten times as many steps until it sees colours (docs/tiny.md)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="linear")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, ResBlock | SpatialAttention | SpatialTransformer | UNet):
            last = next(getattr(part, n) for n in ("conv2", "to_out", "proj_out", "conv_out") if hasattr(part, n))
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


def begin_small(swin: Swin) -> None:
    """Initialise a Swin that trains from nothing, as Liu et al. (2021) began theirs."""
    for layer in swin.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
