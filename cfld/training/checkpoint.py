"""Checkpoints: all that changes while training, in one safetensors file.

Randomness has no state (cfld.objective, cfld.data.batch.StepOrder), so none is saved.
"""

import contextlib
import dataclasses
import json
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cfld.baselines import from_dict, to_dict
from cfld.config import CFLDConfig
from cfld.tools.cli import UserError
from cfld.tools.tensors import read_safetensors, tensors_hash, write_tensors

MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam


def frozen_hash(*modules: nn.Module) -> str:
    """A sha256 of every frozen tensor, name and bytes."""
    parameters = (named for module in modules for named in module.named_parameters())
    return tensors_hash((name, parameter) for name, parameter in parameters if not parameter.requires_grad)


def difference(there: CFLDConfig, here: CFLDConfig) -> str | None:
    """The first field in which two architectures differ, with both values; None if they are the same."""
    found, asked = ({"baseline": None} | to_dict(config) for config in (there, here))
    names = [name for name in found | asked if found.get(name) != asked.get(name)]
    return f"{names[0]} is {found.get(names[0])} there and {asked.get(names[0])} here" if names else None


@dataclass
class State:
    """What a training changes, and what else a checkpoint records: the architecture, a hash of the frozen weights."""

    trained: dict[str, nn.Parameter]
    ema: dict[str, Tensor]  # the EMA weights; empty without --ema
    optimizer: torch.optim.Adam
    scaler: torch.amp.GradScaler  # of fp16; in other precisions it does nothing
    config: CFLDConfig
    frozen_sha256: str  # frozen_hash of what does not change
    step: int = 0  # steps done
    best: float | None = None  # the lowest validation loss
    pairs: str = ""  # the training pairs in order, by their number and hash
    steps: int | None = None  # the length of the run, which sets when the learning rate falls

    @classmethod
    def begin(
        cls,
        trained: dict[str, nn.Parameter],
        config: CFLDConfig,
        frozen_sha256: str,
        lr: float,
        ema: bool,
        scaled: bool,
    ) -> "State":
        """The state before the first step; scaled: whether fp16's loss scaling is on."""
        device = next(iter(trained.values())).device
        copies = {name: p.detach().clone() for name, p in trained.items()} if ema else {}
        optimizer = torch.optim.Adam(trained.values(), lr=lr, fused=True)
        return cls(trained, copies, optimizer, torch.amp.GradScaler(device.type, enabled=scaled), config, frozen_sha256)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in a checkpoint."""
        tensors = {f"weights/{name}": p.detach() for name, p in self.trained.items()}
        tensors |= {f"averages/{name}": x for name, x in self.ema.items()}
        for name, parameter in self.trained.items():
            tensors |= {f"{key}/{name}": x for key, x in self.optimizer.state[parameter].items()}
        return tensors

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically. Raises UserError if a tensor is not finite."""
        tensors = self.tensors()
        if lost := [name for name, x in tensors.items() if not x.isfinite().all()]:
            raise UserError(
                f"all tensors must be finite, found {len(lost)} after step {self.step} that are not finite (first: "
                f"{lost[0]}); no checkpoint was overwritten; start again with a lower --lr"
            )
        facts = Facts(
            self.step, self.frozen_sha256, self.scaler.state_dict(), self.config, self.best, self.pairs, self.steps
        )
        write_tensors(path, tensors, {"cfld": json.dumps(vars(facts) | {"model": to_dict(self.config)})})

    def restore(self, path: Path) -> None:
        """Read a checkpoint. Raises UserError if it is damaged, or of another model or of other frozen weights."""
        tensors, metadata = read_safetensors(path)
        facts = read_facts(path, metadata)
        if facts.base != self.frozen_sha256:
            raise UserError(
                f"{path}: was trained on frozen weights of sha256 {facts.base[:12]}..., found "
                f"{self.frozen_sha256[:12]}...; --init must be the folder that the run began with"
            )
        if differs := difference(facts.model, self.config):
            raise UserError(f"{path} is of another architecture: {differs}")
        if facts.pairs and self.pairs and facts.pairs != self.pairs:
            raise UserError(
                f"{path}: was trained on {facts.pairs}, found {self.pairs} in --data, of which steps take "
                "others: restore the list of pairs that the run began with, or begin another run with --finetune"
            )
        for name, parameter in self.trained.items():
            if f"step/{name}" in tensors:  # a parameter without a gradient so far has no moments
                moments = {key: torch.zeros_like(parameter) for key in MOMENTS}
                step = torch.zeros((), device=parameter.device)
                self.optimizer.state[parameter] = {"step": step, **moments}
        ours = self.tensors()
        shapes, found = ({name: tuple(x.shape) for name, x in held.items()} for held in (ours, tensors))
        if odd := [name for name in sorted(shapes | found) if shapes.get(name) != found.get(name)]:
            raise UserError(
                f"{path} must hold the tensors that this run trains; {len(odd)} differ (first: {odd[0]}, expected "
                f"{shapes.get(odd[0], 'none')}, found {found.get(odd[0], 'none')})"
            )
        if odd := [name for name in ours if not tensors[name].is_floating_point()]:
            raise UserError(
                f"{path}: tensors must be floating-point numbers, found {odd[0]} of {tensors[odd[0]].dtype}"
            )
        for name, x in ours.items():
            x.copy_(tensors[name])
        try:
            self.scaler.load_state_dict(facts.scaler)
        except (RuntimeError, KeyError, TypeError) as error:
            raise UserError(f"{path} must hold the loss scale of fp16, found {facts.scaler} ({error})") from None
        self.step, self.best, self.steps = facts.step, facts.best, facts.steps

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Move the EMA weights towards the weights, by 1 - decay of the way."""
        for name, average in self.ema.items():
            average.lerp_(self.trained[name], 1 - decay)

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Inside, the EMA weights, if there are any, stand in the place of the weights."""
        kept = {name: self.trained[name].detach().clone() for name in self.ema}
        try:
            for name, average in self.ema.items():
                self.trained[name].detach().copy_(average)
            yield
        finally:
            for name, weights in kept.items():
                self.trained[name].detach().copy_(weights)

    def is_best(self, loss: float) -> bool:
        """Whether a validation loss is the lowest so far; if so, it is remembered."""
        if not math.isfinite(loss) or (self.best is not None and loss >= self.best):
            return False
        self.best = loss
        return True

    def learnt(self) -> dict[str, Tensor]:
        """What the training has learnt, on the CPU: the EMA weights if there are any, else the weights."""
        return {name: x.detach().cpu() for name, x in (self.ema or self.trained).items()}


@dataclass(frozen=True)
class Facts:
    """What a checkpoint's metadata say, beside its tensors; see State."""

    step: int
    base: str  # State.frozen_sha256
    scaler: dict
    model: CFLDConfig
    best: float | None = None
    pairs: str = ""
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(Facts).items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{name} is {str(value)[:60]!r}")
        if not 0 <= self.step < 2**63:
            raise ValueError(f"step is {self.step}")


def read_facts(path: Path, metadata: dict[str, str]) -> Facts:
    """What a checkpoint's metadata say. Raises UserError if it is none, or if they are damaged."""
    if "cfld" not in metadata:
        raise UserError(f"{path} must be a checkpoint of cfld.train, found another safetensors file")
    try:
        values = json.loads(metadata["cfld"])
        known = {field.name: values[field.name] for field in dataclasses.fields(Facts) if field.name in values}
        return Facts(**known | {"model": from_dict(values["model"])})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{path} must be a checkpoint of cfld.train, found damaged metadata ({str(error)[:80]}): remove it to "
            "go on from the checkpoint before it"
        ) from None


def read_learnt(path: Path) -> tuple[dict[str, Tensor], CFLDConfig, str]:
    """What the training of a checkpoint has learnt so far (State.learnt), its architecture, and its frozen hash."""
    tensors, metadata = read_safetensors(path)
    facts = read_facts(path, metadata)
    kind = "averages/" if any(name.startswith("averages/") for name in tensors) else "weights/"
    learnt = {name.removeprefix(kind): x for name, x in tensors.items() if name.startswith(kind)}
    return learnt, facts.model, facts.base


def step_of(checkpoint: Path) -> int:
    """The number of steps in a checkpoint's name."""
    return int(checkpoint.stem.removeprefix("step_"))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Files that somebody has named otherwise are not the run's."""
    return sorted((folder / "checkpoints").glob(f"step_{'[0-9]' * 8}.safetensors"))
