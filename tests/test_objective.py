"""The objective: both losses in one forward, and the randomness of a step."""

import dataclasses

import torch
import torch.nn.functional as F
from conftest import MICRO, micro_model
from references import relative_error

from cfld.data.batch import Batch
from cfld.objective import step_noise, timestep_weights, training_loss
from cfld.photos.pixels import to_range
from cfld.pose import pose_maps
from cfld.scheduler import Scheduler
from cfld.training.memory import checkpoint_activations


def test_the_loss_is_the_mean_of_equations_3_and_5_over_all_rows(batch: Batch) -> None:
    model, vae = micro_model()
    noise = step_noise(0, 7, range(4), MICRO)
    noise = dataclasses.replace(noise, drops=torch.tensor([0.1] + [0.9] * 7), flips=torch.tensor([0.1, 0.9, 0.9, 0.9]))
    ours, timesteps = training_loss(model, vae, batch, noise, "paper"), model.scheduler.cubic_timesteps(noise.timesteps)
    losses = []
    for row in range(8):
        pair, images = row % 4, to_range(batch.images[row][None])
        mean, logvar = vae.moments(images)
        latents = 0.18215 * (mean + (0.5 * logvar).exp() * noise.vae_noise[row])
        t = min(int((1 - float(noise.timesteps[row]) ** 3) * 1000), 999)
        assert t == timesteps[row]
        abar = Scheduler().alpha_bar(torch.tensor([t]))
        noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise.noise[row]
        source = to_range(batch.source_images[pair][None])
        conditions = model.condition(
            source.flip(-1) if pair == 0 else source,
            pose_maps(batch.keypoints[row][None], 32),
            noise.depth[pair][None],
        )
        if row == 0:
            conditions = model.drop(conditions, torch.tensor([True]), "paper")
        losses.append(F.mse_loss(model(noisy, torch.tensor([t]), conditions), noise.noise[row][None]))
    assert relative_error(ours, torch.stack(losses).mean()) <= 1e-4


def test_cached_moments_give_the_loss_of_encoding_each_step(batch: Batch) -> None:
    model, vae = micro_model()
    noise = step_noise(0, 7, range(4), MICRO)
    moments = torch.cat(vae.moments(to_range(batch.images)), dim=1).detach().half()
    cached = dataclasses.replace(batch, images=None, moments=moments)
    ours, theirs = (training_loss(model, vae, b, noise, "paper") for b in (cached, batch))
    assert relative_error(ours, theirs) <= 1e-3


def test_min_snr_counts_rows_of_little_noise_less(batch: Batch) -> None:
    alpha_bars = torch.tensor([0.1, 5 / 6, 0.99])
    assert torch.allclose(timestep_weights(alpha_bars, min_snr=5.0), torch.tensor([1, 1, 5 / 99]))
    model, vae = micro_model()
    noise = step_noise(0, 7, range(4), MICRO)
    low, high = (dataclasses.replace(noise, timesteps=torch.full((8,), u)) for u in (0.999, 0.1))
    plain, weighted = (
        [training_loss(model, vae, batch, d, "paper", min_snr) for d in (low, high)] for min_snr in (0.0, 5.0)
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


def test_no_two_rows_or_steps_share_noise_and_a_pair_keeps_its_own() -> None:
    whole = step_noise(0, 3, range(4), MICRO)
    assert len({float(x.sum()) for x in [*whole.noise, *whole.vae_noise]}) == 16
    part = step_noise(0, 3, range(2, 4), MICRO)
    assert torch.equal(part.noise[0], whole.noise[2]) and torch.equal(part.noise[2], whole.noise[6])
    assert not torch.equal(step_noise(0, 4, range(4), MICRO).noise, whole.noise)
    assert not torch.equal(step_noise(1, 3, range(4), MICRO).noise, whole.noise)


def test_bf16_and_fp16_give_nearly_the_gradient_of_fp32(batch: Batch) -> None:
    gradients = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model, vae = micro_model()
        noise = step_noise(0, 7, range(4), MICRO)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            training_loss(model, vae, batch, noise, "paper").backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained)
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
        gradients.append(torch.cat([p.grad.flatten() for p in trained]))
    assert relative_error(gradients[1], gradients[0]) <= 0.05
    assert relative_error(gradients[2], gradients[0]) <= 0.01


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
        checkpoint_activations(model, level)
        calls.update(dict.fromkeys(calls, 0))
        training_loss(model, vae, batch, step_noise(0, 7, range(4), MICRO), "paper").backward()
        gradients[level] = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        counted[level] = dict(calls)
    for level in ("attention", "all"):
        assert all(torch.equal(x, gradients["none"][name]) for name, x in gradients[level].items())
        assert counted[level][TransformerBlock] == 2 * counted["none"][TransformerBlock]
    assert counted["attention"][ResBlock] == counted["none"][ResBlock] < counted["all"][ResBlock]
