"""What the full-size model costs: time and memory of a training step, of converting and of sampling.

    python benchmarks/cost.py full-size         seconds and peak memory of the commands: docs/full_size.md
    python benchmarks/cost.py train-step        a training step, ours and the official one: docs/train_step.md

No public weights are needed: random weights of the same shapes stand in for them.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import ROOT, Official, add_command, benchmark_parser, docs_path, paragraph, provenance, table
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from cfld import CFLD, VAE, Swin, UNet, load
from cfld.convert.export import in_layout
from cfld.convert.layouts import layout_of
from cfld.data.batch import Batch, StepOrder, step_batches
from cfld.data.deepfashion import prepare
from cfld.data.encode import write_cache
from cfld.data.pairs import open_pairs
from cfld.folder import save
from cfld.objective import DROP_RATE, StepNoise, mirror, step_noise
from cfld.photos.pixels import to_range
from cfld.pose import pose_maps
from cfld.tools.cli import UserError, command
from cfld.tools.files import read_json, write_json, write_text
from cfld.tools.tensors import write_tensors
from cfld.training.memory import keep_freed_memory

FASHION = ROOT / "tests" / "data" / "fashion"
PHOTO = FASHION / "MEN" / "Tees_Tanks" / "id_00800018" / "01_1_front.jpg"
POSE = f"{FASHION}/fasion-resize-annotation-test.csv#fashionMENTees_Tanksid0080001801_2back.jpg"
PHOTO_SIZE = (750, 1101)  # of DeepFashion's high-resolution photos


def full_size(options: argparse.Namespace) -> None:
    """Seconds and peak memory of converting, sampling and training.

    Each row is a fresh process of the command. Files of random weights in the public layouts are converted to a model
    folder, with which two steps are sampled and one is trained. Then dry runs say what a training step needs, by
    micro-batch and by activation checkpointing.

        python benchmarks/cost.py full-size     10 minutes on two cores, 25 GB of disk under runs/full_size
    """
    run = ROOT / "runs" / "full_size"
    shutil.rmtree(run, ignore_errors=True)
    write_public_files(run)
    shutil.copytree(FASHION, run / "data")
    prepare(run / "data")
    files = [x for name in ("unet", "vae", "swin") for x in (f"--{name}", run / f"{name}.safetensors")]
    sampling = ("--source", PHOTO, "--pose", POSE, "--device", "cpu", "--precision", "bf16", "--side-by-side")
    training = ("--init", run / "model", "--data", run / "data", "--batch", "1", "--steps", "1", "--device", "cpu")
    rows = {
        "convert public files to a model folder (fp32)": measured_command(
            "cfld.convert", "init", *files, "--out", run / "model"
        ),
        "sample 2 steps, 512x512, bf16": measured_command(
            "cfld.sample", "--model", run / "model", "--steps", "2", *sampling, "--out", run / "two.png"
        ),
        "train 1 step of 1 pair, bf16 autocast, write checkpoint and model": measured_command(
            "cfld.train", *training, "--out", run / "run", "--sample-every", "0"
        ),
    }
    write_cache(run / "data", run / "model", run / "cache", torch.device("cpu"), torch.float32)
    kinds = tqdm(("none", "attention", "all"), desc="dry runs")
    needs = {kind: [step_memory(run, pairs, kind) for pairs in (1, 2, 4)] for kind in kinds}
    page = full_size_page(rows, needs)
    write_text(docs_path("full_size.md", options.out), page)
    print(page)


def write_public_files(folder: Path) -> None:
    """Random weights in the layouts of SD 1.5's UNet and VAE and of Microsoft's Swin-B."""
    torch.manual_seed(0)
    parts = {
        "unet": ("UNet", "diffusers", UNet),
        "vae": ("VAE", "diffusers, old spelling", VAE),
        "swin": ("Swin", "Microsoft", Swin),
    }
    for name, (component, layout, module) in parts.items():
        write_tensors(folder / f"{name}.safetensors", in_layout(module(), layout_of(component, layout)))


def measured_command(module: str, *options: str | Path) -> tuple[float, float]:
    """Run a command in a fresh process -> seconds, and peak resident GiB with loading and touched file pages."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", module, *map(str, options)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"{module} must succeed, but failed: its own error is above")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def step_memory(run: Path, pairs: int, checkpointing: str) -> float:
    """What a step needs in GiB with cached latents, as cfld.train --dry-run prints it."""
    options = ["--preset", "sd15", "--init", run / "model", "--data", run / "data", "--cache", run / "cache"]
    options += ["--out", run / "dry", "--batch", pairs, "--activation-checkpointing", checkpointing, "--device", "cpu"]
    argv = [sys.executable, "-m", "cfld.train", "--dry-run", *map(str, options)]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    found = re.search(r"all, per process +([\d.]+) GiB", printed)
    if not found:
        raise UserError(f"cfld.train --dry-run must print the memory of a process, found {printed[-500:]}")
    return float(found[1])


def full_size_page(rows: dict[str, tuple[float, float]], needs: dict[str, list[float]]) -> str:
    """docs/full_size.md."""
    commands = [[name, f"{seconds:.0f}", f"{gib:.2f}"] for name, (seconds, gib) in rows.items()]
    steps = [[kind, *(f"{gib:.2f}" for gib in row)] for kind, row in needs.items()]
    return "\n".join(
        [
            "# The full-size model on a small machine",
            "",
            paragraph(
                "Made by `python benchmarks/cost.py full-size`. Random weights of the full size. Each row is a fresh "
                "process; loading and saving are included."
            ),
            "",
            provenance(),
            "",
            table(["command", "seconds", "peak GiB"], commands),
            "",
            paragraph(
                "Memory of a training step in GiB, from `cfld.train --dry-run`, in bf16 autocast with cached latents: "
                "weights, gradients, Adam's moments and activations. On a GPU, CUDA's own memory comes on top."
            ),
            "",
            table(["--activation-checkpointing", "1 pair", "2 pairs", "4 pairs"], steps),
            "",
        ]
    )


STEPS = 3  # of a process; the first does not count
TRAINING = ("--batch", "1", "--steps", "1000", "--save-every", "0", "--sample-every", "0", "--log-every", "1")
CACHED, PHOTOS = "cached latents", "photos encoded in each step"
OURS: dict[str, tuple[str, ...]] = {
    CACHED: (),
    f"{CACHED}, --activation-checkpointing all": ("--activation-checkpointing", "all"),
    PHOTOS: (),
    f"{CACHED}, --activation-checkpointing attention": ("--activation-checkpointing", "attention"),
    f"{CACHED}, --compile": ("--compile",),
    f"{CACHED}, fp32": ("--precision", "fp32"),
    f"{CACHED}, --stage distill": ("--stage", "distill"),
    f"{CACHED}, 2 pairs": ("--batch", "2"),
    f"{CACHED}, 2 pairs, --accumulate 2": ("--batch", "2", "--accumulate", "2"),
}
OFFICIAL, KEEPING = "the official loop on diffusers", "the official loop, freed memory kept as in ours"
IN_TURNS = (OFFICIAL, CACHED, f"{CACHED}, --activation-checkpointing all")


def train_step(options: argparse.Namespace) -> None:
    """A training step: ours with its options, and the official one.

    The official loop encodes both photos in each step and has gradient checkpointing in the UNet. Here its UNet and VAE
    are diffusers', and Swin, PRD, HGA and pose adapter ours on both sides, with the same random weights, so both must
    have the same loss. Each setting is measured in fresh processes; a run that was stopped goes on.

        python benchmarks/cost.py train-step     40 minutes on two cores, 16 GiB of memory, 5 GB of disk
    """
    run = ROOT / "runs" / "train_step"
    if options.official:
        if options.official == KEEPING:
            keep_freed_memory()
        for loss in official_losses(run):
            print(json.dumps({"loss": loss}), flush=True)
        return

    results = run / "measured.json"
    found: dict[str, list[dict[str, Any]]] = read_json(results) if results.is_file() else {}
    if not found:
        write_inputs(run)
    turns = [*IN_TURNS * options.rounds, KEEPING, *(name for name in OURS if name not in IN_TURNS)]
    for number, name in enumerate(turns):
        if turns[: number + 1].count(name) > len(found.get(name, [])):
            found.setdefault(name, []).append(measured_steps(run, name))
            write_json(results, found)
            print(f"{name}: {json.dumps(found[name][-1])}", flush=True)
    page = train_step_page(found, host_work(run))
    write_text(docs_path("train_step.md", options.out), page)
    print(page)


def write_inputs(run: Path) -> None:
    """Photos as large as DeepFashion's, a model folder of random weights, and its cache."""
    data = run / "data"
    shutil.copytree(FASHION, data, dirs_exist_ok=True)
    for path in data.rglob("*.jpg"):
        with Image.open(path) as photo:
            photo.resize(PHOTO_SIZE, Image.Resampling.BICUBIC).save(path, quality=95)
    prepare(data)
    torch.manual_seed(0)
    if not (run / "model").is_dir():
        save(run / "model", CFLD(), VAE())
    write_cache(data, run / "model", run / "cache", torch.device("cpu"), torch.bfloat16)


def measured_steps(run: Path, name: str) -> dict[str, Any]:
    """Losses, seconds of the steps after the first, and their peak GiB, in a fresh process."""
    log = run / "run" / "log.jsonl"
    shutil.rmtree(log.parent, ignore_errors=True)
    if name in OURS:
        cache = () if name == PHOTOS else ("--cache", str(run / "cache"))
        inputs = ("--init", run / "model", "--data", run / "data", "--out", log.parent, "--device", "cpu")
        argv = ["-m", "cfld.train", *map(str, inputs), *TRAINING, *cache, *OURS[name]]
        process = subprocess.Popen([sys.executable, *argv], stderr=subprocess.PIPE)
    else:
        log.parent.mkdir()
        argv = [__file__, "train-step", "--official", name]
        with open(log, "w") as output:
            process = subprocess.Popen([sys.executable, *argv], stdout=output, stderr=subprocess.PIPE)
    losses, times = [], []
    try:
        for line in lines_of(log, process):
            losses.append(json.loads(line)["loss"])
            times.append(time.perf_counter())
            if len(losses) == 1:
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # forget the peak of loading
            if len(losses) == STEPS:
                break
        status = Path(f"/proc/{process.pid}/status").read_text()
    finally:
        process.kill()
        _, errors = process.communicate()
    if len(losses) < STEPS:
        raise UserError(f"{name} must take {STEPS} steps, stopped after {len(losses)}: {errors.decode()[-2000:]}")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak
    seconds = [after - before for before, after in pairwise(times)]
    return {"losses": losses, "seconds": seconds, "gib": int(peak[1]) / 2**20}


def lines_of(log: Path, process: subprocess.Popen[bytes]) -> Iterator[str]:
    """The lines of a file as soon as they are written, until the process ends."""
    seen = 0
    while process.poll() is None:
        lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
        for line in lines[seen:]:
            if line.endswith("\n"):
                seen += 1
                yield line
        time.sleep(0.01)


def official_training_loss(model: CFLD, theirs: Official, batch: Batch, noise: StepNoise) -> Tensor:
    """The loss of a training step of the official loop, which encodes both photos of each pair."""
    scheduler = model.scheduler
    assert batch.images is not None  # not from a cache
    with torch.no_grad():
        posterior = theirs.vae.encode(to_range(batch.images)).latent_dist
        latents = (posterior.mean.float() + posterior.std.float() * noise.vae_noise) * theirs.scale
    timesteps = scheduler.cubic_timesteps(noise.timesteps)
    noisy = scheduler.add_noise(latents, noise.noise, timesteps)
    source = mirror(to_range(batch.source_images), noise.flips)
    conditions = model.condition(source, pose_maps(batch.keypoints, model.config.adapter.pose_size), noise.depth)
    conditions = model.drop(conditions, noise.drops < DROP_RATE, "paper")
    return nn.functional.mse_loss(theirs(noisy, timesteps, conditions).float(), noise.noise)


def official_losses(run: Path) -> Iterator[float]:
    """Train as the official loop does, a pair per step; the loss of each step when it is done."""
    model, vae = load(run / "model")
    model.train().freeze()
    theirs = Official(model, vae)
    names = {name for name, parameter in model.unet.named_parameters() if parameter.requires_grad}
    for attention in theirs.biased:
        attention.to_k.requires_grad_(True)
        attention.to_v.requires_grad_(True)
    theirs.unet.enable_gradient_checkpointing()
    theirs.unet.train()
    trained = [p for name, p in model.named_parameters() if p.requires_grad and name.removeprefix("unet.") not in names]
    trained += [p for p in theirs.unet.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    config = model.config
    del model.unet, vae
    optimizer = torch.optim.Adam(trained, lr=5e-7)
    pairs = open_pairs(str(run / "data"), "train", config.image_size, config.source_size)
    for step, batch in enumerate(step_batches(pairs, StepOrder(len(pairs), 1, 0, 0, 1000, range(1)), 0)):
        noise = step_noise(0, step, range(1), config)
        with torch.autocast("cpu", torch.bfloat16):
            loss = official_training_loss(model, theirs, batch, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item()


def host_work(run: Path) -> dict[str, float]:
    """Seconds in which the host prepares a batch of 28 pairs, medians of five."""
    pairs = open_pairs(str(run / "data"), "train", 512, 256)
    batches = step_batches(pairs, StepOrder(len(pairs), 28, 0, 0, 5, range(28)), 0)
    reading, drawing = [], []
    for _ in range(5):
        started = time.perf_counter()
        batch = next(batches)
        reading.append(time.perf_counter() - started)
        started = time.perf_counter()
        pose_maps(batch.keypoints, 256)
        drawing.append(time.perf_counter() - started)
    return {"reading the photos": statistics.median(reading), "pose maps": statistics.median(drawing)}


def train_step_page(found: dict[str, list[dict[str, Any]]], host: dict[str, float]) -> str:
    """docs/train_step.md."""
    seconds = {name: [s for run in runs for s in run["seconds"]] for name, runs in found.items()}
    median = {name: statistics.median(times) for name, times in seconds.items()}
    gib = {name: max(run["gib"] for run in runs) for name, runs in found.items()}
    steps = [
        [
            name,
            f"{median[name]:.2f} ({min(times):.2f} .. {max(times):.2f})",
            f"{median[OFFICIAL] / median[name]:.2f}",
            f"{gib[name]:.2f}",
            f"{gib[name] / gib[OFFICIAL]:.2f}",
            f"{found[name][0]['losses'][0]:.5f}",
        ]
        for name, times in seconds.items()
    ]
    whole = 28 * median[CACHED]
    work = [[name, f"{took:.3f}", f"{took / whole:.2%}"] for name, took in host.items()]
    titles = ["", "seconds (minimum .. maximum)", "speed-up", "peak GiB", "memory relative to official", "first loss"]
    lines = [
        "# One training step at full size",
        "",
        paragraph(
            "Made by `python benchmarks/cost.py train-step`. One pair (two samples) of 512x512, bf16 autocast; both "
            f"sides have the same random weights. The first {len(IN_TURNS)} rows took turns: medians of "
            f"{len(seconds[OFFICIAL])} steps in {len(found[OFFICIAL])} fresh processes each; the other rows had one. "
            "The first step of a process does not count. Memory is the peak of resident pages after it. All rows are "
            "compared with the official step of one pair, also those of two pairs."
        ),
        "",
        provenance(),
        "",
        table(titles, steps),
        "",
        "What the host does for 28 pairs, photos of 750x1101 as DeepFashion's, in one process:",
        "",
        table(["work", "seconds", "share of their step"], work),
        "",
    ]
    return "\n".join(lines)


@command
def main(argv: list[str] | None = None) -> None:
    parser, commands = benchmark_parser(__file__, __doc__)
    add_command(commands, full_size)
    options = add_command(commands, train_step)
    options.add_argument("--rounds", type=int, default=3, help="turns of the first three rows")
    options.add_argument("--official", choices=(OFFICIAL, KEEPING), help=argparse.SUPPRESS)
    parsed = parser.parse_args(argv)
    parsed.run(parsed)


if __name__ == "__main__":
    raise SystemExit(main())
