"""The user study: its page, clicked through in Chromium as a volunteer would, and the numbers of Fig. 4."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cfld.data.deepfashion import read_pairs, table_path
from cfld.evaluate.study import (
    COLOURS,
    MEASURES,
    build,
    choose_pairs,
    draw_bars,
    interval,
    main,
    read_answers,
    result_paths,
    score,
)
from cfld.tools.cli import UserError
from cfld.tools.files import read_json

METHODS = {"ours": (200, 30, 30), "second best": (30, 200, 30), "PIDM": (30, 30, 200)}
NAMES = {"ours": "{}_2_{}_vis.png", "second best": "{}_to_{}.png", "PIDM": "{}_{}.png"}


@pytest.fixture(scope="module")
def results(fashion: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three methods' pictures of all pairs, each of one colour: about the method's, and no two alike."""
    folders = {}
    for name, colour in METHODS.items():
        folders[name] = tmp_path_factory.mktemp("results")
        for i, (source, target) in enumerate(read_pairs(table_path(fashion, "pairs", "test"))):
            file = NAMES[name].format(Path(source).stem, Path(target).stem)
            Image.new("RGB", (88, 128), tuple(value + 3 * i for value in colour)).save(folders[name] / file)
    return folders


@pytest.fixture(scope="module")
def study(fashion: Path, results: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study of 6 pictures to judge and 4 questions; its key is beside it."""
    page = tmp_path_factory.mktemp("study") / "study.html"
    methods = [f"{name}={folder}" for name, folder in results.items()]
    counts = ["--judged", "3", "--compared", "4", "--size", "64x44"]
    assert main(["build", "--data", str(fashion), "--out", str(page), *counts, *methods]) == 0
    return page


def content_of(page: str) -> dict[str, Any]:
    return json.loads(re.search(r'<script type="application/json" id="study">(.*?)</script>', page)[1])


def picture(content: dict[str, Any], number: int) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(content["pictures"][number])))


def colour_of(image: Image.Image) -> str | None:
    """The method of a picture, None of a photo."""
    pixels = np.asarray(image, dtype=float)
    if pixels.std(axis=(0, 1)).max() > 3:
        return None
    return min(METHODS, key=lambda name: np.abs(pixels.mean(axis=(0, 1)) - METHODS[name]).sum())


@pytest.mark.parametrize("name", ["a_1_2_b_2_c_vis.png", "a_1_2_b_to_c.jpg", "a_1_2_b_c.png"])
def test_the_name_of_a_result_is_built_of_the_pair(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    pair = ("a_1_2_b.jpg", "c.jpg")
    assert result_paths(tmp_path, [pair]) == {pair: tmp_path / name}
    with pytest.raises(UserError, match=r"lacks a_1_2_b\.x_2_d_vis\.png; the names looked for"):
        result_paths(tmp_path, [("a_1_2_b.x.jpg", "d.jpg")])


def test_pairs_are_drawn_without_showing_a_target_twice() -> None:
    pairs = [(f"s{i}", f"t{i % 20}") for i in range(100)]
    parts = choose_pairs(pairs, 6, 8, np.random.default_rng(0))
    assert [len(part) for part in parts] == [6, 6, 8]
    drawn = [pair for part in parts for pair in part]
    assert set(drawn) <= set(pairs) and len({target for _, target in drawn}) == 20
    assert parts != choose_pairs(pairs, 6, 8, np.random.default_rng(1))
    with pytest.raises(UserError, match=r"must have 21 different targets .* found 20"):
        choose_pairs(pairs, 6, 9, np.random.default_rng(0))


def test_all_methods_are_shown_on_the_same_pairs_beside_the_same_photos(study: Path) -> None:
    content, key = content_of(study.read_text()), read_json(study.with_suffix(".key.json"))
    assert key["methods"] == list(METHODS) and {group["method"] for group in key["judged"]} == set(METHODS)
    photos, pairs = [], []
    for group, numbers in zip(key["judged"], content["judged"], strict=True):
        shown = list(zip(numbers, group["pictures"], group["answers"], strict=True))
        assert len(shown) == 6
        for number, _, answer in shown:
            assert colour_of(picture(content, number)) == (group["method"] if answer == "generated" else None)
        photos.append(sorted(path for _, path, answer in shown if answer == "real"))
        stems = [Path(path).stem for _, path, answer in shown if answer == "generated"]
        pairs.append(sorted(re.sub("_2_(.*)_vis|_to_", r"_\1", stem) for stem in stems))
    assert photos[0] == photos[1] == photos[2] and len(photos[0]) == len(set(photos[0])) == 3
    assert pairs[0] == pairs[1] == pairs[2] and len(set(pairs[0])) == 3
    for question, shown in zip(key["compared"], content["compared"], strict=True):
        assert [colour_of(picture(content, number)) for number in shown["pictures"]] == question["methods"]
        assert set(question["methods"]) == set(METHODS) and colour_of(picture(content, shown["truth"])) is None


def test_the_page_does_not_tell_methods_apart(study: Path, results: dict[str, Path]) -> None:
    page = study.read_text()
    content = content_of(page)
    for word in (*METHODS, *(str(folder) for folder in results.values()), "fashion", "_vis", ".png", ".jpg"):
        assert word not in page
    assert "http" not in page.replace("http-equiv", "")
    files = [picture(content, number) for number in range(len(content["pictures"]))]
    assert {(file.format, file.size) for file in files} == {("JPEG", (44, 64))}
    assert all(set(file.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"} for file in files)
    orders = {tuple(question["methods"]) for question in read_json(study.with_suffix(".key.json"))["compared"]}
    assert len(orders) > 1


def test_a_study_is_a_function_of_its_seed(fashion: Path, results: dict[str, Path]) -> None:
    make = lambda seed: build(fashion, results, 2, 3, (16, 11), seed)  # noqa: E731
    assert make(0) == make(0) and make(0)[0] != make(1)[0]
    assert make(0)[1]["study"] != make(1)[1]["study"]
    page, key = build(fashion, {"ours": results["ours"]}, 2, 0, (16, 11), 0)
    assert key["compared"] == [] and content_of(page)["compared"] == []


def said(
    page: Path, folder: Path, volunteer: int, judged: list[str], compared: list[str], /, **changes: object
) -> Path:
    """A file of answers: to part 1 in the key's order, to part 2 by method."""
    key = read_json(page.with_suffix(".key.json"))
    chosen = [q["methods"].index(name) for q, name in zip(key["compared"], compared, strict=True)]
    answers = {"study": key["study"], "volunteer": volunteer, "judged": judged, "compared": chosen, **changes}
    path = folder / f"answers-{volunteer}.json"
    path.write_text(json.dumps(answers))
    return path


def mistaken(study: Path, volunteer: int, real: int, generated: int) -> list[str]:
    """Answers to part 1 with so many mistakes about real and about generated pictures."""
    key = read_json(study.with_suffix(".key.json"))
    left, answers = {"real": real, "generated": generated}, []
    for truth in key["judged"][(volunteer - 1) % 3]["answers"]:
        wrong = left[truth] > 0
        left[truth] -= wrong
        answers.append({"real": "generated", "generated": "real"}[truth] if wrong else truth)
    return answers


def test_scores_are_the_shares_of_the_paper(study: Path, tmp_path: Path) -> None:
    group = {g["method"]: i + 1 for i, g in enumerate(read_json(study.with_suffix(".key.json"))["judged"])}
    ours, second = group["ours"], group["second best"]
    files = [
        said(study, tmp_path, ours, mistaken(study, ours, 1, 2), ["ours"] * 4),
        said(study, tmp_path, ours + 3, mistaken(study, ours, 0, 3), ["ours", "ours", "PIDM", "second best"]),
        said(study, tmp_path, second, mistaken(study, second, 3, 0), ["PIDM"] * 4),
    ]
    key = str(study.with_suffix(".key.json"))
    assert main(["score", "--key", key, "--out", str(tmp_path / "fig4.json"), *map(str, files)]) == 0
    scores = read_json(tmp_path / "fig4.json")
    assert list(scores) == list(METHODS)
    assert [scores["ours"][m] for m in MEASURES] == pytest.approx([100 / 6, 500 / 6, 50])
    assert [scores["second best"][m] for m in MEASURES] == pytest.approx([100, 0, 100 / 12])
    assert scores["PIDM"]["R2G"] is scores["PIDM"]["G2R"] is None and scores["PIDM"]["Jab"] == pytest.approx(125 / 3)
    assert sum(entry["Jab"] for entry in scores.values()) == pytest.approx(100)
    assert [entry["volunteers"] for entry in scores.values()] == [2, 1, 0]
    assert scores["ours"]["R2G interval"] == pytest.approx([0, 100 / 3])
    assert scores["second best"]["R2G interval"] is None and scores["second best"]["Jab interval"] is not None
    assert Image.open(tmp_path / "fig4.png").size == (900, 420)


def test_intervals_are_scipys_percentile_bootstrap() -> None:
    from scipy import stats

    shares = np.random.default_rng(1).binomial(30, 0.3, size=40) / 30
    reference = stats.bootstrap((shares,), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    low, high = interval(shares)
    assert abs(low - reference.low) < 0.003 and abs(high - reference.high) < 0.003
    assert interval(shares[:1]) is None


def test_bars_are_as_high_as_their_values() -> None:
    entry = {f"{m} interval": None for m in MEASURES} | {"volunteers": 3}
    scores = {"a": {**entry, "R2G": 40, "G2R": 20, "Jab": 80}, "b": {**entry, "R2G": None, "G2R": 60, "Jab": 20}}
    pixels = np.asarray(draw_bars(scores))[40:]  # below the legend
    heights = []
    for colour in COLOURS[:2]:
        columns = (pixels == colour).all(axis=2).sum(axis=0)
        groups = np.array_split(columns[60:880], 3)
        heights.append([int(group.max()) for group in groups])
    assert np.allclose(np.array(heights) / heights[0][2] * 80, [[40, 20, 80], [0, 60, 20]], atol=1)


def test_mistakes_are_one_line_and_overwrite_nothing(
    study: Path, fashion: Path, results: dict[str, Path], tmp_path: Path, fails
) -> None:
    out, ours, second = tmp_path / "s.html", f"ours={results['ours']}", f"second={results['second best']}"
    make = ["build", "--data", fashion, "--out", out, "--judged", 3, "--compared", 4]
    fails(main, *make, "ours", words=["NAME=DIR", "'ours'"])
    fails(main, *make, ours, ours, words=["'ours' twice"])
    fails(main, *make, ours, f"x={tmp_path / 'none'}", words=["none: no such folder of results"])
    fails(main, *make, ours, words=["two methods or more", "--compared 0"])
    fails(main, *make, ours, second, "--judged", 5, words=["14 different targets", "found 10"])
    fails(main, *make, ours, second, "--judged", 0, "--compared", 0, words=["--judged 0 and --compared 0"])
    fails(main, *make, ours, f"empty={tmp_path}", words=[str(tmp_path), "_vis", "_to_"])
    fails(main, *make[:3], "--out", tmp_path / "s.htm", ours, second, words=["must end in .html"])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "s.key.json").write_text("mine")
    fails(main, *make, ours, second, words=["s.key.json already exists", "--force"])

    key = study.with_suffix(".key.json")
    rate = ["score", "--key", key, "--out", tmp_path / "n.json"]
    good = said(study, tmp_path, 1, ["real"] * 6, ["ours"] * 4)
    fails(main, *rate[:3], "--out", tmp_path / "n.png", good, words=["must end in .json"])
    fails(main, "score", "--key", good, "--out", tmp_path / "n.json", good, words=["must be the key"])
    fails(main, *rate, key, words=["answers that the page has saved"])
    (tmp_path / "again.json").write_text(good.read_text())
    fails(main, *rate, good, tmp_path / "again.json", words=["both of volunteer 1"])
    for changes, words in (
        ({"study": "x"}, ["must answer study", "found x"]),
        ({"volunteer": 0}, ["number from 1 on, found 0"]),
        ({"judged": ["real"] * 5}, ["6 answers"]),
        ({"judged": [None] * 6}, ["6 answers"]),
        ({"compared": [0, 0, 0]}, ["4 answers"]),
        ({"compared": [0, 0, 0, 3]}, ["within 0 .. 2, found 3"]),
        ({"compared": [0, 0, 0, None]}, ["found None"]),
    ):
        fails(main, *rate, said(study, tmp_path, 2, ["real"] * 6, ["ours"] * 4, **changes), words=words)
    assert not (tmp_path / "n.json").exists()


def shown(page, content: dict[str, Any]) -> list[int]:
    """The numbers of the pictures on the screen."""
    sources = page.locator("img").evaluate_all("images => images.map(image => image.src.split(',')[1])")
    return [content["pictures"].index(source) for source in sources]


def next_question(page) -> int:
    return int(re.search(r"Question (\d+) of 10", page.get_by_text("Question ").inner_text())[1])


@pytest.mark.browser
def test_a_volunteer_answers_leaves_comes_back_and_saves_what_is_scored(study: Path, visit, tmp_path: Path) -> None:
    content, key = content_of(study.read_text()), read_json(study.with_suffix(".key.json"))
    page = visit(study.as_uri())
    assert page.get_by_label("Your number").input_value() == ""
    page.get_by_label("Your number").fill("5")
    page.get_by_role("button", name="Begin").click()
    group = key["judged"][4 % 3]
    truth = dict(zip(content["judged"][4 % 3], group["answers"], strict=True))
    seen = []
    for i in range(6):
        assert next_question(page) == i + 1
        if i == 3:
            page.reload()
            assert next_question(page) == 4
            page.get_by_role("button", name="Back").click()
            assert shown(page, content) == seen[-1:]
            pressed = page.locator("[aria-pressed=true]")
            assert pressed.inner_text() == {"real": "A real photo", "generated": "Generated"}[truth[seen[-1]]]
            pressed.click()
        seen += shown(page, content)
        if i % 2:
            page.get_by_role("button", name={"real": "A real photo", "generated": "Generated"}[truth[seen[-1]]]).click()
        else:
            page.locator("[data-key]:enabled").first.wait_for()
            page.keyboard.press({"real": "1", "generated": "2"}[truth[seen[-1]]])
    assert sorted(seen) == sorted(content["judged"][4 % 3]) != seen

    places, orders = [], {tuple(question["pictures"]) for question in content["compared"]}
    for i in range(4):
        assert next_question(page) == 7 + i
        above, *choices = shown(page, content)
        question = next(n for n, other in enumerate(content["compared"]) if other["truth"] == above)
        assert sorted(choices) == sorted(content["compared"][question]["pictures"])
        methods = dict(
            zip(content["compared"][question]["pictures"], key["compared"][question]["methods"], strict=True)
        )
        places.append([methods[number] for number in choices].index("PIDM" if i else "ours"))
        orders -= {tuple(choices)}
        page.get_by_role("button", name=f"Picture {places[-1] + 1}").click()
    assert len(set(places)) > 1 and orders
    page.get_by_text("Thank you").wait_for()
    page.reload()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the answers").click()
    assert download.value.suggested_filename == "answers-5.json"
    download.value.save_as(tmp_path / "answers-5.json")
    volunteer, answers = read_answers(tmp_path / "answers-5.json", key)
    assert volunteer == 5 and answers.method == group["method"] and answers.r2g == answers.g2r == 0
    assert answers.jab == {"ours": 0.25, "second best": 0, "PIDM": 0.75}
    assert score([answers], key["methods"])["PIDM"]["Jab"] == 75

    page.get_by_role("button", name="Next volunteer").click()
    page.get_by_label("Your number").fill("8")  # of the same group
    page.get_by_role("button", name="Begin").click()
    assert next_question(page) == 1
    first = shown(page, content)
    assert first[0] in truth and page.evaluate("order().map(question => question.index)") != seen


@pytest.mark.browser
@pytest.mark.parametrize("pause", [0, 350])
def test_a_double_click_answers_once(study: Path, visit, pause: int) -> None:
    page = visit(study.as_uri() + "#2")
    assert page.get_by_label("Your number").input_value() == "2"
    page.get_by_role("button", name="Begin").click()
    page.get_by_role("button", name="Generated").dblclick(delay=pause)  # milliseconds: a slow one, too
    page.wait_for_timeout(600)
    assert next_question(page) == 2


@pytest.mark.browser
def test_another_link_is_another_volunteer_and_each_sees_whose_page_it_is(study: Path, visit) -> None:
    page = visit(study.as_uri() + "#1")
    page.get_by_role("button", name="Begin").click()
    page.get_by_role("button", name="Generated").click()
    page.get_by_text("Question 2 of 10, volunteer 1").wait_for()
    page.evaluate("location.hash = '#2'")
    page.get_by_label("Your number").wait_for()
    assert page.get_by_label("Your number").input_value() == "2"
    page.get_by_role("button", name="Begin").click()
    page.get_by_text("Question 1 of 10, volunteer 2").wait_for()
    page.get_by_role("button", name="Not volunteer 2?").click()
    page.get_by_label("Your number").fill("1")
    page.get_by_role("button", name="Begin").click()
    page.get_by_text("Question 2 of 10, volunteer 1").wait_for()


@pytest.mark.browser
def test_the_page_fits_a_phone_and_follows_the_scheme(study: Path, visit) -> None:
    colours = set()
    for width, scheme in ((360, "dark"), (1280, "light")):
        page = visit(study.as_uri() + "#1", width=width, height=740, scheme=scheme)
        page.get_by_role("button", name="Begin").click()
        for _ in range(8):
            page.locator("[data-key]").first.click()
        assert next_question(page) == 9
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2
