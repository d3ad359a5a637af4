"""Joints in another unit, or of another copy or part of their image, are refused, and no pose of a person is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import micro_model
from PIL import Image
from references import DATA

import cfld
from cfld import SamplingConfig, people, sample
from cfld.data.__main__ import main as data_main
from cfld.people.render import figure, frame, pose_figure
from cfld.photos.__main__ import main as photos_main
from cfld.photos.keypoints import joints_from, joints_on, keypoints_from, read_annotations, read_joints
from cfld.photos.units import check_annotations, check_keypoints
from cfld.pose import FRAME
from cfld.tools.cli import UserError

DEEPFASHION = [
    joints.astype(float)
    for split in ("train", "test")
    for joints in read_annotations(DATA / "fashion" / f"fasion-resize-annotation-{split}.csv").values()
]


def turned(joints: np.ndarray, quarters: int) -> np.ndarray:
    """Joints (18, 2) of a person who lies or stands on their head, in the frame."""
    angle = quarters * np.pi / 2
    middle = np.array(FRAME) / 2
    away = (joints - middle) @ [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    shrunk = min(1, *(0.48 * np.array(FRAME) / np.abs(away[(joints >= 0).all(axis=1)]).max(axis=0)))
    return np.where((joints >= 0).all(axis=1, keepdims=True), middle + away * shrunk, -1)


@pytest.fixture(scope="module")
def poses() -> list[np.ndarray]:
    """Joints (18, 2) in the frame: of people of DeepFashion's layout and of synthetic ones, as they are, cut off by the
    frame's sides, lying, and on their head."""
    found, rng = list(DEEPFASHION), np.random.default_rng(0)
    for seed in range(600_000, 600_006):
        body = figure(people.identity(seed))
        for _ in range(30):
            pose = people.sample_pose(rng)
            scene = pose_figure(body, pose)
            places, _ = frame(pose, scene.vertices[scene.person], scene.joints, *FRAME).project(scene.joints)
            joints = places[:, ::-1].astype(float)
            found.append(np.where(((joints >= 0) & (joints < FRAME)).all(axis=1, keepdims=True), joints, -1))
    changed = [turned(joints, quarters) for joints in found for quarters in (1, 2, 3)]
    for joints in found:
        for shift in ([0, 80], [0, -80], [110, 0], [-110, 0]):
            moved = joints + shift
            seen = ((joints >= 0) & (moved >= 0) & (moved < FRAME)).all(axis=1)
            if seen.sum() >= 6:  # fewer are no pose that anybody would give
                changed.append(np.where(seen[:, None], moved, -1))
    return found + changed


def points_of(joints: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """joints (18, 2) -> OpenPose's points (18, 3), in pixels of an image so many times as large."""
    return np.array([[x * scale, y * scale, 0.8] if min(y, x) >= 0 else [0, 0, 0] for y, x in joints])


def openpose(points: np.ndarray, **more: float) -> dict:
    return {"people": [{"pose_keypoints_2d": points.flatten().tolist()}], **more}


def test_no_pose_of_a_person_is_refused(poses: list[np.ndarray], tmp_path: Path) -> None:
    assert len(poses) == 1842  # as docs/poses.md says
    photo = Image.new("RGB", (352, 512))
    for joints in poses:
        points = points_of(joints)
        assert np.array_equal(joints_from(points, FRAME, layout="openpose")[0], joints)
        assert (joints_from(points / [176, 256, 1], (512, 352), layout="openpose")[0] >= 0).any()
        (tmp_path / "p.json").write_text(json.dumps(openpose(points, canvas_width=176, canvas_height=256)))
        found = joints_on(photo, str(tmp_path / "p.json"), layout="openpose")
        assert np.allclose(found, np.where(joints >= 0, 2 * joints, -1))
    check_keypoints(np.array(poses))
    check_annotations({str(i): joints for i, joints in enumerate(poses)}, FRAME)


def test_people_who_fill_the_frame_need_no_size(poses: list[np.ndarray]) -> None:
    for joints in poses[: len(DEEPFASHION) + 180]:
        assert np.array_equal(joints_from(points_of(joints), layout="openpose")[0], joints)


def shown(make, **how) -> str:
    """What joints_from says of content that it refuses; empty if it takes it."""
    try:
        joints_from(make, layout="openpose", **how)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("times", [1.5, 2, 4.3])
def test_joints_of_a_larger_copy_are_refused_with_the_size_that_would_fit(
    times: float, poses: list[np.ndarray]
) -> None:
    people_in_frame = poses[: len(DEEPFASHION) + 180]
    said = [shown(points_of(joints, times), pose_size=FRAME) for joints in people_in_frame]
    assert np.mean([bool(text) for text in said]) >= 0.99
    whole = next(text for text in said if text)
    assert "176x256 (width x height)" in whole and "times as large" in whole


def test_joints_of_a_smaller_copy_are_refused_where_nothing_says_their_size(poses: list[np.ndarray]) -> None:
    people_in_frame = poses[: len(DEEPFASHION) + 180]
    said = [shown(points_of(joints, 0.45)) for joints in people_in_frame]
    assert all("top left quarter" in text and "--pose-size WxH" in text for text in said if text)
    assert np.mean([bool(text) for text in said]) >= 0.99
    assert not any(shown(points_of(joints, 0.45), pose_size=FRAME) for joints in people_in_frame)  # the user's word


def test_the_whole_of_an_image_tells_whether_a_person_is_small_or_the_unit_wrong(poses: list[np.ndarray]) -> None:
    large, small = points_of(DEEPFASHION[0]), points_of(DEEPFASHION[1], 0.4)
    assert (joints_from(np.stack([large, small]), person=1)[0] < 110).all()


def test_a_size_in_the_other_order_is_named(poses: list[np.ndarray]) -> None:
    """Of people in a photo of 768x1024, wherever a joint lies beyond 768."""
    said = [shown(points_of(joints, 4) + np.array([32, 0, 0]), pose_size=(768, 1024)) for joints in DEEPFASHION]
    assert all("they fit 768x1024 (width x height), so check the order" in text for text in said if text)
    assert np.mean([bool(text) for text in said]) >= 0.9


def test_coordinates_from_minus_1_to_1_and_metres_are_refused(poses: list[np.ndarray]) -> None:
    whole = [joints for joints in DEEPFASHION if (joints >= 0).all()]
    assert len(whole) >= 4
    for joints in whole:
        points = points_of(joints) / [88, 128, 1] - [1, 1, 0]
        assert "from -1 to 1 take (x + 1) / 2" in shown(points, pose_size=FRAME)
        metres = np.zeros((33, 4))  # from the middle of the hips, y downwards
        metres[:, 3] = 0.9
        for place, joint in zip(cfld.photos.layouts.LAYOUTS["mediapipe"].places, joints, strict=True):
            if isinstance(place, int):
                metres[place, [1, 0]] = (joint - joints[[8, 11]].mean(axis=0)) * 1.7 / 220
        assert "world landmarks are metres" in shown(metres, pose_size=FRAME)


def test_fractions_of_one_side_for_both_are_refused(poses: list[np.ndarray]) -> None:
    joints = next(joints for joints in DEEPFASHION if (joints >= 0).all())
    text = shown(points_of(joints) / [100, 100, 1], pose_size=FRAME)
    assert "x by the image's width and y by its height" in text


def test_fractions_need_a_size_and_of_mediapipes_some_may_lie_outside() -> None:
    joints = next(joints for joints in DEEPFASHION if (joints >= 0).all())
    fractions = points_of(joints) / [176, 256, 1]
    assert "need its size" in shown(fractions) and "--pose-size WxH" in shown(fractions)
    fractions[[10, 13], 1] = 1.3, 1.25  # of someone whose feet the frame cuts off
    found = joints_from(fractions, FRAME)[0]
    assert (found[[10, 13]] == -1).all() and (np.delete(found, [10, 13], axis=0) >= 0).all()


def test_joints_that_the_estimator_doubts_may_lie_outside_and_are_missing() -> None:
    points = points_of(next(joints for joints in DEEPFASHION if (joints >= 0).all()))
    points[10] = 100, 380, 0.3
    assert (joints_from(points, FRAME)[0][10] == -1).all()
    points[10, 2] = 0.6
    assert "found 1 of 18 outside, such as x = 100, y = 380" in shown(points, pose_size=FRAME)
    points[10, :2] = -1  # a mark of a missing joint
    assert not shown(points, pose_size=FRAME)


def test_every_command_refuses_joints_of_another_copy(micro_folder: Path, tmp_path: Path, fails) -> None:
    joints = next(joints for joints in DEEPFASHION if (joints >= 0).all())
    for place in ("", "own/ann/", "own/bob/"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for name in ("a", "b"):
            Image.new("RGB", (300, 400)).save(tmp_path / f"{place}{name}.png")
            (tmp_path / f"{place}{name}.json").write_text(json.dumps(openpose(points_of(joints, 3))))
    photo, pose, out = tmp_path / "a.png", tmp_path / "a.json", ("--out", tmp_path / "out.png")
    said = ["a.json", "300x400", "outside", "2 times as large, 600x800"]
    fails(photos_main, photo, "--pose", pose, *out, words=[*said, "--pose-size"])
    model = ("--model", micro_folder, "--source", photo, "--pose", pose, *out)
    fails(sample.main, *model, "--pose-size", "300x400", words=said)
    fails(sample.main, *model, "--source-pose", pose, words=[*said, "--source-pose-size"])
    fails(sample.main, *model, "--source-pose", pose, "--source-person", 3, words=["--source-person must be"])
    fails(data_main, "pairs", tmp_path / "own", words=["a.json", "outside", "canvas_width"])
    fits = ("--source-pose", pose, "--source-pose-size", "600x800", "--pose-size", "600x800")
    assert sample.main([str(a) for a in (*model, *fits, "--steps", 1, "--device", "cpu")]) == 0


def test_generate_refuses_keypoints_of_another_frame_and_sizes_of_another_shape() -> None:
    model, vae = micro_model()
    photo, keypoints = Image.new("RGB", (176, 256)), next(j for j in DEEPFASHION if (j >= 0).all())
    how = SamplingConfig(steps=1, sampler="ddim")

    def refused(words: str, pose: object = keypoints, **more: object) -> None:
        with pytest.raises(UserError, match=words):
            cfld.generate(model, vae, photo, pose, how, **more)

    refused(r"256x176|176x256.*pose 1 reaches to y = .*cfld.read_pose", np.stack([keypoints, keypoints * 4.3]))
    refused(r"they would fit as \(x, y\)", np.ascontiguousarray(keypoints[:, ::-1]))
    refused("as fractions do", keypoints / FRAME)
    refused("as fractions do", torch.tensor(keypoints / FRAME))
    refused("found 176x256: give the height first", size=(176, 256))
    refused("found 256x256: in another shape people", size=(256, 256))
    assert cfld.generate(model, vae, photo, keypoints, how, size=(512, 352))[0].size == (352, 512)
    assert cfld.generate(model, vae, photo, np.full((18, 2), -1.0), how)  # a picture without a pose, by intention


def rows(path: Path, poses: list[np.ndarray]) -> Path:
    lines = [f"{i}.jpg: {y.tolist()}: {x.tolist()}" for i, (y, x) in enumerate(joints.T for joints in poses)]
    path.write_text("\n".join(["name:keypoints_y:keypoints_x", *lines]) + "\n")
    return path


def test_annotations_in_another_frame_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fasion-resize-annotation-train.csv"
    right = [np.rint(joints) for joints in DEEPFASHION]
    assert len(read_annotations(rows(path, right))) == len(right)
    present = [(joints >= 0).all(axis=1, keepdims=True) for joints in right]

    def refused(words: str, change) -> None:
        wrong = [np.where(there, change(joints), -1) for joints, there in zip(right, present, strict=True)]
        with pytest.raises(UserError, match=rf"annotation-train.csv: .*176x256 .*{words}"):
            read_annotations(rows(path, wrong))

    refused("subtract 40 from each x", lambda joints: joints + np.array([0, 40]))
    refused("scale or shift", lambda joints: joints - [0, 60] + 0.5)
    refused("scale or shift", lambda joints: joints * 2)
    refused("top left quarter.*scale them", lambda joints: joints * [0.5, 64 / 176])
    refused("top left quarter.*scale them", lambda joints: joints / FRAME)
    one = [right[0] + 3, *right[1:]]
    one[0][0] = 300, 100
    assert len(read_annotations(rows(path, one))) == len(right)  # somebody's mistake in one photo


def test_a_row_too_deep_for_the_parser_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "deep.csv"
    path.write_text("name:keypoints_y:keypoints_x\nx.jpg: " + "[" * 100_000 + ": []\n")
    with pytest.raises(UserError, match=r"deep.csv, line 2 .*must be a JSON list"):
        read_joints(f"{path}#x.jpg")


def test_poses_of_the_playground_are_taken_as_they_are_made() -> None:
    small = np.array([[3.0 + i, 4.0 + i] for i in range(18)])  # all in one corner, and of no body
    assert np.allclose(keypoints_from(points_of(small), FRAME, layout="openpose"), small)
