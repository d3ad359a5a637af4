"""The pictures of the docs that show features: editing, the playground, the user study; and what the mask must mean.

    python benchmarks/figures.py gallery        docs/gallery: four uses of the bundled model, a few minutes
    python benchmarks/figures.py pages          docs/playground.webp, docs/user_study.webp and docs/fig4.webp
    python benchmarks/figures.py editing        the table of docs/editing.md: how to read the formula of the mask

Letters in shapes: N people, C latent channels, H side of an image, h side of its latents.
"""

import argparse
import dataclasses
import io
import itertools
import json
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import ROOT, add_command, benchmark_parser, docs_path, machine, results_path, save_picture, table
from people import images_of, photographs, recut
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from tqdm import tqdm

from cfld import CFLD, VAE, Conditions, load, people
from cfld.data.deepfashion import prepare, read_pairs, table_path
from cfld.edit.__main__ import main as edit
from cfld.evaluate.study import main as study
from cfld.people import PARTS, Pose
from cfld.photos.pixels import picture_grid, to_range
from cfld.playground.server import PlaygroundServer
from cfld.pose import pose_maps
from cfld.sampling import PAPER, Reference, SamplingConfig, denoise
from cfld.tools.cli import command
from cfld.tools.files import read_json, write_json
from cfld.tools.pictures import read_image, save_image

FIRST_SEED = 600_000  # of people who are not in the training data
POSES, CLOTHS = 2028, 2027  # for which a seed's random numbers are used
FRAMES, TURN = 8, 16  # of the interpolation, and poses of the turn
STANDING = ("relaxed", "hand on hip", "stand", "walk", "wave")  # how the people stand, in turn


def gallery(options: argparse.Namespace) -> None:
    """The pictures of docs/editing.md, made by the commands that it shows.

        edit.webp             two references with masks, and the tops of three sources generated into them
        interpolation.webp    between two sources, which are the first and the last tile
        turn.webp             an animation: one source in poses that turn once around
        attention.webp        what the queries attend to in a source, and where they act in the result

    The people are the first five of those that are kept from training. Each command is printed before it runs.

        python benchmarks/figures.py gallery
        python benchmarks/figures.py gallery --model DIR --steps 10 --out runs/gallery
    """
    out = options.out or ROOT / "docs" / "gallery"
    common = ["--steps", options.steps, "--force", *(["--model", options.model] if options.model else [])]

    def run(*words: object) -> None:
        """A command of cfld.edit; stops at its errors."""
        texts = [str(word) for word in (*words, *common)]
        print(f"python -m cfld.edit {shlex.join(texts)}".replace(f"{work}/", ""), flush=True)
        if code := edit(texts):
            raise SystemExit(code)

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        shots = [photograph(work, f"{i}", i, pose_of(i)) for i in range(len(STANDING))]
        photos = [Image.open(photo).convert("RGB") for photo, _, _ in shots]

        columns: list[list[Image.Image]] = [[] for _ in range(4)]
        for reference in (0, 1):
            photo, joints, mask = shots[reference]
            columns[0] += [photos[reference], Image.open(mask).convert("RGB")]
            for column, source in zip(columns[1:], (2, 3, 4), strict=True):
                edited = work / f"edited_{reference}_{source}.png"
                inputs = ("--reference", photo, "--pose", joints, "--mask", mask, "--source", shots[source][0])
                run("edit", *inputs, "--size", "256x176", "--out", edited)
                column += [photos[source], Image.open(edited)]
        save_picture(out / "edit.webp", picture_grid(columns))

        strip = work / "strip.png"
        ends = ("--source", shots[2][0], shots[3][0], "--pose", shots[0][1])
        run("interpolate", *ends, "--frames", FRAMES, "--size", "256x176", "--across", FRAMES, "--out", strip)
        row = (photos[2], *tiles(strip, FRAMES), photos[3])
        save_picture(out / "interpolation.webp", picture_grid([[x] for x in row]))

        poses = work / "poses"
        poses.mkdir()
        for i, yaw in enumerate(np.linspace(0, 2 * np.pi, TURN, endpoint=False)):
            photograph(poses, f"{i}", 0, dataclasses.replace(pose_of(0), yaw=float(yaw)))
        run("sequence", "--source", shots[0][0], "--pose", poses, "--size", "256x176", "--out", out / "turn.webp")

        attention = work / "attention.png"
        run("attention", "--source", shots[1][0], "--pose", shots[0][1], "--out", attention)
        save_picture(out / "attention.webp", read_image(attention))


def pose_of(person: int) -> Pose:
    """How one of the people stands: seen from the front, from head to foot."""
    rng = np.random.default_rng([FIRST_SEED + person, POSES])
    return people.sample_pose(rng, STANDING[person], view="front", framing="full")


def photograph(folder: Path, name: str, person: int, pose: Pose) -> tuple[Path, Path, Path]:
    """Photograph a person -> the files of the photo, of the joints, and of a mask of the top, two pixels too large."""
    shot = people.render(people.identity(FIRST_SEED + person), pose)
    files = folder / f"{name}.png", folder / f"{name}.npy", folder / f"{name}_mask.png"
    Image.fromarray(shot.image).save(files[0])
    joints = shot.annotation
    np.save(files[1], np.concatenate([joints[:, ::-1], joints[:, :1] >= 0], axis=1))
    top = np.isin(shot.labels, [PARTS.index("top"), PARTS.index("jacket")])
    padded = np.pad(top, 2)
    grown = np.max([np.roll(padded, (y, x), (0, 1)) for y in range(-2, 3) for x in range(-2, 3)], axis=0)
    Image.fromarray((255 * grown[2:-2, 2:-2]).astype(np.uint8)).save(files[2])
    return files


def tiles(strip: Path, count: int) -> list[Image.Image]:
    """The frames of a strip of so many, 256x176 each."""
    frames = read_image(strip)
    return [frames.crop((176 * i, 0, 176 * (i + 1), 256)) for i in range(count)]


def pages(options: argparse.Namespace) -> None:
    """The pictures of docs/playground.md and docs/user_study.md, in Chromium.

    The study is of the tests' sample photos. The source, the truth blurred and the truth mirrored stand in for the
    results of three methods, and made-up answers for those of volunteers. Needs Chromium (Debian: apt-get install
    chromium) and playwright, which the test extra brings.

        python benchmarks/figures.py pages
    """
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=shutil.which("chromium")).new_page()
        save_picture(docs_path("user_study.webp", options.out), user_study(page, Path(folder)))
        save_picture(docs_path("fig4.webp", options.out), bars(Path(folder)))
        save_picture(docs_path("playground.webp", options.out), playground(page, options.model))


def playground(page: Any, model: Path | None) -> Image.Image:
    """The playground with an example person and two seeds."""
    with PlaygroundServer(*load(model)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.set_viewport_size({"width": 1180, "height": 900})
        page.goto(f"http://{server.hosts[0]}")
        page.get_by_role("button", name="Example person").click()
        page.get_by_alt_text("the photo").wait_for()
        page.get_by_label("Preset").select_option("hands on hips")
        page.get_by_label("Seeds to compare").fill("2")
        page.get_by_role("button", name="Paint").click()
        page.get_by_text("Done.").wait_for(timeout=1_800_000)
        page.get_by_role("slider", name="left elbow").focus()
        shown = screenshot(page)
        server.shutdown()
    return shown


def screenshot(page: Any) -> Image.Image:
    """What a page of playwright's shows."""
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def build_study(folder: Path) -> Path:
    """A study of the sample photos -> its page."""
    data = folder / "data"
    shutil.copytree(ROOT / "tests" / "data" / "fashion", data)
    prepare(data)
    for source, target in read_pairs(table_path(data, "pairs", "test")):
        photo, truth = (read_image(data / "test_highres" / name) for name in (source, target))
        name = f"{Path(source).stem}_2_{Path(target).stem}_vis.png"
        save_image(folder / "copy" / name, photo)
        save_image(folder / "blur" / name, truth.filter(ImageFilter.GaussianBlur(truth.height / 100)))
        save_image(folder / "mirror" / name, ImageOps.mirror(truth))
    methods = [f"{name}={folder / name}" for name in ("copy", "blur", "mirror")]
    page = folder / "study.html"
    study(["build", "--data", str(data), "--out", str(page), "--judged", "2", "--compared", "6", *methods])
    return page


def user_study(page: Any, folder: Path) -> Image.Image:
    """The first question of each part of a study, side by side."""
    page.set_viewport_size({"width": 600, "height": 800})
    page.goto(build_study(folder).as_uri() + "#1")
    page.get_by_role("button", name="Begin").click()
    page.locator("[data-key]:enabled").first.wait_for()
    first = screenshot(page)
    for _ in range(4):
        page.get_by_role("button", name="Generated").click()
    page.locator("[data-key]:enabled").first.wait_for()
    page.mouse.move(0, 0)
    return picture_grid([[first], [screenshot(page)]])


def bars(folder: Path) -> Image.Image:
    """Fig. 4 of the study, with made-up answers of 30 volunteers."""
    key, rng = read_json(folder / "study.key.json"), np.random.default_rng(0)
    odds = {"copy": [0.3, 0.5, 0.2], "blur": [0.1, 0.1, 0.25], "mirror": [0.3, 0.45, 0.55]}  # of R2G, G2R, Jab
    for volunteer in range(1, 31):
        group = key["judged"][(volunteer - 1) % 3]
        r2g, g2r, _ = odds[group["method"]]
        chances = {True: [1 - r2g, r2g], False: [g2r, 1 - g2r]}
        judged = [str(rng.choice(["real", "generated"], p=chances[answer == "real"])) for answer in group["answers"]]
        compared = [
            int(rng.choice(3, p=[odds[name][2] for name in question["methods"]])) for question in key["compared"]
        ]
        answers = {"study": key["study"], "volunteer": volunteer, "judged": judged, "compared": compared}
        write_json(folder / "answers" / f"{volunteer}.json", answers)
    files = map(str, sorted((folder / "answers").iterdir()))
    study(["score", "--key", str(folder / "study.key.json"), "--out", str(folder / "fig4.json"), *files])
    print(json.dumps(read_json(folder / "fig4.json")["mirror"]))
    return read_image(folder / "fig4.png")


POSITIONS: dict[str, Callable[[Tensor, int], Tensor]] = {  # which positions of the latents are generated, from pixels
    "touched by the mask": lambda mask, factor: F.max_pool2d(mask, factor) > 0,
    "half in the mask": lambda mask, factor: F.avg_pool2d(mask, factor) >= 0.5,
    "wholly in the mask": lambda mask, factor: F.avg_pool2d(mask, factor) == 1,
}
MEANINGS = {
    "as printed": "eps outside := z_ref,t",
    "exchanged, new noise": "z_t outside := z_ref,t, with new noise at each step",
    "exchanged, one noise": "z_t outside := z_ref,t, always with the same noise",
    "noise towards z_ref,0": "eps outside := the noise that leads from z_ref,0 to z_t (cfld.sampling.denoise)",
}


@torch.no_grad()
def editing(options: argparse.Namespace) -> None:
    """What the paper's formula of the mask must mean (Sec. 4.6).

    A synthetic person can be photographed in the same pose with another top, so the truth of an edit is known. The
    reference is the first photo, the source shows the second top in another pose, the mask is the top. Errors are mean
    absolute differences in [0, 1]: outside the mask to the reference, inside it to the truth, before anything is
    pasted. Each meaning of the formula is measured with the model, and with a perfect one, which always predicts the
    noise that leads to the truth.

        python benchmarks/figures.py editing                                   an hour on two cores
        python benchmarks/figures.py editing --people 4 --out runs/editing
    """
    model, vae = load(options.model)
    config, shots = model.config, []
    for seed in range(FIRST_SEED, FIRST_SEED + options.people):
        person = people.identity(seed)
        other = recut(person, people.random_textile(np.random.default_rng([seed, CLOTHS])))
        here, there = people.photo_pose(seed, 0), people.photo_pose(seed, 2)
        shots += [(person, here), (other, here), (other, there)]
    photos = photographs(shots, config)
    references, truths = (images_of(photos[i::3]) for i in (0, 1))
    sources = to_range(torch.stack([x.source_image for x in photos[2::3]]))
    poses = pose_maps(torch.stack([x.keypoints for x in photos[::3]]), config.adapter.pose_size)
    tops = torch.from_numpy(np.stack([x.mask("top") | x.mask("jacket") for x in photos[::3]]))[:, None]
    masks = F.max_pool2d(tops.float(), 5, 1, 2)  # a little too large, as if drawn by hand

    z_ref, z_true, factor = vae.encode(references), vae.encode(truths), vae.config.factor
    found = {"the VAE alone": errors(vae.decode(z_ref), references, truths, masks > 0)}
    for name, positions in POSITIONS.items():
        latents = torch.where(positions(masks, factor), z_true, z_ref)
        found[f"true latents where {name}"] = errors(vae.decode(latents), references, truths, masks > 0)
    chosen, how = POSITIONS["touched by the mask"](masks, factor), SamplingConfig(steps=options.steps)
    for who, meaning in itertools.product(("a perfect model", "the model"), MEANINGS):
        images = []
        for i in tqdm(range(options.people), desc=f"{who}, {meaning}", unit="person"):
            conditions = model.condition(sources[i : i + 1], poses[i : i + 1])
            reference = Reference(z_ref[i : i + 1].float(), chosen[i : i + 1])
            with perfect(model, z_true[i : i + 1]) if who == "a perfect model" else nullcontext():
                images.append(sample_as(meaning, model, vae, conditions, reference, how, FIRST_SEED + i))
        found[f"{who}, {meaning}"] = errors(torch.cat(images), references, truths, masks > 0)
    asked = {"model": str(options.model or "bundled"), "people": options.people, "steps": options.steps}
    path = results_path("editing.json", options.out)
    write_json(path, {"asked": asked, "errors": found, "meanings": MEANINGS, "made": machine()})
    rows = [[name, f"{row['outside']:.4f}", f"{row['inside']:.4f}"] for name, row in found.items()]
    print(table(["latents", "outside", "inside"], rows))


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
    """Within the block the model predicts the noise between its latents and z_true (1, C, h, h)."""

    def forward(latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        return model.scheduler.implied_noise(latents, z_true, int(timesteps[0]))

    learnt, model.forward = model.forward, forward  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        model.forward = learnt  # type: ignore[method-assign]


def sample_as(
    meaning: str, model: CFLD, vae: VAE, conditions: Conditions, reference: Reference, how: SamplingConfig, seed: int
) -> Tensor:
    """An edit with one of MEANINGS, by DDPM under Eq. 7 at 2.0/2.0 -> images (1, 3, H, H)."""
    scheduler, g = model.scheduler, torch.Generator().manual_seed(seed)
    if meaning == "noise towards z_ref,0":
        return denoise(model, vae, conditions, how, generator=g, reference=reference)
    z_ref, mask = reference.latents, reference.mask
    branches = Conditions.cat([Conditions(model.null_prompt, None, None), conditions])
    latents, once = torch.randn(z_ref.shape, generator=g), torch.randn(z_ref.shape, generator=g)
    for t, t_next in pairwise([*scheduler.sampling_timesteps(how.steps), -1]):
        nothing, both = model(latents.repeat(2, 1, 1, 1), torch.tensor([t, t]), branches).chunk(2)
        noise_pred = PAPER.appearance_scale * both + (1 - PAPER.pose_scale) * nothing  # Eq. 7 at equal scales
        if meaning == "as printed":
            noise_pred = torch.where(mask, noise_pred, scheduler.add_noise(z_ref, once, torch.tensor([t])))
        noise = torch.randn(z_ref.shape, generator=g) if t_next >= 0 else None
        latents = scheduler.ddpm_step(latents, scheduler.clean_latents(latents, noise_pred, t), t, t_next, noise)
        if meaning.startswith("exchanged"):
            fresh = once if "one" in meaning else torch.randn(z_ref.shape, generator=g)
            kept = scheduler.add_noise(z_ref, fresh, torch.tensor([t_next])) if t_next >= 0 else z_ref
            latents = torch.where(mask, latents, kept)
    return vae.decode(latents)


@command
def main(argv: list[str] | None = None) -> None:
    parser, commands = benchmark_parser(__file__, __doc__)
    options = add_command(commands, gallery)
    options.add_argument("--model", metavar="DIR", help="a model folder (default: the bundled model)")
    options.add_argument("--steps", type=int, default=50, help="of DDPM")
    options = add_command(commands, pages)
    options.add_argument("--model", type=Path, metavar="DIR", help="a model folder (default: the bundled model)")
    options = add_command(commands, editing)
    options.add_argument("--model", type=Path, metavar="DIR", help="a model folder (default: the bundled model)")
    options.add_argument("--people", type=int, default=16, help="how many")
    options.add_argument("--steps", type=int, default=50, help="of DDPM")
    parsed = parser.parse_args(argv)
    parsed.run(parsed)


if __name__ == "__main__":
    raise SystemExit(main())
