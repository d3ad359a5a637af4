"""Sampling: cumulative classifier-free guidance (Sec. 3.3, Eq. 7), the loop over timesteps, and the command.

    python -m cfld.sample --source photo.jpg --pose pose.json --out out.png
    python -m cfld.sample --source me.jpg --source-pose me.json --pose dancer.jpg --out out.png
    python -m cfld.sample --model DIR --source photo.jpg --pose fasion-resize-annotation-test.csv#NAME.jpg --out out.png
    python -m cfld.sample edit|interpolate|sequence|attention --help              four uses of the same model: cfld.edit

Letters in shapes: B pictures, S source images, R rows of Eq. 7 whose weight is not 0.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from cfld.folder import load
from cfld.model import CFLD
from cfld.photos.crop import Crop, fit, fitted, same_shape
from cfld.photos.keypoints import POSE_HELP, add_pose_options, joints_on, pose_settings, read_joints
from cfld.photos.pixels import picture_grid, pose_picture
from cfld.pose import FRAME
from cfld.sampling import check_steps, generate
from cfld.scheduler import SAMPLERS
from cfld.tools.cli import PRECISIONS, UserError, command, command_parser, parse_size, pick_device
from cfld.tools.files import refuse_overwrite
from cfld.tools.pictures import check_picture_name, read_image, save_image
from cfld.vae import VAE

SOURCE_POSE_HELP = (
    "the joints of the first person in the source, in any form of --pose: the photo is cut around them "
    "(default: a source that is not 11:16 gets rims)"
)
PAPER: dict[str, Any] = {"sampler": "ddpm", "steps": 50, "guidance_interval": (0, math.inf)}
FAST: dict[str, Any] = {"sampler": "dpm++", "steps": 15}  # benchmarks/faster.py: what it costs in quality
SCALE_LIMIT = 100
EDITING = ("edit", "interpolate", "sequence", "attention")  # first words that lead to cfld.edit


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
    joints = joints_on(photo, pose, min_confidence=options.min_confidence, layout=options.layout)
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
        raise UserError(f"python -m cfld.sample {argv[0]} is now python -m cfld.edit {argv[0]}")
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
