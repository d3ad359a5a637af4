"""Read keypoints from the files of pose estimators."""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cfld.photos.crop import PHOTO_SUFFIXES, fit, same_shape
from cfld.photos.estimator import find_people
from cfld.pose import FRAME, JOINTS
from cfld.tools.cli import UserError, parse_size
from cfld.tools.files import read_json, read_text
from cfld.tools.pictures import read_image

# Where the joints are in each layout, told by its number of joints. A pair stands for the middle between the two.
COCO = (0, (5, 6), 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
MEDIAPIPE = 33
LAYOUTS: dict[int, tuple[int | tuple[int, int], ...]] = {
    17: COCO,
    18: tuple(range(18)),  # OpenPose's COCO model: JOINTS itself
    25: (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18),  # OpenPose's BODY_25
    MEDIAPIPE: (0, (11, 12), 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7),
    133: COCO,  # COCO-WholeBody begins with COCO's joints
}
SURE = 0.5  # the visibility from which a joint that MediaPipe has found counts, unless --min-confidence says otherwise


def parse_joints(y_text: str, x_text: str) -> np.ndarray:
    """Two JSON lists of 18 numbers, as annotation files have them -> keypoints (18, 2) as (y, x). Raises UserError."""
    columns = []
    for axis, text in (("y", y_text), ("x", x_text)):
        try:
            values = json.loads(text)
        except ValueError:
            raise UserError(f"keypoints_{axis} must be a JSON list, found {text.strip()[:40]!r}") from None
        if not isinstance(values, list) or len(values) != len(JOINTS):
            found = len(values) if isinstance(values, list) else repr(values)
            raise UserError(f"keypoints_{axis} must have {len(JOINTS)} numbers, found {found}")
        if not all(isinstance(value, (int, float)) and abs(value) < 1e6 for value in values):
            raise UserError(f"keypoints_{axis} must be finite numbers, found {text.strip()[:60]}")
        columns.append(values)
    return np.array(columns, dtype=np.float32).T


def present_joints(points: np.ndarray, size: tuple[float, float], min_confidence: float) -> np.ndarray:
    """points (n, 3) as (x, y, score) in a picture of size (height, width), n one of LAYOUTS -> joints (18, 2) as (y, x)
    in its pixels, -1 = missing: of score 0 or below min_confidence, at (0, 0) or outside the picture, or the middle
    between two of which one is missing."""
    x, y, score = points.T
    inside = (x >= 0) & (y >= 0) & (x < size[1]) & (y < size[0]) & ((x > 0) | (y > 0))
    seen = inside & (score > 0) & (score >= min_confidence)
    pairs = np.array([(j, j) if isinstance(j, int) else j for j in LAYOUTS[len(points)]])  # (18, 2)
    return np.where(seen[pairs].all(axis=1)[:, None], points[pairs, 1::-1].mean(axis=1), -1)


def as_numbers(values: Any) -> np.ndarray:
    """Nested lists, or an array -> an array in float64. Raises UserError unless it is a whole one of finite numbers."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise UserError("the lists of joints must be equally long") from None
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise UserError("joints must be finite numbers only: write a missing joint as zeros")
    return array.astype(np.float64)


def pick(people: Any, person: int) -> Any:
    """One of several people. Raises UserError if there is none of this number."""
    if not 0 <= person < len(people):
        raise UserError(f"--person must be within 0 .. {len(people) - 1}, found {person}")
    return people[person]


def openpose_points(content: dict[str, Any], person: int) -> np.ndarray:
    """OpenPose's JSON -> one person's points (18 or 25, 3) as (x, y, score). Raises UserError."""
    people = content.get("people")
    if not isinstance(people, list) or not people:
        raise UserError(f"OpenPose's JSON must have a non-empty list 'people', found {str(content)[:60]}")
    chosen = pick(people, person)
    numbers = as_numbers(chosen.get("pose_keypoints_2d", []) if isinstance(chosen, dict) else [])
    if numbers.shape not in ((54,), (75,)):
        raise UserError(f"pose_keypoints_2d must have 54 (18 joints) or 75 numbers (25 joints), found {numbers.size}")
    return numbers.reshape(-1, 3)


def array_points(content: Any, person: int) -> np.ndarray:
    """An array or nested lists as keypoints_from takes them -> one person's points (n, 3) as (x, y, score). Raises
    UserError."""
    array = as_numbers(content)
    people = array[None] if array.ndim == 2 else array
    joints, columns = people.shape[1:] if people.ndim == 3 and len(people) else (0, 0)
    if joints not in LAYOUTS or not 2 <= columns <= (5 if joints == MEDIAPIPE else 3):
        raise UserError(
            "an array of joints must be (n, 3) or (people, n, 3), with n one of "
            f"{', '.join(map(str, LAYOUTS))} and the columns x, y, score, found {array.shape}"
        )
    points = pick(people, person)
    if columns == 2:
        return np.concatenate([points, np.ones((joints, 1))], axis=1)
    points = points[:, [0, 1, 2 if columns == 3 else 3]]
    if joints == MEDIAPIPE and not ((points[:, 2] >= 0) & (points[:, 2] <= 1)).all():
        raise UserError("MediaPipe's visibility, the third of 3 columns or the fourth of more, must be within 0 .. 1")
    return points


def picture_size(points: np.ndarray, content: Any, pose_size: tuple[int, int] | None) -> tuple[float, float]:
    """Height and width of the picture in which points (n, 3) are, as joints_from describes. Raises UserError."""
    if isinstance(content, dict) and "canvas_height" in content and "canvas_width" in content:
        canvas = (content["canvas_height"], content["canvas_width"])
        if not all(isinstance(side, (int, float)) and 0 < side < 1e6 for side in canvas):
            raise UserError(f"canvas_height and canvas_width must be positive numbers of pixels, found {canvas}")
        return canvas
    if pose_size not in (None, (1, 1)):
        return pose_size
    x, y = points[points[:, 2] > 0, :2].max(axis=0, initial=0)
    if not are_fractions(points) and (x >= FRAME[1] or y >= FRAME[0]):
        raise UserError(
            f"joints reach to x = {x:g}, y = {y:g}, outside a picture of {FRAME[1]}x{FRAME[0]}, and the file does not "
            "say how large its picture is: give --pose-size WxH (in Python pose_size, height first)"
        )
    return FRAME


def are_fractions(points: np.ndarray) -> bool:
    """Whether points (n, 3) are fractions of their picture: MediaPipe's, and others of which none is beyond 2. (In
    pixels nobody is so small, and of fractions some may be beyond the picture's rim.)"""
    return len(points) == MEDIAPIPE or points[points[:, 2] > 0, :2].max(initial=0) <= 2


Joints = tuple[np.ndarray, tuple[float, float]]  # (18, 2) as (y, x) in pixels, -1 = missing; and (height, width)


def joints_from(
    content: Any, pose_size: tuple[int, int] | None = None, person: int = 0, min_confidence: float = 0.0
) -> Joints:
    """What an estimator of poses has found -> joints (18, 2) as (y, x) in pixels of their picture, -1 = missing, and
    the picture's (height, width). Raises UserError.

    content: OpenPose's JSON of 18 or 25 joints; or an array or nested lists (n, c) or (people, n, c), n one of LAYOUTS,
        with the columns x, y, or x, y, score, or for MediaPipe x, y, z, visibility and perhaps presence
    pose_size: (height, width) of the picture. OpenPose's canvas_height and canvas_width go before it; without it the
        picture is FRAME, if all joints fit in. Joints may be fractions of it, as MediaPipe's are (are_fractions)
    person: whose pose, counted from 0
    min_confidence: joints of a lower score are missing
    """
    points = openpose_points(content, person) if isinstance(content, dict) else array_points(content, person)
    size = picture_size(points, content, pose_size)
    if are_fractions(points):
        points = points * [size[1], size[0], 1]
    joints = present_joints(points, size, min_confidence)
    if (joints < 0).all():
        raise UserError(
            f"person {person} has no joint within {size[1]:g}x{size[0]:g} of a score of at least {min_confidence}: "
            "check --person, --pose-size and --min-confidence, and that MediaPipe's joints are fractions"
        )
    return joints, size


def keypoints_from(
    content: Any, pose_size: tuple[int, int] | None = None, person: int = 0, min_confidence: float = 0.0
) -> np.ndarray:
    """What joints_from takes -> keypoints (18, 2) as (y, x) in FRAME, fitted as their photo would be. Raises
    UserError."""
    joints, size = joints_from(content, pose_size, person, min_confidence)
    return fit(size, joints).to_frame(joints)


def read_array(path: str | Path) -> np.ndarray:
    """The content of a .npy file. Raises UserError."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # np.load raises whatever the parser of the header meets first
        raise UserError(f"{path}: not a whole .npy file of numbers ({error}): write it again with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: must hold one array, found an archive of several: write it with numpy.save")
    return array


def read_annotations(path: str | Path) -> dict[str, np.ndarray]:
    """A DeepFashion annotation file -> keypoints (18, 2) as (y, x) in FRAME by name. Raises UserError with the line."""
    lines = read_text(path).splitlines()
    header = "name:keypoints_y:keypoints_x"
    if not lines or lines[0].strip() != header:
        raise UserError(f"{path}: line 1 must be {header}, found {lines[0][:60] if lines else 'an empty file'}")
    annotations = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        fields = line.split(":")
        if len(fields) != 3:
            raise UserError(f"{path}, line {number}: must have 3 fields between colons, found {len(fields)}")
        try:
            annotations[fields[0].strip()] = parse_joints(fields[1], fields[2])
        except UserError as error:
            raise UserError(f"{path}, line {number} ({fields[0].strip()}): {error}") from None
    joints = np.array(list(annotations.values())).reshape(-1, 2)
    joints = joints[(joints >= 0).all(axis=1)]
    beyond = joints[(joints >= FRAME).any(axis=1)]
    if 10 * len(beyond) > len(joints):  # a joint or two beyond the rim are somebody's rounding
        raise UserError(
            f"{path}: joints must be in pixels of a picture of {FRAME[1]}x{FRAME[0]}, found {len(beyond)} of "
            f"{len(joints)} beyond it, such as y = {beyond[0][0]:g}, x = {beyond[0][1]:g}: scale them"
        )
    return annotations


READERS: dict[str, Callable[[str], Any]] = {
    ".json": read_json,
    ".npy": read_array,
    **dict.fromkeys(PHOTO_SUFFIXES, functools.partial(read_image, upright=True)),
}


def read_joints(
    text: str | Path, pose_size: tuple[int, int] | None = None, person: int = 0, min_confidence: float | None = None
) -> Joints:
    """What --pose takes -> joints and the size of their picture, as joints_from gives them: "annotation.csv#name"; a
    .json or .npy file as joints_from describes; or a photo, whose joints cfld.estimator finds. min_confidence: None is
    SURE for a photo and 0 for a file. Raises UserError."""
    text = str(text)
    if "#" in text and not Path(text).is_file():
        path, name = text.rsplit("#", 1)
        annotations = read_annotations(path)
        if name not in annotations:
            raise UserError(
                f"{path}: no row named {name!r} among {len(annotations)}, such as {next(iter(annotations), '-')}"
            )
        return annotations[name].astype(np.float64), FRAME
    if (suffix := Path(text).suffix.lower()) not in READERS:
        raise UserError(
            f"--pose {text}: must be a .json or .npy file of joints, a photo ({', '.join(PHOTO_SUFFIXES)}), or an "
            "annotation file with #name behind"
        )
    content = READERS[suffix](text)
    try:
        if isinstance(content, Image.Image):
            sure = SURE if min_confidence is None else min_confidence
            return joints_from(find_people(content), (content.height, content.width), person, sure)
        return joints_from(content, pose_size, person, min_confidence or 0.0)
    except UserError as error:
        raise UserError(f"{text}: {error}") from None


def read_pose(
    text: str | Path, pose_size: tuple[int, int] | None = None, person: int = 0, min_confidence: float | None = None
) -> np.ndarray:
    """What read_joints takes -> keypoints (18, 2) as (y, x) in FRAME, fitted as their photo would be. Raises
    UserError."""
    joints, size = read_joints(text, pose_size, person, min_confidence)
    return fit(size, joints).to_frame(joints)


def joints_on(
    photo: Image.Image,
    text: str,
    pose_size: tuple[int, int] | None = None,
    person: int = 0,
    min_confidence: float | None = None,
) -> np.ndarray:
    """What read_joints takes, found in this photo or in a smaller or larger copy of it -> joints (18, 2) as (y, x) in
    the photo's own pixels, -1 = missing. pose_size: of the copy, if the file does not say; None is the photo's own.
    Raises UserError, also if the copy has another shape than the photo."""
    joints, size = read_joints(text, pose_size or (photo.height, photo.width), person, min_confidence)
    if not same_shape(size, (photo.height, photo.width)):
        raise UserError(
            f"{text}: the joints' picture, {size[1]:g}x{size[0]:g}, must have the shape of the photo, "
            f"{photo.width}x{photo.height}: find the joints in this photo, or check --pose-size"
        )
    return np.where(joints >= 0, joints * [photo.height / size[0], photo.width / size[1]], -1)


POSE_HELP = (
    "OpenPose JSON; a .json or .npy array of COCO's, COCO-WholeBody's or MediaPipe's joints; an annotation CSV with "
    "#name behind it; or a photo, if the extra [pose] is installed (docs/poses.md)"
)


def add_pose_options(parser: argparse._ActionsContainer) -> None:
    """The options that say how what --pose takes is to be read."""
    parser.add_argument(
        "--pose-size",
        type=parse_size,
        metavar="WxH",
        help="of the picture that the joints were found in, if the file does not say",
    )
    parser.add_argument("--person", type=int, default=0, help="whose pose in files of several people, from 0")
    parser.add_argument(
        "--min-confidence",
        type=float,
        help=f"joints with a lower score are missing (default: {SURE} in photos, 0 in files)",
    )


def pose_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What add_pose_options' options mean for read_joints. Raises UserError for values that mean nothing."""
    if options.min_confidence is not None and not 0 <= options.min_confidence <= 1:
        raise UserError(f"--min-confidence must be within 0 .. 1, found {options.min_confidence}")
    return {
        "pose_size": options.pose_size and options.pose_size[::-1],
        "person": options.person,
        "min_confidence": options.min_confidence,
    }
