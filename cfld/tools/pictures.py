"""Read and write pictures."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cfld.tools.cli import UserError
from cfld.tools.files import atomic

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")  # what pictures may be called that are written


def read_image(path: str | Path, upright: bool = False, backdrop: str = "white") -> Image.Image:
    """A picture of any format that pillow reads, as RGB; upright: turned as its camera says; backdrop: what shows where
    it is transparent."""
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(turned_upright(image) if upright else image, backdrop)
    except FileNotFoundError:
        raise UserError(f"{path}: no such picture") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable picture ({error}): replace the file") from None


def orientation(image: Image.Image) -> int:
    """How a camera says that it was held, 1 for upright; also if what it says cannot be read."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # pillow raises whatever a damaged tag leads to
        return 1


def turned_upright(image: Image.Image) -> Image.Image:
    """A picture turned as its camera says, if what the camera says can be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as above
        return image


def to_rgb(image: Image.Image, backdrop: str = "white") -> Image.Image:
    """A picture as RGB: on a backdrop where it is transparent, and with 16 bits a pixel reduced to 8."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, backdrop), image).convert("RGB")
    return image.convert("RGB")


def check_picture_name(path: str | Path) -> None:
    """Raise UserError unless the name ends as a picture's."""
    if Path(path).suffix.lower() not in PICTURES:
        raise UserError(f"{path}: a picture's name must end in {' or '.join(PICTURES)}, found {Path(path).suffix!r}")


def save_image(path: str | Path, image: Image.Image, **options: Any) -> None:
    """Write a picture atomically; the format follows the name. options: what pillow takes for it."""
    check_picture_name(path)
    with atomic(path) as temporary:
        image.save(temporary, **options)
