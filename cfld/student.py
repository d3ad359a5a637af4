"""Students: models that distillation (cfld/training/distill.py) has made from others, which are their teachers.

A student is a CFLD whose config.distilled says how it was made. It differs from its teacher in the UNet alone: in all
of its weights, or by low-rank adapters (Hu et al. 2022, LoRA) of some layers,

    W' x = W x + up(down(x)),

where down has the layer's inputs and kernel size and few outputs (the rank), and up has kernels of 1x1, the layer's
outputs, and weights that start at 0. An adapter consists of two modules within the layer, lora_down and lora_up, and a
hook that adds their output: the names of all other weights stay, and a layer with an adapter is called like any other.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cfld.config import DistilledConfig
from cfld.model import CFLD
from cfld.unet import Attention

Layer = nn.Linear | nn.Conv2d


def layers_of(unet: nn.Module, targets: str) -> dict[str, Layer]:
    """The layers that have adapters, by name; targets: see cfld.config.DistilledConfig."""
    kind = nn.Linear if targets in ("attention", "linear") else Layer
    found = {name: x for name, x in unet.named_modules() if isinstance(x, kind) and "lora_" not in name}
    if targets == "attention":
        inside = [name for name, x in unet.named_modules() if isinstance(x, Attention)]
        found = {name: x for name, x in found.items() if name.rpartition(".")[0] in inside}
    return found


def add_adapter(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """The hook of a layer with an adapter: W x -> W x + up(down(x))."""
    return output + layer.lora_up(layer.lora_down(args[0]))  # type: ignore[operator]


def add_adapters(unet: nn.Module, rank: int, targets: str) -> None:
    """Give layers of a UNet adapters that change nothing yet, initialised from torch's global generator."""
    for layer in layers_of(unet, targets).values():
        place: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        if isinstance(layer, nn.Linear):
            down: Layer = nn.Linear(layer.in_features, rank, bias=False, **place)
            up: Layer = nn.Linear(rank, layer.out_features, bias=False, **place)
        else:
            inner: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "bias": False}
            down = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, **inner, **place)  # type: ignore[arg-type]
            up = nn.Conv2d(rank, layer.out_channels, 1, bias=False, **place)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
        layer.lora_down, layer.lora_up = down, up
        layer.register_forward_hook(add_adapter)


def change(layer: Layer) -> Tensor:
    """What the adapter adds to the weight of its layer, in float32."""
    down, up = (layer.get_submodule(name).weight.detach().float() for name in ("lora_down", "lora_up"))  # type: ignore[operator]
    return (up.flatten(1) @ down.flatten(1)).view(layer.weight.shape)


@torch.no_grad()
def merge_adapters(unet: nn.Module) -> None:
    """Add the adapters of a UNet to its weights, and remove them. Other modules that share the weights keep theirs."""
    for layer in unet.modules():
        if isinstance(layer, Layer) and hasattr(layer, "lora_up"):
            merged = (layer.weight.float() + change(layer)).to(layer.weight.dtype)
            layer.weight = nn.Parameter(merged, requires_grad=layer.weight.requires_grad)
            del layer.lora_down, layer.lora_up
            layer._forward_hooks = type(layer._forward_hooks)(
                (key, hook) for key, hook in layer._forward_hooks.items() if hook is not add_adapter
            )


def student_of(teacher: CFLD, distilled: DistilledConfig, tensors: Mapping[str, Tensor]) -> CFLD:
    """A student that shares all weights but its own with its teacher, which is unchanged.

    distilled: how it was made
    tensors: its own weights, by names of a CFLD, unet.NAME: all UNet weights, or its adapters
    Raises KeyError if a tensor is missing, ValueError if one has no place or another shape.
    """
    shared = {id(x): x for x in (*teacher.unet.parameters(), *teacher.unet.buffers())}
    unet = copy.deepcopy(teacher.unet, shared)
    if distilled.rank:
        with torch.random.fork_rng(devices=[]):
            add_adapters(unet, distilled.rank, distilled.targets)
    own = {n: p for n, p in unet.named_parameters() if distilled.rank is None or "lora_" in n}
    if unknown := sorted({name.removeprefix("unet.") for name in tensors} - own.keys()):
        raise ValueError(f"{len(unknown)} tensors have no place (first: {unknown[0]})")
    given = {name: tensors[f"unet.{name}"] for name in own}
    for name, x in given.items():
        if x.shape != own[name].shape:
            raise ValueError(f"{name} must be {tuple(own[name].shape)}, found {tuple(x.shape)}")
        path, _, last = name.rpartition(".")
        setattr(unet.get_submodule(path), last, nn.Parameter(x.to(own[name]), requires_grad=own[name].requires_grad))
    student = copy.copy(teacher)
    student._modules = {**teacher._modules, "unet": unet}
    student.config = replace(teacher.config, distilled=distilled)
    return student
