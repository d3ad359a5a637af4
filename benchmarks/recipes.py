"""Whole trainings of TINY on synthetic people, each with one command; a recipe that was stopped goes on.

    python benchmarks/recipes.py overfit        memorise eight pairs: docs/overfit.webp, 40 minutes
    python benchmarks/recipes.py tiny           the bundled model from nothing but seeds: weights/tiny, eight hours
    python benchmarks/recipes.py turbo          the bundled model's student of four steps: docs/turbo_measures.md, hours
    python benchmarks/recipes.py ablations      Table 3 in small: docs/ablations_small.md, hours

Times are of two cores.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from common import (
    ROOT,
    add_command,
    benchmark_parser,
    docs_path,
    earlier_results,
    machine,
    paragraph,
    provenance,
    results_path,
    save_picture,
    table,
)
from people import (
    PAIRS,
    Numbers,
    Pair,
    Pictures,
    check_pairs,
    errors,
    generate_images,
    images_of,
    mean,
    measure_pairs,
    pixels,
    reconstruct,
    require_skimage,
    score,
    trivial_methods,
)
from PIL import Image
from tqdm import tqdm

from cfld import TINY, VAE, load, save
from cfld.baselines import ablation, build, read_config
from cfld.config import DISTILLATIONS, TARGETS
from cfld.data.batch import collate
from cfld.data.pairs import FashionPairs
from cfld.evaluate.figure import INK, Tile, draw_figure
from cfld.folder import TURBO_FILE, assign, bundled
from cfld.people import identity, photo_pose, render
from cfld.photos.pixels import picture_grid, to_pictures, to_range
from cfld.pose import pose_maps
from cfld.sampling import SamplingConfig, sample
from cfld.scheduler import SchedulerConfig
from cfld.tools.card import front_matter
from cfld.tools.cli import UserError, command, pick_device
from cfld.tools.files import read_json, sha256, write_json, write_lines, write_text
from cfld.tools.tensors import read_safetensors, write_tensors
from cfld.training.checkpoint import checkpoints, step_of

PAIR_LIST = "fasion-resize-pairs-train.csv"  # written last
PEOPLE_SEEDS = (0, 1, 2, 3)
VAE_STEPS, STEPS, EIGHT = 500, 1400, 8


def overfit(options: argparse.Namespace) -> None:
    """Train TINY on eight pairs and generate them again from noise.

    First its VAE, then the full model. The eight pairs are of four people who share two target poses, so only the
    source identifies the person. Sampling is DDPM with 50 steps under Eq. 7 at 2.0/2.0. The mean absolute error in
    [0, 1] to the targets is measured of the VAE's reconstructions (the floor), of the results, and of results with the
    source of the next person. Columns of the picture: source, pose, target, VAE, result, result of the next source.

        python benchmarks/recipes.py overfit
    """
    run = ROOT / "runs" / "overfit"
    data = run / "data"
    if not (data / PAIR_LIST).is_file():
        write_eight_pairs(data)
    common = f"--preset tiny --batch {EIGHT} --decay-at 0.7 --save-every 200 --sample-every 400 --resume".split()
    common += ["--data", str(data)]
    if not (run / "vae" / "model").is_dir():
        run_module("cfld.train", "--stage", "vae", "--out", run / "vae", "--steps", VAE_STEPS, *common)
    if not (run / "cfld" / "model").is_dir():
        start = ("--init", run / "vae" / "model", "--out", run / "cfld")
        run_module("cfld.train", *start, "--steps", STEPS, "--ema", 0.99, *common)

    model, vae = load(run / "cfld" / "model")
    pairs = FashionPairs(data, "train", model.config.image_size, model.config.source_size)
    batch = collate([pairs[i] for i in range(len(pairs))])
    assert batch.images is not None  # not from a cache
    sources, targets = (to_range(x) for x in batch.images.chunk(2))
    people = to_range(batch.source_images)
    poses = pose_maps(batch.keypoints.chunk(2)[1], model.config.adapter.pose_size)

    def generate(people: torch.Tensor) -> torch.Tensor:
        seeds = [torch.Generator().manual_seed(i) for i in range(len(people))]
        return sample(model, vae, people, poses, generator=seeds, progress=True)

    def error(images: torch.Tensor) -> float:
        return ((images.clamp(-1, 1) - targets) / 2).abs().mean().item()

    with torch.no_grad():
        floor = vae.decode(vae.encode(targets))
    results, exchanged = generate(people), generate(people.roll(-1, dims=0))
    numbers = {"vae": error(floor), "result": error(results), "exchanged": error(exchanged)}
    numbers["result / vae"] = numbers["result"] / numbers["vae"]
    numbers["exchanged / vae"] = numbers["exchanged"] / numbers["vae"]
    numbers = {name: round(x, 4) for name, x in numbers.items()}
    write_json(results_path("overfit.json", options.out), {**numbers, "made": machine()})
    print(json.dumps(numbers, indent=2))
    columns = [to_pictures(x, (192, 132)) for x in (sources, poses[:, :3] * 2 - 1, targets, floor, results, exchanged)]
    save_picture(docs_path("overfit.webp", options.out), picture_grid(columns))


def write_eight_pairs(folder: Path) -> None:
    """Four rendered people, each in one source pose and two target poses, as a prepared folder of eight pairs.

    The people share their poses, and their annotations too (the first person's joints). Pairs are ordered so that the
    next pair's source is always another person.
    """
    poses = [photo_pose(PEOPLE_SEEDS[0], index) for index in range(3)]
    photos = [[render(identity(seed), pose) for pose in poses] for seed in PEOPLE_SEEDS]
    names = [[f"fashionPEOPLEid{seed:08d}01_{index}.png" for index in range(3)] for seed in PEOPLE_SEEDS]
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


def run_module(*argv: object, **environment: str) -> None:
    """python -m argv. Raises SystemExit with its exit code if it fails."""
    words = [sys.executable, "-m", *map(str, argv)]
    if code := subprocess.run(words, cwd=ROOT, env=os.environ | environment).returncode:
        raise SystemExit(code)


PEOPLE = "--identities 6000 --poses 4 --seed 0 --test-fraction 0.01"
TINY_VAE = "--batch 4 --steps 4000 --lr 8e-4 --warmup 100 --decay-at 0.7 --ema 0.998"
TINY_SOURCE = "--batch 32 --steps 10000 --lr 1e-3 --warmup 200 --decay-at 0.7 --ema 0.998"
TINY_FULL = "--batch 16 --lr 4e-4 --clip 1 --ema 0.9995 --eval-every 500"
TINY_RUNS = {  # of the full model, each from the EMA weights of the one before
    "cfld": "--steps 14000 --warmup 500 --decay-at 0.85",
    "further_1": "--steps 5000 --warmup 200 --decay-at 0.8 --seed 1",
    "further_2": "--steps 4000 --warmup 200 --decay-at 0.8 --seed 2",
}


def tiny(options: argparse.Namespace) -> None:
    """Make weights/tiny, the bundled model, from nothing but seeds.

    Renders the people, trains the VAE on them and encodes them once, trains the source encoder to predict their
    attributes, and trains all of TINY in three runs. The EMA weights of the last are packed in half precision, with
    training.json: the options and the logs of all runs. Then `quality.py measure` measures them.

        python benchmarks/recipes.py tiny     eight hours on two cores, in two processes of one thread each
    """
    run = ROOT / "runs" / "tiny"
    data, cache, vae, source = (run / name for name in ("people", "cache", "vae", "source"))
    common = ["--preset", "tiny", "--data", data, "--save-every", 250, "--sample-every", 500, "--resume"]
    commit = begun_at(run)
    run_module("cfld.people", data, *PEOPLE.split())
    if not (vae / "model").is_dir():
        train_in_two_processes("--stage", "vae", "--out", vae, *common, *TINY_VAE.split())
    run_module("cfld.data", "cache", data, "--model", vae / "model", "--out", cache)
    common += ["--cache", cache]
    if not (source / "model").is_dir():
        stage = ("--stage", "source", "--init", vae / "model", "--out", source)
        train_in_two_processes(*stage, *common, *TINY_SOURCE.split())
    before = source
    for name, own in TINY_RUNS.items():
        out = run / name
        if not (out / "model").is_dir():
            start = ("--init", before / "model", "--out", out)
            train_in_two_processes(*start, *common, *TINY_FULL.split(), *own.split())
        before = out
    pack(run, options.out or ROOT / "weights" / "tiny", commit)
    if options.out is None:
        subprocess.run([sys.executable, ROOT / "benchmarks" / "quality.py", "measure"], check=True)


def begun_at(run: Path) -> str:
    """The commit at which a run began; written down when it begins."""
    path = run / "commit.txt"
    if not path.is_file():
        argv = ["git", "rev-parse", "HEAD"]
        write_text(path, subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    return path.read_text().strip()


def train_in_two_processes(*argv: object) -> None:
    """cfld.train in two processes of one thread each, which on two cores is faster than one of two threads."""
    processes = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run_module(*processes, "-m", "cfld.train", *argv, OMP_NUM_THREADS="1")


def pack(run: Path, out: Path, commit: str) -> None:
    """Write the model folder in half precision, with training.json."""
    model, vae = load(run / list(TINY_RUNS)[-1] / "model")
    save(out, model.half(), vae.half(), replace=True)
    runs = [training_record(run / name) for name in ("vae", "source", *TINY_RUNS)]
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in runs)
    write_text(out / "training.json", f"[\n{lines}\n]\n")
    write_text(
        out / "README.md",
        front_matter("mit") + "# The bundled model\n\n"
        "The preset TINY in fp16, trained on synthetic people (`python -m cfld.people`) by `make tiny`. MIT, like the\n"
        "project.\n\n"
        "`training.json` is a list of runs, in order. Each run has its `name`, its `options` and its `log`: a list of\n"
        "tables, one for each kind of line in log.jsonl. A table maps each column to the list of its values.\n"
        "[docs/tiny.md](../../docs/tiny.md) shows what the model can do.\n\n"
        f"Begun at commit {commit}, packed on {date.today()}.\n",
    )


def training_record(run: Path) -> dict[str, Any]:
    """A run's name, its options, and its log: for each kind of line, a list of values by name."""
    log: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()):
        columns = log.setdefault(tuple(line), {name: [] for name in line})
        for name, value in line.items():
            columns[name].append(value)
    return {"name": run.name, "options": read_json(run / "config.json")["options"], "log": list(log.values())}


TURBO = "--batch 16 --steps 6000 --lr 2e-4 --warmup 100 --decay-at 0.8 --clip 1 --ema 0.95"


def turbo(options: argparse.Namespace) -> None:
    """Distil a model into its student, MODEL/turbo.safetensors, and measure it.

    The people and the cache are those of `tiny`, or --data and --cache. All UNet weights train, or adapters of --rank
    in --targets layers. The student is packed in half precision; then `turbo.py measure` measures it. With --compare, a
    student by the other recipe is trained equally long and measured, too, and stays in runs/turbo.

        python benchmarks/recipes.py turbo
        python benchmarks/recipes.py turbo --rank 8 --targets all       a student of two megabytes
        python benchmarks/recipes.py turbo --compare
    """
    model = options.model or bundled()
    data, cache = options.data or ROOT / "runs" / "tiny" / "people", options.cache or ROOT / "runs" / "tiny" / "cache"
    for recipe in DISTILLATIONS if options.compare else (options.distillation,):
        run = ROOT / "runs" / "turbo" / f"{recipe}_{options.rank}_{options.targets}"
        if not (run / "model").is_dir():
            stage = ["--stage", "distill", "--init", model, "--data", data, "--out", run, "--distillation", recipe]
            stage += ["--rank", options.rank, "--targets", options.targets, "--save-every", 250, "--resume"]
            stage += ["--cache", cache] if cache.is_dir() else []
            train_in_two_processes(*stage, *TURBO.split(), *(["--steps", options.steps] if options.steps else []))
        tensors, metadata = read_safetensors(run / TURBO_FILE, torch.float16)
        kept = recipe == options.distillation
        packed = model / TURBO_FILE if kept else run / "packed.safetensors"
        write_tensors(packed, tensors, metadata)
        print(f"wrote {packed}, {packed.stat().st_size / 1e6:.1f} MB")
        measured = [sys.executable, ROOT / "benchmarks" / "turbo.py", "measure", "--model", model, "--student", packed]
        subprocess.run(
            [*measured, *([] if kept and options.model is None else ["--out", run / "measured"])], check=True
        )


FROZEN = {"full_frozen": None, "B3_frozen": "B3", "B4_frozen": "B4"}  # around a frozen UNet; their baselines
ROWS = ("full", "B3", "B5", "B1", *FROZEN)  # of Table 3, in the order of training
ONCE = ("B1", *FROZEN)  # of these, with the first seed alone
TRAINING = (
    "--preset tiny --batch 16 --lr 4e-4 --warmup 200 --clip 1 --decay-at 0.8 --ema 0.999 "
    "--save-every 250 --sample-every 0"
)
PATIENCE = 2.0  # seconds between looks at the trainings
GARMENTS = ("top", "jacket", "bottom")
SHOWN = 6  # of the pairs, in the picture
MEASURES = {"error": 4, "IoU": 3, "PSNR": 2, "SSIM": 4, "garments": 4}  # and their decimals in the table


def ablations(options: argparse.Namespace) -> None:
    """Table 3 in small: TINY and its baselines, trained equally long.

    Trains the full model, B3 and B5 with each of the seeds and B1 with the first, each by python -m cfld.train in
    RUNS/STEPS_steps/ROW_seedN, with its output in ROW_seedN.log; the first seed of every row comes first. All rows have
    the same pairs, noise and timesteps in each step of a seed, and the parts that two rows share begin with the same
    weights. After each training, its EMA weights are measured on the pairs of `quality.py measure`, and the page is
    written again: the mean, and the standard deviation over seeds. At the end a picture is made.

    B2 is left out because CLIP has no small public encoder, and B4 because it is B3 where all of the UNet trains. With
    --base, a model folder of --stage base, there are three more rows, with the first seed: the full model, B3 and B4
    around that UNet, of which no more trains than in the paper. SIGTERM and Ctrl-C let the trainings save first.

        python benchmarks/recipes.py ablations --data people:2000x4 --init PARTS --steps 4000 --at-once 2
        python benchmarks/recipes.py ablations --data DIR --cache DIR --init PARTS --base BASE --steps 4000
    """
    require_skimage()
    check_pairs(options.pairs)
    if min(options.seeds, options.steps, options.at_once) < 1:
        raise UserError("--seeds, --steps and --at-once must be at least 1")
    signal.signal(signal.SIGTERM, stop)
    device = pick_device(options.device)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.at_once))  # it measures while others train
    path = results_path("ablations_small.json", options.out)
    asked = {
        "steps": options.steps,
        "pairs": options.pairs,
        "sample steps": options.sample_steps,
        "data": options.data,
        "init": str(options.init),
        "training": f"{TRAINING} {options.train}".strip(),
    }
    found = earlier_results(path, asked, bounds={}, runs={})

    folder = (options.runs or ROOT / "runs" / "ablations").resolve() / f"{options.steps}_steps"
    runs = {folder / f"{row}_seed{seed}": (row, seed) for row, seed in queue(options)}
    trainings = {run: arguments(options, row, seed, run) for run, (row, seed) in runs.items()}
    done = [run for run in runs if (run / "model").is_dir()]
    check_runs(runs, done, trainings, options.base)
    left = {run: argv for run, argv in trainings.items() if run not in done}
    for run in left:
        if (row := runs[run][0]) in FROZEN:
            begin(options.base, FROZEN[row], beginning(run))
    pairs: list[Pair] = []
    how, base = SamplingConfig(steps=options.sample_steps), options.base and sha256(options.base / "model.safetensors")
    with contextlib.closing(train(left, options.at_once, options.steps)) as trained:
        for run in itertools.chain(done, trained):
            row, seed = runs[run]
            weights = sha256(run / "model" / "model.safetensors")
            if (known := found["runs"].get(run.name, {})).get("weights") == weights:
                if row in FROZEN and known["base"] != base:
                    raise UserError(f"{run} has another base than {options.base}: choose another --runs")
                continue
            pairs = pairs or measure_pairs(options.pairs, TINY)
            model, vae = load(run / "model", device)
            found["bounds"] = found["bounds"] or measure_bounds(vae, pairs)
            measures = measure(pixels(generate_images(model, vae, pairs, how)), pairs)
            found["runs"][run.name] = {
                "row": row,
                "seed": seed,
                "weights": weights,
                "measures": measures,
                "made": machine(),
                **({"base": base} if row in FROZEN else {}),
            }
            write_json(path, found)
            write_text(docs_path("ablations_small.md", options.out), ablations_page(found))
            tqdm.write(summary_table(found))
    write_text(docs_path("ablations_small.md", options.out), ablations_page(found))
    save_picture(docs_path("ablations_small.webp", options.out), draw(runs, how, device))


def stop(number: int, frame: FrameType | None) -> None:
    """Turn SIGTERM into an exception, which train() passes on."""
    raise SystemExit(128 + number)


def queue(options: argparse.Namespace) -> list[tuple[str, int]]:
    """What is trained, in order: (row, seed)."""
    rows = [row for row in ROWS if row not in FROZEN or options.base]
    return [(row, seed) for seed in range(options.seeds) for row in rows if seed == 0 or row not in ONCE]


def arguments(options: argparse.Namespace, row: str, seed: int, out: Path) -> list[str]:
    """The arguments of cfld.train for one training."""
    given = {"data": options.data, "cache": options.cache, "init": options.init, "steps": options.steps}
    given |= {"seed": seed, "out": out}
    if row in FROZEN:
        given |= {"init": beginning(out), "config": beginning(out) / "config.json"}
    elif row != "full":
        given |= {"ablation": row}
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    return [*shlex.split(TRAINING), *words, *shlex.split(options.train)]


def beginning(run: Path) -> Path:
    """The model folder with which a row around a frozen UNet begins: beside its run."""
    return run.with_name(f"{run.name}_begin")


def begin(base: Path, baseline: str | None, folder: Path) -> None:
    """Write the base as the full model or as a baseline, without the parts that the baseline lacks."""
    model, vae = load(base)
    config = dataclasses.replace(model.config, unet_trainable="cross_kv")
    begun = build(ablation(config, baseline) if baseline else config)
    weights = model.state_dict()
    assign(begun, {name: weights[name] for name in begun.state_dict()}, str(base))
    save(folder, begun, vae, replace=True)


def check_runs(
    runs: dict[Path, tuple[str, int]], done: list[Path], trainings: dict[Path, list[str]], base: Path | None
) -> None:
    """Raise UserError if a run that is done had other options, or if the runs have several noise schedules."""
    for run in done:
        if differs := trained_otherwise(run, trainings[run]):
            raise UserError(f"{run} was trained with {differs}: choose another --runs, or remove it")
    schedules = {schedule(run, base if row in FROZEN else None): run.name for run, (row, _) in runs.items()}
    if len(schedules) > 1:
        those = ", ".join(f"{name}'s is {each}" for each, name in schedules.items())
        raise UserError(f"all rows must have one noise schedule: {those}; choose another --runs or --base")


def trained_otherwise(run: Path, argv: Sequence[str]) -> str | None:
    """The first option in which a run that is done differs from what is asked; None if there is none."""
    saved = read_json(run / "config.json")["options"]
    for flag, value in dict(zip(argv[::2], argv[1::2], strict=True)).items():  # of two, the last counts
        found = saved.get(flag.removeprefix("--").replace("-", "_"))
        if str(found) != value and (not isinstance(found, float) or found != float(value)):
            return f"{flag} {found}, not {value}"
    return None


def schedule(run: Path, base: Path | None) -> SchedulerConfig:
    """The noise schedule of a run: its own when it is done, that of its base or of TINY when it is not."""
    if (run / "model").is_dir():
        return read_config(run / "model" / "config.json").scheduler
    return read_config(base / "config.json").scheduler if base else TINY.scheduler


def steps_done(run: Path, steps: int) -> int:
    """How far a training has come, by its latest checkpoint."""
    return steps if (run / "model").is_dir() else max((step_of(path) for path in checkpoints(run)), default=0)


def train(trainings: dict[Path, list[str]], at_once: int, steps: int) -> Generator[Path]:
    """Train, or go on training, in these run folders with these arguments, as many at once, which share the cores.
    Yields each when it is done. When this process is stopped, so are they, and waited for. Raises UserError if one
    fails."""
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


def measure(pictures: Pictures, pairs: Sequence[Pair]) -> Numbers:
    """The means over the pairs: error on the person, IoU, PSNR, SSIM, and the error of the garments' mean colours."""
    rows = [score(picture, pair) for picture, pair in zip(pictures, pairs, strict=True)]
    garments = [row[part] for row in rows for part in GARMENTS if part in row]
    means = {name: mean([row[name] for row in rows]) for name in ("IoU", "PSNR", "SSIM")}
    return {"error": mean(errors(pictures, pairs)), **means, "garments": mean(garments)}


def measure_bounds(vae: VAE, pairs: Sequence[Pair]) -> Numbers:
    """What is known without a training: a trivial method, and the best that this VAE allows."""
    reconstructed = pixels(reconstruct(vae, images_of(pair.target for pair in pairs)))
    return {
        "copy of the source": measure(trivial_methods(pairs)["copy"], pairs),
        "the VAE's reconstruction": measure(reconstructed, pairs),
    }


def summary_table(found: Numbers) -> str:
    """The bounds, and by row the mean over seeds and their standard deviation, in Markdown."""
    lines = []
    for name, numbers in found["bounds"].items():
        lines.append((name, "", *(f"{numbers[measure]:.{places}f}" for measure, places in MEASURES.items())))
    for row in ROWS:
        of_row = [numbers["measures"] for numbers in found["runs"].values() if numbers["row"] == row]
        cells = []
        for name, places in MEASURES.items() if of_row else ():
            values = [numbers[name] for numbers in of_row]
            spread = f" ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.{places}f}{spread}")
        if cells:
            lines.append((row, str(len(of_row)), *cells))
    return table(("", "seeds", "error on the person", "IoU", "PSNR", "SSIM std", "garment colours"), lines)


def ablations_page(found: Numbers) -> str:
    """docs/ablations_small.md."""
    asked = found["asked"]
    head = paragraph(
        "Made by `python benchmarks/recipes.py ablations`. [ablations.md](ablations.md) explains the rows; rows with "
        f"_frozen are around a frozen UNet. {asked['steps']} training steps each; {asked['pairs']} pairs of people "
        f"that none was trained on, {asked['sample steps']} DDPM steps; mean ± standard deviation over seeds. Garment "
        "colours: error of the mean colours of tops, jackets and bottoms."
    )
    made = provenance(*(run["made"] for run in found["runs"].values()))
    return f"# Table 3 in small: the numbers\n\n{head}\n\n{made}\n\n{summary_table(found)}\n"


@torch.no_grad()
def draw(runs: dict[Path, tuple[str, int]], how: SamplingConfig, device: torch.device) -> Image.Image:
    """The first pairs: source, truth, and the results of each row's first seed, above their error on the person."""
    pairs = measure_pairs(SHOWN, TINY)
    columns = {"source": images_of(pair.source for pair in pairs), "truth": images_of(pair.target for pair in pairs)}
    for run, (row, seed) in runs.items():
        if seed == 0:
            model, vae = load(run / "model", device)
            columns[row] = generate_images(model, vae, pairs, how)
    tiles = []
    for name, images in columns.items():
        found = [f"{error:.3f}" for error in errors(pixels(images), pairs)] if name in ROWS else [""] * SHOWN
        tiles.append([Tile(*both) for both in zip(to_pictures(images, (192, 132)), found, strict=True)])
    titles = [(name, INK) for name in columns]
    return draw_figure(titles, list(zip(*tiles, strict=True)), "error on the person, less is better")


@command
def main(argv: list[str] | None = None) -> None:
    parser, commands = benchmark_parser(__file__, __doc__)
    add_command(commands, overfit)
    options = add_command(commands, tiny, out=False)
    options.add_argument("--out", type=Path, metavar="DIR", help="the model folder (default: weights/tiny)")

    options = add_command(commands, turbo, out=False)
    options.add_argument("--model", type=Path, metavar="DIR", help="the teacher (default: the bundled model)")
    options.add_argument("--data", type=Path, metavar="DIR", help="prepared people (default: those of tiny)")
    options.add_argument("--cache", type=Path, metavar="DIR", help="of --data (default: that of tiny)")
    options.add_argument("--distillation", choices=DISTILLATIONS, default="consistency", help="the recipe to keep")
    options.add_argument("--rank", type=int, default=0, help="of adapters; 0 trains all UNet weights")
    options.add_argument("--targets", choices=TARGETS, default="linear", help="layers with adapters")
    options.add_argument("--steps", type=int, help="of the training (default: 6000)")
    options.add_argument("--compare", action="store_true", help="train and measure both recipes")

    options = add_command(commands, ablations)
    options.add_argument("--data", required=True, help="a folder of cfld.people, or people:2000x4")
    options.add_argument("--init", required=True, metavar="DIR", help="model/ of a run of --stage source (or vae)")
    options.add_argument("--base", type=Path, metavar="DIR", help="model/ of a run of --stage base: three more rows")
    options.add_argument("--cache", metavar="DIR", help="what cfld.data cache has made of --data with this VAE")
    options.add_argument("--steps", type=int, required=True, help="of each training")
    options.add_argument("--at-once", type=int, default=1, help="trainings at a time, such as one per core")
    options.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    options.add_argument("--pairs", type=int, default=PAIRS, help=f"how many of the {PAIRS} pairs, from the first")
    options.add_argument("--sample-steps", type=int, default=50, help="of DDPM")
    options.add_argument("--runs", type=Path, metavar="DIR", help="folder of the trainings (default: runs/ablations)")
    options.add_argument("--train", default="", metavar="'OPTIONS'", help="more options of cfld.train, with values")
    options.add_argument("--device", help="to measure on (default: the best there is)")

    parsed = parser.parse_args(argv)
    parsed.run(parsed)


if __name__ == "__main__":
    raise SystemExit(main())
