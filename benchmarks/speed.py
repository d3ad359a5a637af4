"""How fast sampling is: the machine's peaks, each part's share of them, the UNet and whole images against diffusers.

    python benchmarks/speed.py sample                    the paper's size, 25 minutes with AMX: docs/speed_full.md
    python benchmarks/speed.py sample --size tiny        TINY, a few minutes: docs/speed_tiny.md
    python benchmarks/speed.py sample --section unet     one section alone, printed as JSON

Both sides of a comparison have the same random weights and take turns in one process; numbers are medians. Each section
is a fresh process. Needs diffusers. benchmarks/cost.py measures training, and memory.

Letters in shapes: B samples, h side of the latents.
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
from typing import Any

import numpy as np
import torch
from common import (
    Official,
    add_command,
    benchmark_parser,
    docs_path,
    earlier_results,
    machine,
    paragraph,
    provenance,
    results_path,
    save_picture,
    table,
)
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from cfld import CFLD, SD15, TINY, VAE, CFLDConfig, Conditions, generate, people
from cfld.config import DistilledConfig
from cfld.photos.pixels import to_pictures, to_range, to_square
from cfld.pose import pose_maps
from cfld.sample import compile_frozen
from cfld.sampling import FAST, PAPER, TURBO, SamplingConfig, default_size, denoise, sample
from cfld.scheduler import SchedulerConfig
from cfld.tools.cli import PRECISIONS, command, pick_device
from cfld.tools.files import write_json, write_text
from cfld.tools.plot import Points, draw_axes
from cfld.training.memory import keep_freed_memory

SIZES = {"full": SD15, "tiny": dataclasses.replace(TINY, scheduler=SchedulerConfig())}  # which predict the noise
UNET_BATCHES = (1, 2, 3, 8)
BATCHES = (1, 2, 4, 8, 16)
PRODUCT, CHANNELS = {"cuda": 8192, "cpu": 2048}, 640  # the sides and channels of what peaks() multiplies
SIXTEENTHS = (8, 12, 16, 20, 24)  # of the model's image size
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


def seconds(act: Callable[[], object]) -> float:
    """How long a call takes, until the device has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    act()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(sides: dict[str, Callable[[], object]], rounds: int, warm: bool = True) -> dict[str, Seconds]:
    """The seconds of each side, which take turns; warm: after a first round that does not count."""
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


class Setup:
    """A model of random weights, none of them zero, and its inputs."""

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
        person = people.draw(people.TRAINING_SEEDS, 0, limit=people.OWN_SEEDS)
        self.photo, self.keypoints = Image.fromarray(person.image), person.annotation.astype(np.float32)

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
        """The same model and weights, with the UNet compiled as by --compile."""
        model = copy.copy(self.model)
        model._modules = {**self.model._modules, "unet": copy.copy(self.model.unet)}
        compile_frozen(model.unet)
        return model

    def inputs(self, batch: int) -> tuple[Tensor, Tensor, Conditions]:
        """Noisy latents (B, C, h, h), timesteps (B,) and conditions of B samples."""
        latents = self.tensor(batch, self.config.unet.latent_channels, self.size, self.size)
        timesteps = torch.full((batch,), 500, device=self.device)
        return latents, timesteps, self.model.condition(self.images(batch), self.poses(batch))


def peaks(setup: Setup, rounds: int) -> dict[str, Any]:
    """FLOP/s of a large product and of a 3x3 convolution, in fp32 and in the dtype of the models."""
    found = {}
    wide = PRODUCT.get(setup.device.type, PRODUCT["cpu"])
    for dtype in dict.fromkeys((torch.float32, setup.dtype)):
        a, b = (torch.randn(wide, wide).to(setup.device, dtype) for _ in range(2))
        x = torch.randn(2, CHANNELS, 64, 64).to(setup.device, dtype, memory_format=torch.channels_last)
        kernel = torch.randn(CHANNELS, CHANNELS, 3, 3).to(setup.device, dtype, memory_format=torch.channels_last)
        sides = {"product": lambda a=a, b=b: a @ b, "convolution": lambda x=x, k=kernel: F.conv2d(x, k, padding=1)}
        for name, times in in_turns(sides, 3 * rounds).items():
            work = sum(flops(sides[name]).values())
            found[f"{name}, {str(dtype).removeprefix('torch.')}"] = work / statistics.median(times)
    return found


def components(setup: Setup, rounds: int) -> dict[str, Any]:
    """Seconds and FLOPs of each part, for one image."""
    model, vae = setup.model, setup.vae
    images, poses = setup.images(), setup.poses()
    features = model.source_encoder(images)
    photos = setup.tensor(1, 3, setup.config.image_size, setup.config.image_size).clamp(-1, 1)
    one, two = setup.inputs(1), setup.inputs(2)
    joints = torch.tensor(setup.keypoints, device=setup.device)[None]
    sides: dict[str, Callable[[], object]] = {
        "pose map": lambda: pose_maps(joints, setup.config.adapter.pose_size),
        "Swin": lambda: model.source_encoder(images),
        "PRD (H_D)": lambda: model.prd(features[-1]),
        "HGA (H_A)": lambda: model.hga(features[:-1]),
        "pose adapter": lambda: model.pose_adapter(poses),
        "VAE, encoder": lambda: vae.encode(photos),
        "UNet, one branch": lambda: model(*one),
        "UNet, two branches": lambda: model(*two),
        "VAE, decoder": lambda: vae.decode(one[0]),
    }
    times = in_turns(sides, rounds)
    return {name: {"seconds": times[name], **flops(act)} for name, act in sides.items()}


def unet(setup: Setup, rounds: int) -> dict[str, Any]:
    """The UNet's forward, as it is and compiled, against diffusers'."""
    theirs, compiled, found = setup.official(), setup.compiled(), {}
    for batch in UNET_BATCHES:
        torch.compiler.reset()  # each compilation keeps a copy of the weights
        inputs = setup.inputs(batch)
        sides = {"ours": setup.model, "compiled": compiled, "diffusers": theirs}
        times = in_turns({name: lambda m=model, x=inputs: m(*x) for name, model in sides.items()}, rounds)
        difference = (setup.model(*inputs).float() - theirs(*inputs).float()).norm() / theirs(*inputs).float().norm()
        work = flops(lambda x=inputs: setup.model(*x))
        found[str(batch)] = {"seconds": times, "difference": difference.item(), **work}
    return found


class Stopwatch(TorchFunctionMode):
    """Adds up seconds and FLOPs of torch's functions within a block, by kind of operation."""

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
    """Where the time of the UNet goes, with two samples: seconds and FLOPs of each kind of operation."""
    inputs = setup.inputs(2)
    setup.model(*inputs)
    with Stopwatch() as watch:
        for _ in range(rounds):
            setup.model(*inputs)
    return {kind: {"seconds": watch.seconds[kind] / rounds, "flops": watch.flops[kind] / rounds} for kind in KINDS}


def official_loop(setup: Setup, theirs: Official, steps: int, seed: int) -> Tensor:
    """Sampling as in the official code: all three branches of Eq. 7 in each step, diffusers' scheduler and VAE
    -> images (1, 3, H, H)."""
    from diffusers import DDPMScheduler

    generator = torch.Generator().manual_seed(seed)
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    scheduler.set_timesteps(steps)
    full = setup.model.condition(setup.images(), setup.poses())
    unconditional = Conditions(setup.model.null_prompt.to(full.prompt.dtype), None, None)
    pose_only = dataclasses.replace(unconditional, pose_features=full.pose_features)
    branches = Conditions.cat([unconditional, pose_only, full])
    latents = torch.randn(1, setup.config.unet.latent_channels, setup.size, setup.size, generator=generator)
    latents = latents.to(setup.device)
    for t in scheduler.timesteps:
        repeated = latents.repeat(3, 1, 1, 1).to(setup.dtype)
        nothing, pose, both = theirs(repeated, t.to(setup.device).repeat(3), branches).float().chunk(3)
        noise_pred = nothing + 2.0 * (pose - nothing) + 2.0 * (both - pose)
        latents = scheduler.step(noise_pred, t, latents, generator=generator).prev_sample
    return theirs.vae.decode((latents / theirs.scale).to(setup.dtype)).sample.clamp(-1, 1)


def equal(setup: Setup, rounds: int) -> dict[str, Any]:
    """Relative L2 distance of the image from the official loop's, after three steps in fp32."""
    theirs, generator = setup.official(), torch.Generator().manual_seed(1)
    how = SamplingConfig(steps=3)
    image = sample(setup.model, setup.vae, setup.images(), setup.poses(), how, generator=generator)
    reference = official_loop(setup, theirs, 3, 1)
    return {"distance": ((image - reference).norm() / reference.norm()).item()}


def as_student(model: CFLD) -> CFLD:
    """The model, to be sampled as a student: its weights are random anyway."""
    student = copy.copy(model)
    student.config = dataclasses.replace(model.config, distilled=DistilledConfig())
    return student


def sampling(setup: Setup, rounds: int) -> dict[str, Any]:
    """A whole image, from the photo to the pixels: the official loop, ours, and ours with --fast and --turbo."""
    theirs, compiled, size = setup.official(), setup.compiled(), default_size(setup.config.image_size)

    def ours(how: SamplingConfig, model: CFLD = setup.model) -> list[Image.Image]:
        return generate(model, setup.vae, setup.photo, setup.keypoints, how)

    sides: dict[str, Callable[[], object]] = {
        "the official loop, DDPM 50, three branches": lambda: to_pictures(official_loop(setup, theirs, 50, 0), size),
        "ours, DDPM 50": lambda: ours(PAPER),
        "ours, --fast": lambda: ours(FAST),
        "ours, --turbo": lambda: ours(TURBO, as_student(setup.model)),
        "ours, DDPM 50, compiled": lambda: ours(PAPER, compiled),
        "ours, --fast, compiled": lambda: ours(FAST, compiled),
        "ours, --turbo, compiled": lambda: ours(TURBO, as_student(compiled)),
    }
    one = SamplingConfig(steps=1)
    ours(one), official_loop(setup, theirs, 1, 0), ours(one, compiled)  # the first call of each is slower
    return in_turns(sides, rounds, warm=False)


def growth(setup: Setup, rounds: int) -> dict[str, Any]:
    """Seconds of two steps and the decoding: by batch, with a source for each image or one for all; by image size."""
    model, vae, how = setup.model, setup.vae, SamplingConfig(steps=2)
    found: dict[str, Any] = {"a source each": {}, "poses of one source": {}, "image": {}}
    for batch in BATCHES:
        for name, sources in (("a source each", batch), ("poses of one source", 1)):
            images, poses = setup.images(sources), setup.poses(batch)
            act = lambda i=images, p=poses: sample(model, vae, i, p, how)  # noqa: E731
            act() if batch == 1 else None
            found[name][str(batch)] = min(seconds(act) for _ in range(2 if batch < 8 else 1))
    conditions, config = setup.inputs(1)[2], setup.config
    for side in (config.image_size * n // 16 for n in SIXTEENTHS):
        if side % (8 * config.vae.factor):
            continue  # the latents are halved three times
        model.config = dataclasses.replace(config)
        object.__setattr__(model.config, "image_size", side)  # the other parts are not used here: no interface check
        resized = conditions_of_size(conditions, side / config.image_size)
        act = lambda c=resized: denoise(model, vae, c, how)  # noqa: E731
        found["image"][str(side)] = min(seconds(act) for _ in range(2))
    return found


def conditions_of_size(conditions: Conditions, scale: float) -> Conditions:
    """Conditions with the pose features and query biases of another image size."""

    def resized(x: Tensor) -> Tensor:
        return F.interpolate(x.float(), scale_factor=scale).to(x.dtype)

    def biases(x: Tensor) -> Tensor:
        h = round(x.shape[1] ** 0.5)
        return resized(x.transpose(1, 2).unflatten(-1, (h, h))).flatten(2).transpose(1, 2).contiguous()

    return Conditions(
        conditions.prompt,
        [resized(x) for x in conditions.pose_features or ()],
        [biases(x) for x in conditions.query_biases or ()],
    )


SECTIONS: dict[str, Callable[[Setup, int], dict[str, Any]]] = {
    "peaks": peaks,
    "components": components,
    "unet": unet,
    "profile": profile,
    "equal": equal,
    "sampling": sampling,
    "growth": growth,
}


def spread(times: Seconds) -> str:
    """Median (minimum .. maximum)."""
    return f"{statistics.median(times):.3g} ({min(times):.3g} .. {max(times):.3g})"


def speed_page(size: str, found: dict[str, Any]) -> str:
    """docs/speed_SIZE.md."""
    peak, config, precision = found["peaks"], SIZES[size], found["asked"]["precision"]
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
    for batch, row in found["unet"].items():
        theirs = statistics.median(row["seconds"]["diffusers"])
        for side, times in row["seconds"].items():
            took = statistics.median(times)
            unets.append([batch, side, spread(times), f"{took / theirs:.2f}", f"{least(row) / took:.0%}"])
    difference = max(row["difference"] for row in found["unet"].values())
    whole = sum(row["seconds"] for row in found["profile"].values())
    kinds = []
    for kind, row in found["profile"].items():
        rate = f"{row['flops'] / row['seconds'] / 1e12:.2f}" if row["flops"] else "-"
        kinds.append([kind, f"{row['seconds']:.3f}", f"{row['seconds'] / whole:.0%}", rate])
    official = statistics.median(next(iter(found["sampling"].values())))
    images = [
        [name, spread(times), f"{official / statistics.median(times):.2f}"] for name, times in found["sampling"].items()
    ]
    lines = [
        f"# Speed: {size}, {config.image_size}x{config.image_size}, {precision}",
        "",
        paragraph(
            f"Made by `python benchmarks/speed.py sample --size {size}`. Both sides have the same random weights and "
            "the channels_last memory format, and take turns. Medians (minimum .. maximum). Share of the peaks: the "
            "time that products and convolutions alone would take at the peaks, divided by the measured time."
        ),
        "",
        found["where"],
        "",
        table(
            ["peak", "TFLOP/s"],
            [[name.replace("product", "matrix product"), f"{value / 1e12:.2f}"] for name, value in peak.items()],
        ),
        "",
        table(["part, for one image", "seconds", "GFLOP", "TFLOP/s", "share of the peaks"], parts),
        "",
        table(["UNet, batch", "", "seconds", "share of diffusers' time", "share of the peaks"], unets),
        "",
        f"compiled: with `--compile`. Our outputs and diffusers' differ by {difference:.1e} at most (relative L2).",
        "",
        "Where the time of two branches goes, not compiled, each operation timed separately:",
        "",
        table(["operations", "seconds", "share", "TFLOP/s"], kinds),
        "",
        table(["one image, decoding included", "seconds", "speed-up"], images),
        "",
        paragraph(
            "After three steps in fp32 from the same noise, the image differs from the official loop's by "
            f"{found['equal']['distance']:.1e} (relative L2)."
        ),
        "",
        f"![Left: seconds per image by batch size. Right: seconds by image size](speed_{size}.webp)",
        "",
    ]
    return "\n".join(lines)


def draw_growth(found: dict[str, Any]) -> Image.Image:
    """Seconds per image of two steps and the decoding: by batch on the left, by image size on the right."""
    image = Image.new("RGB", (1300, 420), "white")
    canvas = ImageDraw.Draw(image)
    names = ("a source each", "poses of one source")
    curves: list[Points] = [[(int(n), took / int(n)) for n, took in found[name].items()] for name in names]
    lines = [(points, colour, 2) for points, colour in zip(curves, COLOURS, strict=True)]
    legend = list(zip(names, COLOURS, strict=True))
    draw_axes(canvas, (80, 50, 620, 350), "seconds per image, by batch", lines, legend, from_zero=True)
    sides: Points = [(int(side), took) for side, took in found["image"].items()]
    draw_axes(
        canvas, (730, 50, 1270, 350), "seconds, by the side of the image", [(sides, COLOURS[0], 2)], [], from_zero=True
    )
    return image


@torch.no_grad()
def sample_speed(options: argparse.Namespace) -> None:
    """Speed of sampling: parts, UNet and whole images, against diffusers.

    Sections: peaks, components, unet, profile, equal (is the result the same?), sampling, growth. A later run with the
    same options, commit and torch goes on after the last section that is done.

        python benchmarks/speed.py sample
        python benchmarks/speed.py sample --size tiny --rounds 3 --out runs/speed
        python benchmarks/speed.py sample --device cuda
    """
    if options.section:
        keep_freed_memory()
        precision = "fp32" if options.section == "equal" else options.precision
        setup = Setup(SIZES[options.size], pick_device(options.device), PRECISIONS[precision])
        rounds = max(options.rounds // 3, 1) if options.section == "sampling" else options.rounds
        print(json.dumps(SECTIONS[options.section](setup, rounds)))
        return

    path = results_path(f"speed_{options.size}.json", options.out)
    given = {"precision": options.precision, "rounds": options.rounds, "device": str(pick_device(options.device))}
    asked = {**given, "commit": machine()["commit"], "torch": torch.__version__}
    found = earlier_results(path, asked, where=provenance())
    arguments = [f"--{name}={value}" for name, value in {**given, "size": options.size}.items()]
    for name in SECTIONS:
        if name not in found:
            print(name, flush=True)
            command_line = [sys.executable, __file__, "sample", f"--section={name}", *arguments]
            done = subprocess.run(command_line, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise SystemExit(done.returncode)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            write_json(path, found)
    page = speed_page(options.size, found)
    write_text(docs_path(f"speed_{options.size}.md", options.out), page)
    save_picture(docs_path(f"speed_{options.size}.webp", options.out), draw_growth(found["growth"]))
    print(page)


@command
def main(argv: list[str] | None = None) -> None:
    parser, commands = benchmark_parser(__file__, __doc__)
    options = add_command(commands, sample_speed, name="sample")
    options.add_argument("--size", choices=SIZES, default="full", help="of the model")
    options.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16", help="of weights")
    options.add_argument("--rounds", type=int, default=7, help="of a comparison; whole images take a third of them")
    options.add_argument("--device", help="cuda, cpu, ... (default: the best there is)")
    options.add_argument("--section", choices=tuple(SECTIONS), help="print one section as JSON, and write nothing")
    parsed = parser.parse_args(argv)
    parsed.run(parsed)


if __name__ == "__main__":
    raise SystemExit(main())
