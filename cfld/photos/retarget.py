"""Retargeting: a pose of one body, given the proportions of another.

A photo shows bones foreshortened when they point towards the camera, so it does not show how long they are. But a body
has the same bones in all poses. So we estimate, for each of the two people, the most likely body given what is visible:

1. A body is eight lengths (BODY), in torsos. A priori, each is that of a typical body, within a few per cent (SPREAD).
2. A bone that looks longer than expected is evidence of a body with longer bones, and counts in full. A bone that looks
   shorter may only point towards the camera: the shorter it looks, the less it counts, relative to the usual
   foreshortening of its kind (SHORTENED). Both sides of the body and all frames of a sequence count; each frame has its
   own size.
3. The pose gets the person's lengths, from the torso outwards. Each bone keeps its direction and its foreshortening,
   and its length is multiplied by the ratio of the two bodies. So a foreshortened bone stays foreshortened, and a
   length that is known of neither body does not change. A missing joint stays missing; the next one is placed relative
   to the last that is there.

Size and place: if feet are visible in the photo and in the pose, the person has the size of the photo and stands on the
ground of the pose in every frame. The way from the first frame becomes shorter by the ratio of the legs, so that no
foot slides. Otherwise, torso and place are the pose's. What would leave the frame is moved or made smaller, in all
frames alike.

Letters in shapes: n poses, M bones seen in them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfld.pose import FRAME
from cfld.tools.checks import described
from cfld.tools.cli import UserError

Array = NDArray[Any]
PELVIS, NECK, NOSE = 18, 1, 0  # the pelvis, the middle of the hips, is a joint of this module's own
SHOULDERS, ELBOWS, HIPS, ANKLES = [2, 5], [3, 6], [8, 11], [10, 13]
LIMB_BONES = [2, 3, 5, 6]  # of BODY
BODY = ("torso", "shoulder", "upper arm", "forearm", "hip", "thigh", "shin", "head")
# Each in torsos (neck to pelvis): of the people of cfld.people (benchmarks/retarget.py prints it). The head's is from
# neck to nose; it points to the camera as a rule, so that is 13 % less than its length.
TYPICAL = np.log([1.0, 0.335, 0.555, 0.484, 0.201, 0.785, 0.787, 0.373])
SPREAD = np.array([1e-6, 0.03, 0.012, 0.03, 0.04, 0.022, 0.018, 0.03])  # of people, around TYPICAL; a share
LIMBS = 0.026  # the same, of arms and legs together: people with long legs have long arms
NOISE = np.array([0.02, 0.025, 0.03, 0.03, 0.025, 0.03, 0.035, 0.06])  # of visible lengths, by perspective; a share
SHORTENED = np.array([0.015, 0.7, 0.08, 0.25, 0.7, 0.05, 0.05, 0.1])  # by how much bones of a kind usually are; a share
ROOM = np.array([0.08, 0.05]), np.array([0.95, 0.95])  # of FRAME's height and width: the range for joints
LIFT = 0.08  # of the torso, by which the neck rises when both arms do
TREE = (  # parent, child, and which of BODY the bone is; parents first
    (PELVIS, NECK, 0), (NECK, 2, 1), (NECK, 5, 1), (2, 3, 2), (5, 6, 2), (3, 4, 3), (6, 7, 3), (PELVIS, 8, 4),
    (PELVIS, 11, 4), (8, 9, 5), (11, 12, 5), (9, 10, 6), (12, 13, 6), (NECK, NOSE, 7), (NOSE, 14, 7), (NOSE, 15, 7),
    (14, 16, 7), (15, 17, 7),
)  # fmt: skip
MEASURED = [bone for bone in TREE if NOSE not in bone[:1]]  # all but those of the face, which turns


def completed(poses: Array) -> Array:
    """poses (n, 18, 2) -> joints (n, 19, 2), float64, nan = missing, with the pelvis: the middle of the hips, or the
    one that is seen; and, where the neck is missing, the same of the shoulders."""
    joints = np.where((poses >= 0).all(axis=2, keepdims=True), poses, np.nan).astype(np.float64)
    joints = np.concatenate([joints, np.full((len(poses), 1, 2), np.nan)], axis=1)
    for middle, (right, left) in ((NECK, SHOULDERS), (PELVIS, HIPS)):
        one = np.where(np.isnan(joints[:, right]), joints[:, left], joints[:, right])
        both = (joints[:, right] + joints[:, left]) / 2
        guess = np.where(np.isnan(both), one, both)
        joints[:, middle] = np.where(np.isnan(joints[:, middle]), guess, joints[:, middle])
    return joints


def arms_raised(joints: Array) -> Array:
    """joints (n, 19, 2) -> (n,) from 0, both arms down, to 1, both up: as much as they lift the shoulders."""
    torso = np.linalg.norm(joints[:, NECK] - joints[:, PELVIS], axis=1)[:, None]
    up = (joints[:, SHOULDERS, 0] - joints[:, ELBOWS, 0]) / (torso * np.exp(TYPICAL[2]))
    return np.nan_to_num(np.clip(up + 0.2, 0, 1)).mean(axis=1)


def body(joints: Array) -> tuple[Array, Array]:
    """joints (n, 19, 2) of one person in n poses -> the logarithms of the most likely lengths of BODY in torsos (8,),
    and of the torso's length in each pose (n,); nan where a pose shows no bone."""
    start, end, kind = np.array(MEASURED).T
    lengths = np.linalg.norm(joints[:, end] - joints[:, start], axis=2)  # (n, 16)
    lengths[:, 0] /= 1 + LIFT * arms_raised(joints)
    pose, bone = np.nonzero(lengths > 1)  # nan is not; nor is the hip that is itself the pelvis
    seen, kinds, poses = np.log(lengths[pose, bone]), kind[bone], len(joints)
    proportions, sizes = TYPICAL.copy(), np.full(poses, np.nan)
    for i in set(pose):  # to begin with: as large as its longest bones, so that all others are foreshortened
        sizes[i] = np.median(np.sort((seen - TYPICAL[kinds])[pose == i])[-3:])
    # Weighted least squares, again and again, for M + 8 equations (each bone; each length is near the typical one).
    columns = np.zeros((len(seen), 8 + poses))
    columns[np.arange(len(seen)), kinds] = columns[np.arange(len(seen)), 8 + pose] = 1
    limbs = np.isin(np.arange(8), LIMB_BONES)
    prior = np.diag(np.full(8 + poses, 1e-9))
    prior[:8, :8] = np.linalg.inv(np.diag(SPREAD**2) + LIMBS**2 * np.outer(limbs, limbs))
    expected = prior @ np.concatenate([TYPICAL, np.zeros(poses)])
    for _ in range(30):
        off = seen - proportions[kinds] - np.nan_to_num(sizes)[pose]
        exact = NOISE[kinds] ** 2
        weights = 1 / np.where(off > 0, exact, np.maximum(exact, SHORTENED[kinds] * -off))
        normal = (columns * weights[:, None]).T @ columns + prior
        right = (columns * weights[:, None]).T @ seen + expected
        solution = np.linalg.solve(normal, right)
        proportions, sizes = solution[:8], np.where(np.isnan(sizes), np.nan, solution[8:])
    return proportions, sizes


def resized(joints: Array, ratios: Array) -> Array:
    """joints (n, 19, 2), ratios (8,) of the lengths of BODY -> (n, 19, 2) with such bones; the first joint of the tree
    that a pose has stays where it is."""
    result, typical = joints.copy(), np.exp(TYPICAL)
    for old, new in zip(joints, result, strict=True):
        # Of each joint that has been reached: the last that is there, and the lengths before and after from it to here.
        last: dict[int, tuple[int | None, float, float]] = {PELVIS: (None, 0.0, 0.0)}
        if not np.isnan(old[PELVIS, 0]):
            last[PELVIS] = (PELVIS, 0.0, 0.0)
        for parent, child, kind in TREE:
            anchor, before, after = last[parent]
            before, after = before + typical[kind], after + typical[kind] * ratios[kind]
            last[child] = (anchor, before, after)
            if not np.isnan(old[child, 0]):
                if anchor is not None:
                    new[child] = new[anchor] + (old[child] - old[anchor]) * after / before
                last[child] = (child, 0.0, 0.0)
                if anchor is None and child == NECK:
                    last[PELVIS] = (NECK, 0.0, 0.0)  # of a pose without hips, what is below hangs from the neck
    return result


def on_the_ground(joints: Array, result: Array, legs: float) -> Array:
    """Shift result (n, 19, 2) so that its feet are where those of joints are, and its way sideways is `legs` times as
    long. Poses without feet move as those before and after them do."""
    shown = ~np.isnan(joints[:, ANKLES, 0]).all(axis=1)
    with_feet = np.flatnonzero(shown)
    down = np.nanmax(joints[shown][:, ANKLES, 0], axis=1) - np.nanmax(result[shown][:, ANKLES, 0], axis=1)
    middle = np.nanmean(joints[:, :, 1], axis=1)
    middle = np.where(np.isnan(joints[:, PELVIS, 1]), middle, joints[:, PELVIS, 1])
    across = (legs - 1) * (middle - middle[0])
    return result + np.stack([np.interp(np.arange(len(joints)), with_feet, down), across], axis=1)[:, None]


def within_frame(joints: Array, result: Array) -> Array:
    """Make result (n, 19, 2) smaller, or move it, all poses alike, where it reaches farther out than joints do and than
    ROOM."""
    low, high = (limits * FRAME for limits in ROOM)
    low, high = np.fmin(np.nanmin(joints, axis=(0, 1)), low), np.fmax(np.nanmax(joints, axis=(0, 1)), high)
    first, last = np.nanmin(result, axis=(0, 1)), np.nanmax(result, axis=(0, 1))
    factor = min(1.0, *((high - low) / np.maximum(last - first, 1e-6)))
    centre = np.array([np.nanmax(joints[..., 0]), np.nanmean(joints[:, :, 1])])
    result = centre + (result - centre) * factor
    first, last = np.nanmin(result, axis=(0, 1)), np.nanmax(result, axis=(0, 1))
    return result + np.maximum(low - first, 0) - np.maximum(last - high, 0)


def retarget(keypoints: Array, source: Array) -> Array:
    """Poses of somebody, in the proportions of the person of a photo.

    keypoints (18, 2) or (n, 18, 2) as (y, x) in FRAME, -1 = missing: of one person, in the order of a sequence
    source (18, 2): the same of the person in the photo
    -> keypoints of the same shape, float32
    Raises UserError if a shape is wrong, if there are others than finite numbers, or if the photo or all poses have no
    bone.
    """
    poses, source = np.asarray(keypoints), np.asarray(source)
    if source.shape != (18, 2) or poses.ndim not in (2, 3) or poses.shape[-2:] != (18, 2) or not poses.size:
        raise UserError(
            f"retarget takes keypoints (18, 2) or (n, 18, 2) and a source (18, 2), found {poses.shape} and "
            f"{source.shape}"
        )
    for name, array in (("keypoints", poses), ("source", source)):
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise UserError(f"{name} must be finite numbers, -1 = missing, found {described(array)}")
    joints, own = completed(poses.reshape(-1, 18, 2)), completed(source[None])
    (proportions, sizes), (own_proportions, own_sizes) = body(joints), body(own)
    if np.isnan(own_sizes).all() or np.isnan(sizes).all():
        raise UserError(
            "to retarget, the photo and the pose must show a bone between neck and feet, found none in the "
            + ("photo: check --source-pose" if np.isnan(own_sizes).all() else "pose: check --pose")
        )
    ratios = own_proportions - proportions
    standing = not np.isnan(own[:, ANKLES]).all() and not np.isnan(joints[:, ANKLES]).all()
    if standing:
        ratios = ratios + own_sizes[0] - np.nanmedian(sizes)
    result = resized(joints, np.exp(ratios))
    if standing:
        result = on_the_ground(joints, result, float(np.exp(ratios[5:7]).mean()))
    result = within_frame(joints, result)[:, :18]
    shown = (poses.reshape(result.shape) >= 0) & (result >= 0) & (result < FRAME)  # nan is not
    return np.where(shown.all(axis=2, keepdims=True), result, -1).astype(np.float32).reshape(poses.shape)
