"""Poses: reading keypoints, and the 21-channel pose map x_p that the pose adapter takes (Sec. 3.2 and 4.1).

Keypoints are 18 OpenPose joints as (y, x) in the frame of a 256x176 photo; -1 in either coordinate means missing. They
are drawn in a square map of side S, as photos are stretched to squares:
    channels 0..2    the skeleton in colour: 17 bones, and on top of them a disc for each joint;
    channel 3 + j    a Gaussian around joint j.

Letters in shapes: B poses, J = 18 joints, S side of the map.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfld.files import UserError, read_json, read_text

JOINTS = (
    "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
    "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle",
    "right eye", "left eye", "right ear", "left ear",
)  # fmt: skip
BONES = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10),
    (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
JOINT_COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)  # fmt: skip
BONE_COLOURS = tuple(tuple(value * 3 // 5 for value in colour) for colour in JOINT_COLOURS[:17])

FRAME = (256, 176)  # height and width of the frame of keypoints
SIGMA = 6.0  # of the heat maps, in pixels of a map of side 256
JOINT_RADIUS, BONE_RADIUS = 3.55, 1.7  # what OpenCV's antialiased disc of radius 3 and line of width 2 really cover


def map_positions(keypoints: Tensor, size: int) -> Tensor:
    """keypoints (B, J, 2) as (y, x) in FRAME -> whole positions (B, J, 2) in a map of side S, -1 where missing."""
    present = (keypoints >= 0).all(dim=-1, keepdim=True)
    frame = torch.tensor(FRAME, device=keypoints.device)
    return torch.where(present, (keypoints * size / frame).floor(), -1.0)  # product first: 11 * 256 / 176 is exactly 16


def segment_distance(grid: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """grid (S, S, 2) of positions, start and end (B, 2) of segments -> distances (B, S, S)."""
    direction = (end - start)[:, None, None]
    offset = grid - start[:, None, None]
    along = (offset * direction).sum(-1) / (direction**2).sum(-1).clamp(min=1e-6)
    return (offset - along.clamp(0, 1)[..., None] * direction).norm(dim=-1)


def paint(canvas: Tensor, colour: tuple[int, ...], coverage: Tensor) -> Tensor:
    """Lay a colour (0..255) over canvas (B, 3, S, S) where coverage (B, S, S) says, from 0 to 1."""
    ink = torch.tensor(colour, device=canvas.device, dtype=canvas.dtype)[:, None, None] / 255
    return torch.lerp(canvas, ink.expand_as(canvas), coverage[:, None])


def pose_maps(keypoints: Tensor, size: int) -> Tensor:
    """Draw pose maps, a batch at a time, on the keypoints' device.

    keypoints (B, 18, 2) as (y, x) in the 256x176 frame, -1 = missing
    -> (B, 21, S, S) in [0, 1]: the skeleton in RGB, then a heat map a joint; what is missing leaves no trace
    """
    unit = size / 256
    positions = map_positions(keypoints, size)
    present = (positions >= 0).all(dim=-1)  # (B, J)
    axis = torch.arange(size, device=keypoints.device, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)  # (S, S, 2)

    skeleton = torch.zeros(len(keypoints), 3, size, size, device=keypoints.device)
    for (a, b), colour in zip(BONES, BONE_COLOURS, strict=True):
        distance = segment_distance(grid, positions[:, a], positions[:, b])
        coverage = (BONE_RADIUS * unit + 0.5 - distance).clamp(0, 1)
        skeleton = paint(skeleton, colour, coverage * (present[:, a] & present[:, b])[:, None, None])
    for joint, colour in enumerate(JOINT_COLOURS):
        distance = (grid - positions[:, joint, None, None]).norm(dim=-1)
        coverage = (JOINT_RADIUS * unit + 0.5 - distance).clamp(0, 1)
        skeleton = paint(skeleton, colour, coverage * present[:, joint, None, None])

    squared = ((grid - positions[:, :, None, None]) ** 2).sum(-1)  # (B, J, S, S)
    heat = torch.exp(-squared / (2 * (SIGMA * unit) ** 2)) * present[:, :, None, None]
    return torch.cat([skeleton, heat], dim=1)


def parse_joints(y_text: str, x_text: str) -> np.ndarray:
    """Two JSON lists of 18 numbers, as annotation files have them -> keypoints (18, 2) as (y, x). Raises UserError."""
    columns = []
    for axis, text in (("y", y_text), ("x", x_text)):
        try:
            values = json.loads(text)
        except json.JSONDecodeError:
            raise UserError(f"keypoints_{axis} must be a JSON list, found {text.strip()[:40]!r}") from None
        if not isinstance(values, list) or len(values) != len(JOINTS):
            found = len(values) if isinstance(values, list) else repr(values)
            raise UserError(f"keypoints_{axis} must have {len(JOINTS)} numbers, found {found}")
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            raise UserError(f"keypoints_{axis} must be finite numbers, found {text.strip()[:60]}")
        columns.append(values)
    return np.array(columns, dtype=np.float32).T


def keypoints_in_frame(points: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """points (18, 3) as (x, y, score) in pixels of a picture of frame (height, width) -> keypoints (18, 2) as (y, x) in
    FRAME; joints of score 0, at (0, 0) or outside the picture are missing."""
    x, y, score = points.T
    seen = (score > 0) & (x >= 0) & (y >= 0) & (x < frame[1]) & (y < frame[0]) & ((x > 0) | (y > 0))
    scaled = np.stack([y * FRAME[0] / frame[0], x * FRAME[1] / frame[1]], axis=1)
    return np.where(seen[:, None], scaled, -1).astype(np.float32)


BODY_25 = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
    16,
    17,
    18,
)  # OpenPose's 25 joints -> 18, in JOINTS' order


def read_openpose(path: str | Path, pose_size: tuple[int, int] | None = None) -> np.ndarray:
    """An OpenPose JSON file of 18 or 25 joints -> keypoints (18, 2) as (y, x) in FRAME, of the first person.

    Its frame is the file's canvas_height and canvas_width; without them pose_size (height, width); without that FRAME
    itself, if every joint fits in. Raises UserError otherwise, and for a file of another form.
    """
    content = read_json(path)
    people = content.get("people") if isinstance(content, dict) else None
    if not isinstance(people, list) or not people:
        raise UserError(f"{path}: an OpenPose file must have a non-empty list 'people', found {str(content)[:60]}")
    numbers: Any = people[0].get("pose_keypoints_2d") if isinstance(people[0], dict) else None
    if not isinstance(numbers, list) or len(numbers) not in (54, 75):
        found = len(numbers) if isinstance(numbers, list) else numbers
        raise UserError(f"{path}: pose_keypoints_2d must have 54 (18 joints) or 75 numbers (25 joints), found {found}")
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        raise UserError(f"{path}: pose_keypoints_2d must hold finite numbers only")
    points = np.array(numbers, dtype=np.float64).reshape(-1, 3)
    if len(points) == 25:
        points = points[list(BODY_25)]
    if "canvas_height" in content and "canvas_width" in content:
        frame = (content["canvas_height"], content["canvas_width"])
        if not all(isinstance(side, (int, float)) and side > 0 for side in frame):
            raise UserError(f"{path}: canvas_height and canvas_width must be positive numbers, found {frame}")
    elif pose_size is not None:
        frame = pose_size
    else:
        frame = FRAME
        reach = points[points[:, 2] > 0, :2].max(axis=0, initial=0)
        if reach[0] >= FRAME[1] or reach[1] >= FRAME[0]:
            raise UserError(
                f"{path}: joints reach to x = {reach[0]:g}, y = {reach[1]:g}, outside a picture of "
                f"{FRAME[1]}x{FRAME[0]}, and the file has no canvas_width and canvas_height: give --pose-size WxH"
            )
    return keypoints_in_frame(points, frame)


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
    return annotations


def read_pose(text: str, pose_size: tuple[int, int] | None = None) -> np.ndarray:
    """What --pose takes -> keypoints (18, 2) as (y, x) in FRAME: "annotation.csv#name", or an OpenPose JSON file."""
    if "#" in text and not Path(text).is_file():
        path, name = text.rsplit("#", 1)
        annotations = read_annotations(path)
        if name not in annotations:
            raise UserError(
                f"{path}: no row named {name!r} among {len(annotations)}, such as {next(iter(annotations), '-')}"
            )
        return annotations[name]
    if text.lower().endswith(".json"):
        return read_openpose(text, pose_size)
    raise UserError(f"--pose {text}: must be an OpenPose .json file, or an annotation file with #name behind it")
