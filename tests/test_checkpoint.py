"""Checkpoints and resuming: what is written, what is read, and what is refused."""

import dataclasses
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import MICRO, micro_model
from run_folders import assert_same, logged, weights
from safetensors import safe_open
from safetensors.torch import load_file

import cfld.train as train_module
from cfld import load, save
from cfld.baselines import to_dict
from cfld.convert.__main__ import main as convert
from cfld.tools.cli import UserError
from cfld.tools.tensors import read_safetensors, write_tensors
from cfld.train import main
from cfld.training.checkpoint import State


def test_a_checkpoint_holds_what_trains_and_the_hash_of_what_does_not(whole: Path) -> None:
    (path,) = (whole / "checkpoints").iterdir()
    assert path.name == "step_00000006.safetensors"
    tensors = load_file(path)
    frozen = "unet.conv_in.weight"
    assert not any(name.endswith(frozen) for name in tensors)
    for kind in ("weights", "averages", "exp_avg", "exp_avg_sq", "step"):
        assert f"{kind}/null_prompt" in tensors
    assert len(json.loads((whole / "config.json").read_text())["base"]) == 64


def test_the_model_that_is_written_is_the_averages(whole: Path) -> None:
    tensors = load_file(whole / "checkpoints" / "step_00000006.safetensors")
    assert torch.equal(weights(whole)["null_prompt"], tensors["averages/null_prompt"])
    assert not torch.equal(tensors["weights/null_prompt"], tensors["averages/null_prompt"])


def test_a_stopped_run_ends_bit_for_bit_as_one_that_was_not(run, whole: Path, fashion: Path) -> None:
    folder = run("stopped", "--steps", 6, "--ema", 0.9, "--save-every", 2)
    for path in sorted((folder / "checkpoints").iterdir())[1:]:
        path.unlink()
    shutil.rmtree(folder / "model")
    assert main(["--out", str(folder), "--resume"]) == 0  # everything else is in the run folder
    assert [line["step"] for line in logged(folder)] == [1, 2, 3, 4, 5, 6]
    assert_same(weights(folder), weights(whole))


def test_a_run_can_go_on_from_a_checkpoint_by_name_and_for_longer(run, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "longer"
    shutil.copytree(whole, folder)
    path = folder / "checkpoints" / "step_00000006.safetensors"
    assert main(["--out", str(folder), "--resume", str(path), "--steps", "8"]) == 0
    assert [line["step"] for line in logged(folder)][-2:] == [7, 8]


def test_a_log_line_that_a_kill_cut_short_is_forgotten(whole: Path, tmp_path: Path, fails) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(whole, folder)
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    fails(main, "--out", folder, "--resume", "--steps", 5, words=["--steps 5", "6 that are done"])
    assert main(["--out", str(folder), "--resume", "--steps", "7"]) == 0
    assert [line["step"] for line in logged(folder)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_bare_resume_without_a_checkpoint_starts_and_says_so(run, capsys) -> None:
    folder = run("fresh", "--steps", 1, "--resume")
    assert "no checkpoint yet" in "".join(capsys.readouterr())
    assert (folder / "model" / "model.safetensors").is_file()


def test_checkpoints_that_somebody_has_named_are_left_alone(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    kept = tmp_path / "run" / "checkpoints" / "step_00000006_keep.safetensors"
    shutil.copy(tmp_path / "run" / "checkpoints" / "step_00000006.safetensors", kept)
    assert main(["--out", str(tmp_path / "run"), "--resume", "--steps", "8", "--save-every", "1", "--keep", "1"]) == 0
    assert sorted(p.name for p in kept.parent.iterdir()) == [kept.name, "step_00000008.safetensors"]


def test_a_model_is_not_written_on_another_base_than_it_was_trained_on(
    argv, micro_folder: Path, tmp_path: Path, fails, monkeypatch
) -> None:
    shutil.copytree(micro_folder, tmp_path / "base")
    fit = train_module.fit

    def meanwhile(*args: object) -> None:
        fit(*args)
        save(tmp_path / "base", *micro_model(seed=9), replace=True)

    monkeypatch.setattr(train_module, "fit", meanwhile)
    words = argv("changed base", "--steps", 1, init=tmp_path / "base")
    fails(main, *words, words=["--init", "has changed", "--resume"])
    out = Path(words[words.index("--out") + 1])
    assert not (out / "model").exists() and (out / "checkpoints" / "step_00000001.safetensors").is_file()


def test_a_checkpoint_becomes_the_model_folder_that_its_training_would_write(
    whole: Path, tmp_path: Path, fails
) -> None:
    last, out = whole / "checkpoints" / "step_00000006.safetensors", tmp_path / "model"
    assert convert(["checkpoint", str(last), "--out", str(out)]) == 0
    for path in (whole / "model").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    other = whole / "checkpoints" / "other.safetensors"
    shutil.copy(whole / "model" / "vae.safetensors", other)
    fails(convert, "checkpoint", other, "--out", tmp_path / "b", words=["must be a checkpoint of cfld.train"])
    other.unlink()
    assert stat.S_IMODE(last.stat().st_mode) == stat.S_IMODE(
        (whole / "config.json").stat().st_mode
    )  # others may read it
    changed = tmp_path / "changed"
    shutil.copytree(whole, changed)
    values = json.loads((changed / "config.json").read_text())
    save(tmp_path / "base", *micro_model(seed=9))
    values["options"]["init"] = str(tmp_path / "base")
    (changed / "config.json").write_text(json.dumps(values))
    fails(convert, "checkpoint", changed / "checkpoints" / last.name, "--out", tmp_path / "b", words=["frozen weights"])
    values["options"]["stage"] = "source"
    (changed / "config.json").write_text(json.dumps(values))
    fails(convert, "checkpoint", changed / "checkpoints" / last.name, "--out", tmp_path / "b", words=["--stage source"])
    fails(convert, "checkpoint", tmp_path / "no.safetensors", "--out", tmp_path / "b", words=["no such file"])


def test_a_checkpoint_of_another_base_is_refused(whole: Path, tmp_path: Path, micro_folder: Path, fails) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.copytree(micro_folder, tmp_path / "base")
    shutil.rmtree(tmp_path / "base")
    save(tmp_path / "base", *micro_model(seed=9))
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    values["options"]["init"] = str(tmp_path / "base")
    (tmp_path / "run" / "config.json").write_text(json.dumps(values))
    fails(main, "--out", tmp_path / "run", "--resume", words=["step_00000006.safetensors", "frozen weights", "--init"])


def test_resuming_from_an_older_checkpoint_loses_nothing_later(run, tmp_path: Path, fails) -> None:
    folder = run("branch", "--steps", 3, "--save-every", 1, "--keep", 5)
    first = folder / "checkpoints" / "step_00000001.safetensors"
    before = sorted(p.name for p in first.parent.iterdir())
    fails(main, "--out", folder, "--resume", first, words=["step_00000003.safetensors", "another --out"])
    assert sorted(p.name for p in first.parent.iterdir()) == before
    options = json.loads((folder / "config.json").read_text())["options"]
    again = ["--out", tmp_path / "new", "--resume", first, "--data", options["data"], "--init", options["init"]]
    again += [
        "--config",
        options["config"],
        "--batch",
        4,
        "--lr",
        1e-3,
        "--warmup",
        2,
        "--precision",
        "fp32",
        "--steps",
        3,
    ]
    assert main([str(a) for a in [*again, "--sample-every", 0, "--device", "cpu"]]) == 0
    assert_same(weights(tmp_path / "new"), weights(folder))


def test_a_moved_init_can_be_named_on_resume(whole: Path, micro_folder: Path, tmp_path: Path, fails) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.copytree(micro_folder, tmp_path / "moved")
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    values["options"]["init"] = str(tmp_path / "gone")
    (tmp_path / "run" / "config.json").write_text(json.dumps(values))
    fails(main, "--out", tmp_path / "run", "--resume", words=["gone"])
    assert main(["--out", str(tmp_path / "run"), "--resume", "--init", str(tmp_path / "moved")]) == 0


def test_a_damaged_config_of_a_run_is_one_line(whole: Path, tmp_path: Path, fails) -> None:
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    whole_text = path.read_text()
    for old, new in (('"lr"', '"learning"'), ('"model"', '"module"'), ('"swin"', '"swan"'), ("{", "")):
        path.write_text(whole_text.replace(old, new, 1))
        fails(main, "--out", tmp_path / "run", "--resume", words=["config.json"])


FIRST = "weights/pose_adapter."  # the beginning of the names of tensors that are changed
DAMAGED: dict[str, tuple[Callable[[dict, dict, str], object], str]] = {
    "not JSON": (lambda facts, tensors, name: "{x", "damaged metadata"),
    "a list": (lambda facts, tensors, name: '["step"]', "damaged metadata"),
    "no base": (lambda facts, tensors, name: facts.pop("base"), "damaged metadata"),
    "no model": (lambda facts, tensors, name: facts.pop("model"), "damaged metadata"),
    "no scaler": (lambda facts, tensors, name: facts.pop("scaler"), "damaged metadata"),
    "a step of letters": (lambda facts, tensors, name: facts.update(step="x"), "step is 'x'"),
    "another model": (lambda facts, tensors, name: facts.update(model={"zork": 1}), "zork"),
    "another shape": (lambda facts, tensors, name: tensors.update({name: torch.zeros(3, 5)}), "found (3, 5)"),
    "no moment": (lambda facts, tensors, name: tensors.pop(f"exp_avg/{name[8:]}"), "found none"),
    "another moment": (lambda facts, tensors, name: tensors.update({f"exp_avg/{name[8:]}": torch.ones(7)}), "(7,)"),
    "whole numbers": (lambda facts, tensors, name: tensors.update({name: tensors[name].char()}), "torch.int8"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_checkpoint_is_one_line(whole: Path, tmp_path: Path, fails, damage: str) -> None:
    change, word = DAMAGED[damage]
    shutil.copytree(whole, tmp_path / "run")
    path = max((tmp_path / "run" / "checkpoints").iterdir())
    tensors, metadata = read_safetensors(path)
    facts, name = json.loads(metadata["cfld"]), next(name for name in tensors if name.startswith(FIRST))
    text = change(facts, tensors, name)
    write_tensors(path, tensors, {"cfld": text if isinstance(text, str) and text[0] in "{[" else json.dumps(facts)})
    fails(main, "--out", tmp_path / "run", "--resume", words=[path.name, word])
    if list(DAMAGED).index(damage) < 7:  # of the metadata
        fails(convert, "checkpoint", path, "--out", tmp_path / "model", words=[path.name, word])


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.int32])
def test_weights_of_another_type_are_named(micro_folder: Path, tmp_path: Path, kind: torch.dtype) -> None:
    shutil.copytree(micro_folder, tmp_path / "model")
    for part in ("model", "vae"):
        path = tmp_path / "model" / f"{part}.safetensors"
        whole, metadata = read_safetensors(path)
        name = next(name for name, x in whole.items() if x.ndim == 2)
        write_tensors(path, whole | {name: whole[name].to(kind)}, metadata)
        with pytest.raises(
            UserError, match=rf"{part}.*1 of another type.*{name}, torch.float32 expected, {kind} found"
        ):
            load(tmp_path / "model")
        write_tensors(path, whole, metadata)


def test_the_best_checkpoint_outlives_later_ones_and_is_remembered(run, monkeypatch) -> None:
    monkeypatch.setattr("cfld.train.VALIDATION_PAIRS", 1)
    losses = iter([0.5, 0.25, 0.75, 0.3, 0.2])
    monkeypatch.setattr("cfld.train.Processes.all_reduce", lambda *_: [next(losses)])
    folder = run("best", "--steps", 3, "--eval-every", 1, "--keep", 1)
    best = folder / "checkpoints" / "best.safetensors"

    def step() -> int:
        with safe_open(best, framework="pt") as file:
            return json.loads(file.metadata()["cfld"])["step"]

    assert step() == 2
    assert main(["--out", str(folder), "--resume", "--steps", "4"]) == 0 and step() == 2
    assert main(["--out", str(folder), "--resume", "--steps", "5"]) == 0 and step() == 5


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays_whole(
    whole: Path, tmp_path: Path, fails, monkeypatch
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    resume = ["--out", tmp_path / "run", "--resume", "--steps", 7, "--keep", 1]

    def full(tensors: dict, path: Path, metadata: dict) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("cfld.tools.tensors.save_file", full)
        fails(main, *resume, words=["step_00000007.safetensors cannot be written", "No space left", "make room"])
    (left,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert left.read_bytes() == (whole / "checkpoints" / left.name).read_bytes()
    assert main([str(a) for a in resume]) == 0


def test_what_a_killed_save_has_left_is_removed_and_nothing_else(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    checkpoints = folder / "checkpoints"
    left = [checkpoints / ".step_00000007.safetensors.99.tmp.safetensors", checkpoints / ".tmp6rU0fb",
            folder / ".model.99.old" / "x"]  # fmt: skip
    mine = [folder / ".notes.txt", folder / "checkpoints" / ".gitignore"]
    for path in [*left, *mine]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    assert main(["--out", str(folder), "--resume"]) == 0
    assert all(path.exists() for path in mine)
    assert not any(path.exists() for path in left) and not left[-1].parent.exists()


def test_an_error_under_the_ema_weights_leaves_the_weights_as_they_were() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    state = State.begin({"w": weight}, MICRO, "", 1e-3, ema=True, scaled=False)
    state.ema["w"].fill_(7)
    with pytest.raises(RuntimeError), state.ema_weights():
        assert weight.tolist() == [7, 7, 7]
        raise RuntimeError
    assert weight.tolist() == [1, 1, 1] and weight.requires_grad


@pytest.mark.parametrize(
    "options",
    [pytest.param(["--stage", "base"], id="base"), pytest.param(["--ablation", "B1"], id="B1", marks=pytest.mark.slow)],
)
def test_frozen_weights_that_no_file_holds_may_be_others_on_resume(
    options: list[str], micro_folder: Path, fashion: Path, tmp_path: Path, monkeypatch
) -> None:
    """As with another version of torch, whose generators draw other numbers: nothing reads these weights."""
    config, parts = tmp_path / "all.json", tmp_path / "parts"
    config.write_text(json.dumps(to_dict(dataclasses.replace(MICRO, unet_trainable="all"))))
    parts.mkdir()
    shutil.copy(micro_folder / "vae.safetensors", parts)
    shutil.copy(config, parts / "config.json")
    data = "people:2x2@7" if "base" in options else fashion
    argv = ["--config", config, "--init", parts, "--data", data, "--batch", 2, "--steps", 2, "--save-every", 1]
    argv += ["--sample-every", 0, "--precision", "fp32", "--device", "cpu", "--out", tmp_path / "run", *options]
    assert train_module.main([str(a) for a in argv]) == 0
    (tmp_path / "run" / "checkpoints" / "step_00000002.safetensors").unlink()
    shutil.rmtree(tmp_path / "run" / "model")
    seed = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda number: seed(number + 1))
    assert train_module.main(["--out", str(tmp_path / "run"), "--resume"]) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
