"""The objective, and a loop that can be cut up, stopped and continued."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import MICRO, micro_model
from references import relative_error
from safetensors.torch import load_file

from cfld.config import to_dict
from cfld.data import Batch, FashionPairs, collate, to_range
from cfld.model import load
from cfld.pose import pose_maps
from cfld.scheduler import Scheduler
from cfld.train import TrainConfig, draw_step, learning_rate, main, min_snr_weights, training_loss


@pytest.fixture(scope="module")
def batch(fashion: Path) -> Batch:
    pairs = FashionPairs(fashion, "train", MICRO.image_size, MICRO.swin.image_size)
    return collate([pairs[i] for i in (0, 40, 80, 120)])


def test_the_loss_is_the_mean_of_equations_3_and_5_over_all_rows(batch: Batch) -> None:
    model, vae = micro_model()
    draws = draw_step(0, 7, range(4), MICRO)
    draws = dataclasses.replace(draws, drops=torch.tensor([0.1] + [0.9] * 7), flips=torch.tensor([0.1, 0.9, 0.9, 0.9]))
    ours, timesteps = training_loss(model, vae, Scheduler(), batch, draws, "paper")
    losses = []
    for row in range(8):
        pair, images = row % 4, to_range(batch.images[row][None])
        mean, logvar = vae.moments(images)
        latents = 0.18215 * (mean + (0.5 * logvar).exp() * draws.vae_noise[row])
        t = min(int((1 - float(draws.timesteps[row]) ** 3) * 1000), 999)
        assert t == timesteps[row]
        abar = Scheduler().alpha_bars[t]
        noisy = abar.sqrt() * latents + (1 - abar).sqrt() * draws.noise[row]
        source = to_range(batch.source_images[pair][None])
        conditions = model.condition(
            source.flip(-1) if pair == 0 else source,
            pose_maps(batch.keypoints[row][None], 32),
            draws.depth[pair][None],
        )
        if row == 0:
            conditions = model.drop(conditions, torch.tensor([True]), "paper")
        losses.append(F.mse_loss(model(noisy, torch.tensor([t]), conditions), draws.noise[row][None]))
    assert relative_error(ours, torch.stack(losses).mean()) <= 1e-4


def test_cached_moments_give_the_loss_of_encoding_each_step(batch: Batch) -> None:
    model, vae = micro_model()
    draws = draw_step(0, 7, range(4), MICRO)
    moments = torch.cat(vae.moments(to_range(batch.images)), dim=1).detach().half()
    cached = dataclasses.replace(batch, images=moments)
    ours, theirs = (training_loss(model, vae, Scheduler(), b, draws, "paper")[0] for b in (cached, batch))
    assert relative_error(ours, theirs) <= 1e-3


def test_min_snr_counts_rows_of_little_noise_less(batch: Batch) -> None:
    alpha_bars = torch.tensor([0.1, 5 / 6, 0.99])
    assert torch.allclose(min_snr_weights(alpha_bars, 5.0), torch.tensor([1, 1, 5 / 99]))
    model, vae = micro_model()
    draws = draw_step(0, 7, range(4), MICRO)
    low, high = (dataclasses.replace(draws, timesteps=torch.full((8,), u)) for u in (0.999, 0.1))
    plain, weighted = ([training_loss(model, vae, Scheduler(), batch, d, "paper", gamma)[0] for d in (low, high)]
                       for gamma in (0.0, 5.0))  # fmt: skip
    assert weighted[0] < 0.1 * plain[0] and torch.equal(weighted[1], plain[1])


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


def test_no_two_rows_or_steps_share_draws_and_a_pair_keeps_its_own() -> None:
    whole = draw_step(0, 3, range(4), MICRO)
    assert len({float(x.sum()) for x in [*whole.noise, *whole.vae_noise]}) == 16
    part = draw_step(0, 3, range(2, 4), MICRO)
    assert torch.equal(part.noise[0], whole.noise[2]) and torch.equal(part.noise[2], whole.noise[6])
    assert not torch.equal(draw_step(0, 4, range(4), MICRO).noise, whole.noise)
    assert not torch.equal(draw_step(1, 3, range(4), MICRO).noise, whole.noise)


def test_the_learning_rate_warms_up_and_falls_to_a_tenth_half_way() -> None:
    options = TrainConfig(batch=224)
    assert options.peak_lr == pytest.approx(1.12e-4)
    assert TrainConfig(batch=112, recipe="released").peak_lr == pytest.approx(0.5e-4)
    rates = [learning_rate(step, 45_500, options) / 1.12e-4 for step in (0, 499, 999, 1000, 22_749, 22_750, 45_499)]
    assert rates == pytest.approx([0.1009, 0.55, 1, 1, 1, 0.1, 0.1])


@pytest.fixture(scope="module")
def run(fashion: Path, tmp_path_factory: pytest.TempPathFactory, micro_folder: Path):
    """Run the command on MICRO in a run folder of this name."""
    root = tmp_path_factory.mktemp("runs")

    def train(name: str, *more: object, init: Path | None = micro_folder) -> Path:
        argv = ["--config", micro_folder / "config.json", "--data", fashion, "--out", root / name, "--batch", 4]
        argv += ["--init", init] if init else []
        argv += [
            "--precision",
            "fp32",
            "--lr",
            1e-3,
            "--warmup",
            2,
            "--sample-every",
            0,
            "--log-every",
            1,
            "--device",
            "cpu",
        ]
        assert main([str(a) for a in [*argv, *more]]) == 0
        return root / name

    return train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(run) -> Path:
    return run("whole", "--steps", 6, "--ema", 0.9)


def test_a_run_folder_holds_its_options_log_checkpoints_and_model(whole: Path, micro_folder: Path) -> None:
    assert json.loads((whole / "config.json").read_text())["options"]["steps"] == 6
    log = logged(whole)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert log[0].keys() == {"step", "loss", "lr", "rows/s"}
    assert all(math.isfinite(line["loss"]) for line in log)
    model, _ = load(whole / "model")
    before = load(micro_folder)[0].state_dict()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert changed <= trained
    assert "null_prompt" in changed and "unet.up.3.attentions.2.block.cross_attention.to_k.weight" in changed
    assert len(changed) > 0.9 * len(trained)


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
    for name, x in weights(whole).items():
        assert torch.equal(x, weights(folder)[name]), name


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


def test_accumulation_changes_nothing_but_memory(run) -> None:
    one, four = run("one", "--steps", 3), run("four", "--steps", 3, "--accumulate", 4)
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


def test_frozen_weights_are_not_in_the_optimizer(whole: Path, tmp_path: Path) -> None:
    from cfld.train import Run

    shutil.copytree(whole, tmp_path / "run")
    options = TrainConfig(**json.loads((whole / "config.json").read_text())["options"])
    training = Run(dataclasses.replace(options, out=str(tmp_path / "run")), "latest")
    held = {id(p) for group in training.state.optimizer.param_groups for p in group["params"]}
    assert training.model is not None
    for _, p in [*training.model.named_parameters(), *training.vae.named_parameters()]:
        assert (id(p) in held) == p.requires_grad


def test_bf16_and_fp16_give_nearly_the_gradient_of_fp32(batch: Batch) -> None:
    gradients = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model, vae = micro_model()
        draws = draw_step(0, 7, range(4), MICRO)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            training_loss(model, vae, Scheduler(), batch, draws, "paper")[0].backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained)
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
        gradients.append(torch.cat([p.grad.flatten() for p in trained]))
    assert relative_error(gradients[1], gradients[0]) <= 0.05
    assert relative_error(gradients[2], gradients[0]) <= 0.01


def test_a_bare_resume_without_a_checkpoint_starts_and_says_so(run, capsys) -> None:
    folder = run("fresh", "--steps", 1, "--resume")
    assert "no checkpoint yet" in "".join(capsys.readouterr())
    assert (folder / "model" / "model.safetensors").is_file()


def test_a_sample_grid_shows_held_out_pairs_with_fixed_seeds(run) -> None:
    from PIL import Image

    folder = run("grid", "--steps", 2, "--sample-every", 1, "--sample-steps", 2, "--lr", 0)
    first, second = (Image.open(folder / "samples" / f"step_0000000{i}.png") for i in (1, 2))
    assert first.size == (4 * 176, 4 * 256)
    assert first.tobytes() == second.tobytes()  # nothing was learnt, so nothing changed


def test_the_vae_stage_makes_a_folder_that_the_next_stage_starts_from(run, tmp_path: Path) -> None:
    folder = run("vae", "--stage", "vae", "--steps", 2, init=None)
    assert not (folder / "model" / "model.safetensors").exists()
    values = json.loads((folder / "model" / "config.json").read_text())
    assert values["vae"]["scale"] != 0.18215
    config = tmp_path / "all.json"
    config.write_text(json.dumps(to_dict(dataclasses.replace(MICRO, unet_trainable="all"))))
    trained = run("on it", "--steps", 1, "--config", config, init=folder / "model")
    model, vae = load(trained / "model")
    assert vae.config.scale == values["vae"]["scale"]
    assert all(p.requires_grad for p in model.parameters())


def test_fp16_trains_with_loss_scaling(run) -> None:
    folder = run("fp16", "--steps", 2, "--precision", "fp16")
    assert all(math.isfinite(line["loss"]) for line in logged(folder))


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


def test_a_checkpoint_of_another_base_is_refused(whole: Path, tmp_path: Path, micro_folder: Path, fails) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.copytree(micro_folder, tmp_path / "base")
    from cfld import save

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
    for name, x in weights(folder).items():
        assert torch.equal(x, weights(tmp_path / "new")[name]), name


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


def test_a_gradient_or_weight_that_is_not_finite_reaches_no_checkpoint_and_no_model(
    run, whole: Path, tmp_path: Path, fails, monkeypatch
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    resume = ["--out", tmp_path / "run", "--resume", "--steps", 8, "--save-every", 1, "--keep", 1]
    loss = training_loss

    def lost_gradient(*args):
        value, timesteps = loss(*args)
        return value + 0 * (value - value.detach()).sqrt(), timesteps  # finite, but the slope of sqrt at 0 is not

    monkeypatch.setattr("cfld.train.training_loss", lost_gradient)
    fails(main, *resume, words=["gradient of step 6", "nothing was saved over"])
    monkeypatch.setattr("cfld.train.training_loss", loss)
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


def test_a_loss_that_is_not_finite_stops_with_its_step_and_saves_nothing(
    run, whole: Path, tmp_path: Path, fails
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    values["options"] |= {"lr": 1e30, "decay_at": 1.0}
    (tmp_path / "run" / "config.json").write_text(json.dumps(values))
    checkpoint = (tmp_path / "run" / "checkpoints" / "step_00000006.safetensors").read_bytes()
    line = fails(
        main, "--out", tmp_path / "run", "--resume", "--steps", 12, words=["loss of step", "timesteps [", "finite"]
    )
    assert "nan" in line or "inf" in line
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000006.safetensors"]
    assert (tmp_path / "run" / "checkpoints" / "step_00000006.safetensors").read_bytes() == checkpoint


def test_a_base_paints_from_attributes_and_then_stays_frozen(tmp_path: Path, micro_folder: Path) -> None:
    """Two steps of each stage, on embedded people drawn from memory."""
    whole = dataclasses.replace(MICRO, unet_trainable="all")
    configs = {name: tmp_path / f"{name}.json" for name in ("all", "cross_kv")}
    for name, path in configs.items():
        path.write_text(json.dumps(to_dict(dataclasses.replace(MICRO, unet_trainable=name))))
    vae_folder = tmp_path / "vae"
    vae_folder.mkdir()
    (vae_folder / "config.json").write_text(json.dumps(to_dict(whole)))
    shutil.copy(micro_folder / "vae.safetensors", vae_folder)
    common = ["--data", "people:2x2@7", "--steps", "2", "--batch", "2", "--device", "cpu", "--lr", "1e-3"]
    common += ["--precision", "fp32", "--sample-every", "2", "--sample-steps", "2"]
    base = ["--stage", "base", "--config", configs["all"], "--init", vae_folder, "--out", tmp_path / "base"]
    assert main([str(a) for a in base + common]) == 0
    assert (tmp_path / "base" / "samples" / "step_00000002.png").is_file()
    frozen = ["--config", configs["cross_kv"], "--init", tmp_path / "base" / "model", "--out", tmp_path / "frozen"]
    assert main([str(a) for a in frozen + common]) == 0
    before, after = weights(tmp_path / "base"), weights(tmp_path / "frozen")
    assert torch.equal(before["unet.conv_in.weight"], after["unet.conv_in.weight"])
    assert not torch.equal(before["null_prompt"], after["null_prompt"])


def test_a_base_needs_people_whose_attributes_are_known(
    fashion: Path, micro_folder: Path, tmp_path: Path, fails
) -> None:
    argv = ["--stage", "base", "--data", fashion, "--init", micro_folder, "--config", micro_folder / "config.json"]
    fails(main, *argv, "--out", tmp_path / "run", "--batch", 2, words=["cfld.people", "--stage base"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_as_one(run, fashion: Path, micro_folder: Path, tmp_path: Path, accumulate: int) -> None:
    steps = ["--steps", "4", "--ema", "0.9", "--clip", "1", "--accumulate", str(accumulate)]
    alone = run(f"alone{accumulate}", *steps)
    options = json.loads((alone / "config.json").read_text())["options"]
    argv = ["--config", options["config"], "--data", fashion, "--init", micro_folder, "--batch", 4, "--lr", 1e-3]
    argv += ["--precision", "fp32", "--warmup", 2, "--sample-every", 0, "--log-every", 1, "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["-m", "cfld.train", *argv, "--out", tmp_path / "two", *steps]
    done = subprocess.run([str(a) for a in launch], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = ([line["loss"] for line in logged(folder)] for folder in (tmp_path / "two", alone))
    assert ours == pytest.approx(theirs, rel=1e-5)
    first, second = weights(tmp_path / "two"), weights(alone)
    assert max(relative_error(first[name], second[name]) for name in second) <= 1e-3
