"""The noise schedule: forward process, training timesteps and the DDPM step (Sec. 3.1 and 3.3, Eq. 1).

Every method is a pure function of its arguments and of the table of alpha bars. cfld/samplers.py has faster samplers.

Letters: T the number of timesteps, t a timestep in 0 .. T-1 (the paper's minus 1), z_0 clean latents, z_t noisy
latents, eps noise, a_t = 1 - beta_t, abar_t = a_0 ... a_t. Like the papers on samplers, the steps write x_0 and x_t for
z_0 and z_t.
Letters in shapes: B samples, C latent channels, h x w positions.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from cfld.tools.checks import check_config, check_timesteps, described

SPACINGS = ("leading", "linspace")  # of timesteps in sampling
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class SchedulerConfig:
    num_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    # What the UNet predicts: epsilon, the noise; or v_prediction, v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0.
    prediction_type: str = "epsilon"
    # Whether the last timestep is pure noise; in SD 1.5 it still holds 7 % of the image.
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        check_config(self, "scheduler")
        if self.num_timesteps < 2:
            raise ValueError(f"scheduler.num_timesteps must be at least 2, found {self.num_timesteps}")
        if self.prediction_type not in PREDICTION_TYPES:
            types = " or ".join(PREDICTION_TYPES)
            raise ValueError(f"scheduler.prediction_type must be {types}, found {self.prediction_type!r}")
        if not 0 < self.beta_start < self.beta_end < 1:
            found = f"{self.beta_start} and {self.beta_end}"
            raise ValueError(f"scheduler.beta_start and beta_end must satisfy 0 < start < end < 1, found {found}")
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError("scheduler.zero_terminal_snr must go with prediction_type v_prediction, found epsilon")


@functools.cache  # one copy per device, so that no call waits for a transfer
def alpha_bars(config: SchedulerConfig, device: torch.device) -> Tensor:
    """abar_t of all timesteps, (T,) in float32. sqrt(beta) is linear in t, as in Stable Diffusion ("scaled linear")."""
    with torch.inference_mode(False):  # a table that is made while sampling must serve training, too
        roots = torch.linspace(
            config.beta_start**0.5, config.beta_end**0.5, config.num_timesteps, dtype=torch.float32, device="cpu"
        )
        table = torch.cumprod(1 - roots**2, dim=0)
        if config.zero_terminal_snr:  # Lin et al. 2024, Alg. 1: shift sqrt(abar) so that it ends at 0, keep its start
            roots = table.sqrt()
            roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
            table = roots.square().clamp(min=2**-24)  # not 0, because the steps divide by it
        return table.to(device)


class Scheduler:
    """The schedule of a model, as model.scheduler. It holds only its config: no tensor, no state."""

    def __init__(self, config: SchedulerConfig = SchedulerConfig()):
        self.config = config

    def alpha_bar(self, timesteps: Tensor) -> Tensor:
        """timesteps (B,) -> abar_t (B, 1, 1, 1) in float32, on the device of the timesteps. Raises ValueError unless
        they are whole numbers and, on the CPU, below T."""
        check_timesteps(timesteps, self.config.num_timesteps)
        return alpha_bars(self.config, timesteps.device)[timesteps][:, None, None, None]

    def alpha_bar_at(self, t: int) -> float:
        """abar_t of one timestep; 1 for t = -1, the clean latents. Raises ValueError for another t."""
        if not hasattr(t, "__index__") or not -1 <= t < self.config.num_timesteps:
            most = self.config.num_timesteps - 1
            raise ValueError(f"a timestep must be a whole number within -1 .. {most}, found {described(t)}")
        return alpha_bars(self.config, torch.device("cpu"))[t].double().item() if t >= 0 else 1.0

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Eq. 1: z_0 and eps (B, C, h, w), timesteps (B,) -> z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps."""
        alpha_bar = self.alpha_bar(timesteps)
        return alpha_bar.sqrt().to(latents.dtype) * latents + (1 - alpha_bar).sqrt().to(latents.dtype) * noise

    def clean_latents(self, latents: Tensor, noise_pred: Tensor, t: int | Tensor) -> Tensor:
        """Eq. 1 solved for the clean latents: x_t and eps_theta(x_t, t) (B, C, h, w), t one for all or (B,) -> the
        predicted x_0."""
        abar_t = self.alpha_bar(t) if isinstance(t, Tensor) else self.alpha_bar_at(t)
        return (latents - (1 - abar_t) ** 0.5 * noise_pred) / abar_t**0.5

    def implied_noise(self, latents: Tensor, x_0: Tensor, t: int) -> Tensor:
        """Eq. 1 solved for the noise: x_t and x_0 (B, C, h, w) -> the eps that leads from x_0 to x_t."""
        abar_t = self.alpha_bar_at(t)
        return (latents - abar_t**0.5 * x_0) / (1 - abar_t) ** 0.5

    def noise_of_velocity(self, velocity: Tensor, noisy_latents: Tensor, alpha_bar: Tensor) -> Tensor:
        """v and z_t (B, C, h, w), abar_t (B, 1, 1, 1) -> eps = sqrt(abar_t) v + sqrt(1 - abar_t) z_t in float32
        (Salimans and Ho 2022, Sec. 4 and Appendix D)."""
        return alpha_bar.sqrt() * velocity + (1 - alpha_bar).sqrt() * noisy_latents

    def cubic_timesteps(self, uniform: Tensor) -> Tensor:
        """Sec. 3.3: u (B,) uniform in [0, 1) -> timesteps (B,) = floor((1 - u^3) T), at most T - 1."""
        T = self.config.num_timesteps
        return ((1 - uniform**3) * T).long().clamp(0, T - 1)

    def sampling_timesteps(self, steps: int, spacing: str = "leading") -> list[int]:
        """The timesteps of sampling, noisiest first, spaced as in diffusers.

        spacing: "leading", from below T - 1 down to 1 (50 steps: 981, 961, ..., 21, 1), or "linspace", from T - 1 down
            to above 0 (50 steps: 999, 979, ..., 40, 20). "leading" starts near T - 1 only if steps >= 10 nearly
            divides T (400 steps start at 799).
        Raises ValueError unless 1 <= steps < T, and for another spacing.
        """
        T = self.config.num_timesteps
        if not hasattr(steps, "__index__") or not 1 <= steps < T:
            raise ValueError(f"the number of sampling steps must be within 1 .. {T - 1}, found {described(steps)}")
        if spacing not in SPACINGS:
            raise ValueError(f"spacing must be {' or '.join(SPACINGS)}, found {spacing!r}")
        steps = int(steps)
        if spacing == "linspace":
            return [round(i * ((T - 1) / steps)) for i in range(steps, 0, -1)]
        return [i * (T // steps) + 1 for i in reversed(range(steps))]

    def ddpm_step(self, latents: Tensor, x_0: Tensor, t: int, t_next: int, noise: Tensor | None = None) -> Tensor:
        """One reverse step, the paper's sampler, with the posterior's own variance ("fixed small"; Ho et al. 2020,
        Eq. 6 and 7).

        latents (B, C, h, w): x_t
        x_0 (B, C, h, w): the clean latents predicted at t
        t, t_next: this timestep and the next, smaller one; -1 after the last: the step then returns x_0
        noise (B, C, h, w) ~ N(0, 1), or None for the posterior's mean
        -> latents (B, C, h, w) at t_next
        """
        abar_t, abar_next = self.alpha_bar_at(t), self.alpha_bar_at(t_next)
        a_t = abar_t / abar_next
        mean = (abar_next**0.5 * (1 - a_t) * x_0 + a_t**0.5 * (1 - abar_next) * latents) / (1 - abar_t)
        sigma = ((1 - abar_next) / (1 - abar_t) * (1 - a_t)) ** 0.5
        return mean if noise is None else mean + sigma * noise
