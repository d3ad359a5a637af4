"""Photos of any size: which part of one is the frame that the model sees, and the way back.

    crop = fit((photo.height, photo.width), joints)      around the person; or a photo of the frame's shape as it is
    crop.cut(photo), crop.to_frame(joints)               what the model takes
    crop.paste(photo, picture)                           a picture painted in the frame, back in the photo
    crop.to_photo(keypoints)                             joints in the frame, back in the photo's pixels

The photos of DeepFashion are 11:16, with a margin around the person. A photo of this shape is stretched to the model's
squares as the paper does. Nothing else is stretched: of any other photo a window of 11:16 is cut.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cfld.pose import FRAME
from cfld.tools.cli import UserError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MOST_PIXELS = 2**27  # of a window: a panorama's would fill the memory
TOLERANCE = 0.02  # of the shape: DeepFashion's own 1101x750 is 0.9 % away from FRAME's, a camera's 3:2 is 3 %
# Where a whole person's joints lie, as shares of the frame's height, height and width: as in the photos of cfld.people.
TOP, BOTTOM, BREADTH = 0.12, 0.90, 0.80


@dataclass(frozen=True)
class Crop:
    """The window of a photo that the frame shows, in the photo's pixels. It may reach beyond the photo."""

    top: int
    left: int
    height: float
    width: float

    def to_frame(self, joints: np.ndarray) -> np.ndarray:
        """joints (n, 2) as (y, x) in the photo's pixels, -1 = missing -> keypoints (n, 2) in FRAME, float32; those
        outside the window are missing."""
        size, offset = np.array([self.height, self.width]), joints - [self.top, self.left]
        inside = ((joints >= 0) & (offset >= 0) & (offset < size)).all(axis=-1, keepdims=True)
        return np.where(inside, offset * FRAME / size, -1).astype(np.float32)

    def to_photo(self, keypoints: np.ndarray) -> np.ndarray:
        """keypoints (n, 2) as (y, x) in FRAME, -1 = missing -> joints (n, 2) in the photo's pixels."""
        present = (keypoints >= 0).all(axis=-1, keepdims=True)
        joints = keypoints * np.array([self.height, self.width]) / FRAME + [self.top, self.left]
        return np.where(present, joints, -1)

    def cut(self, photo: Image.Image) -> Image.Image:
        """The window as a picture, pixel by pixel. What lies beyond the photo has the colour of the photo's rim."""
        if self == whole((photo.height, photo.width)):
            return photo
        if self.height * self.width > MOST_PIXELS:
            raise UserError(
                f"a window of 11:16 must have at most {MOST_PIXELS:,} pixels, found {self.width}x{self.height} around "
                f"a photo of {photo.width}x{photo.height}: cut or shrink the photo first"
            )
        window = Image.new("RGB", (int(self.width), int(self.height)), rim_colour(photo))
        window.paste(photo, (-self.left, -self.top))
        return window

    def paste(self, photo: Image.Image, picture: Image.Image) -> Image.Image:
        """The photo with a picture of the frame, of any size, in the window."""
        result, size = photo.convert("RGB"), (int(self.width), int(self.height))
        window = picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)
        result.paste(window, (self.left, self.top))
        return result


def rim_colour(photo: Image.Image) -> tuple[int, ...]:
    """The median colour of a photo's outermost pixels: the backdrop's, as a rule."""
    pixels = np.array(photo.convert("RGB"))
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(int(value) for value in np.median(rim, axis=0))


def same_shape(size: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two pictures of (height, width) have the same shape, within TOLERANCE."""
    return abs(size[1] / size[0] * other[0] / other[1] - 1) <= TOLERANCE


def whole(size: tuple[float, float]) -> Crop:
    """All of a photo of size (height, width), stretched to the frame."""
    return Crop(0, 0, *size)


def fitted(photo: Image.Image) -> Image.Image:
    """A photo whose joints are not known, as the model takes it: whole, in the middle of a rim unless it is 11:16."""
    return fit((photo.height, photo.width)).cut(photo)


def fit(size: tuple[float, float], joints: np.ndarray | None = None) -> Crop:
    """The crop for a photo of size (height, width).

    One that is 11:16 within TOLERANCE is taken whole. Any other gives a window of exactly 11:16, in pixels: around the
    joints (n, 2) as (y, x), -1 = missing, and within the photo where that is large enough; or, without joints, around
    all of the photo.
    """
    height, width = size
    if same_shape(size, FRAME):
        return whole(size)
    unit = max(height / 16, width / 11)  # the window is 16 units high and 11 wide
    middle = np.array([height, width]) / 2
    present = np.zeros((0, 2)) if joints is None else joints[(joints >= 0).all(axis=-1)]
    if len(present):
        low, high = present.min(axis=0), present.max(axis=0)
        tall, broad = (high - low) / [16 * (BOTTOM - TOP), 11 * BREADTH]
        unit = min(unit, max(tall, broad, unit / 16))  # a joint or two are not all of a person
        middle = (low + high) / 2 + [16 * unit * (1 - TOP - BOTTOM) / 2, 0]
    # Rounded first: the same joints written in another unit give the same window.
    unit = max(math.ceil(round(unit, 3)), 1)
    top, left = (round(round(m - side * unit / 2, 3)) for m, side in zip(middle, (16, 11), strict=True))
    rooms = (int(height) - 16 * unit, int(width) - 11 * unit)  # negative where the window is the larger
    top, left = (min(max(x, min(room, 0)), max(room, 0)) for x, room in zip((top, left), rooms, strict=True))
    return Crop(top, left, 16 * unit, 11 * unit)
