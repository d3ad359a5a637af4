"""The photograph: camera, light and shadow, and the joints that can be seen.

Letters in shapes: F vertices of a figure, M visible points, H, W the picture, h, w the supersampled raster.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cfld.people.dress import NOISE_TILE, Figure, covers_long_hair, figure, posed_joints, posed_vertices
from cfld.people.garments import covers_skirt
from cfld.people.identity import Identity, Studio
from cfld.people.mesh import (
    EYE,
    LONG_HAIR,
    SKIN,
    SKIRT,
    STOOL,
    Array,
    Indices,
    Mask,
    Surface,
    dot,
    mesh,
    rotate,
    unit,
    vertex_normals,
)
from cfld.people.paint import BOTTOM, JACKET, TOP, paint
from cfld.people.pose import Pose, bone_transforms, turn
from cfld.people.raster import FAR, Fragments, box_blur, nearest, rasterize
from cfld.people.textiles import sample_tile, value_noise

DISTANCE = 5.5  # metres from the camera to the person
FRAME = 256, 176  # height and width of the frame that keypoints live in
SHADOW_SIZE, SHADOW_METRES = 224, 2.4

# How far behind the visible surface a joint may lie and still count as seen: joints are inside the body, nose and eyes
# on it.
DEPTH_OF_JOINT = np.full(18, 0.13)
DEPTH_OF_JOINT[[0, 14, 15]] = 0.035, 0.03, 0.03
DEPTH_OF_JOINT[[16, 17]] = 0.07
DEPTH_OF_JOINT[1] = 0.30
DEPTH_OF_JOINT[[2, 5, 8, 11]] = 0.20
NOSE, NECK, HIPS, KNEES = 0, 1, [8, 11], [9, 12]


@dataclass(frozen=True, eq=False)
class Rendered:
    """One photograph and what is known about it."""

    image: NDArray[np.uint8]  # (H, W, 3)
    keypoints: Array  # (18, 2) as (y, x) in the 256x176 frame, -1 if hidden or outside
    labels: NDArray[np.uint8]  # (H, W), numbers of paint.PARTS

    @property
    def annotation(self) -> NDArray[np.int64]:
        """The keypoints (18, 2) as DeepFashion's files give them: in whole pixels, -1 if hidden or outside."""
        seen = self.keypoints[:, :1] >= 0
        return np.where(seen, np.minimum(np.rint(self.keypoints), np.array(FRAME) - 1), -1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole looking along y at `centre`, nodding a little."""

    centre: Array  # (3,)
    rotation: NDArray  # (3, 3)
    focal: float  # pixels
    offset: tuple[float, float]  # of the picture, pixels

    def project(self, points: Array) -> tuple[Array, Array]:
        """points (N, 3) -> (N, 2) as x, y in pixels, y down; and their distance (N,)."""
        flat, depth = flatten(points, self.centre, self.rotation)
        return flat * np.float32(self.focal) + np.array(self.offset, np.float32), depth

    @property
    def towards(self) -> Array:
        """(3,) the direction from the scene to the camera."""
        return (np.array([0.0, -1.0, 0.0]) @ self.rotation).astype(np.float32)


def flatten(points: Array, centre: Array, rotation: NDArray) -> tuple[Array, Array]:
    """points (N, 3) -> (N, 2) on a plane at distance 1, y down; and their distance (N,)."""
    seen = rotate(points - centre, rotation)
    depth = seen[:, 1] + DISTANCE
    return np.stack([seen[:, 0], -seen[:, 2]], axis=1) / depth[:, None], depth


def frame(pose: Pose, vertices: Array, joints: Array, height: int, width: int) -> Camera:
    """The camera that fits the person (F, 3), with joints (18, 3), into the picture as the pose's framing asks."""
    rotation = turn((1, 0, 0), pose.camera_pitch)
    centre = vertices.mean(0)
    flat, _ = flatten(vertices, centre, rotation)
    joint, _ = flatten(joints, centre, rotation)
    left, top = flat.min(0)
    right, bottom = flat.max(0)
    hips, knees = joint[HIPS].mean(0), joint[KNEES].mean(0)
    if pose.framing == "full":
        focal = min(height * pose.fill / (bottom - top), 0.96 * width / (right - left))
        middle = (left + right) / 2
        down = height / 2 - focal * (top + bottom) / 2
    else:
        lowest = {
            "knee": joint[KNEES, 1].max() + 0.01,
            "half": 0.75 * hips[1] + 0.25 * knees[1],
            "bust": hips[1] - 0.01,
        }[pose.framing]
        focal = height * (pose.fill + 0.05) / (lowest - top)
        middle = (joint[NECK, 0] + hips[0]) / 2
        down = height * (1 - pose.fill) / 2 - focal * top
    return Camera(centre, rotation, float(focal), (float(width * (0.5 + pose.shift) - focal * middle), float(down)))


# ---------------------------------------------------------------------------------------------------------------- scene


def stool(pose: Pose, vertices: Array, pelvis: Array) -> tuple[Array, Indices]:
    """A box under a seated person: corners (20, 3), each face with its own four, and triangles (10, 3)."""
    floor, seat = vertices[:, 2].min(), pelvis[2] - 0.135
    x, y = 0.19, 0.17
    ring = [(-x, -y), (x, -y), (x, y), (-x, y)]
    faces = [[(*ring[i], 0), (*ring[(i + 1) % 4], 0), (*ring[(i + 1) % 4], 1), (*ring[i], 1)] for i in range(4)]
    faces.append([(*corner, 1) for corner in ring])
    corners = np.array(faces, np.float32).reshape(-1, 3)
    corners[:, 2] = floor + corners[:, 2] * (seat - floor)
    yaw = turn((0, 0, 1), pose.yaw)
    corners[:, :2] = rotate(corners + np.array([0, 0.02, 0], np.float32), yaw)[:, :2] + pelvis[:2]
    first = 4 * np.arange(5)[:, None]
    return corners, np.concatenate([first + np.array([0, 1, 2]), first + np.array([0, 2, 3])])


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything solid, posed."""

    vertices: Array  # (F, 3)
    table: Array  # (F, 15)
    triangles: Indices  # (T, 3)
    groups: NDArray[np.uint8]  # (T,)
    joints: Array  # (18, 3)
    person: Indices  # numbers of the vertices that decide the framing


def pose_figure(body: Figure, pose: Pose) -> Scene:
    """A figure in a pose, on a stool if it sits."""
    transforms = bone_transforms(pose, body.bone_heads, body.heel_lift)
    vertices, table = posed_vertices(body, transforms), body.table
    triangles, groups = body.triangles, body.groups
    person = body.used
    joints = posed_joints(vertices)
    if pose.seated:
        bone = mesh().bone_index["pelvis"]
        pelvis = transforms[bone, :, :3] @ body.bone_heads[bone] + transforms[bone, :, 3]
        corners, faces = stool(pose, vertices[person], pelvis)
        triangles = np.concatenate([triangles, faces + len(vertices)])
        groups = np.concatenate([groups, np.full(len(faces), STOOL, np.uint8)])
        vertices = np.concatenate([vertices, corners])
        table = np.concatenate([table, np.zeros((len(corners), table.shape[1]), np.float32)])
    return Scene(vertices, table, triangles, groups, joints, person)


def cut_away(person: Identity, scene: Scene, fragments: Fragments, strands: Array) -> Fragments:
    """Drop the fragments of the skirt below its hem and of long hair beyond its ends."""
    groups = scene.groups[fragments.triangle]
    keep = np.ones(len(groups), bool)
    for group in (SKIRT, LONG_HAIR):
        rows = np.flatnonzero(groups == group)
        if len(rows):
            s = Surface(fragments.select(rows).interpolate(scene.table, scene.triangles))
            keep[rows] = covers_skirt(person.bottom, s) if group == SKIRT else covers_long_hair(person.hair, s, strands)
    return fragments.select(keep)


# ---------------------------------------------------------------------------------------------------------------- light


def lamp_direction(studio: Studio) -> Array:
    """(3,) towards the lamp."""
    azimuth, height = studio.lamp
    x, y = np.sin(azimuth) * np.cos(height), -np.cos(azimuth) * np.cos(height)
    return np.array([x, y, np.sin(height)], np.float32)


def lamp_light(person: Identity, scene: Scene, points: Array, centre: Array) -> Array:
    """How much of the lamp reaches the visible points (M, 3) -> (M,) in [0, 1], by a shadow map with soft edges."""
    lamp, (azimuth, _) = lamp_direction(person.studio), person.studio.lamp
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0], np.float32)
    axes = np.stack([right, np.cross(right, lamp), -lamp]).astype(np.float32)
    scale = np.float32(SHADOW_SIZE / SHADOW_METRES)
    seen = rotate(scene.vertices - centre, axes)
    corners = scene.table[scene.triangles[:, 0]]
    worn = (scene.groups != SKIRT) | (corners[:, 2] > person.bottom.hem)
    worn &= (scene.groups != LONG_HAIR) | ((corners[:, 2] > person.hair.length) & (corners[:, 1] > -0.06))
    worn &= scene.groups != EYE
    flat = seen[:, :2] * scale + SHADOW_SIZE / 2
    blockers = rasterize(flat, seen[:, 2], scene.triangles[worn], SHADOW_SIZE, SHADOW_SIZE)
    nearest_depth = np.full(SHADOW_SIZE * SHADOW_SIZE, FAR, np.float32)
    np.minimum.at(nearest_depth, blockers.pixel, blockers.depth)
    receiver = rotate(points - centre, axes)
    u, v = receiver[:, 0] * scale + SHADOW_SIZE / 2, receiver[:, 1] * scale + SHADOW_SIZE / 2
    light = np.zeros(len(points), np.float32)
    for du, dv in ((-0.9, -0.45), (0.45, -0.9), (0.9, 0.45), (-0.45, 0.9)):
        column = np.clip((u + du).astype(np.int64), 0, SHADOW_SIZE - 1)
        row = np.clip((v + dv).astype(np.int64), 0, SHADOW_SIZE - 1)
        light += 0.25 * (nearest_depth[row * SHADOW_SIZE + column] > receiver[:, 2] - 0.016)
    return light


def occlusion(depth: Array, height: int, supersample: int) -> Array:
    """Ambient light lost in hollows: where the surroundings are nearer. depth (h, w) -> (h, w) in [0, 0.7]."""
    near = np.minimum(depth[::supersample, ::supersample], DISTANCE + 0.8)
    lost = np.zeros_like(near)
    for radius, strength in ((height // 64, 9.0), (height // 26, 4.0)):
        lost += np.clip(strength * (near - box_blur(near, max(radius, 1))), 0, 0.35)
    return lost.repeat(supersample, 0).repeat(supersample, 1)


def creases(s: Surface, cloth: Mask, creased: Array, fine: Array) -> Array:
    """How cloth tilts the normals (M, 3): folds everywhere, stronger at elbows, knees, waist and hips."""
    folds = sample_tile(creased, 1.6 * s.x + 0.7 * s.z, 2.2 * s.z + s.y)
    folds += 0.6 * sample_tile(fine, 4 * s.outward, 3 * s.z)
    torso = s.arm < 0.4
    bent = np.exp(-(((s.along_arm - 0.52) / 0.12) ** 2)) * (s.arm > 0.5)
    bent += np.exp(-(((s.along_leg - 0.5) / 0.1) ** 2)) * ((s.leg > 0.6) & (s.z < -0.1))
    bent += (0.6 * np.exp(-(((s.z - 0.25) / 0.07) ** 2)) + 0.5 * np.exp(-(((s.z - 0.08) / 0.06) ** 2))) * torso
    strength = cloth * (0.05 + 0.17 * np.clip(bent, 0, 1)) * folds
    return strength[:, None] * np.array([0.5, 0.2, 0.8], np.float32)


def backdrop(person: Identity, pose: Pose, scene: Scene, camera: Camera, height: int, width: int) -> Array:
    """The empty studio (h, w, 3), a little darker towards the edges, with a soft shadow on the floor."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    fall = 1 - 0.05 * (y / height - 0.4) ** 2 - 0.03 * (x / width - 0.5) ** 2
    image = fall[..., None] * np.array(person.studio.backdrop, np.float32)
    if pose.framing != "full" or not person.studio.floor_shadow:
        return image
    floor = scene.vertices[scene.person, 2].min()
    above = scene.vertices[scene.person, 2] - floor
    low = scene.vertices[scene.person][above < 0.5] * np.array([1, 1, 0], np.float32)
    (px, py), weight = camera.project(low + np.array([0, 0, floor], np.float32))[0].T, np.exp(-9 * above[above < 0.5])
    inside = (px >= 0) & (px < width) & (py >= 0) & (py < height)
    cell = 4  # the shadow is soft: a quarter of the resolution is enough
    rows, columns = (py[inside] / cell).astype(np.int64), (px[inside] / cell).astype(np.int64)
    small_height, small_width = -(-height // cell), -(-width // cell)
    total = np.bincount(rows * small_width + columns, weight[inside], small_height * small_width)
    radius = max(round(height / 512 * 2.5), 1)
    shadow = box_blur(box_blur(total.reshape(small_height, small_width).astype(np.float32), radius), radius)
    shadow = 0.45 * np.clip(shadow / (shadow.max() + 1e-6), 0, 1) ** 0.7
    resized = Image.fromarray(shadow.astype(np.float32)).resize(
        (small_width * cell, small_height * cell), Image.Resampling.BILINEAR
    )
    return image * (1 - np.asarray(resized)[:height, :width, None])


# -------------------------------------------------------------------------------------------------------------- picture


def visible_keypoints(scene: Scene, camera: Camera, depth: Array, supersample: int) -> Array:
    """The joints (18, 2) as (y, x) in the frame, -1 where outside or hidden. depth (h, w), camera in its pixels."""
    places, distances = camera.project(scene.joints)
    height, width = depth.shape
    keypoints = np.full((18, 2), -1, np.float32)
    for joint, ((x, y), distance) in enumerate(zip(places, distances, strict=True)):
        if not (0 <= x < width and 0 <= y < height):
            continue
        column, row = int(x), int(y)
        window = depth[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        if distance - np.median(window) < DEPTH_OF_JOINT[joint]:
            keypoints[joint] = y * FRAME[0] / height, x * FRAME[1] / width
    return keypoints


def render(person: Identity, pose: Pose, height: int = 256, width: int = 176, supersample: int = 2) -> Rendered:
    """Photograph a person in a pose. The same arguments give the same bytes."""
    rng = np.random.default_rng(np.random.SeedSequence(person.seed))
    creased, fine = value_noise(rng, NOISE_TILE, 5), value_noise(rng, NOISE_TILE, 9)
    strands = value_noise(rng, NOISE_TILE, 24, octaves=1)
    h, w = height * supersample, width * supersample

    # What is in front at every pixel.
    scene = pose_figure(figure(person), pose)
    camera = frame(pose, scene.vertices[scene.person], scene.joints, h, w)
    flat, distance = camera.project(scene.vertices)
    one_sided = (scene.groups == SKIN) | (scene.groups == EYE)
    fragments = rasterize(flat, distance, scene.triangles, h, w, cull=one_sided)
    fragments, depth = nearest(cut_away(person, scene, fragments, strands), h, w)
    depth = depth.reshape(h, w)

    # What it is made of.
    s = Surface(fragments.interpolate(scene.table, scene.triangles))
    canvas = paint(person, s, scene.groups[fragments.triangle], strands, fine, pixel=DISTANCE / camera.focal)

    # How the light falls: from everywhere (more from above and from the camera), from the lamp, and as a highlight.
    points = fragments.interpolate(scene.vertices, scene.triangles)
    normals = fragments.interpolate(vertex_normals(scene.vertices, scene.triangles), scene.triangles)
    cloth = np.isin(canvas.label, (TOP, JACKET, BOTTOM))
    normals = unit(normals)
    # A point asks for light from a little above its surface, or it would lie in its own shadow.
    lit = lamp_light(person, scene, points + 0.018 * normals, camera.centre)
    normals = unit(normals + creases(s, cloth, creased, fine))
    lamp, towards = lamp_direction(person.studio), camera.towards
    dark = 1 - 0.75 * occlusion(depth, height, supersample).ravel()[fragments.pixel]
    facing_lamp, facing_camera = (np.clip(dot(normals, way), 0, 1) for way in (lamp, towards))
    ambient = 0.40 + 0.07 * normals[:, 2] + 0.20 * facing_camera
    highlight = np.clip(dot(normals, unit(lamp + towards)), 0, 1) ** 18 * lit * canvas.gloss
    shaded = canvas.color * ((ambient + 0.46 * facing_lamp * lit) * dark)[:, None] + 0.6 * highlight[:, None]

    picture = backdrop(person, pose, scene, camera, h, w).reshape(-1, 3)
    picture[fragments.pixel] = shaded
    image = Image.fromarray((np.clip(picture, 0, 1).reshape(h, w, 3) * 255 + 0.5).astype(np.uint8))
    if supersample > 1:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    labels = np.zeros(h * w, np.uint8)
    labels[fragments.pixel] = canvas.label
    labels = labels.reshape(h, w)[supersample // 2 :: supersample, supersample // 2 :: supersample]
    return Rendered(np.asarray(image), visible_keypoints(scene, camera, depth, supersample), labels)
