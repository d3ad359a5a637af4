"""The figure of a person at rest: body, the volume of clothes and hair, shoes. Cloth is the skin pushed outwards, so
that it can never pierce it; skirts, long hair and shoes are surfaces of their own.

Letters in shapes: V vertices of the mesh file, F vertices of a figure (more than V), T triangles, J bones.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cfld.people.garments import (
    SHOE_KINDS,
    covers_bottom,
    covers_jacket,
    covers_shaft,
    covers_skirt,
    covers_top,
)
from cfld.people.identity import FALLING_HAIR, Hair, Identity
from cfld.people.mesh import (
    KNOT,
    LONG_HAIR,
    SHOE,
    SKIN,
    SKIRT,
    Array,
    Indices,
    Mask,
    Surface,
    dot,
    loft,
    mesh,
    rotate,
    smooth,
    smoothstep,
    vertex_normals,
)
from cfld.people.pose import turn
from cfld.people.textiles import sample_tile, value_noise

NOISE_TILE = 96


@dataclass(frozen=True, eq=False)
class Figure:
    """Everything of a person that does not depend on the pose."""

    vertices: Array  # (F, 3) rest pose
    table: Array  # (F, 15) attributes of Surface; of shoes x, y, z mean across, along (0 heel, 1 toe), height
    triangles: Indices  # (T, 3)
    used: Indices  # the vertices that triangles have, without repeats
    groups: NDArray[np.uint8]  # (T,) SKIN, EYE, SKIRT, LONG_HAIR, KNOT or SHOE
    skin_bones: Indices  # (F, 4)
    skin_weights: Array  # (F, 4)
    bone_heads: Array  # (J, 3)
    heel_lift: float  # radians


@dataclass(frozen=True, eq=False)
class Part:
    """A piece added to the body; like Figure, with P vertices."""

    vertices: Array  # (P, 3)
    table: Array  # (P, 15)
    triangles: Indices
    group: int
    bones: tuple[int, int]
    share: Array  # (P,) how far a vertex follows the second bone


# ----------------------------------------------------------------------------------------------------------------- hair


def covers_scalp(hair: Hair, s: Surface) -> Mask:
    """Where hair grows on the head, ears left out. (N,) booleans."""
    forehead = 0.985 - 0.020 * np.clip(np.abs(s.x - hair.parting) / 0.05, 0, 2) ** 1.5
    temple = 0.955 - 0.075 * smoothstep(-0.085, -0.05, s.y)
    nape = 0.80 + 0.08 * smoothstep(0.01, -0.05, s.y)
    back_of_forehead = smoothstep(-0.095, -0.075, s.y)
    line = np.where(s.y < -0.05, forehead + (temple - forehead) * back_of_forehead, nape)
    ear = (np.abs(s.x) > 0.068) & (((s.y + 0.038) / 0.028) ** 2 + ((s.z - 0.885) / 0.04) ** 2 < 1)
    return (s.z > line) & (np.abs(s.x) < 0.3) & (s.arm < 0.1) & ~ear


def covers_long_hair(hair: Hair, s: Surface, strands: Array) -> Mask:
    """The part of the hair shell that is there: down to ragged ends, open at the face. strands: noise tile (n, n)."""
    ends = hair.length + 0.013 * sample_tile(strands, 1.2 * s.x, 1.2 * s.y)
    front_edge = -0.045 - 0.05 * smoothstep(0.9, 0.99, s.z) - 0.015 * smoothstep(0.8, 0.6, s.z)
    return (s.z > ends) & ((s.y > front_edge) | (s.z > 0.99))


def hair_thickness(person: Identity, s: Surface, folds: Array) -> Array:
    """How far hair stands off the scalp (N,), metres."""
    style = person.hair.style
    thickness = {"bald": 0.0, "buzz": 0.004, "short": 0.017, "tall": 0.021, "afro": 0.048}.get(style, 0.014)
    depth = thickness * (1 + 0.25 * folds)
    if style == "tall":
        depth = depth + 0.03 * smoothstep(0.96, 1.02, s.z) * smoothstep(0.05, -0.1, s.y)
    return depth


def ellipsoid(radii: tuple[float, float, float], rows: int = 9, columns: int = 14) -> Array:
    """Rings (rows, columns, 3) of an ellipsoid about the origin, from the top down."""
    polar = np.linspace(0.02, np.pi - 0.02, rows)[:, None]
    around = np.arange(columns) / columns * 2 * np.pi
    x, y, z = np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar) + 0 * around
    return np.stack([x, y, z], axis=-1) * np.array(radii)


def falling_hair(person: Identity, bone_heads: Array) -> Part | None:
    """The surface of long hair: rings around the head that become flat behind the neck and follow the back."""
    if person.hair.style not in FALLING_HAIR:
        return None
    body = mesh()
    head, chest = body.bone_index["head"], body.bone_index["spine_03"]
    z = np.linspace(1.043, person.hair.length - 0.06, 28)
    heights = [0.36, 0.70, 0.80, 0.90, 0.96, 1.00, 1.025, 1.043]
    half_width = np.interp(z, heights, [0.135, 0.12, 0.108, 0.098, 0.092, 0.076, 0.050, 0.004])
    half_depth = np.interp(z, heights, [0.045, 0.06, 0.09, 0.112, 0.108, 0.090, 0.060, 0.004])
    centre = np.interp(z, [0.36, 0.70, 0.85], [0.10, 0.07, -0.04])
    angle = np.arange(36) / 36 * 2 * np.pi
    x, y = half_width[:, None] * np.sin(angle), centre[:, None] - half_depth[:, None] * np.cos(angle)
    vertices, triangles = loft(np.stack([x, y, np.broadcast_to(z[:, None], x.shape)], axis=-1))
    table = np.zeros((len(vertices), 15), np.float32)
    table[:, :3] = vertices
    moved = vertices + (bone_heads[head] - body.bone_heads[head])
    return Part(moved, table, triangles, LONG_HAIR, (head, chest), 0.8 * smoothstep(0.80, 0.60, vertices[:, 2]))


def knot(person: Identity, bone_heads: Array) -> Part | None:
    """The bun or the pony tail, fixed to the head."""
    if person.hair.style == "bun":
        rings = ellipsoid((0.042, 0.040, 0.042)) + np.array([0, 0.07, 1.0])
    elif person.hair.style == "pony":
        rings = ellipsoid((0.033, 0.030, 0.13))
        rings[..., :2] *= 1 + 0.25 * rings[..., 2:] / 0.13
        rings = rotate(rings, turn((1, 0, 0), -0.10)) + np.array([0, 0.098, 0.85])
    else:
        return None
    body = mesh()
    head = body.bone_index["head"]
    vertices, triangles = loft(rings)
    table = np.zeros((len(vertices), 15), np.float32)
    table[:, :3] = vertices
    moved = vertices + (bone_heads[head] - body.bone_heads[head])
    return Part(moved, table, triangles, KNOT, (head, head), np.zeros(len(vertices), np.float32))


# ---------------------------------------------------------------------------------------------------------------- cloth


def hang_torso(vertices: Array, s: Surface, covered: Mask, looseness: float) -> Array:
    """Let cloth fall straight from the widest point above it: seen from above, every direction keeps the largest
    distance from the spine met on the way down. vertices (V, 3) -> (V, 3)."""
    torso = (s.arm < 0.5) & (s.head < 0.5) & (s.z < 0.62) & (s.z > -0.15)
    directions, levels = 40, 36
    offset = vertices[:, :2] - np.array([0, -0.01], np.float32)
    radius = np.hypot(offset[:, 0], offset[:, 1])
    direction = ((np.arctan2(offset[:, 0], offset[:, 1]) / (2 * np.pi) + 0.5) * directions).astype(int) % directions
    level = np.clip(((0.62 - s.z) / 0.77 * levels).astype(int), 0, levels - 1)
    widest: Array = np.zeros((levels, directions), np.float32)
    np.maximum.at(widest, (level[torso], direction[torso]), radius[torso])
    widest = np.maximum.accumulate(widest, axis=0)
    widest = (np.roll(widest, 1, 1) + 2 * widest + np.roll(widest, -1, 1)) / 4
    gap = np.maximum(widest[level, direction] - radius, 0)
    push = np.where(torso & covered, looseness * gap, 0)[:, None]
    push = smooth(push, mesh().triangles, torso.astype(np.float32), 3)
    moved = vertices.copy()
    moved[:, :2] += offset / np.maximum(radius, 1e-6)[:, None] * push
    return moved


def hang_legs(vertices: Array, s: Surface, bone_heads: Array, covered: Mask, looseness: float, flare: float) -> Array:
    """Widen trouser legs towards tubes about the bones; looseness 1 is a tube. vertices (V, 3) -> (V, 3)."""
    index = mesh().bone_index
    moved = vertices.copy()
    for letter, sign in (("l", 1), ("r", -1)):
        joints = np.array([bone_heads[index[f"{bone}_{letter}"]] for bone in ("foot", "calf", "thigh")])
        axis = np.stack([np.interp(vertices[:, 2], joints[:, 2], joints[:, c]) for c in (0, 1)], axis=1)
        offset = vertices[:, :2] - axis.astype(np.float32)
        radius = np.hypot(offset[:, 0], offset[:, 1])
        tube = 0.092 - 0.018 * s.along_leg + flare * smoothstep(0.5, 1.0, s.along_leg)
        grown = looseness * np.maximum(tube - radius, 0) * smoothstep(0.12, 0.4, s.along_leg)
        leg = covered & (s.leg > 0.5) & (sign * s.x > 0)
        moved[:, :2] += np.where(leg, grown / np.maximum(radius, 1e-6), 0)[:, None] * offset
    return moved


def shape_skirt(person: Identity, vertices: Array, s: Surface, cone: Mask) -> Array:
    """Fit the cone under what is worn above and spread it to its width, with pleats. vertices (V, 3) -> (V, 3)."""
    moved = vertices.copy()
    x, y, z = s.x[cone, None], s.y[cone, None], s.z[cone, None]
    cover = min(person.top.hem, person.jacket.hem if person.jacket else 9.0)
    if cover < 0.27:
        centre = np.array([0, -0.02], np.float32)
        moved[cone, :2] = centre + (moved[cone, :2] - centre) * (1 - 0.22 * smoothstep(cover - 0.10, cover + 0.03, z))
    width = 0.95 + 0.42 * person.bottom.looseness
    pleats = 0.04 * width * np.sin(11 * np.arctan2(x, y)) * smoothstep(0.1, -0.5, z)
    moved[cone, :2] *= 1 + (width - 1) * smoothstep(0.2, -0.5, z) + pleats
    return moved


def soften(vertices: Array, softness: Array) -> Array:
    """Smooth vertices (V, 3) by softness (V,) -> (V, 3). Points move along the normals only, or the pattern of the
    cloth would shift with them."""
    triangles = mesh().triangles
    smoothed = smooth(vertices, triangles, softness, 8)
    normals = vertex_normals(smoothed, triangles)
    return vertices + normals * dot(smoothed - vertices, normals)[:, None]


def round_chest(vertices: Array, s: Surface, covered: Mask) -> Array:
    """Draw cloth smoothly over the two points of the chest: they stand out from a plane through the ring around them
    by about a centimetre and no more. vertices (V, 3) -> (V, 3)."""
    most = 0.010
    moved = vertices.copy()
    for side in (1, -1):
        distance = np.hypot(side * s.x - 0.098, s.z - 0.535)
        around = (distance < 0.06) & (s.y < -0.05) & (s.arm < 0.5)
        x, y, z = vertices[around].T - vertices[around].mean(0)[:, None]
        terms = np.stack([np.ones_like(x), x, z], axis=1)
        ring = distance[around] > 0.03
        plane = (terms * np.linalg.lstsq(terms[ring], y[ring], rcond=None)[0]).sum(1)
        flattened = plane - most * np.tanh((plane - y) / most)
        weight = smoothstep(0.058, 0.035, distance[around]) * covered[around]
        moved[around, 1] += weight * (flattened - y)
    return moved


def dressed_vertices(person: Identity, vertices: Array, bone_heads: Array) -> Array:
    """The mesh file's vertices (V, 3) of this body, clothed and combed -> (V, 3)."""
    body = mesh()
    s = Surface(body.table)
    top, jacket, bottom = person.top, person.jacket, person.bottom
    on_body = body.vertex_group == SKIN
    # Trouser legs keep their width to the very end: the first points below the hem widen with them.
    room = replace(bottom, length=bottom.length + 0.04) if bottom.looseness else bottom
    in_top, in_bottom = covers_top(top, s) & on_body, covers_bottom(room, s) & on_body & (bottom.kind != "skirt")
    in_jacket = covers_jacket(jacket, s) & on_body if jacket else np.zeros_like(in_top)
    in_shaft = covers_shaft(person.shoes, s) & on_body
    creases = value_noise(np.random.default_rng(person.seed), NOISE_TILE, 5)
    folds = sample_tile(creases, 2 * s.x + 0.3 * s.y, 2 * s.z)

    # Cloth does not follow every muscle: smooth what it covers, the more the looser it is.
    softness = np.zeros_like(s.x)
    softness[in_bottom] = min(1, 0.3 + 0.7 * bottom.looseness)
    softness[in_top] = min(1, 0.45 + 0.6 * top.looseness)
    softness[in_jacket | in_shaft] = 1
    vertices = round_chest(soften(vertices, softness), s, in_top | in_jacket)

    thickness = np.zeros_like(s.x)
    thickness[in_bottom] = (0.006 + 0.008 * bottom.looseness * (1 + 0.2 * folds))[in_bottom]
    sleeve_room = 0.012 * top.looseness * (s.arm > 0.5) * smoothstep(0.0, 0.3, s.along_arm)
    top_depth = 0.007 + 0.010 * top.looseness * (0.85 + 0.15 * folds) + sleeve_room
    # A hem outside the trousers stands off them.
    top_depth = top_depth + 0.006 * smoothstep(0.32, 0.24, s.z) * (s.arm < 0.5)
    thickness[in_top] = np.maximum(thickness, top_depth)[in_top]
    if jacket:
        jacket_depth = 0.014 + 0.012 * jacket.looseness + 0.003 * folds + 0.010 * smoothstep(0.4, 0.1, s.z)
        thickness[in_jacket] = np.maximum(thickness, jacket_depth)[in_jacket]
    thickness[in_shaft] = np.maximum(thickness, 0.010)[in_shaft]
    on_scalp = covers_scalp(person.hair, s) & on_body
    thickness[on_scalp] = hair_thickness(person, s, folds)[on_scalp]
    thickness = np.where(on_body, smooth(thickness[:, None], body.triangles, 0.5 * on_body, 3)[:, 0], thickness)
    cone = body.vertex_group == SKIRT
    thickness[cone] = 0.016
    vertices = vertices + vertex_normals(vertices, body.triangles) * thickness[:, None]

    vertices = hang_torso(vertices, s, in_top, 0.75 * top.looseness * (0.5 if person.dress else 1))
    if jacket:
        vertices = hang_torso(vertices, s, in_jacket, 0.8 * jacket.looseness)
    if bottom.kind == "skirt":
        vertices = shape_skirt(person, vertices, s, cone)
    else:
        vertices = hang_legs(vertices, s, bone_heads, in_bottom, bottom.looseness, bottom.flare)
    return vertices.astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------- shoes

# The outline of a shoe seen from above: distance from the heel (0 to 1), half width in widths of the foot.
OUTLINE = np.array([
    (0, 0.02), (0, 0.2), (0.03, 0.29), (0.09, 0.36), (0.2, 0.38), (0.33, 0.37), (0.46, 0.38), (0.58, 0.44),
    (0.7, 0.5), (0.8, 0.48), (0.89, 0.4), (0.95, 0.28), (0.99, 0.13), (1.0, 0.02),
])  # fmt: skip
# Half a cross-section, from the middle of the sole outwards and up: across (1 is the outline), share of the height of
# the sole, share of the height of the upper.
SECTION = np.array([
    (0, 0, 0), (0.5, 0, 0), (0.93, 0, 0), (1.0, 0.2, 0), (1.0, 1, 0), (0.96, 1, 0.02), (0.95, 1, 0.3), (0.87, 1, 0.6),
    (0.68, 1, 0.83), (0.38, 1, 0.96), (0, 1, 1),
])  # fmt: skip


def shoe(person: Identity, vertices: Array, bone_heads: Array, side: int) -> list[Part]:
    """The left (side 1) or right (-1) shoe about the foot of a body (V, 3), and its heel if it has one."""
    body = mesh()
    letter = "l" if side > 0 else "r"
    foot_bone, ball_bone = body.bone_index[f"foot_{letter}"], body.bone_index[f"ball_{letter}"]
    kind = SHOE_KINDS[person.shoes.kind]
    x, y, z = vertices[(body.table[:, 2] < -0.77) & (side * body.table[:, 0] > 0) & (body.vertex_group == SKIN)].T
    heel_end, toe_end, floor = y.max() + 0.008, y.min() - 0.014, z.min() - 0.6 * kind.sole
    heel_x, ball_x = x[y > heel_end - 0.06].mean(), 0.5 * (x.max() + x.min())
    width = (x.max() - x.min()) * kind.width + 0.006

    along, half = OUTLINE.T
    top = np.interp(
        along,
        [0, 0.08, 0.3, 0.45, 0.62, 0.8, 1.0],
        [kind.collar, kind.collar, max(kind.instep, 0.9 * kind.collar), kind.instep, *_vamp(kind.instep, kind.toe)],
    )
    top = np.maximum(top, kind.sole + 0.008)
    section = np.concatenate([SECTION, SECTION[-2:0:-1] * np.array([-1, 1, 1])])
    across, on_sole, on_upper = section.T
    height = kind.sole * on_sole + (top[:, None] - kind.sole) * on_upper
    # Soles rise a little at the toe.
    spring = 0.014 * smoothstep(0.75, 1.0, along.astype(np.float32))[:, None]
    centre = np.interp(along, [0, 0.6, 1.0], [heel_x, ball_x, ball_x - side * 0.006])[:, None]
    rings = np.stack(
        [
            centre + half[:, None] * across * width,
            np.broadcast_to((heel_end + (toe_end - heel_end) * along)[:, None], height.shape),
            floor + height + spring,
        ],
        axis=-1,
    )
    shell, triangles = loft(rings)
    table = np.zeros((len(shell), 15), np.float32)
    table[:, 0] = np.broadcast_to(across * side, height.shape).ravel()
    table[:, 1] = np.broadcast_to(along[:, None], height.shape).ravel()
    table[:, 2] = height.ravel()
    parts = [Part(shell, table, triangles, SHOE, (foot_bone, ball_bone), smoothstep(0.54, 0.68, table[:, 1]))]
    if kind.heel_lift:
        ankle, ball = bone_heads[foot_bone], bone_heads[ball_bone]
        base = np.array([heel_x, heel_end - 0.035, floor + 0.004], np.float32)
        tip = turn((1, 0, 0), kind.heel_lift)
        ground = (tip @ (ball - ankle))[2] + floor - ball[2]
        down = tip.T @ np.array([0, 0, ground - (tip @ (base - ankle))[2]])
        size = np.linspace(0.85, 0.45, 6)[:, None, None] * np.array([0.027, 0.028, 0])
        circle = np.arange(10) / 10 * 2 * np.pi
        disc = np.stack([np.cos(circle), np.sin(circle), 0 * circle], axis=1)
        rings = base + np.linspace(0, 1, 6)[:, None, None] * down + disc * size
        stem, triangles = loft(rings)
        table = np.zeros((len(stem), 15), np.float32)
        parts.append(Part(stem, table, triangles, SHOE, (foot_bone, foot_bone), np.zeros(len(stem), np.float32)))
    return parts


def _vamp(instep: float, toe: float) -> tuple[float, float, float]:
    """Heights of the upper from the laces to the tip of the toe."""
    return 0.45 * instep + 0.55 * toe + 0.004, toe, 0.7 * toe


def tuck_feet(vertices: Array, s: Surface) -> Array:
    """Make the feet a little narrower, so that they stay inside their shoes. vertices (V, 3) -> (V, 3)."""
    moved = vertices.copy()
    for side in (1, -1):
        foot = (s.z < -0.74) & (side * s.x > 0)
        centre = vertices[foot, 0].mean()
        moved[foot, 0] = centre + 0.88 * (vertices[foot, 0] - centre)
    return moved


# --------------------------------------------------------------------------------------------------------------- figure


def kept_triangles(person: Identity) -> Mask:
    """(T,) False for what can never be seen: toes in shoes, a skirt that is not worn or below its hem."""
    body = mesh()
    s = Surface(body.table)
    groups, corners = body.triangle_group, body.triangles
    keep = np.ones(len(corners), bool)
    worn = covers_skirt(person.bottom, s) if person.bottom.kind == "skirt" else np.zeros_like(s.x, bool)
    keep &= (groups != SKIRT) | worn[corners].any(1)
    open_shoe = SHOE_KINDS[person.shoes.kind].instep < 0.04
    in_shoe = (s.z < -0.77) & (s.y < (-0.14 if open_shoe else -0.07))
    return keep & ~((groups == SKIN) & in_shoe[corners].all(1))


def bare_body(person: Identity) -> tuple[Array, Array]:
    """Vertices (B, 3) and heads of the bones (J, 3) of a person's body at rest, without clothes and hair."""
    body = mesh()
    shaped = np.concatenate([body.rest, body.bone_heads])
    for value, component in zip(person.shape, body.components, strict=True):
        shaped = shaped + np.float32(value) * component
    return shaped[: len(body.rest)], shaped[len(body.rest) :]


@functools.lru_cache(maxsize=8)
def figure(person: Identity) -> Figure:
    """The figure of a person. Cached: several poses of one person follow each other."""
    body = mesh()
    vertices, bone_heads = bare_body(person)
    parts = [part for side in (1, -1) for part in shoe(person, vertices, bone_heads, side)]
    parts += [part for part in (falling_hair(person, bone_heads), knot(person, bone_heads)) if part]
    keep = kept_triangles(person)
    clothed = dressed_vertices(person, tuck_feet(vertices, Surface(body.table)), bone_heads)

    triangles, groups, count = [body.triangles[keep]], [body.triangle_group[keep]], len(clothed)
    bones, weights = [body.skin_bones], [body.skin_weights]
    for part in parts:
        triangles.append(part.triangles + count)
        groups.append(np.full(len(part.triangles), part.group, np.uint8))
        first, second = part.bones
        bones.append(np.tile(np.array([first, second, 0, 0]), (len(part.vertices), 1)))
        weights.append(np.stack([1 - part.share, part.share, 0 * part.share, 0 * part.share], axis=1))
        count += len(part.vertices)
    return Figure(
        vertices=np.concatenate([clothed, *(part.vertices for part in parts)]),
        table=np.concatenate([body.table, *(part.table for part in parts)]),
        triangles=np.concatenate(triangles),
        used=np.unique(np.concatenate(triangles)),
        groups=np.concatenate(groups),
        skin_bones=np.concatenate(bones),
        skin_weights=np.concatenate(weights).astype(np.float32),
        bone_heads=bone_heads,
        heel_lift=SHOE_KINDS[person.shoes.kind].heel_lift,
    )


def posed_vertices(person_figure: Figure, transforms: Array) -> Array:
    """Linear blend skinning: transforms (J, 3, 4) of the bones -> (F, 3)."""
    blended = np.zeros((len(person_figure.vertices), 3, 4), np.float32)
    for k in range(person_figure.skin_bones.shape[1]):
        blended += person_figure.skin_weights[:, k, None, None] * transforms[person_figure.skin_bones[:, k]]
    moved = dot(blended[:, :, :3], person_figure.vertices[:, None, :])
    return moved + blended[:, :, 3]


def posed_joints(vertices: Array) -> Array:
    """Vertices (F, 3) of a figure, or of a body alone -> its 18 OpenPose joints (18, 3); the neck lies between the
    shoulders."""
    body = mesh()
    joints = np.zeros((18, 3), np.float32)
    joints[body.joint_numbers] = (vertices[body.joint_vertices] * body.joint_weights[..., None]).sum(1)
    joints[1] = (joints[2] + joints[5]) / 2
    return joints
