"""Which images are compared with which: the protocol of Table 2.

    truth, source   photos of the data folder, resized to the test size by pillow's bicubic filter
    prediction      8-bit files of exactly the test size: {from}_2_{to}_vis, {from}_to_{to} or {from}_{to}, .png or
                    .jpg, where from and to are the photos' flattened names without their ending
    person, face    see cfld.evaluate.person; the person comes from the part masks if the data folder has masks_test/

Images are (H, W, 3) uint8 here, labels (H, W) uint8, masks (H, W) bool; a size is (height, width).
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from cfld.data.deepfashion import read_split
from cfld.evaluate.inception import load_inception
from cfld.evaluate.lpips import load_lpips
from cfld.evaluate.metrics import SSIM_PROTOCOLS
from cfld.evaluate.person import Array, backdrop, face_box, mean_colours, person_region
from cfld.evaluate.weights import ALEXNET, FOLDERS, INCEPTIONS, LPIPS_HEADS
from cfld.photos.crop import PHOTO_SUFFIXES, same_shape
from cfld.tools.cli import UserError
from cfld.tools.pictures import read_image

PATTERNS = ("{}_2_{}_vis", "{}_to_{}", "{}_{}")
SUFFIXES = (".png", ".jpg", ".jpeg")
MODES = ("RGB", "L", "P", "1")  # of images that RGB holds without loss; a palette is looked up
# Height and width of Table 2's halves, and of Market-1501.
SIZES = {"256x176": (256, 176), "512x352": (512, 352), "128x64": (128, 64)}
FIDS = {"FID": "fid_pgpis", "FID std": "fid"}  # the paper's and the standard FID, by protocol of Inception
WEIGHTS = {  # the public files that a metric needs
    "LPIPS": (ALEXNET, LPIPS_HEADS),
    **{metric: (INCEPTIONS[protocol],) for metric, protocol in FIDS.items()},
}
SSIMS = dict(zip(("SSIM", "SSIM-256", "SSIM std"), SSIM_PROTOCOLS, strict=True))
SCORES = ("LPIPS", "PSNR", *SSIMS, "person", "face")  # of each image; FID is of a set


@dataclass(frozen=True, eq=False)
class Case:
    """One comparison. What a set of images does not have is None."""

    truth: Array
    source: Array | None = None
    person: Array | None = None  # mask
    face: Array | None = None  # mask, empty if the face is hidden
    labels: tuple[Array, Array] | None = None  # of source and truth


Method = Callable[[int, Case], Array]  # number of the case, the case -> the image to measure


def read_picture(path: Path, size: tuple[int, int]) -> tuple[Array, str, bytes]:
    """Read an image file to measure -> the image, its pillow mode, the file's bytes.

    Raises UserError, with only the file's name, unless it is whole, of this size, and RGB holds it without loss.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except FileNotFoundError:
        raise UserError(f"{path.name} is missing") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path.name} is not a readable image ({error})") from None
    if (image.height, image.width) != size:
        raise UserError(f"{path.name} must be {size[0]}x{size[1]} (height x width), is {image.height}x{image.width}")
    if image.mode not in MODES or "transparency" in image.info:
        raise UserError(f"{path.name} must be RGB of 8 bits without transparency, is {image.mode}")
    return np.asarray(image.convert("RGB")), image.mode, content


def check_pictures(paths: Sequence[Path], size: tuple[int, int], hint: str = "", quiet: bool = False) -> dict[str, Any]:
    """Read all image files once -> what a manifest says about them. Raises UserError that names the first ten that
    cannot be measured, followed by the hint."""
    problems, endings, modes, digest = [], Counter[str](), Counter[str](), hashlib.sha256()
    for path in tqdm(paths, desc="checking images", unit="image", disable=quiet):
        try:
            _, mode, content = read_picture(path, size)
        except UserError as error:
            problems.append(str(error))
            continue
        endings[path.suffix.lower()] += 1
        modes[mode] += 1
        digest.update(os.fsencode(path.name) + b"\0" + hashlib.sha256(content).digest())
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(
            f"{paths[0].parent}: {len(problems)} of {len(paths)} images cannot be measured: "
            f"{'; '.join(problems[:10])}{more}{hint}"
        )
    return {"pictures": len(paths), "formats": dict(endings), "modes": dict(modes), "sha256": digest.hexdigest()}


def stem(name: str) -> str:
    """A photo's name without its ending."""
    return Path(name).stem


def picture_names(pairs: Sequence[tuple[str, str]], pattern: str = PATTERNS[0], suffix: str = ".png") -> list[str]:
    """The names of the image files of pairs. They are made, never parsed: flattened names contain underscores."""
    return [pattern.format(stem(source), stem(target)) + suffix for source, target in pairs]


NAME_HINT = "; the names looked for are FROM_2_TO_vis, FROM_to_TO and FROM_TO, ending in .png, .jpg or .jpeg"


def find_pictures(folder: Path, pairs: Sequence[tuple[str, str]]) -> list[Path]:
    """The files of a method's images, one per pair: of the pattern and ending that most pairs have, whether the others
    exist or not. Raises UserError if there are two whole sets, or if two pairs would share a file."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    present = {path.name for path in folder.iterdir()}
    sets = [picture_names(pairs, pattern, suffix) for pattern in PATTERNS for suffix in SUFFIXES]
    counts = [sum(name in present for name in names) for names in sets]
    if counts.count(len(pairs)) > 1:
        examples = [names[0] for names, count in zip(sets, counts, strict=True) if count == len(pairs)]
        raise UserError(f"{folder} must hold one image per pair, found sets such as {' and '.join(examples)}: keep one")
    names = sets[counts.index(max(counts))]
    if len(set(names)) < len(set(pairs)):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"{folder}: {twice} would stand for two pairs: name the files FROM_2_TO_vis.png")
    return [folder / name for name in names]


def resized(photo: Image.Image, size: tuple[int, int]) -> Array:
    """A photo at a size, by pillow's bicubic filter."""
    return np.asarray(photo.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC))


def to_images(arrays: Sequence[Array], device: str | torch.device = "cpu") -> Tensor:
    """B images (H, W, 3) uint8 -> (B, 3, H, W) in [0, 1]."""
    return rearrange(torch.from_numpy(np.stack(arrays)).to(device).float() / 255, "b h w c -> b c h w")


class PairSet:
    """The test pairs of a prepared data folder as cases at a size. limit: only the first so many. Raises UserError."""

    columns = ("from", "to")

    def __init__(self, root: Path, size: tuple[int, int], limit: int | None = None):
        self.lists = read_split(root, "test")
        self.root, self.size, self.whole = root, size, len(self.lists.pairs)
        if not same_shape(size, self.lists.frame):
            height, width = self.lists.frame
            raise UserError(
                f"--size must have the shape of the photos in {root}, {height}x{width} (height x width), found "
                f"{size[0]}x{size[1]}: people would become thin or broad"
            )
        if limit is not None and not 1 <= limit <= self.whole:
            raise UserError(f"--limit must be within 1 .. {self.whole}, the pairs of {root}, found {limit}")
        self.pairs = self.lists.pairs[:limit]
        self.masks = root / "masks_test"
        self.has_masks = self.masks.is_dir()
        if self.has_masks:
            names = [f"{stem(name)}.png" for name in self.lists.photos]
            if missing := [name for name in names if not (self.masks / name).is_file()]:
                raise UserError(
                    f"{self.masks}: {len(missing)} masks are missing (first: {missing[0]}): make them again"
                )

    def __len__(self) -> int:
        return len(self.pairs)

    def names(self, index: int) -> tuple[str, ...]:
        return self.pairs[index]

    def photo(self, name: str) -> Array:
        return resized(read_image(self.lists.folder / name), self.size)

    def label_map(self, name: str) -> Array:
        """The part that each pixel of a photo shows."""
        try:
            with Image.open(self.masks / f"{stem(name)}.png") as image:
                return np.asarray(image.convert("L").resize(self.size[::-1], Image.Resampling.NEAREST))
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{self.masks}: the mask of {name} is not readable ({error}): make it again") from None

    def __getitem__(self, index: int) -> Case:
        source, target = self.pairs[index]
        joints = self.lists.keypoints_of(target)
        labels = (self.label_map(source), self.label_map(target)) if self.has_masks else None
        person = labels[1] > 0 if labels else person_region(joints, self.size)
        return Case(self.photo(target), self.photo(source), person, face_box(joints, self.size), labels)

    def facts(self) -> dict[str, Any]:
        """What a manifest says about the set."""
        lists = self.lists
        listed = "\n".join(",".join(pair) for pair in lists.pairs)
        rows = zip(lists.photos, lists.sizes, lists.keypoints.tolist(), strict=True)
        seen = [list(row) for row in rows]
        if self.has_masks:
            seen += [[name, (self.masks / f"{stem(name)}.png").stat().st_size] for name in lists.photos]
        return {
            "data": str(self.root.resolve()),
            "pairs": f"{'partial: the first ' if len(self) < self.whole else ''}{len(self)} of {self.whole}",
            "sha256 of all pairs": hashlib.sha256(listed.encode()).hexdigest(),
            "sha256 of joints and lengths of files": hashlib.sha256(json.dumps(seen).encode()).hexdigest(),
            "truth and source": "pillow bicubic from the photo to the size",
            "person": "part masks of masks_test/" if self.has_masks else "cfld.evaluate.person.person_region",
        }


class FolderSet:
    """Two folders, their files paired by name without the ending, as cases that have only a truth."""

    columns = ("name",)

    def __init__(self, pictures: Path, truths: Path):
        found = self.by_stem(pictures), self.by_stem(truths)
        for folder, ours, others in ((pictures, found[0], found[1]), (truths, found[1], found[0])):
            if missing := sorted(others.keys() - ours.keys()):
                raise UserError(
                    f"{folder}: {len(missing)} of {len(others)} images are missing that the other folder has: "
                    f"{', '.join(missing[:10])}"
                )
        self.stems = sorted(found[1])
        self.pictures, self.truths = ([paths[s] for s in self.stems] for paths in found)
        self.root, self.whole = truths, len(self.stems)
        first = read_image(self.truths[0])
        self.size = first.height, first.width

    @staticmethod
    def by_stem(folder: Path) -> dict[str, Path]:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in PHOTO_SUFFIXES and p.name[0] != ".")
        if not paths:
            raise UserError(f"{folder} must hold images ({', '.join(PHOTO_SUFFIXES)}), found none")
        names = Counter(p.stem for p in paths)
        if twice := [name for name, count in names.items() if count > 1]:
            raise UserError(f"{folder}: {twice[0]} is there with {names[twice[0]]} endings: keep one")
        return {p.stem: p for p in paths}

    def __len__(self) -> int:
        return len(self.stems)

    def names(self, index: int) -> tuple[str, ...]:
        return (self.stems[index],)

    def __getitem__(self, index: int) -> Case:
        return Case(read_picture(self.truths[index], self.size)[0])

    def facts(self) -> dict[str, Any]:
        """What a manifest says about the set."""
        truths = check_pictures(self.truths, self.size, quiet=True)
        return {"truth": str(self.root.resolve()), "pairs": f"{len(self)} of {len(self)}", "truths": truths}


def files_method(paths: Sequence[Path], size: tuple[int, int]) -> Method:
    """The method whose images are files, one per case."""
    return lambda index, case: read_picture(paths[index], size)[0]


def the_truth(index: int, case: Case) -> Array:
    """The ground truth itself."""
    return case.truth


def copy_of_the_source(index: int, case: Case) -> Array:
    """A baseline: the right person in the wrong pose."""
    assert case.source is not None
    return case.source


def empty_backdrop(index: int, case: Case) -> Array:
    """A baseline: how much of a score the background earns without the person."""
    assert case.source is not None
    return np.broadcast_to(np.rint(backdrop(case.source)).astype(np.uint8), case.truth.shape).copy()


def mean_colours_in_the_true_mask(index: int, case: Case) -> Array:
    """A baseline: the true parts, each in its mean colour in the source. Flat, but with all of the true pose."""
    assert case.source is not None and case.labels is not None
    return np.rint(mean_colours(case.source / 255, *case.labels) * 255).astype(np.uint8)


def baselines(cases: PairSet) -> dict[str, Method]:
    """The baselines without a model that a set allows, by name."""
    found: dict[str, Method] = {"copy of the source": copy_of_the_source, "empty backdrop": empty_backdrop}
    return found | ({"mean colours": mean_colours_in_the_true_mask} if cases.has_masks else {})


def missing_weights(folder: Path, metric: str) -> list[str]:
    """A line for each of a metric's public files that is not in the folder."""
    absent = [file for file in WEIGHTS[metric] if not (folder / file).is_file()]
    needs = f"{metric} is not measured: it needs"
    return [
        f"{needs} {folder / file}: python -m cfld.convert fetch metrics, or {FOLDERS[file]}/{file}" for file in absent
    ]


def load_network(folder: Path, metric: str) -> nn.Module:
    """The network of a metric, frozen. Raises UserError for wrong files."""
    first, *others = (folder / file for file in WEIGHTS[metric])
    return load_lpips(first, *others) if metric == "LPIPS" else load_inception(first, FIDS[metric])
