"""Edit and inspect with a trained model: change clothes within a mask, interpolate styles, many poses, attention maps.

    python -m cfld.edit edit --reference y.png --pose y.json --mask m.png --source style.jpg --out out.png
    python -m cfld.edit interpolate --source a.jpg b.jpg --pose pose.json --frames 8 --out out.gif strip.png
    python -m cfld.edit sequence --source photo.jpg --pose FOLDER --out out.webp out.mp4 sheet.png
    python -m cfld.edit attention --source photo.jpg --pose pose.json --out maps.png

edit and interpolate are the paper's appearance editing (Sec. 4.6, Fig. 6), attention is its Fig. 7. docs/editing.md
explains the mask. Names in .gif, .webp and .mp4 (by ffmpeg) make animations, others sheets.

Letters in shapes: B samples, Q queries, h x w positions of a map.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cfld.edit.animation import ANIMATIONS, check_animation, is_animation, save_animation, sheet_of
from cfld.edit.attention_maps import (
    REGIONS,
    choose_queries,
    labelled_photos,
    overlay,
    region_masks,
    source_maps,
    titled,
    token_maps,
)
from cfld.edit.edit import edit, generate_frames, in_poses, interpolated
from cfld.model import CFLD, Conditions
from cfld.photos.clip import pose_files, read_clip
from cfld.photos.crop import fit, fitted
from cfld.photos.feather import blend
from cfld.photos.keypoints import joints_on, pose_settings
from cfld.photos.pixels import picture_grid, to_pictures, to_range, to_square
from cfld.photos.retarget import retarget
from cfld.prd import PerceptionRefinedDecoder
from cfld.sample import (
    add_options,
    add_source_options,
    check_outs,
    in_windows,
    open_model,
    read_poses,
    read_source,
    sampling_config,
)
from cfld.sampling import SamplingConfig, default_size, pose_tensor, source_tensor
from cfld.tools.cli import UserError, command, command_parser
from cfld.tools.pictures import PICTURES, read_image, save_image
from cfld.tools.progress import terminal
from cfld.vae import VAE

FRAMES = tuple(dict.fromkeys((*ANIMATIONS, *PICTURES)))  # suffixes of files of frames
FEATHER = 1 / 64  # of the crop's height: the soft edge inside a mask
TILE = (128, 88)  # height and width of a tile of attention maps


def read_mask(path: str, reference: Image.Image) -> Image.Image:
    """Read a mask of the reference's size: white where to generate, black elsewhere and where it is transparent. Raises
    UserError if it has another size, or no white."""
    mask = read_image(path, upright=True, backdrop="black").convert("L")
    if mask.size != reference.size:
        raise UserError(
            f"{path}: the mask must be as large as the reference, {reference.width}x{reference.height}, "
            f"found {mask.width}x{mask.height}"
        )
    white = mask.point(lambda value: 255 * (value > 127))
    if not white.getbbox():
        raise UserError(f"{path}: the mask must be white where to generate, found no white in it")
    return white


def run_edit(options: argparse.Namespace) -> None:
    config, out = sampling_config(options), Path(options.out)
    check_outs([out], options)
    if options.feather is not None and not 0 <= options.feather <= 8192:
        raise UserError(f"--feather must be within 0 .. 8192 pixels, found {options.feather:g}")
    photo, reference = (read_image(path, upright=True) for path in (options.source, options.reference))
    mask = read_mask(options.mask, reference)
    joints = joints_on(reference, options.pose, **pose_settings(options))
    crop = fit((reference.height, reference.width), joints)
    top, left, height, width = (int(x) for x in (crop.top, crop.left, crop.height, crop.width))
    white = np.asarray(mask) > 0
    inside = np.zeros_like(white)  # of the crop, too
    part = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
    inside[part] = white[part]
    if beyond := np.count_nonzero(white) - np.count_nonzero(inside):
        found = f"{beyond} of its {np.count_nonzero(white)} white pixels are outside the crop around the person"
        if not inside.any():
            raise UserError(f"{options.mask}: the mask must be white on the person, found that {found}")
        print(f"{options.mask}: {found}; they stay as they are")
    model, vae = open_model(options, config)
    size, device = model.config.image_size, model.null_prompt.device
    feather = FEATHER * height if options.feather is None else options.feather
    images = edit(
        model,
        vae,
        source_tensor(model, photo),
        to_range(to_square(crop.cut(reference), size)[None].to(device)),
        torch.from_numpy(np.array(crop.cut(mask).convert("L")) > 0)[None, None].to(device),
        pose_tensor(model, crop.to_frame(joints)[None]),
        config,
        generator=torch.Generator().manual_seed(options.seed),
        progress=terminal(),
        feather=0 if options.size is None else feather * size / height,
    )
    picture = to_pictures(images, options.size or default_size(size))[0]
    if options.size is None:  # keep the reference's own pixels outside the mask
        picture = blend(reference, crop.paste(reference, picture, feather=0), inside, feather)
    save_image(out, picture)
    print(f"wrote {out}")


def write_frames(
    model: CFLD,
    vae: VAE,
    parts: Iterable[Conditions],
    config: SamplingConfig,
    outs: Sequence[Path],
    options: argparse.Namespace,
) -> None:
    """Generate a frame for each sample of the parts and write all under each name."""
    size = options.size or default_size(model.config.image_size)
    generated = generate_frames(model, vae, parts, config, seed=options.seed, progress=terminal())
    frames = [frame for images in generated for frame in to_pictures(images, size)]
    for out in outs:
        if is_animation(out):
            save_animation(out, frames, options.fps)
        else:
            save_image(out, sheet_of(frames, options.across))
        print(f"wrote {out}")


def check_frames(options: argparse.Namespace) -> tuple[SamplingConfig, list[Path]]:
    """How to sample, and the names to write. Raises UserError if they or the options of an animation are invalid."""
    config = sampling_config(options)
    for name, value in (("--batch", options.batch), ("--across", options.across)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, found {value}")
    outs = [Path(out) for out in options.out]
    check_outs(outs, options, kinds=FRAMES)
    for out in outs:
        check_animation(out, options.fps)
    return config, outs


def run_interpolate(options: argparse.Namespace) -> None:
    config, outs = check_frames(options)
    if len(options.source) != 2:
        raise UserError(f"--source must name two photos to interpolate between, found {len(options.source)}")
    if options.frames < 2:
        raise UserError(f"--frames must be at least 2, found {options.frames}")
    photos = [read_image(path, upright=True) for path in options.source]
    keypoints = read_poses([options.pose], options)
    model, vae = open_model(options, config)
    poses = pose_tensor(model, keypoints)
    with torch.no_grad():
        first, second = (model.condition(source_tensor(model, photo), poses) for photo in photos)
    weights = torch.linspace(0, 1, options.frames).split(options.batch)
    write_frames(model, vae, (interpolated(first, second, part) for part in weights), config, outs, options)


def run_sequence(options: argparse.Namespace) -> None:
    config, outs = check_frames(options)
    photo, own = read_source(options.source, options.source_pose, options)
    clip = read_clip(pose_files(options.pose), pose_settings(options), options.skip_empty)
    keypoints = in_windows(clip, together=True)
    if own is not None:
        keypoints = retarget(keypoints, own)
    model, vae = open_model(options, config)
    parts = in_poses(model, source_tensor(model, photo), keypoints, options.batch)
    write_frames(model, vae, parts, config, outs, options)


def sheet_rows(
    picture: Image.Image, title: str, queries: dict[str, int], maps: dict[str, Tensor]
) -> list[list[Image.Image]]:
    """Rows of tiles: first the picture and, in the first of the maps, the queries chosen for the regions; then a row
    for each of the maps (Q, h, w), with all queries."""
    small, chosen = picture.resize(TILE[::-1]), next(iter(maps.values()))
    rows = [[titled(small, title), *(titled(overlay(small, chosen[q]), f"{name}: {q}") for name, q in queries.items())]]
    for name, of_queries in maps.items():
        rows.append([titled(overlay(small, x), f"{name}: {q}") for q, x in enumerate(of_queries)])
    return rows


def run_attention(options: argparse.Namespace) -> None:
    config, out = sampling_config(options), Path(options.out)
    check_outs([out], options)
    if options.people < 1:
        raise UserError(f"--people must be at least 1, found {options.people}")
    if options.pose and not options.appearance_scale:
        raise UserError("--appearance-scale must not be 0, since no branch of Eq. 7 would see the source, found 0")
    photo = fitted(read_image(options.source, upright=True))
    keypoints = read_poses([options.pose], options) if options.pose else None
    model, vae = open_model(options, config)
    if not isinstance(model.prd, PerceptionRefinedDecoder):
        raise UserError(f"the model must have H_D, whose queries are shown, found {type(model.prd).__name__} instead")

    photos, labels = labelled_photos(options.people)
    of_people = torch.cat([source_maps(model, source_tensor(model, x)) for x in photos]).mean(dim=1)
    height, width = of_people.shape[-2:]
    chosen, overlaps = choose_queries(of_people, region_masks(labels, (height, width)))
    for column, (region, query) in enumerate(zip(REGIONS, chosen, strict=True)):
        print(f"{region}: query {query}, {overlaps[query, column]:.2f} times the attention that is uniform")

    queries, source_image = dict(zip(REGIONS, chosen, strict=True)), source_tensor(model, photo)
    blocks = source_maps(model, source_image)[0]
    maps = {"mean": blocks.mean(dim=0)} | {f"block {i}": x for i, x in enumerate(blocks)}
    rows = sheet_rows(photo, "source", queries, maps)
    if keypoints is not None:
        with torch.no_grad():
            conditions = model.condition(source_image, pose_tensor(model, keypoints))
        with token_maps(model, 1) as tokens:
            (images,) = generate_frames(model, vae, [conditions], config, seed=options.seed, progress=terminal())
        rows += sheet_rows(to_pictures(images, TILE)[0], "generated", queries, {"UNet": tokens[0]})
    save_image(out, picture_grid(list(itertools.zip_longest(*rows)), "white"))
    print(f"wrote {out}")


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.edit", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, act: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(act=act)
        return made

    edit = add("edit", run_edit, "Generate the clothes of a source in a masked part of a reference photo (Fig. 6a).")
    edit.add_argument("--source", required=True, metavar="PHOTO", help="photo whose clothes to generate")
    edit.add_argument("--reference", required=True, metavar="PHOTO", help="photo that is kept outside the mask")
    edit.add_argument(
        "--mask", required=True, metavar="FILE", help="image of the reference's size, white where to generate"
    )
    edit.add_argument("--pose", required=True, metavar="FILE", help="pose of the person in the reference")
    edit.add_argument("--out", required=True, metavar="FILE", help="image to write")
    edit.add_argument(
        "--feather",
        type=float,
        metavar="PIXELS",
        help="soft edge inside the mask; 0 = hard (default: 1/64 of the crop's height)",
    )

    text = "Interpolate between the styles of two sources, in one pose and from the same noise (Fig. 6b)."
    interpolate = add("interpolate", run_interpolate, text)
    interpolate.add_argument("--source", required=True, nargs="+", action="extend", metavar="PHOTO", help="two photos")
    interpolate.add_argument("--pose", required=True, metavar="FILE", help="pose to generate")
    interpolate.add_argument("--frames", type=int, default=8, help="number of frames, both ends included")

    sequence = add("sequence", run_sequence, "Generate one person in many poses from the same noise.")
    add_source_options(sequence.add_argument_group("the person"))
    sequence.add_argument(
        "--pose",
        required=True,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="poses in order, files of many, or folders of files or images",
    )
    sequence.add_argument("--skip-empty", action="store_true", help="leave out frames without a person")
    for made in (interpolate, sequence):
        made.add_argument(
            "--out",
            required=True,
            nargs="+",
            metavar="FILE",
            help="files to write: .gif, .webp, .mp4 animations, other sheets",
        )
        made.add_argument("--fps", type=float, default=8.0, help="frames per second of an animation")
        made.add_argument("--across", type=int, default=8, help="frames per row of a sheet")
        made.add_argument("--batch", type=int, default=8, help="frames generated at a time")

    text = "Show where the queries attend in the source, and where they act in the generated image (Fig. 7)."
    attention = add("attention", run_attention, text)
    attention.add_argument("--source", required=True, metavar="PHOTO", help="photo of a person")
    attention.add_argument("--pose", metavar="FILE", help="pose to generate, to show where each token acts in it")
    attention.add_argument(
        "--people", type=int, default=24, help="synthetic people used to choose the four queries of Fig. 7"
    )
    attention.add_argument("--out", required=True, metavar="FILE", help="sheet to write")

    for made in (edit, interpolate, sequence, attention):
        add_options(made, made.add_argument_group("output"), sized=made is not attention)
    options = parser.parse_args(argv)
    options.act(options)


if __name__ == "__main__":
    sys.exit(main())
