"""Find people in a photo with BlazePose (Bazarevsky et al. 2020): MediaPipe's two networks, which LiteRT runs.

    pip install -e '.[pose]'                 LiteRT, which is imported only when there is a photo to search
    python -m cfld.convert fetch pose        the networks, into MODELS

The detector sees a square of 224x224 and predicts circles: the middle of a person's hips, and a point of the circle
around the body. It finds people who fill much of the square, so it is applied to the whole photo and to overlapping
squares of a half and a quarter of its longer side. The landmark network sees the content of one circle, upright, in a
square of 256x256. It predicts joints, a mask, and the circle that would have fitted. docs/poses.md says why this
estimator, and how accurate it is.

Letters in shapes: A = 2254 anchors of the detector, J = 33 joints of MediaPipe's layout. Places are (x, y) in pixels of
the photo.
"""

import importlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cfld.photos.formats import Nobody
from cfld.tools.cli import UserError
from cfld.tools.sums import check_sums

Array = NDArray[Any]
MODELS = "weights/pose"  # the networks' folder; the environment variable CFLD_POSE_MODELS names another
DETECTOR = "pose_solution_packed_assets.data"  # as in the npm package @mediapipe/pose
LANDMARKS = "pose_landmark_heavy.tflite"
DETECTOR_SIDE, LANDMARKS_SIDE, HEAT_SIDE, JOINTS = 224, 256, 64, 33
MOST_PEOPLE = 8  # in a photo
MIN_SCORE = 0.5  # of a circle, of a joint, and of a person times the mean visibility of their joints
SAME = 0.4  # circles that differ by less are around one person
MIN_MASK = 0.94  # mean probability within a mask: of people 0.95 to 0.99, of other things mostly below 0.91
CONVERGED = 0.1  # a circle that differs by less from the fitting one is around a person
PASSES = 3  # until then, at most
MARGIN = 1.25  # the side of the landmark network's square, in diameters of the circle
REACH = 3  # cells of the heat map around a joint that refine its place


class Circle(NamedTuple):
    """Around a person: the middle of the hips (2,), and a point (2,) of the circle, above the head."""

    middle: Array
    top: Array

    @property
    def radius(self) -> float:
        return float(np.linalg.norm(self.top - self.middle))

    def differs(self, other: "Circle") -> float:
        """How much two circles differ in place and radius, in units of the larger radius."""
        change = np.linalg.norm(self.middle - other.middle) + abs(self.radius - other.radius)
        return float(change / max(self.radius, other.radius, 1e-6))


class Person(NamedTuple):
    """Someone in a photo.

    places (J, 2): of the joints
    visibility (J,): of the joints, in [0, 1]
    score: that this is a person, in [0, 1]
    circle: around them
    affine (2, 3): takes (x, y, 1) in the landmark network's square to the photo
    mask (256, 256): where the person is in that square, as logits
    """

    places: Array
    visibility: Array
    score: float
    circle: Circle
    affine: Array
    mask: Array

    def is_sure(self) -> bool:
        """Whether this is a person, by the score, the joints' visibility and the mask."""
        inside = self.mask[self.mask > 0]
        certain = len(inside) > 0 and float(sigmoid(inside).mean()) >= MIN_MASK
        return certain and self.score * float(self.visibility.mean()) >= MIN_SCORE

    def is_on(self, other: "Person") -> bool:
        """Whether most of the joints that are seen lie on the other person."""
        places = self.places[self.visibility >= MIN_SCORE]
        columns, rows = (np.linalg.inv(other.affine[:, :2]) @ (places - other.affine[:, 2]).T).astype(int)
        inside = (np.minimum(rows, columns) >= 0) & (np.maximum(rows, columns) < LANDMARKS_SIDE)
        return bool((other.mask[rows[inside], columns[inside]] > 0).sum() > 0.5 * len(places))

    def mask_image(self, size: tuple[int, int]) -> Image.Image:
        """An image as large as the photo, size (width, height): 255 where the person is, 0 elsewhere."""
        inverse = np.linalg.inv(np.concatenate([self.affine, [[0, 0, 1]]]))[:2]
        share = Image.fromarray((255 * sigmoid(self.mask)).astype(np.uint8))
        share = share.transform(size, Image.Transform.AFFINE, tuple(inverse.flat), Image.Resampling.BILINEAR)
        return share.point(lambda value: 255 * (value > 127))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x.clip(-60, 60)))


class Network:
    """A .tflite file, run on the CPU. Raises UserError if it is not there, not whole, or LiteRT is not installed."""

    def __init__(self, path: Path):
        try:
            interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter
        except ImportError:
            raise UserError(
                "joints are found in photos by LiteRT, which is not installed: pip install ai-edge-litert, or give a "
                "file of joints (docs/poses.md)"
            ) from None
        if not path.is_file():
            raise UserError(
                f"{path}: no such file, which finds joints in photos: python -m cfld.convert fetch pose, or name its "
                "folder in the environment variable CFLD_POSE_MODELS, or give a file of joints (docs/poses.md)"
            )
        check_sums(path)
        try:
            self.interpreter = interpreter(model_path=str(path), num_threads=torch.get_num_threads())
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{path}: not a whole file of a network ({error}): fetch it again") from None
        self.input = self.interpreter.get_input_details()[0]["index"]
        self.outputs = [output["index"] for output in self.interpreter.get_output_details()]

    def __call__(self, image: Array) -> list[Array]:
        """image (H, H, 3) -> the outputs, without a batch's axis."""
        self.interpreter.set_tensor(self.input, image[None].astype(np.float32))
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(index)[0] for index in self.outputs]


def cut_square(photo: Image.Image, middle: Array, side: float, turn: float, pixels: int) -> tuple[Array, Array]:
    """A square of an RGB photo, black beyond it, turned clockwise by an angle in radians.

    -> image (pixels, pixels, 3) in [0, 1], and the matrix (2, 3) that takes (x, y, 1) in it to the photo
    """
    fine = min(max(round(side / pixels), 1), 8)  # a pixel is the mean of fine x fine samples
    count, scale = pixels * fine, side / (pixels * fine)
    axes = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    corner = middle - axes @ np.full(2, count / 2)
    affine = np.concatenate([axes, corner[:, None]], axis=1)
    image = photo.transform((count, count), Image.Transform.AFFINE, tuple(affine.flat), Image.Resampling.BILINEAR)
    return np.asarray(image.reduce(fine)) / 255, affine * [fine, fine, 1]


def squares(width: int, height: int) -> list[tuple[Array, float]]:
    """Middles (2,) and sides of the squares in which a photo is searched: the one around the photo, and half
    overlapping ones of a half and a quarter of its longer side, unless they would be enlarged."""
    found: list[tuple[Array, float]] = []
    for side in (max(width, height), max(width, height) / 2, max(width, height) / 4):
        if side >= DETECTOR_SIDE or not found:
            xs, ys = (
                np.linspace(
                    min(side, length) / 2, length - min(side, length) / 2, max(int(np.ceil(2 * length / side)) - 1, 1)
                )
                for length in (width, height)
            )
            found += [(np.array([x, y]), side) for y in ys for x in xs]
    return found


def anchors() -> Array:
    """(A, 2): the middles of the detector's anchors in a square of side 1, in the order of its outputs."""
    grids = []
    for cells, boxes in ((28, 2), (14, 2), (7, 6)):
        y, x = np.mgrid[:cells, :cells]
        grids.append(np.repeat((np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) / cells, boxes, axis=0))
    return np.concatenate(grids)


def find_circles(detector: Network, photo: Image.Image) -> list[Circle]:
    """Circles around what may be people, all different, the most certain first."""
    centres, found = DETECTOR_SIDE * anchors(), []
    for middle, side in squares(photo.width, photo.height):
        image, affine = cut_square(photo, middle, side, 0, DETECTOR_SIDE)
        boxes, logits = detector(2 * image - 1)  # (A, 12): a box of the head, and four points; (A, 1)
        scores = sigmoid(logits[:, 0])
        for i in np.flatnonzero(scores >= MIN_SCORE):
            places = (boxes[i, 4:8].reshape(2, 2) + centres[i]) @ affine[:, :2].T + affine[:, 2]
            found.append((scores[i], Circle(*places)))
    circles: list[Circle] = []
    for _, circle in sorted(found, key=lambda pair: -pair[0]):
        if all(circle.differs(other) >= SAME for other in circles):
            circles.append(circle)
    return circles


def refine(places: Array, heat: Array) -> Array:
    """places (n, 2) in the landmark network's square, heat maps (64, 64, n) in [0, 1] -> the places, each moved to the
    mean of the heat around it if some is above 0.5."""
    refined, cell = places.copy(), LANDMARKS_SIDE / HEAT_SIDE
    for joint, (x, y) in enumerate((places / cell).astype(int)):
        top, left = max(y - REACH, 0), max(x - REACH, 0)
        around = heat[top : max(y + REACH + 1, 0), left : max(x + REACH + 1, 0), joint]
        if around.size and around.max() >= 0.5:
            rows, columns = np.indices(around.shape)
            refined[joint] = (
                cell * np.array([((columns + left) * around).sum(), ((rows + top) * around).sum()]) / around.sum()
            )
    return refined


def find_landmarks(network: Network, photo: Image.Image, circle: Circle) -> Person:
    """The person in a circle."""
    x, y = circle.top - circle.middle
    turn, side = np.arctan2(y, x) + np.pi / 2, 2 * MARGIN * circle.radius
    image, affine = cut_square(photo, circle.middle, side, turn, LANDMARKS_SIDE)
    values, score, mask, heat, _ = network(image)  # (195,), (1,), (256, 256, 1), (64, 64, 39), and joints in metres
    values = values.reshape(
        -1, 5
    )  # of J joints, of the fitting circle's two points, and of 4 more: x, y, z, visibility
    places = refine(values[:, :2], sigmoid(heat)) @ affine[:, :2].T + affine[:, 2]
    fitting = Circle(places[JOINTS], places[JOINTS + 1])
    return Person(places[:JOINTS], sigmoid(values[:JOINTS, 3]), float(score[0]), fitting, affine, mask[..., 0])


def search(photo: Image.Image) -> list[Person]:
    """The people in a photo, the largest first; none if there are none.

    Around a person, the circle converges within a pass or two; where there is nobody, it wanders. Raises UserError if
    LiteRT or a network is missing.
    """
    folder, photo = Path(os.environ.get("CFLD_POSE_MODELS", MODELS)), photo.convert("RGB")
    detector, network = Network(folder / DETECTOR), Network(folder / LANDMARKS)
    found: list[Person] = []
    for circle in find_circles(detector, photo):
        for _ in range(PASSES):
            if any(circle.differs(other.circle) < SAME for other in found):
                break
            person = find_landmarks(network, photo, circle)
            if circle.differs(person.circle) < CONVERGED:
                if person.is_sure():
                    found.append(person)
                break
            circle = person.circle
    people: list[Person] = []
    for person in sorted(found, key=lambda person: -person.visibility.mean()):
        if not any(person.is_on(other) for other in people):
            people.append(person)
    return sorted(people, key=lambda person: -person.circle.radius)[:MOST_PEOPLE]


def find_people(photo: Image.Image) -> Array:
    """The people in a photo, the largest first.

    -> (people, J, 3): of each of MediaPipe's joints x and y as fractions of the photo, and its visibility in [0, 1]

    Raises Nobody if there is nobody, UserError if LiteRT or a network is missing.
    """
    people = search(photo)
    if not people:
        raise Nobody("no person was found in the photo: give a file of joints (docs/poses.md)")
    return np.array([np.c_[person.places / photo.size, person.visibility] for person in people])
