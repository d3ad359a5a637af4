"""The noise schedule: forward process, training timesteps, DDPM's reverse step (Sec. 3.1, 3.3, Eq. 1; Ho et al. 2020).

Everything is a pure function of its arguments and the table of alpha bars; nothing is counted or kept between calls.

Letters: t a timestep in 0 .. T-1, x_0 clean latents, x_t noisy latents, eps noise, a_t = alpha_t, abar_t = a_1 ... a_t.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SchedulerConfig:
    num_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        if not 0 < self.beta_start < self.beta_end < 1:
            found = f"{self.beta_start} and {self.beta_end}"
            raise ValueError(f"scheduler.beta_start and beta_end must satisfy 0 < start < end < 1, found {found}")


class Scheduler:
    """Stable Diffusion's schedule: sqrt(beta) linear in t ("scaled linear"), noise prediction, no clipping."""

    def __init__(self, config: SchedulerConfig = SchedulerConfig()):
        self.config = config
        start, end = config.beta_start**0.5, config.beta_end**0.5
        betas = torch.linspace(start, end, config.num_timesteps, dtype=torch.float32) ** 2
        self.alpha_bars = torch.cumprod(1 - betas, dim=0)  # (T,)

    def alpha_bar(self, timesteps: Tensor) -> Tensor:
        """timesteps (B,) -> abar_t (B, 1, 1, 1) in float32, on their device."""
        return self.alpha_bars.to(timesteps.device)[timesteps][:, None, None, None]

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Eq. 1: z_0 and eps (B, 4, h, w), timesteps (B,) -> z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps."""
        alpha_bar = self.alpha_bar(timesteps)
        return alpha_bar.sqrt().to(latents.dtype) * latents + (1 - alpha_bar).sqrt().to(latents.dtype) * noise

    def cubic_timesteps(self, draws: Tensor) -> Tensor:
        """Sec. 3.3: draws u (B,) uniform in [0, 1) -> timesteps (B,) = floor((1 - u^3) T), at most T - 1."""
        T = self.config.num_timesteps
        return ((1 - draws**3) * T).long().clamp(0, T - 1)

    def sampling_timesteps(self, steps: int) -> list[int]:
        """The timesteps of sampling, noisiest first: leading spacing, offset 1 (50 steps: 981, 961, ..., 21, 1)."""
        T = self.config.num_timesteps
        if not 1 <= steps < T:
            raise ValueError(f"the number of sampling steps must be within 1 .. {T - 1}, found {steps}")
        return [i * (T // steps) + 1 for i in reversed(range(steps))]

    def ddpm_step(
        self, latents: Tensor, noise_pred: Tensor, t: int, t_next: int, noise: Tensor | None = None
    ) -> Tensor:
        """One reverse step with the posterior's own variance ("fixed small"; Ho et al. 2020, Eq. 6 and 7).

        latents (B, 4, h, w): x_t
        noise_pred (B, 4, h, w): eps_theta(x_t, t)
        t, t_next: this timestep and the next, smaller one; -1 after the last: the step then returns the predicted x_0
        noise (B, 4, h, w) ~ N(0, 1), or None for the posterior's mean
        -> latents (B, 4, h, w) at t_next
        """
        abar_t = self.alpha_bars[t].double().item()
        abar_next = self.alpha_bars[t_next].double().item() if t_next >= 0 else 1.0
        a_t = abar_t / abar_next
        x_0 = (latents - (1 - abar_t) ** 0.5 * noise_pred) / abar_t**0.5
        mean = (abar_next**0.5 * (1 - a_t) * x_0 + a_t**0.5 * (1 - abar_next) * latents) / (1 - abar_t)
        if noise is None:
            return mean
        variance = (1 - abar_next) / (1 - abar_t) * (1 - a_t)
        return mean + variance**0.5 * noise
