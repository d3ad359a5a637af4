"""What must hold on a GPU: the official numbers, half precision, determinism, resuming, checkpoints from and to CPUs.

python -m pytest -m cuda                          needs a CUDA card; benchmarks/gpu.py runs it first
CFLD_CUDA_TESTS_ON=cpu python -m pytest -m cuda   the same tests on the CPU: do they run at all?
"""

import copy
import os
from collections.abc import Iterator

import pytest
import torch
from conftest import micro_model
from references import noise, relative_error
from run_folders import assert_same, logged, weights
from test_official import (
    Conditions,
    converted,
    error,
    image_input,
    latents_input,
    official_conditions,
    pose_input,
    read_expected,
)

from cfld.folder import load
from cfld.sampling import FAST, PAPER, TURBO, SamplingConfig, sample

DEVICE = torch.device(os.environ.get("CFLD_CUDA_TESTS_ON", "cuda"))
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA card"),
]
LATENTS, TIMESTEP = "unet_sample", 601  # of the official call


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    """Convolutions in fp32, not in TF32, which is their default."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def predicted(dtype: torch.dtype) -> torch.Tensor:
    """The official call of the UNet on the device."""
    model = copy.deepcopy(converted().model).to(DEVICE, dtype)
    place = DEVICE, dtype
    images, poses = image_input("reduced.img_cond", 1, 3, 64, 64), pose_input("pose_tgt")
    with torch.no_grad():
        conditions = model.condition(images.to(*place), poses.to(*place))
        return model(latents_input(LATENTS).to(DEVICE), torch.tensor([TIMESTEP], device=DEVICE), conditions).cpu()


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
def test_the_whole_model_predicts_the_official_noise(dtype: torch.dtype, within: float) -> None:
    assert error(predicted(dtype).float(), read_expected()["unet/full"]) <= within


def test_the_conditions_on_the_device_are_those_of_the_cpu() -> None:
    ours = converted()
    there = copy.deepcopy(ours.model).to(DEVICE)
    with torch.no_grad():
        here = official_conditions(ours)
        images, poses = image_input("reduced.img_cond", 1, 3, 64, 64), pose_input("pose_tgt")
        found: Conditions = there.condition(images.to(DEVICE), poses.to(DEVICE))
    pairs = [(found.prompt, here.prompt), *zip(found.query_biases or (), here.query_biases or (), strict=True)]
    assert all(relative_error(a.cpu(), b) <= 1e-4 for a, b in pairs)


@pytest.mark.parametrize("config", [PAPER, FAST, SamplingConfig(10, "unipc")], ids=lambda c: c.sampler)
def test_pictures_are_those_of_the_cpu_and_the_same_each_time(config: SamplingConfig) -> None:
    model, vae = micro_model()
    sources, poses = noise(1, 3, 32, 32), noise(2, 21, 32, 32, seed=1)

    def paint(device: torch.device | str) -> torch.Tensor:
        seeds = [torch.Generator().manual_seed(i) for i in range(2)]
        return sample(model.to(device), vae.to(device), sources, poses, config, generator=seeds).cpu()

    there = paint(DEVICE)
    assert torch.equal(there, paint(DEVICE))
    assert relative_error(there, paint("cpu")) <= 1e-2  # random weights amplify rounding over the steps


OPTIONS = ("--ema", 0.9, "--save-every", 2, "--decay-at", 1)  # so that the length changes no learning rate


def test_a_training_that_is_stopped_on_the_device_ends_where_it_would_have(run) -> None:
    on = ("--device", DEVICE, *OPTIONS)
    whole = run("whole on the device", "--steps", 4, *on)
    run("halved on the device", "--steps", 2, *on)
    halves = run("halved on the device", "--steps", 4, "--resume", *on)
    assert [line["loss"] for line in logged(halves)] == pytest.approx([x["loss"] for x in logged(whole)], rel=1e-4)
    if DEVICE.type == "cpu":
        assert_same(weights(halves), weights(whole))
    for name, x in weights(whole).items():
        assert relative_error(weights(halves)[name], x) <= 1e-4, name


def test_checkpoints_go_from_a_cpu_to_the_device_and_back(run) -> None:
    whole = run("at home", "--steps", 6, *OPTIONS)
    run("travelling", "--steps", 2, *OPTIONS)
    run("travelling", "--steps", 4, "--resume", *OPTIONS, "--device", DEVICE)
    back = run("travelling", "--steps", 6, "--resume", *OPTIONS, "--device", "cpu")
    assert [x["loss"] for x in logged(back)] == pytest.approx([x["loss"] for x in logged(whole)], rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_training_in_half_precision_follows_the_one_in_fp32(run, precision: str) -> None:
    whole, half = (
        [
            x["loss"]
            for x in logged(run(f"{name} by {precision}", "--steps", 3, "--precision", name, "--device", DEVICE))
        ]
        for name in ("fp32", precision)
    )
    assert half == pytest.approx(whole, rel=5e-2)


def test_a_student_paints_there_what_it_paints_here(run) -> None:
    folder = run("student on the device", "--stage", "distill", "--steps", 2, "--rank", 2, "--device", DEVICE)
    model, vae = load(folder / "model")
    sources, poses = noise(1, 3, 32, 32), noise(1, 21, 32, 32, seed=1)
    images = [
        sample(model.to(d), vae.to(d), sources, poses, TURBO, generator=torch.Generator().manual_seed(1)).cpu()
        for d in (DEVICE, "cpu")
    ]
    assert relative_error(*images) <= 1e-3
