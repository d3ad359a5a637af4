"""Checks of the arguments of public classes and functions. Each error is one sentence.

A check of a tensor reads its shape, dtype and device, which are known without the device, so it costs microseconds and
leaves no trace in a module that torch.compile has compiled. Values are read only on the CPU.
"""

import dataclasses
import math
import numbers
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LARGEST, DEEPEST = 2**20, 256  # numbers of a config: its widths, and its numbers of blocks and levels
DEPTHS = ("depth", "depths", "branches")  # fields that count blocks


def is_number(value: object, kind: type = numbers.Real) -> bool:
    """Whether a value is a number of this kind, also of numpy; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def is_size(value: object) -> bool:
    """Whether a value is a height and a width above 0."""
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
        return False
    return all(is_number(side) and 0 < side < math.inf for side in value)  # type: ignore[attr-defined]


def described(value: object) -> str:
    """A value, for messages: of a tensor or an array its type and shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of {tuple(value.shape)}, {value.dtype}"
    return f"{type(value).__name__} {str(value)[:60]!r}"


def check_tensor(name: str, x: object, shape: Sequence[int | str], like: Tensor | None = None) -> None:
    """Raise ValueError unless x is a floating-point tensor of this shape, in which a letter stands for any size.

    like: a weight; x must be on its device and, unless autocast converts x, have its dtype
    """
    fits = isinstance(x, Tensor) and x.ndim == len(shape) and x.is_floating_point()
    if fits:
        for found, expected in zip(x.shape, shape, strict=True):  # type: ignore[attr-defined]
            fits = fits and (isinstance(expected, str) or found == expected)
    if not fits:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} must be a floating-point tensor of shape ({wanted}), found {described(x)}")
    assert isinstance(x, Tensor)
    if like is None:
        return
    if x.device != like.device:
        raise ValueError(f"{name} must be on the device of the weights, {like.device}, found {x.device}: use .to()")
    if x.dtype != like.dtype and like.is_floating_point() and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"{name} must have the dtype of the weights, {like.dtype}, found {x.dtype}: use .to()")


def check_timesteps(timesteps: object, count: int, samples: int | None = None) -> None:
    """Raise ValueError unless timesteps are a tensor (B,) of whole numbers in 0 .. count - 1, B = samples or 1."""
    if not isinstance(timesteps, Tensor) or timesteps.ndim != 1 or timesteps.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"timesteps must be a tensor (B,) of whole numbers, found {described(timesteps)}")
    if samples is not None and timesteps.shape[0] not in (1, samples):
        raise ValueError(f"there must be one timestep, or one per sample, {samples}, found {timesteps.shape[0]}")
    if timesteps.device.type == "cpu" and not torch.compiler.is_compiling() and timesteps.numel():
        lowest, highest = int(timesteps.min()), int(timesteps.max())
        if lowest < 0 or highest >= count:
            raise ValueError(f"timesteps must be within 0 .. {count - 1}, found {lowest} .. {highest}")


def check_config(config: Any, name: str) -> None:
    """Bring the numbers of a config, a frozen dataclass, to plain types: numpy's to Python's, lists to tuples. Raises
    ValueError, which names the field, for one of another type, or of a size that no network has."""
    hints, prefix = typing.get_type_hints(type(config)), f"{name}." if name else ""
    for field in dataclasses.fields(config):
        value: Any = getattr(config, field.name)
        hint: Any = hints[field.name]
        if isinstance(hint, types.UnionType):  # X | None
            if value is None:
                continue
            hint = typing.get_args(hint)[0]
        if not dataclasses.is_dataclass(hint):
            object.__setattr__(config, field.name, _plain(value, hint, prefix + field.name))
        elif not isinstance(value, kind := typing.cast(type, hint)):
            raise ValueError(f"{prefix}{field.name} must be a {kind.__name__}, found {value!r:.60}")


def _plain(value: Any, hint: Any, name: str) -> Any:
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) or not hasattr(value, "__len__") or not 1 <= len(value) <= DEEPEST:
            raise ValueError(f"{name} must be 1 to {DEEPEST} numbers, found {described(value)}")
        return tuple(_plain(item, typing.get_args(hint)[0], name) for item in value)
    kind = {int: numbers.Integral, float: numbers.Real}.get(hint, hint)
    if not isinstance(value, kind) or isinstance(value, bool) != (hint is bool):
        raise ValueError(f"{name} must be {hint.__name__}, found {described(value)}")
    if hint is float and not abs(value) <= sys.float_info.max:  # nor nan
        raise ValueError(f"{name} must be a finite number, found {str(value)[:60]}")
    value = hint(value)
    if hint is int:
        most = DEEPEST if name.rpartition(".")[2] in DEPTHS else LARGEST
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be at least 1 and at most {most}, found {str(value)[:60]}")
    return value
