"""Encode the photos of a training once, into a cache."""

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


def write_cache(root: Path, model: Path, out: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Encode every photo of the training pairs once. What an interrupted run has written is kept."""
    config = read_config(model / "config.json")
    pairs = FashionPairs(root, "train", config.image_size, config.source_size)
    expected = manifest(pairs, model / "vae.safetensors")
    open_folder(out / "manifest.json", expected, ANOTHER)
    with alone_in(out):
        remove_leftovers(out)
        encode_photos(pairs, model, out, device, dtype)


def encode_photos(pairs: FashionPairs, model: Path, out: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Write the files that a cache has not yet."""
    vae = load_vae(model).requires_grad_(False).to(device)
    paths = shards(out, len(pairs.photos))
    done = sum(path.is_file() for path in paths) * SHARD
    bar = tqdm(total=len(pairs.photos), initial=min(done, len(pairs.photos)), unit="photo", desc=str(out))
    with bar:
        for number, path in enumerate(paths):
            if path.is_file():
                continue
            names = pairs.photos[number * SHARD : (number + 1) * SHARD]
            source_images: list[Tensor] = []
            moments: list[Tensor] = []
            for first in range(0, len(names), 8):
                small, large = zip(*(pairs.photo(name) for name in names[first : first + 8]), strict=True)
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    mean, logvar = vae.moments(to_range(torch.stack(large).to(device)))
                source_images += small
                moments.append(torch.cat([mean, logvar], dim=1).half().cpu())
                bar.update(len(small))
            write_tensors(path, {"source_images": torch.stack(source_images), "moments": torch.cat(moments)})


def values_hash(path: Path) -> str:
    """A sha256 of a safetensors file's names and values, which no precision that holds them changes."""
    return tensors_hash(sorted(read_safetensors(path, torch.float32)[0].items()))


def manifest(pairs: FashionPairs, vae_file: Path) -> dict[str, Any]:
    """What a cache depends on: the VAE, the photos, told by their names and lengths in bytes, and the sizes."""
    if not vae_file.is_file():
        raise UserError(f"{vae_file}: no such file; --model must be a folder with a VAE")
    photos = "\n".join(f"{name} {pairs.sizes[name]}" for name in pairs.photos)
    return {
        "vae": values_hash(vae_file),
        "photos": len(pairs.photos),
        "sum": hashlib.sha256(photos.encode()).hexdigest(),
        "image_size": pairs.image_size,
        "source_size": pairs.source_size,
    }
