"""Poses: 18 archetypes of what a model does in front of a camera, varied, and the skeleton that follows them.

A limb is given by its direction in the frame of the torso, written for the left side: x outwards, -y forwards, z up.
Letters in shapes: J bones; limbs are (4, 2, 3) directions of upper arm, forearm, thigh, shin; left, right.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cfld.people.mesh import Array, mesh

Direction = tuple[float, float, float]
Pair = tuple[Direction, Direction]  # left, right
VIEWS = ("front", "back", "side", "quarter", "back quarter")
FRAMINGS = ("full", "knee", "half", "bust")


@dataclass(frozen=True)
class Archetype:
    """A pose before it is varied, and how often it is chosen."""

    odds: float
    upper_arm: Pair = ((0.25, 0.05, -1),) * 2
    forearm: Pair = ((0.15, -0.25, -1),) * 2
    thigh: Pair = ((0.07, 0, -1),) * 2
    shin: Pair = ((0.03, 0.05, -1),) * 2
    lean: float = 0.0  # radians to the left
    head_roll: float = 0.0
    seated: bool = False


def both(*direction: float) -> Pair:
    """The same direction on both sides."""
    x, y, z = direction
    return (x, y, z), (x, y, z)


HANGING, FALLING = (0.25, 0.05, -1.0), (0.15, -0.25, -1.0)  # an arm at rest: its upper half, its lower half

ARCHETYPES: dict[str, Archetype] = {
    "stand": Archetype(0.10),
    "relaxed": Archetype(0.17, both(0.22, 0, -1), both(0.1, -0.25, -1)),
    "hand on hip": Archetype(0.09, (HANGING, (0.75, 0.25, -0.8)), (FALLING, (-0.75, -0.55, -0.35)), lean=0.05),
    "hands on hips": Archetype(0.06, both(0.75, 0.25, -0.8), both(-0.75, -0.5, -0.35)),
    "walk": Archetype(
        0.09,
        ((0.15, -0.45, -1), (0.15, 0.45, -1)),
        ((0.05, -0.9, -1), (0.05, -0.1, -1)),
        ((0.03, 0.35, -1), (0.03, -0.45, -1)),
        ((0, 0.75, -1), (0, 0.05, -1)),
    ),
    "stride": Archetype(
        0.05,
        ((0.2, 0.5, -1), (0.2, -0.5, -1)),
        ((0.1, 0.1, -1), (0.1, -0.9, -0.8)),
        ((0.03, -0.6, -1), (0.03, 0.4, -1)),
        ((0, 0, -1), (0, 0.9, -1)),
    ),
    "arms up": Archetype(0.04, both(0.6, -0.1, 0.9), both(-0.1, -0.1, 1)),
    "wave": Archetype(0.04, ((1, -0.1, 0.25), HANGING), ((0.1, -0.1, 1), FALLING)),
    "arms wide": Archetype(0.02, both(1, 0, 0), both(1, -0.1, 0)),
    "hand at head": Archetype(0.05, ((0.9, -0.3, 0.45), HANGING), ((-0.9, -0.1, 0.75), FALLING), head_roll=0.15),
    "arms crossed": Archetype(0.03, ((0.35, -0.3, -1), (0.35, -0.35, -1)), ((-0.95, -0.75, 0.15), (-0.95, -0.55, 0.1))),
    "hands in front": Archetype(0.05, both(0.25, -0.2, -1), both(-0.5, -1, 0.1)),
    "hands in pockets": Archetype(0.08, both(0.45, 0.25, -1), both(-0.12, -0.4, -1)),
    "sit": Archetype(
        0.03, both(0.25, -0.35, -1), both(-0.15, -1, -0.35), both(0.18, -1, -0.1), both(0, -0.12, -1), seated=True
    ),
    "sit cross-legged": Archetype(
        0.02,
        both(0.3, -0.4, -1),
        both(-0.45, -1, -0.1),
        ((0.05, -1, 0.1), (0.12, -1, -0.1)),
        ((-0.3, -0.55, -0.9), (0, -0.1, -1)),
        seated=True,
    ),
    "lunge": Archetype(
        0.02,
        both(0.5, -0.2, -0.8),
        both(0.2, -0.8, -0.3),
        ((0.15, -0.9, -0.6), (0.05, 0.45, -1)),
        ((0, 0.1, -1), (0, 0.8, -0.9)),
    ),
    "legs apart": Archetype(0.03, both(0.5, 0, -1), both(0.35, -0.2, -1), both(0.28, 0, -1), both(0.2, 0.05, -1)),
    "weight on one leg": Archetype(
        0.03,
        ((0.2, 0.05, -1), (0.3, -0.1, -1)),
        ((0.1, -0.3, -1), (-0.2, -0.8, -0.6)),
        ((0, 0, -1), (0.16, -0.22, -1)),
        ((0, 0.05, -1), (0.05, 0.22, -1)),
        lean=0.06,
    ),
}


@dataclass(frozen=True, eq=False)
class Pose:
    """How a person stands and how the photo is framed. Angles in radians."""

    name: str
    view: str
    framing: str  # full, or from the head down to the knee, the hip or the waist
    limbs: NDArray[np.float64]  # (4, 2, 3) unit directions; x points to the person's left
    yaw: float  # 0 faces the camera
    bend: tuple[float, float, float]  # of the whole spine: twist, forwards, to the left
    head: tuple[float, float, float]  # turn, nod, roll
    camera_pitch: float
    fill: float  # share of the picture's height that the person takes
    shift: float  # sideways, in widths of the picture
    seated: bool


def sample_pose(rng: Generator, name: str | None = None, view: str | None = None, framing: str | None = None) -> Pose:
    """A random pose, in which what is given is fixed. A seated person is never seen from behind, where the stool would
    hide too much. Numbers are drawn also for what is given, so that the rest stays the same."""
    odds = np.array([archetype.odds for archetype in ARCHETYPES.values()])
    drawn = str(rng.choice(list(ARCHETYPES), p=odds / odds.sum()))
    archetype = ARCHETYPES[name or drawn]
    drawn = str(rng.choice(VIEWS, p=[3 / 7, 1 / 7, 1 / 7, 1 / 7, 1 / 7]))
    view = view or drawn
    if archetype.seated:  # the stool hides too much from behind
        view = {"back": "front", "back quarter": "quarter"}.get(view, view)
    side = float(rng.choice([-1, 1]))
    yaw = {
        "front": rng.normal(0, 0.12),
        "back": np.pi + rng.normal(0, 0.15),
        "side": side * (np.pi / 2 + rng.normal(0, 0.15)),
        "quarter": side * rng.uniform(0.4, 1.0),
        "back quarter": side * rng.uniform(2.1, 2.7),
    }[view]
    drawn = str(rng.choice(FRAMINGS, p=[0.45, 0.25, 0.22, 0.08]))
    return Pose(
        name=name or next(key for key, value in ARCHETYPES.items() if value is archetype),
        view=view,
        framing=framing or drawn,
        limbs=varied_limbs(rng, archetype),
        yaw=float(yaw),
        bend=(rng.normal(0, 0.12), rng.normal(0.02, 0.05), archetype.lean + rng.normal(0, 0.03)),
        head=(rng.normal(0, 0.3), rng.normal(0.03, 0.1), archetype.head_roll + rng.normal(0, 0.06)),
        camera_pitch=float(rng.normal(0.03, 0.05)),
        fill=float(rng.uniform(0.86, 0.97)),
        shift=float(rng.normal(0, 0.03)),
        seated=archetype.seated,
    )


def varied_limbs(rng: Generator, archetype: Archetype) -> NDArray[np.float64]:
    """The limbs (4, 2, 3) of an archetype, mirrored half of the time and disturbed a little, as unit vectors."""
    limbs = np.array([archetype.upper_arm, archetype.forearm, archetype.thigh, archetype.shin], dtype=np.float64)
    if rng.random() < 0.5:
        limbs = limbs[:, ::-1]
    limbs = limbs / np.linalg.norm(limbs, axis=-1, keepdims=True) + rng.normal(0, 0.07, limbs.shape)
    limbs = limbs * np.array([[1, 1, 1], [-1, 1, 1]])
    return limbs / np.linalg.norm(limbs, axis=-1, keepdims=True)


def turn(axis: Direction | NDArray, angle: float) -> NDArray[np.float64]:
    """The rotation (3, 3) by an angle about an axis (3,): Rodrigues' formula."""
    x, y, z = np.asarray(axis, dtype=np.float64) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def turn_onto(start: NDArray, end: NDArray) -> NDArray[np.float64]:
    """The smallest rotation (3, 3) that takes the direction start (3,) to the direction end (3,)."""
    start, end = start / np.linalg.norm(start), end / np.linalg.norm(end)
    axis = np.cross(start, end)
    length = float(np.linalg.norm(axis))
    return np.eye(3) if length < 1e-6 else turn(axis, float(np.arctan2(length, start @ end)))


def spine_turn(angles: tuple[float, float, float], share: float) -> NDArray[np.float64]:
    """A share of a turn given as (about z, about x, about y)."""
    about_z, about_x, about_y = (share * angle for angle in angles)
    return turn((0, 0, 1), about_z) @ turn((1, 0, 0), about_x) @ turn((0, 1, 0), about_y)


def bone_rotations(pose: Pose, bone_heads: Array, heel_lift: float) -> list[NDArray[np.float64]]:
    """The rotation (3, 3) of each of the J bones against its parent. heel_lift: how far shoes tip the foot, radians."""
    index = mesh().bone_index
    local = [np.eye(3) for _ in index]
    for bone in ("spine_01", "spine_02", "spine_03"):
        local[index[bone]] = spine_turn(pose.bend, 1 / 3)
    for bone in ("neck_01", "head"):
        local[index[bone]] = spine_turn(pose.head, 1 / 2)
    for side, (letter, sign) in enumerate((("l", 1.0), ("r", -1.0))):
        upper_arm, forearm, thigh, shin = pose.limbs[:, side]

        def rest(start: str, end: str, letter: str = letter) -> NDArray:
            return bone_heads[index[f"{end}_{letter}"]] - bone_heads[index[f"{start}_{letter}"]]

        # Raising an arm lifts the shoulder with it.
        clavicle = turn((0, 1, 0), -sign * 0.35 * float(np.clip(upper_arm[2] + 0.2, 0, 1)))
        arm = turn_onto(rest("upperarm", "lowerarm"), upper_arm)
        wrist = turn_onto(rest("lowerarm", "hand"), forearm)
        hip = turn_onto(rest("thigh", "calf"), thigh)
        knee = turn_onto(rest("calf", "foot"), shin)
        # A foot stays level unless the shin is far behind: then it hangs from it.
        level = knee if shin[1] > 0.45 else np.eye(3)
        tip = turn((1, 0, 0), heel_lift)
        for bone, rotation in (
            ("clavicle", clavicle),
            ("upperarm", clavicle.T @ arm),
            ("lowerarm", arm.T @ wrist),
            ("thigh", hip),
            ("calf", hip.T @ knee),
            ("foot", knee.T @ level @ tip),
            ("ball", tip.T),
        ):
            local[index[f"{bone}_{letter}"]] = rotation
    return local


def bone_transforms(pose: Pose, bone_heads: Array, heel_lift: float = 0.0) -> Array:
    """bone_heads (J, 3) -> (J, 3, 4): rotation and shift of every bone from the rest pose into the scene."""
    body = mesh()
    rotations = bone_rotations(pose, bone_heads, heel_lift)
    transforms = np.zeros((len(rotations), 3, 4))
    for bone, parent in enumerate(body.parents):
        rotation = turn((0, 0, 1), pose.yaw) if parent < 0 else transforms[parent, :, :3]
        head = bone_heads[bone].astype(np.float64)
        place = rotation @ head + (transforms[parent, :, 3] if parent >= 0 else 0)
        transforms[bone, :, :3] = rotation @ rotations[bone]
        transforms[bone, :, 3] = place - transforms[bone, :, :3] @ head
    return transforms.astype(np.float32)
