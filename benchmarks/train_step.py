"""One full-size training step: ours with its switches, and the official loop's assembled from diffusers' blocks.

    python benchmarks/train_step.py     about 40 minutes, 16 GiB of memory and 5 GB of disk under runs/train_step

It goes on where it was stopped. The official loop encodes both photos in each step and computes every block of the UNet
a second time in the backward. Its UNet and VAE are diffusers' here; source encoder, PRD, HGA and pose adapter are ours
on both sides, from the same random weights, so that both must have the same loss. Each setting is measured in fresh
processes, in turns. Writes docs/train_step.md.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from official import Official
from PIL import Image
from report import machine_line, table
from torch import nn

from cfld import CFLD, VAE
from cfld.data.batch import StepOrder, step_batches
from cfld.data.deepfashion import prepare
from cfld.data.encode import write_cache
from cfld.data.pairs import open_pairs
from cfld.folder import save
from cfld.objective import draw_step
from cfld.photos.pixels import to_range
from cfld.pose import pose_maps
from cfld.tools.files import write_json, write_text
from cfld.train import Run, learning_rate
from cfld.training.memory import keep_freed_memory, memory
from cfld.training.options import TrainConfig

ROOT = Path(__file__).parents[1]
RUN = ROOT / "runs" / "train_step"
PHOTO_SIZE = (750, 1101)  # of DeepFashion's high-resolution photos
STEPS = 3  # of a process; the first is not counted

OURS: dict[str, dict[str, object]] = {
    "photos encoded each step": {"cache": None},
    "cached latents": {},
    "cached latents, --channels-last": {"channels_last": True},
    "cached latents, --compile": {"compile": True},
    "cached latents, --checkpointing attention": {"checkpointing": "attention"},
    "cached latents, --checkpointing all": {"checkpointing": "all"},
    "cached latents, --checkpointing all, frozen weights in fp32": {"checkpointing": "all", "frozen": "fp32"},
    "cached latents, malloc as it is": {"malloc": "as it is"},
    "cached latents, Adam not fused": {"fused": False},
    "cached latents, fp32": {"precision": "fp32"},
    "cached latents, 2 pairs at once": {"batch": 2},
    "cached latents, 2 pairs, --accumulate 2": {"batch": 2, "accumulate": 2},
}
OFFICIAL, KEEPING, HOST = "the official loop on diffusers", "the official loop, keeping freed memory as ours", "host"
SIDES = (OFFICIAL, "cached latents", "cached latents, --checkpointing all")  # measured in turns; switches once


def set_up() -> None:
    """Photos as large as DeepFashion's, a model folder of random weights, and its cache."""
    data = RUN / "data"
    shutil.copytree(ROOT / "tests" / "data" / "fashion", data, dirs_exist_ok=True)
    for path in data.rglob("*.jpg"):
        with Image.open(path) as photo:
            photo.resize(PHOTO_SIZE, Image.Resampling.BICUBIC).save(path, quality=95)
    prepare(data)
    torch.manual_seed(0)
    if not (RUN / "model").is_dir():
        save(RUN / "model", CFLD(), VAE())
    write_cache(data, RUN / "model", RUN / "cache", torch.device("cpu"), torch.bfloat16)


def options(batch: int = 1, **changes: object) -> TrainConfig:
    """The options of a training that writes nothing."""
    given = {"init": RUN / "model", "data": RUN / "data", "cache": RUN / "cache", "out": RUN / "run", "batch": batch}
    given |= {"steps": 1000, "sample_every": 0, "log_every": 0, "device": "cpu", "workers": 0} | changes
    return TrainConfig(**{name: str(x) if isinstance(x, Path) else x for name, x in given.items()})  # type: ignore[arg-type]


def our_steps(switches: dict[str, object]) -> tuple[list[float], list[float], float]:
    """-> losses, seconds of each step, peak GiB."""
    own = {name: x for name, x in switches.items() if name not in ("frozen", "fused", "malloc")}
    if switches.get("frozen"):
        import cfld.train

        cfld.train.shrink_frozen = lambda module, dtype: None
    if switches.get("malloc") != "as it is":
        keep_freed_memory()
    run = Run(options(**own), dry_run=True)
    if "fused" in switches:
        state = run.state
        state.optimizer = torch.optim.Adam(state.trained.values(), lr=run.options.peak_lr)
    losses, seconds = [], []
    agree = run.agree
    run.agree = lambda loss: (losses.append(loss), agree(loss))[1]  # type: ignore[method-assign]
    memory(run.device)
    for step in range(STEPS):
        started = time.perf_counter()
        run.loop(step + 1)
        seconds.append(time.perf_counter() - started)
    return losses, seconds, memory(run.device, peak=True) / 2**30


def official_steps() -> tuple[list[float], list[float], float]:
    """As our_steps()."""
    setup = options(cache=None)
    run = Run(setup, dry_run=True)  # for its data, weights and draws
    assert run.model is not None
    model = run.model.float()
    theirs = Official(model, run.vae.float())
    trained_names = {n for n, p in model.unet.named_parameters() if p.requires_grad}
    for attention in theirs.biased:
        attention.to_k.requires_grad_(True)
        attention.to_v.requires_grad_(True)
    theirs.unet.enable_gradient_checkpointing()
    theirs.unet.train()
    trained = [
        p for n, p in model.named_parameters() if p.requires_grad and n.removeprefix("unet.") not in trained_names
    ]
    trained += [p for p in theirs.unet.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in run.state.trained.values())
    del model.unet, run.model, run.state, run.vae, run.objective
    optimizer = torch.optim.Adam(trained, lr=setup.peak_lr)
    order = StepOrder(len(run.pairs), 1, setup.seed, 0, STEPS, range(1))
    batches = iter(step_batches(run.pairs, order, 0))

    losses, seconds = [], []
    memory(torch.device("cpu"))
    for step in range(STEPS):
        started = time.perf_counter()
        batch, draws = next(batches), draw_step(setup.seed, step, range(1), run.config)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                posterior = theirs.vae.encode(to_range(batch.images)).latent_dist
                latents = (posterior.mean.float() + posterior.std.float() * draws.vae_noise) * 0.18215
            timesteps = run.scheduler.cubic_timesteps(draws.timesteps)
            noisy = run.scheduler.add_noise(latents, draws.noise, timesteps)
            source = to_range(batch.source_images)
            source = torch.where((draws.flips < 0.5)[:, None, None, None], source.flip(-1), source)
            conditions = model.condition(source, pose_maps(batch.keypoints, 256), draws.depth)
            conditions = model.drop(conditions, draws.drops < 0.2, "paper")
            noise_pred = theirs(noisy, timesteps, conditions)
            loss = nn.functional.mse_loss(noise_pred.float(), draws.noise)
        loss.backward()
        optimizer.param_groups[0]["lr"] = learning_rate(step, setup.steps or 1, setup)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    return losses, seconds, memory(torch.device("cpu"), peak=True) / 2**30


def host_work(batch: int) -> dict[str, float]:
    """Seconds that a batch of so many pairs costs the host."""
    pairs = open_pairs(str(RUN / "data"), "train", 512, 256)
    cached = Run(options(batch=batch), dry_run=True).pairs
    order = StepOrder(len(pairs), batch, 0, 0, 6, range(batch))
    found: dict[str, float] = {}
    for name, dataset in (("photos", pairs), ("cached latents", cached)):
        times, batches = [], step_batches(dataset, order, 0)
        for _ in range(5):
            started = time.perf_counter()
            data = next(batches)
            times.append(time.perf_counter() - started)
        found[f"reading {batch} pairs, {name}"] = statistics.median(times)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        pose_maps(data.keypoints, 256)
        times.append(time.perf_counter() - started)
    found[f"pose maps of {batch} pairs"] = statistics.median(times)
    waits, batches = [], step_batches(pairs, order, 1)
    next(batches)
    for _ in range(3):
        time.sleep(2 * found[f"reading {batch} pairs, photos"])  # a step, as the host sees it
        started = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - started)
    batches.close()
    found["waiting for a batch that one worker has read during a step, photos"] = statistics.median(waits)
    return found


def measured(name: str) -> dict:
    """What a fresh process of this file says of a setting."""
    done = subprocess.run([sys.executable, __file__, "--only", name], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of the two sides (default: 3)")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only == HOST:
        print(json.dumps(host_work(28)))
        return
    if asked.only:
        if asked.only == KEEPING:
            keep_freed_memory()
        ours = asked.only in OURS
        losses, seconds, gib = our_steps(OURS[asked.only]) if ours else official_steps()
        print(json.dumps({"losses": losses, "seconds": seconds, "gib": gib}))
        return

    found: dict[str, list[dict]] = {}
    if (RUN / "measured.json").is_file():
        found = json.loads((RUN / "measured.json").read_text())
        print(f"going on with what {RUN}/measured.json holds; remove it to begin anew")
    else:
        set_up()
    turns = [*SIDES * asked.rounds, KEEPING, *(name for name in OURS if name not in SIDES), HOST]
    for number, name in enumerate(turns):
        if turns[: number + 1].count(name) > len(found.get(name, [])):
            found.setdefault(name, []).append(measured(name))
            write_json(RUN / "measured.json", found)
            print(f"{name}: {json.dumps(found[name][-1])}", flush=True)
    page = report(found, found.pop(HOST)[0])
    write_text(ROOT / "docs" / "train_step.md", page)
    print(page)


def report(found: dict[str, list[dict]], host: dict[str, float]) -> str:
    """docs/train_step.md."""
    seconds = {name: [s for run in runs for s in run["seconds"][1:]] for name, runs in found.items()}
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
    step = 28 * median["cached latents"]
    host = host | {"a step of 28 pairs, 28 times the measured step of one": step}
    lines = [
        "# One training step at full size",
        "",
        "Made by `python benchmarks/train_step.py`. One pair (two rows) of 512x512, bf16 autocast, random weights, the",
        f"same on both sides. The first {len(SIDES)} rows took turns: medians of {len(seconds[OFFICIAL])} steps in",
        f"{len(found[OFFICIAL])} fresh processes each; the others had one. The first step of a process does not",
        "count. Memory is the peak of resident pages since the weights were loaded. All are compared with the official",
        "step of one pair, those of two pairs as well.",
        "",
        machine_line(),
        "",
        table(["what", "seconds (least .. most)", "times as fast", "peak GiB", "of its memory",
               "loss of the first step"], steps),
        "",
        "## What the host does for a step",
        "",
        "Photos of 750x1101, as DeepFashion's; one process.",
        "",
        table(["what", "seconds", "of the step"],
              [[name, f"{took:.3f}", f"{took / step:.2%}"] for name, took in host.items()]),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
