"""Stable Diffusion 1.5's variational autoencoder: E and D of the paper (Sec. 3.1).

E: images (B, 3, H, W) in [-1, 1] -> latents (B, 4, H/8, W/8), scaled to about unit variance. D: latents -> images.

Letters in shapes: B images, C channels, H x W positions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cfld.tools.checks import check_config, check_tensor
from cfld.unet import ResBlock, Upsample


@dataclass(frozen=True)
class VAEConfig:
    channels: tuple[int, ...] = (128, 256, 512, 512)  # of each level, finest first; each but the last halves the map
    depth: int = 2  # residual blocks per level of the encoder; the decoder has one more
    latent_channels: int = 4
    scale: float = 0.18215  # latents = scale * sample of the posterior
    groups: int = 32

    def __post_init__(self) -> None:
        check_config(self, "vae")
        for channels in self.channels:
            if channels % self.groups:
                raise ValueError(
                    f"vae.channels {self.channels} must be multiples of vae.groups {self.groups}, found {channels}"
                )
        if not self.scale > 0:
            raise ValueError(f"vae.scale must be positive, found {self.scale}")

    @property
    def factor(self) -> int:
        """How many pixels a latent position covers in each direction."""
        return 2 ** (len(self.channels) - 1)


class Downsample(nn.Module):
    """3x3 convolution of stride 2, with padding on the right and at the bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class SpatialAttention(nn.Module):
    """Self-attention of all positions of a map with a single head, with a residual."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        tokens = rearrange(self.norm(x), "b c h w -> b 1 (h w) c")
        out = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + rearrange(self.to_out(out), "b 1 (h w) c -> b c h w", h=x.shape[2])


class Level(nn.Module):
    """Residual blocks, then a change of size."""

    def __init__(self, channels: int, out_channels: int, depth: int, groups: int, resize: nn.Module):
        super().__init__()
        widths = [channels] + [out_channels] * (depth - 1)
        self.resnets = nn.Sequential(*(ResBlock(c, out_channels, groups, 1e-6) for c in widths))
        self.resize = resize

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C', H', W'), half, equal or double the size."""
        return self.resize(self.resnets(x))


class Mid(nn.Sequential):
    """Residual block, attention, residual block at the coarsest level: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, groups: int):
        super().__init__(
            ResBlock(channels, channels, groups, 1e-6),
            SpatialAttention(channels, groups),
            ResBlock(channels, channels, groups, 1e-6),
        )


class Encoder(nn.Module):
    """Images to mean and log variance of the posterior over latents."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = config.channels
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.levels = nn.Sequential()
        for i, width in enumerate(widths):
            resize = Downsample(width) if i < len(widths) - 1 else nn.Identity()
            self.levels.append(Level(widths[max(i - 1, 0)], width, config.depth, config.groups, resize))
        self.mid = Mid(widths[-1], config.groups)
        self.norm_out = nn.GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)
        self.to_moments = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> (B, 2*4, H/8, W/8): 4 channels of means, then 4 of log variances."""
        x = self.mid(self.levels(self.conv_in(images)))
        return self.to_moments(self.conv_out(F.silu(self.norm_out(x))))


class Decoder(nn.Module):
    """Latents, unscaled, to images."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = config.channels[::-1]
        self.from_latents = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid = Mid(widths[0], config.groups)
        self.levels = nn.Sequential()
        for i, width in enumerate(widths):
            resize = Upsample(width) if i < len(widths) - 1 else nn.Identity()
            self.levels.append(Level(widths[max(i - 1, 0)], width, config.depth + 1, config.groups, resize))
        self.norm_out = nn.GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """latents (B, 4, h, w) -> (B, 3, 8h, 8w)."""
        x = self.levels(self.mid(self.conv_in(self.from_latents(latents))))
        return self.conv_out(F.silu(self.norm_out(x)))


class VAE(nn.Module):
    """The autoencoder. Everything outside of this class sees scaled latents."""

    def __init__(self, config: VAEConfig = VAEConfig()):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W) in [-1, 1] -> mean and logvar (in [-30, 20]), each (B, 4, H/8, W/8), unscaled.
        H and W are multiples of 8. Raises ValueError for images of another shape, dtype or device."""
        check_tensor("images", images, ("B", 3, "H", "W"), self.encoder.conv_in.weight)
        if images.shape[2] % self.config.factor or images.shape[3] % self.config.factor:
            raise ValueError(
                f"height and width of images must be multiples of {self.config.factor}, found {images.shape[2]} and "
                f"{images.shape[3]}"
            )
        mean, logvar = self.encoder(images).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def sample(self, mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
        """mean and logvar of moments(), noise ~ N(0, 1), all (B, 4, h, w) -> scaled latents (B, 4, h, w)."""
        return self.config.scale * (mean + torch.exp(0.5 * logvar) * noise)

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """images (B, 3, H, W) in [-1, 1] -> scaled latents (B, 4, H/8, W/8): a sample of the posterior, drawn with the
        generator, or its mean without one."""
        mean, logvar = self.moments(images)
        if generator is None:
            return self.config.scale * mean
        noise = torch.randn(mean.shape, generator=generator, device=generator.device)
        return self.sample(mean, logvar, noise.to(mean))

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, 4, h, w), scaled -> images (B, 3, 8h, 8w), about [-1, 1], not clamped. Raises ValueError for
        latents of another shape, dtype or device."""
        check_tensor("latents", latents, ("B", self.config.latent_channels, "h", "w"), self.decoder.conv_in.weight)
        return self.decoder(latents / self.config.scale)
