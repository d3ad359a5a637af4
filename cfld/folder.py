"""Model folders: load, save, and the bundled model."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from cfld.config import CFLDConfig, read_config, to_dict
from cfld.model import CFLD
from cfld.tools.cli import UserError
from cfld.tools.files import atomic, write_json
from cfld.tools.tensors import read_safetensors, write_tensors
from cfld.vae import VAE


def assign(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Put tensors into a module (one on the meta device as well) by name, all of them and no others. Floating-point
    ones take the dtype, if one is given. Raises UserError that counts what is missing, unexpected or reshaped."""
    expected = module.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    reshaped = [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    if missing or unexpected or reshaped:
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
        raise UserError(
            f"{source} does not hold this {type(module).__name__}: {', '.join(complaints)}; "
            f"check that it is the right file and that the config (--config) has its widths"
        )
    if dtype is not None:
        tensors = {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}
    module.load_state_dict(tensors, assign=True)


def bundled() -> Path:
    """The folder of the model that comes with the package: inside it (a wheel), or beside it (a source tree, which an
    editable install reads as well). Raises UserError if it was not made."""
    package = Path(str(resources.files("cfld")))
    inside, beside = (folder / "weights" / "tiny" for folder in (package, package.parent))
    for folder in (inside, beside):
        if (folder / "config.json").is_file():
            return folder
    raise UserError(
        f"the bundled model is not in this installation: neither {inside} nor {beside} holds a config.json; "
        f"run make tiny in the source tree (a wheel is then to be built again), or name another model folder"
    )


def load(
    folder: str | Path | None = None, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[CFLD, VAE]:
    """Read a model folder: config.json, model.safetensors, vae.safetensors. None: the bundled model.

    Returns the model and its VAE in eval mode on the device, in the dtype. Raises UserError if a file is missing,
    damaged, or does not fit the config.
    """
    folder = bundled() if folder is None else Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder; python -m cfld.convert makes one from public weights")
    for name in ("config.json", "model.safetensors", "vae.safetensors"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is not a whole model folder: {name} is missing; make or copy the folder again "
                f"(what --stage vae and --stage source make holds parts alone: train on from it with --init)"
            )
    config = read_config(folder / "config.json")
    with torch.device("meta"):
        model, vae = CFLD(config), VAE(config.vae)
    for module, path in ((model, folder / "model.safetensors"), (vae, folder / "vae.safetensors")):
        assign(module, read_safetensors(path, dtype)[0], path)
    model.freeze()
    return model.to(device).eval(), vae.to(device).eval()


def load_vae(folder: str | Path) -> VAE:
    """The VAE of a folder that may hold nothing else: config.json, vae.safetensors."""
    path = Path(folder) / "vae.safetensors"
    vae = VAE(read_config(Path(folder) / "config.json").vae)
    assign(vae, read_safetensors(path, torch.float32)[0], path)
    return vae


def save_parts(folder: str | Path, config: CFLDConfig, *, replace: bool = False, **parts: nn.Module) -> None:
    """Write config.json and NAME.safetensors of each part, such as vae and source_encoder: all files or none. Raises
    UserError if the folder exists already, unless replace."""
    with atomic(folder, replace) as temporary:
        temporary.mkdir()
        write_json(temporary / "config.json", to_dict(config))
        for name, part in parts.items():
            write_tensors(temporary / f"{name}.safetensors", part.state_dict())


def save(folder: str | Path, model: CFLD, vae: VAE, replace: bool = False) -> None:
    """Write a model folder that load() reads, as save_parts does."""
    if model.config.vae != vae.config:
        raise UserError(f"the VAE's config {vae.config} must equal model.config.vae {model.config.vae}")
    save_parts(folder, model.config, replace=replace, model=model, vae=vae)
