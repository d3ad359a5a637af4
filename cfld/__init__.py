"""Coarse-to-Fine Latent Diffusion for pose-guided person image synthesis (CVPR 2024), from scratch in plain PyTorch.

import cfld
model, vae = cfld.load()  # the bundled model; cfld.load("DIR"): another
picture = cfld.generate(model, vae, photo, cfld.read_pose("pose.json"))[0]
"""

from typing import TYPE_CHECKING, Any

from cfld.adapter import AdapterConfig, PoseAdapter
from cfld.clip import CLIPConfig
from cfld.config import SD15, TINY, CFLDConfig
from cfld.files import UserError
from cfld.hga import HGAConfig, HybridGranularityAttention
from cfld.model import CFLD, Conditions, load, save
from cfld.pose import keypoints_from, pose_maps, read_pose
from cfld.prd import PerceptionRefinedDecoder, PRDConfig
from cfld.scheduler import Scheduler, SchedulerConfig
from cfld.swin import Swin, SwinConfig
from cfld.unet import UNet, UNetConfig
from cfld.vae import VAE, VAEConfig

if TYPE_CHECKING:
    from cfld.sample import generate

__version__ = "0.1.0"

__all__ = [
    "CFLD",
    "SD15",
    "TINY",
    "VAE",
    "AdapterConfig",
    "CFLDConfig",
    "CLIPConfig",
    "Conditions",
    "HGAConfig",
    "HybridGranularityAttention",
    "PRDConfig",
    "PerceptionRefinedDecoder",
    "PoseAdapter",
    "Scheduler",
    "SchedulerConfig",
    "Swin",
    "SwinConfig",
    "UNet",
    "UNetConfig",
    "UserError",
    "VAEConfig",
    "generate",
    "keypoints_from",
    "load",
    "pose_maps",
    "read_pose",
    "save",
]


def __getattr__(name: str) -> Any:
    if name == "generate":  # imported when asked for: cfld.sample is also a command
        from cfld.sample import generate

        return generate
    raise AttributeError(f"module 'cfld' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
