"""Find joints in a photo with MediaPipe, which is imported only when there is a photo to search.

    pip install -e '.[pose]'       MediaPipe 0.10.21, whose wheel holds its networks: nothing is downloaded at run time

docs/poses.md says why this library, and how accurate it is.
"""

import importlib
from typing import Any

import numpy as np
from PIL import Image

from cfld.photos.crop import border_colour
from cfld.tools.cli import UserError

MOST_PEOPLE = 8  # searched for in a photo
MARGIN = 0.15  # around the joints of a person who is painted over, as a share of their height


def mediapipe() -> Any:
    """The library. Raises UserError if it is not installed."""
    try:
        return importlib.import_module("mediapipe.python.solutions.pose")
    except ImportError:
        raise UserError(
            "joints are found in photos by MediaPipe 0.10.21, which is not installed: "
            "pip install 'mediapipe==0.10.21', or give a file of joints (docs/poses.md)"
        ) from None


def find_people(photo: Image.Image) -> np.ndarray:
    """The people in a photo, the most prominent first.

    -> (people, 33, 4): of each of MediaPipe's joints x, y and z as fractions of the photo, and its visibility in [0, 1]

    MediaPipe finds one person at a time; the next is found after the last has been painted over. Raises UserError if
    there is nobody, or if MediaPipe is not installed.
    """
    rest = photo.convert("RGB")
    people: list[list[list[float]]] = []
    with mediapipe().Pose(static_image_mode=True) as network:
        while len(people) < MOST_PEOPLE and (found := network.process(np.array(rest)).pose_landmarks):
            people.append([[joint.x, joint.y, joint.z, joint.visibility] for joint in found.landmark])
            places = np.array(people[-1])[:, :2] * photo.size
            low, high = places.min(axis=0), places.max(axis=0)
            margin = MARGIN * (high - low)[1]
            rest.paste(border_colour(photo), (*(low - margin).astype(int), *(high + margin).astype(int)))
    if not people:
        raise UserError("no person was found in the photo: give a file of joints (docs/poses.md)")
    return np.array(people)
