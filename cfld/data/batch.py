"""Pairs, batches of pairs, and which pairs make which step.

Letters in shapes: B pairs, S side of an image for the source encoder, H side of an image for the VAE, C channels and
h x w size of its latents, A attributes.
"""

import contextlib
import functools
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cfld.tools.cli import UserError
from cfld.tools.workers import end_with_parent


class Pair(NamedTuple):
    """Two photos of one person, and the poses in them. The model learns to generate the target from the source."""

    source_image: Tensor  # (3, S, S) uint8, for the source encoder
    source: Tensor  # for the VAE: (3, H, H) uint8, or from a cache its moments (2C, h, w) float16
    target: Tensor  # the same
    source_keypoints: Tensor  # (18, 2) as (y, x) in the 256x176 frame, -1 = missing
    target_keypoints: Tensor
    attributes: Tensor | None = None  # (A,): cfld.people.attribute_vector, for --stage source and base


@dataclass(frozen=True)
class Batch:
    """B pairs as 2B samples: first every source from itself (Eq. 5), then every target from its source (Eq. 3)."""

    source_images: Tensor  # (B, 3, S, S) uint8, for the source encoder
    images: Tensor | None  # (2B, 3, H, H) uint8, for the VAE: sources, then targets; None where a cache gives moments
    moments: Tensor | None  # (2B, 2C, h, w) float16: the VAE's mean and log-variance of the images, from a cache
    keypoints: Tensor  # (2B, 18, 2) as (y, x) in the 256x176 frame, -1 = missing: of the sources, then of the targets
    attributes: Tensor | None  # (B, A), for --stage source and base
    places: range  # of the B pairs in the global batch

    def __len__(self) -> int:
        return len(self.source_images)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with every tensor changed."""
        tensors = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        changed: dict[str, Any] = {name: change(x) for name, x in tensors.items()}
        return replace(self, **changed)

    def to(self, device: str | torch.device) -> "Batch":
        """The batch on a device."""
        return self.map(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which copies to a GPU do not wait. The DataLoader calls this."""
        return self.map(Tensor.pin_memory)

    def split(self, parts: int) -> Iterator["Batch"]:
        """Cut the B pairs into equal micro-batches, in order."""
        size = -(-len(self) // parts)
        for first in range(0, len(self), size):
            chosen = slice(first, first + size)
            yield Batch(
                self.source_images[chosen],
                None if self.images is None else of_pairs(self.images, chosen),
                None if self.moments is None else of_pairs(self.moments, chosen),
                of_pairs(self.keypoints, chosen),
                None if self.attributes is None else self.attributes[chosen],
                self.places[chosen],
            )


def of_pairs(samples: Tensor, chosen: slice) -> Tensor:
    """samples (2B, ...), sources then targets -> those of the chosen b pairs (2b, ...), in the same order."""
    return samples.unflatten(0, (2, -1))[:, chosen].flatten(0, 1)


def collate(pairs: list[Pair], places: range | None = None) -> Batch:
    """B pairs -> a Batch. places: of the pairs in the global batch; None: the pairs are the whole batch."""
    source_images, sources, targets, source_keypoints, target_keypoints, attributes = zip(*pairs, strict=True)
    samples = torch.stack([*sources, *targets])
    cached = samples.dtype != torch.uint8
    return Batch(
        source_images=torch.stack(source_images),
        images=None if cached else samples,
        moments=samples if cached else None,
        keypoints=torch.stack([*source_keypoints, *target_keypoints]),
        attributes=None if attributes[0] is None else torch.stack(attributes),
        places=range(len(pairs)) if places is None else places,
    )


def seeded(*key: int) -> torch.Generator:
    """A generator on the CPU whose stream depends on all the numbers of its key and nothing else."""
    state = np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0]  # (0, 3) is not (0, 3, 0)
    return torch.Generator().manual_seed(int(state) >> 1)


class StepOrder(Sampler[list[int]]):
    """Which pairs make step start, start + 1, ..., stop - 1.

    Every epoch is a new permutation whose last, partial batch is dropped. A step's pairs are a function of (seed,
    step), so a run can begin anywhere.

    pairs: how many there are
    batch: pairs in the global batch
    places: those of the global batch that this process takes; None: all
    """

    def __init__(self, pairs: int, batch: int, seed: int, start: int, stop: int, places: range | None = None):
        self.pairs, self.batch, self.seed, self.start, self.stop = pairs, batch, seed, start, stop
        self.places = range(batch) if places is None else places

    def __iter__(self) -> Iterator[list[int]]:
        steps_per_epoch = self.pairs // self.batch
        permutation, current = torch.empty(0), -1
        for step in range(self.start, self.stop):
            epoch, step_of_epoch = divmod(step, steps_per_epoch)
            if epoch != current:
                permutation, current = torch.randperm(self.pairs, generator=seeded(self.seed, epoch)), epoch
            yield permutation[[step_of_epoch * self.batch + place for place in self.places]].tolist()

    def __len__(self) -> int:
        return self.stop - self.start


def begin_worker(worker: int) -> None:
    """Let a worker end with its parent and not before: a signal to all processes must not stop the workers of one that
    is saving."""
    end_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


Item = Pair | UserError | OSError


class Readable(Dataset[Item]):
    """A data set that returns errors instead of raising them: a worker would put its traceback into their text."""

    def __init__(self, pairs: Dataset[Pair]):
        self.pairs = pairs

    def __getitem__(self, number: int) -> Item:
        try:
            return self.pairs[number]
        except (UserError, OSError) as error:
            return error


def collate_readable(items: list[Item], places: range) -> Batch | UserError | OSError:
    """The pairs as a Batch, or the first error among them."""
    errors = [item for item in items if not isinstance(item, Pair)]
    return errors[0] if errors else collate([item for item in items if isinstance(item, Pair)], places)


@contextlib.contextmanager
def lost_worker(advice: str) -> Iterator[None]:
    """Turn the RuntimeError that the DataLoader raises, anywhere in the block, when a worker is killed, into a
    UserError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a worker that loads photos was ended from outside, perhaps for lack of memory ({str(error)[:80]}): "
            f"{advice}"
        ) from None


def step_batches(dataset: Dataset[Pair], order: StepOrder, workers: int) -> Generator[Batch]:
    """One Batch for each step of the order. Closing the iterator ends its workers, and so does an error.

    Raises UserError or OSError if an item cannot be read, the same with workers and without.
    """
    loader: DataLoader[Item] = DataLoader(
        Readable(dataset),
        batch_sampler=order,
        collate_fn=functools.partial(collate_readable, places=order.places),
        num_workers=workers,
        worker_init_fn=begin_worker,
        pin_memory=torch.cuda.is_available(),
    )
    batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, OSError | UserError):
                raise batch
            yield batch
    finally:
        if workers:  # an error's traceback keeps them alive, and SIGTERM, by which Python ends them at exit, does not
            batches._shutdown_workers()  # type: ignore[attr-defined]
