"""DeepFashion In-shop's layout, and Market-1501's: reading and writing their lists, and preparing their folders.

    ROOT/MEN/, WOMEN/                                the photos as they are unpacked; prepare() puts them below
    ROOT/{train,test}_highres/                       the photos of a split, under their flattened names
    ROOT/{train,test}.lst                            the names of a split's photos
    ROOT/fasion-resize-pairs-{train,test}.csv        from,to: the names of source and target
    ROOT/fasion-resize-annotation-{train,test}.csv   name:keypoints_y:keypoints_x, in the 256x176 frame, -1 = missing

The public files are spelled so; fashion-resize-... is read as well. Of Market-1501:

    ROOT/bounding_box_{train,test}/                  the photos as they are unpacked, or ROOT/{train,test}/
    ROOT/market-pairs-{train,test}.csv               the pairs
    ROOT/market-annotation-{train,test}.csv          keypoints, in the 128x64 frame

The names of the tables tell the data set, and with it the frame of its keypoints and photos. Here and in all that reads
a Split, keypoints are in the 256x176 frame: a photo and its pose are stretched to the same square.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cfld.data.names import check_photo_names, check_photos
from cfld.photos.keypoints import annotation_frame, read_annotations
from cfld.pose import FRAME
from cfld.tools.cli import UserError
from cfld.tools.files import link, read_text, write_lines

SPLITS, KINDS = ("train", "test"), ("pairs", "annotation")
SPELLINGS = ("fasion-resize", "fashion-resize", "market")  # at the start of the tables' names


@dataclass(frozen=True)
class Split:
    """What the lists of a split say, in a prepared folder. N photos are in its pairs."""

    folder: Path  # of the photos
    pairs: list[tuple[str, str]]  # names of source and target
    photos: list[str]  # the N names, sorted
    index: dict[str, int]  # name -> place in photos
    keypoints: np.ndarray  # (N, 18, 2) float32 as (y, x) in the 256x176 frame, -1 = missing
    sizes: list[int]  # of the N files, in bytes
    frame: tuple[int, int]  # height and width of the data set's photos, or of their shape

    def keypoints_of(self, name: str) -> np.ndarray:
        """A photo's keypoints (18, 2)."""
        return self.keypoints[self.index[name]]


def read_split(root: Path, split: str) -> Split:
    """The lists of a split of a prepared folder.

    Raises UserError if a file is malformed, or a photo or an annotation of a pair is missing.
    """
    folder, pairs = root / f"{split}_highres", read_pairs(table_path(root, "pairs", split))
    annotation_path = table_path(root, "annotation", split)
    annotations, frame = read_annotations(annotation_path), annotation_frame(annotation_path)
    photos = sorted({name for pair in pairs for name in pair})
    check_photo_names(photos, root)
    if missing := [name for name in photos if name not in annotations]:
        raise UserError(f"{root}: {missing[0]} is in a {split} pair but has no annotation")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; python -m cfld.data prepare {root} makes it")
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    if missing := [name for name in photos if name not in sizes]:
        raise UserError(
            f"{folder}: {len(missing)} photos of {split} pairs are missing (first: {missing[0]}); "
            f"run python -m cfld.data prepare {root}"
        )
    joints = np.array([annotations[name] for name in photos], np.float32).reshape(-1, 18, 2)
    scale = np.array(FRAME, np.float32) / np.array(frame, np.float32)
    keypoints = np.where((joints >= 0).all(axis=-1, keepdims=True), joints * scale, joints)
    index = {name: place for place, name in enumerate(photos)}
    return Split(folder, pairs, photos, index, keypoints, [sizes[name] for name in photos], frame)


def write_split(
    root: Path, split: str, pairs: Iterable[tuple[str, str]], annotations: Mapping[str, np.ndarray]
) -> None:
    """Write the three lists of a split; the .lst last, so that where it stands the others do.

    pairs: names of source and target
    annotations: keypoints (18, 2) as (y, x) in the 256x176 frame, -1 = missing, of each photo by name
    """
    rows = [f"{name}: {joints[:, 0].tolist()}: {joints[:, 1].tolist()}" for name, joints in annotations.items()]
    write_lines(root / f"fasion-resize-annotation-{split}.csv", ["name:keypoints_y:keypoints_x", *rows])
    write_lines(root / f"fasion-resize-pairs-{split}.csv", ["from,to", *map(",".join, pairs)])
    write_lines(root / f"{split}.lst", annotations)


def table_path(root: Path, kind: str, split: str) -> Path:
    """The file of pairs or annotations of a split, in each spelling. Raises UserError if there is none, or those of two
    data sets."""
    names = [f"{spelling}-{kind}-{split}.csv" for spelling in SPELLINGS]
    found = [root / name for name in names if (root / name).is_file()]
    if not found:
        raise UserError(f"{root} must hold {' or '.join(names)}, found none; is this the data set's folder?")
    if len({annotation_frame(path) for path in found}) > 1:
        raise UserError(
            f"{root} must hold the lists of one data set, found {' and '.join(path.name for path in found)}"
        )
    return found[0]


def read_list(path: Path) -> list[str]:
    """The names in a .lst file, one per line."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


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


def line_of(path: Path, name: str) -> int:
    """The number of the first line of a list, of pairs or of annotations that has this name in a field of its own."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields = (line, line.partition(":")[0], *line.split(","))
        if name in (field.strip() for field in fields):
            return number
    raise LookupError(f"{name} is not in {path}")


def flat_name(path: Path) -> str:
    """A photo's path below ROOT -> its flattened name: WOMEN/Tees_Tanks/id_00007838/05_7_additional.jpg ->
    fashionWOMENTees_Tanksid0000783805_7additional.jpg."""
    *folders, identity, view = path.parts
    first, *rest = view.split("_")
    return "fashion" + "".join(folders) + identity.replace("_", "") + "_".join([first, "".join(rest)])


def is_market(root: Path) -> bool:
    """Whether a folder holds the lists of Market-1501."""
    return annotation_frame(table_path(root, "annotation", "train")) != FRAME


def market_photos(root: Path) -> tuple[dict[str, Path], str]:
    """Market-1501's photos by name, and where they are."""
    folders = [root / name for name in ("bounding_box_train", "bounding_box_test", *SPLITS) if (root / name).is_dir()]
    photos = {path.name: path for folder in folders for path in sorted(folder.glob("*.jpg"))}
    return photos, " and ".join(f"{folder}" for folder in folders) or f"{root}/bounding_box_train and bounding_box_test"


def fashion_photos(root: Path) -> tuple[dict[str, Path], str]:
    """DeepFashion's photos by flattened name, and where they are."""
    tree = root / "img_highres" if (root / "img_highres").is_dir() else root
    photos = {
        flat_name(p.relative_to(tree)): p for sex in ("MEN", "WOMEN") for p in sorted((tree / sex).glob("*/*/*.jpg"))
    }
    return photos, f"{tree}/MEN and WOMEN"


def prepare(root: Path, workers: int = 1) -> dict[str, int]:
    """Flatten the tree of photos, check that all photos and annotations that the lists name are there, and open every
    photo once, in some processes.

    Returns counts by name. Raises UserError that names file and line of the first thing that is missing or malformed,
    and all damaged photos.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; it must hold the photos and lists of DeepFashion In-shop or Market-1501"
        )
    photos, place = market_photos(root) if is_market(root) else fashion_photos(root)
    counts = {f"photos in {place}": len(photos)}
    placed: dict[str, Path] = {}  # the photos of the lists, by name
    for split in SPLITS:
        counts |= prepare_split(root, split, photos, place, placed)
    check_photos(list(placed.values()), workers)
    return counts


def prepare_split(
    root: Path, split: str, photos: dict[str, Path], place: str, placed: dict[str, Path]
) -> dict[str, int]:
    """prepare() for one split. photos: by flattened name, those found in a place; placed: gets those of the lists."""
    list_path, folder = root / f"{split}.lst", root / f"{split}_highres"
    annotation_path, pairs_path = table_path(root, "annotation", split), table_path(root, "pairs", split)
    listed = list_path.is_file() or annotation_frame(annotation_path) == FRAME  # Market-1501's files have no list
    names = read_list(list_path) if listed else []
    annotations, pairs = read_annotations(annotation_path), read_pairs(pairs_path)
    if not listed:
        write_lines(list_path, dict.fromkeys([*annotations, *(name for pair in pairs for name in pair)]))
        names = read_list(list_path)
    named_in = {name: pairs_path for pair in pairs for name in pair}
    named_in |= dict.fromkeys(annotations, annotation_path) | dict.fromkeys(names, list_path)
    check_photo_names(named_in, f"{root}, the lists of {split}")
    if common := [name for name in named_in if name in placed]:
        raise UserError(
            f"{root}: no photo may be in both splits, found {len(common)} of {len(named_in)} photos of {split} in "
            f"{placed[common[0]].parent.name}, too (first: {common[0]}): are both lists of the same version?"
        )
    for name, path in tqdm(named_in.items(), desc=f"{split} photos", unit="photo"):
        placed[name] = folder / name
        if not placed[name].is_file():
            if name not in photos:
                where = f"{path}, line {line_of(path, name)}"
                raise UserError(f"{where}: {name} must be in {folder} or in {place}, and is not")
            link(photos[name], placed[name])
    for name in (name for pair in pairs for name in pair if name not in annotations):
        where = f"{pairs_path}, line {line_of(pairs_path, name)}"
        raise UserError(f"{where}: {name} must have a line in {annotation_path.name}, and has none")
    return {
        f"{split} photos": len(names),
        f"{split} photos without annotation": len(set(names) - annotations.keys()),
        f"{split} pairs": len(pairs),
    }
