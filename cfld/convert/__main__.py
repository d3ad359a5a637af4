"""Make model folders from public weights, and write them for other code.

    python -m cfld.convert fetch sd15 swin                                        download files, which init finds
    python -m cfld.convert init --unet UNET --vae VAE --swin SWIN --out DIR       a model folder to train from
    python -m cfld.convert init --sd v1-5-pruned-emaonly.safetensors --swin SWIN --out DIR
    python -m cfld.convert init --ablation B2 --unet UNET --vae VAE --clip CLIP --out DIR     a baseline of Table 3
    python -m cfld.convert official --model pytorch_model.bin --unet pytorch_model_1.bin --vae VAE --out DIR
    python -m cfld.convert checkpoint RUN/checkpoints/best.safetensors --out DIR      from a training run in progress
    python -m cfld.convert export --to official|diffusers DIR OUT                     for other code
    python -m cfld.convert export --to peft|kohya DIR OUT                             a student's adapters
    python -m cfld.convert merge DIR OUT                                              a student as a model folder

Nothing is skipped silently: a tensor that is missing, unexpected or of another shape is an error, and what is dropped
on purpose is logged with its reason. weights/README.md says where the files come from.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from cfld.baselines import ABLATIONS, ablation, build, read_config
from cfld.baselines.b1_to_b5 import B2Config
from cfld.config import SD15
from cfld.convert.cards import export_card, init_card, official_card
from cfld.convert.export import export_adapters, export_diffusers, export_official
from cfld.convert.fetch import FOLDER, add_fetch, fetch, use_fetched
from cfld.convert.load import load_clip, load_official, load_swin, load_unet, load_vae
from cfld.folder import load, save
from cfld.tools.card import LOAD_STUDENT, model_card, read_card, training_card
from cfld.tools.cli import UserError, command, command_parser, in_words, parse_seed
from cfld.tools.files import atomic, write_text
from cfld.training.options import checked_options, saved_options
from cfld.training.stages import checkpoint_model


def init(options: argparse.Namespace) -> None:
    """Public UNet, VAE and Swin (or CLIP), and fresh PRD, HGA, pose adapter and unconditional prompt."""
    config = read_config(options.config) if options.config else SD15
    if options.ablation:
        config = ablation(config, options.ablation)
    unet_path, vae_path = options.unet or options.sd, options.vae or options.sd
    if missing := [name for name, path in (("--unet", unet_path), ("--vae", vae_path)) if path is None]:
        raise UserError(
            f"{in_words(missing)} must be given (or --sd, the single file that holds UNet and VAE): python -m "
            "cfld.convert fetch sd15 gets the files"
        )
    of_clip = isinstance(config, B2Config)
    needed, other = ("clip", "swin") if of_clip else ("swin", "clip")
    which = "B2" if of_clip else "a model other than B2"
    if getattr(options, other):
        raise UserError(f"--{other} must be left out: the source encoder of {which} is --{needed}")
    if not getattr(options, needed):
        raise UserError(f"--{needed} must be given, the source encoder of {which}: weights/README.md says where it is")
    vae, unet = load_vae(vae_path, config.vae), load_unet(unet_path, config.unet)
    source_encoder: nn.Module
    if isinstance(config, B2Config):
        source_encoder = load_clip(options.clip, config.clip)
    else:
        source_encoder = load_swin(options.swin, config.swin)
    torch.manual_seed(options.seed)
    model = build(config, unet=unet, source_encoder=source_encoder)
    save(options.out, model, vae, card=init_card(options, config.image_size, options.words))


def official(options: argparse.Namespace) -> None:
    """The authors' checkpoint."""
    config = read_config(options.config) if options.config else SD15
    model, vae = load_official(options.model, options.unet, config), load_vae(options.vae, config.vae)
    save(options.out, model, vae, card=official_card(options, config.image_size, options.words))


def checkpoint(options: argparse.Namespace) -> None:
    """What a training run has learnt so far (its EMA weights, if it has any), with the frozen rest of --init."""
    model, vae = checkpoint_model(options.checkpoint)
    run = Path(options.checkpoint).absolute().parent.parent
    card = training_card(checked_options(saved_options(run), run), model.config.image_size)
    save(options.out, model, vae, card=card)


def export(options: argparse.Namespace) -> None:
    """A model folder's weights, or the adapters of its student, for other code."""
    if options.to in ("peft", "kohya"):
        with atomic(options.out) as temporary:
            temporary.mkdir()
            export_adapters(Path(options.folder), options.to, temporary)
        return
    model, vae = load(options.folder)
    with atomic(options.out) as temporary:
        temporary.mkdir()
        if options.to == "official":
            export_official(model, temporary)
        else:
            export_diffusers(model, vae, temporary)
        write_text(temporary / "README.md", export_card(options, model.config.image_size, options.words))


def merge(options: argparse.Namespace) -> None:
    """The student of a model folder as a model folder of its own."""
    model, vae = load(options.folder, turbo=True)
    licence, bases = read_card(options.folder)
    facts = {"made from": f"the student of {options.folder}, its adapters merged"}
    save(options.out, model, vae, card=model_card(licence, bases, facts, options.words, LOAD_STUDENT))


EXPORTS = ("official", "diffusers", "peft", "kohya")


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.convert", __doc__)
    commands = parser.add_subparsers(required=True, metavar="fetch | init | official | checkpoint | export | merge")
    config_help = "a config.json with other widths (default: SD 1.5 / CFLD)"

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    sub = add("init", init, "Make a model folder to train from.")
    files = sub.add_argument_group("public files (default: where fetch has put them)")
    files.add_argument("--unet", metavar="FILE", help="SD 1.5's unet/diffusion_pytorch_model.safetensors")
    files.add_argument(
        "--vae", metavar="FILE", help="SD 1.5's vae/diffusion_pytorch_model.safetensors, or sd-vae-ft-mse"
    )
    files.add_argument("--sd", metavar="FILE", help="v1-5-pruned-emaonly.safetensors, instead of --unet and --vae")
    files.add_argument("--swin", metavar="FILE", help="Swin-B, 384 pixels: Microsoft's, timm's or transformers'")
    files.add_argument(
        "--clip", metavar="FILE", help="instead of Swin, for B2: clip-vit-large-patch14/model.safetensors"
    )
    sub.add_argument("--ablation", choices=ABLATIONS, help="a baseline of Table 3 instead of the full model")
    sub.add_argument("--seed", type=parse_seed, default=0, help="of freshly initialised weights")

    sub = add("official", official, "Make a model folder from the authors' checkpoint.")
    sub.add_argument("--model", metavar="FILE", help="pytorch_model.bin")
    sub.add_argument("--unet", metavar="FILE", help="pytorch_model_1.bin")
    sub.add_argument("--vae", metavar="FILE", help="SD 1.5's VAE")
    for sub in commands.choices.values():
        sub.add_argument("--weights", type=Path, default=FOLDER, metavar="DIR", help="where fetch has put files")
        sub.add_argument("--config", metavar="FILE", help=config_help)
        sub.add_argument("--out", metavar="DIR", required=True, help="the model folder to make")

    sub = add("checkpoint", checkpoint, "Make a model folder from a checkpoint of cfld.train.")
    sub.add_argument("checkpoint", metavar="FILE", help="in RUN/checkpoints")
    sub.add_argument("--out", metavar="DIR", required=True, help="the model folder to make")

    sub = add("export", export, "Write a model folder's weights for other code.")
    sub.add_argument("--to", choices=EXPORTS, required=True, help="whose names; peft, kohya: of adapters")
    sub.add_argument("folder", metavar="DIR", help="a model folder; for adapters, what holds turbo.safetensors")
    sub.add_argument("out", metavar="OUT", help="the folder to make")

    sub = add("merge", merge, "Write the student of a model folder as a model folder of its own.")
    sub.add_argument("folder", metavar="DIR", help="a model folder with turbo.safetensors")
    sub.add_argument("out", metavar="OUT", help="the folder to make")

    add_fetch(commands)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.run is fetch:
        return fetch(options)
    if Path(options.out).exists():
        raise UserError(f"{options.out} already exists: choose another --out or remove it first")
    use_fetched(options)
    options.words = ["python", "-m", "cfld.convert", *(sys.argv[1:] if argv is None else argv)]
    options.run(options)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(main())
