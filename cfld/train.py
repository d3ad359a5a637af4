"""Training (Sec. 3.3 and 4.1): a loop that can be killed and goes on; what it minimises is cfld.objective.

    python -m cfld.train --preset sd15 --init DIR --data ROOT --out RUN
    python -m cfld.train --preset tiny --stage vae --data people:2000x4 --out RUN_VAE              tiny, from nothing,
    python -m cfld.train --preset tiny --stage source --init RUN_VAE/model --data people:2000x4 --out RUN_SOURCE    in
    python -m cfld.train --preset tiny --init RUN_SOURCE/model --data people:2000x4 --out RUN             three stages
    python -m cfld.train --ablation B3 ...                        a baseline of Table 3 instead of the whole method
    python -m cfld.train --out RUN --resume                       after a stop of any kind; SIGTERM and Ctrl-C save
    python -m cfld.train --dry-run ...                            what it needs of memory and time
    python -m cfld.train --plot RUN                               the curves of its log, as RUN/plot.png
    torchrun --nproc-per-node 8 -m cfld.train ...                 the same training, its batch divided among 8 processes

The paper starts from a Swin that knows ImageNet's classes, and from Stable Diffusion, which paints people from words.
For drawn people, --stage source makes a Swin that tells their attributes from a photo, and --stage base a UNet that
paints a prompt of attributes, without source or pose; --stage cfld may keep it frozen (unet_trainable in --config).

A run folder holds config.json, log.jsonl (step, loss, lr, rows/s), samples/, checkpoints/ and at the end model/, a
model folder. Everything random in a step is a function of (seed, step, place of the pair in the global batch), so
neither accumulation nor the number of processes nor a stop changes what is trained.

Letters in shapes: B pairs, which make 2B rows: every source from itself, then every target from its source.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
import resource
import signal
import sys
import time
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from cfld.config import ABLATIONS, PRESETS, CFLDConfig, ablation, from_dict, read_config, to_dict
from cfld.data import (
    Batch,
    Cache,
    DescribedPairs,
    FashionPairs,
    Pairs,
    PeoplePairs,
    StepOrder,
    collate,
    manifest,
    open_pairs,
    seeded,
    step_batches,
    to_range,
)
from cfld.files import (
    PRECISIONS,
    UserError,
    alone_in,
    command,
    command_parser,
    contents,
    keep_freed_memory,
    link,
    pick_device,
    read_json,
    read_safetensors,
    remove,
    remove_leftovers,
    save_image,
    tensors_hash,
    write_json,
    write_tensors,
    write_text,
    writing,
)
from cfld.hga import HGABlock
from cfld.model import CFLD, Conditions, assign, load, load_vae_alone, save, save_parts
from cfld.objective import (
    AttributeHead,
    AttributePrompt,
    Draws,
    base_loss,
    draw_step,
    source_loss,
    standardise,
    training_loss,
    vae_loss,
    whiten,
)
from cfld.plot import plot
from cfld.pose import FRAME, pose_maps
from cfld.prd import PRDBlock
from cfld.sample import check_steps, denoise, picture_grid, sample, to_pictures
from cfld.scheduler import Scheduler
from cfld.swin import Swin, SwinBlock
from cfld.unet import ResBlock, SpatialTransformer, TransformerBlock, UNet
from cfld.vae import VAE, SpatialAttention

FIRST_LOGVAR = -8.0  # of the VAE stage's posterior
HELD_OUT, NO_STEP = 64, 2**31  # pairs of the held-out loss, and the step whose draws they take


def option(default: Any, text: str, **extra: Any) -> Any:
    """A field of TrainConfig with its help."""
    return field(default=default, metadata={"help": text, **extra})


@dataclass(frozen=True)
class TrainConfig:
    """The options of the command line."""

    preset: str = option("sd15", "architecture and defaults", choices=tuple(PRESETS))
    config: str | None = option(None, "JSON file of another architecture (a model folder's config.json shows the form)")
    ablation: str | None = option(None, "train this row of Table 3 instead of the whole method (docs/ablations.md)",
                                  choices=tuple(ABLATIONS))  # fmt: skip
    init: str | None = option(None, "folder to start from: cfld.convert init makes one, for tiny --stage vae or source")
    data: str | None = option(None, "folder in DeepFashion's layout, prepared by cfld.data; or people:2000x4")
    cache: str | None = option(None, "folder that python -m cfld.data cache has made of --data with the VAE of --init")
    out: str = option("runs/cfld", "run folder to make or to continue")
    stage: str = option("cfld", "what to train: the whole method; or for tiny, before it, a VAE, a Swin that tells "
                        "attributes, a UNet that paints them", choices=("cfld", "vae", "source", "base"))  # fmt: skip
    recipe: str = option("paper", "dropping and learning rate of --stage cfld: the paper's, or those of the released "
                         "files", choices=("paper", "released"))  # fmt: skip
    steps: int | None = option(None, "length in steps (default: 100 epochs)")
    epochs: float | None = option(None, "length in epochs, instead of --steps")
    batch: int | None = option(None, "pairs of the global batch (default: 224 for sd15, 16 for tiny)")
    accumulate: int = option(1, "parts the batch is cut into, to save memory; the result is the same")
    lr: float | None = option(None, "learning rate after warm-up (default: for sd15 the recipe's for this batch, for "
                                  "tiny 4e-4, or 1e-3 for --stage vae and source)")  # fmt: skip
    warmup: int | None = option(None, "steps of linear warm-up (default: 1000 for sd15, 100 for tiny)")
    decay_at: float = option(0.5, "share of the training after which the learning rate is a tenth")
    min_snr: float = option(0.0, "weigh timesteps by min(SNR, this) / SNR, such as 5 (Hang et al., 2023), or of a "
                            "predicted velocity by min(SNR + 1, this) / (SNR + 1); 0: all alike")  # fmt: skip
    noise_offset: float = option(
        0.0, "also add this times one normal number a channel to the noise, such as 0.1; 0: none"
    )
    kl: float = option(1e-9, "of --stage vae: weight of the divergence, summed over a latent, beside the mean error")
    clip: float = option(0.0, "longest gradient (its norm over all weights), such as 1; 0: any, as in the paper")
    ema: float = option(0.0, "decay of the averages of the trained weights, such as 0.999; 0 keeps none")
    seed: int = option(0, "seed of everything random")
    precision: str = option(
        "bf16", "of products and convolutions; weights that train stay fp32", choices=tuple(PRECISIONS)
    )
    checkpointing: str = option("none", "what is computed again in the backward, to save memory: attention and its "
                                "feed-forward, or every block", choices=("none", "attention", "all"))  # fmt: skip
    compile: bool = option(False, "torch.compile the UNet: faster after some minutes, and not bit for bit the same")
    channels_last: bool = option(False, "keep maps with the channels last in memory, as some GPUs like it")
    workers: int | None = option(None, "processes that read photos (default: 4 with CUDA, none without)")
    save_every: int = option(1000, "steps between checkpoints; 0: at the end alone")
    keep: int = option(2, "how many of the latest checkpoints to keep")
    sample_every: int = option(1000, "steps between sample grids; 0: none")
    sample_steps: int = option(50, "DDPM steps of a sample grid")
    log_every: int = option(10, "steps between lines of log.jsonl; 0: none")
    eval_every: int = option(0, "steps between looks at the held-out loss; the checkpoint where it is least is kept as "
                                "checkpoints/best.safetensors; 0: none")  # fmt: skip
    timeout: float = option(30, "of several processes: minutes after which one that hears nothing of another gives up")
    device: str | None = option(None, "cuda, cpu, ... (default: the best there is)")

    def __post_init__(self) -> None:
        positive = {"steps": 1, "batch": 1, "accumulate": 1, "keep": 1, "sample_steps": 1, "warmup": 0, "workers": 0,
                    "save_every": 0, "sample_every": 0, "log_every": 0, "eval_every": 0, "seed": 0, "lr": 0,
                    "epochs": 0, "min_snr": 0, "noise_offset": 0, "kl": 0, "clip": 0}  # fmt: skip
        for name, least in positive.items():
            value = getattr(self, name)
            limit, below = (math.inf, "finite") if isinstance(value, float) else (2**63, "below 2^63")
            if value is not None and not least <= value < limit:
                raise UserError(f"--{name.replace('_', '-')} must be at least {least} and {below}, found {value}")
        if self.steps and self.epochs:
            raise UserError(f"--steps {self.steps} and --epochs {self.epochs} both say how long: leave one of them out")
        if not self.timeout > 0:
            raise UserError(f"--timeout must be more than 0 minutes, found {self.timeout}")
        for name in ("ema", "decay_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} must be within 0 .. 1, found {getattr(self, name)}")
        for name in ("init", "cache", "ablation"):
            if self.stage == "vae" and getattr(self, name):
                raise UserError(f"--stage vae starts from photos alone, found --{name} {getattr(self, name)}")
        for name in ("init", "data", "config", "cache"):
            path = getattr(self, name)
            if path and Path(self.out).resolve() in Path(path).resolve().parents:
                raise UserError(f"--{name} {path} must not lie inside --out {self.out}: choose another --out")
        if self.global_batch % self.accumulate:
            raise UserError(f"--batch {self.global_batch} must be a multiple of --accumulate {self.accumulate}")

    @property
    def global_batch(self) -> int:
        return self.batch or (224 if self.preset == "sd15" else 16)

    @property
    def warmup_steps(self) -> int:
        return (1000 if self.preset == "sd15" else 100) if self.warmup is None else self.warmup

    @property
    def peak_lr(self) -> float:
        """5e-7 a pair of the batch (paper) or 1e-4 at 224 pairs (released). TINY starts from nothing and bears more; at
        1e-3 its UNet diverged after 1,160 steps (docs/overfit.md)."""
        if self.lr is not None:
            return self.lr
        if self.preset == "tiny":
            return 1e-3 if self.stage in ("vae", "source") else 4e-4
        return 5e-7 * self.global_batch if self.recipe == "paper" else 1e-4 * self.global_batch / 224


FREE_ON_RESUME = {"init", "data", "cache", "out", "steps", "epochs", "accumulate", "checkpointing", "workers",
                  "save_every", "keep", "sample_every", "sample_steps", "log_every", "eval_every", "timeout",
                  "device"}  # fmt: skip


# Objective and learning rate. -----------------------------------------------------------------------------------------


class Objective(nn.Module):
    """What a stage trains, and its loss: one module, so that processes can share its gradients."""

    def __init__(
        self,
        options: TrainConfig,
        config: CFLDConfig,
        model: CFLD | None,
        vae: VAE,
        helper: AttributeHead | AttributePrompt | None,
    ):
        super().__init__()
        self.options, self.scheduler = options, Scheduler(config.scheduler)
        self.model, self.vae, self.helper = model, vae, helper

    def forward(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The mean loss over a micro-batch, and its timesteps."""
        if self.model is None:
            return vae_loss(self.vae, batch, draws, self.options.kl), torch.zeros(0)
        if isinstance(self.helper, AttributeHead):
            return source_loss(self.model.source_encoder, self.helper, batch, draws), torch.zeros(0)
        min_snr = self.options.min_snr
        if self.helper is not None:
            return base_loss(self.model, self.helper, self.vae, self.scheduler, batch, draws, min_snr)
        return training_loss(self.model, self.vae, self.scheduler, batch, draws, self.options.recipe, min_snr)


def learning_rate(step: int, total: int, options: TrainConfig) -> float:
    """Linear warm-up, constant, and a tenth of it for the rest (Sec. 4.1). It begins at a tenth, as in the released
    code; the paper does not say where."""
    if step < options.warmup_steps:
        return options.peak_lr * (0.1 + 0.9 * (step + 1) / options.warmup_steps)
    return options.peak_lr * (0.1 if step >= options.decay_at * total else 1.0)


# Checkpoints. --------------------------------------------------------------------------------------------------------


def difference(there: CFLDConfig, here: CFLDConfig) -> str | None:
    """The first part in which two architectures differ, with both values; None if they are the same."""
    parts = zip(to_dict(there).items(), to_dict(here).values(), strict=True)
    return next((f"{name} is {found} there and {asked} here" for (name, found), asked in parts if found != asked), None)


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


# Setting up. ---------------------------------------------------------------------------------------------------------


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


def begin_at_identity(module: nn.Module) -> None:
    """Initialise what trains from nothing: every residual block begins as its skip (Dhariwal and Nichol, 2021), and
    convolutions keep the size of what they get and add nothing. With torch's own initialisation their biases drown it:
    the VAE then needs ten times as many steps until it sees colours (docs/tiny.md)."""
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


def begin_small(swin: Swin) -> None:
    """Initialise a Swin that trains from nothing, as Liu et al. (2021) began theirs."""
    for layer in swin.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


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
    if config.prompt == "clip":
        raise UserError(
            f"{options.init} must hold model.safetensors with CLIP's image encoder, which B2 keeps frozen and cannot "
            f"train from nothing; python -m cfld.convert init --ablation B2 --clip FILE makes such a folder"
        )
    source_encoder = Path(options.init) / "source_encoder.safetensors"
    known = "a VAE and a source encoder" if source_encoder.is_file() else "a VAE"
    tqdm.write(f"{options.init} holds {known} alone: everything else starts from seed {options.seed}")
    model = CFLD(config)
    torch.manual_seed(options.seed)  # again: what rows of Table 3 share begins alike, whatever the rest has drawn
    for part in (model.unet, model.pose_adapter):
        begin_at_identity(part)
    begin_small(model.source_encoder)
    if source_encoder.is_file():
        assign(model.source_encoder, read_safetensors(source_encoder)[0], source_encoder)
    return model, load_vae_alone(options.init)


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


def shrink_frozen(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep frozen matrices and kernels in the dtype that autocast would convert them to at every use."""
    for parameter in module.parameters():
        if not parameter.requires_grad and parameter.ndim >= 2:
            parameter.data = parameter.data.to(dtype)


def checkpoint_blocks(module: nn.Module, level: str) -> None:
    """Let blocks keep their inputs alone and compute the rest again in the backward (Chen et al., 2016): attention with
    its feed-forward, or every block."""
    attention = (TransformerBlock, SwinBlock, HGABlock, PRDBlock, SpatialAttention)
    kinds = {"none": (), "attention": attention, "all": (*attention, ResBlock)}[level]
    for block in module.modules():
        if isinstance(block, kinds):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """What tensors take of memory."""
    return sum(x.numel() * x.element_size() for x in tensors)


def memory(device: torch.device, peak: bool = False) -> int:
    """The bytes that this process has in use on a device, or the most since they were last asked for."""
    if device.type == "cuda":
        if not peak:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # Linux can forget the peak of loading
        if not peak:
            Path("/proc/self/clear_refs").write_text("5")
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def saved_options(out: Path) -> dict[str, Any]:
    """The options that a run folder was made with."""
    content = read_json(out / "config.json")
    if not isinstance(content, dict) or "options" not in content:
        raise UserError(f"{out}/config.json must be a run's, found another file; choose another --out")
    return content["options"]


def read_run_config(path: Path) -> CFLDConfig:
    """The architecture that a run was begun with."""
    try:
        return from_dict(read_json(path)["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not hold a run's architecture ({error}): choose another --out") from None


def settle_options(given: dict[str, Any], resume: str | None, force: bool) -> TrainConfig:
    """Options of the command line, and on --resume of the run itself. Raises UserError where the two disagree and
    where a run would be overwritten."""
    out = Path(given.get("out", TrainConfig.out))
    if resume is not None and (out / "config.json").is_file():
        saved = saved_options(out)
        for name, value in given.items():
            began = saved.get(name, getattr(TrainConfig, name))  # runs of older versions lack newer options
            if name not in FREE_ON_RESUME and began != value:
                raise UserError(
                    f"--{name.replace('_', '-')} {value} differs from {began}, which {out} was begun with: "
                    f"leave it out to go on, or choose another --out"
                )
        if given.keys() & {"steps", "epochs"}:
            saved |= {"steps": None, "epochs": None}
        try:
            return TrainConfig(**(saved | given))
        except TypeError as error:  # of another version
            raise UserError(f"{out}/config.json holds options that cannot be read here ({error})") from None
    options = TrainConfig(**given)
    if resume is not None and out.exists() and contents(out):
        raise UserError(f"{out} must be a run's to go on with, found no config.json in it; choose another --out")
    if resume is None:
        refuse_run(out, force)
    return options


def refuse_run(out: Path, force: bool) -> None:
    """Raise UserError if a training must not begin in this folder: something is in it, and it is not a run, or the user
    has not said --force."""
    if out.exists() and contents(out):
        if not force:
            raise UserError(
                f"{out} already exists: add --resume to go on with it, --force to start anew, or choose another --out"
            )
        saved_options(out)


# The loop. -----------------------------------------------------------------------------------------------------------


class Run:
    """One training: what it needs, and the loop."""

    def __init__(self, options: TrainConfig, resume: str | None = None, dry_run: bool = False):
        self.options, self.out = options, Path(options.out)
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.writes = self.rank == 0 and not dry_run
        self.device = pick_device(options.device)
        if self.device == torch.device("cuda") and self.world > 1:
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if options.global_batch % (self.world * options.accumulate):
            raise UserError(
                f"--batch {options.global_batch} must be a multiple of the {self.world} processes times --accumulate "
                f"{options.accumulate}"
            )
        begun = self.out / "config.json"
        self.config = read_run_config(begun) if resume and begun.is_file() else architecture(options)
        check_steps("--sample-steps", options.sample_steps, self.config)
        if options.data is None:
            raise UserError(
                "--data ROOT is needed: a folder in DeepFashion's layout, prepared by python -m cfld.data prepare ROOT"
            )
        self.sizes = self.config.image_size, self.config.source_size
        self.pairs = open_pairs(options.data, "train", *self.sizes)
        if options.cache:
            if not (isinstance(self.pairs, FashionPairs) and options.init):
                raise UserError(f"--cache needs --init and a folder as --data, found --data {options.data}")
            expected = manifest(self.pairs, Path(options.init) / "vae.safetensors")
            self.pairs.cache = Cache(options.cache, expected, self.pairs.photos)
        if len(self.pairs) < options.global_batch:
            raise UserError(
                f"--batch {options.global_batch} must not exceed the {len(self.pairs)} training pairs of {options.data}"
            )
        if options.eval_every and not self.has_test_split():
            raise UserError(f"--eval-every needs pairs that are not trained on, found no test split in {options.data}")
        self.held_out: Pairs | None = None  # what is looked at: the test split, or the training split if there is none
        if options.eval_every or options.sample_every:
            self.held_out = open_pairs(options.data, "test" if self.has_test_split() else "train", *self.sizes)
        self.steps_an_epoch = len(self.pairs) // options.global_batch  # the last, partial batch is dropped
        epochs = 100 if options.epochs is None else options.epochs
        self.total = options.steps or max(1, round(epochs * self.steps_an_epoch))
        if options.warmup_steps > options.decay_at * self.total:
            self.say(
                f"the warm-up of {options.warmup_steps} steps ends after --decay-at {options.decay_at} of "
                f"{self.total:,} steps: a shorter --warmup would reach the learning rate of {options.peak_lr:g}"
            )
        self.model, self.vae = build(options, self.config)
        self.scheduler = Scheduler(self.config.scheduler)

        self.vae.requires_grad_(self.model is None)
        module: nn.Module = self.vae if self.model is None else self.model
        self.helper: AttributeHead | AttributePrompt | None = None  # what a stage trains beside the model's own
        if options.stage in ("source", "base"):
            assert self.model is not None
            module.requires_grad_(False)
            num_attributes = self.described(self.pairs)[0][-1].numel()
            if options.stage == "source":
                self.model.source_encoder.requires_grad_(True)
                self.helper = AttributeHead(num_attributes, self.config)
            else:
                self.model.unet.requires_grad_(True)
                self.model.null_prompt.requires_grad_(True)
                self.helper = AttributePrompt(num_attributes, self.config)
        self.dtype = PRECISIONS[options.precision]
        base = frozen_hash(*(m for m in (self.model, self.vae) if m is not None))
        for frozen in (self.model, self.vae):
            if frozen is not None:
                shrink_frozen(frozen, self.dtype)
                frozen.to(self.device)
                if options.channels_last:
                    frozen.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                checkpoint_blocks(frozen, options.checkpointing)
        if options.compile and self.model is not None:
            self.model.unet.compile()
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if self.helper is not None:
            self.helper.to(self.device)
            trained |= {f"helper.{name}": p for name, p in self.helper.named_parameters()}
        averages = {name: p.detach().clone() for name, p in trained.items()} if options.ema else {}
        optimizer = torch.optim.Adam(trained.values(), lr=options.peak_lr, fused=True)
        scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "fp16")
        self.state = State(trained, averages, optimizer, scaler, self.config, base)
        self.objective: nn.Module = Objective(options, self.config, self.model, self.vae, self.helper)
        if self.world > 1:
            unused = self.config.prompt == "multi_scale"  # B1 does without f_4, the rest uses all that trains
            self.objective = DistributedDataParallel(
                self.objective, broadcast_buffers=False, find_unused_parameters=unused
            )
        self.board: Any = None
        self.stop: signal.Signals | None = None  # what somebody has asked this process to stop with

    def autocast(self) -> torch.autocast:
        """Products and convolutions in --precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.world > 1:
            dist.barrier()

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.rank == 0:
            tqdm.write(text)

    def begin(self, resume: str | None, force: bool = False) -> None:
        """Go back to a checkpoint, or begin the run folder (anew, if there is one)."""
        if not resume and self.writes:
            refuse_run(self.out, force)  # once more: only now no other process works in it
            for path in self.out.iterdir():
                remove(path)
        self.wait()
        found = checkpoints(self.out)
        if resume not in (None, "latest"):
            self.state.restore(Path(str(resume)))
        elif resume and found:
            self.state.restore(found[-1])
        elif resume:
            self.say(f"{self.out} holds no checkpoint yet: starting from step 0")
        if self.state.step:
            self.say(f"resuming {self.out} after step {self.state.step}")
        if found and self.state.step < step_of(found[-1]):
            raise UserError(
                f"{self.out} holds a later checkpoint, {found[-1].name}: go on in another --out, or remove those after "
                f"step {self.state.step}"
            )
        if self.state.step > self.total:
            raise UserError(f"--steps {self.total} must be at least the {self.state.step} that are done already")
        if not self.writes:
            return
        for folder in (self.out, self.out / "checkpoints", self.out / "samples"):
            remove_leftovers(folder)
        log_path = self.out / "log.jsonl"
        if log_path.is_file():  # forget what is done again, and a line that a kill cut short
            kept = [line for line in log_path.read_text().splitlines(True) if self.is_done(line)]
            write_text(log_path, "".join(kept))
        with contextlib.suppress(ImportError):  # TensorBoard, if it happens to be installed
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(self.out / "tensorboard", purge_step=self.state.step + 1)
        options = dataclasses.asdict(self.options)
        write_json(
            self.out / "config.json", {"options": options, "model": to_dict(self.config), "base": self.state.base}
        )

    def is_done(self, line: str) -> bool:
        """Whether a line of log.jsonl is whole and of a step that the state includes."""
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(line)["step"] <= self.state.step
        return False

    def train(self) -> None:
        """Train to the last step, then write the model folder."""
        with self.heeding_signals():
            self.loop(self.total)
        if self.rank == 0:
            self.write_model()
        self.wait()

    def loop(self, stop_at: int) -> None:
        """The steps that are still to be done, up to this one."""
        with self.batches(stop_at) as (batches, places):
            self.take_steps(batches, places, stop_at)

    @contextlib.contextmanager
    def batches(self, stop_at: int) -> Iterator[tuple[Iterator[Batch], range]]:
        """This process's share of the batches of the steps up to this one, and its places in the global batch."""
        options = self.options
        workers = (4 if self.device.type == "cuda" else 0) if options.workers is None else options.workers
        share = options.global_batch // self.world
        places = range(self.rank * share, (self.rank + 1) * share)
        order = StepOrder(len(self.pairs), options.global_batch, options.seed, self.state.step, stop_at, places)
        with contextlib.closing(step_batches(self.described(self.pairs), order, workers)) as batches:
            yield batches, places

    def take_steps(self, batches: Iterable[Batch], places: range, stop_at: int) -> None:
        """A step with each of these batches, the pairs at these places of the global batches."""
        options, state = self.options, self.state
        bar = tqdm(batches, options.stage, self.total, initial=state.step, unit="step", disable=self.rank > 0)
        losses: list[float] = []
        started, rows = time.perf_counter(), 0
        for step, batch in zip(range(state.step, stop_at), bar, strict=True):
            # Learning rate: warm-up, constant, a tenth.
            lr = learning_rate(step, self.total, options)
            for group in state.optimizer.param_groups:
                group["lr"] = lr

            # Accumulate: the gradient of the mean over all rows, a part of the batch at a time.
            state.optimizer.zero_grad(set_to_none=True)
            loss_sum, all_timesteps = 0.0, []
            for number, part in enumerate(batch.split(options.accumulate)):
                first = places.start + number * len(part)
                mine = range(first, first + len(part))
                draws = draw_step(options.seed, step, mine, self.config, options.noise_offset).to(self.device)
                with self.exchange(with_part=options.accumulate - 1, now=number):
                    with self.autocast():
                        loss, timesteps = self.objective(part.to(self.device), draws)
                    all_timesteps += timesteps.tolist()
                    if not math.isfinite(loss.item()):
                        raise UserError(self.not_finite("loss", step, loss.item(), all_timesteps))
                    state.scaler.scale(loss / options.accumulate).backward()
                loss_sum += loss.item() / options.accumulate
            loss_sum, stop = self.agree(loss_sum)

            # Step, unless a gradient is lost (in fp16 the scaler leaves such a step out and scales less).
            state.scaler.unscale_(state.optimizer)
            norm = self.clip_gradients()
            if not math.isfinite(norm):
                raise UserError(self.not_finite("gradient", step, norm, all_timesteps))
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.step = step + 1

            # Average; over fewer steps at first, so that the initial weights are soon forgotten.
            decay = min(options.ema, state.step / (state.step + 9))
            with torch.no_grad():
                for name, average in state.averages.items():
                    average.lerp_(state.trained[name], 1 - decay)

            # Log, and try what it has learnt on pairs that it has not seen.
            losses.append(loss_sum)
            rows += 2 * options.global_batch
            bar.set_postfix(loss=f"{loss_sum:.4f}", refresh=False)
            if options.log_every and state.step % options.log_every == 0:
                speed = rows / (time.perf_counter() - started)
                self.log({"step": state.step, "loss": sum(losses) / len(losses), "lr": lr, "rows/s": speed})
                losses, started, rows = [], time.perf_counter(), 0
            best = bool(options.eval_every) and state.step % options.eval_every == 0 and self.evaluate()

            # Checkpoint: in time, at the end, the best, and if somebody wants to stop. And look at what it paints.
            due = options.save_every and state.step % options.save_every == 0
            if due or best or stop or state.step == self.total:
                self.checkpoint(best)
            if stop:
                self.leave(stop)
            if options.sample_every and state.step % options.sample_every == 0:
                self.sample_grid()

    def try_out(self) -> None:
        """Take two steps, of which the second is like all others, and say what a step needs. Writes nothing."""
        before = memory(self.device)
        self.loop(1)
        with self.batches(2) as (batches, places):
            batch = next(batches)  # which a training reads while the step before is at work
            started = time.perf_counter()
            self.take_steps([batch], places, 2)
            seconds = time.perf_counter() - started
        modules = [m for m in (self.model, self.vae, self.helper) if m is not None]
        parameters = [p for m in modules for p in m.parameters()]
        trained = list(self.state.trained.values())
        moments = [x for state in self.state.optimizer.state.values() for x in state.values()]
        parts = {
            "weights": num_bytes(parameters),
            "gradients": num_bytes(trained),
            "optimiser": num_bytes(moments),
            "averages": num_bytes(self.state.averages.values()),
        }
        peak = memory(self.device, peak=True)
        parts["activations and the rest"] = max(peak - before - parts["gradients"] - parts["optimiser"], 0)
        lines = {
            "parameters": f"{sum(p.numel() for p in parameters):,}",
            "that train": f"{sum(p.numel() for p in trained):,}",
            **{name: f"{size / 2**30:,.3f} GiB" for name, size in parts.items()},
            "all, a process": f"{sum(parts.values()) / 2**30:,.3f} GiB",
            "steps an epoch": f"{self.steps_an_epoch:,}",
            "a step": f"{seconds:,.3g} s",
            f"{self.total:,} steps": f"{self.total * seconds / 3600:,.3g} h, without what is written and painted",
        }
        width = max(len(name) for name in lines)
        self.say("\n".join(f"{name:{width}}  {value}" for name, value in lines.items()))

    def exchange(self, with_part: int, now: int) -> contextlib.AbstractContextManager[None]:
        """Let processes exchange gradients in the backward of one part of a step, and not in those before."""
        if isinstance(self.objective, DistributedDataParallel) and now != with_part:
            return self.objective.no_sync()
        return contextlib.nullcontext()

    def agree(self, loss: float) -> tuple[float, signal.Signals | None]:
        """The mean of the loss over all processes, and whether one of them was asked to stop."""
        if self.world == 1:
            return loss, self.stop
        total, asked = self.sum_of_processes(loss, self.stop is not None)
        return total / self.world, (self.stop or signal.SIGTERM) if asked else None

    def sum_of_processes(self, *values: float) -> list[float]:
        """The sum of each number over all processes."""
        if self.world == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    @contextlib.contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Let SIGTERM and Ctrl-C stop the loop after a step. A second Ctrl-C ends a lone process at once; torchrun
        passes on the first, which a terminal sends to all, so there it means nothing."""

        def note(number: int, frame: FrameType | None) -> None:
            if self.stop == number == signal.SIGINT and self.world == 1:
                raise KeyboardInterrupt
            self.stop = signal.Signals(number)

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def leave(self, stop: signal.Signals) -> None:
        """End all processes, now that the state is saved: with 128 + the signal's number, as a shell says it."""
        self.wait()
        again = f"python -m cfld.train --out {self.out} --resume goes on"
        self.say(f"{stop.name}: saved {self.out} after step {self.state.step}; {again}")
        raise SystemExit(128 + stop)

    def clip_gradients(self) -> float:
        """Shorten the gradient to options.clip, if that is asked for. Returns its norm before, 0 where fp16's scaler
        looks after it and nobody needs it."""
        if self.state.scaler.is_enabled() and not self.options.clip:
            return 0.0
        gradients = [p.grad for p in self.state.trained.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.options.clip:
            torch.nn.utils.clip_grads_with_norm_(self.state.trained.values(), self.options.clip, norm)
        return 0.0 if self.state.scaler.is_enabled() else norm.item()

    def not_finite(self, what: str, step: int, found: float, timesteps: list[int]) -> str:
        """What to say when the loss or its gradient is lost."""
        last = checkpoints(self.out)
        return (
            f"the {what} of step {step} must be finite, found {found} at timesteps {timesteps}; "
            f"nothing was saved over {last[-1] if last else 'any checkpoint'}; begin anew with a lower --lr"
        )

    def log(self, values: dict[str, float]) -> None:
        """Add a line to log.jsonl."""
        if not self.writes:
            return
        with writing(self.out / "log.jsonl"), open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
            rounded = {name: x if isinstance(x, int) else float(f"{x:.6g}") for name, x in values.items()}
            file.write(json.dumps(rounded) + "\n")
        for name in values.keys() - {"step"}:
            if self.board is not None:
                self.board.add_scalar(name, values[name], values["step"])

    def evaluate(self) -> bool:
        """Log the held-out loss: of the same pairs with the same draws each time, with the averages if there are any.
        Returns whether it is the least so far."""
        assert self.held_out is not None
        pairs = self.described(self.held_out)
        count = min(HELD_OUT, len(pairs))
        places = range(self.rank, count, self.world)
        objective = getattr(self.objective, "module", self.objective)
        total = 0.0
        with self.averaged(), self.autocast(), torch.no_grad():
            for place in places:
                batch = collate([pairs[place * len(pairs) // count]]).to(self.device)
                mine = range(place, place + 1)
                draws = draw_step(self.options.seed, NO_STEP, mine, self.config, self.options.noise_offset)
                total += objective(batch, draws.to(self.device))[0].item()
        loss = self.sum_of_processes(total)[0] / count
        self.log({"step": self.state.step, "held-out loss": loss})
        better = math.isfinite(loss) and (self.state.best is None or loss < self.state.best)
        if better:
            self.state.best = loss
        return better

    def checkpoint(self, best: bool = False) -> None:
        """Save the state, the best so far under that name as well, and forget the oldest checkpoints."""
        if not self.writes:
            return
        path = self.out / "checkpoints" / f"step_{self.state.step:08d}.safetensors"
        if best:  # first, so that a run that is killed in between finds it out again
            self.state.save(path.with_name("best.safetensors"))
            link(path.with_name("best.safetensors"), path)
        else:
            self.state.save(path)
        for old in checkpoints(self.out)[: -self.options.keep]:
            old.unlink()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averages, if there are any, in the place of the weights."""
        kept = {name: self.state.trained[name].detach().clone() for name in self.state.averages}
        with torch.no_grad():
            for name, average in self.state.averages.items():
                self.state.trained[name].copy_(average)
            yield
            for name, weights in kept.items():
                self.state.trained[name].copy_(weights)

    def described(self, pairs: Pairs) -> Pairs | DescribedPairs:
        """The pairs, where a stage wants them with the attributes of their people."""
        return DescribedPairs(pairs) if self.options.stage in ("source", "base") else pairs

    def has_test_split(self) -> bool:
        """Whether there are pairs that are not trained on."""
        return isinstance(self.pairs, PeoplePairs) or (Path(str(self.options.data)) / "test_highres").is_dir()

    def sample_grid(self) -> None:
        """Write samples/step_*.png: source, pose, truth and result of the same held-out pairs from the same seeds."""
        if not self.writes or self.options.stage == "source":
            return
        assert self.held_out is not None
        pairs = self.described(self.held_out)
        chosen = [pairs[i * len(pairs) // 4] for i in range(min(4, len(pairs)))]
        batch = collate(chosen).to(self.device)
        truths, poses = batch.images.chunk(2)[1], pose_maps(batch.keypoints.chunk(2)[1], self.config.adapter.pose_size)
        steps = self.options.sample_steps
        with self.averaged(), self.autocast(), torch.no_grad():
            columns = [to_range(truths)]
            seeds = [seeded(self.options.seed, i) for i in range(len(chosen))]
            if self.model is None:
                columns += [self.vae.decode(self.vae.encode(to_range(truths)))]
            elif isinstance(self.helper, AttributePrompt):
                conditions = Conditions(self.helper(batch.attributes), None, None)
                columns += [denoise(self.model, self.vae, self.scheduler, conditions, steps=steps, generator=seeds)]
            else:
                results = sample(
                    self.model,
                    self.vae,
                    self.scheduler,
                    to_range(batch.source_images),
                    poses,
                    steps=steps,
                    generator=seeds,
                )
                columns = [to_range(batch.images.chunk(2)[0]), poses[:, :3] * 2 - 1, *columns, results]
        grid = picture_grid([to_pictures(column, FRAME) for column in columns])
        save_image(self.out / "samples" / f"step_{self.state.step:08d}.png", grid)

    def write_model(self) -> None:
        """Write model/: what was trained (the averages, if there are any), the frozen rest in its first precision."""
        folder = self.out / "model"
        trained = {
            n: x.cpu()
            for n, x in (self.state.averages or {n: p.detach() for n, p in self.state.trained.items()}).items()
        }
        self.state.optimizer.state.clear()  # its memory makes room for the frozen weights
        self.state.optimizer.zero_grad(set_to_none=True)
        if self.model is None:
            self.vae.load_state_dict(trained, strict=False)
            moments = self.moments()
            whiten(self.vae.cpu(), *moments)  # in float64, which not every device has
            config = dataclasses.replace(self.config, vae=self.vae.config)
            save_parts(folder, config, replace=True, vae=self.vae)
        else:
            model, vae = rebuilt(self.options, self.config, trained, self.state.base)
            if self.options.stage == "source":
                standardise(model.source_encoder, self.source_features(model.source_encoder))
                save_parts(folder, self.config, replace=True, vae=vae, source_encoder=model.source_encoder)
            else:
                save(folder, model, vae, replace=True)
        tqdm.write(f"wrote {folder}")

    def moments(self) -> tuple[Tensor, Tensor]:
        """The VAE's mean and logvar of about 256 training photos."""
        found = []
        with torch.no_grad(), self.autocast():
            for i in self.some_pairs():
                found.append(self.vae.moments(to_range(self.pairs[i][2][None].to(self.device))))
        mean, logvar = (torch.cat(parts).float().cpu() for parts in zip(*found, strict=True))
        return mean, logvar

    def source_features(self, source_encoder: Swin) -> list[Tensor]:
        """f_1 .. f_4 of about 256 training photos."""
        with torch.no_grad():
            found = [source_encoder(to_range(self.pairs[i][0][None])) for i in self.some_pairs()]
        return [torch.cat(maps) for maps in zip(*found, strict=True)]

    def some_pairs(self) -> range:
        """The places of about 256 pairs, evenly."""
        return range(0, len(self.pairs), math.ceil(len(self.pairs) / 256))


@dataclass(frozen=True)
class Request:
    """What is asked for, beside the options of a training."""

    resume: str | None
    force: bool
    dry_run: bool
    finetune: str | None
    plot: str | None


def parse_options(argv: list[str] | None) -> tuple[dict[str, Any], Request]:
    """-> the options given on the command line by name, and what to do with them."""
    parser = command_parser("cfld.train", __doc__)
    for f in dataclasses.fields(TrainConfig):
        flag = f"--{f.name.replace('_', '-')}"
        if f.type is bool:
            parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=f.metadata["help"])
            continue
        kind: Any = next(iter(typing.get_args(f.type)), f.type)  # int of "int | None"
        shown = "" if f.default is None else f" (default: {f.default})"
        parser.add_argument(
            flag,
            type=kind,
            default=argparse.SUPPRESS,
            help=f.metadata["help"] + shown,
            choices=f.metadata.get("choices"),
            metavar=None if "choices" in f.metadata else f.name.upper(),
        )
    parser.add_argument("--resume", nargs="?", const="latest", metavar="CHECKPOINT",
                        help="go on with the run in --out, from its latest checkpoint or this one")  # fmt: skip
    parser.add_argument(
        "--force", action="store_true", help="start anew although --out holds a run; that run is removed"
    )
    parser.add_argument("--finetune", metavar="DIR",
                        help="start from this whole model folder: --init DIR with the architecture of DIR")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true",
                        help="take two steps, say what they need of memory and time, and write nothing")  # fmt: skip
    parser.add_argument("--plot", metavar="RUN", help="draw RUN/plot.png from a run's log, and do nothing else")
    given = vars(parser.parse_args(argv))
    return given, Request(**{f.name: given.pop(f.name) for f in dataclasses.fields(Request)})


def finetuned(given: dict[str, Any], folder: str) -> dict[str, Any]:
    """--finetune DIR in terms of the other options: its weights, its architecture, and the preset of that size."""
    if clash := sorted(given.keys() & {"init", "config"}):
        raise UserError(f"--finetune {folder} says what --{clash[0]} would: leave one of the two out")
    if not (Path(folder) / "model.safetensors").is_file():
        raise UserError(f"--finetune {folder} must be a whole model folder, found no model.safetensors in it")
    path = Path(folder) / "config.json"
    widths = read_config(path).unet.channels
    preset = next((name for name, config in PRESETS.items() if config.unet.channels == widths), TrainConfig.preset)
    return {"preset": preset, "init": folder, "config": str(path)} | given


@command
def main(argv: list[str] | None = None) -> None:
    given, request = parse_options(argv)
    if request.plot:
        print(f"wrote {plot(Path(request.plot))}")
        return
    if request.finetune:
        given = finetuned(given, request.finetune)
    options = settle_options(given, request.resume, request.force or request.dry_run)
    if "WORLD_SIZE" not in os.environ:
        train(options, request)
        return
    on_cuda = (options.device or "cuda").startswith("cuda") and torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group("nccl" if on_cuda else "gloo", timeout=timedelta(minutes=options.timeout))
        dist.barrier()  # all have settled their options before one of them makes the folder that the others look for
        train(options, request)
        dist.destroy_process_group()
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or re.search("gloo|nccl", str(error), re.IGNORECASE)):
            raise
        raise UserError(
            f"process {os.environ['RANK']} has lost another, or heard nothing of it for {options.timeout:g} minutes "
            f"(--timeout): look for the error of that one, then go on with --resume; it was: {str(error)[:200]}"
        ) from None


def train(options: TrainConfig, request: Request) -> None:
    """Say what is to be trained, and train it."""
    keep_freed_memory()
    run = Run(options, request.resume, request.dry_run)
    counted = sum(p.numel() for p in run.state.trained.values())
    run.say(
        f"{run.options.stage}: {counted:,} parameters train"
        f"{'' if run.model is None else f' (of the UNet: {run.config.unet_trainable})'}, "
        f"{run.total:,} steps of {run.options.global_batch} pairs, {run.world} x {run.device}"
    )
    if request.dry_run:
        run.try_out()
        return
    with alone_in(run.out) if run.writes else contextlib.nullcontext():
        run.begin(request.resume, request.force)
        run.train()


if __name__ == "__main__":
    sys.exit(main())
