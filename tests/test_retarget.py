"""Retargeting: geometry that must hold for all poses, and the error on synthetic people (benchmarks/retarget.py)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from retarget import by_chance, errors, joints_of, short_and_tall

import cfld
from cfld import people
from cfld.photos.pixels import pose_picture
from cfld.photos.retarget import ANKLES, HIPS, TREE, retarget
from cfld.pose import FRAME
from cfld.sample import main as sample_command
from cfld.tools.cli import UserError

A, B = people.TRAINING_SEEDS + 10, people.TRAINING_SEEDS + 11


def pose_of(name: str, view: str = "front", seed: int = 0) -> people.Pose:
    return people.sample_pose(np.random.default_rng(seed), name, view, "full")


def bones(joints: np.ndarray) -> np.ndarray:
    """Limbs and face (n, 2), without what begins at the pelvis."""
    return np.stack([joints[end] - joints[start] for start, end, _ in TREE[1:] if start < 18])


@pytest.mark.slow
def test_the_error_is_at_most_a_third_of_that_without() -> None:
    without, error = errors(by_chance(100)).mean(axis=0)
    assert without > 5 and error <= without / 3


def test_the_error_of_few_pairs_is_far_below_that_without() -> None:
    without, error = errors(by_chance(20)).mean(axis=0)  # so few that a third may be a half
    assert without > 5 and error <= without / 2
    without, error = errors(short_and_tall(6)).mean(axis=0)
    assert without > 15 and error <= without / 5


def test_a_pose_of_the_person_themself_does_not_change() -> None:
    pose = joints_of(A, pose_of("walk", "quarter"))
    np.testing.assert_allclose(retarget(pose, pose), pose, atol=0.01)


def test_bones_keep_their_direction_and_their_foreshortening() -> None:
    own = joints_of(B, pose_of("stand"))
    ratios = []
    for name in ("stand", "sit", "lunge"):
        before = joints_of(A, pose_of(name))
        after = retarget(before, own)
        assert (after >= 0).all()
        old, new = bones(before), bones(after)
        length, longer = np.linalg.norm(old, axis=1), np.linalg.norm(new, axis=1)
        np.testing.assert_allclose(new, old * (longer / length)[:, None], atol=1e-3)
        ratios.append(longer / length)
    # A thigh that points at the camera gets no longer than it was: its ratio is that of bodies, not of lengths seen.
    assert np.all(np.abs(np.log(ratios)) < 0.35)


def test_missing_joints_stay_missing_and_the_next_is_placed_from_the_last() -> None:
    own, pose = joints_of(B, pose_of("stand")), joints_of(A, pose_of("relaxed"))
    for missing in ([3], [1], [8, 11], [0, 14, 15], [1, 2, 5], [9, 10, 12, 13], list(range(2, 18)), [8, 9, 10]):
        gone = pose.copy()
        gone[missing] = -1
        result = retarget(gone, own)
        assert (result[missing] == -1).all()
        assert (np.delete(result, missing, axis=0) >= 0).all(), missing
    whole, gone = retarget(pose, own), pose.copy()
    gone[3] = -1
    assert np.linalg.norm(retarget(gone, own)[4] - whole[4]) < 6


def test_feet_stay_on_the_ground_of_each_frame_and_a_standing_foot_does_not_slide() -> None:
    still = joints_of(A, pose_of("stride", "side"))
    frames = np.stack([still + np.array([0, x]) for x in (-20, -10, 0, 10)])
    frames[:, 10] = frames[0, 10]  # one foot stays where it is
    frames[2, :, 0] -= 15  # a jump
    hidden = frames.copy()
    hidden[1][ANKLES] = -1
    result, own = retarget(frames, joints_of(B, pose_of("stand"))), joints_of(B, pose_of("stand"))
    np.testing.assert_allclose(result[:, ANKLES, 0].max(axis=1), frames[:, ANKLES, 0].max(axis=1), atol=0.01)
    moved = np.ptp(frames[:, HIPS, 1].mean(axis=1)), np.ptp(result[:, HIPS, 1].mean(axis=1))
    ratio = np.linalg.norm(result[0, 10] - result[0, 9]) / np.linalg.norm(frames[0, 10] - frames[0, 9])
    assert moved[1] / moved[0] == pytest.approx(ratio, rel=0.1) and ratio != pytest.approx(1, abs=0.01)
    assert np.ptp(result[:, 10, 1]) < 2
    without = retarget(hidden, own)
    assert (without[1][ANKLES] == -1).all() and abs(without[1, 1, 0] - result[1, 1, 0]) < 8


def test_without_feet_torso_and_place_are_the_poses() -> None:
    pose, own = joints_of(A, pose_of("relaxed")), joints_of(B, pose_of("relaxed"))
    pose[ANKLES] = -1
    result = retarget(pose, own)
    np.testing.assert_allclose(result[1], pose[1], atol=0.01)
    np.testing.assert_allclose(result[HIPS].mean(axis=0), pose[HIPS].mean(axis=0), atol=0.01)


def test_a_giant_is_made_to_fit_into_the_frame() -> None:
    pose = joints_of(A, pose_of("arms wide"))
    giant = (pose - [230, 88]) * 1.8 + [230, 88]
    giant[:, 1] = giant[:, 1].clip(0, 170)
    giant[:, 0] += 20 - min(giant[:, 0].min(), 20)
    result = retarget(pose, giant)
    assert (result >= 0).all() and (result < FRAME).all()


def test_mistakes_say_what_must_hold() -> None:
    pose = joints_of(A, pose_of("stand"))
    with pytest.raises(UserError, match=r"keypoints \(18, 2\) or \(n, 18, 2\).*found \(17, 2\)"):
        retarget(pose[:17], pose)
    with pytest.raises(UserError, match="found none in the photo"):
        retarget(pose, np.full((18, 2), -1.0))
    with pytest.raises(UserError, match="found none in the pose"):
        retarget(np.full((3, 18, 2), -1.0), pose)


def write(path: Path, joints: np.ndarray) -> Path:
    np.save(path, np.concatenate([joints[:, ::-1], np.ones((18, 1))], axis=1))
    return path


def test_the_command_and_generate_retarget(micro_folder: Path, tmp_path: Path, fails) -> None:
    pose, own = (joints_of(seed, pose_of(name)).round(2) for seed, name in ((A, "arms up"), (B, "stand")))
    Image.fromarray(people.draw(B, 0, limit=people.OWN_SEEDS).image).save(tmp_path / "photo.png")
    asked = [
        "--model",
        micro_folder,
        "--source",
        tmp_path / "photo.png",
        "--steps",
        2,
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    asked += ["--pose", write(tmp_path / "pose.npy", pose), "--out", tmp_path / "out.png", "--retarget"]
    fails(sample_command, *asked, words=["--retarget", "--source-pose"])
    asked += ["--source-pose", write(tmp_path / "own.npy", own)]
    assert sample_command([str(x) for x in [*asked, "--side-by-side", "--force"]]) == 0
    expected = retarget(pose, own)
    assert np.linalg.norm(expected - pose, axis=1).mean() > 1
    with Image.open(tmp_path / "out.png") as sheet:
        shown = np.asarray(sheet.crop((176, 0, 352, 256)), int)
        painted = np.asarray(sheet.crop((352, 0, 528, 256)), int)
    skeleton = np.asarray(pose_picture(torch.from_numpy(expected), FRAME), int)
    assert np.abs(shown - skeleton).max() <= 1
    model, vae = cfld.load(micro_folder)
    config = cfld.SamplingConfig(steps=2)
    photo = Image.open(tmp_path / "photo.png").convert("RGB")
    (picture,) = cfld.generate(model, vae, photo, pose, config, source_keypoints=own)
    assert np.abs(np.asarray(picture, int) - painted).max() <= 1
