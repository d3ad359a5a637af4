"""Render synthetic people into a folder in the layout of DeepFashion In-shop.

    python -m cfld.people OUT --identities 2000 --poses 4 --seed 0 --workers 2

OUT/train_highres/, test_highres/               photos under DeepFashion's flattened names, split by identity
OUT/masks_train/, masks_test/                   the part each pixel shows (cfld.people.PARTS); same names, .png
OUT/train.lst, test.lst                         names of the photos
OUT/fasion-resize-pairs-{train,test}.csv        all ordered pairs of photos of one identity (DeepFashion's spelling)
OUT/fasion-resize-annotation-{train,test}.csv   keypoints in the 256x176 frame, -1 = hidden
OUT/sheet.png                                   a few of the people
OUT/people.json, records.jsonl                  the arguments, and what is finished: a killed run continues from it
"""

import argparse
from dataclasses import asdict
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image

from cfld.data.deepfashion import write_split
from cfld.people import OWN_SEEDS, refuse_seeds
from cfld.people.folder import Plan, Record, photograph_all
from cfld.people.render import FRAME
from cfld.tools.cli import UserError, command, command_parser
from cfld.tools.files import alone_in, atomic, open_folder, remove_leftovers
from cfld.tools.pictures import read_image

SHEET_ROWS, SHEET_COLUMNS = 8, 8


def write_lists(folder: Path, plan: Plan, records: list[Record]) -> None:
    """The lists, pairs and annotations of both splits."""
    for split in ("train", "test"):
        chosen = [record["photos"] for record in records if plan.split(record["seed"]) == split]
        pairs = [(a["name"], b["name"]) for photos in chosen for a, b in permutations(photos, 2)]
        annotations = {photo["name"]: np.array([photo["y"], photo["x"]]).T for photos in chosen for photo in photos}
        write_split(folder, split, pairs, annotations)


def write_sheet(folder: Path, plan: Plan, records: list[Record]) -> None:
    """An image of some of the people, one per row."""
    height, width = FRAME
    rows, columns = min(SHEET_ROWS, len(records)), min(SHEET_COLUMNS, plan.poses)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for row, record in enumerate(records[:rows]):
        for column, photo in enumerate(record["photos"][:columns]):
            image = read_image(folder / f"{plan.split(record['seed'])}_highres" / photo["name"])
            sheet.paste(image.resize((width, height)), (column * width, row * height))
    with atomic(folder / "sheet.png") as path:
        sheet.save(path)


def check(plan: Plan, workers: int, reserved: bool) -> None:
    """Raise UserError for a plan that makes no sense."""
    for option, value, least in (
        ("--identities", plan.identities, 1),
        ("--poses", plan.poses, 2),
        ("--workers", workers, 1),
        ("--supersample", plan.supersample, 1),
        ("--height", plan.height, 64),
    ):
        if value < least:
            raise UserError(f"{option} must be {least} or more, found {value}: choose a larger number")
    for option, value, most in (("--height", plan.height, 4096), ("--supersample", plan.supersample, 8)):
        if value > most:
            raise UserError(f"{option} must be {most} or less, found {value}: choose a smaller number")
    if plan.height * plan.supersample > 8192:
        raise UserError(
            f"--height times --supersample must be 8192 or less, found {plan.height * plan.supersample}: a worker "
            "would need gigabytes"
        )
    if plan.height % 16:
        raise UserError(
            f"--height must be a multiple of 16, so that the width is whole, found {plan.height}: try 256 or 512"
        )
    if not 0 <= plan.test_fraction < 1:
        raise UserError(f"--test-fraction must be at least 0 and less than 1, found {plan.test_fraction}: try 0.1")
    if plan.seed < 0:
        raise UserError(f"--seed must be 0 or more, found {plan.seed}: choose a larger number")
    if not reserved:
        try:
            refuse_seeds(plan.seeds[0], plan.seeds[-1], OWN_SEEDS)
        except ValueError as error:
            raise UserError(f"{error}; --reserved-seeds allows them") from None


def parser() -> argparse.ArgumentParser:
    options = command_parser("cfld.people", __doc__)
    options.add_argument("out", type=Path, metavar="OUT", help="folder to write; continues an interrupted run")
    who, photos, work = map(options.add_argument_group, ("the people", "the photos", "the work"))
    who.add_argument("--identities", type=int, default=2000, help="number of people")
    who.add_argument("--poses", type=int, default=4, help="photos of each person")
    who.add_argument("--seed", type=int, default=0, help="seed of the first person; the others follow")
    work.add_argument("--workers", type=int, default=2, help="processes; the files do not depend on it")
    who.add_argument("--test-fraction", type=float, default=0.1, help="share of the people in the test split")
    photos.add_argument("--height", type=int, default=FRAME[0], help="of the photos; the width is 11/16 of it")
    photos.add_argument("--supersample", type=int, default=2, help="antialiasing: samples per pixel, in each direction")
    who.add_argument(
        "--reserved-seeds", action="store_true", help=f"allow seeds from {OWN_SEEDS} on, which are kept for evaluation"
    )
    return options


@command
def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    plan = Plan(args.identities, args.poses, args.seed, args.test_fraction, args.height, args.supersample)
    check(plan, args.workers, args.reserved_seeds)
    open_folder(args.out / "people.json", asdict(plan), "give the old arguments or choose another folder")
    with alone_in(args.out):
        for folder in (args.out, *args.out.glob("*/")):
            remove_leftovers(folder)
        records = photograph_all(args.out, plan, args.workers)
        write_lists(args.out, plan, records)
        write_sheet(args.out, plan, records)


if __name__ == "__main__":
    raise SystemExit(main())
