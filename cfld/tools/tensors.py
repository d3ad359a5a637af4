"""Read, write and hash named tensors."""

import hashlib
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cfld.tools.cli import UserError
from cfld.tools.files import atomic
from cfld.tools.reasons import reason

DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")  # of the tensors that are read
GROUP = 64  # tensors read between two openings of a file


def tensors_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A SHA-256 of tensors: of the name and the bytes of each."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_safetensors(path: str | Path, dtype: torch.dtype | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file -> its tensors by name, on the CPU, and its metadata.

    dtype: of the floating-point tensors; None: as in the file

    Raises UserError if the file is missing or damaged, or has a tensor of a type that is not in DTYPES. The tensors are
    copies, so that the file may change. Pages of a file that is read count as memory until it is closed: it is closed
    after each group, so that the tensors are never in memory twice.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
        for first in range(0, len(names), GROUP):
            with safe_open(path, framework="pt") as file:
                for name in names[first : first + GROUP]:
                    if (found := file.get_slice(name).get_dtype()) not in DTYPES:
                        raise UserError(f"{path}: {name} has type {found}, which must be one of {', '.join(DTYPES)}")
                    tensor = file.get_tensor(name)
                    tensors[name] = tensor.to(dtype if tensor.is_floating_point() else None, copy=True)
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({reason(error)}): download or copy it again") from None
    return tensors, metadata


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file, or a pickle that holds nothing but tensors (weights_only=True) -> its tensors by name,
    on the CPU. Raises UserError."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        mappable = zipfile.is_zipfile(path)  # not what torch wrote before 1.6
        with warnings.catch_warnings():  # of pickles of another protocol
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except Exception as error:  # torch.load raises whatever the unpickler meets first
        raise UserError(f"{path}: not a whole checkpoint of plain tensors ({reason(error)}): copy it again") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: a checkpoint must hold tensors by name, found {type(content).__name__}")
    return content


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    with atomic(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # of any new file: the library makes its own readable only to the owner
        save_file({name: x.detach().contiguous().cpu() for name, x in tensors.items()}, temporary, metadata)
        temporary.chmod(mode)
