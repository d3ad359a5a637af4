"""Hostile and damaged input of every kind that a reader takes: it is read, or refused in one line, and nothing else.

Each case is a function of its kind and seed, so a failure names what to repeat. Half of the cases change bytes, the
other half change values, which reach what lies behind the parser.
"""

import copy
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MICRO
from PIL import Image
from references import DATA
from safetensors.torch import load_file, save_file
from test_mistakes import ours

import cfld
from cfld.baselines import read_config, to_dict
from cfld.data.deepfashion import read_split
from cfld.photos.keypoints import read_annotations
from cfld.playground.requests import read_photo
from cfld.tools.files import read_json
from cfld.tools.pictures import read_image
from cfld.tools.plot import read_log
from cfld.training.checkpoint import read_learnt
from cfld.training.options import checked_options, saved_options
from cfld.training.run_folder import is_done, read_run_config

pytestmark = pytest.mark.slow
CASES = 60  # of a kind
DEEP = "[" * 100_000
VALUES = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**40, 2**63, 10**400, -(10**400), 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", "\0", "../x", "é" * 300, "9" * 5000, [], [[]], [1, "2"], [None] * 18, {}, {"a": {}},
]  # fmt: skip


class Unchanged(random.Random):
    """Stands for a case in which nothing is changed."""


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Content with some bytes changed, lost, doubled, or cut off."""
    data = bytearray(content)
    for _ in range(0 if isinstance(rng, Unchanged) else rng.choice([1, 1, 2, 6])):
        place = rng.randrange(min(len(data), rng.choice([64, 1024, 2**30]))) if data else 0
        match rng.randrange(5):
            case 0 if data:
                data[place] = rng.randrange(256)
            case 1:
                del data[place : place + rng.randint(1, 200)]
            case 2:
                data[place:place] = rng.randbytes(rng.randint(1, 20))
            case 3:
                del data[max(place, 1) :]
            case _:
                data[place:place] = data[place : place + rng.randint(1, 500)]
    return bytes(data)


def changed_value(value: Any, rng: random.Random) -> Any:
    """A tree of dictionaries and lists with one or two of its values changed, doubled or lost."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 2)):
        node = value
        while True:
            places = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not places:
                break
            place = rng.choice(places)
            if isinstance(node[place], (dict, list)) and node[place] and rng.random() < 0.8:
                node = node[place]
                continue
            match rng.randrange(6):
                case 0:
                    del node[place]
                case 1 if isinstance(node, dict):
                    node[f"{place}x"] = node.pop(place)
                case _:
                    node[place] = rng.choice(VALUES)
            break
    return value


def json_case(value: Any, rng: random.Random) -> bytes:
    """JSON of a changed value, or changed JSON of the value, or of a depth that no parser takes."""
    if isinstance(rng, Unchanged):
        return json.dumps(value).encode()
    if rng.random() < 0.05:
        return DEEP.encode()
    if rng.random() < 0.6:
        return json.dumps(changed_value(value, rng)).encode()
    return changed_bytes(json.dumps(value).encode(), rng)


def tensors_case(path: Path, rng: random.Random) -> None:
    """A safetensors file with changed bytes; or with a tensor changed, lost, or renamed; or with changed metadata."""
    if isinstance(rng, Unchanged) or rng.random() < 0.4:
        path.write_bytes(changed_bytes(path.read_bytes(), rng))
        return
    tensors, metadata = load_file(path), {}
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = header.get("__metadata__", {})
    name = rng.choice(sorted(tensors))
    x = tensors.pop(name)
    match rng.randrange(6):
        case 0:
            pass
        case 1:
            tensors[f"{name}x"] = x
        case 2:
            tensors[name] = x[None].contiguous()
        case 3:
            tensors[name] = x.to(rng.choice([torch.int8, torch.bool, torch.int64, torch.float64, torch.float8_e5m2]))
        case 4:
            tensors[name] = torch.zeros(rng.choice([(0,), (3, 5), (1,) * 9, ()]))
        case _:
            tensors[name] = x
            for key, text in metadata.items():
                metadata[key] = json_case(json.loads(text), rng).decode("utf-8", "ignore").replace("\0", "")
    save_file(tensors, path, metadata or None)


def refused_or_read(read: Callable[[], object], where: str) -> bool:
    """Whether input is read. Fails unless it is read, or refused in one line that is short enough to be read."""
    try:
        read()
        return True
    except ValueError as error:  # UserError is one
        text = " ".join(str(error).split())
        assert isinstance(error, cfld.UserError), (where, repr(error))
        assert text and len(text) < 1500 and "Traceback" not in text, (where, text[:300])
        ours(error)
        return False


def cases(kind: str, make_and_read: Callable[[random.Random], Callable[[], object]]) -> None:
    """All cases of a kind: the input is read as it is; of the changes some are refused, and some are not."""
    refused = 0
    make_and_read(Unchanged(0))()
    for seed in range(CASES):
        refused += not refused_or_read(make_and_read(random.Random(f"{kind} {seed}")), f"{kind}, seed {seed}")
    print(f"{kind}: {CASES} cases, {refused} refused")
    assert 0 < refused < CASES


def test_configs(tmp_path: Path) -> None:
    path = tmp_path / "config.json"

    def case(rng: random.Random) -> Callable[[], object]:
        path.write_bytes(json_case(to_dict(MICRO), rng))
        return lambda: read_config(path)

    cases("configs", case)


def test_run_configs_and_logs(whole: Path, tmp_path: Path) -> None:
    values = read_json(whole / "config.json")
    lines = (whole / "log.jsonl").read_bytes()

    def case(rng: random.Random) -> Callable[[], object]:
        (tmp_path / "config.json").write_bytes(json_case(values, rng))
        (tmp_path / "log.jsonl").write_bytes(changed_bytes(lines, rng) + json_case({"step": 7, "loss": 1.0}, rng))

        def read() -> None:
            for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
                is_done(line, 3)
            read_run_config(tmp_path / "config.json")
            checked_options(saved_options(tmp_path), tmp_path)
            read_log(tmp_path / "log.jsonl")

        return read

    cases("run folders", case)


def test_checkpoints(whole: Path, tmp_path: Path) -> None:
    (source,) = (whole / "checkpoints").iterdir()
    path = tmp_path / source.name

    def case(rng: random.Random) -> Callable[[], object]:
        shutil.copy(source, path)
        tensors_case(path, rng)
        return lambda: read_learnt(path)

    cases("checkpoints", case)


def test_model_folders(micro_folder: Path, tmp_path: Path) -> None:
    def case(rng: random.Random) -> Callable[[], object]:
        folder = tmp_path / "model"
        shutil.copytree(micro_folder, folder, dirs_exist_ok=True)
        tensors_case(folder / rng.choice(["model.safetensors", "vae.safetensors"]), rng)
        return lambda: cfld.load(folder)

    cases("safetensors", case)


def test_lists_pairs_and_annotations(fashion: Path, tmp_path: Path) -> None:
    folder, tables = tmp_path / "data", [path for path in fashion.iterdir() if path.suffix == ".csv"]
    folder.mkdir()
    for name in ("train_highres", "test_highres"):
        shutil.copytree(fashion / name, folder / name)

    def case(rng: random.Random) -> Callable[[], object]:
        for path in tables:
            shutil.copy(path, folder)
        path = folder / rng.choice(tables).name
        content, lines = path.read_bytes(), path.read_text().splitlines()
        if isinstance(rng, Unchanged) or rng.random() < 0.5:
            content = changed_bytes(content, rng)
        else:
            number = rng.randrange(len(lines))
            fields = lines[number].split(":")
            fields[rng.randrange(len(fields))] = rng.choice(
                [json.dumps(rng.choice(VALUES)), DEEP, "a,b,c", "../x.jpg", str([5] * 18)]
            )
            lines[number] = ":".join(fields)
            content = "\n".join(lines).encode()
        path.write_bytes(content)
        return lambda: [read_split(folder, split) for split in ("train", "test")]

    cases("tables", case)


def test_poses(tmp_path: Path) -> None:
    path = tmp_path / "pose.json"
    standing = next(iter(read_annotations(DATA / "fashion" / "fasion-resize-annotation-test.csv").values()))
    joints = [value for y, x in standing.tolist() for value in ((x, y, 0.9) if min(x, y) >= 0 else (0, 0, 0))]
    person = {"person_id": [-1], "pose_keypoints_2d": joints}
    value = {"version": 1.3, "people": [person, person], "canvas_width": 176, "canvas_height": 256}

    def case(rng: random.Random) -> Callable[[], object]:
        if not isinstance(rng, Unchanged) and rng.random() < 0.2:
            array = np.random.default_rng(rng.randrange(2**32)).normal(90, 50, (18, 3))
            buffer = io.BytesIO()
            np.save(buffer, array.astype(rng.choice(["float64", "float16", "int8", "complex64", "U3"])))
            path.with_suffix(".npy").write_bytes(changed_bytes(buffer.getvalue(), rng))
            return lambda: cfld.read_pose(path.with_suffix(".npy"))
        path.write_bytes(json_case(value, rng))
        return lambda: cfld.read_pose(path)

    cases("poses", case)


def test_images(tmp_path: Path) -> None:
    photo = Image.open(DATA / "fashion" / "MEN" / "Tees_Tanks" / "id_00800018" / "01_1_front.jpg").resize((44, 64))
    suffixes = (".jpg", ".png", ".webp", ".gif", ".bmp", ".tiff")

    def case(rng: random.Random) -> Callable[[], object]:
        path = tmp_path / f"photo{rng.choice(suffixes)}"
        photo.convert(rng.choice(["RGB", "L", "P"] if path.suffix == ".gif" else ["RGB", "L"])).save(path)
        path.write_bytes(changed_bytes(path.read_bytes(), rng))
        if path.suffix in suffixes[:3] and rng.random() < 0.5:  # those that the playground takes
            return lambda: read_photo(path.read_bytes())
        return lambda: read_image(path, upright=True)

    cases("images", case)
