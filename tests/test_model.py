"""The composed model: sizes, interfaces, conditions, dropping, folders."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import MICRO, micro_model
from references import noise

import cfld
from cfld.baselines import from_dict, read_config, to_dict
from cfld.config import SD15, TINY
from cfld.folder import load, load_vae, save
from cfld.model import CFLD, Conditions
from cfld.tools.cli import UserError
from cfld.tools.tensors import read_safetensors
from cfld.vae import VAE

BUNDLED = Path(__file__).parents[1] / "weights" / "tiny"


def count(module: torch.nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


@pytest.fixture(scope="module")
def full() -> CFLD:
    with torch.device("meta"):
        return CFLD(SD15)


def test_full_width_parameter_counts_are_the_papers(full: CFLD) -> None:
    assert count(full.source_encoder) == 86_991_864
    assert count(full.hga) == 22_549_632
    assert count(full.prd) == 97_712_128
    assert count(full.pose_adapter) == 30_636_480
    assert count(full.unet) == 859_520_964
    with torch.device("meta"):
        assert count(VAE()) == 83_653_863


def test_248_million_parameters_train_and_18_tensors_of_the_unet(full: CFLD) -> None:
    assert count(full, trainable=True) == 248_224_312
    names = [name for name, p in full.unet.named_parameters() if p.requires_grad]
    assert len(names) == 18
    assert count(full.unet, trainable=True) == 10_321_920
    assert all(name.startswith("up.") and name.endswith(("cross_attention.to_k.weight", "cross_attention.to_v.weight"))
               for name in names)  # fmt: skip


def test_the_trainable_set_follows_the_config() -> None:
    with torch.device("meta"):
        with_queries = CFLD(dataclasses.replace(SD15, unet_trainable="cross_qkv"))
        everything = CFLD(dataclasses.replace(SD15, unet_trainable="all"))
    to_q = count(with_queries.unet, trainable=True) - 10_321_920
    assert to_q == 3 * (1280**2 + 640**2 + 320**2)
    assert count(everything.unet, trainable=True) == 859_520_964


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("prd.width", 24, ["prd.width 24", "unet.context_width 16"]),
        ("hga.output_widths", [16, 16, 32], ["hga.output_widths (16, 16, 32)", "(32, 16, 16)"]),
        ("hga.source_widths", [16, 32, 32], ["hga.source_widths (16, 32, 32)", "(16, 32, 64)"]),
        ("hga.branches", 3, ["hga.branches 3", "2"]),
        ("adapter.channels", [16, 32, 32], ["adapter.channels (16, 32, 32)", "(16, 16, 32)"]),
        ("adapter.pose_size", 64, ["adapter.pose_size 64 / 4 = 16.0", "image_size 64 / 8 = 8.0"]),
        ("swin.image_size", 64, ["prd.source_positions 1", "4"]),
        ("image_size", 128, ["image_size 128 / 8 = 16.0"]),
        ("prd.source_width", 64, ["prd.source_width 64", "128"]),
        ("unet.channels", [16, 16, 32, 36], ["unet.channels", "36"]),
        ("unet.latent_channels", 8, ["vae.latent_channels 4", "unet.latent_channels 8"]),
        ("unet_trainable", "none", ["unet_trainable", "none"]),
        ("unet.width", 3, ["unknown field unet.width"]),
        ("prd.depth", "four", ["prd.depth must be int", "'four'"]),
        ("unet.channels", 3, ["unet.channels must be a list", "3"]),
        ("unet.groups", 0, ["unet.groups must be at least 1", "0"]),
        ("prd.depth", -1, ["prd.depth must be at least 1", "-1"]),
        ("scheduler.prediction_type", "x0", ["prediction_type must be epsilon or v_prediction", "'x0'"]),
        ("scheduler.zero_terminal_snr", True, ["zero_terminal_snr", "v_prediction", "found epsilon"]),
        ("scheduler.zero_terminal_snr", 1, ["scheduler.zero_terminal_snr must be bool", "1"]),
        ("swin.stochastic_depth", 1.0, ["swin.stochastic_depth", "1.0"]),
    ],
)
def test_an_interface_that_does_not_fit_names_both_sides(
    path: str, value: object, words: list[str], tmp_path: Path
) -> None:
    values = json.loads(json.dumps(to_dict(MICRO)))
    at = values
    *parents, last = path.split(".")
    for parent in parents:
        at = at[parent]
    at[last] = value
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        read_config(file)
    for word in [str(file), *words]:
        assert word in str(error.value), str(error.value)


@pytest.mark.parametrize("config", [SD15, TINY, MICRO], ids=["sd15", "tiny", "micro"])
def test_a_config_survives_json(config: cfld.CFLDConfig) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_tiny_has_the_shapes_it_promises() -> None:
    assert (TINY.image_size, TINY.adapter.pose_size, TINY.swin.image_size) == (128, 64, 64)
    assert TINY.image_size // TINY.vae.factor == 16
    assert TINY.unet_trainable == "all"


def test_one_source_serves_many_poses_and_samples_cycle_through_sources() -> None:
    model, _ = micro_model()
    sources, poses = noise(2, 3, 32, 32), noise(4, 21, 32, 32, seed=1)
    with torch.no_grad():
        both = model.condition(sources, poses)
        for row in range(4):
            alone = model.condition(sources[row % 2][None], poses[row][None])
            assert torch.allclose(both.prompt[row], alone.prompt[0], atol=1e-5)
            assert all(
                torch.allclose(a[row], b[0], atol=1e-5)
                for a, b in zip(both.query_biases, alone.query_biases, strict=True)
            )
            assert all(
                torch.allclose(a[row], b[0], atol=1e-4)
                for a, b in zip(both.pose_features, alone.pose_features, strict=True)
            )
    with pytest.raises(ValueError, match="multiple"):
        model.condition(sources, poses[:3])


def of_samples(count: int, seed: int, pose: bool = True, biases: bool = True) -> Conditions:
    """Conditions of small tensors, with or without a pose and biases."""
    maps = [noise(count, c, 4 // c, 4 // c, seed=seed + c) for c in (1, 2)]
    tokens = [noise(count, n, 3, seed=seed + n) for n in (4, 5)]
    return Conditions(noise(count, 2, 3, seed=seed), maps if pose else None, tokens if biases else None)


def tensors_of(conditions: Conditions) -> list[torch.Tensor]:
    return [conditions.prompt, *(conditions.pose_features or []), *(conditions.query_biases or [])]


def assert_same(found: Conditions, expected: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(found), expected, strict=True))


def test_conditions_are_repeated_and_put_one_after_the_other() -> None:
    one, two = of_samples(2, 0), of_samples(1, 10)
    assert (len(one), len(one.repeat(3)), len(Conditions.cat([one, two]))) == (2, 6, 3)
    assert_same(one.repeat(3), [torch.cat([x, x, x]) for x in tensors_of(one)])
    both = [torch.cat(pair) for pair in zip(tensors_of(one), tensors_of(two), strict=True)]
    assert_same(Conditions.cat([one, two]), both)
    assert_same(one.map(lambda x: 2 * x), [2 * x for x in tensors_of(one)])


def test_conditions_that_are_absent_count_as_zeros_beside_others_and_stay_absent_alone() -> None:
    full, bare = of_samples(2, 0), of_samples(3, 10, pose=False, biases=False)
    zeros = [torch.zeros(3, *x.shape[1:]) for x in tensors_of(full)[1:]]
    expected = [torch.cat([bare.prompt, full.prompt]), *map(torch.cat, zip(zeros, tensors_of(full)[1:], strict=True))]
    assert_same(Conditions.cat([bare, full]), expected)
    assert Conditions.cat([bare, bare]).pose_features is Conditions.cat([bare, bare]).query_biases is None
    posed = Conditions.cat([of_samples(2, 0, biases=False), bare])
    assert posed.pose_features is not None and posed.query_biases is None
    last = full.map(lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x)
    for found in (last.repeat(2), Conditions.cat([bare, last])):
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in found.pose_features)


def test_conditions_are_chosen_sample_by_sample() -> None:
    own, other, keep = of_samples(2, 0), of_samples(2, 10), torch.tensor([False, True])
    pairs = zip(tensors_of(own), tensors_of(other), strict=True)
    assert_same(own.where(keep, other), [torch.stack([b[0], a[1]]) for a, b in pairs])
    bare = of_samples(1, 10, pose=False, biases=False)  # one sample in the place of many
    expected = [bare.prompt[0], *(torch.zeros_like(x[0]) for x in tensors_of(own)[1:])]
    pairs = zip(tensors_of(own), expected, strict=True)
    assert_same(own.where(keep, bare), [torch.stack([b, a[1]]) for a, b in pairs])
    assert bare.where(torch.tensor([True]), bare).query_biases is None


def test_conditions_on_a_line_end_exactly_at_both_ends() -> None:
    first, second, weights = of_samples(1, 0), of_samples(1, 10), torch.tensor([0.0, 0.25, 1.0])
    line = first.lerp(second, weights)
    assert len(line) == 3
    for found, a, b in zip(tensors_of(line), tensors_of(first), tensors_of(second), strict=True):
        assert torch.equal(found[0], a[0]) and torch.equal(found[2], b[0])
        assert torch.allclose(found[1], 0.75 * a[0] + 0.25 * b[0])
    for found, a in zip(tensors_of(first.lerp(first, weights)), tensors_of(first), strict=True):
        assert torch.equal(found, a.expand_as(found))


def test_the_paper_recipe_drops_source_and_pose_and_the_released_one_the_prompt_alone() -> None:
    model, _ = micro_model()
    conditions = model.condition(noise(2, 3, 32, 32), noise(2, 21, 32, 32, seed=1))
    dropped = torch.tensor([True, False])
    for recipe in ("paper", "released"):
        result = model.drop(conditions, dropped, recipe)
        assert torch.equal(result.prompt[0], model.null_prompt[0])
        assert torch.equal(result.prompt[1], conditions.prompt[1])
        for before, after in zip(
            conditions.pose_features + conditions.query_biases, result.pose_features + result.query_biases, strict=True
        ):
            assert torch.equal(after[1], before[1])
            assert torch.equal(after[0], torch.zeros_like(after[0]) if recipe == "paper" else before[0])
    with pytest.raises(ValueError, match="official"):
        model.drop(conditions, dropped, "official")


def test_a_dropped_sample_equals_absent_conditions() -> None:
    model, _ = micro_model()
    conditions = model.condition(noise(1, 3, 32, 32), noise(1, 21, 32, 32, seed=1))
    latents, timesteps = noise(1, 4, 8, 8), torch.tensor([500])
    zeros = model(latents, timesteps, model.drop(conditions, torch.tensor([True]), "paper"))
    absent = model(latents, timesteps, cfld.Conditions(model.null_prompt, None, None))
    assert torch.allclose(zeros, absent, atol=1e-6)


def test_of_a_predicted_velocity_forward_returns_the_noise() -> None:
    plain, _ = micro_model()
    of_velocity = dataclasses.replace(MICRO, scheduler=cfld.SchedulerConfig(prediction_type="v_prediction"))
    model = cfld.CFLD(of_velocity).eval()
    model.load_state_dict(plain.state_dict())
    conditions = model.condition(noise(1, 3, 32, 32), noise(4, 21, 32, 32, seed=1))
    latents, timesteps = noise(4, 4, 8, 8), torch.tensor([500])
    velocity, alpha_bar = plain(latents, timesteps, conditions), cfld.Scheduler().alpha_bar(timesteps)
    expected = alpha_bar.sqrt() * velocity + (1 - alpha_bar).sqrt() * latents
    assert torch.allclose(model(latents, timesteps, conditions), expected, atol=1e-6)
    assert torch.allclose(model(latents, torch.full((4,), 500), conditions), expected, atol=1e-5)


class Wrapper(torch.nn.Module):
    """What LoRA or quantisation puts in the place of a Linear: it has no weight of its own."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.linear, self.calls = linear, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(x)


@torch.no_grad()
def test_every_linear_of_the_model_may_be_wrapped_and_hooked() -> None:
    model, _ = micro_model()
    sources, poses, latents, timesteps = (
        noise(1, 3, 32, 32),
        noise(1, 21, 32, 32),
        noise(1, 4, 8, 8),
        torch.tensor([500]),
    )
    expected = model(latents, timesteps, model.condition(sources, poses))
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    hooked: dict[str, int] = dict.fromkeys(linears, 0)
    for name, linear in linears.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Wrapper(linear))
        linear.register_forward_hook(lambda *_, name=name: hooked.update({name: hooked[name] + 1}))
    assert torch.equal(model(latents, timesteps, model.condition(sources, poses)), expected)
    assert hooked == {name: model.get_submodule(name).calls for name in linears} == dict.fromkeys(linears, 1)
    assert {name.split(".")[0] for name in linears} == {"source_encoder", "prd", "hga", "unet"} and len(linears) > 200


def test_forward_changes_none_of_its_arguments() -> None:
    model, _ = micro_model()
    conditions = model.condition(noise(1, 3, 32, 32), noise(1, 21, 32, 32, seed=1))
    latents = noise(1, 4, 8, 8)
    kept = [x.clone() for x in (latents, conditions.prompt, *conditions.pose_features, *conditions.query_biases)]
    model(latents, torch.tensor([500]), conditions)
    now = (latents, conditions.prompt, *conditions.pose_features, *conditions.query_biases)
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))


def test_a_model_folder_gives_back_what_was_saved(tmp_path: Path) -> None:
    model, vae = micro_model(3)
    cfld.save(tmp_path / "m", model, vae)
    loaded, loaded_vae = cfld.load(tmp_path / "m")
    assert loaded.config == model.config
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors", "vae.safetensors"]
    for ours, theirs in ((model, loaded), (vae, loaded_vae)):
        for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
            assert torch.equal(a, b), name
    trained = [name for name, p in loaded.named_parameters() if p.requires_grad]
    assert trained == [name for name, p in model.named_parameters() if p.requires_grad]
    images = loaded.condition(noise(1, 3, 32, 32), noise(1, 21, 32, 32))  # no buffer was left on the meta device
    assert torch.equal(images.prompt, model.condition(noise(1, 3, 32, 32), noise(1, 21, 32, 32)).prompt)


@pytest.mark.parametrize("place", ["cfld/weights/tiny", "weights/tiny"], ids=["wheel", "source tree"])
def test_the_bundled_model_is_found_inside_the_package_or_beside_it_and_loads_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("cfld.folder.resources.files", lambda package: tmp_path / package)
    with pytest.raises(UserError, match=r"cfld/weights/tiny nor .*/weights/tiny holds .* make tiny"):
        load()
    save(tmp_path / place, *(module.half() for module in micro_model()))
    model, vae = cfld.load()
    assert model.config == MICRO
    assert {x.dtype for x in (*model.parameters(), *vae.parameters())} == {torch.float32}


@pytest.mark.skipif(not (BUNDLED / "config.json").is_file(), reason="weights/tiny is not here: make tiny makes it")
def test_the_bundled_model_is_tiny_in_fp16() -> None:
    model, _ = cfld.load()
    assert model.config == TINY
    for name in ("model", "vae"):
        tensors, _ = read_safetensors(BUNDLED / f"{name}.safetensors")
        assert {x.dtype for x in tensors.values()} == {torch.float16}


def test_a_model_folder_is_not_overwritten(micro_folder: Path) -> None:
    with pytest.raises(UserError, match="already exists"):
        save(micro_folder, *micro_model())


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "vae.safetensors"])
def test_half_a_model_folder_names_what_is_missing(micro_folder: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(micro_folder, tmp_path / "half")
    (tmp_path / "half" / missing).unlink()
    with pytest.raises(UserError, match=missing):
        load(tmp_path / "half")


def test_loading_takes_memory_for_no_weights_but_the_files(micro_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []

    def recorded(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        devices.append(parameter.device.type)
        return parameter

    monkeypatch.setattr("torch.nn.modules.linear.Parameter", lambda x, **k: recorded(torch.nn.Parameter(x, **k)))
    monkeypatch.setattr("torch.nn.modules.conv.Parameter", lambda x, **k: recorded(torch.nn.Parameter(x, **k)))
    load(micro_folder), load_vae(micro_folder)
    assert set(devices) == {"meta"}


def test_a_model_is_loaded_with_channels_last_or_as_the_file_has_it(micro_folder: Path) -> None:
    for wanted in (False, True):
        for module in load(micro_folder, channels_last=wanted):
            kernels = [p for p in module.parameters() if p.ndim == 4 and min(p.shape[1:3]) > 1]
            assert kernels and {p.is_contiguous(memory_format=torch.channels_last) for p in kernels} == {wanted}


def test_a_truncated_file_and_a_foreign_file_are_named(micro_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(micro_folder, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"PK\x03\x04 not tensors at all" * 10, b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load(tmp_path / "m")


def test_weights_of_another_width_are_refused_with_both_shapes(micro_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(micro_folder, tmp_path / "m")
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    values["prd"]["num_queries"] = 5
    (tmp_path / "m" / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"another shape .*\(1, 5, 16\) expected, \(1, 3, 16\) found"):
        load(tmp_path / "m")
