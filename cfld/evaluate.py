"""The evaluation (Sec. 4.2, Table 2): paints the test pairs or takes any method's pictures, and measures them.

    python -m cfld.evaluate --model DIR --data ROOT --size 256x176 --out OUT     paint all test pairs, then measure
    python -m cfld.evaluate --pred FOLDER --data ROOT --size 256x176 --out OUT   pictures that any method has made
    python -m cfld.evaluate --ground-truth --data ROOT --out OUT                 Table 2's last row of a size
    python -m cfld.evaluate --vae DIR --data ROOT --out OUT                      the row above it
    python -m cfld.evaluate --pred A --truth B --out OUT                         two folders, paired by name
    python -m cfld.evaluate figure ...                                           Fig. 3 and 5: pictures side by side
    python -m cfld.evaluate study ...                                            Fig. 4: the user study
    torchrun --nproc-per-node 8 -m cfld.evaluate ...                             the same, divided among 8 processes

OUT/numbers.csv has every picture's numbers, OUT/manifest.json what they were made of and the table, OUT/pictures/ what
was painted. An interrupted command goes on where it was if it is given again. LPIPS and FID need public weights: the
command says which file is missing and where it is to be had. docs/evaluation.md says what each number means.

Letters in shapes: N pairs of a part, R methods, M scores, H, W a picture, D features.
"""

import argparse
import contextlib
import csv
import hashlib
import importlib
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import cfld
from cfld.config import CFLDConfig, read_config
from cfld.data import Batch, FashionPairs, collate, read_list, seeded, to_range
from cfld.files import (
    PRECISIONS,
    UserError,
    alone_in,
    atomic,
    command,
    command_parser,
    open_folder,
    pick_device,
    read_image,
    read_json,
    read_safetensors,
    refuse_overwrite,
    remove_leftovers,
    save_image,
    sha256,
    write_json,
    write_tensors,
)
from cfld.metrics import INCEPTIONS, FeatureStatistics, fid, psnr, ssim
from cfld.model import load, load_vae_alone
from cfld.person import error_inside
from cfld.pose import pose_maps
from cfld.protocol import (
    FIDS,
    MEANINGS,
    NAME_HINT,
    SCORES,
    SIZES,
    SSIMS,
    TEST_PAIRS,
    WEIGHTS,
    FolderSet,
    Method,
    PairSet,
    Row,
    baselines,
    check_pictures,
    files_method,
    find_pictures,
    load_network,
    missing_weights,
    picture_names,
    resized,
    table,
    the_truth,
    to_images,
)
from cfld.sample import check_steps, sample
from cfld.scheduler import SAMPLERS, Scheduler

PART = 32  # pairs or photos that are kept as one file until all are measured
Painter = Callable[[list[int], Batch], Tensor]  # numbers of pairs, the pairs -> images (B, 3, H, H) in [-1, 1]


# Processes and parts. ------------------------------------------------------------------------------------------------


class Processes:
    """This process among those that torchrun has started, or alone."""

    def __init__(self, rank: int = 0, world: int = 1):
        self.rank, self.world = rank, world

    @classmethod
    def join(cls) -> "Processes":
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return cls()
        dist.init_process_group("gloo", timeout=timedelta(days=7))  # one may wait for the slowest for long
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, count: int) -> range:
        """The numbers below a count that are this process's."""
        return range(self.rank, count, self.world)

    def wait(self) -> None:
        """Wait for the others."""
        if dist.is_initialized():
            dist.barrier()

    def decide(self, answer: bool) -> bool:
        """The first one's answer, for all."""
        if not dist.is_initialized():
            return answer
        decided = torch.tensor(answer)
        dist.broadcast(decided, 0)
        return bool(decided)

    def device(self, name: str | None) -> torch.device:
        device = pick_device(name)
        several = device == torch.device("cuda") and self.world > 1
        return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if several else device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def say(self, text: str) -> None:
        if self.first:
            print(text, flush=True)


def make_parts(
    folder: Path, count: int, make: Callable[[range], dict[str, Tensor]], processes: Processes, title: str
) -> list[Path]:
    """Do what can be cut into parts: each is a file, made by one process, and kept if it is there already. Returns the
    files in order when all are there."""
    parts = [range(first, min(first + PART, count)) for first in range(0, count, PART)]
    paths = [folder / f"{part.start:06d}.safetensors" for part in parts]
    mine = processes.share(len(parts))
    total = sum(len(parts[i]) for i in mine)
    with tqdm(total=total, desc=title, unit="picture", disable=not processes.first) as bar:
        for i in mine:
            if not paths[i].is_file():
                write_tensors(paths[i], make(parts[i]))
            bar.update(len(parts[i]))
    processes.wait()
    return paths


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that stand for a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


# Painting. -----------------------------------------------------------------------------------------------------------


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
    if processes.first:
        remove_leftovers(folder)
    processes.wait()
    paths = [folder / name for name in picture_names(pairs.pairs[:count])]
    mine = processes.share(count)
    missing = [i for i in mine if not paths[i].is_file()]
    painter = make_painter() if missing else None
    done = len(mine) - len(missing)
    with tqdm(total=len(mine), initial=done, desc="painting", unit="picture", disable=not processes.first) as bar:
        for first in range(0, len(missing), batch):
            rows = missing[first : first + batch]
            assert painter is not None
            images = painter(rows, collate([pairs[i] for i in rows]))
            for i, picture in zip(rows, truncated(images, size), strict=True):
                save_image(paths[i], picture)
            bar.update(len(rows))
    processes.wait()


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
    vae = load_vae_alone(folder).to(device, dtype).eval()

    @torch.no_grad()
    def painter(rows: list[int], batch: Batch) -> Tensor:
        targets = to_range(batch.images.chunk(2)[1].to(device))
        return vae.decode(vae.encode(targets.to(dtype))).clamp(-1, 1)

    return painter


def plan_painting(options: argparse.Namespace, cases: PairSet, processes: Processes) -> Callable[[], None]:
    """Check what --model or --vae asks for -> what paints the pictures that are not there yet."""
    source: Path = options.model or options.vae
    config: CFLDConfig = read_config(source / "config.json")
    check_steps("--steps", options.steps, config)
    device = processes.device(options.device)
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
    if processes.first:
        open_folder(folder / "manifest.json", asked, "choose another --out")
    return partial(paint, folder, pairs, len(cases), cases.size, make_painter, options.batch, processes)


# Measuring. ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure_part(
    part: range,
    cases: PairSet | FolderSet,
    methods: dict[str, Method],
    networks: dict[str, nn.Module],
    device: torch.device,
) -> dict[str, Tensor]:
    """Measure the methods' pictures of some cases -> "scores" (N, R, M) in float64, NaN where there is nothing to
    measure, and by FID the features (N, R, D)."""
    results: dict[str, list[Tensor]] = {}
    for index in part:
        case = cases[index]
        pictures = [method(index, case) for method in methods.values()]
        images = to_images(pictures, device)
        truths = to_images([case.truth], device).expand_as(images)
        nothing = torch.full((len(pictures),), math.nan)
        columns = {
            "LPIPS": networks["LPIPS"](images, truths) if "LPIPS" in networks else nothing,
            "PSNR": psnr(images, truths),
            **{name: ssim(images, truths, protocol) for name, protocol in SSIMS.items()},
            **{name: nothing for name in ("person", "face")},
        }
        for name, mask in (("person", case.person), ("face", case.face)):
            if mask is not None:
                columns[name] = torch.tensor([error_inside(x / 255, case.truth / 255, mask) for x in pictures])
        for name in ("PSNR", *SSIMS, *(["LPIPS"] if "LPIPS" in networks else [])):
            if columns[name].isnan().any():
                raise UserError(f"{name} of {cases.names(index)} must be a number, found none: are the weights whole?")
        scores = torch.stack([columns[name].double().cpu() for name in SCORES], dim=-1)
        results.setdefault("scores", []).append(scores)
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
    measure: str,
    network: nn.Module,
    weights: str,
    device: torch.device,
    out: Path,
    processes: Processes,
) -> FeatureStatistics:
    """The statistics of every photo of train.lst, annotated or not, at a size: kept for other runs in ROOT/evaluation,
    or in out where ROOT cannot be written, and the parts in out until they are done. weights: the sum of the network's
    file."""
    root, size = cases.root, cases.size
    names, folder = read_list(root / "train.lst"), root / "train_highres"
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            f"{folder}: {len(missing)} photos of train.lst are missing (first: {missing[0]}): FID needs all; "
            f"run python -m cfld.data prepare {root}"
        )
    listed = digest([(name, (folder / name).stat().st_size) for name in names])
    label = f"{FIDS[measure]}, {weights[:12]}, {size[0]}x{size[1]}, pillow bicubic, {len(names)} photos {listed}"
    name = f"real_{FIDS[measure]}_{size[0]}x{size[1]}.safetensors"
    places = [root / "evaluation" / name, out / name]  # the second where the first cannot be written
    path = next((place for place in places if place.is_file()), places[not os.access(root, os.W_OK)])
    if processes.decide(path.is_file()):
        return FeatureStatistics.read(path, label)

    @torch.no_grad()
    def make(part: range) -> dict[str, Tensor]:
        photos = [resized(read_image(folder / names[i]), size) for i in part]
        return {"features": network(to_images(photos, device)).cpu()}

    parts = out / f".{path.stem}_{digest(label)}"
    paths = make_parts(parts, len(names), make, processes, f"real set of {measure}")
    statistics = statistics_of([read_safetensors(p)[0]["features"] for p in paths], label)
    processes.wait()  # until all have read the parts
    if processes.first:
        statistics.save(path)
        shutil.rmtree(parts)
    return statistics


def frechet(first: FeatureStatistics, second: FeatureStatistics) -> float | None:
    """FID of two sets, None of a set that has no covariance."""
    if min(first.count, second.count) < 2:
        return None
    return fid(first.mean, first.covariance, second.mean, second.covariance)


def mean_row(scores: Tensor) -> Row:
    """scores (N, M) of a method -> the mean of each column over the pictures that have the number."""
    columns = {name: column[~column.isnan()] for name, column in zip(SCORES, scores.T, strict=True)}
    return {name: column.mean().item() if len(column) else None for name, column in columns.items()}


# Writing. ------------------------------------------------------------------------------------------------------------


def write_csv(path: Path, cases: PairSet | FolderSet, methods: Sequence[str], scores: Tensor) -> None:
    """Every picture's numbers, scores (N, R, M): a line a picture, a method's lines together. What was not measured is
    empty."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", *cases.columns, *SCORES])
        for r, method in enumerate(methods):
            for i, values in enumerate(scores[:, r].tolist()):
                numbers = ["" if math.isnan(value) else repr(value) for value in values]
                writer.writerow([method, *cases.names(i), *numbers])


def json_row(row: Row) -> dict[str, float | str | None]:
    """A row that JSON can hold, which has no infinity."""
    return {name: "inf" if value is not None and math.isinf(value) else value for name, value in row.items()}


# The command. --------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    options = command_parser("cfld.evaluate", __doc__)
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, metavar="DIR", help="paint with this model folder")
    what.add_argument("--pred", type=Path, metavar="FOLDER", help="measure the pictures in a folder")
    what.add_argument("--vae", type=Path, metavar="DIR", help="reconstruct the truths with this folder's VAE")
    what.add_argument("--ground-truth", action="store_true", help="measure the truths themselves")
    options.add_argument("--data", type=Path, metavar="ROOT", help="a folder that cfld.data prepared: its test pairs")
    options.add_argument("--truth", type=Path, metavar="FOLDER", help="instead of --data, with --pred: truths by name")
    options.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder to write")
    options.add_argument("--size", choices=SIZES, default="256x176", help="height and width of the test, with --data")
    options.add_argument("--limit", type=int, metavar="N", help="the first N pairs alone: the row says it is partial")
    options.add_argument("--name", help="what the row is called (default: the folder's name)")
    options.add_argument(
        "--weights", type=Path, default=Path("weights/metrics"), metavar="DIR", help="folder of the public weight files"
    )
    options.add_argument("--sampler", choices=SAMPLERS, default="ddpm", help="the paper's is ddpm")
    options.add_argument("--steps", type=int, default=50, help="of the sampler")
    options.add_argument("--pose-scale", type=float, default=2.0, help="w_pose of Eq. 7")
    options.add_argument("--appearance-scale", type=float, default=2.0, help="w_app of Eq. 7")
    options.add_argument("--seed", type=int, default=0, help="of the noise")
    options.add_argument(
        "--batch", type=int, default=8, help="pictures painted at a time; changes them by rounding alone"
    )
    options.add_argument(
        "--precision", choices=PRECISIONS, help="of weights (default: fp32, and of --model on CUDA bf16)"
    )
    options.add_argument("--device", help="cuda, cpu, ... (default: the best there is)")
    options.add_argument("--force", action="store_true", help="replace numbers.csv and manifest.json, keep pictures")
    return options


def open_set(options: argparse.Namespace) -> PairSet | FolderSet:
    """The cases that the options ask for. Raises UserError for options that exclude each other."""
    if (options.data is None) == (options.truth is None):
        raise UserError("give either --data ROOT, whose test pairs are measured, or --pred A --truth B")
    if options.truth:
        if not options.pred or options.limit is not None:
            raise UserError("--truth goes with --pred, and not with --limit")
        return FolderSet(options.pred, options.truth)
    if not (math.isfinite(options.pose_scale) and math.isfinite(options.appearance_scale)):
        raise UserError("--pose-scale and --appearance-scale must be finite numbers")
    if options.batch < 1 or options.seed < 0:
        raise UserError(f"--batch must be 1 or more, --seed 0 or more, found {options.batch} and {options.seed}")
    return PairSet(options.data, SIZES[options.size], options.limit)


def row_name(options: argparse.Namespace, others: Iterable[str]) -> str:
    """What the measured row is called. Raises UserError if another row is."""
    folder: Path | None = options.model or options.pred
    name = options.name or ("ground truth" if options.ground_truth else folder.resolve().name if folder else "VAE")
    if name in others:
        raise UserError(f"--name must not be that of another row, found {name}: choose another")
    return name


def pictures_to_measure(
    options: argparse.Namespace, cases: PairSet | FolderSet, processes: Processes
) -> tuple[Method, dict[str, Any]]:
    """The method that the options ask for, and what a manifest says of its pictures. Raises UserError if one of them
    is not there or cannot be measured."""
    if options.ground_truth:
        return the_truth, {"pictures": "the truths"}
    if isinstance(cases, FolderSet):
        paths, folder, hint = cases.pictures, options.pred, ""
    else:
        folder = options.pred or options.out / "pictures"
        paths, hint = find_pictures(folder, cases.pairs), NAME_HINT
    facts = {"folder": str(folder.resolve()), **check_pictures(paths, cases.size, hint, quiet=not processes.first)}
    if (folder / "manifest.json").is_file():
        facts["made with"] = read_json(folder / "manifest.json")
    return files_method(paths, cases.size), facts


def write_results(
    out: Path,
    cases: PairSet | FolderSet,
    methods: Sequence[str],
    found: Sequence[dict[str, Tensor]],
    real: dict[str, FeatureStatistics],
    facts: dict[str, Any],
) -> None:
    """Write numbers.csv and manifest.json and print the table. found: the parts in order, as measure_part gives them;
    of two folders FID is measured to the truths, the last method."""
    scores = torch.cat([part["scores"] for part in found])
    rows = {name: mean_row(scores[:, r]) for r, name in enumerate(methods)}
    for measure in (measure for measure in FIDS if measure in found[0]):
        sets = [statistics_of([part[measure][:, r] for part in found]) for r in range(len(methods))]
        for name, statistics in zip(methods, sets, strict=True):
            rows[name][measure] = frechet(statistics, real.get(measure, sets[-1]))
    whole = len(cases) == cases.whole
    manifest = {
        **facts,
        "partial": not whole,
        "rows": {name: json_row(row) for name, row in rows.items()},
        "pictures with the number": {c: int((~scores[:, 0, i].isnan()).sum()) for i, c in enumerate(SCORES)},
        "meanings": MEANINGS,
    }
    write_csv(out / "numbers.csv", cases, methods, scores)
    write_json(out / "manifest.json", manifest)
    count = f"{'' if whole else 'partial: '}{len(cases)} of {cases.whole} pairs"
    comparable = isinstance(cases, PairSet) and cases.whole == TEST_PAIRS
    shown = {f"{name} ({count})": row for name, row in rows.items()}
    print(f"\n{table(shown, cases.size, comparable, to_truths=isinstance(cases, FolderSet))}\n")
    if not comparable:
        print(f"Table 2's rows are of DeepFashion's {TEST_PAIRS:,} test pairs: not comparable, and left out")
    print(f"wrote {out}/numbers.csv and manifest.json")


@command
def evaluate(argv: list[str]) -> None:
    options = parser().parse_args(argv)
    processes = Processes.join()
    with contextlib.ExitStack() as held:
        evaluate_here(options, processes, held)
    if dist.is_initialized():
        processes.wait()
        dist.destroy_process_group()


def evaluate_here(options: argparse.Namespace, processes: Processes, held: contextlib.ExitStack) -> None:
    """The command. held: keeps other commands out of the folder, once it is clear that there will be one."""
    device = processes.device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # the numbers of a GPU are to be those of a CPU

    # What can fail comes before what takes long: options, weights, photos.
    cases = open_set(options)
    others = baselines(cases) if isinstance(cases, PairSet) else {"truth": the_truth}
    name = row_name(options, others)
    if not options.force:
        for file in ("numbers.csv", "manifest.json"):
            refuse_overwrite(options.out / file, force=False)
    missing = [line for measure in WEIGHTS for line in missing_weights(options.weights, measure)]
    for line in missing:
        processes.say(line)
    networks = {
        measure: load_network(options.weights, measure).to(device)
        for measure in WEIGHTS
        if not missing_weights(options.weights, measure)
    }
    sums = {file: sha256(options.weights / file) for measure in networks for file in WEIGHTS[measure]}
    processes.wait()  # until all have looked
    if processes.first:
        held.enter_context(alone_in(options.out))
    if isinstance(cases, PairSet) and (options.model or options.vae):
        paint_all = plan_painting(options, cases, processes)
    else:
        found, paint_all = pictures_to_measure(options, cases, processes), None
    real: dict[str, FeatureStatistics] = {}
    if isinstance(cases, PairSet):
        for measure in (measure for measure in FIDS if measure in networks):
            weights = sums[INCEPTIONS[FIDS[measure]]]
            real[measure] = real_statistics(cases, measure, networks[measure], weights, device, options.out, processes)

    if paint_all is not None:
        paint_all()
        found = pictures_to_measure(options, cases, processes)
    method, facts = found
    methods = {name: method, **others}
    asked = {
        "methods": [*methods],
        "set": cases.facts(),
        "size": cases.size,
        "pictures": facts,
        "weights": sums,
        "weights missing": missing,
        "real sets": {measure: statistics.label for measure, statistics in real.items()},
        "versions": {"cfld": cfld.__version__, "torch": torch.__version__, "pillow": PIL.__version__,
                     "numpy": np.__version__, "python": platform.python_version(), "device": device.type},
    }  # fmt: skip

    # Measure, each process its share, and write.
    def make(part: range) -> dict[str, Tensor]:
        return measure_part(part, cases, methods, networks, device)

    parts = make_parts(options.out / f".parts_{digest(asked)}", len(cases), make, processes, "measuring")
    if processes.first:
        write_results(options.out, cases, list(methods), [read_safetensors(p)[0] for p in parts], real, asked)
        for folder in (*options.out.glob(".parts_*"), *options.out.glob(".real_*")):
            shutil.rmtree(folder)


COMMANDS = {"figure": "cfld.figure", "study": "cfld.study"}


def main(argv: list[str] | None = None) -> int:
    """The command itself, or one of those that go by another first word."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in COMMANDS:
        return importlib.import_module(COMMANDS[words[0]]).main(words[1:])
    return evaluate(words)


if __name__ == "__main__":
    sys.exit(main())
