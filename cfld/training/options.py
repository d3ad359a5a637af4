"""The options of cfld.train."""

import argparse
import dataclasses
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfld.baselines import ABLATIONS, from_dict, read_config
from cfld.config import PRESETS, CFLDConfig
from cfld.tools.cli import PRECISIONS, UserError, command_parser
from cfld.tools.files import contents, read_json


def option(default: Any, text: str, **extra: Any) -> Any:
    """A field of TrainConfig with its help."""
    return field(default=default, metadata={"help": text, **extra})


@dataclass(frozen=True)
class TrainConfig:
    """The options of the command line."""

    preset: str = option("sd15", "architecture and defaults", choices=tuple(PRESETS))
    config: str | None = option(None, "JSON file of another architecture (a model folder's config.json shows the form)")
    ablation: str | None = option(None, "train this row of Table 3 instead of the whole method (docs/ablations.md)",
                                  choices=ABLATIONS)  # fmt: skip
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
