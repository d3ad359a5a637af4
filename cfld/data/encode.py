"""Encode every training photo once, into a cache: the work of python -m cfld.data cache."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cfld.baselines import read_config
from cfld.data.cache import ANOTHER, SHARD, shards
from cfld.data.pairs import FashionPairs
from cfld.folder import load_vae
from cfld.photos.pixels import to_range
from cfld.tools.cli import UserError
from cfld.tools.files import alone_in, open_folder, remove_leftovers
from cfld.tools.tensors import read_safetensors, tensors_hash, write_tensors
from cfld.vae import VAE

BATCH = 8  # photos that the VAE encodes at once


def write_cache(root: Path, model: Path, out: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Encode every photo of the training pairs. What an interrupted run has written is kept.

    root: a prepared folder
    model: a folder with config.json and vae.safetensors
    dtype: of the VAE's products; the moments are stored in float16
    """
    config = read_config(model / "config.json")
    pairs = FashionPairs(root, "train", config.image_size, config.source_size)
    open_folder(out / "manifest.json", manifest(pairs, model / "vae.safetensors"), ANOTHER)
    with alone_in(out):
        remove_leftovers(out)
        vae = load_vae(model).requires_grad_(False).to(device)
        paths = shards(out, len(pairs.photos))
        groups = [pairs.photos[first : first + SHARD] for first in range(0, len(pairs.photos), SHARD)]
        with tqdm(total=len(pairs.photos), unit="photo", desc=str(out)) as bar:
            for path, names in zip(paths, groups, strict=True):
                if path.is_file():
                    bar.update(len(names))
                else:
                    write_tensors(path, encode_photos(pairs, names, vae, device, dtype, bar))


def encode_photos(
    pairs: FashionPairs, names: list[str], vae: VAE, device: torch.device, dtype: torch.dtype, bar: tqdm
) -> dict[str, Tensor]:
    """n photos -> source_images (n, 3, S, S) uint8 and moments (n, 2C, h, w) float16."""
    source_images: list[Tensor] = []
    moments: list[Tensor] = []
    for first in range(0, len(names), BATCH):
        small, large = zip(*(pairs.views(name) for name in names[first : first + BATCH]), strict=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            mean, logvar = vae.moments(to_range(torch.stack(large).to(device)))
        source_images += small
        moments.append(torch.cat([mean, logvar], dim=1).half().cpu())
        bar.update(len(small))
    return {"source_images": torch.stack(source_images), "moments": torch.cat(moments)}


def manifest(pairs: FashionPairs, vae_file: Path) -> dict[str, Any]:
    """What a cache depends on: the VAE's values, in whatever dtype they are stored; the photos, by name and length in
    bytes; and the sizes. Raises UserError if there is no VAE."""
    if not vae_file.is_file():
        raise UserError(f"{vae_file}: no such file; --model must be a folder with a VAE")
    vae = sorted(read_safetensors(vae_file, torch.float32)[0].items())
    photos = "\n".join(f"{name} {size}" for name, size in zip(pairs.photos, pairs.lists.sizes, strict=True))
    return {
        "vae": tensors_hash(vae),
        "photos": len(pairs.photos),
        "sum": hashlib.sha256(photos.encode()).hexdigest(),
        "image_size": pairs.image_size,
        "source_size": pairs.source_size,
    }
