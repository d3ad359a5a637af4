"""People found in photos by networks that stand in for BlazePose. tests/real has the real ones."""

import sys
from pathlib import Path

import numpy as np
import pytest
from litert import HIDDEN, install
from PIL import Image, ImageDraw

from cfld.photos.estimator import (
    DETECTOR,
    JOINTS,
    LANDMARKS,
    Circle,
    anchors,
    cut_square,
    find_people,
    refine,
    search,
    squares,
)
from cfld.tools.cli import UserError

RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    install(monkeypatch, tmp_path / "networks")
    return tmp_path / "networks"


def photo_of(size: tuple[int, int], *people: tuple[tuple[int, int, int, int], tuple[int, int, int]]) -> Image.Image:
    photo = Image.new("RGB", size, "white")
    for box, colour in people:
        photo.paste(colour, box)
    return photo


def check(person: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    """That joints lie on the diagonal of the box, where the stand-in puts them."""
    (left, top), (right, bottom) = box[:2], box[2:]
    wanted = np.array([left, top]) + np.linspace(0.1, 0.9, JOINTS)[:, None] * [right - left, bottom - top]
    assert np.abs(person[:, :2] * size - wanted).max() <= 0.03 * (bottom - top)
    assert (person[:HIDDEN, 2] < 0.5).all() and (person[HIDDEN:, 2] > 0.9).all()


def test_people_are_found_at_their_places_the_largest_first(networks: Path) -> None:
    size, boxes = (900, 600), ((100, 150, 200, 350), (600, 100, 720, 400))
    found = find_people(photo_of(size, (boxes[0], RED), (boxes[1], GREEN)))
    assert found.shape == (2, JOINTS, 3)
    check(found[0], boxes[1], size)
    check(found[1], boxes[0], size)


@pytest.mark.parametrize(
    ("size", "share"), [((176, 256), 0.6), ((352, 512), 0.3), ((1000, 450), 0.2), ((450, 1000), 0.6)]
)
def test_a_large_or_small_person_is_one_person_wherever_they_stand(
    networks: Path, size: tuple[int, int], share: float
) -> None:
    height = round(share * min(size))
    for x, y in ((0.1, 0.1), (0.9, 0.6)):
        left, top = round(x * (size[0] - height / 3)), round(y * (size[1] - height))
        box = (left, top, left + height // 3, top + height)
        (person,) = find_people(photo_of(size, (box, RED)))
        check(person, box, size)


def test_the_mask_is_the_person_in_the_photos_own_pixels(networks: Path) -> None:
    photo = photo_of((900, 600), ((100, 150, 200, 350), RED), ((600, 100, 720, 400), GREEN))
    for person, colour in zip(search(photo), (GREEN, RED), strict=True):
        mask = person.mask_image(photo.size)
        assert mask.size == photo.size and set(mask.getdata()) == {0, 255}
        truth = (np.array(photo) == colour).all(axis=2)
        assert (np.array(mask) > 0)[truth].mean() >= 0.95 and (np.array(mask) > 0)[~truth].mean() <= 0.01


def test_a_photo_without_people_or_without_what_finds_them_is_one_line(
    networks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    photo = photo_of((90, 60))
    assert search(photo) == []
    with pytest.raises(UserError, match=r"no person was found in the photo: give a file of joints"):
        find_people(photo)
    for name in (DETECTOR, LANDMARKS):
        (networks / name).write_bytes(b"half")
        with pytest.raises(UserError, match=rf"{name}: not a whole file of a network: fetch it again"):
            find_people(photo)
        (networks / name).unlink()
        with pytest.raises(UserError, match=rf"{name}: no such file, .*fetch pose.*CFLD_POSE_MODELS"):
            find_people(photo)
        (networks / name).write_bytes(b"network")
    monkeypatch.delenv("CFLD_POSE_MODELS")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"weights/pose/{DETECTOR}: no such file"):
        find_people(photo)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(UserError, match=r"LiteRT, which is not installed: pip install ai-edge-litert"):
        find_people(photo)


@pytest.mark.parametrize("turn", [0, 0.7, -2.5])
@pytest.mark.parametrize("side", [100, 700])
def test_a_square_of_a_photo_knows_where_its_pixels_are(turn: float, side: float) -> None:
    photo, disc = Image.new("RGB", (1200, 900), "white"), side / 20
    places = np.array([[500, 400], [540 + side / 9, 400], [500, 400 - side / 7]])
    for number, (x, y) in enumerate(places):
        colour = tuple(0 if axis == number else 255 for axis in range(3))
        ImageDraw.Draw(photo).ellipse((x - disc, y - disc, x + disc, y + disc), fill=colour)
    image, affine = cut_square(photo, np.array([520, 410]), side, turn, 256)
    assert image.shape == (256, 256, 3)
    for number, place in enumerate(places):
        rows, columns = np.nonzero((image[..., number] < 0.5) & (np.delete(image, number, axis=2) > 0.5).all(axis=2))
        seen = affine @ [columns.mean() + 0.5, rows.mean() + 0.5, 1]
        assert np.linalg.norm(seen - place) <= side / 256 + 1
    black = cut_square(photo, np.array([-4000, 0]), 500, turn, 256)[0]
    assert (black == 0).all()


def test_squares_cover_the_photo_and_are_never_enlarged() -> None:
    for width, height in ((100, 80), (176, 256), (448, 300), (1768, 994), (6000, 4000)):
        found = squares(width, height)
        for side in {side for _, side in found}:
            seen = np.zeros((height, width), bool)
            for (x, y), _ in (one for one in found if one[1] == side):
                top, left = max(round(y - side / 2), 0), max(round(x - side / 2), 0)
                seen[top : round(y + side / 2), left : round(x + side / 2)] = True
            assert seen.all()
        assert found[0][1] == max(width, height) and all(side >= 224 for _, side in found[1:])
        assert len(found) <= 1 + 9 + 49
    assert len(squares(1768, 994)) == 1 + 6 + 28


def test_anchors_are_blazeposes() -> None:
    assert anchors().shape == (2254, 2)
    assert np.allclose(
        anchors()[[0, 2, 28 * 28 * 2, -1]], [[1 / 56] * 2, [3 / 56, 1 / 56], [1 / 28] * 2, [13 / 14] * 2]
    )


def test_heat_refines_a_place_where_it_is_sure() -> None:
    heat = np.zeros((64, 64, 3))
    heat[21, 31, :2] = 0.8, 0.4
    heat[22, 31, 0] = 0.8
    places = np.array([[120.0, 80], [120, 80], [-30, 400]])
    assert np.allclose(refine(places, heat), [[124, 86], *places[1:]])


def test_circles_are_told_apart_by_place_and_radius() -> None:
    def circle(x: float, radius: float) -> Circle:
        return Circle(np.array([x, 0.0]), np.array([x, -radius]))

    assert circle(0, 10).differs(circle(0, 10)) == 0
    assert np.isclose(circle(0, 10).differs(circle(3, 8)), 0.5)
    assert circle(0, 0).differs(circle(0, 0)) == 0
