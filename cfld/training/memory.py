"""The memory of a training: frozen weights in half precision, activation checkpointing, and what --dry-run prints."""

import contextlib
import ctypes
import re
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cfld.hga import HGABlock
from cfld.prd import PRDBlock
from cfld.swin import SwinBlock
from cfld.training.checkpoint import State
from cfld.unet import ResBlock, TransformerBlock
from cfld.vae import SpatialAttention


def keep_freed_memory() -> None:
    """Let glibc keep for the next step what a step has freed. Otherwise it returns large blocks to the kernel, which
    clears every page that it hands out again (docs/train_step.md has the cost). Does nothing on other systems."""
    trim_threshold, mmap_max, never, none = -1, -4, -1, 0  # of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, never)
        library.mallopt(mmap_max, none)


def cast_frozen(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep frozen matrices and kernels in the dtype to which autocast would convert them at every use."""
    for parameter in module.parameters():
        if not parameter.requires_grad and parameter.ndim >= 2:
            parameter.data = parameter.data.to(dtype)


def checkpoint_activations(module: nn.Module, level: str) -> None:
    """Let blocks keep only their inputs and compute the rest again in the backward pass (Chen et al. 2016).

    level: "none", "attention" (attention with its feed-forward), or "all" (every block)
    """
    attention = (TransformerBlock, SwinBlock, HGABlock, PRDBlock, SpatialAttention)
    kinds = {"none": (), "attention": attention, "all": (*attention, ResBlock)}[level]
    for block in module.modules():
        if isinstance(block, kinds):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """The memory of tensors, in bytes."""
    return sum(x.numel() * x.element_size() for x in tensors)


def memory(device: torch.device, peak: bool = False) -> int:
    """The bytes that this process has in use on a device, or the most since memory() was last asked."""
    if device.type == "cuda":
        if not peak:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # Linux can forget the peak of loading
        if not peak:
            Path("/proc/self/clear_refs").write_text("5")
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:
        return memory_on_windows(peak)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of psapi.h."""

    _fields_ = [
        ("cb", ctypes.c_uint32),
        ("PageFaultCount", ctypes.c_uint32),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        ("WorkingSetSize", ctypes.c_size_t),
        ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
        ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
        ("PagefileUsage", ctypes.c_size_t),
        ("PeakPagefileUsage", ctypes.c_size_t),
    ]


def memory_on_windows(peak: bool) -> int:
    """memory() of the CPU on Windows, which cannot forget a peak."""
    counters = Counters(cb=ctypes.sizeof(Counters))
    library: Any = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    library.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(library.GetCurrentProcess())
    if not library.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.cb):
        return 0
    return counters.PeakWorkingSetSize if peak else counters.WorkingSetSize


def estimate(stage: Any, state: State, before: int, device: torch.device) -> dict[str, str]:
    """What a step needs, as lines for people: parameters, and memory by what it holds.

    before: memory() before the first step
    """
    parameters, trained = list(stage.parameters()), list(state.trained.values())
    moments = [x for values in state.optimizer.state.values() for x in values.values()]
    parts = {
        "weights": num_bytes(parameters),
        "gradients": num_bytes(trained),
        "optimiser": num_bytes(moments),
        "EMA weights": num_bytes(state.ema.values()),
    }
    rest = memory(device, peak=True) - before - parts["gradients"] - parts["optimiser"]
    parts["activations and the rest"] = max(rest, 0)
    return {
        "parameters": f"{sum(p.numel() for p in parameters):,}",
        "that train": f"{sum(p.numel() for p in trained):,}",
        **{name: f"{size / 2**30:,.3f} GiB" for name, size in parts.items()},
        "all, per process": f"{sum(parts.values()) / 2**30:,.3f} GiB",
    }
