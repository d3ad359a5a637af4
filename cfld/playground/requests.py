"""Read and check the requests of the playground's page."""

import argparse
import base64
import binascii
import contextlib
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from cfld.model import CFLD
from cfld.photos.crop import fitted
from cfld.photos.keypoints import keypoints_from
from cfld.pose import FRAME
from cfld.sampling import SamplingConfig
from cfld.tools.cli import UserError, parse_size
from cfld.tools.files import parse_json
from cfld.tools.pictures import open_heif, to_rgb, turned_upright
from cfld.tools.reasons import reason

MEGABYTE = 1 << 20
PHOTO_LIMIT = 20 * MEGABYTE
PIXEL_LIMIT = 64_000_000  # of a photo; a file of a few kilobytes can claim billions
JSON_LIMIT = {"/pose": MEGABYTE, "/paint": PHOTO_LIMIT * 4 // 3 + MEGABYTE}  # base64 makes four bytes of three
OWN_LAYOUT = "openpose"  # of the poses that the page makes, which may be of no body
SEED_LIMIT = 8  # of seeds in one request
DECODING = threading.Lock()  # one photo at a time, because a small file may decode to a large picture


class Refused(Exception):
    """A request that is refused, with an HTTP status and a reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Fault(UserError):
    """A mistake in a part of a request. about: where the page says it, photo or pose."""

    def __init__(self, text: str, about: str):
        super().__init__(text)
        self.about = about


@contextlib.contextmanager
def in_the(part: str) -> Iterator[None]:
    """Turn a UserError of the block into a Fault of this part."""
    try:
        yield
    except UserError as error:
        raise Fault(str(error), part) from None


def read_photo(data: bytes) -> Image.Image:
    """The bytes of a JPEG, PNG or WebP file -> the photo in RGB, upright. Raises UserError."""
    if not data:
        raise UserError("the photo must be a JPEG, PNG or WebP picture, found an empty file")
    try:
        formats = ("JPEG", "PNG", "WEBP", *(("HEIF",) if open_heif() else ()))
        with DECODING, Image.open(io.BytesIO(data), formats=formats) as image:
            width, height = image.size
            if width * height <= PIXEL_LIMIT:
                return to_rgb(turned_upright(image))
    except Image.DecompressionBombError:
        raise UserError(f"the photo must have at most {PIXEL_LIMIT:,} pixels, found more: make it smaller") from None
    except Image.UnidentifiedImageError:
        raise UserError("the photo must be a JPEG, PNG or WebP picture, found something else") from None
    except Exception as error:  # pillow raises all kinds for damaged files
        raise UserError(f"the photo is damaged ({reason(error)}): save or copy it again") from None
    raise UserError(f"the photo must have at most {PIXEL_LIMIT:,} pixels, found {width} x {height}: make it smaller")


def values_of(content: Any, *names: str, optional: str | None = None) -> list[Any]:
    """The values of an object's fields, in this order. Raises UserError unless it has exactly these fields, and perhaps
    the optional one."""
    if not isinstance(content, dict) or set(content) - {optional} != set(names):
        raise UserError(f"a request must be an object of {', '.join(names)}, found {str(content)[:60]}")
    return [content[name] for name in names]


def read_pose_request(body: bytes) -> np.ndarray:
    """The body of POST /pose -> keypoints (18, 2). Raises UserError."""
    text, size, person, sure = values_of(parse_json(body), "text", "pose_size", "person", "min_confidence")
    if not (isinstance(text, str) and isinstance(size, str) and type(person) is int and type(sure) in (int, float)):
        raise UserError("text and pose_size must be strings, person a whole number and min_confidence a number")
    try:
        width_height = parse_size(size) if size.strip() else None
    except argparse.ArgumentTypeError as error:
        raise UserError(f"pose-size {error}") from None
    return keypoints_from(parse_json(text), width_height and width_height[::-1], person, sure, OWN_LAYOUT)


@dataclass(frozen=True)
class PaintRequest:
    """What POST /paint asks for: one picture per seed."""

    photo: Image.Image
    keypoints: np.ndarray
    source_keypoints: np.ndarray | None  # of the person in the photo, to retarget the pose
    seeds: list[int]
    config: SamplingConfig
    model: CFLD  # that paints it


def read_paint_request(body: bytes, model: CFLD, student: CFLD | None = None) -> PaintRequest:
    """The body of POST /paint, checked. The sampler turbo asks for the student. Raises UserError."""
    content = parse_json(body)
    photo, pose, seeds, *how = values_of(
        content, "photo", "pose", "seeds", "steps", "sampler", "pose_scale", "appearance_scale", optional="source_pose"
    )
    own = content.get("source_pose")
    if not isinstance(seeds, list) or not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds):
        raise UserError(f"seeds must be whole numbers of at least 0 and below 2^63, found {str(seeds)[:60]}")
    if not 1 <= len(seeds) <= SEED_LIMIT:
        raise UserError(f"the number of seeds must be within 1 .. {SEED_LIMIT}, found {len(seeds)}")
    config = SamplingConfig(*how)
    painter = student if student is not None and config.sampler == "turbo" else model
    config.check_steps(painter.config)
    config.check_student(painter.config.distilled)
    try:
        data = base64.b64decode(photo, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise Fault("the photo must be in base64", "photo") from None
    with in_the("pose"):
        keypoints = keypoints_from(pose, FRAME, layout=OWN_LAYOUT)
        source_keypoints = None if own is None else keypoints_from(own, FRAME, layout=OWN_LAYOUT)
    with in_the("photo"):
        return PaintRequest(fitted(read_photo(data)), keypoints, source_keypoints, seeds, config, painter)
