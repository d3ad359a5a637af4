"""Read and write image files."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cfld.tools.cli import UserError
from cfld.tools.files import atomic

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")  # suffixes of the files that save_image writes


def read_image(path: str | Path, upright: bool = False, backdrop: str = "white") -> Image.Image:
    """Read an image file of any format that pillow reads, as RGB.

    upright: rotate it as its EXIF orientation says
    backdrop: the colour that shows where the image is transparent

    Raises UserError.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(turned_upright(image) if upright else image, backdrop)
    except FileNotFoundError:
        raise UserError(f"{path}: no such image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error}): replace the file") from None


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image; 1, upright, also if there is none or it cannot be read."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # pillow raises whatever a damaged tag leads to
        return 1


def turned_upright(image: Image.Image) -> Image.Image:
    """An image rotated as its EXIF orientation says, if that can be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as above
        return image


def to_rgb(image: Image.Image, backdrop: str = "white") -> Image.Image:
    """An image as RGB of 8 bits, on a backdrop where it is transparent."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, backdrop), image).convert("RGB")
    return image.convert("RGB")


def check_picture_name(path: str | Path) -> None:
    """Raise UserError unless a name ends in one of PICTURES."""
    if Path(path).suffix.lower() not in PICTURES:
        raise UserError(f"{path}: an image's name must end in {' or '.join(PICTURES)}, found {Path(path).suffix!r}")


def save_image(path: str | Path, image: Image.Image, **options: Any) -> None:
    """Write an image atomically, in the format that the name says. options: for pillow's writer of the format."""
    check_picture_name(path)
    with atomic(path) as temporary:
        image.save(temporary, **options)
