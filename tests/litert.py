"""In place of LiteRT and BlazePose: networks that see a rectangle of pure colour as a person."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cfld.photos import estimator
from cfld.photos.estimator import DETECTOR, JOINTS, LANDMARKS, anchors

COLOURS = ((255, 0, 0), (0, 255, 0))
HIDDEN = 6  # the first joints of the rectangle have a visibility of 0.4, the others of nearly 1
CIRCLE = 1.2  # its radius, in halves of the rectangle's height


def rectangles(image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """image (H, H, 3) in [0, 1] -> for each colour in it the mask, and the corners as (x, y)."""
    found = []
    for colour in COLOURS:
        mask = (np.abs(image - np.array(colour) / 255) < 0.25).all(axis=2)
        rows, columns = np.nonzero(mask)
        if len(rows) > 30:
            found.append((mask, np.array([columns.min(), rows.min()]), np.array([columns.max(), rows.max()]) + 1))
    return found


def circle(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    middle = (low + high) / 2
    return np.array([middle, middle - [0, CIRCLE * (high - low)[1] / 2]])


class Interpreter:
    def __init__(self, model_path: str, num_threads: int):
        if Path(model_path).read_bytes() != b"network":
            raise ValueError("Model provided has model identifier 'half'")
        assert num_threads >= 1
        self.invoke = {DETECTOR: self.detect, LANDMARKS: self.mark}[Path(model_path).name]
        self.outputs = 2 if self.invoke == self.detect else 5

    def allocate_tensors(self) -> None:
        pass

    def get_input_details(self) -> list[dict]:
        return [{"index": 7}]

    def get_output_details(self) -> list[dict]:
        return [{"index": index} for index in range(self.outputs)]

    def set_tensor(self, index: int, image: np.ndarray) -> None:
        assert index == 7 and image.dtype == np.float32 and len(image) == 1
        self.image = image[0]

    def get_tensor(self, index: int) -> np.ndarray:
        return self.results[index][None]

    def detect(self) -> None:
        assert self.image.shape == (224, 224, 3) and -1 <= self.image.min() <= self.image.max() <= 1
        boxes, logits, places = np.zeros((2254, 12)), np.full((2254, 1), -9.0), 224 * anchors()
        for number, (_, low, high) in enumerate(rectangles(self.image / 2 + 0.5)):
            wanted = circle(low, high)
            nearest = np.linalg.norm(places - wanted[0], axis=1).argmin() + number % 2
            boxes[nearest, 4:8] = (wanted - places[nearest]).flatten()
            logits[nearest] = 9
        self.results = [boxes, logits]

    def mark(self) -> None:
        assert self.image.shape == (256, 256, 3) and 0 <= self.image.min() <= self.image.max() <= 1
        values, mask, score = np.zeros((39, 5)), np.full((256, 256, 1), -9.0), 0.0
        if found := rectangles(self.image):
            seen, low, high = max(found, key=lambda one: one[0][96:160, 96:160].sum())
            values[:JOINTS, :2] = low + np.linspace(0.1, 0.9, JOINTS)[:, None] * (high - low)
            values[JOINTS : JOINTS + 2, :2] = circle(low, high)
            values[:, 3] = np.where(np.arange(39) < HIDDEN, math.log(0.4 / 0.6), 9)
            mask[seen], score = 9, 1.0
        self.results = [values.flatten(), np.array([score]), mask, np.full((64, 64, 39), -9.0), np.zeros(117)]


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the estimator find these in a folder."""
    folder.mkdir(exist_ok=True)
    for name in (DETECTOR, LANDMARKS):
        (folder / name).write_bytes(b"network")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", SimpleNamespace(Interpreter=Interpreter))
    monkeypatch.setenv("CFLD_POSE_MODELS", str(folder))
    assert estimator.MODELS == "weights/pose"
