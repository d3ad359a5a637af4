"""Appearance editing, interpolation and sequences with a trained model (Sec. 4.6, Fig. 6).

Letters in shapes: B images, n frames."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cfld.model import CFLD, Conditions
from cfld.sampling import Reference, denoise, pose_tensor
from cfld.scheduler import Scheduler
from cfld.vae import VAE


def edit(
    model: CFLD,
    vae: VAE,
    source_images: Tensor,
    reference_images: Tensor,
    masks: Tensor,
    poses: Tensor,
    **how: Any,
) -> Tensor:
    """Style transfer (Fig. 6a): paint the source's clothes into a part of the reference.

    source_images (1, 3, 256, 256) in [-1, 1]: whose appearance to paint
    reference_images (1, 3, 512, 512) in [-1, 1], on the model's device: y_ref
    masks (1, 1, h, w) bool, of any size: m, True where it is to be painted; a pixel, or a position of the latents, that
        the mask touches is painted as a whole
    poses (1, 21, 256, 256) in [0, 1]: the pose of the person in the reference
    how: what denoise takes, generator included
    -> images (1, 3, 512, 512) in [-1, 1]: inside the mask what is painted, outside the reference itself
    """
    weight = model.unet.conv_in.weight
    pixels = F.adaptive_max_pool2d(masks.float(), reference_images.shape[-2:])
    with torch.no_grad():
        positions = F.max_pool2d(pixels, vae.config.factor)
        reference = Reference(vae.encode(reference_images.to(weight)), positions > 0)
        conditions = model.condition(source_images.to(weight), poses.to(weight))
    images = denoise(model, vae, Scheduler(model.config.scheduler), conditions, reference=reference, **how)
    return torch.where(pixels > 0, images, reference_images.to(images))


def interpolated(first: Conditions, second: Conditions, weights: Tensor) -> Conditions:
    """Style interpolation (Fig. 6b): prompt and query biases on the line between two sources.

    first, second: of one row each, in the same pose
    weights (n,): 0 is the first, 1 the second, both exactly
    -> Conditions of n rows
    """

    def between(a: Tensor, b: Tensor) -> Tensor:
        return torch.lerp(a, b, weights.to(a).view(-1, 1, 1))

    pairs = zip(first.query_biases or [], second.query_biases or [], strict=True)
    return Conditions(
        between(first.prompt, second.prompt),
        first.pose_features and [x.expand(len(weights), -1, -1, -1) for x in first.pose_features],
        [between(a, b) for a, b in pairs] or None,
    )


@torch.no_grad()
def in_poses(model: CFLD, source_images: Tensor, keypoints: np.ndarray, batch: int) -> Iterator[Conditions]:
    """One source (1, 3, 256, 256) in many poses (n, 18, 2): Conditions of batch rows or fewer at a time. The source is
    encoded once."""
    source = model.condition(source_images, pose_tensor(model, keypoints[:1]))
    for first in range(0, len(keypoints), batch):
        poses = pose_tensor(model, keypoints[first : first + batch])
        rows = len(poses), -1, -1
        biases = source.query_biases and [x.expand(rows) for x in source.query_biases]
        yield Conditions(source.prompt.expand(rows), model.pose_adapter(poses), biases)


def paint_frames(model: CFLD, vae: VAE, parts: Iterable[Conditions], seed: int, **how: Any) -> Iterator[Tensor]:
    """Paint frames that belong together: all from the same noise, at every step, so that they differ by their
    conditions alone. parts: Conditions, a batch at a time; how: what denoise takes -> images (b, 3, 512, 512), a batch
    at a time as well."""
    for conditions in parts:
        noise = [torch.Generator().manual_seed(seed) for _ in conditions.prompt]
        yield denoise(model, vae, Scheduler(model.config.scheduler), conditions, generator=noise, **how)
