"""Photos as people have them: colour profiles, greys of 16 and 32 bits, HEIC."""

import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from cfld import people
from cfld.playground.requests import read_photo
from cfld.tools.cli import UserError
from cfld.tools.pictures import read_image, save_image, to_rgb

ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))  # the primaries of Adobe RGB and Display P3, as (x, y)
P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
SRGB = ImageCms.createProfile("sRGB")


def profile(primaries: tuple[tuple[float, float], ...]) -> bytes:
    """An ICC profile of version 2: three primaries of D65, brought to D50 by Bradford's matrix, and a gamma of 2.2."""
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    shares = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    matrix = shares * np.linalg.solve(shares, white)
    cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.96422, 1, 0.82521])
    matrix = np.linalg.inv(cones) @ np.diag((cones @ d50) / (cones @ white)) @ cones @ matrix

    def fixed(values: np.ndarray) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    name = b"made here\0"
    described = b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78)
    described += bytes(-len(described) % 4)
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    tags = {b"desc": described, b"cprt": b"text" + bytes(4) + b"none" + bytes(4), b"wtpt": fixed(d50)}
    tags |= {sign + b"XYZ": fixed(matrix[:, i]) for i, sign in enumerate((b"r", b"g", b"b"))}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data = struct.pack(">I", len(tags)), b""
    for sign, content in tags.items():
        table += sign + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(content))
        data += content
    size = 128 + len(table) + len(data)
    head = struct.pack(">I4xI", size, 0x02100000) + b"mntrRGB XYZ " + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp"
    head += bytes(28) + fixed(np.array([0.96422, 1, 0.82491]))[8:]
    return head.ljust(128, b"\0") + table + data


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(people.draw(600_001, 0, limit=people.OWN_SEEDS).image)


def off(found: Image.Image, expected: Image.Image) -> float:
    """The mean difference of two images, in levels of 255."""
    assert found.mode == "RGB" and found.size == expected.size
    return float(np.abs(np.asarray(found).astype(int) - np.asarray(expected.convert("RGB")).astype(int)).mean())


@pytest.mark.parametrize("primaries", [ADOBE, P3])
@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
def test_a_photo_of_a_wide_gamut_looks_as_in_srgb(
    primaries: tuple[tuple[float, float], ...], kind: str, photo: Image.Image, tmp_path: Path
) -> None:
    icc = profile(primaries)
    wide = ImageCms.profileToProfile(photo, SRGB, ImageCms.ImageCmsProfile(io.BytesIO(icc)), outputMode="RGB")
    assert off(wide, photo) > 2
    path = tmp_path / f"wide.{kind}"
    wide.save(path, icc_profile=icc, **({"quality": 100, "subsampling": 0} if kind == "jpg" else {}))
    assert off(read_image(path), photo) < (4 if kind == "webp" else 1)
    assert off(to_rgb(Image.open(path)), photo) < (4 if kind == "webp" else 1)  # as generate takes it
    if kind in ("png", "jpg"):
        assert off(read_photo(path.read_bytes()), photo) < 1
    save_image(tmp_path / "again.png", read_image(path))
    assert off(read_image(tmp_path / "again.png"), read_image(path)) == 0  # not converted twice


def test_transparency_and_palettes_keep_their_colours(photo: Image.Image, tmp_path: Path) -> None:
    icc = profile(P3)
    wide = ImageCms.profileToProfile(photo, SRGB, ImageCms.ImageCmsProfile(io.BytesIO(icc)), outputMode="RGB")
    clear = wide.convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 20, 20))
    clear.save(tmp_path / "clear.png", icc_profile=icc)
    expected = photo.copy()
    expected.paste("white", (0, 0, 20, 20))
    assert off(read_image(tmp_path / "clear.png"), expected) < 1
    few = wide.quantize(256)
    few.save(tmp_path / "few.png", icc_profile=icc)
    assert off(read_image(tmp_path / "few.png"), photo) < off(few.convert("RGB"), photo)


@pytest.mark.parametrize("icc", [None, b"damaged", ImageCms.ImageCmsProfile(SRGB).tobytes()])
def test_a_photo_without_a_profile_or_with_srgbs_or_a_damaged_one_stays_bit_for_bit(
    icc: bytes | None, photo: Image.Image, tmp_path: Path
) -> None:
    photo.save(tmp_path / "a.png", icc_profile=icc)
    assert off(read_image(tmp_path / "a.png"), photo) == 0
    photo.convert("L").save(tmp_path / "grey.png", icc_profile=profile(P3))  # of another kind of image
    assert off(read_image(tmp_path / "grey.png"), photo.convert("L")) == 0


def test_greys_of_16_bits_and_floats_are_scaled_and_others_refused(photo: Image.Image, tmp_path: Path) -> None:
    grey = photo.convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "16.png")
    Image.fromarray(deep).save(tmp_path / "16.tif")
    Image.fromarray(deep.astype(np.int32)).save(tmp_path / "32.tif")
    Image.fromarray(np.asarray(grey).astype(np.float32) / 255).save(tmp_path / "float.tif")
    for name in ("16.png", "16.tif", "32.tif", "float.tif"):
        assert off(read_image(tmp_path / name), grey) == 0
    for name, values in (
        ("a.tif", np.asarray(grey).astype(np.float32)),
        ("b.tif", deep.astype(np.int32) * 60000),
        ("c.tif", np.asarray(grey).astype(np.int32)),
        ("d.tif", np.full((9, 9), np.nan, np.float32)),
    ):
        Image.fromarray(values).save(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name}: grey values of 32 bits .* found .*save the image with 8"):
            read_image(tmp_path / name)


def heic(photo: Image.Image, path: Path) -> Path:
    """As an iPhone's, whatever the path's ending says."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(photo).save(path.with_suffix(".heic"), quality=95)
    return path.with_suffix(".heic").rename(path)


@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "a.jpg"])
def test_heic_is_read_by_the_extra(name: str, photo: Image.Image, tmp_path: Path) -> None:
    assert off(read_image(heic(photo, tmp_path / name), upright=True), photo) < 3


def test_without_the_extra_heic_is_one_line(
    photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(UserError, match=r"a.heic: HEIC photos are read by pillow-heif.*pip install pillow-heif"):
        read_image(path)
    with pytest.raises(UserError, match="must be a JPEG, PNG or WebP picture"):
        read_photo(path.read_bytes())


def test_the_playground_takes_heic_with_the_extra(photo: Image.Image, tmp_path: Path) -> None:
    assert off(read_photo(heic(photo, tmp_path / "a.heic").read_bytes()), photo) < 3
