"""What would give a wrong training without a word: stale splits, other pairs, damaged photos, names of no use."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from references import DATA
from run_folders import logged

from cfld.data.__main__ import main
from cfld.data.deepfashion import SPLITS, write_split
from cfld.data.names import LONGEST, check_photo_names
from cfld.data.pairs import FashionPairs, PeoplePairs, listing_sum, open_pairs
from cfld.evaluate.protocol import picture_names
from cfld.tools.cli import UserError
from cfld.tools.files import atomic
from cfld.train import main as train
from cfld.train import moved_decay
from cfld.training.options import TrainConfig


def own(root: Path, people: tuple[str, ...] = ("ann", "bob", "cem"), photos: int = 2) -> Path:
    """Photos of one's own: a grey picture of 88x128 a photo, with a nose and a neck."""
    for person in people:
        (root / person).mkdir(parents=True)
        for i in range(photos):
            Image.new("RGB", (88, 128), (60 * i, 90, 90)).save(root / person / f"{i}.jpg")
            joints = [44, 20, 1, 44, 30 + i, 1, *[0] * 48]
            (root / person / f"{i}.json").write_text(json.dumps({"people": [{"pose_keypoints_2d": joints}]}))
    return root


def fashion_copy(root: Path) -> Path:
    shutil.copytree(DATA / "fashion", root)
    return root


def test_a_test_split_of_before_is_not_left_beside_new_lists(tmp_path: Path, fails) -> None:
    root = own(tmp_path / "mine")
    assert main(["pairs", str(root)]) == 0
    (root / "train.lst").unlink()
    fails(main, "pairs", root, "--test-share", 0, words=["test.lst already exists", "fasion-resize-pairs-test.csv"])
    for path in [*root.glob("*.lst"), *root.glob("*.csv")]:
        path.unlink()
    fails(main, "pairs", root, "--test-share", 0, words=["test_highres already exists"])
    shutil.rmtree(root / "test_highres")
    assert main(["pairs", str(root), "--test-share", "0"]) == 0  # photos of the training split are written again
    assert len(FashionPairs(root, "train", 64, 32)) == 6


def test_a_photo_in_both_splits_is_not_validated_on(argv, tmp_path: Path, fails) -> None:
    root = own(tmp_path / "mine", ("ann", "bob", "cem", "dan"))
    assert main(["pairs", str(root)]) == 0
    for kind in ("pairs", "annotation"):  # the test split's rows, in the training split as well
        table, rows = (root / f"fasion-resize-{kind}-{split}.csv" for split in SPLITS)
        table.write_text(table.read_text() + "\n".join(rows.read_text().splitlines()[1:]) + "\n")
    for path in (root / "test_highres").iterdir():
        shutil.copy(path, root / "train_highres")
    words = ["no photo may be in both splits", "2 of 2", "dan--0.jpg"]
    common = [*argv("both splits"), "--steps", 1, "--data", root]
    fails(train, *common, "--eval-every", 1, words=words)
    assert train([str(a) for a in common]) == 0  # nothing is measured
    fails(main, "prepare", root, words=["both splits", "dan--0.jpg"])


def test_every_photo_is_opened_once_and_all_damaged_ones_are_named(tmp_path: Path, fails, monkeypatch) -> None:
    root = fashion_copy(tmp_path / "data")
    opened: list[str] = []
    read = Image.open
    monkeypatch.setattr("cfld.tools.pictures.Image.open", lambda path: opened.append(Path(path).name) or read(path))
    assert main(["prepare", str(root), "--workers", "1"]) == 0
    names = [name for split in SPLITS for name in (root / f"{split}.lst").read_text().split()]
    assert sorted(opened) == sorted(names)
    damaged = [root / f"{split}_highres" / (root / f"{split}.lst").read_text().split()[3] for split in SPLITS]
    for path in damaged:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[: len(content) // 2])
    words = [f"2 of {len(names)} photos are damaged", *(path.name for path in damaged)]
    for workers in (1, 2):
        fails(main, "prepare", root, "--workers", workers, words=words)
    fails(main, "prepare", root, "--workers", 0, words=["--workers must be at least 1, found 0"])


@pytest.mark.parametrize("name", ["../x.jpg", "a/x.jpg", "a\\x.jpg", "..", "c:x.jpg", "x\0.jpg"])
def test_a_name_with_folders_is_refused_where_lists_are_read(fashion: Path, tmp_path: Path, fails, name: str) -> None:
    with pytest.raises(UserError, match="without folders"):
        check_photo_names([name], "lists")
    if "\0" in name or ":" in name:
        return
    root = fashion_copy(tmp_path / "data")
    pairs = root / "fasion-resize-pairs-test.csv"
    pairs.write_text(f"from,to\n{name},{name}\n")
    fails(main, "prepare", root, words=["without folders", name.split("\\")[-1]])
    annotation = next(iter((root / "fasion-resize-annotation-test.csv").read_text().splitlines()[1:]))
    with open(root / "fasion-resize-annotation-test.csv", "a") as file:
        file.write(f"{name}:{annotation.partition(':')[2]}\n")
    (root / "test_highres").mkdir()
    with pytest.raises(UserError, match="without folders"):
        FashionPairs(root, "test", 64, 32)


def test_names_that_evaluate_cannot_use_are_refused_where_they_are_made(tmp_path: Path, fails) -> None:
    long = own(tmp_path / "long", ("ü" * 60,))
    fails(main, "pairs", long, "--test-share", 0, words=["at most 105 bytes", "found 123"])
    twice = own(tmp_path / "twice", ("ann",))
    Image.new("RGB", (88, 128)).save(twice / "ann" / "0.png")
    fails(main, "pairs", twice, "--test-share", 0, words=["ann--0.jpg and ann--0.png", "endings"])
    assert not (twice / "train.lst").exists()


def test_the_longest_names_make_images_of_pairs(tmp_path: Path) -> None:
    names = ["a" * LONGEST + ".jpg", "b" * LONGEST + ".jpg"]
    check_photo_names(names, "lists")
    (picture,) = picture_names([(names[0], names[1])])
    with atomic(tmp_path / picture) as temporary:
        temporary.write_bytes(b"")
        assert len(temporary.name) + 7 <= 255  # of a process whose number has 10 digits, not the 3 or more of this one
    with pytest.raises(UserError, match="found 106"):
        check_photo_names(["a" * (LONGEST + 1) + ".jpg"], "lists")


@pytest.mark.parametrize("seed, identities", [("x", 3), (1, 0), (1.5, 3), (None, None), (-1, 2), (True, 1)])
def test_a_people_json_without_whole_numbers_is_one_line(fashion, tmp_path: Path, seed, identities) -> None:
    (tmp_path / "people.json").write_text(json.dumps({"seed": seed, "identities": identities}))
    with pytest.raises(UserError, match=r"people\.json must have a seed of 0 or more"):
        open_pairs(tmp_path, "train", 64, 32)


def test_a_run_goes_on_with_the_pairs_it_began_with_and_no_others(run, argv, fashion: Path, tmp_path, fails) -> None:
    data = tmp_path / "data"
    shutil.copytree(fashion, data)
    folder = run("other pairs", "--data", data, "--steps", 2)
    pairs = data / "fasion-resize-pairs-train.csv"
    lines = pairs.read_text().splitlines()
    for others, found in ((lines[:-1], "199 pairs"), ([lines[0], *lines[:0:-1]], "200 pairs")):
        pairs.write_text("\n".join(others) + "\n")
        fails(train, "--out", folder, "--resume", "--steps", 3, words=["trained on 200 pairs", f"found {found}"])
    pairs.write_text("\n".join(lines) + "\n")
    shutil.move(data, tmp_path / "moved")  # the same pairs at another place
    assert train(["--out", str(folder), "--resume", "--steps", "3", "--data", str(tmp_path / "moved")]) == 0


def test_the_sum_of_synthetic_people_tells_their_pairs_apart() -> None:
    plans = [(3, 2, 0), (3, 3, 0), (2, 2, 0), (3, 2, 7)]
    sums = [listing_sum(PeoplePairs(*plan, image_size=64, source_size=32)) for plan in plans]
    assert len(set(sums)) == len(plans) and sums[0] == listing_sum(PeoplePairs(3, 2, 0, 32, 16))
    assert sums[0].startswith("6 pairs of sha256 ")


def test_a_longer_run_says_what_becomes_of_the_learning_rate(run, capsys) -> None:
    folder = run("longer", "--steps", 2, "--warmup", 0, "--save-every", 1)
    capsys.readouterr()
    assert train(["--out", str(folder), "--resume", "--steps", "6"]) == 0
    said = capsys.readouterr().out
    rates = {line["step"]: line["lr"] for line in logged(folder)}
    assert rates[2] == 1e-4 and rates[3] == 1e-3
    assert "6 steps instead of 2 move the fall of the learning rate from step 1 to 3" in said
    assert f"step 3 has {rates[3]:g}, where the run began with {rates[2]:g}" in said
    for path in sorted((folder / "checkpoints").iterdir()):
        if path.name > "step_00000005":
            path.unlink()
    assert train(["--out", str(folder), "--resume"]) == 0
    assert "learning rate" not in capsys.readouterr().out


def test_a_run_of_the_same_length_or_at_its_end_says_nothing_of_the_rate() -> None:
    options = TrainConfig(preset="tiny", lr=1e-3, warmup=0)
    assert (
        moved_decay(5, None, 10, options) is moved_decay(5, 10, 10, options) is moved_decay(10, 8, 10, options) is None
    )
    assert "step 1 has 0.001, where the run began with 0.001" in str(moved_decay(0, 10, 20, options))
    assert "from step 10 to 5: step 8 has 0.0001, where the run began with 0.001" in str(
        moved_decay(7, 20, 10, options)
    )


@pytest.mark.parametrize(
    "options, words",
    [
        (["--ema", 1], ["--ema must be below 1"]),
        (["--steps", 2, "--epochs", 0], ["give one of --steps 2 and --epochs 0"]),
        (["--epochs", 0], ["--epochs must be more than 0"]),
        (["--lr", 0], ["--lr must be more than 0"]),
    ],
)
def test_options_that_would_train_nothing_are_refused(argv, fails, options: list, words: list[str]) -> None:
    fails(train, *argv("nothing"), *options, words=words)


def test_lists_that_are_written_are_checked_like_those_that_are_read(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [("../a.jpg", "../a.jpg")], {})
    with pytest.raises(UserError, match="without folders"):
        FashionPairs(tmp_path, "train", 64, 32)
