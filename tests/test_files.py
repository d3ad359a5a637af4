"""What every command shares: pictures of any kind, errors of one line, places that cannot be written."""

import argparse
import contextlib
import itertools
import json
import math
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from references import DATA

import cfld
from cfld.photos.__main__ import main as preview
from cfld.playground.requests import read_photo
from cfld.tools import plot
from cfld.tools.cli import UserError, command, parse_seed
from cfld.tools.files import atomic, open_folder, read_json, read_object, refuse_overwrite, remove_leftovers
from cfld.tools.pictures import read_image, to_rgb, turned_upright
from cfld.tools.tensors import read_safetensors, tensors_hash, write_tensors

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


class Killed(BaseException):
    """What no code catches."""


@pytest.mark.parametrize("token", ["12345678", "0a1b2c3d"])
def test_a_kill_while_a_folder_is_replaced_loses_nothing(token: str, tmp_path: Path, monkeypatch) -> None:
    """Every call that changes the disk is, in turn, the first that is not reached; nor are those after it. Temporary
    names end in eight hexadecimal digits, which may all be decimal, as a process number's are."""
    monkeypatch.setattr("cfld.tools.files.secrets.token_hex", lambda _: token)
    survived = []
    for reached in itertools.count():
        folder = tmp_path / str(reached)
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "weights").write_text("old")
        calls = itertools.count()

        def until_killed(change, calls=calls, reached=reached):
            def call(*args, **options):
                if next(calls) >= reached:
                    raise Killed
                return change(*args, **options)

            return call

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            for owner, name in ((os, "replace"), (shutil, "rmtree"), (Path, "unlink"), (Path, "mkdir")):
                patch.setattr(owner, name, until_killed(getattr(owner, name)))
            patch.setattr(Path, "write_text", until_killed(Path.write_text))
            with atomic(folder / "model", replace_folder=True) as temporary:
                temporary.mkdir()
                (temporary / "weights").write_text("new")
            (folder / "done").touch()
        remove_leftovers(folder)
        assert {path.name for path in folder.iterdir()} - {"done"} == {"model"}
        survived.append((folder / "model" / "weights").read_text())
        if (folder / "done").exists():
            break
    assert len(survived) > 5 and survived == sorted(survived, reverse=True) and {*survived} == {"old", "new"}


def test_a_failure_to_replace_a_folder_leaves_the_old_one_in_its_place(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")

    def interrupted(source: Path, target: Path, replace=os.replace) -> None:
        if source.suffix == ".tmp":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "model", replace_folder=True) as temporary:
        temporary.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "old"


def test_a_plot_shows_the_log(tmp_path: Path, capsys, fails) -> None:
    lines = [{"step": step, "loss": loss, "lr": 1e-4} for step, loss in ((1, 0.9), (2, math.nan), (3, 0.7))]
    text = "".join(json.dumps(line) + "\n" for line in lines)

    def colours() -> set[tuple[int, ...]]:
        assert plot.main([str(tmp_path)]) == 0
        return {colour for _, colour in Image.open(tmp_path / "plot.png").getcolors(1 << 20)}

    (tmp_path / "log.jsonl").write_text(text)
    assert plot.SMOOTH in (found := colours()) and plot.VALIDATION not in found
    assert f"wrote {tmp_path / 'plot.png'}" in capsys.readouterr().out
    (tmp_path / "log.jsonl").write_text(text + '{"step": 3, "validation loss": 0.8}\n{"step": 4, "lo')
    assert plot.read_log(tmp_path / "log.jsonl")["loss"] == [(1, 0.9), (3, 0.7)]
    assert plot.VALIDATION in colours()
    assert plot.smooth([(i, float(i)) for i in range(80)])[40] == (40, 40)
    assert plot.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    (tmp_path / "log.jsonl").write_text("")
    fails(plot.main, tmp_path, words=["log.jsonl", "--log-every"])
    fails(plot.main, tmp_path / "nowhere", words=["run folder"])


def test_tensors_of_every_shape_are_read_and_hashed(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
        "counts": torch.arange(3),
        "half": torch.ones(2).half(),
    }
    write_tensors(tmp_path / "some.safetensors", tensors, {"step": "3"})
    found, metadata = read_safetensors(tmp_path / "some.safetensors")
    assert metadata == {"step": "3"} and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], x) and found[name].dtype == x.dtype for name, x in tensors.items())
    assert len({tensors_hash([(name, x)]) for name, x in tensors.items()}) == 4
    wide, _ = read_safetensors(tmp_path / "some.safetensors", torch.float64)
    assert [wide[name].dtype for name in ("scalar", "half", "counts")] == [torch.float64, torch.float64, torch.int64]


def test_tensors_that_were_read_do_not_change_with_their_file(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    write_tensors(path, {"x": torch.ones(5000)})
    found, _ = read_safetensors(path)
    with open(path, "r+b") as file:
        file.truncate(100)  # pages of a mapped file would be gone
    assert found["x"].sum() == 5000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory as Linux does")
def test_a_file_of_tensors_is_never_in_memory_twice(tmp_path: Path) -> None:
    write_tensors(tmp_path / "some.safetensors", {f"x{i}": torch.ones(1024, 256) for i in range(200)})  # 1 MB each
    measure = (
        "import re, sys, torch; from pathlib import Path; from cfld.tools.tensors import read_safetensors\n"
        "def memory(key): return int(re.search(key + r':\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = memory('VmRSS'); kept = read_safetensors(sys.argv[1]); print((memory('VmHWM') - before) // 1024)"
    )
    command = [sys.executable, "-c", measure, str(tmp_path / "some.safetensors")]
    assert 190 < int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 320


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


AS_ON_WINDOWS = """
import contextlib, io, os, pkgutil, runpy, signal, sys
# These know on which system they are: imported before it is hidden.
import concurrent.futures.process, einops, numpy, PIL.ImageDraw, PIL.ImageFont, PIL.ImageOps, safetensors.torch, tqdm
import torch.distributed, torch.utils.data
for module in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[module] = None
for name in [name for name in dir(signal) if name.startswith("SIG") and name not in (
        "SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN")]:
    delattr(signal, name)
for name in ("fork", "geteuid", "getuid", "killpg", "setsid", "statvfs", "sysconf"):
    delattr(os, name)
import cfld
for module in pkgutil.walk_packages(cfld.__path__, "cfld."):
    __import__(module.name)
for command in "train data people photos convert sample edit evaluate playground tools.plot".split():
    sys.argv, said = [command, "--help"], io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        runpy.run_module(f"cfld.{command}", run_name="__main__")
    assert said.getvalue().startswith("usage: python -m cfld."), command
from pathlib import Path
from cfld.tools.files import alone_in
with alone_in(Path("folder")):
    assert Path("folder").is_dir()
print("imported")
"""


def test_every_module_and_command_begins_where_posix_modules_are_missing(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(cfld.__path__[0]).parent)}
    command = [sys.executable, "-W", "ignore", "-c", AS_ON_WINDOWS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr[-2000:]


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
