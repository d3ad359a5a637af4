"""The metrics themselves: our FID against scipy's, and what differences between evaluation scripts are worth.

    python benchmarks/metrics.py fid             value and speed of the distance: a minute
    python benchmarks/metrics.py protocol        the table of docs/evaluation.md: a few minutes

Letters in shapes: N images, D features.
"""

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import add_command, benchmark_parser, provenance, table
from einops import rearrange
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cfld import people
from cfld.evaluate import metrics
from cfld.evaluate.metrics import SSIM_PROTOCOLS, FeatureStatistics, psnr, ssim
from cfld.evaluate.person import Array, mean_colours, person_region
from cfld.evaluate.protocol import resized, to_images
from cfld.tools.cli import command

SIZE, LARGE = (256, 176), (1024, 704)
FIRST_SEED = 600_200  # after those of benchmarks/people.py
Change = Callable[[Array], Array]


def fid(options: argparse.Namespace) -> None:
    """Our FID against scipy's matrix square root.

    Both have the same features, as many as Inception's by default, and take turns. Needs scipy.

        python benchmarks/metrics.py fid
        python benchmarks/metrics.py fid --count 500 --width 512
    """
    import scipy

    x, y = features(options.count, options.width, 1), features(options.count, options.width, 2)
    metrics.fid(torch.zeros(64), torch.eye(64), torch.zeros(64), torch.eye(64))  # load what is loaded lazily
    whole: dict[str, list[float]] = {"ours": [], "scipy": []}
    alone: dict[str, list[float]] = {"ours": [], "scipy": []}
    values = {}
    for _ in range(options.repeats):
        for name, run in (("ours", our_fid), ("scipy", scipy_fid)):
            started = time.perf_counter()
            values[name], seconds = run(x, y)
            whole[name].append(time.perf_counter() - started)
            alone[name].append(seconds)

    print(
        f"2 x {options.count} images, {options.width} features, {len(os.sched_getaffinity(0))} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, scipy {scipy.__version__}; "
        f"medians of {options.repeats}\n"
    )
    rows = [
        [name, f"{values[name]:.6f}", f"{statistics.median(whole[name]):.2f}", f"{statistics.median(alone[name]):.2f}"]
        for name in ("ours", "scipy")
    ]
    print(table(["", "FID", "seconds from features", "seconds of the distance"], rows))
    whole_ratio, alone_ratio = (statistics.median(t["scipy"]) / statistics.median(t["ours"]) for t in (whole, alone))
    difference = abs(values["ours"] - values["scipy"]) / values["scipy"]
    print(f"\n{alone_ratio:.1f} times as fast ({whole_ratio:.1f} from features), relative difference {difference:.1e}")


def features(count: int, width: int, seed: int) -> Tensor:
    """(N, D) like Inception's: correlated, not negative, of very different variances."""
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    mixing *= torch.linspace(0, -4, width).exp()[:, None]
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) @ mixing
    return torch.relu(0.05 * x + 0.05 * seed)


def our_fid(x: Tensor, y: Tensor) -> tuple[float, float]:
    """-> FID, seconds of the distance alone."""
    sets = []
    for z in (x, y):
        sets.append(FeatureStatistics(z.shape[1]))
        sets[-1].update(z)
    moments = [m for s in sets for m in (s.mean, s.covariance)]
    started = time.perf_counter()
    value = metrics.fid(*moments)
    return value, time.perf_counter() - started


def scipy_fid(x: Tensor, y: Tensor) -> tuple[float, float]:
    """-> FID, seconds of the distance alone."""
    import scipy.linalg

    (m1, s1), (m2, s2) = ((z.mean(axis=0), np.cov(z, rowvar=False)) for z in (x.double().numpy(), y.double().numpy()))
    started = time.perf_counter()
    root = scipy.linalg.sqrtm(s1 @ s2)
    value = np.sum((m1 - m2) ** 2) + np.trace(s1) + np.trace(s2) - 2 * np.trace(root).real
    return float(value), time.perf_counter() - started


def protocol(options: argparse.Namespace) -> None:
    """What differences between evaluation scripts are worth in PSNR and SSIM.

    Photos of synthetic people, rendered about as large as DeepFashion's (1024x704), are brought to 256x176. Two trivial
    methods are measured: the copy of the source, and the source's mean colours in the true outline. The first row is
    the protocol; each other row changes one thing. Last, how well the person region, which is made from joints, fits
    the true masks.

        python benchmarks/metrics.py protocol
    """
    photos, methods = render_pairs(options.people)
    truth = pillow(Image.Resampling.BICUBIC)
    rows: dict[str, tuple[Change, Change]] = {"the protocol": (rounded, truth)}
    rows |= {change: (rounded, resize) for change, resize in TRUTHS.items()}
    rows |= {change: (store, truth) for change, store in PICTURES.items()}
    lines = []
    for name, pictures in methods.items():
        lines.append([f"**{name}**", "", "", "", ""])
        for change, (store, resize) in rows.items():
            images = to_images([store(x) for x in pictures])
            targets = to_images([resize(photo) for photo in photos])
            similarities = [f"{ssim(images, targets, which).mean().item():.4f}" for which in SSIM_PROTOCOLS]
            lines.append([change, f"{psnr(images, targets).mean().item():.3f}", *similarities])
    print(f"{provenance()}\n\n{table(['', 'PSNR', 'SSIM (51)', 'SSIM-256', 'SSIM std'], lines)}")

    overlap, held, true = region_fit(range(FIRST_SEED, FIRST_SEED + options.photographed))
    print(
        f"\nThe IoU of region and mask is {overlap:.3f}: {held:.0%} of the person is in the region, {true:.0%} of the "
        "region is person"
    )


def render_pairs(count: int) -> tuple[list[Array], dict[str, list[Array]]]:
    """The large target photos of so many people, and the results (256, 176, 3) in [0, 255] of two trivial methods."""
    photos: list[Array] = []
    methods: dict[str, list[Array]] = {"copy of the source": [], "mean colours": []}
    for seed in tqdm(range(FIRST_SEED, FIRST_SEED + count), desc="rendering"):
        shots: list[Any] = [people.draw(seed, i, *LARGE, limit=people.OWN_SEEDS) for i in (0, 2)]
        source = resized(Image.fromarray(shots[0].image), SIZE).astype(float)
        labels = [np.asarray(Image.fromarray(s.labels).resize(SIZE[::-1], Image.Resampling.NEAREST)) for s in shots]
        photos.append(shots[1].image)
        methods["copy of the source"].append(source)
        methods["mean colours"].append(mean_colours(source, *labels))
    return photos, methods


def pillow(kernel: Image.Resampling) -> Change:
    """Resize by a filter of pillow's."""
    return lambda photo: np.asarray(Image.fromarray(photo).resize(SIZE[::-1], kernel))


def torch_bilinear(photo: Array) -> Array:
    """Resize by torch's bilinear interpolation, which reads four pixels and no more, however large the photo."""
    images = F.interpolate(rearrange(torch.tensor(photo).float(), "h w c -> 1 c h w"), SIZE, mode="bilinear")
    return rearrange(images.round().byte().numpy(), "1 c h w -> h w c")


def jpeg(quality: int) -> Change:
    """Store as a JPEG file."""

    def change(picture: Array) -> Array:
        file = io.BytesIO()
        Image.fromarray(rounded(picture)).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return change


def rounded(picture: Array) -> Array:
    return np.rint(picture).astype(np.uint8)


TRUTHS: dict[str, Change] = {  # other ways to resize the photo
    "truth: pillow, bilinear": pillow(Image.Resampling.BILINEAR),
    "truth: pillow, Lanczos": pillow(Image.Resampling.LANCZOS),
    "truth: torch, bilinear without antialias": torch_bilinear,
}
PICTURES: dict[str, Change] = {  # other ways to store the result, from floating-point numbers in [0, 255]
    "picture: truncated to 8 bits": lambda picture: picture.astype(np.uint8),
    "picture: JPEG, quality 95": jpeg(95),
    "picture: JPEG, quality 75": jpeg(75),
}


def region_fit(seeds: range) -> tuple[float, float, float]:
    """Of four photos of each person: the means of the IoU of region and mask, of the share of the person that is in the
    region, and of the share of the region that is person."""
    fits = []
    for seed in tqdm(seeds, desc="fitting regions"):
        for index in range(4):
            photo = people.draw(seed, index, limit=people.OWN_SEEDS)
            mask, region = photo.labels > 0, person_region(photo.annotation.astype(np.float32), SIZE)
            both = (mask & region).sum()
            fits.append((both / (mask | region).sum(), both / mask.sum(), both / max(region.sum(), 1)))
    overlap, held, true = np.mean(fits, axis=0)
    return overlap, held, true


@command
def main(argv: list[str] | None = None) -> None:
    parser, commands = benchmark_parser(__file__, __doc__)
    options = add_command(commands, fid, out=False)
    options.add_argument("--count", type=int, default=2000, help="images of a set")
    options.add_argument("--width", type=int, default=2048, help="features of an image")
    options.add_argument("--repeats", type=int, default=3, help="turns; numbers are medians")
    options = add_command(commands, protocol, out=False)
    options.add_argument("--people", type=int, default=12, help="one pair each")
    options.add_argument("--photographed", type=int, default=60, help="people whose regions are fitted")
    parsed = parser.parse_args(argv)
    parsed.run(parsed)


if __name__ == "__main__":
    raise SystemExit(main())
