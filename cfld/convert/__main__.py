"""Make model folders from public weights, and write them for other code.

    python -m cfld.convert init --unet F --vae F --swin F --out DIR       a model folder to train from
    python -m cfld.convert init --sd v1-5-pruned-emaonly.safetensors --swin F --out DIR
    python -m cfld.convert init --ablation B2 --unet F --vae F --clip F --out DIR     for a baseline of Table 3
    python -m cfld.convert official --model pytorch_model.bin --unet pytorch_model_1.bin --vae F --out DIR
    python -m cfld.convert checkpoint RUN/checkpoints/best.safetensors --out DIR      from a training in progress
    python -m cfld.convert export --to official|diffusers DIR OUT         for other code

Nothing is skipped silently: a tensor that is missing, unexpected or of another shape is an error, and what is dropped
on purpose is logged with its reason. weights/README.md says where the files come from.
"""

import argparse
import logging
import sys
from pathlib import Path

import torch
from torch import nn

from cfld.baselines import ABLATIONS, ablation, build, read_config
from cfld.baselines.b1_to_b5 import B2Config
from cfld.config import SD15
from cfld.convert.export import export_diffusers, export_official
from cfld.convert.load import load_clip, load_official, load_swin, load_unet, load_vae
from cfld.folder import load, save
from cfld.tools.cli import HelpFormatter, UserError, command, command_parser, parse_seed
from cfld.tools.files import atomic
from cfld.training.stages import checkpoint_model


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
    save(options.out, load_official(options.model, options.unet, config), load_vae(options.vae, config.vae))


def checkpoint(options: argparse.Namespace) -> None:
    """What a training has learnt so far (its EMA weights, if it has any), with the frozen rest of --init."""
    save(options.out, *checkpoint_model(options.checkpoint))


def export(options: argparse.Namespace) -> None:
    """A model folder's weights for other code."""
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
    config_help = "a config.json with other widths (default: SD 1.5 / CFLD)"

    sub = commands.add_parser("init", help="a model folder to train from", formatter_class=HelpFormatter)
    sub.add_argument("--unet", metavar="FILE", help="SD 1.5's unet/diffusion_pytorch_model.safetensors")
    sub.add_argument("--vae", metavar="FILE", help="SD 1.5's vae/diffusion_pytorch_model.safetensors, or sd-vae-ft-mse")
    sub.add_argument("--sd", metavar="FILE", help="v1-5-pruned-emaonly.safetensors instead of the two")
    sub.add_argument("--swin", metavar="FILE", help="Swin-B, 384 pixels: Microsoft's, timm's or transformers'")
    sub.add_argument("--clip", metavar="FILE", help="instead of Swin, for B2: clip-vit-large-patch14/model.safetensors")
    sub.add_argument("--ablation", choices=ABLATIONS, help="a baseline of Table 3 instead of the full model")
    sub.add_argument("--seed", type=parse_seed, default=0, help="of the weights that no file has")
    sub.set_defaults(run=init)

    sub = commands.add_parser(
        "official", help="a model folder from the authors' checkpoint", formatter_class=HelpFormatter
    )
    sub.add_argument("--model", metavar="FILE", required=True, help="pytorch_model.bin")
    sub.add_argument("--unet", metavar="FILE", required=True, help="pytorch_model_1.bin")
    sub.add_argument("--vae", metavar="FILE", required=True, help="SD 1.5's VAE")
    sub.set_defaults(run=official)
    for sub in commands.choices.values():
        sub.add_argument("--config", metavar="FILE", help=config_help)
        sub.add_argument("--out", metavar="DIR", required=True, help="the model folder to make")

    sub = commands.add_parser(
        "checkpoint", help="a model folder from a checkpoint of cfld.train", formatter_class=HelpFormatter
    )
    sub.add_argument("checkpoint", metavar="FILE", help="in RUN/checkpoints")
    sub.add_argument("--out", metavar="DIR", required=True, help="the model folder to make")
    sub.set_defaults(run=checkpoint)

    sub = commands.add_parser("export", help="a model folder's weights for other code", formatter_class=HelpFormatter)
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
