"""Appearance editing, interpolation and sequences with a trained model (Sec. 4.6, Fig. 6).

Letters in shapes: B samples, n frames, h x w positions.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cfld.model import CFLD, Conditions
from cfld.photos.feather import ramp
from cfld.sampling import PAPER, Generators, Reference, SamplingConfig, denoise, pose_tensor
from cfld.vae import VAE


def edit(
    model: CFLD,
    vae: VAE,
    source_images: Tensor,
    reference_images: Tensor,
    masks: Tensor,
    poses: Tensor,
    config: SamplingConfig = PAPER,
    *,
    generator: Generators = None,
    progress: bool | None = False,
    feather: float = 0,
) -> Tensor:
    """Style transfer (Fig. 6a): generate the source's clothes in a part of the reference.

    source_images (1, 3, 256, 256) in [-1, 1]: whose appearance to generate
    reference_images (1, 3, 512, 512) in [-1, 1], on the model's device: y_ref
    masks (1, 1, h, w) bool, of any size: m, True where to generate. Pixels and latent positions that the mask touches
        are generated as a whole
    poses (1, 21, 256, 256) in [0, 1]: the pose of the person in the reference
    generator, progress: as in cfld.sampling.denoise
    feather: pixels of the image inside the mask's border over which the reference fades into what is generated
    -> images (1, 3, 512, 512) in [-1, 1] in float32: generated inside the mask, the reference itself outside
    """
    place = model.device, model.dtype
    pixels = F.adaptive_max_pool2d(masks.float(), reference_images.shape[-2:])
    with torch.no_grad():
        positions = F.max_pool2d(pixels, vae.config.factor)
        reference = Reference(vae.encode(reference_images.to(*place)).float(), positions > 0)
        conditions = model.condition(source_images.to(*place), poses.to(*place))
    images = denoise(model, vae, conditions, config, generator=generator, reference=reference, progress=progress)
    images, before = images.float(), reference_images.to(images.device).float()
    weights = torch.from_numpy(ramp(pixels[0, 0].cpu().numpy() > 0, feather)).to(images.device)
    return torch.where(weights == 1, images, before + weights * (images - before))


def interpolated(first: Conditions, second: Conditions, weights: Tensor) -> Conditions:
    """Style interpolation (Fig. 6b): prompt and query biases on the line between two sources.

    first, second: of one sample each, in the same pose
    weights (n,): 0 is exactly the first, 1 exactly the second
    -> Conditions of n samples
    """
    return first.lerp(second, weights)


@torch.no_grad()
def in_poses(model: CFLD, source_images: Tensor, keypoints: np.ndarray, batch: int) -> Iterator[Conditions]:
    """One source (1, 3, 256, 256) in [-1, 1] in n poses (n, 18, 2): Conditions of up to batch samples at a time. The
    source is encoded once."""
    source = model.encode_source(source_images)
    for first in range(0, len(keypoints), batch):
        poses = pose_tensor(model, keypoints[first : first + batch])
        yield replace(source.repeat(len(poses)), pose_features=model.pose_adapter(poses))


def generate_frames(
    model: CFLD,
    vae: VAE,
    parts: Iterable[Conditions],
    config: SamplingConfig = PAPER,
    *,
    seed: int = 0,
    progress: bool | None = False,
) -> Iterator[Tensor]:
    """Generate frames that belong together: all from the same noise, at every step, so that only their conditions
    differ.

    parts: Conditions, a batch at a time
    -> images (b, 3, 512, 512) in [-1, 1], a batch at a time as well
    """
    for conditions in parts:
        same = [torch.Generator().manual_seed(seed) for _ in range(len(conditions))]
        yield denoise(model, vae, conditions, config, generator=same, progress=progress)
