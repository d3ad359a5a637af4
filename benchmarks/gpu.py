"""What a CUDA card does: one command, within eight minutes, for docs/gpu.md.

    python benchmarks/gpu.py run                                    on a CUDA card: docs/gpu.md
    python benchmarks/gpu.py run --device cpu --size tiny --quick --out DIR     does it run at all?

Needs diffusers, for the official loop, and pytest. Random weights of the true shapes stand in for the public ones. Both
sides of a comparison have the same.

Letters in shapes: B pairs.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from common import ROOT, Official, add_command, benchmark_parser, docs_path, machine, paragraph, provenance, table
from cost import official_training_loss
from speed import SIZES, Setup, as_student, flops, official_loop, peaks, seconds
from torch import Tensor

from cfld.config import DistilledConfig
from cfld.data.batch import Batch
from cfld.objective import StepNoise, step_noise, training_loss
from cfld.sampling import FAST, PAPER, TURBO, SamplingConfig, sample
from cfld.student import add_adapters
from cfld.tools.cli import PRECISIONS, UserError, command, is_lack_of_memory, pick_device
from cfld.tools.files import write_json, write_text
from cfld.training.distill import distillation_loss
from cfld.training.memory import cast_frozen, checkpoint_activations, memory

KINDS = {"DDPM-50": PAPER, "--fast": FAST, "--turbo": TURBO}
BATCHES, COMPILED_BATCHES, PAIRS = (1, 2, 4, 8, 16, 32), (1, 8), (1, 2, 4, 7, 14, 28)
TRAINING_PAIRS, EPOCHS = 101_966, 100  # of DeepFashion; of the paper
CARDS = (24, 80)  # GB
Row = dict[str, Any]


class Clock:
    """What is left of the time."""

    def __init__(self, minutes: float):
        self.end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        return self.end - time.monotonic()


def measured(act: Callable[[], object], device: torch.device, rounds: int) -> Row:
    """The median seconds of some calls after a first one, and the peak memory in GiB; or that memory is too small."""
    try:
        act()
        memory(device)
        took = [seconds(act) for _ in range(rounds)]
        return {"seconds": statistics.median(took), "gib": memory(device, peak=True) / 2**30}
    except RuntimeError as error:
        if not is_lack_of_memory(error):
            raise
        return {"lack": True}
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def run_tests(device: torch.device) -> str:
    """The last line of pytest for the tests marked cuda."""
    argv = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "tests/test_cuda.py"]
    done = subprocess.run(
        argv, cwd=ROOT, env=os.environ | {"CFLD_CUDA_TESTS_ON": str(device)}, capture_output=True, text=True
    )
    print(done.stdout[-4000:])
    return (done.stdout.strip().splitlines() or ["pytest did not run"])[-1]


def official_row(setup: Setup, steps: int) -> Row:
    """An image by the official loop."""
    theirs = setup.official()
    took = measured(lambda: official_loop(setup, theirs, steps, 0), setup.device, 1)
    return {"what": "the official loop", "batch": 1, "steps": steps, **took}


def sampling_rows(setup: Setup, options: argparse.Namespace, clock: Clock) -> Iterator[Row]:
    """Whole images with decoding, by kind and batch; the official loop first."""
    shortened: Callable[[SamplingConfig], SamplingConfig] = (
        (lambda c: dataclasses.replace(c, steps=min(c.steps, 2))) if options.quick else (lambda c: c)
    )
    yield official_row(setup, shortened(PAPER).steps)
    batches = (1, 2) if options.quick else BATCHES
    for compiled in (False, True):
        if compiled and (options.quick or setup.device.type != "cuda"):
            return
        for batch in COMPILED_BATCHES if compiled else batches:
            torch.compiler.reset()
            model = setup.compiled() if compiled else setup.model
            for name, config in KINDS.items():
                if clock.left() < 120 and not options.quick:
                    return  # the training needs the rest
                painter, how = as_student(model) if name == "--turbo" else model, shortened(config)
                images, poses = setup.images(1), setup.poses(batch)
                act: Callable[[], object] = partial(sample, painter, setup.vae, images, poses, how)
                row = measured(act, setup.device, 1 if batch > 4 else 2)
                what = f"{name}, compiled" if compiled else name
                yield {"what": what, "batch": batch, "steps": how.steps, **row}


def pairs_batch(setup: Setup, pairs: int, cached: bool) -> tuple[Batch, StepNoise]:
    """B pairs of random photos, or of what a cache holds of them, and the noise of their step."""
    c, g = setup.config, torch.Generator().manual_seed(0)
    sizes = [(pairs, 3, c.source_size, c.source_size), (2 * pairs, 3, c.image_size, c.image_size)]
    source, images = (torch.randint(0, 256, size, dtype=torch.uint8, generator=g) for size in sizes)
    moments = torch.randn(2 * pairs, 2 * c.unet.latent_channels, setup.size, setup.size, generator=g).half()
    keypoints = torch.tensor(setup.keypoints).expand(2 * pairs, -1, -1).contiguous()
    batch = Batch(source, None if cached else images, moments if cached else None, keypoints, None, range(pairs))
    return batch.to(setup.device), step_noise(0, 0, range(pairs), c).to(setup.device)


class Training:
    """Training steps of a model of random weights, as cfld.train takes them: bf16 autocast, Adam."""

    def __init__(self, options: argparse.Namespace, device: torch.device):
        self.setup = Setup(SIZES[options.size], device, torch.float32)
        self.model, self.vae = self.setup.model, self.setup.vae
        self.model.freeze()
        cast_frozen(self.model, torch.bfloat16)
        cast_frozen(self.vae, torch.bfloat16)
        self.restart()

    def restart(self) -> None:
        """A fresh optimiser for what trains now."""
        self.optimizer = torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=1e-6, fused=True)

    def step(self, loss_of: Callable[[], Tensor]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.setup.device.type, torch.bfloat16):
            loss = loss_of()
        loss.backward()
        self.optimizer.step()

    def checkpointing(self, level: str) -> None:
        for module in self.model.modules():
            module.__dict__.pop("forward", None)
        checkpoint_activations(self.model, level)

    def distillation(self) -> Callable[[Batch, StepNoise], Tensor]:
        """Turn the model into a student with adapters of rank 64 -> its loss."""
        self.checkpointing("none")
        self.model.requires_grad_(False)
        add_adapters(self.model.unet, 64, "linear")
        for name, parameter in self.model.unet.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self.model.config = dataclasses.replace(self.model.config, distilled=DistilledConfig(rank=64))
        self.restart()

        def loss(batch: Batch, noise: StepNoise) -> Tensor:
            moments = batch.moments
            assert moments is not None
            mean, logvar = moments.float().chunk(2)[1].chunk(2, dim=1)
            latents = self.vae.sample(mean, logvar, noise.vae_noise.chunk(2)[1])
            with torch.no_grad():
                conditions = self.model.condition(self.setup.images(len(batch)), self.setup.poses(len(batch)))
            draws = noise.timesteps.chunk(2)[1], noise.drops.chunk(2)[1]
            model = self.model
            return distillation_loss(
                model, model, model, model, latents, noise.noise.chunk(2)[1], draws, conditions, skip=20
            )

        return loss


def official_networks(training: Training) -> Official:
    """diffusers' UNet and VAE with the weights of a training, of which the same train."""
    theirs = Official(training.model, training.vae)
    for attention in theirs.biased:
        attention.to_k.requires_grad_(True)
        attention.to_v.requires_grad_(True)
    theirs.unet.enable_gradient_checkpointing()
    theirs.unet.train()
    return theirs


def training_rows(options: argparse.Namespace, device: torch.device, clock: Clock) -> Iterator[Row]:
    """A step by pairs, level of activation checkpointing, and whether latents are cached; the official step first."""
    training, rounds = Training(options, device), 1 if options.quick else 3
    setup, model, vae = training.setup, training.model, training.vae

    def row(what: str, pairs: int, cached: bool, loss_of: Callable[[Batch, StepNoise], Tensor]) -> Row:
        batch, noise = pairs_batch(setup, pairs, cached)
        found = measured(lambda: training.step(lambda: loss_of(batch, noise)), device, rounds)
        return {"what": what, "pairs": pairs, **found}

    def ours(batch: Batch, noise: StepNoise) -> Tensor:
        return training_loss(model, vae, batch, noise)

    official = partial(official_training_loss, model, official_networks(training))
    for pairs in (1,) if options.quick else (1, 4):
        yield row("the official step", pairs, False, official)
    official = None  # type: ignore[assignment]  # makes room
    for level, cached in (("none", True), ("attention", True), ("all", True), ("none", False)):
        training.checkpointing(level)
        for pairs in (1,) if options.quick else PAIRS:
            if clock.left() < 20 and not options.quick:
                return
            name = "cached latents" if cached else "photos encoded in each step"
            found = row(f"{name}, --activation-checkpointing {level}", pairs, cached, ours)
            yield found
            if "lack" in found:
                break
    yield row("--stage distill, rank 64, cached latents", 1, True, training.distillation())


def largest_batch(rows: list[Row], what: str, gb: float) -> int | None:
    """How many pairs fit in nine tenths of so many GB, by the line through the memory of the fewest and most pairs."""
    found = [(row["pairs"], row["gib"]) for row in rows if row["what"] == what and "gib" in row]
    if len(found) < 2:
        return None
    (few, low), (many, high) = found[0], found[-1]
    each = (high - low) / (many - few)
    return max(int((0.9 * gb * 1e9 / 2**30 - low) / each) + few, 0) if each > 0 else None


def gpu_page(found: dict[str, Any]) -> str:
    """docs/gpu.md."""
    peak = max(value for name, value in found["peaks"].items() if name.startswith("product"))
    sampling, training = found["sampling"], found["training"]
    official = next(row for row in sampling if row["what"] == "the official loop")

    def cells(row: Row, work: float) -> list[str]:
        if "lack" in row:
            return ["out of memory", "", ""]
        share = work / row["seconds"] / peak
        return [f"{row['seconds']:.3g}", f"{row['gib']:.2f}", f"{share:.0%}"]

    painted = []
    for row in sampling:
        rows_a_step = 3 if row is official else 1 if row["what"].startswith("--turbo") else 2
        work = row["batch"] * (rows_a_step * row["steps"] * found["flops"]["row"] + found["flops"]["decoder"])
        per = row["batch"] / row["seconds"] if "seconds" in row else 0
        faster = f"{per * official['seconds']:.1f}" if per and "seconds" in official else ""
        painted.append([row["what"], str(row["batch"]), *cells(row, work), f"{per:.3g}" if per else "", faster])
    steps, best = [], 0.0
    for row in training:
        rows = 6 * row["pairs"]  # forwards: 2 samples forward and backward; in --stage distill 4 forward, one backward
        per = row["pairs"] / row["seconds"] if "seconds" in row else 0
        days = f"{TRAINING_PAIRS * EPOCHS / per / 86400:.1f}" if per else ""
        if per and row["what"].startswith("cached latents"):
            best = max(best, per)
        steps.append([row["what"], str(row["pairs"]), *cells(row, rows * found["flops"]["row"]), f"{per:.3g}", days])
    names = dict.fromkeys(row["what"] for row in training if "checkpointing" in row["what"])
    fits = [[name, *(str(largest_batch(training, name, gb) or "-") for gb in CARDS)] for name in names]
    lines = [
        "# On a GPU",
        "",
        paragraph(
            f"Made by `python benchmarks/gpu.py run` in {found['minutes']:.1f} minutes. Random weights of size "
            f"{found['size']}, {found['precision']}. The tests marked `cuda`: {found['tests']}."
        ),
        "",
        provenance(found["made"]),
        "",
        paragraph(
            "Share of the peak: the operations of the UNet and the decoder, divided by time and by the card's best "
            f"matrix product in the same run, {peak / 1e12:.3g} TFLOP/s. A training step of a pair counts six times a "
            "UNet forward of one sample: two samples, forward and backward."
        ),
        "",
        "## Sampling",
        "",
        table(["", "batch", "seconds", "peak GiB", "share of the peak", "images/s", "speed-up"], painted),
        "",
        "## A training step",
        "",
        table(["", "pairs", "seconds", "peak GiB", "share of the peak", "pairs/s", "days for 100 epochs"], steps),
        "",
        table(["largest micro-batch, in pairs (from the line of memory)", *(f"{gb} GB" for gb in CARDS)], fits),
        "",
    ]
    if best:
        lines += [f"An hour trains {best * 3600:,.0f} pairs at best.", ""]
    return "\n".join(lines)


def operations(setup: Setup) -> dict[str, float]:
    """The floating-point operations of a UNet forward of one sample and of decoding one image."""
    one = setup.inputs(1)
    acts: dict[str, Callable[[], object]] = {
        "row": lambda: setup.model(*one),
        "decoder": lambda: setup.vae.decode(one[0]),
    }
    return {name: sum(flops(act).values()) for name, act in acts.items()}


def run(options: argparse.Namespace) -> None:
    """Test, sample and train on a card, and write docs/gpu.md.

    First the tests marked cuda; then images by DDPM-50, --fast and --turbo, in batches of 1 to 32, compiled and not;
    then training steps of 1 to 28 pairs, with each level of activation checkpointing, with and without cached latents;
    and the official method for both. Rows that do not fit in memory say so. Results are written after each row; what
    does not fit in the time is left out.

        python benchmarks/gpu.py run
    """
    clock, begun, device = Clock(options.minutes), time.monotonic(), pick_device(options.device)
    if device.type == "cpu" and options.out is None:
        raise UserError("--out must name a folder with --device cpu: docs/gpu.md is of a GPU")
    found: dict[str, Any] = {"size": options.size, "precision": options.precision, "sampling": [], "training": []}
    found["tests"] = "not run" if options.skip_tests else run_tests(device)
    path = (options.out or ROOT / "benchmarks" / "results") / "gpu.json"

    def keep(name: str, rows: Iterator[Row]) -> None:
        for row in rows:
            found[name].append(row)
            print(f"{name}: {json.dumps(row)}", flush=True)
            write_json(path, found)

    setup: Setup | None = Setup(SIZES[options.size], device, PRECISIONS[options.precision])
    assert setup is not None
    with torch.no_grad():
        found["made"], found["peaks"], found["flops"] = machine(), peaks(setup, 1), operations(setup)
        keep("sampling", sampling_rows(setup, options, clock))
    setup = None  # makes room
    keep("training", training_rows(options, device, clock))
    found["minutes"] = (time.monotonic() - begun) / 60
    write_json(path, found)
    page = gpu_page(found)
    write_text(docs_path("gpu.md", options.out), page)
    print(page)


@command
def main(argv: list[str] | None = None) -> None:
    parser, commands = benchmark_parser(__file__, __doc__)
    options = add_command(commands, run)
    options.add_argument("--size", choices=SIZES, default="full", help="of the model")
    options.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16", help="of weights when sampling")
    options.add_argument("--device", help="cuda, cpu, ... (default: the best there is)")
    options.add_argument("--minutes", type=float, default=7.5, help="after which the rest is left out")
    options.add_argument("--quick", action="store_true", help="two steps, small batches: does it run?")
    options.add_argument("--skip-tests", action="store_true", help="do not run the tests marked cuda")
    parsed = parser.parse_args(argv)
    parsed.run(parsed)


if __name__ == "__main__":
    raise SystemExit(main())
