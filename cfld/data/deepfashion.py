"""DeepFashion In-shop's layout: lists, pairs, annotations, and the preparing of a folder."""

from pathlib import Path

from tqdm import tqdm

from cfld.photos.keypoints import read_annotations
from cfld.tools.cli import UserError
from cfld.tools.files import link, read_text

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
