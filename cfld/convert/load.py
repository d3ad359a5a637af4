"""Read public files of weights: UNet, VAE, Swin, CLIP, and the authors' checkpoint."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfld.baselines import build
from cfld.baselines.clip import CLIPConfig, CLIPImageEncoder
from cfld.config import SD15, CFLDConfig
from cfld.convert.layouts import LAYOUTS
from cfld.folder import assign, without_weights
from cfld.model import CFLD
from cfld.swin import Swin, SwinConfig
from cfld.tools.cli import UserError
from cfld.tools.tensors import read_tensors
from cfld.unet import UNet, UNetConfig
from cfld.vae import VAE, VAEConfig

log = logging.getLogger(__name__)
C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)


def join_qkv(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join each ...query, ...key and ...value of transformers' Swin to ...qkv: three (D, C) -> (3D, C)."""
    joined = dict(tensors)
    for name in tensors:
        if ".self.query." in name:
            parts = [joined.pop(name.replace(".query.", f".{part}."), None) for part in ("query", "key", "value")]
            joined[name.replace(".query.", ".qkv.")] = torch.cat([part for part in parts if part is not None])
    return joined


def to_ours(tensors: dict[str, Tensor], component: str, path: str | Path) -> dict[str, Tensor]:
    """The tensors of a component in a public file, under our names.

    tensors: all that the file holds, in any of LAYOUTS

    Logs the layout and what is dropped. A name that no rule explains is kept, so that assign() reports it. Raises
    UserError if the file holds another component.
    """
    matches = [layout for layout in LAYOUTS if layout.signature in tensors]
    layout = next((layout for layout in matches if layout.component == component), None)
    if layout is None:
        known = f"a {matches[0].component} ({matches[0].name} names)" if matches else None
        found = known or f"tensors such as {next(iter(tensors), 'none')}"
        raise UserError(f"{path}: must hold a {component}, found {found}; check which file goes with which option")
    log.info("%s: %s, %s names, %d tensors", path, component, layout.name, len(tensors))
    if layout.component == "Swin" and layout.name == "transformers":
        tensors = join_qkv(tensors)
    result: dict[str, Tensor] = {}
    dropped: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        reason = next((reason for pattern, reason in layout.dropped if re.match(pattern, name)), None)
        ours = layout.ours(name)
        if reason is not None:
            dropped.setdefault(reason, []).append(name)
        else:
            result[ours or name] = tensor
    for reason, names in dropped.items():
        log.info("  dropped %d (%s%s): %s", len(names), names[0], ", ..." if len(names) > 1 else "", reason)
    if layout.component == "VAE" and "LDM" in layout.name:  # its attention consists of 1x1 convolutions
        result = {name: x.flatten(1) if ".mid.1.to_" in name and x.ndim == 4 else x for name, x in result.items()}
    return result


def resize_bias_tables(tensors: dict[str, Tensor], swin: Swin) -> dict[str, Tensor]:
    """Resize each table of relative positions to the window of the module: (s*s, heads) -> (S*S, heads), bicubic."""
    resized = dict(tensors)
    for name, parameter in swin.named_parameters():
        table = tensors.get(name)
        if not name.endswith("bias_table") or table is None or table.shape == parameter.shape or table.ndim != 2:
            continue
        old, new = round(len(table) ** 0.5), round(len(parameter) ** 0.5)
        grid = table.float().T.reshape(1, -1, old, old)
        grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
        resized[name] = grid.reshape(-1, new * new).T.to(table.dtype)
    return resized


def load_part(component: Callable[[C], M], config: C, path: str | Path, dtype: torch.dtype) -> M:
    """A component of the model from a file of any public layout. Raises UserError unless the file holds exactly this
    component."""
    with without_weights():
        module = component(config)
    tensors = to_ours(read_tensors(path), type(module).__name__, path)
    if isinstance(module, Swin):
        tensors = resize_bias_tables(tensors, module)
    assign(module, tensors, path, dtype)
    return module


def load_unet(path: str | Path, config: UNetConfig = UNetConfig(), dtype: torch.dtype = torch.float32) -> UNet:
    """A UNet from any public layout. Raises UserError."""
    return load_part(UNet, config, path, dtype)


def load_vae(path: str | Path, config: VAEConfig = VAEConfig(), dtype: torch.dtype = torch.float32) -> VAE:
    """A VAE from any public layout. Raises UserError."""
    return load_part(VAE, config, path, dtype)


def load_swin(path: str | Path, config: SwinConfig = SwinConfig(), dtype: torch.dtype = torch.float32) -> Swin:
    """A Swin from any public layout, its bias tables resized to the config's windows. Raises UserError."""
    return load_part(Swin, config, path, dtype)


def load_clip(
    path: str | Path, config: CLIPConfig = CLIPConfig(), dtype: torch.dtype = torch.float32
) -> CLIPImageEncoder:
    """CLIP's image encoder from the file of transformers. Raises UserError."""
    return load_part(CLIPImageEncoder, config, path, dtype)


def load_official(
    model_path: str | Path, unet_path: str | Path, config: CFLDConfig = SD15, dtype: torch.dtype = torch.float32
) -> CFLD:
    """The full model from the two files of an official checkpoint. Raises UserError unless they fit the config."""
    with without_weights():
        model = build(config)
    tensors = to_ours(read_tensors(model_path), "CFLD", model_path)
    unet_tensors = to_ours(read_tensors(unet_path), "UNet", unet_path)
    tensors |= {f"unet.{name}": tensor for name, tensor in unet_tensors.items()}
    assign(model, tensors, f"{model_path} with {unet_path}", dtype)
    model.freeze()
    return model
