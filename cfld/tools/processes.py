"""The processes of a torchrun."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from cfld.tools.cli import pick_device


class Processes:
    """This process among those that torchrun has started, or alone."""

    def __init__(self, rank: int = 0, world: int = 1):
        self.rank, self.world = rank, world

    @classmethod
    def join(cls) -> "Processes":
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return cls()
        dist.init_process_group("gloo", timeout=timedelta(days=7))  # one may wait for the slowest for long
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, count: int) -> range:
        """The numbers below a count that are this process's."""
        return range(self.rank, count, self.world)

    def wait(self) -> None:
        """Wait for the others."""
        if dist.is_initialized():
            dist.barrier()

    def decide(self, answer: bool) -> bool:
        """The first one's answer, for all."""
        if not dist.is_initialized():
            return answer
        decided = torch.tensor(answer)
        dist.broadcast(decided, 0)
        return bool(decided)

    def device(self, name: str | None) -> torch.device:
        device = pick_device(name)
        several = device == torch.device("cuda") and self.world > 1
        return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if several else device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def say(self, text: str) -> None:
        if self.first:
            print(text, flush=True)
