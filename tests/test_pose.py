"""Pose maps against OpenCV's drawing, and the readers of keypoints."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from references import DATA

from cfld.people.render import FRAME as PEOPLE_FRAME
from cfld.photos.crop import fit
from cfld.photos.keypoints import joints_on, keypoints_from, read_annotations, read_pose
from cfld.photos.layouts import LAYOUTS
from cfld.pose import BONE_COLOURS, BONES, FRAME, JOINT_COLOURS, JOINTS, map_positions, pose_maps
from cfld.tools.cli import UserError

ANNOTATIONS = read_annotations(DATA / "fashion" / "fasion-resize-annotation-train.csv")
KEYPOINTS = torch.tensor(np.stack(list(ANNOTATIONS.values())))


def whole_positions(keypoints: torch.Tensor, size: int) -> list[tuple[int, int]]:
    missing = (-1, -1)
    return [missing if min(y, x) < 0 else (int(y * size / 256), int(x * size / 176)) for y, x in keypoints.tolist()]


def opencv_skeleton(keypoints: torch.Tensor) -> np.ndarray:
    """(256, 256, 3) uint8, as the official code draws it."""
    picture, joints = np.zeros((256, 256, 3), np.uint8), whole_positions(keypoints, 256)
    for (a, b), colour in zip(BONES, BONE_COLOURS, strict=True):
        if min(joints[a]) >= 0 and min(joints[b]) >= 0:
            cv2.line(picture, joints[a][::-1], joints[b][::-1], colour, 2, cv2.LINE_AA)
    for joint, colour in zip(joints, JOINT_COLOURS, strict=True):
        if min(joint) >= 0:
            cv2.circle(picture, joint[::-1], 3, colour, -1, cv2.LINE_AA)
    return picture


def decibel(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


def test_the_skeleton_is_opencvs_within_30_dB_and_17_dB_where_there_is_colour() -> None:
    ours = pose_maps(KEYPOINTS, 256)[:, :3].numpy()
    for picture, keypoints in zip(ours, KEYPOINTS, strict=True):
        theirs = opencv_skeleton(keypoints).transpose(2, 0, 1) / 255
        coloured = ((picture > 0) | (theirs > 0)).any(axis=0)
        assert coloured.sum() > 100
        assert decibel(picture, theirs) >= 30
        assert decibel(picture[:, coloured], theirs[:, coloured]) >= 17


def test_the_centre_of_each_disc_has_exactly_its_colour() -> None:
    for keypoints, picture in zip(KEYPOINTS, pose_maps(KEYPOINTS, 256)[:, :3], strict=True):
        joints, theirs = whole_positions(keypoints, 256), opencv_skeleton(keypoints)
        for j, (y, x) in enumerate(joints):
            rim_near = any(3 <= np.hypot(y - v, x - u) <= 5 for v, u in joints[j + 1 :])  # of a disc drawn later
            if y >= 0 and not rim_near:
                assert torch.equal((picture[:, y, x] * 255).round().byte(), torch.from_numpy(theirs[y, x]))


@pytest.mark.parametrize("size", [256, 64])
def test_heat_maps_are_the_formula(size: int) -> None:
    axis = np.arange(size, dtype=np.float64)
    maps = pose_maps(KEYPOINTS[:5], size)[:, 3:].numpy()
    for keypoints, heat in zip(KEYPOINTS[:5], maps, strict=True):
        for j, (y, x) in enumerate(whole_positions(keypoints, size)):
            squared = (axis[:, None] - y) ** 2 + (axis[None, :] - x) ** 2
            expected = np.exp(-squared / (2 * (6 * size / 256) ** 2)) if y >= 0 else np.zeros((size, size))
            assert np.abs(heat[j] - expected).max() <= 1e-6


def test_synthetic_people_are_drawn_in_the_frame_of_keypoints() -> None:
    assert PEOPLE_FRAME == FRAME


def test_a_column_of_176_maps_to_256_without_rounding_down() -> None:
    keypoints = torch.stack([torch.full((176,), 10.0), torch.arange(176.0)], dim=1)[None]
    assert map_positions(keypoints, 256)[0].tolist() == [[10, x * 256 // 176] for x in range(176)]


def test_a_missing_joint_leaves_no_trace_of_itself_or_its_bones() -> None:
    keypoints = torch.full((1, 18, 2), -1.0)
    assert (pose_maps(keypoints, 64) == 0).all()
    keypoints[0, 2] = torch.tensor([100.0, 80.0])
    keypoints[0, 3] = torch.tensor([150.0, -1.0])  # one coordinate is enough to be missing
    maps = pose_maps(keypoints, 256)[0]
    assert (maps[3 + 3] == 0).all()
    assert (maps[:3, 110:] == 0).all()
    assert maps[3 + 2].max() == 1


def test_a_batch_is_drawn_as_its_poses_one_by_one() -> None:
    alone = torch.cat([pose_maps(keypoints[None], 64) for keypoints in KEYPOINTS[:6]])
    assert torch.allclose(pose_maps(KEYPOINTS[:6], 64), alone, atol=1e-6)


WHOLE = next(x.double().numpy() for x in KEYPOINTS if (x >= 0).all())


def openpose(*people: np.ndarray, **more: float) -> dict[str, object]:
    return {"people": [{"pose_keypoints_2d": points.flatten().tolist()} for points in people], **more}


def some_points(joints: int) -> np.ndarray:
    """Of a body in 176x256, in whole pixels; one is missing."""
    points = in_layout(np.floor(WHOLE), joints, 176, 256)
    points[:, 2] = 0.9
    points[4] = 0
    return points


def test_openpose_joints_are_y_x_scaled_from_the_canvas_and_zero_is_missing() -> None:
    points = some_points(18)
    keypoints = keypoints_from(openpose(points, canvas_width=352, canvas_height=512))
    assert keypoints.shape == (18, 2)
    assert np.allclose(keypoints[0], [points[0, 1] / 2, points[0, 0] / 2])
    assert (keypoints[4] == -1).all()


# The joints of each layout by the names that its makers give them, in their order.
SIDES = lambda *names: [f"{side} {name}" for name in names for side in ("left", "right")]  # noqa: E731
COCO_NAMES = ["nose", *SIDES("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")]
NAMES = {
    17: COCO_NAMES,
    18: list(JOINTS),
    25: [
        "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
        "middle hip", "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle", "right eye",
        "left eye", "right ear", "left ear", "left big toe", "left small toe", "left heel", "right big toe",
        "right small toe", "right heel",
    ],
    33: [
        "nose", "left eye inner", "left eye", "left eye outer", "right eye inner", "right eye", "right eye outer",
        "left ear", "right ear", "mouth left", "mouth right", *SIDES("shoulder", "elbow", "wrist", "pinky", "index",
        "thumb", "hip", "knee", "ankle", "heel", "foot index"),
    ],
    133: [*COCO_NAMES, *(f"feet, face or hands {i}" for i in range(116))],
}  # fmt: skip


def in_layout(keypoints: np.ndarray, joints: int, width: float, height: float) -> np.ndarray:
    """keypoints (18, 2) as (y, x) in 256x176 -> points (joints, 3) in pixels; joints that only the layout has lie at
    random places, and missing ones have zeros."""
    points = np.random.default_rng(joints).uniform(0.1, 0.9, (joints, 3)) * [width, height, 1]
    for name, (y, x) in zip(JOINTS, keypoints, strict=True):
        if name in NAMES[joints]:
            present = min(y, x) >= 0
            points[NAMES[joints].index(name)] = [x * width / 176, y * height / 256, 0.8] if present else 0
    return points


def with_neck_between_the_shoulders(keypoints: np.ndarray) -> np.ndarray:
    keypoints, (neck, right, left) = keypoints.copy(), map(JOINTS.index, ("neck", "right shoulder", "left shoulder"))
    shoulders = keypoints[[right, left]]
    keypoints[neck] = shoulders.mean(axis=0) if (shoulders >= 0).all() else -1
    return keypoints


@pytest.mark.parametrize(("width", "height"), [(749, 1101), (1101, 749)])
def test_a_pose_is_the_same_bit_for_bit_in_every_format(width: int, height: int, tmp_path: Path) -> None:
    chosen = [with_neck_between_the_shoulders(keypoints) for keypoints in KEYPOINTS[::3].double().numpy()]
    present = (np.stack(chosen) >= 0).all(axis=-1)
    assert present.any(axis=0).all() and not present.all()
    for keypoints in chosen:
        for joints in NAMES:
            points = in_layout(keypoints, joints, *((1, 1) if joints == 33 else (width, height)))
            if joints == 33:
                points = np.insert(points, 2, -0.3, axis=1)  # MediaPipe's z
            np.save(tmp_path / f"{joints}.npy", points)
            (tmp_path / f"{joints}.json").write_text(json.dumps(points.tolist()))
            if joints in (18, 25):
                content = openpose(points, canvas_width=width, canvas_height=height)
                (tmp_path / f"openpose-{joints}.json").write_text(json.dumps(content))
        files = [str(file) for file in tmp_path.iterdir() if file.suffix != ".csv"]
        assert len(files) == 5 * 2 + 2
        row = f"a.jpg: {json.dumps(keypoints[:, 0].tolist())}: {json.dumps(keypoints[:, 1].tolist())}"
        (tmp_path / "annotation.csv").write_text(f"name:keypoints_y:keypoints_x\n{row}\n")
        if width < height:  # 11:16, as the frame of annotations is
            files.append(f"{tmp_path}/annotation.csv#a.jpg")
            expected = keypoints.astype(np.float32)
        else:
            joints = np.where(keypoints >= 0, keypoints * [height / 256, width / 176], -1)
            expected = fit((height, width), joints).to_frame(joints)
            assert not np.allclose(expected, keypoints)
        poses = np.stack([read_pose(file, (height, width)) for file in files])
        assert np.array_equal(poses, expected[None].repeat(len(files), axis=0))
        maps = pose_maps(torch.from_numpy(poses[[0, 5, -1]]), 64)
        assert torch.equal(maps[0], maps[1]) and torch.equal(maps[0], maps[2])


def test_the_neck_is_missing_if_a_shoulder_is_missing_outside_or_doubtful() -> None:
    good, neck = some_points(17), JOINTS.index("neck")
    assert (keypoints_from(good)[neck] > 0).all()
    for spoilt in ([0, 0, 0], [50, 256, 0.9], [-1, 50, 0.9], [50, 50, 0.2]):
        points = good.copy()
        points[5] = spoilt
        keypoints = keypoints_from(points, (256, 176), min_confidence=0.3)
        assert (keypoints[[neck, JOINTS.index("left shoulder")]] == -1).all()
        assert (keypoints[JOINTS.index("right shoulder")] > 0).all()


def test_joints_outside_the_picture_or_below_the_confidence_are_missing() -> None:
    points = some_points(18)
    points[[5, 6, 7, 8]] = [[176, 9, 1], [9, 256, 1], [175.9, 255.9, 1], [-0.1, 9, 1]]
    points[[9, 10], 2] = [0.3, 0.29]
    missing = (keypoints_from(points, (256, 176), min_confidence=0.3) == -1).all(axis=1)
    assert missing.nonzero()[0].tolist() == [4, 5, 6, 8, 10]


def test_a_person_is_picked_by_index() -> None:
    first, second = some_points(18), some_points(18) / [2, 2, 1]
    for content in (openpose(first, second), np.stack([first, second]), [first.tolist(), second.tolist()]):
        assert np.array_equal(keypoints_from(content), keypoints_from(first))
        assert np.array_equal(keypoints_from(content, person=1), keypoints_from(second, FRAME))
        for person in (2, -1):
            with pytest.raises(UserError, match=f"--person must be within 0 .. 1, found {person}"):
                keypoints_from(content, person=person)


def test_without_scores_every_joint_counts() -> None:
    points = some_points(17)
    assert np.array_equal(keypoints_from(points[:, :2]), keypoints_from(points))


def test_the_size_of_the_picture_is_asked_for_if_it_is_not_known() -> None:
    points = some_points(18)
    points[0, 0] = 300
    for content in (points, openpose(points)):
        with pytest.raises(UserError, match=r"x = 300.*--pose-size WxH"):
            keypoints_from(content)
        assert np.allclose(keypoints_from(content, (512, 352))[0], [points[0, 1] / 2, 150])
    assert np.allclose(keypoints_from(openpose(points, canvas_width=704, canvas_height=1024), (512, 352))[0, 1], 75)


def test_fractions_of_a_picture_are_not_taken_for_pixels() -> None:
    points = some_points(17)
    fractions = points / [176, 256, 1]
    assert np.allclose(keypoints_from(fractions, (256, 176)), keypoints_from(points))
    wide = points * [3, 1, 1]  # of a picture of 528x256
    assert np.allclose(keypoints_from(fractions, (256, 528)), keypoints_from(wide, (256, 528)))
    assert np.allclose(
        keypoints_from(openpose(some_points(18) / [176, 256, 1], canvas_width=528, canvas_height=256)),
        keypoints_from(openpose(some_points(18) * [3, 1, 1], canvas_width=528, canvas_height=256)),
    )
    fractions[0, 0] = 1.02  # a joint beyond the edge is still a fraction, and missing
    found = keypoints_from(fractions, (512, 352))
    assert found.max() > 100 and found[0].tolist() == [-1, -1]


def test_fractions_beside_a_photo_are_of_that_photo(tmp_path: Path) -> None:
    points, photo = some_points(17), Image.new("RGB", (640, 480))
    np.save(tmp_path / "fractions.npy", points / [176, 256, 1])
    np.save(tmp_path / "pixels.npy", points * [640 / 176, 480 / 256, 1])
    ours, theirs = (joints_on(photo, str(tmp_path / f"{name}.npy")) for name in ("fractions", "pixels"))
    assert np.allclose(ours, theirs)


def test_mediapipes_joints_in_pixels_are_refused() -> None:
    with pytest.raises(UserError, match=r"must be within 0 .. 1, found x from .*MediaPipe's joints are fractions"):
        keypoints_from(some_points(33), FRAME)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        pytest.param("[" * 100_000, "not JSON", id="deep"),
        ('{"people": []}', "non-empty list 'people'"),
        ('{"people": {"0": 1}}', "non-empty list 'people'"),
        ('{"people": [[1, 2]]}', "found 0"),
        (json.dumps({"people": [{"pose_keypoints_2d": [[1, 2]] * 54}]}), "found 108"),
        ('{"people": [{"pose_keypoints_2d": null}]}', "finite"),
        ('[{"people": 1}]', "non-empty list 'people'"),
        ('[{"points": 1}]', "an instance must have keypoints"),
        ('{"points": 1}', "must have people, annotations, .* found points"),
        ('{"annotations": [{"keypoints": [1]}]}', "not in a known form of joints .*image_id"),
        ('[{"image_id": 1, "keypoints": [1, 2]}]', "keypoints must be lists of x, y"),
        ('[{"keypoints": [[1, 2]], "keypoint_scores": [1, 2]}]', "keypoint_scores must be 1 numbers"),
        ('[{"x": 1}]', "landmarks must have x and y"),
        ('{"pose_landmarks": 5}', "not in a known form of joints"),
        ('{"width": 5, "height": 5, "keypoints": [[1, 2]]}', "18 lists of x, y"),
        ('{"width": "wide", "height": 5, "keypoints": ' + str([[1, 2]] * 18) + "}", "height and width must be"),
        (json.dumps(openpose(some_points(17))), "found 51"),
        ('{"people": [{"pose_keypoints_2d": [NaN' + ", 1" * 53 + "]}]}", "finite"),
        ('{"people": [{"pose_keypoints_2d": ["a"' + ", 1" * 53 + "]}]}", "finite"),
        ('{"people": [{"pose_keypoints_2d": [1' + "0" * 400 + ", 1" * 53 + "]}]}", "finite"),
        ('{"people": [{"pose_keypoints_2d": [[1, 2]' + ", 1" * 53 + "]}]}", "equally long"),
        ('{"canvas_width": 0, "canvas_height": 5, "people": [{"pose_keypoints_2d": [1' + ", 1" * 53 + "]}]}", "canvas"),
        (json.dumps(openpose(some_points(18) * 0)), "person 0 has no joint"),
        ("5", r"\(people, n, 3\).*found \(\)"),
        ("[]", r"found \(0,\)"),
        ("[[]]", r"found nobody"),
        ("[[[1, 2, 3]], []]", r"found \(1, 3\)"),
        (json.dumps(some_points(17)[:16].tolist()), r"17, 18, 25, 26, 33, 133.*found \(16, 3\)"),
        (json.dumps(np.ones((17, 4)).tolist()), r"found \(17, 4\)"),
        (json.dumps([some_points(17).tolist(), [[None] * 3] * 17]), "finite"),
        (json.dumps((np.ones((33, 3)) * [0.5, 0.5, -0.2]).tolist()), "visibility.*third of 3"),
    ],
)  # fmt: skip
def test_a_malformed_json_file_says_what_is_wrong(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "pose.json").write_text(content)
    with pytest.raises(UserError, match=f"pose.json.*{words}"):
        read_pose(str(tmp_path / "pose.json"))


def test_a_malformed_npy_file_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "pose.npy"
    with pytest.raises(UserError, match=r"pose\.npy: no such file"):
        read_pose(str(path))
    np.save(path, some_points(17))
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[:40], b"PK\x03\x04 not a zip", b"[[1, 2]]", whole.replace(b"17", b"1e")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"pose.npy: not a whole \.npy file"):
            read_pose(str(path))
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"not a whole \.npy file"):
        read_pose(str(path))
    np.savez(tmp_path / "archive.npz", some_points(17))
    (tmp_path / "archive.npz").rename(path)
    assert np.array_equal(read_pose(str(path)), keypoints_from(some_points(17)))  # whatever it is called
    np.savez(tmp_path / "two.npz", a=some_points(17), b=some_points(17))
    with pytest.raises(UserError, match="must hold one array, or keypoints and perhaps scores, found a, b"):
        read_pose(str(tmp_path / "two.npz"))
    np.save(path, some_points(17) * np.nan)
    with pytest.raises(UserError, match=r"pose\.npy: joints must be finite"):
        read_pose(str(path))
    np.save(path, np.zeros((0, 17, 3)))
    with pytest.raises(UserError, match=r"found \(0, 17, 3\)"):
        read_pose(str(path))


def test_a_row_of_an_annotation_file_is_a_pose() -> None:
    path = DATA / "fashion" / "fasion-resize-annotation-test.csv"
    name = "fashionMENTees_Tanksid0080001801_1front.jpg"
    assert read_pose(f"{path}#{name}")[0].tolist() == [40, 98]
    with pytest.raises(UserError, match="no row named 'nobody'"):
        read_pose(f"{path}#nobody")
    with pytest.raises(UserError, match=r"must be a file of joints \(\.json, \.npy, \.npz, \.txt\)"):
        read_pose("pose.xml")


def test_annotations_in_pixels_of_another_picture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    inside, beyond = str([10 * i for i in range(17)] + [-1]), str([40 * i for i in range(17)] + [-1])
    header = "name:keypoints_y:keypoints_x"
    path.write_text(f"{header}\na.jpg: {beyond}: {inside}\n")
    with pytest.raises(
        UserError, match=r"pixels of an image of 176x256 .*outside it in 1 of 1 photos, such as y = 280"
    ):
        read_annotations(path)
    path.write_text(
        "\n".join([header, f"a.jpg: {inside[:-3]}300]: {inside}", *[f"{i}.jpg: {inside}: {inside}" for i in "bc"]])
    )
    assert len(read_annotations(path)) == 3  # one joint beyond the edge is somebody's rounding
    path.write_text(f"{header}\na.jpg: {inside}: {inside[:-3]}1{'0' * 400}]\n")
    with pytest.raises(UserError, match=r"line 2.*finite"):
        read_annotations(path)


def test_the_table_in_the_docs_is_the_one_in_the_code() -> None:
    page = (Path(__file__).parents[1] / "docs" / "poses.md").read_text()
    table = [line for line in page[page.index("| to |") :].splitlines() if line.startswith("| ")]
    header, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table]
    assert header[2:] == [
        "BODY_25 `body25`",
        "COCO `coco`, COCO-WholeBody `wholebody`, BODY_25B `body25b`, HALPE_26 `halpe26`",
        "COCO and neck `coco18`",
        "MediaPipe `mediapipe`",
        "Human3.6M `h36m`",
    ]
    assert [(int(to), joint) for to, joint, *_ in rows] == list(enumerate(JOINTS))
    named = ["openpose"]
    for column, names in enumerate(re.findall(r"`\w+`", cell) for cell in header):
        entries = [tuple(map(int, re.findall(r"\d+", row[column]))) for row in rows]
        for name in (name.strip("`") for name in names):
            places = LAYOUTS[name].places
            assert entries == [() if p is None else p if isinstance(p, tuple) else (p,) for p in places]
            named.append(name)
    assert set(named) == set(LAYOUTS)
