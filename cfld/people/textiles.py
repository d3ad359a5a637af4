"""Colours, woven and printed cloth, and the letters on T-shirts. Everything here is described by small frozen values
and drawn from them, so that a garment can be cut again from another cloth.

Letters in shapes: n the side of a textile tile, which repeats in both directions; 3 and 4 are RGB and RGBA in [0, 1].
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from cfld.people.mesh import Array, smoothstep

Color = tuple[float, float, float]
TILE = 96  # texels
PRINT = 96


@dataclass(frozen=True)
class Textile:
    """A cloth. The first colour is its ground; seed decides what the kind leaves open (widths, places of flowers)."""

    kind: str
    colors: tuple[Color, Color, Color, Color]
    repeat: float  # metres after which the pattern repeats
    seed: int


@dataclass(frozen=True)
class Print:
    """A picture printed on the chest or the back."""

    motif: str
    text: str
    inks: tuple[Color, Color]


# -------------------------------------------------------------------------------------------------------------- colours


def hsv(hue: float, saturation: float, value: float) -> Color:
    """Hue in turns; all in [0, 1]."""
    offsets = (hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6
    red, green, blue = value * (1 - saturation * np.clip(1 - np.abs(offsets - 3) + 1, 0, 1))
    return float(red), float(green), float(blue)


def random_color(rng: Generator, palette: str | None = None) -> Color:
    """One colour of a palette: neutral, vivid, pastel, dark, earth or denim; of any of the first five if None."""
    if palette is None:
        palette = str(rng.choice(["neutral", "vivid", "pastel", "dark", "earth"], p=[0.3, 0.22, 0.18, 0.2, 0.1]))
    if palette == "neutral":
        grey = rng.choice([0.08, 0.15, 0.3, 0.5, 0.75, 0.9, 0.95])
        red, green, blue = np.clip(grey + rng.normal(0, 0.015, 3), 0.03, 0.97)
        return float(red), float(green), float(blue)
    hues, saturations, values = {
        "vivid": ((0, 1), (0.65, 0.95), (0.55, 0.9)),
        "pastel": ((0, 1), (0.15, 0.4), (0.8, 0.95)),
        "dark": ((0, 1), (0.3, 0.8), (0.12, 0.35)),
        "earth": ((0.05, 0.14), (0.3, 0.65), (0.35, 0.75)),
        "denim": ((0.58, 0.63), (0.35, 0.7), (0.2, 0.65)),
    }[palette]
    return hsv(rng.uniform(*hues), rng.uniform(*saturations), rng.uniform(*values))


def contrast(first: Color, second: Color) -> float:
    """Sum of the absolute differences, in [0, 3]."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True))


def contrasting_color(rng: Generator, color: Color, palette: str | None = None) -> Color:
    """A colour clearly different from the given one."""
    for _ in range(20):
        other = random_color(rng, palette)
        if contrast(color, other) > 0.5:
            return other
    return (0.95, 0.95, 0.93) if sum(color) < 1.5 else (0.1, 0.1, 0.12)


# ---------------------------------------------------------------------------------------------------------------- noise


def value_noise(rng: Generator, size: int, cells: int, octaves: int = 2) -> Array:
    """Smooth periodic noise (size, size) of unit deviation; `cells` bumps across, twice as many each octave."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        position = np.arange(size) / size * cells
        cell = position.astype(int)
        blend = smoothstep(0, 1, (position - cell).astype(np.float32))
        rows = grid[cell % cells] * (1 - blend)[:, None] + grid[(cell + 1) % cells] * blend[:, None]
        total += 0.5**octave * (rows[:, cell % cells] * (1 - blend) + rows[:, (cell + 1) % cells] * blend)
        cells = min(2 * cells, size)
    return total / total.std()


def sample_tile(tile: Array, u: Array, v: Array) -> Array:
    """Bilinear look-up in a repeating tile (n, n) or (n, n, C) at u, v (N,) in tiles -> (N,) or (N, C)."""
    n = tile.shape[0]
    x, y = u * n - 0.5, v * n - 0.5
    left, top = np.floor(x), np.floor(y)
    fx, fy = x - left, y - top
    j, i = left.astype(np.int64) % n, top.astype(np.int64) % n
    j1, i1 = (j + 1) % n, (i + 1) % n
    flat = tile.reshape(n * n, -1)
    upper = flat[i * n + j] * (1 - fx)[:, None] + flat[i * n + j1] * fx[:, None]
    lower = flat[i1 * n + j] * (1 - fx)[:, None] + flat[i1 * n + j1] * fx[:, None]
    values = upper * (1 - fy)[:, None] + lower * fy[:, None]
    return values if tile.ndim == 3 else values[:, 0]


# ------------------------------------------------------------------------------------------------------------- textiles
# Each weave takes (rng, colors (4, 3), x, y (n, n) in [0, 1)) and gives a tile (n, n, 3).

Weave = Callable[[Generator, Array, Array, Array], Array]


def inlay(ground: Array, ink: Array, mask: NDArray) -> Array:
    """ground (3,) or (n, n, 3) with ink (3,) where mask (n, n), a share in [0, 1] -> (n, n, 3)."""
    return ground + (ink - ground) * mask.astype(np.float32)[..., None]


def solid(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    return inlay(colors[0], colors[0], x)


def melange(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    return colors[0] * (1 + 0.2 * rng.standard_normal((*x.shape, 1)))


def denim(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    twill = 0.07 * np.sin(2 * np.pi * 24 * (x + y))[..., None]
    return colors[0] * (1 + 0.08 * rng.standard_normal((*x.shape, 1)) + twill)


def horizontal_stripes(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    return inlay(colors[0], colors[1], y * rng.integers(1, 5) % 1 < rng.uniform(0.25, 0.6))


def uneven_stripes(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    edges = np.sort(rng.uniform(0, 1, 5))
    return colors[np.searchsorted(edges, y) % 4]


def vertical_stripes(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    return inlay(colors[0], colors[1], x * rng.integers(2, 6) % 1 < rng.uniform(0.15, 0.5))


def diagonal_stripes(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    return inlay(colors[0], colors[1], (x + y) * rng.integers(2, 4) % 1 < rng.uniform(0.25, 0.5))


def gingham(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    count = rng.integers(2, 4)
    return inlay(colors[0], colors[1], 0.5 * (x * count % 1 < 0.5) + 0.5 * (y * count % 1 < 0.5))


def plaid(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    tile = inlay(colors[0], colors[0], x)
    for position, width, ink in zip(rng.uniform(0, 1, 3), rng.uniform(0.03, 0.16, 3), colors[1:], strict=True):
        for axis in (x, y):
            tile = inlay(tile, ink, 0.55 * (np.abs((axis - position + 0.5) % 1 - 0.5) < width))
    return tile


def windowpane(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    count, width = rng.integers(1, 4), rng.uniform(0.08, 0.16)
    return inlay(colors[0], colors[1], np.maximum(x * count % 1 < width, y * count % 1 < width))


def dots(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    count, radius = 2 * rng.integers(1, 4), rng.uniform(0.22, 0.36)
    row = np.floor(y * count)
    across, along = (x * count + 0.5 * (row % 2)) % 1 - 0.5, y * count % 1 - 0.5
    return inlay(colors[0], colors[1], across**2 + along**2 < radius**2)


def argyle(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    diamond = np.abs(2 * x % 1 - 0.5) + np.abs(2 * y % 1 - 0.5) < 0.5
    lines = np.minimum(np.abs((2 * x + 2 * y) % 1 - 0.5), np.abs((2 * x - 2 * y) % 1 - 0.5)) < 0.04
    return inlay(inlay(colors[0], colors[1], diamond), colors[2], 0.9 * lines)


def houndstooth(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    right, below = 3 * x % 1 < 0.5, 3 * y % 1 < 0.5
    return inlay(colors[0], colors[1], (right & below) | ((right ^ below) & (6 * (x + y) % 1 < 0.5)))


def chevron(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    return inlay(colors[0], colors[1], (y * rng.integers(2, 5) + np.abs(3 * x % 1 - 0.5)) % 1 < rng.uniform(0.3, 0.5))


def herringbone(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    direction = np.where(4 * x % 1 < 0.5, 1, -1)
    return inlay(colors[0], colors[1], 0.6 * ((8 * (y + direction * x)) % 1 < 0.45))


def camouflage(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    height = value_noise(rng, len(x), 4)
    tile = inlay(colors[0], 0.6 * colors[0], height > -0.4)
    return inlay(inlay(tile, colors[1], height > 0.3), colors[2], height > 1.0)


def tie_dye(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    first, second = value_noise(rng, len(x), 3), value_noise(rng, len(x), 5)
    return inlay(inlay(colors[0], colors[1], smoothstep(-0.4, 0.6, first)), colors[2], smoothstep(0.5, 1.3, second))


def leopard(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    height = value_noise(rng, len(x), 9, octaves=1)
    return inlay(inlay(colors[0], colors[1], height > 0.35), 0.7 * colors[0], height > 1.1)


def scatter(
    rng: Generator, colors: Array, count: int, stamp: Callable[[ImageDraw.ImageDraw, float, float], None]
) -> Array:
    """Draw stamp(canvas, x, y) at `count` places far from each other; what leaves on one side returns on the other."""
    image = Image.new("RGB", (TILE, TILE), bytes_of(colors[0]))
    canvas = ImageDraw.Draw(image)
    places: list[NDArray] = []
    for _ in range(count):
        options = rng.uniform(0, TILE, (8, 2))
        gaps = [min([np.hypot(*((p - q + TILE / 2) % TILE - TILE / 2)) for q in places] or [0]) for p in options]
        places.append(options[int(np.argmax(gaps))])
    for px, py in places:
        for dx in (-TILE, 0, TILE):
            for dy in (-TILE, 0, TILE):
                stamp(canvas, px + dx, py + dy)
    return np.asarray(image, np.float32) / 255


def floral(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    petals, turn, radius = int(rng.integers(4, 8)), rng.uniform(0, 6), rng.uniform(0.06, 0.12) * TILE
    inks = [bytes_of(colors[1]), bytes_of(colors[2])]
    flowers: dict[tuple[int, int], int] = {}

    def stamp(canvas: ImageDraw.ImageDraw, px: float, py: float) -> None:
        # A flower and its eight copies round the tile share a colour: the place modulo the tile names it.
        which = flowers.setdefault((round(px % TILE * 16), round(py % TILE * 16)), len(flowers))
        for petal in range(petals):
            angle = turn + 2 * np.pi * petal / petals
            disc(canvas, px + radius * np.cos(angle), py + radius * np.sin(angle), 0.55 * radius, inks[which % 2])
        disc(canvas, px, py, 0.5 * radius, bytes_of(colors[3]))

    return scatter(rng, colors, int(rng.integers(5, 10)), stamp)


def stars(rng: Generator, colors: Array, x: Array, y: Array) -> Array:
    radius = rng.uniform(0.08, 0.13) * TILE

    def stamp(canvas: ImageDraw.ImageDraw, px: float, py: float) -> None:
        canvas.polygon(star(px, py, radius), fill=bytes_of(colors[1]))

    return scatter(rng, colors, int(rng.integers(6, 12)), stamp)


def bytes_of(color: Array | Color) -> tuple[int, int, int]:
    red, green, blue = (int(255 * np.clip(value, 0, 1)) for value in color)
    return red, green, blue


def disc(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, ink: tuple[int, ...]) -> None:
    canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=ink)


def star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The ten corners of a five-pointed star."""
    angles, radii = np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2, 0.42 * radius, radius)
    return [(x + r * np.sin(angle), y - r * np.cos(angle)) for angle, r in zip(angles, radii, strict=True)]


WEAVES: dict[str, tuple[Weave, float]] = {  # the weave and how often it is chosen
    "solid": (solid, 0.28),
    "melange": (melange, 0.06),
    "denim": (denim, 0.02),
    "horizontal stripes": (horizontal_stripes, 0.10),
    "uneven stripes": (uneven_stripes, 0.04),
    "vertical stripes": (vertical_stripes, 0.05),
    "diagonal stripes": (diagonal_stripes, 0.03),
    "gingham": (gingham, 0.06),
    "plaid": (plaid, 0.06),
    "windowpane": (windowpane, 0.03),
    "dots": (dots, 0.06),
    "argyle": (argyle, 0.02),
    "houndstooth": (houndstooth, 0.02),
    "chevron": (chevron, 0.02),
    "herringbone": (herringbone, 0.02),
    "camouflage": (camouflage, 0.02),
    "tie-dye": (tie_dye, 0.02),
    "leopard": (leopard, 0.02),
    "floral": (floral, 0.05),
    "stars": (stars, 0.02),
}
PLAIN = ("solid", "melange", "denim")  # textiles without a pattern that can be seen at 256x176


def random_textile(rng: Generator, kinds: tuple[str, ...] = tuple(WEAVES), palette: str | None = None) -> Textile:
    """A cloth of one of the kinds, its ground from the palette."""
    odds = np.array([WEAVES[kind][1] for kind in kinds])
    kind = str(rng.choice(kinds, p=odds / odds.sum()))
    ground = random_color(rng, palette)
    inks = (contrasting_color(rng, ground), random_color(rng), random_color(rng))
    return Textile(kind, (ground, *inks), repeat=float(rng.uniform(0.11, 0.3)), seed=int(rng.integers(2**31)))


@functools.lru_cache(maxsize=256)
def weave(textile: Textile) -> tuple[Array, ...]:
    """The tile of a textile and smaller copies, down to one eighth: (n, n, 3), (n/2, n/2, 3), ..."""
    rng = np.random.default_rng(np.random.SeedSequence(textile.seed))
    y, x = np.mgrid[:TILE, :TILE].astype(np.float32) / TILE
    tile = WEAVES[textile.kind][0](rng, np.array(textile.colors, np.float32), x, y)
    levels = [np.clip(tile, 0.02, 1).astype(np.float32)]
    for _ in range(3):
        n = len(levels[-1]) // 2
        levels.append(levels[-1].reshape(n, 2, n, 2, 3).mean((1, 3)))
    return tuple(levels)


def cloth_color(textile: Textile, u: Array, v: Array, pixel: float) -> Array:
    """The cloth's colour at u, v (N,) in metres -> (N, 3). pixel: size of a pixel, metres; finer threads are
    averaged."""
    levels = weave(textile)
    texels = max(pixel / textile.repeat * TILE, 1)
    level = min(int(np.log2(texels)), len(levels) - 1)
    return sample_tile(levels[level], u / textile.repeat, -v / textile.repeat)


# --------------------------------------------------------------------------------------------------------------- prints

# A font of our own, five columns by seven rows: two hexadecimal digits a row, the leftmost column is bit 4.
FONT = {
    "A": "0e11111f111111",
    "B": "1e11111e11111e",
    "C": "0e11101010110e",
    "D": "1e11111111111e",
    "E": "1f10101e10101f",
    "F": "1f10101e101010",
    "G": "0e11101713110f",
    "H": "1111111f111111",
    "I": "0e04040404040e",
    "K": "11121418141211",
    "L": "1010101010101f",
    "M": "111b1515111111",
    "N": "11191513111111",
    "O": "0e11111111110e",
    "P": "1e11111e101010",
    "R": "1e11111e141211",
    "S": "0f10100e01011e",
    "T": "1f040404040404",
    "U": "1111111111110e",
    "V": "11111111110a04",
    "W": "1111111515150a",
    "X": "11110a040a1111",
    "Y": "11110a04040404",
    "Z": "1f01020408101f",
    "0": "0e11131519110e",
    "1": "040c040404040e",
    "2": "0e11010204081f",
    "3": "1f02040201110e",
    "5": "1f101e0101110e",
    "7": "1f010204040404",
    "8": "0e11110e11110e",
}
WORDS = (
    "NYC",
    "LOVE",
    "SKI",
    "ROCK",
    "SURF",
    "ZEN",
    "WAVE",
    "STAR",
    "BOLD",
    "HEY",
    "PARIS",
    "TEAM",
    "23",
    "07",
    "88",
    "15",
)
MOTIFS = ("text", "disc", "star", "heart", "triangle", "box", "sun", "bars", "rings", "mountain")


def random_print(rng: Generator, ground: Color) -> Print:
    """A print that can be told from its ground."""
    motif = str(rng.choice(MOTIFS, p=[0.28] + [0.08] * 9))
    text = str(rng.choice(WORDS)) if motif in ("text", "box", "disc") else ""
    first = contrasting_color(rng, ground)
    return Print(motif, text, (first, contrasting_color(rng, first)))


def letters(text: str) -> NDArray[np.bool_]:
    """text -> (7, 6 * len(text) - 1) with True on the letters."""
    glyphs = []
    for character in text:
        rows = bytes.fromhex(FONT[character])
        glyphs.append([[bool(row >> (5 - column) & 1) for column in range(6)] for row in rows])
    return np.concatenate(np.array(glyphs), axis=1)[:, 1:]


@functools.lru_cache(maxsize=256)
def draw_print(picture: Print) -> Array:
    """A print as (96, 96, 4), RGB and opacity, row 0 on top."""
    n = PRINT
    image = Image.new("RGBA", (n, n), (0, 0, 0, 0))
    canvas = ImageDraw.Draw(image)
    ink, second = ((*bytes_of(color), 255) for color in picture.inks)
    half = n / 2
    if picture.motif == "disc":
        disc(canvas, half, half, 0.45 * n, ink)
    elif picture.motif == "star":
        canvas.polygon(star(half, 0.52 * n, 0.48 * n), fill=ink)
        canvas.polygon(star(half, 0.52 * n, 0.22 * n), fill=second)
    elif picture.motif == "heart":
        disc(canvas, 0.31 * n, 0.35 * n, 0.215 * n, ink)
        disc(canvas, 0.69 * n, 0.35 * n, 0.215 * n, ink)
        canvas.polygon([(0.12 * n, 0.46 * n), (0.88 * n, 0.46 * n), (half, 0.92 * n)], fill=ink)
        canvas.polygon([(0.3 * n, 0.46 * n), (0.7 * n, 0.46 * n), (half, 0.25 * n)], fill=ink)
    elif picture.motif == "triangle":
        canvas.polygon([(0.08 * n, 0.88 * n), (half, 0.1 * n), (0.92 * n, 0.88 * n)], fill=ink)
        disc(canvas, half, 0.62 * n, 0.15 * n, second)
    elif picture.motif == "box":
        canvas.rectangle([0.02 * n, 0.25 * n, 0.98 * n, 0.75 * n], fill=ink)
    elif picture.motif == "sun":
        for row in range(5):
            disc_band(canvas, n, 0.2 * row, ink if row % 2 == 0 else second)
    elif picture.motif == "bars":
        for row in range(3):
            canvas.rectangle([0, (0.12 + 0.3 * row) * n, n, (0.28 + 0.3 * row) * n], fill=ink if row != 1 else second)
    elif picture.motif == "rings":
        for radius, color in ((0.46, ink), (0.32, second), (0.18, ink)):
            disc(canvas, half, half, radius * n, color)
    elif picture.motif == "mountain":
        disc(canvas, 0.68 * n, 0.3 * n, 0.14 * n, second)
        canvas.polygon([(0, 0.85 * n), (0.36 * n, 0.2 * n), (0.72 * n, 0.85 * n)], fill=ink)
        canvas.polygon([(0.4 * n, 0.85 * n), (0.7 * n, 0.42 * n), (n, 0.85 * n)], fill=ink)
    if picture.text:
        shape = letters(picture.text)
        wide = 0.94 * n if picture.motif == "text" else 0.74 * n
        size = int(wide), int(min(wide * 7 / shape.shape[1] * 1.15, 0.8 * n))
        stencil = Image.fromarray(shape.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
        stencil = stencil.filter(ImageFilter.MaxFilter(5))  # bold
        place = (n - size[0]) // 2, (n - size[1]) // 2
        image.paste(Image.new("RGBA", size, ink if picture.motif == "text" else second), place, stencil)
    return np.asarray(image, np.float32) / 255


def disc_band(canvas: ImageDraw.ImageDraw, n: int, top: float, ink: tuple[int, ...]) -> None:
    """One horizontal band, a fifth of the canvas high, of the disc that fills it."""
    for row in range(int(top * n), int((top + 0.2) * n)):
        half = np.sqrt(max((n / 2) ** 2 - (row - n / 2) ** 2, 0))
        canvas.line([n / 2 - half, row, n / 2 + half, row], fill=ink)
