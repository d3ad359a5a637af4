"""CFLD: the parts composed (Sec. 3.2, Fig. 2a), its conditions, and model folders on disk.

    F_s = H_S(x_s),  F_d^out = H_D(f_4),  B = H_A(f_1..f_3),  pose features = H_P(x_p),  eps_theta = H_N(z_t, t, ...)

Letters in shapes: B rows, S source images, Q prompt tokens, D their width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cfld.adapter import PoseAdapter
from cfld.baselines.b1_to_b5 import substitutes
from cfld.config import CFLDConfig
from cfld.hga import HybridGranularityAttention
from cfld.prd import PerceptionRefinedDecoder
from cfld.scheduler import Scheduler
from cfld.swin import Swin
from cfld.unet import UNet, repeat_rows


@dataclass(frozen=True)
class Conditions:
    """The UNet's inputs beside z_t and t, of B samples. They do not depend on t: computed once per image, used at every
    sampling step. None stands for zeros: no pose, no biases."""

    prompt: Tensor  # (B, Q, D): F_d^out, or the unconditional prompt
    pose_features: list[Tensor] | None  # three maps (B, C, H, W), finest first
    query_biases: list[Tensor] | None  # nine of (B, N, C), in execution order

    def __len__(self) -> int:
        """The number of samples, B."""
        return len(self.prompt)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditions":
        """Apply change to every tensor."""
        return _combine(change, [self])

    def repeat(self, copies: int) -> "Conditions":
        """All samples, again and again -> copies * B samples."""
        return Conditions.cat([self] * copies)

    @staticmethod
    def cat(parts: "Sequence[Conditions]") -> "Conditions":
        """The samples of all parts, one part after the other."""
        return _combine(lambda *tensors: torch.cat(tensors), parts)

    def where(self, keep: Tensor, other: "Conditions") -> "Conditions":
        """Sample i of self where keep (B,) is True, of other (B samples, or 1 for all) where it is False."""
        return _combine(lambda own, its: torch.where(_column(keep, own), own, its), [self, other])

    def lerp(self, other: "Conditions", weights: Tensor) -> "Conditions":
        """The line between two conditions of one sample each: weights (n,) -> n samples; at a weight of 0 exactly self,
        at 1 exactly other."""
        return _combine(lambda own, its: torch.lerp(own, its, _column(weights.to(own), own)), [self, other])


def _column(values: Tensor, like: Tensor) -> Tensor:
    """values (B,) -> (B, 1, ..., 1), as many axes as like has."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _combine(change: Callable[..., Tensor], parts: Sequence[Conditions]) -> Conditions:
    """Apply change to the corresponding tensors of all parts. What is None in some parts alone is zeros there."""

    def combined(tensors: list[list[Tensor] | None]) -> list[Tensor] | None:
        given = next((x for x in tensors if x is not None), None)
        if given is None:
            return None
        zeros = [torch.zeros_like(x[:1]) for x in given]
        filled = [
            [torch.cat([x] * len(part)) for x in zeros] if own is None else own  # cat keeps channels_last
            for own, part in zip(tensors, parts, strict=True)
        ]
        return [change(*corresponding) for corresponding in zip(*filled, strict=True)]

    return Conditions(
        change(*(part.prompt for part in parts)),
        combined([part.pose_features for part in parts]),
        combined([part.query_biases for part in parts]),
    )


class CFLD(nn.Module):
    """The paper's model. What trains is decided by config.unet_trainable: requires_grad is False on the frozen part."""

    def __init__(self, config: CFLDConfig = CFLDConfig()):
        super().__init__()
        self.config, self.scheduler = config, Scheduler(config.scheduler)
        self.source_encoder = Swin(config.swin)
        self.prd = PerceptionRefinedDecoder(config.prd)
        self.hga = HybridGranularityAttention(config.hga)
        self.pose_adapter = PoseAdapter(config.adapter)
        self.unet = UNet(config.unet)
        self.null_prompt = nn.Parameter(torch.randn(1, config.prd.num_queries, config.prd.width))
        for name, part in substitutes(config).items():  # none, but in the baselines of Table 3
            setattr(self, name, part)
        self.freeze()

    def freeze(self) -> None:
        """Set requires_grad: everything but the UNet (and baseline B2's CLIP) trains, and of the UNet what
        config.unet_trainable says."""
        self.requires_grad_(True)
        self.source_encoder.requires_grad_(self.config.prompt != "clip")
        if self.config.unet_trainable == "all":
            return
        self.unet.requires_grad_(False)
        for up in self.unet.up:
            for transformer in up.attentions:  # type: ignore[union-attr]
                attention = transformer.block.cross_attention
                attention.to_k.requires_grad_(True)
                attention.to_v.requires_grad_(True)
                attention.to_q.requires_grad_(self.config.unet_trainable == "cross_qkv")

    def condition(self, source_images: Tensor, poses: Tensor, depth_draws: Tensor | None = None) -> Conditions:
        """Encode who (source_images) and how (poses), once an image.

        source_images (S, 3, 256, 256) in [-1, 1]
        poses (B, 21, 256, 256) in [0, 1], B a multiple of S: row i goes with source i mod S, so that one source
            serves many poses, and training's two halves share their sources
        depth_draws (S, 2 * blocks) in [0, 1) or None: see Swin
        -> Conditions of B rows
        """
        rows, sources = len(poses), len(source_images)
        if rows % sources:
            raise ValueError(
                f"the number of poses must be a multiple of the number of source images, found {rows} and {sources}"
            )
        source_features = self.source_encoder(source_images, depth_draws)
        prompt = self.prd(source_features[-1])
        query_biases = None if self.hga is None else self.hga(source_features)
        copies = rows // sources
        return Conditions(
            prompt.repeat(copies, 1, 1),
            self.pose_adapter(poses),
            query_biases and [bias.repeat(copies, 1, 1) for bias in query_biases],
        )

    def drop(self, conditions: Conditions, dropped: Tensor, recipe: str) -> Conditions:
        """Drop the conditions of some rows, for the sake of Eq. 7 (Sec. 3.3 and 4.1).

        dropped (B,) bool
        recipe: "paper" drops source and pose together (unconditional prompt, no biases, no pose features), which
            trains Eq. 7's row without either; "released", as the released checkpoints were trained, the prompt alone,
            which with query biases is none of its rows, and without (B1 to B4) the row of the pose without a source.
            Else no recipe trains that one: it has no weight where w_pose = w_app.
        """
        if recipe not in ("paper", "released"):
            raise ValueError(f"the recipe of dropping must be paper or released, found {recipe!r}")
        nothing = Conditions(self.null_prompt.to(conditions.prompt.dtype), None, None)
        kept = conditions.where(~dropped, nothing)
        if recipe == "paper":
            return kept
        if self.config.prompt == "multi_scale":  # of B1 the biases are the prompt
            return replace(kept, pose_features=conditions.pose_features)
        return replace(conditions, prompt=kept.prompt)

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """noisy_latents z_t (B, 4, 64, 64), timesteps (B,) integers, conditions of B rows -> noise_pred, as z_t.

        Rows that share z_t, as those of guidance, may be given once: see UNet.forward. Of a UNet that predicts the
        velocity (TINY's), the noise that it implies is returned."""
        prompt, pose_features, query_biases = conditions.prompt, conditions.pose_features, conditions.query_biases
        if self.config.prompt == "multi_scale" and query_biases is not None:
            up_prompts = [prompt + bias for bias in query_biases]
            predicted = self.unet(noisy_latents, timesteps, prompt, pose_features, up_prompts=up_prompts)
        else:
            predicted = self.unet(noisy_latents, timesteps, prompt, pose_features, query_biases)
        if self.config.scheduler.prediction_type == "epsilon":
            return predicted
        latents, alpha_bar = (repeat_rows(x, len(prompt)) for x in (noisy_latents, self.scheduler.alpha_bar(timesteps)))
        return self.scheduler.noise_of_velocity(predicted, latents, alpha_bar)
