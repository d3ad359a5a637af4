"""A cache of encoded photos: what python -m cfld.data cache has written.

manifest.json              what the cache depends on: the VAE, the photos, the sizes
shard_00000.safetensors    source_images (n, 3, S, S) uint8 and moments (n, 2C, h, w) float16 of SHARD photos
"""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from cfld.tools.cli import UserError
from cfld.tools.files import check_manifest

SHARD = 1024  # photos per file
ANOTHER = "make another cache with python -m cfld.data cache"


class Cache:
    """The source images and moments of photos, read one at a time.

    folder: where write_cache has written them
    expected: the manifest that the folder must have, see cfld.data.encode.manifest
    photos: the names of the photos, in the cache's order

    Raises UserError if the cache is of another VAE or of other photos, or if a file is missing.
    """

    def __init__(self, folder: str | Path, expected: dict[str, Any], photos: list[str]):
        self.index = {name: place for place, name in enumerate(photos)}
        self.paths = shards(Path(folder), len(photos))
        manifest = Path(folder) / "manifest.json"
        if not manifest.is_file():
            raise UserError(f"{folder}: holds no cache; python -m cfld.data cache makes one")
        check_manifest(manifest, expected, ANOTHER)
        if missing := [path for path in self.paths if not path.is_file()]:
            raise UserError(f"{folder} is not whole: {missing[0].name} is missing; run python -m cfld.data cache again")
        self.files: dict[int, Any] = {}  # each worker opens its own, when it needs them

    def source_image(self, name: str) -> Tensor:
        """A photo for the source encoder: (3, S, S) uint8."""
        return self.read("source_images", name)

    def moments(self, name: str) -> Tensor:
        """The VAE's mean and log-variance of a photo: (2C, h, w) float16."""
        return self.read("moments", name)

    def read(self, tensor: str, name: str) -> Tensor:
        shard, place = divmod(self.index[name], SHARD)
        if shard not in self.files:
            self.files[shard] = safe_open(self.paths[shard], framework="pt")
        return self.files[shard].get_slice(tensor)[place]


def shards(folder: Path, photos: int) -> list[Path]:
    """The files of a cache of so many photos."""
    return [folder / f"shard_{i:05d}.safetensors" for i in range(-(-photos // SHARD))]
