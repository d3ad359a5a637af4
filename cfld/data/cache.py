"""A cache of encoded photos, and what it depends on."""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from cfld.tools.cli import UserError
from cfld.tools.files import check_manifest

SHARD = 1024  # photos a file
ANOTHER = "make another cache with python -m cfld.data cache"


class Cache:
    """What write_cache has written: the source image (3, S, S) uint8 and the moments (2C, h, w) float16 of photos.

    Raises UserError if it is of another VAE, of other photos, or not whole.
    """

    def __init__(self, folder: str | Path, expected: dict[str, Any], photos: list[str]):
        self.folder, self.places = Path(folder), {name: i for i, name in enumerate(photos)}
        if not (self.folder / "manifest.json").is_file():
            raise UserError(f"{folder}: holds no cache; python -m cfld.data cache makes one")
        check_manifest(self.folder / "manifest.json", expected, ANOTHER)
        missing = [path for path in shards(self.folder, len(photos)) if not path.is_file()]
        if missing:
            raise UserError(f"{folder} is not whole: {missing[0].name} is missing; run python -m cfld.data cache again")
        self.files: dict[int, Any] = {}  # opened when they are needed, by each worker for itself

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        number, place = divmod(self.places[name], SHARD)
        if number not in self.files:
            self.files[number] = safe_open(shards(self.folder, len(self.places))[number], framework="pt")
        source_images, moments = (self.files[number].get_slice(key)[place] for key in ("source_images", "moments"))
        return source_images, moments


def shards(folder: Path, photos: int) -> list[Path]:
    """The files of a cache of so many photos."""
    return [folder / f"shard_{i:05d}.safetensors" for i in range(-(-photos // SHARD))]
