"""Progress: bars and lines for those who wait at a terminal, and nothing in logs."""

import io
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import micro_model
from PIL import Image
from references import DATA

import cfld
from cfld.edit.__main__ import main as edit
from cfld.photos.keypoints import read_annotations
from cfld.sample import main as sample
from cfld.sampling import PAPER, SamplingConfig, decode, denoise, pose_tensor, source_tensor
from cfld.tools.progress import tell, terminal

CSV = DATA / "fashion" / "fasion-resize-annotation-test.csv"
NAME = next(iter(read_annotations(CSV)))
POSE = read_annotations(CSV)[NAME]
PHOTO = DATA / "fashion" / "MEN" / "Tees_Tanks" / "id_00800018" / "01_1_front.jpg"


class Screen(io.StringIO):
    """Standard error that is a terminal, or none."""

    def __init__(self, listens: bool):
        super().__init__()
        self.listens = listens

    def isatty(self) -> bool:
        return self.listens


def bars(shown: Screen) -> int:
    """How many bars of sampling a screen shows: each is drawn again and again in a line of its own."""
    return sum("sampling: 100%" in line for line in shown.getvalue().split("\n"))


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch):
    def install(listens: bool) -> Screen:
        made = Screen(listens)
        monkeypatch.setattr("sys.stderr", made)
        return made

    return install


def painted(screen: Screen, steps: int = 3, **settings: object) -> str:
    """What generate shows."""
    cfld.generate(*micro_model(), Image.open(PHOTO), POSE, SamplingConfig(steps), **settings)
    return screen.getvalue()


def test_generate_shows_a_bar_to_those_who_wait_at_a_terminal(screen, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "sampling" not in painted(screen(True))  # which takes no time
    monkeypatch.setattr("cfld.sampling.PATIENCE", 0)
    assert re.search(r"sampling: 100%.* 3/3", painted(screen(True)))
    for listens, settings in (
        (True, {"progress": False}),
        (True, {"on_step": lambda i, x_0: None}),
        (False, {}),
    ):
        assert painted(screen(listens), **settings) == "", settings
    assert "sampling: 100%" in painted(screen(False), progress=True)  # whoever asks for it
    assert "sampling: 100%" in painted(screen(True), progress=True, on_step=lambda i, x_0: None)


def test_the_bar_comes_when_patience_ends(screen, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, model = screen(True), micro_model()
    monkeypatch.setattr("cfld.sampling.PATIENCE", 0.5)
    before: list[tuple[float, bool]] = []
    begun = time.monotonic()

    def wait(*args: object) -> None:
        before.append((time.monotonic() - begun, bool(shown.getvalue())))
        time.sleep(0.15)

    model[0].unet.register_forward_pre_hook(wait)
    cfld.generate(*model, Image.open(PHOTO), POSE, SamplingConfig(8))
    assert not any(seen for seconds, seen in before if seconds < 0.4) and before[-1][1]
    assert "sampling: 100%" in shown.getvalue()


def test_the_library_below_generate_is_silent_unless_asked(screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfld.sampling.PATIENCE", 0)
    model, vae = micro_model()
    shown = screen(True)
    with torch.no_grad():
        conditions = model.condition(source_tensor(model, Image.open(PHOTO)), pose_tensor(model, POSE[None]))
    denoise(model, vae, conditions, SamplingConfig(2))
    decode(vae, torch.zeros(1, 4, 8, 8))
    assert shown.getvalue() == ""
    decode(vae, torch.zeros(1, 4, 8, 8), progress=True)
    assert "decoding" in shown.getvalue()


def test_a_bar_changes_no_picture(screen) -> None:
    screen(True)
    pictures = [
        cfld.generate(*micro_model(), Image.open(PHOTO), POSE, SamplingConfig(2), progress=progress)[0].tobytes()
        for progress in (True, False, None)
    ]
    assert len(set(pictures)) == 1 and PAPER.steps == 50


def test_sample_tells_what_it_reads_loads_samples_and_decodes_once_each(
    screen, micro_folder: Path, tmp_path: Path
) -> None:
    argv = ["--model", micro_folder, "--source", PHOTO, "--pose", f"{CSV}#{NAME}", "--steps", 2, "--precision", "fp32"]
    argv = [str(word) for word in [*argv, "--device", "cpu", "--out"]]
    shown = screen(True)
    assert sample([*argv, str(tmp_path / "a.png")]) == 0
    lines = shown.getvalue().splitlines()
    assert lines[:2] == [f"reading {PHOTO}", f"loading {micro_folder} on cpu"]
    assert bars(shown) == 1 and "decoding" in shown.getvalue()
    log = screen(False)
    assert sample([*argv, str(tmp_path / "b.png")]) == 0
    assert log.getvalue() == ""
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_edit_tells_the_same(screen, micro_folder: Path, tmp_path: Path) -> None:
    argv = ["interpolate", "--model", micro_folder, "--source", PHOTO, PHOTO, "--pose", f"{CSV}#{NAME}", "--steps", 2]
    argv += ["--frames", 2, "--precision", "fp32", "--device", "cpu", "--out"]
    shown = screen(True)
    assert edit([str(word) for word in [*argv, tmp_path / "a.png"]]) == 0
    assert "loading" in shown.getvalue() and bars(shown) == 1
    log = screen(False)
    assert edit([str(word) for word in [*argv, tmp_path / "b.png"]]) == 0
    assert log.getvalue() == ""


def test_a_console_that_is_not_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)  # pythonw on Windows
    assert not terminal()
    tell("nothing")
    assert np.isfinite(POSE).all()
