"""Where the person is in a picture, for measures that a large plain backdrop cannot flatter, and baselines of no skill.

The person is told from the target's joints alone, so that it is the same for every method. All lengths are in units of
T, the person's torso from neck to hip in pixels: the largest of what the bones seen say (a bone seen at an angle is
short, none is long), each divided by the length it has if T is 1.

    region      all pixels within a capsule around a bone (0.15 T of those of torso, neck and thighs, 0.1 T of arms and
                shins) or a disc of 0.25 T around the mean of nose, eyes and ears. If no hip is seen, the torso goes
                straight down from neck and shoulders by T
    face box    the square of 0.4 T around the mean of nose and eyes, if the nose and an eye are seen

Pictures (H, W, 3) in [0, 1]; labels (H, W), part numbers as cfld.people writes them, 0 = background; masks (H, W) bool.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cfld.pose import BONES, FRAME, segment_distance

Array = NDArray[Any]
LENGTHS = {  # of bones where T is 1: medians of the drawn people, seen from the front
    (1, 8): 1.0, (1, 11): 1.0, (2, 5): 0.64, (2, 3): 0.53, (5, 6): 0.53, (8, 9): 0.77, (11, 12): 0.77, (9, 10): 0.77,
    (12, 13): 0.77, (1, 0): 0.4, (16, 17): 0.29,
}  # fmt: skip
THIN = ((2, 3), (3, 4), (5, 6), (6, 7), (9, 10), (12, 13))  # arms and shins
SIDES = ((2, 8), (5, 11), (8, 11))  # of the torso, which are no bones of the skeleton
FACE, HEAD = (0, 14, 15), (0, 14, 15, 16, 17)  # nose and eyes; and ears
SHOULDERS, HIPS = (1, 2, 5), (8, 11)
THICK_RADIUS, THIN_RADIUS, HEAD_RADIUS, FACE_RADIUS = 0.15, 0.1, 0.25, 0.2


def seen(keypoints: Array, *joints: int) -> bool:
    """Whether none of the joints is missing."""
    return bool((keypoints[list(joints)] >= 0).all())


def torso_length(keypoints: Array) -> float:
    """T of keypoints (18, 2) in their own pixels, 0 if no bone that tells it is seen."""
    lengths = [np.hypot(*(keypoints[a] - keypoints[b])) / x for (a, b), x in LENGTHS.items() if seen(keypoints, a, b)]
    return float(max(lengths, default=0.0))


def scaled(keypoints: Array, size: tuple[int, int]) -> Array:
    """keypoints (18, 2) as (y, x) in FRAME -> in pixels of a picture of size (height, width), -1 = missing."""
    present = (keypoints >= 0).all(axis=1, keepdims=True)
    return np.where(present, keypoints * (np.array(size, np.float32) / np.array(FRAME, np.float32)), -1.0)


def person_region(keypoints: Array, size: tuple[int, int]) -> Array:
    """keypoints (18, 2) as (y, x) in FRAME, -1 = missing -> the person's mask in a picture of size (height, width)."""
    joints = scaled(keypoints, size)
    torso = torso_length(joints)
    segments = [
        (joints[a], joints[b], THIN_RADIUS if (a, b) in THIN else THICK_RADIUS)
        for a, b in (*BONES[:13], *SIDES)  # the others are of the head
        if seen(joints, a, b)
    ]
    if not any(seen(joints, hip) for hip in HIPS):
        segments += [(joints[j], joints[j] + (torso, 0.0), THICK_RADIUS) for j in SHOULDERS if seen(joints, j)]
    head = [joints[j] for j in HEAD if seen(joints, j)]
    if head:
        segments.append((np.mean(head, axis=0), np.mean(head, axis=0), HEAD_RADIUS))

    rows, columns = (torch.arange(side, dtype=torch.float32) + 0.5 for side in size)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
    mask = torch.zeros(size, dtype=torch.bool)
    for start, end, radius in segments:
        ends = (torch.tensor(np.array(point), dtype=torch.float32)[None] for point in (start, end))
        mask |= segment_distance(grid, *ends)[0] <= radius * torso
    return mask.numpy()


def face_box(keypoints: Array, size: tuple[int, int]) -> Array:
    """keypoints (18, 2) as (y, x) in FRAME, -1 = missing -> the face's mask, a box, in a picture of size (height,
    width); empty if the face is not seen."""
    joints, mask = scaled(keypoints, size), np.zeros(size, bool)
    found = [joints[j] for j in FACE if seen(joints, j)]
    if seen(joints, FACE[0]) and len(found) > 1:
        radius = FACE_RADIUS * torso_length(joints)
        top, left = np.maximum(np.rint(np.mean(found, axis=0) - radius), 0).astype(int)
        bottom, right = np.maximum(np.rint(np.mean(found, axis=0) + radius), 0).astype(int)
        mask[top:bottom, left:right] = True
    return mask


def error_inside(picture: Array, truth: Array, mask: Array) -> float:
    """The mean absolute difference of two pictures inside a mask; NaN if it is empty."""
    return float(np.abs(picture - truth)[mask].mean()) if mask.any() else float("nan")


def backdrop(picture: Array) -> Array:
    """The colour (3,) behind the person: the median of a border of 4 pixels around the picture's upper half."""
    upper = picture[: len(picture) // 2]
    return np.median(np.concatenate([edge.reshape(-1, 3) for edge in (upper[:4], upper[:, :4], upper[:, -4:])]), axis=0)


def mean_colours(source: Array, source_labels: Array, target_labels: Array) -> Array:
    """The target's parts, each in the mean colour it has in the source, or, if it has none, in the mean colour of the
    whole person there -> a picture."""
    picture = np.empty((*target_labels.shape, 3), source.dtype)
    for part in np.unique(target_labels):
        shown = source_labels == part if (source_labels == part).any() else source_labels > 0
        picture[target_labels == part] = source[shown].mean(axis=0)
    return picture
