"""Images to tensors and back.

Letters in shapes: B images, H side of a square.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from cfld.pose import pose_maps


def to_square(photo: Image.Image, size: int) -> Tensor:
    """A photo, stretched to a square by pillow's bicubic filter -> (3, size, size) uint8."""
    square = photo.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def to_range(images: Tensor) -> Tensor:
    """uint8 images in [0, 255] -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_pictures(images: Tensor, size: tuple[int, int], rounding: bool = True) -> list[Image.Image]:
    """images (B, 3, H, H) in [-1, 1] -> B images of size (height, width), by antialiased bicubic interpolation.

    rounding: to the nearest of 256 values; False truncates, as the public code's evaluation does
    """
    images = F.interpolate(images.float() / 2 + 0.5, size=size, mode="bicubic", antialias=True)
    values = images.clamp(0, 1) * 255
    pixels = (values.round() if rounding else values).byte().cpu().numpy()
    return [Image.fromarray(x) for x in rearrange(pixels, "b c h w -> b h w c")]


def picture_grid(columns: Sequence[Sequence[Image.Image | None]], background: str = "black") -> Image.Image:
    """Columns of images of one size, side by side. None, and the end of a shorter column, leave a place empty."""
    width, height = next(picture.size for column in columns for picture in column if picture is not None)
    grid = Image.new("RGB", (width * len(columns), height * max(map(len, columns))), background)
    for x, column in enumerate(columns):
        for y, picture in enumerate(column):
            if picture is not None:
                grid.paste(picture, (width * x, height * y))
    return grid


def pose_picture(keypoints: Tensor, size: tuple[int, int]) -> Image.Image:
    """keypoints (18, 2) as (y, x) in the 256x176 frame, -1 = missing -> an image of the skeleton, of size (height,
    width)."""
    skeleton = pose_maps(keypoints[None], 256)[:, :3]
    return to_pictures(skeleton * 2 - 1, size)[0]
