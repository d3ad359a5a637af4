"""Figures 3 and 5: test pairs as rows of source, pose, ground truth, and each method's image with its number below.

    python -m cfld.evaluate figure --data ROOT --method CFLD=OUT/pictures --method PIDM=FOLDER --out figure.png
    python -m cfld.evaluate figure --data ROOT --method B1=DIR --method Ours=DIR --pairs 17 4 230 --out figure.png
    python -m cfld.evaluate figure --data ROOT --method "copy of the source" --method Ours=DIR --study scores.json ...

The number is LPIPS, or the mean absolute error on the person if LPIPS's public weights are missing. Pairs are counted
from 0 in the order of the list and of numbers.csv. --study is a file of the methods' Jab scores, {"CFLD": {"Jab":
52.5}, ...}: the best of all is marked in red, the second in blue (the paper marks each image by its own votes).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from cfld.evaluate.person import Array, error_inside
from cfld.evaluate.protocol import (
    NAME_HINT,
    SIZES,
    Case,
    Method,
    PairSet,
    baselines,
    check_pictures,
    files_method,
    find_pictures,
    load_network,
    missing_weights,
    to_images,
)
from cfld.photos.pixels import pose_picture
from cfld.tools.cli import UserError, command, command_parser
from cfld.tools.files import read_object, refuse_overwrite
from cfld.tools.pictures import check_picture_name, save_image

Colour = tuple[int, int, int]
INK: Colour = (40, 40, 40)
PLACES: tuple[Colour, Colour] = ((214, 30, 30), (30, 70, 200))  # of the first and second in the study
GAP, FRAME_WIDTH = 6, 3


class Tile(NamedTuple):
    """An image, the caption below it, and the colour of its frame."""

    picture: Image.Image
    caption: str = ""
    frame: Colour | None = None


def study_places(path: Path, names: Sequence[str]) -> dict[str, tuple[Colour, float]]:
    """Those of the names that are first or second by Jab in a study: their colour and Jab. Raises UserError if none of
    the names is in the study, or if a method has no number."""
    scores = read_object(path)
    try:
        jab = {name: float(score["Jab"]) for name, score in scores.items()}
    except (KeyError, TypeError, ValueError):
        raise UserError(f'{path}: must hold a number for each method, as in {{"CFLD": {{"Jab": 52.5}}}}') from None
    if not jab.keys() & set(names):
        raise UserError(f"{path}: must hold a score of {', '.join(names)}, found {', '.join(scores) or 'nothing'}")
    ranked = sorted(jab, key=lambda name: -jab[name])
    return {name: (colour, jab[name]) for name, colour in zip(ranked, PLACES, strict=False) if name in names}


def draw_text(
    canvas: ImageDraw.ImageDraw, centre: tuple[float, float], width: int, size: int, text: str, colour: Colour = INK
) -> None:
    """Write a centred line of text of this size, or smaller if it is wider than width."""
    while size > 6 and canvas.textlength(text, font=ImageFont.load_default(size)) > width:
        size -= 1
    canvas.text(centre, text, fill=colour, font=ImageFont.load_default(size), anchor="mm")


def draw_figure(titles: Sequence[tuple[str, Colour]], rows: Sequence[Sequence[Tile]], legend: str) -> Image.Image:
    """Rows of tiles of one size below their titles, and a legend at the bottom."""
    width, height = rows[0][0].picture.size
    line, size = width // 7, width // 10  # of a line, of its letters
    across, down = width + GAP, height + line + GAP
    image = Image.new("RGB", (GAP + across * len(titles), 2 * line + GAP + down * len(rows)), "white")
    canvas = ImageDraw.Draw(image)
    for column, (title, colour) in enumerate(titles):
        draw_text(canvas, (GAP + column * across + width / 2, line / 2), width, size, title, colour)
    for row, tiles in enumerate(rows):
        for column, (picture, caption, frame) in enumerate(tiles):
            left, top = GAP + column * across, line + row * down
            if frame:
                inner = ImageOps.crop(picture, FRAME_WIDTH)
                picture = ImageOps.expand(inner, FRAME_WIDTH, frame)
            image.paste(picture, (left, top))
            draw_text(canvas, (left + width / 2, top + height + line / 2), width, size, caption, frame or INK)
    draw_text(canvas, (image.width / 2, image.height - line / 2), image.width - 2 * GAP, size, legend)
    return image


@torch.no_grad()
def score(network: torch.nn.Module | None, picture: Array, case: Case) -> float:
    """The number below an image (H, W, 3) uint8: LPIPS with its network, the error on the person without."""
    if network is None:
        assert case.person is not None
        return error_inside(picture / 255, case.truth / 255, case.person)
    return network(to_images([picture]), to_images([case.truth])).item()


def named_methods(texts: Sequence[str], cases: PairSet) -> dict[str, Method]:
    """The methods that --method names: NAME=FOLDER, or a baseline. Raises UserError."""
    methods: dict[str, Method] = {}
    free = baselines(cases)
    for text in texts:
        name, equals, folder = text.partition("=")
        if name in methods or not name:
            raise UserError(f"--method {text}: each must have a name of its own, NAME=FOLDER")
        if equals:
            paths = find_pictures(Path(folder), cases.pairs)
            check_pictures(paths, cases.size, NAME_HINT, quiet=True)
            methods[name] = files_method(paths, cases.size)
        elif name in free:
            methods[name] = free[name]
        else:
            raise UserError(f"--method {text}: must be NAME=FOLDER, or one of {', '.join(free)}")
    return methods


def make_figure(cases: PairSet, methods: dict[str, Method], study: Path | None, weights: Path) -> Image.Image:
    """The figure of all pairs of a set."""
    missing = missing_weights(weights, "LPIPS")
    for line in missing:
        print(line)
    network = None if missing else load_network(weights, "LPIPS")
    places = study_places(study, list(methods)) if study else {}
    rows = []
    for index in range(len(cases)):
        case = cases[index]
        assert case.source is not None
        pose = pose_picture(torch.from_numpy(cases.lists.keypoints_of(cases.pairs[index][1])), cases.size)
        row = [Tile(Image.fromarray(case.source)), Tile(pose), Tile(Image.fromarray(case.truth))]
        for name, method in methods.items():
            picture = method(index, case)
            frame = places[name][0] if name in places else None
            row.append(Tile(Image.fromarray(picture), f"{score(network, picture, case):.3f}", frame))
        rows.append(row)
    titles = [(title, INK) for title in ("source", "pose", "truth")]
    for name in methods:
        colour, jab = places.get(name, (INK, None))
        titles.append((name if jab is None else f"{name} (Jab {jab:g})", colour))
    marks = "; red and blue: first and second in the user study" if places else ""
    number = "mean absolute error on the person" if network is None else "LPIPS"
    return draw_figure(titles, rows, f"below each image: {number}, lower is better{marks}")


def parser() -> argparse.ArgumentParser:
    options = command_parser("cfld.evaluate figure", __doc__)
    rows, output = map(options.add_argument_group, ("what to show", "output"))
    rows.add_argument("--data", type=Path, required=True, metavar="ROOT", help="a folder that cfld.data prepared")
    rows.add_argument(
        "--method",
        action="append",
        required=True,
        metavar="NAME=FOLDER",
        help="a method's images, or 'copy of the source', 'empty backdrop', 'mean colours'",
    )
    output.add_argument("--out", type=Path, required=True, metavar="FILE", help="the image to write")
    output.add_argument("--size", choices=SIZES, default="256x176", help="height and width of the images")
    rows.add_argument("--first", type=int, default=10, metavar="N", help="the first N pairs")
    rows.add_argument("--pairs", type=int, nargs="+", metavar="I", help="these pairs instead, counted from 0")
    rows.add_argument("--study", type=Path, metavar="FILE", help="scores of a user study, as JSON")
    rows.add_argument(
        "--weights", type=Path, default=Path("weights/metrics"), metavar="DIR", help="folder of the public weight files"
    )
    output.add_argument("--force", action="store_true", help="replace the image if it exists")
    return options


@command
def main(argv: list[str] | None = None) -> None:
    options = parser().parse_args(argv)
    check_picture_name(options.out)
    refuse_overwrite(options.out, options.force)
    cases = PairSet(options.data, SIZES[options.size])
    if options.first < 1:
        raise UserError(f"--first must be 1 or more, found {options.first}")
    chosen = options.pairs or range(min(options.first, cases.whole))
    if beyond := [i for i in chosen if not 0 <= i < cases.whole]:
        raise UserError(f"--pairs must be within 0 .. {cases.whole - 1}, found {beyond[0]}")
    cases.pairs = [cases.pairs[i] for i in chosen]
    save_image(options.out, make_figure(cases, named_methods(options.method, cases), options.study, options.weights))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(main())
