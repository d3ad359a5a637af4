"""The options of cfld.train: one dataclass, of which the command line, its help and its checks are made."""

import argparse
import dataclasses
import math
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfld.baselines import ABLATIONS, read_config
from cfld.config import DISTILLATIONS, PRESETS, TARGETS, DistilledConfig
from cfld.tools.cli import PRECISIONS, UserError, command_parser
from cfld.tools.files import contents, read_object

STAGE_NAMES = ("cfld", "vae", "source", "base", "distill")  # cfld.training.stages.STAGES
RECIPES = ("paper", "released")
LEVELS = ("none", "attention", "all")
GROUPS = {  # of --help
    "model: the architecture, and the weights to start from": ("preset", "config", "ablation", "init", "finetune"),
    "data: pairs of photos, and how they are loaded": ("data", "cache", "workers"),
    "run folder: where all is written, and how a run begins or goes on": ("out", "resume", "force", "dry_run"),
    "objective: what trains, and what it learns": ("stage", "recipe", "min_snr"),
    "only of --stage vae": ("kl",),
    "only of --stage distill": ("distillation", "guidance", "rank", "targets", "skip"),
    "length of the training": ("steps", "epochs"),
    "optimisation: batch, learning rate, gradient, EMA": (
        "batch", "lr", "warmup", "decay_at", "clip", "ema", "seed",
    ),
    "checkpoints": ("save_every", "keep"),
    "what to watch: log, samples, validation loss": ("log_every", "sample_every", "sample_steps", "eval_every"),
    "precision, memory and devices": (
        "precision", "accumulate", "activation_checkpointing", "compile", "device", "timeout",
    ),
}  # fmt: skip


METAVARS = {int: "N", float: "X"}


def option(default: Any, text: str, least: float | None = None, most: float | None = None, **extra: Any) -> Any:
    """A field of TrainConfig: its default, its help, and the range of its values or its choices."""
    return field(default=default, metadata={"help": text, "least": least, "most": most, **extra})


@dataclass(frozen=True)
class TrainConfig:
    """What the command line asks for. Raises UserError for values out of range and for options that clash."""

    preset: str = option("sd15", "architecture and defaults", choices=tuple(PRESETS))
    config: str | None = option(None, "config.json that replaces the preset's architecture")
    ablation: str | None = option(None, "train a baseline of Table 3 instead of the full model", choices=ABLATIONS)
    init: str | None = option(None, "folder to start from, made by cfld.convert init or an earlier stage")
    data: str | None = option(None, "folder prepared by cfld.data, or people:2000x4 (synthetic people)")
    cache: str | None = option(None, "encoded photos, made by cfld.data cache with the VAE of --init")
    out: str = option("runs/cfld", "run folder to make or to continue")
    stage: str = option("cfld", "what to train; tiny: vae, source, cfld; distill comes after cfld", choices=STAGE_NAMES)
    recipe: str = option("paper", "the paper's or the released code's dropping and lr", choices=RECIPES)
    steps: int | None = option(None, "length of the training in steps (default: by --epochs)", 1)
    epochs: float | None = option(None, "length of the training in epochs, instead of --steps (default: 100)", 0)
    batch: int | None = option(None, "pairs of the global batch (default: sd15 224, tiny 16)", 1)
    accumulate: int = option(1, "micro-batches of a step; saves memory, equal up to rounding", 1)
    lr: float | None = option(None, "peak learning rate (default: the recipe's; tiny 4e-4, vae and source 1e-3)", 0)
    warmup: int | None = option(None, "steps of linear warm-up (default: sd15 1000, tiny 100)", 0)
    decay_at: float = option(0.5, "share of the steps after which the learning rate is a tenth", 0, 1)
    min_snr: float = option(0.0, "Min-SNR gamma, such as 5; 0 = off, as in the paper", 0)
    kl: float = option(1e-9, "weight of the KL divergence in --stage vae", 0)
    clip: float = option(0.0, "clip the gradient norm to this; 0 = off, as in the paper", 0)
    distillation: str = option("consistency", "what the student learns in --stage distill", choices=DISTILLATIONS)
    guidance: float = option(2.0, "w_pose = w_app of Eq. 7, which the student takes in", 0)
    rank: int | None = option(
        None, "of the student's adapters; 0 = none: all UNet weights (default: sd15 64, tiny 0)", 0
    )
    targets: str = option("linear", "layers with adapters: attention's, all linear, or all", choices=TARGETS)
    skip: int = option(20, "timesteps that the teacher's step spans", 1)
    ema: float = option(0.0, "decay of the EMA weights, such as 0.999; 0 = none", 0, 1)
    seed: int = option(0, "seed of everything random", 0)
    precision: str = option("bf16", "of autocast; trained weights stay fp32", choices=tuple(PRECISIONS))
    activation_checkpointing: str = option("none", "blocks whose activations are recomputed", choices=LEVELS)
    compile: bool = option(False, "torch.compile the UNet; faster after minutes, equal up to rounding")
    workers: int | None = option(None, "processes that load photos (default: 4 with CUDA, else 0)", 0)
    save_every: int = option(1000, "steps between checkpoints; 0 = only at the end", 0)
    keep: int = option(2, "how many of the latest checkpoints to keep", 1)
    sample_every: int = option(1000, "steps between sample grids; 0 = none", 0)
    sample_steps: int = option(50, "sampling steps of a sample grid", 1)
    log_every: int = option(10, "steps between lines of log.jsonl; 0 = none", 0)
    eval_every: int = option(0, "steps between validations; the best checkpoint is kept; 0 = none", 0)
    timeout: float = option(30, "minutes to wait for another process before giving up")
    device: str | None = option(None, "cuda, cpu, ... (default: the best there is)")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, least, most = getattr(self, f.name), f.metadata["least"], f.metadata["most"]
            if value is None or least is None:
                continue
            if most is not None:
                if not least <= value <= most:
                    raise UserError(f"{flag(f.name)} must be within {least} .. {most}, found {value}")
                continue
            limit, below = (math.inf, "finite") if isinstance(value, float) else (2**63, "below 2^63")
            if not least <= value < limit:
                raise UserError(f"{flag(f.name)} must be at least {least} and {below}, found {value}")
        if self.steps is not None and self.epochs is not None:
            raise UserError(f"give one of --steps {self.steps} and --epochs {self.epochs}: both set the length")
        for name, unit in (("epochs", ""), ("lr", ""), ("timeout", " minutes")):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{flag(name)} must be more than 0{unit}, found {value}")
        if self.ema == 1:
            raise UserError("--ema must be below 1, found 1: EMA weights that keep all of themselves never change")
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
    def distilled(self) -> DistilledConfig | None:
        """What --stage distill makes: a student; None in other stages."""
        if self.stage != "distill":
            return None
        rank = (64 if self.preset == "sd15" else 0) if self.rank is None else self.rank
        return DistilledConfig(self.distillation, self.guidance, rank or None, self.targets)

    @property
    def warmup_steps(self) -> int:
        return (1000 if self.preset == "sd15" else 100) if self.warmup is None else self.warmup

    @property
    def peak_lr(self) -> float:
        """5e-7 per pair of the batch (paper), or 1e-4 at 224 pairs (released). TINY trains from fresh weights, which
        bear more; its UNet diverges at 1e-3 (docs/overfit.md)."""
        if self.lr is not None:
            return self.lr
        if self.stage == "distill":
            return 1e-4
        if self.preset == "tiny":
            return 1e-3 if self.stage in ("vae", "source") else 4e-4
        return 5e-7 * self.global_batch if self.recipe == "paper" else 1e-4 * self.global_batch / 224


DISTILL = {"ema": 0.95, "sample_steps": 4}  # defaults of --stage distill
FREE_ON_RESUME = {
    "init", "data", "cache", "out", "steps", "epochs", "accumulate", "activation_checkpointing", "workers",
    "save_every", "keep", "sample_every", "sample_steps", "log_every", "eval_every", "timeout", "device",
}  # fmt: skip
FORMER_FLAGS = {"--checkpointing": "--activation-checkpointing", "--plot": "python -m cfld.tools.plot RUN"}
FORMER = {"checkpointing": "activation_checkpointing", "noise_offset": None, "channels_last": None}  # names in old runs


def flag(name: str) -> str:
    """A field's name as it stands on the command line."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Request:
    """What the command line asks for beside the options of the training."""

    resume: str | None  # "latest" or the path of a checkpoint
    force: bool
    dry_run: bool
    finetune: str | None


def parse(argv: list[str] | None, description: str | None) -> tuple[TrainConfig, Request]:
    """The options of the training and what to do with them. With --resume, options that are not given are the run's.

    Raises UserError where options clash with each other or with the run's, and where a run would be overwritten.
    """
    parser = command_parser("cfld.train", description)
    titled = {title: parser.add_argument_group(title) for title in GROUPS}
    groups = {name: titled[title] for title, names in GROUPS.items() for name in names}
    for f in dataclasses.fields(TrainConfig):
        if f.type is bool:
            groups[f.name].add_argument(
                flag(f.name), action="store_true", default=argparse.SUPPRESS, help=f.metadata["help"]
            )
            continue
        kind: Any = next(iter(typing.get_args(f.type)), f.type)  # int of "int | None"
        choices = f.metadata.get("choices")
        groups[f.name].add_argument(
            flag(f.name),
            type=kind,
            default=argparse.SUPPRESS,
            help=f.metadata["help"] + ("" if f.default is None else f" (default: {f.default})"),
            choices=choices,
            metavar=None if choices else METAVARS.get(kind, f.name.upper()),
        )
    groups["resume"].add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="CHECKPOINT",
        help="continue the run in --out, from its latest or this checkpoint",
    )
    groups["force"].add_argument("--force", action="store_true", help="remove the run in --out and start anew")
    groups["finetune"].add_argument(
        "--finetune", metavar="DIR", help="start from a model folder: its weights and architecture"
    )
    groups["dry_run"].add_argument(
        "--dry-run", action="store_true", help="take two steps, print memory and time, write nothing"
    )
    for word in sys.argv[1:] if argv is None else argv:
        if word.partition("=")[0] in FORMER_FLAGS:
            raise UserError(f"{word} is now {FORMER_FLAGS[word.partition('=')[0]]}")
    given = vars(parser.parse_args(argv))
    request = Request(**{f.name: given.pop(f.name) for f in dataclasses.fields(Request)})
    if request.finetune:
        given = finetuned(given, request.finetune)
    elif given.get("stage") == "distill" and given.get("init") and not given.keys() & {"config", "preset"}:
        given = finetuned(given, given.pop("init"))
    return settle(given, request), request


def finetuned(given: dict[str, Any], folder: str) -> dict[str, Any]:
    """--finetune DIR in terms of the other options: its weights, its architecture, and the preset of that size."""
    if clash := sorted(given.keys() & {"init", "config"}):
        raise UserError(f"give one of --finetune {folder} and --{clash[0]}: the first includes the second")
    if not (Path(folder) / "model.safetensors").is_file():
        raise UserError(f"--finetune {folder} must be a full model folder, found no model.safetensors in it")
    path = Path(folder) / "config.json"
    widths = read_config(path).unet.channels
    preset = next((name for name, config in PRESETS.items() if config.unet.channels == widths), TrainConfig.preset)
    return {"preset": preset, "init": folder, "config": str(path)} | given


def settle(given: dict[str, Any], request: Request) -> TrainConfig:
    """The given options, completed on --resume by those of the run."""
    out, fresh = Path(given.get("out", TrainConfig.out)), (DISTILL if given.get("stage") == "distill" else {}) | given
    if request.resume is None:
        options = TrainConfig(**fresh)
        refuse_run(out, request.force or request.dry_run)
        return options
    if not (out / "config.json").is_file():
        if out.exists() and contents(out):
            raise UserError(f"{out} must be a run folder to resume, found no config.json in it; choose another --out")
        return TrainConfig(**fresh)
    saved = saved_options(out)
    for name, value in given.items():
        began = saved.get(name, getattr(TrainConfig, name))
        if name not in FREE_ON_RESUME and began != value:
            raise UserError(
                f"{flag(name)} {value} differs from {began}, which {out} was begun with: leave it out to resume, or "
                "choose another --out"
            )
    if given.keys() & {"steps", "epochs"}:
        saved |= {"steps": None, "epochs": None}
    return checked_options(saved | given, out)


def saved_options(out: Path) -> dict[str, Any]:
    """The options that a run folder was begun with, under their present names. Raises UserError."""
    saved = read_object(out / "config.json", "options")["options"]
    if not isinstance(saved, dict):
        raise UserError(f"{out}/config.json must be a run's, found another file; choose another --out")
    for former, name in FORMER.items():
        value = saved.pop(former, None)
        if name and value is not None:
            saved[name] = value
        elif value:
            raise UserError(f"{out} was begun with {flag(former)} {value}, which this version does not have")
    return saved


def checked_options(values: dict[str, Any], out: Path) -> TrainConfig:
    """Saved options as a TrainConfig. Raises UserError if they are damaged."""
    hints = typing.get_type_hints(TrainConfig)
    for name, value in values.items():
        kinds = typing.get_args(hints[name]) or (hints[name],) if name in hints else ()
        fits = isinstance(value, (*kinds, int) if float in kinds else kinds)
        if not fits or (isinstance(value, bool) and bool not in kinds):
            found = f"an option {name!r:.60}" if name not in hints else f"{name} {value!r:.60}"
            raise UserError(f"{out}/config.json must hold the options of a run, found {found}: choose another --out")
    return TrainConfig(**values)


def refuse_run(out: Path, force: bool) -> None:
    """Raise UserError if a training must not begin in this folder: something is in it, and it is no run, or --force was
    not given."""
    if out.exists() and contents(out):
        if not force:
            raise UserError(
                f"{out} already exists: add --resume to continue it, --force to start anew, or choose another"
            )
        saved_options(out)
