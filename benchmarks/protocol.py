"""What the differences between evaluation scripts are worth: the same pictures, measured in other ways.

    python benchmarks/protocol.py             the table of docs/evaluation.md

Photos of drawn people, rendered at 1024x704, about as large as DeepFashion's, are brought to 256x176. Two methods
are measured, a bad one, the copy of the source, and a better one, the source's mean colours in the truth's outline. The
first row is the protocol; every other row changes one thing. Last, how well the person's region, which is made of
joints, fits the masks of the photos.
"""

import argparse
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from report import machine_line, table
from tqdm import tqdm

from cfld import people
from cfld.evaluate.metrics import SSIM_PROTOCOLS, psnr, ssim
from cfld.evaluate.person import Array, mean_colours, person_region
from cfld.evaluate.protocol import resized, to_images

SIZE, LARGE = (256, 176), (1024, 704)
FIRST_SEED = 600_200  # after those that benchmarks/people.py measures
Change = Callable[[Array], Array]


def pillow(kernel: Image.Resampling) -> Change:
    """Resizing by another filter of pillow's."""
    return lambda photo: np.asarray(Image.fromarray(photo).resize(SIZE[::-1], kernel))


def torch_bilinear(photo: Array) -> Array:
    """torch's bilinear interpolation, which takes four pixels and no more, however large the photo."""
    images = F.interpolate(rearrange(torch.tensor(photo).float(), "h w c -> 1 c h w"), SIZE, mode="bilinear")
    return rearrange(images.round().byte().numpy(), "1 c h w -> h w c")


def jpeg(quality: int) -> Change:
    """Through a JPEG file."""

    def change(picture: Array) -> Array:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return change


def rounded(picture: Array) -> Array:
    return np.rint(picture).astype(np.uint8)


TRUTHS: dict[str, Change] = {  # ways to bring the photo to the size
    "truth: pillow, bilinear": pillow(Image.Resampling.BILINEAR),
    "truth: pillow, Lanczos": pillow(Image.Resampling.LANCZOS),
    "truth: torch, bilinear without antialias": torch_bilinear,
}
PICTURES: dict[str, Change] = {  # ways to store the picture, from floating-point numbers in [0, 255]
    "picture: truncated to 8 bits": lambda picture: picture.astype(np.uint8),
    "picture: JPEG, quality 95": lambda picture: jpeg(95)(rounded(picture)),
    "picture: JPEG, quality 75": lambda picture: jpeg(75)(rounded(picture)),
}


def measure(pictures: list[Array], truths: list[Array]) -> dict[str, float]:
    """The means of PSNR and of the three SSIMs."""
    images, targets = to_images(pictures), to_images(truths)
    similarities = {protocol: ssim(images, targets, protocol).mean().item() for protocol in SSIM_PROTOCOLS}
    return {"PSNR": psnr(images, targets).mean().item(), **similarities}


def region_fit(seeds: range) -> tuple[float, float, float]:
    """Of four photos of each person: the means of intersection over union of region and mask, of the person's part that
    the region holds, and of the region's part that is person."""
    fits = []
    for seed in tqdm(seeds, desc="fitting regions"):
        for index in range(4):
            photo = people.draw(seed, index, limit=people.OWN_SEEDS)
            mask, region = photo.labels > 0, person_region(photo.annotation.astype(np.float32), SIZE)
            both = (mask & region).sum()
            fits.append((both / (mask | region).sum(), both / mask.sum(), both / max(region.sum(), 1)))
    overlap, held, true = np.mean(fits, axis=0)
    return overlap, held, true


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=12, help="each in one pair (12)")
    parser.add_argument("--photographed", type=int, default=60, help="people whose regions are fitted (60)")
    args = parser.parse_args()

    photos, methods = [], {"copy of the source": [], "mean colours": []}  # type: ignore[var-annotated]
    for seed in tqdm(range(FIRST_SEED, FIRST_SEED + args.people), desc="rendering"):
        shots: list[Any] = [people.draw(seed, i, *LARGE, limit=people.OWN_SEEDS) for i in (0, 2)]
        source = resized(Image.fromarray(shots[0].image), SIZE).astype(float)
        labels = [np.asarray(Image.fromarray(s.labels).resize(SIZE[::-1], Image.Resampling.NEAREST)) for s in shots]
        photos.append(shots[1].image)
        methods["copy of the source"].append(source)
        methods["mean colours"].append(mean_colours(source, *labels))
    truth = pillow(Image.Resampling.BICUBIC)
    lines = []
    for name, pictures in methods.items():
        lines.append([f"**{name}**", "", "", "", ""])
        rows = {"the protocol": (rounded, truth)}
        rows |= {change: (rounded, resize) for change, resize in TRUTHS.items()}
        rows |= {change: (store, truth) for change, store in PICTURES.items()}
        for change, (store, resize) in rows.items():
            numbers = measure([store(x) for x in pictures], [resize(photo) for photo in photos])
            similarities = [f"{numbers[protocol]:.4f}" for protocol in SSIM_PROTOCOLS]
            lines.append([change, f"{numbers['PSNR']:.3f}", *similarities])
    print(f"{machine_line()}\n\n{table(['', 'PSNR', 'SSIM (51)', 'SSIM-256', 'SSIM std'], lines)}")

    overlap, held, true = region_fit(range(FIRST_SEED, FIRST_SEED + args.photographed))
    print(f"\nregion and mask overlap by {overlap:.3f}; {held:.0%} of the person is in it, {true:.0%} of it is person")


if __name__ == "__main__":
    main()
