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
import math
import platform
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torch.distributed as dist
from torch import Tensor

import cfld
from cfld.evaluate import figure, study
from cfld.evaluate.measure import digest, frechet, make_parts, mean_row, measure_part, real_statistics, statistics_of
from cfld.evaluate.metrics import INCEPTIONS, FeatureStatistics
from cfld.evaluate.painting import plan_generation
from cfld.evaluate.protocol import (
    FIDS,
    MEANINGS,
    NAME_HINT,
    SCORES,
    SIZES,
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
    table,
    the_truth,
)
from cfld.samplers import SAMPLERS
from cfld.tools.cli import PRECISIONS, UserError, command, command_parser
from cfld.tools.files import alone_in, atomic, read_json, refuse_overwrite, sha256, write_json
from cfld.tools.processes import Processes
from cfld.tools.tensors import read_safetensors


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
        paint_all = plan_generation(options, cases, processes)
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


COMMANDS = {"figure": figure.main, "study": study.main}


def main(argv: list[str] | None = None) -> int:
    """The command itself, or one of those that go by another first word."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    return evaluate(words)


if __name__ == "__main__":
    sys.exit(main())
