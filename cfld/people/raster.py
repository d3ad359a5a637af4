"""Triangles to pixels, vectorised: spans of rows, depth test, and blurring.

Letters in shapes: P points, T triangles, N fragments (a triangle seen at a pixel centre), H, W the raster.
"""

from dataclasses import dataclass

import numpy as np

from cfld.people.mesh import Array, Indices, Mask, dot

FAR = np.float32(1e3)


@dataclass(frozen=True, eq=False)
class Fragments:
    """Where triangles cover pixel centres."""

    pixel: Indices  # (N,) row * W + column
    triangle: Indices  # (N,)
    weights: Array  # (N, 3) barycentric
    depth: Array  # (N,)

    def select(self, rows: Array | Indices) -> "Fragments":
        """The fragments of some rows (booleans or numbers)."""
        return Fragments(self.pixel[rows], self.triangle[rows], self.weights[rows], self.depth[rows])

    def interpolate(self, values: Array, triangles: Indices) -> Array:
        """values (P, C) at the corners of triangles (T, 3) -> (N, C)."""
        corners = triangles[self.triangle]
        w = self.weights
        return values[corners[:, 0]] * w[:, :1] + values[corners[:, 1]] * w[:, 1:2] + values[corners[:, 2]] * w[:, 2:]


def expand(counts: Indices) -> tuple[Indices, Indices]:
    """counts (K,) -> for every one of sum(counts) items, which k it belongs to and its number within k."""
    owner = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - starts[owner]


def smallest(a: Array, b: Array, c: Array) -> Array:
    """The smallest of three numbers, (K,) each."""
    return np.minimum(np.minimum(a, b), c)


def largest(a: Array, b: Array, c: Array) -> Array:
    """The largest of three numbers, (K,) each."""
    return np.maximum(np.maximum(a, b), c)


def rasterize(
    points: Array, depth: Array, triangles: Indices, height: int, width: int, cull: Mask | None = None
) -> Fragments:
    """points (P, 2) as x, y in pixels, depth (P,), triangles (T, 3) -> all fragments, hidden ones too. Of triangles
    where cull (T,) is true only those facing the viewer count (anticlockwise in the scene, so clockwise on a raster
    with y down)."""
    corners = points.astype(np.float64)[triangles]
    (x0, x1, x2), (y0, y1, y2) = corners.transpose(2, 1, 0)
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    first_row = np.maximum(np.ceil(smallest(y0, y1, y2) - 0.5), 0).astype(np.int64)
    last_row = np.minimum(np.floor(largest(y0, y1, y2) - 0.5), height - 1).astype(np.int64)
    visible = (last_row >= first_row) & (np.abs(area) > 1e-9)
    visible &= (largest(x0, x1, x2) > 0) & (smallest(x0, x1, x2) < width)
    if cull is not None:
        visible &= (area < 0) | ~cull
    chosen = np.flatnonzero(visible)
    x0, x1, x2, y0, y1, y2, area = (values[chosen] for values in (x0, x1, x2, y0, y1, y2, area))
    first_row, last_row = first_row[chosen], last_row[chosen]

    # Corner i has weight a_i X + b_i Y + c_i; the triangle is where none is negative.
    a = np.stack([y1 - y2, y2 - y0, y0 - y1]) / area
    b = np.stack([x2 - x1, x0 - x2, x1 - x0]) / area
    c = np.stack([x1 * y2 - x2 * y1, x2 * y0 - x0 * y2, x0 * y1 - x1 * y0]) / area

    # In each row every edge bounds the span from the left (a > 0) or from the right.
    owner, number = expand(last_row - first_row + 1)
    row = first_row[owner] + number
    a_row, rest = a[:, owner], b[:, owner] * (row + 0.5) + c[:, owner]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = -rest / a_row
    left = largest(*np.where(a_row > 0, crossing, -np.inf))
    right = smallest(*np.where(a_row < 0, crossing, np.inf))
    start = np.maximum(np.ceil(left - 0.5 - 1e-6), 0)
    count = np.minimum(np.floor(right - 0.5 + 1e-6), width - 1) - start + 1
    outside = (a_row == 0) & (rest < 0)
    count = np.where(outside[0] | outside[1] | outside[2], 0, np.maximum(count, 0)).astype(np.int64)

    span, number = expand(count)
    column = start.astype(np.int64)[span] + number
    weights = (a_row[:, span] * (column + 0.5) + rest[:, span]).T.astype(np.float32)
    triangle = chosen[owner[span]]
    z = dot(depth[triangles[triangle]], weights).astype(np.float32)
    return Fragments(row[span] * width + column, triangle, weights, z)


def nearest(fragments: Fragments, height: int, width: int) -> tuple[Fragments, Array]:
    """The fragment in front at every covered pixel, and the depth buffer (height * width,), FAR where nothing is."""
    buffer = np.full(height * width, FAR, np.float32)
    np.minimum.at(buffer, fragments.pixel, fragments.depth)
    front = np.flatnonzero(fragments.depth == buffer[fragments.pixel])
    owner = np.full(height * width, -1)
    owner[fragments.pixel[front]] = front  # of equal depths the last one stays
    return fragments.select(owner[owner >= 0]), buffer


def box_blur(image: Array, radius: int) -> Array:
    """Mean over a square of 2 * radius + 1, edges repeated. image (H, W) -> (H, W)."""
    size = 2 * radius + 1
    for axis in (0, 1):
        padding = [(radius + 1, radius) if axis == k else (0, 0) for k in (0, 1)]
        total = np.cumsum(np.pad(image, padding, mode="edge"), axis=axis, dtype=np.float64)
        length = image.shape[axis]
        upper = np.take(total, range(size, size + length), axis)
        image = ((upper - np.take(total, range(length), axis)) / size).astype(np.float32)
    return image
