"""The synthetic people that benchmarks measure on: pairs of photos, what is generated for them, and scores.

The pairs are photos of people of seeds 600,000 to 600,199, who are kept from training; one pair each. Errors are mean
absolute differences in [0, 1]. Scores need scikit-image, which brings scipy.

Letters in shapes: N pairs, H side of an image, S side of a source image, M pixels of a mask.
"""

import importlib.util
import multiprocessing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import table
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from cfld import CFLD, TINY, VAE, CFLDConfig, people
from cfld.evaluate.person import backdrop, error_inside, mean_colours
from cfld.people import PARTS, Identity, Pose, Rendered, Textile
from cfld.photos.pixels import picture_grid, to_pictures, to_range, to_square
from cfld.pose import pose_maps
from cfld.sampling import PAPER, SamplingConfig, sample
from cfld.tools.cli import PRECISIONS, UserError
from cfld.tools.files import sha256

PAIRS, FIRST_SEED = 200, 600_000
PAIRING = 2024  # for which a seed's random numbers are used
TITLES = ("PSNR", "SSIM", "IoU", "IoU, both found")
COLOURED = ("skin", "face", "hair", "top", "jacket", "bottom", "shoes")  # the parts whose colours are measured
PART_PIXELS = 40  # the fewest that a photo must show, at H = 128
Array = NDArray[Any]
Shot = tuple[Identity, Pose]
Pictures = Sequence[Array] | Array  # (H, H, 3) in [0, 1] each
Numbers = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Photo:
    """A rendered photo, stretched to squares as for training."""

    source_image: Tensor  # (3, S, S) uint8, for the source encoder
    image: Tensor  # (3, H, H) uint8
    labels: Array  # (H, H), numbers of PARTS
    keypoints: Tensor  # (18, 2) as (y, x) in the 256x176 frame, in whole pixels, -1 = missing

    @property
    def picture(self) -> Array:
        """(H, H, 3) in [0, 1]."""
        return pixels(to_range(self.image))

    @property
    def person(self) -> Array:
        """(H, H) bool."""
        return self.labels > 0

    def mask(self, part: str) -> Array:
        """(H, H) bool."""
        return self.labels == PARTS.index(part)

    def shows(self, part: str, fewest: int = PART_PIXELS) -> bool:
        return bool(self.mask(part).sum() >= fewest)


@dataclass(frozen=True, eq=False)
class Pair:
    """What the model is given, and the truth."""

    person: Identity
    pose: Pose  # of the target
    source: Photo
    target: Photo
    noise_seed: int


def pixels(images: Tensor) -> Array:
    """images (..., 3, H, H) in [-1, 1] -> pictures (..., H, H, 3) in [0, 1]."""
    return (images.clamp(-1, 1) / 2 + 0.5).movedim(-3, -1).numpy()


def person_of(seed: int) -> Identity:
    """A person that may be measured. Raises UserError for a seed that is used in training."""
    people.refuse_seeds(seed, seed, people.OWN_SEEDS)
    return people.identity(seed)


def render(shot: Shot) -> Rendered:
    """One photo, 256x176."""
    return people.render(*shot)


def photographs(shots: Sequence[Shot], config: CFLDConfig) -> list[Photo]:
    """Render people in poses, in two processes, as the model takes them."""
    size, photos = config.image_size, []
    with multiprocessing.Pool(2) as pool:
        for shot in tqdm(pool.imap(render, shots, chunksize=4), total=len(shots), desc="rendering", unit="photo"):
            picture = Image.fromarray(shot.image)
            labels = np.asarray(Image.fromarray(shot.labels).resize((size, size), Image.Resampling.NEAREST))
            keypoints = torch.from_numpy(shot.annotation.astype(np.float32))
            squares = to_square(picture, config.source_size), to_square(picture, size)
            photos.append(Photo(*squares, labels, keypoints))
    return photos


def check_pairs(count: int, fewest: int = 1) -> None:
    """Raise UserError unless there are so many pairs."""
    if not fewest <= count <= PAIRS:
        raise UserError(f"--pairs must be within {fewest} .. {PAIRS}, found {count}")


def measure_pairs(count: int, config: CFLDConfig = TINY) -> list[Pair]:
    """The first of the pairs that are measured: two of a person's first four photos, chosen once and for all."""
    shots = []
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        source, target = np.random.default_rng([seed, PAIRING]).choice(4, 2, replace=False).tolist()
        shots += [(person_of(seed), people.photo_pose(seed, index)) for index in (source, target)]
    photos = photographs(shots, config)
    columns = zip(shots[1::2], photos[::2], photos[1::2], strict=True)
    return [Pair(*shot, source, target, noise_seed=shot[0].seed) for shot, source, target in columns]


def recut(person: Identity, fabric: Textile) -> Identity:
    """The person with another cloth for the torso of the top (and the skirt of a dress); the sleeves stay."""
    other = people.refabric(person, fabric)
    return replace(other, top=replace(other.top, sleeves=person.top.sleeves or person.top.fabric))


def images_of(photos: Iterable[Photo]) -> Tensor:
    """N photos as the VAE takes them -> (N, 3, H, H) in [-1, 1]."""
    return to_range(torch.stack([photo.image for photo in photos]))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Products and convolutions in this precision."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def generate_images(
    model: CFLD,
    vae: VAE,
    pairs: Sequence[Pair],
    how: SamplingConfig = PAPER,
    *,
    batch: int = 25,
    precision: str = "bf16",
) -> Tensor:
    """What the model generates for N pairs -> (N, 3, H, H) in [-1, 1]."""
    images, device = [], model.null_prompt.device
    with tqdm(total=len(pairs), desc="generating", unit="image") as bar, autocast(device, precision):
        for first in range(0, len(pairs), batch):
            part = pairs[first : first + batch]
            sources = to_range(torch.stack([pair.source.source_image for pair in part]).to(device))
            keypoints = torch.stack([pair.target.keypoints for pair in part]).to(device)
            poses = pose_maps(keypoints, model.config.adapter.pose_size)
            noise = [torch.Generator().manual_seed(pair.noise_seed) for pair in part]
            images.append(sample(model, vae, sources, poses, how, generator=noise).float().cpu())
            bar.update(len(part))
    return torch.cat(images)


@torch.no_grad()
def reconstruct(vae: VAE, images: Tensor, *, batch: int = 25, precision: str = "bf16") -> Tensor:
    """The VAE's reconstruction of images (N, 3, H, H) in [-1, 1] -> the same."""
    device = next(vae.parameters()).device
    with autocast(device, precision):
        return torch.cat([vae.decode(vae.encode(part.to(device))).float().cpu() for part in images.split(batch)])


def trivial_methods(pairs: Sequence[Pair]) -> dict[str, Pictures]:
    """What needs no model: the source, the backdrop's colour everywhere, the true mask in the source's colours."""
    return {
        "copy": [pair.source.picture for pair in pairs],
        "empty": [np.full_like(pair.target.picture, np.clip(pair.person.studio.backdrop, 0, 1)) for pair in pairs],
        "mean colours": [mean_colours(pair.source.picture, pair.source.labels, pair.target.labels) for pair in pairs],
    }


def model_hashes(model: Path) -> dict[str, str]:
    """What a model folder's images depend on: the SHA-256 of each of its files."""
    return {name: sha256(model / name) for name in ("model.safetensors", "vae.safetensors", "config.json")}


def require_skimage() -> None:
    """Raise UserError if the package that measures SSIM is missing."""
    if importlib.util.find_spec("skimage") is None:
        raise UserError("scikit-image must be installed to measure: .venv/bin/python -m pip install scikit-image")


def mean(values: Sequence[Any] | Array) -> float | None:
    """The mean; None for no values."""
    return round(float(np.mean(values)), 5) if len(values) else None


def errors(pictures: Pictures, pairs: Sequence[Pair]) -> Array:
    """The mean absolute error of each picture on the true person -> (N,)."""
    both = zip(pictures, pairs, strict=True)
    return np.array([error_inside(x, pair.target.picture, pair.target.person) for x, pair in both])


def foreground(picture: Array) -> Array:
    """The person in a picture (H, H, 3) in [0, 1], separated from the backdrop by colour -> (H, H) bool.

    The person differs from the backdrop by 0.1 in some channel, or by 0.04 where it is surrounded by such pixels:
    white shirts are filled, gaps below an arm stay open. In the lowest tenth of a figure that ends above the lower
    border, pixels with the backdrop's hue and at least half its light are shadow.
    """
    from scipy import ndimage

    behind = backdrop(picture) + 1e-6
    distance, ratio = np.abs(picture - behind).max(-1), picture / behind
    shadow = (np.ptp(ratio, axis=-1) < 0.05) & (ratio.min(-1) > 0.5)
    rows = np.flatnonzero((distance > 0.1).any(1))
    feet_seen = len(rows) and rows[-1] < len(picture) - 1
    shadow[: int(0.9 * rows[-1] + 0.1 * rows[0]) if feet_seen else None] = False
    mask = (distance > 0.1) & ~shadow
    closed = ndimage.binary_closing(np.pad(mask, 6, mode="edge"), iterations=6)[6:-6, 6:-6]
    mask |= ndimage.binary_fill_holes(closed) & (distance > 0.04) & ~shadow
    regions, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return mask & (regions == np.bincount(regions[mask], minlength=1).argmax())


def overlap(first: Array, second: Array) -> float:
    """Intersection over union of two masks (H, H)."""
    return float((first & second).sum() / max((first | second).sum(), 1))


def colour_error(first: Array, second: Array) -> float:
    """Between the mean colours of two sets of pixels (M, 3)."""
    return float(np.abs(first.mean(0) - second.mean(0)).mean())


def parts_shown(pair: Pair) -> list[str]:
    """The parts that both photos show."""
    return [part for part in COLOURED if pair.source.shows(part) and pair.target.shows(part)]


def score(picture: Array, pair: Pair) -> dict[str, float]:
    """All measures of a picture (H, H, 3) in [0, 1] but its error; by part, the error of the mean colour."""
    from skimage.metrics import structural_similarity

    truth, found = pair.target.picture, foreground(picture)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # of the paper on SSIM
    masks = {part: pair.target.mask(part) for part in parts_shown(pair)}
    return {
        "PSNR": -10 * np.log10(((picture - truth) ** 2).mean()),
        "SSIM": structural_similarity(picture, truth, data_range=1, channel_axis=-1, **window),
        "IoU": overlap(found, pair.target.person),
        "IoU, both found": overlap(found, foreground(truth)),
        **{part: colour_error(picture[mask], truth[mask]) for part, mask in masks.items()},
    }


def scores(pictures: Pictures, pairs: Sequence[Pair]) -> Numbers:
    """The means of all measures, and the error divided by that of copying the source."""
    error, copy = (errors(x, pairs).mean() for x in (pictures, [pair.source.picture for pair in pairs]))
    rows = [score(picture, pair) for picture, pair in zip(pictures, pairs, strict=True)]
    means = {title: mean([row[title] for row in rows if title in row]) for title in (*TITLES, *COLOURED)}
    return {"error": round(float(error), 5), "error / copy": round(float(error / copy), 5), **means}


def scores_table(rows: Numbers) -> str:
    """Markdown: a line for each row, a column for each number that one of them has."""
    titles = list(dict.fromkeys(title for row in rows.values() for title in row))
    lines = []
    for name, row in rows.items():
        cells = (row.get(title, "") for title in titles)
        lines.append([name, *(f"{x:.4f}" if isinstance(x, float) else str(x) for x in cells)])
    return table(["", *map(str, titles)], lines)


def sheet(columns: Sequence[Tensor], size: tuple[int, int], across: int) -> Image.Image:
    """Columns of images (N, 3, H, H) in [-1, 1] -> N framed strips of one image of each, so many strips across."""
    rows = zip(*(to_pictures(images, size) for images in columns), strict=True)
    strips = [ImageOps.expand(picture_grid([[tile] for tile in row]), 3, "white") for row in rows]
    return picture_grid([strips[i::across] for i in range(min(across, len(strips)))])


def skeletons(pairs: Sequence[Pair]) -> Tensor:
    """The target poses as images (N, 3, 256, 256) in [-1, 1]."""
    return pose_maps(torch.stack([pair.target.keypoints for pair in pairs]), 256)[:, :3] * 2 - 1
