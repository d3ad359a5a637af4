"""How well cfld.photos.retarget knows a body, on synthetic people; and the picture of docs/poses.md.

    PYTHONPATH=. python benchmarks/retarget.py                               the table
    PYTHONPATH=. python benchmarks/retarget.py docs/retarget.webp            and the picture

One camera, with one zoom and one ground, photographs person A in a pose, and person B in that pose and in another one.
From A's joints and those of B's other photo, retarget computes B's joints in A's pose. The error is the mean distance
of the joints that all photos show from B's own, in pixels of the 256x176 frame; `without` is that of A's joints. Seeds
are of people on whom nothing is trained or tuned. A pose has no soles, so the ground is where the lower ankle is.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cfld import people
from cfld.people.dress import bare_body, figure, posed_joints
from cfld.people.render import DISTANCE, FRAME, frame, pose_figure
from cfld.photos.pixels import picture_grid, pose_picture
from cfld.photos.retarget import BODY, HIPS, TREE, retarget
from cfld.tools.pictures import save_image

METRE, GROUND = 100, 0.9 * FRAME[0]  # pixels; all people fit into the frame, also with their arms up
FIRST, LAST = people.TRAINING_SEEDS + 1000, people.TRAINING_SEEDS + 1300  # not those that retarget was tuned on
ANKLES = [10, 13]


def joints_of(seed: int, pose: people.Pose, hidden: bool = False) -> np.ndarray:
    """Joints (18, 2) as (y, x) of a person in a pose, by the one camera. hidden: those that the body hides are -1, as
    in the rendered photo."""
    scene = pose_figure(figure(people.identity(seed)), pose)
    camera = frame(pose, scene.vertices[scene.person], scene.joints, *FRAME)
    joints = camera.project(scene.joints)[0][:, ::-1].astype(np.float64)
    origin = np.array([joints[ANKLES, 0].max(), joints[HIPS, 1].mean()])
    placed = (joints - origin) * METRE * DISTANCE / camera.focal + [GROUND, FRAME[1] / 2]
    if hidden:
        seen = people.render(people.identity(seed), pose, supersample=1).keypoints[:, :1] >= 0
        return np.where(seen, placed, -1)
    return placed


def height(seed: int) -> float:
    """A person's height from ankle to eyes, metres, at rest and without clothes."""
    joints = posed_joints(bare_body(people.identity(seed))[0])
    return float(joints[:, 2].max() - joints[:, 2].min())


def errors(pairs: list[tuple[int, int]], seed: int = 0, view: str | None = None, hidden: bool = False) -> np.ndarray:
    """pairs (A, B) of seeds -> the errors without and with retargeting (n, 2). view: of B's other photo."""
    rng, found = np.random.default_rng(seed), []
    for a, b in pairs:
        pose, other = (people.sample_pose(rng, framing="full", view=v) for v in (None, view))
        given, own = joints_of(a, pose, hidden), joints_of(b, other, hidden)
        truth, result = joints_of(b, pose, hidden), retarget(given, own)
        shown = np.minimum(np.minimum(given, truth), result).min(axis=1) >= 0
        found.append([np.linalg.norm(x - truth, axis=1)[shown].mean() for x in (given, result)])
    return np.array(found)


def by_chance(count: int, seed: int = 0) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.choice(np.arange(FIRST, LAST), 2, replace=False).tolist()) for _ in range(count)]


def short_and_tall(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Pairs of one of the tenth shortest and one of the tenth tallest people, in either order."""
    rng, ordered = np.random.default_rng(seed), sorted(range(FIRST, LAST), key=height)
    tenth = len(ordered) // 10
    pairs = [(int(rng.choice(ordered[:tenth])), int(rng.choice(ordered[-tenth:]))) for _ in range(count)]
    return [pair[:: 1 if i % 2 else -1] for i, pair in enumerate(pairs)]


def print_typical(count: int = 400) -> None:
    """Print the typical body of cfld.photos.retarget, from people who are not measured."""
    found, standing = [], people.sample_pose(np.random.default_rng(0), "stand", "front", "full")
    for seed in range(count):
        joints = pose_figure(figure(people.identity(seed)), standing).joints
        joints = np.concatenate([joints, joints[HIPS].mean(axis=0, keepdims=True)])
        lengths = [[] for _ in BODY]
        for start, end, kind in TREE[:14]:
            lengths[kind].append(np.linalg.norm(joints[end] - joints[start]))
        found.append([np.mean(x) for x in lengths])
    ratios = np.array(found) / np.array(found)[:, :1]
    for name, mean, spread in zip(BODY, ratios.mean(axis=0), np.log(ratios).std(axis=0), strict=True):
        print(f"{name}: {mean:.3f} torsos, spread {100 * spread:.1f} %")


def interval(found: np.ndarray, draws: int = 2000) -> np.ndarray:
    """errors (n, 2) -> the 95 % interval of their ratio, by the bootstrap over pairs."""
    chosen = np.random.default_rng(0).integers(0, len(found), (draws, len(found)))
    without, error = found[chosen].mean(axis=1).T
    return np.percentile(error / without, [2.5, 97.5])


def print_table(count: int, hidden: bool) -> None:
    for title, pairs in (("two by chance", by_chance(count)), ("a short and a tall one", short_and_tall(count))):
        for view in (None, "front"):
            found = errors(pairs, view=view, hidden=hidden)
            without, error = found.mean(axis=0)
            low, high = interval(found)
            ratio = f"{error / without:.2f} | {low:.2f} to {high:.2f}"
            print(f"| {title} | {view or 'any'} | {without:.1f} | {error:.1f} | {ratio} |", flush=True)


def skeleton(joints: np.ndarray) -> Image.Image:
    return pose_picture(torch.from_numpy(joints.astype(np.float32)), FRAME)


def photo(seed: int, pose: people.Pose) -> Image.Image:
    """A person by the one camera: the rendered photo, zoomed."""
    scene = pose_figure(figure(people.identity(seed)), pose)
    camera = frame(pose, scene.vertices[scene.person], scene.joints, *FRAME)
    joints, zoom = camera.project(scene.joints)[0], METRE * DISTANCE / camera.focal
    shot = Image.fromarray(people.render(people.identity(seed), pose).image)
    shot = shot.resize((round(FRAME[1] * zoom), round(FRAME[0] * zoom)), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", FRAME[::-1], shot.getpixel((0, 0)))
    x, y = FRAME[1] / 2 - zoom * joints[HIPS, 0].mean(), GROUND - zoom * joints[ANKLES, 1].max()
    canvas.paste(shot, (round(x), round(y)))
    return canvas


def make_picture(path: Path) -> None:
    """Two rows, a short person in the pose of a tall one and the reverse: the person; the other one in the pose, and
    the pose; the pose retargeted; the person in that pose, rendered."""
    ordered = sorted(range(FIRST, LAST), key=height)
    rng = np.random.default_rng(4)
    rows = []
    for b, a, name in ((ordered[0], ordered[-1], "stride"), (ordered[-1], ordered[0], "arms up")):
        pose = people.sample_pose(rng, name, "quarter", "full")
        other = people.sample_pose(rng, "relaxed", "front", "full")
        given, own = joints_of(a, pose), joints_of(b, other)
        result = retarget(given, own)
        rows.append([photo(b, other), photo(a, pose), skeleton(given), skeleton(result), photo(b, pose)])
    save_image(path, picture_grid(list(zip(*rows, strict=True)), "white"), quality=80)
    print(f"wrote {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, help="where to write the picture")
    parser.add_argument("--pairs", type=int, default=200, help="of each kind; 0 for the picture alone")
    parser.add_argument("--hidden", action="store_true", help="leave out the joints that the body hides; slower")
    options = parser.parse_args()
    if options.pairs:
        print_typical()
        print("| people | view of B's photo | without, px | with, px | ratio | 95 % |\n|---|---|---|---|---|---|")
        print_table(options.pairs, options.hidden)
    if options.picture:
        make_picture(options.picture)
