"""Batches of pairs, and which pairs make which step.

Letters in shapes: B pairs, S side of a source image, H side of an image for the VAE."""

import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


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


def collate(pairs: list[Pair]) -> Batch:
    """B items of a data set of pairs -> a Batch."""
    source_images, sources, targets, source_keypoints, target_keypoints, *attributes = (
        torch.stack(x) for x in zip(*pairs, strict=True)
    )
    images, keypoints = torch.cat([sources, targets]), torch.cat([source_keypoints, target_keypoints])
    return Batch(source_images, images, keypoints, *attributes)


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


def step_batches(dataset: Dataset[Pair], order: StepOrder, workers: int) -> Generator[Batch]:
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
