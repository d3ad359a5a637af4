"""The user study (Sec. 4.4, Fig. 4): a page that asks volunteers, and the numbers from their answers.

    python -m cfld.evaluate study build --data ROOT ours=results/cfld PIDM=results/pidm --out study.html
    python -m cfld.evaluate study score --key study.key.json answers-*.json --out fig4.json

The page holds its images and no name of a method; study.key.json, which volunteers do not get, says what they saw.
Part 1 shows 30 real and 30 generated images and asks of each which it is. A volunteer sees the images of one method;
all methods' are of the same pairs. Part 2 shows the ground truth and asks which method's image matches it best. In
percent:

    R2G   real images in part 1 that were taken for generated, by the volunteers who saw this method's images
    G2R   images of the method in part 1 that were taken for real
    Jab   questions in part 2 whose answer was the method's image

Intervals are 95 % intervals by bootstrap. One volunteer's answers are correlated, so whole volunteers are resampled.

Letters in shapes: V volunteers.
"""

import base64
import hashlib
import io
import json
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from cfld.data.deepfashion import read_pairs, table_path
from cfld.evaluate.protocol import NAME_HINT, find_pictures
from cfld.photos.crop import same_shape
from cfld.tools.cli import UserError, command, command_parser, parse_seed, parse_size
from cfld.tools.files import read_json, refuse_overwrite, write_json, write_text
from cfld.tools.pictures import read_image, save_image
from cfld.tools.plot import GRID, INK, ticks

MEASURES = ("R2G", "G2R", "Jab")
ANSWERS = ("real", "generated")  # of part 1
RESAMPLES = 10_000  # of the bootstrap
COLOURS = (  # Okabe and Ito's, which the colour-blind can distinguish
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (204, 121, 167), (86, 180, 233), (240, 228, 66),
)  # fmt: skip
Pair = tuple[str, str]


def result_paths(folder: Path, pairs: list[Pair]) -> dict[Pair, Path]:
    """The images of these pairs in a folder of results. Raises UserError if one is missing."""
    paths = find_pictures(folder, pairs)
    if missing := [path.name for path in paths if not path.is_file()]:
        raise UserError(f"{folder} must hold an image of every pair, lacks {missing[0]}{NAME_HINT}")
    return dict(zip(pairs, paths, strict=True))


def choose_pairs(pairs: list[Pair], judged: int, compared: int, rng: np.random.Generator) -> list[list[Pair]]:
    """Draw pairs to show the truth of, the result of, and both: (judged, judged, compared) of them. No target comes
    twice, so that no image helps to judge another. Raises UserError if there are too few."""
    chosen: dict[str, Pair] = {}
    for i in rng.permutation(len(pairs)):
        chosen.setdefault(pairs[i][1], pairs[i])
    needed = 2 * judged + compared
    if len(chosen) < needed:
        raise UserError(
            f"the pairs must have {needed} different targets ({judged} real, {judged} generated, {compared} to "
            f"compare), found {len(chosen)}: give smaller --judged and --compared"
        )
    drawn = list(chosen.values())
    return [drawn[:judged], drawn[judged : 2 * judged], drawn[2 * judged : needed]]


def embed(path: Path, size: tuple[int, int]) -> str:
    """An image as a JPEG of this (height, width) in base64, so that neither size nor format gives its source away.
    Raises UserError if it would have to be enlarged or distorted, which would give the method away, too."""
    buffer, picture = io.BytesIO(), read_image(path)
    if picture.height < size[0] or not same_shape(size, (picture.height, picture.width)):
        raise UserError(
            f"{path} must be of {size[0]}x{size[1]} (--size, height x width) or larger, in the same shape, found "
            f"{picture.height}x{picture.width}: resize or crop all of them alike"
        )
    picture = picture.resize(size[::-1], Image.Resampling.BICUBIC)
    picture.save(buffer, "jpeg", quality=95, subsampling=0)
    return base64.b64encode(buffer.getvalue()).decode()


def build(
    data: Path, methods: dict[str, Path], judged: int, compared: int, size: tuple[int, int], seed: int
) -> tuple[str, dict[str, Any]]:
    """Make a study from the test pairs of a prepared folder -> the page and its key. Raises UserError.

    methods: folders of results by name, each with all pairs
    judged: number of real images in part 1, and as many generated ones
    compared: number of questions in part 2
    size: (height, width) of all images
    seed: of the choice of pairs, and of all orders
    """
    for name, count in (("--judged", judged), ("--compared", compared)):
        if count < 0:
            raise UserError(f"{name} must be at least 0, found {count}")
    if judged + compared == 0:
        raise UserError("a study must ask something, found --judged 0 and --compared 0: make one of them larger")
    if compared and len(methods) < 2:
        raise UserError("part 2 must compare two methods or more, found one: give another, or --compared 0")
    rng = np.random.default_rng(seed)
    real, generated, both = choose_pairs(read_pairs(table_path(data, "pairs", "test")), judged, compared, rng)

    def truth(pair: Pair) -> Path:
        return data / "test_highres" / pair[1]

    results = {name: result_paths(folder, [*generated, *both]) for name, folder in methods.items()}
    groups, questions = [], []  # what the key says about part 1 and part 2
    for name in rng.permutation(list(methods)).tolist():
        shown = [(truth(pair), "real") for pair in real]
        shown += [(results[name][pair], "generated") for pair in generated]
        shown = [shown[i] for i in rng.permutation(len(shown))]
        groups.append(
            {"method": name, "pictures": [str(path) for path, _ in shown], "answers": [answer for _, answer in shown]}
        )
    for pair in both:
        order = rng.permutation(list(methods)).tolist()
        pictures = [str(results[name][pair]) for name in order]
        questions.append({"truth": str(truth(pair)), "pictures": pictures, "methods": order})

    used = {path for group in groups for path in group["pictures"]}
    used |= {path for question in questions for path in (question["truth"], *question["pictures"])}
    paths = [sorted(used)[i] for i in rng.permutation(len(used))]
    number = {path: i for i, path in enumerate(paths)}
    study = {
        "judged": [[number[path] for path in group["pictures"]] for group in groups],
        "compared": [
            {"truth": number[question["truth"]], "pictures": [number[path] for path in question["pictures"]]}
            for question in questions
        ],
        "pictures": [embed(Path(path), size) for path in tqdm(paths, desc="images", unit="image")],
    }
    study["study"] = hashlib.sha256(json.dumps(study).encode()).hexdigest()[:12]
    page = (
        (resources.files("cfld.evaluate") / "study.html")
        .read_text(encoding="utf-8")
        .replace("THE STUDY", json.dumps(study))
    )
    return page, {"study": study["study"], "methods": list(methods), "judged": groups, "compared": questions}


@dataclass(frozen=True)
class Answers:
    """One volunteer's answers, as shares in 0 .. 1."""

    method: str  # whose images were judged
    r2g: float
    g2r: float
    jab: dict[str, float]  # by method


def is_key(content: Any) -> bool:
    """Whether this is the key of a study, as build makes it."""
    try:
        methods, judged, compared = content["methods"], content["judged"], content["compared"]
        answers = [answer for group in judged for answer in group["answers"]]
        seen = [group["method"] for group in judged] + [name for each in compared for name in each["methods"]]
        return "study" in content and len(judged) > 0 and set(answers) <= set(ANSWERS) and set(seen) <= set(methods)
    except (TypeError, KeyError):
        return False


def read_answers(path: Path, key: dict[str, Any]) -> tuple[int, Answers]:
    """A file that the page has saved -> the volunteer's number and answers. Raises UserError."""
    content = read_json(path)
    if not isinstance(content, dict) or not {"study", "volunteer", "judged", "compared"} <= set(content):
        raise UserError(f"{path}: must be answers that the page has saved")
    if content["study"] != key["study"]:
        raise UserError(f"{path}: must answer study {key['study']}, the key's, found {content['study']}")
    volunteer, judged, compared = content["volunteer"], content["judged"], content["compared"]
    if type(volunteer) is not int or volunteer < 1:
        raise UserError(f"{path}: the volunteer must be a number from 1 on, found {volunteer!r}")
    group = key["judged"][(volunteer - 1) % len(key["judged"])]
    truth, questions = group["answers"], key["compared"]
    if not isinstance(judged, list) or len(judged) != len(truth) or not all(answer in ANSWERS for answer in judged):
        raise UserError(f"{path}: part 1 must have {len(truth)} answers, each real or generated")
    if not isinstance(compared, list) or len(compared) != len(questions):
        raise UserError(f"{path}: part 2 must have {len(questions)} answers")
    wins = dict.fromkeys(key["methods"], 0)
    for question, answer in zip(questions, compared, strict=True):
        if type(answer) is not int or not 0 <= answer < len(question["methods"]):
            raise UserError(f"{path}: answers of part 2 must be within 0 .. {len(wins) - 1}, found {answer!r}")
        wins[question["methods"][answer]] += 1
    wrong = {a: [said != a for said, true in zip(judged, truth, strict=True) if true == a] for a in ANSWERS}
    return volunteer, Answers(
        group["method"],
        r2g=float(np.mean(wrong["real"])) if truth else np.nan,
        g2r=float(np.mean(wrong["generated"])) if truth else np.nan,
        jab={name: count / len(questions) if questions else np.nan for name, count in wins.items()},
    )


def interval(shares: np.ndarray) -> list[float] | None:
    """Volunteers' shares (V,) -> the middle 95 % of the means of resampled volunteers; None for fewer than two."""
    if len(shares) < 2:
        return None
    draws = np.random.default_rng(0).integers(len(shares), size=(RESAMPLES, len(shares)))
    return np.percentile(shares[draws].mean(axis=1), [2.5, 97.5]).tolist()


def score(answers: list[Answers], methods: list[str]) -> dict[str, dict[str, Any]]:
    """All volunteers' answers -> by method R2G, G2R, Jab and their intervals in percent; None if nobody was asked."""
    scores = {}
    for name in methods:
        own = [a for a in answers if a.method == name]
        shares = {"R2G": [a.r2g for a in own], "G2R": [a.g2r for a in own], "Jab": [a.jab[name] for a in answers]}
        entry: dict[str, Any] = {"volunteers": len(own)}
        for measure, values in shares.items():
            percent = 100 * np.array(values)
            asked = len(percent) > 0 and not np.isnan(percent).any()
            entry[measure] = percent.mean() if asked else None
            entry[f"{measure} interval"] = interval(percent) if asked else None
        scores[name] = entry
    return scores


def draw_bars(scores: dict[str, dict[str, Any]], width: int = 900, height: int = 420) -> Image.Image:
    """Fig. 4: one group of bars per measure, one bar per method, with intervals."""
    image = Image.new("RGB", (width, height), "white")
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    left, top, right, bottom = 60, 50, width - 20, height - 40
    ends = [
        value for entry in scores.values() for m in MEASURES for value in (entry[m], *(entry[f"{m} interval"] or []))
    ]
    highest = max([10.0, *(value for value in ends if value is not None)]) * 1.12

    def y(percent: float) -> float:
        return bottom - percent / highest * (bottom - top)

    for value in ticks(0, highest):
        canvas.line([(left, y(value)), (right, y(value))], fill=GRID)
        canvas.text((left - 8, y(value)), f"{value:g} %", fill=INK, font=font, anchor="rm")
    group = (right - left) / len(MEASURES)
    bar = 0.8 * group / len(scores)
    for m, measure in enumerate(MEASURES):
        start = left + (m + 0.1) * group
        canvas.text((left + (m + 0.5) * group, bottom + 10), measure, fill=INK, font=font, anchor="ma")
        for i, entry in enumerate(scores.values()):
            if (value := entry[measure]) is None:
                continue
            x, middle = start + i * bar, start + (i + 0.5) * bar
            canvas.rectangle([x + 2, y(value), x + bar - 2, bottom], fill=COLOURS[i % len(COLOURS)])
            low, high = entry[f"{measure} interval"] or (value, value)
            if low < high:
                canvas.line([(middle, y(low)), (middle, y(high))], fill=INK, width=2)
                for end in (low, high):
                    canvas.line([(middle - 5, y(end)), (middle + 5, y(end))], fill=INK, width=2)
            canvas.text((middle, y(high) - 4), f"{value:.1f}", fill=INK, font=font, anchor="mb")
    canvas.line([(left, bottom), (right, bottom)], fill=INK)
    x = float(left)
    for i, name in enumerate(scores):
        canvas.rectangle([x, 16, x + 14, 30], fill=COLOURS[i % len(COLOURS)])
        canvas.text((x + 20, 23), name, fill=INK, font=font, anchor="lm")
        x += 44 + font.getlength(name)
    return image


def parse_methods(texts: list[str]) -> dict[str, Path]:
    """NAME=DIR, ... -> folders by name. Raises UserError."""
    methods = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise UserError(f"a method must be given as NAME=DIR, found {text!r}")
        if name in methods:
            raise UserError(f"names of methods must differ, found {name!r} twice")
        if not Path(folder).is_dir():
            raise UserError(f"{folder}: no such folder of results")
        methods[name] = Path(folder)
    return methods


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.evaluate study", __doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="build | score")
    text = "Make the page and its key."
    sub = commands.add_parser("build", help=text, description=text)
    sub.add_argument("methods", nargs="+", metavar="NAME=DIR", help="a method and the folder of its images")
    sub.add_argument("--data", type=Path, required=True, metavar="ROOT", help="a folder that cfld.data prepared")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="the page; FILE.key.json is the key")
    sub.add_argument("--judged", type=int, default=30, help="real images in part 1, and as many generated")
    sub.add_argument("--compared", type=int, default=30, help="questions in part 2")
    sub.add_argument("--size", type=parse_size, default="256x176", metavar="HxW", help="of all images")
    sub.add_argument("--seed", type=parse_seed, default=0, help="of the choice of pairs, and of all orders")
    text = "Compute the numbers of Fig. 4 from answers."
    sub = commands.add_parser("score", help=text, description=text)
    sub.add_argument("answers", nargs="+", type=Path, metavar="ANSWERS", help="files that the page has saved")
    sub.add_argument("--key", type=Path, required=True, metavar="FILE", help="the study's key")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="the numbers; FILE.png is the figure")
    for sub in commands.choices.values():
        sub.add_argument("--force", action="store_true", help="replace what exists")
    options = parser.parse_args(argv)
    kind, other = {"build": (".html", ".key.json"), "score": (".json", ".png")}[options.command]
    if options.out.suffix != kind:
        raise UserError(f"--out must end in {kind}, found {options.out}")
    next_to = options.out.with_suffix(other)
    for path in (options.out, next_to):
        refuse_overwrite(path, options.force)

    if options.command == "build":
        methods = parse_methods(options.methods)
        page, key = build(options.data, methods, options.judged, options.compared, options.size, options.seed)
        write_text(options.out, page)
        write_json(next_to, key)
        print(f"wrote {options.out} for the volunteers ({len(page) / 1e6:.1f} MB), and {next_to} only for you")
        return

    key = read_json(options.key)
    if not is_key(key):
        raise UserError(f"{options.key}: must be the key that build wrote next to the page")
    answers: dict[int, tuple[Path, Answers]] = {}
    for path in options.answers:
        volunteer, own = read_answers(path, key)
        if volunteer in answers:
            raise UserError(f"{path} and {answers[volunteer][0]} are both of volunteer {volunteer}: leave one out")
        answers[volunteer] = path, own
    scores = score([own for _, own in answers.values()], key["methods"])
    write_json(options.out, scores)
    save_image(next_to, draw_bars(scores))
    print(f"{len(answers)} volunteers: wrote {options.out} and {next_to}")


if __name__ == "__main__":
    sys.exit(main())
