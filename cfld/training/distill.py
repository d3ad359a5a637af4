"""--stage distill: train a student that generates in a few steps, without guidance, what its teacher does in many.

    consistency    Luo et al. 2023, Latent Consistency Models (Sec. 4, Alg. 1)
    trajectory     Zheng et al. 2024, Trajectory Consistency Distillation (Sec. 4)

The teacher's ODE under Eq. 7 leads every noisy z_t to one end. The student g(z_t, t, s) learns to go from t to an
earlier s at once: to the end (consistency: g is cfld.samplers.consistency), or to any s (trajectory). Then it must
predict the same from z_t and from z', to which one DDIM step of the teacher leads, from t to t - k:

    min over theta of   d( g_theta(z_t, t, s),  g_theta-(z', t - k, s) )

theta- are the EMA weights of theta, without gradient (the weights themselves if --ema is 0), and d is the Huber loss.
Only the UNet trains; the conditions stay the teacher's. One UNet serves for three sets of weights: theta, theta-, and
the teacher's, which are the initial theta.

Letters in shapes: B pairs, of which only the targets are generated; C latent channels, h x w positions.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.utils.data import Dataset

from cfld.config import CFLDConfig
from cfld.data.batch import Batch, Pair
from cfld.folder import TURBO_FILE, save, save_student
from cfld.model import CFLD, Conditions
from cfld.objective import StepNoise, encode
from cfld.photos.pixels import to_range
from cfld.pose import pose_maps
from cfld.samplers import consistency
from cfld.sampling import TURBO, NoisePredictor, guidance, guided_noise
from cfld.scheduler import Scheduler
from cfld.student import add_adapters
from cfld.tools.card import training_card
from cfld.training.checkpoint import frozen_hash
from cfld.training.initial import initial_model, trained_model
from cfld.training.options import TrainConfig
from cfld.training.samples import sample_columns

HUBER = 1e-3  # c of the Huber loss: errors below it count squared


def huber(predicted: Tensor, target: Tensor) -> Tensor:
    """sqrt(d^2 + c^2) - c, the mean over all numbers."""
    return ((predicted - target).square() + HUBER**2).sqrt().mean() - HUBER


def ends(recipe: str, scheduler: Scheduler, latents: Tensor, noise_pred: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """g(z_t, t, s): where the predicted noise leads from t to s.

    latents z_t and noise_pred (B, C, h, w); t, s (B,), s <= t; consistency ignores s and goes to the end
    -> (B, C, h, w) in float32; z_t itself at t = 0 (consistency) or at t = s (trajectory)
    """
    x_0 = scheduler.clean_latents(latents, noise_pred.float(), t)
    if recipe == "consistency":
        return consistency(latents, x_0, t.float()[:, None, None, None])
    return torch.where((t == s)[:, None, None, None], latents, scheduler.add_noise(x_0, noise_pred.float(), s))


def distillation_loss(
    student: NoisePredictor,
    averaged: NoisePredictor,
    teacher: NoisePredictor,
    model: CFLD,
    latents: Tensor,
    noise: Tensor,
    timesteps: tuple[Tensor, Tensor],
    conditions: Conditions,
    skip: int,
) -> Tensor:
    """The distance between the student's predictions from z_t and from one step of the teacher further.

    student, averaged, teacher: the model with theta, theta- and the initial weights; only student has a gradient
    model: their config, schedule and null prompt
    latents z_0, noise (B, C, h, w)
    timesteps: two of (B,) uniform in [0, 1), for t and s
    conditions: of B samples
    skip: k, how many timesteps the teacher's step spans
    """
    scheduler, distilled = model.scheduler, model.config.distilled
    assert distilled is not None
    t = 1 + (timesteps[0] * (model.config.scheduler.num_timesteps - 1)).long()  # 1 .. T - 1
    before = (t - skip).clamp(min=0)
    s = (timesteps[1] * (before + 1)).long()  # 0 .. before

    noisy = scheduler.add_noise(latents, noise, t)
    with torch.no_grad():
        weights, branches = guidance(conditions, model.null_prompt, distilled.scale, distilled.scale)
        eps = guided_noise(teacher, noisy, t, weights, branches)
        earlier = scheduler.add_noise(scheduler.clean_latents(noisy, eps, t), eps, before)  # a step of DDIM
        target = ends(distilled.recipe, scheduler, earlier, averaged(earlier, before, conditions), before, s)
    return huber(ends(distilled.recipe, scheduler, noisy, student(noisy, t, conditions), t, s), target)


class DistillStage(nn.Module):
    """A student, which starts as a copy of its teacher, the model of --init."""

    needs_attributes, makes_model = False, True

    def __init__(self, options: TrainConfig, config: CFLDConfig, pairs: Dataset[Pair]):
        super().__init__()
        assert config.distilled is not None
        self.config, self.options = config, options
        self.model, self.vae = initial_model(options, config)
        self.frozen_sha256 = frozen_hash(self.model.requires_grad_(False), self.vae.requires_grad_(False))
        if config.distilled.rank:
            torch.manual_seed(options.seed)
            add_adapters(self.model.unet, config.distilled.rank, config.distilled.targets)
        for name, parameter in self.model.unet.named_parameters():
            parameter.requires_grad_("lora_" in name or not config.distilled.rank)
        first = (nn.Parameter(p.detach().clone(), requires_grad=False) for p in self.trained().values())
        self.first = nn.ParameterList(first)
        self.ema: dict[str, Tensor] = {}

    def with_weights(self, weights: Mapping[str, Tensor]) -> NoisePredictor:
        """The model with these weights instead of those that train."""
        return lambda *inputs: functional_call(self.model, dict(weights), inputs)

    def forward(self, batch: Batch, noise: StepNoise) -> Tensor:
        """The distillation loss of the targets of the B pairs."""
        trained = self.trained()
        images, moments = (None if x is None else x.chunk(2)[1] for x in (batch.images, batch.moments))
        targets = dataclasses.replace(batch, images=images, moments=moments)
        latents = encode(self.vae, targets, noise.vae_noise.chunk(2)[1])
        with torch.no_grad():
            poses = pose_maps(batch.keypoints.chunk(2)[1], self.config.adapter.pose_size)
            conditions = self.model.condition(to_range(batch.source_images), poses)
        return distillation_loss(
            self.model,
            self.with_weights(self.ema or trained),
            self.with_weights(dict(zip(trained, self.first, strict=True))),
            self.model,
            latents,
            noise.noise.chunk(2)[1],
            (noise.timesteps.chunk(2)[1], noise.drops.chunk(2)[1]),  # nothing is dropped
            conditions,
            self.options.skip,
        )

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def samples(self, batch: Batch, steps: int, generators: list[Generator]) -> list[Tensor]:
        """Columns of a sample grid: source, pose, target, result."""
        assert self.config.distilled is not None
        scale = self.config.distilled.scale
        config = dataclasses.replace(TURBO, steps=steps, pose_scale=scale, appearance_scale=scale)
        return sample_columns(self.model, self.vae, batch, config, generators)

    def export(self, folder: Path, learnt: dict[str, Tensor]) -> None:
        """Write the student as a model folder with merged adapters, and next to it turbo.safetensors, its own weights
        alone, for the teacher's folder."""
        model, vae = trained_model(self.options, self.config, learnt, self.frozen_sha256)
        save(folder, model, vae, replace=True, card=training_card(self.options, self.config.image_size))
        save_student(folder.with_name(TURBO_FILE), self.config, learnt)
