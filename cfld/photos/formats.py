"""What pose estimators and pose editors write -> frames of people's points. docs/poses.md has a table of the formats.

In names and shapes, as in cfld.photos.keypoints:
    points     (n, 3) as (x, y, score), in pixels or as fractions of their image; (0, 0) or -1 = missing
    size       (height, width) of the image
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfld.photos.layouts import COUNTS, LAYOUTS
from cfld.tools.cli import UserError

Array = NDArray[Any]
Size = tuple[float, float]
MEDIAPIPE = LAYOUTS["mediapipe"].size
OPENPOSE_COUNTS = tuple(LAYOUTS[name].size for name in ("openpose", "body25", "halpe26"))
BODY_KEYS = ("pose_keypoints_2d", "pose_keypoints")  # of OpenPose since 1.2, and before
# Of MediaPipe's results: the tasks' and the older solutions', in Python and JavaScript, and of its protobuf in JSON.
LANDMARK_KEYS = ("pose_landmarks", "poseLandmarks", "landmarks", "landmark")


class Nobody(UserError):
    """An image without a person."""


class Frame(NamedTuple):
    """What was found in one image.

    people: points (n, 3) of each
    size: of the image, where the file says it
    name: of the image in a file of several
    or_frames: whether the file does not tell people of one image from frames of one person each
    """

    people: list[Array]
    size: Size | None = None
    name: str | None = None
    or_frames: bool = False


def as_numbers(values: Any) -> Array:
    """Nested lists or an array -> an array of float64. Raises UserError unless it is regular and all are finite."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise UserError("the lists of joints must be equally long") from None
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise UserError("joints must be finite numbers only: write a missing joint as zeros")
    return array.astype(np.float64)


def with_scores(points: Array) -> Array:
    """points (n, 2) or (n, c) as x, y, score, or for MediaPipe x, y, z, visibility and perhaps presence -> (n, 3)."""
    count, columns = points.shape
    if columns == 2:
        return np.concatenate([points, np.ones((count, 1))], axis=1)
    points = points[:, [0, 1, 2 if columns == 3 else 3]]
    if count == MEDIAPIPE and not ((points[:, 2] >= 0) & (points[:, 2] <= 1)).all():
        raise UserError("MediaPipe's visibility, the third of 3 columns or the fourth of more, must be within 0 .. 1")
    return points


def array_frame(content: Any) -> Frame:
    """An array or nested lists (n, c) or (people, n, c), as with_scores takes them. Raises UserError."""
    array = as_numbers(content)
    people = array[None] if array.ndim == 2 else array
    count, columns = people.shape[1:] if people.ndim == 3 and len(people) else (0, 0)
    if count not in COUNTS or not 2 <= columns <= (5 if count == MEDIAPIPE else 3):
        raise UserError(
            "an array of joints must be (n, 3), (people, n, 3) or (frames, people, n, 3), with n one of "
            f"{', '.join(map(str, COUNTS))} and the columns x, y, score, found {array.shape}"
        )
    return Frame([with_scores(points) for points in people])


def people_frame(content: Any) -> Frame:
    """What array_frame takes, of one frame of a clip. Raises UserError, Nobody if it is empty."""
    if not len(content):
        raise Nobody("a frame must have a person, found an empty list")
    return array_frame(content)


def size_in(content: dict[str, Any], height: str, width: str) -> Size | None:
    """The size under these keys, None without them. Raises UserError if it is none."""
    if height not in content or width not in content:
        return None
    size = (content[height], content[width])
    if not all(isinstance(side, (int, float)) and 0 < side < 1e6 for side in size):
        raise UserError(f"{height} and {width} must be positive numbers of pixels, found {size}")
    return size


def openpose_frame(content: dict[str, Any]) -> Frame:
    """OpenPose's JSON, and that of DWPose and the ControlNet nodes, which has the canvas's size. Raises UserError."""
    people = content["people"]
    if not isinstance(people, list) or not people:
        what = "OpenPose's JSON must have a non-empty list 'people', found"
        raise (Nobody if people == [] else UserError)(f"{what} {str(content)[:60]}")
    found = []
    for person in people:
        key = next((key for key in BODY_KEYS if isinstance(person, dict) and key in person), BODY_KEYS[0])
        numbers = as_numbers(person.get(key, []) if isinstance(person, dict) else [])
        if numbers.ndim != 1 or numbers.size not in [3 * count for count in OPENPOSE_COUNTS]:
            raise UserError(
                f"{key} must have 54 (18 joints), 75 (25 joints) or 78 numbers (26 joints), found {numbers.size}"
            )
        found.append(numbers.reshape(-1, 3))
    return Frame(found, size_in(content, "canvas_height", "canvas_width"))


def landmarks(people: Any) -> Frame:
    """Objects with x, y and perhaps visibility or score, a list of them or one a person. Raises UserError."""
    if is_objects(people):
        people = [people]
    found: list[Array] = []
    for person in people:
        if isinstance(person, dict):  # a protobuf's
            person = person.get("landmark", [])
        if not is_objects(person):
            raise UserError(f"landmarks must be lists of objects with x and y, found {str(person)[:60]}")
        joints = [joint.get("position", joint) for joint in person]  # PoseNet's have one
        if not all(isinstance(joint, dict) and {"x", "y"} <= joint.keys() for joint in joints):
            raise UserError(f"landmarks must have x and y, found {str(person[0])[:60]}")
        scores = [joint.get("visibility", joint.get("score", 1)) for joint in person]
        rows = as_numbers([[joint["x"], joint["y"], score] for joint, score in zip(joints, scores, strict=True)])
        found += array_frame(rows).people
    if not found:
        raise Nobody("the list of landmarks must not be empty, found nobody")
    return Frame(found)


def instance(content: Any) -> Array:
    """One of MMPose's or COCO's instances -> points (n, 3). Raises UserError."""
    if not isinstance(content, dict) or "keypoints" not in content:
        raise UserError(f"an instance must have keypoints, found {str(content)[:60]}")
    keypoints = content["keypoints"]
    if is_objects(keypoints):
        return landmarks(keypoints).people[0]
    points = as_numbers(keypoints)
    if points.ndim == 1 and points.size % 3 == 0:
        points = points.reshape(-1, 3)
    if points.ndim == 2 and points.shape[1] == 2 and "keypoint_scores" in content:
        scores = as_numbers(content["keypoint_scores"])
        if scores.shape != points.shape[:1]:
            raise UserError(f"keypoint_scores must be {len(points)} numbers, found {scores.shape}")
        points = np.concatenate([points, scores[:, None]], axis=1)
    if points.ndim != 2:
        raise UserError(f"keypoints must be lists of x, y or of x, y, score, found {str(content)[:60]}")
    return array_frame(points).people[0]


def instances(content: Any, name: str | None = None) -> Frame:
    """MMPose's list of the instances in one image. Raises UserError."""
    if not isinstance(content, list):
        raise UserError(f"instances must be a list, found {str(content)[:60]}")
    if not content:
        raise Nobody("the list of instances must not be empty, found nobody")
    return Frame([instance(each) for each in content], name=name)


def one_or_many(frame: Frame) -> Frame:
    """A frame of a file that lists people and does not say whether they are of one image."""
    return frame._replace(or_frames=len(frame.people) > 1)


def is_clip(content: Any) -> bool:
    """Whether an array is (frames, people, n, c), or lists are nested so, or one of them is of a frame of nobody."""
    if not isinstance(content, list):
        return isinstance(content, np.ndarray) and content.ndim == 4
    inside = content
    for _ in range(3):
        inside = [each for part in inside if isinstance(part, list) for each in part]
    return bool(inside) or any(isinstance(part, list) and not part for part in content)


def numbered(content: Iterable[Any], part: Callable[[Any], Frame]) -> list[Frame]:
    """The frames of a list, each read when nobody is in it, too, and named by its number."""
    frames = []
    for number, each in enumerate(content):
        try:
            frames.append(part(each)._replace(name=str(number)))
        except Nobody:
            frames.append(Frame([], name=str(number)))
    return frames


def by_image(found: list[Any], images: list[Any]) -> list[Frame]:
    """COCO's results or annotations, and its images where there are any -> a frame for each image."""
    listed = {image["id"]: image for image in images if isinstance(image, dict) and "id" in image}
    people: dict[Any, list[Array]] = {key: [] for key in listed}
    for each in found:
        # COCO's objects of which no joint is labelled have zeros only.
        if isinstance(each, dict) and any(each.get("keypoints") or []):
            people.setdefault(str(each["image_id"]) if not listed else each["image_id"], []).append(instance(each))
    frames = []
    for key, points in people.items():
        image = listed.get(key, {})
        frames.append(Frame(points, size_in(image, "height", "width"), str(image.get("file_name", key))))
    return frames


def is_objects(content: Any) -> bool:
    """Whether this is a non-empty list of objects only."""
    return isinstance(content, list) and bool(content) and all(isinstance(each, dict) for each in content)


def editor_frame(content: dict[str, Any]) -> Frame:
    """openpose-editor's JSON: a list of 18 joints (x, y) a person, in one list or in one each. Raises UserError."""
    points = as_numbers(content["keypoints"])
    if points.shape[-1:] != (2,) or points.size % 36 or not points.size:
        raise UserError(f"keypoints must be 18 lists of x, y for each person, found {points.shape}")
    return array_frame(points.reshape(-1, 18, 2))._replace(size=size_in(content, "height", "width"))


def object_frames(content: dict[str, Any]) -> list[Frame]:
    """An object of JSON -> its frames. Raises UserError."""
    if "people" in content:
        return [openpose_frame(content)]
    if "annotations" in content:
        return by_image(content["annotations"], content.get("images", []))
    if "instance_info" in content:  # MMPose's demos
        return list_frames(content["instance_info"])
    if "predictions" in content:  # MMPose's inferencer
        return list_frames(content["predictions"])
    if "keypoints" in content:
        return [editor_frame(content) if "width" in content else Frame([instance(content)])]
    for key in LANDMARK_KEYS:
        if key in content:
            return [landmarks(content[key])]
    raise UserError(
        f"JSON of joints must have people, annotations, keypoints, instance_info, predictions or {LANDMARK_KEYS[0]}, "
        f"found {', '.join(content)[:60] or 'an empty object'}"
    )


def list_frames(content: list[Any]) -> list[Frame]:
    """A list of JSON -> its frames. Raises UserError."""
    if is_objects(content):
        first = content[0]
        if "people" in first:  # of ComfyUI's and DWPose's frames
            return numbered(content, openpose_frame)
        if "instances" in first:  # of MMPose's frames of a video
            return numbered(content, lambda each: instances(each.get("instances")))
        if "image_id" in first:
            return by_image(content, [])
        if "x" in first or "position" in first:
            return [landmarks(content)]
        if key := next((key for key in LANDMARK_KEYS if key in first), None):  # MediaPipe's results, one a frame
            return numbered(content, lambda each: landmarks(each[key] or []))
        return [one_or_many(instances(content))]
    if isinstance(content, list) and any(map(is_objects, content)) and all(p == [] or is_objects(p) for p in content):
        if any("keypoints" in part[0] for part in content if part):  # MMPose's instances, a list for each image
            return numbered(content, instances)
        if [] in content:  # a frame without a person, between those of one
            return numbered(content, landmarks)
        return [one_or_many(landmarks(content))]
    if is_clip(content):
        return numbered(content, people_frame)
    return [one_or_many(array_frame(content))]


def frames_in(content: Any) -> list[Frame]:
    """What an estimator has written -> its frames, at least one. Raises UserError.

    content: a value of JSON in any form of docs/poses.md, or an array (n, c), (people, n, c) or (frames, people, n, c),
        n one of COUNTS
    """
    try:
        frames = object_frames(content) if isinstance(content, dict) else list_frames(content)
    except KeyError as error:
        raise UserError(f"not in a known form of joints (a part lacks {error.args[0]!r}), see docs/poses.md") from None
    except (TypeError, AttributeError):
        raise UserError("not in a known form of joints (a part is of another kind), see docs/poses.md") from None
    if not frames:
        raise Nobody("there must be a person with joints, found nobody")
    return frames
