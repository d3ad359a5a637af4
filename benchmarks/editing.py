"""What the paper's formula of the mask must mean (Sec. 4.6; docs/editing.md), measured on people whose top is changed.

    python benchmarks/editing.py                        docs/editing.json and its table
    python benchmarks/editing.py --model DIR --people 4 --out runs/first_look.json

Drawn people can be photographed twice in the same pose, the second time in another top, so that the truth of an
edit is known. The reference is the first photo, the source a photo of the second top in another pose, the mask the top.
Errors are mean absolute differences in [0, 1]: outside the mask to the reference, inside it to the truth. Nothing is
pasted here; what cfld.edit.edit gives is the reference itself outside. Each meaning of the formula is taken with the
model, and with a perfect one, which always predicts the noise that leads to the truth.

Letters in shapes: N people, H side of an image, h of its latents.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from people import photographs, recut
from report import machine, table
from torch import Tensor
from tqdm import tqdm

from cfld import CFLD, VAE, Scheduler, load, people
from cfld.model import Conditions
from cfld.photos.pixels import to_range
from cfld.pose import pose_maps
from cfld.sampling import Reference, denoise, draw, guidance
from cfld.tools.cli import HelpFormatter, command
from cfld.tools.files import write_json
from cfld.unet import repeat_rows

ROOT = Path(__file__).parents[1]
FIRST_SEED, CLOTHS = 600_000, 2027
POSITIONS: dict[str, Callable[[Tensor, int], Tensor]] = {  # which positions of the latents are painted, from pixels
    "touched by the mask": lambda mask, factor: F.max_pool2d(mask, factor) > 0,
    "half in the mask": lambda mask, factor: F.avg_pool2d(mask, factor) >= 0.5,
    "wholly in the mask": lambda mask, factor: F.avg_pool2d(mask, factor) == 1,
}
MEANINGS = {
    "as printed": "eps outside := z_ref,t",
    "exchanged, new noise": "z_t outside := z_ref,t, its noise drawn at each step",
    "exchanged, one noise": "z_t outside := z_ref,t, its noise drawn once",
    "noise towards z_ref,0": "eps outside := the noise that leads from z_ref,0 to z_t (cfld.sample.denoise)",
}


def errors(images: Tensor, references: Tensor, truths: Tensor, masks: Tensor) -> dict[str, float]:
    """images, references, truths (N, 3, H, H) in [-1, 1], masks (N, 1, H, H) bool -> the mean errors."""
    inside = masks.expand_as(images)
    images = images.float().clamp(-1, 1)
    return {
        "outside": round(((images - references).abs() / 2)[~inside].mean().item(), 5),
        "inside": round(((images - truths).abs() / 2)[inside].mean().item(), 5),
    }


@contextmanager
def perfect(model: CFLD, z_true: Tensor) -> Iterator[None]:
    """Within the block the model predicts the noise between its latents and z_true (1, 4, h, h)."""
    scheduler = Scheduler(model.config.scheduler)

    def forward(latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        noise = scheduler.implied_noise(latents, z_true, int(timesteps[0]))
        return repeat_rows(noise, len(conditions.prompt))

    learnt, model.forward = model.forward, forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        model.forward = learnt  # type: ignore[method-assign]


def sample_as(
    meaning: str, model: CFLD, vae: VAE, conditions: Conditions, reference: Reference, steps: int, seed: int
) -> Tensor:
    """An edit as one of MEANINGS, by DDPM under Eq. 7 at 2.0/2.0 -> images (1, 3, H, H)."""
    scheduler, g = Scheduler(model.config.scheduler), torch.Generator().manual_seed(seed)
    if meaning == "noise towards z_ref,0":
        return denoise(model, vae, scheduler, conditions, steps=steps, generator=g, reference=reference)
    z_ref, mask = reference.latents, reference.mask
    weights, stacked = guidance(conditions, model.null_prompt, 2.0, 2.0)
    latents, once = draw(z_ref.shape, g, z_ref), draw(z_ref.shape, g, z_ref)
    timesteps = scheduler.sampling_timesteps(steps)
    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        rows = latents.repeat(len(weights), 1, 1, 1)
        predicted = model(rows, torch.full((len(rows),), t, device=rows.device), stacked)
        noise_pred = sum(w * eps for w, eps in zip(weights, predicted.chunk(len(weights)), strict=True))
        if meaning == "as printed":
            z_ref_t = scheduler.add_noise(z_ref, once, torch.tensor([t], device=z_ref.device))
            noise_pred = torch.where(mask, noise_pred, z_ref_t)
        noise = draw(z_ref.shape, g, z_ref) if t_next >= 0 else None
        latents = scheduler.ddpm_step(latents, noise_pred, t, t_next, noise)
        if meaning.startswith("exchanged"):
            fresh = once if "one" in meaning else draw(z_ref.shape, g, z_ref)
            at = torch.tensor([t_next], device=z_ref.device)
            kept = scheduler.add_noise(z_ref, fresh, at) if t_next >= 0 else z_ref
            latents = torch.where(mask, latents, kept)
    return vae.decode(latents)


@command
@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python benchmarks/editing.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR", help="another model folder than the bundled one")
    parser.add_argument("--people", type=int, default=16, help="how many")
    parser.add_argument("--steps", type=int, default=50, help="of DDPM")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "editing.json", help="the numbers")
    options = parser.parse_args(argv)

    model, vae = load(options.model)
    config, shots = model.config, []
    for seed in range(FIRST_SEED, FIRST_SEED + options.people):
        person = people.identity(seed)
        other = recut(person, people.random_textile(np.random.default_rng([seed, CLOTHS])))
        here, there = people.photo_pose(seed, 0), people.photo_pose(seed, 2)
        shots += [(person, here), (other, here), (other, there)]
    photos = photographs(shots, config)
    references, truths = (to_range(torch.stack([x.image for x in photos[i::3]])) for i in (0, 1))
    sources = to_range(torch.stack([x.source_image for x in photos[2::3]]))
    poses = pose_maps(torch.stack([x.keypoints for x in photos[::3]]), config.adapter.pose_size)
    tops = torch.from_numpy(np.stack([x.mask("top") | x.mask("jacket") for x in photos[::3]]))[:, None]
    masks = F.max_pool2d(tops.float(), 5, 1, 2)  # drawn a little too large, as by hand

    z_ref, z_true, factor = vae.encode(references), vae.encode(truths), vae.config.factor
    found = {"the VAE alone": errors(vae.decode(z_ref), references, truths, masks > 0)}
    for name, positions in POSITIONS.items():
        latents = torch.where(positions(masks, factor), z_true, z_ref)
        found[f"true latents where {name}"] = errors(vae.decode(latents), references, truths, masks > 0)
    chosen = POSITIONS["touched by the mask"](masks, factor)
    for who, meaning in itertools.product(("a perfect model", "the model"), MEANINGS):
        images = []
        for i in tqdm(range(options.people), desc=f"{who}, {meaning}", unit="person"):
            conditions = model.condition(sources[i : i + 1], poses[i : i + 1])
            reference = Reference(z_ref[i : i + 1], chosen[i : i + 1])
            with perfect(model, z_true[i : i + 1]) if who == "a perfect model" else nullcontext():
                images.append(sample_as(meaning, model, vae, conditions, reference, options.steps, FIRST_SEED + i))
        found[f"{who}, {meaning}"] = errors(torch.cat(images), references, truths, masks > 0)
    asked = {"model": str(options.model or "bundled"), "people": options.people, "steps": options.steps}
    write_json(options.out, {"asked": asked, "errors": found, "meanings": MEANINGS, "made": machine()})
    rows = [[name, f"{row['outside']:.4f}", f"{row['inside']:.4f}"] for name, row in found.items()]
    print(table(["latents", "outside", "inside"], rows))


if __name__ == "__main__":
    raise SystemExit(main())
