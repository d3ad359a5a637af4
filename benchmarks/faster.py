"""What more speed costs in quality: fewer steps, guidance in an interval alone, and deep features used again.

    python benchmarks/faster.py                        docs/faster.json and docs/faster.md
    python benchmarks/faster.py --model DIR --pairs 5 --out runs/faster

Quality is that of the bundled model on the first of benchmarks/people.py's pairs, whom no model was trained on. Work is
counted, not timed: the UNet's floating-point operations at the paper's size, over those of three rows in 50 steps, as
the official loop computes them. Deep features are used again as in DeepCache (Ma et al., 2024): in every other step
only the finest level is computed, and what the last block takes from below is that of the step before. Each setting is
written down when it is measured. Needs scikit-image.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from people import PAIRS, measure_pairs, paint, pixels, scores, sums
from report import machine, machine_line, table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cfld import SD15, CFLDConfig, Scheduler, UNet, load
from cfld.folder import bundled
from cfld.sample import FAST
from cfld.scheduler import SAMPLERS
from cfld.tools.cli import HelpFormatter, UserError, command, pick_device
from cfld.tools.files import read_json, write_json, write_text
from cfld.unet import repeat_rows, timestep_embedding

ROOT = Path(__file__).parents[1]
NUMBERS = {"error": 4, "error / copy": 3, "PSNR": 2, "SSIM": 4, "IoU": 3}  # and their decimals
SETTINGS: dict[str, dict[str, Any]] = {
    "DDPM, 50 steps": {"steps": 50},
    **{f"DPM-Solver++, {n} steps": {"sampler": "dpm++", "steps": n} for n in (25, 20, 15, 12, 10, 8)},
    **{f"UniPC, {n} steps": {"sampler": "unipc", "steps": n} for n in (15, 10)},
    **{
        f"DPM-Solver++, 15 steps, guided within {low} .. {high}": {
            "sampler": "dpm++",
            "steps": 15,
            "guidance_interval": (low, high),
        }
        for low, high in ((200, 999), (400, 999), (0, 800), (200, 800))
    },
    "DDPM, 50 steps, deep features of two": {"steps": 50, "every": 2},
    **{
        f"DPM-Solver++, {n} steps, deep features of two": {"sampler": "dpm++", "steps": n, "every": 2} for n in (25, 15)
    },
}


@contextmanager
def deep_features_kept(unet: UNet, every: int) -> Iterator[None]:
    """Within the block all but one of so many calls compute only the finest level."""
    whole, calls, kept = unet.forward, itertools.count(), list[Tensor]()
    down, up = unet.down[0], unet.up[-1]
    handle = up.register_forward_pre_hook(lambda module, args: kept.__setitem__(slice(None), args[:1]))

    def forward(
        latents: Tensor,
        timesteps: Tensor,
        prompt: Tensor,
        pose_features: Sequence[Tensor] | None = None,
        query_biases: Sequence[Tensor] | None = None,
        up_prompts: Sequence[Tensor] | None = None,
    ) -> Tensor:
        if next(calls) % every == 0 or len(kept[0]) != len(prompt):
            return whole(latents, timesteps, prompt, pose_features, query_biases, up_prompts)
        time_emb = unet.time_mlp(timestep_embedding(timesteps, unet.config.channels[0]).to(latents.dtype))
        x = unet.conv_in(latents)
        skips = [repeat_rows(x, len(prompt))]
        skips += down(x, time_emb, prompt, pose_features[0] if pose_features else None)[1][: len(down.resnets)]
        count = len(up.attentions)
        biases = query_biases[-count:] if query_biases else [None] * count
        x = up(kept[0], skips[::-1], time_emb, [prompt] * count, biases)
        return unet.conv_out(F.silu(unet.norm_out(x)))

    unet.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        unet.forward = whole  # type: ignore[method-assign]
        handle.remove()


@torch.no_grad()
def work(config: CFLDConfig, how: dict[str, Any]) -> float:
    """The UNet's operations for one picture, of rows that share what comes before the first cross-attention."""
    side = config.image_size // config.vae.factor
    with torch.device("meta"):
        unet = UNet(config.unet)
    spacing, _ = SAMPLERS[how.get("sampler", "ddpm")]
    low, high = how.get("guidance_interval", (0, float("inf")))
    keep = deep_features_kept(unet, how["every"]) if "every" in how else nullcontext()
    with torch.device("meta"), keep, FlopCounterMode(display=False) as counter:
        for t in Scheduler(config.scheduler).sampling_timesteps(how["steps"], spacing):
            prompt = torch.zeros(2 if low <= t <= high else 1, 16, config.unet.context_width)
            unet(torch.zeros(1, config.unet.latent_channels, side, side), torch.zeros(1, dtype=torch.long), prompt)
    return counter.get_total_flops()


@torch.no_grad()
def official_work(config: CFLDConfig) -> float:
    """The same for the official loop: 50 steps of three whole rows."""
    side = config.image_size // config.vae.factor
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        latents = torch.zeros(3, config.unet.latent_channels, side, side)
        UNet(config.unet)(latents, torch.zeros(3, dtype=torch.long), torch.zeros(3, 16, config.unet.context_width))
    return 50 * counter.get_total_flops()


def scores_table(found: dict[str, Any]) -> str:
    """What docs/faster.md shows."""
    columns = {"saved": 2} | NUMBERS
    rows = [[name, *(f"{row[key]:.{places}f}" for key, places in columns.items())] for name, row in found.items()]
    return table(["", "work saved, times", *NUMBERS], rows)


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python benchmarks/faster.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR", help="another model folder than the bundled one")
    parser.add_argument("--pairs", type=int, default=100, help=f"how many of the {PAIRS}, from the first")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "faster", help="what the files' names begin with")
    parser.add_argument("--device", help="cuda, cpu, ... (default: the best there is)")
    options = parser.parse_args(argv)
    if not 1 <= options.pairs <= PAIRS:
        raise UserError(f"--pairs must be within 1 .. {PAIRS}, found {options.pairs}")

    folder = options.model or bundled()
    model, vae = load(folder, pick_device(options.device))
    asked = {**sums(folder), "pairs": options.pairs}
    path = options.out.with_name(f"{options.out.name}.json")
    before = read_json(path) if path.is_file() else {}
    found = before if before.get("asked") == asked else {"asked": asked, "scores": {}}
    pairs, whole = measure_pairs(options.pairs, model.config), official_work(SD15)
    for name, how in SETTINGS.items():
        if name not in found["scores"]:
            print(name, flush=True)
            given = {key: value for key, value in how.items() if key != "every"}
            with deep_features_kept(model.unet, how["every"]) if "every" in how else nullcontext():
                pictures = pixels(paint(model, vae, pairs, batch=options.pairs, **given))
            found["scores"][name] = scores(pictures, pairs) | {"saved": whole / work(SD15, how)}
            found["made"] = machine()
            write_json(path, found)
    fast = next(name for name, how in SETTINGS.items() if how == FAST)
    text = (
        f"# Fewer steps, and what else makes sampling faster\n\n"
        f"Made by `python benchmarks/faster.py`: the first {options.pairs} pairs of benchmarks/people.py, painted by\n"
        f"a TINY whose model.safetensors has the sha256 {asked['model.safetensors'][:12]}... Work saved: at full\n"
        "size, against the official loop's 50 steps of three rows; [tiny_measures.md](tiny_measures.md) explains the\n"
        "other columns.\n\n"
        f"{scores_table(found['scores'])}\n\n{machine_line(found['made'])}\n\n`--fast` is {fast}.\n"
    )
    write_text(path.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    raise SystemExit(main())
