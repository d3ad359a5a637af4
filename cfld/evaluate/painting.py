"""Paint the test pairs."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cfld.config import CFLDConfig, read_config
from cfld.data.batch import Batch, collate, seeded
from cfld.data.pairs import FashionPairs
from cfld.evaluate.protocol import PairSet, picture_names
from cfld.folder import load, load_vae
from cfld.photos.pixels import to_range
from cfld.pose import pose_maps
from cfld.sampling import check_steps, sample
from cfld.scheduler import Scheduler
from cfld.tools.cli import PRECISIONS
from cfld.tools.files import open_folder, remove_leftovers, sha256
from cfld.tools.pictures import save_image
from cfld.tools.processes import Processes

Painter = Callable[[list[int], Batch], Tensor]  # numbers of pairs, the pairs -> images (B, 3, H, H) in [-1, 1]


def truncated(images: Tensor, size: tuple[int, int]) -> list[Image.Image]:
    """images (B, 3, H, H) in [-1, 1] -> B pictures of size (height, width), by antialiased bicubic interpolation, and
    like the public code's by truncation to 8 bits."""
    images = F.interpolate(images.float() / 2 + 0.5, size=size, mode="bicubic", antialias=True)
    pixels = (images.clamp(0, 1) * 255).byte().cpu().numpy()
    return [Image.fromarray(x) for x in rearrange(pixels, "b c h w -> b h w c")]


def paint(
    folder: Path,
    pairs: FashionPairs,
    count: int,
    size: tuple[int, int],
    make_painter: Callable[[], Painter],
    batch: int,
    processes: Processes,
) -> None:
    """Paint the first count pairs into a folder, without those that are there. Each process takes its share."""
    if processes.is_main:
        remove_leftovers(folder)
    processes.barrier()
    paths = [folder / name for name in picture_names(pairs.pairs[:count])]
    mine = processes.share(count)
    missing = [i for i in mine if not paths[i].is_file()]
    painter = make_painter() if missing else None
    done = len(mine) - len(missing)
    with tqdm(total=len(mine), initial=done, desc="painting", unit="picture", disable=not processes.is_main) as bar:
        for first in range(0, len(missing), batch):
            rows = missing[first : first + batch]
            assert painter is not None
            images = painter(rows, collate([pairs[i] for i in rows]))
            for i, picture in zip(rows, truncated(images, size), strict=True):
                save_image(paths[i], picture)
            bar.update(len(rows))
    processes.wait_for_work()


def model_painter(folder: Path, options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Painter:
    """What a model paints; the noise of pair i depends on the seed and i alone."""
    model, vae = load(folder, device, dtype)
    scheduler = Scheduler(model.config.scheduler)
    for module in (model, vae):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def painter(rows: list[int], batch: Batch) -> Tensor:
        target_keypoints = batch.keypoints.chunk(2)[1]
        return sample(
            model,
            vae,
            scheduler,
            to_range(batch.source_images.to(device)),
            pose_maps(target_keypoints.to(device), model.config.adapter.pose_size),
            steps=options.steps,
            sampler=options.sampler,
            pose_scale=options.pose_scale,
            appearance_scale=options.appearance_scale,
            generator=[seeded(options.seed, i) for i in rows],
        )

    return painter


def vae_painter(folder: Path, device: torch.device, dtype: torch.dtype) -> Painter:
    """What the VAE makes of the truth, through the mean of its posterior."""
    vae = load_vae(folder).to(device, dtype).eval()

    @torch.no_grad()
    def painter(rows: list[int], batch: Batch) -> Tensor:
        assert batch.images is not None
        targets = to_range(batch.images.chunk(2)[1].to(device))
        return vae.decode(vae.encode(targets.to(dtype))).clamp(-1, 1)

    return painter


def plan_painting(options: argparse.Namespace, cases: PairSet, processes: Processes) -> Callable[[], None]:
    """Check what --model or --vae asks for -> what paints the pictures that are not there yet."""
    source: Path = options.model or options.vae
    config: CFLDConfig = read_config(source / "config.json")
    check_steps("--steps", options.steps, config)
    device = processes.device
    precision = options.precision or ("bf16" if device.type == "cuda" and options.model else "fp32")
    files = ("config.json", "vae.safetensors", *(("model.safetensors",) if options.model else ()))
    asked: dict[str, Any] = {
        **{name: sha256(source / name) for name in files},
        "size": options.size,
        **{name: value for name, value in cases.facts().items() if name.startswith("sha256")},
        "resize": "bicubic, antialiased, truncated to 8 bits",
        "precision": precision,
    }
    if options.model:
        names = ("sampler", "steps", "pose_scale", "appearance_scale", "seed")
        asked |= {name: getattr(options, name) for name in names}
        make_painter = partial(model_painter, source, options, device, PRECISIONS[precision])
    else:
        make_painter = partial(vae_painter, source, device, PRECISIONS[precision])
    pairs = FashionPairs(options.data, "test", config.image_size, config.source_size)
    folder = options.out / "pictures"
    if processes.is_main:
        open_folder(folder / "manifest.json", asked, "choose another --out")
    return partial(paint, folder, pairs, len(cases), cases.size, make_painter, options.batch, processes)
