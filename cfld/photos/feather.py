"""A soft edge for what is pasted into a photo: inside its border it fades from the photo to what is pasted. Outside,
and deeper inside, nothing changes.

Letters in shapes: H x W pixels of the photo.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def depth(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """inside (H, W) -> how many pixels it is from each pixel, along rows and columns, to the next one outside (H, W);
    inf if there is none. The photo's own edge is no border."""
    distance = np.where(inside, np.float32(np.inf), np.float32(0))
    for axis in (0, 1):
        place = np.arange(inside.shape[axis], dtype=np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
        before = np.minimum.accumulate(distance - place, axis) + place
        after = np.flip(np.minimum.accumulate(np.flip(distance + place, axis), axis), axis) - place
        distance = np.minimum(before, after)
    return distance


def ramp(inside: NDArray[np.bool_], feather: float) -> NDArray[np.float32]:
    """inside (H, W) -> weights (H, W): 0 outside; inside, they rise to 1 over so many pixels from the border, over half
    of the way to the deepest pixel where that is less. feather 0: 1 inside."""
    deep = depth(inside)
    width = min(feather, float(deep.max(initial=0)) / 2)
    return np.where(inside, np.minimum(deep / (width + 1), 1), 0).astype(np.float32)


def blend(photo: Image.Image, pasted: Image.Image, inside: NDArray[np.bool_], feather: float) -> Image.Image:
    """The photo, and inside (H, W) an image of its size with a soft edge of so many pixels."""
    weights = Image.fromarray(np.rint(255 * ramp(inside, feather)).astype(np.uint8))
    return Image.composite(pasted, photo, weights)
