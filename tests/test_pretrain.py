"""The stages before the full model: the VAE, the source encoder, and the UNet that others keep frozen."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import MICRO, micro_model
from run_folders import assert_same, weights
from safetensors.torch import load_file

from cfld.baselines import to_dict
from cfld.folder import load
from cfld.people.__main__ import main as draw_people
from cfld.train import main
from cfld.training.pretrain import standardise, whiten


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


def test_a_source_encoder_and_a_base_learn_from_attributes_and_the_base_then_stays_frozen(
    tmp_path: Path, micro_folder: Path
) -> None:
    """Two steps of each stage, on synthetic people, from memory."""
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
        ("begun", vae_folder, ["--stage", "source", "--lr", "1e-30"]),
        ("source", vae_folder, ["--stage", "source"]),
        ("base_begun", tmp_path / "source" / "model", ["--stage", "base", "--lr", "1e-30"]),
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


@pytest.mark.slow
def test_the_first_200_steps_of_each_stage_of_tiny_are_the_same_twice(tmp_path: Path) -> None:
    data = tmp_path / "people"  # rendered once; people:8x4 would be rendered in every step
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
