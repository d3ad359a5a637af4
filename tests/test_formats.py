"""Files of pose estimators and editors, written as those tools write them. docs/poses.md lists their formats."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from references import DATA

from cfld import people
from cfld.data.__main__ import main as data_main
from cfld.edit.__main__ import main as edit_main
from cfld.photos.clip import pose_files, read_clip
from cfld.photos.estimator import find_people
from cfld.photos.formats import frames_in
from cfld.photos.keypoints import joints_of, read_annotations, read_joints, read_pose
from cfld.photos.layouts import LAYOUTS
from cfld.photos.pixels import pose_picture
from cfld.photos.skeleton import is_skeleton, read_skeleton
from cfld.pose import BONES, FRAME, JOINT_COLOURS, JOINTS
from cfld.tools.cli import UserError

WIDTH, HEIGHT = 768, 1024  # of the photo that the people of these files are in
NECK = JOINTS.index("neck")
FASHION = read_annotations(DATA / "fashion" / "fasion-resize-annotation-train.csv")
JOINTS_IN_FRAME = next(joints for joints in FASHION.values() if (joints >= 0).all()).astype(float)
BODY = JOINTS_IN_FRAME * 3.5 + [60, 70]  # (18, 2) as (y, x) in pixels of the photo
OTHER = JOINTS_IN_FRAME * 2.5 + [200, 20]
PAGE = (Path(__file__).parents[1] / "docs" / "poses.md").read_text()


def rows(name: str, joints: np.ndarray, extra: tuple = (0.0, 0.0, 0.0)) -> list[list[float]]:
    """joints (18, 2) -> a layout's points as x, y, score; what JOINTS lacks gets an extra point."""
    points = [list(extra) for _ in range(LAYOUTS[name].size)]
    for (y, x), place in zip(joints, LAYOUTS[name].places, strict=True):
        if isinstance(place, int):
            points[place] = [float(x), float(y), 0.9]
    return points


def flat(points: list[list[float]]) -> list[float]:
    return [value for point in points for value in point]


def landmark_objects(joints: np.ndarray) -> list[dict[str, float]]:
    return [
        {"x": x / WIDTH, "y": y / HEIGHT, "z": -0.1, "visibility": score}
        for x, y, score in rows("mediapipe", joints, (300.0, 300.0, 0.001))
    ]


def world_objects(joints: np.ndarray) -> list[dict[str, float]]:
    return [{key: value - 0.5 for key, value in each.items()} for each in landmark_objects(joints)]


def comfy(*bodies: np.ndarray, fractions: bool = False) -> dict[str, object]:
    """A frame of the ControlNet nodes: null for what was not looked for, fractions or pixels."""
    unit = np.array([WIDTH, HEIGHT, 0.9] if fractions else [1, 1, 0.9])
    return {
        "people": [
            {
                "pose_keypoints_2d": flat((np.array(rows("openpose", body)) / unit).tolist()),
                "face_keypoints_2d": None,
                "hand_left_keypoints_2d": None,
                "hand_right_keypoints_2d": None,
            }
            for body in bodies
        ],
        "animals": [],
        "canvas_height": HEIGHT,
        "canvas_width": WIDTH,
    }


def openpose(*bodies: np.ndarray, key: str = "pose_keypoints_2d", layout: str = "body25") -> dict:
    others = ("face_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d", "pose_keypoints_3d")
    found = [{"person_id": [-1], key: flat(rows(layout, body)), **{name: [] for name in others}} for body in bodies]
    return {"version": 1.3, "people": found}


def instance(body: np.ndarray, layout: str = "coco") -> dict[str, object]:
    points = np.array(rows(layout, body))
    return {
        "keypoints": points[:, :2].tolist(),
        "keypoint_scores": points[:, 2].tolist(),
        "bbox": [[10.0, 10.0, 700.0, 1000.0]],
        "bbox_score": 0.9,
    }


def coco_annotations() -> dict[str, object]:
    """Of two photos, one of them with an object without a pose, too."""

    def labelled(number: int, image: int, body: np.ndarray | None) -> dict[str, object]:
        points = np.zeros((17, 3)) if body is None else np.array(rows("coco", body)) * [1, 1, 2 / 0.9]
        visible = int((points[:, 2] > 0).sum())
        flat_points = flat(points.round(1).tolist())
        return {
            "id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "num_keypoints": visible,
            "keypoints": flat_points, "bbox": [0, 0, 9, 9],
        }  # fmt: skip

    images = [{"id": 42, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}]
    images += [{"id": 7, "file_name": "b.jpg", "width": WIDTH, "height": HEIGHT}]
    found = [labelled(1, 42, None), labelled(2, 42, BODY), labelled(3, 7, OTHER)]
    return {"info": {}, "images": images, "annotations": found, "categories": [{"id": 1, "name": "person"}]}


def npz(path: Path) -> None:
    points = np.array([rows("coco", BODY)])
    np.savez(path / "p.npz", keypoints=points[..., :2], scores=points[..., 2], boxes=np.zeros((1, 4)))


def nted(path: Path) -> None:
    """As numpy.savetxt of (x, y), in the frame of 256x256; one joint is missing."""
    points = JOINTS_IN_FRAME[:, ::-1] + [40, 0]
    points[4] = -1
    np.savetxt(path / "p.txt", points, fmt="%d")


def dwpose_drawing(body: np.ndarray, hand: bool = True) -> np.ndarray:
    """As ControlNet's tools draw: ellipses of 60 % between the joints, discs of radius 4, dots of a hand in blue."""
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for (a, b), colour in zip(BONES, JOINT_COLOURS, strict=False):
        (y0, x0), (y1, x1) = body[a], body[b]
        length, angle = np.hypot(y1 - y0, x1 - x0), np.degrees(np.arctan2(y1 - y0, x1 - x0))
        middle = (int((x0 + x1) / 2), int((y0 + y1) / 2))
        polygon = cv2.ellipse2Poly(middle, (int(length / 2), 4), int(angle), 0, 360, 1)
        cv2.fillConvexPoly(canvas, polygon, [int(value * 0.6) for value in colour])
    for (y, x), colour in zip(body, JOINT_COLOURS, strict=True):
        cv2.circle(canvas, (int(x), int(y)), 4, colour, thickness=-1)
    if hand:
        for i in range(21):
            place = (int(body[4][1]) + 30 + 5 * (i % 5), int(body[4][0]) + 40 + 5 * (i // 5))
            cv2.line(canvas, place, (place[0] + 5, place[1]), (255, 128, 0), 2)
            cv2.circle(canvas, place, 4, (0, 0, 255), thickness=-1)
        for i in range(60):  # the face
            cv2.circle(canvas, (int(body[0][1]) - 20 + i % 40, int(body[0][0]) + 35 + i // 6), 3, (255, 255, 255), -1)
    return canvas


SIZE = (HEIGHT, WIDTH)
# Rows of the table: what is written, what is asked for, and who is expected.
ROWS: dict[str, tuple[object, str, tuple[int, int] | None, int, np.ndarray]] = {
    "OpenPose 1.2 to 1.7": (openpose(BODY, OTHER), "p.json", SIZE, 1, OTHER),
    "OpenPose 1.0 and 1.1": (openpose(BODY, key="pose_keypoints", layout="openpose"), "p.json", SIZE, 0, BODY),
    "ComfyUI, DWPose, sd-webui-openpose-editor": ([comfy(BODY, OTHER)], "p.json", None, 1, OTHER),
    "the same, several frames": ([comfy(OTHER), comfy(BODY, fractions=True)], "p.json#1", None, 0, BODY),
    "openpose-editor": (
        {"width": WIDTH, "height": HEIGHT, "keypoints": np.rint(np.r_[OTHER, BODY])[:, ::-1].astype(int).tolist()},
        "p.json", None, 1, np.rint(BODY),
    ),
    "COCO results, AlphaPose": (
        [
            {"image_id": image, "category_id": 1, "keypoints": flat(rows("coco", body)), "score": 0.9}
            for image, body in (("1.jpg", OTHER), ("2.jpg", OTHER), ("2.jpg", BODY))
        ],
        "p.json#2.jpg", SIZE, 1, BODY,
    ),
    "COCO annotations": (coco_annotations(), "p.json#a.jpg", None, 0, BODY.round(1)),
    "MMPose's inferencer": ([instance(OTHER), instance(BODY)], "p.json", SIZE, 1, BODY),
    "MMPose's demos": (
        {"meta_info": {"num_keypoints": 133}, "instance_info": [instance(BODY, "wholebody")]}, "p.json", SIZE, 0, BODY
    ),
    "the same, of a video": (
        [{"frame_id": i, "instances": [instance(body, "halpe26")]} for i, body in enumerate((OTHER, BODY))],
        "p.json#1", SIZE, 0, BODY,
    ),
    "MediaPipe's tasks": (
        {"landmarks": [landmark_objects(OTHER), landmark_objects(BODY)], "worldLandmarks": [world_objects(BODY)] * 2},
        "p.json", SIZE, 1, BODY,
    ),
    "MediaPipe's tasks, of a video": (
        [{"landmarks": [landmark_objects(OTHER)]}, {"landmarks": []}, {"landmarks": [landmark_objects(BODY)]}],
        "p.json#2", SIZE, 0, BODY,
    ),
    "MediaPipe's solutions": (
        {"poseWorldLandmarks": world_objects(BODY), "poseLandmarks": landmark_objects(BODY)}, "p.json", SIZE, 0, BODY
    ),
    "MediaPipe's protobuf": ({"landmark": landmark_objects(BODY)}, "p.json", SIZE, 0, BODY),
    "MoveNet and PoseNet in the browser": (
        [
            {"score": 0.9, "keypoints": [{"name": "?", "x": x, "y": y, "score": s} for x, y, s in rows("coco", OTHER)]},
            {
                "score": 0.9,
                "keypoints": [
                    {"part": "?", "position": {"x": x, "y": y}, "score": s} for x, y, s in rows("coco", BODY)
                ],
            },
        ],
        "p.json", SIZE, 1, BODY,
    ),
    "arrays": (json.dumps([rows("coco", OTHER), rows("coco", BODY)]), "p.json", SIZE, 1, BODY),
    "arrays in npz": (npz, "p.npz", SIZE, 0, BODY),
    "arrays of a video": (
        lambda folder: np.save(folder / "p.npy", [[rows("coco", OTHER), rows("coco", who)] for who in (OTHER, BODY)]),
        "p.npy#1", SIZE, 1, BODY,
    ),
    "NTED, PIDM": (nted, "p.txt", None, 0, JOINTS_IN_FRAME),
    "annotations of DeepFashion": (
        f"name:keypoints_y:keypoints_x\na.jpg: {JOINTS_IN_FRAME[:, 0].tolist()}: {JOINTS_IN_FRAME[:, 1].tolist()}\n",
        "p.csv#a.jpg", None, 0, JOINTS_IN_FRAME,
    ),
    "drawn skeletons": (dwpose_drawing(BODY), "p.png", None, 0, np.floor(BODY)),
}  # fmt: skip


def write(folder: Path, content: object, name: str) -> str:
    """Write a row's content -> what --pose takes."""
    path = folder / name.split("#")[0]
    if callable(content):
        content(folder)
    elif isinstance(content, np.ndarray):
        Image.fromarray(content).save(path)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder / name)


@pytest.mark.parametrize("row", ROWS)
def test_each_row_of_the_table_is_read(row: str, tmp_path: Path) -> None:
    content, name, size, person, expected = ROWS[row]
    joints, found = read_joints(write(tmp_path, content, name), size, person)
    assert found == (FRAME if expected is JOINTS_IN_FRAME else SIZE)
    seen = (joints >= 0).all(axis=1)
    seen[NECK] = False  # which not all layouts have
    assert seen.sum() >= 16, JOINTS
    tolerance = 1.0 if row == "drawn skeletons" else 0.01
    assert np.abs(joints - expected)[seen].max() <= tolerance
    if row == "NTED, PIDM":
        assert (joints[4] == -1).all()


def test_the_table_in_the_docs_has_these_rows() -> None:
    table = PAGE[PAGE.index("| written by |") :].split("\n\n")[0].splitlines()[2:]
    assert [re.split(r"\s*\|\s*", line)[1] for line in table] == list(ROWS)


def test_a_file_of_several_images_says_which_there_are(tmp_path: Path) -> None:
    text = write(tmp_path, coco_annotations(), "p.json")
    with pytest.raises(UserError, match=r"p.json: holds 2 images.*such as #a.jpg"):
        read_pose(text)
    with pytest.raises(UserError, match=r"p.json#c: has no image named 'c' among 2, such as a.jpg"):
        read_pose(f"{text}#c")


def test_texts_that_are_not_nteds_need_a_size(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    np.savetxt(path, BODY[:, ::-1], fmt="%.2f")
    with pytest.raises(UserError, match=r"NTED's 18 joints in a frame of 256x256.*--pose-size WxH"):
        read_joints(path)
    assert np.allclose(read_joints(path, SIZE)[0], BODY, atol=0.01)
    path.write_text("a man stands\n")
    with pytest.raises(UserError, match="must be the numbers x y"):
        read_joints(path)


def mutated(value: object, rng: np.random.Generator) -> object:
    """A value of JSON in which one thing, anywhere, is another."""
    odd = (None, True, -1, 0, 1e308, "x", "", [], {}, [[]], [1], {"x": 1}, [None], [[1, 2]], {"keypoints": 5})
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return odd[rng.integers(len(odd))]
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, changed = keys[rng.integers(len(keys))], value.copy()
    if rng.random() < 0.15:
        del changed[key]
    else:
        changed[key] = mutated(value[key], rng)
    return changed


@pytest.mark.parametrize("row", [row for row, (content, *_) in ROWS.items() if isinstance(content, (dict, list))])
def test_damaged_content_is_read_or_refused_in_a_sentence(row: str) -> None:
    content, _, size, *_ = ROWS[row]
    rng, said = np.random.default_rng(len(row)), 0
    for _ in range(300):
        try:
            joints_of(frames_in(mutated(content, rng))[0], size)
        except UserError as error:
            said += 1
            assert str(error) and "\n" not in str(error)
    assert said >= 50


# Drawn skeletons. -----------------------------------------------------------------------------------------------------


def test_our_own_skeletons_are_read_back() -> None:
    for keypoints in list(FASHION.values())[::9]:
        picture = pose_picture(torch.from_numpy(keypoints), (512, 352))
        assert is_skeleton(picture)
        points = read_skeleton(picture)
        seen = points[:, 2] > 0
        there = (keypoints >= 0).all(axis=1)
        assert not seen[~there].any()
        errors = np.abs(points[:, 1::-1] / 2 - keypoints)[seen & there]
        covered = there.sum() - seen.sum()  # by the discs of other joints
        assert covered <= 3 and errors.max() <= 3 and np.median(errors) <= 1


@pytest.mark.parametrize("kind", ["jpeg", "small", "large", "many_dots"])
def test_skeletons_are_read_after_compression_and_resizing(kind: str, tmp_path: Path) -> None:
    image = Image.fromarray(dwpose_drawing(BODY, hand=kind == "many_dots"))
    scale = {"small": 0.6, "large": 2.5}.get(kind, 1)
    if scale != 1:
        size = (round(WIDTH * scale), round(HEIGHT * scale))
        image = image.resize(size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST)
    path = tmp_path / ("p.jpg" if kind == "jpeg" else "p.png")
    image.save(path, **({"quality": 95, "subsampling": 0} if kind == "jpeg" else {}))
    joints, size = read_joints(path)
    assert size == (image.height, image.width)
    seen = (joints >= 0).all(axis=1)
    assert seen.sum() >= 16 and np.abs(joints / scale - BODY)[seen].max() <= 3


def test_photos_and_empty_images_are_no_skeletons() -> None:
    assert not is_skeleton(Image.new("RGB", (64, 64)))
    for seed in range(600_000, 600_004):
        assert not is_skeleton(Image.fromarray(people.draw(seed, 0, limit=people.OWN_SEEDS).image))
    colourful = np.zeros((256, 256, 3), np.uint8)
    colourful[100:140, 100:140] = np.random.default_rng(0).integers(0, 255, (40, 40, 3))
    assert not is_skeleton(Image.fromarray(colourful))


def test_two_drawn_people_are_refused(tmp_path: Path) -> None:
    both = np.maximum(dwpose_drawing(BODY * 0.5), dwpose_drawing(BODY * 0.5 + [0, 350]))
    Image.fromarray(both).save(tmp_path / "two.png")
    with pytest.raises(UserError, match=r"two.png: the skeleton must be of one person"):
        read_joints(tmp_path / "two.png")


# Clips. ---------------------------------------------------------------------------------------------------------------


def clip(folder: Path, contents: list[object]) -> list[str]:
    for i, content in enumerate(contents):
        (folder / f"{i}.json").write_text(json.dumps(content))
    return pose_files([str(folder)])


def test_frames_without_a_person_are_held_over_or_skipped_and_said(tmp_path: Path, capsys) -> None:
    nobody = {"version": 1.3, "people": []}
    unsure = openpose(BODY)
    unsure["people"][0]["pose_keypoints_2d"] = [0] * 75
    files = clip(tmp_path, [nobody, openpose(BODY), openpose(OTHER), nobody, unsure, openpose(BODY)])
    how = {"pose_size": SIZE}
    held = [joints[0][0] for joints, _ in read_clip(files, how)]
    first, second = BODY[0][0], OTHER[0][0]
    assert np.allclose(held, [first, first, second, second, second, first])
    said = capsys.readouterr().out
    assert "3 of 6 frames have nobody in them, held over" in said and "0.json" in said and "4.json" in said
    assert np.allclose([j[0][0] for j, _ in read_clip(files, how, skip_empty=True)], [first, second, first])
    assert "left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="found nobody in 1"):
        read_clip(files[:1], how)
    (tmp_path / "2.json").write_text("{")
    with pytest.raises(UserError, match=r"2.json: .*not JSON"):
        read_clip(files, how)


def test_a_file_of_frames_is_a_clip_and_so_is_a_folder_of_skeletons(tmp_path: Path) -> None:
    text = write(tmp_path, [comfy(BODY), comfy(), comfy(OTHER)], "clip.json")
    assert pose_files([text]) == [f"{text}#0", f"{text}#1", f"{text}#2"]
    found = read_clip(pose_files([text]), {})
    assert np.allclose([joints[0][0] for joints, _ in found], [BODY[0][0], BODY[0][0], OTHER[0][0]])
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    for i in (10, 9):
        Image.fromarray(dwpose_drawing(BODY if i == 9 else OTHER)).save(drawn / f"{i}.png")
    (drawn / "._9.png").write_bytes(b"\0\5\x16\7")
    found = read_clip(pose_files([str(drawn)]), {})
    assert np.allclose([joints[0][0] for joints, _ in found], [BODY[0][0], OTHER[0][0]], atol=1)


@pytest.mark.parametrize("kind", ["npy", "npz", "json", "landmarks", "instances"])
def test_a_file_of_one_person_a_frame_is_a_clip_where_it_is_the_only_one(kind: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / f"clip.{kind if kind.startswith('np') else 'json'}"
    bodies, how = (BODY, OTHER, BODY), {"pose_size": SIZE}
    array = np.array([rows("openpose", body) for body in bodies])
    if kind == "npy":
        np.save(path, array[..., :2])
    elif kind == "npz":
        np.savez(path, keypoints=array[..., :2], scores=array[..., 2])
    else:
        each = {"json": lambda body: rows("openpose", body), "landmarks": landmark_objects, "instances": instance}[kind]
        path.write_text(json.dumps([each(body) for body in bodies]))
    texts = pose_files([str(path)])
    assert texts == [f"{path}#{i}" for i in range(3)]
    assert "3 poses are taken as 3 frames" in capsys.readouterr().out
    noses = [joints[0] for joints, _ in read_clip(texts, how)]
    assert np.allclose(noses, [body[0] for body in bodies], atol=0.01)
    with pytest.raises(UserError, match=r"--person must be within 0 \.\. 0, found 1"):
        read_clip(texts, how | {"person": 1})
    for others in ([str(path), str(path)], [str(tmp_path)]):  # then a file is a frame, of several people
        assert pose_files(others) == [str(path)] * len(others)
    assert np.allclose(read_joints(path, SIZE, 1)[0][0], OTHER[0], atol=0.01)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["array", "people", "person", "landmarks"])
def test_frames_of_nobody_in_one_file_are_held_over(kind: str, tmp_path: Path, capsys) -> None:
    body, other, path = rows("openpose", BODY), rows("openpose", OTHER), tmp_path / "clip.json"
    if kind == "array":
        path = path.with_suffix(".npy")
        np.save(path, np.array([[body, other], [np.zeros((18, 3))] * 2, [np.full((18, 3), -1)] * 2, [other, body]]))
    else:
        marks = landmark_objects(BODY), landmark_objects(OTHER)
        contents = {
            "people": [[body, other], [], [], [other]],
            "person": [body, [], [], other],
            "landmarks": [marks[0], [], [], marks[1]],
        }
        path.write_text(json.dumps(contents[kind]))
    found = read_clip(pose_files([str(path)]), {"pose_size": SIZE})
    assert np.allclose([joints[0] for joints, _ in found], [BODY[0], BODY[0], BODY[0], OTHER[0]], atol=0.01)
    assert "2 of 4 frames have nobody in them, held over" in capsys.readouterr().out


def test_sequence_takes_skip_empty(micro_folder: Path, tmp_path: Path, capsys) -> None:
    text = write(tmp_path, [comfy(BODY), comfy(), comfy(OTHER)], "clip.json")
    Image.new("RGB", (176, 256)).save(tmp_path / "a.png")
    argv = ["sequence", "--model", micro_folder, "--source", tmp_path / "a.png", "--pose", text, "--steps", 1]
    for more, frames in (((), 3), (("--skip-empty",), 2)):
        out = tmp_path / f"{frames}.gif"
        assert edit_main([str(a) for a in (*argv, "--device", "cpu", "--out", out, *more)]) == 0
        with Image.open(out) as animation:
            shown = animation.n_frames if animation.is_animated else 1
        assert shown <= frames
        assert "1 of 3 frames have nobody" in capsys.readouterr().out


# One's own photos. ----------------------------------------------------------------------------------------------------


def own(root: Path, name: str = "{}.json") -> Path:
    for person in ("ann", "bob"):
        (root / person).mkdir(parents=True)
        for i in (1, 2):
            Image.new("RGB", (WIDTH, HEIGHT), (10 * i, 0, 0)).save(root / person / f"{i}.png")
            (root / person / name.format(i)).write_text(json.dumps(openpose(BODY)))
    return root


@pytest.mark.parametrize("name", ["{}.json", "{}_keypoints.json"])
def test_joints_beside_a_photo_have_openposes_name_or_the_photos(name: str, tmp_path: Path, capsys) -> None:
    root = own(tmp_path / "own", name)
    assert data_main(["pairs", str(root)]) == 0
    said = capsys.readouterr().out
    assert "2 train pairs" in said and "passed over" not in said


def test_what_pairs_passes_over_is_counted_and_named(tmp_path: Path, capsys) -> None:
    root = own(tmp_path / "own")
    (root / "ann" / "1.png").rename(root / "ann" / "1.jfif")
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "ann" / "1.jfif", "JPEG")
    for name in ("ann/3.tif", "ann/4.tif", "bob/note.txt", "bob/._1.png", "bob/.DS_Store", "stray.jpg"):
        (root / name).write_bytes(b"?")
    (root / "bob" / "red dress").mkdir()
    (root / "bob" / "red dress" / "1.png").write_bytes(b"?")
    assert data_main(["pairs", str(root)]) == 0
    said = capsys.readouterr().out
    assert "passed over: 2 files ending in .tif, such as" in said
    assert (
        "passed over: 1 photos in folders inside the folders of people, such as" in said and "red dress/1.png" in said
    )
    assert "passed over: 1 photos outside the folders of people, such as" in said
    assert re.search(r"2 files ending in \.tif passed over", said) and "note" not in said and "._1" not in said
    with Image.open(root / "train_highres" / "ann--1.jfif.jpg") as photo:
        assert photo.format == "JPEG"
    assert "ann--1.jfif.jpg" in (root / "train.lst").read_text()


def test_the_confidence_of_pairs_is_checked_once(tmp_path: Path, fails) -> None:
    root = own(tmp_path / "own")
    for value in (5, "nan", -1):
        fails(data_main, "pairs", root, "--min-confidence", value, words=["--min-confidence must be within 0 .. 1"])


def test_nobody_in_a_photo_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfld.photos.estimator.search", lambda photo: [])
    with pytest.raises(UserError, match="no person was found"):
        find_people(Image.new("RGB", (9, 9)))
