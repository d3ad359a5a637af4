"""Pairs of one's own photos: a folder for each person."""

from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from cfld.data.deepfashion import SPLITS
from cfld.photos.crop import PHOTO_SUFFIXES, fit, whole
from cfld.photos.keypoints import joints_on
from cfld.tools.cli import UserError, WriteError
from cfld.tools.files import link, write_lines
from cfld.tools.pictures import orientation, read_image, save_image


def own_photo(path: Path, target: Path, min_confidence: float) -> np.ndarray:
    """Put a photo where training looks for it, upright and cut as cfld.photo.fit says -> its keypoints (18, 2), of the
    .json or .npy file beside it. Raises UserError."""
    file = next((p for p in (path.with_suffix(".json"), path.with_suffix(".npy")) if p.is_file()), None)
    if file is None:
        raise UserError(f"{path}: must have a file of joints beside it, {path.stem}.json or .npy")
    photo = read_image(path, upright=True)
    joints, size = joints_on(photo, str(file), min_confidence=min_confidence), (photo.height, photo.width)
    crop = fit(size, joints)
    with Image.open(path) as stored:
        turned = orientation(stored) != 1
    if turned or crop != whole(size):
        save_image(target, crop.cut(photo), quality=95)
    else:
        link(path, target)
    return crop.to_frame(joints)


def make_pairs(root: Path, test_share: float, min_confidence: float) -> dict[str, int]:
    """Make of root/PERSON/photo.jpg, with joints in root/PERSON/photo.json or .npy, what prepare() makes of
    DeepFashion: lists, all ordered pairs of a person's photos, annotations. The last people by name are the test split.

    A photo without usable joints is named and left out. Returns counts by name. Raises UserError if nothing is left,
    and if the lists are there already.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; it must hold a folder of photos a person")
    if not 0 <= test_share < 1:
        raise UserError(f"--test-share must be within 0 .. 1, below 1, found {test_share}")
    folders = [root / f"{split}_highres" for split in SPLITS]
    if (root / "train.lst").exists():
        raise UserError(
            f"{root}/train.lst already exists: to make the lists anew, remove the .lst and .csv files, train_highres "
            f"and test_highres, if this command made them"
        )
    people_photos = {
        folder: [p for p in sorted(folder.iterdir()) if p.suffix.lower() in PHOTO_SUFFIXES]
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder not in folders and not folder.name.startswith(".")
    }
    people_photos = {folder: photos for folder, photos in people_photos.items() if photos}
    tested = round(len(people_photos) * test_share) or int(test_share > 0 and len(people_photos) > 1)
    counts = {"people": len(people_photos), "photos left out": 0}
    annotations: dict[str, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
    pairs: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    first_reason = ""
    for number, (folder, photos) in enumerate(tqdm(people_photos.items(), desc=str(root), unit="person")):
        split = "test" if number >= len(people_photos) - tested else "train"
        names = []
        for path in photos:
            name = f"{folder.name}--{path.name}"
            name.encode()  # before the work: lists are UTF-8
            if set(name) & set(",:#\n\r") or name in annotations[split]:
                raise UserError(f"{path}: names must be unique and hold none of , : # and line ends: rename it")
            try:
                annotations[split][name] = own_photo(path, root / f"{split}_highres" / name, min_confidence)
                names.append(name)
            except WriteError:
                raise
            except UserError as error:
                counts["photos left out"] += 1
                first_reason = first_reason or str(error)
                tqdm.write(f"left out: {error}")
        pairs[split] += permutations(names, 2)
    if not pairs["train"]:
        raise UserError(
            f"{root} must hold a folder a person with two photos or more, each with its joints, and found none for "
            f"training in {len(people_photos)} folders; the first that was left out: {first_reason or 'none'}"
        )
    if tested and not pairs["test"]:
        raise UserError(
            f"{root}: the last {tested} people, the test split, must have two photos with joints, and have not; "
            f"give --test-share 0, or another share"
        )
    for split in SPLITS if tested else SPLITS[:1]:
        rows = [
            f"{name}: {joints[:, 0].round(2).tolist()}: {joints[:, 1].round(2).tolist()}"
            for name, joints in annotations[split].items()
        ]
        write_lines(root / f"fasion-resize-annotation-{split}.csv", ["name:keypoints_y:keypoints_x", *rows])
        write_lines(root / f"fasion-resize-pairs-{split}.csv", ["from,to", *map(",".join, pairs[split])])
        write_lines(root / f"{split}.lst", annotations[split])
        counts |= {f"{split} photos": len(rows), f"{split} pairs": len(pairs[split])}
    return counts
