"""Our modules, given the weights of the authors' code, compute the numbers that the authors' code computed.

Those numbers were computed once and are stored in tests/official (its README says how). No weights are stored: each one
follows from its official name by a rule (`weight`). They enter our modules as the public files do, through the
converters. `compute` runs a part of the project on the official inputs, `errors` measures how far it is from the
official numbers, and python tests/official/report.py prints the worst error of each part.
"""

import contextlib
import copy
import functools
import inspect
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

# Everything from cfld is imported here and called in the helpers below: a move in the package touches few lines.
from cfld import CFLD, VAE, AdapterConfig, CFLDConfig, HGAConfig, PRDConfig, Swin, SwinConfig, UNetConfig, VAEConfig
from cfld import pose as drawing
from cfld.convert.layouts import layout_of
from cfld.convert.load import load_official, load_swin, load_vae
from cfld.data.batch import Batch, collate
from cfld.data.pairs import FashionPairs
from cfld.evaluate.metrics import psnr, ssim
from cfld.evaluate.protocol import PairSet
from cfld.model import Conditions
from cfld.objective import StepNoise, mirror, training_loss
from cfld.photos.pixels import to_pictures, to_range
from cfld.sampling import SamplingConfig, denoise, sample
from cfld.scheduler import Scheduler
from cfld.train import TrainConfig, learning_rate

HERE = Path(__file__).parent
DATA = HERE / "official"

Numbers = dict[str, Tensor]  # by name, as in outputs.json


# The official numbers. -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What the authors' code computed: a tensor's shape, its L2 norm, and those of its values that are stored."""

    shape: tuple[int, ...]
    l2: float
    values: Tensor | None = None
    strides: tuple[int, ...] = ()  # along each axis of the tensor, if not 1; then ...
    every: int = 1  # ... every so many of the values that are left, flattened


NAMES: dict[str, dict[str, list[int]]] = json.loads((DATA / "names.json").read_text())  # shapes by official name
STORED = load_file(DATA / "outputs.safetensors")
MASKS = ("00", "10", "01")  # 1: the prompt of this row, of the source or of the target, is dropped
COMPUTED_BUFFERS = ("relative_position_index", "attn_mask")
CROSS_KV = re.compile(r"up_blocks\.[123]\.attentions\.\d\.transformer_blocks\.0\.attn2\.to_[kv]\.weight")
TRAINED = [f"model.{name}" for name in NAMES["model"] if not name.endswith(COMPUTED_BUFFERS)]
TRAINED += [f"unet.{name}" for name in NAMES["unet"] if CROSS_KV.fullmatch(name)]
SHAPES = {f"{file}.{name}": tuple(shape) for file, names in NAMES.items() for name, shape in names.items()}


def read_expected() -> dict[str, Expected]:
    """All official numbers by name. Of a gradient at least the norm is known."""
    expected = {
        name: Expected(tuple(fact.pop("shape")), fact.pop("l2"), STORED[name], **fact)
        for name, fact in json.loads((DATA / "outputs.json").read_text()).items()
    }
    for mask in MASKS:
        for name, l2 in zip(TRAINED, STORED[f"gradients/{mask}/norms"].tolist(), strict=True):
            expected.setdefault(f"gradients/{mask}/{name}", Expected(SHAPES[name], l2))
    return expected


EXPECTED = read_expected()


def error(ours: Tensor, expected: Expected) -> float:
    """|ours - theirs| / |theirs| in L2 of the stored values, or the relative error of the whole norm if it is larger.
    Where theirs is 0, |ours|."""
    ours = ours.detach().double()
    assert ours.shape == expected.shape and ours.isfinite().all()
    l2 = ours.norm().item()
    if expected.l2 == 0:
        return l2
    of_norm = abs(l2 - expected.l2) / expected.l2
    if expected.values is None:
        return of_norm
    cut = ours[tuple(slice(None, None, stride) for stride in expected.strides)].flatten()[:: expected.every]
    theirs = expected.values.double().flatten()
    return max(of_norm, ((cut - theirs).norm() / theirs.norm()).item())


def errors(part: str, ours: Numbers) -> dict[str, float]:
    """The error of each tensor of a part. Ours must have exactly the names that are stored."""
    expected = {name: x for name, x in EXPECTED.items() if name.startswith(f"{part}/")}
    assert ours.keys() == expected.keys(), sorted(ours.keys() ^ expected.keys())
    return {name: error(ours[name], x) for name, x in expected.items()}


# The weights and inputs. ---------------------------------------------------------------------------------------------


def stream(name: str) -> np.random.Generator:
    """The random numbers that belong to a name."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight of this official name, from normal numbers: small for biases and tables, around 1 for the scales of
    norms, of variance 1 / fan-in for matrices and kernels."""
    *_, kind = name.split(".")
    normal = stream(name).standard_normal(shape, dtype=np.float32)
    if kind in ("learnable_vector", "query_feat", "pos_embed", "kv_pos_embed", "relative_position_bias_table"):
        values = np.float32(0.1) * normal
    elif kind == "bias":
        values = np.float32(0.05) * normal
    elif len(shape) == 1:
        values = 1 + np.float32(0.1) * normal
    else:
        values = np.float32(np.prod(shape[1:]) ** -0.5) * normal
    return torch.from_numpy(values)


def weights(prefix: str, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A state dict by its official names and shapes. Of the buffers, which the converter drops, it holds zeros."""
    return {
        name: torch.zeros(shape) if name.endswith(COMPUTED_BUFFERS) else weight(prefix + name, tuple(shape))
        for name, shape in shapes.items()
    }


def normal_input(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(stream(f"input.{name}").standard_normal(shape, dtype=np.float32))


def image_input(name: str, *shape: int) -> Tensor:
    return (normal_input(name, *shape) * 0.5).clamp(-1, 1)


def pose_input(name: str) -> Tensor:
    """Noise in the place of a pose map: (1, 21, 64, 64) in [0, 1)."""
    return torch.from_numpy(stream(f"input.reduced.{name}").random((1, 21, 64, 64), dtype=np.float32))


def latents_input(name: str, rows: int = 1) -> Tensor:
    return normal_input(f"reduced.{name}", rows, 4, 16, 16)


# Our modules. --------------------------------------------------------------------------------------------------------

CONFIG = CFLDConfig(  # of the authors' code at the width of the stored numbers
    image_size=128,
    unet=UNetConfig(channels=(64, 128, 256, 256), context_width=64),
    vae=VAEConfig(channels=(32, 64, 128, 128)),
    swin=SwinConfig(image_size=64, width=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window=4,
                    stochastic_depth=0.0),
    prd=PRDConfig(num_queries=16, width=64, depth=2, num_heads=4, source_width=256, source_positions=4),
    hga=HGAConfig(source_widths=(32, 64, 128), output_widths=(256, 128, 64), depth=4, head_width=16),
    adapter=AdapterConfig(pose_size=64, channels=(64, 128, 256)),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Ours:
    """Our modules with the official weights."""

    model: CFLD
    vae: VAE


@functools.cache
def converted() -> Ours:
    """Official files in, our modules out. The heads of H_A are 32, 32 and 16 wide, which no HGAConfig can say."""
    with tempfile.TemporaryDirectory() as folder:
        model, unet, vae = (Path(folder) / name for name in ("pytorch_model.bin", "pytorch_model_1.bin", "vae.bin"))
        torch.save(weights("model.", NAMES["model"]), model)
        torch.save({f"model.{name}": x for name, x in weights("unet.", NAMES["unet"]).items()}, unet)
        torch.save(weights("vae.", NAMES["vae"]), vae)
        ours = Ours(load_official(model, unet, CONFIG), load_vae(vae, CONFIG.vae))
    for level, num_heads in zip(ours.model.hga.levels, (2, 1, 1), strict=True):  # of f3, f2, f1
        for block in (block for branch in level for block in branch.blocks):
            block.attention1.num_heads = block.attention2.num_heads = num_heads
    return ours


def our_parameter(ours: Ours, official_name: str) -> nn.Parameter:
    """The parameter of ours that goes by this official name, with its file's prefix."""
    file, name = official_name.split(".", 1)
    if file == "model":
        return ours.model.get_parameter(layout_of("CFLD", "official CFLD").ours(name))
    module, component = (ours.model.unet, "UNet") if file == "unet" else (ours.vae, "VAE")
    return module.get_parameter(layout_of(component, "diffusers").ours(name))


@contextlib.contextmanager
def unet_calls(ours: Ours) -> Iterator[list[dict[str, Any]]]:
    """The calls of the UNet: its arguments by name, and its output as "noise_pred"."""
    calls: list[dict[str, Any]] = []
    signature = inspect.signature(ours.model.unet.forward)

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        calls.append(dict(signature.bind(*args, **kwargs).arguments))

    def after(module: nn.Module, args: tuple, output: Tensor) -> None:
        calls[-1]["noise_pred"] = output

    hooks = (
        ours.model.unet.register_forward_pre_hook(before, with_kwargs=True),
        ours.model.unet.register_forward_hook(after),
    )
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def outputs_of(modules: dict[str, nn.Module]) -> Iterator[Numbers]:
    """What these modules return last, by the names given; of several tensors the first."""
    outputs: Numbers = {}

    def keep(name: str) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs[name] = output if isinstance(output, Tensor) else output[0]

        return after

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


# The networks. -------------------------------------------------------------------------------------------------------


def tokens(feature: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C), as the official encoder gives its features."""
    return feature.flatten(2).transpose(1, 2)


def source_features(ours: Ours) -> list[Tensor]:
    return ours.model.source_encoder(image_input("reduced.img_cond", 1, 3, 64, 64))


@torch.no_grad()
def compute_swin(ours: Ours) -> Numbers:
    return {f"swin/f{i}": tokens(f) for i, f in enumerate(source_features(ours), start=1)}


@torch.no_grad()
def compute_prd(ours: Ours) -> Numbers:
    with outputs_of({"prd/block_0": ours.model.prd.blocks[0]}) as outputs:
        prompt = ours.model.prd(source_features(ours)[-1])
    return outputs | {"prd/prompt": prompt}


@torch.no_grad()
def compute_hga(ours: Ours) -> Numbers:
    return {f"hga/bias_{i}": bias for i, bias in enumerate(ours.model.hga(source_features(ours)[:-1]))}


@torch.no_grad()
def compute_pose_encoder(ours: Ours) -> Numbers:
    return {f"pose_encoder/map_{i}": x for i, x in enumerate(ours.model.pose_adapter(pose_input("pose_tgt")))}


def official_conditions(ours: Ours) -> Conditions:
    return ours.model.condition(image_input("reduced.img_cond", 1, 3, 64, 64), pose_input("pose_tgt"))


@torch.no_grad()
def compute_unet(ours: Ours) -> Numbers:
    """The prediction with and without poses and biases, and what every block gives when it has both."""
    unet, full = ours.model.unet, official_conditions(ours)
    places = {"time_embedding": unet.time_mlp, "conv_in": unet.conv_in, "mid_block": unet.mid}
    places |= {f"down_{i}": block for i, block in enumerate(unet.down)}
    places |= {f"up_{i}": block for i, block in enumerate(unet.up)}

    def predict(conditions: Conditions) -> Tensor:
        return ours.model(latents_input("unet_sample"), torch.tensor([601]), conditions)

    with outputs_of({f"unet/{name}": module for name, module in places.items()}) as outputs:
        predictions = {"unet/full": predict(full)}
    predictions["unet/pose_only"] = predict(replace(full, query_biases=None))
    predictions["unet/hga_only"] = predict(replace(full, pose_features=None))
    predictions["unet/plain"] = predict(Conditions(full.prompt, None, None))
    return predictions | outputs


@torch.no_grad()
def compute_vae(ours: Ours) -> Numbers:
    mean, logvar = ours.vae.moments(image_input("reduced.vae_image", 1, 3, 128, 128))
    return {
        "vae/mean": mean,
        "vae/logvar": logvar,
        "vae/encode_sampled": ours.vae.sample(mean, logvar, latents_input("vae_eps")),
        "vae/decode": ours.vae.decode(latents_input("vae_latent")),
    }


# Loading of Swin's public file. --------------------------------------------------------------------------------------


def microsoft_swin(shapes: dict[str, list[int]], config: SwinConfig) -> Swin:
    """A Swin from a file in Microsoft's layout that holds tensors of these names and shapes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "swin.pth"
        torch.save({"model": weights("swin.", shapes)}, path)
        return load_swin(path, config)


def swin_numbers(width: str, swin: Swin) -> Numbers:
    """Features, and the tables of relative positions, which the loader has resized."""
    size = swin.config.image_size
    maps = swin(image_input(f"{width}.img_cond", 1, 3, size, size))
    numbers = {f"swin_file/{width}/f{i}": tokens(f) for i, f in enumerate(maps, start=1)}
    return numbers | {
        f"swin_file/{width}/table_{i}": blocks[0].attention.bias_table for i, blocks in enumerate(swin.stages)
    }


@torch.no_grad()
def compute_swin_file(ours: Ours) -> Numbers:
    """Windows of 6 become 4 at the small width, and windows of 12 become 16 at Swin-B's own."""
    shapes = {name.removeprefix("backbone."): shape for name, shape in NAMES["model"].items() if "backbone" in name}
    sides = {f"layers.{i}.": 2 * window - 1 for i, window in enumerate((6, 6, 6, 3))}
    for name in shapes:
        if name.endswith("table"):
            shapes[name] = [sides[name[:9]] ** 2, shapes[name][1]]
    shapes |= {"norm.weight": [256], "norm.bias": [256], "head.weight": [9, 256], "head.bias": [9]}
    numbers = swin_numbers("reduced", microsoft_swin(shapes, CONFIG.swin))
    public = json.loads((HERE / "data" / "official_keys.json").read_text())["microsoft_swin_base_patch4_window12_384"]
    return numbers | swin_numbers("full", microsoft_swin(public, SwinConfig()))


# Training. -----------------------------------------------------------------------------------------------------------

TIMESTEPS = torch.tensor([417, 803])


def official_loss(ours: Ours, mask: str) -> tuple[Tensor, dict[str, Any]]:
    """training_loss in the released recipe on the official batch, and what it gave to the UNet."""
    scale, latents = ours.vae.config.scale, latents_input("latents", 2)
    batch = Batch(
        source_images=(image_input("reduced.img_cond", 1, 3, 64, 64) + 1) * 127.5,
        images=None,
        moments=torch.cat([latents / scale, torch.full_like(latents, -torch.inf)], dim=1),  # without a variance
        keypoints=torch.zeros(2, 18, 2),  # the pose maps are given
        attributes=None,
        places=range(1),
    )
    step_noise = StepNoise(
        flips=torch.ones(1),
        depth=torch.ones(1, 2 * sum(CONFIG.swin.depths)),
        timesteps=(1 - (TIMESTEPS + 0.5) / 1000) ** (1 / 3),
        drops=torch.tensor([0.1 if dropped == "1" else 0.9 for dropped in mask]),
        vae_noise=torch.zeros(2, 4, 16, 16),
        noise=latents_input("noise", 2),
    )
    poses = torch.cat([pose_input("pose_src"), pose_input("pose_tgt")])
    with (
        mock.patch.object(sys.modules[training_loss.__module__], "pose_maps", return_value=poses),
        unet_calls(ours) as calls,
    ):
        loss = training_loss(ours.model, ours.vae, batch, step_noise, "released")
    assert len(calls) == 1 and torch.equal(calls[0]["timesteps"], TIMESTEPS)
    return loss, calls[0]


@torch.no_grad()
def compute_loss(ours: Ours) -> Numbers:
    numbers: Numbers = {}
    for mask in MASKS:
        loss, call = official_loss(ours, mask)
        rows = (call["noise_pred"] - latents_input("noise", 2)).square().mean(dim=(1, 2, 3))
        seen = {"prompt": call["prompt"], "pred": call["noise_pred"], "rows": rows, "loss": loss}
        numbers |= {f"loss/{name}_{mask}": x for name, x in seen.items()}
    numbers["loss/noisy_latents"] = call["latents"]
    numbers |= {f"loss/pose_{i}": x for i, x in enumerate(call["pose_features"])}
    return numbers | {f"loss/bias_{i}": call["query_biases"][i] for i in (0, 8)}


def compute_gradients(ours: Ours) -> Numbers:
    numbers: Numbers = {}
    for mask in MASKS:
        ours.model.zero_grad()
        official_loss(ours, mask)[0].backward()
        numbers |= {f"gradients/{mask}/{name}": our_parameter(ours, name).grad.clone() for name in TRAINED}
    ours.model.zero_grad()
    return numbers


def compute_adam(ours: Ours) -> Numbers:
    """The loss before each of five steps."""
    learner = copy.deepcopy(ours)
    trained = [parameter for parameter in learner.model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.Adam(trained, lr=1e-3, fused=True), []  # cfld.train's
    for mask in ("00", "10", "00", "10", "00"):
        loss, _ = official_loss(learner, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"adam/losses": torch.stack(losses)}


# Sampling. -----------------------------------------------------------------------------------------------------------

SCALES = {  # of the pose and of the appearance, for those of the official types of guidance that are Eq. 7
    "uc_down_full": (2.0, 2.0),
    "uc_full": (2.0, 2.0),
    "uc_down_updown_full": (2.0, 2.0),
    "down_full": (1.0, 2.0),
}


class Enough(Exception):
    """Ends a run of the sampler."""


@dataclass(frozen=True)
class Trajectory:
    timesteps: list[int]
    latents: list[Tensor]  # before each step, and after the last
    clean: list[Tensor]  # the x_0 that each step predicts
    first_rows: Tensor  # what the UNet predicted at the first step

    def guided(self, step: int) -> Tensor:
        """The noise that x_0 implies: the sum of Eq. 7."""
        return Scheduler().implied_noise(self.latents[step], self.clean[step], self.timesteps[step])


@torch.no_grad()
def trajectory(ours: Ours, pose_scale: float, appearance_scale: float, steps: int, noise: str) -> Trajectory:
    """The first steps of sample() with DDPM's 50, beginning with the official latents and adding the official noise."""
    timesteps, latents, clean = Scheduler(CONFIG.scheduler).sampling_timesteps(50), [], []
    draws = iter(["init_latents", *(f"{noise}_{i}" for i in range(50))])

    def on_step(step: int, x_0: Tensor) -> None:
        clean.append(x_0)
        if len(clean) > steps:
            raise Enough

    def decode(latents_after_all: Tensor) -> Tensor:
        latents.append(latents_after_all)
        raise Enough

    source_images = image_input("reduced.img_cond", 1, 3, 64, 64)
    with (
        mock.patch.object(sys.modules[denoise.__module__], "draw_noise", lambda *ignored: latents_input(next(draws))),
        mock.patch.object(ours.vae, "decode", decode),
        unet_calls(ours) as calls,
        contextlib.suppress(Enough),
    ):
        config = SamplingConfig(50, "ddpm", pose_scale, appearance_scale)
        sample(ours.model, ours.vae, source_images, pose_input("pose_tgt"), config, on_step=on_step)
    latents = [call["latents"][:1] for call in calls] + latents
    assert len(latents) == steps + 1
    return Trajectory(timesteps, latents, clean, calls[0]["noise_pred"])


def compute_guidance(ours: Ours) -> Numbers:
    """The first step under each type, three under Eq. 7, and the picture that these three give."""
    numbers: Numbers = {}
    for name, scales in SCALES.items():
        steps = 3 if name == "uc_down_full" else 1
        run = trajectory(ours, *scales, steps, "step_noise")
        for i in range(steps):
            numbers[f"guidance/{name}/latents_{i}"] = run.latents[i + 1]
            numbers[f"guidance/{name}/guided_{i}"] = run.guided(i)
        if steps == 3:
            with torch.no_grad():
                numbers["guidance/decoded"] = (ours.vae.decode(run.latents[3]) / 2 + 0.5).clamp(0, 1)
    numbers["guidance/rows"] = trajectory(ours, 2.0, 1.0, 1, "step_noise").first_rows  # 2 and 1: no weight is 0
    return numbers | guidance_with_other_rows(ours)


@torch.no_grad()
def guidance_with_other_rows(ours: Ours) -> Numbers:
    """Two official types of guidance have rows that are not Eq. 7's, so our sampler does not offer them. Our model
    computes these rows."""
    full, null_prompt = official_conditions(ours), ours.model.null_prompt
    rows = {
        "uc": Conditions(null_prompt, None, None),
        "down": Conditions(null_prompt, full.pose_features, None),
        "updown": replace(full, prompt=null_prompt),
        "cdown": replace(full, query_biases=None),
        "full": full,
    }
    latents, numbers = latents_input("init_latents"), {}
    for name, factors in {
        "updown_full": {"updown": -1, "full": 2},
        "uc_down_updown_cdown": {"uc": -1, "down": -2, "updown": 2, "cdown": 2},
    }.items():
        guided = sum(w * ours.model(latents, torch.tensor([981]), rows[row]) for row, w in factors.items())
        numbers[f"guidance/{name}/guided_0"] = guided
        scheduler = ours.model.scheduler
        x_0 = scheduler.clean_latents(latents, guided, 981)
        numbers[f"guidance/{name}/latents_0"] = scheduler.ddpm_step(
            latents, x_0, 981, 961, latents_input("step_noise_0")
        )
    return numbers


def compute_sampler(ours: Ours) -> Numbers:
    """Latents after some of the 50 steps under Eq. 7."""
    run = trajectory(ours, 2.0, 2.0, 50, "long_noise")
    return {f"sampler/latents_{i}": run.latents[i + 1] for i in (0, 9, 24, 48, 49)}


def compute_schedule(ours: Ours) -> Numbers:
    """Tables of the scheduler and of the learning rate, and what each DDPM step does with its three arguments."""
    scheduler, zero, one = Scheduler(), torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()
    options = TrainConfig(recipe="released", lr=1e-4, warmup=8, decay_at=0.4)
    numbers = {
        "alpha_bars": scheduler.alpha_bar(torch.arange(1000)).flatten(),
        "cubic_timesteps": scheduler.cubic_timesteps(STORED["input/cubic_draws"]),
        "add_noise": scheduler.add_noise(
            normal_input("misc.add_noise_x0", 3, 1, 2, 2),
            normal_input("misc.add_noise_eps", 3, 1, 2, 2),
            torch.tensor([0, 500, 999]),
        ),
        "learning_rates": torch.tensor([learning_rate(step, 50, options) for step in range(40)]).double(),
    }
    numbers |= {f"timesteps_{n}": torch.tensor(scheduler.sampling_timesteps(n)) for n in (20, 30, 50)}
    timesteps = scheduler.sampling_timesteps(50)
    for name, arguments in {
        "of_latents": (one, zero, zero),
        "of_noise_pred": (zero, one, zero),
        "of_noise": (zero, zero, one),
    }.items():
        latents, noise_pred, noise = arguments
        numbers[f"ddpm_{name}"] = torch.cat(
            [
                scheduler.ddpm_step(latents, scheduler.clean_latents(latents, noise_pred, t), t, t_next, noise)
                for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True)
            ]
        ).flatten()
    return {f"schedule/{name}": x for name, x in numbers.items()}


# Poses, photos and measures. -----------------------------------------------------------------------------------------

KEYPOINTS = torch.stack([STORED[f"input/keypoints_{i}"] for i in (0, 1)]).float()  # two poses, joints missing in both


@contextlib.contextmanager
def official_pen(size: int) -> Iterator[None]:
    """The official code draws with the pen of a map of 256 at all sizes. Ours grows with the map; at 256, the only
    size of the official models, they are the same."""
    with contextlib.ExitStack() as stack:
        for name in ("SIGMA", "JOINT_RADIUS", "BONE_RADIUS"):
            stack.enter_context(mock.patch.object(drawing, name, getattr(drawing, name) * 256 / size))
        yield


def pose_maps_of(keypoints: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Skeletons (B, 3, S, S) and heat maps (B, 18, S, S), drawn with the official pen."""
    with official_pen(size):
        maps = drawing.pose_maps(keypoints, size)
    return maps[:, :3], maps[:, 3:]


def compute_poses(ours: Ours) -> Numbers:
    return {
        f"poses/heat_maps_{size}_{i}": heat.permute(1, 2, 0)
        for size in (256, 64)
        for i, heat in enumerate(pose_maps_of(KEYPOINTS, size)[1])
    }


def skeleton_decibels() -> tuple[float, float]:
    """The PSNR of our two skeletons against the official ones, of all pixels and of the coloured ones, the lower of
    each. They differ at edges, since ours are drawn without OpenCV."""
    everywhere, coloured = [], []
    for i, skeleton in enumerate(pose_maps_of(KEYPOINTS, 256)[0]):
        theirs = torch.from_numpy(np.array(Image.open(DATA / f"skeleton_{i}.png"))).permute(2, 0, 1) / 255
        squared = (skeleton - theirs).square()
        inked = ((skeleton > 0) | (theirs > 0)).any(dim=0)
        assert skeleton.shape == theirs.shape == (3, 256, 256) and inked.sum() > 1000
        everywhere.append(-10 * squared.mean().log10().item())
        coloured.append(-10 * squared[:, inked].mean().log10().item())
    return min(everywhere), min(coloured)


@contextlib.contextmanager
def data_folder() -> Iterator[Path]:
    """The two photos and poses as a prepared folder whose splits have one pair each, from the first to the second."""
    with tempfile.TemporaryDirectory() as folder:
        root, photos = Path(folder), ["photo_0.png", "photo_1.png"]
        annotations = ["name:keypoints_y:keypoints_x"]
        for photo, joints in zip(photos, KEYPOINTS.int(), strict=True):
            annotations.append(f"{photo}: {joints[:, 0].tolist()}: {joints[:, 1].tolist()}")
        for split in ("train", "test"):
            (root / f"{split}_highres").mkdir()
            for photo in photos:
                (root / f"{split}_highres" / photo).write_bytes((DATA / photo).read_bytes())
            (root / f"fasion-resize-pairs-{split}.csv").write_text("\n".join(["from,to", ",".join(photos)]))
            (root / f"fasion-resize-annotation-{split}.csv").write_text("\n".join(annotations))
        yield root


def compute_dataset(ours: Ours) -> Numbers:
    """The items of one pair. Pictures are compared in bytes, after their way to [-1, 1]."""
    with data_folder() as root:
        batch = collate([FashionPairs(root, "train", image_size=64, source_size=32)[0]])
        truth = PairSet(root, (32, 22))[0].truth
    source_image = to_range(batch.source_images)
    source, target = to_range(batch.images)
    heat_maps = pose_maps_of(batch.keypoints, 32)[1]

    def in_bytes(image: Tensor) -> Tensor:
        return (image.double() + 1) * 127.5

    return {
        "dataset/train_flip0/img_cond": in_bytes(source_image[0]),
        "dataset/train_flip1/img_cond": in_bytes(mirror(source_image, torch.zeros(1))[0]),
        "dataset/train_flip0/img_src": in_bytes(source),
        "dataset/train_flip0/img_tgt": in_bytes(target),
        "dataset/train_flip0/pose_img_src": heat_maps[0],
        "dataset/train_flip0/pose_img_tgt": heat_maps[1],
        "dataset/test/img_gt": torch.from_numpy(truth.copy()).permute(2, 0, 1),
    }


def compute_metrics(ours: Ours) -> Numbers:
    pictures, truths = STORED["input/pictures"].float() / 255, STORED["input/truths"]
    (resized,) = to_pictures(STORED["input/decoded"] * 2 - 1, (32, 22), rounding=False)
    return {
        "metrics/psnr": psnr(pictures, truths),
        "metrics/ssim_win51": ssim(pictures, truths, "uniform51"),
        "metrics/ssim_256_gaussian": ssim(pictures, truths, "gaussian_predicted"),
        "metrics/resized": torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None],
    }


# The comparison. -----------------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[str, Callable[[Ours], Numbers]]] = {
    "swin": ("Swin: four maps", compute_swin),
    "swin_file": ("Swin from Microsoft's file, tables resized; also Swin-B", compute_swin_file),
    "prd": ("PRD: a block, the prompt", compute_prd),
    "hga": ("HGA: nine query biases", compute_hga),
    "pose_encoder": ("pose encoder: three maps", compute_pose_encoder),
    "unet": ("UNet: with and without poses and biases, each block", compute_unet),
    "vae": ("VAE: encoder, decoder", compute_vae),
    "loss": ("loss: three ways of dropping", compute_loss),
    "gradients": ("gradients by all 965 trained tensors, three times", compute_gradients),
    "adam": ("losses of five Adam steps", compute_adam),
    "guidance": ("sampler: first steps, six types of guidance", compute_guidance),
    "sampler": ("sampler: all 50 steps", compute_sampler),
    "schedule": ("schedules of noise, timesteps and learning rate", compute_schedule),
    "poses": ("poses: heat maps", compute_poses),
    "dataset": ("data set: photos and poses of a pair", compute_dataset),
    "metrics": ("metrics: PSNR, two SSIMs, the final resize", compute_metrics),
}


@functools.cache
def numbers_of(part: str) -> Numbers:
    """Ours, with the official weights."""
    return PARTS[part][1](converted())


def report() -> str:
    """A Markdown table of the worst error of each part."""
    rows = []
    for part, (title, _) in PARTS.items():
        found = errors(part, numbers_of(part))
        rows.append(f"| {title} | {len(found):,} | {max(found.values()):.1e} |")
    note = "Skeletons agree to {:.1f} dB, and to {:.1f} dB where there is colour.".format(*skeleton_decibels())
    return "\n".join(["| part | tensors | worst relative error |", "|---|---|---|", *rows, "", note])


def check(part: str, ours: Numbers, tensors: int, within: float) -> None:
    found = errors(part, ours)
    assert len(found) == tensors
    for name, x in found.items():
        assert x <= within, (name, x)


def test_the_rule_gives_the_weights_that_the_official_code_had() -> None:
    for name, shape, expected in (
        ("model.learnable_vector", (1, 16, 768), [-0.09666564, -0.08359466, 0.1728879, 0.0770615]),
        ("unet.conv_in.weight", (320, 4, 3, 3), [-0.0025526, 0.40605408, -0.03054594, -0.09266778]),
        ("unet.conv_in.bias", (320,), [-0.0027641, 0.04181123, -0.0322648, -0.03092099]),
        ("model.backbone.patch_embed.norm.weight", (128,), [0.91168028, 0.89204574, 1.01155221, 0.98094624]),
    ):
        assert np.allclose(weight(name, shape).flatten()[:4], expected, rtol=0, atol=1e-8)


def test_the_source_encoder_gives_the_official_maps() -> None:
    check("swin", numbers_of("swin"), tensors=4, within=1e-5)


def test_a_swin_file_in_microsofts_layout_loads_as_the_official_code_loads_it() -> None:
    check("swin_file", numbers_of("swin_file"), tensors=16, within=1e-5)


def test_the_prd_gives_the_official_prompt() -> None:
    check("prd", numbers_of("prd"), tensors=2, within=1e-5)


def test_the_hga_gives_the_official_query_biases_in_the_order_of_the_unet() -> None:
    check("hga", numbers_of("hga"), tensors=9, within=1e-5)


def test_the_pose_adapter_gives_the_official_maps() -> None:
    check("pose_encoder", numbers_of("pose_encoder"), tensors=3, within=1e-5)


def test_the_unet_predicts_the_official_noise_in_each_of_its_four_conditions() -> None:
    check("unet", numbers_of("unet"), tensors=15, within=1e-5)


def test_the_vae_encodes_and_decodes_as_the_official_one() -> None:
    check("vae", numbers_of("vae"), tensors=4, within=1e-5)


def test_the_loss_of_the_released_recipe_is_the_official_one() -> None:
    check("loss", numbers_of("loss"), tensors=18, within=1e-5)


def test_what_trains_is_what_trains_in_the_official_code() -> None:
    ours = converted()
    trained = {id(parameter) for parameter in ours.model.parameters() if parameter.requires_grad}
    assert len(TRAINED) == 965
    assert {id(our_parameter(ours, name)) for name in TRAINED} == trained


def test_the_gradients_of_the_loss_are_the_official_ones() -> None:
    check("gradients", numbers_of("gradients"), tensors=3 * 965, within=1e-4)
    whole = sum(EXPECTED[name].values is not None for name in EXPECTED if name.startswith("gradients/"))
    assert whole == 3 * 9  # the others are compared by their norms


def test_five_adam_steps_take_the_official_way() -> None:
    check("adam", numbers_of("adam"), tensors=1, within=1e-5)


def test_the_sampler_begins_as_the_official_one_under_each_of_its_six_types_of_guidance() -> None:
    check("guidance", numbers_of("guidance"), tensors=18, within=1e-5)


def test_the_sampler_goes_the_official_way_through_all_50_steps() -> None:
    check("sampler", numbers_of("sampler"), tensors=5, within=1e-5)


def test_the_schedules_are_the_official_ones() -> None:
    check("schedule", numbers_of("schedule"), tensors=10, within=1e-6)


def test_heat_maps_of_poses_are_the_official_ones() -> None:
    check("poses", numbers_of("poses"), tensors=4, within=1e-6)


def test_skeletons_are_the_official_ones_within_40_dB_and_30_dB_where_there_is_colour() -> None:
    everywhere, coloured = skeleton_decibels()
    assert everywhere >= 40 and coloured >= 30


def test_a_pair_of_the_data_set_is_the_official_one() -> None:
    check("dataset", numbers_of("dataset"), tensors=7, within=1e-6)


def test_psnr_ssim_and_the_final_resize_are_the_official_ones() -> None:
    check("metrics", numbers_of("metrics"), tensors=4, within=1e-6)


def test_the_report_has_a_measured_row_for_each_part() -> None:
    rows = re.findall(r"^\| (.+) \| ([\d,]+) \| (\d\.\de-\d\d) \|$", report(), re.M)
    assert [title for title, *_ in rows] == [title for title, _ in PARTS.values()]
    assert all(0 < float(worst) <= 1e-4 for *_, worst in rows)


# That these tests can fail. ------------------------------------------------------------------------------------------


def test_every_stored_number_is_compared() -> None:
    compared = [name for part in PARTS for name in errors(part, numbers_of(part))]
    assert sorted(compared) == sorted(EXPECTED) and len(compared) == 3015
    given = {name for name in STORED if name.startswith("input/")} | {f"gradients/{mask}/norms" for mask in MASKS}
    assert {name for name, x in EXPECTED.items() if x.values is not None} == STORED.keys() - given


@pytest.mark.parametrize("part", PARTS)
def test_a_number_that_is_missing_or_left_over_is_noticed(part: str) -> None:
    ours = numbers_of(part)
    for wrong in (dict(list(ours.items())[1:]), ours | {"another": torch.ones(1)}):
        with pytest.raises(AssertionError):
            errors(part, wrong)


@pytest.mark.parametrize("part", PARTS)
def test_each_number_of_ours_that_is_wrong_by_a_thousandth_is_noticed(part: str) -> None:
    for name, x in numbers_of(part).items():
        wrong = x.double() * 1.001 if x.any() else x + 1e-3
        assert error(wrong, EXPECTED[name]) > 9e-4, name
    with pytest.raises(AssertionError):
        error(x.double() * torch.nan, EXPECTED[name])


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("swin", "model.backbone.layers.0.blocks.1.attn.relative_position_bias_table"),
        ("prd", "model.decoder.pos_embed"),
        ("hga", "model.appearance_encoder.blocks.8.3.attn2.to_v.weight"),
        ("pose_encoder", "model.pose_encoder.conv_in.bias"),
        ("unet", "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q.weight"),
        ("vae", "vae.decoder.mid_block.attentions.0.to_q.weight"),
        ("loss", "model.learnable_vector"),
        pytest.param("gradients", "unet.conv_out.bias", marks=pytest.mark.slow),
        pytest.param("guidance", "model.learnable_vector", marks=pytest.mark.slow),
    ],
)
def test_one_number_of_one_weight_that_is_wrong_is_noticed(part: str, name: str) -> None:
    ours = copy.deepcopy(converted())
    with torch.no_grad():
        our_parameter(ours, name).view(-1)[0] += 1
    assert max(errors(part, PARTS[part][1](ours)).values()) > 1e-4
