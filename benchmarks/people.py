"""How well a trained TINY paints people it has never seen: numbers and pictures for a model folder.

    python benchmarks/people.py --model weights/tiny             docs/tiny.json, tiny_measures.md, tiny_grid.png, ...
    python benchmarks/people.py --model DIR --pairs 8 --only methods --out runs/look     a look at the first pairs

The pairs are photos of drawn people of seeds 600,000 to 600,199, which are kept from training; one pair each.

    methods     the result, baselines, and the VAE's ceiling: error on the person, PSNR, SSIM, IoU, the parts' colours
    fabric      which of 20 cloths did the top's pattern come from?
    swap        two people in two poses: is it the right person, in the right pose?
    pictures    OUT_grid.png, OUT_100.png and OUT_swap.png, of the first pairs, not of chosen ones
    back        if a back is of another cloth than the front, which the source shows: is it painted like the front?
    samplers    the scores of other guidance scales and of fewer steps
    levels      the error of x_0 predicted in one step, by noise level: with the person's source, another's, and none

Errors are mean absolute differences in [0, 1]. OUT.json and OUT_measures.md are written after each measure, and a later
run on the same model, pairs and options adds to them. Needs scikit-image, which brings scipy.

Letters in shapes: N pairs, H side of an image, S side of a source image, M pixels of a mask.
"""

import argparse
import importlib.util
import itertools
import multiprocessing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from report import machine, machine_line, table
from torch import Tensor
from tqdm import tqdm

from cfld import CFLD, TINY, VAE, CFLDConfig, Scheduler, load, people
from cfld.evaluate.person import backdrop, error_inside, mean_colours
from cfld.people import PARTS, Identity, Pose, Rendered, Textile
from cfld.people.textiles import weave
from cfld.photos.pixels import picture_grid, to_pictures, to_range, to_square
from cfld.pose import pose_maps
from cfld.sampling import sample
from cfld.tools.cli import PRECISIONS, HelpFormatter, UserError, command, pick_device
from cfld.tools.files import read_json, sha256, write_json, write_text
from cfld.tools.pictures import save_image

ROOT = Path(__file__).parents[1]
MEASURES = ("methods", "fabric", "swap", "pictures", "back", "samplers", "levels")
PAIRS, FIRST_SEED, FIRST_BACK_SEED = 200, 600_000, 600_100
PAIRING, CLOTHS, BACKS = 2024, 2025, 2026  # what a seed's random numbers are for
TITLES = ("PSNR", "SSIM", "IoU", "IoU, both found")
COLOURED = ("skin", "face", "hair", "top", "jacket", "bottom", "shoes")  # the parts whose colours are measured
PART_PIXELS, FABRIC_PIXELS = 40, 300  # the fewest that a photo must show, at H = 128
LEVELS = (980, 900, 800, 600, 400, 200)  # timesteps
SOURCES = ("own source", "another's source", "no conditions")
FABRICS, SIGMA = 20, 4.0  # cloths to choose from; of the blur that is taken from them, pixels
CONTRAST = 0.35  # between the mean colours of a front and a back
SAMPLERS: dict[str, dict[str, Any]] = {
    "scales 1.0/1.0": {"pose_scale": 1.0, "appearance_scale": 1.0},
    "scales 3.0/3.0": {"pose_scale": 3.0, "appearance_scale": 3.0},
    "scales 1.5/2.5": {"pose_scale": 1.5, "appearance_scale": 2.5},
    "20 steps": {"steps": 20},
}
Array = NDArray[Any]
Shot = tuple[Identity, Pose]
Pictures = Sequence[Array] | Array  # (H, H, 3) in [0, 1] each
Numbers = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------- pairs


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
    """A person that may be measured."""
    people.refuse_seeds(seed, seed, people.OWN_SEEDS)
    return people.identity(seed)


def shoot(shot: Shot) -> Rendered:
    """One photo, 256x176."""
    return people.render(*shot)


def photographs(shots: Sequence[Shot], config: CFLDConfig) -> list[Photo]:
    """Render people in poses, on two processes, as the model takes them."""
    size, photos = config.image_size, []
    with multiprocessing.Pool(2) as pool:
        for shot in tqdm(pool.imap(shoot, shots, chunksize=4), total=len(shots), desc="rendering", unit="photo"):
            picture = Image.fromarray(shot.image)
            labels = np.asarray(Image.fromarray(shot.labels).resize((size, size), Image.Resampling.NEAREST))
            keypoints = torch.from_numpy(shot.annotation.astype(np.float32))
            squares = to_square(picture, config.source_size), to_square(picture, size)
            photos.append(Photo(*squares, labels, keypoints))
    return photos


def measure_pairs(count: int, config: CFLDConfig = TINY) -> list[Pair]:
    """The first of the pairs that are measured: two of a person's first four photos, drawn once and for all."""
    shots = []
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        source, target = np.random.default_rng([seed, PAIRING]).choice(4, 2, replace=False).tolist()
        shots += [(person_of(seed), people.photo_pose(seed, index)) for index in (source, target)]
    photos = photographs(shots, config)
    columns = zip(shots[1::2], photos[::2], photos[1::2], strict=True)
    return [Pair(*shot, source, target, noise_seed=shot[0].seed) for shot, source, target in columns]


def images_of(photos: Iterable[Photo]) -> Tensor:
    """N photos as the VAE takes them -> (N, 3, H, H) in [-1, 1]."""
    return to_range(torch.stack([photo.image for photo in photos]))


# -------------------------------------------------------------------------------------------------------------- methods


def paint(
    model: CFLD, vae: VAE, pairs: Sequence[Pair], *, batch: int = 25, precision: str = "bf16", **options: Any
) -> Tensor:
    """What the model paints for N pairs -> (N, 3, H, H) in [-1, 1]. options: steps and scales, as sample takes them."""
    scheduler, device, dtype = Scheduler(model.config.scheduler), model.null_prompt.device, PRECISIONS[precision]
    images, bar = [], tqdm(total=len(pairs), desc="painting", unit="image")
    with bar, torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for first in range(0, len(pairs), batch):
            part = pairs[first : first + batch]
            sources = to_range(torch.stack([pair.source.source_image for pair in part]).to(device))
            keypoints = torch.stack([pair.target.keypoints for pair in part]).to(device)
            poses = pose_maps(keypoints, model.config.adapter.pose_size)
            noise = [torch.Generator().manual_seed(pair.noise_seed) for pair in part]
            images.append(sample(model, vae, scheduler, sources, poses, generator=noise, **options).float().cpu())
            bar.update(len(part))
    return torch.cat(images)


@torch.no_grad()
def reconstruct(vae: VAE, images: Tensor, *, batch: int = 25, precision: str = "bf16") -> Tensor:
    """What the VAE makes of images (N, 3, H, H) in [-1, 1] -> the same."""
    device, dtype = next(vae.parameters()).device, PRECISIONS[precision]
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        return torch.cat([vae.decode(vae.encode(part.to(device))).float().cpu() for part in images.split(batch)])


def baselines(pairs: Sequence[Pair]) -> dict[str, Pictures]:
    """What needs no model: the source, the backdrop's colour everywhere, the true mask in the source's colours."""
    return {
        "copy": [pair.source.picture for pair in pairs],
        "empty": [np.full_like(pair.target.picture, np.clip(pair.person.studio.backdrop, 0, 1)) for pair in pairs],
        "mean colours": [mean_colours(pair.source.picture, pair.source.labels, pair.target.labels) for pair in pairs],
    }


# --------------------------------------------------------------------------------------------------------------- scores


def sums(model: Path) -> dict[str, str]:
    """What a model folder's pictures depend on: the sum of each of its files."""
    return {name: sha256(model / name) for name in ("model.safetensors", "vae.safetensors", "config.json")}


def mean(values: Sequence[Any] | Array) -> float | None:
    """The mean, None of nothing."""
    return round(float(np.mean(values)), 5) if len(values) else None


def errors(pictures: Pictures, pairs: Sequence[Pair]) -> Array:
    """The mean absolute error of each picture on the true person -> (N,)."""
    both = zip(pictures, pairs, strict=True)
    return np.array([error_inside(x, pair.target.picture, pair.target.labels > 0) for x, pair in both])


def foreground(picture: Array) -> Array:
    """The person in a picture (H, H, 3) in [0, 1], told from the backdrop by colour -> (H, H) bool.

    The person differs from the backdrop by 0.1 in some channel, or by 0.04 where it is surrounded by such pixels:
    white shirts are filled, gaps below an arm stay open. In the lowest tenth of a figure that ends above the lower
    border, what has the backdrop's hue and at least half its light is its shadow.
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
    """What is measured of one picture (H, H, 3) in [0, 1] beside its error; by part, the error of its mean colour."""
    from skimage.metrics import structural_similarity

    truth, found = pair.target.picture, foreground(picture)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # of the paper on SSIM
    masks = {part: pair.target.mask(part) for part in parts_shown(pair)}
    return {
        "PSNR": -10 * np.log10(((picture - truth) ** 2).mean()),
        "SSIM": structural_similarity(picture, truth, data_range=1, channel_axis=-1, **window),
        "IoU": overlap(found, pair.target.labels > 0),
        "IoU, both found": overlap(found, foreground(truth)),
        **{part: colour_error(picture[mask], truth[mask]) for part, mask in masks.items()},
    }


def scores(pictures: Pictures, pairs: Sequence[Pair]) -> Numbers:
    """The means of everything that is measured, and the error's ratio to that of copying the source."""
    error, copy = (errors(x, pairs).mean() for x in (pictures, [pair.source.picture for pair in pairs]))
    rows = [score(picture, pair) for picture, pair in zip(pictures, pairs, strict=True)]
    means = {title: mean([row[title] for row in rows if title in row]) for title in (*TITLES, *COLOURED)}
    return {"error": round(float(error), 5), "error / copy": round(float(error / copy), 5), **means}


def score_methods(methods: dict[str, Pictures], pairs: Sequence[Pair]) -> Numbers:
    """The scores of methods by name; the IoU of the truths themselves, which is all that the segmentation can find; and
    how many pairs show a part."""
    rows: Numbers = {name: scores(pictures, pairs) for name, pictures in tqdm(methods.items(), desc="scoring")}
    rows["truth"] = {"IoU": mean([overlap(foreground(p.target.picture), p.target.labels > 0) for p in pairs])}
    shown = [parts_shown(pair) for pair in pairs]
    rows["pairs that show it"] = {part: sum(part in parts for parts in shown) for part in COLOURED}
    return rows


# --------------------------------------------------------------------------------------------------------------- fabric


def recut(person: Identity, fabric: Textile) -> Identity:
    """The person with the top's torso (and the skirt of a dress) of another cloth; sleeves and the rest stay."""
    other = people.refabric(person, fabric)
    return replace(other, top=replace(other.top, sleeves=person.top.sleeves or person.top.fabric))


def high_pass(picture: Array, mask: Array) -> Array:
    """A picture (H, H, 3) minus its blur, both taken inside the mask (H, H) alone -> (M, 3)."""
    from scipy.ndimage import gaussian_filter

    weight = mask[..., None].astype(np.float64)
    blurred, total = (gaussian_filter(x, (SIGMA, SIGMA, 0)) for x in (picture * weight, weight))
    return picture[mask] - blurred[mask] / total[mask]


def fabric_test(methods: dict[str, Pictures], pairs: Sequence[Pair], config: CFLDConfig) -> Numbers:
    """By method, the share of pictures whose top has the pattern of the truth, and not of one of 19 other truths, the
    same photo with the top of another cloth: nearest in L2, which blur misleads to faint patterns, and by correlation,
    which it does not. Compared where the cloth makes a difference, which is the torso without its sleeves."""
    kinds = tuple(kind for kind in people.WEAVES if kind not in people.PLAIN)
    candidates: list[int] = []
    shots: list[Shot] = []
    for i, pair in enumerate(pairs):
        top = pair.person.top
        one_pattern = top.fabric.kind in kinds and not (top.back or top.front_print or top.back_print)
        if one_pattern and pair.target.shows("top", FABRIC_PIXELS):
            rng = np.random.default_rng([pair.person.seed, CLOTHS])
            fabrics = [people.random_textile(rng, kinds) for _ in range(FABRICS - 1)]
            shots += [(recut(pair.person, fabric), pair.pose) for fabric in fabrics]
            candidates.append(i)
    others = iter(photographs(shots, config))
    nearest, alike = ({name: [] for name in methods} for _ in range(2))
    for i in candidates:
        photos = [*itertools.islice(others, FABRICS - 1), pairs[i].target]  # the true one is last
        truths = np.stack([photo.picture for photo in photos])
        mask = pairs[i].target.mask("top") & (truths != truths[-1]).any((0, -1))
        if mask.sum() < FABRIC_PIXELS:
            continue
        cloths = np.stack([high_pass(truth, mask) for truth in truths])  # (20, M, 3)
        for name, pictures in methods.items():
            found = high_pass(pictures[i], mask)
            distances = ((found - cloths) ** 2).sum((1, 2))
            correlations = (found * cloths).sum((1, 2)) / np.sqrt((cloths**2).sum((1, 2)))
            nearest[name].append(distances.argmin() == FABRICS - 1)
            alike[name].append(correlations.argmax() == FABRICS - 1)
    return {
        "pairs": len(next(iter(nearest.values()))),
        "chance": 1 / FABRICS,
        "nearest": {name: mean(values) for name, values in nearest.items()},
        "most correlated": {name: mean(values) for name, values in alike.items()},
    }


# ----------------------------------------------------------------------------------------------------------------- swap


def swap_pairs(count: int, config: CFLDConfig) -> list[Pair]:
    """Two people and two poses make four pairs: a in p, a in q, b in p, b in q; and so on for the next two people.

    The four have the same noise, and b is asked for with a's keypoints: only the source can tell whom to paint.
    """
    shots = []
    for first in range(FIRST_SEED, FIRST_SEED + 2 * count, 2):
        for seed in (first, first + 1):
            poses = people.photo_pose(seed, 0), people.photo_pose(first, 2), people.photo_pose(first, 3)
            shots += [(person_of(seed), pose) for pose in poses]
    photos, pairs = photographs(shots, config), []
    for a in range(0, len(shots), 6):
        for source in (a, a + 3):
            for pose in (1, 2):
                target = replace(photos[source + pose], keypoints=photos[a + pose].keypoints)
                pairs.append(Pair(*shots[source + pose], photos[source], target, noise_seed=shots[a][0].seed))
    return pairs


def swap_test(pictures: Array, pairs: Sequence[Pair]) -> Numbers:
    """How often a picture is nearer to its own truth than to the other person's in the same pose, and how often it
    overlaps its own pose more than the other. pictures (N, H, H, 3) of swap_pairs."""
    size = pictures.shape[1:3]
    truths = np.stack([pair.target.picture for pair in pairs]).reshape(-1, 2, 2, *size, 3)
    masks = np.stack([pair.target.labels > 0 for pair in pairs]).reshape(-1, 2, 2, *size)
    right_person, right_pose = [], []
    for picture, (k, person, pose) in zip(pictures, np.ndindex(truths.shape[:3]), strict=True):
        either = masks[k, :, pose].any(0)
        own, other = (np.abs(picture - truths[k, who, pose])[either].mean() for who in (person, 1 - person))
        right_person.append(own < other)
        own, other = (overlap(foreground(picture), masks[k, person, which]) for which in (pose, 1 - pose))
        right_pose.append(own > other)
    return {"results": len(pairs), "right person": mean(right_person), "right pose": mean(right_pose)}


# ----------------------------------------------------------------------------------------------------------------- back


def different_fabrics(rng: np.random.Generator) -> tuple[Textile, Textile]:
    """Two cloths whose mean colours are far apart."""
    while True:
        fabrics = people.random_textile(rng), people.random_textile(rng)
        if colour_error(*(weave(fabric)[0].reshape(-1, 3) for fabric in fabrics)) >= CONTRAST:
            return fabrics


def back_pairs(count: int, config: CFLDConfig) -> tuple[list[Pair], list[Photo]]:
    """People in tops whose back is of another cloth than the front, asked for from behind with a source from the front,
    and their photos from behind if the back were like the front. Without jackets and prints, which would hide it, and
    without those who sit, whom no photo shows from behind."""
    shots: list[Shot] = []
    seeds = (seed for seed in range(FIRST_BACK_SEED, people.OWN_SEEDS) if people.photo_pose(seed, 1).view == "back")
    for seed in itertools.islice(seeds, count):
        person = person_of(seed)
        person = replace(person, jacket=None, top=replace(person.top, front_print=None, back_print=None))
        front, back = different_fabrics(np.random.default_rng([seed, BACKS]))
        true, like_front = people.refabric(person, front, back), people.refabric(person, front)
        poses = people.photo_pose(seed, 0), people.photo_pose(seed, 1)
        shots += [(true, poses[0]), (true, poses[1]), (like_front, poses[1])]
    photos = photographs(shots, config)
    columns = zip(shots[1::3], photos[::3], photos[1::3], strict=True)
    return [Pair(*shot, source, target, shot[0].seed) for shot, source, target in columns], photos[2::3]


def back_test(pictures: Array, pairs: Sequence[Pair], like_front: Sequence[Photo]) -> Numbers:
    """Whether the colour of pictures (N, H, H, 3) is the true back's or that of a back like the front: where both
    renderings of the top differ, which is the torso without its sleeves."""
    to_back, to_front = [], []
    for picture, pair, other in zip(pictures, pairs, like_front, strict=True):
        panel = pair.target.mask("top") & (pair.target.image != other.image).any(0).numpy()
        if panel.sum() >= PART_PIXELS:
            to_back.append(colour_error(picture[panel], pair.target.picture[panel]))
            to_front.append(colour_error(picture[panel], other.picture[panel]))
    return {
        "people": len(to_back),
        "nearer to the front": mean(np.array(to_front) < np.array(to_back)),
        "colour error to the back": mean(to_back),
        "colour error to the front": mean(to_front),
    }


# --------------------------------------------------------------------------------------------------------------- levels


@torch.no_grad()
def level_test(model: CFLD, vae: VAE, pairs: Sequence[Pair], *, batch: int = 25, precision: str = "bf16") -> Numbers:
    """By timestep, the error on the person of x_0 as it is predicted in one step from the truth's z_t and decoded: with
    the right source, with the source of the pair before, and without source and pose."""
    scheduler, device, dtype = Scheduler(model.config.scheduler), model.null_prompt.device, PRECISIONS[precision]
    found: dict[str, list[list[float]]] = {name: [[] for _ in LEVELS] for name in SOURCES}
    everyone = to_range(torch.stack([pair.source.source_image for pair in pairs]).to(device))
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for first in tqdm(range(0, len(pairs), batch), desc="noise levels", unit="batch"):
            part = slice(first, first + batch)
            x_0 = vae.encode(images_of(pair.target for pair in pairs[part]).to(device)).float()
            noises = [torch.Generator().manual_seed(pair.noise_seed) for pair in pairs[part]]
            noise = torch.stack([torch.randn(x_0.shape[1:], generator=g) for g in noises]).to(device)
            keypoints = torch.stack([pair.target.keypoints for pair in pairs[part]]).to(device)
            poses = pose_maps(keypoints, model.config.adapter.pose_size)
            own, others = (model.condition(images[part], poses) for images in (everyone, everyone.roll(1, 0)))
            nothing = model.drop(own, torch.ones(len(x_0), dtype=torch.bool, device=device), "paper")
            for name, conditions in zip(SOURCES, (own, others, nothing), strict=True):
                for i, t in enumerate(LEVELS):
                    timesteps = torch.full((len(x_0),), t, device=device)
                    latents = scheduler.add_noise(x_0, noise, timesteps)
                    predicted = scheduler.clean_latents(latents, model(latents, timesteps, conditions).float(), t)
                    found[name][i] += errors(pixels(vae.decode(predicted).float().cpu()), pairs[part]).tolist()
    return {"timesteps": LEVELS, **{name: [mean(x) for x in levels] for name, levels in found.items()}}


# ------------------------------------------------------------------------------------------------------------- pictures


def sheet(columns: Sequence[Tensor], size: tuple[int, int], across: int) -> Image.Image:
    """Columns of images (N, 3, H, H) in [-1, 1] -> N framed strips of one image of each, so many strips across."""
    rows = zip(*(to_pictures(images, size) for images in columns), strict=True)
    strips = [ImageOps.expand(picture_grid([[tile] for tile in row]), 3, "white") for row in rows]
    return picture_grid([strips[i::across] for i in range(across)])


def skeletons(pairs: Sequence[Pair]) -> Tensor:
    """The poses asked for, as images (N, 3, 256, 256) in [-1, 1]."""
    return pose_maps(torch.stack([pair.target.keypoints for pair in pairs]), 256)[:, :3] * 2 - 1


def sheets(
    pairs: Sequence[Pair], results: Tensor, reconstructions: Tensor, couples: Sequence[Pair], swapped: Tensor
) -> dict[str, Image.Image]:
    """grid: source, pose, truth, VAE, result. 100: source, truth, result. swap: two rows for two people in the same two
    poses: source; pose, truth, result; the other pose, truth, result."""
    sources, truths = images_of(pair.source for pair in pairs), images_of(pair.target for pair in pairs)
    grid = [x[:12] for x in (sources, skeletons(pairs), truths, reconstructions, results)]
    swap = [images_of(pair.source for pair in couples[:24:2])]
    for pose in (0, 1):
        row = couples[pose:24:2]
        swap += [skeletons(row), images_of(pair.target for pair in row), swapped[pose:24:2]]
    return {
        "grid": sheet(grid, (192, 132), across=2),
        "100": sheet([x[:100] for x in (sources, truths, results)], (128, 88), across=5),
        "swap": sheet(swap, (192, 132), across=1),
    }


# -------------------------------------------------------------------------------------------------------------- command


def scores_table(rows: Numbers) -> str:
    """Markdown: a line for each row, a column for each number that one of them has."""
    titles = list(dict.fromkeys(title for row in rows.values() for title in row))
    lines = []
    for name, row in rows.items():
        cells = (row.get(title, "") for title in titles)
        lines.append([name, *(f"{x:.4f}" if isinstance(x, float) else str(x) for x in cells)])
    return table(["", *map(str, titles)], lines)


def section(name: str, numbers: Numbers, made: dict[str, Any]) -> str:
    """One measure in Markdown: its single numbers, its table, and where it was taken."""
    single = [f"{key}: {value:.4g}" for key, value in numbers.items() if isinstance(value, int | float)]
    rows = {key: value for key, value in numbers.items() if isinstance(value, dict)}
    if "timesteps" in numbers:
        rows = {
            key: dict(zip(numbers["timesteps"], numbers[key], strict=True)) for key in numbers if key != "timesteps"
        }
    parts = [f"## {name}", "; ".join(single), scores_table(rows) if rows else "", machine_line(made)]
    return "\n\n".join(part for part in parts if part)


def page(found: Numbers) -> str:
    """All measures in Markdown."""
    weights = found["asked"]["model.safetensors"][:12]
    head = (
        "# Measures of a TINY\n\nWritten by `python benchmarks/people.py`, whose `--help` says what each section is: "
        f"model.safetensors of sha256 {weights}..., {found['asked']['pairs']} pairs, DDPM with "
        f"{found['asked']['steps']} steps, {found['asked']['precision']}.\n\n"
        "error: mean absolute difference in [0, 1] on the true person; / copy: divided by that of copying the source. "
        "IoU: overlap of the person found in the picture with the true mask; both found: with the person found in the "
        "truth. skin .. shoes: error of a part's mean colour. The row mean colours: the true outline, filled with the "
        "source's. nearest, most correlated: share of tops whose pattern is nearest to the true one among 20 cloths, "
        "by distance and by correlation. PSNR and SSIM are of the whole square, SSIM with Gaussian windows and a range "
        "of 1 (docs/evaluation.md calls it SSIM std)."
    )
    sections = [
        section(name, found["measures"][name], found["made"][name]) for name in MEASURES if name in found["measures"]
    ]
    return "\n\n".join([head, *sections]) + "\n"


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser("python benchmarks/people.py", description=__doc__, formatter_class=HelpFormatter)
    options.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model folder")
    options.add_argument("--pairs", type=int, default=PAIRS, help="how many of the 200, from the first")
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "tiny", help="what the files' names begin with")
    options.add_argument("--only", nargs="+", choices=MEASURES, metavar="MEASURE", help="some of the measures")
    options.add_argument("--steps", type=int, default=50, help="of DDPM")
    options.add_argument("--batch", type=int, default=25, help="images at a time; they do not depend on it")
    options.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16", help="of products")
    options.add_argument("--device", help="cuda, cpu, ... (default: the best there is)")
    return options


@command
def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if importlib.util.find_spec("skimage") is None:
        raise UserError("scikit-image must be installed to measure: .venv/bin/python -m pip install scikit-image")
    if not 5 <= args.pairs <= PAIRS:
        raise UserError(f"--pairs must be within 5 .. {PAIRS}, found {args.pairs}")
    model, vae = load(args.model, pick_device(args.device))
    options: Numbers = {"batch": args.batch, "precision": args.precision}
    painted, config = partial(paint, model, vae, steps=args.steps, **options), model.config
    chosen = set(args.only or MEASURES)

    asked = {
        **sums(args.model),
        "pairs": f"{'partial: ' if args.pairs < PAIRS else ''}{args.pairs} of {PAIRS}",
        "steps": args.steps,
        "precision": args.precision,
    }
    path = args.out.with_name(f"{args.out.name}.json")
    before = read_json(path) if path.is_file() else {}
    found = before if before.get("asked") == asked else {"asked": asked, "measures": {}, "made": {}}

    def report(name: str, numbers: Numbers) -> None:
        found["measures"][name], found["made"][name] = numbers, machine()
        write_json(path, found)
        write_text(args.out.with_name(f"{args.out.name}_measures.md"), page(found))
        print("\n" + section(name, numbers, found["made"][name]))

    pairs = measure_pairs(args.pairs, config)
    if chosen & {"methods", "fabric", "pictures"}:
        results = painted(pairs)
        reconstructions = reconstruct(vae, images_of(pair.target for pair in pairs), **options)
        methods = {"result": pixels(results), "VAE": pixels(reconstructions), **baselines(pairs)}
    if "methods" in chosen:
        report("methods", score_methods(methods, pairs))
    if "fabric" in chosen:
        report("fabric", fabric_test(methods, pairs, config))
    if chosen & {"swap", "pictures"}:
        couples = swap_pairs(args.pairs // 4, config)
        swapped = painted(couples)
    if "swap" in chosen:
        report("swap", swap_test(pixels(swapped), couples))
    if "pictures" in chosen:
        for name, picture in sheets(pairs, results, reconstructions, couples, swapped).items():
            save_image(args.out.with_name(f"{args.out.name}_{name}.png"), picture)
    if "back" in chosen:
        back, like_front = back_pairs(args.pairs // 5, config)
        report("back", back_test(pixels(painted(back)), back, like_front))
    if "samplers" in chosen:
        report("samplers", {name: scores(pixels(painted(pairs, **change)), pairs) for name, change in SAMPLERS.items()})
    if "levels" in chosen:
        report("levels", level_test(model, vae, pairs, **options))


if __name__ == "__main__":
    raise SystemExit(main())
