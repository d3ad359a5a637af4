"""Read and write safetensors."""

import hashlib
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cfld.tools.cli import UserError
from cfld.tools.files import atomic


def tensors_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A sha256 of tensors: of the name and bytes of each."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
          "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip


def read_safetensors(path: str | Path, dtype: torch.dtype | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file on the CPU, floating-point ones in the dtype if one is given, and its metadata.

    Each is read and converted in turn: a mapped file's pages would count as memory, 4 GB beside the model's own.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as checked:  # the library checks header, types, offsets and length
            metadata = checked.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}): download or copy it again") from None
    tensors = {}
    with open(path, "rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in DTYPES:
                raise UserError(f"{path}: {name} has type {entry['dtype']}, which must be one of {', '.join(DTYPES)}")
            begin, end = entry["data_offsets"]
            buffer = bytearray(end - begin)
            file.seek(8 + header_size + begin)
            file.readinto(buffer)
            tensor = torch.frombuffer(buffer, dtype=DTYPES[entry["dtype"]]) if buffer else torch.empty(0)
            tensor = tensor.reshape(entry["shape"])
            tensors[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    return tensors, metadata


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a pickle that holds tensors only (weights_only=True), on the CPU."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        mappable = zipfile.is_zipfile(path)  # not what torch wrote before 1.6
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except Exception as error:  # torch.load raises whatever the unpickler meets first
        reason = str(error).split("\n")[0][:200]
        raise UserError(f"{path}: not a whole checkpoint of plain tensors ({reason}): copy it again") from None
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
        mode = temporary.stat().st_mode  # of any new file: the library lets nobody else read its own
        save_file({name: x.detach().contiguous().cpu() for name, x in tensors.items()}, temporary, metadata)
        temporary.chmod(mode)
