"""The benchmarks can be run: every command explains itself, and the small ones give a result."""

import argparse
import importlib
import json
from pathlib import Path

import pytest
from conftest import MICRO
from PIL import Image

FILES = ("cost", "figures", "gpu", "metrics", "quality", "recipes", "speed", "turbo")


def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A parser and those of its sub-commands."""
    of_commands = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [parser, *(command for commands in of_commands for command in commands.values())]


@pytest.mark.parametrize("name", FILES)
def test_every_command_explains_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[argparse.ArgumentParser] = []

    def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> None:
        found.extend(parsers(parser))
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(SystemExit):
        importlib.import_module(name).main([])
    assert len(found) > 1
    for parser in found:
        assert parser.description and f"python benchmarks/{name}.py" in parser.description
        assert all(len(line) <= 120 for line in parser.format_help().splitlines())
        for action in parser._actions:
            assert action.help == argparse.SUPPRESS or action.help or isinstance(action, argparse._SubParsersAction)
            assert len(action.help or "") <= 80
        for action in (a for a in parser._actions if isinstance(a, argparse._SubParsersAction)):
            assert all(choice.help and len(choice.help) <= 80 for choice in action._choices_actions)


def test_demo_writes_a_picture_and_a_line_of_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "demo.webp"
    assert importlib.import_module("quality").main(["demo", "--pairs", "2", "--steps", "2", "--out", str(picture)]) == 0
    with Image.open(picture) as image:
        assert image.format == "WEBP" and image.width <= 1200
    assert "2 people who were not in the training data" in capsys.readouterr().out


def test_fid_equals_scipys(capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module("metrics").main(["fid", "--count", "200", "--width", "16", "--repeats", "1"]) == 0
    difference = float(capsys.readouterr().out.split()[-1])
    assert difference < 1e-6


def test_a_record_of_a_training_holds_its_options_and_each_kind_of_line(tmp_path: Path) -> None:
    lines = [{"step": 10, "loss": 0.5}, {"step": 10, "validation loss": 0.6}, {"step": 20, "loss": 0.4}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.json").write_text(json.dumps({"options": {"steps": 20}, "model": {}}))
    assert importlib.import_module("recipes").training_record(tmp_path) == {
        "name": tmp_path.name,
        "options": {"steps": 20},
        "log": [{"step": [10, 20], "loss": [0.5, 0.4]}, {"step": [10], "validation loss": [0.6]}],
    }


def test_results_of_other_settings_are_not_continued(tmp_path: Path) -> None:
    common, path = importlib.import_module("common"), tmp_path / "x.json"
    path.write_text(json.dumps({"asked": {"pairs": 5}, "scores": {"a": 1}}))
    assert common.earlier_results(path, {"pairs": 5})["scores"] == {"a": 1}
    assert common.earlier_results(path, {"pairs": 6}, scores={}) == {"asked": {"pairs": 6}, "scores": {}}


def test_provenance_is_one_line() -> None:
    common = importlib.import_module("common")
    made = {"gpu": None, "cores": 2, "cpu": "X", "torch": "2", "commit": "a", "date": "2026-01-01"}
    assert common.provenance(made) == "2 cores of X, torch 2, commit a, 2026-01-01."
    assert "commit a and b" in common.provenance(made, {**made, "commit": "b"})


def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["run", "--device", "cpu", "--size", "tiny", "--quick", "--skip-tests", "--out", str(tmp_path)]
    gpu = importlib.import_module("gpu")
    monkeypatch.setitem(gpu.SIZES, "tiny", MICRO)
    monkeypatch.setattr("speed.PRODUCT", {"cpu": 128})
    monkeypatch.setattr("speed.CHANNELS", 16)
    assert gpu.main(argv) == 0
    page, found = (tmp_path / "gpu.md").read_text(), json.loads((tmp_path / "gpu.json").read_text())
    assert {row["what"] for row in found["sampling"]} == {"the official loop", "DDPM-50", "--fast", "--turbo"}
    assert {row["pairs"] for row in found["training"]} == {1} and len(found["training"]) == 6
    assert all(row["seconds"] > 0 and row["gib"] > 0 for row in (*found["sampling"], *found["training"]))
    assert "## A training step" in page and "--stage distill" in page


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_the_tests_of_a_gpu(tmp_path: Path) -> None:
    gpu = importlib.import_module("gpu")
    assert " passed" in gpu.run_tests(gpu.pick_device("cpu")) and "failed" not in gpu.run_tests(gpu.pick_device("cpu"))
