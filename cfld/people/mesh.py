"""The body: one mesh, its skeleton and its shape space, read from person_mesh.npz (CC0, see NOTICE.txt).

Rest pose: metres, x to the person's left, -y to the front, z up, hips near the origin, arms at 45 degrees.
Letters in shapes: V vertices, T triangles, J bones, S shape components, N examples of the shape space.
"""

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

MESH_FILE = Path(__file__).with_name("person_mesh.npz")
SKIN, EYE, SKIRT, LONG_HAIR, KNOT, SHOE, STOOL = range(7)  # what a triangle belongs to; the file holds the first three


class Surface:
    """What is known of N points of the body: vertices, or the points that pixels show. Every attribute is (N,)."""

    x: Array  # rest pose, metres
    y: Array
    z: Array
    arm: Array  # 1 on the arms, 0 elsewhere, blended over the shoulder; leg and head likewise
    along_arm: Array  # 0 at the shoulder, 1 at the wrist
    leg: Array
    along_leg: Array  # 0 at the hip, 1 at the ankle
    head: Array
    lips: Array
    outward: Array  # place in the cross-section of the limb, from its axis, metres
    frontward: Array
    front_u: Array  # place on the front panel of cloth, laid flat, metres (unwrap.py)
    front_v: Array
    back_u: Array  # the same on the back panel
    back_v: Array

    def __init__(self, table: Array) -> None:
        """table (N, 15): the attributes above, in their order."""
        for name, column in zip(Surface.__annotations__, np.ascontiguousarray(table.T), strict=True):
            setattr(self, name, column)

    def raised(self, by: float) -> "Surface":
        """The same points, moved up: what would be there if the cloth were shifted down."""
        other = copy.copy(self)
        other.z = self.z + by
        return other


@dataclass(frozen=True, eq=False)
class Mesh:
    """The file, with names."""

    rest: Array  # (V, 3) the mean body
    bone_heads: Array  # (J, 3) the joint each bone turns about
    components: Array  # (S, V + J, 3) what one unit of each shape component adds to rest and bone_heads
    examples: Array  # (N, S) sensible bodies, as coefficients of the components
    female: Mask  # (N,)
    triangles: Indices  # (T, 3)
    triangle_group: NDArray[np.uint8]  # (T,) SKIN, EYE or SKIRT
    vertex_group: NDArray[np.uint8]  # (V,)
    table: Array  # (V, 15) the attributes of Surface
    skin_bones: Indices  # (V, 4) the bones a vertex follows
    skin_weights: Array  # (V, 4)
    bone_index: dict[str, int]
    parents: tuple[int, ...]  # parent of each bone, -1 for the root; parents come first
    joint_vertices: Indices  # (17, 64) each OpenPose joint but the neck is a weighted mean of vertices
    joint_weights: Array  # (17, 64)
    joint_numbers: Indices  # (17,) which of the 18 joints


@functools.cache
def mesh() -> Mesh:
    """The mesh of this package, read once a process."""
    with np.load(MESH_FILE) as file:
        arrays = {name: file[name] for name in file.files}
    count, bones = len(arrays["vg"]), len(arrays["bones"])
    mean = arrays["mu"].reshape(-1, 3)
    components = arrays["pc"].astype(np.float32).reshape(len(arrays["pc"]), -1, 3)
    quads = arrays["faces"].astype(np.int64)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    a, b, c = triangles.T
    proper = (a != b) & (b != c) & (c != a)
    return Mesh(
        rest=mean[:count],
        bone_heads=mean[count : count + bones],
        components=components,
        examples=arrays["coef"].astype(np.float32),
        female=arrays["gender"] > 0.5,
        triangles=triangles[proper],
        triangle_group=np.concatenate([arrays["fg"]] * 2)[proper],
        vertex_group=arrays["vg"],
        table=np.concatenate([mean[:count], arrays["attr"], arrays["cloth"]], axis=1).astype(np.float32),
        skin_bones=arrays["bi"].astype(np.int64),
        skin_weights=arrays["bw"].astype(np.float32),
        bone_index={str(name): index for index, name in enumerate(arrays["bones"])},
        parents=tuple(int(parent) for parent in arrays["parents"]),
        joint_vertices=arrays["ki"].astype(np.int64),
        joint_weights=arrays["kw"].astype(np.float32),
        joint_numbers=arrays["kj"].astype(np.int64),
    )


def smoothstep(low: float, high: float, x: Array) -> Array:
    """0 below low, 1 above high (or the reverse if low > high), smooth between. Any shape."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def seam_depth(z: Array) -> Array:
    """Height z (N,) -> (N,) the y where front meets back, through ankles, knees, hips, arm pits and tops of the
    shoulders."""
    heights = [-0.8, -0.737, -0.289, 0.16, 0.45, 0.66, 0.8]
    depths = [-0.006, -0.006, -0.035, -0.01, 0.0, -0.015, -0.01]
    return np.interp(z, heights, depths).astype(np.float32)


def rotate(points: Array, rotation: NDArray) -> Array:
    """points (..., 3) turned by rotation (3, 3). Written out: BLAS may round differently on other thread counts."""
    r = rotation.astype(np.float32)
    return points[..., 0:1] * r[:, 0] + points[..., 1:2] * r[:, 1] + points[..., 2:3] * r[:, 2]


def scatter_sum(index: Indices, values: Array, length: int) -> Array:
    """Sum the rows values (N, C) that share an index (N,) -> (length, C)."""
    columns = [np.bincount(index, values[:, c], length) for c in range(values.shape[1])]
    return np.stack(columns, axis=1).astype(np.float32)


def vertex_normals(vertices: Array, triangles: Indices) -> Array:
    """vertices (V, 3), triangles (T, 3) -> (V, 3) unit normals, weighted by area."""
    a, b, c = vertices[triangles[:, 0]], vertices[triangles[:, 1]], vertices[triangles[:, 2]]
    u, v = b - a, c - a
    face = np.stack([u[:, i] * v[:, j] - u[:, j] * v[:, i] for i, j in ((1, 2), (2, 0), (0, 1))], axis=1)
    total = scatter_sum(triangles.T.ravel(), np.concatenate([face] * 3), len(vertices))
    return unit(total)


def dot(a: Array, b: Array) -> Array:
    """Inner products of vectors (..., 3). Written out: sums over a short last axis are slow."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def unit(vectors: Array) -> Array:
    """vectors (..., 3) scaled to length 1."""
    return vectors / np.maximum(np.sqrt(dot(vectors, vectors)), 1e-9)[..., None]


def smooth(values: Array, triangles: Indices, weight: Array, steps: int) -> Array:
    """Move values (V, C) towards the mean of the triangles around, weight (V,) of the way, steps times."""
    corners = triangles.ravel()
    valence = np.maximum(np.bincount(corners, minlength=len(values)), 1).astype(np.float32)[:, None]
    for _ in range(steps):
        centres = (values[triangles[:, 0]] + values[triangles[:, 1]] + values[triangles[:, 2]]) / 3
        around = scatter_sum(corners, np.repeat(centres, 3, axis=0), len(values)) / valence
        values = values + (around - values) * weight[:, None]
    return values


def loft(rings: Array) -> tuple[Array, Indices]:
    """rings (R, C, 3), closed loops one after another -> vertices (R * C, 3), triangles of the tube, facing
    outwards."""
    count, columns = rings.shape[:2]
    i, j = np.divmod(np.arange((count - 1) * columns), columns)
    here, right = i * columns + j, i * columns + (j + 1) % columns
    lower = np.stack([here, here + columns, right + columns], axis=1)
    upper = np.stack([here, right + columns, right], axis=1)
    vertices, triangles = rings.reshape(-1, 3).astype(np.float32), np.concatenate([lower, upper])
    a, b, c = (vertices[triangles] - vertices.mean(0)).transpose(1, 0, 2)
    volume = (a * np.cross(b, c)).sum()
    return vertices, triangles if volume > 0 else triangles[:, ::-1]
