"""Write a model under the names that other code reads."""

from pathlib import Path

from torch import Tensor, nn

from cfld.convert.layouts import Layout, layout_of
from cfld.model import CFLD
from cfld.tools.cli import UserError
from cfld.tools.files import write_json
from cfld.tools.tensors import write_tensors
from cfld.vae import VAE


def in_layout(module: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """A component's parameters and buffers under a public layout's names. CFLD is written without its UNet."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {layout.theirs(name): tensor for name, tensor in tensors.items() if not name.startswith("unet.")}


def export_official(model: CFLD, folder: Path) -> None:
    """Write the two files of the official checkpoint, as safetensors. Raises UserError for a baseline of Table 3."""
    if type(model) is not CFLD:
        raise UserError(
            f"the official layout is of the whole method alone, found baseline {type(model).__name__}; "
            f"--to diffusers writes the UNet and the VAE of any model"
        )
    write_tensors(folder / "pytorch_model.safetensors", in_layout(model, layout_of("CFLD", "official CFLD")))
    write_tensors(folder / "pytorch_model_1.safetensors", in_layout(model.unet, layout_of("UNet", "official CFLD")))


def export_diffusers(model: CFLD, vae: VAE, folder: Path) -> None:
    """Write unet/ and vae/ as diffusers' from_pretrained reads them."""
    unet_config, vae_config = model.config.unet, vae.config
    attended = len(unet_config.channels) - 1
    configs = {
        "unet": {
            "_class_name": "UNet2DConditionModel",
            "sample_size": model.config.image_size // vae_config.factor,
            "in_channels": unet_config.latent_channels,
            "out_channels": unet_config.latent_channels,
            "block_out_channels": unet_config.channels,
            "layers_per_block": unet_config.depth,
            "down_block_types": ["CrossAttnDownBlock2D"] * attended + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * attended,
            "attention_head_dim": unet_config.num_heads,
            "cross_attention_dim": unet_config.context_width,
            "norm_num_groups": unet_config.groups,
        },
        "vae": {
            "_class_name": "AutoencoderKL",
            "sample_size": model.config.image_size,
            "block_out_channels": vae_config.channels,
            "layers_per_block": vae_config.depth,
            "latent_channels": vae_config.latent_channels,
            "down_block_types": ["DownEncoderBlock2D"] * len(vae_config.channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae_config.channels),
            "norm_num_groups": vae_config.groups,
            "scaling_factor": vae_config.scale,
        },
    }
    modules: dict[str, nn.Module] = {"unet": model.unet, "vae": vae}
    for part, layout in (("unet", layout_of("UNet", "diffusers")), ("vae", layout_of("VAE", "diffusers"))):
        write_tensors(
            folder / part / "diffusion_pytorch_model.safetensors", in_layout(modules[part], layout), {"format": "pt"}
        )
        write_json(folder / part / "config.json", configs[part])
