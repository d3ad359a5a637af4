"""The training objective (Sec. 3.3): both of its losses in one forward, and the randomness of a step.

    L_overall = L_mse + L_rec  (Eq. 6): the target from its source (Eq. 3), and the source from itself (Eq. 5)

All random numbers of a step are drawn beforehand, by one generator per pair: the loss is a pure function of weights,
batch and noise. (Which pairs a step takes is random as well: cfld.data.batch.StepOrder.)

Letters in shapes: B pairs, which make 2B samples: every source from itself, then every target from its source. C latent
channels, h x w positions of the latents, H side of an image, S side of a source image.
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
from cfld.vae import VAE

DROP_RATE = 0.2  # eta of Sec. 3.3
ENCODED_IMAGES = 8  # at a time, so that the VAE's activations stay small


@dataclass(frozen=True)
class StepNoise:
    """Everything random in a step, except the choice of its B pairs."""

    flips: Tensor  # (B,) uniform: the source encoder's image is mirrored where < 0.5
    depth: Tensor  # (B, branches) uniform: stochastic depth of the source encoder
    timesteps: Tensor  # (2B,) uniform, before the cubic law
    drops: Tensor  # (2B,) uniform: conditions are dropped where < DROP_RATE
    vae_noise: Tensor  # (2B, C, h, w) normal: the sample of the VAE's posterior
    noise: Tensor  # (2B, C, h, w) normal: eps of Eq. 1

    def to(self, device: str | torch.device) -> "StepNoise":
        return StepNoise(**{f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self)})


def step_noise(seed: int, step: int, places: range, config: CFLDConfig) -> StepNoise:
    """The noise of a step for the pairs at these places of the global batch: a function of (seed, step, place)."""
    size = config.image_size // config.vae.factor
    latents = (2, config.unet.latent_channels, size, size)
    pairs = []
    for place in places:
        g = seeded(seed, step, place)
        scalars = torch.rand(5, generator=g)
        depth = torch.rand(2 * sum(config.swin.depths), generator=g)
        pairs.append((scalars, depth, torch.randn(latents, generator=g), torch.randn(latents, generator=g)))
    scalars, depth, vae_noise, noise = (torch.stack(x) for x in zip(*pairs, strict=True))

    def samples(x: Tensor) -> Tensor:
        return rearrange(x, "pairs two ... -> (two pairs) ...")  # all sources, then all targets

    timesteps, drops = samples(scalars[:, 1:3]), samples(scalars[:, 3:5])
    return StepNoise(scalars[:, 0], depth, timesteps, drops, samples(vae_noise), samples(noise))


def encode(vae: VAE, batch: Batch, noise: Tensor) -> Tensor:
    """The scaled latents z_0 (2B, C, h, w) of a batch's images, or of their cached moments.

    noise (2B, C, h, w): N(0, 1), for the sample of the VAE's posterior
    """
    if batch.moments is not None:
        mean, logvar = batch.moments.float().chunk(2, dim=1)
        return vae.sample(mean, logvar, noise)
    assert batch.images is not None
    with torch.no_grad():
        moments = [vae.moments(to_range(images)) for images in batch.images.split(ENCODED_IMAGES)]
    mean, logvar = (torch.cat(parts).float() for parts in zip(*moments, strict=True))
    return vae.sample(mean, logvar, noise)


def timestep_weights(alpha_bars: Tensor, prediction_type: str = "epsilon", min_snr: float = 0.0) -> Tensor:
    """The weight of a sample's squared noise error; alpha_bars of any shape -> the same shape.

    The paper's weight is 1. A model of the velocity weighs the velocity's error by 1, which is (SNR + 1) / SNR times
    the noise error, with SNR = abar / (1 - abar). In terms of the error of z_0 these weights are SNR and SNR + 1, and
    min_snr caps them (Hang et al. 2023, Sec. 3.4, for the noise; for the velocity they cap SNR, not SNR + 1).
    """
    snr = alpha_bars / (1 - alpha_bars)
    return (snr + (prediction_type == "v_prediction")).clamp(max=min_snr or torch.inf) / snr


def denoising_error(
    model: CFLD, latents: Tensor, noise: Tensor, timesteps: Tensor, conditions: Conditions, min_snr: float
) -> Tensor:
    """Eq. 2: the weighted mean squared error of the noise predicted in z_t.

    latents z_0 and noise eps (2B, C, h, w), timesteps (2B,), conditions of 2B samples -> a scalar
    """
    noisy_latents = model.scheduler.add_noise(latents, noise, timesteps)  # Eq. 1
    noise_pred = model(noisy_latents, timesteps, conditions)
    predicted = model.config.scheduler.prediction_type
    weights = timestep_weights(model.scheduler.alpha_bar(timesteps), predicted, min_snr)
    return (weights * (noise_pred.float() - noise).square()).mean()


def mirror(source_images: Tensor, flips: Tensor) -> Tensor:
    """source_images (B, 3, S, S), mirrored where flips (B,) is below 0.5."""
    return torch.where((flips < 0.5)[:, None, None, None], source_images.flip(-1), source_images)


def training_loss(
    model: CFLD, vae: VAE, batch: Batch, noise: StepNoise, recipe: str = "paper", min_snr: float = 0.0
) -> Tensor:
    """Eq. 3 and 5 in one forward over 2B samples -> their mean: half of Eq. 6, which is their sum.

    recipe: which conditions are dropped together, see CFLD.drop
    min_snr: see timestep_weights; 0 is the paper's
    """
    latents = encode(vae, batch, noise.vae_noise)
    timesteps = model.scheduler.cubic_timesteps(noise.timesteps)

    source_images = mirror(to_range(batch.source_images), noise.flips)
    poses = pose_maps(batch.keypoints, model.config.adapter.pose_size)
    conditions = model.condition(source_images, poses, noise.depth)
    conditions = model.drop(conditions, noise.drops < DROP_RATE, recipe)
    return denoising_error(model, latents, noise.noise, timesteps, conditions, min_snr)
