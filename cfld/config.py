"""The whole method's configuration: the parts' configs side by side, and one check of each seam between them.

Presets: SD15, the paper's model on Stable Diffusion 1.5, and TINY, the same classes at widths that a laptop trains.
ABLATIONS: the rows B1 to B5 of Table 3, each as the fields in which it differs from the whole method.
"""

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfld.adapter import AdapterConfig
from cfld.baselines.clip import CLIPConfig
from cfld.hga import HGAConfig
from cfld.prd import PRDConfig
from cfld.scheduler import SchedulerConfig
from cfld.swin import SwinConfig
from cfld.tools.cli import UserError
from cfld.tools.files import read_json
from cfld.unet import UNetConfig
from cfld.vae import VAEConfig

TRAINABLE = ("cross_kv", "cross_qkv", "all")
PROMPTS = ("prd", "multi_scale", "clip", "swin")


@dataclass(frozen=True)
class CFLDConfig:
    """Table 1 of the paper and Stable Diffusion 1.5 by default."""

    image_size: int = 512  # side of the square that photos are stretched to for the VAE
    unet_trainable: str = (
        "cross_kv"  # to_k, to_v of the biased cross-attentions; cross_qkv: to_q as well; all: the UNet
    )
    prompt: str = "prd"  # what the UNet attends to; the others are baselines: cfld.ablations
    biases: bool = True  # of the queries, by H_A
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    swin: SwinConfig = field(default_factory=SwinConfig)
    prd: PRDConfig = field(default_factory=PRDConfig)
    hga: HGAConfig = field(default_factory=HGAConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    clip: CLIPConfig = field(default_factory=CLIPConfig)  # of prompt clip alone
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        unet, vae, swin, prd, hga, adapter = self.unet, self.vae, self.swin, self.prd, self.hga, self.adapter
        if self.unet_trainable not in TRAINABLE:
            raise ValueError(f"unet_trainable must be one of {', '.join(TRAINABLE)}, found {self.unet_trainable!r}")
        if self.prompt not in PROMPTS:
            raise ValueError(f"prompt must be one of {', '.join(PROMPTS)}, found {self.prompt!r}")
        if self.biases and self.prompt in ("multi_scale", "clip"):
            raise ValueError(
                f"biases must be false with prompt {self.prompt}, found true: f_1 to f_3 are in the prompt, or absent"
            )

        def seam(left: str, found: Any, right: str, expected: Any) -> None:
            if found != expected:
                raise ValueError(f"{left} {found} must equal {right} {expected}")

        attended = unet.channels[:-1]
        seam("prd.width", prd.width, "unet.context_width", unet.context_width)
        seam(
            "hga.output_widths", hga.output_widths, "the UNet's attention channels from the inside out", attended[::-1]
        )
        seam("hga.branches", hga.branches, "unet.depth + 1 =", unet.depth + 1)
        seam("adapter.channels", adapter.channels, "the UNet's attention channels", attended)
        seam("hga.source_widths", hga.source_widths, "Swin's widths but the last", swin.widths[:-1])
        seam("prd.source_width", prd.source_width, "Swin's last width", swin.widths[-1])
        seam("prd.source_positions", prd.source_positions, "the positions of Swin's last map", swin.map_sizes[-1] ** 2)
        seam("vae.latent_channels", vae.latent_channels, "unet.latent_channels", unet.latent_channels)

        factor, patch = vae.factor, adapter.patch_size
        latent_size = self.image_size / factor
        seam(
            f"adapter.pose_size {adapter.pose_size} / {patch} =", adapter.pose_size / patch,
            f"image_size {self.image_size} / {factor} =", latent_size,
        )  # fmt: skip
        seam(
            f"swin.image_size {swin.image_size} / {swin.patch_size} =", swin.image_size / swin.patch_size,
            f"image_size {self.image_size} / {factor} =", latent_size,
        )  # fmt: skip
        halvings = 2 ** (len(unet.channels) - 1)
        if latent_size % halvings:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of {factor * halvings}: "
                f"the VAE divides it by {factor}, the UNet by {halvings}"
            )

    @property
    def whole(self) -> bool:
        """Whether this is the paper's method and none of its baselines with other parts."""
        return self.prompt == "prd" and self.biases

    @property
    def source_size(self) -> int:
        """Side of the square that photos are stretched to for the source encoder."""
        return self.clip.image_size if self.prompt == "clip" else self.swin.image_size

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompt."""
        return {"prd": self.prd.num_queries, "clip": 1}.get(self.prompt, self.swin.map_sizes[-1] ** 2)


SD15 = CFLDConfig()
TINY = CFLDConfig(  # docs/tiny.md: how these widths were found
    image_size=128,
    unet_trainable="all",  # there is no public UNet of this size to keep frozen
    unet=UNetConfig(latent_channels=8, channels=(96, 128, 128, 96), num_heads=2, context_width=192, groups=8),
    vae=VAEConfig(latent_channels=8, channels=(32, 64, 96, 96), depth=1, scale=1.0, groups=8),  # of covariance 1
    swin=SwinConfig(
        image_size=64, width=32, depths=(2, 2, 6, 2), num_heads=(2, 4, 8, 16), window=8, stochastic_depth=0.0
    ),
    prd=PRDConfig(width=192, depth=3, num_heads=6, source_width=256, source_positions=4),
    hga=HGAConfig(source_widths=(32, 64, 128), output_widths=(128, 128, 96), depth=2, head_width=16),
    adapter=AdapterConfig(pose_size=64, channels=(96, 128, 128), groups=8),
    scheduler=SchedulerConfig(prediction_type="v_prediction", zero_terminal_snr=True),
)
PRESETS = {"sd15": SD15, "tiny": TINY}
ABLATIONS: dict[str, dict[str, Any]] = {  # the columns "Prompt", "Biasing" and, where it is not K, V, "Trainable"
    "B1": {"prompt": "multi_scale", "biases": False},
    "B2": {"prompt": "clip", "biases": False},
    "B3": {"prompt": "prd", "biases": False},
    "B4": {"prompt": "prd", "biases": False, "unet_trainable": "cross_qkv"},
    "B5": {"prompt": "swin", "biases": True},
}


def ablation(config: CFLDConfig, name: str) -> CFLDConfig:
    """The whole method's config as a row of Table 3. Raises UserError if it is one of its baselines already."""
    if not config.whole:
        raise UserError(
            f"ablation {name} must be made of the whole method, found a config of prompt {config.prompt!r} and biases "
            f"{config.biases}: leave --ablation out to train that one"
        )
    return dataclasses.replace(config, **ABLATIONS[name])


def to_dict(config: CFLDConfig) -> dict[str, Any]:
    """A config as plain dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], kind: type = CFLDConfig, path: str = "") -> Any:
    """Build a config from to_dict's form; a field that is left out has SD 1.5's value. Raises ValueError that names
    the field for one that is unknown or of the wrong type, and for seams that disagree."""
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise ValueError(f"{path or 'a config'} must be an object of fields, found {values!r}")
    if unknown := [name for name in values if name not in hints]:
        raise ValueError(f"unknown field {path}{unknown[0]}: the fields here are {', '.join(hints)}")
    return kind(**{name: _parse(value, hints[name], f"{path}{name}") for name, value in values.items()})


def _parse(value: Any, hint: Any, name: str) -> Any:
    """One field's value in its type."""
    if dataclasses.is_dataclass(hint):
        return from_dict(value, typing.cast(type, hint), name + ".")
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} must be a list, found {value!r}")
        return tuple(_parse(item, typing.get_args(hint)[0], name) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or isinstance(value, bool) != (hint is bool):
        raise ValueError(f"{name} must be {hint.__name__}, found {value!r}")
    if hint is int and value < 1:
        raise ValueError(f"{name} must be at least 1, found {value}")
    return value


def read_config(path: str | Path) -> CFLDConfig:
    """A config from a JSON file in to_dict's form. Raises UserError that names the file."""
    try:
        return from_dict(read_json(path))
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None
