"""Market-1501: its names, its frame of 128x64, from the unpacked folders to training and evaluation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from references import DATA

from cfld.data.__main__ import main as data_main
from cfld.data.deepfashion import flat_name, read_pairs, read_split
from cfld.data.pairs import FashionPairs
from cfld.evaluate.__main__ import main as evaluate_main
from cfld.photos.keypoints import read_annotations, read_joints
from cfld.tools.cli import UserError
from cfld.train import main as train_main

MARKET = (128, 64)
FASHION = DATA / "fashion"


def market_name(photos: dict[str, int], name: str) -> str:
    return f"{photos[name]:04d}_c1s1_{photos[name]:06d}_01.jpg"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample photos as Market-1501 is on disk: small, in two folders, without .lst files."""
    root = tmp_path_factory.mktemp("market") / "Market-1501-v15.09.15"
    files = {flat_name(path.relative_to(FASHION)): path for path in FASHION.glob("*/*/*/*.jpg")}
    number = {name: i for i, name in enumerate(sorted(files))}
    for split in ("train", "test"):
        annotations = read_annotations(FASHION / f"fasion-resize-annotation-{split}.csv")
        pairs = read_pairs(FASHION / f"fasion-resize-pairs-{split}.csv")
        folder = root / f"bounding_box_{split}"
        folder.mkdir(parents=True)
        rows = ["name:keypoints_y:keypoints_x"]
        for name, joints in annotations.items():
            Image.open(files[name]).resize(MARKET[::-1]).save(folder / market_name(number, name), quality=95)
            there = (joints >= 0).all(axis=1, keepdims=True)
            small = np.where(there, joints * [128 / 256, 64 / 176], -1).astype(int)
            rows.append(f"{market_name(number, name)}: {small[:, 0].tolist()}: {small[:, 1].tolist()}")
        (root / f"market-annotation-{split}.csv").write_text("\n".join(rows) + "\n")
        lines = [",".join(market_name(number, name) for name in pair) for pair in pairs]
        (root / f"market-pairs-{split}.csv").write_text("\n".join(["from,to", *lines]) + "\n")
    return root


@pytest.fixture(scope="module")
def market(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared") / "market"
    shutil.copytree(raw, root)
    assert data_main(["prepare", str(root), "--workers", "1"]) == 0
    return root


def test_preparing_finds_the_photos_and_writes_the_lists(market: Path) -> None:
    for split, photos in (("train", 50), ("test", 10)):
        names = (market / f"{split}.lst").read_text().split()
        assert len(names) == photos
        assert {path.name for path in (market / f"{split}_highres").iterdir()} == set(names)
    assert data_main(["prepare", str(market), "--workers", "1"]) == 0  # again


def test_folders_may_be_called_train_and_test(raw: Path, tmp_path: Path) -> None:
    root = shutil.copytree(raw, tmp_path / "market")
    for split in ("train", "test"):
        (root / f"bounding_box_{split}").rename(root / split)
    assert data_main(["prepare", str(root), "--workers", "1"]) == 0


def test_a_photo_and_its_pose_are_stretched_to_the_same_square(market: Path) -> None:
    lists = read_split(market, "train")
    assert lists.frame == MARKET and lists.keypoints.dtype == np.float32
    stored = read_annotations(market / "market-annotation-train.csv")
    for name in lists.photos:
        joints, keypoints = stored[name], lists.keypoints_of(name)
        there = (joints >= 0).all(axis=1)
        assert np.array_equal(keypoints[there], (joints * np.array([2, 2.75], np.float32))[there])
        assert (keypoints[~there] == -1).all()
    pairs = FashionPairs(market, "train", 64, 32)
    assert pairs.frame == MARKET and pairs[0].source.shape == (3, 64, 64)
    name = lists.photos[0]
    assert read_joints(f"{market / 'market-annotation-train.csv'}#{name}")[1] == MARKET


def test_its_annotations_are_checked_in_its_own_frame(raw: Path, tmp_path: Path, fails) -> None:
    root = shutil.copytree(raw, tmp_path / "market")
    path = root / "market-annotation-train.csv"
    shutil.copy(FASHION / "fasion-resize-annotation-train.csv", path)
    fails(data_main, "prepare", root, words=["market-annotation-train.csv", "64x128 (width x height)", "outside it"])
    shutil.copy(raw / "market-annotation-train.csv", root / "fasion-resize-annotation-train.csv")
    with pytest.raises(UserError, match=r"176x256 \(width x height\).*top left quarter"):
        read_annotations(root / "fasion-resize-annotation-train.csv")


def test_lists_of_two_data_sets_in_one_folder_are_refused(raw: Path, tmp_path: Path, fails) -> None:
    root = shutil.copytree(raw, tmp_path / "market")
    shutil.copy(FASHION / "fasion-resize-annotation-train.csv", root)
    fails(data_main, "prepare", root, words=["one data set", "fasion-resize-annotation-train.csv", "market-annotation"])


def test_a_missing_photo_is_named_with_its_line(raw: Path, tmp_path: Path, fails) -> None:
    root = shutil.copytree(raw, tmp_path / "market")
    name = read_pairs(root / "market-pairs-test.csv")[0][0]
    (root / "bounding_box_test" / name).unlink()
    fails(data_main, "prepare", root, words=["test.lst, line", name, "bounding_box_test"])


def test_training_and_evaluating_on_it(market: Path, micro_folder: Path, tmp_path: Path, fails) -> None:
    run = ["--config", micro_folder / "config.json", "--init", micro_folder, "--data", market, "--steps", 2]
    run += ["--batch", 2, "--warmup", 1, "--log-every", 1, "--sample-every", 2, "--sample-steps", 1, "--device", "cpu"]
    assert train_main([str(a) for a in (*run, "--precision", "fp32", "--out", tmp_path / "run")]) == 0
    with Image.open(tmp_path / "run" / "samples" / "step_00000002.png") as grid:
        assert grid.width % 64 == 0 and grid.height % 128 == 0
    asked = ["--data", market, "--device", "cpu", "--limit", 3, "--weights", tmp_path / "none"]
    model = ["--model", tmp_path / "run" / "model", *asked, "--steps", 1, "--sampler", "ddim"]
    fails(evaluate_main, *model, "--out", tmp_path / "no", words=["--size", "128x64 (height x width)", "256x176"])
    assert evaluate_main([str(a) for a in (*model, "--size", "128x64", "--out", tmp_path / "eval")]) == 0
    pictures = sorted((tmp_path / "eval" / "pictures").glob("*.png"))
    assert len(pictures) == 3 and all(Image.open(path).size == (64, 128) for path in pictures)
    table = json.loads((tmp_path / "eval" / "manifest.json").read_text())
    assert "128" in json.dumps(table)


def test_deepfashion_is_not_evaluated_in_the_frame_of_market(fashion: Path, tmp_path: Path, fails) -> None:
    fails(
        evaluate_main, "--ground-truth", "--data", fashion, "--size", "128x64", "--out", tmp_path / "out",
        words=["256x176 (height x width), found 128x64"],
    )  # fmt: skip
