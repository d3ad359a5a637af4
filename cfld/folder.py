"""Model folders, which all commands share: config.json, model.safetensors and vae.safetensors.

A partial model folder, as --stage vae and --stage source write it, has vae.safetensors, perhaps
source_encoder.safetensors, and no model.safetensors.

turbo.safetensors, if there is one, holds the weights in which a student (cfld/student.py) differs from the model.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cfld.baselines import build, from_dict, read_config, to_dict
from cfld.config import CFLDConfig
from cfld.model import CFLD
from cfld.student import merge_adapters, student_of
from cfld.tools.cli import UserError, pick_device
from cfld.tools.files import atomic, parse_json, write_json, write_text
from cfld.tools.tensors import read_safetensors, write_tensors
from cfld.vae import VAE

TURBO_FILE = "turbo.safetensors"


class _NothingDrawn(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func == Tensor.normal_ else func(*args, **(kwargs or {}))


@contextmanager
def without_weights() -> Iterator[None]:
    """A module that is made within has no weights: it is on the meta device, for assign() to fill. Nothing normal is
    drawn there, for which torch would import its compiler: a second."""
    with torch.device("meta"), _NothingDrawn():
        yield


def assign(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Load these tensors into a module without copying (also from the meta device); dtype: of floating-point tensors.
    Raises UserError, which names the source and counts what is wrong, unless names and shapes are exactly the module's,
    and tensors are floating-point where the module's are."""
    expected = module.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    reshaped = [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    retyped = [
        name
        for name in expected
        if name in tensors and tensors[name].is_floating_point() != expected[name].is_floating_point()
    ]
    if missing or unexpected or reshaped or retyped:
        complaints = []
        if missing:
            complaints.append(f"{len(missing)} of {len(expected)} tensors missing (first: {missing[0]})")
        if unexpected:
            complaints.append(f"{len(unexpected)} unexpected (first: {unexpected[0]})")
        if reshaped:
            found, wanted = tuple(tensors[reshaped[0]].shape), tuple(expected[reshaped[0]].shape)
            complaints.append(
                f"{len(reshaped)} of another shape (first: {reshaped[0]}, {wanted} expected, {found} found)"
            )
        if retyped:
            complaints.append(
                f"{len(retyped)} of another type (first: {retyped[0]}, {expected[retyped[0]].dtype} expected, "
                f"{tensors[retyped[0]].dtype} found)"
            )
        raise UserError(
            f"{source} does not hold this {type(module).__name__}: {', '.join(complaints)}; "
            f"check that it is the right file, and that config.json, or --config, describes it"
        )
    if dtype is not None:
        tensors = {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}
    module.load_state_dict(tensors, assign=True)


def bundled() -> Path:
    """The folder of the bundled model: inside the package (in a wheel) or next to it (in a source tree). Raises
    UserError if this installation has none."""
    package = Path(str(resources.files("cfld")))
    inside, next_to = (folder / "weights" / "tiny" for folder in (package, package.parent))
    for folder in (inside, next_to):
        if (folder / "config.json").is_file():
            return folder
    raise UserError(
        f"the bundled model is not in this installation: neither {inside} nor {next_to} holds a config.json; "
        f"run make tiny in the source tree (and build the wheel again), or name another model folder"
    )


def load(
    folder: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    turbo: bool = False,
) -> tuple[CFLD, VAE]:
    """Read a model folder.

    folder: None for the bundled model
    device, dtype: where and as what to hold the weights
    channels_last: hold the weights of convolutions in torch's channels_last memory format, which samples faster
    turbo: load the folder's student instead of its model: that of turbo.safetensors, with its adapters merged, or the
        model itself if it is a student
    -> the model and its VAE, in eval mode
    Raises UserError if a file is missing, damaged, or does not fit the config, if the device cannot be used, or if
    there is no student.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UserError(f"dtype must be one of floating-point numbers, such as torch.float32, found {dtype}")
    device = pick_device(str(device), "device")
    if not (folder is None or isinstance(folder, (str, os.PathLike))):
        raise UserError(f"folder must be the path of a model folder, or None, found {folder!r:.60}")
    folder = bundled() if folder is None else Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder; python -m cfld.convert makes one from public weights")
    for name in ("config.json", "model.safetensors", "vae.safetensors"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is not a complete model folder: {name} is missing; make or copy the folder again "
                f"(--stage vae and --stage source write partial model folders: train on from these with --init)"
            )
    with without_weights():
        model = build(read_config(folder / "config.json"))
    assign(model, read_safetensors(folder / "model.safetensors", dtype)[0], folder / "model.safetensors")
    model.freeze()
    if turbo and model.config.distilled is None:
        model = load_student(folder, model)
        merge_adapters(model.unet)
    vae = load_vae(folder, dtype)
    for module in (model, vae):
        module.to(device).eval()
        if channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, vae


def student_file(folder: Path) -> Path:
    """The file of the student in a model folder. Raises UserError if there is none."""
    path = folder / TURBO_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} holds no student for --turbo: make one by python -m cfld.train --stage distill --init "
            f"{folder}, and copy its {TURBO_FILE} there"
        )
    return path


def load_student(folder: str | Path | None, model: CFLD) -> CFLD:
    """The student in a model folder. It shares all weights but its own with the model, which is unchanged.

    folder: None for the bundled model
    model: what load() has read from the folder
    Raises UserError if there is none, or if it is damaged or for another architecture.
    """
    path = student_file(bundled() if folder is None else Path(folder))
    tensors, metadata = read_safetensors(path, model.dtype)
    try:
        config = from_dict(parse_json(metadata.get("cfld", "")))
        if config.distilled is None or replace(config, distilled=None) != model.config:
            raise ValueError("it was made for a model of another architecture")
        student = student_of(model, config.distilled, tensors)
    except KeyError as error:
        raise UserError(f"{path} is not a student of this model: it lacks the tensor {error.args[0]}") from None
    except ValueError as error:
        raise UserError(f"{path} is not a student of this model: {error}") from None
    return student.eval()


def save_student(path: str | Path, config: CFLDConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write the file of a student; config: the student's; tensors: as student_of takes them."""
    write_tensors(path, dict(tensors), {"cfld": json.dumps(to_dict(config))})


def load_vae(folder: str | Path, dtype: torch.dtype = torch.float32) -> VAE:
    """The VAE of a model folder, or of a partial model folder."""
    folder = Path(folder)
    with without_weights():
        vae = VAE(read_config(folder / "config.json").vae)
    assign(vae, read_safetensors(folder / "vae.safetensors", dtype)[0], folder / "vae.safetensors")
    return vae


def save_parts(
    folder: str | Path, config: CFLDConfig, *, replace: bool = False, card: str = "", **parts: nn.Module
) -> None:
    """Write config.json, NAME.safetensors of each part, such as vae and source_encoder, and the card (cfld.tools.card)
    if there is one: all files or none. Raises UserError if the folder exists, unless replace."""
    with atomic(folder, replace) as temporary:
        temporary.mkdir()
        write_json(temporary / "config.json", to_dict(config))
        if card:
            write_text(temporary / "README.md", card)
        for name, part in parts.items():
            write_tensors(temporary / f"{name}.safetensors", part.state_dict())


def save(folder: str | Path, model: CFLD, vae: VAE, replace: bool = False, card: str = "") -> None:
    """Write a model folder that load() reads, as save_parts() does."""
    if not (isinstance(model, CFLD) and isinstance(vae, VAE)):
        kinds = f"{type(model).__name__} and {type(vae).__name__}"
        raise UserError(f"save(folder, model, vae) takes a CFLD and a VAE, found {kinds}")
    if model.config.vae != vae.config:
        raise UserError(f"the VAE's config {vae.config} must equal model.config.vae {model.config.vae}")
    save_parts(folder, model.config, replace=replace, card=card, model=model, vae=vae)
