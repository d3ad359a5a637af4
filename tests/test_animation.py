"""Animations that cfld.edit writes: GIF, WebP, and MP4 by ffmpeg; a clip of poses in one file."""

import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from references import DATA

from cfld.edit.__main__ import main
from cfld.edit.animation import ANIMATIONS, durations, save_animation, save_mp4, sheet_of
from cfld.photos.keypoints import read_annotations
from cfld.tools.cli import UserError

PHOTO = next((DATA / "fashion").rglob("*/id_*/*front.jpg"))
FASHION = read_annotations(DATA / "fashion" / "fasion-resize-annotation-train.csv")
CLIP = np.where(np.stack(list(FASHION.values())[:3]) >= 0, np.stack(list(FASHION.values())[:3]), 0)[:, :, ::-1]
POSIX = pytest.mark.skipif(os.name != "posix", reason="the false ffmpeg is a script")


def moving(count: int, size: tuple[int, int] = (33, 47)) -> list[Image.Image]:
    """Frames of smooth shades in which a square moves; what is outside its way stays."""
    width, height = size
    shade = np.linspace(20, 230, height)[:, None] * np.linspace(0.6, 1, width)
    frames = []
    for i in range(count):
        frame = np.stack([shade, shade[::-1], shade[:, ::-1]], axis=-1).astype(np.uint8)
        frame[4:12, 2 + 2 * i : 10 + 2 * i] = [200, 30, 60]
        frames.append(Image.fromarray(frame))
    return frames


def shown(path: Path) -> tuple[np.ndarray, list[float]]:
    """The frames of a GIF or WebP, and how long each is shown, in ms."""
    with Image.open(path) as animation:
        frames, times = [], []
        for i in range(animation.n_frames):
            animation.seek(i)
            animation.load()
            frames.append(np.asarray(animation.convert("RGB"), int))
            times.append(animation.info["duration"])
        assert animation.info["loop"] == 0
    return np.stack(frames), times


@pytest.mark.parametrize(("suffix", "off"), [(".gif", 12), (".webp", 3)])
def test_an_animation_has_its_frames_its_time_and_no_flicker(suffix: str, off: float, tmp_path: Path) -> None:
    drawn = moving(9)
    save_animation(tmp_path / f"a{suffix}", drawn, 30)
    frames, times = shown(tmp_path / f"a{suffix}")
    assert frames.shape == (9, 47, 33, 3)
    assert np.abs(frames - np.stack([np.asarray(frame, int) for frame in drawn])).mean() < off
    assert sum(times) == 300 and max(times) - min(times) <= 10  # nine thirtieths of a second
    assert (frames == frames[:1])[:, 32:].all()  # nothing moves there, nor within a block of 16 pixels of it


def test_durations_keep_step_with_the_frames_per_second() -> None:
    assert durations(4, 8, 1) == [125, 125, 125, 125] and sum(durations(4, 8, 10)) == 500
    for fps in (1, 7, 23.976, 29.97, 50):
        for unit in (1, 10):
            times = durations(500, fps, unit)
            assert abs(sum(times) - 500_000 / fps) <= unit / 2 and all(time % unit == 0 and time > 0 for time in times)
    assert min(durations(300, ANIMATIONS[".gif"], 10)) == 20


def test_one_frame_is_an_animation_too(tmp_path: Path) -> None:
    for suffix in (".gif", ".webp"):
        save_animation(tmp_path / f"a{suffix}", moving(1), 8)
        with Image.open(tmp_path / f"a{suffix}") as image:
            assert image.size == (33, 47)


def test_frames_of_a_sheet_are_in_rows() -> None:
    sheet = sheet_of([Image.new("RGB", (11, 16), (40 * i, 10, 200)) for i in range(5)], 3)
    assert sheet.size == (33, 32)
    assert sheet.getpixel((12, 20)) == (160, 10, 200) and sheet.getpixel((23, 20)) == (0, 0, 0)


# MP4. -----------------------------------------------------------------------------------------------------------------


def false_ffmpeg(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program named ffmpeg first on PATH, which runs this Python with the arguments in argv."""
    folder.mkdir()
    program = folder / "ffmpeg"
    program.write_text(f"#!{sys.executable}\nimport sys\nargv = sys.argv[1:]\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


KEEPS = """
import json
data = sys.stdin.buffer.read()
open(argv[-1], "wb").write(json.dumps(argv).encode() + b"\\n" + data)
"""


@POSIX
def test_ffmpeg_gets_the_frames_as_they_are_and_even_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    false_ffmpeg(tmp_path / "bin", KEEPS, monkeypatch)
    drawn = moving(3)
    monkeypatch.chdir(tmp_path)
    save_mp4(Path("-a: b.mp4"), drawn, 29.97)
    head, _, data = (tmp_path / "-a: b.mp4").read_bytes().partition(b"\n")
    argv = json.loads(head)
    asked = dict(itertools.pairwise(argv))
    assert asked["-s"] == "34x48" and asked["-r"] == "29.97" and asked["-f"] == "mp4"
    assert argv[-3:-1] == ["mp4", "-y"] and Path(argv[-1]).is_absolute()
    frames = np.frombuffer(data, np.uint8).reshape(3, 48, 34, 3)
    assert (frames[:, :47, :33] == np.stack([np.asarray(frame) for frame in drawn])).all()
    assert (frames[:, 47] == frames[:, 46]).all() and (frames[:, :, 33] == frames[:, :, 32]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["-a: b.mp4", "bin"]


@POSIX
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit('Unknown encoder libx264\\nConversion failed')", "Unknown encoder libx264 Conversion failed"),
        ("sys.stdin.close(); open(argv[-1], 'w').write('half'); sys.exit('No space left')", "No space left"),
        ("sys.stdin.buffer.read()", "exit code 0"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
    ],
)
def test_what_ffmpeg_says_is_one_line_and_nothing_is_left(body: str, words: str, tmp_path: Path, monkeypatch) -> None:
    false_ffmpeg(tmp_path / "bin", body, monkeypatch)
    (tmp_path / "a.mp4").write_text("of before")
    with pytest.raises(UserError, match=r"a\.mp4: ffmpeg could not write it .*or name the file .webp or .gif") as error:
        save_mp4(tmp_path / "a.mp4", moving(40, (200, 300)), 8)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "bin"]
    assert (tmp_path / "a.mp4").read_text() == "of before"


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize("size", [(352, 512), (33, 47)])
def test_a_video_of_ffmpeg_shows_the_frames(size: tuple[int, int], tmp_path: Path) -> None:
    drawn = moving(5, size)
    save_animation(tmp_path / "a.mp4", drawn, 12.5)
    found = subprocess.run(
        ["ffmpeg", "-i", str(tmp_path / "a.mp4"), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True, check=True,
    )  # fmt: skip
    said = found.stderr.decode()
    assert "h264" in said and "yuv420p(tv, bt709" in said and "12.50 fps" in said and "00:00:00.40" in said
    width, height = (side + side % 2 for side in size)
    frames = np.frombuffer(found.stdout, np.uint8).reshape(5, height, width, 3)[:, : size[1], : size[0]].astype(int)
    off = frames - np.stack([np.asarray(frame, int) for frame in drawn])
    assert np.abs(off).mean() < 4 and np.abs(off.mean(axis=(0, 1, 2))).max() < 1.5


# The commands. --------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(micro_folder: Path, tmp_path: Path) -> list[object]:
    np.save(tmp_path / "clip.npy", CLIP)
    argv = ["sequence", "--model", micro_folder, "--device", "cpu", "--steps", 2, "--source", PHOTO]
    return [*argv, "--pose", tmp_path / "clip.npy", "--out"]


@POSIX
def test_sequence_writes_a_clip_in_every_form(asked, tmp_path: Path, monkeypatch, capsys) -> None:
    false_ffmpeg(tmp_path / "bin", KEEPS, monkeypatch)
    outs = [tmp_path / f"o{suffix}" for suffix in (".mp4", ".webp", ".gif", ".png")]
    assert main([str(word) for word in [*asked, *outs, "--size", "128x88", "--across", 3]]) == 0
    assert "its 3 poses are taken as 3 frames" in capsys.readouterr().out
    with Image.open(outs[3]) as sheet:
        tiles = np.asarray(sheet, int).reshape(128, 3, 88, 3).transpose(1, 0, 2, 3)
    frames = np.frombuffer(outs[0].read_bytes().partition(b"\n")[2], np.uint8).reshape(3, 128, 88, 3)
    assert (frames == tiles).all() and (frames[0] != frames[1]).any()
    for out in outs[1:3]:
        assert np.abs(shown(out)[0] - tiles).mean() < 12


def test_a_video_is_not_promised_without_ffmpeg_nor_written_over_another(asked, tmp_path: Path, monkeypatch, fails):
    out = tmp_path / "o.mp4"
    monkeypatch.setattr("shutil.which", lambda name: None)
    fails(main, *asked, out, words=["o.mp4", "ffmpeg, which is not installed", ".webp or .gif"])
    assert not out.exists()
    out.write_text("mine")
    fails(main, *asked, out, words=["o.mp4 already exists", "--force"])
    (tmp_path / "o.webp").write_text("mine")
    fails(main, *asked, tmp_path / "o.webp", words=["o.webp already exists", "--force"])
    fails(main, *asked, tmp_path / "o.avi", words=["must end in .gif or .webp or .mp4 or .png", "found '.avi'"])
    fails(main, *asked, tmp_path / "a.gif", "--fps", 60, words=["--fps", "1 .. 50 for .gif", "found 60"])
    fails(main, *asked, tmp_path / "a.webp", "--fps", 0, words=["--fps", "1 .. 60 for .webp", "found 0"])
    fails(main, *asked, tmp_path / "a.webp", "--fps", "nan", words=["--fps", "found nan"])
