"""Public weights in, public layouts out.

    python -m cfld.convert init --unet F --vae F --swin F --out DIR       a model folder to train from
    python -m cfld.convert init --sd v1-5-pruned-emaonly.safetensors --swin F --out DIR
    python -m cfld.convert init --ablation B2 --unet F --vae F --clip F --out DIR     for a baseline of Table 3
    python -m cfld.convert official --model pytorch_model.bin --unet pytorch_model_1.bin --vae F --out DIR
    python -m cfld.convert checkpoint RUN/checkpoints/best.safetensors --out DIR      of a training that is under way
    python -m cfld.convert export --to official|diffusers DIR OUT         names that other code reads

Each public layout is a table of two columns, theirs and ours, used in both directions: a name is read from left to
right, at each dot the first row that fits is applied, and a part without a row stays. Nothing is skipped silently: a
tensor that is missing, unexpected or of another shape is an error, and what is dropped on purpose is logged with its
reason. weights/README.md says where the files come from.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

import torch
from torch import nn

from cfld.baselines import ABLATIONS, ablation, build, from_dict, read_config
from cfld.baselines.b1_to_b5 import B2Config
from cfld.config import SD15
from cfld.convert.export import export_diffusers, export_official
from cfld.convert.load import load_clip, load_official, load_swin, load_unet, load_vae, log
from cfld.folder import load, save
from cfld.tools.cli import HelpFormatter, UserError, command, command_parser, parse_seed
from cfld.tools.files import atomic
from cfld.tools.tensors import read_safetensors


def init(options: argparse.Namespace) -> None:
    """Public UNet, VAE and Swin (or CLIP), and fresh PRD, HGA, pose adapter and unconditional prompt."""
    config = read_config(options.config) if options.config else SD15
    if options.ablation:
        config = ablation(config, options.ablation)
    unet_path, vae_path = options.unet or options.sd, options.vae or options.sd
    if unet_path is None or vae_path is None:
        raise UserError(
            "a UNet and a VAE are needed: give --unet and --vae, or --sd for the single file that holds both"
        )
    of_clip = isinstance(config, B2Config)
    needed, other = ("clip", "swin") if of_clip else ("swin", "clip")
    if not getattr(options, needed) or getattr(options, other):
        raise UserError(
            f"{'B2' if of_clip else 'a model other than B2'} needs --{needed} FILE and no --{other}: "
            f"weights/README.md says where the file comes from"
        )
    vae, unet = load_vae(vae_path, config.vae), load_unet(unet_path, config.unet)
    source_encoder: nn.Module
    if isinstance(config, B2Config):
        source_encoder = load_clip(options.clip, config.clip)
    else:
        source_encoder = load_swin(options.swin, config.swin)
    torch.manual_seed(options.seed)
    save(options.out, build(config, unet=unet, source_encoder=source_encoder), vae)


def official(options: argparse.Namespace) -> None:
    """The authors' checkpoint."""
    config = read_config(options.config) if options.config else SD15
    log.info("each norm of the official PRD is taken to go with the attention of its number (norm2: cross-attention)")
    save(options.out, load_official(options.model, options.unet, config), load_vae(options.vae, config.vae))


def checkpoint(options: argparse.Namespace) -> None:
    """What a training has learnt so far (its averages, if it has any), with the frozen rest of what it began with."""
    from cfld.train import TrainConfig, rebuilt, saved_options

    path = Path(options.checkpoint)
    run = path.absolute().parent.parent
    tensors, metadata = read_safetensors(path)
    facts = json.loads(metadata.get("cfld", "{}"))
    if "step" not in facts:
        raise UserError(f"{path} must be a checkpoint of cfld.train, found another safetensors file")
    try:
        settings = TrainConfig(**saved_options(run))
    except TypeError as error:  # of another version
        raise UserError(f"{run}/config.json holds options that cannot be read here ({error})") from None
    if settings.stage in ("vae", "source"):
        raise UserError(
            f"{path}: the folder of --stage {settings.stage} is written, and scaled, when its training ends"
        )
    kind = "averages/" if any(name.startswith("averages/") for name in tensors) else "weights/"
    learnt = {name.removeprefix(kind): x for name, x in tensors.items() if name.startswith(kind)}
    save(options.out, *rebuilt(settings, from_dict(facts["model"]), learnt, facts["base"]))


def export(options: argparse.Namespace) -> None:
    """A model folder under public names."""
    model, vae = load(options.folder)
    with atomic(options.out) as temporary:
        temporary.mkdir()
        if options.to == "official":
            export_official(model, temporary)
        else:
            export_diffusers(model, vae, temporary)


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.convert", __doc__)
    commands = parser.add_subparsers(required=True, metavar="init | official | checkpoint | export")
    config_help = "JSON file of a config with other widths (see a model folder's config.json)"

    sub = commands.add_parser("init", help="a model folder to train from", formatter_class=HelpFormatter)
    sub.add_argument("--unet", metavar="FILE", help="SD 1.5's unet/diffusion_pytorch_model.safetensors")
    sub.add_argument("--vae", metavar="FILE", help="SD 1.5's vae/diffusion_pytorch_model.safetensors or sd-vae-ft-mse")
    sub.add_argument("--sd", metavar="FILE", help="v1-5-pruned-emaonly.safetensors instead of the two")
    sub.add_argument("--swin", metavar="FILE", help="Swin-B, 384 pixels: Microsoft's, timm's or transformers'")
    sub.add_argument("--clip", metavar="FILE", help="for B2 instead of Swin: clip-vit-large-patch14/model.safetensors")
    sub.add_argument("--ablation", choices=ABLATIONS, help="a row of Table 3 instead of the whole method")
    sub.add_argument("--seed", type=parse_seed, default=0, help="seed of the fresh parts")
    sub.set_defaults(run=init)

    sub = commands.add_parser(
        "official", help="a folder to sample from, of the authors' checkpoint", formatter_class=HelpFormatter
    )
    sub.add_argument("--model", metavar="FILE", required=True, help="pytorch_model.bin")
    sub.add_argument("--unet", metavar="FILE", required=True, help="pytorch_model_1.bin")
    sub.add_argument("--vae", metavar="FILE", required=True, help="SD 1.5's VAE")
    sub.set_defaults(run=official)
    for sub in commands.choices.values():
        sub.add_argument("--config", metavar="FILE", help=config_help)
        sub.add_argument("--out", metavar="DIR", required=True, help="the model folder to make")

    sub = commands.add_parser(
        "checkpoint", help="a model folder of a training's checkpoint", formatter_class=HelpFormatter
    )
    sub.add_argument("checkpoint", metavar="FILE", help="in RUN/checkpoints")
    sub.add_argument("--out", metavar="DIR", required=True, help="the model folder to make")
    sub.set_defaults(run=checkpoint)

    sub = commands.add_parser(
        "export", help="a model folder under names that other code reads", formatter_class=HelpFormatter
    )
    sub.add_argument("--to", choices=("official", "diffusers"), required=True)
    sub.add_argument("folder", metavar="DIR", help="a model folder")
    sub.add_argument("out", metavar="OUT", help="the folder to make")
    sub.set_defaults(run=export)

    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if Path(options.out).exists():
        raise UserError(f"{options.out} already exists: choose another --out or remove it first")
    options.run(options)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(main())
