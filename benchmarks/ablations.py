"""Table 3 in small: TINY as the whole method and as its baselines, trained equally long, on people never trained on.

    python benchmarks/ablations.py --data DIR --cache DIR --init PARTS --steps 4000     run it again to go on
    python benchmarks/ablations.py --data people:2000x4 --init PARTS --steps 4000 --at-once 2

Trains the whole method, B3 and B5 with each of the seeds and B1 with the first, in RUNS/STEPS_steps/ROW_seedN, each by
python -m cfld.train, whose words go to ROW_seedN.log; the first seed of every row comes first. All rows have the same
pairs, noise and timesteps in every step of a seed, and what two rows share begins with the same weights. After each
training its averaged weights are measured on the pairs of benchmarks/people.py, and docs/ablations_small.json and .md
(mean, and the standard deviation over seeds) are written anew, at the end with a picture, .png. B2 is left out since
CLIP has no small public encoder, and B4 is B3 where all of the UNet trains. With --base there are three more rows, with
the first seed: the whole method, B3 and B4 around that UNet, of which no more trains than in the paper. SIGTERM and
Ctrl-C let the trainings that run save first.
"""

import argparse
import contextlib
import importlib.util
import itertools
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from people import (
    PAIRS,
    Numbers,
    Pair,
    Pictures,
    baselines,
    errors,
    images_of,
    mean,
    measure_pairs,
    paint,
    pixels,
    reconstruct,
    score,
)
from PIL import Image
from report import machine, machine_line, table
from tqdm import tqdm

from cfld import TINY, VAE, load
from cfld.baselines import ablation, build, read_config
from cfld.evaluate.figure import INK, Tile, draw_figure
from cfld.folder import assign, save
from cfld.photos.pixels import to_pictures
from cfld.scheduler import SchedulerConfig
from cfld.tools.cli import HelpFormatter, UserError, command, pick_device
from cfld.tools.files import read_json, sha256, write_json, write_text
from cfld.tools.pictures import save_image
from cfld.training.checkpoint import checkpoints, step_of

ROOT = Path(__file__).parents[1]
FROZEN = {"whole_frozen": "whole", "B3_frozen": "B3", "B4_frozen": "B4"}  # rows of Table 3 around a frozen base
ROWS = ("whole", "B3", "B5", "B1", *FROZEN)  # what is trained
ONCE = ("B1", *FROZEN)  # of that, with the first seed alone
TRAINING = (
    "--preset tiny --batch 16 --lr 4e-4 --warmup 200 --clip 1 --decay-at 0.8 --ema 0.999 "
    "--save-every 250 --sample-every 0"
)
PATIENCE = 2.0  # seconds between looks at the trainings
GARMENTS = ("top", "jacket", "bottom")
SHOWN = 6  # of the held-out pairs, in the picture
MEASURES = {"error": 4, "IoU": 3, "PSNR": 2, "SSIM": 4, "garments": 4}  # and their decimals in the table


# ---------------------------------------------------------------------------------------------------------------- queue


def queue(args: argparse.Namespace) -> list[tuple[str, int]]:
    """What is trained, in order: (row, seed)."""
    rows = [row for row in ROWS if row not in FROZEN or args.base]
    return [(row, seed) for seed in range(args.seeds) for row in rows if seed == 0 or row not in ONCE]


def arguments(args: argparse.Namespace, row: str, seed: int, out: Path) -> list[str]:
    """The arguments of cfld.train for one training."""
    given = {"data": args.data, "cache": args.cache, "init": args.init, "steps": args.steps, "seed": seed, "out": out}
    if row in FROZEN:
        given |= {"init": beginning(out), "config": beginning(out) / "config.json"}
    elif row != "whole":
        given |= {"ablation": row}
    options = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    return [*shlex.split(TRAINING), *options, *shlex.split(args.train)]


def beginning(run: Path) -> Path:
    """The model folder with which a row around a frozen base begins: beside its run."""
    return run.with_name(f"{run.name}_begin")


def begin(base: str, row: str, folder: Path) -> None:
    """Write the base as a row of Table 3, without the parts that the row has not."""
    model, vae = load(base)
    config = replace(model.config, unet_trainable="cross_kv")
    begun = build(config if row == "whole" else ablation(config, row))
    weights = model.state_dict()
    assign(begun, {name: weights[name] for name in begun.state_dict()}, base)
    save(folder, begun, vae, replace=True)


def steps_done(run: Path, steps: int) -> int:
    """How far a training has come, by its latest checkpoint."""
    return steps if (run / "model").is_dir() else max((step_of(path) for path in checkpoints(run)), default=0)


def train(trainings: dict[Path, list[str]], at_once: int, steps: int) -> Generator[Path]:
    """Train, or go on training, in these run folders with these arguments, as many at once, which share the cores.
    Yields each when it is done. When this process is asked to stop, so are they, and waited for. Raises UserError if
    one fails."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
    waiting, running = list(trainings), dict[Path, subprocess.Popen[bytes]]()
    with tqdm(total=len(trainings) * steps, desc="trainings", unit="step", smoothing=0) as bar:
        bar.initial = bar.n = sum(steps_done(run, steps) for run in trainings)
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    run = waiting.pop(0)
                    argv = [sys.executable, "-m", "cfld.train", *trainings[run], "--resume"]
                    run.parent.mkdir(parents=True, exist_ok=True)
                    with open(run.with_suffix(".log"), "ab") as log:
                        process = subprocess.Popen(argv, cwd=ROOT, env=os.environ | threads, stdout=log, stderr=log)
                    running[run] = process
                time.sleep(PATIENCE)
                bar.update(sum(steps_done(run, steps) for run in trainings) - bar.n)
                for run in [run for run, process in running.items() if process.poll() is not None]:
                    if code := running.pop(run).returncode:
                        raise UserError(f"the training in {run} stopped with exit code {code}: see {run}.log")
                    yield run
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()


def trained_otherwise(run: Path, argv: Sequence[str]) -> str | None:
    """The first option in which a run that is done differs from what is asked; None if it is that run."""
    saved = read_json(run / "config.json")["options"]
    for flag, value in dict(zip(argv[::2], argv[1::2], strict=True)).items():  # of two, the last counts
        found = saved.get(flag.removeprefix("--").replace("-", "_"))
        if str(found) != value and (not isinstance(found, float) or found != float(value)):
            return f"{flag} {found}, not {value}"
    return None


def schedule(run: Path, base: str | None) -> SchedulerConfig:
    """The noise schedule of a run: its own when it is done, that of its base or of TINY when it is not."""
    if (run / "model").is_dir():
        return read_config(run / "model" / "config.json").scheduler
    return read_config(Path(base) / "config.json").scheduler if base else TINY.scheduler


# -------------------------------------------------------------------------------------------------------------- measure


def measure(pictures: Pictures, pairs: Sequence[Pair]) -> Numbers:
    """The means over the pairs: error on the person, IoU, PSNR, SSIM, and the error of the garments' mean colours."""
    rows = [score(picture, pair) for picture, pair in zip(pictures, pairs, strict=True)]
    garments = [row[part] for row in rows for part in GARMENTS if part in row]
    means = {name: mean([row[name] for row in rows]) for name in ("IoU", "PSNR", "SSIM")}
    return {"error": mean(errors(pictures, pairs)), **means, "garments": mean(garments)}


def measure_bounds(vae: VAE, pairs: Sequence[Pair]) -> Numbers:
    """What is known without a training: the worst that is worth anything, and the best there can be."""
    reconstructed = pixels(reconstruct(vae, images_of(pair.target for pair in pairs)))
    return {
        "the source, copied": measure(baselines(pairs)["copy"], pairs),
        "the VAE's reconstruction": measure(reconstructed, pairs),
    }


def summary(runs: dict[str, Numbers]) -> dict[str, dict[str, tuple[float, float | None]]]:
    """By row and measure, the mean over seeds and their standard deviation; None of a single seed."""
    result = {}
    for row in ROWS:
        found = [numbers["measures"] for numbers in runs.values() if numbers["row"] == row]
        if found:
            values = {name: [numbers[name] for numbers in found] for name in MEASURES}
            result[row] = {
                name: (statistics.fmean(x), statistics.stdev(x) if len(x) > 1 else None) for name, x in values.items()
            }
    return result


def summary_table(found: Numbers) -> str:
    """The bounds and the summary in Markdown."""
    lines = []
    for name, numbers in found["bounds"].items():
        lines.append((name, "", *(f"{numbers[measure]:.{places}f}" for measure, places in MEASURES.items())))
    for row, numbers in summary(found["runs"]).items():
        cells = []
        for name, places in MEASURES.items():
            middle, spread = numbers[name]
            cells.append(f"{middle:.{places}f}" + (f" ± {spread:.{places}f}" if spread is not None else ""))
        seeds = sum(numbers["row"] == row for numbers in found["runs"].values())
        lines.append((row, str(seeds), *cells))
    return table(("", "seeds", "error on the person", "IoU", "PSNR", "SSIM std", "garments' colours"), lines)


def write_page(path: Path, found: Numbers) -> str:
    """Write the table of what was found beside its JSON file. Returns it."""
    asked = found["asked"]
    rows_by_machine: dict[str, list[str]] = {}
    for numbers in found["runs"].values():
        rows_by_machine.setdefault(machine_line(numbers["made"]), []).append(numbers["row"])
    text = (
        "# Table 3 in small: the numbers\n\n"
        "Made by `python benchmarks/ablations.py`. [ablations.md](ablations.md) says what the rows are; those in\n"
        f"_frozen are around a frozen UNet. {asked['steps']} steps each, {asked['pairs']} held-out pairs painted in\n"
        f"{asked['sample steps']} steps of DDPM; mean ± standard deviation over seeds. garments' colours: error of\n"
        "the mean colours of tops, jackets and bottoms.\n\n"
        f"{summary_table(found)}\n\n"
    )
    text += "".join(f"{', '.join(dict.fromkeys(rows))}: {where}\n" for where, rows in rows_by_machine.items())
    write_text(path.with_suffix(".md"), text)
    return text


@torch.no_grad()
def draw(runs: dict[Path, tuple[str, int]], steps: int, device: torch.device) -> Image.Image:
    """The first held-out pairs: source, truth, and what each row's first seed paints, above its error on the person."""
    pairs = measure_pairs(SHOWN, TINY)
    columns = {"source": images_of(pair.source for pair in pairs), "truth": images_of(pair.target for pair in pairs)}
    for run, (row, seed) in runs.items():
        if seed == 0:
            model, vae = load(run / "model", device)
            columns[row] = paint(model, vae, pairs, steps=steps)
    tiles = []
    for name, images in columns.items():
        found = [f"{error:.3f}" for error in errors(pixels(images), pairs)] if name in ROWS else [""] * SHOWN
        tiles.append([Tile(*both) for both in zip(to_pictures(images, (192, 132)), found, strict=True)])
    titles = [(name, INK) for name in columns]
    return draw_figure(titles, list(zip(*tiles, strict=True)), "error on the person, less is better")


# -------------------------------------------------------------------------------------------------------------- command


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        "python benchmarks/ablations.py", description=__doc__, formatter_class=HelpFormatter
    )
    options.add_argument("--data", required=True, help="what all train on: a folder of cfld.people, or people:2000x4")
    options.add_argument(
        "--init", required=True, metavar="DIR", help="the model/ folder that --stage source made (or vae)"
    )
    options.add_argument("--base", metavar="DIR", help="the model/ folder that --stage base made, for three more rows")
    options.add_argument("--cache", metavar="DIR", help="what cfld.data cache has made of --data with this VAE")
    options.add_argument("--steps", type=int, required=True, help="of each training")
    options.add_argument("--at-once", type=int, default=1, help="trainings at a time, such as one for each core")
    options.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    options.add_argument("--pairs", type=int, default=PAIRS, help="how many of the held-out pairs, from the first")
    options.add_argument("--sample-steps", type=int, default=50, help="of DDPM")
    options.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablations", metavar="DIR", help="for the runs")
    options.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "ablations_small", help="what .json, .md, .png join"
    )
    options.add_argument("--train", default="", metavar="'ARGUMENTS'", help="more options of cfld.train, with values")
    options.add_argument("--device", help="to measure on (default: the best there is)")
    return options


def stop(number: int, frame: FrameType | None) -> None:
    """Turn SIGTERM into an exception, which train() passes on."""
    raise SystemExit(128 + number)


@command
def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if importlib.util.find_spec("skimage") is None:
        raise UserError("scikit-image must be installed to measure: .venv/bin/python -m pip install scikit-image")
    if min(args.seeds, args.steps, args.at_once) < 1 or not 1 <= args.pairs <= PAIRS:
        raise UserError(f"--seeds, --steps and --at-once must be at least 1 and --pairs within 1 .. {PAIRS}")
    signal.signal(signal.SIGTERM, stop)
    device = pick_device(args.device)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.at_once))  # it measures while others train
    asked = {"steps": args.steps, "pairs": args.pairs, "sample steps": args.sample_steps, "data": args.data,
             "init": str(args.init), "training": f"{TRAINING} {args.train}".strip()}  # fmt: skip
    path = args.out.with_name(f"{args.out.name}.json")
    before = read_json(path) if path.is_file() else {}
    found: dict[str, Any] = before if before.get("asked") == asked else {"asked": asked, "bounds": {}, "runs": {}}

    folder = args.runs.resolve() / f"{args.steps}_steps"
    runs = {folder / f"{row}_seed{seed}": (row, seed) for row, seed in queue(args)}
    trainings = {run: arguments(args, row, seed, run) for run, (row, seed) in runs.items()}
    done = [run for run in runs if (run / "model").is_dir()]
    for run in done:
        if differs := trained_otherwise(run, trainings[run]):
            raise UserError(f"{run} was trained with {differs}: choose another --runs, or remove it")
    schedules = {schedule(run, args.base if row in FROZEN else None): run.name for run, (row, _) in runs.items()}
    if len(schedules) > 1:
        those = ", ".join(f"{name}'s is {each}" for each, name in schedules.items())
        raise UserError(f"all rows must have one noise schedule: {those}; choose another --runs or --base")
    left = {run: argv for run, argv in trainings.items() if run not in done}
    for run in left:
        if (row := runs[run][0]) in FROZEN:
            begin(args.base, FROZEN[row], beginning(run))
    pairs: list[Pair] = []
    base = args.base and sha256(Path(args.base) / "model.safetensors")
    with contextlib.closing(train(left, args.at_once, args.steps)) as trained:
        for run in itertools.chain(done, trained):
            name, (row, seed) = run.name, runs[run]
            weights = sha256(run / "model" / "model.safetensors")
            if (known := found["runs"].get(name, {})).get("weights") == weights:
                if row in FROZEN and known["base"] != base:
                    raise UserError(f"{run} was trained around another --base than {args.base}: choose another --runs")
                continue
            pairs = pairs or measure_pairs(args.pairs, TINY)
            model, vae = load(run / "model", device)
            found["bounds"] = found["bounds"] or measure_bounds(vae, pairs)
            measures = measure(pixels(paint(model, vae, pairs, steps=args.sample_steps)), pairs)
            made = machine()
            found["runs"][name] = {"row": row, "seed": seed, "weights": weights, "measures": measures, "made": made}
            if row in FROZEN:
                found["runs"][name]["base"] = base
            write_json(path, found)
            tqdm.write(write_page(path, found))
    write_page(path, found)
    save_image(path.with_suffix(".png"), draw(runs, args.sample_steps, device))


if __name__ == "__main__":
    raise SystemExit(main())
