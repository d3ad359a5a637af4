"""The objective, and a loop that can be cut up, stopped and continued."""

import dataclasses
import errno
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import MICRO, micro_model
from PIL import Image
from references import relative_error
from safetensors import safe_open
from safetensors.torch import load_file

from cfld import save
from cfld.baselines import to_dict
from cfld.convert.__main__ import main as convert
from cfld.data.__main__ import main as prepare
from cfld.data.batch import Batch, StepOrder, collate
from cfld.data.cache import Cache
from cfld.data.pairs import FashionPairs
from cfld.folder import load
from cfld.objective import draw_step, timestep_weights, training_loss
from cfld.people.__main__ import main as draw_people
from cfld.photos.pixels import to_pictures, to_range
from cfld.pose import pose_maps
from cfld.scheduler import Scheduler
from cfld.tools.files import alone_in
from cfld.train import NO_STEP, Run, learning_rate, main
from cfld.training.memory import checkpoint_blocks
from cfld.training.options import TrainConfig
from cfld.training.pretrain import standardise, whiten

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


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
    assert torch.allclose(timestep_weights(alpha_bars, min_snr=5.0), torch.tensor([1, 1, 5 / 99]))
    model, vae = micro_model()
    draws = draw_step(0, 7, range(4), MICRO)
    low, high = (dataclasses.replace(draws, timesteps=torch.full((8,), u)) for u in (0.999, 0.1))
    plain, weighted = (
        [training_loss(model, vae, Scheduler(), batch, d, "paper", min_snr)[0] for d in (low, high)]
        for min_snr in (0.0, 5.0)
    )
    assert weighted[0] < 0.1 * plain[0] and torch.equal(weighted[1], plain[1])


def test_of_a_velocity_the_squared_error_counts() -> None:
    alpha_bars, g = torch.tensor([0.005, 0.1, 0.5, 0.99]).double(), torch.Generator().manual_seed(0)
    latents, noise, noise_pred = torch.randn(3, 4, 64, generator=g).double()
    signal, sigma = alpha_bars.sqrt()[:, None], (1 - alpha_bars).sqrt()[:, None]
    latents_pred = (signal * latents + sigma * (noise - noise_pred)) / signal  # of the same z_t
    velocity, velocity_pred = signal * noise - sigma * latents, signal * noise_pred - sigma * latents_pred
    weighted = timestep_weights(alpha_bars, "v_prediction") * (noise_pred - noise).square().mean(1)
    assert torch.allclose(weighted, (velocity_pred - velocity).square().mean(1))


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
def argv(fashion: Path, tmp_path_factory: pytest.TempPathFactory, micro_folder: Path):
    """The arguments that train MICRO in a run folder of this name."""
    root = tmp_path_factory.mktemp("runs")

    def arguments(name: str, *more: object, init: Path | None = micro_folder) -> list[str]:
        argv = ["--config", micro_folder / "config.json", "--data", fashion, "--out", root / name, "--batch", 4]
        argv += ["--init", init] if init else []
        argv += ["--precision", "fp32", "--lr", 1e-3, "--warmup", 2, "--sample-every", 0, "--log-every", 1]
        return [str(a) for a in [*argv, "--device", "cpu", *more]]

    return arguments


@pytest.fixture(scope="module")
def run(argv):
    """Run the command on MICRO in a run folder of this name."""

    def train(name: str, *more: object, **others: Path | None) -> Path:
        arguments = argv(name, *more, **others)
        assert main(arguments) == 0
        return Path(arguments[arguments.index("--out") + 1])

    return train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert not [name for name, x in theirs.items() if not torch.equal(ours[name], x)]


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


def test_two_trainings_do_not_share_a_folder(whole: Path, tmp_path: Path, fails, monkeypatch) -> None:
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr("cfld.tools.files.time.sleep", lambda seconds: None)
    with alone_in(tmp_path / "run"):
        fails(main, "--out", tmp_path / "run", "--resume", "--steps", 7, words=["in use by another process"])
    assert main(["--out", str(tmp_path / "run"), "--resume", "--steps", "7"]) == 0


def test_a_folder_of_something_else_is_not_gone_on_with(tmp_path: Path, fails) -> None:
    (tmp_path / "notes.txt").write_text("not a run's")
    fails(main, "--out", tmp_path, "--resume", words=["must be a run's", "no config.json", "another --out"])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_bare_resume_without_a_checkpoint_starts_and_says_so(run, capsys) -> None:
    folder = run("fresh", "--steps", 1, "--resume")
    assert "no checkpoint yet" in "".join(capsys.readouterr())
    assert (folder / "model" / "model.safetensors").is_file()


def test_a_sample_grid_shows_held_out_pairs_with_fixed_seeds(run, fashion: Path) -> None:
    folder = run("grid", "--steps", 2, "--sample-every", 1, "--sample-steps", 2, "--lr", 0)
    first, second = (Image.open(folder / "samples" / f"step_0000000{i}.png") for i in (1, 2))
    assert first.size == (4 * 176, 4 * 256)
    assert first.tobytes() == second.tobytes()  # nothing was learnt, so nothing changed
    pairs = FashionPairs(fashion, "test", MICRO.image_size, MICRO.swin.image_size)
    shown = collate([pairs[i * len(pairs) // 4] for i in range(4)]).images
    for column, images in ((0, shown[:4]), (2, shown[4:])):
        for row, picture in enumerate(to_pictures(to_range(images), (256, 176))):
            place = (176 * column, 256 * row, 176 * (column + 1), 256 * (row + 1))
            assert first.crop(place).tobytes() == picture.tobytes(), (column, row)


def test_the_vae_stage_makes_a_folder_that_the_next_stage_starts_from(run, tmp_path: Path) -> None:
    folder = run("vae", "--stage", "vae", "--steps", 2, init=None)
    assert not (folder / "model" / "model.safetensors").exists()
    values = json.loads((folder / "model" / "config.json").read_text())
    assert values["vae"]["scale"] == 1
    config = tmp_path / "all.json"
    config.write_text(json.dumps(to_dict(dataclasses.replace(MICRO, unet_trainable="all"))))
    trained = run("on it", "--steps", 1, "--config", config, init=folder / "model")
    model, vae = load(trained / "model")
    assert vae.config.scale == 1
    assert all(p.requires_grad for p in model.parameters())


@torch.no_grad()
def test_whitened_latents_are_of_mean_0_and_covariance_1_and_decode_to_the_same_images() -> None:
    vae = micro_model()[1].double()
    images = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    mean, logvar = vae.moments(images)
    before = vae.decode(vae.encode(images))
    whiten(vae, mean, logvar)
    latents = vae.encode(images).movedim(1, 0).flatten(1)
    assert torch.allclose(latents.mean(1), torch.zeros(4).double(), atol=1e-9)
    assert torch.allclose(torch.cov(latents), torch.eye(4).double(), atol=1e-9)
    assert torch.allclose(vae.decode(vae.encode(images)), before, atol=1e-9)

    # A sample of the posterior strays from its mean as far as it did, measured in deviations of the latents.
    inverse = torch.linalg.inv(torch.cov(mean.movedim(1, 0).flatten(1)))
    strayed = (inverse.diagonal() * logvar.exp().mean(dim=(0, 2, 3))).sum()
    assert torch.allclose(vae.moments(images)[1].exp().mean(dim=(0, 2, 3)).sum(), strayed)


@torch.no_grad()
def test_standardised_features_deviate_by_1_and_are_the_same_but_for_that() -> None:
    swin = micro_model()[0].source_encoder.double()
    side = swin.config.image_size
    images = torch.rand(20, 3, side, side, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    before = swin(images)
    standardise(swin, before)
    for f, g in zip(before, swin(images), strict=True):
        deviation = (f - f.mean(dim=(0, 2, 3), keepdim=True)).square().mean().sqrt()
        shift = f.mean(dim=(0, 2, 3), keepdim=True) if f is before[-1] else 0
        assert torch.allclose(g, (f - shift) / deviation, atol=1e-3)  # the norms' epsilon is not stretched
    assert g.mean(dim=(0, 2, 3)).abs().max() < 1e-3


def test_fp16_trains_with_loss_scaling_and_goes_on_with_the_same_scale(run, micro_folder: Path) -> None:
    folder = run("fp16", "--steps", 4, "--save-every", 2, "--precision", "fp16")
    learnt = weights(folder)
    assert not torch.equal(learnt["null_prompt"], load(micro_folder)[0].null_prompt)
    first, last = sorted((folder / "checkpoints").iterdir())
    for path in (first, last):
        with safe_open(path, framework="pt") as file:
            assert json.loads(file.metadata()["cfld"])["scaler"]["scale"] > 1
    last.unlink()
    assert main(["--out", str(folder), "--resume"]) == 0
    assert_same(weights(folder), learnt)


@pytest.fixture(scope="module")
def cache(fashion: Path, micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample photos, encoded once."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    argv = ["cache", fashion, "--model", micro_folder, "--out", folder, "--precision", "fp32", "--device", "cpu"]
    assert prepare([str(a) for a in argv]) == 0
    return folder


def test_a_step_from_a_cache_has_the_loss_that_its_options_say(run, cache: Path, fashion: Path) -> None:
    options = ("--recipe", "released", "--min-snr", 0.1, "--noise-offset", 0.3, "--seed", 3)
    (line,) = logged(run("cached", "--steps", 1, "--cache", cache, *options))
    pairs = FashionPairs(fashion, "train", MICRO.image_size, MICRO.swin.image_size)
    pairs.cache = Cache(cache, {}, pairs.photos)
    (places,) = StepOrder(len(pairs), 4, 3, 0, 1)
    batch, draws = collate([pairs[i] for i in places]), draw_step(3, 0, range(4), MICRO, 0.3)
    assert batch.images.dtype == torch.float16 and (draws.drops < 0.2).any()
    model, vae = micro_model()
    losses = [
        training_loss(model, vae, Scheduler(), batch, d, recipe, min_snr)[0].item()
        for d, recipe, min_snr in (
            (draws, "released", 0.1),
            (draws, "paper", 0.1),
            (draws, "released", 0.0),
            (draw_step(3, 0, range(4), MICRO), "released", 0.1),
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
    loop = Run.loop

    def meanwhile(run: Run, stop_at: int) -> None:
        loop(run, stop_at)
        save(tmp_path / "base", *micro_model(seed=9), replace=True)

    monkeypatch.setattr(Run, "loop", meanwhile)
    words = argv("changed base", "--steps", 1, init=tmp_path / "base")
    fails(main, *words, words=["--init", "has changed", "--resume"])
    out = Path(words[words.index("--out") + 1])
    assert not (out / "model").exists() and (out / "checkpoints" / "step_00000001.safetensors").is_file()


def test_a_folder_that_fills_while_a_model_loads_is_not_emptied(argv, fails, monkeypatch) -> None:
    words = argv("filled", "--steps", 1)
    out = Path(words[words.index("--out") + 1])
    init = Run.__init__

    def slowly(run: Run, *args: object) -> None:
        init(run, *args)
        out.mkdir()
        (out / "thesis.txt").write_text("precious")

    monkeypatch.setattr(Run, "__init__", slowly)
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
    assert not multiprocessing.active_children()  # a worker that is left would keep the command from ending


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


def test_a_source_encoder_and_a_base_learn_from_attributes_and_the_base_then_stays_frozen(
    tmp_path: Path, micro_folder: Path
) -> None:
    """Two steps of each stage, on drawn people, from memory."""
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
    for name, start, more in (
        ("begun", vae_folder, ["--stage", "source", "--lr", "0"]),
        ("source", vae_folder, ["--stage", "source"]),
        ("base_begun", tmp_path / "source" / "model", ["--stage", "base", "--lr", "0"]),
        ("base", tmp_path / "source" / "model", ["--stage", "base"]),
    ):
        argv = ["--config", configs["all"], "--init", start, "--out", tmp_path / name]
        assert main([str(a) for a in argv + common + more]) == 0
    assert (tmp_path / "base" / "samples" / "step_00000002.png").is_file()
    frozen = ["--config", configs["cross_kv"], "--init", tmp_path / "base" / "model", "--out", tmp_path / "frozen"]
    assert main([str(a) for a in frozen + common]) == 0
    begun, encoder = (load_file(tmp_path / x / "model" / "source_encoder.safetensors") for x in ("begun", "source"))
    assert not torch.equal(begun["patch_embed.weight"], encoder["patch_embed.weight"])
    begun, before, after = (weights(tmp_path / name) for name in ("base_begun", "base", "frozen"))
    assert {name.split(".")[0] for name in before if not torch.equal(begun[name], before[name])} == {"unet"}
    assert all(torch.equal(before[f"source_encoder.{name}"], tensor) for name, tensor in encoder.items())
    assert not torch.equal(before["source_encoder.patch_embed.weight"], after["source_encoder.patch_embed.weight"])
    assert torch.equal(before["unet.conv_in.weight"], after["unet.conv_in.weight"])
    assert not torch.equal(before["null_prompt"], after["null_prompt"])


def test_a_base_needs_people_whose_attributes_are_known(
    fashion: Path, micro_folder: Path, tmp_path: Path, fails
) -> None:
    argv = ["--stage", "base", "--data", fashion, "--init", micro_folder, "--config", micro_folder / "config.json"]
    fails(main, *argv, "--out", tmp_path / "run", "--batch", 2, words=["cfld.people", "--stage source and base"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_as_one(run, fashion: Path, micro_folder: Path, tmp_path: Path, accumulate: int) -> None:
    steps = ["--steps", "4", "--ema", "0.9", "--clip", "1", "--accumulate", str(accumulate)]
    alone = run(f"alone{accumulate}", *steps)
    options = json.loads((alone / "config.json").read_text())["options"]
    argv = ["--config", options["config"], "--data", fashion, "--init", micro_folder, "--batch", 4, "--lr", 1e-3]
    argv += ["--precision", "fp32", "--warmup", 2, "--sample-every", 0, "--log-every", 1, "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["-m", "cfld.train", *argv, "--out", tmp_path / "two", *steps]
    done = subprocess.run([str(a) for a in launch], env=ONE_THREAD, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = ([line["loss"] for line in logged(folder)] for folder in (tmp_path / "two", alone))
    assert ours == pytest.approx(theirs, rel=1e-5)
    first, second = weights(tmp_path / "two"), weights(alone)
    assert max(relative_error(first[name], second[name]) for name in second) <= 1e-3


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
    monkeypatch.setattr("cfld.train.HELD_OUT", 4)
    folder = run("looked", "--steps", 6, "--ema", 0.9, "--eval-every", 2, "--keep", 1)
    assert_same(weights(folder), weights(whole))
    seen = {line["step"]: line["held-out loss"] for line in logged(folder) if "held-out loss" in line}
    assert list(seen) == [2, 4, 6]
    model, vae = load(folder / "model")  # the averages after step 6
    pairs = FashionPairs(fashion, "test", MICRO.image_size, MICRO.swin.image_size)
    batch = collate([pairs[place * len(pairs) // 4] for place in range(4)])
    draws = draw_step(0, NO_STEP, range(4), MICRO)
    with torch.no_grad():
        assert seen[6] == pytest.approx(training_loss(model, vae, Scheduler(), batch, draws, "paper")[0].item(), 1e-4)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.safetensors",
        "step_00000006.safetensors",
    ]


def test_the_best_checkpoint_outlives_later_ones_and_is_remembered(run, monkeypatch) -> None:
    monkeypatch.setattr("cfld.train.HELD_OUT", 1)
    losses = iter([0.5, 0.25, 0.75, 0.3, 0.2])
    monkeypatch.setattr("cfld.train.Run.sum_of_processes", lambda *_: [next(losses)])
    folder = run("best", "--steps", 3, "--eval-every", 1, "--keep", 1)
    best = folder / "checkpoints" / "best.safetensors"

    def step() -> int:
        with safe_open(best, framework="pt") as file:
            return json.loads(file.metadata()["cfld"])["step"]

    assert step() == 2
    assert main(["--out", str(folder), "--resume", "--steps", "4"]) == 0 and step() == 2
    assert main(["--out", str(folder), "--resume", "--steps", "5"]) == 0 and step() == 5


def test_without_pairs_that_are_not_trained_on_there_is_no_held_out_loss(
    argv, fashion: Path, tmp_path: Path, fails
) -> None:
    shutil.copytree(fashion, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "test_highres")
    fails(main, *argv("never", "--eval-every", 1, "--data", tmp_path / "data"), words=["--eval-every", "no test split"])


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


def test_a_folder_that_cannot_be_made_is_one_line(argv, tmp_path: Path, fails) -> None:
    (tmp_path / "file").write_text("")
    fails(
        main, *argv("never", "--steps", 1, "--out", tmp_path / "file" / "run"), words=["file/run", "cannot be written"]
    )


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


KILLS = [sys.executable, Path(__file__).parents[1] / "benchmarks" / "kills.py", "--kills"]


def test_a_training_that_is_killed_thrice_ends_bit_for_bit_as_one_that_was_not() -> None:
    done = subprocess.run([*KILLS, "3", "--steps", "3"], env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("3 kills") == 2 and done.stdout.count("0 damaged") == 2


@pytest.mark.slow
def test_a_training_that_is_killed_200_times_ends_bit_for_bit_as_one_that_was_not() -> None:
    done = subprocess.run([*KILLS, "200"], env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 143), ("SIGKILL", 2), pytest.param("SIGSTOP", 2, marks=pytest.mark.slow)]
)
def test_two_processes_stop_together_and_neither_waits_for_a_dead_one(argv, name: str, code: int) -> None:
    """One of two is sent the signal in the middle of training; what the other does."""
    arguments = argv(f"two {name}", "--steps", 10_000, "--timeout", 0.5 if name == "SIGSTOP" else 5)
    folder = Path(arguments[arguments.index("--out") + 1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = ONE_THREAD | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "cfld.train", *arguments]
    first, second = (
        subprocess.Popen(
            command,
            env=together | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    )
    try:
        while not (folder / "log.jsonl").is_file() and first.poll() is None:
            time.sleep(0.05)
        second.send_signal(signal.Signals[name])
        output, errors = first.communicate(timeout=120)
        assert first.returncode == code, errors[-2000:]
        if name == "SIGTERM":
            assert second.wait(60) == code
            assert "saved" in output and len(list((folder / "checkpoints").iterdir())) == 1
        else:
            (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
            assert "process 0 has lost another" in line and "--timeout" in line
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


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
    assert said["steps an epoch"] == "50" and "100 steps" in said
    assert said["gradients"] == said["averages"] == f"{4 * trained / 2**30:.3f} GiB"
    assert {"weights", "optimiser", "activations and the rest", "a step"} <= said.keys()


def test_checkpointing_computes_blocks_again_and_changes_no_gradient(batch: Batch, monkeypatch) -> None:
    from cfld.unet import ResBlock, TransformerBlock

    calls = {ResBlock: 0, TransformerBlock: 0}
    for kind in calls:

        def count(self, *args, kind=kind, forward=kind.forward):
            calls[kind] += 1
            return forward(self, *args)

        monkeypatch.setattr(kind, "forward", count)
    gradients, counted = {}, {}
    for level in ("none", "attention", "all"):
        model, vae = micro_model()
        vae.requires_grad_(False)
        checkpoint_blocks(model, level)
        calls.update(dict.fromkeys(calls, 0))
        training_loss(model, vae, Scheduler(), batch, draw_step(0, 7, range(4), MICRO), "paper")[0].backward()
        gradients[level] = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        counted[level] = dict(calls)
    for level in ("attention", "all"):
        assert all(torch.equal(x, gradients["none"][name]) for name, x in gradients[level].items())
        assert counted[level][TransformerBlock] == 2 * counted["none"][TransformerBlock]
    assert counted["attention"][ResBlock] == counted["none"][ResBlock] < counted["all"][ResBlock]


def test_switches_reach_the_unet_and_a_stop_changes_nothing_with_them(run, tmp_path: Path, monkeypatch) -> None:
    compiled: list[str] = []
    levels: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))

    def look(module: torch.nn.Module, level: str) -> None:
        levels.append(level)
        checkpoint_blocks(module, level)

    monkeypatch.setattr("cfld.train.checkpoint_blocks", look)
    switches = ["--compile", "--channels-last", "--checkpointing", "all"]
    plain, folder = run("no switch", "--steps", 3), run("switches", "--steps", 3, "--save-every", 1, *switches)
    assert compiled == ["UNet"] and levels == ["none"] * 2 + ["all"] * 2  # of the model and the VAE
    for a, b in zip(logged(plain), logged(folder), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    before = weights(folder)
    (folder / "checkpoints" / "step_00000003.safetensors").unlink()
    assert main(["--out", str(folder), "--resume"]) == 0
    assert_same(weights(folder), before)


def test_switches_that_change_results_are_kept_on_resume(whole: Path, tmp_path: Path, fails) -> None:
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    for name in ("noise_offset", "compile", "channels_last", "checkpointing", "eval_every", "timeout"):
        del values["options"][name]  # as in a run of an older version
    path.write_text(json.dumps(values))
    fails(main, "--out", tmp_path / "run", "--resume", "--noise-offset", 0.1, words=["--noise-offset 0.1", "0.0"])
    assert main(["--out", str(tmp_path / "run"), "--resume", "--noise-offset", "0", "--checkpointing", "all"]) == 0


def test_a_noise_offset_shifts_whole_channels_and_nothing_else() -> None:
    plain, shifted = draw_step(0, 3, range(2), MICRO), draw_step(0, 3, range(2), MICRO, 0.1)
    shift = shifted.noise - plain.noise
    assert torch.allclose(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6)
    assert len(set(shift[:, :, 0, 0].flatten().tolist())) == 16 and 0.02 < shift[:, :, 0, 0].std() < 0.3
    for field in ("flips", "depth", "timesteps", "drops", "vae_noise"):
        assert torch.equal(getattr(shifted, field), getattr(plain, field))


def test_finetuning_takes_the_architecture_of_the_folder(run, argv, micro_folder: Path, tmp_path: Path, fails) -> None:
    common = ["--finetune", micro_folder, "--batch", 4, "--device", "cpu", "--steps", 1, "--sample-every", 0]
    data = argv("x")[argv("x").index("--data") + 1]
    assert main([str(a) for a in [*common, "--data", data, "--out", tmp_path / "run", "--lr", 1e-3]]) == 0
    options = json.loads((tmp_path / "run" / "config.json").read_text())["options"]
    assert options["init"] == str(micro_folder) and options["config"] == str(micro_folder / "config.json")
    assert main(["--out", str(tmp_path / "run"), "--resume", "--steps", "2"]) == 0
    fails(main, *common, "--init", micro_folder, "--out", tmp_path / "new", words=["--finetune", "--init"])
    fails(main, "--finetune", tmp_path, "--out", tmp_path / "new", words=["whole model folder", "model.safetensors"])


def test_a_plot_shows_the_log(whole: Path, tmp_path: Path, fails) -> None:
    from PIL import Image

    from cfld.tools.plot import HELD_OUT, SMOOTH, read_log, smooth, ticks

    assert main(["--plot", str(whole)]) == 0
    colours = {colour for _, colour in Image.open(whole / "plot.png").getcolors(1 << 20)}
    assert SMOOTH in colours and HELD_OUT not in colours
    lines = [{"step": step, "loss": loss, "lr": 1e-4} for step, loss in ((1, 0.9), (2, math.nan), (3, 0.7))]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 3, "held-out loss": 0.8}]) + '{"step": 4, "lo'
    (tmp_path / "log.jsonl").write_text(text)
    assert read_log(tmp_path / "log.jsonl")["loss"] == [(1, 0.9), (3, 0.7)]
    assert main(["--plot", str(tmp_path)]) == 0
    assert HELD_OUT in {colour for _, colour in Image.open(tmp_path / "plot.png").getcolors(1 << 20)}
    assert smooth([(i, float(i)) for i in range(80)])[40] == (40, 40) and ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    (tmp_path / "log.jsonl").write_text("")
    fails(main, "--plot", tmp_path, words=["log.jsonl", "--log-every"])
    fails(main, "--plot", tmp_path / "nowhere", words=["run folder"])


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


@pytest.mark.slow
def test_the_first_200_steps_of_each_stage_of_tiny_are_the_same_twice(tmp_path: Path) -> None:
    data = tmp_path / "people"  # drawn once; people:8x4 would be drawn in every step
    assert draw_people([str(data), "--identities", "10", "--poses", "4", "--workers", "1"]) == 0
    common = ["--preset", "tiny", "--data", str(data), "--steps", "200", "--sample-every", "0", "--device", "cpu"]
    stages = {
        "vae": ["--stage", "vae", "--batch", "2"],
        "source": ["--stage", "source", "--init", str(tmp_path / "vae 0" / "model"), "--batch", "2"],
        "base": ["--stage", "base", "--init", str(tmp_path / "vae 0" / "model"), "--batch", "2", "--ema", "0.99"],
        "cfld": ["--init", str(tmp_path / "vae 0" / "model"), "--batch", "2", "--ema", "0.99"],
    }
    for stage, options in stages.items():
        folders = [tmp_path / f"{stage} {time}" for time in range(2)]
        for folder in folders:
            assert main([*common, *options, "--out", str(folder)]) == 0
        name = {"vae": "vae", "source": "source_encoder"}.get(stage, "model") + ".safetensors"
        first, second = (load_file(folder / "model" / name) for folder in folders)
        assert_same(first, second)
