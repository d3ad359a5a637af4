"""The sample grid of a model that generates targets from their sources."""

from torch import Generator, Tensor

from cfld.data.batch import Batch
from cfld.model import CFLD
from cfld.photos.pixels import to_range
from cfld.pose import pose_maps
from cfld.sampling import SamplingConfig, sample
from cfld.vae import VAE


def sample_columns(
    model: CFLD, vae: VAE, batch: Batch, config: SamplingConfig, generators: list[Generator]
) -> list[Tensor]:
    """Columns of a sample grid: source, pose, target, result, each (B, 3, H, H) in [-1, 1]."""
    assert batch.images is not None
    sources, truths = to_range(batch.images).chunk(2)
    poses = pose_maps(batch.keypoints.chunk(2)[1], model.config.adapter.pose_size)
    results = sample(model, vae, to_range(batch.source_images), poses, config, generator=generators)
    return [sources, poses[:, :3] * 2 - 1, truths, results]
