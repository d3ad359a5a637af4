"""What colour everything is, before light falls on it: skin, face, hair, cloth, shoes.

Letters in shapes: M visible points. A Canvas is painted from the skin outwards, each layer over the one before.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfld.people.dress import covers_scalp
from cfld.people.garments import (
    SHOE_KINDS,
    SLEEVE_SEAM,
    Bottom,
    Jacket,
    Shoes,
    Top,
    below_neckline,
    covers_bottom,
    covers_jacket,
    covers_shaft,
    covers_top,
    jacket_edge,
    on_sleeve,
    sleeve_coordinates,
)
from cfld.people.identity import Face, Hair, Identity
from cfld.people.mesh import (
    EYE,
    KNOT,
    LONG_HAIR,
    SHOE,
    SKIN,
    SKIRT,
    STOOL,
    Array,
    Mask,
    Surface,
    seam_depth,
    smoothstep,
)
from cfld.people.textiles import Color, Print, Textile, cloth_color, draw_print, sample_tile

PARTS = ("background", "skin", "face", "eyes", "hair", "top", "jacket", "bottom", "shoes")
BACKGROUND, BARE, FACE, EYES, HAIRS, TOP, JACKET, BOTTOM, SHOES = range(len(PARTS))

EYE_HEIGHT, EYE_OFFSET = 0.908, 0.0325


@dataclass(eq=False)
class Canvas:
    """What is painted, point by point."""

    color: Array  # (M, 3) in [0, 1]
    label: Array  # (M,) uint8, numbers of PARTS
    gloss: Array  # (M,)

    def fill(self, where: Mask, color: Array | Color, label: int | None = None, gloss: float = 0.05) -> None:
        """Paint opaque; with a label the part changes too."""
        self.color[where] = color
        if label is not None:
            self.label[where] = label
            self.gloss[where] = gloss

    def glaze(self, where: Mask, color: Array | Color, opacity: float | Array = 1.0) -> None:
        """Let a colour (3,) or (K, 3) cover what is there; opacity is one number or (K,), K the points where."""
        share = np.broadcast_to(np.asarray(opacity, np.float32), (int(where.sum()),))[:, None]
        self.color[where] += (np.asarray(color, np.float32) - self.color[where]) * share

    def darken(self, where: Mask, factor: float) -> None:
        """A seam, an edge, a fold."""
        self.color[where] *= factor


def near(value: Array, target: float | Array, width: float) -> Mask:
    """Within width of target."""
    return np.abs(value - target) < width


# ----------------------------------------------------------------------------------------------------------------- head


def paint_face(canvas: Canvas, face: Face, hair: Hair, s: Surface, on_face: Mask, strands: Array) -> None:
    """Cheeks, lips, beard, brows, lids and glasses on the points where on_face (M,). strands: noise tile (n, n)."""
    hair_color = np.array(hair.color, np.float32)
    across = np.abs(s.x)
    cheek = np.exp(-(((across - 0.045) / 0.022) ** 2 + ((s.z - 0.865) / 0.02) ** 2)) * (s.y < -0.09) * on_face
    canvas.color += cheek[:, None] * np.array([0.06, -0.02, -0.02], np.float32)
    lips = on_face & (s.lips > 0)
    canvas.glaze(lips, face.lips, np.clip(1.3 * s.lips[lips], 0, 1))
    if face.beard:
        growth = beard_growth(s) * (1 - s.lips)
        beard = on_face & (growth > 0)
        rough = 1 + 0.2 * sample_tile(strands, 3 * s.x[beard], 3 * s.z[beard])
        canvas.glaze(beard, 0.7 * hair_color, 0.8 * face.beard * np.clip(growth[beard] * rough, 0, 1))
    brow = on_face & near(s.z, 0.9345 - 0.25 * np.abs(across - 0.035), 0.0045) & near(across, 0.034, 0.022)
    canvas.glaze(brow & (s.y < -0.08), 0.8 * hair_color, 0.85)
    lid = np.sqrt(((across - EYE_OFFSET) / 0.021) ** 2 + ((s.z - EYE_HEIGHT) / 0.0105) ** 2)
    canvas.darken(on_face & (lid < 1.12) & (s.y < -0.1), 0.65)
    if face.glasses:
        ring = np.sqrt(((across - 0.034) / 0.029) ** 2 + ((s.z - 0.905) / 0.021) ** 2)
        frame = near(ring, 1, 0.12) & (s.y < -0.09)
        canvas.fill(on_face & (frame | (near(s.z, 0.912, 0.003) & (across > 0.06) & (s.y < -0.05))), (0.08, 0.08, 0.08))


def beard_growth(s: Surface) -> Array:
    """How dense a beard is (M,) in [0, 1]: jaw, chin and a moustache, thinning out upwards and to the ears."""
    across = np.abs(s.x)
    jaw = smoothstep(0.872, 0.848, s.z + 0.35 * (s.y + 0.12)) * smoothstep(-0.03, -0.05, s.y)
    mouth = smoothstep(1.25, 0.9, np.sqrt((across / 0.031) ** 2 + ((s.z - 0.836) / 0.022) ** 2))
    moustache = smoothstep(0.034, 0.024, across) * smoothstep(0.007, 0.004, np.abs(s.z - 0.8535)) * (s.y < -0.1)
    return np.maximum(jaw * (1 - mouth), moustache)


def paint_eyes(canvas: Canvas, face: Face, s: Surface, where: Mask) -> None:
    """White, iris and pupil."""
    canvas.fill(where, (0.93, 0.92, 0.9), EYES, gloss=0.4)
    distance = np.hypot(np.abs(s.x) - EYE_OFFSET, s.z - EYE_HEIGHT)
    canvas.fill(where & (distance < 0.0068), face.eyes)
    canvas.fill(where & (distance < 0.003), (0.03, 0.03, 0.03))


def paint_hair(canvas: Canvas, person: Identity, s: Surface, where: Mask, strands: Array) -> None:
    """Strands that run down the head; a shaved head lets the skin through."""
    style = person.hair.style
    x, y, z = s.x[where], s.y[where], s.z[where]
    if style == "afro":
        texture = sample_tile(strands, 4 * np.arctan2(x, y), 9 * z)
    else:
        texture = sample_tile(strands, 1.3 * np.arctan2(x, y), 0.6 * z)
    color = np.array(person.hair.color, np.float32) * (1 + 0.28 * texture)[:, None]
    if style == "buzz":
        color = 0.6 * color + 0.4 * np.array(person.skin, np.float32)
    canvas.fill(where, color, HAIRS, gloss=0.12 if style in ("afro", "buzz") else 0.3)


# ---------------------------------------------------------------------------------------------------------------- cloth


def cut(
    canvas: Canvas,
    s: Surface,
    where: Mask,
    cloths: tuple[Textile, Textile, Textile],
    label: int,
    pixel: float,
) -> None:
    """Cover points with cloth: (front, back, sleeves), each on its own flat panel. pixel: size of a pixel, metres."""
    sleeve = where & on_sleeve(s)
    behind = where & ~sleeve & (s.y > seam_depth(s.z))
    before = where & ~sleeve & ~behind
    front, back, sleeves = cloths
    canvas.fill(before, cloth_color(front, s.front_u[before], s.front_v[before], pixel), label)
    canvas.fill(behind, cloth_color(back, s.back_u[behind], s.back_v[behind], pixel), label)
    u, v = sleeve_coordinates(s)
    canvas.fill(sleeve, cloth_color(sleeves, u[sleeve], v[sleeve], pixel), label)


def stamp(canvas: Canvas, picture: Print, u: Array, v: Array, where: Mask) -> None:
    """Print a picture 22 cm wide on the chest or back, where u, v (M,) are on the panel in metres."""
    side, centre = 0.22, 0.5
    where = where & (np.abs(u) < side / 2) & (np.abs(v - centre) < side / 2)
    pixels = sample_tile(draw_print(picture), 0.5 + 0.98 * u[where] / side, 0.5 - 0.98 * (v[where] - centre) / side)
    canvas.glaze(where, pixels[:, :3], pixels[:, 3])


def paint_top(canvas: Canvas, top: Top, s: Surface, where: Mask, pixel: float) -> None:
    """Cloth, prints, trim and seams of a top."""
    cut(canvas, s, where, (top.fabric, top.back or top.fabric, top.sleeves or top.fabric), TOP, pixel)
    on_arm = s.arm > 0.5
    behind = s.y > seam_depth(s.z)
    if top.front_print:
        stamp(canvas, top.front_print, s.front_u, s.front_v, where & ~on_arm & ~behind)
    if top.back_print:
        stamp(canvas, top.back_print, s.back_u, s.back_v, where & ~on_arm & behind)
    raised = s.raised(0.018)
    collar = where & ~on_arm & ~below_neckline(top.neckline, raised)
    cuff = where & on_arm & (s.along_arm > top.sleeve - 0.035)
    if top.trim:
        canvas.fill(collar | cuff, top.trim)
    else:
        canvas.darken(where & ~on_arm & ~below_neckline(top.neckline, s.raised(0.006)), 0.8)
        canvas.darken(where & on_arm & (s.along_arm > top.sleeve - 0.012), 0.85)
    canvas.darken(where & near(s.z, top.hem + 0.008, 0.003) & ~on_arm, 0.85)
    if top.sleeve:
        canvas.darken(where & (s.arm > 0.5) & near(s.along_arm, SLEEVE_SEAM, 0.006), 0.85)


def paint_jacket(canvas: Canvas, jacket: Jacket, s: Surface, where: Mask, pixel: float) -> None:
    """Cloth, lapels, edges, buttons and cuffs."""
    cut(canvas, s, where, (jacket.fabric,) * 3, JACKET, pixel)
    across = np.abs(s.x)
    front = where & (s.y < -0.02) & (s.arm <= 0.5)
    if jacket.opening:
        edge = jacket_edge(jacket, s)
        if jacket.lapels:
            lapel = edge + 0.045 * smoothstep(0.42, 0.6, s.z)
            canvas.darken(front & (across < lapel) & (s.z > 0.42), 0.82)
            canvas.darken(front & near(across, lapel, 0.004) & (s.z > 0.42), 0.6)
        canvas.darken(front & (across < edge + 0.006), 0.7)
    else:
        canvas.darken(front & near(across, 0.014, 0.002), 0.8)
        canvas.fill(front & (across < 0.006) & near(11 * s.z % 1, 0.5, 0.07), jacket.buttons)
        collar = where & (s.arm <= 0.5) & (s.z > 0.70 + 0.03 * smoothstep(0.02, -0.08, s.y))
        canvas.darken(collar, 0.86)
    on_arm = where & (s.arm > 0.5)
    canvas.darken(on_arm & (s.along_arm > jacket.sleeve - 0.04), 0.85)
    canvas.darken(on_arm & near(s.along_arm, SLEEVE_SEAM, 0.006), 0.8)
    canvas.darken(where & near(s.z, jacket.hem + 0.01, 0.004) & (s.arm <= 0.5), 0.8)


def paint_bottom(canvas: Canvas, bottom: Bottom, s: Surface, where: Mask, pixel: float) -> None:
    """Cloth, and for trousers what tailors add: side seams, fly, pockets, hems; denim may be faded on the thighs."""
    cut(canvas, s, where, (bottom.fabric, bottom.back or bottom.fabric, bottom.fabric), BOTTOM, pixel)
    if bottom.kind == "skirt":
        return
    front = s.y < seam_depth(s.z)
    across = np.abs(s.x)
    if bottom.faded:
        thigh = np.exp(-((s.outward / 0.045) ** 2)) * smoothstep(-0.45, -0.1, s.z) * front
        canvas.color[where] *= (1 + 0.45 * thigh[where])[:, None]
    if bottom.kind != "leggings":
        canvas.darken(where & near(s.y, seam_depth(s.z), 0.004) & (s.leg > 0.6), 0.82)
        canvas.darken(where & front & (across < 0.004) & (s.z > 0.1), 0.7)
        rim = near(across, 0.032, 0.003) | near(across, 0.118, 0.003)
        patch = (near(across, 0.075, 0.045) & near(s.z, 0.16, 0.003)) | (rim & (s.z < 0.16) & (s.z > 0.07))
        canvas.darken(where & ~front & patch, 0.75)
        canvas.darken(where & front & near(s.z, 0.2 - 0.6 * (across - 0.07), 0.004) & (across > 0.06), 0.75)
    canvas.darken(where & (s.along_leg > bottom.length - 0.012), 0.85)


# ---------------------------------------------------------------------------------------------------------------- shoes


def paint_shoes(canvas: Canvas, shoes: Shoes, s: Surface, where: Mask) -> None:
    """A shoe by its own coordinates: s.x across (-1 inside, 1 outside), s.y from heel (0) to toe (1), s.z height."""
    kind = SHOE_KINDS[shoes.kind]
    across, along, height = s.x, s.y, s.z
    canvas.fill(where, shoes.upper, SHOES, gloss=0.12 if shoes.kind in ("sneaker", "high-top") else 0.45)
    lined = where & (np.abs(across) < 0.93)  # the upper's roof, near the middle line
    if shoes.kind in ("sneaker", "high-top"):
        canvas.darken(where & (along > 0.8), 0.9)
        stripe = where & (np.abs(across) > 0.6) & near(along - 2.2 * height, 0.28, 0.05)
        canvas.fill(stripe, shoes.accent)
        canvas.fill(where & (along < 0.1) & (height > 0.6 * kind.collar), shoes.accent)
    if shoes.kind in ("oxford", "ankle boot"):
        canvas.darken(where & near(along, 0.76, 0.012), 0.7)
    if shoes.kind == "loafer":
        canvas.darken(where & near(along, 0.58, 0.025), 0.75)
    if shoes.kind in ("ballet flat", "pump"):
        canvas.fill(lined & near(along, 0.66, 0.012), shoes.accent)
    if kind.laces:
        tongue = lined & (np.abs(across) < 0.36) & (along > 0.36) & (along < 0.68)
        canvas.darken(tongue, 0.75)
        white = (0.9, 0.9, 0.88) if sum(shoes.upper) < 1.9 else (0.25, 0.25, 0.27)
        canvas.fill(tongue & (along * 18 % 1 < 0.4), white)
    canvas.fill(where & (height <= kind.sole), shoes.sole)
    canvas.darken(where & near(height, kind.sole, 0.0025), 0.7)


# --------------------------------------------------------------------------------------------------------------- people


def paint(
    person: Identity, s: Surface, groups: NDArray[np.uint8], strands: Array, blotches: Array, pixel: float
) -> Canvas:
    """Paint M points: s their Surface, groups (M,) what their triangles belong to, strands and blotches noise tiles
    (n, n), pixel the size of a pixel in metres."""
    count = len(groups)
    skin = np.array(person.skin, np.float32) * (1 + 0.03 * sample_tile(blotches, 3 * s.x, 3 * s.z))[:, None]
    canvas = Canvas(skin.astype(np.float32), np.full(count, BARE, np.uint8), np.full(count, 0.18, np.float32))
    on_body = groups == SKIN
    on_face = on_body & (s.head > 0.85) & (s.z > 0.79)
    canvas.label[on_face] = FACE
    if on_face.any():
        paint_face(canvas, person.face, person.hair, s, on_face, strands)
        paint_eyes(canvas, person.face, s, groups == EYE)
    scalp = on_body & covers_scalp(person.hair, s) & (person.hair.style != "bald")
    paint_hair(canvas, person, s, scalp | (groups == LONG_HAIR) | (groups == KNOT), strands)

    bottom, top, jacket, shoes = person.bottom, person.top, person.jacket, person.shoes
    if shoes.socks:
        canvas.fill(on_body & (s.leg > 0.5) & (s.along_leg > 0.85), shoes.socks, SHOES)
    canvas.fill(on_body & covers_shaft(shoes, s), shoes.upper, SHOES, gloss=0.4)
    in_bottom = (on_body & covers_bottom(bottom, s)) | (groups == SKIRT)
    if SHOE_KINDS[shoes.kind].shaft < 0.8:  # tall boots are worn over trousers
        in_bottom &= ~(on_body & covers_shaft(shoes, s))
    paint_bottom(canvas, bottom, s, in_bottom, pixel)
    in_top = on_body & covers_top(top, s)
    paint_top(canvas, top, s, in_top, pixel)
    if bottom.belt:
        canvas.fill(
            (in_bottom | in_top if person.dress else in_bottom & ~in_top) & near(s.z, 0.255, 0.016), bottom.belt
        )
    if jacket:
        in_jacket = on_body & covers_jacket(jacket, s)
        beside = in_top & ~in_jacket & (s.arm <= 0.5) & (np.abs(s.x) > jacket.opening - 0.008) & (s.y < -0.02)
        canvas.darken(beside, 0.75)
        paint_jacket(canvas, jacket, s, in_jacket, pixel)
    shade_skin_below(canvas, person, s, on_body)
    paint_shoes(canvas, shoes, s, groups == SHOE)
    canvas.fill(groups == STOOL, 0.8 * np.array(person.studio.backdrop), BACKGROUND, gloss=0.02)
    return canvas


def shade_skin_below(canvas: Canvas, person: Identity, s: Surface, on_body: Mask) -> None:
    """Draw the line of shadow below cuffs and hems on the skin, which gives cloth its thickness."""
    bare = on_body & (canvas.label == BARE)
    outer = person.jacket or person.top
    if outer.sleeve:
        canvas.darken(bare & (s.arm > 0.5) & near(s.along_arm, outer.sleeve + 0.012, 0.012), 0.72)
    if person.bottom.kind != "skirt":
        canvas.darken(bare & (s.leg > 0.5) & near(s.along_leg, person.bottom.length + 0.008, 0.008), 0.72)
