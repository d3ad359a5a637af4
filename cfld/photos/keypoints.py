"""Read keypoints from the files of pose estimators, or find them in a photo.

In names and shapes, always:
    points       (n, 3) as (x, y, score), the joints of an estimator's layout, in pixels or as fractions of their image
    joints       (18, 2) as (y, x) of cfld.pose.JOINTS, in pixels of their image, -1 = missing
    keypoints    (18, 2) as (y, x) in cfld.pose.FRAME, -1 = missing: what the model takes
    size         (height, width) of the image

The way down: read_pose -> read_joints -> joints_from -> openpose_points or array_points -> to_joints.
"""

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
from cfld.photos.layouts import COUNTS, LAYOUTS, choose
from cfld.pose import FRAME, JOINTS
from cfld.tools.cli import UserError, parse_size
from cfld.tools.files import read_json, read_text
from cfld.tools.pictures import read_image

MEDIAPIPE = LAYOUTS["mediapipe"].size
OPENPOSE_COUNTS = tuple(LAYOUTS[name].size for name in ("openpose", "body25", "halpe26"))
MIN_VISIBILITY = 0.5  # of a joint found in a photo, unless --min-confidence says otherwise
Joints = tuple[np.ndarray, tuple[float, float]]  # joints and the size of their image


def as_numbers(values: Any) -> np.ndarray:
    """Nested lists or an array -> an array of float64. Raises UserError unless it is regular and all are finite."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise UserError("the lists of joints must be equally long") from None
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise UserError("joints must be finite numbers only: write a missing joint as zeros")
    return array.astype(np.float64)


def pick(people: Any, person: int) -> Any:
    """One of several people. Raises UserError if there are not so many."""
    if not 0 <= person < len(people):
        raise UserError(f"--person must be within 0 .. {len(people) - 1}, found {person}")
    return people[person]


def openpose_points(content: dict[str, Any], person: int) -> np.ndarray:
    """OpenPose's JSON -> one person's points (18, 25 or 26, 3). Raises UserError."""
    people = content.get("people")
    if not isinstance(people, list) or not people:
        raise UserError(f"OpenPose's JSON must have a non-empty list 'people', found {str(content)[:60]}")
    chosen = pick(people, person)
    numbers = as_numbers(chosen.get("pose_keypoints_2d", []) if isinstance(chosen, dict) else [])
    if numbers.ndim != 1 or numbers.size not in [3 * count for count in OPENPOSE_COUNTS]:
        raise UserError(
            "pose_keypoints_2d must have 54 (18 joints), 75 (25 joints) or 78 numbers (26 joints), found "
            f"{numbers.size}"
        )
    return numbers.reshape(-1, 3)


def array_points(content: Any, person: int) -> np.ndarray:
    """An array or nested lists as joints_from takes them -> one person's points (n, 3). Raises UserError."""
    array = as_numbers(content)
    people = array[None] if array.ndim == 2 else array
    count, columns = people.shape[1:] if people.ndim == 3 and len(people) else (0, 0)
    if count not in COUNTS or not 2 <= columns <= (5 if count == MEDIAPIPE else 3):
        raise UserError(
            "an array of joints must be (n, 3) or (people, n, 3), with n one of "
            f"{', '.join(map(str, COUNTS))} and the columns x, y, score, found {array.shape}"
        )
    points = pick(people, person)
    if columns == 2:
        return np.concatenate([points, np.ones((count, 1))], axis=1)
    points = points[:, [0, 1, 2 if columns == 3 else 3]]
    if count == MEDIAPIPE and not ((points[:, 2] >= 0) & (points[:, 2] <= 1)).all():
        raise UserError("MediaPipe's visibility, the third of 3 columns or the fourth of more, must be within 0 .. 1")
    return points


def are_fractions(points: np.ndarray) -> bool:
    """Whether points are fractions of their image: MediaPipe's, and others of which none is above 2. (No person is that
    small in pixels; a fraction may slightly exceed 1.)"""
    return len(points) == MEDIAPIPE or points[points[:, 2] > 0, :2].max(initial=0) <= 2


def image_size(points: np.ndarray, content: Any, pose_size: tuple[int, int] | None) -> tuple[float, float]:
    """The size of the image that points belong to, as joints_from describes. Raises UserError."""
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
            f"joints reach to x = {x:g}, y = {y:g}, outside an image of {FRAME[1]}x{FRAME[0]}, and the file does not "
            "say how large its image is: give --pose-size WxH (in Python pose_size, height first)"
        )
    return FRAME


def to_joints(
    points: np.ndarray, size: tuple[float, float], min_confidence: float, layout: str | None = None
) -> np.ndarray:
    """points (n, 3) in pixels, n one of COUNTS -> joints (18, 2). Raises UserError.

    A joint is missing if its score is 0 or below min_confidence, if it is at (0, 0) or outside the image, or if it is
    the middle of two of which one is missing.
    """
    x, y, score = points.T
    inside = (x >= 0) & (y >= 0) & (x < size[1]) & (y < size[0]) & ((x > 0) | (y > 0))
    seen = inside & (score > 0) & (score >= min_confidence)
    return choose(points, seen, layout)


def joints_from(
    content: Any,
    pose_size: tuple[int, int] | None = None,
    person: int = 0,
    min_confidence: float = 0.0,
    layout: str | None = None,
) -> Joints:
    """What a pose estimator has found -> joints (18, 2) and the size of their image. Raises UserError.

    content: OpenPose's JSON of 18, 25 or 26 joints; or an array or nested lists (n, c) or (people, n, c), n one of
        COUNTS, with the columns x, y, or x, y, score, or for MediaPipe x, y, z, visibility and perhaps presence; in
        pixels or as fractions of the image
    pose_size: (height, width) of the image. OpenPose's canvas_height and canvas_width take precedence. None: FRAME, if
        all joints lie within it
    person: whose pose, counted from 0
    min_confidence: joints of a lower score are missing
    layout: see cfld.photos.layouts.choose
    """
    points = openpose_points(content, person) if isinstance(content, dict) else array_points(content, person)
    size = image_size(points, content, pose_size)
    if are_fractions(points):
        points = points * [size[1], size[0], 1]
    joints = to_joints(points, size, min_confidence, layout)
    if (joints < 0).all():
        raise UserError(
            f"person {person} has no joint within {size[1]:g}x{size[0]:g} of a score of at least {min_confidence}: "
            "check --person, --pose-size and --min-confidence, and that MediaPipe's joints are fractions"
        )
    return joints, size


def keypoints_from(
    content: Any,
    pose_size: tuple[int, int] | None = None,
    person: int = 0,
    min_confidence: float = 0.0,
    layout: str | None = None,
) -> np.ndarray:
    """What joints_from takes -> keypoints (18, 2), float32, in the window that fit() cuts out of such an image. Raises
    UserError."""
    joints, size = joints_from(content, pose_size, person, min_confidence, layout)
    return fit(size, joints).to_frame(joints)


def parse_keypoints(y_text: str, x_text: str) -> np.ndarray:
    """Two JSON lists of 18 numbers -> keypoints (18, 2), float32. Raises UserError."""
    columns = []
    for axis, text in (("y", y_text), ("x", x_text)):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            raise UserError(f"keypoints_{axis} must be a JSON list, found {text.strip()[:40]!r}") from None
        if not isinstance(values, list) or len(values) != len(JOINTS):
            found = len(values) if isinstance(values, list) else repr(values)
            raise UserError(f"keypoints_{axis} must have {len(JOINTS)} numbers, found {found}")
        if not all(isinstance(value, (int, float)) and abs(value) < 1e6 for value in values):
            raise UserError(f"keypoints_{axis} must be finite numbers, found {text.strip()[:60]}")
        columns.append(values)
    return np.array(columns, dtype=np.float32).T


def read_annotations(path: str | Path) -> dict[str, np.ndarray]:
    """A DeepFashion annotation file -> keypoints (18, 2), float32, by name. Raises UserError that names the line."""
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
            annotations[fields[0].strip()] = parse_keypoints(fields[1], fields[2])
        except UserError as error:
            raise UserError(f"{path}, line {number} ({fields[0].strip()}): {error}") from None
    joints = np.array(list(annotations.values())).reshape(-1, 2)
    joints = joints[(joints >= 0).all(axis=1)]
    beyond = joints[(joints >= FRAME).any(axis=1)]
    if 10 * len(beyond) > len(joints):  # fewer are somebody's rounding
        raise UserError(
            f"{path}: joints must be in pixels of an image of {FRAME[1]}x{FRAME[0]}, found {len(beyond)} of "
            f"{len(joints)} beyond it, such as y = {beyond[0][0]:g}, x = {beyond[0][1]:g}: scale them"
        )
    return annotations


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


READERS: dict[str, Callable[[str], Any]] = {
    ".json": read_json,
    ".npy": read_array,
    **dict.fromkeys(PHOTO_SUFFIXES, functools.partial(read_image, upright=True)),
}


def read_joints(
    text: str | Path,
    pose_size: tuple[int, int] | None = None,
    person: int = 0,
    min_confidence: float | None = None,
    layout: str | None = None,
) -> Joints:
    """What --pose takes -> joints (18, 2) and the size of their image. Raises UserError.

    text: "annotation.csv#name"; a .json or .npy file of what joints_from takes; or a photo, in which they are found
        (cfld.photos.estimator)
    pose_size, person, layout: see joints_from
    min_confidence: joints of a lower score are missing. None: MIN_VISIBILITY for a photo, 0 for a file
    """
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
            least = MIN_VISIBILITY if min_confidence is None else min_confidence
            return joints_from(find_people(content), (content.height, content.width), person, least, "mediapipe")
        return joints_from(content, pose_size, person, min_confidence or 0.0, layout)
    except UserError as error:
        raise UserError(f"{text}: {error}") from None


def read_pose(
    text: str | Path,
    pose_size: tuple[int, int] | None = None,
    person: int = 0,
    min_confidence: float | None = None,
    layout: str | None = None,
) -> np.ndarray:
    """What read_joints takes -> keypoints (18, 2), float32, in the window that fit() cuts out of such an image. Raises
    UserError."""
    joints, size = read_joints(text, pose_size, person, min_confidence, layout)
    return fit(size, joints).to_frame(joints)


def joints_on(
    photo: Image.Image,
    text: str,
    pose_size: tuple[int, int] | None = None,
    person: int = 0,
    min_confidence: float | None = None,
    layout: str | None = None,
) -> np.ndarray:
    """What read_joints takes, found in this photo or in a smaller or larger copy of it -> joints (18, 2) in the photo's
    own pixels.

    pose_size: (height, width) of the copy, if the file does not say; None: the photo's own

    Raises UserError, also if the copy has another aspect ratio than the photo.
    """
    joints, size = read_joints(text, pose_size or (photo.height, photo.width), person, min_confidence, layout)
    if not same_shape(size, (photo.height, photo.width)):
        raise UserError(
            f"{text}: the joints' image, {size[1]:g}x{size[0]:g}, must have the shape of the photo, "
            f"{photo.width}x{photo.height}: find the joints in this photo, or check --pose-size"
        )
    return np.where(joints >= 0, joints * [photo.height / size[0], photo.width / size[1]], -1)


def add_layout_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--layout", choices=tuple(LAYOUTS), help="the order of the joints in files (docs/poses.md)")


def add_pose_options(parser: argparse._ActionsContainer) -> None:
    """The options that say how to read what --pose takes."""
    parser.add_argument(
        "--pose-size",
        type=parse_size,
        metavar="WxH",
        help="size of the image the joints were found in, if the file lacks it",
    )
    parser.add_argument("--person", type=int, default=0, help="index of the person in a file of several")
    parser.add_argument(
        "--min-confidence",
        type=float,
        help=f"drop joints with a lower score (default: {MIN_VISIBILITY} in photos, 0 in files)",
    )
    add_layout_option(parser)


def pose_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The values of add_pose_options' options, as read_joints takes them. Raises UserError."""
    if options.min_confidence is not None and not 0 <= options.min_confidence <= 1:
        raise UserError(f"--min-confidence must be within 0 .. 1, found {options.min_confidence}")
    return {
        "pose_size": options.pose_size and options.pose_size[::-1],
        "person": options.person,
        "min_confidence": options.min_confidence,
        "layout": options.layout,
    }
