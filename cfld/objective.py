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
from torch import Tensor

from cfld.config import CFLDConfig
from cfld.data.batch import Batch, seeded
from cfld.model import CFLD, Conditions
from cfld.photos.pixels import to_range
from cfld.pose import pose_maps
from cfld.scheduler import Scheduler
from cfld.vae import VAE

DROP_RATE = 0.2  # eta of Sec. 3.3


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


def encode(vae: VAE, batch: Batch, noise: Tensor) -> Tensor:
    """The images of a batch, a few at a time, or their cached moments; noise (2B, C, h, w)
    -> scaled latents (2B, C, h, w)."""
    if batch.moments is not None:
        mean, logvar = batch.moments.float().chunk(2, dim=1)
        return vae.sample(mean, logvar, noise)
    assert batch.images is not None
    with torch.no_grad():
        moments = [vae.moments(to_range(chunk)) for chunk in batch.images.split(8)]
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
    latents = encode(vae, batch, draws.vae_noise)
    timesteps = scheduler.cubic_timesteps(draws.timesteps)

    source_images = mirrored(to_range(batch.source_images), draws)
    poses = pose_maps(batch.keypoints, model.config.adapter.pose_size)
    conditions = model.condition(source_images, poses, draws.depth)
    conditions = model.drop(conditions, draws.drops < DROP_RATE, recipe)
    return denoising_error(model, scheduler, latents, draws.noise, timesteps, conditions, min_snr), timesteps
