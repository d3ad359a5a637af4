"""Sampling: Eq. 7."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cfld.config import CFLDConfig
from cfld.model import CFLD, Conditions
from cfld.photos.crop import fitted
from cfld.photos.pixels import to_pictures, to_range, to_square
from cfld.pose import FRAME, pose_maps
from cfld.scheduler import SAMPLERS, Scheduler
from cfld.tools.cli import UserError
from cfld.tools.pictures import to_rgb, turned_upright
from cfld.vae import VAE

DECODED_PIXELS = 2**19  # at a time: two pictures of 512x512, whose decoder then needs a GiB in half precision


@dataclass(frozen=True)
class Reference:
    """What the latents of a picture are to be wherever they are not painted (Sec. 4.6; docs/editing.md)."""

    latents: Tensor  # (1, 4, h, w): z_ref,0
    mask: Tensor  # (1, 1, h, w) bool, True where the model paints


def guidance(
    conditions: Conditions, null_prompt: Tensor, pose_scale: float, appearance_scale: float
) -> tuple[list[float], Conditions]:
    """Eq. 7 as a weighted sum over three kinds of row; those of weight 0 are left out.

        eps_t =     (1 - w_pose) eps(z_t, t, 0,   0)
            + (w_pose - w_app) eps(z_t, t, 0,   x_tp)
            +            w_app eps(z_t, t, x_s, x_tp)

    conditions of B rows, null_prompt (1, Q, D) -> R weights, and conditions of R * B rows, one kind after the other.
    At the paper's scales of 2 and 2 the middle weight is 0 and R is 2. At unequal ones it counts, and no training of
    the whole method has had it (CFLD.drop).
    """
    prompt, poses, biases = conditions.prompt, conditions.pose_features, conditions.query_biases
    unconditional = null_prompt.to(prompt.dtype).expand_as(prompt)
    kinds = [
        (1 - pose_scale, Conditions(unconditional, None, None)),
        (pose_scale - appearance_scale, Conditions(unconditional, poses, None)),
        (appearance_scale, Conditions(prompt, poses, biases)),
    ]
    rows = [(weight, kind) for weight, kind in kinds if weight != 0]

    def stack(parts: list[list[Tensor] | None], full: list[Tensor] | None) -> list[Tensor] | None:
        if full is None or all(part is None for part in parts):
            return None
        filled = [part or [torch.zeros_like(x) for x in full] for part in parts]
        return [torch.cat(tensors) for tensors in zip(*filled, strict=True)]

    return [weight for weight, _ in rows], Conditions(
        torch.cat([kind.prompt for _, kind in rows]),
        stack([kind.pose_features for _, kind in rows], poses),
        stack([kind.query_biases for _, kind in rows], biases),
    )


def draw(shape: Sequence[int], generator: torch.Generator | Sequence[torch.Generator] | None, like: Tensor) -> Tensor:
    """Noise (B, 4, h, w), float32, on the device of like: from one generator, or one a row, so that a picture does not
    depend on its neighbours in the batch."""
    if isinstance(generator, Sequence):
        return torch.cat([draw((1, *shape[1:]), one, like) for one in generator])
    device = generator.device if generator is not None else "cpu"
    return torch.randn(tuple(shape), generator=generator, device=device).to(like.device)


@torch.no_grad()
def sample(model: CFLD, vae: VAE, scheduler: Scheduler, source_images: Tensor, poses: Tensor, **how: Any) -> Tensor:
    """Paint the people of source_images in the poses: from z_T ~ N(0, I) to z_0 under Eq. 7, and y = D(z_0) (Sec. 3.3).

    source_images (S, 3, 256, 256) in [-1, 1]
    scheduler: that of model.config
    poses (B, 21, 256, 256) in [0, 1], B a multiple of S: picture i shows source i mod S
    how: what denoise takes
    -> images (B, 3, 512, 512) in [-1, 1], in the model's dtype
    """
    weight = model.unet.conv_in.weight
    conditions = model.condition(source_images.to(weight), poses.to(weight))
    return denoise(model, vae, scheduler, conditions, **how)


@torch.no_grad()
def denoise(
    model: CFLD,
    vae: VAE,
    scheduler: Scheduler,
    conditions: Conditions,
    *,
    steps: int = 50,
    sampler: str = "ddpm",
    pose_scale: float = 2.0,
    appearance_scale: float = 2.0,
    guidance_interval: tuple[float, float] = (0, math.inf),
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    reference: Reference | None = None,
    progress: bool = False,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Paint what conditions of B rows say.

    steps, sampler: how many steps of which of SAMPLERS; the paper's is DDPM with 50
    pose_scale, appearance_scale: w_pose and w_app of Eq. 7
    guidance_interval: the timesteps (lowest, highest) at which Eq. 7 is used; at others the full row stands alone
    generator: one, or a list of one a picture; None draws from torch's global one
    reference: what is kept where a mask says so; None: nothing
    on_step: called after step i = 0, 1, ... with i and the x_0 predicted there, (B, 4, 64, 64); what it raises ends all
    -> images (B, 3, 512, 512) in [-1, 1], in the model's dtype
    """
    if scheduler.config != model.config.scheduler:
        raise UserError(f"the scheduler must be the model's, {model.config.scheduler}, found {scheduler.config}")
    if vae.config != model.config.vae:
        raise UserError(f"the VAE must be the model's, {model.config.vae}, found {vae.config}")
    if sampler not in SAMPLERS:
        raise UserError(f"the sampler must be one of {', '.join(SAMPLERS)}, found {sampler!r}")
    spacing, take_step = SAMPLERS[sampler]
    weight, batch = model.unet.conv_in.weight, len(conditions.prompt)
    guided = guidance(conditions, model.null_prompt, pose_scale, appearance_scale)
    lowest, highest = guidance_interval
    size = model.config.image_size // model.config.vae.factor
    latents = draw((batch, model.config.unet.latent_channels, size, size), generator, weight)

    timesteps = scheduler.sampling_timesteps(steps, spacing)
    if reference is not None:
        start = torch.full((batch,), timesteps[0], device=latents.device)
        kept = reference.latents.float().expand_as(latents)
        latents = torch.where(reference.mask, latents, scheduler.add_noise(kept, latents, start))
    past: list[tuple[int, Tensor]] = []
    for t, t_next in tqdm(
        list(zip(timesteps, [*timesteps[1:], -1], strict=True)), desc="sampling", unit="step", disable=not progress
    ):
        weights, stacked = guided if lowest <= t <= highest else ([1.0], conditions)
        repeated = torch.cat([latents.to(weight)] * len(weights))
        noise_pred = model(repeated, torch.tensor([t], device=weight.device), stacked).float()
        noise_pred = sum(w * eps for w, eps in zip(weights, noise_pred.chunk(len(weights)), strict=True))  # Eq. 7
        if reference is not None:
            implied = scheduler.implied_noise(latents, kept, t)  # Sec. 4.6, not as printed: docs/editing.md
            noise_pred = torch.where(reference.mask, noise_pred, implied)
        noise = draw(latents.shape, generator, weight) if sampler == "ddpm" and t_next >= 0 else None
        x_0 = scheduler.clean_latents(latents, noise_pred, t)
        latents = take_step(scheduler, latents, noise_pred, t, t_next, noise, past)
        past = [*past[-1:], (t, x_0)]
        if on_step is not None:
            on_step(timesteps.index(t), x_0)
    if reference is not None:
        latents = torch.where(reference.mask, latents, kept)
    if not latents.isfinite().all():
        raise UserError(
            "the painted latents must be finite numbers, and are not: take another --precision, lower scales, or a "
            "model folder that is whole"
        )
    at_a_time = max(DECODED_PIXELS // model.config.image_size**2, 1)
    parts = latents.to(next(vae.parameters())).split(at_a_time)
    return torch.cat([vae.decode(part).clamp(-1, 1) for part in parts])


def source_tensor(model: CFLD, photo: Image.Image) -> Tensor:
    """A photo as the source encoder takes it: (1, 3, 256, 256) in [-1, 1], as the weights are."""
    return to_range(to_square(fitted(photo), model.config.source_size)[None]).to(model.unet.conv_in.weight)


def pose_tensor(model: CFLD, keypoints: np.ndarray | Tensor) -> Tensor:
    """keypoints (B, 18, 2) -> pose maps (B, 21, 256, 256), as the weights are."""
    weight = model.unet.conv_in.weight
    joints = torch.as_tensor(keypoints, dtype=torch.float32, device=weight.device)
    return pose_maps(joints, model.config.adapter.pose_size).to(weight)


def generate(
    model: CFLD,
    vae: VAE,
    photo: Image.Image,
    keypoints: np.ndarray | Tensor,
    *,
    size: tuple[int, int] | None = None,
    steps: int = 50,
    sampler: str = "ddpm",
    pose_scale: float = 2.0,
    appearance_scale: float = 2.0,
    guidance_interval: tuple[float, float] = (0, math.inf),
    seed: int = 0,
    progress: bool = False,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> list[Image.Image]:
    """The person of a photo in other poses.

    photo: a picture of one person, which is turned as its camera says; one that is not 11:16 gets rims, as
        cfld.photo.fit says without joints
    keypoints (18, 2) or (B, 18, 2) as (y, x) in the 256x176 frame, -1 = missing
    size (height, width) of the results, by default 512x352, or 256x176 for a model of smaller images
    steps, sampler, pose_scale, appearance_scale, guidance_interval, on_step: see denoise
    seed: of the first picture; the next has seed + 1, and so on
    -> B pictures
    """
    keypoints = torch.as_tensor(np.asarray(keypoints), dtype=torch.float32)
    if keypoints.shape[-2:] != (18, 2) or keypoints.ndim not in (2, 3) or not keypoints.isfinite().all():
        raise UserError(
            f"keypoints must be (18, 2) or (B, 18, 2) finite numbers, found {tuple(keypoints.shape)}: "
            "cfld.keypoints_from makes them of other layouts, and cfld.read_pose of files"
        )
    keypoints = keypoints.reshape(-1, 18, 2)
    images = sample(
        model,
        vae,
        Scheduler(model.config.scheduler),
        source_tensor(model, to_rgb(turned_upright(photo))),
        pose_tensor(model, keypoints),
        steps=steps,
        sampler=sampler,
        pose_scale=pose_scale,
        appearance_scale=appearance_scale,
        guidance_interval=guidance_interval,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(keypoints))],
        progress=progress,
        on_step=on_step,
    )
    return to_pictures(images, size or default_size(model.config.image_size))


def check_steps(option: str, steps: int, config: CFLDConfig) -> None:
    """Raise UserError unless a run of so many sampling steps fits the model's schedule."""
    if not 1 <= steps < config.scheduler.num_timesteps:
        raise UserError(f"{option} must be within 1 .. {config.scheduler.num_timesteps - 1}, found {steps}")


def default_size(image_size: int) -> tuple[int, int]:
    """Height and width of results for a model of this image size: the paper's larger or smaller."""
    return (512, 352) if image_size >= 512 else FRAME
