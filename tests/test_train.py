"""The loop: options, precision, memory, validation, samples, and mistakes."""

import json
import math
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import MICRO, micro_model
from PIL import Image
from run_folders import assert_same, logged, weights
from safetensors import safe_open

import cfld.train as train_module
from cfld.data.batch import StepOrder, collate
from cfld.data.cache import Cache
from cfld.data.pairs import FashionPairs
from cfld.folder import load
from cfld.objective import step_noise, training_loss
from cfld.photos.pixels import to_pictures, to_range
from cfld.tools.files import alone_in
from cfld.train import NO_STEP, learning_rate, main
from cfld.training.checkpoint import State
from cfld.training.memory import checkpoint_activations
from cfld.training.options import TrainConfig
from cfld.training.run_folder import Meter
from cfld.training.stages import Stage


def test_clipping_shortens_the_gradient_and_keeps_its_direction(run, monkeypatch) -> None:
    seen: dict[float, torch.Tensor] = {}
    step = torch.optim.Adam.step

    def look(optimizer: torch.optim.Adam, *args: object, **more: object) -> object:
        gradients = [
            p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        seen[clip] = torch.cat(gradients)
        return step(optimizer, *args, **more)

    monkeypatch.setattr(torch.optim.Adam, "step", look)
    for clip in (0.0, 0.01):
        run(f"clip{clip}", "--steps", 1, "--clip", clip)
    assert seen[0.0].norm() > 0.02
    assert seen[0.01].norm() == pytest.approx(0.01, rel=1e-3)
    assert F.cosine_similarity(seen[0.0], seen[0.01], dim=0) == pytest.approx(1, abs=1e-4)


def test_the_learning_rate_warms_up_and_falls_to_a_tenth_half_way() -> None:
    options = TrainConfig(batch=224)
    assert options.peak_lr == pytest.approx(1.12e-4)
    assert TrainConfig(batch=112, recipe="released").peak_lr == pytest.approx(0.5e-4)
    rates = [learning_rate(step, 45_500, options) / 1.12e-4 for step in (0, 499, 999, 1000, 22_749, 22_750, 45_499)]
    assert rates == pytest.approx([0.1009, 0.55, 1, 1, 1, 0.1, 0.1])


def test_a_run_folder_holds_its_options_log_checkpoints_and_model(whole: Path, micro_folder: Path) -> None:
    assert json.loads((whole / "config.json").read_text())["options"]["steps"] == 6
    log = logged(whole)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert log[0].keys() == {"step", "loss", "lr", "samples/s"}
    assert all(math.isfinite(line["loss"]) for line in log)
    model, _ = load(whole / "model")
    before = load(micro_folder)[0].state_dict()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert changed <= trained
    assert "null_prompt" in changed and "unet.up.3.attentions.1.block.cross_attention.to_k.weight" in changed
    assert len(changed) > 0.9 * len(trained)


def test_accumulation_changes_nothing_but_memory(run) -> None:
    one, four = run("one", "--steps", 2), run("four", "--steps", 2, "--accumulate", 4)
    for a, b in zip(logged(one), logged(four), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    before = weights(one)
    for name, x in weights(four).items():
        assert torch.allclose(x, before[name], atol=3e-5), name


def test_the_same_seed_gives_the_same_weights_and_another_another(run) -> None:
    runs = [
        run(f"seed {seed} {i}", "--steps", 2, "--seed", seed, "--precision", "bf16") for i, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (weights(folder)["null_prompt"] for folder in runs)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_frozen_weights_are_not_in_the_optimizer(run, monkeypatch) -> None:
    seen: list[tuple[Stage, State]] = []
    begin = train_module.fit

    def look(stage: Stage, state: State, *rest: object) -> None:
        seen.append((stage, state))
        begin(stage, state, *rest)

    monkeypatch.setattr(train_module, "fit", look)
    run("optimised", "--steps", 1)
    ((stage, state),) = seen
    held = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    parameters = dict(stage.named_parameters())
    assert all((id(p) in held) == p.requires_grad for p in parameters.values())
    assert len(held) == len(state.trained) < len(parameters)


def test_two_trainings_do_not_share_a_folder(whole: Path, tmp_path: Path, fails, monkeypatch) -> None:
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr("cfld.tools.files.time.sleep", lambda seconds: None)
    with alone_in(tmp_path / "run"):
        fails(main, "--out", tmp_path / "run", "--resume", "--steps", 7, words=["in use by another process"])
    assert main(["--out", str(tmp_path / "run"), "--resume", "--steps", "7"]) == 0


def test_a_folder_of_something_else_is_not_gone_on_with(tmp_path: Path, fails) -> None:
    (tmp_path / "notes.txt").write_text("not a run's")
    fails(main, "--out", tmp_path, "--resume", words=["must be a run folder", "no config.json", "another --out"])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_sample_grid_shows_held_out_pairs_with_fixed_seeds(run, fashion: Path) -> None:
    folder = run("grid", "--steps", 2, "--sample-every", 1, "--sample-steps", 2, "--lr", 1e-30)
    first, second = (Image.open(folder / "samples" / f"step_0000000{i}.png") for i in (1, 2))
    assert first.size == (4 * 176, 4 * 256)
    assert first.tobytes() == second.tobytes()  # nothing was learnt, so nothing changed
    pairs = FashionPairs(fashion, "test", MICRO.image_size, MICRO.swin.image_size)
    shown = collate([pairs[i * len(pairs) // 4] for i in range(4)]).images
    for column, images in ((0, shown[:4]), (2, shown[4:])):
        for row, picture in enumerate(to_pictures(to_range(images), (256, 176))):
            place = (176 * column, 256 * row, 176 * (column + 1), 256 * (row + 1))
            assert first.crop(place).tobytes() == picture.tobytes(), (column, row)


def test_fp16_trains_with_loss_scaling_and_goes_on_with_the_same_scale(run, micro_folder: Path) -> None:
    folder = run("fp16", "--steps", 2, "--save-every", 1, "--precision", "fp16")
    learnt = weights(folder)
    assert not torch.equal(learnt["null_prompt"], load(micro_folder)[0].null_prompt)
    first, last = sorted((folder / "checkpoints").iterdir())
    for path in (first, last):
        with safe_open(path, framework="pt") as file:
            assert json.loads(file.metadata()["cfld"])["scaler"]["scale"] > 1
    last.unlink()
    assert main(["--out", str(folder), "--resume"]) == 0
    assert_same(weights(folder), learnt)


def test_a_step_from_a_cache_has_the_loss_that_its_options_say(run, cache: Path, fashion: Path) -> None:
    options = ("--recipe", "released", "--min-snr", 0.1, "--seed", 3)
    (line,) = logged(run("cached", "--steps", 1, "--cache", cache, *options))
    pairs = FashionPairs(fashion, "train", MICRO.image_size, MICRO.swin.image_size)
    pairs.cache = Cache(cache, {}, pairs.photos)
    (places,) = StepOrder(len(pairs), 4, 3, 0, 1)
    batch, draws = collate([pairs[i] for i in places]), step_noise(3, 0, range(4), MICRO)
    assert batch.images is None and batch.moments.dtype == torch.float16 and (draws.drops < 0.2).any()
    model, vae = micro_model()
    losses = [
        training_loss(model, vae, batch, d, recipe, min_snr).item()
        for d, recipe, min_snr in (
            (draws, "released", 0.1),
            (draws, "paper", 0.1),
            (draws, "released", 0.0),
        )
    ]
    assert line["loss"] == pytest.approx(losses[0], rel=1e-5), losses
    assert all(abs(line["loss"] / other - 1) > 1e-4 for other in losses[1:]), losses


def test_a_cache_of_other_photos_of_the_same_names_is_refused(
    argv, cache: Path, fashion: Path, tmp_path: Path, fails
) -> None:
    shutil.copytree(fashion, tmp_path / "fashion")
    photo = next((tmp_path / "fashion" / "train_highres").iterdir())
    data = photo.read_bytes()
    photo.unlink()  # it may be the same file as the sample's
    photo.write_bytes(data + b"more")
    fails(main, *argv("stale", "--steps", 1, "--cache", cache), "--data", tmp_path / "fashion", words=["made with sum"])


def test_a_folder_that_fills_while_a_model_loads_is_not_emptied(argv, fails, monkeypatch) -> None:
    words = argv("filled", "--steps", 1)
    out = Path(words[words.index("--out") + 1])
    begin = State.begin

    def slowly(*args: object, **more: object) -> State:
        out.mkdir()
        (out / "thesis.txt").write_text("precious")
        return begin(*args, **more)

    monkeypatch.setattr(State, "begin", slowly)
    fails(main, *words, words=["already exists", "--force"])
    assert (out / "thesis.txt").read_text() == "precious"


def test_a_warm_up_that_never_ends_is_said(run, capsys) -> None:
    run("cold", "--steps", 1, "--warmup", 100)
    assert "warm-up of 100 steps" in capsys.readouterr().out
    run("warm", "--steps", 4, "--warmup", 2)
    assert "warm-up" not in capsys.readouterr().out


def test_mistakes_are_one_line_and_lose_nothing(
    run, whole: Path, fashion: Path, micro_folder: Path, tmp_path: Path, fails
) -> None:
    base = [
        "--config",
        micro_folder / "config.json",
        "--init",
        micro_folder,
        "--data",
        fashion,
        "--batch",
        4,
        "--steps",
        1,
    ]
    new = [*base, "--out", tmp_path / "new", "--device", "cpu"]
    before = sorted((p, p.stat().st_mtime_ns) for p in whole.rglob("*"))
    fails(main, *base, "--out", whole, words=["already exists", "--resume", "--force"])
    fails(main, "--out", whole, "--resume", "--preset", "tiny", words=["--preset tiny", "sd15"])
    fails(main, "--out", whole, "--resume", "--seed", 5, words=["--seed 5", "0"])
    assert sorted((p, p.stat().st_mtime_ns) for p in whole.rglob("*")) == before
    fails(main, *new, "--batch", 1000, words=["--batch 1000", "200"])
    fails(main, *new, "--accumulate", 3, words=["--batch 4", "--accumulate 3"])
    fails(main, *new, "--ema", 1.5, words=["--ema", "1.5"])
    fails(main, *new, "--steps", 0, words=["--steps", "found 0"])
    fails(main, *new, "--epochs", 2, words=["--steps 1", "--epochs 2"])
    fails(main, *base[:-2], "--out", tmp_path / "new", "--epochs", "inf", words=["--epochs", "found inf"])
    fails(main, *new, "--seed", 10**20, words=["--seed", "2^63"])
    fails(main, *base, "--out", whole, "--force", "--cache", whole / "cache", words=["--cache", "inside --out"])
    fails(main, *new, "--sample-steps", 1000, words=["--sample-steps", "999", "1000"])
    fails(main, *new, "--stage", "vae", words=["--stage vae", "--init"])
    fails(main, *base, "--out", micro_folder.parent, "--force", words=["--init", "inside --out"])
    fails(main, *new, "--data", tmp_path, words=["fasion-resize-pairs-train.csv"])
    fails(
        main,
        "--preset",
        "tiny",
        "--init",
        micro_folder,
        "--data",
        fashion,
        "--out",
        tmp_path / "new",
        words=["another architecture"],
    )
    fails(main, "--preset", "tiny", "--data", fashion, "--out", tmp_path / "new", words=["--init DIR", "--stage vae"])
    fails(main, *new[:-4], "--out", tmp_path / "new", "--device", "cuda:77", words=["--device cuda:77"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    fails(main, *base, "--out", tmp_path / "mine", "--force", words=["config.json"])
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    assert not (tmp_path / "new").exists()


def test_a_gradient_or_weight_that_is_not_finite_reaches_no_checkpoint_and_no_model(
    run, whole: Path, tmp_path: Path, fails, monkeypatch
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    resume = ["--out", tmp_path / "run", "--resume", "--steps", 8, "--save-every", 1, "--keep", 1]
    loss = training_loss

    def lost_gradient(*args):
        value = loss(*args)
        return value + 0 * (value - value.detach()).sqrt()  # finite, but the slope of sqrt at 0 is not

    monkeypatch.setattr("cfld.training.stages.training_loss", lost_gradient)
    fails(main, *resume, words=["gradient norm of step 6", "was not overwritten"])
    monkeypatch.setattr("cfld.training.stages.training_loss", loss)
    monkeypatch.setattr("cfld.train.learning_rate", lambda *args: 1e39)
    fails(main, *resume, words=["not finite", "lower --lr"])
    (left,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert left.read_bytes() == (whole / "checkpoints" / "step_00000006.safetensors").read_bytes()


def test_an_unreadable_photo_is_one_line_in_a_worker_too(
    run, fashion: Path, micro_folder: Path, tmp_path: Path, fails
) -> None:
    shutil.copytree(fashion, tmp_path / "data")
    for path in (tmp_path / "data" / "train_highres").iterdir():
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:600])
    argv = ["--config", micro_folder / "config.json", "--init", micro_folder, "--data", tmp_path / "data", "--batch", 2]
    line = fails(main, *argv, "--out", tmp_path / "run", "--workers", 1, "--device", "cpu", words=[".jpg", "readable"])
    assert "Traceback" not in line
    assert not multiprocessing.active_children()  # a worker that is left would keep the command from ending


def test_a_loss_that_is_not_finite_stops_with_its_step_and_saves_nothing(
    run, whole: Path, tmp_path: Path, fails
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    values["options"] |= {"lr": 1e30, "decay_at": 1.0}
    (tmp_path / "run" / "config.json").write_text(json.dumps(values))
    checkpoint = (tmp_path / "run" / "checkpoints" / "step_00000006.safetensors").read_bytes()
    line = fails(main, "--out", tmp_path / "run", "--resume", "--steps", 12, words=["loss of step", "finite"])
    assert "nan" in line or "inf" in line
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000006.safetensors"]
    assert (tmp_path / "run" / "checkpoints" / "step_00000006.safetensors").read_bytes() == checkpoint


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_been(
    argv, whole: Path, monkeypatch, capsys, name: str
) -> None:
    number = signal.Signals[name]

    def ask(step: int, total: int, options: TrainConfig) -> float:
        if step == 2 and not asked:
            asked.append(step)
            os.kill(os.getpid(), number)
        return learning_rate(step, total, options)

    asked: list[int] = []
    monkeypatch.setattr("cfld.train.learning_rate", ask)
    arguments = argv(name, "--steps", 6, "--ema", 0.9)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 128 + number and signal.getsignal(number) == before
    folder = Path(arguments[arguments.index("--out") + 1])
    assert f"{name}: saved {folder} after step 3" in capsys.readouterr().out
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000003.safetensors"]
    assert main(["--out", str(folder), "--resume"]) == 0
    assert_same(weights(folder), weights(whole))


def test_the_held_out_loss_is_of_the_averages_and_changes_nothing(run, whole: Path, fashion: Path, monkeypatch) -> None:
    monkeypatch.setattr("cfld.train.VALIDATION_PAIRS", 4)
    folder = run("looked", "--steps", 6, "--ema", 0.9, "--eval-every", 2, "--keep", 1)
    assert_same(weights(folder), weights(whole))
    seen = {line["step"]: line["validation loss"] for line in logged(folder) if "validation loss" in line}
    assert list(seen) == [2, 4, 6]
    model, vae = load(folder / "model")  # the EMA weights after step 6
    pairs = FashionPairs(fashion, "test", MICRO.image_size, MICRO.swin.image_size)
    batch = collate([pairs[place * len(pairs) // 4] for place in range(4)])
    draws = step_noise(0, NO_STEP, range(4), MICRO)
    with torch.no_grad():
        assert seen[6] == pytest.approx(training_loss(model, vae, batch, draws, "paper").item(), 1e-4)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.safetensors",
        "step_00000006.safetensors",
    ]


def test_without_pairs_that_are_not_trained_on_there_is_no_held_out_loss(
    argv, fashion: Path, tmp_path: Path, fails
) -> None:
    shutil.copytree(fashion, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "test_highres")
    fails(main, *argv("never", "--eval-every", 1, "--data", tmp_path / "data"), words=["--eval-every", "no test split"])


def test_a_folder_that_cannot_be_made_is_one_line(argv, tmp_path: Path, fails) -> None:
    (tmp_path / "file").write_text("")
    fails(
        main, *argv("never", "--steps", 1, "--out", tmp_path / "file" / "run"), words=["file/run", "cannot be written"]
    )


def test_a_dry_run_says_what_a_step_needs_and_writes_nothing(argv, capsys) -> None:
    arguments = argv("dry", "--epochs", 2, "--ema", 0.9, "--dry-run", "--save-every", 1)
    assert main(arguments) == 0
    assert not Path(arguments[arguments.index("--out") + 1]).exists()
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    said = {name.strip(): value.strip() for name, value in lines.items()}
    model, vae = micro_model()
    parameters = [*model.parameters(), *vae.parameters()]
    trained = sum(p.numel() for p in parameters if p.requires_grad) - sum(p.numel() for p in vae.parameters())
    assert said["parameters"] == f"{sum(p.numel() for p in parameters):,}" and said["that train"] == f"{trained:,}"
    assert said["steps per epoch"] == "50" and "100 steps" in said
    assert said["gradients"] == said["EMA weights"] == f"{4 * trained / 2**30:.3f} GiB"
    assert {"weights", "optimiser", "activations and the rest", "a step"} <= said.keys()


def test_switches_reach_the_unet_and_a_stop_changes_nothing_with_them(run, tmp_path: Path, monkeypatch) -> None:
    compiled: list[str] = []
    levels: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))

    def look(module: torch.nn.Module, level: str) -> None:
        levels.append(level)
        checkpoint_activations(module, level)

    monkeypatch.setattr("cfld.train.checkpoint_activations", look)
    switches = ["--compile", "--activation-checkpointing", "all"]
    plain, folder = run("no switch", "--steps", 2), run("switches", "--steps", 2, "--save-every", 1, *switches)
    assert compiled == ["UNet"] and levels == ["none", "all"]
    for a, b in zip(logged(plain), logged(folder), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    before = weights(folder)
    (folder / "checkpoints" / "step_00000002.safetensors").unlink()
    assert main(["--out", str(folder), "--resume"]) == 0
    assert_same(weights(folder), before)


def test_a_run_that_was_begun_with_former_names_of_options_goes_on(whole: Path, tmp_path: Path, fails) -> None:
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    for name in ("activation_checkpointing", "compile", "eval_every", "timeout"):
        del values["options"][name]
    values["options"] |= {"checkpointing": "all", "noise_offset": 0.0, "channels_last": False}
    path.write_text(json.dumps(values))
    fails(main, "--out", tmp_path / "run", "--resume", "--min-snr", 5, words=["--min-snr 5.0 differs from 0.0"])
    assert main(["--out", str(tmp_path / "run"), "--resume", "--steps", "7"]) == 0
    assert json.loads(path.read_text())["options"]["activation_checkpointing"] == "all"
    values["options"]["noise_offset"] = 0.1
    path.write_text(json.dumps(values))
    fails(main, "--out", tmp_path / "run", "--resume", words=["--noise-offset 0.1", "does not have"])


def test_former_spellings_say_the_present_ones(fails, capsys) -> None:
    fails(main, "--plot", "runs/x", words=["--plot is now", "python -m cfld.tools.plot RUN"])
    fails(main, "--checkpointing=all", words=["--activation-checkpointing"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("cfld.preview", run_name="__main__")
    assert (
        left.value.code == 2
        and capsys.readouterr().err == "error: python -m cfld.preview is now python -m cfld.photos\n"
    )


def test_finetuning_takes_the_architecture_of_the_folder(run, argv, micro_folder: Path, tmp_path: Path, fails) -> None:
    common = ["--finetune", micro_folder, "--batch", 4, "--device", "cpu", "--steps", 1, "--sample-every", 0]
    data = argv("x")[argv("x").index("--data") + 1]
    assert main([str(a) for a in [*common, "--data", data, "--out", tmp_path / "run", "--lr", 1e-3]]) == 0
    options = json.loads((tmp_path / "run" / "config.json").read_text())["options"]
    assert options["init"] == str(micro_folder) and options["config"] == str(micro_folder / "config.json")
    assert main(["--out", str(tmp_path / "run"), "--resume", "--steps", "2"]) == 0
    fails(main, *common, "--init", micro_folder, "--out", tmp_path / "new", words=["--finetune", "--init"])
    fails(main, "--finetune", tmp_path, "--out", tmp_path / "new", words=["full model folder", "model.safetensors"])


def test_tensorboard_gets_the_log_if_it_is_installed(run, monkeypatch) -> None:
    seen: list[tuple] = []

    class Writer:
        def __init__(self, folder: Path, purge_step: int):
            seen.append((folder.name, purge_step))

        def add_scalar(self, *values: object) -> None:
            seen.append(values)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    folder = run("board", "--steps", 1)
    loss = logged(folder)[0]["loss"]
    assert seen[0] == ("tensorboard", 1)
    assert any(name == "loss" and value == pytest.approx(loss, 1e-5) and step == 1 for name, value, step in seen[1:])


def test_a_step_waits_for_the_device_once_however_many_micro_batches_it_has(run, monkeypatch) -> None:
    waits: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):

        def wait(tensor: torch.Tensor, name=name, real=getattr(torch.Tensor, name)):
            if tensor.is_floating_point():
                waits.append(name)
            return real(tensor)

        monkeypatch.setattr(torch.Tensor, name, wait)
    counts = []
    for steps, accumulate in ((1, 1), (2, 1), (2, 2)):
        waits.clear()
        run(f"waits {steps} {accumulate}", "--steps", steps, "--accumulate", accumulate, "--save-every", 0)
        counts.append(len(waits))
    one, two, accumulated = counts
    assert two - one == 1 and accumulated == two


def test_the_speed_counts_steps_and_nothing_between_them(monkeypatch) -> None:
    times = iter([0.0, 2.0, 10.0, 13.0])  # begin, end of step 1, begin again after a validation, end of step 2
    monkeypatch.setattr("cfld.training.run_folder.time.perf_counter", lambda: next(times))
    meter = Meter(samples_per_step=10)
    meter.add(0.5)
    meter.restart()
    meter.add(0.25)
    assert meter.read() == {"loss": 0.375, "samples/s": 4.0}
    assert meter.losses == [] and meter.seconds == 0
