"""Cutting cloth: lay the front and the back of the body flat, so that patterns keep their size on every curve.

Tailors cut a front and a back panel and sew them at the shoulders and the sides. So does this module: each panel is
unwrapped as rigidly as possible (Liu et al., A Local/Global Approach to Mesh Parameterization, 2008) and the result is
stored in person_mesh.npz as `cloth` (V, 4): metres on the front panel, metres on the back panel. Run once, when the
mesh changes:

    python -m cfld.people.unwrap

Sleeves are not cut here: an arm is nearly a cone and paint.py unrolls it from the angle around it.
"""

import os

import numpy as np

from cfld.people.dress import round_chest, soften
from cfld.people.mesh import MESH_FILE, SKIN, SKIRT, Array, Indices, Mesh, Surface, mesh, seam_depth, smoothstep

ITERATIONS = 300


def flatten(vertices: Array, triangles: Indices, start: Array) -> Array:
    """vertices (V, 3), triangles (T, 3), start (V, 2) -> (V, 2): each triangle as close to its shape as a sheet
    allows."""
    corners = vertices[triangles].astype(np.float64)
    u, v = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    length = np.linalg.norm(u, axis=1)
    along = (u * v).sum(1) / length
    across = np.sqrt(np.maximum((v * v).sum(1) - along**2, 1e-12))
    zero = np.zeros_like(length)
    shape = np.stack([np.stack([zero, zero], 1), np.stack([length, zero], 1), np.stack([along, across], 1)], 1)

    # Cotangent weights of the three edges (i, i + 1), each seen from the corner opposite.
    weights = np.zeros((len(triangles), 3))
    for i in range(3):
        opposite = shape[:, (i + 2) % 3]
        a, b = shape[:, i] - opposite, shape[:, (i + 1) % 3] - opposite
        weights[:, i] = np.maximum((a * b).sum(1) / np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]), 0.05)
    laplacian = np.zeros((len(vertices), len(vertices)))
    for i in range(3):
        p, q = triangles[:, i], triangles[:, (i + 1) % 3]
        for row, column, sign in ((p, p, 1), (q, q, 1), (p, q, -1), (q, p, -1)):
            np.add.at(laplacian, (row, column), sign * weights[:, i])
    laplacian += 1e-9 * np.eye(len(vertices))
    inverse = np.linalg.inv(laplacian)

    sheet = start.astype(np.float64)
    for _ in range(ITERATIONS):
        pull = np.zeros_like(sheet)
        turned = np.zeros((len(triangles), 2, 2))
        for i in range(3):
            true_edge = shape[:, (i + 1) % 3] - shape[:, i]
            edge = sheet[triangles[:, (i + 1) % 3]] - sheet[triangles[:, i]]
            turned += weights[:, i, None, None] * edge[:, :, None] * true_edge[:, None, :]
        # The nearest rotation of a 2x2 matrix in closed form.
        cosine, sine = turned[:, 0, 0] + turned[:, 1, 1], turned[:, 1, 0] - turned[:, 0, 1]
        size = np.maximum(np.hypot(cosine, sine), 1e-12)
        rotation = np.stack([np.stack([cosine, -sine], 1), np.stack([sine, cosine], 1)], 1) / size[:, None, None]
        for i in range(3):
            true_edge = shape[:, (i + 1) % 3] - shape[:, i]
            wanted = weights[:, i, None] * np.einsum("tij,tj->ti", rotation, true_edge)
            np.add.at(pull, triangles[:, (i + 1) % 3], wanted)
            np.add.at(pull, triangles[:, i], -wanted)
        sheet = inverse @ pull
    return sheet


def align(sheet: Array, start: Array) -> Array:
    """Turn and shift sheet (V, 2) onto start (V, 2): the centre line stays at u = 0 and upright."""
    source, target = sheet - sheet.mean(0), start - start.mean(0)
    turned = source.T @ target
    angle = np.arctan2(turned[0, 1] - turned[1, 0], turned[0, 0] + turned[1, 1])
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return source @ rotation + start.mean(0)


def panel(body: Mesh, side: int) -> Array:
    """One panel, side -1 for the front and 1 for the back -> (V, 2), zeros where it does not reach."""
    x, y, z = body.rest.T
    s = Surface(body.table)
    near = ((s.arm < 0.6) | (s.along_arm < 0.12)) & (s.head < 0.9) & (s.along_leg < 1.0)
    inside = (y - seam_depth(z)) * side > 0
    # Triangles across the seam belong to both panels.
    corners = body.triangles
    softened = round_chest(soften(body.rest, near.astype(np.float32)), s, near)  # cloth does not follow every muscle
    sewn = (body.triangle_group == SKIN) & near[corners].any(1) & inside[corners].any(1)
    triangles = corners[sewn]
    used, local = np.unique(triangles.ravel(), return_inverse=True)
    local = local.reshape(-1, 3)
    start = np.stack([-side * x[used], z[used]], axis=1)
    flat = align(flatten(softened[used], local, start), start)
    cloth = np.zeros((len(x), 2), np.float32)
    cloth[used] = flat
    # The torso is centred by symmetry; heights are those of the waist, so that front and back meet there.
    waist = used[(np.abs(x[used]) < 0.1) & (np.abs(z[used] - 0.3) < 0.03)]
    cloth[used, 1] += (z[waist] - cloth[waist, 1]).mean()
    cloth[used] = straighten(cloth[used])
    return cloth


def straighten(cloth: Array) -> Array:
    """Bend the legs of a panel (V, 2) upright below the hips, so that stripes run along them as in trousers."""
    side = np.where(cloth[:, 0] < 0, -1, 1)
    shin = (cloth[:, 1] < -0.35) & (side > 0)
    splay = np.polyfit(cloth[shin, 1], cloth[shin, 0], 1)[0]
    hip = np.stack([0.11 * side, np.zeros(len(cloth))], axis=1)
    angle = side * np.arctan(splay) * smoothstep(0.12, -0.15, cloth[:, 1])
    turned = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
    return np.einsum("vij,vj->vi", turned, cloth - hip) + hip


def skirt(body: Mesh, side: int) -> Array:
    """The cone of the skirt, unrolled about its own centre line -> (V, 2), zeros elsewhere."""
    x, y, z = body.rest.T
    radius = np.hypot(x, y - 0.5 * (y[body.vertex_group == SKIRT].max() + y[body.vertex_group == SKIRT].min()))
    angle = np.arctan2(-side * x, side * y)
    cloth = np.stack([angle * radius, z], axis=1)
    return np.where((body.vertex_group == SKIRT)[:, None], cloth, 0).astype(np.float32)


def main() -> None:
    body = mesh()
    cloth = np.concatenate([panel(body, side) + skirt(body, side) for side in (-1, 1)], axis=1)
    with np.load(MESH_FILE) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["cloth"] = cloth.astype(np.float16)
    temporary = MESH_FILE.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, MESH_FILE)


if __name__ == "__main__":
    main()
