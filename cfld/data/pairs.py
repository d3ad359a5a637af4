"""Photos in DeepFashion In-shop's layout: preparing a folder, and the pairs that train and test the method.

    python -m cfld.data prepare ROOT             flattens ROOT/MEN and ROOT/WOMEN, checks lists, pairs, annotations
    python -m cfld.data pairs ROOT               makes the same of your own photos in a folder a person
    python -m cfld.data cache ROOT --model DIR   encodes every training photo once, so that training need not

Wherever a folder is asked for, people:2000x4 stands for 2,000 drawn people in 4 poses each, made when they are
needed (people:2000x4@500: from seed 500 on).

ROOT holds train.lst, test.lst, fasion-resize-pairs-{train,test}.csv and fasion-resize-annotation-{train,test}.csv (the
misspelling is in the public files; fashion- is read as well), and after preparing train_highres/ and test_highres/.

Letters in shapes: B pairs, S side of a source image, H side of an image for the VAE.
"""

import functools
import os
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
from cfld.data.deepfashion import read_pairs, table_path
from cfld.photos.keypoints import read_annotations
from cfld.photos.pixels import to_square
from cfld.tools.cli import UserError
from cfld.tools.files import read_object
from cfld.tools.pictures import read_image


class FashionPairs(Dataset[Pair]):
    """The pairs of a split of a prepared folder.

    Item i is (source image (3, S, S), source (3, H, H), target (3, H, H), all uint8, and the keypoints (18, 2) of
    source and target); with a cache, source and target are moments (2C, h, w). Raises UserError if a photo or an
    annotation of a pair is missing.
    """

    def __init__(self, root: str | Path, split: str, image_size: int, source_size: int):
        self.root, self.split, self.image_size, self.source_size = Path(root), split, image_size, source_size
        self.folder = self.root / f"{split}_highres"
        self.cache: Cache | None = None
        self.pairs = read_pairs(table_path(self.root, "pairs", split))
        annotations = read_annotations(table_path(self.root, "annotation", split))
        self.photos = sorted({name for pair in self.pairs for name in pair})
        for name in self.photos:
            if name not in annotations:
                raise UserError(f"{self.root}: {name} is in a {split} pair but has no annotation")
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder; python -m cfld.data prepare {self.root} makes it")
        self.sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self.folder)}  # in bytes, by name
        if missing := [name for name in self.photos if name not in self.sizes]:
            raise UserError(
                f"{self.folder}: {len(missing)} photos of {split} pairs are missing (first: {missing[0]}); "
                f"run python -m cfld.data prepare {self.root}"
            )
        self.keypoints = {name: torch.from_numpy(annotations[name]) for name in self.photos}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        source, target = self.pairs[index]
        source_image, source_photo = self.photo(source)
        return source_image, source_photo, self.photo(target)[1], self.keypoints[source], self.keypoints[target]

    def person(self, index: int) -> int:
        """The seed of the drawn person whom a pair shows."""
        name = self.pairs[index][0]
        if not (self.root / "people.json").is_file() or not (found := re.search(r"id(\d{8})01_", name)):
            raise UserError(
                f"{self.root}: must be a folder that python -m cfld.people made, for --stage source and base"
            )
        return int(found[1])

    def photo(self, name: str) -> tuple[Tensor, Tensor]:
        """A photo for the source encoder and for the VAE: (3, S, S) and (3, H, H) uint8; or from the cache."""
        if self.cache is not None:
            return self.cache[name]
        photo = read_image(self.folder / name)
        return to_square(photo, self.source_size), to_square(photo, self.image_size)


class PeoplePairs(Dataset[Pair]):
    """All ordered pairs of photos of drawn people, each made when it is asked for. Items are as FashionPairs'.

    Raises UserError for seeds that are kept for measures.
    """

    def __init__(self, identities: int, poses: int, seed: int, image_size: int, source_size: int):
        if identities < 1 or poses < 2:
            raise UserError(f"people must be 1 or more in 2 or more poses, found people:{identities}x{poses}")
        refuse_measured(range(seed, seed + identities))
        self.seed, self.image_size, self.source_size = seed, image_size, source_size
        self.identities, self.orders = identities, list(permutations(range(poses), 2))

    def __len__(self) -> int:
        return self.identities * len(self.orders)

    def person(self, index: int) -> int:
        """The seed of the person whom a pair shows."""
        return self.seed + index // len(self.orders)

    def __getitem__(self, index: int) -> Pair:
        order = self.orders[index % len(self.orders)]
        source, target = (people.draw(self.person(index), i) for i in order)
        photo = Image.fromarray(source.image)
        return (
            to_square(photo, self.source_size),
            to_square(photo, self.image_size),
            to_square(Image.fromarray(target.image), self.image_size),
            torch.from_numpy(source.annotation.astype(np.float32)),
            torch.from_numpy(target.annotation.astype(np.float32)),
        )


@functools.cache
def attributes_of(seed: int) -> Tensor:
    """The attributes (A,) of a drawn person."""
    return torch.from_numpy(people.attribute_vector(people.identity(seed)))


class DescribedPairs(Dataset[Pair]):
    """Pairs of drawn people, and behind each what a prompt could say about the person: (A,) attributes."""

    def __init__(self, pairs: FashionPairs | PeoplePairs):
        self.pairs = pairs
        pairs.person(0)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return (*self.pairs[index], attributes_of(self.pairs.person(index)))


Pairs = FashionPairs | PeoplePairs


def open_pairs(place: str | Path, split: str, image_size: int, source_size: int) -> Pairs:
    """The pairs of a prepared folder, or of people:NxP[@SEED]; the test split of those is the eight people after."""
    if named := re.fullmatch(r"people:(\d+)x(\d+)(?:@(\d+))?", str(place)):
        identities, poses, seed = (int(number or 0) for number in named.groups())
        if split == "test":
            identities, seed = 8, seed + identities
        return PeoplePairs(identities, poses, seed, image_size, source_size)
    made_by = Path(place) / "people.json"
    if split == "train" and made_by.is_file():
        plan = read_object(made_by, "seed", "identities")
        refuse_measured(range(plan["seed"], plan["seed"] + plan["identities"]))
    return FashionPairs(place, split, image_size, source_size)


def refuse_measured(seeds: range) -> None:
    """Raise UserError if people of these seeds must not be trained on."""
    try:
        people.refuse_seeds(seeds[0], seeds[-1])
    except ValueError as error:
        raise UserError(str(error)) from None
