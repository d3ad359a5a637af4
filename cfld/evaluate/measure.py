"""Measure images: in parts, which are kept until all are measured and divided among processes.

Letters in shapes: N images of a method, R methods, M scores, D features of an image.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cfld.data.deepfashion import read_list
from cfld.evaluate.metrics import FeatureStatistics, psnr, ssim
from cfld.evaluate.person import error_inside
from cfld.evaluate.protocol import FIDS, SCORES, SSIMS, FolderSet, Method, PairSet, resized, to_images
from cfld.tools.cli import UserError
from cfld.tools.pictures import read_image
from cfld.tools.processes import Processes
from cfld.tools.tensors import read_safetensors, write_tensors

PART = 32  # cases or photos per file


def make_parts(
    folder: Path, count: int, make: Callable[[range], dict[str, Tensor]], processes: Processes, title: str
) -> list[Path]:
    """Do work that can be cut into parts: each becomes a file, made by one process, and is kept if it exists already.
    Returns the files in order when all exist."""
    parts = [range(first, min(first + PART, count)) for first in range(0, count, PART)]
    paths = [folder / f"{part.start:06d}.safetensors" for part in parts]
    mine = processes.share(len(parts))
    total = sum(len(parts[i]) for i in mine)
    with tqdm(total=total, desc=title, unit="image", disable=not processes.is_main) as bar:
        for i in mine:
            if not paths[i].is_file():
                write_tensors(paths[i], make(parts[i]))
            bar.update(len(parts[i]))
    processes.wait_for_work()
    return paths


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that stand for a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@torch.no_grad()
def measure_part(
    part: range,
    cases: PairSet | FolderSet,
    methods: dict[str, Method],
    networks: dict[str, nn.Module],
    device: torch.device,
) -> dict[str, Tensor]:
    """Measure all methods on N cases.

    networks: by metric; a metric without its network is not measured
    -> "scores" (N, R, M) in float64, NaN where there is nothing to measure; and by FID the features (N, R, D)
    """
    results: dict[str, list[Tensor]] = {}
    for index in part:
        case = cases[index]
        arrays = [method(index, case) for method in methods.values()]
        images = to_images(arrays, device)
        truths = to_images([case.truth], device).expand_as(images)
        nothing = torch.full((len(images),), math.nan)
        columns = {
            "LPIPS": networks["LPIPS"](images, truths) if "LPIPS" in networks else nothing,
            "PSNR": psnr(images, truths),
            **{name: ssim(images, truths, protocol) for name, protocol in SSIMS.items()},
            **{name: nothing for name in ("person", "face")},
        }
        for name, mask in (("person", case.person), ("face", case.face)):
            if mask is not None:
                columns[name] = torch.tensor([error_inside(x / 255, case.truth / 255, mask) for x in arrays])
        for name in ("PSNR", *SSIMS, *(["LPIPS"] if "LPIPS" in networks else [])):
            if columns[name].isnan().any():
                raise UserError(f"{name} of {cases.names(index)} must be a number, found none: are the weights whole?")
        results.setdefault("scores", []).append(torch.stack([columns[name].double().cpu() for name in SCORES], dim=-1))
        for name in FIDS:
            if name in networks:
                results.setdefault(name, []).append(networks[name](images).cpu())
    return {name: torch.stack(tensors) for name, tensors in results.items()}


def statistics_of(features: Sequence[Tensor], label: str = "") -> FeatureStatistics:
    """The statistics of features (B, D) in parts."""
    statistics = FeatureStatistics(features[0].shape[1], label)
    for part in features:
        statistics.update(part)
    return statistics


def real_statistics(
    cases: PairSet,
    metric: str,
    network: nn.Module,
    weights: str,
    out: Path,
    processes: Processes,
) -> FeatureStatistics:
    """The statistics of every photo of train.lst, annotated or not, at the size of the cases.

    metric: one of FIDS; network: its Inception; weights: the SHA-256 of the network's file

    They are kept for other runs in ROOT/evaluation, or in out where ROOT cannot be written; the parts in out until they
    are done. Raises UserError.
    """
    root, size = cases.root, cases.size
    names, folder = read_list(root / "train.lst"), root / "train_highres"
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            f"{folder}: {len(missing)} photos of train.lst are missing (first: {missing[0]}): FID needs all; "
            f"run python -m cfld.data prepare {root}"
        )
    listed = digest([(name, (folder / name).stat().st_size) for name in names])
    label = f"{FIDS[metric]}, {weights[:12]}, {size[0]}x{size[1]}, pillow bicubic, {len(names)} photos {listed}"
    name = f"real_{FIDS[metric]}_{size[0]}x{size[1]}.safetensors"
    places = [root / "evaluation" / name, out / name]  # the second where the first cannot be written
    path = next((place for place in places if place.is_file()), places[not os.access(root, os.W_OK)])
    if processes.broadcast(path.is_file()):
        return FeatureStatistics.read(path, label)

    @torch.no_grad()
    def make(part: range) -> dict[str, Tensor]:
        photos = [resized(read_image(folder / names[i]), size) for i in part]
        return {"features": network(to_images(photos, processes.device)).cpu()}

    parts = out / f".{path.stem}_{digest(label)}"
    paths = make_parts(parts, len(names), make, processes, f"real set of {metric}")
    statistics = statistics_of([read_safetensors(p)[0]["features"] for p in paths], label)
    processes.barrier()  # until all have read the parts
    if processes.is_main:
        statistics.save(path)
        shutil.rmtree(parts)
    return statistics
