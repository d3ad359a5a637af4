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
import hashlib
import os
import re
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from cfld import people
from cfld.config import read_config
from cfld.files import (
    PRECISIONS,
    UserError,
    WriteError,
    alone_in,
    check_manifest,
    command,
    command_parser,
    link,
    open_folder,
    orientation,
    pick_device,
    read_image,
    read_object,
    read_safetensors,
    read_text,
    remove_leftovers,
    save_image,
    tensors_hash,
    write_lines,
    write_tensors,
)
from cfld.model import load_vae_alone
from cfld.photo import PHOTO_SUFFIXES, fit, whole
from cfld.pose import joints_on, read_annotations

SPLITS = ("train", "test")


def flat_name(path: Path) -> str:
    """A photo's path below ROOT -> its flattened name: WOMEN/Tees_Tanks/id_00007838/05_7_additional.jpg ->
    fashionWOMENTees_Tanksid0000783805_7additional.jpg."""
    *folders, identity, view = path.parts
    first, *rest = view.split("_")
    return "fashion" + "".join(folders) + identity.replace("_", "") + "_".join([first, "".join(rest)])


def table_path(root: Path, kind: str, split: str) -> Path:
    """The file of pairs or annotations of a split, in either spelling."""
    names = [f"{fashion}-resize-{kind}-{split}.csv" for fashion in ("fasion", "fashion")]
    for name in names:
        if (root / name).is_file():
            return root / name
    raise UserError(f"{root} must hold {names[0]} (or {names[1]}), found neither; is this the data set's folder?")


def read_list(path: Path) -> list[str]:
    """The names in a .lst file, a line each."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def line_of(path: Path, name: str) -> int:
    """The number of the first line of a file that holds a name."""
    return next(number for number, line in enumerate(read_text(path).splitlines(), start=1) if name in line)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """The pairs (from, to) of a file. Raises UserError that names the line."""
    lines = read_text(path).splitlines()
    if not lines or lines[0].strip() != "from,to":
        raise UserError(f"{path}: line 1 must be from,to, found {lines[0][:60] if lines else 'an empty file'}")
    pairs = []
    for number, line in enumerate(lines[1:], start=2):
        if line.strip():
            names = [name.strip() for name in line.split(",")]
            if len(names) != 2:
                raise UserError(f"{path}, line {number}: must have 2 names, found {len(names)}")
            pairs.append((names[0], names[1]))
    return pairs


def prepare(root: Path) -> dict[str, int]:
    """Flatten the tree of photos and check that everything the files name is there.

    Returns counts by name. Raises UserError that names file and line of the first thing that is missing or malformed.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; it must hold MEN/, WOMEN/ and the lists of DeepFashion In-shop")
    tree = root / "img_highres" if (root / "img_highres").is_dir() else root
    photos = {
        flat_name(p.relative_to(tree)): p for sex in ("MEN", "WOMEN") for p in sorted((tree / sex).glob("*/*/*.jpg"))
    }
    counts = {"photos in MEN/ and WOMEN/": len(photos)}
    for split in SPLITS:
        list_path, folder = root / f"{split}.lst", root / f"{split}_highres"
        annotation_path, pairs_path = table_path(root, "annotation", split), table_path(root, "pairs", split)
        names, annotations, pairs = read_list(list_path), read_annotations(annotation_path), read_pairs(pairs_path)
        named = {name: pairs_path for pair in pairs for name in pair}
        named |= dict.fromkeys(annotations, annotation_path) | dict.fromkeys(names, list_path)
        for name, path in tqdm(named.items(), desc=f"{split} photos", unit="photo"):
            if not (folder / name).is_file():
                if name not in photos:
                    where = f"{path}, line {line_of(path, name)}"
                    raise UserError(f"{where}: {name} must be in {folder} or in {tree}/MEN or /WOMEN, and is not")
                link(photos[name], folder / name)
        for name in (name for pair in pairs for name in pair if name not in annotations):
            where = f"{pairs_path}, line {line_of(pairs_path, name)}"
            raise UserError(f"{where}: {name} must have a row in {annotation_path.name}, and has none")
        counts[f"{split} photos"] = len(names)
        counts[f"{split} photos without annotation"] = len(set(names) - annotations.keys())
        counts[f"{split} pairs"] = len(pairs)
    return counts


# Photos of one's own. ------------------------------------------------------------------------------------------------


def own_photo(path: Path, target: Path, min_confidence: float) -> np.ndarray:
    """Put a photo where training looks for it, upright and cut as cfld.photo.fit says -> its keypoints (18, 2), of the
    .json or .npy file beside it. Raises UserError."""
    file = next((p for p in (path.with_suffix(".json"), path.with_suffix(".npy")) if p.is_file()), None)
    if file is None:
        raise UserError(f"{path}: must have a file of joints beside it, {path.stem}.json or .npy")
    photo = read_image(path, upright=True)
    joints, size = joints_on(photo, str(file), min_confidence=min_confidence), (photo.height, photo.width)
    crop = fit(size, joints)
    with Image.open(path) as stored:
        turned = orientation(stored) != 1
    if turned or crop != whole(size):
        save_image(target, crop.cut(photo), quality=95)
    else:
        link(path, target)
    return crop.to_frame(joints)


def make_pairs(root: Path, test_share: float, min_confidence: float) -> dict[str, int]:
    """Make of root/PERSON/photo.jpg, with joints in root/PERSON/photo.json or .npy, what prepare() makes of
    DeepFashion: lists, all ordered pairs of a person's photos, annotations. The last people by name are the test split.

    A photo without usable joints is named and left out. Returns counts by name. Raises UserError if nothing is left,
    and if the lists are there already.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; it must hold a folder of photos a person")
    if not 0 <= test_share < 1:
        raise UserError(f"--test-share must be within 0 .. 1, below 1, found {test_share}")
    folders = [root / f"{split}_highres" for split in SPLITS]
    if (root / "train.lst").exists():
        raise UserError(
            f"{root}/train.lst already exists: to make the lists anew, remove the .lst and .csv files, train_highres "
            f"and test_highres, if this command made them"
        )
    people_photos = {
        folder: [p for p in sorted(folder.iterdir()) if p.suffix.lower() in PHOTO_SUFFIXES]
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder not in folders and not folder.name.startswith(".")
    }
    people_photos = {folder: photos for folder, photos in people_photos.items() if photos}
    tested = round(len(people_photos) * test_share) or int(test_share > 0 and len(people_photos) > 1)
    counts = {"people": len(people_photos), "photos left out": 0}
    annotations: dict[str, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
    pairs: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    first_reason = ""
    for number, (folder, photos) in enumerate(tqdm(people_photos.items(), desc=str(root), unit="person")):
        split = "test" if number >= len(people_photos) - tested else "train"
        names = []
        for path in photos:
            name = f"{folder.name}--{path.name}"
            name.encode()  # before the work: lists are UTF-8
            if set(name) & set(",:#\n\r") or name in annotations[split]:
                raise UserError(f"{path}: names must be unique and hold none of , : # and line ends: rename it")
            try:
                annotations[split][name] = own_photo(path, root / f"{split}_highres" / name, min_confidence)
                names.append(name)
            except WriteError:
                raise
            except UserError as error:
                counts["photos left out"] += 1
                first_reason = first_reason or str(error)
                tqdm.write(f"left out: {error}")
        pairs[split] += permutations(names, 2)
    if not pairs["train"]:
        raise UserError(
            f"{root} must hold a folder a person with two photos or more, each with its joints, and found none for "
            f"training in {len(people_photos)} folders; the first that was left out: {first_reason or 'none'}"
        )
    if tested and not pairs["test"]:
        raise UserError(
            f"{root}: the last {tested} people, the test split, must have two photos with joints, and have not; "
            f"give --test-share 0, or another share"
        )
    for split in SPLITS if tested else SPLITS[:1]:
        rows = [
            f"{name}: {joints[:, 0].round(2).tolist()}: {joints[:, 1].round(2).tolist()}"
            for name, joints in annotations[split].items()
        ]
        write_lines(root / f"fasion-resize-annotation-{split}.csv", ["name:keypoints_y:keypoints_x", *rows])
        write_lines(root / f"fasion-resize-pairs-{split}.csv", ["from,to", *map(",".join, pairs[split])])
        write_lines(root / f"{split}.lst", annotations[split])
        counts |= {f"{split} photos": len(rows), f"{split} pairs": len(pairs[split])}
    return counts


def to_square(photo: Image.Image, size: int) -> Tensor:
    """A photo stretched to a square by pillow's bicubic filter -> (3, size, size) uint8."""
    square = photo.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def to_range(images: Tensor) -> Tensor:
    """uint8 images in [0, 255] -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


@dataclass(frozen=True)
class Batch:
    """B pairs as 2B rows: first every source from itself (Eq. 5), then every target from its source (Eq. 3)."""

    source_images: Tensor  # (B, 3, S, S) uint8, for the source encoder
    images: Tensor  # for the VAE, sources, then targets: (2B, 3, H, H) uint8, or from a cache (2B, 2C, h, w) moments
    keypoints: Tensor  # (2B, 18, 2) as (y, x) in the 256x176 frame: of the sources, then of the targets
    attributes: Tensor | None = None  # (B, A), for --stage source and base: cfld.people.attribute_vector

    def __len__(self) -> int:
        return len(self.source_images)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with every tensor changed."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{name: change(x) for name, x in tensors.items() if x is not None})

    def to(self, device: str | torch.device) -> "Batch":
        """The batch on a device."""
        return self.each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which copies to a GPU do not wait."""
        return self.each(Tensor.pin_memory)

    def split(self, parts: int) -> Iterator["Batch"]:
        """Cut B pairs into equal parts, in order."""
        sources, targets = self.images.chunk(2)
        source_keypoints, target_keypoints = self.keypoints.chunk(2)
        columns = [self.source_images, sources, targets, source_keypoints, target_keypoints]
        columns += [] if self.attributes is None else [self.attributes]
        for s, x_s, x_g, k_s, k_g, *attributes in zip(*(column.chunk(parts) for column in columns), strict=True):
            yield Batch(s, torch.cat([x_s, x_g]), torch.cat([k_s, k_g]), *attributes)


Pair = tuple[Tensor, ...]


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


def collate(pairs: list[Pair]) -> Batch:
    """B items of a data set of pairs -> a Batch."""
    source_images, sources, targets, source_keypoints, target_keypoints, *attributes = (
        torch.stack(x) for x in zip(*pairs, strict=True)
    )
    images, keypoints = torch.cat([sources, targets]), torch.cat([source_keypoints, target_keypoints])
    return Batch(source_images, images, keypoints, *attributes)


# The cache. ----------------------------------------------------------------------------------------------------------

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
    vae = load_vae_alone(model).requires_grad_(False).to(device)
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


# The order of training. ----------------------------------------------------------------------------------------------


def seeded(*key: int) -> torch.Generator:
    """A generator on the CPU whose stream depends on all the numbers of its key and nothing else."""
    state = np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0]  # (0, 3) is not (0, 3, 0)
    return torch.Generator().manual_seed(int(state) >> 1)


class StepOrder(Sampler[list[int]]):
    """Which pairs make step 0, 1, 2, ...: a new permutation an epoch, its last partial batch dropped. A step's pairs
    are a function of (seed, step), so a run can begin anywhere; a process among several takes some places of each."""

    def __init__(self, pairs: int, batch: int, seed: int, start: int, stop: int, places: range | None = None):
        self.pairs, self.batch, self.seed, self.start, self.stop = pairs, batch, seed, start, stop
        self.places = range(batch) if places is None else places

    def __iter__(self) -> Iterator[list[int]]:
        steps_an_epoch = self.pairs // self.batch
        permutation, current = torch.empty(0), -1
        for step in range(self.start, self.stop):
            epoch, place = divmod(step, steps_an_epoch)
            if epoch != current:
                permutation, current = torch.randperm(self.pairs, generator=seeded(self.seed, epoch)), epoch
            yield permutation[[place * self.batch + i for i in self.places]].tolist()

    def __len__(self) -> int:
        return self.stop - self.start


def ignore_signals(worker: int) -> None:
    """A worker stops when its parent does: a signal to all processes must not take the photos from one that saves."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def step_batches(dataset: Pairs | DescribedPairs, order: StepOrder, workers: int) -> Generator[Batch]:
    """One Batch a step of the order. Closing the iterator ends its workers, and so does an error."""
    loader: DataLoader[Pair] = DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        pin_memory=torch.cuda.is_available(),
    )
    batches = iter(loader)
    try:
        yield from batches
    finally:
        if workers:  # an error's traceback keeps them alive, and SIGTERM, by which Python ends them at exit, does not
            batches._shutdown_workers()  # type: ignore[attr-defined]


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.data", __doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="prepare | pairs | cache")
    sub = commands.add_parser("prepare", help="flatten and check a folder in DeepFashion's layout")
    sub.add_argument("root", metavar="ROOT", type=Path)
    sub = commands.add_parser("pairs", help="make lists, pairs and annotations of photos in a folder a person")
    sub.add_argument("root", metavar="ROOT", type=Path)
    sub.add_argument("--test-share", type=float, default=0.1, help="share of the people, the last, that are held out")
    sub.add_argument("--min-confidence", type=float, default=0.0, help="joints of a lower score are missing")
    sub = commands.add_parser("cache", help="encode every training photo once; continues what was interrupted")
    sub.add_argument("root", metavar="ROOT", type=Path)
    sub.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder with config.json and the VAE")
    sub.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: ROOT/cache)")
    sub.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16", help="of products (default: bf16)")
    sub.add_argument("--device", help="cuda, cpu, ... (default: the best there is)")
    options = parser.parse_args(argv)
    if options.command == "cache":
        out = options.out or options.root / "cache"
        write_cache(options.root, options.model, out, pick_device(options.device), PRECISIONS[options.precision])
        return
    if options.command == "pairs":
        counts = make_pairs(options.root, options.test_share, options.min_confidence)
    else:
        counts = prepare(options.root)
    width = max(len(f"{count:,}") for count in counts.values())
    for name, count in counts.items():
        print(f"{count:{width},} {name}")


if __name__ == "__main__":
    sys.exit(main())
