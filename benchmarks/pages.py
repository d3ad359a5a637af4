"""The pictures of docs/playground.md and docs/user_study.md: both pages, as Chromium shows them.

    python benchmarks/pages.py                 writes docs/playground.png, docs/user_study.png and docs/fig4.png

Needs Chromium (Debian: apt-get install chromium) and playwright, of the test extra. The study is of the sample photos;
the source, the truth blurred and the truth mirrored stand in for the results of three methods, and made-up answers for
those of volunteers.
"""

import argparse
import io
import json
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from playwright.sync_api import Page, sync_playwright

from cfld import load
from cfld.data.deepfashion import prepare, read_pairs, table_path
from cfld.evaluate.study import main as study
from cfld.playground.server import PlaygroundServer
from cfld.tools.cli import HelpFormatter, command
from cfld.tools.files import read_json, write_json
from cfld.tools.pictures import read_image, save_image

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def screenshot(page: Page) -> Image.Image:
    """What the page shows."""
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def save_strip(path: Path, *pictures: Image.Image) -> None:
    """Pictures of equal height side by side."""
    strip = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (sum(before.width for before in pictures[:i]), 0))
    save_image(path, strip)
    print(f"wrote {path}")


def playground(page: Page, model: Path | None) -> None:
    """Paint an example person with two seeds."""
    with PlaygroundServer(*load(model)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.set_viewport_size({"width": 1180, "height": 900})
        page.goto(f"http://{server.hosts[0]}")
        page.get_by_role("button", name="Example person").click()
        page.get_by_alt_text("the photo").wait_for()
        page.get_by_label("Preset").select_option("hands on hips")
        page.get_by_label("Seeds to compare").fill("2")
        page.get_by_role("button", name="Paint").click()
        page.get_by_text("Done.").wait_for(timeout=1_800_000)
        page.get_by_role("slider", name="left elbow").focus()
        save_strip(DOCS / "playground.png", screenshot(page))
        server.shutdown()


def build_study(folder: Path) -> Path:
    """A study of the sample photos: its page."""
    data = folder / "data"
    shutil.copytree(ROOT / "tests" / "data" / "fashion", data)
    prepare(data)
    for source, target in read_pairs(table_path(data, "pairs", "test")):
        photo, truth = (read_image(data / "test_highres" / name) for name in (source, target))
        name = f"{Path(source).stem}_2_{Path(target).stem}_vis.png"
        save_image(folder / "copy" / name, photo)
        save_image(folder / "blur" / name, truth.filter(ImageFilter.GaussianBlur(truth.height / 100)))
        save_image(folder / "mirror" / name, ImageOps.mirror(truth))
    methods = [f"{name}={folder / name}" for name in ("copy", "blur", "mirror")]
    page = folder / "study.html"
    study(["build", "--data", str(data), "--out", str(page), "--judged", "2", "--compared", "6", *methods])
    return page


def user_study(page: Page, folder: Path) -> None:
    """The first question of each part, side by side."""
    page.set_viewport_size({"width": 600, "height": 800})
    page.goto(build_study(folder).as_uri() + "#1")
    page.get_by_role("button", name="Begin").click()
    page.locator("[data-key]:enabled").first.wait_for()
    first = screenshot(page)
    for _ in range(4):
        page.get_by_role("button", name="Generated").click()
    page.locator("[data-key]:enabled").first.wait_for()
    page.mouse.move(0, 0)
    save_strip(DOCS / "user_study.png", first, screenshot(page))


def bars(folder: Path) -> None:
    """Fig. 4 of made-up answers of 30 volunteers."""
    key, rng = read_json(folder / "study.key.json"), np.random.default_rng(0)
    odds = {"copy": [0.3, 0.5, 0.2], "blur": [0.1, 0.1, 0.25], "mirror": [0.3, 0.45, 0.55]}  # of R2G, G2R, Jab
    for volunteer in range(1, 31):
        group = key["judged"][(volunteer - 1) % 3]
        r2g, g2r, _ = odds[group["method"]]
        judged = [str(rng.choice(["real", "generated"], p=[1 - r2g, r2g] if answer == "real" else [g2r, 1 - g2r]))
                  for answer in group["answers"]]  # fmt: skip
        compared = [
            int(rng.choice(3, p=[odds[name][2] for name in question["methods"]])) for question in key["compared"]
        ]
        answers = {"study": key["study"], "volunteer": volunteer, "judged": judged, "compared": compared}
        write_json(folder / "answers" / f"{volunteer}.json", answers)
    files = map(str, sorted((folder / "answers").iterdir()))
    study(["score", "--key", str(folder / "study.key.json"), "--out", str(folder / "fig4.json"), *files])
    print(json.dumps(read_json(folder / "fig4.json")["mirror"]))
    save_strip(DOCS / "fig4.png", read_image(folder / "fig4.png"))


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python benchmarks/pages.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR", help="another model folder than the bundled one")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=shutil.which("chromium")).new_page()
        user_study(page, Path(folder))
        bars(Path(folder))
        playground(page, options.model)


if __name__ == "__main__":
    raise SystemExit(main())
