"""Quality of the images that a trained TINY generates, of synthetic people that it was not trained on.

    python benchmarks/quality.py demo --out demo.png        one sheet of images and a line of numbers: two minutes
    python benchmarks/quality.py measure                    all measures of a model folder: docs/tiny_measures.md
    python benchmarks/quality.py guidance                   by steps, sampler and guidance scales: docs/guidance.webp
    python benchmarks/quality.py faster                     what fewer steps cost in quality: docs/faster.md

Times are of two cores. Each command has a --help. Numbers are kept in benchmarks/results: a benchmark that was stopped
goes on there. All but demo need scikit-image.

Letters in shapes: N pairs, H side of an image.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cloth import fabric_test
from common import (
    ROOT,
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
from lpips_weights import lpips_of
from people import (
    COLOURED,
    FIRST_SEED,
    PAIRS,
    PART_PIXELS,
    Array,
    Numbers,
    Pair,
    Photo,
    Pictures,
    Shot,
    autocast,
    check_pairs,
    colour_error,
    errors,
    foreground,
    generate_images,
    images_of,
    mean,
    measure_pairs,
    model_hashes,
    overlap,
    parts_shown,
    person_of,
    photographs,
    pixels,
    reconstruct,
    require_skimage,
    scores,
    scores_table,
    sheet,
    skeletons,
    trivial_methods,
)
from PIL import Image, ImageDraw
from tqdm import tqdm

from cfld import CFLD, TINY, VAE, CFLDConfig, Scheduler, load, people
from cfld.evaluate.weights import ALEXNET
from cfld.folder import bundled
from cfld.people import Textile
from cfld.people.textiles import weave
from cfld.photos.pixels import to_range
from cfld.pose import pose_maps
from cfld.samplers import SAMPLERS
from cfld.sampling import FAST, PAPER, SamplingConfig
from cfld.tools.cli import PRECISIONS, command, pick_device
from cfld.tools.files import write_json, write_text
from cfld.tools.plot import Points, draw_axes

MEASURES = ("methods", "fabric", "swap", "grid", "back", "samplers", "levels")
FIRST_BACK_SEED = 600_100
BACKS = 2026  # for which a seed's random numbers are used
LEVELS = (980, 900, 800, 600, 400, 200)  # timesteps
SOURCES = ("own source", "another's source", "no conditions")
CONTRAST = 0.35  # between the mean colours of a front and a back
OTHER_SAMPLERS = {
    "scales 1.0/1.0": SamplingConfig(pose_scale=1.0, appearance_scale=1.0),
    "scales 3.0/3.0": SamplingConfig(pose_scale=3.0, appearance_scale=3.0),
    "scales 1.5/2.5": SamplingConfig(pose_scale=1.5, appearance_scale=2.5),
    "20 steps": SamplingConfig(steps=20),
}


def demo(options: argparse.Namespace) -> None:
    """A sheet of images of unseen people, and a line of numbers.

    Each strip shows source, pose, truth and result. The people are the first of those that `measure` uses.

        python benchmarks/quality.py demo --out demo.png        two minutes on two cores
        python benchmarks/quality.py demo --pairs 2 --steps 10
    """
    check_pairs(options.pairs)
    model, vae = load(options.model, pick_device(options.device))
    pairs = measure_pairs(options.pairs, model.config)
    results = generate_images(model, vae, pairs, SamplingConfig(steps=options.steps))
    sources, truths = images_of(pair.source for pair in pairs), images_of(pair.target for pair in pairs)
    save_picture(options.out, sheet([sources, skeletons(pairs), truths, results], (256, 176), across=3))

    shown, plain = pixels(results), trivial_methods(pairs)
    ours, copy, colours = (errors(x, pairs).mean() for x in (shown, plain["copy"], plain["mean colours"]))
    iou = np.mean([overlap(foreground(x), pair.target.person) for x, pair in zip(shown, pairs, strict=True)])
    print(
        f"{len(pairs)} people who were not in the training data. Error on the person: {ours:.3f}; of a copy of the "
        f"source: {copy:.3f}; of the true outline in the source's mean colours: {colours:.3f}. "
        f"Overlap with the true person (IoU): {iou:.2f}"
    )


def measure(options: argparse.Namespace) -> None:
    """All measures of a model folder, on 200 pairs.

    Measures, for --only:

        methods     result, trivial methods, the VAE's ceiling: error, PSNR, SSIM, IoU, colours of the parts
        fabric      from which of 20 cloths is the top's pattern?
        swap        two people in two poses: is it the right person in the right pose?
        grid        docs/tiny_grid.webp: source, pose, truth, the VAE's reconstruction, result
        back        tops with another cloth on the back: is the back generated like the front?
        samplers    the scores of other guidance scales and of fewer steps
        levels      error of x_0 predicted in one step, by noise level: own source, another's source, none

    Results are written after each measure; a later run with the same model, pairs and options adds to them.

        python benchmarks/quality.py measure
        python benchmarks/quality.py measure --model DIR --pairs 8 --only methods grid --out runs/look
    """
    require_skimage()
    check_pairs(options.pairs, fewest=5)
    folder = options.model or bundled()
    model, vae = load(folder, pick_device(options.device))
    config, how = model.config, {"batch": options.batch, "precision": options.precision}
    generated = partial(generate_images, model, vae, **how)
    chosen, steps = set(options.only or MEASURES), SamplingConfig(steps=options.steps)
    path = results_path("tiny.json", options.out)
    asked = {
        **model_hashes(folder),
        "pairs": f"{'partial: ' if options.pairs < PAIRS else ''}{options.pairs} of {PAIRS}",
        "steps": options.steps,
        "precision": options.precision,
    }
    found = earlier_results(path, asked, measures={}, made={})

    def report(name: str, numbers: Numbers) -> None:
        found["measures"][name], found["made"][name] = numbers, machine()
        write_json(path, found)
        write_text(docs_path("tiny_measures.md", options.out), measures_page(found))
        print("\n" + section(name, numbers))

    pairs = measure_pairs(options.pairs, config)
    if chosen & {"methods", "fabric", "grid"}:
        results = generated(pairs, steps)
        reconstructions = reconstruct(vae, images_of(pair.target for pair in pairs), **how)
        methods = {"result": pixels(results), "VAE": pixels(reconstructions), **trivial_methods(pairs)}
    if "methods" in chosen:
        report("methods", score_methods(methods, pairs, options.weights))
    if "fabric" in chosen:
        report("fabric", fabric_test(methods, pairs, config))
    if "swap" in chosen:
        couples = swap_pairs(options.pairs // 4, config)
        report("swap", swap_test(pixels(generated(couples, steps)), couples))
    if "grid" in chosen:
        sources, truths = images_of(pair.source for pair in pairs), images_of(pair.target for pair in pairs)
        columns = [x[:12] for x in (sources, skeletons(pairs), truths, reconstructions, results)]
        save_picture(docs_path("tiny_grid.webp", options.out), sheet(columns, (192, 132), across=2))
    if "back" in chosen:
        back, like_front = back_pairs(options.pairs // 5, config)
        report("back", back_test(pixels(generated(back, steps)), back, like_front))
    if "samplers" in chosen:
        by_sampler = {name: scores(pixels(generated(pairs, other)), pairs) for name, other in OTHER_SAMPLERS.items()}
        report("samplers", by_sampler)
    if "levels" in chosen:
        report("levels", level_test(model, vae, pairs, **how))


def scores_with_lpips(methods: dict[str, Pictures], pairs: Sequence[Pair], weights: Path) -> Numbers:
    """The scores of methods by name, with LPIPS if its weights are in this folder."""
    rows: Numbers = {name: scores(pictures, pairs) for name, pictures in tqdm(methods.items(), desc="scoring")}
    if (weights / ALEXNET).is_file():
        for name, value in lpips_of(methods, [pair.target.picture for pair in pairs], weights).items():
            rows[name]["LPIPS"] = value
    return rows


def score_methods(methods: dict[str, Pictures], pairs: Sequence[Pair], weights: Path) -> Numbers:
    """The scores of methods by name, with LPIPS if its weights are in this folder; the IoU of the truths, which is the
    most that the segmentation can find; and how many pairs show a part."""
    rows = scores_with_lpips(methods, pairs, weights)
    rows["truth"] = {"IoU": mean([overlap(foreground(p.target.picture), p.target.person) for p in pairs])}
    shown = [parts_shown(pair) for pair in pairs]
    rows["pairs that show it"] = {part: sum(part in parts for parts in shown) for part in COLOURED}
    return rows


def swap_pairs(count: int, config: CFLDConfig) -> list[Pair]:
    """Two people a, b and two poses p, q make four pairs: (a, p), (a, q), (b, p), (b, q); then the next two people.

    The four have the same noise, and b's targets have a's keypoints: only the source identifies the person.
    """
    shots = []
    for first in range(FIRST_SEED, FIRST_SEED + 2 * count, 2):
        for seed in (first, first + 1):
            poses = people.photo_pose(seed, 0), people.photo_pose(first, 2), people.photo_pose(first, 3)
            shots += [(person_of(seed), pose) for pose in poses]
    photos, pairs = photographs(shots, config), []
    for a in range(0, len(shots), 6):
        for source in (a, a + 3):
            for pose in (1, 2):
                target = replace(photos[source + pose], keypoints=photos[a + pose].keypoints)
                pairs.append(Pair(*shots[source + pose], photos[source], target, noise_seed=shots[a][0].seed))
    return pairs


def swap_test(pictures: Array, pairs: Sequence[Pair]) -> Numbers:
    """How often a picture is nearer to its own truth than to the other person's in the same pose, and how often it
    overlaps its own pose more than the other. pictures (N, H, H, 3) of swap_pairs."""
    size = pictures.shape[1:3]
    truths = np.stack([pair.target.picture for pair in pairs]).reshape(-1, 2, 2, *size, 3)
    masks = np.stack([pair.target.person for pair in pairs]).reshape(-1, 2, 2, *size)
    right_person, right_pose = [], []
    for picture, (k, person, pose) in zip(pictures, np.ndindex(truths.shape[:3]), strict=True):
        either = masks[k, :, pose].any(0)
        own, other = (np.abs(picture - truths[k, who, pose])[either].mean() for who in (person, 1 - person))
        right_person.append(own < other)
        own, other = (overlap(foreground(picture), masks[k, person, which]) for which in (pose, 1 - pose))
        right_pose.append(own > other)
    return {"results": len(pairs), "right person": mean(right_person), "right pose": mean(right_pose)}


def different_fabrics(rng: np.random.Generator) -> tuple[Textile, Textile]:
    """Two cloths whose mean colours are far apart."""
    while True:
        fabrics = people.random_textile(rng), people.random_textile(rng)
        if colour_error(*(weave(fabric)[0].reshape(-1, 3) for fabric in fabrics)) >= CONTRAST:
            return fabrics


def back_pairs(count: int, config: CFLDConfig) -> tuple[list[Pair], list[Photo]]:
    """Pairs of a source from the front and a target from behind, of people whose top has another cloth on the back; and
    the targets with a back like the front. Jackets and prints are left out, since they would hide the cloth, and so
    are people who sit, since no photo shows them from behind."""
    shots: list[Shot] = []
    seeds = (seed for seed in range(FIRST_BACK_SEED, people.OWN_SEEDS) if people.photo_pose(seed, 1).view == "back")
    for seed in itertools.islice(seeds, count):
        person = person_of(seed)
        person = replace(person, jacket=None, top=replace(person.top, front_print=None, back_print=None))
        front, back = different_fabrics(np.random.default_rng([seed, BACKS]))
        true, like_front = people.refabric(person, front, back), people.refabric(person, front)
        poses = people.photo_pose(seed, 0), people.photo_pose(seed, 1)
        shots += [(true, poses[0]), (true, poses[1]), (like_front, poses[1])]
    photos = photographs(shots, config)
    columns = zip(shots[1::3], photos[::3], photos[1::3], strict=True)
    return [Pair(*shot, source, target, shot[0].seed) for shot, source, target in columns], photos[2::3]


def back_test(pictures: Array, pairs: Sequence[Pair], like_front: Sequence[Photo]) -> Numbers:
    """Whether pictures (N, H, H, 3) have the colour of the true back or of a back like the front: where the two
    renderings of the top differ, the torso without its sleeves."""
    to_back, to_front = [], []
    for picture, pair, other in zip(pictures, pairs, like_front, strict=True):
        panel = pair.target.mask("top") & (pair.target.image != other.image).any(0).numpy()
        if panel.sum() >= PART_PIXELS:
            to_back.append(colour_error(picture[panel], pair.target.picture[panel]))
            to_front.append(colour_error(picture[panel], other.picture[panel]))
    return {
        "people": len(to_back),
        "nearer to the front": mean(np.array(to_front) < np.array(to_back)),
        "colour error to the back": mean(to_back),
        "colour error to the front": mean(to_front),
    }


@torch.no_grad()
def level_test(model: CFLD, vae: VAE, pairs: Sequence[Pair], *, batch: int = 25, precision: str = "bf16") -> Numbers:
    """By timestep, the error on the person of x_0 predicted in one step from the truth's z_t and decoded: with the
    right source, with the source of the pair before, and without source and pose."""
    scheduler, device = model.scheduler, model.null_prompt.device
    found: dict[str, list[list[float]]] = {name: [[] for _ in LEVELS] for name in SOURCES}
    everyone = to_range(torch.stack([pair.source.source_image for pair in pairs]).to(device))
    with autocast(device, precision):
        for first in tqdm(range(0, len(pairs), batch), desc="noise levels", unit="batch"):
            part = slice(first, first + batch)
            x_0 = vae.encode(images_of(pair.target for pair in pairs[part]).to(device)).float()
            noises = [torch.Generator().manual_seed(pair.noise_seed) for pair in pairs[part]]
            noise = torch.stack([torch.randn(x_0.shape[1:], generator=g) for g in noises]).to(device)
            keypoints = torch.stack([pair.target.keypoints for pair in pairs[part]]).to(device)
            poses = pose_maps(keypoints, model.config.adapter.pose_size)
            own, others = (model.condition(images[part], poses) for images in (everyone, everyone.roll(1, 0)))
            nothing = model.drop(own, torch.ones(len(x_0), dtype=torch.bool, device=device), "paper")
            for name, conditions in zip(SOURCES, (own, others, nothing), strict=True):
                for i, t in enumerate(LEVELS):
                    timesteps = torch.full((len(x_0),), t, device=device)
                    latents = scheduler.add_noise(x_0, noise, timesteps)
                    predicted = scheduler.clean_latents(latents, model(latents, timesteps, conditions).float(), t)
                    found[name][i] += errors(pixels(vae.decode(predicted).float().cpu()), pairs[part]).tolist()
    return {"timesteps": LEVELS, **{name: [mean(x) for x in levels] for name, levels in found.items()}}


def section(name: str, numbers: Numbers) -> str:
    """One measure in Markdown: its single numbers and its table."""
    single = [f"{key}: {value:.4g}" for key, value in numbers.items() if isinstance(value, int | float)]
    rows = {key: value for key, value in numbers.items() if isinstance(value, dict)}
    if "timesteps" in numbers:
        rows = {
            key: dict(zip(numbers["timesteps"], numbers[key], strict=True)) for key in numbers if key != "timesteps"
        }
    return "\n\n".join(part for part in (f"## {name}", "; ".join(single), scores_table(rows) if rows else "") if part)


def measures_page(found: Numbers) -> str:
    """All measures in Markdown."""
    asked = found["asked"]
    head = paragraph(
        f"Made by `python benchmarks/quality.py measure` (its `--help` explains the sections) from {asked['pairs']} "
        f"pairs, DDPM with {asked['steps']} steps, {asked['precision']}. model.safetensors has the SHA-256 "
        f"{asked['model.safetensors'][:12]}..."
    )
    legend = paragraph(
        "error: mean absolute difference in [0, 1] on the true person. / copy: relative to copying the source. IoU: "
        "overlap of the person found in the output with the true mask; both found: with the person found in the ground "
        "truth. skin to shoes: error of the mean colour of a part. mean colours: the true outline filled with the "
        "source's mean colours. nearest, most correlated: share of tops whose pattern is closest to the true one among "
        "20 cloths, by distance and by correlation. PSNR and SSIM are of the whole square; SSIM has Gaussian windows "
        "and a range of 1, and is called SSIM std in [evaluation.md](evaluation.md). LPIPS, of the square as well, is "
        "version 0.1 with AlexNet."
    )
    sections = [section(name, found["measures"][name]) for name in MEASURES if name in found["measures"]]
    made = provenance(*found["made"].values())
    return "\n\n".join(["# Measures of a TINY", head, made, legend, *sections]) + "\n"


GUIDANCE_STEPS = (5, 10, 20, 50)
POSE_SCALES, APPEARANCE_SCALES = (1.0, 2.0, 3.0), (1.0, 1.5, 2.0, 3.0, 4.0)
SHOWN = {"error / copy": "error on the person, divided by that of a copy of the source", "SSIM": "SSIM"}
COLOURS = ((31, 90, 170), (214, 96, 20), (40, 140, 60), (150, 50, 150))
GUIDANCE = {
    f"{sampler}, {steps} steps": SamplingConfig(steps=steps, sampler=sampler)
    for sampler in SAMPLERS
    for steps in GUIDANCE_STEPS
} | {
    f"scales {w_pose}/{w_app}": SamplingConfig(pose_scale=w_pose, appearance_scale=w_app)
    for w_pose in POSE_SCALES
    for w_app in APPEARANCE_SCALES
}


def guidance(options: argparse.Namespace) -> None:
    """Quality by steps of each sampler and by the scales of Eq. 7, as a plot.

    The scores are those of `measure`. Each setting is written down when it is measured; a later run on the same model,
    pairs and precision goes on from there.

        python benchmarks/quality.py guidance                                          hours on two cores
        python benchmarks/quality.py guidance --model DIR --pairs 5 --out runs/guidance
    """
    path = results_path("guidance.json", options.out)
    found = score_settings(options, path, GUIDANCE)
    columns = ("error", *SHOWN, "PSNR")
    print(scores_table({name: {key: row[key] for key in columns} for name, row in found["scores"].items()}))
    save_picture(docs_path("guidance.webp", options.out), draw_guidance(found["scores"]))


def score_settings(options: argparse.Namespace, path: Path, settings: dict[str, SamplingConfig]) -> Numbers:
    """The scores of the settings that the file of results lacks, added to it -> all of its content."""
    require_skimage()
    check_pairs(options.pairs)
    folder = options.model or bundled()
    model, vae = load(folder, pick_device(options.device))
    asked = {**model_hashes(folder), "pairs": options.pairs, "precision": options.precision}
    found = earlier_results(path, asked, scores={})
    pairs = measure_pairs(options.pairs, model.config)
    for name, how in settings.items():
        if name not in found["scores"]:
            print(name, flush=True)
            images = generate_images(model, vae, pairs, how, batch=options.batch, precision=options.precision)
            found["scores"][name], found["made"] = scores(pixels(images), pairs), machine()
            write_json(path, found)
    return found


def draw_guidance(found: Numbers) -> Image.Image:
    """The curves of SHOWN: on the left by steps, one per sampler; on the right by w_app, one per w_pose."""
    image = Image.new("RGB", (1300, 30 + 380 * len(SHOWN)), "white")
    canvas = ImageDraw.Draw(image)
    for row, (score, title) in enumerate(SHOWN.items()):
        steps: dict[str, Points] = {
            sampler: [(n, found[f"{sampler}, {n} steps"][score]) for n in GUIDANCE_STEPS] for sampler in SAMPLERS
        }
        scales: dict[str, Points] = {
            f"w_pose {w_pose:g}": [(w_app, found[f"scales {w_pose}/{w_app}"][score]) for w_app in APPEARANCE_SCALES]
            for w_pose in POSE_SCALES
        }
        top = 50 + 380 * row
        for left, curves, axis in ((80, steps, "steps"), (730, scales, "w_app")):
            lines = [(points, colour, 2) for points, colour in zip(curves.values(), COLOURS, strict=False)]
            legend = list(zip(curves, COLOURS, strict=False))
            draw_axes(canvas, (left, top, left + 540, top + 300), f"{title}, by {axis}", lines, legend)
    return image


FASTER = {
    "DDPM, 50 steps": PAPER,
    **{f"DPM-Solver++, {n} steps": SamplingConfig(steps=n, sampler="dpm++") for n in (25, 20, 15, 12, 10, 8)},
    **{f"UniPC, {n} steps": SamplingConfig(steps=n, sampler="unipc") for n in (15, 10)},
    **{
        f"DPM-Solver++, 15 steps, guidance within {low} .. {high}": SamplingConfig(
            steps=15, sampler="dpm++", guidance_interval=(low, high)
        )
        for low, high in ((200, 999), (400, 999), (0, 800), (200, 800))
    },
}
FASTER_NUMBERS = {"error": 4, "error / copy": 3, "PSNR": 2, "SSIM": 4, "IoU": 3}  # and their decimals


def faster(options: argparse.Namespace) -> None:
    """What fewer steps, or guidance within an interval alone, cost in quality.

    The scores are those of `measure`. Work is the number of samples that the UNet computes for an image, compared with
    the official loop's 150: 50 steps of three samples. A later run on the same model and pairs goes on from there.

        python benchmarks/quality.py faster                                          hours on two cores
        python benchmarks/quality.py faster --model DIR --pairs 5 --out runs/faster
    """
    found = score_settings(options, results_path("faster.json", options.out), FASTER)
    page = faster_page(found)
    write_text(docs_path("faster.md", options.out), page)
    print(page)


def work_saved(how: SamplingConfig) -> float:
    """The samples that the official loop computes, over those of a setting. Eq. 7 at equal scales takes two."""
    timesteps = Scheduler(TINY.scheduler).sampling_timesteps(how.steps, SAMPLERS[how.sampler].spacing)
    low, high = how.guidance_interval
    return 150 / sum(2 if low <= t <= high else 1 for t in timesteps)


def faster_page(found: Numbers) -> str:
    """docs/faster.md."""
    rows = [
        [name, f"{work_saved(how):.2f}", *(f"{found['scores'][name][key]:.{n}f}" for key, n in FASTER_NUMBERS.items())]
        for name, how in FASTER.items()
    ]
    fast = next(name for name, how in FASTER.items() if how == FAST)
    asked = found["asked"]
    head = paragraph(
        f"Made by `python benchmarks/quality.py faster` from {asked['pairs']} pairs, with a TINY whose "
        f"model.safetensors has the SHA-256 {asked['model.safetensors'][:12]}... Work saved: the samples that the UNet "
        "computes in the official loop, 50 steps of three, divided by those of the setting. "
        f"[tiny_measures.md](tiny_measures.md) explains the other columns. `--fast` is {fast}."
    )
    numbers = table(["", "work saved, times", *FASTER_NUMBERS], rows)
    return f"# Fewer steps\n\n{head}\n\n{provenance(found['made'])}\n\n{numbers}\n"


@command
def main(argv: list[str] | None = None) -> None:
    parser, commands = benchmark_parser(__file__, __doc__)

    options = add_command(commands, demo, out=False)
    options.add_argument("--out", type=Path, default=Path("demo.png"), metavar="FILE", help="the picture to write")
    options.add_argument("--steps", type=int, default=50, help="of DDPM")
    add_model_options(options, pairs=12)

    options = add_command(commands, measure)
    options.add_argument("--only", nargs="+", choices=MEASURES, metavar="MEASURE", help="some of the measures")
    add_weights_option(options)
    options.add_argument("--steps", type=int, default=50, help="of DDPM")
    add_model_options(options, pairs=PAIRS)
    add_batch_options(options)

    options = add_command(commands, guidance)
    add_model_options(options, pairs=60)
    add_batch_options(options)

    options = add_command(commands, faster)
    add_model_options(options, pairs=100)
    add_batch_options(options)

    parsed = parser.parse_args(argv)
    parsed.run(parsed)


def add_model_options(parser: argparse.ArgumentParser, pairs: int) -> None:
    parser.add_argument("--model", type=Path, metavar="DIR", help="a model folder (default: the bundled model)")
    parser.add_argument("--pairs", type=int, default=pairs, help=f"how many of the {PAIRS} pairs, from the first")
    parser.add_argument("--device", help="cuda, cpu, ... (default: the best there is)")


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    text = "folder of LPIPS's weights, of benchmarks/lpips_weights.py; skipped if not there"
    parser.add_argument("--weights", type=Path, default=ROOT / "weights" / "metrics", metavar="DIR", help=text)


def add_batch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=25, help="images at a time; results do not depend on it")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16", help="of products and convolutions")


if __name__ == "__main__":
    raise SystemExit(main())
