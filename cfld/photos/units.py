"""Whether joints can be those of a person in an image of a size: one rule for all readers (docs/poses.md).

Joints in another unit, or of another copy or part of the image, would silently give a wrong pose. But they lie outside
the image, or all of them in its top left quarter. The joints of a person do not: also those of a person who is cut off,
crouches, lies or stands on their head lie in the image and reach beyond that quarter.

Points (n, 3) are (x, y, score), a size is (height, width).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfld.photos.layouts import FEWEST
from cfld.pose import FRAME
from cfld.tools.cli import UserError

Array = NDArray[Any]
MARGIN = 0.03  # of the image's side: a joint that lies less far outside is a guess at what the image cuts off
TINY = 8  # pixels from the image's corner: nobody is so small
NEGATIVE = 0.25  # of the fractions may be negative: more have their origin in the middle of the image or the person
OUTSIDE = 0.5  # of the fractions may lie outside (those of a person who is cut off): more are not of this image
SPOILT = 0.05  # of a data set's photos may have a joint outside: of right data none, of wrong data a quarter or more
SIZE_ADVICE = "--pose-size WxH (in Python pose_size, height first)"


def sure(points: Array) -> Array:
    """Which points (n, 3) their estimator is sure of (n,) bool: their score is at least half of the highest, and they
    are not marked as missing by (0, 0) or by -1 in a coordinate."""
    places, scores = points[:, :2], points[:, 2]
    marked = (places == 0).all(axis=1) | (places == -1).any(axis=1)
    return (scores > 0) & (scores >= scores[~marked].max(initial=0) / 2) & ~marked


def check_fractions(points: Array) -> None:
    """Raise UserError if points (n, 3), which are taken for fractions of their image, cannot be."""
    places = points[sure(points), :2]
    if not len(places):
        return
    found = f"found x from {places[:, 0].min():.3g} to {places[:, 0].max():.3g} and y from {places[:, 1].min():.3g} to "
    found += f"{places[:, 1].max():.3g}"
    if (places < 0).any(axis=1).mean() > NEGATIVE:
        raise UserError(
            f"fractions of an image must be within 0 .. 1, {found}: of coordinates from -1 to 1 take (x + 1) / 2; "
            "MediaPipe's world landmarks are metres, take its other landmarks"
        )
    if ((places < -MARGIN) | (places > 1 + MARGIN)).any(axis=1).mean() > OUTSIDE:
        raise UserError(
            f"fractions of an image must be within 0 .. 1, {found}: divide x by the image's width and y by its height; "
            "MediaPipe's joints are fractions"
        )


def named(size: tuple[float, float]) -> str:
    """A size in words."""
    return f"{size[1]:g}x{size[0]:g} (width x height)"


def holding(size: tuple[float, float], low: Array, high: Array) -> str:
    """In which image joints that do not fit one of this size would: they reach from low to high, as (x, y)."""
    if (low < 0).any():
        return "they have negative coordinates, as of another part of the image"
    if (high < size).all():
        return f"they fit {named(size[::-1])}, so check the order of the size"
    times = int(np.ceil((high + 1) / size[::-1]).max())
    return f"they fit an image {times} times as large, {named((times * size[0], times * size[1]))}"


def check_inside(points: Array, size: tuple[float, float]) -> None:
    """Raise UserError if points (n, 3), in pixels, cannot be in an image of this size."""
    places, side = points[sure(points), :2], np.array(size[::-1])
    outside = ((places < -MARGIN * side) | (places > (1 + MARGIN) * side)).any(axis=1)
    if outside.any():
        (x, y), low, high = places[outside][0], places.min(axis=0), places.max(axis=0)
        raise UserError(
            f"joints must lie in an image of {named(size)}, found {outside.sum()} of {len(places)} outside, such as "
            f"x = {x:g}, y = {y:g}: {holding(size, low, high)}; give the size of the image that they were found in by "
            f"{SIZE_ADVICE}, or as canvas_width and canvas_height in JSON, or find them again in this image"
        )
    if len(places) >= FEWEST and places.max() <= TINY:
        raise UserError(
            f"joints must be in pixels of an image of {named(size)}, or fractions of it, found all up to x = "
            f"{places[:, 0].max():g}, y = {places[:, 1].max():g}: divide x by the image's width and y by its height"
        )


def check_guess(points: Array, size: tuple[float, float]) -> None:
    """Raise UserError if points (n, 3), in pixels, of all people in an image, make its size, which is only a guess,
    improbable."""
    places = points[sure(points), :2]
    if len(places) >= FEWEST and (places < np.array(size[::-1]) / 2).all():
        x, y = places.max(axis=0)
        raise UserError(
            f"joints must be in pixels of an image of {named(size)}, found all in its top left quarter, up to "
            f"x = {x:g}, y = {y:g}, as joints of a smaller copy are: give the copy's size by {SIZE_ADVICE}, or as "
            "canvas_width and canvas_height in JSON; if they are right, give this size"
        )


def check_keypoints(keypoints: Array) -> None:
    """Raise UserError if keypoints (B, 18, 2), as (y, x) in FRAME, -1 = missing, are in another frame or unit."""
    for number, pose in enumerate(keypoints):
        present = pose[(pose >= 0).all(axis=1)]
        if not len(present):
            continue
        y, x = high = present.max(axis=0)
        found = f"keypoints must be (y, x) in pixels of the frame of {named(FRAME)}, pose "
        found += f"{number} reaches to y = {y:g}, x = {x:g}"
        advice = "cfld.keypoints_from and cfld.read_pose bring joints of any image into it"
        if (high > np.array(FRAME) * (1 + MARGIN)).any():
            order = " (they would fit as (x, y): turn them by [:, ::-1])" if (high[::-1] <= FRAME).all() else ""
            raise UserError(f"{found}{order}: {advice}")
        if len(present) >= FEWEST and high.max() <= 2:
            raise UserError(f"{found}, as fractions do: {advice}")


def check_annotations(annotations: Mapping[str, Array], frame: tuple[int, int]) -> None:
    """Raise UserError if a data set's keypoints (18, 2), as (y, x) by name, -1 = missing, are not in its frame (height,
    width)."""
    if not annotations:
        return
    joints = np.array(list(annotations.values()))  # (N, 18, 2)
    present: Array = np.asarray((joints >= 0).all(axis=2))
    negative: Array = np.asarray(((joints < 0) & (joints != -1)).any(axis=2))
    beyond: Array = (present & (joints >= frame).any(axis=2)) | negative
    spoilt = beyond.any(axis=1)
    must = f"joints must be in pixels of an image of {named(frame)}, found"
    if spoilt.sum() > max(1, SPOILT * len(joints)) or (spoilt.any() and beyond.sum() > beyond.size / 10):
        y, x = joints[beyond][0]
        high = joints[present].max(axis=0, initial=0)
        advice = "scale or shift them"
        if frame == FRAME and not negative.any() and high.max() < 256:
            advice = "they fit 256x256, to which photos of 176x256 are padded: subtract 40 from each x that is not -1"
        raise UserError(
            f"{must} some outside it in {spoilt.sum()} of {len(joints)} photos, such as y = {y:g}, x = {x:g}: {advice}"
        )
    told = present.sum(axis=1) >= FEWEST
    small = np.where(present[..., None], joints, 0).max(axis=1)[told]  # (N, 2)
    if len(small) and (small < np.array(frame) / 2).all(axis=1).mean() > 0.5:
        y, x = np.median(small, axis=0)
        raise UserError(
            f"{must} those of most photos in its top left quarter, in the median up to y = {y:g}, x = {x:g}: scale them"
        )
