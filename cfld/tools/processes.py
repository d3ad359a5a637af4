"""The processes of a command: one alone, or those that torchrun has started.

with join(options.device, timeout=30) as processes:
    for i in processes.share(100): ...          this process's part of the work
    if processes.is_main: ...                   what is done once
"""

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from cfld.tools.cli import PRECISIONS, UserError, pick_device

HEARTBEAT = 5  # seconds between two signs of life


class Processes:
    """This process among all of the command: its rank, their number (world), and its device."""

    def __init__(self, rank: int = 0, world: int = 1, device: torch.device = torch.device("cpu"), timeout: float = 30):
        self.rank, self.world, self.device, self.timeout = rank, world, device, timeout
        self.stop_signal: signal.Signals | None = None  # what this process was sent

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints: the first."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """The numbers below count that are this process's: every world-th from its rank on."""
        return range(self.rank, count, self.world)

    def print(self, text: str) -> None:
        """Print a line, once for all processes, above a progress bar if there is one."""
        if self.is_main:
            tqdm.write(text)

    def autocast(self, precision: str) -> torch.autocast:
        """Matrix products and convolutions in this precision."""
        dtype = PRECISIONS[precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    # Collectives.

    def barrier(self) -> None:
        """Wait until all processes are here. Raises UserError if one does not come within the timeout."""
        if self.world > 1:
            with self.raise_on_lost_process():
                dist.barrier()

    def all_reduce(self, values: Tensor) -> list[float]:
        """The sums of values (n,) over all processes. Waits for the device."""
        if self.world > 1:
            with self.raise_on_lost_process():
                dist.all_reduce(values)
        return values.tolist()

    def broadcast(self, answer: bool) -> bool:
        """The main process's answer, for all."""
        answers = torch.tensor([float(answer and self.is_main)], device=self.device)
        return bool(self.all_reduce(answers)[0])

    def wait_for_work(self) -> None:
        """A barrier after long work of unequal length: wait for as long as the others show signs of life. Raises
        UserError if one of them shows none for the timeout."""
        if self.world == 1:
            return
        with self.raise_on_lost_process():
            self.arrivals += 1
            store, key = self.store, f"arrived/{self.arrivals}"
            store.add(key, 1)
            seen: dict[int, int] = {}
            changed = dict.fromkeys(range(self.world), time.monotonic())
            while store.add(key, 0) < self.world:
                for rank in range(self.world):
                    beats = store.add(f"alive/{rank}", 0)
                    if beats != seen.get(rank):
                        seen[rank], changed[rank] = beats, time.monotonic()
                    elif time.monotonic() - changed[rank] > 60 * self.timeout:
                        raise dist.DistError(f"process {rank} has shown no sign of life for {self.timeout:g} minutes")
                time.sleep(0.2)

    @contextlib.contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Show the others, from a thread, that this process is at work: what wait_for_work waits for."""
        if self.world == 1:
            yield
            return
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        client = dist.TCPStore(address, port, is_master=False, timeout=timedelta(minutes=self.timeout))
        self.store, self.arrivals, ended = dist.PrefixStore("cfld", client), 0, threading.Event()

        def beat() -> None:
            with contextlib.suppress(RuntimeError):  # the store is gone, and with it the others
                while not ended.wait(HEARTBEAT):
                    self.store.add(f"alive/{self.rank}", 1)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextlib.contextmanager
    def raise_on_lost_process(self) -> Iterator[None]:
        """Turn the error of a collective, by which a lost process shows, into a UserError."""
        try:
            yield
        except RuntimeError as error:
            raise self.lost(error) from None

    def lost(self, error: RuntimeError) -> UserError:
        """What to say when another process is gone."""
        return UserError(
            f"process {self.rank} has lost another, or heard nothing of it for {self.timeout:g} minutes (--timeout): "
            "look for the error of that one, then give the command again (cfld.train: with --resume); it was: "
            f"{str(error)[:200]}"
        )

    # Training.

    def distribute(self, module: Any) -> Any:
        """The module, such that its gradients become their means over all processes (DistributedDataParallel)."""
        return module if self.world == 1 else DistributedDataParallel(module, broadcast_buffers=False)

    def sync_gradients(self, module: Any, when: bool) -> contextlib.AbstractContextManager[None]:
        """All-reduce gradients in the backward pass of the last micro-batch only (DDP's no_sync in those before)."""
        return contextlib.nullcontext() if when or self.world == 1 else module.no_sync()

    def mean_and_stop(self, loss: Tensor, norm: Tensor) -> tuple[float, float, signal.Signals | None]:
        """The means of a step's loss and gradient norm over all processes, and the signal to stop with if one of them
        was sent any. All processes get the same. Waits for the device."""
        if self.world == 1:
            loss_value, norm_value = torch.stack([loss, norm.to(loss)]).tolist()
            return loss_value, norm_value, self.stop_signal
        asked = torch.full_like(loss, float(self.stop_signal is not None))
        sums = self.all_reduce(torch.stack([loss, norm.to(loss), asked]))
        return sums[0] / self.world, sums[1] / self.world, (self.stop_signal or signal.SIGTERM) if sums[2] else None

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Let SIGTERM and Ctrl-C ask for a stop, which mean_and_stop() reports. A second Ctrl-C ends a lone process at
        once; torchrun passes on the first one, which a terminal sends to all, so there it means nothing."""

        def note(number: int, frame: FrameType | None) -> None:
            if self.stop_signal == number == signal.SIGINT and self.world == 1:
                raise KeyboardInterrupt
            self.stop_signal = signal.Signals(number)

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def in_processes(count: int, module: str, argv: Sequence[str]) -> int:
    """Run python -m module argv in so many processes, which share the cores and find each other in join() -> the exit
    code."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run([*command, "-m", module, *argv], env=os.environ | {"OMP_NUM_THREADS": threads}).returncode


@contextlib.contextmanager
def join(device: str | None, timeout: float = 30) -> Iterator[Processes]:
    """This process on the named device (None: the best there is), with the others that torchrun has started.

    timeout: minutes after which a process that hears nothing of another one gives up. Raises UserError then.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes(device=pick_device(device), timeout=timeout)
        return
    chosen = pick_device(device)
    if chosen == torch.device("cuda"):
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    processes = Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), chosen, timeout)
    limit = timedelta(minutes=timeout) if math.isfinite(timeout) else None
    with processes.raise_on_lost_process():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=limit)
    try:
        with processes.heartbeat():
            yield processes
    except RuntimeError as error:
        # DistributedDataParallel's exchange lies within a backward. NCCL's errors have a type, gloo's only their text.
        if not (isinstance(error, dist.DistError) or re.search("gloo", str(error), re.IGNORECASE)):
            raise
        raise processes.lost(error) from None
    finally:
        dist.destroy_process_group()
