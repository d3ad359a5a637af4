"""Pairs of one's own photos, in one folder per person: the work of python -m cfld.data pairs."""

from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from cfld.data.deepfashion import KINDS, SPELLINGS, SPLITS, write_split
from cfld.data.names import check_photo_names
from cfld.photos.crop import PHOTO_SUFFIXES, fit, whole
from cfld.photos.keypoints import POSE_SUFFIXES, check_confidence, joints_on
from cfld.tools.cli import UserError, WriteError
from cfld.tools.files import link
from cfld.tools.pictures import orientation, read_image, save_image

JOINTS_BESIDE = ("{}.json", "{}_keypoints.json", "{}.npy", "{}.npz")  # of a photo's name without its ending
KEPT = (".jpg", ".jpeg", ".png", ".webp")  # photos of other endings become JPEG
Keypoints = dict[str, np.ndarray]  # the name of a photo -> (18, 2) as (y, x) in the 256x176 frame, -1 = missing


def make_pairs(root: Path, test_share: float, min_confidence: float, layout: str | None = None) -> dict[str, int]:
    """From root/PERSON/photo.jpg, with joints in a file of JOINTS_BESIDE next to it, make a data set as prepare() makes
    it of DeepFashion: lists, annotations, and all ordered pairs of each person's photos.

    test_share: of the people, the last by name, that become the test split; at least 0 and below 1
    min_confidence, layout: as cfld.photos.keypoints.joints_from takes them

    Photos without usable joints and other files are named and left out. Returns counts by
    name. Raises UserError if no pair is left, or if the lists are there already.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; it must hold one folder of photos per person")
    if not 0 <= test_share < 1:
        raise UserError(f"--test-share must be at least 0 and below 1, found {test_share}")
    check_confidence(min_confidence)
    people, passed_over = list_people(root)
    check_names(people)
    tested = round(len(people) * test_share) or int(test_share > 0 and len(people) > 1)
    refuse_lists(root, tested)
    for what, paths in passed_over.items():
        print(f"passed over: {len(paths)} {what}, such as {paths[0]}")
    found: dict[str, list[Keypoints]] = {split: [] for split in SPLITS}  # one entry per person
    left_out: list[str] = []
    for number, photos in enumerate(tqdm(people, desc=str(root), unit="person")):
        split = "test" if number >= len(people) - tested else "train"
        found[split].append(read_person(photos, root / f"{split}_highres", min_confidence, layout, left_out))

    pairs = {split: [pair for person in found[split] for pair in permutations(person, 2)] for split in SPLITS}
    if not pairs["train"]:
        raise UserError(
            f"{root} must hold one folder per person with two photos or more, each with its joints, and found none for "
            f"training in {len(people)} folders; the first photo left out: {(left_out or ['none'])[0]}"
        )
    if tested and not pairs["test"]:
        raise UserError(
            f"{root}: the last {tested} people, the test split, must have two photos with joints, and have not; "
            f"give --test-share 0, or another share"
        )
    counts = {"people": len(people), "photos left out": len(left_out)}
    counts |= {f"{what} passed over": len(paths) for what, paths in passed_over.items()}
    splits = SPLITS if tested else SPLITS[:1]
    for split in reversed(splits):  # train.lst is written last: where it stands, all is there
        annotations = {name: joints.round(2) for person in found[split] for name, joints in person.items()}
        write_split(root, split, pairs[split], annotations)
    for split in splits:
        counts |= {f"{split} photos": sum(map(len, found[split])), f"{split} pairs": len(pairs[split])}
    return counts


def refuse_lists(root: Path, tested: int) -> None:
    """Raise UserError if lists of an earlier command are there, of either split: of the test split they would stay
    beside new ones, and its people would be trained on."""
    names = [f"{split}.lst" for split in SPLITS]
    names += [f"{f}-{kind}-{split}.csv" for split in SPLITS for kind in KINDS for f in SPELLINGS]
    names += [] if tested else ["test_highres"]
    if there := [name for name in names if (root / name).exists()]:
        raise UserError(
            f"{root}/{there[0]} already exists: to make the lists again, remove all that an earlier command has made: "
            f"{', '.join(there)}"
        )


def list_people(root: Path) -> tuple[list[list[Path]], dict[str, list[Path]]]:
    """The photos of each person, by the names of their folders; and what else is there, by kind. Hidden files and files
    of joints and lists do not count."""
    made, nothing = [root / f"{split}_highres" for split in SPLITS], (*POSE_SUFFIXES, ".csv", ".lst")
    people: list[list[Path]] = []
    passed_over: dict[str, list[Path]] = {}

    def visible(folder: Path) -> list[Path]:
        return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]

    def is_photo(path: Path) -> bool:
        return path.is_file() and path.suffix.lower() in PHOTO_SUFFIXES

    def pass_over(what: str, path: Path) -> None:
        passed_over.setdefault(what, []).append(path)

    for folder in visible(root):
        if is_photo(folder):
            pass_over("photos outside the folders of people", folder)
        if not folder.is_dir() or folder in made:
            continue
        inside = visible(folder)
        people.append([path for path in inside if is_photo(path)])
        for path in inside:
            if path.is_dir():
                for photo in filter(is_photo, sorted(path.rglob("[!.]*"))):
                    pass_over("photos in folders inside the folders of people", photo)
            elif not is_photo(path) and path.suffix.lower() not in nothing:
                pass_over(f"files ending in {path.suffix.lower() or 'nothing'}", path)
    return [photos for photos in people if photos], passed_over


def listed_name(path: Path) -> str:
    """The name of a photo in the lists."""
    return f"{path.parent.name}--{path.name}" + ("" if path.suffix.lower() in KEPT else ".jpg")


def check_names(people: list[list[Path]]) -> None:
    """Raise UserError for a photo that the lists could not name."""
    names: set[str] = set()
    for path in (path for photos in people for path in photos):
        name = listed_name(path)
        name.encode()  # the lists are UTF-8
        if set(name) & set(",:#\n\r") or name in names:
            raise UserError(f"{path}: names must be unique and hold none of , : # and line ends: rename it")
        names.add(name)
    check_photo_names(sorted(names), "photos of one's own")


def read_person(
    photos: list[Path], folder: Path, min_confidence: float, layout: str | None, left_out: list[str]
) -> Keypoints:
    """Put a person's photos into a folder -> their keypoints. Adds to left_out why a photo cannot be used."""
    found = {}
    for path in photos:
        name = listed_name(path)
        try:
            found[name] = own_photo(path, folder / name, min_confidence, layout)
        except WriteError:
            raise
        except UserError as error:
            left_out.append(str(error))
            tqdm.write(f"left out: {error}")
    return found


def own_photo(path: Path, target: Path, min_confidence: float, layout: str | None) -> np.ndarray:
    """Put a photo where training looks for it, upright and cropped as cfld.photos.crop.fit says.

    Returns its keypoints (18, 2), from the file of joints next to it. Raises UserError.
    """
    names = [name.format(path.stem) for name in JOINTS_BESIDE]
    file = next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)
    if file is None:
        raise UserError(f"{path}: must have a file of joints next to it, {', '.join(names[:-1])} or {names[-1]}")
    photo = read_image(path, upright=True)
    joints = joints_on(photo, str(file), min_confidence=min_confidence, layout=layout)
    size = (photo.height, photo.width)
    crop = fit(size, joints)
    with Image.open(path) as stored:
        as_it_is = orientation(stored) == 1 and stored.format in ("JPEG", "PNG", "WEBP")
    if not as_it_is or crop != whole(size):
        save_image(target, crop.cut(photo), quality=95)
    else:
        link(path, target)
    return crop.to_frame(joints)
