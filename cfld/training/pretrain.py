"""Stages before the full model: a VAE and a source encoder, which TINY needs, and a UNet that generates people.

The paper starts from a Swin that was trained on ImageNet, and from Stable Diffusion, which generates people from words.
Synthetic people have attributes (hair, garments, colours): --stage source trains a Swin to predict them from a photo,
--stage base trains a UNet on a prompt of attributes, without source or pose.

Each stage is a Stage (cfld.training.stages).

Letters in shapes: B pairs, A attributes, C latent channels, h x w positions of a map, Q tokens, D their width.
"""

import dataclasses
import math
from pathlib import Path

import torch
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

from cfld.config import CFLDConfig
from cfld.data.batch import Batch, Pair
from cfld.folder import load_vae, save, save_parts
from cfld.model import Conditions
from cfld.objective import DROP_RATE, StepNoise, denoising_error, encode, mirror
from cfld.photos.pixels import to_range
from cfld.sampling import SamplingConfig, denoise
from cfld.swin import Swin
from cfld.tools.card import LOAD_PARTS, training_card
from cfld.tools.cli import PRECISIONS, UserError
from cfld.training.checkpoint import frozen_hash
from cfld.training.initial import hashed_modules, init_as_identity, initial_model, trained_model
from cfld.training.options import TrainConfig
from cfld.vae import VAE

FIRST_LOGVAR = -8.0  # of the posterior in --stage vae
FEATURE_WEIGHT = 1e-3  # of the mean square of the features, beside the error of the attributes, in --stage source


def evenly(pairs: Dataset[Pair]) -> list[Pair]:
    """About 256 of the pairs, evenly spaced."""
    count = len(pairs)  # type: ignore[arg-type]
    return [pairs[i] for i in range(0, count, math.ceil(count / 256))]


class VAEStage(nn.Module):
    """A VAE, trained from nothing on single images."""

    needs_attributes, makes_model = False, False

    def __init__(self, options: TrainConfig, config: CFLDConfig, pairs: Dataset[Pair]):
        super().__init__()
        torch.manual_seed(options.seed)
        self.config, self.options, self.pairs = config, options, pairs
        self.dtype = PRECISIONS[options.precision]
        self.vae = VAE(config.vae)
        init_as_identity(self.vae)
        with torch.no_grad():
            self.vae.encoder.to_moments.bias[config.vae.latent_channels :] = FIRST_LOGVAR  # type: ignore[index]
        self.frozen_sha256 = frozen_hash()

    def forward(self, batch: Batch, noise: StepNoise) -> Tensor:
        """Absolute and squared error of the reconstruction, and a little of the KL divergence from N(0, 1)."""
        assert batch.images is not None
        images = to_range(batch.images)
        mean, logvar = self.vae.moments(images)
        mean, logvar = mean.float(), logvar.float()
        latents = self.vae.sample(mean, logvar, noise.vae_noise)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        errors = self.vae.decode(latents).float() - images
        return errors.abs().mean() + errors.square().mean() + self.options.kl * kl

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.vae.named_parameters())

    def samples(self, batch: Batch, steps: int, generators: list[Generator]) -> list[Tensor]:
        """Columns of a sample grid: target, reconstruction."""
        assert batch.images is not None
        truths = to_range(batch.images).chunk(2)[1]
        return [truths, self.vae.decode(self.vae.encode(truths))]

    @torch.no_grad()
    def export(self, folder: Path, learnt: dict[str, Tensor]) -> None:
        """Write the VAE, whitened by about 256 training images."""
        device = self.vae.encoder.to_moments.weight.device
        self.vae.load_state_dict(learnt)
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            moments = [self.vae.moments(to_range(pair.target[None].to(device))) for pair in evenly(self.pairs)]
        mean, logvar = (torch.cat(parts).float().cpu() for parts in zip(*moments, strict=True))
        whiten(self.vae.cpu(), mean, logvar)  # in float64, which not every device has
        config = dataclasses.replace(self.config, vae=self.vae.config)
        card = training_card(self.options, config.image_size, LOAD_PARTS)
        save_parts(folder, config, replace=True, card=card, vae=self.vae)


@torch.no_grad()
def whiten(vae: VAE, mean: Tensor, logvar: Tensor) -> None:
    """Rotate and stretch a VAE's latents to mean 0 and covariance 1, and set its scale to 1.

    mean, logvar (n, C, h, w): moments() of many images, over whose positions mean and covariance are taken

    Noise then hides every direction of the latents at the same timestep. The 1x1 convolutions at both ends of the
    latents absorb the change, so images are decoded as before. The variance of the
    posterior cannot be rotated: it becomes its mean over all positions, one number per channel.
    """
    positions = rearrange(mean.double(), "b c h w -> c (b h w)")
    center, (variances, directions) = positions.mean(1), torch.linalg.eigh(torch.cov(positions))
    deviations = variances.clamp(min=1e-8 * variances.max().item()).sqrt()
    whitening, colouring = (
        directions * x @ directions.T for x in (1 / deviations, deviations)
    )  # covariance^(-1/2), ^(1/2)
    spread = whitening.square() @ rearrange(logvar.double().exp(), "b c h w -> c (b h w)").mean(1)

    encoder, decoder, channels = vae.encoder.to_moments, vae.decoder.from_latents, len(center)
    assert encoder.bias is not None and decoder.bias is not None
    weight, bias = encoder.weight[:channels, :, 0, 0].double(), encoder.bias[:channels].double()
    encoder.weight.copy_(torch.cat([whitening @ weight, torch.zeros_like(weight)])[:, :, None, None])
    encoder.bias.copy_(torch.cat([whitening @ (bias - center), spread.log()]))
    weight = decoder.weight[:, :, 0, 0].double()
    decoder.bias.add_(weight @ center)
    decoder.weight.copy_((weight @ colouring)[:, :, None, None])
    vae.config = dataclasses.replace(vae.config, scale=1.0)


class AttributeHead(nn.Module):
    """Predicts the attributes of a person from f_4, as the public Swin's head predicts ImageNet's classes."""

    def __init__(self, num_attributes: int, config: CFLDConfig):
        super().__init__()
        features = config.swin.widths[-1] * config.swin.map_sizes[-1] ** 2
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(features, num_attributes))

    def forward(self, source_feature: Tensor) -> Tensor:
        """source_feature f_4 (B, C, h, w) -> attributes (B, A)."""
        return self.layers(source_feature)


class SourceStage(nn.Module):
    """A source encoder that predicts attributes from a photo."""

    needs_attributes, makes_model = True, False

    def __init__(self, options: TrainConfig, config: CFLDConfig, pairs: Dataset[Pair]):
        super().__init__()
        self.config, self.options, self.pairs = config, options, pairs
        model, vae = initial_model(options, config)
        self.frozen_sha256 = frozen_hash(vae.requires_grad_(False))
        attributes = pairs[0].attributes
        assert attributes is not None
        self.source_encoder = model.source_encoder
        self.head = AttributeHead(attributes.numel(), config)

    def forward(self, batch: Batch, noise: StepNoise) -> Tensor:
        """The mean squared error of the attributes of the B sources, and a little of the features' size, which Swin's
        norms would let grow without bound (docs/lab_notes.md)."""
        assert batch.attributes is not None
        features = self.source_encoder(mirror(to_range(batch.source_images), noise.flips), noise.depth)
        error = (self.head(features[-1]).float() - batch.attributes).square().mean()
        return error + FEATURE_WEIGHT * sum(f.float().square().mean() for f in features)

    def trained(self) -> dict[str, nn.Parameter]:
        encoder = {f"source_encoder.{name}": p for name, p in self.source_encoder.named_parameters()}
        return encoder | {f"helper.{name}": p for name, p in self.head.named_parameters()}

    def samples(self, batch: Batch, steps: int, generators: list[Generator]) -> list[Tensor]:
        """Nothing to show."""
        return []

    @torch.no_grad()
    def export(self, folder: Path, learnt: dict[str, Tensor]) -> None:
        """Write the VAE of --init and the source encoder, standardised by about 256 training images."""
        vae = load_vae(str(self.options.init))
        if frozen_hash(vae.requires_grad_(False)) != self.frozen_sha256:
            raise UserError(f"--init {self.options.init} has changed since the training began, and nothing was written")
        source_encoder, prefix = self.source_encoder.cpu(), "source_encoder."
        own = {name.removeprefix(prefix): x for name, x in learnt.items() if name.startswith(prefix)}
        source_encoder.load_state_dict(own, strict=False)  # buffers stay
        features = [source_encoder(to_range(pair.source_image[None])) for pair in evenly(self.pairs)]
        standardise(source_encoder, [torch.cat(maps) for maps in zip(*features, strict=True)])
        card = training_card(self.options, self.config.image_size, LOAD_PARTS)
        save_parts(folder, self.config, replace=True, card=card, vae=vae, source_encoder=source_encoder)


@torch.no_grad()
def standardise(source_encoder: Swin, features: list[Tensor]) -> None:
    """Scale f_1 .. f_4 to a standard deviation of 1 around their channels' means, and shift f_4 to means of 0.

    features: four maps (n, C, h, w) of many photos, finest first

    Swin may grow one channel to tens of times the others in every photo; PRD then cannot see what differs between
    photos. Swin computes what it did before: only LayerNorms read the residual stream of a stage, so everything that is
    added to it may be scaled; none reads f_4, so the last bias can absorb its means.
    """
    for stage, (blocks, feature) in enumerate(zip(source_encoder.stages, features, strict=True)):
        means = feature.mean(dim=(0, 2, 3))
        deviation = (feature - means[:, None, None]).square().mean().sqrt()
        adding = [source_encoder.merges[stage - 1].reduction if stage else source_encoder.patch_norm]
        for block in blocks:  # type: ignore[attr-defined]
            adding += [block.attention.proj, block.mlp[-1]]
        if feature is features[-1]:
            adding[-1].bias.sub_(means)  # type: ignore[operator, union-attr]
        for layer in adding:
            for parameter in layer.parameters():  # type: ignore[union-attr]
                parameter.div_(deviation)


class AttributePrompt(nn.Module):
    """A prompt made from the attributes of a person: in the place of Stable Diffusion's text encoder."""

    def __init__(self, num_attributes: int, config: CFLDConfig):
        super().__init__()
        self.num_tokens = config.prompt_tokens
        self.layers = nn.Sequential(
            nn.Linear(num_attributes, 2 * config.prd.width),
            nn.SiLU(),
            nn.Linear(2 * config.prd.width, self.num_tokens * config.prd.width),
        )

    def forward(self, attributes: Tensor) -> Tensor:
        """attributes (B, A) -> prompt (B, Q, D)."""
        return rearrange(self.layers(attributes), "b (q d) -> b q d", q=self.num_tokens)


class BaseStage(nn.Module):
    """A UNet that generates people from attributes: what Stable Diffusion is to the paper."""

    needs_attributes, makes_model = True, True

    def __init__(self, options: TrainConfig, config: CFLDConfig, pairs: Dataset[Pair]):
        super().__init__()
        self.config, self.options = config, options
        self.model, self.vae = initial_model(options, config)
        self.model.requires_grad_(False)
        self.model.unet.requires_grad_(True)
        self.model.null_prompt.requires_grad_(True)
        self.frozen_sha256 = frozen_hash(*hashed_modules(options, self.model, self.vae.requires_grad_(False)))
        attributes = pairs[0].attributes
        assert attributes is not None
        self.attribute_prompt = AttributePrompt(attributes.numel(), config)

    def forward(self, batch: Batch, noise: StepNoise) -> Tensor:
        """Eq. 2 with attributes as the condition, over the 2B images of a batch."""
        assert batch.attributes is not None
        latents = encode(self.vae, batch, noise.vae_noise)
        timesteps = self.model.scheduler.cubic_timesteps(noise.timesteps)
        prompt = self.attribute_prompt(batch.attributes).repeat(2, 1, 1)
        conditions = self.model.drop(Conditions(prompt, None, None), noise.drops < DROP_RATE, "released")
        return denoising_error(self.model, latents, noise.noise, timesteps, conditions, self.options.min_snr)

    def trained(self) -> dict[str, nn.Parameter]:
        model = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        return model | {f"helper.{name}": p for name, p in self.attribute_prompt.named_parameters()}

    def samples(self, batch: Batch, steps: int, generators: list[Generator]) -> list[Tensor]:
        """Columns of a sample grid: target, result."""
        assert batch.images is not None and batch.attributes is not None
        conditions = Conditions(self.attribute_prompt(batch.attributes), None, None)
        results = denoise(self.model, self.vae, conditions, SamplingConfig(steps=steps), generator=generators)
        return [to_range(batch.images).chunk(2)[1], results]

    def export(self, folder: Path, learnt: dict[str, Tensor]) -> None:
        """Write a model folder: the UNet, and everything else as --init has it."""
        model, vae = trained_model(self.options, self.config, learnt, self.frozen_sha256)
        save(folder, model, vae, replace=True, card=training_card(self.options, self.config.image_size))
