"""DeepFashion's layout: flattening, checking, pairs, and the order of training."""

import errno
import json
import os
import shutil
from itertools import chain
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import micro_model
from PIL import Image
from references import DATA, relative_error

from cfld.data.__main__ import main
from cfld.data.batch import StepOrder, collate, step_batches
from cfld.data.cache import Cache
from cfld.data.deepfashion import flat_name, line_of, prepare, read_split, write_split
from cfld.data.encode import manifest
from cfld.data.pairs import FashionPairs, open_pairs
from cfld.folder import save
from cfld.photos.pixels import to_range
from cfld.tools.cli import UserError
from cfld.tools.files import writing
from cfld.tools.tensors import read_safetensors


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The sample photos as they are unpacked."""
    root = tmp_path / "my data" / "unpacked"
    shutil.copytree(DATA / "fashion", root)
    return root


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("WOMEN/Tees_Tanks/id_00007838/05_7_additional.jpg", "fashionWOMENTees_Tanksid0000783805_7additional.jpg"),
        ("MEN/Denim/id_00000080/01_1_front.jpg", "fashionMENDenimid0000008001_1front.jpg"),
        ("WOMEN/Graphic_Tees/id_00001234/02_6_flat.jpg", "fashionWOMENGraphic_Teesid0000123402_6flat.jpg"),
    ],
)
def test_names_are_flattened_as_the_lists_have_them(path: str, name: str) -> None:
    assert flat_name(Path(path)) == name


def test_preparing_flattens_links_and_counts(raw: Path) -> None:
    counts = prepare(raw)
    assert counts["train photos"] == 52 and counts["test photos"] == 10
    assert counts["train pairs"] == 200 and counts["test pairs"] == 16
    assert counts["train photos without annotation"] == 2  # product shots
    first = raw / "MEN" / "Jackets_Vests" / "id_00800001" / "01_1_front.jpg"
    assert os.path.samefile(first, raw / "train_highres" / flat_name(first.relative_to(raw)))
    assert prepare(raw) == counts  # again


def test_the_other_spelling_of_the_files_is_read(raw: Path) -> None:
    for path in raw.glob("fasion-*"):
        path.rename(path.with_name(path.name.replace("fasion", "fashion")))
    assert prepare(raw)["train pairs"] == 200


def test_a_missing_photo_is_named_with_its_line(raw: Path, fails) -> None:
    name = (raw / "train.lst").read_text().splitlines()[6]
    (raw / "train.lst").write_text(
        (raw / "train.lst").read_text().replace(name, "fashionMENDenimid0000000101_1front.jpg")
    )
    fails(main, "prepare", raw, words=["train.lst, line 7", "fashionMENDenimid0000000101_1front.jpg"])


def test_a_joint_list_of_17_is_named_with_its_line(raw: Path, fails) -> None:
    edit(raw / "fasion-resize-annotation-train.csv", ": [", ": [3, ")
    fails(main, "prepare", raw, words=["fasion-resize-annotation-train.csv, line 2", "18 numbers, found 19"])
    path = raw / "fasion-resize-annotation-test.csv"
    line = path.read_text().splitlines()[1]
    edit(path, line, line[: line.rindex(",")] + "]")
    shutil.copy(DATA / "fashion" / "fasion-resize-annotation-train.csv", raw)
    fails(main, "prepare", raw, words=["fasion-resize-annotation-test.csv, line 2", "18 numbers, found 17"])


def test_a_pair_of_a_photo_that_is_not_listed_or_not_annotated_is_named(raw: Path, fails) -> None:
    pairs = raw / "fasion-resize-pairs-train.csv"
    text = pairs.read_text()
    pairs.write_text(text + "nobody.jpg,nobody.jpg\n")
    fails(main, "prepare", raw, words=["pairs-train.csv, line 202", "nobody.jpg", "train_highres"])
    flat = next(name for name in (raw / "train.lst").read_text().split() if "6flat" in name)
    pairs.write_text(text + f"{flat},{flat}\n")
    fails(main, "prepare", raw, words=["pairs-train.csv, line 202", flat, "annotation"])


def test_an_annotated_photo_that_no_list_has_is_flattened_too_and_a_blank_line_does_not_shift_numbers(
    raw: Path, fails
) -> None:
    path = raw / "train.lst"
    names = path.read_text().splitlines()
    path.write_text("\n".join(["", *names[1:]]))
    prepare(raw)
    assert (raw / "train_highres" / names[0]).is_file()
    path.write_text("\n".join(["", *names[1:], "nobody.jpg"]))
    fails(main, "prepare", raw, words=["train.lst, line 53", "nobody.jpg"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a1.jpg\na.jpg\n", 2),
        ("from,to\na1.jpg,b.jpg\nb.jpg, a.jpg\n", 3),
        ("name:keypoints_y:keypoints_x\naa.jpg: [1]: [2]\na.jpg: [1]: [2]\n", 3),
        ("first, a1.jpg\nfirst, a.jpg\n", 2),
    ],
)
def test_the_line_of_a_name_is_not_that_of_a_longer_name(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "list").write_text(text)
    assert line_of(tmp_path / "list", "a.jpg") == line


def test_lists_are_written_as_they_are_read(tmp_path: Path) -> None:
    joints = np.full((18, 2), -1.0)
    joints[0] = 4, 2.5
    (tmp_path / "test_highres").mkdir()
    (tmp_path / "test_highres" / "a.jpg").write_bytes(b"12345")
    write_split(tmp_path, "test", [("a.jpg", "a.jpg")], {"a.jpg": joints, "b.jpg": joints.astype(int)})
    assert (tmp_path / "test.lst").read_text() == "a.jpg\nb.jpg\n"
    assert (tmp_path / "fasion-resize-pairs-test.csv").read_text() == "from,to\na.jpg,a.jpg\n"
    lines = (tmp_path / "fasion-resize-annotation-test.csv").read_text().splitlines()
    assert lines[0] == "name:keypoints_y:keypoints_x" and lines[2].startswith("b.jpg: [4, -1, -1")
    assert lines[1].startswith("a.jpg: [4.0, -1.0") and ": [2.5, -1.0" in lines[1]
    found = read_split(tmp_path, "test")
    assert (found.pairs, found.photos, found.sizes) == ([("a.jpg", "a.jpg")], ["a.jpg"], [5])
    assert np.array_equal(found.keypoints_of("a.jpg"), joints) and found.keypoints.shape == (1, 18, 2)


def test_text_in_another_encoding_is_named(raw: Path, fails) -> None:
    path = raw / "fasion-resize-annotation-train.csv"
    path.write_bytes(b"\xff\xfe" + path.read_bytes())
    fails(main, "prepare", raw, words=["fasion-resize-annotation-train.csv", "UTF-8"])


def test_other_mistakes_are_one_line(raw: Path, tmp_path: Path, fails) -> None:
    fails(main, "prepare", tmp_path / "nowhere", words=["nowhere", "no such folder"])
    (raw / "fasion-resize-pairs-test.csv").unlink()
    fails(main, "prepare", raw, words=["fasion-resize-pairs-test.csv", "fashion-resize-pairs-test.csv"])
    (raw / "train.lst").unlink()
    fails(main, "prepare", raw, words=["train.lst", "no such file"])


def test_a_pair_is_pils_bicubic_stretch_to_squares(fashion: Path) -> None:
    pairs = FashionPairs(fashion, "train", 128, 64)
    source_image, source, target, source_keypoints, *_ = pairs[0]
    name = pairs.pairs[0][0]
    photo = Image.open(fashion / "train_highres" / name).convert("RGB")
    assert photo.size == (176, 256)
    assert np.array_equal(source.permute(1, 2, 0), np.array(photo.resize((128, 128), Image.Resampling.BICUBIC)))
    assert source_image.shape == (3, 64, 64) and target.shape == (3, 128, 128)
    assert source_keypoints.shape == (18, 2)
    assert to_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_a_batch_has_all_sources_first_and_splits_into_whole_pairs(fashion: Path) -> None:
    pairs = FashionPairs(fashion, "train", 32, 32)
    batch = collate([pairs[i]._replace(attributes=torch.tensor([float(i)])) for i in range(4)], range(8, 12))
    assert torch.equal(batch.images[1], pairs[1].source) and torch.equal(batch.images[4 + 1], pairs[1].target)
    first, second = batch.split(2)
    assert torch.equal(second.images[0], pairs[2].source) and torch.equal(second.images[2], pairs[2].target)
    assert torch.equal(second.source_images[1], pairs[3].source_image)
    assert torch.equal(second.keypoints[3], pairs[3].target_keypoints)
    assert second.attributes.tolist() == [[2.0], [3.0]] and second.moments is None
    assert (first.places, second.places) == (range(8, 10), range(10, 12))
    assert collate([pairs[0], pairs[1]]).places == range(2)


def test_a_change_of_a_batch_reaches_every_tensor_and_keeps_the_places(fashion: Path) -> None:
    pairs = FashionPairs(fashion, "train", 32, 32)
    batch = collate([pairs[i] for i in range(2)], range(4, 6))
    moved = batch.to("meta")
    assert (moved.source_images.device, moved.images.device, moved.keypoints.device) == (torch.device("meta"),) * 3
    assert moved.places == range(4, 6) and moved.moments is None and moved.attributes is None


def test_each_photo_of_a_pair_is_read_once_and_only_the_source_is_resized_for_its_encoder(
    fashion: Path, monkeypatch
) -> None:
    pairs = FashionPairs(fashion, "train", 64, 32)
    sizes, read = [], []
    monkeypatch.setattr("cfld.data.pairs.to_square", lambda photo, size: sizes.append(size))
    monkeypatch.setattr("cfld.data.pairs.read_image", lambda path: read.append(path.name))
    pairs[0]
    assert sorted(sizes) == [32, 64, 64] and tuple(read) == pairs.pairs[0]


def test_a_data_set_goes_to_workers_without_a_file_descriptor_for_each_photo(fashion: Path) -> None:
    pairs = FashionPairs(fashion, "train", 32, 32)
    before = len(os.listdir("/proc/self/fd"))
    sent = ForkingPickler.dumps(pairs)  # as to a worker that is spawned: tensors go in shared memory
    assert len(os.listdir("/proc/self/fd")) <= before + 1 and len(sent)
    joints = pairs.lists.keypoints
    assert joints.shape == (len(pairs.photos), 18, 2) and joints.dtype == np.float32
    name = pairs.pairs[3][1]
    assert np.array_equal(pairs[3].target_keypoints, pairs.lists.keypoints_of(name))
    assert np.array_equal(joints[pairs.photos.index(name)], pairs.lists.keypoints_of(name))


def test_a_missing_or_unreadable_photo_is_named(raw: Path) -> None:
    prepare(raw)
    name = FashionPairs(raw, "train", 32, 32).pairs[0][0]
    path = raw / "train_highres" / name
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:500])
    with pytest.raises(UserError, match=name):
        FashionPairs(raw, "train", 32, 32)[0]
    path.unlink()
    with pytest.raises(UserError, match=rf"1 photos .*{name}.*prepare"):
        FashionPairs(raw, "train", 32, 32)
    shutil.rmtree(raw / "train_highres")
    with pytest.raises(UserError, match=r"train_highres.*prepare"):
        FashionPairs(raw, "train", 32, 32)


def test_an_epoch_shows_every_pair_once_and_drops_the_partial_batch() -> None:
    steps = list(StepOrder(pairs=10, batch=3, seed=0, start=0, stop=6))
    first, second = list(chain(*steps[:3])), list(chain(*steps[3:]))
    assert len(set(first)) == len(set(second)) == 9
    assert first != second
    assert first != list(chain(*StepOrder(10, 3, 1, 0, 3)))


def test_a_run_that_begins_in_the_middle_sees_what_the_whole_run_saw() -> None:
    assert list(StepOrder(10, 3, 0, 4, 9)) == list(StepOrder(10, 3, 0, 0, 9))[4:]


def test_processes_divide_a_step_among_them() -> None:
    whole = StepOrder(10, 4, 0, 0, 5)
    parts = [StepOrder(10, 4, 0, 0, 5, places) for places in (range(2), range(2, 4))]
    assert [a + b for a, b in zip(*parts, strict=True)] == list(whole)


def test_workers_do_not_change_the_batches(fashion: Path) -> None:
    pairs = FashionPairs(fashion, "train", 32, 32)
    order = StepOrder(len(pairs), 4, 0, 0, 3)
    for alone, shared in zip(step_batches(pairs, order, 0), step_batches(pairs, order, 2), strict=True):
        assert torch.equal(alone.images, shared.images)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_has_the_text_that_it_has_without_workers(fashion: Path, workers: int) -> None:
    pairs = FashionPairs(fashion, "train", 32, 32)
    pairs.pairs[5] = ("nobody.jpg", "nobody.jpg")
    pairs.lists.index["nobody.jpg"] = 0
    with pytest.raises(UserError) as error:
        list(step_batches(pairs, StepOrder(len(pairs), len(pairs), 0, 0, 1), workers))
    assert str(error.value) == f"{fashion / 'train_highres' / 'nobody.jpg'}: no such image"


def test_people_from_memory_are_those_of_the_folder(tmp_path: Path) -> None:
    from cfld.people.__main__ import main as write_people

    options = "--identities 2 --poses 3 --seed 5 --supersample 2 --test-fraction 0 --workers 1"
    assert write_people([str(tmp_path / "people"), *options.split()]) == 0
    folder, memory = open_pairs(tmp_path / "people", "train", 64, 32), open_pairs("people:2x3@5", "train", 64, 32)
    assert len(folder) == len(memory) == 12
    for index in (1, 10):
        ours, theirs = memory[index], folder[index]
        for drawn, saved in zip(ours[:3], theirs[:3], strict=True):
            assert (drawn.float() - saved.float()).abs().mean() < 2  # saved as JPEG
        assert torch.equal(ours[3], theirs[3]) and torch.equal(ours[4], theirs[4]) and ours.attributes is None


@pytest.mark.parametrize("place", ["people:10x2@599995", "people:0x2", "people:3x1"])
def test_people_that_must_not_be_trained_on_or_make_no_pair_are_refused(place: str) -> None:
    with pytest.raises(UserError, match=r"59999[59]|1 or more"):
        open_pairs(place, "train", 64, 32)


def test_a_folder_of_people_kept_for_measures_is_not_trained_on(fashion: Path, tmp_path: Path) -> None:
    root = shutil.copytree(fashion, tmp_path / "people")
    (root / "people.json").write_text('{"seed": 600000, "identities": 200}')
    with pytest.raises(UserError, match="599999"):
        open_pairs(root, "train", 64, 32)
    assert len(open_pairs(root, "test", 64, 32))


@pytest.fixture(scope="module")
def cache(fashion: Path, micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache") / "moments"
    assert main(["cache", str(fashion), "--model", str(micro_folder), "--out", str(out), "--precision", "fp32"]) == 0
    return out


def test_a_cache_gives_the_source_image_and_the_moments_of_every_photo(
    fashion: Path, micro_folder: Path, cache: Path
) -> None:
    config, vae = micro_model()[0].config, micro_model()[1]
    pairs = FashionPairs(fashion, "train", config.image_size, config.swin.image_size)
    plain = pairs[3]
    pairs.cache = Cache(cache, manifest(pairs, micro_folder / "vae.safetensors"), pairs.photos)
    cached = pairs[3]
    assert torch.equal(cached.source_image, plain.source_image)
    assert torch.equal(cached.target_keypoints, plain.target_keypoints)
    for found, image in ((cached.source, plain.source), (cached.target, plain.target)):
        moments = torch.cat(vae.moments(to_range(image[None])), dim=1)[0]
        assert found.dtype == torch.float16 and torch.allclose(found.float(), moments, rtol=1e-3, atol=1e-3)
    batch = collate([cached, pairs[4]])
    assert batch.images is None and torch.equal(batch.moments[2], cached.target)
    assert torch.equal(next(batch.split(2)).moments, torch.stack([cached.source, cached.target]))


def test_a_cache_in_the_default_precision_differs_by_its_rounding(
    fashion: Path, micro_folder: Path, cache: Path, tmp_path: Path
) -> None:
    assert main(["cache", str(fashion), "--model", str(micro_folder), "--out", str(tmp_path / "bf16")]) == 0
    (exact,), (rounded,) = (
        [read_safetensors(p)[0]["moments"] for p in f.glob("shard*")] for f in (cache, tmp_path / "bf16")
    )
    assert len(exact) > 8  # more than one encoding
    assert 0 < relative_error(rounded.float(), exact.float()) < 0.02


def test_a_cache_is_continued_and_refused_if_it_is_of_another_vae_or_not_whole(
    fashion: Path, micro_folder: Path, cache: Path, tmp_path: Path, fails
) -> None:
    out, other = shutil.copytree(cache, tmp_path / "moments"), shutil.copytree(micro_folder, tmp_path / "other")
    (shard,) = out.glob("shard*")
    written = shard.read_bytes()
    shard.unlink()
    (out / ".tmp6rU0fb").touch()  # as a kill within a write leaves it
    pairs = FashionPairs(fashion, "train", 64, 32)
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        Cache(out, manifest(pairs, micro_folder / "vae.safetensors"), pairs.photos)
    assert main(["cache", str(fashion), "--model", str(micro_folder), "--out", str(out), "--precision", "fp32"]) == 0
    assert shard.read_bytes() == written and not (out / ".tmp6rU0fb").exists()
    save(other, micro_model()[0], micro_model(seed=9)[1], replace=True)
    fails(main, "cache", fashion, "--model", other, "--out", out, words=["vae", "another cache"])
    fails(main, "cache", fashion, "--model", other, "--out", other, words=["must be empty or made by"])


def test_a_cache_is_of_a_vaes_values_in_whatever_precision_they_are_written(
    fashion: Path, micro_folder: Path, tmp_path: Path
) -> None:
    pairs = FashionPairs(fashion, "train", 64, 32)
    model, vae = micro_model()
    save(tmp_path / "half", model, vae.half())
    save(tmp_path / "whole", model, vae.float())
    vae.encoder.conv_in.bias.data[0] += 1e-3
    save(tmp_path / "other", model, vae)
    files = [tmp_path / name / "vae.safetensors" for name in ("half", "whole", "other")]
    half, whole, other = (manifest(pairs, path) for path in files)
    assert files[0].stat().st_size < files[1].stat().st_size
    assert half == whole and {key for key in half if half[key] != other[key]} == {"vae"}


def own(root: Path, people: tuple[str, ...] = ("ann", "bob", "cem"), photos: int = 2) -> Path:
    """Photos of one's own: a grey picture of 88x128 a photo and in it a nose, a neck and a wrist."""
    for person in people:
        (root / person).mkdir(parents=True)
        for i in range(photos):
            Image.new("RGB", (88, 128), (60 * i, 90, 90)).save(root / person / f"{i}.jpg")
            joints = [0.0] * 54
            joints[:6], joints[12:15] = [44, 20, 1, 44, 30 + i, 1], [80, 90, 0.2]
            content = {"people": [{"pose_keypoints_2d": joints}]}
            (root / person / f"{i}.json").write_text(json.dumps(content))
    return root


def test_photos_of_ones_own_become_pairs_and_the_last_people_are_held_out(tmp_path: Path, capsys) -> None:
    root = own(tmp_path / "mine")
    assert main(["pairs", str(root), "--min-confidence", "0.5"]) == 0
    assert "2 test pairs" in capsys.readouterr().out
    train, test = (FashionPairs(root, split, 64, 32) for split in ("train", "test"))
    ann, bob = ([f"{name}--{i}.jpg" for i in (0, 1)] for name in ("ann", "bob"))
    assert train.pairs == [(ann[0], ann[1]), (ann[1], ann[0]), (bob[0], bob[1]), (bob[1], bob[0])]
    assert {name for pair in test.pairs for name in pair} == {"cem--0.jpg", "cem--1.jpg"}
    keypoints = train[0].target_keypoints  # of the second photo, in the frame of 256x176
    assert keypoints[0].tolist() == [40, 88] and keypoints[1].tolist() == [62, 88]
    assert (keypoints[2:] == -1).all()  # the wrist was doubtful
    assert os.path.samefile(root / "ann" / "0.jpg", root / "train_highres" / "ann--0.jpg")


def test_a_photo_that_was_taken_sideways_is_turned_as_its_joints_are(tmp_path: Path) -> None:
    root = own(tmp_path / "mine", ("ann",))
    turned = Image.new("RGB", (128, 88), (0, 0, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter: upright it is 88x128
    turned.save(root / "ann" / "1.jpg", exif=exif)
    assert main(["pairs", str(root), "--test-share", "0"]) == 0
    with Image.open(root / "train_highres" / "ann--1.jpg") as photo:
        assert photo.size == (88, 128)
    assert not (root / "test_highres").exists()


def test_photos_without_joints_are_left_out_by_name(tmp_path: Path, capsys, fails) -> None:
    root = own(tmp_path / "mine", photos=3)
    (root / "ann" / "2.json").unlink()
    (root / "bob" / "2.json").write_text('{"people": []}')
    assert main(["pairs", str(root)]) == 0
    output = capsys.readouterr().out
    assert (
        "ann/2.jpg: must have a file of joints" in output and "bob/2.json" in output and "2 photos left out" in output
    )
    assert len(FashionPairs(root, "train", 64, 32)) == 4
    fails(main, "pairs", root, words=["train.lst already exists", "remove"])


def test_photos_that_cannot_be_written_are_an_error_and_not_left_out(tmp_path: Path, monkeypatch, fails) -> None:
    root = own(tmp_path / "mine")
    Image.new("RGB", (200, 200)).save(root / "bob" / "1.jpg")  # a window is cut out of it

    def full(path: Path, image: Image.Image, **options: object) -> None:
        with writing(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cfld.data.own_photos.save_image", full)
    fails(main, "pairs", root, words=["bob--1.jpg", "No space left"])
    assert not (root / "train.lst").exists()


def test_photos_of_which_no_pair_can_be_made_are_one_line(tmp_path: Path, fails) -> None:
    fails(main, "pairs", tmp_path / "nowhere", words=["no such folder"])
    alone = own(tmp_path / "alone", photos=1)
    fails(main, "pairs", alone, words=["two photos or more", "3 folders"])
    fails(main, "pairs", alone, "--test-share", 1, words=["--test-share", "found 1"])
    last = own(tmp_path / "last")
    (last / "cem" / "1.json").unlink()
    fails(main, "pairs", last, words=["test split", "--test-share 0"])
    comma = own(tmp_path / "comma", ("ann, the first",))
    fails(main, "pairs", comma, words=["ann, the first/0.jpg", "rename"])
    assert not (last / "train.lst").exists()
