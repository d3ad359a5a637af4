"""The evaluation: which files it takes, its numbers, resuming, manifests, the figure."""

import csv
import dataclasses
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import micro_model
from PIL import Image
from references import randomise
from torch import Tensor

from cfld.config import DistilledConfig
from cfld.data.batch import Batch
from cfld.data.pairs import FashionPairs
from cfld.evaluate import __main__ as evaluate
from cfld.evaluate import figure, generation, protocol
from cfld.evaluate.__main__ import main
from cfld.evaluate.figure import Tile
from cfld.evaluate.generation import generate_missing
from cfld.evaluate.inception import Inception
from cfld.evaluate.lpips import LPIPS, load_lpips
from cfld.evaluate.measure import make_parts
from cfld.evaluate.metrics import FeatureStatistics, fid, psnr, ssim
from cfld.evaluate.person import backdrop, error_inside, face_box, mean_colours, person_region, torso_length
from cfld.evaluate.protocol import (
    PATTERNS,
    SUFFIXES,
    FolderSet,
    PairSet,
    check_pictures,
    find_pictures,
    picture_names,
    read_picture,
    resized,
    to_images,
)
from cfld.evaluate.results import PUBLISHED, table
from cfld.evaluate.weights import ALEXNET, INCEPTIONS, LPIPS_HEADS
from cfld.folder import TURBO_FILE, load, save, save_student
from cfld.photos.pixels import to_pictures
from cfld.tools.cli import UserError
from cfld.tools.files import read_json
from cfld.tools.processes import Processes
from cfld.tools.tensors import read_safetensors

SIZE = (256, 176)


@pytest.fixture
def small(fashion: Path, tmp_path: Path) -> Path:
    """The sample photos with three test pairs, and three photos in train.lst, one of them without annotation."""
    root = tmp_path / "small"
    shutil.copytree(fashion, root)
    pairs = root / "fasion-resize-pairs-test.csv"
    pairs.write_text("".join(pairs.read_text().splitlines(keepends=True)[:4]))
    lines = (root / "train.lst").read_text().splitlines()
    lines = [*lines[:2], next(line for line in lines if line.endswith("flat.jpg"))]
    (root / "train.lst").write_text("\n".join(lines))
    return root


def predictions(root: Path, folder: Path, pattern: str = PATTERNS[0], suffix: str = ".png") -> list[Path]:
    """A prediction for each test pair of a folder: its truth with noise."""
    cases, g = PairSet(root, SIZE), np.random.default_rng(0)
    folder.mkdir()
    paths = [folder / name for name in picture_names(cases.pairs, pattern, suffix)]
    for i, path in enumerate(paths):
        noisy = cases[i].truth + g.normal(0, 20, (*SIZE, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    return paths


class Means(torch.nn.Module):
    """A small stand-in for Inception, whose 2048 features take a minute of a core for three distances."""

    def __init__(self, path: Path, protocol: str):
        super().__init__()
        assert path.is_file() and path.name == INCEPTIONS[protocol]

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> features (B, 48)."""
        return F.adaptive_avg_pool2d(images, 4).flatten(1)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """LPIPS with random weights in the public files, a file for the paper's FID, and none for the standard one."""
    folder, lpips = tmp_path / "weights", randomise(LPIPS(), 1)
    folder.mkdir()
    torch.save({f"features.{k}": x for k, x in lpips.features.state_dict().items()}, folder / ALEXNET)
    heads = {f"lin{k}.model.1.weight": x[None, :, None, None].abs() for k, x in lpips.heads.state_dict().items()}
    torch.save(heads, folder / LPIPS_HEADS)
    (folder / INCEPTIONS["fid_pgpis"]).write_bytes(b"Means")
    monkeypatch.setattr(protocol, "load_inception", Means)
    return folder


def read_csv(out: Path, method: str) -> list[dict[str, str]]:
    with open(out / "numbers.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["method"] == method]


def run(*argv: object) -> None:
    assert main([str(a) for a in argv]) == 0


@torch.no_grad()
def test_every_number_is_what_the_metrics_say_of_the_same_pictures(
    small: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = predictions(small, tmp_path / "mine")
    lpips, inception = load_lpips(weights / ALEXNET, weights / LPIPS_HEADS), protocol.load_network(weights, "FID")
    out = tmp_path / "out"
    run("--pred", tmp_path / "mine", "--data", small, "--weights", weights, "--out", out)
    printed = capsys.readouterr().out

    cases = PairSet(small, SIZE)
    images = to_images([np.asarray(Image.open(path)) for path in paths])
    photos = [Image.open(small / "test_highres" / target) for _, target in cases.pairs]
    truths = to_images([np.asarray(p.resize((176, 256), Image.Resampling.BICUBIC)) for p in photos])
    real = [Image.open(small / "train_highres" / name) for name in (small / "train.lst").read_text().split()]
    assert len(real) == 3
    sets = []
    for pictures in (images, to_images([resized(photo, SIZE) for photo in real])):
        sets.append(FeatureStatistics(48))
        sets[-1].update(inception(pictures))
    boxes = [cases[i].face for i in range(len(cases))]
    assert sum(box.any() for box in boxes) > 0
    expected: dict[str, Tensor] = {
        "LPIPS": lpips(images, truths),
        "PSNR": psnr(images, truths),
        "SSIM": ssim(images, truths, "uniform51"),
        "SSIM-256": ssim(images, truths, "gaussian_predicted"),
        "SSIM std": ssim(images, truths, "gaussian"),
        "person": torch.stack(
            [(x - y).abs()[:, cases[i].person].mean() for i, (x, y) in enumerate(zip(images, truths, strict=True))]
        ),
        "face": torch.stack(
            [
                (x - y).abs()[:, box].mean() if box.any() else torch.tensor(math.nan)
                for x, y, box in zip(images, truths, boxes, strict=True)
            ]
        ),
    }
    row = read_json(out / "manifest.json")["rows"]["mine"]
    rows = read_csv(out, "mine")
    manifest = read_json(out / "manifest.json")
    for name, values in expected.items():
        there = [value for value in values.double().tolist() if not math.isnan(value)]
        assert row[name] == pytest.approx(sum(there) / len(there), rel=1e-5), name
        assert [float(line[name]) for line in rows if line[name]] == pytest.approx(there, rel=1e-5), name
        assert manifest["pictures with the number"][name] == len(there)
    distance = fid(sets[0].mean, sets[0].covariance, sets[1].mean, sets[1].covariance)
    assert row["FID"] == pytest.approx(distance, rel=1e-6) and distance > 0
    assert [(line["from"], line["to"]) for line in rows] == cases.pairs
    line = next(line for line in printed.splitlines() if line.startswith("mine (3 of 3 pairs)"))
    assert f"{row['PSNR']:.3f}" in line and f"{row['LPIPS']:.4f}" in line and f"{row['FID']:.3f}" in line
    assert "(published)" not in printed and "8,570 test pairs: not comparable" in printed
    assert INCEPTIONS["fid"] in printed and "FID std is not measured" in printed
    assert manifest["weights"].keys() == {ALEXNET, LPIPS_HEADS, INCEPTIONS["fid_pgpis"]}
    assert "256x176, pillow bicubic, 3 photos" in manifest["real sets"]["FID"]
    assert not list(out.glob(".*")) and not list((small / "evaluation").glob(".*"))

    # The real set is kept; a folder of other photos does not take it.
    (small / "train.lst").write_text("\n".join((small / "train.lst").read_text().split()[:2]))
    again = ["--pred", tmp_path / "mine", "--data", small, "--weights", weights, "--out", tmp_path / "b"]
    assert main([str(a) for a in again]) == 2
    assert "must hold statistics of" in capsys.readouterr().err


def test_without_public_weights_the_rest_is_measured_and_each_missing_file_is_a_line(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--ground-truth", "--data", small, "--weights", tmp_path, "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    for file in (ALEXNET, LPIPS_HEADS, *INCEPTIONS.values()):
        (line,) = [line for line in printed.splitlines() if f"{tmp_path / file}" in line]
        assert "is not measured: it needs" in line and f"https://{line.split('https://')[1]}".endswith(f"/{file}")
    manifest = read_json(tmp_path / "out" / "manifest.json")
    row = manifest["rows"]["ground truth"]
    assert row["PSNR"] == "inf" and row["SSIM"] == pytest.approx(1) and row["person"] == 0 and row["LPIPS"] is None
    assert len(manifest["weights missing"]) == 4 and manifest["weights"] == {}
    assert list(manifest["rows"]) == ["ground truth", "copy of the source", "empty backdrop"]
    assert manifest["rows"]["copy of the source"]["person"] > 0.05


def test_the_vaes_row_is_the_reconstruction_of_the_truth(micro_folder: Path, small: Path, tmp_path: Path) -> None:
    run("--vae", micro_folder, "--data", small, "--limit", 1, "--out", tmp_path / "out")
    _, vae = micro_model()
    target = FashionPairs(small, "test", 64, 32)[0][2]
    with torch.no_grad():
        image = vae.decode(vae.encode(target[None].float() / 127.5 - 1)).clamp(-1, 1)
    (path,) = (tmp_path / "out" / "pictures").glob("*.png")
    difference = np.asarray(to_pictures(image, SIZE, rounding=False)[0]).astype(int) - np.asarray(Image.open(path))
    assert np.abs(difference).max() <= 1
    assert "VAE" in read_json(tmp_path / "out" / "manifest.json")["rows"]


def test_pictures_are_truncated_to_8_bits_as_the_public_codes_are() -> None:
    images = torch.tensor([-1.0, 0.999 / 127.5 - 1, 1.0])[:, None, None, None].expand(3, 3, 64, 64)
    assert [np.asarray(picture).max() for picture in to_pictures(images, (32, 22), rounding=False)] == [0, 0, 255]


TABLE_2 = {
    (256, 176): """
        PATN 20.728 0.2533 0.6714 -; ADGAN 14.540 0.2255 0.6735 -; GFLA 9.827 0.1878 0.7082 -;
        PISE 11.518 0.2244 0.6537 -; SPGNet 16.184 0.2256 0.6965 17.222; DPTN 17.419 0.2093 0.6975 17.811;
        NTED 8.517 0.1770 0.7156 17.740; CASD 13.137 0.1781 0.7224 17.880;
        PIDM (checkpoint) 6.812 0.2006 0.6621 15.630; PIDM (released images) 6.440 0.1686 0.7109 17.399;
        PoCoLD 8.067 0.1642 0.7310 -; CFLD 6.804 0.1519 0.7378 18.235;
        VAE reconstruction 7.967 0.0104 0.9660 33.515; ground truth 7.847 0 1 inf""",
    (512, 352): """
        CoCosNet2 13.325 0.2265 0.7236 -; NTED 7.645 0.1999 0.7359 17.385; PoCoLD 8.416 0.1920 0.7430 -;
        CFLD 7.149 0.1819 0.7478 17.645; VAE reconstruction 8.187 0.0217 0.9231 30.214; ground truth 8.010 0 1 inf""",
}


def test_the_published_rows_are_those_of_table_2() -> None:
    for size, text in TABLE_2.items():
        rows = [row.rsplit(maxsplit=4) for row in text.split(";")]
        numbers = {name.strip(): tuple(None if x == "-" else float(x) for x in rest) for name, *rest in rows}
        assert numbers == PUBLISHED[size]
    assert PUBLISHED.keys() == TABLE_2.keys()
    assert "published" not in table({"mine": {}}, SIZE, comparable=False)
    assert "FID to truths" in table({}, SIZE, to_truths=True) and "to truths" not in table({}, SIZE)
    text = table({"mine (3 of 3 pairs)": {"FID": 1.0, "PSNR": None}}, (512, 352))
    assert "CFLD (published)" in text and "17.645" in text and "6.804" not in text
    assert text.splitlines()[-1].split() == ["mine", "(3", "of", "3", "pairs)", "1.000", *"--------"]


def test_each_file_that_cannot_be_measured_is_named(small: Path, tmp_path: Path, fails) -> None:
    paths = predictions(small, tmp_path / "mine")
    paths[0].unlink()
    Image.new("RGB", (128, 256)).save(paths[1])
    paths[2].write_bytes(paths[2].read_bytes()[:5000])
    fails(
        main, "--pred", tmp_path / "mine", "--data", small, "--out", tmp_path / "out",
        words=["3 of 3 images", f"{paths[0].name} is missing", f"{paths[1].name} must be 256x176", "is 256x128",
               f"{paths[2].name} is not a readable image", "FROM_to_TO"],
    )  # fmt: skip
    assert not (tmp_path / "out" / "numbers.csv").exists()


def test_a_palette_is_looked_up_exactly_and_an_alpha_channel_is_refused(tmp_path: Path) -> None:
    palette = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)).quantize(200)
    palette.save(tmp_path / "a.png")
    picture, mode, _ = read_picture(tmp_path / "a.png", SIZE)
    assert mode == "P" and np.array_equal(picture, np.asarray(palette.convert("RGB")))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert check_pictures([tmp_path / "a.png"], SIZE, quiet=True)["modes"] == {"P": 1}
    palette.convert("RGBA").save(tmp_path / "b.png")
    palette.save(tmp_path / "c.png", transparency=0)
    Image.new("I;16", SIZE[::-1]).save(tmp_path / "d.png")
    for name, found in (("b", "RGBA"), ("c", "P"), ("d", "I;16")):
        with pytest.raises(UserError, match=f"{name}.png must be RGB of 8 bits without transparency, is {found}"):
            read_picture(tmp_path / f"{name}.png", SIZE)


def test_of_many_missing_pictures_ten_are_listed(fashion: Path, tmp_path: Path) -> None:
    cases = PairSet(fashion, SIZE)
    tmp_path.joinpath("mine").mkdir()
    with pytest.raises(UserError) as error:
        check_pictures(find_pictures(tmp_path / "mine", cases.pairs), SIZE, quiet=True)
    assert str(error.value).count("is missing") == 10 and "and 6 more" in str(error.value)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_are_made_from_the_pairs(pattern: str, suffix: str, tmp_path: Path) -> None:
    pairs = [("a_1_front.jpg", "a_2_side.jpg"), ("a_2_side.jpg", "a_2_to_b.jpg")]
    names = picture_names(pairs, pattern, suffix)
    assert len(set(names)) == 2
    for name in (*names, "manifest.json"):
        (tmp_path / name).touch()
    assert find_pictures(tmp_path, pairs) == [tmp_path / name for name in names]


def test_two_whole_sets_and_two_pairs_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a_to_b.png", "a_b.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"found sets such as a_to_b.png and a_b.jpg"):
        find_pictures(tmp_path, [("a.jpg", "b.jpg")])
    (tmp_path / "a_b_c.png").touch()
    with pytest.raises(UserError, match=r"a_b_c.png would stand for two pairs"):
        find_pictures(tmp_path, [("a.jpg", "b_c.jpg"), ("a_b.jpg", "c.jpg")])


def test_two_folders_are_paired_by_name(small: Path, weights: Path, tmp_path: Path, fails) -> None:
    names = predictions(small, tmp_path / "a")
    (tmp_path / "b").mkdir()
    for i, path in enumerate(names):
        truth = Image.fromarray(PairSet(small, SIZE)[i].truth)
        truth.save(tmp_path / "b" / f"{path.stem}.webp", lossless=True)
    (weights / ALEXNET).unlink()
    common = ("--weights", weights, "--truth", tmp_path / "b", "--pred", tmp_path / "a")
    run(*common, "--out", tmp_path / "out")
    rows = read_json(tmp_path / "out" / "manifest.json")["rows"]
    images, truths = (to_images([np.asarray(Image.open(p).convert("RGB")) for p in sorted((tmp_path / x).iterdir())])
                      for x in "ab")  # fmt: skip
    assert rows["a"]["SSIM"] == pytest.approx(ssim(images, truths).mean().item())
    assert rows["a"]["person"] is None and rows["a"]["FID"] > 0
    assert rows["truth"]["FID"] == pytest.approx(0, abs=1e-6 * rows["a"]["FID"]) and rows["truth"]["PSNR"] == "inf"
    assert [line["name"] for line in read_csv(tmp_path / "out", "a")] == sorted(path.stem for path in names)
    names[0].unlink()
    fails(main, *common, "--out", tmp_path / "o2", words=["1 of 3 images are missing", names[0].stem])
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "other.png")
    names[1].rename(names[0])
    fails(main, *common, "--out", tmp_path / "o2", words=["1 of 3 images are missing", names[1].stem])
    shutil.copy(names[0], names[0].with_suffix(".webp"))
    with pytest.raises(UserError, match="with 2 endings"):
        FolderSet(tmp_path / "a", tmp_path / "b")


def test_options_that_exclude_each_other_are_refused(small: Path, tmp_path: Path, fails) -> None:
    out = ("--out", tmp_path / "out")
    fails(main, "--ground-truth", *out, words=["--data must be given"])
    fails(main, "--ground-truth", "--truth", small, *out, words=["--truth must be given with --pred"])
    fails(main, "--ground-truth", "--data", small, "--limit", 4, *out, words=["within 1 .. 3", "found 4"])
    fails(main, "--ground-truth", "--data", small, "--name", "empty backdrop", *out, words=["--name must not be"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "numbers.csv").touch()
    fails(main, "--ground-truth", "--data", small, *out, words=["numbers.csv already exists", "--force"])


def test_painting_goes_on_and_takes_no_other_model(
    micro_folder: Path, fashion: Path, tmp_path: Path, fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "baselines", lambda cases: {})
    out = tmp_path / "out"
    command = ["--model", micro_folder, "--data", fashion, "--steps", 2, "--out", out, "--limit", 3]  # fmt: skip
    run(*command, "--batch", 2)
    paths = sorted((out / "pictures").glob("*_vis.png"))
    assert [path.name for path in paths] == sorted(picture_names(PairSet(fashion, SIZE, 3).pairs))
    first = [path.read_bytes() for path in paths]
    assert len(set(first)) == 3
    manifest = read_json(out / "manifest.json")
    assert manifest["partial"] and manifest["set"]["pairs"] == "partial: the first 3 of 16"
    assert manifest["pictures"]["formats"] == {".png": 3} and manifest["size"] == [256, 176]
    made = manifest["pictures"]["made with"]
    assert made["sampler"] == "ddpm" and made["steps"] == 2 and len(made["model.safetensors"]) == 64

    # One picture is missing, another was changed: the first is painted again, alone, and the second left as it is.
    paths[0].unlink()
    shutil.copy(paths[2], paths[1])
    fails(main, *command, words=["numbers.csv already exists"])
    painted = []
    monkeypatch.setattr(
        generation, "collate", lambda items, real=generation.collate: painted.append(items) or real(items)
    )
    run(*command, "--force")
    difference = np.asarray(Image.open(paths[0])).astype(int) - np.asarray(Image.open(paths[1]))
    assert [len(items) for items in painted] == [1] and np.abs(difference).max() > 1
    paths[1].write_bytes(first[1])
    again = np.asarray(Image.open(paths[0])).copy()
    paths[0].write_bytes(first[0])
    assert np.abs(again.astype(int) - np.asarray(Image.open(paths[0]))).max() <= 1  # it was in a batch of 2 before

    save(tmp_path / "other", *micro_model(5))
    fails(main, "--model", tmp_path / "other", *command[2:], "--force", words=["made with vae.safetensors"])
    fails(main, *command, "--seed", 1, "--force", words=["made with seed 0, asked was seed 1"])
    fails(main, *command, "--size", "512x352", "--force", words=["made with size 256x176"])
    (out / "pictures" / "manifest.json").unlink()
    fails(main, *command, "--force", words=["must be empty or made by this command"])


class OneOfSeveral(Processes):
    """A process whose others come later, in the same test."""

    def barrier(self) -> None:
        pass

    wait_for_work = barrier


def test_processes_share_the_pairs_and_paint_the_same(fashion: Path, tmp_path: Path) -> None:
    pairs = FashionPairs(fashion, "test", 16, 16)

    def painter(rows: list[int], batch: Batch) -> Tensor:
        assert len(batch) == len(rows)
        return torch.tensor(rows)[:, None, None, None].expand(-1, 3, 16, 16) / 16 - 0.5

    for folder, world in (("alone", 1), ("shared", 3)):
        for rank in range(world):
            generate_missing(tmp_path / folder, pairs, 7, (32, 22), lambda: painter, 2, OneOfSeveral(rank, world))
    contents = [{p.name: p.read_bytes() for p in (tmp_path / f).glob("*.png")} for f in ("alone", "shared")]
    assert contents[0] == contents[1] and len(contents[0]) == 7 and len(set(contents[0].values())) == 7


def test_processes_share_the_parts_and_get_all_of_them_in_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("cfld.evaluate.measure.PART", 3)
    made: dict[int, list[int]] = {0: [], 1: []}
    for rank in (0, 1):

        def make(part: range, mine: list[int] = made[rank]) -> dict[str, Tensor]:
            mine.append(part.start)
            return {"x": torch.arange(part.start, part.stop)}

        paths = make_parts(tmp_path, 10, make, OneOfSeveral(rank, 2), "making")
    assert made == {0: [0, 6], 1: [3, 9]}
    assert torch.equal(torch.cat([read_safetensors(path)[0]["x"] for path in paths]), torch.arange(10))


def test_an_interrupted_measurement_goes_on(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfld.evaluate.measure.PART", 1)
    monkeypatch.setattr(evaluate, "baselines", lambda cases: {})
    predictions(small, tmp_path / "mine")
    measured = []

    def measure(part, real=evaluate.measure_part, **rest):
        if len(measured) == 2:
            measured.append(None)
            raise KeyboardInterrupt
        measured.append(part.start)
        return real(part, **rest)

    monkeypatch.setattr(evaluate, "measure_part", measure)
    command = ["--pred", str(tmp_path / "mine"), "--data", str(small), "--out", str(tmp_path / "out")]
    assert main(command) == 130
    assert not (tmp_path / "out" / "numbers.csv").exists()
    run(*command)
    assert measured == [0, 1, None, 2]
    rows = read_csv(tmp_path / "out", "mine")
    run(*command, "--force")
    assert read_csv(tmp_path / "out", "mine") == rows and len(rows) == 3 and len(measured) == 7


def test_turbo_generates_with_the_student_and_says_so(
    micro_folder: Path, fashion: Path, tmp_path: Path, fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "baselines", lambda cases: {})
    folder, model = tmp_path / "both", load(micro_folder)[0]
    shutil.copytree(micro_folder, folder)
    command = ["--model", folder, "--data", fashion, "--limit", 1, "--turbo", "--precision", "fp32", "--out"]
    fails(main, *command, tmp_path / "none", words=["no student for --turbo"])
    own = {f"unet.{name}": x * 1.1 for name, x in model.unet.state_dict().items()}
    save_student(folder / TURBO_FILE, dataclasses.replace(model.config, distilled=DistilledConfig()), own)
    run(*command, tmp_path / "turbo")
    made = read_json(tmp_path / "turbo" / "manifest.json")["pictures"]["made with"]
    assert made["sampler"] == "turbo" and made["steps"] == 4 and len(made[TURBO_FILE]) == 64
    fails(main, *command, tmp_path / "x", "--sampler", "ddim", words=["--turbo must be given without --sampler"])
    fails(main, *command, tmp_path / "y", "--pose-scale", 1, words=["scales must be 2 and 2"])


@pytest.mark.slow
def test_the_option_processes_divides_the_work(micro_folder: Path, small: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        command = [sys.executable, "-m", "cfld.evaluate", "--model", micro_folder, "--data", small, "--steps", 2]
        command += ["--device", "cpu", "--batch", 1, "--processes", count, "--out", tmp_path / str(count)]
        done = subprocess.run([str(a) for a in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "1" / "numbers.csv").read_bytes() == (tmp_path / "2" / "numbers.csv").read_bytes()


@pytest.mark.slow
def test_two_processes_measure_the_same(micro_folder: Path, small: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    inception = Inception("fid_pgpis")
    for x in inception.parameters():
        torch.nn.init.normal_(x, 0.0 if x.ndim > 1 else 1.0, 1.3 * x[0].numel() ** -0.5 if x.ndim > 1 else 0.1)
    classifier = {"fc.weight": torch.ones(1000, 1), "AuxLogits.fc.bias": torch.ones(1)}
    torch.save({**inception.state_dict(), **classifier}, tmp_path / INCEPTIONS["fid_pgpis"])
    command = ["-m", "cfld.evaluate", "--model", micro_folder, "--data", small, "--steps", "2", "--device", "cpu",
               "--weights", tmp_path, "--batch", "1"]  # fmt: skip
    launchers = {"one": [sys.executable], "two": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]}
    for name, launcher in launchers.items():
        shutil.rmtree(small / "evaluation", ignore_errors=True)
        arguments = [str(a) for a in (*launcher, *command, "--out", tmp_path / name)]
        done = subprocess.run(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("SSIM-256") == 1
    assert (tmp_path / "one" / "numbers.csv").read_bytes() == (tmp_path / "two" / "numbers.csv").read_bytes()
    assert read_json(tmp_path / "one" / "manifest.json")["rows"]["micro"]["FID"] > 0
    assert len({json.dumps(read_json(tmp_path / name / "manifest.json")["rows"]) for name in launchers}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other(lost: int, small: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    wait = "import cfld.evaluate.__main__ as e, time; e.open_set = lambda options: time.sleep(600); e.main()"
    options = ["--ground-truth", "--data", small, "--out", tmp_path / "out", "--device", "cpu", "--timeout", "0.2"]
    processes = []
    for rank in range(2):
        start = ["-c", wait] if rank == lost else ["-m", "cfld.evaluate"]
        environment = {**os.environ, **address, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        argv = [sys.executable, *start, *map(str, options)]
        processes.append(subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        time.sleep(10)
        processes[lost].kill()
        _, error = processes[1 - lost].communicate(timeout=60)
        assert processes[1 - lost].returncode == 2
        assert "Traceback" not in error and f"process {1 - lost} has lost another" in error
    finally:
        for process in processes:
            process.kill()
            process.communicate()


STANDING = np.full((18, 2), -1, np.float32)  # neck to hips 80 pixels
STANDING[[0, 1, 2, 5, 8, 11, 14, 15]] = [
    (40, 88), (70, 88), (70, 64), (70, 112), (150, 75), (150, 101), (34, 84), (34, 92)
]  # fmt: skip


def test_the_person_is_where_the_joints_say() -> None:
    assert torso_length(STANDING) == pytest.approx(np.hypot(80, 13))
    unit = torso_length(STANDING)
    mask = person_region(STANDING, SIZE)
    inside = [(40, 88), (70, 64), (110, 88), (150, 88), (20, 88), (int(150 + 0.14 * unit), 75)]
    outside = [(8, 88), (int(150 + 0.17 * unit), 75), (110, int(64 - 0.2 * unit)), (40, int(90 + 0.27 * unit)), (0, 0)]
    assert all(mask[point] for point in inside) and not any(mask[point] for point in outside)
    larger = person_region(STANDING, (512, 352))
    assert larger.mean() == pytest.approx(mask.mean(), rel=0.02) and larger[::2, ::2][110, 88]
    upper = STANDING.copy()
    upper[[8, 11]] = -1  # no hips: straight down by a torso
    assert person_region(upper, SIZE)[[100, 145], [62, 88]].all()
    arm = STANDING.copy()
    arm[3] = (110, 40)
    added = person_region(arm, SIZE) & ~mask
    assert added[100, 46] and added.sum() > 200
    nobody = np.full((18, 2), -1, np.float32)
    assert not person_region(nobody, SIZE).any() and not face_box(nobody, SIZE).any()


def test_the_face_is_a_box_around_nose_and_eyes() -> None:
    box, unit = face_box(STANDING, SIZE), torso_length(STANDING)
    rows, columns = np.nonzero(box)
    assert (rows.min(), rows.max() + 1) == (round(36 - 0.2 * unit), round(36 + 0.2 * unit))
    assert (columns.min(), columns.max() + 1) == (round(88 - 0.2 * unit), round(88 + 0.2 * unit))
    assert box.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    behind = STANDING.copy()
    behind[[0, 14]] = -1
    assert not face_box(behind, SIZE).any()


def test_the_error_is_that_of_the_mask_alone() -> None:
    picture, truth, mask = np.zeros((4, 4, 3)), np.ones((4, 4, 3)), np.zeros((4, 4), bool)
    assert np.isnan(error_inside(picture, truth, mask))
    mask[1:3, 1:3] = True
    picture[1:3, 1:3] = 0.75
    assert error_inside(picture, truth, mask) == 0.25


def test_part_masks_replace_the_joints_and_give_the_mean_colours(small: Path, tmp_path: Path, fails) -> None:
    masks = small / "masks_test"
    masks.mkdir()
    command = ("--ground-truth", "--data", small, "--limit", 1, "--out", tmp_path / "out")
    fails(main, *command, words=["masks are missing"])
    labels = np.zeros((128, 88), np.uint8)
    labels[32:96, 22:44], labels[32:96, 44:66] = 1, 5
    for name in FashionPairs(small, "test", 0, 0).photos:
        Image.fromarray(labels).save(masks / f"{Path(name).stem}.png")
    run(*command)
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["set"]["person"] == "part masks of masks_test/" and "mean colours" in manifest["rows"]
    case = PairSet(small, SIZE)[0]
    assert case.person is not None and case.person.sum() == 4 * 64 * 44
    flat = mean_colours(case.source / 255, *case.labels)
    assert np.allclose(flat[128, 50], case.source[64:192, 44:88].reshape(-1, 3).mean(0) / 255)
    expected = error_inside(np.rint(flat * 255) / 255, case.truth / 255, case.person)
    assert manifest["rows"]["mean colours"]["person"] == pytest.approx(expected)


def test_a_part_that_the_source_lacks_has_the_colour_of_its_whole_person() -> None:
    source = np.arange(48, dtype=float).reshape(4, 4, 3)
    labels = np.zeros((4, 4), np.uint8)
    labels[:2] = 1
    other = np.full((4, 4), 7, np.uint8)
    assert np.allclose(mean_colours(source, labels, other), source[:2].reshape(-1, 3).mean(0))


def test_the_backdrop_is_the_colour_of_the_border() -> None:
    picture = np.full((100, 80, 3), 0.9)
    picture[10:, 20:60] = 0.1
    picture[50:] = 0.3
    assert np.allclose(backdrop(picture), 0.9)


def test_the_figure_shows_pairs_and_marks_the_studys_first_two(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails
) -> None:
    paths = predictions(small, tmp_path / "mine")
    (tmp_path / "study.json").write_text('{"Mine": {"Jab": 52.5, "R2G": 1}, "copy of the source": {"Jab": 17.6}}')
    out = tmp_path / "figure.png"
    command = ["figure", "--data", small, "--method", f"Mine={tmp_path / 'mine'}", "--method", "copy of the source",
               "--method", "empty backdrop", "--weights", tmp_path, "--out", out]  # fmt: skip
    captions: list[str] = []
    monkeypatch.setattr(figure, "Tile", lambda *parts: captions.append((*parts, "")[1]) or Tile(*parts))
    run(*command, "--pairs", 2, 0, "--study", tmp_path / "study.json")
    cases, error = PairSet(small, SIZE), figure.error_inside
    numbers = [
        error(picture / 255, cases[i].truth / 255, cases[i].person)
        for i, path in ((2, paths[2]), (0, paths[0]))
        for picture in (np.asarray(Image.open(path)), cases[i].source, protocol.empty_backdrop(i, cases[i]))
    ]
    assert [caption for caption in captions if caption] == [f"{number:.3f}" for number in numbers]
    image = np.asarray(Image.open(out))
    assert image.shape[1] == 6 + 6 * 182 and image.shape[0] > 2 * 256
    case = PairSet(small, SIZE)[2]
    line = 176 // 7
    assert np.array_equal(image[line : line + 256, 6 : 6 + 176], case.source)
    assert np.array_equal(image[line : line + 256, 6 + 2 * 182 : 6 + 2 * 182 + 176], case.truth)
    mine = image[line : line + 256, 6 + 3 * 182 : 6 + 3 * 182 + 176]
    assert np.array_equal(mine[3:-3, 3:-3], np.asarray(Image.open(paths[2]))[3:-3, 3:-3])
    frames = [tuple(image[line + 1, 6 + column * 182 + 88]) for column in (3, 4, 5)]
    assert frames[:2] == list(figure.PLACES) and frames[2] not in figure.PLACES
    scores = {"Better": {"Jab": 60}, "Mine": {"Jab": 52.5}, "copy of the source": {"Jab": 17.6}}
    (tmp_path / "study.json").write_text(json.dumps(scores))  # whose first is not shown: nothing here is first
    assert figure.study_places(tmp_path / "study.json", ["Mine", "copy of the source"]) == {
        "Mine": (figure.PLACES[1], 52.5)
    }
    fails(main, *command, words=["figure.png already exists"])
    fails(main, *command, "--force", "--pairs", 3, words=["within 0 .. 2, found 3"])
    fails(main, *command, "--force", "--method", "magic", words=["--method magic", "copy of the source"])
    (tmp_path / "study.json").write_text('{"Mine": 3}')
    fails(main, *command, "--force", "--study", tmp_path / "study.json", words=["a number for each method"])
    (tmp_path / "study.json").write_text('{"Other": {"Jab": 3}}')
    fails(main, *command, "--force", "--study", tmp_path / "study.json", words=["found Other"])


def test_the_word_study_goes_to_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setitem(evaluate.COMMANDS, "study", lambda argv: given.append(argv) or 3)
    assert main(["study", "make", "--out", "x"]) == 3 and given == [["make", "--out", "x"]]
