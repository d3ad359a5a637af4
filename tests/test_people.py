"""Synthetic people: the same bytes for the same seed, a folder in DeepFashion's layout, and nothing from outside."""

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from cfld import people
from cfld.people import (
    OWN_SEEDS,
    PARTS,
    SHOE_KINDS,
    TRAINING_SEEDS,
    WEAVES,
    Pose,
    Rendered,
    Textile,
    attributes,
    draw,
    identity,
    photo_pose,
    random_textile,
    refabric,
    refuse_seeds,
    render,
    sample_pose,
)
from cfld.people.__main__ import check, main
from cfld.people.dress import round_chest, soften
from cfld.people.folder import Plan, finished_records
from cfld.people.mesh import MESH_FILE, SKIN, Surface, mesh, seam_depth
from cfld.people.pose import ARCHETYPES
from cfld.people.raster import nearest, rasterize
from cfld.people.textiles import FONT, MOTIFS, WORDS, Print, draw_print, weave
from cfld.people.unwrap import panel
from cfld.tools.files import alone_in

PART = {name: number for number, name in enumerate(PARTS)}
GRAY = (0.5, 0.5, 0.5)
PLAID = Textile("plaid", ((0.9, 0.1, 0.1), (0.1, 0.2, 0.8), (0.9, 0.9, 0.2), GRAY), repeat=0.15, seed=3)
GREEN = Textile("solid", ((0.1, 0.8, 0.2), GRAY, GRAY, GRAY), repeat=0.2, seed=0)
PINNED = {
    3: (
        {
            "hair": "shoulder",
            "outfit": "dress",
            "top": "uneven stripes",
            "outer": "uneven stripes",
            "bottom": "skirt",
            "shoes": "sneaker",
        },
        [[207, 233], [194, 219], [161, 175], [200, 212]],
    ),
    11: (
        {"hair": "shoulder", "outfit": "dress", "top": "solid", "outer": "solid", "bottom": "skirt", "shoes": "pump"},
        [[208, 222], [199, 214], [204, 220], [217, 225]],
    ),
    42: (
        {
            "hair": "short",
            "outfit": "top",
            "top": "uneven stripes",
            "outer": "uneven stripes",
            "bottom": "shorts",
            "shoes": "loafer",
        },
        [[201, 233], [177, 209], [168, 209], [185, 191]],
    ),
}


def digest(photo: Rendered) -> str:
    return hashlib.sha256(photo.image.tobytes() + photo.keypoints.tobytes() + photo.labels.tobytes()).hexdigest()


def pose(seed: int = 0, **wanted: str) -> Pose:
    return sample_pose(np.random.default_rng(seed), **wanted)


@pytest.fixture(scope="module")
def photos() -> list[Rendered]:
    return [draw(seed, index) for seed in range(9) for index in range(3)]


def folder_digest(folder: Path) -> dict[str, str]:
    """Every file but the log, whose lines come in the order in which processes finish."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "records.jsonl")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def generate(folder: Path, *options: str) -> int:
    return main(
        [str(folder), "--identities", "4", "--poses", "2", "--height", "64", "--test-fraction", "0.25", *options]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("people") / "out"
    assert generate(made, "--workers", "1") == 0
    return made


# ------------------------------------------------------------------------------------------------------------ pictures


def test_the_same_seed_gives_the_same_bytes_in_another_process_with_another_number_of_threads() -> None:
    code = (
        "import hashlib; from cfld.people import draw\n"
        "for seed in (3, 12):\n"
        "    p = draw(seed, 1)\n"
        "    print(hashlib.sha256(p.image.tobytes() + p.keypoints.tobytes() + p.labels.tobytes()).hexdigest())"
    )
    here = [digest(draw(seed, 1)) for seed in (3, 12)]
    env = os.environ | {"OPENBLAS_NUM_THREADS": "3", "OMP_NUM_THREADS": "3", "PYTHONHASHSEED": "3"}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert there.stdout.split() == here


def test_a_seed_draws_what_it_drew_when_this_was_written() -> None:
    """If this fails, pictures have changed: raise GENERATOR, so that no folder is continued with other people."""
    for seed, (words, brightness) in PINNED.items():
        found = attributes(identity(seed))
        assert {name: value for name, value in found.items() if isinstance(value, str)} == words
        picture = draw(seed, 2).image.astype(float)
        means = picture.reshape(4, 64, 2, 88, 3).mean(axis=(1, 3, 4))
        assert np.abs(means - brightness).max() < 1


def test_what_was_rendered_before_does_not_matter() -> None:
    first = digest(draw(5, 0))
    for seed in range(20, 30):
        people.dress.figure(identity(seed))  # more figures than the cache holds
    assert digest(draw(5, 0)) == first


def test_different_seeds_and_different_photos_differ(photos: list[Rendered]) -> None:
    assert len({digest(photo) for photo in photos}) == len(photos)
    assert len({identity(seed) for seed in range(50)}) == 50


def test_pictures_labels_and_keypoints_have_their_shapes_and_ranges(photos: list[Rendered]) -> None:
    for photo in photos:
        assert photo.image.shape == (256, 176, 3) and photo.image.dtype == np.uint8
        assert photo.labels.shape == (256, 176) and photo.labels.max() < len(PARTS)
        assert photo.keypoints.shape == (18, 2)
        y, x = photo.keypoints.T
        hidden = y == -1
        assert (hidden == (x == -1)).all()
        assert ((y >= 0) & (y < 256) & (x >= 0) & (x < 176))[~hidden].all()
        assert (~hidden).sum() >= 4
        assert 0.05 < (photo.labels > 0).mean() < 0.9


def test_visible_joints_lie_on_the_parts_they_belong_to(photos: list[Rendered]) -> None:
    hands = {PART["skin"], PART["jacket"]}  # an arm may hang in front of anything
    cloth = {PART["top"], PART["bottom"], PART["jacket"], PART["skin"], PART["shoes"]}
    head = {PART["face"], PART["eyes"], PART["hair"], PART["skin"]}
    allowed = {0: head, 14: head, 15: head}
    allowed |= {joint: cloth for joint in (2, 3, 5, 6, 8, 9, 11, 12)}
    allowed |= {joint: hands | {PART["top"], PART["bottom"]} for joint in (4, 7)}
    right = total = 0
    for photo in photos:
        for joint, parts in allowed.items():
            y, x = photo.keypoints[joint].astype(int)
            if y >= 0:
                total += 1
                right += int(photo.labels[y, x] in parts)
    assert total > 150
    assert right / total > 0.97


def test_a_nose_is_seen_from_the_front_and_not_from_behind() -> None:
    person = identity(4)
    assert render(person, pose(name="stand", view="front")).keypoints[0, 0] > 0
    assert render(person, pose(name="stand", view="back")).keypoints[0, 0] == -1


def test_the_left_of_a_person_is_on_the_right_of_a_photo_from_the_front() -> None:
    keypoints = render(identity(4), pose(name="stand", view="front", framing="full")).keypoints
    assert keypoints[5, 1] > keypoints[2, 1]  # shoulders, left and right
    assert keypoints[12, 1] > keypoints[9, 1]  # knees
    assert (
        keypoints[9, 0] > keypoints[8, 0] > keypoints[2, 0] > keypoints[0, 0]
    )  # knee under hip under shoulder under nose


def test_limbs_point_to_their_own_sides() -> None:
    keypoints = render(identity(4), pose(name="arms wide", view="front", framing="full")).keypoints
    (right_shoulder, right_wrist), (left_shoulder, left_wrist) = keypoints[[2, 4]], keypoints[[5, 7]]
    assert right_wrist[1] < right_shoulder[1] - 20 and left_wrist[1] > left_shoulder[1] + 20
    raised = render(identity(4), pose(name="arms up", view="front", framing="full")).keypoints
    assert raised[[4, 7], 0].max() < raised[0, 0]  # hands above the nose


def test_keypoints_do_not_depend_on_the_size_of_the_picture() -> None:
    person, standing = identity(4), pose(name="relaxed", view="front", framing="full")
    large, small = render(person, standing), render(person, standing, height=128, width=88, supersample=1)
    both = (large.keypoints[:, 0] >= 0) & (small.keypoints[:, 0] >= 0)
    assert both.sum() >= 12
    assert np.abs(large.keypoints - small.keypoints)[both].max() < 0.5


def test_every_archetype_view_and_framing_can_be_drawn() -> None:
    person = identity(11)
    for name in ARCHETYPES:
        photo = render(person, pose(name=name, view="front", framing="full"), height=64, width=44, supersample=1)
        assert (photo.keypoints[:, 0] >= 0).sum() >= 8, name
    for view in people.VIEWS:
        for framing in people.FRAMINGS:
            photo = render(person, pose(name="walk", view=view, framing=framing), height=64, width=44, supersample=1)
            assert (photo.labels > 0).any()


def test_every_kind_of_shoe_and_hair_can_be_drawn() -> None:
    person, standing = identity(11), pose(name="stand", view="front", framing="full")
    seen = set()
    for kind in SHOE_KINDS:
        photo = render(replace(person, shoes=replace(person.shoes, kind=kind)), standing)
        assert (photo.labels == PART["shoes"]).sum() > 40, kind
        seen.add(photo.labels.tobytes())
    assert len(seen) == len(SHOE_KINDS)
    for style in ("long", "shoulder", "bob", "pony", "bun", "short", "tall", "buzz", "afro", "bald"):
        photo = render(replace(person, hair=replace(person.hair, style=style)), standing)
        assert ((photo.labels == PART["hair"]).sum() > 20) == (style != "bald"), style


# ------------------------------------------------------------------------------------------------------------- clothes


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask (H, W) widened in all directions."""
    for _ in range(pixels):
        padded = np.pad(mask, 1)
        mask = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | mask
    return mask


@pytest.mark.parametrize("seed", [0, 3, 8])  # sleeves of another cloth, a dress, a print
def test_another_fabric_changes_the_garment_and_nothing_else(seed: int) -> None:
    person, standing = identity(seed), pose(name="relaxed", view="front", framing="full")
    before, after = render(person, standing), render(refabric(person, PLAID), standing)
    np.testing.assert_array_equal(before.labels, after.labels)
    np.testing.assert_array_equal(before.keypoints, after.keypoints)
    changed = np.abs(before.image.astype(int) - after.image).sum(-1) > 0
    garment = np.isin(before.labels, [PART["top"]] + [PART["bottom"]] * person.dress)
    assert changed[garment].mean() > 0.6
    assert not changed[~grown(garment, 6)].any()  # downsampling reaches a few pixels


def test_front_and_back_may_be_of_different_cloth() -> None:
    person = replace(identity(8), jacket=None)
    person = replace(person, hair=replace(person.hair, style="short"))
    plain, changed = refabric(person, GREEN), refabric(person, GREEN, back=PLAID)
    shares = {}
    for view in ("front", "back"):
        seen = pose(1, name="stand", view=view, framing="half")
        first, second = render(plain, seen), render(changed, seen)
        differs = np.abs(first.image.astype(int) - second.image).sum(-1) > 8
        shares[view] = differs[first.labels == PART["top"]].mean()
    assert shares["front"] < 0.15 < 0.5 < shares["back"]


def test_an_identity_cannot_be_changed_and_its_attributes_are_plain_values() -> None:
    person = identity(3)
    with pytest.raises(FrozenInstanceError):
        person.seed = 4  # type: ignore[misc]
    assert hash(person) == hash(identity(3))
    assert json.loads(json.dumps(attributes(person)))["outfit"] == "dress"


def test_every_textile_repeats_without_an_edge_and_is_the_same_every_time() -> None:
    rng = np.random.default_rng(0)
    assert len(WEAVES) >= 15
    for kind in WEAVES:
        textile = random_textile(rng, (kind,))
        levels = weave(textile)
        weave.cache_clear()
        np.testing.assert_array_equal(levels[0], weave(textile)[0])
        assert levels[0].shape == (96, 96, 3) and levels[0].min() >= 0 and levels[0].max() <= 1
        assert all(np.allclose(level.mean((0, 1)), levels[0].mean((0, 1)), atol=1e-3) for level in levels)
    smooth = weave(random_textile(rng, ("tie-dye",)))[0]
    inner = np.abs(np.diff(smooth, axis=0)).max()
    assert np.abs(smooth[0] - smooth[-1]).max() <= 1.5 * inner


def test_letters_come_from_the_project_s_own_font(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a font was asked for")

    for owner, name in ((ImageFont, "truetype"), (ImageFont, "load_default"), (ImageDraw.ImageDraw, "text")):
        monkeypatch.setattr(owner, name, refuse)
    draw_print.cache_clear()
    assert set("".join(WORDS)) <= set(FONT)
    pictures = [draw_print(Print("text", word, (GRAY, GRAY))) for word in WORDS]
    pictures += [draw_print(Print(motif, "NYC", (GRAY, GRAY))) for motif in MOTIFS[1:]]
    for picture in pictures:
        assert 0.05 < picture[..., 3].mean() < 0.95
    assert len({picture.tobytes() for picture in pictures[: len(WORDS)]}) == len(WORDS)


def test_a_pattern_keeps_its_size_on_the_whole_torso() -> None:
    body = mesh()
    s = Surface(body.table)
    rest = round_chest(soften(body.rest, np.ones(len(body.rest))), s, s.z > 0)
    for side, u, v in ((-1, s.front_u, s.front_v), (1, s.back_u, s.back_v)):
        inside = ((s.y - seam_depth(s.z)) * side > 0) & (s.z > 0.1) & (s.head < 0.5) & (s.arm < 0.5)
        inside &= body.vertex_group == SKIN
        edges = body.triangles[inside[body.triangles].all(1)][:, :2]
        a, b = edges.T
        true = np.linalg.norm(rest[a] - rest[b], axis=1)
        stretch = np.hypot(u[a] - u[b], v[a] - v[b]) / true
        low, middle, high = np.percentile(stretch, [5, 50, 95])
        assert low > 0.85 and high < 1.15 and abs(middle - 1) < 0.02


def test_the_stored_panels_are_what_unwrapping_the_mesh_gives() -> None:
    body = mesh()
    stored = body.table[:, 11:13]
    on_front = (np.abs(stored).sum(1) > 0) & (body.vertex_group == SKIN)
    np.testing.assert_allclose(panel(body, -1)[on_front], stored[on_front], atol=2e-3)


def test_the_mesh_file_is_small_and_says_that_it_is_free() -> None:
    assert MESH_FILE.stat().st_size <= 1_100_000
    assert "CC0" in MESH_FILE.with_name("NOTICE.txt").read_text()


def test_the_rasterizer_covers_every_pixel_of_a_square_once_and_sees_what_is_nearer() -> None:
    points = np.array([(2, 1), (2, 7), (9, 7), (9, 1)], float)
    square = np.array([(0, 1, 2), (0, 2, 3)])
    fragments = rasterize(points, np.array([1.0, 1, 2, 2]), square, 10, 12)
    front, depth = nearest(fragments, 10, 12)
    covered = np.zeros((10, 12), bool)
    covered.ravel()[front.pixel] = True
    expected = np.zeros((10, 12), bool)
    expected[1:7, 2:9] = True
    np.testing.assert_array_equal(covered, expected)
    np.testing.assert_allclose(front.weights.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(depth.reshape(10, 12)[3, 2:9], 1 + (np.arange(7) + 0.5) / 7, atol=1e-5)
    culled = rasterize(points, np.ones(4), square[:, ::-1], 10, 12, cull=np.ones(2, bool))
    facing = rasterize(points, np.ones(4), square, 10, 12, cull=np.ones(2, bool))
    assert {len(culled.pixel), len(facing.pixel)} == {0, 42}


# --------------------------------------------------------------------------------------------------------------- seeds


def test_training_refuses_seeds_of_600000_and_above() -> None:
    assert TRAINING_SEEDS == 600_000 and OWN_SEEDS == 700_000
    refuse_seeds(0, 599_999)
    for first, last in ((600_000, 600_000), (599_999, 600_000), (-1, 5)):
        with pytest.raises(ValueError, match="seeds for training must be 0 to 599999"):
            refuse_seeds(first, last)
    with pytest.raises(ValueError, match="found 600000 to 600000"):
        draw(600_000, 0)
    assert draw(600_000, 0, height=64, width=44, limit=OWN_SEEDS).image.shape == (64, 44, 3)


def test_the_generator_refuses_seeds_of_700000_and_above_unless_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tmp_path / "out", "--seed", "699998") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "found 699998 to 700001" in error and "--reserved-seeds" in error
    assert not (tmp_path / "out").exists()
    plan = Plan(4, 2, 699_998, 0.25, 64, 2)
    check(plan, workers=1, reserved=True)
    check(replace(plan, seed=699_996), workers=1, reserved=False)


# -------------------------------------------------------------------------------------------------------------- folder


def read_annotation(path: Path) -> dict[str, np.ndarray]:
    """name -> (18, 2) as (y, x), read as DeepFashion's files are."""
    header, *rows = path.read_text().splitlines()
    assert header == "name:keypoints_y:keypoints_x"
    columns = [row.split(":") for row in rows]
    return {name: np.array([json.loads(y), json.loads(x)]).T for name, y, x in columns}


def test_the_folder_has_the_layout_of_deepfashion(folder: Path) -> None:
    identities = {}
    for split, count in (("train", 3), ("test", 1)):
        names = (folder / f"{split}.lst").read_text().split()
        assert len(names) == 2 * count
        assert sorted(path.name for path in (folder / f"{split}_highres").iterdir()) == sorted(names)
        keypoints = read_annotation(folder / f"fasion-resize-annotation-{split}.csv")
        assert list(keypoints) == names
        pairs = list(csv.reader((folder / f"fasion-resize-pairs-{split}.csv").open()))
        assert pairs[0] == ["from", "to"] and len(pairs) == 1 + 2 * count
        pattern = r"fashion(WOMEN|MEN)[A-Z][a-z]+(_[A-Z][a-z]+)?id(\d{8})01_[12](front|back|side|full|additional)\.jpg"
        for source, target in pairs[1:]:
            first, second = re.fullmatch(pattern, source), re.fullmatch(pattern, target)
            assert first and second and first[3] == second[3] and source != target
            assert source in keypoints and target in keypoints
        identities[split] = {name[name.index("id0") :][:10] for name in names}
        for name in names:
            with Image.open(folder / f"{split}_highres" / name) as photo:
                assert photo.size == (44, 64) and photo.format == "JPEG"
            with Image.open((folder / f"masks_{split}" / name).with_suffix(".png")) as mask:
                assert mask.size == (44, 64) and mask.getextrema()[1] < len(PARTS)
    assert not identities["train"] & identities["test"]
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.size == (2 * 176, 4 * 256)


def test_annotations_are_the_keypoints_of_the_photo(folder: Path) -> None:
    names = (folder / "train.lst").read_text().split()
    found = read_annotation(folder / "fasion-resize-annotation-train.csv")[names[1]]
    true = render(identity(0), photo_pose(0, 1), height=64, width=44).keypoints
    assert ((found == -1) == (true == -1)).all()
    assert np.abs(found - true).max() <= 1


def test_two_workers_write_the_same_bytes_as_one(folder: Path, tmp_path: Path) -> None:
    assert generate(tmp_path / "out", "--workers", "2") == 0
    assert folder_digest(tmp_path / "out") == folder_digest(folder)


def test_a_killed_run_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--identities", "4", "--poses", "2", "--height", "64", "--test-fraction", "0.25", "--workers", "1"]
    run = subprocess.Popen([sys.executable, "-m", "cfld.people", str(out), *options], stderr=subprocess.DEVNULL)
    log = out / "records.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") >= 1):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    # What a kill in the middle of a write leaves behind.
    with log.open("a") as file:
        file.write('{"seed": 3, "pho')
    leftover = out / "train_highres" / ".fashion.jpg.1.tmp.jpg"
    leftover.write_bytes(b"half a pic")
    finished = finished_records(out)
    assert len(finished) >= 1 and log.read_text().endswith("\n")
    first = next(photo["name"] for photo in finished[0]["photos"])
    before = (out / "train_highres" / first).stat().st_mtime_ns
    assert generate(out, "--workers", "1") == 0
    assert (out / "train_highres" / first).stat().st_mtime_ns == before  # not drawn again
    assert not leftover.exists()
    assert folder_digest(out) == folder_digest(folder)


def test_a_worker_that_is_killed_is_said_and_not_waited_for(tmp_path: Path) -> None:
    options = ["--identities", "30", "--poses", "2", "--height", "256", "--workers", "2"]
    argv = [sys.executable, "-m", "cfld.people", str(tmp_path / "out"), *options]
    run = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    try:
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        deadline = time.monotonic() + 60
        while not (workers := children.read_text().split()):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(int(workers[0]), signal.SIGKILL)
        _, said = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 2 and "a worker was ended from outside" in said and "Traceback" not in said


@pytest.mark.slow
def test_workers_are_started_in_whatever_way_a_system_starts_them(folder: Path, tmp_path: Path) -> None:
    code = (
        "import multiprocessing, runpy, sys; multiprocessing.set_start_method('spawn')\n"
        "if __name__ == '__main__': runpy.run_module('cfld.people', run_name='__main__', alter_sys=True)"
    )
    options = ["--identities", "4", "--poses", "2", "--height", "64", "--test-fraction", "0.25", "--workers", "2"]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out"), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert folder_digest(tmp_path / "out") == folder_digest(folder)


def test_two_commands_do_not_draw_into_one_folder(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("cfld.tools.files.time.sleep", lambda seconds: None)
    with alone_in(folder):
        assert generate(folder) == 2
    assert "in use by another process" in capsys.readouterr().err


def test_a_folder_is_only_continued_with_its_own_arguments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = folder_digest(folder)
    assert generate(folder, "--seed", "7", "--supersample", "1") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "was made with seed 0, supersample 2, asked was seed 7, supersample 1" in error
    assert folder_digest(folder) == before


def test_a_foreign_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert generate(tmp_path) == 2
    assert "must be empty or made by this command" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "options",
    [("--poses", "1"), ("--identities", "0"), ("--height", "100"), ("--test-fraction", "1"), ("--seed", "-3")],
)
def test_senseless_arguments_are_one_line_and_exit_code_2(
    tmp_path: Path, options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith(f"error: {options[0]} must be") and error.count("\n") == 1 and f"found {options[1]}" in error
    )
