"""Read keypoints from the files of pose estimators, or find them in a photo.

In names and shapes, always:
    points       (n, 3) as (x, y, score), the joints of an estimator's layout, in pixels or as fractions of their image
    joints       (18, 2) as (y, x) of cfld.pose.JOINTS, in pixels of their image, -1 = missing
    keypoints    (18, 2) as (y, x) in cfld.pose.FRAME, -1 = missing: what the model takes
    size         (height, width) of the image

Calls, from the top: read_pose -> read_joints -> read_frames (cfld.photos.formats) -> joints_of -> cfld.photos.units,
cfld.photos.layouts.
"""

import argparse
import functools
import json
import numbers
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cfld.photos.crop import PHOTO_SUFFIXES, fit, same_shape
from cfld.photos.estimator import find_people
from cfld.photos.formats import MEDIAPIPE, Frame, Nobody, array_frame, as_numbers, frames_in
from cfld.photos.layouts import LAYOUTS, choose, used_points
from cfld.photos.skeleton import is_skeleton, read_skeleton
from cfld.photos.units import SIZE_ADVICE, check_annotations, check_fractions, check_guess, check_inside
from cfld.pose import FRAME, JOINTS
from cfld.tools.checks import described, is_number, is_size
from cfld.tools.cli import UserError, parse_size
from cfld.tools.files import read_json, read_text
from cfld.tools.pictures import read_image
from cfld.tools.reasons import reason

MIN_VISIBILITY = 0.5  # of a joint found in a photo, unless --min-confidence says otherwise
MARKET_FRAME = (128, 64)  # of the annotations of Market-1501
POSE_SUFFIXES = (".json", ".npy", ".npz", ".txt")  # of files of joints
NTED_PADDING = 40  # columns left of the photo in the frame of 256x256 of NTED's text files
Size = tuple[float, float]
Joints = tuple[np.ndarray, Size]  # joints and the size of their image


def pick(people: Any, person: int) -> Any:
    """One of several people. Raises UserError if there are not so many, Nobody if there are none."""
    if not len(people):
        raise Nobody("there must be a person with joints, found nobody")
    if not 0 <= person < len(people):
        raise UserError(f"--person must be within 0 .. {len(people) - 1}, found {person}")
    return people[person]


def are_fractions(points: np.ndarray) -> bool:
    """Whether points are fractions of their image: MediaPipe's, and others of which none is above 2. (No person is that
    small in pixels; a fraction may slightly exceed 1.)"""
    return len(points) == MEDIAPIPE or points[points[:, 2] > 0, :2].max(initial=0) <= 2


def frame_size(points: np.ndarray) -> Size:
    """FRAME, for points in an image of unknown size. Raises UserError if they cannot be in one of that size."""
    if are_fractions(points):
        raise UserError(
            "joints that are fractions of an image need its size, or people would become thin or broad, and the file "
            f"does not say it: give {SIZE_ADVICE}"
        )
    x, y = points[points[:, 2] > 0, :2].max(axis=0, initial=0)
    if x >= FRAME[1] or y >= FRAME[0]:
        raise UserError(
            f"joints reach to x = {x:g}, y = {y:g}, outside an image of {FRAME[1]}x{FRAME[0]}, and the file does not "
            f"say how large its image is: give {SIZE_ADVICE}"
        )
    return FRAME


def to_joints(points: np.ndarray, size: Size, min_confidence: float, layout: str | None = None) -> np.ndarray:
    """points (n, 3) in pixels, n one of COUNTS -> joints (18, 2). Raises UserError.

    A joint is missing if its score is 0 or below min_confidence, if it is at (0, 0) or outside the image, or if it is
    the middle of two of which one is missing.
    """
    x, y, score = points.T
    inside = (x >= 0) & (y >= 0) & (x < size[1]) & (y < size[0]) & ((x > 0) | (y > 0))
    seen = inside & (score > 0) & (score >= min_confidence)
    return choose(points, seen, layout)


def checked_reading(pose_size: Any, person: Any, min_confidence: Any, layout: Any) -> Size | None:
    """What joints_from takes beside the content -> its pose_size as two plain numbers. Raises UserError for another
    type or range than it takes; persons are counted by pick."""
    if not is_number(person, numbers.Integral):
        raise UserError(f"person must be a whole number, found {described(person)}")
    if not is_number(min_confidence) or not 0 <= min_confidence <= 1:
        raise UserError(f"min_confidence must be a number within 0 .. 1, found {described(min_confidence)}")
    if layout is not None and layout not in tuple(LAYOUTS):
        raise UserError(f"layout must be one of {', '.join(LAYOUTS)}, found {described(layout)}")
    if pose_size is None:
        return None
    if not isinstance(pose_size, (tuple, list, np.ndarray)) or not is_size(pose_size) or not max(pose_size) < 1e6:
        raise UserError(f"pose_size must be (height, width), two positive numbers, found {described(pose_size)}")
    return float(pose_size[0]), float(pose_size[1])


def joints_of(
    frame: Frame,
    pose_size: tuple[int, int] | None = None,
    person: int = 0,
    min_confidence: float = 0.0,
    layout: str | None = None,
    photo_size: tuple[int, int] | None = None,
) -> Joints:
    """A frame's person -> joints (18, 2) and the size of their image. Raises UserError, Nobody if there is nobody.

    photo_size: (height, width), taken if neither the frame nor pose_size says it; None: FRAME, if the joints can be in
        it
    The others are as joints_from takes them.
    """
    asked = checked_reading(pose_size, person, min_confidence, layout)
    points, said = pick(frame.people, person), frame.size or asked
    placed = (points[:, :2] > 0).any(axis=1)
    if not (placed & (points[:, 2] > 0) & (points[:, 2] >= min_confidence)).any():
        least, advice = "above 0", "find the joints again"
        if min_confidence:
            least, advice = f"of at least {min_confidence}", "give a lower --min-confidence"
        if len(frame.people) > 1:
            advice += " or another --person"
        raise Nobody(f"person {person} has no joint of a score {least}: {advice}")
    size = said or photo_size or frame_size(points)
    everybody = [each[used_points(len(each))] for each in frame.people]
    if are_fractions(points):
        check_fractions(everybody[person])
        with np.errstate(over="ignore"):  # what is too large for a number is outside, too
            points = points * [size[1], size[0], 1]
    else:
        check_inside(everybody[person], size)
        if said is None:
            check_guess(np.concatenate(everybody), size)
    joints = to_joints(points, size, min_confidence, layout)
    if (joints < 0).all():
        sure = f" of a score of at least {min_confidence}" if min_confidence else ""
        advice = (
            "check --pose-size"
            if pose_size is not None and frame.size is None
            else f"give the image's size by {SIZE_ADVICE}"
        )
        raise Nobody(f"person {person} has no joint within {size[1]:g}x{size[0]:g}{sure}: {advice}")
    return joints, size


def one_each(frame: Frame) -> list[Frame]:
    """People who may be frames -> a frame of each."""
    return [Frame([points], frame.size, str(number)) for number, points in enumerate(frame.people)]


def only(frames: list[Frame], part: str | None = None) -> Frame:
    """The frame that a part names, by its number or the name of its image, or the only one. Raises UserError."""
    if part is None and len(frames) == 1:
        return frames[0]
    if part is None:
        raise UserError(
            f"holds {len(frames)} images, but one is asked for: add #NAME to the file, such as #{frames[0].name}"
        )
    count = len(frames[0].people) if frames[0].or_frames else len(frames)
    number = int(part) if part.isdecimal() and len(part) < 10 else count
    if frames[0].or_frames and number < count:
        return frames[0]._replace(people=frames[0].people[number : number + 1])
    named = (frame for frame in frames if frame.name == part)
    if found := next(named, frames[number] if number < count else None):
        return found
    raise UserError(f"has no image named {part!r} among {count}, such as {frames[0].name or 0}")


def joints_from(
    content: Any,
    pose_size: tuple[int, int] | None = None,
    person: int = 0,
    min_confidence: float = 0.0,
    layout: str | None = None,
) -> Joints:
    """What a pose estimator has found -> joints (18, 2) and the size of their image. Raises UserError.

    content: of one image: a value of JSON in any form of docs/poses.md; or an array or nested lists (n, c) or
        (people, n, c), n one of COUNTS, with the columns x, y, or x, y, score, or for MediaPipe x, y, z, visibility and
        perhaps presence; in pixels or as fractions of the image
    pose_size: (height, width) of the image, unless the content says it. None: FRAME, if the joints can be in it
    person: whose pose, counted from 0
    min_confidence: joints of a lower score are missing
    layout: see cfld.photos.layouts.choose
    """
    return joints_of(only(frames_in(content)), pose_size, person, min_confidence, layout)


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


def annotation_frame(path: str | Path) -> tuple[int, int]:
    """The frame (height, width) of the keypoints in an annotation file: Market-1501's by its name, otherwise FRAME."""
    return MARKET_FRAME if Path(path).name.startswith("market") else FRAME


def read_annotations(path: str | Path) -> dict[str, np.ndarray]:
    """A DeepFashion or Market-1501 annotation file -> keypoints (18, 2), float32, by name, as (y, x) in the file's
    annotation_frame. Raises UserError that names the line."""
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
    try:
        check_annotations(annotations, annotation_frame(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return annotations


def read_array(path: str | Path) -> Any:
    """The content of a .npy or .npz file of numbers. Raises UserError."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # np.load raises whatever the parser of the header meets first
        raise UserError(
            f"{path}: not a whole .npy file of numbers ({reason(error)}): write it again with numpy.save"
        ) from None
    scores = next((arrays[name] for name in ("keypoint_scores", "scores") if name in arrays), None)
    if "keypoints" in arrays and scores is not None and scores.shape == arrays["keypoints"].shape[:-1]:
        return np.concatenate([arrays["keypoints"][..., :2], scores[..., None]], axis=-1)
    if len(arrays) != 1 and "keypoints" not in arrays:
        raise UserError(
            f"{path}: must hold one array, or keypoints and perhaps scores, found {', '.join(arrays)[:60] or 'none'}"
        )
    return arrays["keypoints"] if "keypoints" in arrays else next(iter(arrays.values()))


def read_text_points(path: str | Path, pose_size: tuple[int, int] | None) -> Frame:
    """A text file of a line x y or x y score a joint: with a pose_size, in pixels of such an image; without, NTED's, in
    pixels of 256x256 with the photo of 256x176 in its middle. Raises UserError."""
    rows = [line.split() for line in read_text(path).splitlines() if line.strip()]
    try:
        array = as_numbers([[float(word) for word in row] for row in rows])
    except ValueError:
        raise UserError("each line must be the numbers x y or x y score of a joint") from None
    frame = array_frame(array)
    if pose_size is not None:
        return frame
    points = frame.people[0]
    present = (points[:, :2] != -1).all(axis=1) & (points[:, 2] > 0)
    x = points[present, 0]
    if len(points) != len(JOINTS) or (len(x) and not NTED_PADDING <= x.min() <= x.max() < NTED_PADDING + FRAME[1]):
        found = f"{len(points)} joints, x from {x.min(initial=1e6):g} to {x.max(initial=0):g}"
        raise UserError(
            f"a text file must have NTED's {len(JOINTS)} joints in a frame of 256x256, where the photo has x from "
            f"{NTED_PADDING} to {NTED_PADDING + FRAME[1]}, found {found}: for others, give {SIZE_ADVICE}"
        )
    shifted = points - [NTED_PADDING, 0, 0]
    return Frame([np.where(present[:, None], shifted, 0)], FRAME)


@functools.lru_cache(maxsize=1)
def frames_of_file(path: str, changed: int) -> list[Frame]:
    """The frames of a .json, .npy or .npz file, cached so that it is read once for all of them.
    changed: its time of change, in ns."""
    return frames_in(read_json(path) if path.lower().endswith(".json") else read_array(path))


def read_frames(path: str | Path, pose_size: tuple[int, int] | None = None) -> list[Frame]:
    """The frames of a file of joints, or those of a photo, in which they are found. Raises UserError, Nobody."""
    suffix = Path(path).suffix.lower()
    if suffix in (".json", ".npy", ".npz"):
        return frames_of_file(str(path), Path(path).stat().st_mtime_ns if Path(path).is_file() else 0)
    if suffix == ".txt":
        return [read_text_points(path, pose_size)]
    if suffix not in PHOTO_SUFFIXES:
        raise UserError(
            f"--pose {path}: must be a file of joints ({', '.join(POSE_SUFFIXES)}), a photo "
            f"({', '.join(PHOTO_SUFFIXES)}), or an annotation file with #name behind"
        )
    photo = read_image(path, upright=True)
    people = [read_skeleton(photo)] if is_skeleton(photo) else list(find_people(photo))
    return [Frame(people, (photo.height, photo.width))]


def split_part(text: str | Path) -> tuple[str, str | None]:
    """FILE#PART -> the two; the part is None if there is none."""
    path, mark, part = str(text).rpartition("#")
    return (path, part) if mark and not Path(text).is_file() else (str(text), None)


def read_joints(
    text: str | Path,
    pose_size: tuple[int, int] | None = None,
    person: int = 0,
    min_confidence: float | None = None,
    layout: str | None = None,
    photo_size: tuple[int, int] | None = None,
) -> Joints:
    """What --pose takes -> joints (18, 2) and the size of their image. Raises UserError, Nobody if there is nobody.

    text: "annotation.csv#name"; a file of joints in any form of docs/poses.md, with #number or #name behind if it is of
        several images; an image of a skeleton; or a photo, in which they are found (cfld.photos.estimator)
    pose_size, person, layout: see joints_from; photo_size: see joints_of
    min_confidence: joints of a lower score are missing. None: MIN_VISIBILITY for a photo, 0 for a file
    """
    path, part = split_part(text)
    if part is not None and Path(path).suffix.lower() not in POSE_SUFFIXES:
        annotations = read_annotations(path)
        if part not in annotations:
            raise UserError(
                f"{path}: no row named {part!r} among {len(annotations)}, such as {next(iter(annotations), '-')}"
            )
        return annotations[part].astype(np.float64), annotation_frame(path)
    try:
        frame = only(read_frames(path, pose_size), part)
        found = bool(frame.people) and len(frame.people[0]) == MEDIAPIPE and Path(path).suffix.lower() in PHOTO_SUFFIXES
        if found and min_confidence is None:
            min_confidence = MIN_VISIBILITY
        return joints_of(frame, pose_size, person, min_confidence or 0.0, "mediapipe" if found else layout, photo_size)
    except Nobody as error:
        raise Nobody(f"{text}: {error}") from None
    except UserError as error:
        raise UserError(str(error) if str(error).startswith((str(path), "--pose ")) else f"{text}: {error}") from None


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
    joints, size = read_joints(text, pose_size, person, min_confidence, layout, (photo.height, photo.width))
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


def check_confidence(least: float | None) -> None:
    """Raise UserError unless this is a --min-confidence."""
    if least is not None and not (is_number(least) and 0 <= least <= 1):
        raise UserError(f"--min-confidence must be within 0 .. 1, found {str(least)[:40]}")


def pose_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The values of add_pose_options' options, as read_joints takes them. Raises UserError."""
    check_confidence(options.min_confidence)
    return {
        "pose_size": options.pose_size and options.pose_size[::-1],
        "person": options.person,
        "min_confidence": options.min_confidence,
        "layout": options.layout,
    }
