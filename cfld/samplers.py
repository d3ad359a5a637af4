"""Samplers that need fewer steps than the paper's DDPM.

    DDIM                 Song et al. 2021, Denoising Diffusion Implicit Models
    DPM-Solver++(2M)     Lu et al. 2022, DPM-Solver++: Fast Solver for Guided Sampling
    UniPC                Zhao et al. 2023, UniPC: A Unified Predictor-Corrector Framework

and those of students, which are distilled for a few steps (cfld/training/distill.py):

    consistency          Luo et al. 2023, Latent Consistency Models
    trajectory           Zheng et al. 2024, Trajectory Consistency Distillation

A step goes from x_t to x at t_next, given x_0, the clean latents predicted at t. It keeps nothing between calls: a
multistep sampler is given the predictions of earlier steps.

To add a sampler, write its step and an entry of SAMPLERS. The limits: denoise (cfld/sampling.py) evaluates the UNet
once per step, keeps at most two past predictions, and gives a step fresh noise or the past, not both.

Letters: alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t), lambda_t = log(alpha_t / sigma_t), h the difference of two
lambdas; x_0_prev and x_0_prev2 are the clean latents predicted one and two steps earlier, at t_prev and t_prev2.
Letters in shapes: B samples, C latent channels, h x w positions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cfld.scheduler import Scheduler

Past = Sequence[tuple[int, Tensor]]  # (t, x_0 predicted at t) of earlier steps, the newest last


def ddim_step(
    scheduler: Scheduler,
    latents: Tensor,
    x_0: Tensor,
    t: int,
    t_next: int,
    noise: Tensor | None = None,
    eta: float = 0.0,
) -> Tensor:
    """One step of DDIM (Song et al. 2021, Eq. 12 and 16).

    latents, x_0, noise (B, C, h, w), t, t_next: as in Scheduler.ddpm_step, but t_next = -1 ends at timestep 0, since
        Stable Diffusion's files set set_alpha_to_one to false
    eta: how much noise is added, from none (0) to as much as in DDPM (1)
    -> latents (B, C, h, w) at t_next
    """
    abar_t, abar_next = scheduler.alpha_bar_at(t), scheduler.alpha_bar_at(max(t_next, 0))
    sigma = eta * ((1 - abar_next) / (1 - abar_t) * (1 - abar_t / abar_next)) ** 0.5
    noise_pred = scheduler.implied_noise(latents, x_0, t)
    mean = abar_next**0.5 * x_0 + (1 - abar_next - sigma**2) ** 0.5 * noise_pred
    return mean if noise is None else mean + sigma * noise


def marginal(scheduler: Scheduler, t: int) -> tuple[float, float, float]:
    """alpha_t, sigma_t and lambda_t; for t = -1 those of clean latents: 1, 0 and infinity."""
    abar_t = scheduler.alpha_bar_at(t)
    return abar_t**0.5, (1 - abar_t) ** 0.5, math.log(abar_t / (1 - abar_t)) / 2 if t >= 0 else math.inf


def dpmpp_step(scheduler: Scheduler, latents: Tensor, x_0: Tensor, t: int, t_next: int, past: Past = ()) -> Tensor:
    """One step of DPM-Solver++(2M): linear extrapolation from the last two predictions (Lu et al. 2022, Alg. 2). The
    first step has only one prediction; the last step, whose h is infinite, uses only one.

    latents, x_0 (B, C, h, w), t, t_next: as in Scheduler.ddpm_step
    past: the predictions of earlier steps; the last one is used
    -> latents (B, C, h, w) at t_next
    """
    (_, sigma, lambda_t), (alpha_next, sigma_next, lambda_next) = marginal(scheduler, t), marginal(scheduler, t_next)
    h, D = lambda_next - lambda_t, x_0
    if past and t_next >= 0:
        t_prev, x_0_prev = past[-1]
        r = (lambda_t - marginal(scheduler, t_prev)[2]) / h
        D = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * x_0_prev
    return sigma_next / sigma * latents - alpha_next * math.expm1(-h) * D


def unipc_correction(scheduler: Scheduler, x_0: Tensor, t: int, past: Past) -> Tensor:
    """UniC: what to add to x_t, to which dpmpp_step has led, once the x_0 predicted at t is known.

    Between t_prev and t, let lambda = lambda_prev + u h. The exact solution (Lu et al. 2022, Eq. 9) is

        x_t = (sigma_t / sigma_prev) x_{t_prev} + alpha_t * integral over u = 0 .. 1 of h e^((u - 1) h) x_0(u)

    dpmpp_step takes x_0(u) to be x_0_prev, the prediction at u = 0, plus half of the slope of the line through x_0_prev
    and x_0_prev2. UniC takes the parabola x_0_prev + a u + b u^2 through x_0_prev2, x_0_prev and x_0, at u = r, 0 and
    1. With w_k the integral of h e^((u - 1) h) u^k, its terms are w_1 a + w_2 b, where w_0 = 1 - e^(-h),
    w_1 = 1 - w_0 / h, w_2 = 1 - 2 w_1 / h. While there is no x_0_prev2, x_0(u) is the mean of x_0_prev and x_0.
    """
    (alpha, _, lambda_t), (t_prev, x_0_prev) = marginal(scheduler, t), past[-1]
    lambda_prev = marginal(scheduler, t_prev)[2]
    h = lambda_t - lambda_prev
    B, D = math.expm1(-h), x_0 - x_0_prev  # B = -w_0
    if len(past) == 1:
        return -alpha * B / 2 * D
    t_prev2, x_0_prev2 = past[-2]
    r = (marginal(scheduler, t_prev2)[2] - lambda_prev) / h
    slope = (x_0_prev2 - x_0_prev) / r
    b = (D - slope) / (1 - r)
    a = D - b
    w_1 = 1 + B / h
    w_2 = 1 - 2 * w_1 / h
    return alpha * (w_1 * a + w_2 * b + B / 2 * slope)  # the parabola's terms, without those of dpmpp_step's line


def unipc_step(scheduler: Scheduler, latents: Tensor, x_0: Tensor, t: int, t_next: int, past: Past = ()) -> Tensor:
    """One step of UniPC of order 2 with B_2(h) = e^h - 1 ("bh2"): correct x_t by UniC, then go on by UniP, which at
    this order and with this B is DPM-Solver++(2M)'s step. Arguments as in dpmpp_step; the last two of past are used."""
    if past:
        latents = latents + unipc_correction(scheduler, x_0, t, past)
    return dpmpp_step(scheduler, latents, x_0, t, t_next, past)


def boundary(t: int | Tensor) -> tuple[Any, Any]:
    """c_skip and c_out of a consistency function (Luo et al. 2023, Sec. 4.1, with their sigma = 0.5 and timestep
    scaling of 10)."""
    scaled = 10 * t
    return 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5


def consistency(latents: Tensor, x_0: Tensor, t: int | Tensor) -> Tensor:
    """The consistency function f(x_t, t) = c_skip x_t + c_out x_0: at t = 0 it is x_t itself; from t = 1 on, nearly
    x_0. t: one for all, or (B, 1, 1, 1) of floats."""
    c_skip, c_out = boundary(t)
    return c_skip * latents + c_out * x_0


def consistency_step(
    scheduler: Scheduler, latents: Tensor, x_0: Tensor, t: int, t_next: int, noise: Tensor | None = None
) -> Tensor:
    """One step of multistep consistency sampling: go to the end of the trajectory, f(x_t, t), and add new noise (Luo et
    al. 2023, Alg. 3). Arguments as in Scheduler.ddpm_step."""
    abar_next, end = scheduler.alpha_bar_at(t_next), consistency(latents, x_0, t)
    return abar_next**0.5 * end + (1 - abar_next) ** 0.5 * (torch.zeros_like(end) if noise is None else noise)


GAMMA = 0.3  # share of a trajectory step that is undone by new noise


def trajectory_step(
    scheduler: Scheduler, latents: Tensor, x_0: Tensor, t: int, t_next: int, noise: Tensor | None = None
) -> Tensor:
    """One step of strategic stochastic sampling: along the trajectory to s = (1 - GAMMA) t_next, past t_next, and back
    to t_next by new noise (Zheng et al. 2024, Alg. 4). Arguments as in Scheduler.ddpm_step; without noise it goes to
    t_next at once, as DDIM does."""
    if t_next < 0:
        return x_0
    if noise is None:
        return ddim_step(scheduler, latents, x_0, t, t_next)
    s = math.floor((1 - GAMMA) * t_next)
    ratio = scheduler.alpha_bar_at(t_next) / scheduler.alpha_bar_at(s)
    return ratio**0.5 * ddim_step(scheduler, latents, x_0, t, s) + (1 - ratio) ** 0.5 * noise


@dataclass(frozen=True)
class Sampler:
    """How to run a sampler."""

    step: Callable[..., Tensor]  # (scheduler, latents, x_0, t, t_next, noise or past) -> latents at t_next
    spacing: str  # of Scheduler.sampling_timesteps: the one with which diffusers runs SD 1.5's files
    stochastic: bool = False  # whether the step's last argument is fresh noise
    multistep: bool = False  # whether it is the predictions of earlier steps


SAMPLERS = {
    "ddpm": Sampler(Scheduler.ddpm_step, "leading", stochastic=True),
    "ddim": Sampler(ddim_step, "leading"),
    "dpm++": Sampler(dpmpp_step, "linspace", multistep=True),
    "unipc": Sampler(unipc_step, "linspace", multistep=True),
}
STUDENT_SAMPLERS = {  # by the recipe of the distillation, of cfld.config.DISTILLATIONS
    "consistency": Sampler(consistency_step, "linspace", stochastic=True),
    "trajectory": Sampler(trajectory_step, "linspace", stochastic=True),
}
