"""Write a model under the names that other code reads."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfld.config import CFLDConfig
from cfld.convert.layouts import Layout, layout_of
from cfld.folder import TURBO_FILE
from cfld.model import CFLD
from cfld.tools.cli import UserError
from cfld.tools.files import write_json
from cfld.tools.tensors import read_safetensors, write_tensors
from cfld.vae import VAE

ConfigTable = dict[str, Callable[[CFLDConfig], Any]]  # a field of their config.json, its value


def in_layout(module: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """A component's parameters and buffers under the names of a public layout. Of a CFLD: all but its UNet's."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {layout.theirs(name): tensor for name, tensor in tensors.items() if not name.startswith("unet.")}


def export_official(model: CFLD, folder: Path) -> None:
    """Write the two files of the official checkpoint, as safetensors. Raises UserError for a baseline of Table 3."""
    if type(model) is not CFLD:
        raise UserError(
            f"the official layout has only the full model, found baseline {type(model).__name__}; "
            f"--to diffusers writes the UNet and the VAE of any model"
        )
    write_tensors(folder / "pytorch_model.safetensors", in_layout(model, layout_of("CFLD", "official CFLD")))
    write_tensors(folder / "pytorch_model_1.safetensors", in_layout(model.unet, layout_of("UNet", "official CFLD")))


UNET_CONFIG: ConfigTable = {
    "_class_name":         lambda c: "UNet2DConditionModel",
    "sample_size":         lambda c: c.image_size // c.vae.factor,
    "in_channels":         lambda c: c.unet.latent_channels,
    "out_channels":        lambda c: c.unet.latent_channels,
    "block_out_channels":  lambda c: c.unet.channels,
    "layers_per_block":    lambda c: c.unet.depth,
    "down_block_types":    lambda c: ["CrossAttnDownBlock2D"] * (len(c.unet.channels) - 1) + ["DownBlock2D"],
    "up_block_types":      lambda c: ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (len(c.unet.channels) - 1),
    "attention_head_dim":  lambda c: c.unet.num_heads,
    "cross_attention_dim": lambda c: c.unet.context_width,
    "norm_num_groups":     lambda c: c.unet.groups,
}  # fmt: skip
VAE_CONFIG: ConfigTable = {
    "_class_name":         lambda c: "AutoencoderKL",
    "sample_size":         lambda c: c.image_size,
    "block_out_channels":  lambda c: c.vae.channels,
    "layers_per_block":    lambda c: c.vae.depth,
    "latent_channels":     lambda c: c.vae.latent_channels,
    "down_block_types":    lambda c: ["DownEncoderBlock2D"] * len(c.vae.channels),
    "up_block_types":      lambda c: ["UpDecoderBlock2D"] * len(c.vae.channels),
    "norm_num_groups":     lambda c: c.vae.groups,
    "scaling_factor":      lambda c: c.vae.scale,
}  # fmt: skip
SCHEDULER_CONFIG: ConfigTable = {  # of which DDPMScheduler and DDIMScheduler take our steps
    "_class_name":            lambda c: "DDPMScheduler",
    "num_train_timesteps":    lambda c: c.scheduler.num_timesteps,
    "beta_start":             lambda c: c.scheduler.beta_start,
    "beta_end":               lambda c: c.scheduler.beta_end,
    "beta_schedule":          lambda c: "scaled_linear",
    "prediction_type":        lambda c: c.scheduler.prediction_type,
    "rescale_betas_zero_snr": lambda c: c.scheduler.zero_terminal_snr,
    "timestep_spacing":       lambda c: "leading",
    "steps_offset":           lambda c: 1,
    "set_alpha_to_one":       lambda c: False,
    "clip_sample":            lambda c: False,
    "variance_type":          lambda c: "fixed_small",
}  # fmt: skip


def export_diffusers(model: CFLD, vae: VAE, folder: Path) -> None:
    """Write unet/, vae/ and scheduler/ as diffusers' from_pretrained reads them."""
    parts: list[tuple[str, nn.Module, Layout, ConfigTable]] = [
        ("unet", model.unet, layout_of("UNet", "diffusers"), UNET_CONFIG),
        ("vae", vae, layout_of("VAE", "diffusers"), VAE_CONFIG),
    ]
    for name, module, layout, table in parts:
        path = folder / name / "diffusion_pytorch_model.safetensors"
        write_tensors(path, in_layout(module, layout), {"format": "pt"})
        write_json(folder / name / "config.json", {field: value(model.config) for field, value in table.items()})
    scheduler = {field: value(model.config) for field, value in SCHEDULER_CONFIG.items()}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)


def adapters_in_layout(tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The adapters of a student under the names of other code, for a UNet of diffusers.

    tensors: as cfld.student.student_of takes them
    layout: "peft", unet.LAYER.lora_A.weight and lora_B.weight, as diffusers saves them (pytorch_lora_weights); or
        "kohya", lora_unet_LAYER.lora_down.weight, lora_up.weight and alpha, with underscores for dots in LAYER, which
        diffusers reads as well. alpha is the rank: adapters are added at a strength of 1
    Raises UserError for a student without adapters.
    """
    unet, named = layout_of("UNet", "diffusers"), dict[str, Tensor]()
    for name, x in tensors.items():
        layer, _, kind = name.removeprefix("unet.").rpartition(".lora_")
        if not layer:
            raise UserError(
                f"{name} is a full weight; only adapters can be exported: train with --stage distill --rank N"
            )
        theirs, side = unet.theirs(layer), kind.removesuffix(".weight")
        if layout == "peft":
            named[f"unet.{theirs}.lora_{'A' if side == 'down' else 'B'}.weight"] = x
        else:
            flat = f"lora_unet_{theirs.replace('.', '_')}"
            named[f"{flat}.lora_{side}.weight"] = x
            if side == "down":
                named[f"{flat}.alpha"] = torch.tensor(float(len(x)))
    return named


def export_adapters(folder: Path, layout: str, out: Path) -> None:
    """Write the adapters of turbo.safetensors in a folder as pytorch_lora_weights.safetensors. Raises UserError."""
    tensors, _ = read_safetensors(folder / TURBO_FILE)
    write_tensors(out / "pytorch_lora_weights.safetensors", adapters_in_layout(tensors, layout), {"format": "pt"})
