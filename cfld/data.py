"""Photos in DeepFashion In-shop's layout: preparing a folder, and the pairs that train and test the method.

    python -m cfld.data prepare ROOT      flattens ROOT/MEN and ROOT/WOMEN, checks every list, pair and annotation

ROOT holds train.lst, test.lst, fasion-resize-pairs-{train,test}.csv and fasion-resize-annotation-{train,test}.csv (the
misspelling is in the public files; fashion- is read as well), and after preparing train_highres/ and test_highres/.

Letters in shapes: B pairs, S side of a source image, H side of an image for the VAE.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from cfld.files import UserError, atomic, command, command_parser, read_image, read_text
from cfld.pose import read_annotations

SPLITS = ("train", "test")


def flat_name(path: Path) -> str:
    """A photo's path below ROOT -> its flattened name: WOMEN/Tees_Tanks/id_00007838/05_7_additional.jpg ->
    fashionWOMENTees_Tanksid0000783805_7additional.jpg."""
    *folders, identity, view = path.parts
    first, *rest = view.split("_")
    return "fashion" + "".join(folders) + identity.replace("_", "") + "_".join([first, "".join(rest)])


def table_path(root: Path, kind: str, split: str) -> Path:
    """The file of pairs or annotations of a split, in either spelling."""
    names = [f"{fashion}-resize-{kind}-{split}.csv" for fashion in ("fasion", "fashion")]
    for name in names:
        if (root / name).is_file():
            return root / name
    raise UserError(f"{root} must hold {names[0]} (or {names[1]}), found neither; is this the data set's folder?")


def read_list(path: Path) -> list[str]:
    """The names in a .lst file, a line each."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def line_of(path: Path, name: str) -> int:
    """The number of the first line of a file that holds a name."""
    return next(number for number, line in enumerate(read_text(path).splitlines(), start=1) if name in line)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """The pairs (from, to) of a file. Raises UserError that names the line."""
    lines = read_text(path).splitlines()
    if not lines or lines[0].strip() != "from,to":
        raise UserError(f"{path}: line 1 must be from,to, found {lines[0][:60] if lines else 'an empty file'}")
    pairs = []
    for number, line in enumerate(lines[1:], start=2):
        if line.strip():
            names = [name.strip() for name in line.split(",")]
            if len(names) != 2:
                raise UserError(f"{path}, line {number}: must have 2 names, found {len(names)}")
            pairs.append((names[0], names[1]))
    return pairs


def link(source: Path, target: Path) -> None:
    """Make target the same file as source where the disk can, a copy where it cannot."""
    with atomic(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def prepare(root: Path) -> dict[str, int]:
    """Flatten the tree of photos and check that everything the files name is there.

    Returns counts by name. Raises UserError that names file and line of the first thing that is missing or malformed.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; it must hold MEN/, WOMEN/ and the lists of DeepFashion In-shop")
    tree = root / "img_highres" if (root / "img_highres").is_dir() else root
    photos = {
        flat_name(p.relative_to(tree)): p for sex in ("MEN", "WOMEN") for p in sorted((tree / sex).glob("*/*/*.jpg"))
    }
    counts = {"photos in MEN/ and WOMEN/": len(photos)}
    for split in SPLITS:
        list_path, folder = root / f"{split}.lst", root / f"{split}_highres"
        annotation_path, pairs_path = table_path(root, "annotation", split), table_path(root, "pairs", split)
        names, annotations, pairs = read_list(list_path), read_annotations(annotation_path), read_pairs(pairs_path)
        named = {name: pairs_path for pair in pairs for name in pair}
        named |= dict.fromkeys(annotations, annotation_path) | dict.fromkeys(names, list_path)
        for name, path in tqdm(named.items(), desc=f"{split} photos", unit="photo"):
            if not (folder / name).is_file():
                if name not in photos:
                    where = f"{path}, line {line_of(path, name)}"
                    raise UserError(f"{where}: {name} must be in {folder} or in {tree}/MEN or /WOMEN, and is not")
                link(photos[name], folder / name)
        for name in (name for pair in pairs for name in pair if name not in annotations):
            where = f"{pairs_path}, line {line_of(pairs_path, name)}"
            raise UserError(f"{where}: {name} must have a row in {annotation_path.name}, and has none")
        counts[f"{split} photos"] = len(names)
        counts[f"{split} photos without annotation"] = len(set(names) - annotations.keys())
        counts[f"{split} pairs"] = len(pairs)
    return counts


def to_square(photo: Image.Image, size: int) -> Tensor:
    """A photo stretched to a square by pillow's bicubic filter -> (3, size, size) uint8."""
    square = photo.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def to_range(images: Tensor) -> Tensor:
    """uint8 images in [0, 255] -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


@dataclass(frozen=True)
class Batch:
    """B pairs as 2B rows: first every source from itself (Eq. 5), then every target from its source (Eq. 3)."""

    source_images: Tensor  # (B, 3, S, S) uint8, for the source encoder
    images: Tensor  # (2B, 3, H, H) uint8, for the VAE: sources, then targets
    keypoints: Tensor  # (2B, 18, 2) as (y, x) in the 256x176 frame: of the sources, then of the targets

    def __len__(self) -> int:
        return len(self.source_images)

    def to(self, device: str | torch.device) -> "Batch":
        """The batch on a device."""
        return Batch(
            self.source_images.to(device, non_blocking=True),
            self.images.to(device, non_blocking=True),
            self.keypoints.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which copies to a GPU do not wait."""
        return Batch(self.source_images.pin_memory(), self.images.pin_memory(), self.keypoints.pin_memory())

    def split(self, parts: int) -> Iterator["Batch"]:
        """Cut B pairs into equal parts, in order."""
        sources, targets = self.images.chunk(2)
        source_keypoints, target_keypoints = self.keypoints.chunk(2)
        columns = (self.source_images, sources, targets, source_keypoints, target_keypoints)
        for s, x_s, x_g, k_s, k_g in zip(*(column.chunk(parts) for column in columns), strict=True):
            yield Batch(s, torch.cat([x_s, x_g]), torch.cat([k_s, k_g]))


Pair = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class FashionPairs(Dataset[Pair]):
    """The pairs of a split of a prepared folder.

    Item i is (source image (3, S, S), source (3, H, H), target (3, H, H), all uint8, and the keypoints (18, 2) of
    source and target). Raises UserError if a photo or an annotation of a pair is missing.
    """

    def __init__(self, root: str | Path, split: str, image_size: int, source_size: int):
        self.root, self.split, self.image_size, self.source_size = Path(root), split, image_size, source_size
        self.folder = self.root / f"{split}_highres"
        self.pairs = read_pairs(table_path(self.root, "pairs", split))
        annotations = read_annotations(table_path(self.root, "annotation", split))
        used = {name for pair in self.pairs for name in pair}
        for name in sorted(used):
            if name not in annotations:
                raise UserError(f"{self.root}: {name} is in a {split} pair but has no annotation")
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder; python -m cfld.data prepare {self.root} makes it")
        present = {entry.name for entry in os.scandir(self.folder)}
        if missing := sorted(used - present):
            raise UserError(
                f"{self.folder}: {len(missing)} photos of {split} pairs are missing (first: {missing[0]}); "
                f"run python -m cfld.data prepare {self.root}"
            )
        self.keypoints = {name: torch.from_numpy(annotations[name]) for name in used}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        source_name, target_name = self.pairs[index]
        source, target = read_image(self.folder / source_name), read_image(self.folder / target_name)
        return (
            to_square(source, self.source_size),
            to_square(source, self.image_size),
            to_square(target, self.image_size),
            self.keypoints[source_name],
            self.keypoints[target_name],
        )


def collate(pairs: list[Pair]) -> Batch:
    """B items of FashionPairs -> a Batch."""
    source_images, sources, targets, source_keypoints, target_keypoints = (
        torch.stack(x) for x in zip(*pairs, strict=True)
    )
    return Batch(source_images, torch.cat([sources, targets]), torch.cat([source_keypoints, target_keypoints]))


def seeded(*key: int) -> torch.Generator:
    """A generator on the CPU whose stream depends on all the numbers of its key and nothing else."""
    state = np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0]  # (0, 3) is not (0, 3, 0)
    return torch.Generator().manual_seed(int(state) >> 1)


class StepOrder(Sampler[list[int]]):
    """Which pairs make step 0, 1, 2, ...: a new permutation an epoch, its last partial batch dropped. A step's pairs
    are a function of (seed, step), so a run can begin anywhere."""

    def __init__(self, pairs: int, batch: int, seed: int, start: int, stop: int):
        self.pairs, self.batch, self.seed, self.start, self.stop = pairs, batch, seed, start, stop

    def __iter__(self) -> Iterator[list[int]]:
        steps_an_epoch = self.pairs // self.batch
        permutation, current = torch.empty(0), -1
        for step in range(self.start, self.stop):
            epoch, place = divmod(step, steps_an_epoch)
            if epoch != current:
                permutation, current = torch.randperm(self.pairs, generator=seeded(self.seed, epoch)), epoch
            yield permutation[place * self.batch : (place + 1) * self.batch].tolist()

    def __len__(self) -> int:
        return self.stop - self.start


def step_batches(dataset: FashionPairs, batch: int, seed: int, start: int, stop: int, workers: int) -> DataLoader[Pair]:
    """An iterable of one Batch a step, for steps start .. stop - 1."""
    return DataLoader(
        dataset,
        batch_sampler=StepOrder(len(dataset), batch, seed, start, stop),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.data", __doc__)
    commands = parser.add_subparsers(required=True, metavar="prepare")
    sub = commands.add_parser("prepare", help="flatten and check a folder in DeepFashion's layout")
    sub.add_argument("root", metavar="ROOT", type=Path)
    options = parser.parse_args(argv)
    counts = prepare(options.root)
    width = max(len(f"{count:,}") for count in counts.values())
    for name, count in counts.items():
        print(f"{count:{width},} {name}")


if __name__ == "__main__":
    sys.exit(main())
