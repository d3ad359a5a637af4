"""Sampling: cumulative classifier-free guidance (Sec. 3.3, Eq. 7), the loop over timesteps, and images from photos.

    generate    a photo and keypoints -> pictures (PIL)
    sample      source images and pose maps -> images (tensors)
    denoise     Conditions -> images, optionally with a part of another image kept (Sec. 4.6)

Images are tensors in [-1, 1], of the model's square; pictures are PIL images, of any size.

Letters in shapes: B samples, S source images, R branches of Eq. 7 whose weight is not 0, L prompt tokens of width P,
C latent channels, h x w positions of the latents.
"""

import math
import numbers
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cfld.config import CFLDConfig, DistilledConfig
from cfld.model import CFLD, Conditions
from cfld.photos.crop import fitted, same_shape
from cfld.photos.pixels import to_pictures, to_range, to_square
from cfld.photos.retarget import retarget
from cfld.photos.units import check_keypoints
from cfld.pose import FRAME, pose_maps
from cfld.samplers import SAMPLERS, STUDENT_SAMPLERS, Past
from cfld.scheduler import Scheduler
from cfld.tools.checks import described, is_number
from cfld.tools.cli import UserError
from cfld.tools.pictures import read_image, to_rgb, turned_upright
from cfld.vae import VAE

SCALE_LIMIT = 100  # of guidance, either sign
DECODED_PIXELS = 2**19  # decoded at a time: two images of 512x512, for which the decoder needs a GiB in half precision
Generators = torch.Generator | Sequence[torch.Generator] | None  # one for all, one per image, or torch's global one
Photo = Image.Image | np.ndarray | str | os.PathLike[str]
NoisePredictor = Callable[[Tensor, Tensor, Conditions], Tensor]  # a CFLD: (z_t, timesteps, conditions) -> noise_pred
OnStep = Callable[[int, Tensor], None]  # takes the step 0, 1, ... and the x_0 (B, C, h, w) predicted there


@dataclass(frozen=True)
class SamplingConfig:
    """How to sample; the defaults are the paper's. Raises UserError for a value that has no meaning."""

    steps: int = 50
    sampler: str = "ddpm"  # of cfld.samplers.SAMPLERS; "turbo" for a student: that of cfld.samplers.STUDENT_SAMPLERS
    pose_scale: float = 2.0  # w_pose of Eq. 7
    appearance_scale: float = 2.0  # w_app of Eq. 7
    # The timesteps (lowest, highest) at which Eq. 7 applies; at others only the fully conditional branch is used.
    guidance_interval: tuple[float, float] = (0, math.inf)

    def __post_init__(self) -> None:
        if not is_number(self.steps, numbers.Integral) or self.steps < 1:
            raise UserError(f"steps must be a whole number of at least 1, found {str(self.steps)[:60]}")
        if self.sampler not in [*SAMPLERS, "turbo"]:
            raise UserError(f"sampler must be one of {', '.join(SAMPLERS)}, found {str(self.sampler)[:60]!r}")
        for name in ("pose_scale", "appearance_scale"):
            scale = getattr(self, name)
            if not is_number(scale) or not abs(scale) <= SCALE_LIMIT:
                limits = f"-{SCALE_LIMIT} .. {SCALE_LIMIT}"
                raise UserError(f"{name} must be a number within {limits}, found {str(scale)[:60]}")
        interval = self.guidance_interval
        if isinstance(interval, str) or not hasattr(interval, "__len__"):
            raise UserError(f"guidance_interval must be two numbers, found {str(interval)[:60]!r}")
        if not (len(interval) == 2 and all(map(is_number, interval)) and interval[0] <= interval[1]):
            found = " ".join(map(str, interval))
            raise UserError(f"guidance_interval must be LOW HIGH with LOW <= HIGH, found {found}")

    def check_steps(self, config: CFLDConfig, name: str = "steps") -> None:
        """Raise UserError if steps exceed the schedule. name: how the error names the option."""
        most = config.scheduler.num_timesteps - 1
        if self.steps > most:
            raise UserError(f"{name} must be within 1 .. {most}, found {self.steps}")

    def check_student(self, distilled: DistilledConfig | None) -> None:
        """Raise UserError unless a student is sampled with TURBO's sampler and its own scales, and any other model with
        another sampler."""
        if distilled is None:
            if self.sampler == "turbo":
                raise UserError(
                    "--turbo must be used with a student of few steps, found another model: leave it out, or make a "
                    "student with python -m cfld.train --stage distill --init DIR"
                )
            return
        if self.sampler != "turbo":
            raise UserError(
                f"this model is a student of few steps without guidance, which must be sampled with --turbo "
                f"(in Python cfld.sampling.TURBO), found sampler {self.sampler}; its teacher takes any sampler"
            )
        scales, taken = (self.pose_scale, self.appearance_scale), distilled.scale
        if scales != (taken, taken) or self.guidance_interval != SamplingConfig.guidance_interval:
            raise UserError(
                f"with --turbo the scales must be {taken:g} and {taken:g} at all timesteps, as the student was "
                f"distilled, found {scales[0]:g} and {scales[1]:g}"
                + ("" if self.guidance_interval == SamplingConfig.guidance_interval else " in an interval")
            )


PAPER = SamplingConfig()
FAST = SamplingConfig(steps=15, sampler="dpm++")  # close to PAPER (docs/speed.md)
TURBO = SamplingConfig(steps=4, sampler="turbo")  # of a student, one branch per step (docs/turbo.md)
TURBO_HELP = f"{TURBO.steps} steps of the model folder's student, unless --steps is given"


@dataclass(frozen=True)
class Reference:
    """An image that is kept outside a mask (Sec. 4.6, not quite as printed: docs/editing.md)."""

    latents: Tensor  # (1, C, h, w) in float32: z_ref,0
    mask: Tensor  # (1, 1, h, w) bool: True where the model generates

    def paste(self, latents: Tensor, kept: Tensor) -> Tensor:
        """latents (B, C, h, w) inside the mask, kept (B or 1, C, h, w) outside."""
        return torch.where(self.mask, latents, kept)

    def start(self, scheduler: Scheduler, noise: Tensor, t: int) -> Tensor:
        """noise (B, C, h, w) -> the initial z_t: the noise inside the mask, the reference noised to t (same noise)
        outside."""
        return self.paste(noise, scheduler.add_noise(self.latents, noise, torch.tensor([t], device=noise.device)))

    def keep(self, scheduler: Scheduler, latents: Tensor, noise_pred: Tensor, t: int) -> Tensor:
        """z_t and noise_pred (B, C, h, w) -> noise_pred; outside the mask, the noise that leads from z_t to z_ref,0."""
        return self.paste(noise_pred, scheduler.implied_noise(latents, self.latents, t))


def guidance(
    conditions: Conditions, null_prompt: Tensor, pose_scale: float, appearance_scale: float
) -> tuple[list[float], Conditions]:
    """Eq. 7 as a weighted sum over three branches; those of weight 0 are left out.

        eps_t =     (1 - w_pose) eps(z_t, t, ∅,   ∅)
            + (w_pose - w_app) eps(z_t, t, ∅,   x_tp)
            +            w_app eps(z_t, t, x_s, x_tp)

    conditions of B samples, null_prompt (1, L, P) -> R weights, and the R branches, one after the other: R * B samples.
    At the paper's scales of 2 and 2, the middle weight is 0 and R is 2. At unequal scales it is not 0, though no recipe
    trains that branch (CFLD.drop).
    """
    prompt = null_prompt.to(conditions.prompt.dtype).expand_as(conditions.prompt)
    unconditional = Conditions(prompt, None, None)
    pose_only = replace(unconditional, pose_features=conditions.pose_features)
    weights = (1 - pose_scale, pose_scale - appearance_scale, appearance_scale)
    branches = zip(weights, (unconditional, pose_only, conditions), strict=True)
    counted = [(weight, branch) for weight, branch in branches if weight != 0]
    return [weight for weight, _ in counted], Conditions.cat([branch for _, branch in counted])


def guided_noise(
    model: NoisePredictor, latents: Tensor, t: int | Tensor, weights: list[float], branches: Conditions
) -> Tensor:
    """z_t (B, C, h, w), t one for all or (B,), R weights and branches as guidance gives them -> eps_t of Eq. 7
    (B, C, h, w) in float32."""
    repeated = torch.cat([latents] * len(weights))
    at = t if isinstance(t, Tensor) else torch.full((len(latents),), t, device=latents.device)
    timesteps = at.repeat(len(weights))
    noise_pred = model(repeated, timesteps, branches).float().chunk(len(weights))
    first, *rest = (weight * eps for weight, eps in zip(weights, noise_pred, strict=True))
    return sum(rest, start=first)


def draw_noise(shape: Sequence[int], generator: Generators, device: torch.device) -> Tensor:
    """Normal noise (B, C, h, w), float32, on the device. With one generator per image, an image does not depend on the
    others in its batch. Raises UserError unless there are B generators."""
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise UserError(f"generators must be one, or one per image, {shape[0]}, found {len(generator)}")
        return torch.cat([draw_noise((1, *shape[1:]), one, device) for one in generator])
    source = generator.device if generator is not None else "cpu"
    return torch.randn(tuple(shape), generator=generator, device=source).to(device)


def decode(vae: VAE, latents: Tensor) -> Tensor:
    """latents (B, C, h, w) -> images (B, 3, 512, 512) in [-1, 1], in the VAE's dtype, a few at a time. Raises UserError
    if there are latents that are not finite."""
    if not latents.isfinite().all():
        raise UserError(
            "the sampled latents must be finite numbers, found others: take another --precision, lower scales, or "
            "another model folder"
        )
    at_a_time = max(DECODED_PIXELS // (latents.shape[-1] * vae.config.factor) ** 2, 1)
    parts = latents.to(next(vae.parameters())).split(at_a_time)
    return torch.cat([vae.decode(part).clamp(-1, 1) for part in parts])


@torch.no_grad()
def denoise(
    model: CFLD,
    vae: VAE,
    conditions: Conditions,
    config: SamplingConfig = PAPER,
    *,
    generator: Generators = None,
    reference: Reference | None = None,
    progress: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """From noise z_T to clean latents z_0 under Eq. 7, and y = D(z_0) (Sec. 3.3).

    conditions of B samples
    generator: one, or a list of one per image; None draws from torch's global generator
    reference: what to keep outside a mask; None keeps nothing
    progress: whether to show a progress bar
    on_step: called after each step; an exception that it raises ends the sampling
    -> images (B, 3, 512, 512) in [-1, 1], in the model's dtype
    Raises UserError if the VAE, the sampler or the number of steps does not fit the model, or the latents are not
    finite.
    """
    config.check_steps(model.config)
    config.check_student(distilled := model.config.distilled)
    if vae.config != model.config.vae:
        raise UserError(f"the VAE must be the model's, {model.config.vae}, found {vae.config}")
    scheduler = model.scheduler
    sampler = STUDENT_SAMPLERS[distilled.recipe] if distilled else SAMPLERS[config.sampler]
    timesteps = scheduler.sampling_timesteps(config.steps, sampler.spacing)
    scales = (1, 1) if distilled else (config.pose_scale, config.appearance_scale)  # a student has learned Eq. 7
    guided = guidance(conditions, model.null_prompt, *scales)
    lowest, highest = config.guidance_interval
    side, device = model.config.image_size // vae.config.factor, model.device
    shape = (len(conditions), model.config.unet.latent_channels, side, side)

    latents = draw_noise(shape, generator, device)
    if reference is not None:
        latents = reference.start(scheduler, latents, timesteps[0])
    past: Past = []
    pairs = list(pairwise([*timesteps, -1]))  # t_next = -1: clean latents
    steps = tqdm(pairs, desc="sampling", unit="step", disable=not progress)
    for i, (t, t_next) in enumerate(steps):
        # Guided noise: Eq. 7.
        weights, branches = guided if lowest <= t <= highest else ([1.0], conditions)
        noise_pred = guided_noise(model, latents, t, weights, branches)

        # Keep the reference outside the mask: Sec. 4.6.
        if reference is not None:
            noise_pred = reference.keep(scheduler, latents, noise_pred, t)

        # Step from t to t_next by way of the predicted x_0.
        x_0 = scheduler.clean_latents(latents, noise_pred, t)
        noise = draw_noise(shape, generator, device) if sampler.stochastic and t_next >= 0 else None
        latents = sampler.step(scheduler, latents, x_0, t, t_next, past if sampler.multistep else noise)
        past = [*past[-1:], (t, x_0)]
        if on_step is not None:
            on_step(i, x_0)
    if reference is not None:
        latents = reference.paste(latents, reference.latents)
    return decode(vae, latents)


@torch.no_grad()
def sample(
    model: CFLD,
    vae: VAE,
    source_images: Tensor,
    poses: Tensor,
    config: SamplingConfig = PAPER,
    *,
    generator: Generators = None,
    progress: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """Generate the people of source_images in the poses.

    source_images (S, 3, 256, 256) in [-1, 1]
    poses (B, 21, 256, 256) in [0, 1], B a multiple of S: image i shows source i mod S
    generator, progress, on_step: as in denoise
    -> images (B, 3, 512, 512) in [-1, 1], in the model's dtype
    """
    place = model.device, model.dtype
    conditions = model.condition(source_images.to(*place), poses.to(*place))
    return denoise(model, vae, conditions, config, generator=generator, progress=progress, on_step=on_step)


def source_tensor(model: CFLD, photo: Image.Image) -> Tensor:
    """A photo -> source image (1, 3, 256, 256) in [-1, 1], in the model's dtype and on its device."""
    return to_range(to_square(fitted(photo), model.config.source_size)[None]).to(model.device, model.dtype)


def pose_tensor(model: CFLD, keypoints: np.ndarray | Tensor) -> Tensor:
    """keypoints (B, 18, 2) -> pose maps (B, 21, 256, 256) in [0, 1], in the model's dtype and on its device. Raises
    UserError if the keypoints are not in the 256x176 frame."""
    check_keypoints(keypoints.numpy(force=True) if isinstance(keypoints, Tensor) else keypoints)
    joints = torch.as_tensor(keypoints, dtype=torch.float32, device=model.device)
    return pose_maps(joints, model.config.adapter.pose_size).to(model.dtype)


def opened(photo: Photo) -> Image.Image:
    """A photo as generate takes it -> RGB, upright. Raises UserError."""
    if isinstance(photo, (str, os.PathLike)):
        return read_image(Path(photo), upright=True)
    if isinstance(photo, np.ndarray) and photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3:
        photo = Image.fromarray(np.ascontiguousarray(photo)) if photo.size else Image.new("RGB", (0, 0))
    if not isinstance(photo, Image.Image) or not all(photo.size):
        raise UserError(
            "photo must be a PIL image of at least 1x1, a path or an array (H, W, 3) of uint8, found "
            f"{f'one of {photo.width}x{photo.height}' if isinstance(photo, Image.Image) else described(photo)}"
        )
    return to_rgb(turned_upright(photo))


def default_size(image_size: int) -> tuple[int, int]:
    """Height and width of the pictures of a model with images of this size: the paper's larger or smaller format."""
    return (512, 352) if image_size >= 512 else FRAME


def check_size(size: tuple[int, int], name: str = "size") -> None:
    """Raise UserError unless pictures of this size (height, width) keep people's proportions. name: how the error names
    the size."""
    whole = hasattr(size, "__len__") and len(size) == 2
    if not whole or not all(is_number(side, numbers.Integral) and 1 <= side <= 8192 for side in size):
        raise UserError(f"{name} must be height and width, whole numbers within 1 .. 8192, found {str(size)[:60]}")
    height, width = size
    if not same_shape(FRAME, size):
        reason = "in another shape people would be thin or broad"
        if same_shape(FRAME, (width, height)):
            reason = "give the height first"
        raise UserError(f"{name} must be 16:11 (height:width), such as 512x352, found {height}x{width}: {reason}")


def generate(
    model: CFLD,
    vae: VAE,
    photo: Photo,
    keypoints: np.ndarray | Tensor,
    config: SamplingConfig = PAPER,
    *,
    source_keypoints: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    progress: bool = False,
    on_step: OnStep | None = None,
) -> list[Image.Image]:
    """Generate the person of a photo in other poses.

    photo: of one person: a PIL image, a path, or an array (H, W, 3) of uint8; turned upright as
        its EXIF data say; padded with the colour of its border to 11:16 (width:height)
    keypoints (18, 2) or (B, 18, 2) as (y, x) in the 256x176 frame, -1 = missing
    source_keypoints (18, 2): the same of the person in the photo, whose proportions each pose then gets
        (cfld.photos.retarget; for frames of a sequence call it first); None: the poses as they are
    size: height and width of the pictures, 16:11, by default 512x352, or 256x176 for a model of smaller images
    seed: of the first picture; the next has seed + 1, and so on
    progress, on_step: as in denoise
    -> B pictures
    Raises UserError for a photo, keypoints, size or seed of another kind, shape or range.
    """
    size = default_size(model.config.image_size) if size is None else size
    check_size(size)
    array = keypoints.detach().cpu().numpy() if isinstance(keypoints, Tensor) else np.asarray(keypoints)
    numeric = array.dtype.kind in "fiu" and array.shape[-2:] == (18, 2) and array.ndim in (2, 3) and len(array)
    if not numeric or not (np.abs(array) < 1e6).all():
        raise UserError(
            "keypoints must be (18, 2) or (B, 18, 2) finite numbers, pixels of the 256x176 frame, found "
            f"{described(array)}: cfld.keypoints_from converts other layouts, cfld.read_pose reads files"
        )
    keypoints = torch.from_numpy(array.astype(np.float32).reshape(-1, 18, 2))
    if not is_number(seed, numbers.Integral) or not 0 <= seed < 2**63 - len(keypoints):
        raise UserError(f"seed must be a whole number of at least 0 and below 2^63, found {str(seed)[:60]}")
    seed = int(seed)
    if source_keypoints is not None:
        keypoints = torch.from_numpy(np.stack([retarget(pose, source_keypoints) for pose in keypoints.numpy()]))
    images = sample(
        model,
        vae,
        source_tensor(model, opened(photo)),
        pose_tensor(model, keypoints),
        config,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(keypoints))],
        progress=progress,
        on_step=on_step,
    )
    return to_pictures(images, (int(size[0]), int(size[1])))
