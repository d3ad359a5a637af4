"""What all benchmarks share: sub-commands, files of results, provenance, tables, and the official method.

Numbers go to benchmarks/results/NAME.json, from which a benchmark that was stopped goes on; pages and pictures go to
docs/. With --out DIR all of them go to DIR.
"""

import argparse
import datetime
import inspect
import os
import platform
import subprocess
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from cfld import CFLD, VAE, Conditions
from cfld.convert.export import in_layout
from cfld.convert.layouts import layout_of
from cfld.tools.cli import HelpFormatter
from cfld.tools.files import read_json
from cfld.tools.pictures import save_image

ROOT = Path(__file__).parents[1]
PICTURE_WIDTH = 1200  # of pictures in docs/, at most
Machine = dict[str, str | int | None]

# torchvision, which diffusers and timm import, needs its operators declared where its binary does not load (a CPU build
# of torch).
_operators = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    try:
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        break  # the binary did load


def benchmark_parser(file: str, doc: str | None) -> tuple[argparse.ArgumentParser, Any]:
    """A parser for python benchmarks/FILE, and the place of its sub-commands."""
    name, description = f"python benchmarks/{Path(file).name}", (doc or "").partition("\nLetters in shapes")[0]
    parser = argparse.ArgumentParser(name, description=description, formatter_class=HelpFormatter)
    return parser, parser.add_subparsers(metavar="COMMAND", required=True)


def add_command(
    commands: Any, run: Callable[[argparse.Namespace], None], name: str | None = None, out: bool = True
) -> argparse.ArgumentParser:
    """Add run(options) as a sub-command. Its name is run's by default, its help the first line of run's docstring, its
    description all of it. out: whether it has the option --out DIR."""
    doc, name = inspect.getdoc(run) or "", name or run.__name__.replace("_", "-")
    parser = commands.add_parser(name, help=doc.partition("\n")[0], description=doc, formatter_class=HelpFormatter)
    parser.set_defaults(run=run)
    if out:
        text = "folder of all results (default: benchmarks/results and docs)"
        parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    return parser


def results_path(name: str, out: Path | None) -> Path:
    """Where numbers are written."""
    return (out or ROOT / "benchmarks" / "results") / name


def docs_path(name: str, out: Path | None) -> Path:
    """Where a page or a picture is written."""
    return (out or ROOT / "docs") / name


def earlier_results(path: Path, asked: dict[str, Any], **empty: Any) -> dict[str, Any]:
    """The content of a file of results if it was made with the same settings, else these settings and what is empty."""
    found = read_json(path) if path.is_file() else {}
    return found if found.get("asked") == asked else {"asked": asked, **empty}


def save_picture(path: Path, image: Image.Image) -> None:
    """Write a picture for docs/: WebP, at most 1,200 pixels wide."""
    if image.width > PICTURE_WIDTH:
        image = image.resize((PICTURE_WIDTH, round(image.height * PICTURE_WIDTH / image.width)))
    save_image(path, image, quality=80, method=6)
    print(f"wrote {path}")


def machine() -> Machine:
    """Processor, cores in use, torch, commit and date."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or None,
        "date": str(datetime.date.today()),
    }


def provenance(*made: Machine) -> str:
    """Where, with what and when numbers were measured, in one line."""

    def each(*texts: str) -> str:
        return " and ".join(dict.fromkeys(texts))

    made = made or (machine(),)
    where = each(*(str(m["gpu"] or f"{m['cores']} cores of {m['cpu']}") for m in made))
    torches, commits, dates = (each(*(str(m[key]) for m in made)) for key in ("torch", "commit", "date"))
    return f"{where}, torch {torches}, commit {commits}, {dates}."


def paragraph(text: str) -> str:
    """A paragraph of a page, in lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows))


class BiasedAttention:
    """An attention processor for diffusers that adds Eq. 4's bias to the query."""

    def __init__(self, bias: Tensor | None = None):
        self.bias = bias

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        temb: Any = None,
    ) -> Tensor:
        query = attn.to_q(hidden_states)
        if self.bias is not None:
            query = query + self.bias
        key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        out = nn.functional.scaled_dot_product_attention(query, key, value)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


def diffusers_unet(
    channels: tuple[int, ...],
    context_width: int,
    groups: int = 32,
    latent_channels: int = 4,
    num_heads: int = 8,
    depth: int = 2,
) -> Any:
    """diffusers' UNet of Stable Diffusion 1.5, of these widths."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=depth,
        attention_head_dim=num_heads,  # their name for it
        cross_attention_dim=context_width,
        norm_num_groups=groups,
        down_block_types=("CrossAttnDownBlock2D",) * (len(channels) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(channels) - 1),
    )


def diffusers_vae(channels: tuple[int, ...], groups: int = 32, latent_channels: int = 4, depth: int = 2) -> Any:
    """diffusers' VAE of Stable Diffusion 1.5, of these widths."""
    from diffusers import AutoencoderKL

    levels = len(channels)
    return AutoencoderKL(
        block_out_channels=channels,
        layers_per_block=depth,
        latent_channels=latent_channels,
        norm_num_groups=groups,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )


class Official:
    """The official method: diffusers' UNet and VAE around our Swin, PRD, HGA and pose adapter, with the same weights.

    So both sides of a comparison must give the same result. Needs diffusers.
    """

    def __init__(self, model: CFLD, vae: VAE):
        unet, of_vae = model.config.unet, vae.config
        self.unet = diffusers_unet(
            unet.channels, unet.context_width, unet.groups, unet.latent_channels, unet.num_heads, unet.depth
        )
        self.unet.load_state_dict(in_layout(model.unet, layout_of("UNet", "diffusers")))
        self.vae = diffusers_vae(of_vae.channels, of_vae.groups, of_vae.latent_channels, of_vae.depth)
        self.vae.load_state_dict(in_layout(vae, layout_of("VAE", "diffusers")))
        self.scale = vae.config.scale
        self.biased = [x.transformer_blocks[0].attn2 for up in self.unet.up_blocks[1:] for x in up.attentions]
        self.processors = [BiasedAttention() for _ in self.biased]
        for attention, processor in zip(self.biased, self.processors, strict=True):
            attention.set_processor(processor)
        for module in (self.unet, self.vae):
            module.to(model.null_prompt.device, model.null_prompt.dtype).requires_grad_(False)

    def __call__(self, noisy_latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """As CFLD.forward: noise_pred (B, C, h, w)."""
        for processor, bias in zip(self.processors, conditions.query_biases or (), strict=True):
            processor.bias = bias
        return self.unet(
            noisy_latents,
            timesteps,
            conditions.prompt,
            down_intrablock_additional_residuals=[*(conditions.pose_features or ())],
        )[0]
