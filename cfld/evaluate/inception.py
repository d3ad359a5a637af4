"""Inception-v3 (Szegedy et al. 2015) up to its pooled features, for FID.

Letters in shapes: B images, H, W their sides, C channels, h, w sides of a map.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfld.evaluate.metrics import check_images
from cfld.evaluate.weights import FOLDERS, INCEPTIONS, fill, read_public
from cfld.tools.cli import UserError

Kernel = int | tuple[int, int]
Branches = Mapping[str, Sequence[tuple[int, *tuple[Kernel, ...]]]]  # the steps of each branch: width, parallel kernels
ROW, COLUMN = (1, 7), (7, 1)
BRANCHES_8: Branches = {
    "branch1x1": [(320, 1)],
    "branch3x3": [(384, 1), (384, (1, 3), (3, 1))],
    "branch3x3dbl": [(448, 1), (384, 3), (384, (1, 3), (3, 1))],
    "branch_pool": [(192, 1)],
}
HALVE_35: Branches = {
    "branch3x3": [(384, 3)],
    "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
    "branch_pool": [],
}
HALVE_17: Branches = {
    "branch3x3": [(192, 1), (320, 3)],
    "branch7x7x3": [(192, 1), (192, ROW), (192, COLUMN), (192, 3)],
    "branch_pool": [],
}


def branches_35(pooled: int) -> Branches:
    """The branches of a block on maps of 35x35; pooled: width of the last."""
    return {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
        "branch_pool": [(pooled, 1)],
    }


def branches_17(inner: int) -> Branches:
    """The branches of a block on maps of 17x17; inner: width of the long ones."""
    return {
        "branch1x1": [(192, 1)],
        "branch7x7": [(inner, 1), (inner, ROW), (192, COLUMN)],
        "branch7x7dbl": [(inner, 1), (inner, COLUMN), (inner, ROW), (inner, COLUMN), (192, ROW)],
        "branch_pool": [(192, 1)],
    }


class Conv(nn.Module):
    """Convolution, batch norm with its stored mean and variance, ReLU."""

    def __init__(self, channels: int, width: int, kernel: Kernel, stride: int = 1, padding: int | str = 0):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) -> (B, C', h', w'), the same in train and eval mode."""
        bn = self.bn
        return F.relu(F.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps))


class Mixed(nn.ModuleDict):
    """An Inception block: parallel chains of convolutions, the last of them after a pooling.

    pool: "mean" counts the padding, "mean inside" does not; "max"; "halve" makes a block of stride 2
    """

    def __init__(self, channels: int, branches: Branches, pool: str):
        super().__init__()
        self.pool, self.width = pool, 0
        self.chains: list[list[list[str]]] = []  # of each branch, the names of each step's convolutions
        for branch, steps in branches.items():
            chain, width = [], channels
            for i, (out, *kernels) in enumerate(steps, start=1):
                step = f"{branch}_{i}" if len(steps) > 1 else branch
                halves = pool == "halve" and i == len(steps)
                chain.append([step + letter for letter in "ab"] if len(kernels) > 1 else [step])
                for name, kernel in zip(chain[-1], kernels, strict=True):
                    self[name] = Conv(width, out, kernel, 2 if halves else 1, 0 if halves else "same")
                width = out * len(kernels)
            self.chains.append(chain)
            self.width += width

    def pooled(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) -> the same shape, or half the sides."""
        if self.pool == "halve":
            return F.max_pool2d(x, 3, stride=2)
        if self.pool == "max":
            return F.max_pool2d(x, 3, stride=1, padding=1)
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=self.pool == "mean")

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) -> (B, C', h', w')."""
        outputs = [x] * (len(self.chains) - 1) + [self.pooled(x)]
        for i, chain in enumerate(self.chains):
            for step in chain:
                outputs[i] = torch.cat([self[name](outputs[i]) for name in step], dim=1)
        return torch.cat(outputs, dim=1)


class Inception(nn.Sequential):
    """Inception-v3 up to its pooled features, for one of two protocols:

    "fid_pgpis"  torchvision's network; its input is renormalised as if it had been normalised for ImageNet, which it
                 was not: so are the published numbers of this field
    "fid"        the network of 2015 that defines FID: its average pooling ignores the padding, its last block takes
                 the maximum
    """

    def __init__(self, protocol: str = "fid"):
        if protocol not in INCEPTIONS:
            raise UserError(f"the protocol of FID must be one of {', '.join(INCEPTIONS)}, found {protocol}")
        super().__init__()
        self.protocol = protocol
        mean, last = ("mean inside", "max") if protocol == "fid" else ("mean", "mean")
        self.add_module("Conv2d_1a_3x3", Conv(3, 32, 3, stride=2))
        self.add_module("Conv2d_2a_3x3", Conv(32, 32, 3))
        self.add_module("Conv2d_2b_3x3", Conv(32, 64, 3, padding=1))
        self.add_module("maxpool1", nn.MaxPool2d(3, stride=2))
        self.add_module("Conv2d_3b_1x1", Conv(64, 80, 1))
        self.add_module("Conv2d_4a_3x3", Conv(80, 192, 3))
        self.add_module("maxpool2", nn.MaxPool2d(3, stride=2))
        width = 192
        for name, branches, pool in (
            ("Mixed_5b", branches_35(32), mean),
            ("Mixed_5c", branches_35(64), mean),
            ("Mixed_5d", branches_35(64), mean),
            ("Mixed_6a", HALVE_35, "halve"),
            ("Mixed_6b", branches_17(128), mean),
            ("Mixed_6c", branches_17(160), mean),
            ("Mixed_6d", branches_17(160), mean),
            ("Mixed_6e", branches_17(192), mean),
            ("Mixed_7a", HALVE_17, "halve"),
            ("Mixed_7b", BRANCHES_8, mean),
            ("Mixed_7c", BRANCHES_8, last),
        ):
            block = Mixed(width, branches, pool)
            self.add_module(name, block)
            width = block.width

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> features (B, 2048)."""
        check_images(images)
        x = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False, antialias=False)
        if self.protocol == "fid":
            x = 2 * x - 1
        else:
            std, mean = (x.new_tensor(v)[:, None, None] for v in ((0.229, 0.224, 0.225), (0.485, 0.456, 0.406)))
            x = x * (std / 0.5) + (mean - 0.5) / 0.5
        return super().forward(x).mean(dim=(2, 3))


def load_inception(path: str | Path, protocol: str = "fid") -> Inception:
    """Inception-v3 from the public file that defines the protocol, frozen.

    Raises UserError for the other protocol's file. Only their classifiers tell the two apart: the wrong one would load
    and give wrong numbers.
    """
    model, file = Inception(protocol), INCEPTIONS[protocol]
    tensors = read_public(path, file)
    classes = len(tensors["fc.weight"]) if "fc.weight" in tensors else 0
    has_aux = any(name.startswith("AuxLogits.") for name in tensors)
    actual = {(1000, True): "fid_pgpis", (1008, False): "fid"}.get((classes, has_aux))
    if actual != protocol:
        found = f"{INCEPTIONS[actual]}, which is for {actual}" if actual else "neither Inception file"
        raise UserError(f"{path}: {protocol} must have {file}, found {found}; download {FOLDERS[file]}/{file}")
    trunk = {name: x for name, x in tensors.items() if not name.startswith(("fc.", "AuxLogits."))}
    fill(model, trunk, path, file)
    return model
