"""What a model makes of real people: docs/real_people.webp.

    make test-real                              fetches the video and the pose estimator, into runs/real
    python benchmarks/real_people.py            a few minutes on two cores

Two people of Sports2D's demo video (BSD-3-Clause, (c) 2022 perfanalytics), each in three poses of theirs. Faces are
blurred after sampling. The model sees the source once as it is, and once on grey: what is outside the mask of the pose
estimator is painted over.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from common import ROOT, docs_path, save_picture
from PIL import Image, ImageDraw, ImageFilter

from cfld import load
from cfld.folder import bundled
from cfld.photos.crop import Crop, fit
from cfld.photos.estimator import Person, search
from cfld.photos.keypoints import MIN_VISIBILITY, joints_from
from cfld.photos.pixels import picture_grid
from cfld.sampling import PAPER, generate
from cfld.tools.cli import HelpFormatter, UserError, command

VIDEO = "packages/Sports2D/Demo/demo.mp4"
SOURCES = ((108, "woman", False), (108, "woman", True), (24, "man", True))  # frame, who, on grey
TARGETS = ((168, "woman"), (12, "man"), (60, "man"))
TILE = (352, 242)
GREY = (215, 215, 215)
FACE = 11  # MediaPipe's first joints are of the face


def read_frame(video: Path, number: int) -> Image.Image:
    """A frame of a video. Raises UserError."""
    capture = cv2.VideoCapture(str(video))
    capture.set(cv2.CAP_PROP_POS_FRAMES, number)
    whole, pixels = capture.read()
    if not whole:
        raise UserError(f"{video}: frame {number} must be readable: make test-real fetches the video")
    return Image.fromarray(pixels[..., ::-1].copy())


def find(photo: Image.Image, who: str) -> tuple[Person, np.ndarray, Crop]:
    """The man, who is above, or the woman; the joints (18, 2) in the photo's pixels, and the window around them."""
    person = (min if who == "man" else max)(search(photo), key=lambda person: person.places[:, 1].mean())
    points = np.c_[person.places / photo.size, person.visibility]
    joints, size = joints_from(points, (photo.height, photo.width), min_confidence=MIN_VISIBILITY, layout="mediapipe")
    return person, joints, fit(size, joints)


def on_grey(photo: Image.Image, person: Person) -> Image.Image:
    """The photo with nothing but the person."""
    mask = person.mask_image(photo.size).filter(ImageFilter.GaussianBlur(1))
    return Image.composite(photo, Image.new("RGB", photo.size, GREY), mask)


def without_faces(photo: Image.Image, people: Sequence[Person]) -> Image.Image:
    """The photo with every face blurred beyond recognition."""
    result = photo
    for person in people:
        middle, shoulders = person.places[:FACE].mean(axis=0), person.places[FACE : FACE + 2].mean(axis=0)
        radius = 0.7 * float(np.linalg.norm(shoulders - middle))
        mask = Image.new("L", photo.size)
        ImageDraw.Draw(mask).ellipse((*(middle - radius), *(middle + radius)), fill=255)
        blurred = photo.filter(ImageFilter.GaussianBlur(radius / 2))
        result = Image.composite(blurred, result, mask.filter(ImageFilter.GaussianBlur(radius / 8)))
    return result


@command
def main(argv: list[str] | None = None) -> None:
    name = "python benchmarks/real_people.py"
    parser = argparse.ArgumentParser(name, description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR", help="model folder (default: the bundled one)")
    parser.add_argument("--files", type=Path, default=ROOT / "runs" / "real", metavar="DIR", help="of make test-real")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the picture (default: docs)")
    options = parser.parse_args(argv)
    os.environ.setdefault("CFLD_POSE_MODELS", str(options.files / "pose"))

    model, vae = load(options.model or bundled())
    photos = {number: read_frame(options.files / VIDEO, number) for number, *_ in (*SOURCES, *TARGETS)}
    targets = [(photos[number], *find(photos[number], who)) for number, who in TARGETS]
    poses = np.stack([crop.to_frame(joints) for _, _, joints, crop in targets])

    def tile(photo: Image.Image, person: Person, crop: Crop) -> Image.Image:
        return crop.cut(without_faces(photo, [person])).resize(TILE[::-1])

    rows = [[Image.new("RGB", TILE[::-1], "white"), *(tile(photo, person, crop) for photo, person, _, crop in targets)]]
    for number, who, grey in SOURCES:
        person, _, crop = find(photos[number], who)
        source = on_grey(photos[number], person) if grey else photos[number]
        rows.append([tile(source, person, crop), *generate(model, vae, crop.cut(source), poses, PAPER, size=TILE)])
    save_picture(docs_path("real_people.webp", options.out), picture_grid(list(zip(*rows, strict=True))))


if __name__ == "__main__":
    sys.exit(main())
