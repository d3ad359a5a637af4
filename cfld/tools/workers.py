"""Worker processes that end with their parent, however it ends."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from cfld.tools.cli import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def end_with_parent() -> None:
    """Let this worker end as soon as its parent does, be it by kill -9, and ignore Ctrl-C, which reaches all processes
    of a terminal: the parent ends its workers. To be called once, as a worker begins."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_wait_and_end, args=(parent.sentinel,), daemon=True).start()


def _wait_and_end(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def in_workers(work: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """The results of tasks in some processes, as they finish; in this process, in order, if one is enough. Raises
    UserError if a worker is killed."""
    tasks = list(tasks)
    if workers == 1 or len(tasks) < 2:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(min(workers, len(tasks)), initializer=end_with_parent) as pool:
        try:
            for result in as_completed([pool.submit(work, task) for task in tasks]):
                yield result.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker was ended from outside, perhaps for lack of memory: give the command again to continue, "
                "with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
