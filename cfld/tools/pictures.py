"""Read and write image files."""

import importlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from cfld.tools.cli import UserError
from cfld.tools.files import atomic
from cfld.tools.reasons import reason

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # of iPhones' photos, among others
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")  # suffixes of the files that save_image writes


def read_image(path: str | Path, upright: bool = False, backdrop: str = "white") -> Image.Image:
    """Read an image file of any format that pillow reads, or pillow-heif if it is installed, as RGB in sRGB.

    upright: rotate it as its EXIF orientation says
    backdrop: the colour that shows where the image is transparent

    Raises UserError.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"an image file must be named by its path, found {path!r:.60}")
    try:
        if is_heif(path) and not open_heif():
            raise UserError(
                "HEIC photos are read by pillow-heif, which is not installed: pip install pillow-heif, or save the "
                "photo as JPEG"
            )
        with Image.open(path) as image:
            image.load()
            return to_rgb(turned_upright(image) if upright else image, backdrop)
    except FileNotFoundError:
        raise UserError(f"{path}: no such image") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({reason(error)}): replace the file") from None


def is_heif(path: str | Path) -> bool:
    """Whether a file is of the HEIF family, whatever its name."""
    with open(path, "rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS


def open_heif() -> bool:
    """Let pillow open HEIF files, by pillow-heif; whether it can."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


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


def grey_of_8_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits, or of floats within 0 .. 1, in 8 bits. Raises UserError for other numbers."""
    values = np.asarray(image)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if image.mode == "F" and 0 <= low <= high <= 1:
        return Image.fromarray(np.rint(255 * values).astype(np.uint8))
    if image.mode.startswith("I;16") or (image.mode == "I" and low >= 0 and 255 < high < 2**16):
        return Image.fromarray((values.astype(np.int64) >> 8).astype(np.uint8))
    raise UserError(
        f"grey values of 32 bits must be floats within 0 .. 1 or whole numbers of 16 bits, found {low:g} to {high:g}: "
        "save the image with 8 bits"
    )


def to_srgb(image: Image.Image) -> Image.Image:
    """An image in the colours of its ICC profile -> the same in sRGB. Unchanged if it has no profile, that of sRGB,
    or one that cannot be read or is for another kind of image."""
    content = image.info.get("icc_profile")
    if not content:
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        if image.mode == "P":
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return image
    if converted is None:  # which pillow returns for an image that is changed in place
        return image
    converted.info.pop("icc_profile", None)  # or it would be applied again where the image is saved and read
    return converted


def to_rgb(image: Image.Image, backdrop: str = "white") -> Image.Image:
    """An image as RGB of 8 bits in sRGB, on a backdrop where it is transparent. Raises UserError for grey values
    whose white is not known."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return grey_of_8_bits(image).convert("RGB")
    image = to_srgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, backdrop), image).convert("RGB")
    return image.convert("RGB")


def check_picture_name(path: str | Path, kinds: Sequence[str] = PICTURES) -> None:
    """Raise UserError unless a name ends in one of the kinds."""
    if Path(path).suffix.lower() not in kinds:
        raise UserError(f"{path}: an image's name must end in {' or '.join(kinds)}, found {Path(path).suffix!r}")


def save_image(path: str | Path, image: Image.Image, **options: Any) -> None:
    """Write an image atomically, in the format that the name says. options: for pillow's writer of the format."""
    check_picture_name(path)
    with atomic(path) as temporary:
        image.save(temporary, **options)
