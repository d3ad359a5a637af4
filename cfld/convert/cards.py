"""The cards of the folders that cfld.convert makes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cfld.tools.card import LOAD, LOAD_DIFFUSERS, LOAD_OFFICIAL, RAIL, SD15, UNKNOWN, model_card, read_card


def architecture(options: argparse.Namespace, image_size: int) -> str:
    """What --config and --ablation say."""
    name = f"of {Path(options.config).name}" if options.config else "preset sd15"
    baseline = getattr(options, "ablation", None)
    return f"{name}, {image_size}x{image_size}" + (f", baseline {baseline}" if baseline else "")


def origin(options: argparse.Namespace) -> tuple[str, Sequence[str]]:
    """Licence and base models: Stable Diffusion 1.5's, unless files of other widths were given."""
    return (UNKNOWN, []) if options.config else (RAIL, [SD15])


def init_card(options: argparse.Namespace, image_size: int, command: Sequence[str]) -> str:
    """Of public parts, to train from."""
    given = {part: getattr(options, part) for part in ("sd", "unet", "vae", "swin", "clip")}
    facts = {
        "architecture": architecture(options, image_size),
        "weights": ", ".join(f"{part} {path}" for part, path in given.items() if path)
        + f"; all other parts from seed {options.seed}",
        "data": "none yet: it is to train from, not to sample from",
    }
    return model_card(*origin(options), facts, command, LOAD)


def official_card(options: argparse.Namespace, image_size: int, command: Sequence[str]) -> str:
    """Of the authors' checkpoint."""
    facts = {
        "architecture": architecture(options, image_size),
        "weights": f"the authors' (github.com/YanzuoLu/CFLD), {options.model} and {options.unet}; VAE {options.vae}",
        "data": "trained by the authors on DeepFashion In-shop Clothes, which is for research alone",
    }
    return model_card(*origin(options), facts, command, LOAD)


def export_card(options: argparse.Namespace, image_size: int, command: Sequence[str]) -> str:
    """Of a model folder under other names."""
    facts = {
        "architecture": f"{image_size}x{image_size}",
        "weights": f"those of the model folder {options.folder}, under the names of {options.to}",
    }
    load = {"diffusers": LOAD_DIFFUSERS, "official": LOAD_OFFICIAL}[options.to]
    return model_card(*read_card(options.folder), facts, command, load)
