"""Evaluation (Sec. 4.2, Table 2): generate the test images, or take any method's images, and measure them.

    python -m cfld.evaluate --model DIR --data ROOT --size 256x176 --out OUT     generate for all test pairs, measure
    python -m cfld.evaluate --pred FOLDER --data ROOT --size 256x176 --out OUT   images that any method has made
    python -m cfld.evaluate --ground-truth --data ROOT --out OUT                 Table 2's last row of a size
    python -m cfld.evaluate --vae DIR --data ROOT --out OUT                      the row above it
    python -m cfld.evaluate --pred A --truth B --out OUT                         two folders, paired by name
    python -m cfld.evaluate figure ...                                           Fig. 3 and 5: images side by side
    python -m cfld.evaluate study ...                                            Fig. 4: the user study
    python -m cfld.evaluate --processes 2 ...                                    the same, divided among 2 processes
    torchrun --nproc-per-node 8 -m cfld.evaluate ...                             the same, on the GPUs of a machine

OUT/numbers.csv gets every image's numbers, OUT/manifest.json the table and how it was made, OUT/pictures/ the generated
images. Give an interrupted command again to continue it. LPIPS and FID need public weights: the command says which file
is missing and where to download it. docs/evaluation.md says what each number means.
"""

import argparse
import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import nn

import cfld
from cfld.evaluate import figure, study
from cfld.evaluate.generation import plan_generation
from cfld.evaluate.measure import digest, make_parts, measure_part, real_statistics
from cfld.evaluate.metrics import FeatureStatistics
from cfld.evaluate.protocol import (
    FIDS,
    NAME_HINT,
    SIZES,
    WEIGHTS,
    FolderSet,
    Method,
    PairSet,
    baselines,
    check_pictures,
    files_method,
    find_pictures,
    load_network,
    missing_weights,
    the_truth,
)
from cfld.evaluate.results import write_results
from cfld.evaluate.weights import INCEPTIONS
from cfld.samplers import SAMPLERS
from cfld.sampling import TURBO_HELP
from cfld.tools.cli import DEVICE_HELP, PRECISIONS, UserError, command, command_parser, unknown_command
from cfld.tools.files import alone_in, read_json, refuse_overwrite, sha256
from cfld.tools.processes import Processes, in_processes, join
from cfld.tools.tensors import read_safetensors


def parser() -> argparse.ArgumentParser:
    options = command_parser("cfld.evaluate", __doc__)
    measured, data, output, images, machine = map(
        options.add_argument_group,
        (
            "what to measure, one of these",
            "ground truth and weights of the metrics",
            "output",
            "generating images, with --model",
            "precision, processes and devices",
        ),
    )
    what = measured.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, metavar="DIR", help="generate with this model folder")
    what.add_argument("--pred", type=Path, metavar="FOLDER", help="measure the images in a folder")
    what.add_argument("--vae", type=Path, metavar="DIR", help="reconstruct the ground truth with this folder's VAE")
    what.add_argument("--ground-truth", action="store_true", help="measure the ground truth itself")
    data.add_argument("--data", type=Path, metavar="ROOT", help="a folder that cfld.data prepared: its test pairs")
    data.add_argument(
        "--truth", type=Path, metavar="FOLDER", help="instead of --data, with --pred: ground truth, by name"
    )
    data.add_argument("--size", choices=SIZES, default="256x176", help="height and width of the test, with --data")
    data.add_argument("--limit", type=int, metavar="N", help="only the first N pairs; the results say so")
    data.add_argument(
        "--weights", type=Path, default=Path("weights/metrics"), metavar="DIR", help="folder of the public weight files"
    )
    output.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder to write")
    output.add_argument("--name", help="name of the table row (default: the folder's)")
    output.add_argument("--force", action="store_true", help="replace numbers.csv and manifest.json, keep images")
    images.add_argument("--sampler", choices=SAMPLERS, help="sampler (default: ddpm, the paper's)")
    images.add_argument("--steps", type=int, help="sampling steps (default: 50)")
    images.add_argument("--turbo", action="store_true", help=TURBO_HELP)
    images.add_argument("--pose-scale", type=float, default=2.0, help="w_pose of Eq. 7")
    images.add_argument("--appearance-scale", type=float, default=2.0, help="w_app of Eq. 7")
    images.add_argument("--seed", type=int, default=0, help="of the noise")
    images.add_argument("--batch", type=int, default=8, help="images at a time; changes results only by rounding")
    machine.add_argument(
        "--precision", choices=PRECISIONS, help="of the weights (default: of --model bf16 where hardware has it)"
    )
    machine.add_argument("--device", help=DEVICE_HELP)
    machine.add_argument("--processes", type=int, default=1, help="that share the work, and a CPU's cores")
    machine.add_argument(
        "--timeout", type=float, default=30, help="minutes to wait for another process before giving up"
    )
    return options


def open_set(options: argparse.Namespace) -> PairSet | FolderSet:
    """The cases that the options ask for. Raises UserError for options that exclude each other."""
    if options.truth is None and options.data is None:
        other = " (or with --pred A, the folder of its ground truth by --truth B)" if options.pred else ""
        raise UserError(f"--data must be given: a prepared folder, whose test pairs are measured{other}")
    if options.truth:
        if not options.pred:
            raise UserError("--truth must be given with --pred, the folder of images that it is the truth of")
        for name in ("data", "limit"):
            if getattr(options, name) is not None:
                raise UserError(f"--truth must be given without --{name}: all images of its folder are measured")
        return FolderSet(options.pred, options.truth)
    for name, least in (("batch", 1), ("seed", 0)):
        if (value := getattr(options, name)) < least:
            raise UserError(f"--{name} must be {least} or more, found {value}")
    return PairSet(options.data, SIZES[options.size], options.limit)


def row_name(options: argparse.Namespace, others: Iterable[str]) -> str:
    """The name of the measured row. Raises UserError if another row has it."""
    folder: Path | None = options.model or options.pred
    name = options.name or ("ground truth" if options.ground_truth else folder.resolve().name if folder else "VAE")
    if name in others:
        raise UserError(f"--name must not be that of another row, found {name}: choose another")
    return name


def images_to_measure(
    options: argparse.Namespace, cases: PairSet | FolderSet, processes: Processes
) -> tuple[Method, dict[str, Any]]:
    """The method that the options ask for, and what a manifest says about its images. Raises UserError if one of them
    is missing or cannot be measured."""
    if options.ground_truth:
        return the_truth, {"pictures": "the truths"}
    if isinstance(cases, FolderSet):
        paths, folder, hint = cases.pictures, options.pred, ""
    else:
        folder = options.pred or options.out / "pictures"
        paths, hint = find_pictures(folder, cases.pairs), NAME_HINT
    facts = {"folder": str(folder.resolve()), **check_pictures(paths, cases.size, hint, quiet=not processes.is_main)}
    if (folder / "manifest.json").is_file():
        facts["made with"] = read_json(folder / "manifest.json")
    return files_method(paths, cases.size), facts


def load_networks(folder: Path, processes: Processes) -> tuple[dict[str, nn.Module], dict]:
    """The networks by metric, and what a manifest says about their files. A metric whose files are missing is left out,
    and the missing files are printed. Raises UserError for wrong files."""
    missing = {metric: missing_weights(folder, metric) for metric in WEIGHTS}
    lines = [line for lines in missing.values() for line in lines]
    for line in lines:
        processes.print(line)
    networks = {metric: load_network(folder, metric).to(processes.device) for metric in WEIGHTS if not missing[metric]}
    sums = {file: sha256(folder / file) for metric in networks for file in WEIGHTS[metric]}
    return networks, {"weights": sums, "weights missing": lines}


def versions(device: torch.device) -> dict[str, str]:
    """What a manifest says about the software."""
    libraries = {"cfld": cfld, "torch": torch, "pillow": PIL, "numpy": np}
    found = {name: library.__version__ for name, library in libraries.items()}
    return {**found, "python": platform.python_version(), "device": device.type}


@command
def evaluate(argv: list[str]) -> None:
    if argv and not argv[0].startswith("-"):
        raise UserError(unknown_command(argv[0], list(COMMANDS)))
    options = parser().parse_args(argv)
    if options.processes < 1:
        raise UserError(f"--processes must be at least 1, found {options.processes}")
    if options.processes > 1 and "WORLD_SIZE" not in os.environ:
        if code := in_processes(options.processes, "cfld.evaluate", argv):
            raise UserError(f"a process has stopped with exit code {code}: its own error is above")
        return
    with join(options.device, options.timeout) as processes:
        evaluate_here(options, processes)
        processes.wait_for_work()  # of the main process, which writes the results


def evaluate_here(options: argparse.Namespace, processes: Processes) -> None:
    """The evaluation, by one of several processes."""
    # What can fail comes before what takes long: options, weights, images.
    torch.backends.cudnn.allow_tf32 = False  # a GPU must give the numbers of a CPU
    cases = open_set(options)
    others: dict[str, Method] = baselines(cases) if isinstance(cases, PairSet) else {"truth": the_truth}
    name = row_name(options, others)
    if not options.force:
        for file in ("numbers.csv", "manifest.json"):
            refuse_overwrite(options.out / file, force=False)
    networks, weights = load_networks(options.weights, processes)
    processes.barrier()  # until all have looked at the folder

    with alone_in(options.out) if processes.is_main else contextlib.nullcontext():
        generate = None
        if isinstance(cases, PairSet) and (options.model or options.vae):
            generate = plan_generation(options, cases, processes)
        else:
            method, made = images_to_measure(options, cases, processes)

        # The real set of FID, which other runs share.
        real: dict[str, FeatureStatistics] = {}
        if isinstance(cases, PairSet):
            for metric in (metric for metric in FIDS if metric in networks):
                file = weights["weights"][INCEPTIONS[FIDS[metric]]]
                real[metric] = real_statistics(cases, metric, networks[metric], file, options.out, processes)

        # The images.
        if generate is not None:
            generate()
            method, made = images_to_measure(options, cases, processes)
        methods = {name: method, **others}

        # The numbers: each process measures its share of the parts.
        facts = {
            "methods": [*methods],
            "set": cases.facts(),
            "size": cases.size,
            "pictures": made,
            **weights,
            "real sets": {metric: statistics.label for metric, statistics in real.items()},
            "versions": versions(processes.device),
        }
        measured = partial(measure_part, cases=cases, methods=methods, networks=networks, device=processes.device)
        folder = options.out / f".parts_{digest(facts)}"
        parts = make_parts(folder, len(cases), measured, processes, "measuring")
        if processes.is_main:
            write_results(options.out, cases, list(methods), [read_safetensors(p)[0] for p in parts], real, facts)
            for folder in (*options.out.glob(".parts_*"), *options.out.glob(".real_*")):
                shutil.rmtree(folder)


COMMANDS = {"figure": figure.main, "study": study.main}


def main(argv: list[str] | None = None) -> int:
    """Run the evaluation, or the command that the first word names."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    return evaluate(words)


if __name__ == "__main__":
    sys.exit(main())
