"""Clothes: what each garment is made of, which part of the body it covers, and how one is drawn at random.

Every covers_* function takes a Surface of N points and gives (N,) booleans. Heights are z in the rest pose (metres),
lengths along a limb run from 0 (shoulder, hip) to 1 (wrist, ankle).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from cfld.people.mesh import Array, Mask, Surface, smoothstep
from cfld.people.textiles import Color, Print, Textile, random_color, random_print, random_textile

WAIST = 0.27
SLEEVE_SEAM = 0.08  # along the arm


@dataclass(frozen=True)
class Top:
    """A T-shirt, blouse, tank top or the upper part of a dress."""

    fabric: Textile
    back: Textile | None  # of another cloth, or None: like the front
    sleeves: Textile | None
    sleeve: float  # length, 0 is sleeveless
    neckline: str  # crew, v, scoop, boat, turtle or strap
    hem: float  # height
    looseness: float  # 0 clings, 1 hangs straight
    trim: Color | None  # of neckline and cuffs
    front_print: Print | None
    back_print: Print | None


@dataclass(frozen=True)
class Jacket:
    """Worn over the top: open in front by `opening` metres, or buttoned up like a shirt if that is 0."""

    fabric: Textile
    sleeve: float
    hem: float
    looseness: float
    opening: float
    lapels: bool
    buttons: Color


@dataclass(frozen=True)
class Bottom:
    """Trousers, shorts, leggings or a skirt."""

    kind: str
    fabric: Textile
    back: Textile | None
    length: float  # of the legs
    hem: float  # height of a skirt's hem
    looseness: float
    flare: float  # how much wider at the hem, metres
    faded: bool
    belt: Color | None


@dataclass(frozen=True)
class Shoes:
    """A pair of shoes over bare feet or socks; SHOE_KINDS says how each kind is built."""

    kind: str
    upper: Color
    sole: Color
    accent: Color
    socks: Color | None


@dataclass(frozen=True)
class ShoeKind:
    """Sizes in metres, heel_lift in radians."""

    collar: float  # height of the upper at the heel
    instep: float  # height in the middle of the foot
    toe: float  # height of the toe cap
    sole: float
    width: float = 1.0
    shaft: float = 2.0  # the upper climbs the leg to this length along it; 2 is no shaft
    heel_lift: float = 0.0
    laces: bool = False


SHOE_KINDS = {
    "sneaker": ShoeKind(collar=0.085, instep=0.085, toe=0.052, sole=0.030, laces=True),
    "high-top": ShoeKind(collar=0.115, instep=0.100, toe=0.052, sole=0.028, shaft=0.95, laces=True),
    "oxford": ShoeKind(collar=0.072, instep=0.078, toe=0.042, sole=0.018, width=0.92, laces=True),
    "loafer": ShoeKind(collar=0.062, instep=0.060, toe=0.042, sole=0.018, width=0.94),
    "ballet flat": ShoeKind(collar=0.052, instep=0.026, toe=0.034, sole=0.010, width=0.9),
    "pump": ShoeKind(collar=0.055, instep=0.028, toe=0.034, sole=0.010, width=0.84, heel_lift=0.48),
    "ankle boot": ShoeKind(collar=0.110, instep=0.095, toe=0.050, sole=0.026, shaft=0.86),
    "heeled boot": ShoeKind(collar=0.110, instep=0.090, toe=0.042, sole=0.014, width=0.88, shaft=0.86, heel_lift=0.38),
    "tall boot": ShoeKind(collar=0.110, instep=0.095, toe=0.048, sole=0.024, shaft=0.58),
}


# ------------------------------------------------------------------------------------------------------------- coverage


def below_neckline(kind: str, s: Surface) -> Mask:
    """True on the torso below the edge of the cloth."""
    front = smoothstep(0.02, -0.08, s.y)
    across = np.abs(s.x)
    if kind == "turtle":
        return s.z < 0.775 + 0.05 * (1 - front)
    edge: Array = 0.755 - 0.055 * front + 0.9 * np.clip(across - 0.075, 0, 1)
    if kind == "v":
        edge = np.where(front > 0.5, np.minimum(edge, 0.58 + 2.0 * across), edge)
    elif kind == "scoop":
        edge = edge - 0.11 * front * np.clip(1 - (across / 0.11) ** 2, 0, 1)
    elif kind == "boat":
        edge = np.minimum(edge, 0.715 + 0.25 * np.clip(across - 0.05, 0, 1))
    elif kind == "strap":
        edge = np.where((across > 0.085) & (across < 0.125), 0.75, 0.61 - 0.03 * front)
    return s.z < edge


def covers_top(top: Top | Jacket, s: Surface) -> Mask:
    """Torso between neckline and hem, arms up to the cuff; without sleeves the cloth ends at the arm hole."""
    neckline = top.neckline if isinstance(top, Top) else "crew"
    arm_hole = 0.42 if top.sleeve == 0 else 0.5
    torso = (s.arm <= arm_hole) & below_neckline(neckline, s) & (s.z > top.hem) & (s.head < 0.93)
    return torso | ((s.arm > 0.5) & (s.along_arm < top.sleeve) & (top.sleeve > 0))


def jacket_edge(jacket: Jacket, s: Surface) -> Array:
    """How far from the middle the front begins (N,): wider towards hem and neck; a shirt opens below the chin."""
    if jacket.opening > 0:
        return jacket.opening * (1 + 0.6 * smoothstep(0.45, 0.1, s.z) + smoothstep(0.45, 0.75, s.z))
    return 0.9 * (s.z - 0.64)


def covers_jacket(jacket: Jacket, s: Surface) -> Mask:
    """Like a top, with the front cut open."""
    in_gap = (s.y < -0.02) & (s.arm <= 0.5) & (np.abs(s.x) < jacket_edge(jacket, s))
    return covers_top(jacket, s) & ~in_gap


def covers_bottom(bottom: Bottom, s: Surface) -> Mask:
    """Hips and legs down to the hem; of a skirt only the hips, its cone has triangles of its own."""
    below_waist = (s.z < WAIST) & (s.arm < 0.5)
    if bottom.kind == "skirt":
        return below_waist & (s.z > max(bottom.hem, -0.12))
    return below_waist & (s.along_leg < bottom.length)


def covers_skirt(bottom: Bottom, s: Surface) -> Mask:
    """The part of the skirt's cone that is there, its hem slightly wavy."""
    return (s.z > bottom.hem + 0.006 * np.sin(30 * s.x)) & (s.z < 0.285)


def covers_shaft(shoes: Shoes, s: Surface) -> Mask:
    """The leg inside a boot."""
    return (s.leg > 0.5) & (s.along_leg > SHOE_KINDS[shoes.kind].shaft)


def on_sleeve(s: Surface) -> Mask:
    """Beyond the seam where a sleeve is set in, a little down the arm."""
    return (s.arm > 0.5) & (s.along_arm > SLEEVE_SEAM)


def sleeve_coordinates(s: Surface) -> tuple[Array, Array]:
    """u, v (N,) in metres on a sleeve, unrolled from the angle round the arm, the seam below. v continues the chest's
    at the arm pit, so that stripes meet there when the arm hangs."""
    radius = np.interp(s.along_arm, [0, 0.2, 0.5, 0.8, 1.0], [0.062, 0.055, 0.044, 0.036, 0.03])
    angle = np.arctan2(s.outward * np.sign(s.x), s.frontward)
    return (angle * radius).astype(np.float32), 0.63 - 0.545 * s.along_arm


# ----------------------------------------------------------------------------------------------------------------- draw


def random_top(rng: Generator, female: bool) -> Top:
    """A random top."""
    fabric = random_textile(rng)
    if female:
        sleeve = float(rng.choice([0, 0.12, 0.38, 0.42, 0.75, 0.97], p=[0.17, 0.05, 0.22, 0.16, 0.1, 0.3]))
        neckline = str(
            rng.choice(["crew", "v", "scoop", "boat", "turtle", "strap"], p=[0.36, 0.2, 0.15, 0.1, 0.1, 0.09])
        )
        hem = float(rng.choice([0.3, 0.2, 0.12, 0.06], p=[0.08, 0.22, 0.4, 0.3]))
    else:
        sleeve = float(rng.choice([0, 0.35, 0.42, 0.75, 0.97], p=[0.05, 0.35, 0.2, 0.05, 0.35]))
        neckline = str(rng.choice(["crew", "v", "turtle"], p=[0.7, 0.22, 0.08]))
        hem = float(rng.choice([0.2, 0.12, 0.06], p=[0.1, 0.5, 0.4]))
    if neckline == "strap":
        sleeve = 0.0
    if neckline == "turtle":
        sleeve = max(sleeve, 0.42)
    plain = fabric.kind in ("solid", "melange", "horizontal stripes")
    front_print = random_print(rng, fabric.colors[0]) if plain and rng.random() < 0.5 else None
    return Top(
        fabric=fabric,
        back=random_textile(rng) if rng.random() < 0.09 else None,
        sleeves=random_textile(rng) if sleeve and rng.random() < 0.11 else None,
        sleeve=sleeve,
        neckline=neckline,
        hem=hem,
        looseness=float(rng.uniform(0.1, 0.9)),
        trim=random_color(rng) if rng.random() < 0.35 else None,
        front_print=front_print,
        back_print=random_print(rng, fabric.colors[0]) if front_print and rng.random() < 0.35 else None,
    )


def random_jacket(rng: Generator, open_front: bool) -> Jacket:
    """An open jacket, or a buttoned shirt."""
    kinds = ("solid", "denim", "melange", "plaid", "gingham", "vertical stripes", "herringbone", "camouflage")
    palette = str(rng.choice(["dark", "neutral", "denim", "earth", "vivid"]))
    return Jacket(
        fabric=random_textile(rng, kinds, palette),
        sleeve=0.97 if rng.random() < 0.8 else 0.45,
        hem=float(rng.uniform(0.02, 0.18)),
        looseness=float(rng.uniform(0.4, 1.0)),
        opening=float(rng.uniform(0.02, 0.07)) if open_front else 0.0,
        lapels=bool(rng.random() < 0.6),
        buttons=random_color(rng),
    )


def random_bottom(rng: Generator, female: bool) -> Bottom:
    """Trousers, shorts, leggings or a skirt."""
    kinds = ("solid", "denim", "melange", "plaid", "vertical stripes", "floral", "gingham", "camouflage")
    palette = str(rng.choice(["denim", "dark", "neutral", "earth", "vivid"], p=[0.35, 0.2, 0.25, 0.12, 0.08]))
    fabric = random_textile(rng, kinds, palette)
    if palette == "denim" and rng.random() < 0.6:
        fabric = replace(fabric, kind="denim")
    kind = str(
        rng.choice(
            ["trousers", "shorts", "skirt", "leggings"], p=[0.5, 0.13, 0.27, 0.1] if female else [0.82, 0.18, 0, 0]
        )
    )
    length = {"trousers": rng.uniform(0.86, 1.0), "shorts": rng.uniform(0.22, 0.52), "leggings": 0.95}.get(kind, 1.0)
    return Bottom(
        kind=kind,
        fabric=fabric,
        back=None,
        length=float(length),
        hem=float(rng.uniform(-0.55, -0.12)),
        looseness=0.0 if kind == "leggings" else float(rng.uniform(0.05, 0.9)),
        flare=float(rng.uniform(0, 0.03)) if rng.random() < 0.3 else 0.0,
        faded=bool(fabric.kind == "denim" and rng.random() < 0.6),
        belt=random_color(rng, "earth") if rng.random() < 0.25 else None,
    )


def random_dress(rng: Generator) -> tuple[Top, Bottom]:
    """A top and a skirt of the same cloth."""
    top = replace(random_top(rng, female=True), hem=0.24)
    skirt = Bottom(
        kind="skirt",
        fabric=top.fabric,
        back=top.back,
        length=1.0,
        hem=float(rng.uniform(-0.55, -0.1)),
        looseness=float(rng.uniform(0.0, 1.0)),
        flare=0.0,
        faded=False,
        belt=random_color(rng) if rng.random() < 0.4 else None,
    )
    return top, skirt


def random_shoes(rng: Generator, female: bool) -> Shoes:
    """A pair of shoes, with socks where they would be worn."""
    if female:
        odds = [0.25, 0.06, 0.06, 0.1, 0.15, 0.14, 0.09, 0.08, 0.07]
    else:
        odds = [0.4, 0.12, 0.18, 0.14, 0.0, 0.0, 0.14, 0.0, 0.02]
    kind = str(rng.choice(list(SHOE_KINDS), p=odds))
    upper = random_color(rng, str(rng.choice(["neutral", "dark", "earth", "vivid"], p=[0.35, 0.25, 0.2, 0.2])))
    rubber = kind in ("sneaker", "high-top")
    dark = random_color(rng, str(rng.choice(["dark", "earth"])))
    sole = (0.93, 0.93, 0.9) if rubber and rng.random() < 0.75 else dark
    socks = random_color(rng) if kind in ("sneaker", "high-top", "oxford") and rng.random() < 0.6 else None
    return Shoes(kind, upper, sole, accent=random_color(rng), socks=socks)
