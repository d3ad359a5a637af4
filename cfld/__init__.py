"""Coarse-to-Fine Latent Diffusion for pose-guided person image synthesis (CVPR 2024), from scratch in plain PyTorch.

import cfld
model, vae = cfld.load()  # the bundled model, or cfld.load("DIR")
picture = cfld.generate(model, vae, photo, cfld.read_pose("pose.json"))[0]
"""

from cfld.adapter import AdapterConfig, PoseAdapter
from cfld.baselines.clip import CLIPConfig
from cfld.config import SD15, TINY, CFLDConfig
from cfld.folder import load, save
from cfld.hga import HGAConfig, HybridGranularityAttention
from cfld.model import CFLD, Conditions
from cfld.photos.keypoints import keypoints_from, read_pose
from cfld.photos.retarget import retarget
from cfld.pose import pose_maps
from cfld.prd import PerceptionRefinedDecoder, PRDConfig
from cfld.sampling import SamplingConfig, generate
from cfld.scheduler import Scheduler, SchedulerConfig
from cfld.swin import Swin, SwinConfig
from cfld.tools.cli import UserError
from cfld.unet import UNet, UNetConfig
from cfld.vae import VAE, VAEConfig

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
    "SamplingConfig",
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
    "retarget",
    "save",
]
