"""The pictures of docs/gallery, by the commands of docs/editing.md, of people that the bundled model has never seen.

    python benchmarks/gallery.py                          docs/gallery: a few minutes on two cores
    python benchmarks/gallery.py --model DIR --steps 10 --out runs/gallery

    edit.png                  two references, each with its mask, and the tops of three sources painted into it
    interpolation.png, .gif   from one source to another, which are the first and the last tile
    turn.png, .gif            one source in poses that turn once around
    attention.png             what the queries look at in a source, and where they act in the picture painted from it

The people are the first five that are kept from training, not chosen ones. Each command is printed before it runs.
"""

import argparse
import dataclasses
import shlex
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from cfld import people
from cfld.people import PARTS, Pose
from cfld.photos.pixels import picture_grid
from cfld.sample import main as sample
from cfld.tools.cli import HelpFormatter, command
from cfld.tools.pictures import save_image

ROOT = Path(__file__).parents[1]
FIRST_SEED, POSES = 600_000, 2028
FRAMES, TURN = 8, 16  # of the interpolation, and poses of the turn
STANDING = ("relaxed", "hand on hip", "stand", "walk", "wave")  # how the people stand, in turn


def pose_of(person: int) -> Pose:
    """How one of the people stands: from the front, from head to foot."""
    rng = np.random.default_rng([FIRST_SEED + person, POSES])
    return people.sample_pose(rng, STANDING[person], view="front", framing="full")


def shoot(folder: Path, name: str, person: int, pose: Pose) -> tuple[Path, Path, Path]:
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


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python benchmarks/gallery.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", metavar="DIR", help="another model folder than the bundled one")
    parser.add_argument("--steps", type=int, default=50, help="of DDPM")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gallery", help="the folder of the pictures")
    options = parser.parse_args(argv)
    common = ["--steps", options.steps, "--force", *(["--model", options.model] if options.model else [])]

    def run(*words: object) -> None:
        """A command of cfld.sample; stops at its errors."""
        texts = [str(word) for word in (*words, *common)]
        print(f"python -m cfld.sample {shlex.join(texts)}".replace(f"{work}/", ""), flush=True)
        if code := sample(texts):
            raise SystemExit(code)

    with tempfile.TemporaryDirectory() as temporary:
        work, out = Path(temporary), options.out
        shots = [shoot(work, f"{i}", i, pose_of(i)) for i in range(len(STANDING))]
        photos = [Image.open(photo).convert("RGB") for photo, _, _ in shots]

        columns: list[list[Image.Image]] = [[] for _ in range(4)]
        for reference in (0, 1):
            photo, joints, mask = shots[reference]
            columns[0] += [photos[reference], Image.open(mask).convert("RGB")]
            for column, source in zip(columns[1:], (2, 3, 4), strict=True):
                edited = work / f"edited_{reference}_{source}.png"
                run("edit", "--reference", photo, "--pose", joints, "--mask", mask, "--source", shots[source][0],
                    "--size", "256x176", "--out", edited)  # fmt: skip
                column += [photos[source], Image.open(edited)]
        save_image(out / "edit.png", picture_grid(columns))

        strip = work / "strip.png"
        run("interpolate", "--source", shots[2][0], shots[3][0], "--pose", shots[0][1], "--frames", FRAMES,
            "--size", "256x176", "--across", FRAMES, "--out", out / "interpolation.gif", strip)  # fmt: skip
        frames = Image.open(strip)
        tiles = [frames.crop((176 * i, 0, 176 * (i + 1), 256)) for i in range(FRAMES)]
        save_image(out / "interpolation.png", picture_grid([[x] for x in (photos[2], *tiles, photos[3])]))

        poses = work / "poses"
        poses.mkdir()
        for i, yaw in enumerate(np.linspace(0, 2 * np.pi, TURN, endpoint=False)):
            shoot(poses, f"{i}", 0, dataclasses.replace(pose_of(0), yaw=float(yaw)))
        run("sequence", "--source", shots[0][0], "--pose", poses, "--size", "256x176",
            "--out", out / "turn.gif", out / "turn.png")  # fmt: skip

        run("attention", "--source", shots[1][0], "--pose", shots[0][1], "--out", out / "attention.png")


if __name__ == "__main__":
    raise SystemExit(main())
