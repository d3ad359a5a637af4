"""Four uses of a trained model: other clothes within a mask, between two styles, many poses, and attention maps.

    python -m cfld.edit edit --reference y.png --pose y.json --mask m.png --source style.jpg --out out.png
    python -m cfld.edit interpolate --source a.jpg b.jpg --pose pose.json --frames 8 --out out.gif strip.png
    python -m cfld.edit sequence --source photo.jpg --pose FOLDER --out out.gif sheet.png
    python -m cfld.edit attention --source photo.jpg --pose pose.json --out maps.png

The first two are the paper's appearance editing (Sec. 4.6, Fig. 6), the last one is its Fig. 7; docs/editing.md says
how the paper's formula of the mask is meant. A name that ends in .gif becomes an animation, any other a sheet.

Letters in shapes: B pictures, n frames.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cfld.edit.attention_maps import (
    REGIONS,
    choose_queries,
    labelled_photos,
    overlay,
    ragged_grid,
    region_masks,
    source_maps,
    titled,
    token_maps,
)
from cfld.edit.edit import edit, in_poses, interpolated, paint_frames
from cfld.model import CFLD, Conditions
from cfld.photos.crop import fit, fitted
from cfld.photos.keypoints import POSE_HELP, joints_on, pose_settings
from cfld.photos.pixels import picture_grid, to_pictures, to_range, to_square
from cfld.prd import PerceptionRefinedDecoder
from cfld.sample import SOURCE_POSE_HELP, add_options, check_outs, open_model, read_poses, read_source, settings
from cfld.sampling import default_size, pose_tensor, source_tensor
from cfld.tools.cli import HelpFormatter, UserError, command, command_parser
from cfld.tools.pictures import read_image, save_image
from cfld.vae import VAE

TILE = (128, 88)  # height and width of the tiles of a sheet of attention maps


def read_mask(path: str, reference: Image.Image) -> Image.Image:
    """A picture of the reference's size, white where it is to be painted, black elsewhere and where it is transparent.
    Raises UserError."""
    mask = read_image(path, upright=True, backdrop="black").convert("L")
    if mask.size != reference.size:
        raise UserError(
            f"{path}: the mask must be as large as the reference, {reference.width}x{reference.height}, "
            f"found {mask.width}x{mask.height}"
        )
    painted = mask.point(lambda value: 255 * (value > 127))
    if not painted.getbbox():
        raise UserError(f"{path}: the mask must be white where it is to be painted, found no white in it")
    return painted


def pose_files(texts: Sequence[str]) -> list[str]:
    """What --pose takes, with each folder replaced by the .json and .npy files in it, by name, 2 before 10."""

    def order(path: Path) -> list[str | int]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]

    files: list[str] = []
    for text in texts:
        if not Path(text).is_dir():
            files.append(text)
            continue
        found = [path for path in Path(text).iterdir() if path.suffix.lower() in (".json", ".npy")]
        if not found:
            raise UserError(f"--pose {text}: the folder must hold .json or .npy files of joints, found none")
        files += map(str, sorted(found, key=order))
    return files


def save_frames(path: Path, frames: Sequence[Image.Image], fps: float, across: int) -> None:
    """Write frames as an animation (.gif) or as one picture, so many across. The colours of an animation are the same
    256 in all frames, and no error of a pixel's goes to its neighbours: what does not move does not flicker."""
    sheet = picture_grid([frames[x::across] for x in range(min(across, len(frames)))])
    if path.suffix.lower() != ".gif":
        save_image(path, sheet)
        return
    palette = sheet.quantize(256)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    hundredths = max(round(100 / fps), 1)  # GIF counts in these
    save_image(path, first, save_all=True, append_images=rest, duration=10 * hundredths, loop=0, optimize=False)


def run_edit(options: argparse.Namespace) -> None:
    how, out = settings(options), Path(options.out)
    check_outs([out], options)
    photo, reference = (read_image(path, upright=True) for path in (options.source, options.reference))
    mask = read_mask(options.mask, reference)
    joints = joints_on(reference, options.pose, **pose_settings(options))
    crop = fit((reference.height, reference.width), joints)
    top, left, height, width = (int(x) for x in (crop.top, crop.left, crop.height, crop.width))
    white = np.asarray(mask) > 0
    inside = np.count_nonzero(white[max(top, 0) : top + height, max(left, 0) : left + width])
    if beyond := np.count_nonzero(white) - inside:
        found = f"{beyond} of its {np.count_nonzero(white)} white pixels are beyond the window around the person"
        if not inside:
            raise UserError(f"{options.mask}: the mask must be white on the person, found that {found}")
        print(f"{options.mask}: {found}, and stay as they are")
    model, vae = open_model(options)
    size, device = model.config.image_size, model.null_prompt.device
    images = edit(
        model,
        vae,
        source_tensor(model, photo),
        to_range(to_square(crop.cut(reference), size)[None].to(device)),
        torch.from_numpy(np.array(crop.cut(mask).convert("L")) > 0)[None, None].to(device),
        pose_tensor(model, crop.to_frame(joints)[None]),
        generator=torch.Generator().manual_seed(options.seed),
        progress=True,
        **how,
    )
    picture = to_pictures(images, options.size or default_size(size))[0]
    if options.size is None:  # outside the mask, the reference pixel by pixel
        picture = Image.composite(crop.paste(reference, picture), reference, mask)
    save_image(out, picture)
    print(f"wrote {out}")


def write_frames(
    model: CFLD, vae: VAE, parts: Iterable[Conditions], outs: Sequence[Path], options: argparse.Namespace
) -> None:
    """Paint what the parts say and write it under each name."""
    size = options.size or default_size(model.config.image_size)
    painted = paint_frames(model, vae, parts, options.seed, progress=True, **settings(options))
    frames = [frame for images in painted for frame in to_pictures(images, size)]
    for out in outs:
        save_frames(out, frames, options.fps, options.across)
        print(f"wrote {out}")


def check_frames(options: argparse.Namespace) -> list[Path]:
    """The names to write. Raises UserError if they or the options of an animation are wrong."""
    settings(options)
    for name, value in (("--batch", options.batch), ("--across", options.across)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, found {value}")
    if not 1 <= options.fps <= 50:
        raise UserError(f"--fps must be within 1 .. 50, found {options.fps:g}")
    outs = [Path(out) for out in options.out]
    check_outs(outs, options)
    return outs


def run_interpolate(options: argparse.Namespace) -> None:
    outs = check_frames(options)
    if len(options.source) != 2:
        raise UserError(f"--source must be given two photos to go from one to the other, found {len(options.source)}")
    if options.frames < 2:
        raise UserError(f"--frames must be at least 2, found {options.frames}")
    photos = [read_image(path, upright=True) for path in options.source]
    keypoints = read_poses([options.pose], options)
    model, vae = open_model(options)
    poses = pose_tensor(model, keypoints)
    with torch.no_grad():
        first, second = (model.condition(source_tensor(model, photo), poses) for photo in photos)
    weights = torch.linspace(0, 1, options.frames).split(options.batch)
    write_frames(model, vae, (interpolated(first, second, part) for part in weights), outs, options)


def run_sequence(options: argparse.Namespace) -> None:
    outs = check_frames(options)
    photo = read_source(options.source, options.source_pose, options)
    keypoints = read_poses(pose_files(options.pose), options, together=True)
    model, vae = open_model(options)
    parts = in_poses(model, source_tensor(model, photo), keypoints, options.batch)
    write_frames(model, vae, parts, outs, options)


def sheet_rows(
    picture: Image.Image, title: str, queries: dict[str, int], maps: dict[str, Tensor]
) -> list[list[Image.Image]]:
    """Tiles of a sheet: the picture and the queries chosen for regions, in the first of the maps; then a row for each
    of the maps (Q, h, w), with all queries."""
    small, chosen = picture.resize(TILE[::-1]), next(iter(maps.values()))
    rows = [[titled(small, title), *(titled(overlay(small, chosen[q]), f"{name}: {q}") for name, q in queries.items())]]
    for name, of_queries in maps.items():
        rows.append([titled(overlay(small, x), f"{name}: {q}") for q, x in enumerate(of_queries)])
    return rows


def run_attention(options: argparse.Namespace) -> None:
    how, out = settings(options), Path(options.out)
    check_outs([out], options)
    if options.people < 1:
        raise UserError(f"--people must be at least 1, found {options.people}")
    if options.pose and not options.appearance_scale:
        raise UserError("--appearance-scale must not be 0: no row of Eq. 7 would see the source, found 0")
    photo = fitted(read_image(options.source, upright=True))
    keypoints = read_poses([options.pose], options) if options.pose else None
    model, vae = open_model(options)
    if not isinstance(model.prd, PerceptionRefinedDecoder):
        raise UserError(f"the queries shown are those of H_D, found baseline {type(model).__name__}, which has none")

    photos, labels = labelled_photos(options.people)
    of_people = torch.cat([source_maps(model, source_tensor(model, x)) for x in photos]).mean(dim=1)
    height, width = of_people.shape[-2:]
    chosen, overlaps = choose_queries(of_people, region_masks(labels, (height, width)))
    for column, (region, query) in enumerate(zip(REGIONS, chosen, strict=True)):
        print(f"{region}: query {query}, {overlaps[query, column]:.2f} times what looking everywhere alike would have")

    queries, source_image = dict(zip(REGIONS, chosen, strict=True)), source_tensor(model, photo)
    blocks = source_maps(model, source_image)[0]
    maps = {"mean": blocks.mean(dim=0)} | {f"block {i}": x for i, x in enumerate(blocks)}
    rows = sheet_rows(photo, "source", queries, maps)
    if keypoints is not None:
        with torch.no_grad():
            conditions = model.condition(source_image, pose_tensor(model, keypoints))
        with token_maps(model, 1) as tokens:
            (images,) = paint_frames(model, vae, [conditions], options.seed, progress=True, **how)
        rows += sheet_rows(to_pictures(images, TILE)[0], "painted", queries, {"UNet": tokens[0]})
    save_image(out, ragged_grid(rows))
    print(f"wrote {out}")


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.edit", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, act: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, formatter_class=HelpFormatter)
        made.set_defaults(act=act)
        return made

    edit = add("edit", run_edit, "Paint the clothes of a source into a masked part of a reference photo (Fig. 6a).")
    edit.add_argument("--source", required=True, metavar="PHOTO", help="whose clothes to paint")
    edit.add_argument("--reference", required=True, metavar="PHOTO", help="what is kept outside the mask")
    edit.add_argument("--mask", required=True, metavar="FILE", help="as large as the reference, white where to paint")
    edit.add_argument("--pose", required=True, metavar="FILE", help=f"the reference's pose: {POSE_HELP}")
    edit.add_argument("--out", required=True, metavar="FILE", help="the picture to write")

    text = "Go from the style of one source to that of another, in one pose and from the same noise (Fig. 6b)."
    interpolate = add("interpolate", run_interpolate, text)
    interpolate.add_argument("--source", required=True, nargs="+", action="extend", metavar="PHOTO", help="two photos")
    interpolate.add_argument("--pose", required=True, metavar="FILE", help=f"the pose to paint: {POSE_HELP}")
    interpolate.add_argument("--frames", type=int, default=8, help="how many, the two ends included")

    sequence = add("sequence", run_sequence, "Paint one person in many poses from the same noise.")
    sequence.add_argument("--source", required=True, metavar="PHOTO", help="a photo of the person")
    sequence.add_argument("--source-pose", metavar="FILE", help=SOURCE_POSE_HELP)
    sequence.add_argument(
        "--pose",
        required=True,
        nargs="+",
        action="extend",
        metavar="FILE",
        help=f"poses in their order, or a folder of .json or .npy files: {POSE_HELP}",
    )
    for made in (interpolate, sequence):
        made.add_argument(
            "--out", required=True, nargs="+", metavar="FILE", help="files to write: .gif moves, any other is a sheet"
        )
        made.add_argument("--fps", type=float, default=8.0, help="frames a second of a .gif")
        made.add_argument("--across", type=int, default=8, help="frames in a row of a sheet")
        made.add_argument("--batch", type=int, default=8, help="frames painted at a time")

    text = "Show what the queries look at in the source, and where they act in the painted picture (Fig. 7)."
    attention = add("attention", run_attention, text)
    attention.add_argument("--source", required=True, metavar="PHOTO", help="a photo of a person")
    attention.add_argument(
        "--pose", metavar="FILE", help=f"paint this pose, and show where each token acts: {POSE_HELP}"
    )
    attention.add_argument(
        "--people", type=int, default=24, help="drawn people by whom the four queries of Fig. 7 are chosen"
    )
    attention.add_argument("--out", required=True, metavar="FILE", help="the sheet to write")

    for made in (edit, interpolate, sequence, attention):
        add_options(made, sized=made is not attention)
    options = parser.parse_args(argv)
    options.act(options)


if __name__ == "__main__":
    sys.exit(main())
