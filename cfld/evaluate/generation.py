"""Generate the images of the test pairs, into OUT/pictures.

Letters in shapes: B pairs, H side of an image.
"""

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cfld.baselines import read_config
from cfld.config import CFLDConfig
from cfld.data.batch import Batch, collate, seeded
from cfld.data.pairs import FashionPairs
from cfld.evaluate.protocol import PairSet, picture_names
from cfld.folder import load, load_vae, student_file
from cfld.photos.pixels import to_pictures, to_range
from cfld.pose import pose_maps
from cfld.sampling import PAPER, TURBO, SamplingConfig, sample
from cfld.tools.cli import PRECISIONS, UserError, pick_precision
from cfld.tools.files import open_folder, remove_leftovers, sha256
from cfld.tools.pictures import save_image
from cfld.tools.processes import Processes
from cfld.tools.progress import tell

Generate = Callable[[list[int], Batch], Tensor]  # indices of B pairs, the pairs -> images (B, 3, H, H) in [-1, 1]


def generate_missing(
    folder: Path,
    pairs: FashionPairs,
    count: int,
    size: tuple[int, int],
    prepare: Callable[[], Generate],
    batch: int,
    processes: Processes,
) -> None:
    """Generate those of the first count pairs that are not in the folder, each process its share. Pictures are
    truncated to 8 bits, as in the public code. While a batch is generated, threads read the next one and write the one
    before."""
    if processes.is_main:
        remove_leftovers(folder)
    processes.barrier()
    paths = [folder / name for name in picture_names(pairs.pairs[:count])]
    mine = processes.share(count)
    missing = [i for i in mine if not paths[i].is_file()]
    if missing and processes.is_main:
        tell("loading what generates the images")
    generate = prepare() if missing else None
    done = len(mine) - len(missing)
    with tqdm(total=len(mine), initial=done, desc="generating", unit="image", disable=not processes.is_main) as bar:
        parts = [missing[first : first + batch] for first in range(0, len(missing), batch)]
        written: Future[int] | None = None

        def read(indices: list[int]) -> Batch:
            return collate([pairs[i] for i in indices])

        def write(indices: list[int], images: Tensor) -> int:
            for i, picture in zip(indices, to_pictures(images, size, rounding=False), strict=True):
                save_image(paths[i], picture)
            return len(indices)

        with ThreadPoolExecutor(2) as threads:
            for part, current in zip(parts, one_ahead(threads, read, parts), strict=True):
                assert generate is not None
                images = generate(part, current).cpu()
                if written:
                    bar.update(written.result())
                written = threads.submit(write, part, images)
            if written:
                bar.update(written.result())
    processes.wait_for_work()


def one_ahead(
    threads: ThreadPoolExecutor, read: Callable[[list[int]], Batch], parts: list[list[int]]
) -> Iterator[Batch]:
    """What is read of each part, in order; a thread reads the next part while one is in use."""
    following: Future[Batch] | None = None
    for part in parts:
        current, following = following, threads.submit(read, part)
        if current:
            yield current.result()
    if following:
        yield following.result()


def with_model(folder: Path, config: SamplingConfig, seed: int, device: torch.device, dtype: torch.dtype) -> Generate:
    """A model's, or its student's, images; the noise of pair i depends only on the seed and on i."""
    model, vae = load(folder, device, dtype, channels_last=True, turbo=config.sampler == "turbo")
    config.check_student(model.config.distilled)

    def generate(indices: list[int], batch: Batch) -> Tensor:
        target_keypoints = batch.keypoints.chunk(2)[1]
        return sample(
            model,
            vae,
            to_range(batch.source_images.to(device)),
            pose_maps(target_keypoints.to(device), model.config.adapter.pose_size),
            config,
            generator=[seeded(seed, i) for i in indices],
        )

    return generate


def with_vae(folder: Path, device: torch.device, dtype: torch.dtype) -> Generate:
    """The VAE's reconstructions of the ground truth, through the mean of its posterior."""
    vae = load_vae(folder).to(device, dtype).eval()

    @torch.no_grad()
    def generate(indices: list[int], batch: Batch) -> Tensor:
        assert batch.images is not None
        targets = to_range(batch.images.chunk(2)[1].to(device))
        return vae.decode(vae.encode(targets.to(dtype))).clamp(-1, 1)

    return generate


def plan_generation(options: argparse.Namespace, cases: PairSet, processes: Processes) -> Callable[[], None]:
    """Check what --model or --vae asks for and begin OUT/pictures -> a function that generates what is missing there.
    Raises UserError if a value is invalid, or if the folder was made with other values."""
    source: Path = options.model or options.vae
    config: CFLDConfig = read_config(source / "config.json")
    device = processes.device
    dtype = pick_precision(options.precision or (None if options.model else "fp32"), device)
    files = ["config.json", "vae.safetensors", *(["model.safetensors"] if options.model else [])]
    if options.model and options.turbo and config.distilled is None:
        files.append(student_file(source).name)
    asked: dict[str, Any] = {
        **{name: sha256(source / name) for name in files},
        "size": options.size,
        **{name: value for name, value in cases.facts().items() if name.startswith("sha256")},
        "resize": "bicubic, antialiased, truncated to 8 bits",
        "precision": next(name for name, kind in PRECISIONS.items() if kind == dtype),
    }
    if options.model:
        base = TURBO if options.turbo else PAPER
        if options.turbo and options.sampler:
            raise UserError("--turbo must be given without --sampler: a student has its own sampler")
        steps = base.steps if options.steps is None else options.steps
        how = SamplingConfig.of_options(
            steps=steps,
            sampler=options.sampler or base.sampler,
            pose_scale=options.pose_scale,
            appearance_scale=options.appearance_scale,
        )
        how.check_steps(config, "--steps")
        if config.distilled or not options.turbo:  # else the scales are the student's
            how.check_student(config.distilled)
        facts = asdict(how)
        del facts["guidance_interval"]  # which is not an option here
        asked |= {**facts, "seed": options.seed}
        prepare = partial(with_model, source, how, options.seed, device, dtype)
    else:
        prepare = partial(with_vae, source, device, dtype)
    pairs = FashionPairs(options.data, "test", config.image_size, config.source_size)
    folder = options.out / "pictures"
    if processes.is_main:
        open_folder(folder / "manifest.json", asked, "choose another --out")
    return partial(generate_missing, folder, pairs, len(cases), cases.size, prepare, options.batch, processes)
