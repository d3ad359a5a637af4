"""The noise schedule: forward process, training timesteps, and the samplers' reverse steps (Sec. 3.1, 3.3, Eq. 1).

    DDPM, the paper's    Ho et al. 2020, Denoising Diffusion Probabilistic Models
    DDIM                 Song et al. 2021, Denoising Diffusion Implicit Models
    DPM-Solver++(2M)     Lu et al. 2022, DPM-Solver++: Fast Solver for Guided Sampling
    UniPC                Zhao et al. 2023, UniPC: A Unified Predictor-Corrector Framework

Everything is a pure function of its arguments and the table of alpha bars; nothing is counted or kept between calls.
All steps are called alike; those that look back are given the past: earlier timesteps, and the x_0 predicted at each.

Letters: t a timestep in 0 .. T-1 (the paper's minus 1), z_0 clean latents, z_t noisy latents, eps noise, a_t = alpha_t,
abar_t = a_0 ... a_t. The samplers' papers call z_0 and z_t x_0 and x_t, and so do their steps here. In the solvers, as
in their papers, alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t), lambda_t = log(alpha_t / sigma_t).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction")
Past = Sequence[tuple[int, Tensor]]  # (t, x_0 predicted at t) of earlier steps, the newest last


@dataclass(frozen=True)
class SchedulerConfig:
    num_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: str = "epsilon"  # what the UNet gives; v_prediction: v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0
    zero_terminal_snr: bool = False  # whether the last timestep is noise alone; SD's still holds 7 % of the picture

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            types = " or ".join(PREDICTION_TYPES)
            raise ValueError(f"scheduler.prediction_type must be {types}, found {self.prediction_type!r}")
        if not 0 < self.beta_start < self.beta_end < 1:
            found = f"{self.beta_start} and {self.beta_end}"
            raise ValueError(f"scheduler.beta_start and beta_end must satisfy 0 < start < end < 1, found {found}")
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError("scheduler.zero_terminal_snr must go with prediction_type v_prediction, found epsilon")


class Scheduler:
    """Stable Diffusion's schedule: sqrt(beta) linear in t ("scaled linear"), no clipping."""

    def __init__(self, config: SchedulerConfig = SchedulerConfig()):
        self.config = config
        start, end = config.beta_start**0.5, config.beta_end**0.5
        betas = torch.linspace(start, end, config.num_timesteps, dtype=torch.float32, device="cpu") ** 2
        self.alpha_bars = torch.cumprod(1 - betas, dim=0)  # (T,)
        if config.zero_terminal_snr:  # Lin et al. 2024, Alg. 1: sqrt(abar) is shifted to end at 0 and begin as before
            roots = self.alpha_bars.sqrt()
            roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
            self.alpha_bars = roots.square().clamp(min=2**-24)  # not 0: the steps divide by it

    def alpha_bar(self, timesteps: Tensor) -> Tensor:
        """timesteps (B,) -> abar_t (B, 1, 1, 1) in float32, on their device."""
        return self.alpha_bars.to(timesteps.device)[timesteps][:, None, None, None]

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Eq. 1: z_0 and eps (B, 4, h, w), timesteps (B,) -> z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps."""
        alpha_bar = self.alpha_bar(timesteps)
        return alpha_bar.sqrt().to(latents.dtype) * latents + (1 - alpha_bar).sqrt().to(latents.dtype) * noise

    def noise_of_velocity(self, velocity: Tensor, noisy_latents: Tensor, alpha_bar: Tensor) -> Tensor:
        """v and z_t (B, 4, h, w), abar_t (B, 1, 1, 1) -> eps = sqrt(abar_t) v + sqrt(1 - abar_t) z_t in float32
        (Salimans and Ho, 2022, Sec. 4, Appendix D)."""
        return alpha_bar.sqrt() * velocity + (1 - alpha_bar).sqrt() * noisy_latents

    def cubic_timesteps(self, draws: Tensor) -> Tensor:
        """Sec. 3.3: draws u (B,) uniform in [0, 1) -> timesteps (B,) = floor((1 - u^3) T), at most T - 1."""
        T = self.config.num_timesteps
        return ((1 - draws**3) * T).long().clamp(0, T - 1)

    def sampling_timesteps(self, steps: int, spacing: str = "leading") -> list[int]:
        """The timesteps of sampling, noisiest first. As in diffusers, leading begins far from noise unless there are at
        least 10 steps and they nearly divide T: 50 at 981, but 400 at 799.

        leading: offset 1, from below T - 1 down to 1 (50 steps: 981, 961, ..., 21, 1)
        linspace: from T - 1 down to above 0 (50 steps: 999, 979, ..., 40, 20)
        """
        T = self.config.num_timesteps
        if not 1 <= steps < T:
            raise ValueError(f"the number of sampling steps must be within 1 .. {T - 1}, found {steps}")
        if spacing == "linspace":
            return [round(i * ((T - 1) / steps)) for i in range(steps, 0, -1)]
        return [i * (T // steps) + 1 for i in reversed(range(steps))]

    def clean_latents(self, latents: Tensor, noise_pred: Tensor, t: int) -> Tensor:
        """Eq. 1 solved for the clean latents: x_t and eps_theta(x_t, t) (B, 4, h, w) -> the predicted x_0."""
        abar_t = self.alpha_bars[t].double().item()
        return (latents - (1 - abar_t) ** 0.5 * noise_pred) / abar_t**0.5

    def implied_noise(self, latents: Tensor, x_0: Tensor, t: int) -> Tensor:
        """Eq. 1 solved for the noise: x_t and x_0 (B, 4, h, w) -> the eps that leads from one to the other."""
        abar_t = self.alpha_bars[t].double().item()
        return (latents - abar_t**0.5 * x_0) / (1 - abar_t) ** 0.5

    def ddpm_step(
        self, latents: Tensor, noise_pred: Tensor, t: int, t_next: int, noise: Tensor | None = None, past: Past = ()
    ) -> Tensor:
        """One reverse step with the posterior's own variance ("fixed small"; Ho et al. 2020, Eq. 6 and 7).

        latents (B, 4, h, w): x_t
        noise_pred (B, 4, h, w): eps_theta(x_t, t)
        t, t_next: this timestep and the next, smaller one; -1 after the last: the step then returns the predicted x_0
        noise (B, 4, h, w) ~ N(0, 1), or None for the posterior's mean
        past: not looked at
        -> latents (B, 4, h, w) at t_next
        """
        abar_t = self.alpha_bars[t].double().item()
        abar_next = self.alpha_bars[t_next].double().item() if t_next >= 0 else 1.0
        a_t = abar_t / abar_next
        x_0 = self.clean_latents(latents, noise_pred, t)
        mean = (abar_next**0.5 * (1 - a_t) * x_0 + a_t**0.5 * (1 - abar_next) * latents) / (1 - abar_t)
        sigma = ((1 - abar_next) / (1 - abar_t) * (1 - a_t)) ** 0.5
        return mean if noise is None else mean + sigma * noise

    def ddim_step(
        self, latents: Tensor, noise_pred: Tensor, t: int, t_next: int, noise: Tensor | None = None, past: Past = (),
        eta: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """One step of DDIM (Song et al. 2021, Eq. 12 and 16), called as ddpm_step; eta scales the noise, from none (0)
        to DDPM's (1). The last step ends at timestep 0, as Stable Diffusion's files ask (set_alpha_to_one is false)."""
        abar_t, abar_next = self.alpha_bars[t].double().item(), self.alpha_bars[max(t_next, 0)].double().item()
        sigma = eta * ((1 - abar_next) / (1 - abar_t) * (1 - abar_t / abar_next)) ** 0.5
        x_0 = self.clean_latents(latents, noise_pred, t)
        mean = abar_next**0.5 * x_0 + (1 - abar_next - sigma**2) ** 0.5 * noise_pred
        return mean if noise is None else mean + sigma * noise

    def marginal(self, t: int) -> tuple[float, float, float]:
        """alpha_t, sigma_t and lambda_t; those of clean latents for t = -1."""
        if t < 0:
            return 1.0, 0.0, math.inf
        abar_t = self.alpha_bars[t].double().item()
        return abar_t**0.5, (1 - abar_t) ** 0.5, math.log(abar_t / (1 - abar_t)) / 2

    def two_point_step(self, latents: Tensor, x_0: Tensor, t: int, t_next: int, past: Past) -> Tensor:
        """x_t and the x_0 predicted at t -> x at t_next, by a line through the last two predictions (Lu et al. 2022,
        Alg. 2). The first step has only one, and the last, whose h is infinite, uses only one."""
        (_, sigma, lambda_t), (alpha_next, sigma_next, lambda_next) = self.marginal(t), self.marginal(t_next)
        h, D = lambda_next - lambda_t, x_0
        if past and t_next >= 0:
            t_1, x_1 = past[-1]
            r = (lambda_t - self.marginal(t_1)[2]) / h
            D = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * x_1
        return sigma_next / sigma * latents - alpha_next * math.expm1(-h) * D

    def corrected(self, latents: Tensor, x_0: Tensor, t: int, past: Past) -> Tensor:
        """UniC: x_t, where two_point_step has led, as if the x_0 now predicted at t had been known on the way there.

        On that way, lambda = lambda_1 + u h, x_0 is taken to be the parabola x_1 + a u + b u^2 through the last three
        predictions (u = r, 0, 1); w_k is the integral of h exp((u - 1) h) u^k over u = 0 .. 1. With two predictions x_0
        is taken to be their mean. Only the difference to two_point_step's terms is added.
        """
        (alpha, _, lambda_t), (t_1, x_1) = self.marginal(t), past[-1]
        lambda_1 = self.marginal(t_1)[2]
        h = lambda_t - lambda_1
        B, D = math.expm1(-h), x_0 - x_1
        if len(past) == 1:
            return latents - alpha * B / 2 * D
        t_2, x_2 = past[-2]
        r = (self.marginal(t_2)[2] - lambda_1) / h
        slope = (x_2 - x_1) / r  # of two_point_step's line
        b = (D - slope) / (1 - r)
        w_1 = 1 + B / h
        w_2 = 1 - 2 * w_1 / h
        return latents + alpha * (w_1 * (D - b) + w_2 * b + B / 2 * slope)

    def dpmpp_step(
        self, latents: Tensor, noise_pred: Tensor, t: int, t_next: int, noise: Tensor | None = None, past: Past = ()
    ) -> Tensor:
        """One step of DPM-Solver++(2M), called as ddpm_step; noise is not looked at."""
        return self.two_point_step(latents, self.clean_latents(latents, noise_pred, t), t, t_next, past)

    def unipc_step(
        self, latents: Tensor, noise_pred: Tensor, t: int, t_next: int, noise: Tensor | None = None, past: Past = ()
    ) -> Tensor:
        """One step of UniPC of order 2 with B_2(h) = e^h - 1 ("bh2"), called as ddpm_step; noise is not looked at.
        UniC, then UniP, which with this order and this B is DPM-Solver++(2M)'s step."""
        x_0 = self.clean_latents(latents, noise_pred, t)
        if past:
            latents = self.corrected(latents, x_0, t, past)
        return self.two_point_step(latents, x_0, t, t_next, past)


# By name: the spacing of timesteps in which diffusers runs the sampler with SD 1.5's files, and the step.
SAMPLERS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "ddpm": ("leading", Scheduler.ddpm_step),
    "ddim": ("leading", Scheduler.ddim_step),
    "dpm++": ("linspace", Scheduler.dpmpp_step),
    "unipc": ("linspace", Scheduler.unipc_step),
}
