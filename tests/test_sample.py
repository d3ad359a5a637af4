"""Guidance, sampling and its command."""

import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import micro_model
from PIL import Image
from references import DATA, noise, relative_error

import cfld
from cfld.edit.__main__ import main as edit
from cfld.model import CFLD, Conditions
from cfld.photos.pixels import to_pictures
from cfld.playground.__main__ import main as playground
from cfld.sample import main
from cfld.samplers import SAMPLERS, dpmpp_step, unipc_step
from cfld.sampling import FAST, PAPER, SamplingConfig, draw_noise, guidance, guided_noise, sample
from cfld.tools.cli import UserError

CSV = DATA / "fashion" / "fasion-resize-annotation-test.csv"
NAMES = [line.split(":")[0] for line in CSV.read_text().splitlines()[1:]]
PHOTO = DATA / "fashion" / "MEN" / "Tees_Tanks" / "id_00800018" / "01_1_front.jpg"


def inputs(model: CFLD) -> tuple[torch.Tensor, torch.Tensor]:
    return noise(2, 3, 32, 32), noise(2, 21, 32, 32, seed=1)


@pytest.mark.parametrize(
    ("pose_scale", "appearance_scale", "branches"),
    [(2.0, 2.0, 2), (1.0, 1.0, 1), (3.0, 1.5, 3), (2.0, 0.0, 2), (0.0, 0.0, 1)],
)
@torch.no_grad()
def test_branches_of_weight_zero_are_not_computed_and_the_rest_equals_equation_7(
    pose_scale: float, appearance_scale: float, branches: int
) -> None:
    model, _ = micro_model()
    conditions = model.condition(*inputs(model))
    weights, stacked = guidance(conditions, model.null_prompt, pose_scale, appearance_scale)
    assert len(weights) == branches and len(stacked) == 2 * branches
    latents, timesteps = noise(2, 4, 8, 8), torch.tensor([500, 500])
    null = model.null_prompt.expand(2, -1, -1)
    uncond = model(latents, timesteps, Conditions(null, None, None))
    pose = model(latents, timesteps, Conditions(null, conditions.pose_features, None))
    full = model(latents, timesteps, conditions)
    expected = uncond + pose_scale * (pose - uncond) + appearance_scale * (full - pose)  # Eq. 7 as printed
    assert relative_error(guided_noise(model, latents, 500, weights, stacked), expected) <= 1e-5


@torch.no_grad()
def test_sampling_equals_the_loop_of_three_branches_written_out() -> None:
    model, vae = micro_model()
    sources, poses = inputs(model)
    ours = sample(model, vae, sources, poses, SamplingConfig(steps=4), generator=torch.Generator().manual_seed(3))
    g, conditions = torch.Generator().manual_seed(3), model.condition(sources, poses)
    latents = torch.randn(2, 4, 8, 8, generator=g)
    null = model.null_prompt.expand(2, -1, -1)
    for t, t_next in ((751, 501), (501, 251), (251, 1), (1, -1)):
        at = torch.tensor([t, t])
        uncond = model(latents, at, Conditions(null, None, None))
        pose = model(latents, at, Conditions(null, conditions.pose_features, None))
        full = model(latents, at, conditions)
        eps = uncond + 2 * (pose - uncond) + 2 * (full - pose)
        z = torch.randn(2, 4, 8, 8, generator=g) if t_next >= 0 else None
        x_0 = model.scheduler.clean_latents(latents, eps, t)
        latents = model.scheduler.ddpm_step(latents, x_0, t, t_next, z)
    assert relative_error(ours, vae.decode(latents).clamp(-1, 1)) <= 1e-4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_is_the_same_alone_and_in_a_batch(sampler: str) -> None:
    model, vae = micro_model()
    source, poses = noise(1, 3, 32, 32), noise(3, 21, 32, 32, seed=1)
    seeds = lambda *numbers: [torch.Generator().manual_seed(i) for i in numbers]  # noqa: E731
    config = SamplingConfig(3, sampler)
    together = sample(model, vae, source, poses, config, generator=seeds(5, 6, 7))
    alone = sample(model, vae, source, poses[1:2], config, generator=seeds(6))
    assert relative_error(together[1:2], alone) <= 1e-4
    again = sample(model, vae, source, poses, config, generator=seeds(5, 6, 7))
    assert torch.equal(together, again)


def test_a_list_of_generators_must_have_one_per_image() -> None:
    model, vae = micro_model()
    poses = noise(3, 21, 32, 32, seed=1)
    for count in (1, 2, 4):
        seeds = [torch.Generator().manual_seed(i) for i in range(count)]
        with pytest.raises(UserError, match=f"one per image, 3, found {count}"):
            sample(model, vae, noise(1, 3, 32, 32), poses, SamplingConfig(1), generator=seeds)
    first, second = draw_noise((2, 4, 8, 8), [torch.Generator().manual_seed(i) for i in (0, 1)], torch.device("cpu"))
    assert not torch.equal(first, second)


@torch.no_grad()
def test_the_loop_gives_a_sampler_what_was_predicted_before() -> None:
    model, vae = micro_model()
    sources, poses = inputs(model)
    scheduler, conditions = model.scheduler, model.condition(sources, poses)
    for sampler, step in (("dpm++", dpmpp_step), ("unipc", unipc_step)):
        g = torch.Generator().manual_seed(3)
        ours = sample(model, vae, sources, poses, SamplingConfig(4, sampler, 1.0, 1.0), generator=g)
        latents, past = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)), []
        for t, t_next in ((999, 749), (749, 500), (500, 250), (250, -1)):
            x_0 = scheduler.clean_latents(latents, model(latents, torch.tensor([t, t]), conditions), t)
            latents = step(scheduler, latents, x_0, t, t_next, past)
            past.append((t, x_0))
        assert relative_error(ours, vae.decode(latents).clamp(-1, 1)) <= 1e-4


def test_a_config_checks_itself() -> None:
    for changes, words in (
        ({"steps": 0}, "steps must be a whole number of at least 1, found 0"),
        ({"steps": 2.5}, "found 2.5"),
        ({"steps": True}, "found True"),
        ({"sampler": "euler"}, r"one of ddpm, ddim, dpm\+\+, unipc, found 'euler'"),
        ({"pose_scale": 101}, "pose_scale must be a number within -100 .. 100, found 101"),
        ({"appearance_scale": float("nan")}, "appearance_scale must be a number within -100 .. 100, found nan"),
        ({"pose_scale": "2"}, "pose_scale must be a number"),
        ({"guidance_interval": (9, 5)}, "LOW <= HIGH, found 9 5"),
        ({"guidance_interval": (0, 5, 9)}, "LOW HIGH with LOW <= HIGH, found 0 5 9"),
    ):
        with pytest.raises(UserError, match=words):
            SamplingConfig(**changes)
    model, vae = micro_model()
    with pytest.raises(UserError, match=r"steps must be within 1 \.\. 999, found 1000"):
        sample(model, vae, *inputs(model), SamplingConfig(1000))
    assert SamplingConfig(np.int64(3), pose_scale=np.float32(2)).steps == 3
    assert SamplingConfig() == PAPER and (PAPER.steps, PAPER.sampler) == (50, "ddpm")


@torch.no_grad()
def test_many_pictures_are_decoded_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, vae = micro_model()
    sources, poses = inputs(model)

    def paint() -> torch.Tensor:
        noises = [torch.Generator().manual_seed(i) for i in range(5)]
        many = poses[:1].expand(5, -1, -1, -1)
        return sample(model, vae, sources[:1], many, SamplingConfig(steps=2), generator=noises)

    whole, counts = paint(), []
    vae.decoder.register_forward_hook(lambda module, args, out: counts.append(len(out)))
    monkeypatch.setattr("cfld.sampling.DECODED_PIXELS", 2 * model.config.image_size**2 + 1)
    assert relative_error(paint(), whole) <= 1e-6
    assert counts == [2, 2, 1]


@torch.no_grad()
def test_guidance_acts_within_its_interval_and_the_conditional_branch_stands_alone_elsewhere() -> None:
    model, vae = micro_model()
    paint = lambda **settings: sample(  # noqa: E731
        model, vae, *inputs(model), SamplingConfig(4, **settings), generator=torch.Generator().manual_seed(3)
    )
    sizes = []
    handle = model.unet.register_forward_pre_hook(lambda module, args: sizes.append((int(args[1][0]), len(args[2]))))
    inner = paint(guidance_interval=(251, 501))
    assert sizes == [(751, 2), (501, 4), (251, 4), (1, 2)]  # two images, and two branches of Eq. 7 at 2.0/2.0
    handle.remove()
    guided, plain = paint(), paint(pose_scale=1.0, appearance_scale=1.0)
    assert torch.equal(paint(guidance_interval=(0, 999)), guided)
    assert torch.equal(paint(guidance_interval=(2, 250)), plain)
    assert relative_error(inner, guided) > 1e-3 and relative_error(inner, plain) > 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_step_is_told_with_what_it_predicts_and_changes_nothing(sampler: str) -> None:
    model, vae = micro_model()
    told: list[tuple[int, torch.Tensor]] = []
    paint = lambda **more: sample(  # noqa: E731
        model, vae, *inputs(model), SamplingConfig(3, sampler), generator=torch.Generator().manual_seed(3), **more
    )
    watched = paint(on_step=lambda i, x_0: told.append((i, x_0)))
    assert torch.equal(watched, paint())
    assert [i for i, _ in told] == [0, 1, 2] and all(x_0.shape == (2, 4, 8, 8) for _, x_0 in told)
    if sampler == "ddpm":  # whose last step returns the x_0 predicted there
        assert relative_error(vae.decode(told[-1][1]).clamp(-1, 1), watched) <= 1e-6


def test_pictures_are_rounded_clamped_and_of_the_size_asked_for() -> None:
    images = torch.stack([torch.full((3, 16, 16), 3.0), torch.full((3, 16, 16), 0.0)])
    white, grey = to_pictures(images, (24, 10))
    assert white.size == (10, 24) and white.getpixel((0, 0)) == (255, 255, 255)
    assert grey.getpixel((3, 3)) == (128, 128, 128)


def test_generate_takes_and_gives_pictures(micro_folder: Path) -> None:
    model, vae = cfld.load(micro_folder)
    keypoints = cfld.photos.keypoints.read_annotations(CSV)[NAMES[1]]
    pictures = cfld.generate(model, vae, Image.open(PHOTO), keypoints, SamplingConfig(2), seed=4)
    assert [picture.size for picture in pictures] == [(176, 256)]
    again = cfld.generate(model, vae, Image.open(PHOTO).convert("RGBA"), keypoints, SamplingConfig(2), seed=4)
    assert again[0].tobytes() == pictures[0].tobytes()


@pytest.mark.parametrize("shape", [(36, 2), (17, 2), (2, 18, 3), (18, 3), (1, 1, 18, 2)])
def test_keypoints_of_another_shape_are_refused(micro_folder: Path, shape: tuple[int, ...]) -> None:
    model, vae = cfld.load(micro_folder)
    with pytest.raises(UserError, match=r"\(18, 2\) or \(B, 18, 2\).*found .*" + re.escape(str(shape))):
        cfld.generate(model, vae, Image.open(PHOTO), np.full(shape, 50.0), SamplingConfig(2))
    with pytest.raises(UserError, match="finite"):
        cfld.generate(model, vae, Image.open(PHOTO), np.full((18, 2), np.nan), SamplingConfig(2))


def test_a_picture_that_is_not_finite_is_an_error_and_not_black(micro_folder: Path, tmp_path: Path, fails) -> None:
    model, vae = cfld.load(micro_folder)
    model.unet.conv_out.bias.data.fill_(torch.nan)
    cfld.save(tmp_path / "lost", model, vae)
    out = tmp_path / "o.png"
    fails(main, "--model", tmp_path / "lost", "--source", PHOTO, "--pose", f"{CSV}#{NAMES[1]}", "--steps", 2,
          "--out", out, words=["finite", "--precision"])  # fmt: skip
    assert not out.exists()


def test_a_photo_that_lies_on_its_side_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    from cfld.tools.pictures import read_image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "phone.jpg", exif=exif)
    assert read_image(tmp_path / "phone.jpg", upright=True).size == (20, 40)
    assert read_image(tmp_path / "phone.jpg").size == (40, 20)


def run(micro_folder: Path, out: Path, *more: object) -> int:
    argv = ["--model", micro_folder, "--source", PHOTO, "--out", out, "--steps", 2, "--device", "cpu", *more]
    return main([str(a) for a in argv])


def test_the_command_writes_the_same_picture_for_the_same_seed(micro_folder: Path, tmp_path: Path) -> None:
    pose = ("--pose", f"{CSV}#{NAMES[1]}")
    assert run(micro_folder, tmp_path / "a.png", *pose, "--seed", 1) == 0
    assert run(micro_folder, tmp_path / "b.png", *pose, "--seed", 1) == 0
    assert run(micro_folder, tmp_path / "c.png", *pose, "--seed", 2) == 0
    a, b, c = (Image.open(tmp_path / f"{name}.png") for name in "abc")
    assert a.size == (176, 256) and a.tobytes() == b.tobytes() != c.tobytes()


def test_the_command_takes_a_sampler_and_a_guidance_interval(micro_folder: Path, tmp_path: Path) -> None:
    pictures = set()
    pose = ("--pose", f"{CSV}#{NAMES[1]}", "--steps", 3)
    for i, more in enumerate([(), *(("--sampler", name) for name in SAMPLERS), ("--guidance-interval", 0, 500)]):
        assert run(micro_folder, tmp_path / f"{i}.png", *pose, *more) == 0
        pictures.add(Image.open(tmp_path / f"{i}.png").tobytes())
    assert len(pictures) == 5  # without options it is ddpm


def test_fast_is_a_preset_that_other_options_change(micro_folder: Path, tmp_path: Path) -> None:
    pose = ("--pose", f"{CSV}#{NAMES[1]}")
    same = [("--fast",), ("--sampler", FAST.sampler, "--steps", FAST.steps)]
    other = [("--fast", "--steps", 3), ("--sampler", FAST.sampler, "--steps", 3)]
    made = []
    for i, more in enumerate((*same, *other)):
        argv = ["--model", micro_folder, "--source", PHOTO, "--out", tmp_path / f"{i}.png", "--device", "cpu"]
        assert main([str(word) for word in (*argv, *pose, *more)]) == 0
        made.append(Image.open(tmp_path / f"{i}.png").tobytes())
    assert made[0] == made[1] != made[2] == made[3]


@pytest.mark.slow
def test_the_command_paints_nearly_the_same_compiled(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import compile_fx
    from torch._inductor import config as inductor

    frozen = []
    freeze = compile_fx.fw_compiler_freezing
    monkeypatch.setattr(compile_fx, "fw_compiler_freezing", lambda *a, **k: (frozen.append(1), freeze(*a, **k))[1])
    outs = [tmp_path / name for name in ("eager.png", "compiled.png")]
    pose = ("--pose", f"{CSV}#{NAMES[1]}")
    assert run(micro_folder, outs[0], *pose) == run(micro_folder, outs[1], *pose, "--compile") == 0
    assert frozen and not inductor.freezing  # in force for this UNet, and for nothing else
    eager, compiled = (np.asarray(Image.open(out)).astype(int) for out in outs)
    assert np.abs(eager - compiled).max() <= 1


def test_the_command_paints_a_chosen_person_of_an_estimators_file(micro_folder: Path, tmp_path: Path) -> None:
    annotated = cfld.photos.keypoints.read_annotations(CSV)[NAMES[1]]
    sure = np.concatenate([annotated[:, ::-1] * 2, np.full((18, 1), 0.9)], axis=1)  # in a picture of 352x512
    doubtful = np.array([[300, 400, 0.2]] + [[0, 0, 0]] * 17)
    np.save(tmp_path / "people.npy", [doubtful, np.where(annotated.min(axis=1, keepdims=True) < 0, doubtful, sure)])
    estimated = ("--pose", tmp_path / "people.npy", "--pose-size", "352x512", "--person", 1, "--min-confidence", 0.5)
    assert run(micro_folder, tmp_path / "a.png", *estimated) == 0
    assert run(micro_folder, tmp_path / "b.png", "--pose", f"{CSV}#{NAMES[1]}") == 0
    assert Image.open(tmp_path / "a.png").tobytes() == Image.open(tmp_path / "b.png").tobytes()


def test_the_command_paints_with_the_bundled_model_unless_told_otherwise(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails
) -> None:
    out = tmp_path / "out.png"
    argv = ["--source", str(PHOTO), "--pose", f"{CSV}#{NAMES[1]}", "--steps", "2", "--out"]
    monkeypatch.setattr("cfld.folder.resources.files", lambda package: tmp_path / package)
    fails(main, *argv, out, words=["bundled", str(tmp_path / "weights" / "tiny"), "make tiny"])
    shutil.copytree(micro_folder, tmp_path / "weights" / "tiny")
    assert main([*argv, str(out)]) == 0
    assert run(micro_folder, tmp_path / "named.png", *argv[2:4]) == 0
    assert Image.open(out).tobytes() == Image.open(tmp_path / "named.png").tobytes()


def test_the_command_paints_several_poses_and_side_by_side_pictures(micro_folder: Path, tmp_path: Path) -> None:
    poses = ["--pose", f"{CSV}#{NAMES[1]}", f"{CSV}#{NAMES[2]}", "--side-by-side", "--size", "128x88"]
    assert run(micro_folder, tmp_path / "out.png", *poses) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out-1.png", "out-2.png"]
    assert Image.open(tmp_path / "out-2.png").size == (3 * 88, 128)
    again = ["--pose", f"{CSV}#{NAMES[1]}", "--pose", f"{CSV}#{NAMES[2]}", *poses[3:], "--batch", "1"]
    assert run(micro_folder, tmp_path / "one by one.png", *again) == 0
    for i in (1, 2):
        ours, theirs = (np.asarray(Image.open(tmp_path / f"{name}-{i}.png"), int) for name in ("out", "one by one"))
        assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_paint_nearly_the_same(micro_folder: Path, precision: str) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model, vae = cfld.load(micro_folder)
    low_model, low_vae = cfld.load(micro_folder, dtype=dtype)
    sources, poses = inputs(model)
    config = SamplingConfig(steps=2, pose_scale=1.0, appearance_scale=1.0)
    high = sample(model, vae, sources, poses, config, generator=torch.Generator().manual_seed(0))
    low = sample(low_model, low_vae, sources, poses, config, generator=torch.Generator().manual_seed(0))
    assert low.dtype == dtype
    assert relative_error(low.float(), high) <= 0.1


def test_mistakes_are_one_line_and_overwrite_nothing(micro_folder: Path, tmp_path: Path, fails) -> None:
    pose = ["--pose", f"{CSV}#{NAMES[1]}"]
    out = ["--out", tmp_path / "o.png"]
    photo = ["--source", PHOTO]
    fails(main, "--model", tmp_path / "none", *photo, *pose, *out, words=["none", "no such model folder"])
    fails(main, "--model", micro_folder, "--source", tmp_path / "x.jpg", *pose, *out, words=["x.jpg", "no such image"])
    (tmp_path / "bad.jpg").write_bytes(PHOTO.read_bytes()[:300])
    fails(main, "--model", micro_folder, "--source", tmp_path / "bad.jpg", *pose, *out, words=["bad.jpg", "readable"])
    fails(main, "--model", micro_folder, *photo, "--pose", f"{CSV}#x", *out, words=["no row named 'x'"])
    fails(main, "--model", micro_folder, *photo, *pose, *out, "--steps", 0, words=["steps", "found 0"])
    fails(main, "--model", micro_folder, *photo, *pose, *out, "--seed", 2**70, words=["--seed", "2^63"])
    fails(main, "--model", micro_folder, *photo, *pose, *out, "--pose-scale", "nan", words=["--pose-scale", "within"])
    fails(main, "--model", micro_folder, *photo, *pose, *out, "--size", "352x512", words=["--size", "16:11", "352x512"])
    fails(main, "--model", micro_folder, *photo, *pose, *out, "--batch", 0, words=["--batch", "found 0"])
    fails(main, "--model", micro_folder, *photo, "--pose", f"{PHOTO}#x", *out, words=[PHOTO.name, "UTF-8"])
    fails(main, "--model", micro_folder, *photo, *pose, "--out", tmp_path / "o.psd", words=["o.psd", ".png"])
    fails(main, "--model", micro_folder, *photo, *pose, *out, "--device", "cuda:9", words=["--device cuda:9"])
    fails(main, "--model", micro_folder, *photo, *pose, "--out", tmp_path / "o.txt", words=["o.txt", ".png"])
    (tmp_path / "o.png").write_text("mine")
    fails(main, "--model", micro_folder, *photo, *pose, *out, words=["o.png", "--force"])
    assert (tmp_path / "o.png").read_text() == "mine"
    points = {"people": [{"pose_keypoints_2d": [300, 10, 1] * 18}]}
    (tmp_path / "p.json").write_text(json.dumps(points))
    fails(main, "--model", micro_folder, *photo, "--pose", tmp_path / "p.json", "--out", tmp_path / "q.png",
          words=["p.json", "--pose-size"])  # fmt: skip
    people = ["--pose", tmp_path / "p.npy"]
    np.save(tmp_path / "p.npy", np.full((2, 17, 3), 0.4) * [100, 100, 1])
    fails(main, "--model", micro_folder, *photo, *people, "--out", tmp_path / "q.png", "--person", 2,
          words=["p.npy", "--person must be within 0 .. 1, found 2"])  # fmt: skip
    fails(main, "--model", micro_folder, *photo, *people, "--out", tmp_path / "q.png", "--min-confidence", 0.5,
          words=["p.npy", "no joint", "--min-confidence"])  # fmt: skip
    fails(main, "--model", micro_folder, *photo, *people, "--out", tmp_path / "q.png", "--min-confidence", 30,
          words=["--min-confidence must be within 0 .. 1, found 30"])  # fmt: skip
    fails(main, "--model", micro_folder, *photo, *people, "--out", tmp_path / "q.png", "--guidance-interval", 9, 5,
          words=["--guidance-interval", "found 9 5"])  # fmt: skip


def test_the_commands_of_cfld_edit_are_named_to_those_who_look_for_them_here(fails) -> None:
    for name in ("edit", "interpolate", "sequence", "attention"):
        fails(main, name, "--help", words=[f"python -m cfld.edit {name}"])


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        (main, []),
        (edit, ["edit"]),
        (edit, ["interpolate"]),
        (edit, ["sequence"]),
        (edit, ["attention"]),
        (playground, []),
    ],
)
def test_every_option_is_explained_in_at_most_80_characters(
    command, argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda self: parsers.append(self))
    with pytest.raises(SystemExit):
        command([*argv, "--help"])
    for action in parsers[0]._actions:
        assert action.help and len(action.help) <= 80, (action.option_strings, action.help)
