"""The folder of a run: config.json, log.jsonl, checkpoints/, samples/, and at the end model/."""

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from cfld.baselines import from_dict, to_dict
from cfld.config import CFLDConfig
from cfld.photos.pixels import picture_grid, to_pictures
from cfld.pose import FRAME
from cfld.tools.cli import UserError
from cfld.tools.files import LOCK, link, read_object, remove, remove_leftovers, write_json, write_text, writing
from cfld.tools.pictures import save_image
from cfld.training.checkpoint import State, checkpoints, step_of
from cfld.training.options import Request, TrainConfig, refuse_run


class RunFolder:
    """Writes a run folder. Of several processes, only the main one has one that writes."""

    def __init__(self, options: TrainConfig, writes: bool):
        self.options, self.path, self.writes = options, Path(options.out), writes
        self.logged: dict[str, float] = {}  # the last values
        self.board: Any = None  # TensorBoard's writer

    def clear(self, request: Request) -> None:
        """Remove what a new run replaces. Raises UserError if that was not asked for."""
        if self.writes and not request.resume:
            refuse_run(self.path, request.force)  # again: only now no other process works here
            for path in self.path.iterdir():
                if path.name != LOCK:  # which this process holds
                    remove(path)

    def restore(self, state: State, resume: str | None, steps: int) -> str | None:
        """Set the state back to a checkpoint: "latest" or a path. Returns what to tell the user, if anything.

        Raises UserError if the run holds a later checkpoint, or if more than these steps are done already.
        """
        if resume is None:
            return None
        found = checkpoints(self.path)
        if resume != "latest":
            state.restore(Path(resume))
        elif found:
            state.restore(found[-1])
        if found and state.step < step_of(found[-1]):
            raise UserError(
                f"{self.path} holds a later checkpoint, {found[-1].name}: resume in another --out, or remove those "
                f"after step {state.step}"
            )
        if state.step > steps:
            raise UserError(f"--steps {steps} must be at least the {state.step} that are done already")
        if not state.step:
            return f"{self.path} holds no checkpoint yet: starting from step 0"
        return f"resuming {self.path} after step {state.step}"

    def begin(self, state: State) -> None:
        """Make the folder fit the state: remove leftovers of a killed run, and log lines after the state's step."""
        if not self.writes:
            return
        for folder in (self.path, self.path / "checkpoints", self.path / "samples"):
            remove_leftovers(folder)
        log_path = self.path / "log.jsonl"
        if log_path.is_file():
            lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            write_text(log_path, "".join(line for line in lines if is_done(line, state.step)))
        with contextlib.suppress(ImportError):  # TensorBoard, if it happens to be installed
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(self.path / "tensorboard", purge_step=state.step + 1)
        options, model = dataclasses.asdict(self.options), to_dict(state.config)
        write_json(self.path / "config.json", {"options": options, "model": model, "base": state.frozen_sha256})

    def log(self, step: int, **values: float) -> None:
        """Add a line to log.jsonl, and to TensorBoard."""
        self.logged |= values
        if not self.writes:
            return
        path, rounded = (
            self.path / "log.jsonl",
            {name.replace("_", " "): float(f"{x:.6g}") for name, x in values.items()},
        )
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **rounded}) + "\n")
        if self.board is not None:
            for name, value in rounded.items():
                self.board.add_scalar(name, value, step)

    def save(self, state: State, best: bool) -> None:
        """Write a checkpoint, the best one so far under that name as well, and delete all but the latest."""
        if not self.writes:
            return
        path = self.path / "checkpoints" / f"step_{state.step:08d}.safetensors"
        if best:  # first, so that a run that is killed in between evaluates it again
            state.save(path.with_name("best.safetensors"))
            link(path.with_name("best.safetensors"), path)
        else:
            state.save(path)
        for old in checkpoints(self.path)[: -self.options.keep]:
            old.unlink()

    def save_samples(self, step: int, columns: list[Tensor], size: tuple[int, int] = FRAME) -> None:
        """Write samples/step_*.png of columns of images (B, 3, H, H) in [-1, 1], in this size (height, width)."""
        if columns:
            grid = picture_grid([to_pictures(column, size) for column in columns])
            save_image(self.path / "samples" / f"step_{step:08d}.png", grid)

    def last_checkpoint(self) -> str:
        """The latest checkpoint, for messages."""
        found = checkpoints(self.path)
        return str(found[-1]) if found else "any checkpoint"


class Meter:
    """The mean loss and the speed of the steps since the last line of the log, without the time between steps."""

    def __init__(self, samples_per_step: int):
        self.samples_per_step = samples_per_step
        self.losses: list[float] = []
        self.seconds = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin to measure a step; what was done since add() does not count."""
        self.started = time.perf_counter()

    def add(self, loss: float) -> None:
        """A step has ended with this loss."""
        self.seconds += time.perf_counter() - self.started
        self.losses.append(loss)

    def read(self) -> dict[str, float]:
        """The values for the log, which begin anew."""
        count = len(self.losses)
        values = {"loss": sum(self.losses) / count, "samples/s": self.samples_per_step * count / self.seconds}
        self.losses, self.seconds = [], 0.0
        return values


def read_run_config(path: Path) -> CFLDConfig:
    """The architecture that a run was begun with. Raises UserError."""
    try:
        return from_dict(read_object(path, "model")["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} must hold a run's architecture ({error}): choose another --out") from None


def is_done(line: str, step: int) -> bool:
    """Whether a line of log.jsonl is whole and of a step up to this one."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        return json.loads(line)["step"] <= step
    return False
