"""Photos of any size: which window of a photo the model sees, and the way back.

    crop = fit((photo.height, photo.width), joints)      around the person; all of a photo that has the frame's shape
    crop.cut(photo), crop.to_frame(joints)               what the model takes
    crop.paste(photo, image)                             an image generated in the frame, back in the photo
    crop.to_photo(keypoints)                             keypoints, back in the photo's pixels

The photos of DeepFashion are 11:16, with a margin around the person. A photo of this aspect ratio is stretched to the
model's squares, as in the paper. Nothing else is stretched: of any other photo a window of 11:16 is cut.

A size is (height, width). Joints (n, 2) are (y, x) in the photo's pixels, keypoints (n, 2) are (y, x) in FRAME; -1
means missing.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cfld.pose import FRAME
from cfld.tools.cli import UserError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".heic", ".heif")  # the last two need the extra [heic]
MOST_PIXELS = 2**27  # in a window: that of a panorama would fill the memory
TOLERANCE = 0.02  # of the aspect ratio: DeepFashion's own 1101x750 is 0.9 % off FRAME's, a camera's 3:2 is 3 %
# Where a whole person's joints lie, as shares of the frame's height, height and width: as in the photos of cfld.people.
TOP, BOTTOM, BREADTH = 0.12, 0.90, 0.80


@dataclass(frozen=True)
class Crop:
    """The window of a photo that becomes the frame, in the photo's pixels. It may reach beyond the photo."""

    top: int
    left: int
    height: float
    width: float

    def to_frame(self, joints: np.ndarray) -> np.ndarray:
        """joints (n, 2) -> keypoints (n, 2), float32; those outside the window are missing."""
        size, offset = np.array([self.height, self.width]), joints - [self.top, self.left]
        inside = ((joints >= 0) & (offset >= 0) & (offset < size)).all(axis=-1, keepdims=True)
        return np.where(inside, offset * FRAME / size, -1).astype(np.float32)

    def to_photo(self, keypoints: np.ndarray) -> np.ndarray:
        """keypoints (n, 2) -> joints (n, 2)."""
        present = (keypoints >= 0).all(axis=-1, keepdims=True)
        joints = keypoints * np.array([self.height, self.width]) / FRAME + [self.top, self.left]
        return np.where(present, joints, -1)

    def cut(self, photo: Image.Image) -> Image.Image:
        """The window as an image, pixel by pixel, padded with border_colour beyond the photo. Raises UserError if it
        would not fit into the memory."""
        if self == whole((photo.height, photo.width)):
            return photo
        if self.height * self.width > MOST_PIXELS:
            raise UserError(
                f"a window of 11:16 must have at most {MOST_PIXELS:,} pixels, found {self.width}x{self.height} around "
                f"a photo of {photo.width}x{photo.height}: cut or shrink the photo first"
            )
        window = Image.new("RGB", (int(self.width), int(self.height)), border_colour(photo))
        window.paste(photo, (-self.left, -self.top))
        return window

    def paste(self, photo: Image.Image, image: Image.Image) -> Image.Image:
        """The photo with an image of the frame, in any resolution, in its window."""
        result, size = photo.convert("RGB"), (int(self.width), int(self.height))
        window = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        result.paste(window, (self.left, self.top))
        return result


def border_colour(photo: Image.Image) -> tuple[int, ...]:
    """The median colour of a photo's outermost pixels: as a rule, that of its background."""
    pixels = np.array(photo.convert("RGB"))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(int(value) for value in np.median(border, axis=0))


def same_shape(size: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two images have the same aspect ratio, within TOLERANCE."""
    return abs(size[1] / size[0] * other[0] / other[1] - 1) <= TOLERANCE


def whole(size: tuple[float, float]) -> Crop:
    """All of a photo, stretched to the frame."""
    return Crop(0, 0, *size)


def fitted(photo: Image.Image) -> Image.Image:
    """A photo whose joints are not known, as the model takes it: all of it, padded to 11:16."""
    return fit((photo.height, photo.width)).cut(photo)


def fit(size: tuple[float, float], joints: np.ndarray | None = None) -> Crop:
    """The window for a photo of a size.

    A photo of 11:16, within TOLERANCE, is taken as a whole. Any other gives a window of exactly 11:16, in whole pixels:
    around the joints (n, 2), and within the photo where that is large enough; without joints, around all of the photo.
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
    rooms = (int(height) - 16 * unit, int(width) - 11 * unit)  # negative where the window is larger than the photo
    top, left = (min(max(x, min(room, 0)), max(room, 0)) for x, room in zip((top, left), rooms, strict=True))
    return Crop(top, left, 16 * unit, 11 * unit)
