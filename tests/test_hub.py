"""What others take up: the scheduler as diffusers reads it, and the cards of model folders."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import MICRO, micro_model
from references import noise, relative_error

import cfld
from cfld.config import SD15, TINY
from cfld.convert.__main__ import main
from cfld.folder import bundled, save
from cfld.samplers import ddim_step
from cfld.scheduler import Scheduler, alpha_bars
from cfld.tools.card import RAIL, UNKNOWN, model_card, read_card, training_card
from cfld.tools.card import SD15 as SD15_NAME
from cfld.training.options import TrainConfig

SCHEDULES = {"sd15": SD15.scheduler, "tiny": TINY.scheduler}


@pytest.fixture(scope="module", params=SCHEDULES)
def exported(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scheduler, Path]:
    """The scheduler of a preset, and an export to diffusers of a model that has it."""
    root = tmp_path_factory.mktemp("export")
    model, vae = micro_model()
    model.config = dataclasses.replace(MICRO, scheduler=SCHEDULES[request.param])
    save(root / "model", model, vae)
    assert main(["export", "--to", "diffusers", str(root / "model"), str(root / "out")]) == 0
    return Scheduler(SCHEDULES[request.param]), root / "out"


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
@pytest.mark.parametrize("steps", [50, 7])
def test_diffusers_takes_our_steps(exported, name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    ours, folder = exported
    theirs = getattr(diffusers, f"{name.upper()}Scheduler").from_pretrained(folder / "scheduler")
    assert relative_error(alpha_bars(ours.config, torch.device("cpu")), theirs.alphas_cumprod) <= 1e-6
    theirs.set_timesteps(steps)
    timesteps = ours.sampling_timesteps(steps)
    assert theirs.timesteps.tolist() == timesteps
    velocity = ours.config.prediction_type == "v_prediction"
    assert theirs.config.prediction_type == ours.config.prediction_type
    latents = noise(2, 4, 8, 8)
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        predicted, injected = noise(2, 4, 8, 8, seed=2 * t), noise(2, 4, 8, 8, seed=2 * t + 1)
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, z=injected, **k: z)
        expected = theirs.step(predicted, t, latents).prev_sample
        alpha_bar = ours.alpha_bar(torch.tensor([t]))
        noise_pred = ours.noise_of_velocity(predicted, latents, alpha_bar) if velocity else predicted
        x_0 = ours.clean_latents(latents, noise_pred, t)
        if name == "ddpm":
            found = ours.ddpm_step(latents, x_0, t, t_next, injected)
        else:
            found = ddim_step(ours, latents, x_0, t, t_next)
        assert relative_error(found, expected) <= 1e-5
        latents = expected


def test_other_schedulers_of_diffusers_take_our_noise_schedule(exported) -> None:
    import diffusers

    ours, folder = exported
    for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        theirs = getattr(diffusers, name).from_pretrained(folder / "scheduler", timestep_spacing="linspace")
        theirs.set_timesteps(15)
        assert theirs.timesteps.tolist() == ours.sampling_timesteps(15, "linspace")
        assert relative_error(alpha_bars(ours.config, torch.device("cpu")), theirs.alphas_cumprod) <= 1e-6


def test_an_export_is_no_pipeline_and_has_a_card(exported) -> None:
    _, folder = exported
    assert {path.name for path in folder.iterdir()} == {"unet", "vae", "scheduler", "README.md"}
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["clip_sample"] is False
    text = (folder / "README.md").read_text()
    assert 'from_pretrained("DIR", subfolder="scheduler")' in text and "export --to diffusers" in text


def hub_data(text: str):
    """A card as the hub's own library reads it."""
    hub = pytest.importorskip("huggingface_hub")
    return hub.ModelCard(text).data


def test_a_card_is_read_by_the_hub_and_by_us(tmp_path: Path) -> None:
    command = ["python", "-m", "cfld.convert", "init", "--out", "a folder"]
    text = model_card(RAIL, [SD15_NAME, "a/b.c-d"], {"data": "none"}, command)
    data = hub_data(text)
    assert (data.license, data.library_name, data.pipeline_tag) == (RAIL, "cfld", "image-to-image")
    assert data.base_model == [SD15_NAME, "a/b.c-d"]
    assert "cfld" in data.tags and "arxiv:2402.18078" in data.tags
    assert "cfld.load(" in text and "python -m cfld.convert init --out 'a folder'" in text and "**data**: none" in text
    assert "RAIL" in text and max(map(len, text.splitlines())) <= 220
    (tmp_path / "README.md").write_text(text)
    assert read_card(tmp_path) == (RAIL, [SD15_NAME, "a/b.c-d"])
    for other in ("", "no front matter\n", "---\nlicense:\n---\n", "---\ntitle: license: mit\n"):
        (tmp_path / "README.md").write_text(other)
        assert read_card(tmp_path) == (UNKNOWN, [])
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# x\nlicense: apache-2.0\n")
    assert read_card(tmp_path) == ("mit", [])


def test_the_bundled_model_has_a_card() -> None:
    licence, base_models = read_card(bundled())
    assert (licence, base_models) == ("mit", [])
    data = hub_data((bundled() / "README.md").read_text())
    assert (data.library_name, data.pipeline_tag) == ("cfld", "image-to-image")


def test_a_training_hands_on_the_licence_of_what_it_began_with(tmp_path: Path) -> None:
    options = TrainConfig(preset="tiny", stage="vae", data="people:9x2", out="runs/x", steps=3, lr=8e-4, compile=True)
    text = training_card(options, 128)
    assert hub_data(text).license == "mit" and hub_data(text).base_model is None
    command = (
        "python -m cfld.train --preset tiny --data people:9x2 --out runs/x --stage vae --steps 3 --lr 0.0008 --compile"
    )
    (tmp_path / "README.md").write_text(text)
    assert hub_data(training_card(TrainConfig(init=str(tmp_path), data="people:9x2"), 128)).license == "mit"
    assert command in text and "synthetic people (people:9x2)" in text and "128x128" in text
    (tmp_path / "README.md").unlink()
    for card, licence, base in (
        (None, UNKNOWN, []),
        (model_card("mit", [], {}, []), UNKNOWN, []),
        (model_card(RAIL, [SD15_NAME], {}, []), RAIL, [SD15_NAME]),
    ):
        if card:
            (tmp_path / "README.md").write_text(card)
        text = training_card(TrainConfig(init=str(tmp_path), data="ROOT", ablation="B3", epochs=1.5), 512)
        (tmp_path / "again").mkdir(exist_ok=True)
        (tmp_path / "again" / "README.md").write_text(text)
        assert read_card(tmp_path / "again") == (licence, base)
        assert "baseline B3" in text and "--epochs 1.5" in text and "ROOT, whose terms apply" in text


def test_a_checkpoint_becomes_a_folder_with_a_card(whole: Path, tmp_path: Path) -> None:
    checkpoint = sorted((whole / "checkpoints").glob("step_*"))[-1]
    assert main(["checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"    python -m cfld\.train .*--steps 6 .*--ema 0\.9", text)
    cfld.load(tmp_path / "out")


def test_no_card_is_needed_and_a_broken_one_does_no_harm(micro_folder: Path, tmp_path: Path) -> None:
    assert not (micro_folder / "README.md").exists()
    save(tmp_path / "out", *micro_model(), card="\x00 no card")
    cfld.load(tmp_path / "out")
    assert main(["export", "--to", "official", str(tmp_path / "out"), str(tmp_path / "exported")]) == 0
    assert read_card(tmp_path / "exported") == (UNKNOWN, [])
