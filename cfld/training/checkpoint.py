"""Checkpoints."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cfld.baselines import ablation, from_dict, read_config, to_dict
from cfld.baselines import build as build_model
from cfld.baselines.b1_to_b5 import B2Config
from cfld.config import PRESETS, CFLDConfig
from cfld.folder import assign, load, load_vae
from cfld.model import CFLD
from cfld.tools.cli import UserError
from cfld.tools.tensors import read_safetensors, tensors_hash, write_tensors
from cfld.training.options import TrainConfig
from cfld.training.pretrain import FIRST_LOGVAR, begin_at_identity, begin_small
from cfld.vae import VAE


def difference(there: CFLDConfig, here: CFLDConfig) -> str | None:
    """The first part in which two architectures differ, with both values; None if they are the same."""
    found, asked = ({"baseline": None} | to_dict(config) for config in (there, here))
    names = (name for name in found | asked if found.get(name) != asked.get(name))
    return next((f"{name} is {found.get(name)} there and {asked.get(name)} here" for name in names), None)


def frozen_hash(*modules: nn.Module) -> str:
    """A sha256 of every frozen tensor, name and bytes."""
    parameters = (named for module in modules for named in module.named_parameters())
    return tensors_hash((name, parameter) for name, parameter in parameters if not parameter.requires_grad)


@dataclass
class State:
    """What a checkpoint holds: all that changes while training."""

    trained: dict[str, nn.Parameter]
    averages: dict[str, Tensor]  # empty without --ema
    optimizer: torch.optim.Adam
    scaler: torch.amp.GradScaler
    config: CFLDConfig
    base: str  # hash of what does not change
    step: int = 0  # steps done
    best: float | None = None  # the least held-out loss so far

    def save(self, path: Path) -> None:
        """Write a checkpoint whole or not at all."""
        tensors = {f"weights/{name}": p.detach() for name, p in self.trained.items()}
        tensors |= {f"averages/{name}": x for name, x in self.averages.items()}
        for name, parameter in self.trained.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = value
        if lost := [name for name, x in tensors.items() if not x.isfinite().all()]:
            raise UserError(
                f"after step {self.step} {len(lost)} tensors are not finite (first: {lost[0]}); nothing was saved over "
                f"the checkpoints before; begin anew with a lower --lr"
            )
        model, scaler = to_dict(self.config), self.scaler.state_dict()
        facts = {"step": self.step, "base": self.base, "scaler": scaler, "model": model, "best": self.best}
        write_tensors(path, tensors, {"cfld": json.dumps(facts)})

    def restore(self, path: Path) -> None:
        """Read a checkpoint. Raises UserError if it is damaged or of another model or base."""
        tensors, metadata = read_safetensors(path)
        facts = json.loads(metadata.get("cfld", "{}"))
        if "step" not in facts:
            raise UserError(f"{path}: must be a checkpoint of cfld.train, found another safetensors file")
        if facts["base"] != self.base:
            raise UserError(
                f"{path}: was trained on frozen weights of sha256 {facts['base'][:12]}..., found {self.base[:12]}...; "
                f"--init must be the folder that the run began with"
            )
        if differs := difference(from_dict(facts["model"]), self.config):
            raise UserError(f"{path} is of another architecture: {differs}")
        held = {name for name in tensors if name.startswith(("weights/", "averages/"))}
        wanted = {f"weights/{name}" for name in self.trained} | {f"averages/{name}" for name in self.averages}
        if odd := sorted(held ^ wanted):
            raise UserError(f"{path} holds other tensors than this run trains ({len(odd)} differ, first: {odd[0]})")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[f"weights/{name}"])
                if f"step/{name}" in tensors:
                    moments = {
                        key: torch.empty_like(parameter).copy_(tensors[f"{key}/{name}"])  # as it lies in memory
                        for key in ("exp_avg", "exp_avg_sq")
                    }
                    self.optimizer.state[parameter] = {"step": tensors[f"step/{name}"].to(parameter.device), **moments}
            for name, average in self.averages.items():
                average.copy_(tensors[f"averages/{name}"])
        self.scaler.load_state_dict(facts["scaler"])
        self.step, self.best = facts["step"], facts.get("best")


def step_of(checkpoint: Path) -> int:
    """The number of steps in a checkpoint's name."""
    return int(checkpoint.stem.removeprefix("step_"))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. What somebody has named otherwise is not the run's."""
    return sorted((folder / "checkpoints").glob(f"step_{'[0-9]' * 8}.safetensors"))


def architecture(options: TrainConfig) -> CFLDConfig:
    """What --preset or --config and --ablation say, with the VAE's scale of --init. Raises UserError if --init has
    another."""
    config = read_config(options.config) if options.config else PRESETS[options.preset]
    if options.ablation:
        config = ablation(config, options.ablation)
    if options.init is None:
        return config
    init = Path(options.init)
    found = read_config(init / "config.json")
    config = dataclasses.replace(config, vae=dataclasses.replace(config.vae, scale=found.vae.scale))
    if not (init / "model.safetensors").is_file():  # parts, no matter what they were trained for
        swin = found.swin if (init / "source_encoder.safetensors").is_file() else config.swin
        found = dataclasses.replace(config, vae=found.vae, swin=swin)
    if differs := difference(dataclasses.replace(found, unet_trainable=config.unet_trainable), config):
        asked = f"--config {options.config}" if options.config else f"--preset {options.preset}"
        if options.ablation:
            asked += f" --ablation {options.ablation} (which python -m cfld.convert init takes as well)"
        raise UserError(f"--init {options.init} holds another architecture than {asked}: {differs}")
    return config


def build(options: TrainConfig, config: CFLDConfig) -> tuple[CFLD | None, VAE]:
    """The modules to train from: of --init where it has them, fresh from the seed where it has not."""
    torch.manual_seed(options.seed)
    if options.stage == "vae":
        vae = VAE(config.vae)
        begin_at_identity(vae)
        with torch.no_grad():
            vae.encoder.to_moments.bias[config.vae.latent_channels :] = FIRST_LOGVAR  # type: ignore[index]
        return None, vae
    if options.init is None:
        raise UserError(
            f"--stage {options.stage} needs --init DIR: a model folder of public weights (python -m cfld.convert "
            "init), or, for tiny, the model/ folder that --stage vae or --stage source made"
        )
    if (Path(options.init) / "model.safetensors").is_file():
        model, vae = load(options.init)
        model.config = config  # which may differ in unet_trainable
        model.freeze()
        return model, vae
    if config.unet_trainable != "all":
        raise UserError(
            f"{options.init} must hold model.safetensors: a UNet of which only {config.unet_trainable} trains "
            f"cannot start from nothing; make the folder with python -m cfld.convert init, or --stage base for tiny"
        )
    if isinstance(config, B2Config):
        raise UserError(
            f"{options.init} must hold model.safetensors with CLIP's image encoder, which B2 keeps frozen and cannot "
            f"train from nothing; python -m cfld.convert init --ablation B2 --clip FILE makes such a folder"
        )
    source_encoder = Path(options.init) / "source_encoder.safetensors"
    known = "a VAE and a source encoder" if source_encoder.is_file() else "a VAE"
    tqdm.write(f"{options.init} holds {known} alone: everything else starts from seed {options.seed}")
    model = build_model(config)
    torch.manual_seed(options.seed)  # again: what rows of Table 3 share begins alike, whatever the rest has drawn
    for part in (model.unet, model.pose_adapter):
        begin_at_identity(part)
    begin_small(model.source_encoder)
    if source_encoder.is_file():
        assign(model.source_encoder, read_safetensors(source_encoder)[0], source_encoder)
    return model, load_vae(options.init)


def rebuilt(options: TrainConfig, config: CFLDConfig, learnt: dict[str, Tensor], base: str) -> tuple[CFLD, VAE]:
    """What a training has learnt, with the frozen rest of what it began with, in its first precision. Raises UserError
    if that is not there any more; base: its frozen_hash."""
    model, vae = build(options, config)
    assert model is not None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learnt)
    if frozen_hash(model, vae.requires_grad_(False)) != base:
        raise UserError(
            f"--init {options.init} has changed since the training began, and nothing was written: put the folder back "
            "whose frozen weights it began with, then --resume"
        )
    model.load_state_dict(learnt, strict=False)
    return model, vae
