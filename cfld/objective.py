"""The training objective (Sec. 3.3): both losses in one forward, and those of the stages that TINY needs before.

    L_overall = L_mse + L_rec  (Eq. 6):  the target from the source (Eq. 3), and the source from itself (Eq. 5)

Everything random in a step is drawn before it, for each pair by a generator of its own: the loss is a pure function of
weights, batch and draws.

Letters in shapes: B pairs, which make 2B rows: every source from itself, then every target from its source.
"""

import dataclasses
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from cfld.config import CFLDConfig
from cfld.data import Batch, seeded, to_range
from cfld.model import CFLD, Conditions
from cfld.pose import pose_maps
from cfld.scheduler import Scheduler
from cfld.swin import Swin
from cfld.vae import VAE

DROP_RATE = 0.2  # eta of Sec. 3.3
FEATURE_SIZE = 1e-3  # of the source stage: weight of the mean square of features, beside the attributes' error


@dataclass(frozen=True)
class Draws:
    """Everything random in a step, for B pairs or 2B rows."""

    flips: Tensor  # (B,) uniform: mirror the source encoder's image where < 0.5
    depth: Tensor  # (B, branches) uniform: stochastic depth
    timesteps: Tensor  # (2B,) uniform
    drops: Tensor  # (2B,) uniform
    vae_noise: Tensor  # (2B, 4, h, w) normal
    noise: Tensor  # (2B, 4, h, w) normal, with --noise-offset shifted a channel at a time

    def to(self, device: str | torch.device) -> "Draws":
        return Draws(**{f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self)})


def draw_step(seed: int, step: int, places: range, config: CFLDConfig, noise_offset: float = 0.0) -> Draws:
    """The draws of the pairs at these places of the global batch: each from a generator of its own."""
    size = config.image_size // config.vae.factor
    latents = (2, config.unet.latent_channels, size, size)
    pairs = []
    for place in places:
        g = seeded(seed, step, place)
        scalars = torch.rand(5, generator=g)
        depth = torch.rand(2 * sum(config.swin.depths), generator=g)
        vae_noise, noise = torch.randn(latents, generator=g), torch.randn(latents, generator=g)
        if noise_offset:  # drawn last: the other draws are the same with and without it
            noise = noise + noise_offset * torch.randn((*latents[:2], 1, 1), generator=g)
        pairs.append((scalars, depth, vae_noise, noise))
    scalars, depth, vae_noise, noise = (torch.stack(x) for x in zip(*pairs, strict=True))

    def rows(x: Tensor) -> Tensor:
        return rearrange(x, "pairs two ... -> (two pairs) ...")  # all sources, then all targets

    return Draws(scalars[:, 0], depth, rows(scalars[:, 1:3]), rows(scalars[:, 3:5]), rows(vae_noise), rows(noise))


def encode(vae: VAE, images: Tensor, noise: Tensor) -> Tensor:
    """images (2B, 3, H, H) uint8, a few at a time, or their cached moments (2B, 8, h, w); noise (2B, 4, h, w)
    -> scaled latents (2B, 4, h, w)."""
    if images.dtype != torch.uint8:
        mean, logvar = images.float().chunk(2, dim=1)
        return vae.sample(mean, logvar, noise)
    with torch.no_grad():
        moments = [vae.moments(to_range(chunk)) for chunk in images.split(8)]
    mean, logvar = (torch.cat(parts).float() for parts in zip(*moments, strict=True))
    return vae.sample(mean, logvar, noise)


def timestep_weights(alpha_bars: Tensor, prediction_type: str = "epsilon", min_snr: float = 0.0) -> Tensor:
    """What a row's squared error of the noise counts: abar_t of any shape -> the same.

    That error is SNR = abar / (1 - abar) times the error of z_0. It counts as it is in the paper; where the UNet
    predicts the velocity, the velocity's error counts, which is SNR + 1 times that of z_0; with min_snr, z_0's error
    counts at most that many times (after Hang et al., 2023, Sec. 3.4, who do so for the noise).
    """
    snr = alpha_bars / (1 - alpha_bars)
    return (snr + (prediction_type == "v_prediction")).clamp(max=min_snr or torch.inf) / snr


def denoising_error(
    model: CFLD, scheduler: Scheduler, latents: Tensor, noise: Tensor, timesteps: Tensor, conditions: Conditions,
    min_snr: float,
) -> Tensor:  # fmt: skip
    """The mean squared error of the noise that the model finds in latents z_0 (2B, 4, h, w), weighed (Eq. 2)."""
    noisy_latents = scheduler.add_noise(latents, noise, timesteps)  # Eq. 1
    noise_pred = model(noisy_latents, timesteps, conditions)
    predicted = model.config.scheduler.prediction_type
    weights = timestep_weights(scheduler.alpha_bar(timesteps), predicted, min_snr)
    return (weights * (noise_pred.float() - noise).square()).mean()


def mirrored(source_images: Tensor, draws: Draws) -> Tensor:
    """source_images (B, 3, S, S), half of them mirrored."""
    return torch.where((draws.flips < 0.5)[:, None, None, None], source_images.flip(-1), source_images)


def training_loss(
    model: CFLD,
    vae: VAE,
    scheduler: Scheduler,
    batch: Batch,
    draws: Draws,
    recipe: str,
    min_snr: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Eq. 3 and 5 in one forward over 2B rows: their mean, half of Eq. 6's sum. Returns it and the timesteps (2B,).

    recipe: of CFLD.drop
    min_snr: of timestep_weights, which are 1 in the paper and are not where the model predicts the velocity (TINY)
    """
    latents = encode(vae, batch.images, draws.vae_noise)
    timesteps = scheduler.cubic_timesteps(draws.timesteps)

    source_images = mirrored(to_range(batch.source_images), draws)
    poses = pose_maps(batch.keypoints, model.config.adapter.pose_size)
    conditions = model.condition(source_images, poses, draws.depth)
    conditions = model.drop(conditions, draws.drops < DROP_RATE, recipe)
    return denoising_error(model, scheduler, latents, draws.noise, timesteps, conditions, min_snr), timesteps


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
    latents = encode(vae, batch.images, draws.vae_noise)
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
