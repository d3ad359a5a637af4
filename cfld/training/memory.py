"""Memory of a training."""

import contextlib
import ctypes
import re
import resource
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cfld.hga import HGABlock
from cfld.prd import PRDBlock
from cfld.swin import SwinBlock
from cfld.unet import ResBlock, TransformerBlock
from cfld.vae import SpatialAttention


def keep_freed_memory() -> None:
    """Let glibc keep for the next step what a step has freed. By itself it gives large blocks back to the kernel, which
    clears every page that it hands out again: a tenth of a full-size step on two cores (docs/train_step.md). Does
    nothing on other systems."""
    trim_threshold, mmap_max, never, none = -1, -4, -1, 0  # of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, never)
        library.mallopt(mmap_max, none)


def shrink_frozen(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep frozen matrices and kernels in the dtype that autocast would convert them to at every use."""
    for parameter in module.parameters():
        if not parameter.requires_grad and parameter.ndim >= 2:
            parameter.data = parameter.data.to(dtype)


def checkpoint_blocks(module: nn.Module, level: str) -> None:
    """Let blocks keep their inputs alone and compute the rest again in the backward (Chen et al., 2016): attention with
    its feed-forward, or every block."""
    attention = (TransformerBlock, SwinBlock, HGABlock, PRDBlock, SpatialAttention)
    kinds = {"none": (), "attention": attention, "all": (*attention, ResBlock)}[level]
    for block in module.modules():
        if isinstance(block, kinds):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """What tensors take of memory."""
    return sum(x.numel() * x.element_size() for x in tensors)


def memory(device: torch.device, peak: bool = False) -> int:
    """The bytes that this process has in use on a device, or the most since they were last asked for."""
    if device.type == "cuda":
        if not peak:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # Linux can forget the peak of loading
        if not peak:
            Path("/proc/self/clear_refs").write_text("5")
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
