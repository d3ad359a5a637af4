"""What is installed: an sdist, the wheel made from it, and that wheel in an environment and a folder of its own."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from conftest import micro_model
from PIL import Image
from references import DATA

import cfld
from cfld.photos.keypoints import read_annotations

ROOT = Path(__file__).parents[1]
PHOTO = DATA / "fashion" / "MEN" / "Tees_Tanks" / "id_00800018" / "01_1_front.jpg"
POSE = "fashionMENTees_Tanksid0080001801_1front.jpg"


# As python -m cfld.sample; then, where cfld is, and whether torch's compiler was imported, which takes a second.
PAINT = """
import runpy, sys
try:
    runpy.run_module("cfld.sample", run_name="__main__", alter_sys=True)
finally:
    print(sys.modules["cfld"].__file__, "torch._dynamo" in sys.modules)
"""


def run(cwd: Path, *argv: object) -> str:
    """The standard output of a command that must succeed, without the network and without this checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PIP_NO_INDEX": "1"}
    done = subprocess.run([str(a) for a in argv], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_its_model_and_paints_from_any_folder(tmp_path: Path) -> None:
    tree, elsewhere, new = tmp_path / "tree", tmp_path / "else where", tmp_path / "venv"
    shutil.copytree(ROOT / "cfld", tree / "cfld", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "weights").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "weights/README.md"):
        shutil.copy(ROOT / name, tree / name)
    if (ROOT / "weights" / "tiny" / "config.json").is_file():
        shutil.copytree(ROOT / "weights" / "tiny", tree / "weights" / "tiny")
    else:
        cfld.save(tree / "weights" / "tiny", *(module.half() for module in micro_model()))
    files = {path.relative_to(tree) for path in (tree / "cfld").rglob("*") if path.is_file()}
    files |= {"cfld" / path.relative_to(tree) for path in (tree / "weights").rglob("*") if path.is_file()}

    run(tree, sys.executable, "-c", "from setuptools import build_meta; build_meta.build_sdist('.')")

    venv.create(new, symlinks=True)
    packages = next(new.glob("lib/python*/site-packages"))
    dependencies = [path for path in sys.path if path.endswith("-packages")]  # their own .pth files are not read
    (packages / "dependencies.pth").write_text("\n".join(dependencies))
    python = new / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(tree, *pip, "install", "--no-build-isolation", "--no-deps", next(tree.glob("*.tar.gz")))  # by way of a wheel
    assert files <= {path.relative_to(packages) for path in packages.rglob("*")}

    elsewhere.mkdir()
    annotated = read_annotations(DATA / "fashion" / "fasion-resize-annotation-test.csv")[POSE].tolist()
    joints = [value for y, x in annotated for value in ((x, y, 1) if min(y, x) >= 0 else (0, 0, 0))]
    pose = {"canvas_width": 176, "canvas_height": 256, "people": [{"pose_keypoints_2d": joints}]}
    (elsewhere / "pose.json").write_text(json.dumps(pose))
    shutil.copy(PHOTO, elsewhere / "photo.jpg")
    options = ("--source", "photo.jpg", "--pose", "pose.json", "--out", "out.png", "--steps", 2)
    output = run(elsewhere, python, "-c", PAINT, *options)
    where, compiler = output.splitlines()[-1].split()
    assert Path(where).is_relative_to(packages) and compiler == "False"
    assert Image.open(elsewhere / "out.png").convert("RGB").size == (176, 256)
