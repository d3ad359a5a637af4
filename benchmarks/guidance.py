"""Quality against the number of steps of each sampler, and against the two guidance scales of Eq. 7: a plot.

    python benchmarks/guidance.py                       docs/guidance.json and docs/guidance.png
    python benchmarks/guidance.py --model DIR --pairs 5 --out runs/guidance

The scores are those of benchmarks/people.py, on the first of its pairs. Each setting is written down when it is
measured, and a later run with the same model, pairs and precision goes on from there. Needs scikit-image.
"""

import argparse
from pathlib import Path
from typing import Any

from people import PAIRS, measure_pairs, paint, pixels, scores, scores_table, sums
from PIL import Image, ImageDraw
from report import machine

from cfld import load
from cfld.folder import bundled
from cfld.scheduler import SAMPLERS
from cfld.tools.cli import PRECISIONS, HelpFormatter, UserError, command, pick_device
from cfld.tools.files import read_json, write_json
from cfld.tools.pictures import save_image
from cfld.tools.plot import Points, draw_axes

ROOT = Path(__file__).parents[1]
STEPS, SCALE_STEPS = (5, 10, 20, 50), 50
POSE_SCALES, APPEARANCE_SCALES = (1.0, 2.0, 3.0), (1.0, 1.5, 2.0, 3.0, 4.0)
SHOWN = {"error / copy": "error on the person, over that of copying the source", "SSIM": "SSIM"}
COLOURS = ((31, 90, 170), (214, 96, 20), (40, 140, 60), (150, 50, 150))
Scores = dict[str, dict[str, Any]]


def settings() -> dict[str, dict[str, Any]]:
    """What paint is told, by name."""
    by_steps = {
        f"{sampler}, {steps} steps": {"sampler": sampler, "steps": steps} for sampler in SAMPLERS for steps in STEPS
    }
    by_scale = {
        f"scales {w_pose}/{w_app}": {"pose_scale": w_pose, "appearance_scale": w_app, "steps": SCALE_STEPS}
        for w_pose in POSE_SCALES
        for w_app in APPEARANCE_SCALES
    }
    return by_steps | by_scale


def draw(found: Scores) -> Image.Image:
    """The curves of SHOWN: on the left by steps, one a sampler; on the right by w_app, one a w_pose."""
    image = Image.new("RGB", (1300, 30 + 380 * len(SHOWN)), "white")
    canvas = ImageDraw.Draw(image)
    for row, (score, title) in enumerate(SHOWN.items()):
        steps: dict[str, Points] = {
            sampler: [(n, found[f"{sampler}, {n} steps"][score]) for n in STEPS] for sampler in SAMPLERS
        }
        scales: dict[str, Points] = {
            f"w_pose {w_pose:g}": [(w_app, found[f"scales {w_pose}/{w_app}"][score]) for w_app in APPEARANCE_SCALES]
            for w_pose in POSE_SCALES
        }
        top = 50 + 380 * row
        for left, curves, axis in ((80, steps, "steps"), (730, scales, "w_app")):
            lines = [(points, colour, 2) for points, colour in zip(curves.values(), COLOURS, strict=False)]
            legend = list(zip(curves, COLOURS, strict=False))
            draw_axes(canvas, (left, top, left + 540, top + 300), f"{title}, by {axis}", lines, legend)
    return image


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python benchmarks/guidance.py", description=__doc__, formatter_class=HelpFormatter
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="another model folder than the bundled one")
    parser.add_argument("--pairs", type=int, default=60, help=f"how many of the {PAIRS}, from the first")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "guidance", help="what the files' names begin with")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16", help="of products")
    parser.add_argument("--device", help="cuda, cpu, ... (default: the best there is)")
    options = parser.parse_args(argv)
    if not 1 <= options.pairs <= PAIRS:
        raise UserError(f"--pairs must be within 1 .. {PAIRS}, found {options.pairs}")

    folder = options.model or bundled()
    model, vae = load(folder, pick_device(options.device))
    asked = {
        **sums(folder),
        "pairs": options.pairs,
        "precision": options.precision,
    }
    path = options.out.with_name(f"{options.out.name}.json")
    before = read_json(path) if path.is_file() else {}
    found = before if before.get("asked") == asked else {"asked": asked, "scores": {}}
    pairs = measure_pairs(options.pairs, model.config)
    for name, how in settings().items():
        if name not in found["scores"]:
            print(name, flush=True)
            pictures = pixels(paint(model, vae, pairs, precision=options.precision, **how))
            found["scores"][name], found["made"] = scores(pictures, pairs), machine()
            write_json(path, found)
    columns = ("error", *SHOWN, "PSNR")
    print(scores_table({name: {key: row[key] for key in columns} for name, row in found["scores"].items()}))
    save_image(options.out.with_name(f"{options.out.name}.png"), draw(found["scores"]))


if __name__ == "__main__":
    raise SystemExit(main())
