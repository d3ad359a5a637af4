"""Write frames as an animation: GIF and WebP by pillow, MP4 by ffmpeg, which must be installed for it."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cfld.photos.pixels import picture_grid
from cfld.tools.cli import UserError
from cfld.tools.files import atomic
from cfld.tools.pictures import save_image

# The most frames per second of each kind, by suffix. GIF counts hundredths of a second, and browsers slow down frames
# of 10 ms and less.
ANIMATIONS = {".gif": 50, ".webp": 60, ".mp4": 120}
QUALITY = 90  # of WebP, within 0 .. 100
# H.264 in the form that browsers and phones play. The colours are converted by the standard that the file names:
# without a name, players guess one from the size.
COLOURS = ("-colorspace", "-color_primaries", "-color_trc")
H264 = [
    *("-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart"),
    *("-vf", "scale=out_color_matrix=bt709", *(word for option in COLOURS for word in (option, "bt709"))),
]


def is_animation(path: Path) -> bool:
    """Whether frames become an animation under this name."""
    return path.suffix.lower() in ANIMATIONS


def check_animation(path: Path, fps: float) -> None:
    """Raise UserError unless so many frames per second can be written under this name here, or a sheet of them."""
    most = ANIMATIONS.get(path.suffix.lower(), max(ANIMATIONS.values()))
    if not 1 <= fps <= most:
        raise UserError(f"--fps must be within 1 .. {most} for {path.suffix}, found {fps:g}")
    if path.suffix.lower() == ".mp4" and shutil.which("ffmpeg") is None:
        raise UserError(
            f"{path}: .mp4 is written by ffmpeg, which is not installed: install it, or name the file .webp or .gif"
        )


def sheet_of(frames: Sequence[Image.Image], across: int) -> Image.Image:
    """Frames of one size in rows, so many in each."""
    return picture_grid([frames[x::across] for x in range(min(across, len(frames)))])


def save_animation(path: Path, frames: Sequence[Image.Image], fps: float) -> None:
    """Write frames of one size, in RGB, as the animation that the suffix names. GIF and WebP are repeated for ever, and
    what does not move in them does not flicker. Raises UserError."""
    kind = path.suffix.lower()
    if kind == ".mp4":
        save_mp4(path, frames, fps)
    elif kind == ".webp":  # a frame stored anew, as a place to start from, would make all of it flicker
        save_all(path, frames, durations(len(frames), fps, 1), quality=QUALITY, kmin=0, kmax=0)
    else:  # 256 colours that all frames share, without dithering
        palette = sheet_of(frames, 16).quantize(256)
        few = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
        save_all(path, few, durations(len(frames), fps, 10), optimize=False)


def save_all(path: Path, frames: Sequence[Image.Image], milliseconds: list[int], **options: int) -> None:
    """Write frames by pillow, each shown so long, and all repeated for ever."""
    first, *rest = frames
    save_image(path, first, save_all=True, append_images=rest, duration=milliseconds, loop=0, **options)


def durations(count: int, fps: float, unit: int) -> list[int]:
    """How long to show each frame, in ms: multiples of the unit, which keep step with fps on the whole."""
    ends = np.rint(np.arange(count + 1) * 1000 / fps / unit)
    return (np.diff(ends) * unit).astype(int).tolist()


def save_mp4(path: Path, frames: Sequence[Image.Image], fps: float) -> None:
    """Write frames as MP4 by ffmpeg, atomically. Sides must be even there: at an odd one, the last row or column of
    pixels comes twice. Raises UserError with what ffmpeg says if it fails."""
    width, height = frames[0].size
    size, more = f"{width + width % 2}x{height + height % 2}", ((0, height % 2), (0, width % 2), (0, 0))
    with atomic(path) as temporary, tempfile.TemporaryFile() as said:
        pixels = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", f"{fps:g}", "-i", "-"]
        argv = ["ffmpeg", "-loglevel", "error", *pixels, *H264, "-f", "mp4", "-y", str(temporary.absolute())]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=said, stderr=said) as process:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # if ffmpeg has ended, it has said why
                for frame in frames:
                    process.stdin.write(np.pad(np.asarray(frame), more, "edge").tobytes())
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if process.returncode or not temporary.is_file():
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines()
            raise UserError(
                f"{path}: ffmpeg could not write it (exit code {process.returncode}: {' '.join(lines)[-300:]}): mend "
                "that, or name the file .webp or .gif"
            )
