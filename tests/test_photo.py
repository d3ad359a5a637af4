"""Windows of photos and the way back, joints found in photos, the preview."""

import sys
from pathlib import Path

import litert
import numpy as np
import pytest
from PIL import Image
from references import DATA

import cfld
from cfld import sample
from cfld.data.own_photos import make_pairs
from cfld.edit.__main__ import main as edit_main
from cfld.photos import preview
from cfld.photos.__main__ import main as preview_main
from cfld.photos.crop import FEATHER, Crop, border_colour, fit, fitted, whole
from cfld.photos.feather import depth, ramp
from cfld.photos.keypoints import joints_on, read_annotations, read_joints, read_pose
from cfld.pose import FRAME, JOINT_COLOURS, JOINTS
from cfld.sampling import SamplingConfig
from cfld.tools.cli import UserError
from cfld.tools.pictures import read_image

CSV = DATA / "fashion" / "fasion-resize-annotation-test.csv"
NAME = "fashionMENTees_Tanksid0080001801_1front.jpg"
PHOTO = DATA / "fashion" / "MEN" / "Tees_Tanks" / "id_00800018" / "01_1_front.jpg"
STANDING = np.array([[30.0, 60], [230, 116], [130, 88]])  # of a person as they fill the frame, (y, x)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.array(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("size", [(256, 176), (512, 352), (1101, 750), (1101, 749)])
def test_a_photo_of_deepfashions_shape_is_taken_as_it_is(size: tuple[int, int]) -> None:
    photo = picture(size[1], size[0])
    for joints in (None, STANDING / 3):
        assert fit(size, joints) == whole(size)
        assert fit(size, joints).cut(photo) is photo
    assert fitted(photo) is photo


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 3), (4, 3), (3, 4), (16, 9), (9, 16)])
def test_any_other_photo_gives_a_window_of_exactly_11_to_16(shape: tuple[int, int]) -> None:
    size = (shape[0] * 61, shape[1] * 61)
    for joints in (None, STANDING / 2):
        crop = fit(size, joints)
        assert crop != whole(size) and crop.height * 11 == crop.width * 16
        assert crop.cut(picture(size[1], size[0])).size == (crop.width, crop.height)


def test_without_joints_all_of_the_photo_is_in_the_middle_of_the_window_in_a_rim_of_its_own_colour() -> None:
    photo = picture(300, 200)
    photo.paste((240, 230, 220), (0, 0, 300, 3))
    photo.paste((240, 230, 220), (0, 197, 300, 200))
    assert border_colour(photo) == (240, 230, 220)
    crop = fit((200, 300))
    assert crop == Crop(-124, -4, 448, 308)  # 28 units of 16 and 11
    window = pixels(crop.cut(photo))
    assert np.array_equal(window[124:324, 4:304], pixels(photo))
    window[124:324, 4:304] = (240, 230, 220)
    assert (window == (240, 230, 220)).all()


@pytest.mark.parametrize("scale", [2, 3.7, 5])
def test_a_person_in_a_larger_photo_is_framed_as_in_deepfashions(scale: float) -> None:
    joints = STANDING * scale + [300, 700]
    keypoints = fit((2000, 3000), joints).to_frame(joints)
    assert np.abs(keypoints - STANDING).max() <= 5
    assert keypoints[:, 0].min() >= 0.11 * 256 and keypoints[:, 0].max() <= 0.91 * 256


def test_joints_far_apart_sideways_stay_in_the_window() -> None:
    joints = np.array([[500.0, 400], [520, 1200], [700, 800]])  # arms stretched out
    keypoints = fit((1500, 2000), joints).to_frame(joints)
    assert (keypoints >= 0).all() and keypoints[:, 1].min() >= 0.09 * 176 and keypoints[:, 1].max() <= 0.91 * 176


def test_the_window_stays_in_the_photo_where_the_photo_is_large_enough_and_is_never_larger_than_all_of_it() -> None:
    size = (1000, 1500)
    for corner in ([0, 0], [0, 1380], [750, 0], [750, 1300]):
        crop = fit(size, STANDING + corner)
        assert 0 <= crop.top <= 1000 - crop.height and 0 <= crop.left <= 1500 - crop.width
        assert (crop.to_frame(STANDING + corner) >= 0).all()
    close = np.array([[2.0, 2], [999, 1499]])  # a person who fills the photo
    assert fit(size, close).height == fit(size).height and (fit(size, close).to_frame(close) >= 0).all()
    tall = fit((1000, 200), np.array([[100.0, 90], [900, 110]]))
    assert tall.left < 0 and tall.left + tall.width > 200  # all columns are in


def test_missing_joints_do_not_count_and_those_outside_the_window_become_missing() -> None:
    joints = np.array([[300.0, 300], [-1, -1], [500, 380], [400, -1]])
    crop = fit((1000, 1000), joints)
    assert crop == fit((1000, 1000), joints[[0, 2]])
    keypoints = crop.to_frame(joints)
    assert keypoints.dtype == np.float32 and (keypoints[[1, 3]] == -1).all() and (keypoints[[0, 2]] > 0).all()
    top, left, bottom = crop.top, crop.left, crop.top + crop.height
    beyond = np.array([[top - 1, 320], [300, left - 0.1], [bottom, 320], [top, left]])
    assert (crop.to_frame(beyond) < 0).all(axis=1).tolist() == [True, True, True, False]


def test_the_last_bits_of_joints_do_not_move_the_window() -> None:
    joints = np.array([[100.0, 300], [349.6, 380]])  # 12 to 90 % of a height of exactly 320
    crop = fit((1000, 1000), joints)
    assert crop.height == 320
    for error in (-1e-9, 1e-9):
        for corner in np.ndindex(2, 2):
            moved_a_little = joints.copy()
            moved_a_little[corner] += error
            assert fit((1000, 1000), moved_a_little) == crop


CROPS = [Crop(0, 0, 1101, 750), Crop(37, 205, 320, 220), Crop(-40, -3, 480, 330)]


@pytest.mark.parametrize("crop", CROPS)
def test_joints_go_to_the_frame_and_back(crop: Crop) -> None:
    inside = np.random.default_rng(0).uniform(0, 0.999, (18, 2)) * [crop.height, crop.width]
    joints = np.maximum(inside + np.array([crop.top, crop.left]), 0)
    joints[[3, 9]] = -1
    keypoints = crop.to_frame(joints)
    assert np.allclose(crop.to_photo(keypoints), joints, atol=1e-3)
    assert ((keypoints < FRAME) | (keypoints == -1)).all()
    assert np.array_equal(crop.to_frame(crop.to_photo(crop.to_frame(joints))), keypoints)


@pytest.mark.parametrize("crop", CROPS)
def test_what_is_cut_is_pasted_back_pixel_by_pixel(crop: Crop) -> None:
    photo = picture(750, 1101)
    assert np.array_equal(pixels(crop.paste(photo, crop.cut(photo))), pixels(photo))
    other = crop.cut(picture(750, 1101, seed=1))
    changed = (pixels(crop.paste(photo, other)) != pixels(photo)).any(axis=2)
    rows, columns = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
    assert (rows[0], columns[0]) == (max(crop.top, 0), max(crop.left, 0))
    assert (rows[-1], columns[-1]) == (
        min(crop.top + crop.height, 1101) - 1,
        min(crop.left + crop.width, 750) - 1,
    )


@pytest.mark.parametrize("size", [(256, 176), (512, 352)])
def test_a_picture_of_either_size_is_pasted_back_where_its_joints_are(size: tuple[int, int]) -> None:
    photo, crop = Image.new("RGB", (900, 700), "white"), Crop(60, 200, 480, 330)
    painted = Image.new("RGB", size[::-1], "white")
    y, x = 100, 60  # in the frame
    box = (x * size[1] / 176 - 3, y * size[0] / 256 - 3, x * size[1] / 176 + 3, y * size[0] / 256 + 3)
    painted.paste("black", tuple(map(int, box)))
    dark = np.argwhere(pixels(crop.paste(photo, painted)).sum(axis=2) < 200)
    assert np.abs(dark.mean(axis=0) - crop.to_photo(np.array([[y, x]]))[0]).max() <= 1


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for the extra [pose]."""
    litert.install(monkeypatch, tmp_path / "networks")


@pytest.fixture
def two_people(tmp_path: Path) -> Path:
    """A photo of two people for the stand-in: red at the left, green at the right."""
    photo = Image.new("RGB", (900, 600), "white")
    photo.paste((255, 0, 0), (100, 100, 220, 420))
    photo.paste((0, 255, 0), (600, 200, 700, 500))
    photo.save(tmp_path / "two.png")
    return tmp_path / "two.png"


def test_the_joints_of_each_person_in_a_photo_are_found(networks: None, two_people: Path) -> None:
    for person, (left, right) in enumerate(((100, 220), (600, 700))):
        joints, size = read_joints(str(two_people), person=person, min_confidence=0)
        assert size == (600, 900) and (joints >= 0).all()
        assert left <= joints[:, 1].min() and joints[:, 1].max() <= right
    missing = (read_joints(str(two_people))[0] < 0).any(axis=1)  # below 0.5, unless another bound is given
    assert [JOINTS[i] for i in missing.nonzero()[0]] == ["nose", "right eye", "left eye"]
    keypoints = read_pose(str(two_people), min_confidence=0)
    assert keypoints[:, 0].min() >= 0.11 * 256 and keypoints[:, 0].max() <= 0.91 * 256
    with pytest.raises(UserError, match=r"two.png: --person must be within 0 .. 1, found 2"):
        read_pose(str(two_people), person=2)


def test_a_photo_without_people_or_without_what_finds_them_is_one_line(
    networks: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails
) -> None:
    Image.new("RGB", (90, 60), "white").save(tmp_path / "empty.png")
    argv = [tmp_path / "empty.png", "--out", tmp_path / "p.png"]
    fails(preview_main, *argv, words=["empty.png", "no person was found"])
    monkeypatch.setenv("CFLD_POSE_MODELS", str(tmp_path))
    fails(preview_main, *argv, words=["empty.png", "no such file", "cfld.convert fetch pose"])
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    fails(preview_main, *argv, words=["empty.png", "not installed", "pip install ai-edge-litert"])


def test_the_mask_of_a_person_is_kept(networks: None, two_people: Path, tmp_path: Path, fails) -> None:
    argv = [two_people, "--person", 1, "--out", tmp_path / "p.png", "--mask", tmp_path / "m.png"]
    assert preview_main([str(a) for a in argv]) == 0
    mask, photo = Image.open(tmp_path / "m.png"), Image.open(two_people)
    assert mask.size == photo.size and mask.mode == "L"
    green = (np.array(photo) == (0, 255, 0)).all(axis=2)
    assert (np.array(mask) > 0)[green].mean() >= 0.95 and (np.array(mask) > 0)[~green].mean() <= 0.01
    fails(preview_main, *argv, words=["p.png already exists"])
    argv[1:5] = ["--person", 2, "--out", tmp_path / "q.png"]
    fails(preview_main, *argv, "--force", words=["two.png", "--person must be within 0 .. 1, found 2"])
    fails(preview_main, *argv, "--force", "--pose", tmp_path / "p.json", words=["--mask", "--pose"])


def test_litert_is_imported_only_for_a_photo() -> None:
    assert not any(name.startswith("ai_edge_litert") for name in sys.modules)


def moved(keypoints: np.ndarray) -> np.ndarray:
    """Keypoints of the photo in the pixels of wide()'s larger one."""
    return np.where(keypoints >= 0, keypoints + np.array([50, 400]), -1)


def wide(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A photo of 11:16 within one of 640x360, its joints as a file of the larger one's pixels, and as keypoints."""
    keypoints = read_annotations(CSV)[NAME]
    photo = Image.new("RGB", (640, 360), (30, 60, 90))
    photo.paste(Image.open(PHOTO), (400, 50))
    photo.save(tmp_path / "wide.png")
    points = [[x + 400, y + 50, 1] if min(y, x) >= 0 else [0, 0, 0] for y, x in keypoints.tolist()]
    np.save(tmp_path / "wide.npy", points)
    return tmp_path / "wide.png", tmp_path / "wide.npy", keypoints


def test_the_preview_shows_joints_sides_and_window_in_the_photos_own_pixels(tmp_path: Path, capsys) -> None:
    photo, file, keypoints = wide(tmp_path)
    assert preview_main([str(photo), "--pose", str(file), "--out", str(tmp_path / "p.png")]) == 0
    shown, before = pixels(Image.open(tmp_path / "p.png")), pixels(Image.open(photo))
    joints = moved(keypoints)
    crop = fit((360, 640), joints)
    said = f"window: {crop.width}x{crop.height} from x = {crop.left}, y = {crop.top} of 640x360"
    assert said in capsys.readouterr().out
    assert shown.shape == before.shape and crop.top >= 0 and crop.left + crop.width <= 640
    assert np.abs(shown[:, : crop.left] - before[:, : crop.left] // 2).max() <= 1  # dimmed
    elbow = JOINTS.index("left elbow")
    y, x = joints[elbow].round().astype(int)
    assert tuple(shown[y, x]) == JOINT_COLOURS[elbow]
    inside = shown[crop.top + 4 : crop.top + crop.height - 4, crop.left + 4 : crop.left + crop.width - 4]
    same = inside == before[crop.top + 4 : crop.top + crop.height - 4, crop.left + 4 : crop.left + crop.width - 4]
    assert 0.5 < same.all(axis=2).mean() < 1


def test_the_preview_is_larger_than_the_photo_where_the_window_is(tmp_path: Path) -> None:
    photo = picture(300, 200)
    joints = np.full((18, 2), -1.0)
    joints[[0, 10]] = [[2, 150], [198, 150]]
    crop = fit((200, 300), joints)
    shown = preview.preview(photo, joints, crop)
    assert crop.top < 0 and shown.size == (300, crop.height)


def test_joints_found_in_a_photo_are_kept_as_openposes_json(networks: None, two_people: Path, tmp_path: Path) -> None:
    out = tmp_path / "second.json"
    assert preview_main([str(two_people), "--person", "1", "--out", str(out)]) == 0
    kept, found = read_joints(str(out)), read_joints(str(two_people), person=1)
    assert kept[1] == found[1] and np.abs(kept[0] - found[0]).max() <= 0.005


def test_the_preview_refuses_what_it_cannot_do(tmp_path: Path, fails) -> None:
    photo, file, _ = wide(tmp_path)
    fails(preview_main, photo, "--pose", file, "--out", tmp_path / "p.txt", words=["p.txt", ".png"])
    fails(preview_main, photo, "--pose", file, "--out", photo, words=["wide.png already exists", "--force"])
    argv = (photo, "--pose", file, "--out", tmp_path / "p.png")
    fails(preview_main, *argv, "--pose-size", "640x640", words=["wide.npy", "640x640", "shape of the photo, 640x360"])
    assert not (tmp_path / "p.png").exists()


def test_joints_of_a_smaller_copy_are_scaled_to_the_photo() -> None:
    keypoints = read_annotations(CSV)[NAME]
    joints = joints_on(picture(352, 512), f"{CSV}#{NAME}")
    assert np.array_equal(joints, np.where(keypoints >= 0, 2 * keypoints, -1))
    with pytest.raises(UserError, match=r"annotation-test.csv#.*176x256, must have the shape of the photo, 352x352"):
        joints_on(picture(352, 352), f"{CSV}#{NAME}")


def run(folder: Path, out: Path, *more: object) -> bytes:
    argv = ["--model", folder, "--out", out, "--steps", 2, "--device", "cpu", "--force", *more]
    assert sample.main([str(a) for a in argv]) == 0
    return Image.open(out).tobytes()


def test_the_command_cuts_the_source_around_its_joints_and_the_pose_as_its_photo_would_be(
    micro_folder: Path, tmp_path: Path
) -> None:
    photo, file, keypoints = wide(tmp_path)
    joints = moved(keypoints)
    crop = fit((360, 640), joints)
    crop.cut(read_image(photo)).save(tmp_path / "cut.png")
    np.save(tmp_path / "cut.npy", np.concatenate([crop.to_frame(joints)[:, ::-1], np.ones((18, 1))], axis=1).clip(0))
    by_hand = run(micro_folder, tmp_path / "a.png", "--source", tmp_path / "cut.png", "--pose", tmp_path / "cut.npy")
    pose = ("--pose", file, "--pose-size", "640x360")
    assert run(micro_folder, tmp_path / "b.png", "--source", photo, "--source-pose", file, *pose) == by_hand
    assert run(micro_folder, tmp_path / "c.png", "--source", photo, *pose, "--precision", "fp32") != by_hand  # padded
    model, vae = cfld.load(micro_folder)
    padded = cfld.generate(model, vae, read_image(photo), crop.to_frame(joints), SamplingConfig(steps=2))[0]
    assert np.abs(pixels(padded) - pixels(Image.open(tmp_path / "c.png"))).max() <= 2


def test_the_command_takes_a_photo_as_its_pose(
    networks: None, two_people: Path, micro_folder: Path, tmp_path: Path
) -> None:
    assert preview_main([str(two_people), "--person", "1", "--out", str(tmp_path / "pose.json")]) == 0
    source = ("--source", PHOTO)
    by_file = run(micro_folder, tmp_path / "a.png", *source, "--pose", tmp_path / "pose.json")
    by_photo = run(micro_folder, tmp_path / "b.png", *source, "--pose", two_people, "--person", 1)
    first = run(micro_folder, tmp_path / "c.png", *source, "--pose", two_people)
    assert by_file == by_photo != first


def test_frames_of_a_video_share_one_window(tmp_path: Path) -> None:
    steps = [STANDING + np.array([100, x]) for x in (100, 300, 500)]  # a person who walks to the right
    files = []
    for number, joints in enumerate(steps):
        points = np.zeros((18, 3))
        points[:3] = np.concatenate([joints[:, ::-1], np.ones((3, 1))], axis=1)
        np.save(tmp_path / f"{number}.npy", points)
        files.append(str(tmp_path / f"{number}.npy"))
    found = [read_joints(file, (720, 1280)) for file in files]
    alone, together = sample.in_windows(found), sample.in_windows(found, together=True)
    assert np.abs(alone[0] - alone[2]).max() <= 1  # each in the middle of its own window
    assert (np.diff(together[:, 0, 1]) > 10).all() and np.ptp(together[:, 0, 0]) == 0


def test_own_photos_of_any_shape_are_cut_for_training(tmp_path: Path) -> None:
    source, file, keypoints = wide(tmp_path)
    root = tmp_path / "mine"
    for name in ("a", "b"):
        (root / "ann").mkdir(parents=True, exist_ok=True)
        (root / "ann" / f"{name}.png").write_bytes(source.read_bytes())
        (root / "ann" / f"{name}.npy").write_bytes(file.read_bytes())
    assert make_pairs(root, 0, 0)["train pairs"] == 2
    joints = moved(keypoints)
    crop = fit((360, 640), joints)
    stored = read_image(root / "train_highres" / "ann--a.png")
    assert stored.size == (crop.width, crop.height)
    assert np.array_equal(pixels(stored), pixels(crop.cut(read_image(source))))
    annotated = read_annotations(root / "fasion-resize-annotation-train.csv")["ann--a.png"]
    assert np.allclose(annotated, crop.to_frame(joints), atol=0.01)


def test_editing_a_wide_photo_changes_nothing_outside_the_mask(micro_folder: Path, tmp_path: Path) -> None:
    photo, file, _ = wide(tmp_path)
    mask = Image.new("L", (640, 360))
    mask.paste(255, (460, 120, 510, 200))
    mask.save(tmp_path / "mask.png")
    argv = ["edit", "--model", micro_folder, "--source", PHOTO, "--reference", photo, "--pose", file, "--device", "cpu"]
    argv += ["--steps", 2, "--pose-size", "640x360", "--mask", tmp_path / "mask.png", "--out", tmp_path / "out.png"]
    assert edit_main([str(a) for a in argv]) == 0
    changed = (pixels(Image.open(tmp_path / "out.png")) != pixels(Image.open(photo))).any(axis=2)
    assert changed.shape == (360, 640) and changed[120:200, 460:510].mean() > 0.9
    changed[120:200, 460:510] = False
    assert not changed.any()


def test_a_mask_that_misses_the_person_is_named(micro_folder: Path, tmp_path: Path, fails) -> None:
    photo, file, _ = wide(tmp_path)
    mask = Image.new("L", (640, 360))
    mask.paste(255, (0, 0, 20, 10))
    mask.save(tmp_path / "mask.png")
    argv = ["edit", "--model", micro_folder, "--source", PHOTO, "--reference", photo, "--pose", file, "--device", "cpu"]
    argv += ["--pose-size", "640x360", "--mask", tmp_path / "mask.png", "--out", tmp_path / "out.png"]
    fails(edit_main, *argv, words=["mask.png", "white on the person", "200 of its 200 white pixels"])


def test_a_single_joint_is_not_taken_for_a_whole_person() -> None:
    crop = fit((1000, 1000), np.array([[500.0, 500.0], [-1, -1]]))
    assert crop.height >= 1000 / 16 and abs(crop.width / crop.height - 11 / 16) < 1e-9


def test_a_panorama_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(UserError, match="at most 134,217,728 pixels, found 20009x29104 around a photo of 20000x2000"):
        fitted(Image.new("L", (20000, 2000)))


def test_a_soft_edge_rises_from_the_border_to_its_width_and_no_further() -> None:
    inside = np.zeros((30, 40), bool)
    inside[5:25, 8:32] = True
    for width in (0, 1, 4, 7.5):
        weights = ramp(inside, width)
        assert (weights[~inside] == 0).all() and (weights[inside] > 0).all()
        row = weights[15, 8:20]
        assert np.allclose(row, np.minimum(np.arange(1, 13) / (min(width, 5) + 1), 1))  # 5 is half the mask's depth
        assert np.array_equal(weights, weights[::-1]) and np.array_equal(weights[:, 8:32], weights[:, 8:32][:, ::-1])
    assert np.array_equal(ramp(inside, 0), inside)


def test_the_depth_in_a_mask_is_the_way_to_the_next_pixel_outside() -> None:
    inside = np.random.default_rng(0).random((12, 9)) < 0.9
    outside = np.argwhere(~inside)
    for place in np.ndindex(inside.shape):
        assert depth(inside)[place] == np.abs(outside - place).sum(axis=1).min()
    assert np.isinf(depth(np.ones((3, 4), bool))).all() and not depth(np.zeros((3, 4), bool)).any()


def test_a_thin_mask_is_whole_in_its_middle_and_one_to_the_photos_edge_is_hard_there() -> None:
    thin = np.zeros((20, 20), bool)
    thin[9:12] = True
    assert (ramp(thin, 100)[10] == 1).all() and ramp(thin, 100)[9].max() < 1
    left = np.zeros((20, 20), bool)
    left[:, :10] = True
    assert (ramp(left, 4)[:, :5] == 1).all() and (ramp(np.ones((5, 5), bool), 4) == 1).all()


def test_a_pasted_window_has_a_soft_edge_unless_switched_off() -> None:
    photo, image, crop = (
        Image.new("RGB", (200, 400), "black"),
        Image.new("RGB", (110, 160), "white"),
        Crop(40, 50, 160, 110),
    )
    hard = pixels(crop.paste(photo, image, feather=0))
    assert (
        set(np.unique(hard)) == {0, 255} and (hard[40:200, 50:160] == 255).all() and hard.sum() == 255 * 3 * 160 * 110
    )
    soft = pixels(crop.paste(photo, image))
    width = round(FEATHER * 160)
    changed = (soft != hard).any(axis=2)
    assert changed[40:200, 50:160].any() and not changed[40 + width : 200 - width, 50 + width : 160 - width].any()
    changed[40:200, 50:160] = False
    assert not changed.any()
    steps = np.abs(np.diff(soft[120, :, 0].astype(int)))
    assert steps.max() <= 255 / (width + 1) + 1
    assert np.array_equal(
        pixels(whole((160, 110)).paste(image, Image.new("RGB", (110, 160), "red"))),
        pixels(Image.new("RGB", (110, 160), "red")),
    )
