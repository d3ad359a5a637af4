"""The results of an evaluation: the table, next to the published rows of Table 2, and the files of numbers.

Letters in shapes: N images of a method, R methods, M scores.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfld.evaluate.measure import statistics_of
from cfld.evaluate.metrics import FeatureStatistics, fid
from cfld.evaluate.protocol import FIDS, SCORES, FolderSet, PairSet
from cfld.tools.files import atomic, write_json

Row = dict[str, float | None]  # the numbers of a method, by column
COLUMNS = {  # of the table, with their decimals: the paper's four, then the others
    "FID": 3, "LPIPS": 4, "SSIM": 4, "PSNR": 3, "FID std": 3, "SSIM-256": 4, "SSIM std": 4, "person": 4, "face": 4,
}  # fmt: skip
MEANINGS = {
    "FID": "fid_pgpis, to every photo of train.lst at the size; of two folders, to the truths",
    "LPIPS": "AlexNet, version 0.1, images in [-1, 1]",
    "SSIM": "uniform windows of 51x51, data range 1",
    "PSNR": "mean of the decibels of each image, data range 1",
    "FID std": "fid with the network of 2015, to the same set",
    "SSIM-256": "Gaussian windows of sigma 1.5, data range of the prediction",
    "SSIM std": "Gaussian windows of sigma 1.5, data range 1",
    "person": "mean absolute error in [0, 1] on the person",
    "face": "the same in the face box, over the pairs whose target shows a face",
}
TEST_PAIRS = 8570  # of DeepFashion, on which the published rows were measured
PUBLISHED: dict[tuple[int, int], dict[str, tuple[float | None, ...]]] = {  # Table 2: FID, LPIPS, SSIM, PSNR
    (256, 176): {
        "PATN": (20.728, 0.2533, 0.6714, None),
        "ADGAN": (14.540, 0.2255, 0.6735, None),
        "GFLA": (9.827, 0.1878, 0.7082, None),
        "PISE": (11.518, 0.2244, 0.6537, None),
        "SPGNet": (16.184, 0.2256, 0.6965, 17.222),
        "DPTN": (17.419, 0.2093, 0.6975, 17.811),
        "NTED": (8.517, 0.1770, 0.7156, 17.740),
        "CASD": (13.137, 0.1781, 0.7224, 17.880),
        "PIDM (checkpoint)": (6.812, 0.2006, 0.6621, 15.630),
        "PIDM (released images)": (6.440, 0.1686, 0.7109, 17.399),
        "PoCoLD": (8.067, 0.1642, 0.7310, None),
        "CFLD": (6.804, 0.1519, 0.7378, 18.235),
        "VAE reconstruction": (7.967, 0.0104, 0.9660, 33.515),
        "ground truth": (7.847, 0.0, 1.0, math.inf),
    },
    (512, 352): {
        "CoCosNet2": (13.325, 0.2265, 0.7236, None),
        "NTED": (7.645, 0.1999, 0.7359, 17.385),
        "PoCoLD": (8.416, 0.1920, 0.7430, None),
        "CFLD": (7.149, 0.1819, 0.7478, 17.645),
        "VAE reconstruction": (8.187, 0.0217, 0.9231, 30.214),
        "ground truth": (8.010, 0.0, 1.0, math.inf),
    },
}


def mean_row(scores: Tensor) -> Row:
    """scores (N, M) of a method -> the mean of each over the images that have it; None if none has."""
    columns = {name: column[~column.isnan()] for name, column in zip(SCORES, scores.T, strict=True)}
    return {name: column.mean().item() if len(column) else None for name, column in columns.items()}


def table(rows: dict[str, Row], size: tuple[int, int], comparable: bool = True, to_truths: bool = False) -> str:
    """Measured rows, one line each, below the published ones of the size if they are comparable.

    to_truths: the FIDs are distances to the truths, and are called so
    """
    published = {
        f"{name} (published)": dict(zip(COLUMNS, values, strict=False))
        for name, values in PUBLISHED.get(size, {}).items()
        if comparable
    }
    width = max(map(len, [*published, *rows]))
    called = {name: f"{name} to truths" if to_truths and name in FIDS else name for name in COLUMNS}
    cell = {name: max(len(title), 7) + 2 for name, title in called.items()}

    def line(name: str, row: dict[str, Any]) -> str:
        values = {c: "-" if row.get(c) is None else f"{row[c]:.{digits}f}" for c, digits in COLUMNS.items()}
        return f"{name:{width}}" + "".join(f"{values[c]:>{cell[c]}}" for c in COLUMNS)

    head = f"{f'{size[0]}x{size[1]}':{width}}" + "".join(f"{called[c]:>{w}}" for c, w in cell.items())
    return "\n".join([head, *(line(name, row) for name, row in {**published, **rows}.items())])


def make_rows(
    methods: Sequence[str], parts: Sequence[dict[str, Tensor]], real: dict[str, FeatureStatistics]
) -> dict[str, Row]:
    """The table's row of each method.

    parts: what measure_part returned, in order
    real: by FID, the statistics of the real set; without one, the distance is to the last method, which is the truth
    """
    scores = torch.cat([part["scores"] for part in parts])
    rows = {name: mean_row(scores[:, r]) for r, name in enumerate(methods)}
    for metric in (metric for metric in FIDS if metric in parts[0]):
        sets = [statistics_of([part[metric][:, r] for part in parts]) for r in range(len(methods))]
        there = real.get(metric, sets[-1])
        for name, here in zip(methods, sets, strict=True):
            enough = min(here.count, there.count) > 1  # one image has no covariance
            rows[name][metric] = fid(here.mean, here.covariance, there.mean, there.covariance) if enough else None
    return rows


def write_csv(path: Path, cases: PairSet | FolderSet, methods: Sequence[str], scores: Tensor) -> None:
    """Write scores (N, R, M), one line per image, each method's lines together; empty where nothing was measured."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", *cases.columns, *SCORES])
        for r, method in enumerate(methods):
            for i, values in enumerate(scores[:, r].tolist()):
                numbers = ["" if math.isnan(value) else repr(value) for value in values]
                writer.writerow([method, *cases.names(i), *numbers])


def write_results(
    out: Path,
    cases: PairSet | FolderSet,
    methods: Sequence[str],
    parts: Sequence[dict[str, Tensor]],
    real: dict[str, FeatureStatistics],
    facts: dict[str, Any],
) -> None:
    """Write numbers.csv and manifest.json, and print the table. parts, real: see make_rows; facts: how the images were
    made and measured."""
    scores, rows = torch.cat([part["scores"] for part in parts]), make_rows(methods, parts, real)
    whole = len(cases) == cases.whole
    manifest = {
        **facts,
        "partial": not whole,
        "rows": {  # JSON has no infinity
            name: {column: "inf" if value == math.inf else value for column, value in row.items()}
            for name, row in rows.items()
        },
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
