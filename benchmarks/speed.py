"""Speed: the machine's peak and every part's share of it, and the UNet and whole pictures against diffusers' blocks.

    python benchmarks/speed.py                 the paper's size, 25 minutes with AMX; goes on where it was stopped
    python benchmarks/speed.py --size tiny     TINY, a few minutes
    python benchmarks/speed.py --device cuda

Both sides of a comparison have the same random weights and take turns in one process; numbers are medians. Each section
is a fresh process. Writes docs/speed_SIZE.json, .md and .png. Needs diffusers.

Letters in shapes: B rows.
"""

import argparse
import copy
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from official import Official
from PIL import Image, ImageDraw
from report import machine, machine_line, table
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from cfld import CFLD, SD15, TINY, VAE, CFLDConfig, Conditions, Scheduler, generate, people
from cfld.photos.pixels import to_pictures, to_range, to_square
from cfld.pose import pose_maps
from cfld.sample import FAST, compile_frozen
from cfld.sampling import default_size, denoise, draw, sample
from cfld.scheduler import SchedulerConfig
from cfld.tools.cli import PRECISIONS, HelpFormatter, command, pick_device
from cfld.tools.files import read_json, write_json, write_text
from cfld.tools.pictures import save_image
from cfld.tools.plot import Points, draw_axes
from cfld.training.memory import keep_freed_memory

ROOT = Path(__file__).parents[1]
SIZES = {"full": SD15, "tiny": dataclasses.replace(TINY, scheduler=SchedulerConfig())}  # which predict the noise
UNET_ROWS = (1, 2, 3, 8)
BATCHES = (1, 2, 4, 8, 16)
COLOURS = ((31, 90, 170), (214, 96, 20))
UNCOUNTED = {  # by torch itself
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}
OTHER = "norms, activations, sums, copies and the rest"
KINDS: dict[str, tuple[str, ...]] = {  # of operations, by the functions of torch
    "attention": ("scaled_dot_product_attention", "matmul", "__matmul__", "mm", "softmax"),
    "convolutions": ("conv2d",),
    "linear layers": ("linear",),
    OTHER: (),
}
Seconds = list[float]


# -------------------------------------------------------------------------------------------------------------- timing


def seconds(act: Callable[[], object]) -> float:
    """How long it takes, until the device has done it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    act()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(sides: dict[str, Callable[[], object]], rounds: int, warm: bool = True) -> dict[str, Seconds]:
    """The seconds of each side, one round after the other; warm: after a first that does not count."""
    if warm:
        for act in sides.values():
            act()
    times: dict[str, Seconds] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, act in sides.items():
            times[name].append(seconds(act))
    return times


def flops(act: Callable[[], object]) -> dict[str, float]:
    """The floating-point operations of products and of convolutions."""
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        act()
    counts = {str(name): count for name, count in counter.get_flop_counts().get("Global", {}).items()}
    convolutions = sum(count for name, count in counts.items() if "convolution" in name)
    return {"product": sum(counts.values()) - convolutions, "convolution": convolutions}


# ----------------------------------------------------------------------------------------------------------- the models


class Setup:
    """A model of random weights, none of them zero, and what it is given."""

    def __init__(self, config: CFLDConfig, device: torch.device, dtype: torch.dtype):
        torch.manual_seed(0)
        self.config, self.device, self.dtype = config, device, dtype
        self.model, self.vae = CFLD(config), VAE(config.vae)
        for parameter in (*self.model.parameters(), *self.vae.parameters()):
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.01)
        for module in (self.model, self.vae):
            module.to(device, dtype, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
        self.size = config.image_size // config.vae.factor
        drawn = people.draw(people.TRAINING_SEEDS, 0, limit=people.OWN_SEEDS)
        self.photo, self.keypoints = Image.fromarray(drawn.image), drawn.annotation.astype(np.float32)

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self.device, self.dtype)

    def images(self, count: int = 1) -> Tensor:
        """(B, 3, H, H) in [-1, 1]."""
        image = to_range(to_square(self.photo, self.config.source_size)[None]).to(self.device, self.dtype)
        return image.expand(count, -1, -1, -1)

    def poses(self, count: int = 1) -> Tensor:
        """(B, 21, H, H) in [0, 1]."""
        joints = torch.tensor(self.keypoints, device=self.device)[None]
        return pose_maps(joints, self.config.adapter.pose_size).to(self.dtype).expand(count, -1, -1, -1)

    def official(self) -> Official:
        theirs = Official(self.model, self.vae)
        for module in (theirs.unet, theirs.vae):
            module.to(memory_format=torch.channels_last).eval()
        return theirs

    def compiled(self) -> CFLD:
        """The same model and weights, its UNet as --compile has it."""
        model = copy.copy(self.model)
        model._modules = {**self.model._modules, "unet": copy.copy(self.model.unet)}
        compile_frozen(model.unet)
        return model

    def given(self, rows: int) -> tuple[Tensor, Tensor, Conditions]:
        """Noisy latents, timesteps and conditions of so many rows."""
        latents = self.tensor(rows, self.config.unet.latent_channels, self.size, self.size)
        timesteps = torch.full((rows,), 500, device=self.device)
        return latents, timesteps, self.model.condition(self.images(rows), self.poses(rows))


# ------------------------------------------------------------------------------------------------------------- sections


def peaks(setup: Setup, rounds: int) -> dict[str, Any]:
    """TFLOP/s of a large product and a 3x3 convolution, in fp32 and in the dtype of the models."""
    found = {}
    wide = 8192 if setup.device.type == "cuda" else 2048
    for dtype in dict.fromkeys((torch.float32, setup.dtype)):
        a, b = (torch.randn(wide, wide).to(setup.device, dtype) for _ in range(2))
        x = torch.randn(2, 640, 64, 64).to(setup.device, dtype, memory_format=torch.channels_last)
        kernel = torch.randn(640, 640, 3, 3).to(setup.device, dtype, memory_format=torch.channels_last)
        sides = {"product": lambda a=a, b=b: a @ b, "convolution": lambda x=x, k=kernel: F.conv2d(x, k, padding=1)}
        for name, times in in_turns(sides, 3 * rounds).items():
            found[f"{name}, {str(dtype).removeprefix('torch.')}"] = sum(
                flops(sides[name]).values()
            ) / statistics.median(times)
    return found


def components(setup: Setup, rounds: int) -> dict[str, Any]:
    """Seconds and FLOPs of each part, for one picture."""
    model, vae = setup.model, setup.vae
    images, poses = setup.images(), setup.poses()
    features = model.source_encoder(images)
    photos = setup.tensor(1, 3, setup.config.image_size, setup.config.image_size).clamp(-1, 1)
    one, two = setup.given(1), setup.given(2)
    joints = torch.tensor(setup.keypoints, device=setup.device)[None]
    sides: dict[str, Callable[[], object]] = {
        "pose map": lambda: pose_maps(joints, setup.config.adapter.pose_size),
        "Swin": lambda: model.source_encoder(images),
        "PRD (H_D)": lambda: model.prd(features[-1]),
        "HGA (H_A)": lambda: model.hga(features),
        "pose adapter": lambda: model.pose_adapter(poses),
        "VAE, encoder": lambda: vae.encode(photos),
        "UNet, one row": lambda: model(*one),
        "UNet, two rows": lambda: model(*two),
        "UNet, two rows of the same z_t": lambda: model(two[0][:1], two[1][:1], two[2]),
        "VAE, decoder": lambda: vae.decode(one[0]),
    }
    times = in_turns(sides, rounds)
    return {name: {"seconds": times[name], **flops(act)} for name, act in sides.items()}


def unet(setup: Setup, rounds: int) -> dict[str, Any]:
    """The UNet's forward, and as --compile has it, beside diffusers'."""
    theirs, compiled, found = setup.official(), setup.compiled(), {}
    for rows in UNET_ROWS:
        torch.compiler.reset()  # each keeps a copy of the weights
        given = setup.given(rows)
        sides = {"ours": setup.model, "compiled": compiled, "diffusers": theirs}
        times = in_turns({name: lambda m=model, g=given: m(*g) for name, model in sides.items()}, rounds)
        difference = (setup.model(*given).float() - theirs(*given).float()).norm() / theirs(*given).float().norm()
        work = flops(lambda g=given: setup.model(*g))
        found[str(rows)] = {"seconds": times, "difference": difference.item(), **work}
    return found


class Stopwatch(TorchFunctionMode):
    """Adds up seconds and FLOPs of what the code within calls, by kind of operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self.flops = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, result = func.__name__, []
        kind = next((kind for kind, names in KINDS.items() if name in names), OTHER)
        self.seconds[kind] += seconds(lambda: result.append(func(*args, **(kwargs or {}))))
        if kind != OTHER:
            self.flops[kind] += sum(flops(lambda: func(*args, **(kwargs or {}))).values())
        return result[0]


def profile(setup: Setup, rounds: int) -> dict[str, Any]:
    """Where the time of two rows of the UNet goes: the seconds and FLOPs of each kind of operation."""
    given = setup.given(2)
    setup.model(*given)
    with Stopwatch() as watch:
        for _ in range(rounds):
            setup.model(*given)
    return {kind: {"seconds": watch.seconds[kind] / rounds, "flops": watch.flops[kind] / rounds} for kind in KINDS}


def three_rows(setup: Setup, theirs: Official, steps: int, seed: int) -> Tensor:
    """The official loop: three rows of Eq. 7 in each step, diffusers' scheduler and VAE -> images (1, 3, H, H)."""
    from diffusers import DDPMScheduler

    generator = torch.Generator().manual_seed(seed)
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    scheduler.set_timesteps(steps)
    full = setup.model.condition(setup.images(), setup.poses())
    null = setup.model.null_prompt.to(full.prompt.dtype)
    assert full.pose_features and full.query_biases
    stacked = Conditions(
        torch.cat([null, null, full.prompt]),
        [torch.cat([torch.zeros_like(x), x, x]) for x in full.pose_features],
        [torch.cat([torch.zeros_like(x), torch.zeros_like(x), x]) for x in full.query_biases],
    )
    latents = draw((1, setup.config.unet.latent_channels, setup.size, setup.size), generator, null)
    for t in scheduler.timesteps:
        rows = latents.repeat(3, 1, 1, 1).to(setup.dtype)
        nothing, pose, both = theirs(rows, t.to(setup.device).repeat(3), stacked).float().chunk(3)
        noise_pred = nothing + 2.0 * (pose - nothing) + 2.0 * (both - pose)
        latents = scheduler.step(noise_pred, t, latents, generator=generator).prev_sample
    return theirs.vae.decode((latents / theirs.scale).to(setup.dtype)).sample.clamp(-1, 1)


def equal(setup: Setup, rounds: int) -> dict[str, Any]:
    """Relative L2 distance of the picture from the official loop's, after three steps in fp32."""
    theirs = setup.official()
    scheduler, generator = Scheduler(setup.config.scheduler), torch.Generator().manual_seed(1)
    picture = sample(setup.model, setup.vae, scheduler, setup.images(), setup.poses(), steps=3, generator=generator)
    reference = three_rows(setup, theirs, 3, 1)
    return {"distance": ((picture - reference).norm() / reference.norm()).item()}


def sampling(setup: Setup, rounds: int) -> dict[str, Any]:
    """A whole picture, from the photo to the pixels: the official loop, ours, and ours with --fast."""
    theirs, compiled, size = setup.official(), setup.compiled(), default_size(setup.config.image_size)

    def ours(model: CFLD = setup.model, **how: Any) -> list[Image.Image]:
        return generate(model, setup.vae, setup.photo, setup.keypoints, **how)

    sides: dict[str, Callable[[], object]] = {
        "the official loop, DDPM 50, three rows": lambda: to_pictures(three_rows(setup, theirs, 50, 0), size),
        "ours, DDPM 50": lambda: ours(steps=50),
        "ours, --fast": lambda: ours(**FAST),
        "ours, DDPM 50, compiled": lambda: ours(model=compiled, steps=50),
        "ours, --fast, compiled": lambda: ours(model=compiled, **FAST),
    }
    ours(steps=1), three_rows(setup, theirs, 1, 0), ours(model=compiled, steps=1)  # so that none is the first
    return in_turns(sides, rounds, warm=False)


def growth(setup: Setup, rounds: int) -> dict[str, Any]:
    """Seconds of two steps and the decoding: by pictures at once, of one source or as many; by side of the image."""
    model, vae, scheduler = setup.model, setup.vae, Scheduler(setup.config.scheduler)
    found: dict[str, Any] = {"a source each": {}, "poses of one source": {}, "image": {}}
    for batch in BATCHES:
        for name, sources in (("a source each", batch), ("poses of one source", 1)):
            images, poses = setup.images(sources), setup.poses(batch)
            act = lambda i=images, p=poses: sample(model, vae, scheduler, i, p, steps=2)  # noqa: E731
            act() if batch == 1 else None
            found[name][str(batch)] = min(seconds(act) for _ in range(2 if batch < 8 else 1))
    conditions, config = setup.given(1)[2], setup.config
    for sixteenths in (8, 12, 16, 20, 24):
        side = config.image_size * sixteenths // 16
        if side % (8 * config.vae.factor):
            continue  # three halvings of the latents must be whole
        model.config = dataclasses.replace(config)
        object.__setattr__(model.config, "image_size", side)  # whatever the other parts take: they are not asked here
        latent = side // config.vae.factor

        def resized(x: Tensor, latent: int = latent) -> Tensor:
            return F.interpolate(x.float(), scale_factor=latent / setup.size).to(setup.dtype)

        def biases(x: Tensor) -> Tensor:
            h = round(x.shape[1] ** 0.5)
            return resized(x.transpose(1, 2).unflatten(-1, (h, h))).flatten(2).transpose(1, 2).contiguous()

        made_up = Conditions(
            conditions.prompt,
            [resized(x) for x in conditions.pose_features or ()],
            [biases(x) for x in conditions.query_biases or ()],
        )
        found["image"][str(side)] = min(
            seconds(lambda c=made_up: denoise(model, vae, scheduler, c, steps=2)) for _ in range(2)
        )
    return found


SECTIONS: dict[str, Callable[[Setup, int], dict[str, Any]]] = {
    "peaks": peaks,
    "components": components,
    "unet": unet,
    "profile": profile,
    "equal": equal,
    "sampling": sampling,
    "growth": growth,
}


# --------------------------------------------------------------------------------------------------------------- report


def spread(times: Seconds) -> str:
    """Median (least .. most)."""
    return f"{statistics.median(times):.3g} ({min(times):.3g} .. {max(times):.3g})"


def report(size: str, found: dict[str, Any], where: str, precision: str) -> str:
    """docs/speed_SIZE.md."""
    peak, config = found["peaks"], SIZES[size]
    dtype = str(PRECISIONS[precision]).removeprefix("torch.")

    def least(row: dict[str, Any]) -> float:
        """Seconds of its products and convolutions at the peaks."""
        return sum(row[kind] / peak[f"{kind}, {dtype}"] for kind in ("product", "convolution"))

    parts = []
    for name, row in found["components"].items():
        took, work = statistics.median(row["seconds"]), row["product"] + row["convolution"]
        share = [f"{work / took / 1e12:.2f}", f"{least(row) / took:.0%}"] if work else ["-", "-"]
        parts.append([name, spread(row["seconds"]), f"{work / 1e9:.1f}", *share])
    unets = []
    for rows, row in found["unet"].items():
        theirs = statistics.median(row["seconds"]["diffusers"])
        for side, times in row["seconds"].items():
            took = statistics.median(times)
            unets.append([rows, side, spread(times), f"{took / theirs:.2f}", f"{least(row) / took:.0%}"])
    difference = max(row["difference"] for row in found["unet"].values())
    whole = sum(row["seconds"] for row in found["profile"].values())
    kinds = []
    for kind, row in found["profile"].items():
        rate = f"{row['flops'] / row['seconds'] / 1e12:.2f}" if row["flops"] else "-"
        kinds.append([kind, f"{row['seconds']:.3f}", f"{row['seconds'] / whole:.0%}", rate])
    official = statistics.median(next(iter(found["sampling"].values())))
    pictures = [
        [name, spread(times), f"{official / statistics.median(times):.2f}"] for name, times in found["sampling"].items()
    ]
    lines = [
        f"# Speed: {size}, {config.image_size}x{config.image_size}, {precision}",
        "",
        f"Made by `python benchmarks/speed.py --size {size}`. Random weights, the same on both sides, channels_last on",
        "both; sides take turns; medians (least .. most).",
        "",
        where,
        "",
        table(["peak", "TFLOP/s"], [[name, f"{value / 1e12:.2f}"] for name, value in peak.items()]),
        "",
        table(["part, for one picture", "seconds", "GFLOP", "TFLOP/s",
               "of the peaks, by its products and convolutions"], parts),
        "",
        table(["UNet, rows", "", "seconds", "of diffusers' time", "of the peaks"], unets),
        "",
        f"compiled: with --compile. Ours and diffusers' outputs differ by {difference:.1e} at most (relative L2).",
        "",
        "Where the time of two rows goes, not compiled, each operation timed alone:",
        "",
        table(["operations", "seconds", "of the whole", "TFLOP/s"], kinds),
        "",
        table(["one picture, decoding included", "seconds", "times as fast"], pictures),
        "",
        f"After three steps in fp32 from the same noise the picture differs from the official loop's by "
        f"{found['equal']['distance']:.1e} (relative L2).",
        "",
        f"![Seconds of two steps by pictures at once, and by the side of the image](speed_{size}.png)",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def draw_growth(found: dict[str, Any]) -> Image.Image:
    """Seconds a picture of two steps and the decoding: by pictures at once on the left, by side on the right."""
    image = Image.new("RGB", (1300, 420), "white")
    canvas = ImageDraw.Draw(image)
    names = ("a source each", "poses of one source")
    curves: list[Points] = [[(int(n), took / int(n)) for n, took in found[name].items()] for name in names]
    lines = [(points, colour, 2) for points, colour in zip(curves, COLOURS, strict=True)]
    legend = list(zip(names, COLOURS, strict=True))
    draw_axes(canvas, (80, 50, 620, 350), "seconds a picture, by pictures at once", lines, legend, from_zero=True)
    sides: Points = [(int(side), took) for side, took in found["image"].items()]
    draw_axes(
        canvas, (730, 50, 1270, 350), "seconds, by the image's side", [(sides, COLOURS[0], 2)], [], from_zero=True
    )
    return image


@command
@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python benchmarks/speed.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full", help="of the model")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of weights")
    parser.add_argument("--rounds", type=int, default=7, help="of a comparison; whole pictures take a third of it")
    parser.add_argument("--device", help="cuda, cpu, ... (default: the best there is)")
    parser.add_argument("--only", choices=SECTIONS, help="print one section's numbers as JSON, and write nothing")
    options = parser.parse_args(argv)

    if options.only:
        keep_freed_memory()
        precision = "fp32" if options.only == "equal" else options.precision
        setup = Setup(SIZES[options.size], pick_device(options.device), PRECISIONS[precision])
        rounds = max(options.rounds // 3, 1) if options.only == "sampling" else options.rounds
        print(json.dumps(SECTIONS[options.only](setup, rounds)))
        return

    path = ROOT / "docs" / f"speed_{options.size}.json"
    given = {"precision": options.precision, "rounds": options.rounds, "device": str(pick_device(options.device))}
    asked = {**given, "commit": machine()["commit"], "torch": torch.__version__}
    before = read_json(path) if path.is_file() else {}
    found = before if before.get("asked") == asked else {"asked": asked, "where": machine_line()}
    given["size"] = options.size
    for name in SECTIONS:
        if name not in found:
            print(name, flush=True)
            done = subprocess.run(
                [sys.executable, __file__, f"--only={name}", *(f"--{k}={v}" for k, v in given.items())],
                stdout=subprocess.PIPE,
                text=True,
            )
            if done.returncode:
                raise SystemExit(done.returncode)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            write_json(path, found)
    text = report(options.size, found, found["where"], options.precision)
    write_text(path.with_suffix(".md"), text)
    save_image(path.with_suffix(".png"), draw_growth(found["growth"]))
    print(text)


if __name__ == "__main__":
    raise SystemExit(main())
