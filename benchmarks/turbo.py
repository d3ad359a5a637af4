"""What a student of few steps keeps of its teacher's quality, on the pairs of benchmarks/quality.py.

    python benchmarks/turbo.py measure                                           docs/turbo_measures.md, turbo.webp
    python benchmarks/turbo.py measure --model DIR --student FILE --out runs/look      of another teacher, or student
    python benchmarks/turbo.py measure --pairs 12 --only scores --out runs/look        a quick look

recipes.py turbo makes the student. Needs scikit-image.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cloth import fabric_test
from common import (
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
    check_pairs,
    generate_images,
    images_of,
    measure_pairs,
    model_hashes,
    pixels,
    require_skimage,
    sheet,
    skeletons,
)
from quality import (
    add_batch_options,
    add_model_options,
    add_weights_option,
    scores_with_lpips,
    swap_pairs,
    swap_test,
)

from cfld import CFLD, VAE, load
from cfld.folder import TURBO_FILE, bundled, load_student
from cfld.sampling import PAPER, TURBO, SamplingConfig
from cfld.tools.cli import command, pick_device
from cfld.tools.files import sha256, write_json, write_text

STEPS = (4, 2, 8)
MEASURES = ("scores", "swap", "fabric", "grid")
NUMBERS = {"error": 4, "error / copy": 3, "LPIPS": 4, "PSNR": 2, "SSIM": 4, "IoU": 3}  # and their decimals
SHARES = ("right person", "right pose", "pattern, nearest", "pattern, most correlated")
TEACHER = "DDPM, 50 steps of two rows"
GOALS = {"error": 1.05, "LPIPS": 1.10}  # times the teacher's


def open_both(folder: Path, student: Path | None, device: str | None) -> tuple[CFLD, CFLD, VAE]:
    """A teacher, its student, and their VAE; student: a file in the place of the folder's turbo.safetensors."""
    teacher, vae = load(folder, pick_device(device))
    if student is None:
        return teacher, load_student(folder, teacher), vae
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(student, Path(place) / TURBO_FILE)
        return teacher, load_student(place, teacher), vae


def measure(options: argparse.Namespace) -> None:
    """DDPM with 50 steps against the student with 4, 2 and 8, on 200 pairs.

    Measures, for --only: scores (error on the person, LPIPS if its weights are in --weights, PSNR, SSIM, IoU), swap
    (the right person in the right pose), fabric (the right pattern), grid (twelve unselected pairs). Results are
    written after each; a later run with the same files, pairs and options adds to them.

        python benchmarks/turbo.py measure
        python benchmarks/turbo.py measure --pairs 12 --only scores grid --out runs/look
    """
    require_skimage()
    check_pairs(options.pairs, fewest=5)
    folder = options.model or bundled()
    teacher, student, vae = open_both(folder, options.student, options.device)
    ways: dict[str, tuple[CFLD, SamplingConfig]] = {TEACHER: (teacher, PAPER)}
    ways |= {f"--turbo, {n} steps": (student, replace(TURBO, steps=n)) for n in STEPS}
    generated = partial(generate_images, batch=options.batch, precision=options.precision)
    path, chosen = results_path("turbo.json", options.out), set(options.only or MEASURES)
    asked = {
        **model_hashes(folder),
        "student": sha256(options.student or folder / TURBO_FILE),
        "pairs": options.pairs,
        "precision": options.precision,
    }
    found = earlier_results(path, asked, rows={}, distilled=str(student.config.distilled))
    pairs, couples = measure_pairs(options.pairs, teacher.config), swap_pairs(options.pairs // 4, teacher.config)
    kept = {}
    for name, (model, how) in ways.items():
        row = found["rows"].setdefault(name, {})
        wanted = (chosen & {"scores", "fabric"}) - row.keys()
        if wanted or "grid" in chosen:
            kept[name] = generated(model, vae, pairs, how)
            row |= numbers_of(pixels(kept[name]), pairs, wanted, options, teacher)
        if "swap" in chosen and "swap" not in row:
            row["swap"] = swap_test(pixels(generated(model, vae, couples, how)), couples)
        found["made"] = machine()
        write_json(path, found)
        write_text(docs_path("turbo_measures.md", options.out), measures_page(found))
    if "grid" in chosen:
        sources, truths = images_of(p.source for p in pairs[:12]), images_of(p.target for p in pairs[:12])
        shown = [sources, skeletons(pairs[:12]), truths, kept[TEACHER][:12], kept["--turbo, 4 steps"][:12]]
        save_picture(docs_path("turbo.webp", options.out), sheet(shown, (192, 132), across=2))
    print(measures_page(found))


def numbers_of(
    pictures: Sequence, pairs: Sequence[Pair], wanted: set[str], options: argparse.Namespace, teacher: CFLD
) -> Numbers:
    """The scores and the test of cloths, if they are wanted."""
    numbers: Numbers = {}
    if "scores" in wanted:
        numbers["scores"] = scores_with_lpips({"result": pictures}, pairs, options.weights)["result"]
    if "fabric" in wanted:
        test = fabric_test({"result": pictures}, pairs, teacher.config)
        numbers["fabric"] = {key: test[key]["result"] for key in ("nearest", "most correlated")}
    return numbers


def measures_page(found: Numbers) -> str:
    """docs/turbo_measures.md."""
    rows, first = found["rows"], found["rows"].get(TEACHER, {}).get("scores", {})
    lines = []
    for name, row in rows.items():
        own, swap, fabric = row.get("scores", {}), row.get("swap", {}), row.get("fabric", {})
        cells = [f"{own[key]:.{n}f}" if own.get(key) is not None else "-" for key, n in NUMBERS.items()]
        shares = (*map(swap.get, SHARES[:2]), *(fabric.get(key.removeprefix("pattern, ")) for key in SHARES[2:]))
        times = [f"{own[key] / first[key]:.3f}" if own.get(key) and first.get(key) else "-" for key in GOALS]
        lines.append([name, *cells, *("-" if x is None else f"{x:.3f}" for x in shares), *times])
    goals = ", ".join(f"{key} at most {limit:g} times" for key, limit in GOALS.items())
    head = paragraph(
        f"Made by `python benchmarks/turbo.py measure` from {found['asked']['pairs']} pairs, "
        f"{found['asked']['precision']}; the student: {found['distilled']}. [tiny_measures.md](tiny_measures.md) "
        f"explains the columns. Goals for 4 steps: {goals} the teacher's, shares within 0.02."
    )
    titles = ["", *NUMBERS, *SHARES, *(f"{key}, times" for key in GOALS)]
    return f"# Four steps\n\n{head}\n\n{provenance(found['made'])}\n\n{table(titles, lines)}\n"


@command
def main(argv: list[str] | None = None) -> None:
    parser, commands = benchmark_parser(__file__, __doc__)
    options = add_command(commands, measure)
    options.add_argument("--only", nargs="+", choices=MEASURES, metavar="MEASURE", help="some of the measures")
    options.add_argument("--student", type=Path, metavar="FILE", help="a turbo.safetensors (default: the folder's)")
    add_weights_option(options)
    add_model_options(options, pairs=PAIRS)
    add_batch_options(options)
    parsed = parser.parse_args(argv)
    parsed.run(parsed)


if __name__ == "__main__":
    raise SystemExit(main())
