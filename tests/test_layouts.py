"""Layouts of joints: read in the right order, and told from those that look alike."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from references import DATA

from cfld import people
from cfld.data.__main__ import main as data_main
from cfld.photos.__main__ import main as preview_main
from cfld.photos.keypoints import joints_from, keypoints_from, read_annotations
from cfld.photos.layouts import BETTER, COUNTS, LAYOUTS, NONSENSE, STRETCHED, choose, spanning_length, stretch
from cfld.pose import JOINTS
from cfld.tools.cli import UserError

PHOTOS = [
    joints.astype(float)
    for split in ("train", "test")
    for joints in read_annotations(DATA / "fashion" / f"fasion-resize-annotation-{split}.csv").values()
]
LOOK_ALIKE = [("body25", "body25b"), ("coco", "h36m"), ("openpose", "coco18")]  # the first is what a file is taken for


@pytest.fixture(scope="module")
def bodies() -> list[np.ndarray]:
    """Joints (18, 2) of people of DeepFashion and of synthetic ones."""
    drawn = [
        people.draw(seed, view, 64, 44, 1, limit=people.OWN_SEEDS)
        for seed in range(600_000, 600_020)
        for view in (0, 3)
    ]
    return [*PHOTOS, *(person.keypoints.astype(float) for person in drawn)]


def written(joints: np.ndarray, name: str) -> np.ndarray:
    """joints (18, 2) -> points (n, 3) as an estimator of this layout writes them; what JOINTS lacks lies beside the
    nearest part of the body, and is missing if that is."""
    points = np.zeros((LAYOUTS[name].size, 3))
    for joint, place in zip(joints, LAYOUTS[name].places, strict=True):
        if isinstance(place, int) and joint.min() >= 0:
            points[place] = [joint[1], joint[0], 0.9]
    return points


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_read_back(name: str, bodies: list[np.ndarray]) -> None:
    for joints in bodies:
        points = written(joints, name)
        found = choose(points, points[:, 2] > 0, name)
        for ours, theirs, place in zip(found, joints, LAYOUTS[name].places, strict=True):
            if isinstance(place, int):
                assert np.array_equal(ours, np.where(theirs.min() >= 0, theirs, -1))
            elif place is None:
                assert (ours == -1).all()
            else:
                halves = points[list(place)]
                assert np.array_equal(ours, halves[:, 1::-1].mean(axis=0) if halves[:, 2].all() else [-1, -1])


def test_the_first_layout_of_its_number_is_what_a_file_is_taken_for(bodies: list[np.ndarray]) -> None:
    assert COUNTS == [17, 18, 25, 26, 33, 133]
    for first in ("coco", "openpose", "body25", "halpe26", "mediapipe", "wholebody"):
        for joints in bodies:
            points = written(joints, first)
            assert np.array_equal(choose(points, points[:, 2] > 0), choose(points, points[:, 2] > 0, first))


@pytest.mark.parametrize(("first", "other"), LOOK_ALIKE)
def test_most_files_of_a_layout_that_looks_alike_are_refused_with_its_name(
    first: str, other: str, bodies: list[np.ndarray]
) -> None:
    whole = [joints for joints in bodies if (joints >= 0).all(axis=1).sum() >= 15]
    named = 0
    for joints in whole:
        points = written(joints, other)
        try:
            choose(points, points[:, 2] > 0)
        except UserError as error:
            message = f"form no body in the order of {first}, but do in the order of {other}: add --layout {other}, "
            named += message in str(error)
    assert len(whole) >= 20 and named >= 0.7 * len(whole), (named, len(whole))


def test_a_shuffled_body_is_refused_and_taken_at_the_users_word(bodies: list[np.ndarray]) -> None:
    g, refused, whole = np.random.default_rng(0), 0, [joints for joints in bodies if (joints >= 0).all()]
    for joints in whole:
        points = written(joints[g.permutation(18)], "openpose")
        try:
            choose(points, points[:, 2] > 0)
        except UserError as error:
            refused += 1
            assert "18 joints form no body in the order of openpose" in str(error)
        assert (choose(points, points[:, 2] > 0, "openpose") >= 0).all()
    assert refused >= 0.6 * len(whole)


def test_bones_of_a_body_are_hardly_longer_than_need_be_at_every_angle(bodies: list[np.ndarray]) -> None:
    assert max(map(stretch, bodies)) <= 1.55 < STRETCHED < NONSENSE and BETTER > 1
    for joints in bodies[::7]:
        for angle in (1, np.pi):
            turned = joints @ [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]] * 3 + 1000
            turned[(joints < 0).any(axis=1)] = -1
            assert np.isclose(stretch(turned), stretch(joints))


def test_spanning_trees_are_the_shortest() -> None:
    for places, length in (
        ([[0, 0], [0, 3], [4, 0], [4, 3]], 10),
        ([[0, 0], [9, 0], [2, 0], [5, 0], [5, 0]], 9),
        ([[1, 1]], 0),
    ):
        assert spanning_length(np.linalg.norm(np.array(places, float)[:, None] - places, axis=-1)) == length


def test_few_joints_tell_nothing() -> None:
    joints = np.full((18, 2), -1.0)
    joints[:7] = np.random.default_rng(0).uniform(0, 200, (7, 2))
    assert stretch(joints) == 1
    joints[7:10] = 50.0
    assert stretch(joints) > 1.2
    joints[joints >= 0] = 7  # all at one place
    assert stretch(joints) == 0


def test_where_joints_are_missing_the_parts_of_a_body_need_not_be_joined_by_bones(bodies: list[np.ndarray]) -> None:
    for joints in bodies:
        for hidden in ([1], [1, 8, 11], [0, 1, 9, 12]):
            left = joints.copy()
            left[hidden] = -1
            assert stretch(left) < STRETCHED


@pytest.fixture(scope="module")
def body25b(bodies: list[np.ndarray]) -> np.ndarray:
    """Someone's points in the layout that looks like BODY_25."""
    joints = next(joints for joints in PHOTOS if (joints >= 0).all())
    return written(joints, "body25b")


def test_every_command_that_reads_joints_asks_and_takes_the_answer(body25b: np.ndarray, tmp_path: Path, fails) -> None:
    content = {"people": [{"pose_keypoints_2d": body25b.flatten().tolist()}]}
    for name in ("pose", "mine/ann/a", "mine/ann/b"):
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        Image.new("RGB", (176, 256)).save(path.with_suffix(".png"))
    with pytest.raises(UserError, match=r"no body in the order of body25, .*add --layout body25b, .*in Python layout"):
        keypoints_from(content)
    assert (keypoints_from(content, layout="body25b") >= 0).all()
    argv = [tmp_path / "pose.png", "--pose", tmp_path / "pose.json", "--out", tmp_path / "out.png"]
    fails(preview_main, *argv, words=["pose.json: the 25 joints", "body25b"])
    assert preview_main([*map(str, argv), "--layout", "body25b"]) == 0
    pairs = ["pairs", tmp_path / "mine", "--test-share", 0]
    fails(data_main, *pairs, words=["none for training", "a.json", "--layout body25b"])
    assert data_main([*map(str, pairs), "--layout", "body25b"]) == 0
    written_rows = read_annotations(tmp_path / "mine" / "fasion-resize-annotation-train.csv")
    assert np.abs(written_rows["ann--a.png"] - keypoints_from(content, layout="body25b")).max() <= 0.01


def test_a_layout_is_ignored_for_other_numbers_of_joints() -> None:
    points = written(PHOTOS[0], "openpose")
    assert np.array_equal(joints_from(points)[0], joints_from(points, layout="body25b")[0])


def test_openpose_files_of_26_joints_are_halpes() -> None:
    joints = next(joints for joints in PHOTOS if (joints >= 0).all())
    points = written(joints, "halpe26")
    points[[17, 18, 19], :2], points[[17, 18, 19], 2] = 80, 0.9
    found = joints_from({"people": [{"pose_keypoints_2d": points.flatten().tolist()}]})[0]
    neck = JOINTS.index("neck")
    assert np.array_equal(np.delete(found, neck, axis=0), np.delete(joints, neck, axis=0))
    assert np.array_equal(found[neck], joints[[2, 5]].mean(axis=0))
