"""Read a pose from an image of its skeleton, as OpenPose, DWPose, ControlNet's tools and pose_picture draw it.

On black, each joint is a disc in its colour, on top of bones of 60 % of that brightness.

Letters in shapes: h x w pixels of the image, n pixels of a colour.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cfld.pose import BONE_COLOURS, BONES, JOINT_COLOURS, JOINTS
from cfld.tools.cli import UserError

Array = NDArray[Any]
DARK = 40  # of 255: below, a pixel is background
BLACK_SHARE = 0.6  # of the pixels of a skeleton's image, at least
PURE_SHARE = 0.6  # of its other pixels that have a colour of the skeleton, at least
NEAR = 28  # of 255: colours that differ by less in each channel are the same
MOST_PIXELS = 1_000_000  # of the image that is looked at; a larger one is made smaller first
FEWEST = 4  # joints of a skeleton


def near(pixels: Array, colour: tuple[int, ...]) -> Array:
    """pixels (..., 3) -> (...) bool: whether they have this colour."""
    return (np.abs(pixels - np.array(colour)) <= NEAR).all(axis=-1)


def clusters(mask: Array, reach: float) -> list[Array]:
    """mask (h, w) bool -> the groups of its pixels (n, 2) as (y, x), largest first; those closer than reach are of one
    group."""
    left, found = np.argwhere(mask), []
    while len(left):
        group, edge = left[:0], left[:1]
        left = left[1:]
        while len(edge):
            group = np.concatenate([group, edge])
            close = (
                (np.abs(left[:, None] - edge[None]) <= reach).all(axis=2).any(axis=1) if len(left) else left[:, 0] > 0
            )
            edge, left = left[close], left[~close]
        found.append(group)
    return sorted(found, key=len, reverse=True)


def is_skeleton(photo: Image.Image) -> bool:
    """Whether an image shows a skeleton on black and nothing else."""
    small = photo.convert("RGB")
    small.thumbnail((512, 512), Image.Resampling.NEAREST)
    pixels = np.asarray(small).astype(int)
    bright = pixels[pixels.max(axis=-1) >= DARK]
    if not 0 < len(bright) <= (1 - BLACK_SHARE) * small.width * small.height:
        return False
    pure = np.zeros(len(bright), bool)
    for colour in (*JOINT_COLOURS, *BONE_COLOURS):
        pure |= near(bright, colour)
    seen = sum(near(bright, colour).any() for colour in JOINT_COLOURS)
    return bool(pure.mean() >= PURE_SHARE and seen >= FEWEST)


def read_skeleton(photo: Image.Image) -> Array:
    """An image of a skeleton -> points (18, 3) as (x, y, score) in its pixels, the score 1 or, where missing, 0.

    Where hands are drawn as well, their dots may have the colour of a joint: the disc is the group of pixels with most
    of the joint's bones around it. Raises UserError if two people are drawn.
    """
    scale = min((MOST_PIXELS / (photo.width * photo.height)) ** 0.5, 1)
    size = (max(round(photo.width * scale), 1), max(round(photo.height * scale), 1))
    small = photo.convert("RGB").resize(size, Image.Resampling.NEAREST) if scale < 1 else photo.convert("RGB")
    pixels = np.asarray(small).astype(int)
    bones = {
        joint: np.any([near(pixels, c) for b, c in zip(BONES, BONE_COLOURS, strict=True) if joint in b], axis=0)
        for joint in range(len(JOINTS))
    }
    points, doubles = np.zeros((len(JOINTS), 3)), 0
    for joint, colour in enumerate(JOINT_COLOURS):
        groups = [group for group in clusters(near(pixels, colour), 1) if len(group) >= 4]
        supported = [(bone_pixels(bones[joint], group), group) for group in groups]
        supported.sort(key=lambda pair: (-pair[0], -len(pair[1])))
        if not supported:
            continue
        best, group = supported[0]
        doubles += len(supported) > 1 and 2 * supported[1][0] > best > 0 and 2 * len(supported[1][1]) > len(group)
        y, x = (group.min(axis=0) + group.max(axis=0) + 1) / 2 / scale
        points[joint] = x, y, 1
    if doubles >= FEWEST:
        raise UserError(f"the skeleton must be of one person, found two or more joints of {doubles} kinds: cut one out")
    return points


def bone_pixels(bones: Array, group: Array) -> int:
    """How many pixels of bones (h, w) bool lie around a group of pixels (n, 2)."""
    reach = max(int(np.ptp(group, axis=0).max()), 4)
    (top, left), (bottom, right) = np.maximum(group.min(axis=0) - reach, 0), group.max(axis=0) + reach + 1
    return int(bones[top:bottom, left:right].sum())
