"""Write drawn people as a folder in the layout of DeepFashion In-shop.

    python -m cfld.people OUT --identities 2000 --poses 4 --seed 0 --workers 2

OUT/train_highres/, test_highres/               photos under DeepFashion's flattened names, split by identity
OUT/masks_train/, masks_test/                   the part each pixel shows (cfld.people.PARTS); same names, .png
OUT/train.lst, test.lst                         names of the photos
OUT/fasion-resize-pairs-{train,test}.csv        all ordered pairs of photos of one identity (their spelling)
OUT/fasion-resize-annotation-{train,test}.csv   keypoints in the 256x176 frame, -1 = hidden
OUT/sheet.png                                   a few of the people
OUT/people.json, records.jsonl                  the arguments, and what is already there: a killed run goes on from it
"""

import argparse
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from cfld.data.deepfashion import write_split
from cfld.people import OWN_SEEDS, Identity, identity, photo_pose, refuse_seeds, render
from cfld.people.render import FRAME
from cfld.tools.cli import HelpFormatter, UserError, command
from cfld.tools.files import alone_in, atomic, open_folder, remove_leftovers, write_lines

# Raise the first number whenever the same seed gives other pictures: old folders are then not continued. Numpy 1 and 2
# round products of single and double precision differently, which a few pixels show.
GENERATOR = f"1, numpy {np.__version__.partition('.')[0]}"
SHEET_ROWS, SHEET_COLUMNS = 8, 8
Record = dict[str, Any]  # {"seed": int, "photos": [{"name": str, "y": [18 ints], "x": [18 ints]}]}


@dataclass(frozen=True)
class Plan:
    """What the folder holds. Two runs with equal plans write equal bytes."""

    identities: int
    poses: int
    seed: int
    test_fraction: float
    height: int
    supersample: int
    generator: str = GENERATOR

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.identities)

    def split(self, seed: int) -> str:
        """The last identities are the test split."""
        tested = round(self.identities * self.test_fraction)
        return "test" if seed >= self.seed + self.identities - tested else "train"


def photo_name(person: Identity, index: int, view: str, framing: str) -> str:
    """The name that DeepFashion's fashion/WOMEN/Dresses/id_00000007/01_1_front.jpg has after flattening."""
    gender = "WOMEN" if person.female else "MEN"
    if person.dress:
        category = "Dresses"
    elif person.jacket and person.jacket.opening:
        category = "Jackets_Coats" if person.female else "Jackets_Vests"
    elif person.jacket:
        category = "Blouses_Shirts" if person.female else "Shirts_Polos"
    else:
        category = "Tees_Tanks"
    kind = {"front": "full" if framing == "full" else "front", "back": "back", "side": "side"}.get(view, "additional")
    return f"fashion{gender}{category}id{person.seed:08d}01_{index + 1}{kind}.jpg"


def photograph(task: tuple[Path, Plan, int]) -> Record:
    """Render all photos of one identity into the folder, and say what they are."""
    folder, plan, seed = task
    person, split = identity(seed), plan.split(seed)
    photos = []
    for index in range(plan.poses):
        pose = photo_pose(seed, index)
        photo = render(person, pose, plan.height, plan.height * FRAME[1] // FRAME[0], plan.supersample)
        name = photo_name(person, index, pose.view, pose.framing)
        with atomic(folder / f"{split}_highres" / name) as path:
            Image.fromarray(photo.image).save(path, quality=95)
        with atomic(folder / f"masks_{split}" / Path(name).with_suffix(".png")) as path:
            Image.fromarray(photo.labels).save(path)
        y, x = photo.annotation.T.tolist()
        photos.append({"name": name, "y": y, "x": x})
    return {"seed": seed, "photos": photos}


# --------------------------------------------------------------------------------------------------------------- resume


def finished_records(folder: Path) -> dict[int, Record]:
    """What earlier runs have finished, by seed. A kill may have cut the last line: it is dropped from the file."""
    path = folder / "records.jsonl"
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")
    whole = lines[:-1]  # what follows the last line end is either nothing or cut
    if lines[-1]:
        write_lines(path, whole)
    try:
        records = [json.loads(line) for line in whole]
        return {record["seed"]: record for record in records}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): remove the folder, or take that line out of it") from None


def photograph_all(folder: Path, plan: Plan, workers: int) -> list[Record]:
    """Render what is missing, on some processes, and give the records of all identities in the order of their seeds."""
    records = finished_records(folder)
    missing = [(folder, plan, seed) for seed in plan.seeds if seed not in records]
    done = len(records) * plan.poses
    bar = tqdm(total=plan.identities * plan.poses, initial=done, unit="image", desc=str(folder), smoothing=0.05)
    with bar, open(folder / "records.jsonl", "a", encoding="utf-8") as log:
        for record in results(missing, workers):
            records[record["seed"]] = record
            log.write(json.dumps(record) + "\n")
            log.flush()
            bar.update(plan.poses)
    return [records[seed] for seed in plan.seeds]


def results(tasks: list[tuple[Path, Plan, int]], workers: int) -> Iterator[Record]:
    """The records of tasks as they are finished."""
    if workers == 1 or len(tasks) < 2:
        yield from map(photograph, tasks)
        return
    with ProcessPoolExecutor(workers, initializer=ignore_interrupts) as pool:
        try:
            for record in as_completed([pool.submit(photograph, task) for task in tasks]):
                yield record.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker was ended from outside, perhaps for lack of memory: give the command again to go on, with "
                "fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def ignore_interrupts() -> None:
    """Ctrl-C goes to all processes of a terminal; the one that waits for the workers ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# ---------------------------------------------------------------------------------------------------------------- lists


def write_lists(folder: Path, plan: Plan, records: list[Record]) -> None:
    """The lists, pairs and annotations of both splits."""
    for split in ("train", "test"):
        chosen = [record["photos"] for record in records if plan.split(record["seed"]) == split]
        pairs = [(a["name"], b["name"]) for photos in chosen for a, b in permutations(photos, 2)]
        annotations = {photo["name"]: np.array([photo["y"], photo["x"]]).T for photos in chosen for photo in photos}
        write_split(folder, split, pairs, annotations)


def write_sheet(folder: Path, plan: Plan, records: list[Record]) -> None:
    """A picture with one person a row."""
    height, width = FRAME
    rows, columns = min(SHEET_ROWS, len(records)), min(SHEET_COLUMNS, plan.poses)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for row, record in enumerate(records[:rows]):
        for column, photo in enumerate(record["photos"][:columns]):
            with Image.open(folder / f"{plan.split(record['seed'])}_highres" / photo["name"]) as image:
                sheet.paste(image.resize((width, height)), (column * width, row * height))
    with atomic(folder / "sheet.png") as path:
        sheet.save(path)


# -------------------------------------------------------------------------------------------------------------- command


def check(plan: Plan, workers: int, reserved: bool) -> None:
    """Refuse a plan that makes no sense, in the user's words."""
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
            raise UserError(f"{error}; --reserved-seeds draws them nevertheless") from None


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser("python -m cfld.people", description=__doc__, formatter_class=HelpFormatter)
    options.add_argument("out", type=Path, metavar="OUT", help="folder to write; an interrupted run is continued")
    options.add_argument("--identities", type=int, default=2000, help="number of people")
    options.add_argument("--poses", type=int, default=4, help="photos of each")
    options.add_argument("--seed", type=int, default=0, help="seed of the first person; the others follow")
    options.add_argument("--workers", type=int, default=2, help="processes; the files do not depend on it")
    options.add_argument("--test-fraction", type=float, default=0.1, help="share of the people in the test split")
    options.add_argument("--height", type=int, default=FRAME[0], help="of the photos; the width is 11/16 of it")
    options.add_argument("--supersample", type=int, default=2, help="pixels rendered for each pixel, in each direction")
    options.add_argument("--reserved-seeds", action="store_true", help=f"allow seeds of {OWN_SEEDS} and above")
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
    from cfld.people.__main__ import main as command_of_the_module  # whose functions workers can import by their name

    raise SystemExit(command_of_the_module())
