"""A preview of what the model sees of a photo (joints, sides and window), and its joints as OpenPose's JSON."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cfld.photos.crop import Crop, border_colour
from cfld.pose import BONE_COLOURS, BONES, JOINT_COLOURS, JOINTS

MARKED = ("shoulder", "wrist", "ankle")  # joints that get an R or an L, for the person's right and left


def preview(photo: Image.Image, joints: np.ndarray, crop: Crop) -> Image.Image:
    """Draw over a photo its joints, the person's right and left, and the window that the model sees.

    joints (18, 2) as (y, x) in the photo's pixels, -1 = missing; drawn in the pose map's colours
    -> an image in the photo's pixels, padded where the window is larger; dark outside the window
    """
    x, y, width, height = crop.left, crop.top, int(crop.width), int(crop.height)
    left, top = max(-x, 0), max(-y, 0)  # how far the window reaches beyond the photo
    right, bottom = max(x + width - photo.width, 0), max(y + height - photo.height, 0)
    picture = Image.new("RGB", (left + photo.width + right, top + photo.height + bottom), border_colour(photo))
    picture.paste(photo, (left, top))
    window = (x + left, y + top, x + left + width, y + top + height)
    dimmed = Image.blend(picture, Image.new("RGB", picture.size), 0.5)
    dimmed.paste(picture.crop(window), window)

    draw, unit = ImageDraw.Draw(dimmed), crop.height / 256
    places = [(u + left, v + top) if min(v, u) >= 0 else None for v, u in joints.tolist()]
    for (a, b), colour in zip(BONES, BONE_COLOURS, strict=True):
        if (start := places[a]) and (end := places[b]):
            draw.line([start, end], fill=colour, width=max(round(2 * unit), 1))
    for place, colour in zip(places, JOINT_COLOURS, strict=True):
        if place:
            draw.circle(place, max(3 * unit, 2), fill=colour)
    font = ImageFont.load_default(max(12 * unit, 10))
    for name, place in zip(JOINTS, places, strict=True):
        if place and name.endswith(MARKED):
            at = (place[0], place[1] - 5 * unit)
            draw.text(at, name[0].upper(), "white", font, "mb", stroke_width=max(round(unit), 1), stroke_fill="black")
    border, thin = (*window[:2], window[2] - 1, window[3] - 1), max(round(unit), 1)
    draw.rectangle(border, outline="black", width=2 * thin)
    draw.rectangle(border, outline="white", width=thin)
    return dimmed


def openpose_json(joints: np.ndarray, photo: Image.Image) -> dict[str, Any]:
    """joints (18, 2) as (y, x) in the photo's pixels, -1 = missing -> OpenPose's JSON of them."""
    points = [[round(x, 2), round(y, 2), 1] if min(y, x) >= 0 else [0, 0, 0] for y, x in joints.tolist()]
    return {
        "canvas_width": photo.width,
        "canvas_height": photo.height,
        "people": [{"pose_keypoints_2d": [value for point in points for value in point]}],
    }
