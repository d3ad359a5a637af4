"""Sampling: cumulative classifier-free guidance (Sec. 3.3, Eq. 7), the loop over timesteps, and the command.

    python -m cfld.sample --source photo.jpg --pose pose.json --out out.png
    python -m cfld.sample --source me.jpg --source-pose me.json --pose dancer.jpg --out out.png
    python -m cfld.sample --model DIR --source photo.jpg --pose fasion-resize-annotation-test.csv#NAME.jpg --out out.png
    python -m cfld.sample edit|interpolate|sequence|attention --help              four uses of the same model: cfld.edit

Letters in shapes: B pictures, S source images, R rows of Eq. 7 whose weight is not 0.
"""

import argparse
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from cfld.config import CFLDConfig
from cfld.data import to_range, to_square
from cfld.files import (
    PRECISIONS,
    UserError,
    check_picture_name,
    command,
    command_parser,
    parse_size,
    pick_device,
    read_image,
    refuse_overwrite,
    save_image,
    to_rgb,
    turned_upright,
)
from cfld.model import CFLD, Conditions, load
from cfld.photo import FRAME, Crop, fit, fitted, same_shape
from cfld.pose import POSE_HELP, add_pose_options, joints_on, pose_maps, pose_settings, read_joints
from cfld.scheduler import SAMPLERS, Scheduler
from cfld.vae import VAE

SOURCE_POSE_HELP = (
    "the joints of the first person in the source, in any form of --pose: the photo is cut around them "
    "(default: a source that is not 11:16 gets rims)"
)
PAPER: dict[str, Any] = {"sampler": "ddpm", "steps": 50, "guidance_interval": (0, math.inf)}
FAST: dict[str, Any] = {"sampler": "dpm++", "steps": 15}  # benchmarks/faster.py: what it costs in quality
DECODED_PIXELS = 2**19  # at a time: two pictures of 512x512, whose decoder then needs a GiB in half precision
SCALE_LIMIT = 100
EDITING = ("edit", "interpolate", "sequence", "attention")  # first words that lead to cfld.edit


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
        noise_pred = model(latents.to(weight), torch.tensor([t], device=weight.device), stacked).float()
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


def to_pictures(images: Tensor, size: tuple[int, int]) -> list[Image.Image]:
    """images (B, 3, H, H) in [-1, 1] -> B pictures of size (height, width), by antialiased bicubic interpolation."""
    images = F.interpolate(images.float() / 2 + 0.5, size=size, mode="bicubic", antialias=True)
    pixels = (images.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return [Image.fromarray(x) for x in rearrange(pixels, "b c h w -> b h w c")]


def picture_grid(columns: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Columns of equally large pictures as one picture."""
    width, height = columns[0][0].size
    grid = Image.new("RGB", (width * len(columns), height * len(columns[0])))
    for x, column in enumerate(columns):
        for y, picture in enumerate(column):
            grid.paste(picture, (width * x, height * y))
    return grid


def pose_picture(keypoints: Tensor, size: tuple[int, int]) -> Image.Image:
    """keypoints (18, 2) as (y, x) in the 256x176 frame -> the skeleton as a picture of size (height, width)."""
    skeleton = pose_maps(keypoints[None], 256)[:, :3]
    return to_pictures(skeleton * 2 - 1, size)[0]


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


def add_options(parser: argparse.ArgumentParser, sized: bool = True) -> None:
    """The options of every command that samples; sized if its pictures may have any size."""
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="a model folder, made by cfld.convert or cfld.train (default: the bundled tiny model)",
    )
    parser.add_argument("--sampler", choices=SAMPLERS, help="(default: ddpm, the paper's)")
    parser.add_argument(
        "--steps",
        type=int,
        help="of the sampler (default: 50, the paper's); ddpm and ddim want a divisor of 1000 that is 10 or more",
    )
    parser.add_argument(
        "--fast", action="store_true", help="{steps} steps of {sampler} unless told otherwise".format(**FAST)
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the UNet: minutes at first, worth it for many pictures"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same picture")
    if sized:
        parser.add_argument(
            "--size",
            type=parse_size,
            metavar="HxW",
            help="of the picture, of 16:11 (default: 512x352, or 256x176 for models of smaller images)",
        )
    add_pose_options(parser)
    parser.add_argument(
        "--pose-scale",
        type=float,
        default=2.0,
        help="w_pose of Eq. 7; where the two scales differ, the row of the pose alone counts, which is untrained",
    )
    parser.add_argument("--appearance-scale", type=float, default=2.0, help="w_app of Eq. 7")
    parser.add_argument(
        "--guidance-interval",
        type=int,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="timesteps at which Eq. 7 is used; at others the full row stands alone (default: all)",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="of the weights (default: bf16 on CUDA, fp32 elsewhere)"
    )
    parser.add_argument("--device", help="cuda, cpu, ... (default: the best there is)")
    parser.add_argument("--force", action="store_true", help="replace the picture if it exists")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What add_options' options mean for denoise. Raises UserError for values that mean nothing."""
    for name in ("pose_scale", "appearance_scale"):
        if not -SCALE_LIMIT <= getattr(options, name) <= SCALE_LIMIT:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} must be within -{SCALE_LIMIT} .. {SCALE_LIMIT}, found {getattr(options, name)}")
    height, width = getattr(options, "size", None) or FRAME
    if not same_shape(FRAME, (height, width)):
        raise UserError(
            f"--size must be of 16:11, height x width, such as 512x352, found {height}x{width}: in another shape "
            "people would be thin or broad"
        )
    how = {**PAPER, **(FAST if options.fast else {})}
    how |= {name: given for name in PAPER if (given := getattr(options, name)) is not None}
    lowest, highest = how["guidance_interval"]
    if lowest > highest:
        raise UserError(f"--guidance-interval must be LOW HIGH with LOW <= HIGH, found {lowest} {highest}")
    return {**how, "pose_scale": options.pose_scale, "appearance_scale": options.appearance_scale}


def check_outs(paths: Sequence[Path], options: argparse.Namespace, pictures: int = 1) -> None:
    """Raise UserError unless pictures can be written to the paths, and as many seeds be counted from --seed."""
    if not 0 <= options.seed < 2**63 - pictures:
        raise UserError(f"--seed must be at least 0 and below 2^63, found {options.seed}")
    for path in paths:
        check_picture_name(path)
        refuse_overwrite(path, options.force)


def read_source(path: str, pose: str | None, options: argparse.Namespace) -> Image.Image:
    """A photo, upright, and around the joints of its person if --source-pose gives them, as generate takes it."""
    photo = read_image(path, upright=True)
    if pose is None:
        return fitted(photo)
    joints = joints_on(photo, pose, min_confidence=options.min_confidence)
    return fit((photo.height, photo.width), joints).cut(photo)


def read_poses(texts: Sequence[str], options: argparse.Namespace, together: bool = False) -> np.ndarray:
    """What --pose takes, B times -> keypoints (B, 18, 2); together: with one window for all poses in pictures of one
    size, as the frames of a video are."""
    found = [read_joints(text, **pose_settings(options)) for text in texts]

    def window(joints: np.ndarray, size: tuple[float, float]) -> Crop:
        return fit(size, np.concatenate([j for j, s in found if s == size]) if together else joints)

    return np.stack([window(*pose).to_frame(pose[0]) for pose in found])


def compile_frozen(unet: nn.Module) -> None:
    """torch.compile a UNet that no longer trains: its weights are laid out once as the kernels read them. It takes
    their memory once more, and a minute or two at the first call with so many rows."""
    from torch._inductor import config as inductor  # here, since it takes a second to import

    inductor.freezing = True
    unet.compile(dynamic=False)


def open_model(options: argparse.Namespace) -> tuple[CFLD, VAE]:
    """The model and the VAE that the options name."""
    device = pick_device(options.device)
    precision = PRECISIONS[options.precision or ("bf16" if device.type == "cuda" else "fp32")]
    model, vae = load(options.model, device, precision)
    check_steps("--steps", settings(options)["steps"], model.config)
    for module in (model, vae):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        compile_frozen(model.unet)
    return model, vae


@command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in EDITING:
        return importlib.import_module("cfld.edit").run(argv)  # by name: cfld.edit stands on this module
    parser = command_parser("cfld.sample", __doc__)
    parser.add_argument("--source", required=True, metavar="PHOTO", help="a photo of the person")
    parser.add_argument("--source-pose", metavar="FILE", help=SOURCE_POSE_HELP)
    parser.add_argument(
        "--pose", required=True, nargs="+", action="extend", metavar="FILE", help=f"poses to paint: {POSE_HELP}"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="the picture to write; with several poses -1, -2, ... is added"
    )
    add_options(parser)
    parser.add_argument("--side-by-side", action="store_true", help="write source, pose and result in one picture")
    parser.add_argument("--batch", type=int, default=4, help="poses that are painted at a time")
    options = parser.parse_args(argv)

    how = settings(options)
    if options.batch < 1:
        raise UserError(f"--batch must be at least 1, found {options.batch}")
    out = Path(options.out)
    outs = [out] if len(options.pose) == 1 else [out.with_stem(f"{out.stem}-{i + 1}") for i in range(len(options.pose))]
    check_outs(outs, options, len(outs))
    photo = read_source(options.source, options.source_pose, options)
    keypoints = read_poses(options.pose, options)
    model, vae = open_model(options)
    for first in range(0, len(outs), options.batch):
        part = slice(first, first + options.batch)
        seed = options.seed + first
        pictures = generate(model, vae, photo, keypoints[part], size=options.size, seed=seed, progress=True, **how)
        for path, picture, joints in zip(outs[part], pictures, keypoints[part], strict=True):
            if options.side_by_side:
                skeleton = pose_picture(torch.from_numpy(joints), (picture.height, picture.width))
                picture = picture_grid([[photo.resize(picture.size)], [skeleton], [picture]])
            save_image(path, picture)
            print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
