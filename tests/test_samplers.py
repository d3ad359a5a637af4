"""The noise schedule and the samplers equal diffusers': tables, single steps, whole trajectories."""

import copy
import pickle

import pytest
import torch
from conftest import MICRO, micro_model
from references import noise, relative_error

from cfld import CFLD
from cfld.samplers import SAMPLERS, ddim_step
from cfld.scheduler import Scheduler, SchedulerConfig, alpha_bars


@pytest.fixture
def ddpm():
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        steps_offset=1, timestep_spacing="leading", variance_type="fixed_small",
    )  # fmt: skip


def table(scheduler: Scheduler) -> torch.Tensor:
    return alpha_bars(scheduler.config, torch.device("cpu"))


def test_alpha_bars_and_added_noise_equal_diffusers(ddpm) -> None:
    ours, timesteps = Scheduler(), torch.arange(0, 1000, 37)
    latents, eps = noise(len(timesteps), 4, 8, 8), noise(len(timesteps), 4, 8, 8, seed=1)
    assert relative_error(table(ours), ddpm.alphas_cumprod) <= 1e-6
    assert relative_error(ours.add_noise(latents, eps, timesteps), ddpm.add_noise(latents, eps, timesteps)) <= 1e-6


def test_a_predicted_velocity_is_read_as_diffusers_does(ddpm) -> None:
    ours, timesteps = Scheduler(), torch.arange(0, 1000, 37)
    latents, eps = noise(len(timesteps), 4, 8, 8), noise(len(timesteps), 4, 8, 8, seed=1)
    velocity, alpha_bar = ddpm.get_velocity(latents, eps, timesteps), ours.alpha_bar(timesteps)
    noisy = ours.add_noise(latents, eps, timesteps)
    assert relative_error(ours.noise_of_velocity(velocity, noisy, alpha_bar), eps) <= 1e-5

    reference = ddpm.from_config(ddpm.config, prediction_type="v_prediction")
    reference.set_timesteps(50)
    for t in (981, 501, 1):
        predicted, noisy = noise(1, 4, 8, 8, seed=t), noise(1, 4, 8, 8, seed=t + 1)
        noise_pred = ours.noise_of_velocity(predicted, noisy, ours.alpha_bar(torch.tensor([t])))
        theirs = reference.step(predicted, t, noisy).pred_original_sample
        assert relative_error(ours.clean_latents(noisy, noise_pred, t), theirs) <= 1e-5


def test_a_schedule_that_ends_in_noise_alone_equals_diffusers(ddpm, monkeypatch) -> None:
    """Zero terminal SNR: the table, what the last timestep holds, and a whole trajectory of predicted velocities."""
    reference = ddpm.from_config(ddpm.config, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    ours = Scheduler(SchedulerConfig(prediction_type="v_prediction", zero_terminal_snr=True))
    assert relative_error(table(ours), reference.alphas_cumprod) <= 1e-6
    assert table(Scheduler())[-1].sqrt() > 0.06 and 0 < table(ours)[-1].sqrt() < 3e-4
    reference.set_timesteps(50)
    timesteps, latents = ours.sampling_timesteps(50), noise(2, 4, 8, 8)
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        velocity, injected = noise(2, 4, 8, 8, seed=2 * t), noise(2, 4, 8, 8, seed=2 * t + 1)
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, z=injected, **k: z)
        theirs = reference.step(velocity, t, latents).prev_sample
        noise_pred = ours.noise_of_velocity(velocity, latents, ours.alpha_bar(torch.tensor([t])))
        x_0 = ours.clean_latents(latents, noise_pred, t)
        assert relative_error(ours.ddpm_step(latents, x_0, t, t_next, injected), theirs) <= 1e-5
        latents = theirs


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_finds_the_picture_from_noise_alone(name: str) -> None:
    """A predictor that knows z_0: its velocity leads there also from the last timestep, where abar is all but 0."""
    ours, z_0 = Scheduler(SchedulerConfig(prediction_type="v_prediction", zero_terminal_snr=True)), noise(1, 4, 8, 8)
    sampler = SAMPLERS[name]
    timesteps, latents, past = [999, *ours.sampling_timesteps(15, sampler.spacing)[1:]], noise(1, 4, 8, 8, seed=1), []
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        alpha_bar = ours.alpha_bar(torch.tensor([t]))
        velocity = (alpha_bar.sqrt() * latents - z_0) / (1 - alpha_bar).sqrt()
        noise_pred = ours.noise_of_velocity(velocity, latents, alpha_bar)
        x_0 = ours.clean_latents(latents, noise_pred, t)
        latents = sampler.step(ours, latents, x_0, t, t_next, past if sampler.multistep else None)
        past = [*past[-1:], (t, x_0)]
    assert relative_error(latents, z_0) <= (0.04 if name == "ddim" else 1e-3)  # ddim ends at timestep 0, with noise


@pytest.mark.parametrize("steps", [50, 7, 1])
def test_timesteps_and_every_ddpm_step_equal_diffusers(ddpm, steps: int, monkeypatch) -> None:
    ours, latents = Scheduler(), noise(2, 4, 8, 8)
    ddpm.set_timesteps(steps)
    timesteps = ours.sampling_timesteps(steps)
    assert timesteps == ddpm.timesteps.tolist()
    for i, (t, t_next) in enumerate(zip(timesteps, [*timesteps[1:], -1], strict=True)):
        noise_pred, injected = noise(2, 4, 8, 8, seed=2 * i), noise(2, 4, 8, 8, seed=2 * i + 1)
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, z=injected, **k: z)
        theirs = ddpm.step(noise_pred, t, latents).prev_sample
        x_0 = ours.clean_latents(latents, noise_pred, t)
        assert relative_error(ours.ddpm_step(latents, x_0, t, t_next, injected), theirs) <= 1e-5
        latents = theirs


def test_the_last_ddpm_step_returns_the_predicted_clean_latents() -> None:
    scheduler, clean, eps = Scheduler(), noise(1, 4, 4, 4), noise(1, 4, 4, 4, seed=1)
    noisy = scheduler.add_noise(clean, eps, torch.tensor([1]))
    x_0 = scheduler.clean_latents(noisy, eps, 1)
    assert relative_error(scheduler.ddpm_step(noisy, x_0, 1, -1, noise(1, 4, 4, 4, seed=2)), clean) <= 1e-5


# scheduler_config.json of Stable Diffusion 1.5. What it does not say, such as the spacing, is each class's default.
SD15 = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "trained_betas": None, "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
}  # fmt: skip
REFERENCES = {"ddim": "DDIMScheduler", "dpm++": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}


def diffusers_sampler(name: str, steps: int):
    import diffusers

    reference = getattr(diffusers, REFERENCES[name]).from_config(SD15)
    reference.set_timesteps(steps)
    return reference


@pytest.mark.parametrize("steps", [1, 2, 5, 15, 20, 50])
@pytest.mark.parametrize("name", REFERENCES)
def test_whole_trajectories_equal_diffusers(name: str, steps: int) -> None:
    """With a made-up predictor of noise that depends on the latents and on the timestep."""
    scheduler, reference, sampler = Scheduler(), diffusers_sampler(name, steps), SAMPLERS[name]
    predict = lambda x, t: torch.tanh(0.8 * x + 0.3 * x.roll(1, dims=-1) + t / 1000)  # noqa: E731
    timesteps = scheduler.sampling_timesteps(steps, sampler.spacing)
    assert timesteps == reference.timesteps.tolist()
    ours = theirs = noise(2, 4, 8, 8)
    past = []
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        x_0 = scheduler.clean_latents(ours, predict(ours, t), t)
        ours = sampler.step(scheduler, ours, x_0, t, t_next, past if sampler.multistep else None)
        past.append((t, x_0))
        theirs = reference.step(predict(theirs, t), t, theirs).prev_sample
        assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise_equals_diffusers(eta: float) -> None:
    scheduler, reference = Scheduler(), diffusers_sampler("ddim", 15)
    timesteps = scheduler.sampling_timesteps(15)
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        latents, noise_pred, injected = (noise(2, 4, 8, 8, seed=3 * t + i) for i in range(3))
        theirs = reference.step(noise_pred, t, latents, eta=eta, variance_noise=injected).prev_sample
        x_0 = scheduler.clean_latents(latents, noise_pred, t)
        assert relative_error(ddim_step(scheduler, latents, x_0, t, t_next, injected, eta=eta), theirs) <= 1e-5


def test_every_number_of_steps_has_diffusers_timesteps() -> None:
    for name in REFERENCES:
        for steps in range(1, 1000, 7):
            expected = diffusers_sampler(name, steps).timesteps.tolist()
            assert Scheduler().sampling_timesteps(steps, SAMPLERS[name].spacing) == expected


def test_cubic_timesteps_are_the_formula_and_half_lie_in_the_noisiest_eighth() -> None:
    draws = torch.tensor([0.0, 0.05, 0.5, 0.9, 1 - 1e-7])
    assert Scheduler().cubic_timesteps(draws).tolist() == [999, 999, 875, 271, 0]
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    assert abs((Scheduler().cubic_timesteps(uniform) >= 875).float().mean() - 0.5) < 1e-3


def test_the_table_of_alpha_bars_is_copied_to_a_device_once_and_is_in_no_state_dict() -> None:
    model, _ = micro_model()
    timesteps = torch.tensor([0, 500])
    expected = Scheduler().alpha_bar(timesteps)
    assert not any("alpha" in name for name in model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to(torch.bfloat16)):
        assert torch.equal(other.scheduler.alpha_bar(timesteps), expected)
    with torch.device("meta"):
        built = CFLD(MICRO)
    assert torch.equal(built.scheduler.alpha_bar(timesteps), expected)
    meta = [Scheduler().alpha_bar(torch.zeros(2, dtype=torch.int64, device="meta")) for _ in range(2)]
    assert meta[0].device.type == "meta" and alpha_bars(MICRO.scheduler, torch.device("meta")) is alpha_bars(
        SchedulerConfig(), torch.device("meta")
    )


def test_a_table_that_sampling_has_made_serves_training() -> None:
    alpha_bars.cache_clear()
    with torch.inference_mode():
        Scheduler().alpha_bar(torch.tensor([3]))
    latents = noise(1, 4, 8, 8).requires_grad_()
    Scheduler().add_noise(latents, noise(1, 4, 8, 8), torch.tensor([3])).sum().backward()
    assert latents.grad is not None and not table(Scheduler()).is_inference()
