"""The Python API says what must hold, in one sentence, and takes what people have: paths, arrays, numpy's numbers."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MICRO, micro_model
from PIL import Image
from torch import Tensor

import cfld
from cfld import Conditions, SamplingConfig, Scheduler, SchedulerConfig
from cfld.baselines import from_dict, to_dict
from cfld.samplers import SAMPLERS
from cfld.sampling import generate, sample
from cfld.tools.checks import check_tensor

MODEL, VAE = micro_model()
PHOTO = Image.new("RGB", (176, 256), "red")
KEYPOINTS = np.random.default_rng(0).uniform(10, 150, (18, 2))
LATENTS, PROMPT, T = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 16), torch.tensor([5, 900])
SOURCES, POSES = torch.randn(1, 3, 32, 32), torch.rand(2, 21, 32, 32)
FAST = SamplingConfig(steps=2, sampler="dpm++")
SCHEDULER = Scheduler()


def in_photo(**options: object) -> object:
    keypoints, photo = options.pop("keypoints", KEYPOINTS), options.pop("photo", PHOTO)
    return generate(MODEL, VAE, photo, keypoints, FAST, **options)  # type: ignore[arg-type]


def from_points(**options: object) -> object:
    return cfld.keypoints_from(KEYPOINTS[:, ::-1], **options)  # type: ignore[arg-type]


def features(change: int | None = None) -> list[Tensor]:
    found = list(MODEL.pose_adapter(POSES))
    return found if change is None else [*found[:change], found[change][:, :, 1:], *found[change + 1 :]]


REFUSED = {
    "UNet: 3 channels": (lambda: MODEL.unet(LATENTS[:, :3], T, PROMPT), r"latents .*\(B, 4, h, w\), found"),
    "UNet: no batch": (lambda: MODEL.unet(LATENTS[0], T, PROMPT), "latents must be a floating-point tensor"),
    "UNet: 7x7": (lambda: MODEL.unet(LATENTS[..., :7, :7], T, PROMPT), "multiples of 8, found 7 and 7"),
    "UNet: array": (lambda: MODEL.unet(LATENTS.numpy(), T, PROMPT), "latents .* found ndarray"),
    "UNet: doubles": (lambda: MODEL.unet(LATENTS.double(), T, PROMPT), "latents .* torch.float32, found torch.float64"),
    "UNet: elsewhere": (lambda: MODEL.unet(LATENTS.to("meta"), T, PROMPT), "device .* cpu, found meta"),
    "UNet: t = 5": (lambda: MODEL.unet(LATENTS, 5, PROMPT), "timesteps must be a tensor .* found int '5'"),
    "UNet: t = 5.0": (lambda: MODEL.unet(LATENTS, T.float(), PROMPT), "timesteps must be a tensor .* whole numbers"),
    "UNet: t = -1": (lambda: MODEL.unet(LATENTS, T - 6, PROMPT), r"within 0 \.\. 999, found -1 \.\. 894"),
    "UNet: t = 1000": (lambda: MODEL.unet(LATENTS, T + 100, PROMPT), r"within 0 \.\. 999, found 105 \.\. 1000"),
    "UNet: 3 timesteps": (lambda: MODEL.unet(LATENTS, torch.arange(3), PROMPT), "one per sample, 2, found 3"),
    "UNet: prompt": (lambda: MODEL.unet(LATENTS, T, PROMPT[..., 1:]), r"prompt .*\(2, L, 16\), found"),
    "UNet: one prompt": (lambda: MODEL.unet(LATENTS, T, PROMPT[:1]), r"prompt .*\(2, L, 16\)"),
    "UNet: two features": (lambda: MODEL.unet(LATENTS, T, PROMPT, features()[:2]), "pose features must be 3, found 2"),
    "UNet: odd feature": (lambda: MODEL.unet(LATENTS, T, PROMPT, features(1)), r"pose feature 1 .*\(2, 16, 4, 4\)"),
    "UNet: biases": (lambda: MODEL.unet(LATENTS, T, PROMPT, None, [PROMPT]), "query biases must be 6, found 1"),
    "UNet: odd bias": (lambda: MODEL.unet(LATENTS, T, PROMPT, None, [PROMPT] * 6), r"query bias must be \(2, 4, 32\)"),
    "CFLD: conditions": (lambda: MODEL(LATENTS, T, PROMPT), "conditions must be what CFLD.condition returns"),
    "CFLD: images of 8 bits": (lambda: MODEL.condition(SOURCES.byte(), POSES), "source_images .* torch.uint8"),
    "CFLD: images of another size": (lambda: MODEL.condition(SOURCES[..., 1:], POSES), r"\(S, 3, 32, 32\)"),
    "CFLD: poses of another size": (lambda: MODEL.condition(SOURCES, POSES[..., 1:]), r"poses .*\(B, 21, 32, 32\)"),
    "CFLD: no source": (lambda: MODEL.condition(SOURCES[:0], POSES), "multiple of the number of source images"),
    "CFLD: drops": (lambda: MODEL.drop(Conditions(PROMPT, None, None), T, "paper"), r"dropped .*\(2,\) of bool"),
    "Swin": (lambda: MODEL.source_encoder(SOURCES[0]), r"images .*\(B, 3, 32, 32\)"),
    "Swin: draws": (lambda: MODEL.source_encoder(SOURCES, torch.rand(1, 3)), r"depth_draws .*\(1, 12\)"),
    "PRD": (lambda: MODEL.prd(torch.randn(1, 64, 1, 1)), r"source_feature .*\(B, 128, h, w\)"),
    "PRD: positions": (lambda: MODEL.prd(torch.randn(1, 128, 2, 2)), "must have 1 positions, found 4"),
    "HGA: f_4": (lambda: MODEL.hga(MODEL.source_encoder(SOURCES)), "must be 3, without f_4, found 4"),
    "HGA: width": (lambda: MODEL.hga(MODEL.source_encoder(SOURCES)[1:]), r"f_1 .*\(B, 16, h, w\)"),
    "adapter": (lambda: MODEL.pose_adapter(torch.rand(1, 21, 64, 64)), r"poses .*\(B, 21, 32, 32\)"),
    "VAE: images of 8 bits": (lambda: VAE.encode(SOURCES.byte()), "images must be a floating-point tensor"),
    "VAE: 30x32": (lambda: VAE.encode(SOURCES[..., :30, :]), "multiples of 8, found 30 and 32"),
    "VAE: latents": (lambda: VAE.decode(LATENTS[:, :3]), r"latents .*\(B, 4, h, w\)"),
    "scheduler: t = -1": (lambda: SCHEDULER.add_noise(LATENTS, LATENTS, T - 6), "found -1"),
    "scheduler: t = -2": (lambda: SCHEDULER.clean_latents(LATENTS, LATENTS, -2), r"within -1 \.\. 999, found int '-2'"),
    "scheduler: t = 5.0": (lambda: SCHEDULER.alpha_bar_at(5.0), "a timestep must be a whole number"),
    "scheduler: spacing": (lambda: SCHEDULER.sampling_timesteps(10, "zork"), "leading or linspace, found 'zork'"),
    "scheduler: steps": (lambda: SCHEDULER.sampling_timesteps(2.5), r"within 1 \.\. 999, found float '2.5'"),
    "step of DDIM": (lambda: SAMPLERS["ddim"].step(SCHEDULER, LATENTS, LATENTS, 1000, 5), r"-1 \.\. 999"),
    "maps of 17": (lambda: cfld.pose_maps(torch.zeros(1, 17, 2), 32), r"must be \(B, 18, 2\), found Tensor of"),
    "maps of 19": (lambda: cfld.pose_maps(np.zeros((1, 19, 2)), 32), r"found ndarray of \(1, 19, 2\)"),
    "maps without a batch": (lambda: cfld.pose_maps(torch.zeros(18, 2), 32), r"\(B, 18, 2\)"),
    "maps of infinity": (lambda: cfld.pose_maps(torch.full((1, 18, 2), torch.inf), 32), "finite numbers"),
    "maps of nan": (lambda: cfld.pose_maps(torch.full((1, 18, 2), torch.nan), 32), "finite numbers"),
    "maps of size 0": (lambda: cfld.pose_maps(torch.zeros(1, 18, 2), 0), "size of pose maps"),
    "keypoints_from: size": (lambda: from_points(pose_size="256x176"), r"\(height, width\), .* found str '256x176'"),
    "keypoints_from: one side": (lambda: from_points(pose_size=256), "two positive numbers, found int '256'"),
    "keypoints_from: size 0": (lambda: from_points(pose_size=(0, 176)), "two positive numbers, found tuple"),
    "keypoints_from: person": (lambda: from_points(person="0"), "person must be a whole number, found str '0'"),
    "keypoints_from: person 1": (lambda: from_points(person=1), r"person must be within 0 \.\. 0, found 1"),
    "keypoints_from: confidence": (lambda: from_points(min_confidence=30), r"within 0 \.\. 1, found int '30'"),
    "keypoints_from: None": (lambda: from_points(min_confidence=None), "min_confidence must be a number"),
    "keypoints_from: layout": (lambda: from_points(layout="COCO"), "layout must be one of .*coco.*, found str 'COCO'"),
    "retarget: words": (lambda: cfld.retarget([["x", "y"]] * 18, KEYPOINTS), "keypoints must be finite numbers"),
    "retarget: nan": (lambda: cfld.retarget(KEYPOINTS, KEYPOINTS * np.nan), "source must be finite numbers, -1 ="),
    "retarget: 17 joints": (lambda: cfld.retarget(KEYPOINTS[1:], KEYPOINTS), r"\(18, 2\), found \(17, 2\) and"),
    "generate: no such file": (lambda: in_photo(photo="nowhere.png"), "nowhere.png: no such image"),
    "generate: photo of floats": (lambda: in_photo(photo=np.zeros((9, 9, 3))), r"uint8, found ndarray of \(9, 9, 3\)"),
    "generate: empty photo": (lambda: in_photo(photo=Image.new("RGB", (0, 0))), "at least 1x1.* found one of 0x0"),
    "generate: empty array": (lambda: in_photo(photo=np.zeros((0, 9, 3), np.uint8)), "photo must be"),
    "generate: None": (lambda: in_photo(keypoints=None), "keypoints must be .* found ndarray"),
    "generate: no poses": (lambda: in_photo(keypoints=np.zeros((0, 18, 2))), r"found ndarray of \(0, 18, 2\)"),
    "generate: far away": (lambda: in_photo(keypoints=KEYPOINTS * 1e30), "keypoints must be"),
    "generate: words": (lambda: in_photo(keypoints=[["x", "y"]] * 18), "keypoints must be"),
    "generate: width first": (lambda: in_photo(size=(176, 256)), "give the height first"),
    "generate: size 0": (lambda: in_photo(size=(0, 0)), r"within 1 \.\. 8192, found \(0, 0\)"),
    "generate: size of one": (lambda: in_photo(size=256), "size must be height and width"),
    "generate: seed": (lambda: in_photo(seed=-1), "seed must be a whole number of at least 0"),
    "config: nan": (lambda: SamplingConfig(pose_scale=float("nan")), "pose_scale must be a number"),
    "config: interval": (lambda: SamplingConfig(guidance_interval=(900, 100)), "LOW <= HIGH, found 900 100"),
    "config: interval of one": (lambda: SamplingConfig(guidance_interval=5), "must be two numbers, found '5'"),
    "SchedulerConfig: T = 0": (lambda: SchedulerConfig(num_timesteps=0), "scheduler.num_timesteps must be at least 1"),
    "SchedulerConfig: T = 1": (lambda: SchedulerConfig(num_timesteps=1), "scheduler.num_timesteps must be at least 2"),
    "SchedulerConfig: word": (lambda: SchedulerConfig(beta_start="a"), "scheduler.beta_start must be float, found str"),
    "UNetConfig: depth": (lambda: cfld.UNetConfig(depth=0), "unet.depth must be at least 1 and at most 256, found 0"),
    "UNetConfig: width": (lambda: cfld.UNetConfig(context_width=2**40), "unet.context_width .* at most 1048576"),
    "UNetConfig: channels": (lambda: cfld.UNetConfig(channels=320), "unet.channels must be 1 to 256 numbers"),
    "VAEConfig: scale": (lambda: cfld.VAEConfig(scale=float("inf")), "vae.scale must be a finite number"),
    "SwinConfig: empty": (lambda: cfld.SwinConfig(depths=(), num_heads=()), "swin.depths must be 1 to 256 numbers"),
    "CFLDConfig: part": (lambda: cfld.CFLDConfig(unet={}), "unet must be a UNetConfig, found"),
    "CFLDConfig: size": (lambda: cfld.CFLDConfig(image_size=True), "image_size must be int, found bool"),
    "load: device": (lambda: cfld.load(None, "meta"), "device meta cannot be used here"),
    "load: dtype": (lambda: cfld.load(dtype=torch.int8), "floating-point numbers, .* found torch.int8"),
    "load: folder": (lambda: cfld.load("nowhere"), "nowhere: no such model folder"),
    "save: no model": (lambda: cfld.save("x", MODEL, MODEL), "takes a CFLD and a VAE, found CFLD and CFLD"),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_one_sentence(name: str) -> None:
    call, words = REFUSED[name]
    with pytest.raises(ValueError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)


@torch.no_grad()
def test_a_photo_is_taken_as_a_path_an_array_and_an_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (256, 176, 3)).astype(np.uint8)
    photo = Image.fromarray(pixels)
    photo.save(tmp_path / "photo.png")
    wanted = generate(MODEL, VAE, photo, KEYPOINTS, FAST)[0].tobytes()
    mirrored = np.ascontiguousarray(pixels[:, ::-1])[:, ::-1]  # of negative strides
    for given in (tmp_path / "photo.png", str(tmp_path / "photo.png"), pixels, mirrored):
        assert generate(MODEL, VAE, given, KEYPOINTS, FAST)[0].tobytes() == wanted
    swapped = np.ascontiguousarray(KEYPOINTS[:, ::-1])[:, ::-1]
    tensor = torch.from_numpy(KEYPOINTS)
    for keypoints in (swapped, swapped[None], KEYPOINTS.tolist(), tensor):
        assert generate(MODEL, VAE, photo, keypoints, FAST, seed=np.int64(0))[0].tobytes() == wanted  # type: ignore[arg-type]
    small = generate(MODEL, VAE, photo, KEYPOINTS, FAST, size=(np.int64(128), np.int32(88)))  # type: ignore[arg-type]
    assert small[0].size == (88, 128)


def test_maps_are_drawn_from_arrays_with_negative_strides() -> None:
    swapped = np.ascontiguousarray(KEYPOINTS[None, :, ::-1])[:, :, ::-1]
    assert torch.equal(cfld.pose_maps(swapped, np.int64(32)), cfld.pose_maps(torch.from_numpy(KEYPOINTS[None]), 32))


def test_sizes_of_poses_are_taken_as_lists_and_arrays() -> None:
    points = KEYPOINTS[:, ::-1] * 2
    expected = cfld.keypoints_from(points, (512, 352), layout="openpose")  # which these are, in no order of a body
    for size in ([512, 352], np.array([512, 352]), np.array([512.0, 352.0]), (np.int64(512), 352)):
        found = cfld.keypoints_from(points, size, np.int64(0), np.float32(0.3), "openpose")  # type: ignore[arg-type]
        assert np.array_equal(found, expected)


def test_numpys_numbers_and_lists_become_plain_in_configs() -> None:
    config = dataclasses.replace(
        MICRO,
        unet=dataclasses.replace(MICRO.unet, channels=[np.int64(c) for c in MICRO.unet.channels], depth=np.int32(1)),
        vae=dataclasses.replace(MICRO.vae, scale=np.float64(MICRO.vae.scale)),
        image_size=np.uint16(64),
    )
    assert config == MICRO and hash(config) == hash(MICRO)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == MICRO
    assert SamplingConfig(steps=np.int64(3)).steps == 3
    assert SCHEDULER.sampling_timesteps(np.int64(4)) == SCHEDULER.sampling_timesteps(4)
    assert all(type(t) is int for t in SCHEDULER.sampling_timesteps(np.int64(4)))
    assert SCHEDULER.alpha_bar_at(np.int64(7)) == SCHEDULER.alpha_bar_at(7)


def test_a_model_goes_to_a_path_and_back_in_either_form(tmp_path: Path) -> None:
    cfld.save(str(tmp_path / "a"), MODEL, VAE)
    cfld.save(tmp_path / "b", MODEL, VAE)
    for folder in (tmp_path / "a", str(tmp_path / "b")):
        model, _ = cfld.load(folder, torch.device("cpu"))
        assert torch.equal(model.null_prompt, MODEL.null_prompt)


def test_autocast_converts_what_the_weights_have_not() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        conditions = MODEL.condition(SOURCES, POSES)
        assert MODEL(LATENTS, T, conditions).isfinite().all()
    with pytest.raises(ValueError, match="dtype of the weights"):
        check_tensor("x", LATENTS.half(), ("B", 4, "h", "w"), MODEL.unet.conv_in.weight)


def test_the_unet_takes_the_timesteps_of_its_models_scheduler() -> None:
    short = dataclasses.replace(MICRO, scheduler=dataclasses.replace(MICRO.scheduler, num_timesteps=100))
    model = cfld.CFLD(short)
    with pytest.raises(ValueError, match=r"within 0 \.\. 99, found 5 \.\. 900"):
        model.unet(LATENTS, T, PROMPT)


@pytest.mark.slow
@torch.no_grad()
def test_checks_leave_no_break_in_what_is_compiled() -> None:
    """Each network is one graph, with the checks in it. (The UNet is in test_parity.)"""
    for module, images in ((MODEL.source_encoder, SOURCES), (MODEL.pose_adapter, POSES)):
        assert all(map(torch.equal, traced(module.forward)(images), module(images)))
    with torch.autocast("cpu", torch.bfloat16):
        traced(MODEL.pose_adapter.forward)(POSES)
    traced(VAE.decode)(LATENTS)


def traced(call):
    """A function as torch.compile traces it, whole, without the time that a compiler takes."""
    return torch.compile(call, backend="eager", fullgraph=True, dynamic=False)


@torch.no_grad()
def test_sampling_reads_no_value_of_a_device_for_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies on another device than the CPU is checked by its shape alone, so a step waits for nothing."""
    checked: list[str] = []
    monkeypatch.setattr("cfld.unet.check_timesteps", lambda t, count, samples: checked.append(t.device.type))
    sample(MODEL, VAE, SOURCES, POSES, FAST)
    assert checked == ["cpu"] * FAST.steps
    from cfld.tools.checks import check_timesteps

    check_timesteps(torch.tensor([5000], device="meta"), 1000)  # whose value cannot be read
