"""Distillation: the consistency function, its loss written out, what trains, students merged and apart, --turbo."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MICRO, micro_model
from PIL import Image
from references import diffusers_unet, noise, relative_error
from run_folders import assert_same, logged, weights
from safetensors.torch import load_file
from torch import Tensor

import cfld
from cfld.baselines import read_config, to_dict
from cfld.config import CFLDConfig, DistilledConfig
from cfld.convert.__main__ import main as convert
from cfld.convert.export import in_layout
from cfld.convert.layouts import layout_of
from cfld.data.batch import Batch
from cfld.edit.edit import edit
from cfld.folder import TURBO_FILE, load, load_student, save_student
from cfld.model import CFLD, Conditions
from cfld.objective import step_noise
from cfld.sample import main as sample_command
from cfld.samplers import SAMPLERS, boundary, consistency_step, trajectory_step
from cfld.sampling import PAPER, TURBO, SamplingConfig, sample
from cfld.scheduler import Scheduler, SchedulerConfig
from cfld.student import add_adapters, layers_of, merge_adapters
from cfld.tools.cli import UserError
from cfld.train import main as train
from cfld.training.distill import DistillStage, distillation_loss, ends, huber
from cfld.training.options import TrainConfig
from cfld.training.stages import checkpoint_model

VELOCITY = SchedulerConfig(prediction_type="v_prediction", zero_terminal_snr=True)
SCHEDULES = {"noise": SchedulerConfig(), "velocity, zero SNR": VELOCITY}
RECIPES = ("consistency", "trajectory")


def micro_student(recipe: str = "consistency", schedule: SchedulerConfig = SchedulerConfig()) -> tuple[CFLD, cfld.VAE]:
    """MICRO as if it were a student of all weights."""
    model, vae = micro_model()
    config = dataclasses.replace(MICRO, scheduler=schedule, distilled=DistilledConfig(recipe))
    student = CFLD(config)
    student.load_state_dict(model.state_dict())
    return student.eval(), vae


def inputs() -> tuple[Tensor, Tensor]:
    return noise(2, 3, 32, 32), noise(2, 21, 32, 32, seed=1)


# The function.


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_student_leads_nowhere_from_its_boundary_whatever_it_predicts(
    recipe: str, schedule: SchedulerConfig
) -> None:
    scheduler, latents, eps = Scheduler(schedule), noise(3, 4, 8, 8), noise(3, 4, 8, 8, seed=1)
    t = torch.tensor([0, 0, 0]) if recipe == "consistency" else torch.tensor([0, 400, 999])
    assert torch.equal(ends(recipe, scheduler, latents, eps, t, t), latents)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_student_that_predicts_the_true_noise_ends_in_the_clean_latents(
    recipe: str, schedule: SchedulerConfig
) -> None:
    scheduler, x_0, eps = Scheduler(schedule), noise(4, 4, 8, 8), noise(4, 4, 8, 8, seed=1)
    t, s = torch.tensor([1, 300, 700, 980]), torch.zeros(4, dtype=torch.long)
    end = ends(recipe, scheduler, scheduler.add_noise(x_0, eps, t), eps, t, s)
    expected = x_0 if recipe == "consistency" else scheduler.add_noise(x_0, eps, s)
    assert relative_error(end[1:], expected[1:]) <= 2e-3  # c_skip is 6e-9 there, 2.5e-3 at t = 1
    assert relative_error(end[:1], expected[:1]) <= 2e-2


def test_at_zero_terminal_snr_the_end_is_what_the_velocity_says() -> None:
    model, _ = micro_student(schedule=VELOCITY)
    z, t, nothing = noise(2, 4, 8, 8), torch.tensor([999, 999]), Conditions(noise(2, 3, 16), None, None)
    with torch.no_grad():
        end = ends("consistency", model.scheduler, z, model(z, t, nothing), t, t)
        velocity = model.unet(z, t, nothing.prompt)
    assert relative_error(end, -velocity) <= 2e-3  # alpha is 2^-12, not 0


@torch.no_grad()
def test_in_half_precision_zero_terminal_snr_does_not_turn_rounding_into_noise() -> None:
    model, _ = micro_student(schedule=VELOCITY)
    z, t, nothing = noise(2, 4, 8, 8), torch.tensor([999, 999]), Conditions(noise(2, 3, 16), None, None)
    whole = model.scheduler.clean_latents(z, model(z, t, nothing), t)
    half = model.to(torch.bfloat16)
    rounded = half.scheduler.clean_latents(z, half(z, t, nothing.map(lambda x: x.bfloat16())), t)
    assert relative_error(rounded, whole) <= 0.05


def test_c_skip_and_c_out_are_luos() -> None:
    assert boundary(0) == (1, 0)
    for t in (1, 20, 999):
        c_skip, c_out = boundary(t)
        assert c_skip == pytest.approx(0.5**2 / ((t / 0.1) ** 2 + 0.5**2))
        assert c_out == pytest.approx((t / 0.1) / ((t / 0.1) ** 2 + 0.5**2) ** 0.5)


def test_huber_is_squared_near_zero_and_absolute_far_from_it() -> None:
    small, large = torch.full((5,), 1e-5), torch.full((5,), 3.0)
    assert huber(small, 0 * small).item() == pytest.approx(1e-10 / 2 / 1e-3, rel=1e-2)
    assert huber(large, 0 * large).item() == pytest.approx(3 - 1e-3, rel=1e-4)


# The loss.


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_loss_of_consistency_equals_algorithm_1_written_out(schedule: SchedulerConfig) -> None:
    student, averaged, teacher = (micro_student(schedule=schedule)[0] for _ in range(3))
    student.unet.requires_grad_(True)
    for parameter in averaged.unet.parameters():
        parameter.data *= 1.01
    for parameter in teacher.unet.parameters():
        parameter.data *= 0.99
    latents, eps, draws = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1), torch.tensor([0.3, 0.9999])
    with torch.no_grad():
        conditions = student.condition(*inputs())
    loss = distillation_loss(
        student, averaged, teacher, student, latents, eps, (draws, torch.rand(2)), conditions, skip=20
    )
    loss.backward()

    abar = Scheduler(schedule).alpha_bar(torch.arange(1000)).flatten()
    expected = []
    for i, t in enumerate((1 + int(0.3 * 999), 1 + int(0.9999 * 999))):
        one = lambda x, i=i: x[i : i + 1]  # noqa: E731
        mine, at = conditions.map(one), torch.tensor([t])
        nothing = Conditions(student.null_prompt, None, None)
        with torch.no_grad():
            z = abar[t] ** 0.5 * one(latents) + (1 - abar[t]) ** 0.5 * one(eps)
            guided = 2 * teacher(z, at, mine) - teacher(z, at, nothing)  # Eq. 7 at 2 and 2
            x_0 = (z - (1 - abar[t]) ** 0.5 * guided) / abar[t] ** 0.5
            before = abar[t - 20] ** 0.5 * x_0 + (1 - abar[t - 20]) ** 0.5 * guided
            own = averaged(before, at - 20, mine)
            target = (before - (1 - abar[t - 20]) ** 0.5 * own) / abar[t - 20] ** 0.5
            own = student(z, at, mine)
            predicted = (z - (1 - abar[t]) ** 0.5 * own) / abar[t] ** 0.5
        expected.append((((predicted - target) ** 2 + 1e-6) ** 0.5 - 1e-3).mean())
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=2e-3)
    assert all(p.grad is None for other in (averaged, teacher) for p in other.parameters())
    assert student.unet.conv_in.weight.grad is not None


def stage_of(init: Path, **options: object) -> DistillStage:
    given = {"preset": "tiny", "config": str(init / "config.json"), "init": str(init), "stage": "distill"}
    made = TrainConfig(**given, precision="fp32", **options)
    return DistillStage(made, dataclasses.replace(MICRO, distilled=made.distilled), [])


@pytest.mark.parametrize(("rank", "targets"), [(0, "linear"), (2, "linear"), (3, "all"), (1, "attention")])
def test_gradients_are_only_where_they_must_be(micro_folder: Path, batch: Batch, rank: int, targets: str) -> None:
    stage = stage_of(micro_folder, rank=rank, targets=targets)
    trained = stage.trained()
    assert all(name.startswith("unet.") and ("lora_" in name) == bool(rank) for name in trained)
    if not rank:
        assert len(trained) == len(list(stage.model.unet.parameters()))
    stage(batch, step_noise(0, 0, batch.places, MICRO)).backward()
    having = {name for name, p in stage.named_parameters() if p.grad is not None}
    assert having == {f"model.{name}" for name in trained}
    moved = {n for n, p in trained.items() if p.grad.any()}
    assert moved == {n for n in trained if not rank or "lora_up" in n}  # down moves once up has


def test_the_targets_come_from_the_ema_weights_and_the_teacher_stays(micro_folder: Path, batch: Batch) -> None:
    stage, z = stage_of(micro_folder, rank=0), step_noise(0, 0, batch.places, MICRO)
    alone = stage(batch, z).item()
    stage.ema = {name: p.detach().clone() for name, p in stage.trained().items()}
    assert stage(batch, z).item() == pytest.approx(alone, rel=1e-6)
    for x in stage.ema.values():
        x *= 1.05
    assert stage(batch, z).item() != pytest.approx(alone, rel=1e-3)
    first = [x.clone() for x in stage.first]
    with torch.no_grad():
        for p in stage.trained().values():
            p *= 1.1
    assert all(torch.equal(a, b) for a, b in zip(first, stage.first, strict=True))


# Trainings.


@pytest.fixture(scope="module")
def distilled(run) -> Path:
    return run("distilled", "--stage", "distill", "--steps", 4, "--ema", 0.9, "--rank", 0)


@pytest.fixture(scope="module")
def adapted(run) -> Path:
    return run("adapted", "--stage", "distill", "--steps", 3, "--rank", 2, "--targets", "all", "--ema", 0.9)


def test_the_loop_hands_its_ema_weights_to_the_stage(run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = DistillStage.forward

    def watched(self: DistillStage, *args: object) -> Tensor:
        seen.append({name: x.clone() for name, x in self.ema.items()})
        return forward(self, *args)

    monkeypatch.setattr(DistillStage, "forward", watched)
    folder = run("watched", "--stage", "distill", "--steps", 2, "--ema", 0.5, "--rank", 2)
    saved = load_file(folder / "checkpoints" / "step_00000002.safetensors")
    start, first = seen
    name = next(name for name in first if "lora_up" in name)
    assert not start[name].any() and first[name].any()
    decay = min(0.5, 2 / 11)  # of the second step
    expected = first[name] + (1 - decay) * (saved[f"weights/{name}"] - first[name])
    assert relative_error(saved[f"averages/{name}"], expected) <= 1e-6


def test_a_student_says_what_it_is_and_only_its_unet_has_learnt(distilled: Path, micro_folder: Path) -> None:
    config = read_config(distilled / "model" / "config.json")
    assert config.distilled == DistilledConfig("consistency", 2.0, None, "linear")
    assert dataclasses.replace(config, distilled=None) == MICRO
    assert "distilled" not in to_dict(MICRO) and from_json(to_dict(config)) == config
    ours, teachers = weights(distilled), load_file(micro_folder / "model.safetensors")
    assert {n for n, x in ours.items() if not torch.equal(x, teachers[n])} == {n for n in ours if n.startswith("unet.")}
    card = (distilled / "model" / "README.md").read_text()
    assert "--turbo" in card and "It is a student" in card


def from_json(values: dict) -> CFLDConfig:
    return cfld.baselines.from_dict(json.loads(json.dumps(values)))


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_distillation_that_is_stopped_and_resumed_is_the_same_bit_for_bit(run, rank: int) -> None:
    options = ("--stage", "distill", "--rank", rank, "--ema", 0.9, "--save-every", 2)
    whole = run(f"whole distillation {rank}", *options, "--steps", 4)
    run(f"halved distillation {rank}", *options, "--steps", 2)
    halves = run(f"halved distillation {rank}", *options, "--steps", 4, "--resume")
    assert_same(weights(halves), weights(whole))
    assert_same(load_file(halves / TURBO_FILE), load_file(whole / TURBO_FILE))


def test_the_two_halves_of_a_batch_give_the_gradient_of_the_whole(run) -> None:
    options = ("--stage", "distill", "--steps", 1, "--rank", 0)
    losses = [logged(run(f"in {n}", *options, "--accumulate", n))[0]["loss"] for n in (1, 2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_init_alone_brings_architecture_and_preset(fashion: Path, micro_folder: Path, tmp_path: Path) -> None:
    argv = ["--stage", "distill", "--init", micro_folder, "--data", fashion, "--out", tmp_path / "run", "--batch", 2]
    argv += ["--steps", 1, "--sample-every", 1, "--device", "cpu", "--rank", 1, "--precision", "fp32"]
    assert train([str(a) for a in argv]) == 0
    options = json.loads((tmp_path / "run" / "config.json").read_text())["options"]
    assert options["ema"] == 0.95 and options["sample_steps"] == 4
    with Image.open(tmp_path / "run" / "samples" / "step_00000001.png") as grid:
        assert grid.width > grid.height // 4


def test_mistakes_of_distilling_are_one_line_each(fails, argv, distilled: Path, tmp_path: Path) -> None:
    fails(
        train, *argv("student's student", "--stage", "distill", init=distilled / "model"), words=["--init", "teacher"]
    )
    config = distilled / "model" / "config.json"
    fails(train, *argv("tuned student", "--config", config, init=distilled / "model"), words=["student", "teacher"])
    (tmp_path / "parts").mkdir()
    for name in ("config.json", "vae.safetensors"):
        shutil.copy(distilled / "model" / name, tmp_path / "parts")
    values = json.loads((tmp_path / "parts" / "config.json").read_text())
    del values["distilled"]
    (tmp_path / "parts" / "config.json").write_text(json.dumps(values))
    fails(train, *argv("parts", "--stage", "distill", init=tmp_path / "parts"), words=["no model.safetensors"])
    fails(train, *argv("changed", "--stage", "distill", "--guidance", -1), words=["--guidance must be at least 0"])


def test_a_checkpoint_becomes_the_folder_that_the_run_writes(adapted: Path, tmp_path: Path) -> None:
    last = adapted / "checkpoints" / "step_00000003.safetensors"
    assert convert(["checkpoint", str(last), "--out", str(tmp_path / "made")]) == 0
    assert_same(load_file(tmp_path / "made" / "model.safetensors"), weights(adapted))
    assert "--turbo" in (tmp_path / "made" / "README.md").read_text()
    assert checkpoint_model(last)[0].config.distilled == DistilledConfig("consistency", 2.0, 2, "all")


# Students in folders.


@pytest.fixture
def both(adapted: Path, micro_folder: Path, tmp_path: Path) -> Path:
    """The teacher's folder with its student."""
    folder = tmp_path / "both"
    shutil.copytree(micro_folder, folder)
    shutil.copy(adapted / TURBO_FILE, folder)
    return folder


@torch.no_grad()
def test_a_student_is_the_same_merged_apart_and_in_its_own_folder(both: Path, adapted: Path) -> None:
    teacher, vae = load(both)
    before = {name: x.clone() for name, x in teacher.state_dict().items()}
    apart, merged, own = load_student(both, teacher), load(both, turbo=True)[0], load(adapted / "model")[0]
    assert apart.unet.conv_in.weight is teacher.unet.conv_in.weight
    assert merged.config == own.config == apart.config
    assert_same(merged.state_dict(), own.state_dict())
    images = [sample(m, vae, *inputs(), TURBO, generator=torch.Generator().manual_seed(1)) for m in (apart, merged)]
    assert relative_error(*images) <= 1e-5
    assert_same(teacher.state_dict(), before)
    plain = teacher(noise(2, 4, 8, 8), torch.tensor([9, 9]), teacher.condition(*inputs()))
    assert relative_error(plain, apart(noise(2, 4, 8, 8), torch.tensor([9, 9]), teacher.condition(*inputs()))) > 1e-6


@torch.no_grad()
def test_merging_equals_calling_layer_by_layer() -> None:
    unet, prompt = micro_model()[0].unet, noise(1, 3, 16)
    add_adapters(unet, 3, "all")
    z, t = noise(1, 4, 8, 8), torch.tensor([5])
    bare = micro_model()[0].unet(z, t, prompt)
    assert torch.equal(unet(z, t, prompt), bare)  # they begin at nothing
    for name, parameter in unet.named_parameters():
        if "lora_up" in name:
            parameter.copy_(0.05 * noise(*parameter.shape, seed=len(name)))
    apart = unet(z, t, prompt)
    merge_adapters(unet)
    assert relative_error(unet(z, t, prompt), apart) <= 1e-5 and relative_error(apart, bare) > 1e-3
    assert not [name for name, _ in unet.named_parameters() if "lora_" in name]
    assert not [m for m in unet.modules() if m._forward_hooks]


def test_targets_are_what_their_names_say() -> None:
    unet = micro_model()[0].unet
    counts = {targets: layers_of(unet, targets) for targets in ("attention", "linear", "all")}
    assert all(name.rpartition(".")[2] in ("to_q", "to_k", "to_v", "to_out") for name in counts["attention"])
    assert all(isinstance(x, torch.nn.Linear) for x in counts["linear"].values())
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    assert len(counts["all"]) == sum(isinstance(m, kinds) for m in unet.modules())
    assert counts["attention"].keys() < counts["linear"].keys() < counts["all"].keys()


def test_what_is_no_student_of_the_model_is_refused(both: Path, micro_folder: Path) -> None:
    with pytest.raises(UserError, match=r"holds no student for --turbo: .*--stage distill"):
        load(micro_folder, turbo=True)
    teacher, _ = load(both)
    tensors = load_file(both / TURBO_FILE)
    good = dataclasses.replace(MICRO, distilled=DistilledConfig("consistency", 2.0, 2, "all"))
    name = next(iter(tensors))
    for config, held, words in (
        (MICRO, tensors, "another architecture"),
        (dataclasses.replace(good, scheduler=VELOCITY), tensors, "another architecture"),
        (good, {n: x for n, x in tensors.items() if n != name}, "not a student"),
        (good, {**tensors, "unet.more": torch.zeros(1)}, "no place"),
        (good, {**tensors, name: torch.zeros(1)}, "must be"),
    ):  # fmt: skip
        save_student(both / TURBO_FILE, config, held)
        with pytest.raises(UserError, match=words):
            load_student(both, teacher)


# Sampling.


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@torch.no_grad()
def test_turbo_equals_multistep_consistency_sampling_written_out(schedule: SchedulerConfig) -> None:
    model, vae = micro_student(schedule=schedule)
    sources, poses = inputs()
    ours = sample(model, vae, sources, poses, TURBO, generator=torch.Generator().manual_seed(3))
    g, conditions = torch.Generator().manual_seed(3), model.condition(sources, poses)
    abar = model.scheduler.alpha_bar(torch.arange(1000)).flatten().double()
    z = torch.randn(2, 4, 8, 8, generator=g)
    for t, t_next in ((999, 749), (749, 500), (500, 250), (250, None)):
        eps = model(z, torch.tensor([t, t]), conditions)
        x_0 = (z - (1 - abar[t]) ** 0.5 * eps) / abar[t] ** 0.5
        c_skip = 0.25 / ((10 * t) ** 2 + 0.25)
        z = c_skip * z + (1 - c_skip) ** 0.5 * x_0
        if t_next is not None:
            fresh = torch.randn(2, 4, 8, 8, generator=g)
            z = (abar[t_next] ** 0.5 * z + (1 - abar[t_next]) ** 0.5 * fresh).float()
    assert relative_error(ours, vae.decode(z.float()).clamp(-1, 1)) <= 1e-3


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_turbo_computes_one_row_a_step(steps: int) -> None:
    model, vae = micro_student()
    rows = []
    model.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    sample(model, vae, *inputs(), dataclasses.replace(TURBO, steps=steps), generator=torch.Generator().manual_seed(0))
    assert rows == [2] * steps  # of two images


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_turbo_picture_is_the_same_alone_and_in_a_batch(recipe: str) -> None:
    model, vae = micro_student(recipe)
    source, poses = noise(1, 3, 32, 32), noise(3, 21, 32, 32, seed=1)
    seeds = lambda *numbers: [torch.Generator().manual_seed(i) for i in numbers]  # noqa: E731
    together = sample(model, vae, source, poses, TURBO, generator=seeds(5, 6, 7))
    assert relative_error(together[1:2], sample(model, vae, source, poses[1:2], TURBO, generator=seeds(6))) <= 1e-4


def test_a_trajectory_step_goes_past_t_next_and_back() -> None:
    scheduler, z, x_0, fresh = Scheduler(), noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1), noise(1, 4, 8, 8, seed=2)
    eps = scheduler.implied_noise(z, x_0, 749)
    there = scheduler.add_noise(x_0, eps, torch.tensor([350]))  # (1 - 0.3) 500
    a, b = scheduler.alpha_bar_at(500), scheduler.alpha_bar_at(350)
    expected = (a / b) ** 0.5 * there + (1 - a / b) ** 0.5 * fresh
    assert relative_error(trajectory_step(scheduler, z, x_0, 749, 500, fresh), expected) <= 1e-5
    assert torch.equal(trajectory_step(scheduler, z, x_0, 749, -1, fresh), x_0)
    assert relative_error(consistency_step(scheduler, z, x_0, 749, -1, fresh), x_0) <= 1e-6


def test_samplers_and_models_that_do_not_fit_are_refused() -> None:
    (student, vae), (model, _) = micro_student(), micro_model()
    for painter, how, words in (
        (student, PAPER, r"is a student .* with --turbo .* found sampler ddpm"),
        (model, TURBO, r"--turbo must be used with a student .* --stage distill"),
        (student, dataclasses.replace(TURBO, pose_scale=3.0), r"scales must be 2 and 2 .* found 3 and 2"),
        (student, dataclasses.replace(TURBO, guidance_interval=(0, 500)), "in an interval"),
    ):
        with pytest.raises(UserError, match=words):
            sample(painter, vae, *inputs(), how)
    assert "turbo" not in SAMPLERS and SamplingConfig(4, "turbo") == TURBO


def test_an_edit_by_a_student_keeps_the_reference_outside_the_mask() -> None:
    model, vae = micro_student()
    sources, poses = (x[:1] for x in inputs())
    reference, mask = noise(1, 3, 64, 64).clamp(-1, 1), torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[..., 16:40, 16:40] = True
    image = edit(model, vae, sources, reference, mask, poses, TURBO, generator=torch.Generator().manual_seed(0))
    assert torch.equal(image[..., :16, :], reference[..., :16, :])
    assert not torch.allclose(image[..., 20:36, 20:36], reference[..., 20:36, 20:36], atol=0.05)


# Commands.


def photo_and_pose(folder: Path) -> list[object]:
    Image.fromarray(np.full((256, 176, 3), 90, np.uint8)).save(folder / "photo.png")
    np.save(folder / "pose.npy", np.stack([np.linspace(40, 120, 18), np.linspace(20, 230, 18)], axis=1))
    return ["--source", folder / "photo.png", "--pose", folder / "pose.npy", "--layout", "openpose", "--device", "cpu"]


def test_turbo_on_the_command_line(both: Path, adapted: Path, micro_folder: Path, fails, tmp_path: Path) -> None:
    common = [*photo_and_pose(tmp_path), "--precision", "fp32", "--seed", 4]

    def paint(name: str, *more: object) -> bytes:
        assert sample_command([str(a) for a in (*common, "--out", tmp_path / name, *more)]) == 0
        with Image.open(tmp_path / name) as picture:
            return picture.tobytes()

    four = paint("both.png", "--model", both, "--turbo")
    assert four == paint("own.png", "--model", adapted / "model", "--turbo")
    assert four != paint("two.png", "--model", both, "--turbo", "--steps", 2)
    assert four != paint("plain.png", "--model", both, "--steps", 4)
    refused = [*common, "--out", tmp_path / "x.png"]
    fails(sample_command, *refused, "--model", micro_folder, "--turbo", words=["no student for --turbo"])
    fails(sample_command, *refused, "--model", adapted / "model", words=["is a student", "--turbo"])
    fails(sample_command, *refused, "--model", both, "--turbo", "--fast", words=["--turbo must be given without"])
    fails(sample_command, *refused, "--model", both, "--turbo", "--pose-scale", 1, words=["scales must be 2 and 2"])


# For other code.


@torch.no_grad()
def test_exported_adapters_make_diffusers_unet_the_student(both: Path, adapted: Path, tmp_path: Path) -> None:
    lora = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    for layout in ("peft", "kohya"):
        assert convert(["export", "--to", layout, str(both), str(tmp_path / layout)]) == 0
    peft, kohya = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("peft", "kohya"))
    assert {key.rpartition(".")[0] for key in peft if "lora_A" in key} and len(kohya) == len(peft) * 3 // 2
    read, alphas = lora._convert_non_diffusers_lora_to_diffusers(dict(kohya))  # diffusers' own reader
    assert set(alphas.values()) == {2.0}

    def name_of(key: str) -> str:  # of attention, that reader gives an older spelling
        plain = re.sub(r"\.processor\.(to_\w+?)_lora\.", r".\1.lora.", key).replace(".to_out.lora.", ".to_out.0.lora.")
        return plain.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")

    assert {name_of(key) for key in read} == peft.keys()
    teacher, student = load(both)[0], load(both, turbo=True)[0]
    c = MICRO.unet
    theirs = diffusers_unet(c.channels, c.context_width, c.groups, c.latent_channels, c.num_heads, c.depth)
    theirs.load_state_dict(in_layout(teacher.unet, layout_of("UNet", "diffusers")))
    for key in peft:
        if "lora_A" in key:
            layer = theirs.get_submodule(key.removeprefix("unet.").removesuffix(".lora_A.weight"))
            a, b = peft[key], peft[key.replace("lora_A", "lora_B")]
            layer.weight += (b.flatten(1) @ a.flatten(1)).view(layer.weight.shape)
    z, t, prompt = noise(1, 4, 8, 8), torch.tensor([300]), noise(1, 3, 16)
    assert relative_error(student.unet(z, t, prompt), theirs(z, t, prompt)[0]) <= 1e-5


def test_a_student_of_whole_weights_has_no_adapters_to_export(fails, distilled: Path, tmp_path: Path) -> None:
    fails(convert, "export", "--to", "kohya", distilled, tmp_path / "x", words=["only adapters", "--rank"])


def test_a_merged_student_is_a_folder_of_its_own(both: Path, adapted: Path, tmp_path: Path) -> None:
    assert convert(["merge", str(both), str(tmp_path / "merged")]) == 0
    assert_same(load_file(tmp_path / "merged" / "model.safetensors"), weights(adapted))
    assert read_config(tmp_path / "merged" / "config.json").distilled.rank == 2
