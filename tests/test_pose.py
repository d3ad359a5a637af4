"""Pose maps against OpenCV's drawing, and the readers of keypoints."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from references import DATA

from cfld.files import UserError
from cfld.pose import (
    BONE_COLOURS,
    BONES,
    JOINT_COLOURS,
    map_positions,
    pose_maps,
    read_annotations,
    read_openpose,
    read_pose,
)

ANNOTATIONS = read_annotations(DATA / "fashion" / "fasion-resize-annotation-train.csv")
KEYPOINTS = torch.tensor(np.stack(list(ANNOTATIONS.values())))


def whole_positions(keypoints: torch.Tensor, size: int) -> list[tuple[int, int]]:
    missing = (-1, -1)
    return [missing if min(y, x) < 0 else (int(y * size / 256), int(x * size / 176)) for y, x in keypoints.tolist()]


def opencv_skeleton(keypoints: torch.Tensor) -> np.ndarray:
    """(256, 256, 3) uint8, as the official code draws it."""
    picture, joints = np.zeros((256, 256, 3), np.uint8), whole_positions(keypoints, 256)
    for (a, b), colour in zip(BONES, BONE_COLOURS, strict=True):
        if min(joints[a]) >= 0 and min(joints[b]) >= 0:
            cv2.line(picture, joints[a][::-1], joints[b][::-1], colour, 2, cv2.LINE_AA)
    for joint, colour in zip(joints, JOINT_COLOURS, strict=True):
        if min(joint) >= 0:
            cv2.circle(picture, joint[::-1], 3, colour, -1, cv2.LINE_AA)
    return picture


def decibel(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


def test_the_skeleton_is_opencvs_within_30_dB_and_17_dB_where_there_is_colour() -> None:
    ours = pose_maps(KEYPOINTS, 256)[:, :3].numpy()
    for picture, keypoints in zip(ours, KEYPOINTS, strict=True):
        theirs = opencv_skeleton(keypoints).transpose(2, 0, 1) / 255
        coloured = ((picture > 0) | (theirs > 0)).any(axis=0)
        assert coloured.sum() > 100
        assert decibel(picture, theirs) >= 30
        assert decibel(picture[:, coloured], theirs[:, coloured]) >= 17


def test_the_centre_of_each_disc_has_exactly_its_colour() -> None:
    for keypoints, picture in zip(KEYPOINTS, pose_maps(KEYPOINTS, 256)[:, :3], strict=True):
        joints, theirs = whole_positions(keypoints, 256), opencv_skeleton(keypoints)
        for j, (y, x) in enumerate(joints):
            rim_near = any(3 <= np.hypot(y - v, x - u) <= 5 for v, u in joints[j + 1 :])  # of a disc drawn later
            if y >= 0 and not rim_near:
                assert torch.equal((picture[:, y, x] * 255).round().byte(), torch.from_numpy(theirs[y, x]))


@pytest.mark.parametrize("size", [256, 64])
def test_heat_maps_are_the_formula(size: int) -> None:
    axis = np.arange(size, dtype=np.float64)
    maps = pose_maps(KEYPOINTS[:5], size)[:, 3:].numpy()
    for keypoints, heat in zip(KEYPOINTS[:5], maps, strict=True):
        for j, (y, x) in enumerate(whole_positions(keypoints, size)):
            squared = (axis[:, None] - y) ** 2 + (axis[None, :] - x) ** 2
            expected = np.exp(-squared / (2 * (6 * size / 256) ** 2)) if y >= 0 else np.zeros((size, size))
            assert np.abs(heat[j] - expected).max() <= 1e-6


def test_a_column_of_176_maps_to_256_without_rounding_down() -> None:
    keypoints = torch.stack([torch.full((176,), 10.0), torch.arange(176.0)], dim=1)[None]
    assert map_positions(keypoints, 256)[0].tolist() == [[10, x * 256 // 176] for x in range(176)]


def test_a_missing_joint_leaves_no_trace_of_itself_or_its_bones() -> None:
    keypoints = torch.full((1, 18, 2), -1.0)
    assert (pose_maps(keypoints, 64) == 0).all()
    keypoints[0, 2] = torch.tensor([100.0, 80.0])
    keypoints[0, 3] = torch.tensor([150.0, -1.0])  # one coordinate is enough to be missing
    maps = pose_maps(keypoints, 256)[0]
    assert (maps[3 + 3] == 0).all()
    assert (maps[:3, 110:] == 0).all()
    assert maps[3 + 2].max() == 1


def test_a_batch_is_drawn_as_its_poses_one_by_one() -> None:
    alone = torch.cat([pose_maps(keypoints[None], 64) for keypoints in KEYPOINTS[:6]])
    assert torch.allclose(pose_maps(KEYPOINTS[:6], 64), alone, atol=1e-6)


def openpose(points: np.ndarray, **more: int) -> dict[str, object]:
    return {"people": [{"pose_keypoints_2d": points.flatten().tolist()}], **more}


def some_points(joints: int) -> np.ndarray:
    g = np.random.default_rng(0)
    points = np.concatenate([g.integers(1, 170, (joints, 2)), np.full((joints, 1), 0.9)], axis=1).astype(float)
    points[4] = 0
    return points


def test_openpose_joints_are_y_x_scaled_from_the_canvas_and_zero_is_missing(tmp_path: Path) -> None:
    points = some_points(18)
    (tmp_path / "pose.json").write_text(json.dumps(openpose(points, canvas_width=352, canvas_height=512)))
    keypoints = read_openpose(tmp_path / "pose.json")
    assert keypoints.shape == (18, 2)
    assert np.allclose(keypoints[0], [points[0, 1] / 2, points[0, 0] / 2])
    assert (keypoints[4] == -1).all()


def test_25_joints_leave_out_the_middle_of_the_hip_and_the_feet(tmp_path: Path) -> None:
    points = some_points(25)
    (tmp_path / "pose.json").write_text(json.dumps(openpose(points)))
    keypoints = read_openpose(tmp_path / "pose.json")
    assert np.allclose(keypoints[8], points[9, 1::-1])  # right hip
    assert np.allclose(keypoints[17], points[18, 1::-1])  # left ear


def test_the_frame_of_an_openpose_file_is_asked_for_if_it_is_not_known(tmp_path: Path) -> None:
    points = some_points(18)
    points[0, 0] = 300
    (tmp_path / "pose.json").write_text(json.dumps(openpose(points)))
    with pytest.raises(UserError, match=r"x = 300.*--pose-size WxH"):
        read_openpose(tmp_path / "pose.json")
    assert np.allclose(read_openpose(tmp_path / "pose.json", (512, 352))[0], [points[0, 1] / 2, 150])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ('{"people": []}', "non-empty list 'people'"),
        ('[{"people": 1}]', "non-empty list 'people'"),
        (json.dumps(openpose(some_points(17))), "found 51"),
        ('{"people": [{"pose_keypoints_2d": [NaN' + ", 1" * 53 + "]}]}", "finite"),
        ('{"people": [{"pose_keypoints_2d": ["a"' + ", 1" * 53 + "]}]}", "finite"),
        ('{"canvas_width": 0, "canvas_height": 5, "people": [{"pose_keypoints_2d": [1' + ", 1" * 53 + "]}]}", "canvas"),
    ],
)
def test_a_malformed_openpose_file_says_what_is_wrong(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "pose.json").write_text(content)
    with pytest.raises(UserError, match=words):
        read_openpose(tmp_path / "pose.json")


def test_a_row_of_an_annotation_file_is_a_pose() -> None:
    path = DATA / "fashion" / "fasion-resize-annotation-test.csv"
    name = "fashionMENTees_Tanksid0080001801_1front.jpg"
    assert read_pose(f"{path}#{name}")[0].tolist() == [40, 98]
    with pytest.raises(UserError, match="no row named 'nobody'"):
        read_pose(f"{path}#nobody")
    with pytest.raises(UserError, match=r"must be an OpenPose \.json file"):
        read_pose("pose.txt")
