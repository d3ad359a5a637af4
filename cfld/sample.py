"""Generate a person in other poses.

    python -m cfld.sample --source photo.jpg --pose pose.json --out out.png
    python -m cfld.sample --source me.jpg --source-pose me.json --pose dancer.jpg --out out.png
    python -m cfld.sample --model DIR --source photo.jpg --pose fasion-resize-annotation-test.csv#NAME.jpg --out out.png

A pose is a file of a pose estimator or editor, a row of an annotation CSV, a drawn skeleton or a photo: docs/poses.md.
docs/sampling.md explains the options; python -m cfld.edit has more uses of the same model.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from cfld.folder import load
from cfld.model import CFLD
from cfld.photos.crop import fit, fitted
from cfld.photos.keypoints import Joints, add_pose_options, joints_on, pose_settings, read_joints
from cfld.photos.pixels import picture_grid, pose_picture
from cfld.photos.retarget import retarget
from cfld.samplers import SAMPLERS
from cfld.sampling import FAST, PAPER, TURBO, TURBO_HELP, SamplingConfig, check_size, generate
from cfld.tools.cli import (
    DEVICE_HELP,
    PRECISION_HELP,
    PRECISIONS,
    UserError,
    command,
    command_parser,
    parse_size,
    pick_device,
    pick_precision,
    require_compiler,
)
from cfld.tools.files import refuse_overwrite
from cfld.tools.pictures import PICTURES, check_picture_name, read_image, save_image
from cfld.tools.progress import tell, terminal
from cfld.vae import VAE

FAST_HELP = f"{FAST.steps} steps of {FAST.sampler}, unless --steps or --sampler is given"
SIZE_HELP = "output size, 16:11 (height:width) (default: 512x352; small models 256x176)"
EDIT_COMMANDS = ("edit", "interpolate", "sequence", "attention")  # of cfld.edit


def add_source_options(parser: argparse._ActionsContainer) -> None:
    """Add the options of every command that reads a source with its pose."""
    parser.add_argument("--source", required=True, metavar="PHOTO", help="photo of the person")
    parser.add_argument("--source-pose", metavar="FILE", help="pose in it, to crop around (default: pad the photo)")
    parser.add_argument("--source-person", type=int, default=0, metavar="N", help="index of the person in the source")
    parser.add_argument(
        "--source-pose-size", type=parse_size, metavar="WxH", help="as --pose-size, of the source's pose"
    )
    parser.add_argument(
        "--retarget", action="store_true", help="give the poses the proportions of the person in --source-pose"
    )


def add_model_options(parser: argparse._ActionsContainer) -> None:
    """Add the options of load_asked."""
    parser.add_argument("--model", metavar="DIR", help="model folder (default: the bundled tiny model)")
    parser.add_argument("--precision", choices=PRECISIONS, help=PRECISION_HELP)
    parser.add_argument("--device", help=DEVICE_HELP)


def add_options(parser: argparse.ArgumentParser, output: argparse._ActionsContainer, sized: bool = True) -> None:
    """Add the options of every command that samples, those of its output to their group; --size only if sized."""
    group = parser.add_argument_group("model")
    add_model_options(group)
    group.add_argument(
        "--compile", action="store_true", help="torch.compile the UNet: takes minutes, pays off for many images"
    )

    group = parser.add_argument_group("sampling")
    group.add_argument("--sampler", choices=SAMPLERS, help="sampler (default: ddpm, the paper's)")
    group.add_argument("--steps", type=int, help="sampling steps; best a divisor of 1000 with ddpm, ddim (default: 50)")
    group.add_argument("--fast", action="store_true", help=FAST_HELP)
    group.add_argument("--turbo", action="store_true", help=TURBO_HELP)
    group.add_argument("--seed", type=int, default=0, help="of the first image; image i has seed + i")
    group.add_argument(
        "--pose-scale",
        type=float,
        default=PAPER.pose_scale,
        help="w_pose of Eq. 7; unequal scales use a branch that is not trained",
    )
    group.add_argument("--appearance-scale", type=float, default=PAPER.appearance_scale, help="w_app of Eq. 7")
    group.add_argument(
        "--guidance-interval",
        type=int,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="timesteps at which Eq. 7 applies; others run without guidance (default: all)",
    )

    add_pose_options(parser.add_argument_group("reading poses"))
    if sized:
        output.add_argument("--size", type=parse_size, metavar="HxW", help=SIZE_HELP)
    output.add_argument("--force", action="store_true", help="replace existing files")


def sampling_config(options: argparse.Namespace) -> SamplingConfig:
    """The SamplingConfig that add_options' options ask for. Raises UserError that names the option."""
    for name in ("fast", "sampler") if options.turbo else ():
        if getattr(options, name):
            raise UserError(f"--turbo must be given without --{name}: a student has its own sampler")
    base = TURBO if options.turbo else FAST if options.fast else PAPER
    return SamplingConfig.of_options(
        steps=base.steps if options.steps is None else options.steps,
        sampler=options.sampler or base.sampler,
        pose_scale=options.pose_scale,
        appearance_scale=options.appearance_scale,
        guidance_interval=tuple(options.guidance_interval or base.guidance_interval),
    )


def check_outs(
    paths: Sequence[Path], options: argparse.Namespace, pictures: int = 1, kinds: Sequence[str] = PICTURES
) -> None:
    """Raise UserError unless --size fits, all seeds from --seed are valid, and the paths are writable and end in one of
    the kinds."""
    if getattr(options, "size", None):
        check_size(options.size, "--size")
    if not 0 <= options.seed < 2**63 - pictures:
        raise UserError(f"--seed must be at least 0 and below 2^63, found {options.seed}")
    for path in paths:
        check_picture_name(path, kinds)
        refuse_overwrite(path, options.force)


def read_source(path: str, pose: str | None, options: argparse.Namespace) -> tuple[Image.Image, np.ndarray | None]:
    """Read a photo, upright, and make it 11:16 (width:height) for generate: cropped around the person if the pose is
    given, otherwise padded. -> the photo, and with --retarget keypoints (18, 2) of the person in it. Raises UserError,
    also if --retarget lacks the pose."""
    tell(f"reading {path}")
    photo = read_image(path, upright=True)
    if pose is None:
        if options.retarget:
            raise UserError("--retarget needs the joints of the person in the photo, found no --source-pose: add it")
        for name in ("source_person", "source_pose_size"):
            if getattr(options, name):
                raise UserError(f"--{name.replace('_', '-')} is of the source's pose, found no --source-pose: add it")
        return fitted(photo), None
    how = pose_settings(options) | {
        "person": options.source_person,
        "pose_size": options.source_pose_size and options.source_pose_size[::-1],
    }
    try:
        joints = joints_on(photo, pose, **how)
    except UserError as error:  # the source has options of its own
        text = re.sub(r"--(person|pose-size)\b", r"--source-\1", str(error)).replace("--pose ", "--source-pose ")
        raise UserError(text) from None
    crop = fit((photo.height, photo.width), joints)
    return crop.cut(photo), crop.to_frame(joints) if options.retarget else None


def read_poses(texts: Sequence[str], options: argparse.Namespace) -> np.ndarray:
    """Read B values of --pose -> keypoints (B, 18, 2). Raises UserError."""
    return in_windows([read_joints(text, **pose_settings(options)) for text in texts])


def in_windows(found: Sequence[Joints], together: bool = False) -> np.ndarray:
    """B joints with the sizes of their images -> keypoints (B, 18, 2), each in the window of fit(). together: all in
    images of one size share a window, as frames of a video do."""
    sizes = {size for _, size in found} if together else set()
    shared = {size: fit(size, np.concatenate([j for j, s in found if s == size])) for size in sizes}
    return np.stack([shared.get(size, fit(size, joints)).to_frame(joints) for joints, size in found])


def compile_frozen(unet: nn.Module) -> None:
    """torch.compile a UNet that no longer trains, with its weights as constants, laid out once as the kernels read
    them. Needs memory for a second copy of them, and a minute or two at the first call with each batch size."""
    from torch._inductor import config as inductor  # here, since it takes a second to import

    require_compiler(next(unet.parameters()).device)
    compiled = torch.compile(unet.forward, dynamic=False)
    unet.forward = inductor.patch(freezing=True)(compiled)


def load_asked(options: argparse.Namespace, turbo: bool = False) -> tuple[CFLD, VAE]:
    """Load what add_model_options' options ask for, and say so. turbo: as in load."""
    device = pick_device(options.device)
    precision = pick_precision(options.precision, device)
    tell(f"loading {options.model or 'the bundled model'} on {device}")
    return load(options.model, device, precision, channels_last=True, turbo=turbo)


def open_model(options: argparse.Namespace, config: SamplingConfig) -> tuple[CFLD, VAE]:
    """Load the model, or with --turbo its student, and its VAE as the options say. Raises UserError if config does not
    fit it."""
    model, vae = load_asked(options, options.turbo)
    config.check_steps(model.config, "--steps")
    config.check_student(model.config.distilled)
    if options.compile:
        compile_frozen(model.unet)
    return model, vae


@command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in EDIT_COMMANDS:
        raise UserError(f"cfld.sample has no {argv[0]}: it is python -m cfld.edit {argv[0]}")
    parser = command_parser("cfld.sample", __doc__)
    person, poses, output = map(parser.add_argument_group, ("the person", "the poses", "output"))
    add_source_options(person)
    poses.add_argument(
        "--pose", required=True, nargs="+", action="extend", metavar="FILE", help="poses to generate, one image each"
    )
    output.add_argument("--out", required=True, metavar="FILE", help="image to write; -1, -2, ... for several poses")
    output.add_argument("--side-by-side", action="store_true", help="write source, pose and result next to each other")
    output.add_argument("--batch", type=int, default=4, help="images generated at a time")
    add_options(parser, output)
    options = parser.parse_args(argv)

    config = sampling_config(options)
    if options.batch < 1:
        raise UserError(f"--batch must be at least 1, found {options.batch}")
    out = Path(options.out)
    outs = [out] if len(options.pose) == 1 else [out.with_stem(f"{out.stem}-{i + 1}") for i in range(len(options.pose))]
    check_outs(outs, options, len(outs))
    photo, own = read_source(options.source, options.source_pose, options)
    keypoints = read_poses(options.pose, options)
    if own is not None:
        keypoints = np.stack([retarget(pose, own) for pose in keypoints])
    model, vae = open_model(options, config)
    for first in range(0, len(outs), options.batch):
        part = slice(first, first + options.batch)
        seed = options.seed + first
        pictures = generate(
            model, vae, photo, keypoints[part], config, size=options.size, seed=seed, progress=terminal()
        )
        for path, picture, joints in zip(outs[part], pictures, keypoints[part], strict=True):
            if options.side_by_side:
                skeleton = pose_picture(torch.from_numpy(joints), (picture.height, picture.width))
                picture = picture_grid([[photo.resize(picture.size)], [skeleton], [picture]])
            save_image(path, picture)
            print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
