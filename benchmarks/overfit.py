"""It learns: TINY on eight pairs of rendered people, then painted again from noise.

    python benchmarks/overfit.py            about 40 minutes on two cores; run it again to go on where it was stopped

Trains TINY's VAE and then all of TINY on eight pairs (four people who share two poses), samples the eight targets with
DDPM-50 under Eq. 7 at 2.0/2.0, and measures the mean absolute error in [0, 1] to the true targets: of the VAE's own
reconstruction (the floor), of the results, and of results whose sources were exchanged. Writes docs/overfit.png
(source, pose, target, VAE, result, result of the next person's source) and docs/overfit.json.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from report import machine

from cfld import Scheduler, load
from cfld.data.batch import collate
from cfld.data.pairs import FashionPairs
from cfld.people import identity, photo_pose, render
from cfld.photos.pixels import picture_grid, to_pictures, to_range
from cfld.pose import pose_maps
from cfld.sampling import sample
from cfld.tools.files import write_json, write_lines
from cfld.tools.pictures import save_image

ROOT = Path(__file__).parents[1]
RUN = ROOT / "runs" / "overfit"
PAIR_LIST = "fasion-resize-pairs-train.csv"  # written last
SEEDS = (0, 1, 2, 3)  # of four people
VAE_STEPS, STEPS, PAIRS = 500, 1400, 8


def eight_pairs(folder: Path) -> None:
    """Four rendered people, each in one source pose and two target poses, as a prepared folder of eight pairs.

    The people share their poses, and their annotations too (the first person's joints): only the source can tell whom
    to paint. Pairs are ordered so that the next pair's source is always another person.
    """
    poses = [photo_pose(SEEDS[0], index) for index in range(3)]
    photos = [[render(identity(seed), pose) for pose in poses] for seed in SEEDS]
    names = [[f"fashionPEOPLEid{seed:08d}01_{index}.png" for index in range(3)] for seed in SEEDS]
    (folder / "train_highres").mkdir(parents=True, exist_ok=True)
    rows = []
    for person, row in zip(photos, names, strict=True):
        for photo, name, first in zip(person, row, photos[0], strict=True):
            Image.fromarray(photo.image).save(folder / "train_highres" / name)
            y, x = first.keypoints.round().astype(int).T.tolist()
            rows.append(f"{name}: {y}: {x}")
    pairs = [f"{row[0]},{row[target]}" for target in (1, 2) for row in names]
    write_lines(folder / "fasion-resize-annotation-train.csv", ["name:keypoints_y:keypoints_x", *rows])
    write_lines(folder / PAIR_LIST, ["from,to", *pairs])


def train(*options: str) -> None:
    """Run cfld.train, going on with what is there."""
    subprocess.run(
        [sys.executable, "-m", "cfld.train", "--preset", "tiny", "--batch", str(PAIRS), *options, "--resume"],
        check=True,
    )


def main() -> None:
    data = RUN / "data"
    if not (data / PAIR_LIST).is_file():
        eight_pairs(data)
    common = ("--data", str(data), "--decay-at", "0.7", "--save-every", "200", "--sample-every", "400")
    if not (RUN / "vae" / "model").is_dir():
        train("--stage", "vae", "--out", str(RUN / "vae"), "--steps", str(VAE_STEPS), *common)
    if not (RUN / "cfld" / "model").is_dir():
        start = str(RUN / "vae" / "model")
        train("--init", start, "--out", str(RUN / "cfld"), "--steps", str(STEPS), "--ema", "0.99", *common)

    model, vae = load(RUN / "cfld" / "model")
    pairs = FashionPairs(data, "train", model.config.image_size, model.config.source_size)
    batch = collate([pairs[i] for i in range(len(pairs))])
    sources, targets = (to_range(x) for x in batch.images.chunk(2))
    source_images, poses = (
        to_range(batch.source_images),
        pose_maps(batch.keypoints.chunk(2)[1], model.config.adapter.pose_size),
    )

    def paint(people: torch.Tensor) -> torch.Tensor:
        seeds = [torch.Generator().manual_seed(i) for i in range(len(people))]
        return sample(model, vae, Scheduler(model.config.scheduler), people, poses, generator=seeds, progress=True)

    with torch.no_grad():
        floor = vae.decode(vae.encode(targets))
    results, exchanged = paint(source_images), paint(source_images.roll(-1, dims=0))

    def error(images: torch.Tensor) -> float:
        return ((images.clamp(-1, 1) - targets) / 2).abs().mean().item()

    numbers = {"vae": error(floor), "result": error(results), "exchanged": error(exchanged)}
    numbers["result / vae"] = numbers["result"] / numbers["vae"]
    numbers["exchanged / vae"] = numbers["exchanged"] / numbers["vae"]
    facts = {name: round(x, 4) for name, x in numbers.items()} | {"made": machine()}
    write_json(ROOT / "docs" / "overfit.json", facts)
    print(json.dumps(numbers, indent=2))

    columns = [to_pictures(x, (192, 132)) for x in (sources, poses[:, :3] * 2 - 1, targets, floor, results, exchanged)]
    save_image(ROOT / "docs" / "overfit.png", picture_grid(columns))


if __name__ == "__main__":
    main()
