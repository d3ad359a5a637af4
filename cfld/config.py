"""CFLD's configuration: the configs of its parts side by side, and one check of all interfaces between them.

Presets: SD15, the paper's model on Stable Diffusion 1.5, and TINY, the same classes at widths that a laptop trains.
"""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any

from cfld.adapter import AdapterConfig
from cfld.hga import HGAConfig
from cfld.prd import PRDConfig
from cfld.scheduler import SchedulerConfig
from cfld.swin import SwinConfig
from cfld.tools.checks import check_config
from cfld.unet import UNetConfig
from cfld.vae import VAEConfig

TRAINABLE = ("cross_kv", "cross_qkv", "all")
DISTILLATIONS = ("consistency", "trajectory")
TARGETS = ("attention", "linear", "all")


@dataclass(frozen=True)
class DistilledConfig:
    """How a student was distilled (cfld/training/distill.py), and therefore how it is sampled."""

    recipe: str = "consistency"  # of DISTILLATIONS
    scale: float = 2.0  # w_pose = w_app of Eq. 7, which is part of the student
    rank: int | None = None  # of its adapters (cfld/student.py); None: none, all UNet weights were trained
    targets: str = "linear"  # the layers that have adapters: attention, linear, or all

    def __post_init__(self) -> None:
        check_config(self, "distilled")
        for name, found, allowed in (("recipe", self.recipe, DISTILLATIONS), ("targets", self.targets, TARGETS)):
            if found not in allowed:
                raise ValueError(f"distilled.{name} must be one of {', '.join(allowed)}, found {found!r}")


@dataclass(frozen=True)
class CFLDConfig:
    """By default Table 1 of the paper and Stable Diffusion 1.5."""

    # Side of the square that photos are stretched to for the VAE.
    image_size: int = 512
    # Which UNet weights train: cross_kv, to_k and to_v of the up path's cross-attentions; cross_qkv, to_q as well; all.
    unet_trainable: str = "cross_kv"
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    swin: SwinConfig = field(default_factory=SwinConfig)
    prd: PRDConfig = field(default_factory=PRDConfig)
    hga: HGAConfig = field(default_factory=HGAConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    distilled: DistilledConfig | None = None  # of a student, which generates in a few steps without guidance

    def __post_init__(self) -> None:
        check_config(self, "")
        unet, vae, swin, prd, hga, adapter = self.unet, self.vae, self.swin, self.prd, self.hga, self.adapter
        if self.unet_trainable not in TRAINABLE:
            raise ValueError(f"unet_trainable must be one of {', '.join(TRAINABLE)}, found {self.unet_trainable!r}")

        attended = unet.channels[:-1]
        size, latent_size = self.image_size, self.image_size / vae.factor
        latents = f"image_size {size} / {vae.factor} ="
        pose_map = f"adapter.pose_size {adapter.pose_size} / {adapter.patch_size} ="
        source_map = f"swin.image_size {swin.image_size} / {swin.patch_size} ="
        for left, found, right, expected in (
            ("prd.width", prd.width, "unet.context_width", unet.context_width),
            ("prd.source_width", prd.source_width, "Swin's last width", swin.widths[-1]),
            ("prd.source_positions", prd.source_positions, "the positions of Swin's last map", swin.map_sizes[-1] ** 2),
            ("hga.source_widths", hga.source_widths, "Swin's widths but the last", swin.widths[:-1]),
            ("hga.output_widths", hga.output_widths, "the UNet's attention channels, coarsest first", attended[::-1]),
            ("hga.branches", hga.branches, "unet.depth + 1 =", unet.depth + 1),
            ("adapter.channels", adapter.channels, "the UNet's attention channels", attended),
            ("vae.latent_channels", vae.latent_channels, "unet.latent_channels", unet.latent_channels),
            (pose_map, adapter.pose_size / adapter.patch_size, latents, latent_size),
            (source_map, swin.image_size / swin.patch_size, latents, latent_size),
        ):
            if found != expected:
                raise ValueError(f"{left} {found} must equal {right} {expected}")
        halvings = 2 ** (len(unet.channels) - 1)
        if latent_size % halvings:
            raise ValueError(
                f"image_size {size} must be a multiple of {vae.factor * halvings}: "
                f"the VAE divides it by {vae.factor}, the UNet by {halvings}"
            )

    @property
    def source_size(self) -> int:
        """Side of the square that photos are stretched to for the source encoder."""
        return self.swin.image_size

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompt."""
        return self.prd.num_queries


SD15 = CFLDConfig()
TINY = CFLDConfig(  # the bundled model's: docs/tiny.md
    image_size=128,
    unet_trainable="all",  # there is no public UNet of this size to keep frozen
    unet=UNetConfig(latent_channels=8, channels=(96, 128, 128, 96), num_heads=2, context_width=192, groups=8),
    vae=VAEConfig(latent_channels=8, channels=(32, 64, 96, 96), depth=1, scale=1.0, groups=8),  # latents are whitened
    swin=SwinConfig(
        image_size=64, width=32, depths=(2, 2, 6, 2), num_heads=(2, 4, 8, 16), window=8, stochastic_depth=0.0
    ),
    prd=PRDConfig(width=192, depth=3, num_heads=6, source_width=256, source_positions=4),
    hga=HGAConfig(source_widths=(32, 64, 128), output_widths=(128, 128, 96), depth=2, head_width=16),
    adapter=AdapterConfig(pose_size=64, channels=(96, 128, 128), groups=8),
    scheduler=SchedulerConfig(prediction_type="v_prediction", zero_terminal_snr=True),
)
PRESETS = {"sd15": SD15, "tiny": TINY}


def parse(values: dict[str, Any], kind: type = CFLDConfig, path: str = "") -> Any:
    """Build a config of this class from plain dictionaries and lists, such as JSON holds. A field that is left out has
    its default. Raises ValueError that names the field for one that is unknown or of a wrong type."""
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise ValueError(f"{path.rstrip('.')} must be an object of fields, found {values!r:.60}")
    if unknown := [name for name in values if name not in hints]:
        raise ValueError(f"unknown field {path}{unknown[0]:.60}: the fields here are {', '.join(hints)}")
    return kind(**{name: _parse_field(value, hints[name], f"{path}{name}") for name, value in values.items()})


def _parse_field(value: Any, hint: Any, name: str) -> Any:
    """A value of JSON as what a config has in its place; numbers and words are for the config to check."""
    if type(None) in typing.get_args(hint):
        if value is None:
            return None
        hint = typing.get_args(hint)[0]
    if dataclasses.is_dataclass(hint):
        return parse(value, typing.cast(type, hint), name + ".")
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} must be a list, found {value!r:.60}")
        return tuple(value)
    return value
