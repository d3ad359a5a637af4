"""The pairs that train and test the method: of a prepared folder, or of synthetic people.

Letters in shapes: S side of an image for the source encoder, H side of an image for the VAE, C channels and h x w size
of its latents, A attributes.
"""

import functools
import hashlib
import re
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cfld import people
from cfld.data.batch import Pair
from cfld.data.cache import Cache
from cfld.data.deepfashion import read_split
from cfld.photos.pixels import to_square
from cfld.pose import FRAME
from cfld.tools.cli import UserError
from cfld.tools.files import read_object
from cfld.tools.pictures import read_image


class FashionPairs(Dataset[Pair]):
    """The pairs of a split of a prepared folder.

    image_size, source_size: H and S of the items
    cache: set it to take the source images and moments from there instead of reading the photos

    Raises UserError if a list is malformed, or a photo or an annotation of a pair is missing.
    """

    def __init__(self, root: str | Path, split: str, image_size: int, source_size: int):
        self.root, self.image_size, self.source_size = Path(root), image_size, source_size
        self.lists = read_split(self.root, split)
        self.pairs, self.photos, self.frame = self.lists.pairs, self.lists.photos, self.lists.frame
        self.cache: Cache | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def listing(self) -> str:
        """All pairs in their order, as text: what the pairs of a step depend on."""
        return "\n".join(map(",".join, self.pairs))

    def __getitem__(self, number: int) -> Pair:
        source, target = self.pairs[number]
        if self.cache is not None:
            images = self.cache.source_image(source), self.cache.moments(source), self.cache.moments(target)
        else:
            images = (*self.views(source), to_square(self.read(target), self.image_size))
        keypoints = (torch.from_numpy(self.lists.keypoints_of(name)) for name in (source, target))
        return Pair(*images, *keypoints)

    def read(self, name: str) -> Image.Image:
        """A photo as it is in the folder."""
        return read_image(self.lists.folder / name)

    def views(self, name: str) -> tuple[Tensor, Tensor]:
        """A photo for the source encoder and for the VAE: (3, S, S) and (3, H, H), uint8."""
        photo = self.read(name)
        return to_square(photo, self.source_size), to_square(photo, self.image_size)

    def person(self, number: int) -> int:
        """The seed of the synthetic person whom a pair shows. Raises UserError if the folder shows no such people."""
        name = self.pairs[number][0]
        if not (self.root / "people.json").is_file() or not (found := re.search(r"id(\d{8})01_", name)):
            raise UserError(
                f"{self.root}: must be a folder that python -m cfld.people made, for --stage source and base"
            )
        return int(found[1])


class PeoplePairs(Dataset[Pair]):
    """All ordered pairs of photos of synthetic people, rendered when they are asked for.

    identities: number of people, from this seed on
    poses: photos of each
    image_size, source_size: H and S of the items

    Raises UserError for seeds that are kept for measuring.
    """

    def __init__(self, identities: int, poses: int, seed: int, image_size: int, source_size: int):
        if identities < 1 or poses < 2:
            raise UserError(f"people must be 1 or more in 2 or more poses, found people:{identities}x{poses}")
        refuse_measured(range(seed, seed + identities))
        self.seed, self.image_size, self.source_size = seed, image_size, source_size
        self.identities, self.orders, self.frame = identities, list(permutations(range(poses), 2)), FRAME

    def __len__(self) -> int:
        return self.identities * len(self.orders)

    @property
    def listing(self) -> str:
        """What all pairs and their order follow from."""
        return f"{self.seed} {self.identities} {self.orders}"

    def __getitem__(self, number: int) -> Pair:
        order = self.orders[number % len(self.orders)]
        source, target = (people.draw(self.person(number), pose) for pose in order)
        photo = Image.fromarray(source.image)
        return Pair(
            to_square(photo, self.source_size),
            to_square(photo, self.image_size),
            to_square(Image.fromarray(target.image), self.image_size),
            torch.from_numpy(source.annotation.astype(np.float32)),
            torch.from_numpy(target.annotation.astype(np.float32)),
        )

    def person(self, number: int) -> int:
        """The seed of the person whom a pair shows."""
        return self.seed + number // len(self.orders)


Pairs = FashionPairs | PeoplePairs


class DescribedPairs(Dataset[Pair]):
    """Pairs of synthetic people with their attributes, what a prompt could say about the person.

    Raises UserError if the pairs show no synthetic people.
    """

    def __init__(self, pairs: Pairs):
        self.pairs, self.frame = pairs, pairs.frame
        pairs.person(0)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Pair:
        return self.pairs[number]._replace(attributes=attributes_of(self.pairs.person(number)))


@functools.cache
def attributes_of(seed: int) -> Tensor:
    """The attributes (A,) of a synthetic person."""
    return torch.from_numpy(people.attribute_vector(people.identity(seed)))


def open_pairs(place: str | Path, split: str, image_size: int, source_size: int) -> Pairs:
    """The pairs of a prepared folder, or of "people:NxP[@SEED]": N synthetic people in P poses each.

    The test split of the latter is the eight people that follow. Raises UserError.
    """
    if named := re.fullmatch(r"people:(\d+)x(\d+)(?:@(\d+))?", str(place)):
        identities, poses, seed = (int(number or 0) for number in named.groups())
        if split == "test":
            identities, seed = 8, seed + identities
        return PeoplePairs(identities, poses, seed, image_size, source_size)
    made_by = Path(place) / "people.json"
    if split == "train" and made_by.is_file():
        plan = read_object(made_by, "seed", "identities")
        seed, identities = plan["seed"], plan["identities"]
        if not (type(seed) is type(identities) is int and seed >= 0 and identities >= 1):
            raise UserError(
                f"{made_by} must have a seed of 0 or more and 1 or more identities, found {str(seed)[:40]!r} and "
                f"{str(identities)[:40]!r}: make the folder again with python -m cfld.people"
            )
        refuse_measured(range(seed, seed + identities))
    return FashionPairs(place, split, image_size, source_size)


def listing_sum(pairs: Pairs) -> str:
    """The number of pairs, and a hash of which they are and of their order."""
    return f"{len(pairs)} pairs of sha256 {hashlib.sha256(pairs.listing.encode()).hexdigest()[:16]}"


def refuse_common_photos(train: Pairs, test: Pairs) -> None:
    """Raise UserError if a photo is in pairs of both splits, as where one of them is of an earlier list."""
    if not (isinstance(train, FashionPairs) and isinstance(test, FashionPairs)):
        return
    if common := sorted(set(train.photos) & set(test.photos)):
        raise UserError(
            f"{train.root}: no photo may be in both splits, found {len(common)} of {len(test.photos)} test photos in "
            f"training pairs, too (first: {common[0]}): make both lists again, or remove those of the test split"
        )


def refuse_measured(seeds: range) -> None:
    """Raise UserError if people of these seeds are kept for measuring."""
    try:
        people.refuse_seeds(seeds[0], seeds[-1])
    except ValueError as error:
        raise UserError(str(error)) from None
