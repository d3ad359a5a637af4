"""Poses: the 21-channel pose map x_p that the pose adapter takes (Sec. 3.2 and 4.1).

Keypoints are 18 OpenPose joints as (y, x) in the frame of a 256x176 photo; -1 in either coordinate means missing. They
are drawn in a square map of side S, as photos are stretched to squares:
    channels 0..2    the skeleton in colour: 17 bones, and on top of them a disc for each joint;
    channel 3 + j    a Gaussian around joint j.

Letters in shapes: B poses, J = 18 joints, S side of the map.
"""

import numpy as np
import torch
from torch import Tensor

from cfld.tools.checks import described

FRAME = (256, 176)  # height and width of the frame of keypoints, 11:16 (width:height); people/render.py has the same
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
# OpenPose draws limbs at 60 % of the joints' brightness.
BONE_COLOURS = tuple(tuple(value * 3 // 5 for value in colour) for colour in JOINT_COLOURS[:17])
LARGEST = 8192  # side of a map
SIGMA = 6.0  # of the Gaussians, in pixels of a map of side 256
JOINT_RADIUS, BONE_RADIUS = 3.55, 1.7  # what OpenCV's antialiased disc of radius 3 and line of width 2 cover


def map_positions(keypoints: Tensor, size: int) -> Tensor:
    """keypoints (B, J, 2) as (y, x) in FRAME -> whole positions (B, J, 2) in a map of side S; -1 = missing."""
    present = (keypoints >= 0).all(dim=-1, keepdim=True)
    frame = torch.tensor(FRAME, device=keypoints.device)
    return torch.where(present, (keypoints * size / frame).floor(), -1.0)  # product first: 11 * 256 / 176 is exactly 16


def segment_distance(grid: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """grid (S, S, 2) of positions, start and end (B, 2) of segments -> distance of each position from each segment
    (B, S, S)."""
    direction = (end - start)[:, None, None]
    offset = grid - start[:, None, None]
    along = (offset * direction).sum(-1) / (direction**2).sum(-1).clamp(min=1e-6)
    return (offset - along.clamp(0, 1)[..., None] * direction).norm(dim=-1)


def composite(canvas: Tensor, colour: tuple[int, ...], coverage: Tensor) -> Tensor:
    """canvas (B, 3, S, S) in [0, 1], a colour (R, G, B) in 0..255, coverage (B, S, S) in [0, 1] -> the colour over
    the canvas."""
    ink = torch.tensor(colour, device=canvas.device, dtype=canvas.dtype)[:, None, None] / 255
    return torch.lerp(canvas, ink.expand_as(canvas), coverage[:, None])


def pose_maps(keypoints: Tensor | np.ndarray, size: int) -> Tensor:
    """Draw the pose maps x_p of a batch, on the device of the keypoints.

    keypoints (B, 18, 2) as (y, x) in FRAME, -1 = missing; size: S
    -> (B, 21, S, S) in [0, 1]: the skeleton in RGB, then one Gaussian per joint; a missing joint leaves no trace
    Raises ValueError for another shape and, on the CPU, for numbers that are not finite.
    """
    if not isinstance(keypoints, Tensor):
        keypoints = np.ascontiguousarray(keypoints)  # torch takes no negative strides
    if keypoints.ndim != 3 or keypoints.shape[1:] != (len(JOINTS), 2):
        raise ValueError(f"keypoints must be (B, {len(JOINTS)}, 2), found {described(keypoints)}")
    if not hasattr(size, "__index__") or not 1 <= size <= LARGEST:
        raise ValueError(f"the size of pose maps must be a whole number within 1 .. {LARGEST}, found {described(size)}")
    keypoints, unit = torch.as_tensor(keypoints, dtype=torch.float32), size / 256
    if keypoints.device.type == "cpu" and not (keypoints.abs() < 1e6).all():
        raise ValueError("keypoints must be finite numbers below a million, found others: they are pixels of the frame")
    positions = map_positions(keypoints, size)
    present = (positions >= 0).all(dim=-1)  # (B, J)
    axis = torch.arange(size, device=keypoints.device, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)  # (S, S, 2)

    skeleton = torch.zeros(len(keypoints), 3, size, size, device=keypoints.device)
    for (a, b), colour in zip(BONES, BONE_COLOURS, strict=True):
        distance = segment_distance(grid, positions[:, a], positions[:, b])
        coverage = (BONE_RADIUS * unit + 0.5 - distance).clamp(0, 1)
        skeleton = composite(skeleton, colour, coverage * (present[:, a] & present[:, b])[:, None, None])
    for joint, colour in enumerate(JOINT_COLOURS):
        distance = (grid - positions[:, joint, None, None]).norm(dim=-1)
        coverage = (JOINT_RADIUS * unit + 0.5 - distance).clamp(0, 1)
        skeleton = composite(skeleton, colour, coverage * present[:, joint, None, None])

    falloff = torch.exp(-((axis - positions[..., None]) ** 2) / (2 * (SIGMA * unit) ** 2))  # (B, J, 2, S)
    down, across = (falloff * present[..., None, None]).unbind(dim=2)
    return torch.cat([skeleton, down[..., None] * across[:, :, None]], dim=1)
