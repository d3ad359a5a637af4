"""CFLD: the parts composed (Sec. 3.2, Fig. 2a), and the conditions of its UNet.

    F_s = H_S(x_s),  F_d^out = H_D(f_4),  B = H_A(f_1..f_3),  pose features = H_P(x_p),  eps_theta = H_N(z_t, t, ...)

Letters in shapes: B samples, S source images, C channels, H x W positions, N = H * W tokens, L prompt tokens of width
P; as in cfld/unet.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cfld.adapter import PoseAdapter
from cfld.config import CFLDConfig
from cfld.hga import HybridGranularityAttention
from cfld.prd import PerceptionRefinedDecoder
from cfld.scheduler import Scheduler
from cfld.swin import Swin
from cfld.tools.checks import check_tensor, described
from cfld.unet import UNet

RECIPES = ("paper", "released")


@dataclass(frozen=True)
class Conditions:
    """The UNet's inputs besides z_t and t, of B samples. They do not depend on t: computed once per image, used at
    every sampling step. None stands for zeros: no pose, no biases."""

    prompt: Tensor  # (B, L, P): F_d^out, or the unconditional prompt
    pose_features: list[Tensor] | None  # three maps (B, C, H, W), finest first
    query_biases: list[Tensor] | None  # nine of (B, N, C), in execution order

    def __len__(self) -> int:
        """The number of samples, B."""
        return len(self.prompt)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditions":
        """Apply change to every tensor."""
        return _combine(change, [self])

    def repeat(self, copies: int) -> "Conditions":
        """The samples repeated copies times -> copies * B samples."""
        return Conditions.cat([self] * copies)

    @staticmethod
    def cat(parts: "Sequence[Conditions]") -> "Conditions":
        """The samples of all parts, one part after the other."""
        return _combine(lambda *tensors: torch.cat(tensors), parts)

    def where(self, keep: Tensor, other: "Conditions") -> "Conditions":
        """Sample i of self where keep (B,) is True, of other (B samples, or 1 for all) where it is False."""
        return _combine(lambda x, y: torch.where(_column(keep, x), x, y), [self, other])

    def lerp(self, other: "Conditions", weights: Tensor) -> "Conditions":
        """The line between two conditions of one sample each: weights (n,) -> n samples; at a weight of 0 exactly self,
        at 1 exactly other."""
        return _combine(lambda x, y: torch.lerp(x, y, _column(weights.to(x), x)), [self, other])


def _column(values: Tensor, like: Tensor) -> Tensor:
    """values (B,) -> (B, 1, ..., 1), as many axes as like has."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _combine(change: Callable[..., Tensor], parts: Sequence[Conditions]) -> Conditions:
    """Apply change to the corresponding tensors of all parts. A field that is None in some parts counts as zeros there;
    None in all stays None."""

    def combined(tensors: list[list[Tensor] | None]) -> list[Tensor] | None:
        first = next((x for x in tensors if x is not None), None)
        if first is None:
            return None
        zeros = [torch.zeros_like(x[:1]) for x in first]
        filled = [
            [torch.cat([x] * len(part)) for x in zeros] if mine is None else mine  # cat keeps channels_last
            for mine, part in zip(tensors, parts, strict=True)
        ]
        return [change(*corresponding) for corresponding in zip(*filled, strict=True)]

    return Conditions(
        change(*(part.prompt for part in parts)),
        combined([part.pose_features for part in parts]),
        combined([part.query_biases for part in parts]),
    )


class CFLD(nn.Module):
    """The paper's model. config.unet_trainable says what trains: requires_grad is False for the frozen part."""

    def __init__(self, config: CFLDConfig = CFLDConfig(), unet: UNet | None = None, source_encoder: Swin | None = None):
        """unet, source_encoder: pretrained parts, or None: random weights, as for all other parts."""
        super().__init__()
        self.config, self.scheduler = config, Scheduler(config.scheduler)
        self.source_encoder = Swin(config.swin) if source_encoder is None else source_encoder
        self.prd = PerceptionRefinedDecoder(config.prd)
        self.hga = HybridGranularityAttention(config.hga)
        self.pose_adapter = PoseAdapter(config.adapter)
        self.unet = UNet(config.unet) if unet is None else unet
        self.unet.num_timesteps = config.scheduler.num_timesteps
        self.null_prompt = nn.Parameter(torch.empty(1, config.prd.num_queries, config.prd.width).normal_())
        self.freeze()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that images, poses and latents must have."""
        return self.unet.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    def freeze(self) -> None:
        """Set requires_grad: everything trains, but of the UNet only what config.unet_trainable says."""
        self.requires_grad_(True)
        if self.config.unet_trainable == "all":
            return
        self.unet.requires_grad_(False)
        for up in self.unet.up:
            for transformer in up.attentions:  # type: ignore[union-attr]
                attention = transformer.block.cross_attention
                attention.to_k.requires_grad_(True)
                attention.to_v.requires_grad_(True)
                attention.to_q.requires_grad_(self.config.unet_trainable == "cross_qkv")

    def encode_source(self, source_images: Tensor, depth_draws: Tensor | None = None) -> Conditions:
        """Encode the appearance; arguments as in condition() -> Conditions of S samples, without a pose."""
        source_features = self.source_encoder(source_images, depth_draws)
        return Conditions(self.prd(source_features[-1]), None, self.hga(source_features[:-1]))

    def condition(self, source_images: Tensor, poses: Tensor, depth_draws: Tensor | None = None) -> Conditions:
        """Encode appearance (source_images) and pose (poses), once per image.

        source_images (S, 3, 256, 256) in [-1, 1]
        poses (B, 21, 256, 256) in [0, 1], B a multiple of S: pose i goes with source i mod S, so that one source serves
            many poses, and the two halves of a training batch share their sources
        depth_draws (S, 2 * blocks) in [0, 1) or None: see Swin
        -> Conditions of B samples
        Raises ValueError for images or poses of another shape, dtype or device.
        """
        side, adapter, weight = self.config.source_size, self.config.adapter, self.unet.conv_in.weight
        check_tensor("source_images", source_images, ("S", 3, side, side), weight)
        check_tensor("poses", poses, ("B", adapter.pose_channels, adapter.pose_size, adapter.pose_size), weight)
        samples, sources = len(poses), len(source_images)
        if not sources or samples % sources:
            raise ValueError(
                f"the number of poses must be a multiple of the number of source images, found {samples} and {sources}"
            )
        source = self.encode_source(source_images, depth_draws).repeat(samples // sources)
        return replace(source, pose_features=self.pose_adapter(poses))

    def drop(self, conditions: Conditions, dropped: Tensor, recipe: str) -> Conditions:
        """Drop the conditions of some samples, which trains the unconditional branches of Eq. 7 (Sec. 3.3 and 4.1).

        dropped (B,) bool
        recipe
            "paper": source and pose together (null prompt, no pose features, no biases): trains the unconditional
                branch. The pose-only branch stays untrained; its weight is 0 if w_pose = w_app.
            "released": the prompt only, as in the authors' code; with biases kept this is no branch of Eq. 7. Without
                biases (B1 to B4) it is the pose-only branch.
        """
        if recipe not in RECIPES:
            raise ValueError(f"recipe must be {' or '.join(RECIPES)}, found {recipe!r}")
        if dropped.shape != (len(conditions),) or dropped.dtype != torch.bool:
            raise ValueError(f"dropped must be a tensor ({len(conditions)},) of bool, found {described(dropped)}")
        unconditional = Conditions(self.null_prompt.to(conditions.prompt.dtype), None, None)
        if recipe == "paper":
            return conditions.where(~dropped, unconditional)
        prompts = replace(conditions, pose_features=None, query_biases=None).where(~dropped, unconditional)
        return replace(conditions, prompt=prompts.prompt)

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """Predict the noise in z_t.

        noisy_latents z_t (B, 4, 64, 64), in float32 also where the model is not: at zero terminal SNR, the noise that a
            velocity implies differs from z_t only in its last digits, on which x_0 depends
        timesteps (B,) integers, or (1,), one for all samples
        conditions of B samples
        -> noise_pred (B, 4, 64, 64); of a UNet that predicts the velocity, the noise that it implies, in float32
        """
        if not isinstance(conditions, Conditions):
            raise ValueError(f"conditions must be what CFLD.condition returns, found {described(conditions)}")
        predicted = self.unet(
            noisy_latents.to(self.dtype),
            timesteps,
            conditions.prompt,
            conditions.pose_features,
            conditions.query_biases,
        )
        if self.config.scheduler.prediction_type == "epsilon":
            return predicted
        return self.scheduler.noise_of_velocity(predicted, noisy_latents, self.scheduler.alpha_bar(timesteps))
