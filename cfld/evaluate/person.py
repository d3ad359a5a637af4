"""Where the person is in an image: for metrics not inflated by plain backgrounds, and for trivial baselines.

The region depends only on the target's joints, so that it is the same for every method. All lengths are in units of T,
the length of the person's torso from neck to hip in pixels. Each visible bone gives an estimate: its length, divided by
its length where T is 1. T is the largest estimate, since foreshortening makes a bone shorter and never longer.

    region      all pixels within a capsule around a bone (radius 0.15 T for torso, neck and thighs, 0.1 T for arms and
                shins) or a disc of radius 0.25 T around the mean of nose, eyes and ears. If no hip is visible, the
                torso goes straight down from neck and shoulders by T
    face box    the square of 0.4 T around the mean of nose and eyes, if the nose and an eye are seen

Images (H, W, 3) in [0, 1]; labels (H, W), part numbers as cfld.people writes them, 0 = background; masks (H, W) bool;
keypoints (18, 2) as (y, x) in FRAME, -1 = missing; a size is (height, width).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cfld.pose import BONES, FRAME, segment_distance

Array = NDArray[Any]
LENGTHS = {  # of bones where T is 1: medians of the synthetic people, seen from the front
    (1, 8): 1.0, (1, 11): 1.0, (2, 5): 0.64, (2, 3): 0.53, (5, 6): 0.53, (8, 9): 0.77, (11, 12): 0.77, (9, 10): 0.77,
    (12, 13): 0.77, (1, 0): 0.4, (16, 17): 0.29,
}  # fmt: skip
THIN = ((2, 3), (3, 4), (5, 6), (6, 7), (9, 10), (12, 13))  # arms and shins
SIDES = ((2, 8), (5, 11), (8, 11))  # of the torso: no bones of the skeleton
FACE, HEAD = (0, 14, 15), (0, 14, 15, 16, 17)  # nose and eyes; and ears
SHOULDERS, HIPS = (1, 2, 5), (8, 11)
THICK_RADIUS, THIN_RADIUS, HEAD_RADIUS, FACE_RADIUS = 0.15, 0.1, 0.25, 0.2


def seen(keypoints: Array, *joints: int) -> bool:
    """Whether all of the joints are visible."""
    return bool((keypoints[list(joints)] >= 0).all())


def torso_length(keypoints: Array) -> float:
    """T of keypoints in their own pixels; 0 if no bone of LENGTHS is visible."""
    lengths = [np.hypot(*(keypoints[a] - keypoints[b])) / x for (a, b), x in LENGTHS.items() if seen(keypoints, a, b)]
    return float(max(lengths, default=0.0))


def scaled(keypoints: Array, size: tuple[int, int]) -> Array:
    """keypoints -> the same in pixels of an image of this size."""
    present = (keypoints >= 0).all(axis=1, keepdims=True)
    return np.where(present, keypoints * (np.array(size, np.float32) / np.array(FRAME, np.float32)), -1.0)


def person_region(keypoints: Array, size: tuple[int, int]) -> Array:
    """keypoints -> the person's mask in an image of this size."""
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
    """keypoints -> the face's mask, a box, in an image of this size; empty if the face is hidden."""
    joints, mask = scaled(keypoints, size), np.zeros(size, bool)
    found = [joints[j] for j in FACE if seen(joints, j)]
    if seen(joints, FACE[0]) and len(found) > 1:
        radius = FACE_RADIUS * torso_length(joints)
        top, left = np.maximum(np.rint(np.mean(found, axis=0) - radius), 0).astype(int)
        bottom, right = np.maximum(np.rint(np.mean(found, axis=0) + radius), 0).astype(int)
        mask[top:bottom, left:right] = True
    return mask


def error_inside(image: Array, truth: Array, mask: Array) -> float:
    """The mean absolute difference of two images inside a mask; NaN if it is empty."""
    return float(np.abs(image - truth)[mask].mean()) if mask.any() else float("nan")


def backdrop(image: Array) -> Array:
    """The colour (3,) behind the person: the median of a border of 4 pixels around the upper half of an image."""
    upper = image[: len(image) // 2]
    return np.median(np.concatenate([edge.reshape(-1, 3) for edge in (upper[:4], upper[:, :4], upper[:, -4:])]), axis=0)


def mean_colours(source: Array, source_labels: Array, target_labels: Array) -> Array:
    """An image of the target's parts, each in its mean colour in the source; a part that the source does not show in
    the mean colour of the whole person there."""
    image = np.empty((*target_labels.shape, 3), source.dtype)
    for part in np.unique(target_labels):
        shown = source_labels == part if (source_labels == part).any() else source_labels > 0
        image[target_labels == part] = source[shown].mean(axis=0)
    return image
