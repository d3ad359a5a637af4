"""What every command shares: pictures of any kind, errors of one line, places that cannot be written."""

import argparse
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from references import DATA

from cfld.photos.__main__ import main as preview
from cfld.playground.requests import read_photo
from cfld.tools.cli import UserError, command, parse_seed
from cfld.tools.files import open_folder, read_json, read_object, refuse_overwrite
from cfld.tools.pictures import read_image, to_rgb, turned_upright

PHOTO = DATA / "fashion" / "MEN" / "Tees_Tanks" / "id_00800018" / "01_1_front.jpg"


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (4, 4), (10, 20, 30, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 128))
    picture.save(tmp_path / "cut out.png")
    for found in (read_image(tmp_path / "cut out.png"), read_photo((tmp_path / "cut out.png").read_bytes())):
        assert [found.getpixel((x, 0)) for x in range(3)] == [(255,) * 3, (127,) * 3, (10, 20, 30)]


def test_sixteen_bits_of_grey_become_eight(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(2, axis=0)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert [read_image(tmp_path / "ramp.png").getpixel((x, 0)) for x in (0, 128, 255)] == [
        (0,) * 3,
        (128,) * 3,
        (255,) * 3,
    ]


def test_a_camera_s_damaged_tag_does_not_lose_the_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(image: Image.Image) -> Image.Image:
        raise struct.error("unpack requires a buffer of 2 bytes")

    monkeypatch.setattr("cfld.tools.pictures.ImageOps.exif_transpose", damaged)
    assert turned_upright(Image.open(PHOTO)).size == read_image(PHOTO, upright=True).size == Image.open(PHOTO).size


def test_an_rgb_picture_stays_what_it_is() -> None:
    assert to_rgb(Image.open(PHOTO)).tobytes() == Image.open(PHOTO).tobytes()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"), ["not enough memory", "--accumulate"]),
        (MemoryError(), ["not enough memory", "--batch"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ["not enough memory", "--batch"]),
        (UnicodeEncodeError("utf-8", "caf\udce9.jpg", 3, 4, "surrogates"), ["UTF-8", r"caf\udce9.jpg"]),
    ],
)
def test_lack_of_memory_and_odd_names_are_one_line(error: Exception, words: list[str], fails) -> None:
    @command
    def main(argv: list[str]) -> None:
        raise error

    fails(main, words=words)


def test_other_errors_of_the_code_keep_their_traceback() -> None:
    @command
    def main(argv: list[str]) -> None:
        raise RuntimeError("shape '[2]' is invalid")

    with pytest.raises(RuntimeError, match="invalid"):
        main([])


def test_a_json_file_of_another_shape_or_of_huge_numbers_is_named(tmp_path: Path, fails) -> None:
    path = tmp_path / "some.json"

    @command
    def main(argv: list[str]) -> None:
        read_object(path, "seed", "size")

    for text, words in (
        ("[]", ["some.json", "list"]),
        ('{"seed": 1}', ["some.json", "'size'"]),
        ("9" * 5000, ["some.json", "not JSON"]),
    ):
        path.write_text(text)
        fails(main, words=words)
    path.write_text(json.dumps({"seed": 1, "size": 2}))
    assert read_object(path, "seed", "size") == {"seed": 1, "size": 2}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named_before_the_work(tmp_path: Path, fails) -> None:
    tmp_path.chmod(0o500)
    fails(preview, PHOTO, "--out", tmp_path / "new" / "out.png", words=["out.png", "cannot be written"])


def test_a_file_in_a_folder_s_place_is_named_before_the_work(tmp_path: Path, fails) -> None:
    (tmp_path / "file").touch()

    @command
    def main(argv: list[str]) -> None:
        refuse_overwrite(tmp_path / "new" / "out.png", force=False)
        refuse_overwrite(tmp_path / "file" / "out.png", force=True)

    fails(main, words=["out.png", "cannot be written", "file is no folder"])


@pytest.mark.parametrize("text", ["-1", str(2**63), "1.5", "", "one"])
def test_a_seed_that_a_generator_would_not_take_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="at least 0 and below"):
        parse_seed(text)
    assert parse_seed(str(2**63 - 1)) == 2**63 - 1


def test_a_folder_that_was_begun_with_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    manifest = tmp_path / "new" / "manifest.json"
    for _ in range(2):
        open_folder(manifest, {"seed": 0, "size": "8x8", "steps": 1}, "choose another")
    with pytest.raises(UserError, match="new was made with seed 0, steps 1, asked was seed 1, steps 2: choose another"):
        open_folder(manifest, {"seed": 1, "size": "8x8", "steps": 2}, "choose another")
    with pytest.raises(UserError, match="new was made with steps 1, asked was steps None"):
        open_folder(manifest, {"seed": 0, "size": "8x8"}, "choose another")
    with pytest.raises(UserError, match="must be empty or made by this command"):
        open_folder(manifest.with_name("other.json"), {"seed": 0}, "choose another")
    with pytest.raises(UserError, match="must be a folder, found a file"):
        open_folder(manifest / "manifest.json", {"seed": 0}, "choose another")
    assert read_json(manifest) == {"seed": 0, "size": "8x8", "steps": 1}
