"""What a training begins with: the weights of --init, and fresh ones for what --init lacks."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cfld.baselines import ablation, build, read_config
from cfld.baselines.b1_to_b5 import B2Config
from cfld.config import PRESETS, CFLDConfig
from cfld.folder import assign, load, load_vae
from cfld.model import CFLD
from cfld.student import merge_adapters, student_of
from cfld.swin import Swin
from cfld.tools.cli import UserError
from cfld.tools.tensors import read_safetensors
from cfld.training.checkpoint import difference, frozen_hash
from cfld.training.options import TrainConfig
from cfld.unet import ResBlock, SpatialTransformer, UNet
from cfld.vae import VAE, SpatialAttention


def architecture(options: TrainConfig) -> CFLDConfig:
    """The config that --preset or --config and --ablation name, with the VAE's scale of --init. Raises UserError if
    --init has another architecture."""
    config = read_config(options.config) if options.config else PRESETS[options.preset]
    if options.ablation:
        config = ablation(config, options.ablation)
    config = dataclasses.replace(config, distilled=options.distilled)
    if options.init is None:
        return config
    init = Path(options.init)
    found = read_config(init / "config.json")
    if found.distilled is not None:
        raise UserError(
            f"--init {init} must not be a student, which cannot be trained further: name its teacher instead"
        )
    if options.distilled and not (init / "model.safetensors").is_file():
        raise UserError(f"--init {init} must be the teacher's model folder, found no model.safetensors in it")
    found = dataclasses.replace(found, distilled=options.distilled)
    config = dataclasses.replace(config, vae=dataclasses.replace(config.vae, scale=found.vae.scale))
    if not (init / "model.safetensors").is_file():  # parts: only they must fit, whatever model they were trained for
        swin = found.swin if (init / "source_encoder.safetensors").is_file() else config.swin
        found = dataclasses.replace(config, vae=found.vae, swin=swin)
    if differs := difference(dataclasses.replace(found, unet_trainable=config.unet_trainable), config):
        asked = f"--config {options.config}" if options.config else f"--preset {options.preset}"
        if options.ablation:
            asked += f" --ablation {options.ablation} (which python -m cfld.convert init takes as well)"
        raise UserError(f"--init {options.init} holds another architecture than {asked}: {differs}")
    return config


def init_as_identity(module: nn.Module) -> None:
    """Initialise a network that trains from scratch: every residual block begins as its skip (Dhariwal and Nichol,
    2021), and convolutions preserve the size of their input and add nothing. With torch's own initialisation the biases
    drown the input, and the VAE needs ten times as many steps until it sees colours (docs/lab_notes.md)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="linear")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, ResBlock | SpatialAttention | SpatialTransformer | UNet):
            last = next(getattr(part, n) for n in ("conv2", "to_out", "proj_out", "conv_out") if hasattr(part, n))
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


def init_swin(swin: Swin) -> None:
    """Initialise a Swin that trains from scratch as Liu et al. (2021) do."""
    for layer in swin.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def initial_model(options: TrainConfig, config: CFLDConfig) -> tuple[CFLD, VAE]:
    """The model to train and its VAE, in float32 on the CPU. What --init lacks is drawn from the seed."""
    if options.init is None:
        raise UserError(
            f"--stage {options.stage} needs --init DIR: a model folder of public weights (python -m cfld.convert "
            "init), or, for tiny, the model/ folder that --stage vae or --stage source made"
        )
    init = Path(options.init)
    torch.manual_seed(options.seed)
    if (init / "model.safetensors").is_file():
        model, vae = load(init)
        model.config = config  # it may differ in unet_trainable
        model.freeze()
        return model, vae
    if config.unet_trainable != "all":
        raise UserError(
            f"{init} must hold model.safetensors: a UNet of which only {config.unet_trainable} trains cannot start "
            "from nothing; make the folder with python -m cfld.convert init, or with --stage base for tiny"
        )
    if isinstance(config, B2Config):
        raise UserError(
            f"{init} must hold model.safetensors with CLIP's image encoder, which B2 keeps frozen and cannot train "
            "from nothing; python -m cfld.convert init --ablation B2 --clip FILE makes such a folder"
        )
    source_encoder = init / "source_encoder.safetensors"
    known = "a VAE and a source encoder" if source_encoder.is_file() else "only a VAE"
    tqdm.write(f"{init} holds {known}: everything else starts from seed {options.seed}")
    model = build(config)
    torch.manual_seed(options.seed)  # again, so that all rows of Table 3 start from the same shared weights
    for part in (model.unet, model.pose_adapter):
        init_as_identity(part)
    init_swin(model.source_encoder)
    if source_encoder.is_file():
        assign(model.source_encoder, read_safetensors(source_encoder)[0], source_encoder)
    return model, load_vae(init)


def hashed_modules(options: TrainConfig, model: CFLD, vae: VAE) -> tuple[nn.Module, ...]:
    """The modules whose frozen weights come from --init. Where it has no model, that is only the VAE: what is frozen of
    a fresh model (of --stage base all but the UNet, of baseline B1 the end of Swin) is not used."""
    has_model = options.init is not None and (Path(options.init) / "model.safetensors").is_file()
    return (model, vae) if has_model else (vae,)


def trained_model(
    options: TrainConfig, config: CFLDConfig, learnt: dict[str, Tensor], frozen_sha256: str
) -> tuple[CFLD, VAE]:
    """Combine what a run has learnt with the frozen weights of --init, in their original precision.

    learnt: State.learnt; of a student, its adapters are merged
    frozen_sha256: of the run; raises UserError if --init holds other frozen weights by now
    """
    model, vae = initial_model(options, config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learnt and config.distilled is None)  # all of a teacher is in its hash
    vae.requires_grad_(False)
    if frozen_hash(*hashed_modules(options, model, vae)) != frozen_sha256:
        raise UserError(
            f"--init {options.init} has changed since the training began, and nothing was written: restore the folder "
            "with the frozen weights that it began with, then --resume"
        )
    if config.distilled is not None:
        model = student_of(model, config.distilled, learnt)
        merge_adapters(model.unet)
        return model, vae
    _, unknown = model.load_state_dict(learnt, strict=False)
    if lost := [name for name in unknown if not name.startswith("helper.")]:
        raise UserError(f"the model must have all that was trained; {len(lost)} tensors are not its (first: {lost[0]})")
    return model, vae
