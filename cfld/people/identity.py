"""A person: body, face, hair, clothes and the studio they are photographed in, drawn from one integer.

An Identity is a tree of frozen values: equal identities look the same, and dataclasses.replace puts anyone in other
clothes. Nothing here is an array or depends on how the person is rendered.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from cfld.people.garments import (
    SHOE_KINDS,
    Bottom,
    Jacket,
    Shoes,
    Top,
    random_bottom,
    random_dress,
    random_jacket,
    random_shoes,
    random_top,
)
from cfld.people.mesh import Array, mesh
from cfld.people.textiles import WEAVES, Color, Textile

SKIN_TONES = ((0.97, 0.83, 0.74), (0.91, 0.73, 0.60), (0.78, 0.57, 0.42), (0.56, 0.37, 0.26), (0.33, 0.21, 0.15))
HAIR_COLORS = (  # black, dark brown, brown, light brown, blond, red, grey
    (0.06, 0.05, 0.05),
    (0.14, 0.09, 0.06),
    (0.28, 0.17, 0.10),
    (0.48, 0.32, 0.17),
    (0.75, 0.58, 0.34),
    (0.42, 0.16, 0.08),
    (0.60, 0.60, 0.62),
)
EYE_COLORS = ((0.25, 0.15, 0.08), (0.12, 0.08, 0.05), (0.25, 0.4, 0.55), (0.3, 0.42, 0.28))
FALLING_HAIR = ("long", "shoulder", "bob")  # styles that need a surface of their own

IDENTITY, POSE = range(2)  # what a seed is used for; see stream


@dataclass(frozen=True)
class Hair:
    style: str  # long, shoulder, bob, pony, bun, short, tall, buzz, afro or bald
    color: Color
    length: float  # height of the ends of long hair, rest pose
    parting: float  # x of the parting, metres


@dataclass(frozen=True)
class Face:
    eyes: Color
    lips: Color
    beard: float  # 0 is shaved
    glasses: bool


@dataclass(frozen=True)
class Studio:
    """Where someone's photos are taken: a plain backdrop and one lamp."""

    backdrop: Color
    lamp: tuple[float, float]  # azimuth and height above the horizon, radians
    floor_shadow: bool


@dataclass(frozen=True)
class Identity:
    seed: int  # also decides creases of cloth and strands of hair
    female: bool
    shape: tuple[float, ...]  # coefficients of the mesh's shape components
    skin: Color
    hair: Hair
    face: Face
    top: Top
    jacket: Jacket | None
    bottom: Bottom
    dress: bool  # top and bottom are one garment
    shoes: Shoes
    studio: Studio


def stream(seed: int, purpose: int, index: int = 0) -> Generator:
    """The random numbers of one purpose of one seed, independent of its other purposes. (Numpy pads keys with zeros:
    those of purpose 0 and index 0 are default_rng(seed)'s, from which the noise of cloth is drawn, too.)"""
    return np.random.default_rng(np.random.SeedSequence([seed, purpose, index]))


@functools.cache
def usual_bodies(female: bool) -> Array:
    """The examples (N, S) of one sex that are between 1.45 and 2.05 metres tall."""
    body = mesh()
    sole, crown = body.rest[:, 2].argmin(), body.rest[:, 2].argmax()
    growth = body.components[:, crown, 2] - body.components[:, sole, 2]
    height = body.rest[crown, 2] - body.rest[sole, 2] + (body.examples * growth).sum(1)
    return body.examples[(body.female == female) & (height > 1.45) & (height < 2.05)]


def random_shape(rng: Generator, female: bool) -> tuple[float, ...]:
    """A mixture of two example bodies."""
    examples = usual_bodies(female)
    first, second = examples[rng.choice(len(examples), 2)]
    share = rng.random()
    return tuple(float(value) for value in first * share + second * (1 - share))


def scaled(color: Color, factors: Color | float) -> Color:
    """A colour times one factor, or one a channel."""
    red, green, blue = np.array(color) * np.array(factors)
    return float(red), float(green), float(blue)


def random_skin(rng: Generator) -> tuple[float, Color]:
    """A tone from 0 (fair) to 1 (dark), and its colour."""
    tone = rng.random()
    position = tone * (len(SKIN_TONES) - 1)
    channels = np.array(SKIN_TONES).T
    red, green, blue = (
        np.interp(position, range(len(SKIN_TONES)), channel) + rng.normal(0, 0.012) for channel in channels
    )
    return tone, (float(red), float(green), float(blue))


def random_hair(rng: Generator, female: bool, tone: float) -> Hair:
    """Hair; people with darker skin mostly have darker hair."""
    odds = [0.3, 0.25, 0.17, 0.1, 0.1, 0.05, 0.03] if tone < 0.6 else [0.75, 0.2, 0.03, 0, 0.01, 0, 0.01]
    color = scaled(HAIR_COLORS[rng.choice(len(HAIR_COLORS), p=odds)], rng.uniform(0.8, 1.15))
    curly = 0.25 if tone > 0.7 else 0.02
    if rng.random() < curly:
        style = "afro"
    elif female:
        style = str(
            rng.choice(["long", "shoulder", "bob", "pony", "bun", "short"], p=[0.27, 0.18, 0.18, 0.17, 0.13, 0.07])
        )
    else:
        styles = ["short", "tall", "buzz", "bald", "bun", "bob"]
        style = str(rng.choice(styles, p=[0.5, 0.18, 0.17, 0.06, 0.04, 0.05]))
    length = {"long": rng.uniform(0.42, 0.55), "shoulder": rng.uniform(0.6, 0.68), "bob": rng.uniform(0.72, 0.79)}
    return Hair(style, color, float(length.get(style, 0.8)), parting=float(rng.uniform(-0.03, 0.03)))


def random_face(rng: Generator, female: bool, skin: Color) -> Face:
    """Eyes, lips (painted on some women), beard and glasses."""
    painted = female and rng.random() < 0.6
    lips = scaled((0.72, 0.2, 0.24), rng.uniform(0.8, 1.15)) if painted else scaled(skin, (0.85, 0.55, 0.55))
    return Face(
        eyes=EYE_COLORS[rng.choice(len(EYE_COLORS), p=[0.4, 0.3, 0.18, 0.12])],
        lips=lips,
        beard=0.0 if female else float(rng.choice([0, 0.35, 0.8], p=[0.6, 0.25, 0.15])),
        glasses=bool(rng.random() < 0.1),
    )


def random_studio(rng: Generator) -> Studio:
    """A light backdrop, as in DeepFashion, and a lamp above to one side."""
    light = np.clip(rng.normal(0.93, 0.05), 0.72, 1.0)
    red, green, blue = light + rng.normal(0, 0.008, 3)
    lamp = float(rng.normal(0.5, 0.35)), float(rng.uniform(0.5, 0.9))
    return Studio((float(red), float(green), float(blue)), lamp, floor_shadow=bool(rng.random() < 0.8))


def identity(seed: int) -> Identity:
    """The person of a seed: always the same one."""
    rng = stream(seed, IDENTITY)
    female = bool(rng.random() < 0.55)
    shape = random_shape(rng, female)
    tone, skin = random_skin(rng)
    hair, face, studio = random_hair(rng, female, tone), random_face(rng, female, skin), random_studio(rng)
    odds = [0.42, 0.2, 0.22, 0.16] if female else [0.57, 0, 0.27, 0.16]
    outfit = str(rng.choice(["top", "dress", "jacket", "shirt"], p=odds))
    if outfit == "dress":
        top, bottom = random_dress(rng)
    else:
        top, bottom = random_top(rng, female), random_bottom(rng, female)
    jacket = random_jacket(rng, open_front=outfit == "jacket") if outfit in ("jacket", "shirt") else None
    shoes = random_shoes(rng, female)
    return Identity(seed, female, shape, skin, hair, face, top, jacket, bottom, outfit == "dress", shoes, studio)


def refabric(person: Identity, front: Textile, back: Textile | None = None) -> Identity:
    """The same person with the top (or the whole dress) cut from another cloth, its back from yet another if given."""
    top = replace(person.top, fabric=front, back=back, sleeves=None)
    bottom = replace(person.bottom, fabric=front, back=back) if person.dress else person.bottom
    return replace(person, top=top, bottom=bottom)


def attributes(person: Identity) -> dict[str, str | float | Color]:
    """What a prompt could say about a person: words and numbers, no more than an observer sees."""
    outer = person.jacket or person.top
    return {
        "female": float(person.female),
        "skin": person.skin,
        "hair": person.hair.style,
        "hair color": person.hair.color,
        "outfit": "dress" if person.dress else "jacket" if person.jacket else "top",
        "top": person.top.fabric.kind,
        "top color": person.top.fabric.colors[0],
        "top ink": person.top.fabric.colors[1],
        "outer": outer.fabric.kind,
        "outer color": outer.fabric.colors[0],
        "sleeve": outer.sleeve,
        "bottom": person.bottom.kind,
        "bottom color": person.bottom.fabric.colors[0],
        "bottom length": person.bottom.hem if person.bottom.kind == "skirt" else person.bottom.length,
        "shoes": person.shoes.kind,
        "shoe color": person.shoes.upper,
        "backdrop": person.studio.backdrop,
    }


WORDS = {  # all that attributes can answer
    "hair": (*FALLING_HAIR, "pony", "bun", "short", "tall", "buzz", "afro", "bald"),
    "outfit": ("top", "dress", "jacket"),
    "top": tuple(WEAVES),
    "outer": tuple(WEAVES),
    "bottom": ("trousers", "shorts", "skirt", "leggings"),
    "shoes": tuple(SHOE_KINDS),
}


def attribute_vector(person: Identity) -> Array:
    """The attributes as (A,) numbers: a 1 for the word that holds and 0 for the others, colours and lengths as they
    are."""
    vector: list[float] = []
    for name, value in attributes(person).items():
        if isinstance(value, str):
            vector += [float(value == word) for word in WORDS[name]]
        else:
            vector += np.atleast_1d(value).tolist()
    return np.array(vector, np.float32)
