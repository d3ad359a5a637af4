"""Render a folder of synthetic people in several processes, and continue an interrupted run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from cfld.people import Identity, identity, photo_pose, render
from cfld.people.render import FRAME
from cfld.tools.cli import UserError
from cfld.tools.files import atomic, read_text, write_lines
from cfld.tools.workers import in_workers

# Raise the first number whenever the same seed gives other images: old folders are then not continued. Numpy 1 and 2
# round products of single and double precision differently, which a few pixels show.
GENERATOR = f"1, numpy {np.__version__.partition('.')[0]}"
Record = dict[str, Any]  # {"seed": int, "photos": [{"name": str, "y": [18 ints], "x": [18 ints]}]}


@dataclass(frozen=True)
class Plan:
    """The content of the folder. Two runs with equal plans write equal bytes."""

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
    """The flattened name of fashion/WOMEN/Dresses/id_00000007/01_1_front.jpg and the like."""
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
    """Render all photos of one person into the folder -> their record."""
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


def finished_records(folder: Path) -> dict[int, Record]:
    """What is finished, by seed. A last line that a kill has cut short is removed from the file."""
    path = folder / "records.jsonl"
    if not path.exists():
        return {}
    lines = read_text(path).split("\n")
    whole = lines[:-1]  # what follows the last line end is either nothing or cut
    if lines[-1]:
        write_lines(path, whole)
    records = {}
    for number, line in enumerate(whole, start=1):
        try:
            record = json.loads(line)
            records[record["seed"]] = record
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(
                f"{path} is damaged: line {number} must be the record of a person, found {line[:60]!r}: remove the "
                "folder, or take that line out of it"
            ) from None
    return records


def is_whole(folder: Path, plan: Plan, record: Record) -> bool:
    """Whether all files of a person are there. Raises UserError if the record is damaged."""
    try:
        split, names = plan.split(record["seed"]), [photo["name"] for photo in record["photos"]]
        joints = np.array([[photo["y"], photo["x"]] for photo in record["photos"]], np.float64)
        if joints.ndim != 3 or len(joints) != plan.poses:
            raise ValueError
        masks = [folder / f"masks_{split}" / Path(name).with_suffix(".png") for name in names]
        return all(path.is_file() for path in [*(folder / f"{split}_highres" / name for name in names), *masks])
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{folder / 'records.jsonl'} is damaged in the record of seed {str(record['seed'])[:40]}: take its line out"
        ) from None


def photograph_all(folder: Path, plan: Plan, workers: int) -> list[Record]:
    """Render what is missing, in some processes -> the records of all people, by seed."""
    found = finished_records(folder)
    records = {seed: record for seed, record in found.items() if is_whole(folder, plan, record)}
    missing = [(folder, plan, seed) for seed in plan.seeds if seed not in records]
    done = len(records) * plan.poses
    bar = tqdm(total=plan.identities * plan.poses, initial=done, unit="image", desc=str(folder), smoothing=0.05)
    with bar, open(folder / "records.jsonl", "a", encoding="utf-8") as log:
        for record in in_workers(photograph, missing, workers):
            records[record["seed"]] = record
            log.write(json.dumps(record) + "\n")
            log.flush()
            bar.update(plan.poses)
    return [records[seed] for seed in plan.seeds]
