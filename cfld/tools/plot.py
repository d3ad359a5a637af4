"""Plot the losses and learning rate of a training run.

python -m cfld.tools.plot RUN        reads RUN/log.jsonl, writes RUN/plot.png
"""

import itertools
import json
import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cfld.tools.cli import UserError, command, command_parser
from cfld.tools.files import read_text
from cfld.tools.pictures import save_image

Points = list[tuple[float, float]]  # (step, value), by step
Colour = tuple[int, int, int]
WIDTH, HEIGHT = 1000, 640
INK, GRID, RAW, SMOOTH, VALIDATION = (40, 40, 40), (225, 225, 225), (190, 208, 232), (31, 90, 170), (214, 96, 20)


def read_log(path: Path) -> dict[str, Points]:
    """The curves in a log.jsonl by name, without values that are not finite. Skips a line that a kill has cut short
    or that is none of a log. Raises UserError if there is no loss."""
    curves: dict[str, Points] = {}
    for line in read_text(path).splitlines():
        try:
            values = json.loads(line)
            points = {name: (values["step"], value) for name, value in values.items() if math.isfinite(value)}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            continue
        for name, point in points.items():
            if name != "step":
                curves.setdefault(name, []).append(point)
    if not curves.get("loss"):
        raise UserError(f"{path} must hold the loss of at least one step, found none: train with a smaller --log-every")
    return curves


def smooth(points: Points) -> Points:
    """The running mean over a twentieth of all points, over fewer near the ends."""
    reach, count = len(points) // 40, len(points)
    sums = [0.0, *itertools.accumulate(value for _, value in points)]
    ends = ((max(i - reach, 0), min(i + reach + 1, count)) for i in range(count))
    return [(step, (sums[b] - sums[a]) / (b - a)) for (step, _), (a, b) in zip(points, ends, strict=True)]


def ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers within low .. high."""
    unit = 10 ** math.floor(math.log10((high - low) / 3))
    unit *= next(m for m in (5, 2, 1) if (high - low) / (m * unit) >= 3 - 1e-9)
    return [i * unit for i in range(math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9) + 1)]


def number(value: float) -> str:
    """A number in as few digits as make it clear."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def draw_axes(
    canvas: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    title: str,
    curves: list[tuple[Points, Colour, int]],
    legend: list[tuple[str, Colour]],
    from_zero: bool = False,
) -> None:
    """Draw curves (points, colour, width) and numbered axes in a box (left, top, right, bottom).

    from_zero: the vertical axis begins at 0

    The largest hundredth of the values may lie outside, so that a wild beginning does not flatten the rest.
    """
    left, top, right, bottom = box
    font = ImageFont.load_default()
    steps = [step for points, _, _ in curves for step, _ in points]
    values = sorted(value for points, _, _ in curves for _, value in points)
    low, high = values[0], values[math.ceil(0.99 * (len(values) - 1))]
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = 0.0 if from_zero else low - margin, high + margin
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def place(step: float, value: float) -> tuple[float, float]:
        height = min(max((value - low) / (high - low), 0), 1)
        return left + (step - first) / (last - first) * (right - left), bottom - height * (bottom - top)

    for value in ticks(low, high):
        y = place(first, value)[1]
        canvas.line([(left, y), (right, y)], fill=GRID)
        canvas.text((left - 8, y), number(value), fill=INK, font=font, anchor="rm")
    for step in ticks(first, last):
        x = place(step, low)[0]
        canvas.line([(x, top), (x, bottom)], fill=GRID)
        canvas.text((x, bottom + 6), number(step), fill=INK, font=font, anchor="ma")
    for points, colour, width in curves:
        corners = [place(*point) for point in points]
        canvas.line(corners, fill=colour, width=width, joint="curve")
        if len(points) < 40:
            for x, y in corners:
                canvas.ellipse([x - width, y - width, x + width, y + width], fill=colour)
    canvas.rectangle(box, outline=INK)
    canvas.text((left, top - 8), title, fill=INK, font=font, anchor="ls")
    for name, colour in legend:
        canvas.text((right, top - 8), name, fill=colour, font=font, anchor="rs")
        right -= int(font.getlength(name)) + 20


def draw_log(curves: dict[str, Points]) -> Image.Image:
    """Curves as read_log returns them -> an image of the losses and, below, the learning rate."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    canvas = ImageDraw.Draw(image)
    losses = [(curves["loss"], RAW, 1), (smooth(curves["loss"]), SMOOTH, 3)]
    legend = [("running mean", SMOOTH), ("as logged", (130, 155, 195))]
    if validation := curves.get("validation loss"):
        losses.append((validation, VALIDATION, 2))
        legend.insert(0, ("validation", VALIDATION))
    draw_axes(canvas, (90, 40, WIDTH - 30, 400), "loss by step", losses, legend)
    if rates := curves.get("lr"):
        draw_axes(canvas, (90, 460, WIDTH - 30, HEIGHT - 40), "learning rate by step", [(rates, SMOOTH, 2)], [])
    return image


def plot(run: Path) -> Path:
    """Write plot.png into a run folder. Returns its path. Raises UserError if the folder holds no log."""
    if not (run / "log.jsonl").is_file():
        raise UserError(f"{run} must be a run folder of cfld.train, found no log.jsonl in it")
    save_image(run / "plot.png", draw_log(read_log(run / "log.jsonl")))
    return run / "plot.png"


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.tools.plot", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="the --out folder of cfld.train")
    print(f"wrote {plot(parser.parse_args(argv).run)}")


if __name__ == "__main__":
    sys.exit(main())
