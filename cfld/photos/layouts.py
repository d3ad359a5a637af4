"""The orders in which pose estimators write joints, and how to tell one from another.

Files of layouts with equally many joints differ only in the order. In a wrong order, bones run across the body: they
are longer than needed to join the joints. That holds for every pose, size and angle.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfld.pose import BONES
from cfld.tools.cli import UserError

Array = NDArray[Any]


class Layout(NamedTuple):
    """An estimator's layout.

    size: the number of its points
    places: where it has JOINTS; a pair stands for the middle of the two, None for a joint that it lacks
    """

    size: int
    places: tuple[int | tuple[int, int] | None, ...]


COCO = (0, (5, 6), 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
LAYOUTS = {  # of those with equally many points, the first is the one that a file is taken for
    "coco": Layout(17, COCO),
    "h36m": Layout(17, (9, 8, 14, 15, 16, 11, 12, 13, 1, 2, 3, 4, 5, 6, None, None, None, None)),  # Human3.6M
    "openpose": Layout(18, tuple(range(18))),  # OpenPose's COCO model: JOINTS itself
    "coco18": Layout(18, (0, 17, *COCO[2:])),  # COCO's and a neck, of trt_pose and others
    "body25": Layout(25, (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)),  # OpenPose's BODY_25
    "body25b": Layout(25, COCO),  # OpenPose's BODY_25B: COCO's, upper neck, top of the head, feet
    "halpe26": Layout(26, COCO),  # HALPE_26, of AlphaPose and RTMPose: COCO's, head, neck, hip, feet
    "mediapipe": Layout(33, (0, (11, 12), 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)),
    "wholebody": Layout(133, COCO),  # COCO-WholeBody: COCO's, feet, face, hands
}
COUNTS = sorted({layout.size for layout in LAYOUTS.values()})
FEWEST = 8  # joints from which an order can be told
# A layout is wrong if its bones are longer than STRETCHED, and longer than another's by the factor BETTER.
STRETCHED, BETTER = 1.6, 1.3
NONSENSE = 2.4  # bones longer than this are not of a body: those of people in all poses are up to 1.97


def joints_in(points: Array, seen: Array, layout: Layout) -> Array:
    """points (n, 3) as (x, y, score), seen (n,) bool -> joints (18, 2) as (y, x), -1 = missing: not seen, the middle of
    two of which one is not, or not in the layout."""
    pairs = np.array([(-1, -1) if p is None else (p, p) if isinstance(p, int) else p for p in layout.places])  # (18, 2)
    present = (seen[pairs] & (pairs >= 0)).all(axis=1)
    return np.where(present[:, None], points[pairs, 1::-1].mean(axis=1), -1)


def used_points(count: int) -> list[int]:
    """Which points the layouts of so many have for JOINTS."""
    places = [p for layout in LAYOUTS.values() if layout.size == count for p in layout.places if p is not None]
    return sorted({i for p in places for i in ((p,) if isinstance(p, int) else p)})


def spanning_length(distances: Array) -> float:
    """The length of the shortest tree that joins n points (Prim 1957), by their distances (n, n)."""
    length, away, outside = 0.0, distances[0].copy(), np.ones(len(distances), bool)
    outside[0] = False
    while outside.any():
        nearest = np.where(outside, away, np.inf).argmin()
        length += away[nearest]
        outside[nearest] = False
        away = np.minimum(away, distances[nearest])
    return float(length)


def stretch(joints: Array) -> float:
    """The length of the bones of joints (18, 2), and of what must join the parts of the body between which joints are
    missing, as a multiple of the shortest tree that joins all. 1 where fewer than FEWEST are present."""
    present = np.asarray((joints >= 0).all(axis=1))
    if present.sum() < FEWEST:
        return 1.0
    distances = np.linalg.norm(joints[:, None] - joints, axis=-1)
    beyond, bones = distances.copy(), 0.0
    for a, b in BONES:
        if present[a] and present[b]:
            bones += distances[a, b]
            beyond[a, b] = beyond[b, a] = 0
    kept = np.ix_(present, present)
    return (bones + spanning_length(beyond[kept])) / max(spanning_length(distances[kept]), 1e-6)


def choose(points: Array, seen: Array, layout: str | None = None) -> Array:
    """points (n, 3) as (x, y, score), n one of COUNTS; seen (n,) bool -> joints (18, 2) as (y, x), -1 = missing.

    layout: a name of LAYOUTS, used without a check if it has so many points, and ignored if not. None: the first of
        those with so many points, if its order gives a body

    Raises UserError if it gives none.
    """
    found = {name: joints_in(points, seen, each) for name, each in LAYOUTS.items() if each.size == len(points)}
    if layout in found:
        return found[layout]
    stretches = {name: stretch(joints) for name, joints in found.items()}
    first, best = next(iter(found)), min(stretches, key=stretches.__getitem__)
    wrong = f"the {len(points)} joints form no body in the order of {first}"
    as_they_are = f"--layout {first} to take them as they are (in Python layout)"
    if stretches[first] >= STRETCHED and stretches[first] >= BETTER * stretches[best]:
        raise UserError(f"{wrong}, but do in the order of {best}: add --layout {best}, or {as_they_are}")
    if stretches[first] >= NONSENSE:
        raise UserError(
            f"{wrong}: its bones would be {stretches[first]:.1f} times as long as need be; check the order "
            f"(docs/poses.md), or add {as_they_are}"
        )
    return found[first]
