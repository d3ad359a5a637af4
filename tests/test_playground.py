"""The playground: its server, asked directly, and its page, clicked through in Chromium."""

import base64
import contextlib
import copy
import dataclasses
import http.client
import io
import json
import re
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import micro_model
from PIL import Image
from references import DATA, noise

import cfld
from cfld.config import DistilledConfig
from cfld.photos.keypoints import keypoints_from, read_annotations, read_pose
from cfld.photos.layouts import LAYOUTS
from cfld.photos.retarget import retarget
from cfld.playground.__main__ import main
from cfld.playground.requests import PHOTO_LIMIT, SEED_LIMIT, read_paint_request
from cfld.playground.server import PRESET_POSES, QUEUE_LIMIT, PlaygroundServer, step_preview
from cfld.pose import JOINTS
from cfld.sampling import generate
from cfld.tools.pictures import read_image

PHOTO = DATA / "fashion" / "MEN" / "Tees_Tanks" / "id_00800018" / "01_1_front.jpg"
PHOTO_NAME = "fashionMENTees_Tanksid0080001801_1front.jpg"
JOINT_NUMBERS = [value for i in range(18) for value in (60 + 3 * i, 20 + 12 * i, 1)]
POSE = {"canvas_width": 176, "canvas_height": 256, "people": [{"pose_keypoints_2d": JOINT_NUMBERS}]}
MODEL = micro_model()


def coco_people() -> np.ndarray:
    """(2, 17, 3): somebody of DeepFashion in COCO's layout, too large for 176x256; and smaller."""
    joints = read_annotations(DATA / "fashion" / "fasion-resize-annotation-test.csv")[PHOTO_NAME]
    points = np.zeros((17, 3))
    for place, (y, x) in zip(LAYOUTS["coco"].places, joints.tolist(), strict=True):
        if isinstance(place, int) and min(y, x) >= 0:
            points[place] = [x, y, 1]
    return np.stack([points * [1.6, 1.6, 1], points * [1.1, 1.2, 1]])


@contextlib.contextmanager
def serving(server: PlaygroundServer) -> Iterator[PlaygroundServer]:
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def server() -> Iterator[PlaygroundServer]:
    with serving(PlaygroundServer(*MODEL)) as server:
        yield server


def connect(server: PlaygroundServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)


def ask(server: PlaygroundServer, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and content of an answer; a body that is not bytes is sent as JSON."""
    connection = connect(server)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("GET" if body is None else "POST", path, data, headers)
    response = connection.getresponse()
    content, kind = response.read(), response.headers["Content-Type"]
    return response.status, json.loads(content) if kind == "application/json" else content


def order(**changes: Any) -> dict[str, Any]:
    photo = base64.b64encode(PHOTO.read_bytes()).decode()
    rest = {"seeds": [3], "steps": 2, "sampler": "ddpm", "pose_scale": 2, "appearance_scale": 2.0}
    return {"photo": photo, "pose": POSE, **rest, **changes}


def picture_in(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))


def wait_until(holds, seconds: float = 10) -> None:
    """Fail unless something comes true soon."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG of one bit a pixel, of any size that it claims to have."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0),
        b"IDAT": zlib.compress(pixels, 1),
        b"IEND": b"",
    }
    body = [
        struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def renamed_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.jpg", PHOTO.read_bytes())
    return buffer.getvalue()


def animation() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, "gif")
    return buffer.getvalue()


BAD_PHOTOS = {
    "empty": (b"", 400, ["empty file", "JPEG, PNG or WebP"]),
    "50 MB": (b"\xff\xd8" + bytes(50 << 20), 413, ["at most 20 MB", "found 50 MB"]),
    "a renamed ZIP": (renamed_zip(), 400, ["JPEG, PNG or WebP", "something else"]),
    "a GIF": (animation(), 400, ["JPEG, PNG or WebP", "something else"]),
    "a bomb": (png(30_000, 30_000, bytes(30_000 * 3_751)), 400, ["64,000,000 pixels"]),
    "a smaller bomb": (png(9_000, 8_000, bytes(8_000 * 1_126)), 400, ["64,000,000 pixels", "9000 x 8000"]),
    "half a JPEG": (PHOTO.read_bytes()[:700], 400, ["damaged", "again"]),
    "half a PNG": (png(50, 50, b""), 400, ["damaged"]),
}


def numbers(text: str) -> str:
    return json.dumps({**POSE, "people": [{"pose_keypoints_2d": JOINT_NUMBERS}]}).replace("60, 20, 1,", text)


BAD_POSES = {
    "NaN joints": (numbers("NaN, NaN, 1,"), ["finite numbers"]),
    "an infinite joint": (numbers("1e999, 20, 1,"), ["finite numbers"]),
    "a joint that is a word": (numbers('"x", 20, 1,'), ["finite numbers"]),
    "17 joints": (numbers(""), ["54 (18 joints), 75", "found 51"]),
    "an empty list of people": ('{"people": []}', ["non-empty list 'people'"]),
    "people who are none": ('{"people": [3]}', ["found 0"]),
    "another object": ("{}", ["must have people"]),
    "a number": ("5", ["array of joints must be"]),
    "nothing": ("", ["not JSON"]),
    "no JSON": ("hello", ["not JSON"]),
    "a deep nest": ("[" * 200_000, ["not JSON"]),
    "a larger picture": (json.dumps([[300, 400, 1]] * 18), ["give pose-size WxH"]),
}


def test_the_page_is_one_file_that_names_no_other_place(server: PlaygroundServer) -> None:
    status, page = ask(server, "/")
    assert status == 200 and page.startswith(b"<!doctype html>")
    assert re.findall(rb"""(?:https?:)?//[^\s"']+\.\w+[^\s"']*""", page) == [b"http://www.w3.org/2000/svg"]
    assert not re.search(rb"<link[^>]*href=.(?!data:)|\bsrc=|@import|url\(", page)
    connection = connect(server)
    connection.request("GET", "/")
    policy = connection.getresponse().headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "http" not in policy


def test_other_hosts_and_origins_are_refused(server: PlaygroundServer) -> None:
    port = server.server_port
    for name in ("127.0.0.1", "localhost"):
        assert ask(server, "/settings", Host=f"{name}:{port}", Origin=f"http://{name}:{port}")[0] == 200
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{port + 1}",
        f"127.0.0.1.evil:{port}",
    ):
        for path, body in (("/", None), ("/pose", {}), ("/paint", order())):
            status, answer = ask(server, path, body, Host=host)
            assert status == 403 and host in answer["error"]
    for origin in (
        "http://evil.example",
        "null",
        f"https://127.0.0.1:{port}",
        f"http://127.0.0.1:{port + 1}",
        "http://localhost",
    ):
        for path, body in (("/settings", None), ("/photo", PHOTO.read_bytes()), ("/paint", order())):
            status, answer = ask(server, path, body, Origin=origin)
            assert status == 403 and origin in answer["error"]
        for site in ("cross-site", "same-site"):  # as of a picture in another page, which has no Origin
            status, answer = ask(server, path, body, **{"Sec-Fetch-Site": site})
            assert status == 403 and site in answer["error"]
    assert ask(server, "/", None, **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})[0] == 200
    with socket.create_connection(("127.0.0.1", port)) as nameless:
        nameless.sendall(b"GET /settings HTTP/1.0\r\n\r\n")
        assert b" 403 " in nameless.recv(100)
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("kind", BAD_PHOTOS)
def test_a_bad_photo_is_answered_with_a_reason_and_the_server_lives_on(server: PlaygroundServer, kind: str) -> None:
    data, expected, words = BAD_PHOTOS[kind]
    status, answer = ask(server, "/photo", data)
    assert status == expected and all(word in answer["error"] for word in words), answer
    if len(data) <= PHOTO_LIMIT:
        status, answer = ask(server, "/paint", order(photo=base64.b64encode(data).decode()))
        assert status == 400 and all(word in answer["error"] for word in words), answer
    status, photo = ask(server, "/photo", PHOTO.read_bytes())
    assert status == 200 and Image.open(io.BytesIO(photo)).size == Image.open(PHOTO).size


@pytest.mark.parametrize("kind", BAD_POSES)
def test_a_bad_pose_is_answered_with_a_reason_and_the_server_lives_on(server: PlaygroundServer, kind: str) -> None:
    text, words = BAD_POSES[kind]
    status, answer = ask(server, "/pose", {"text": text, "pose_size": "", "person": 0, "min_confidence": 0})
    assert status == 400 and all(word in answer["error"] for word in words), answer
    try:
        pose = json.loads(text)
    except (ValueError, RecursionError):
        pose = text
    status, answer = ask(server, "/paint", order(pose=pose))
    assert status == 400
    status, answer = ask(server, "/pose", {"text": json.dumps(POSE), "pose_size": "", "person": 0, "min_confidence": 0})
    assert status == 200 and np.allclose(answer["keypoints"], keypoints_from(POSE, layout="openpose")[:, ::-1])


def test_a_pose_is_read_as_the_command_reads_it(server: PlaygroundServer) -> None:
    people = coco_people()
    status, answer = ask(
        server, "/pose", {"text": json.dumps(people.tolist()), "pose_size": "300x400", "person": 1, "min_confidence": 0}
    )
    assert status == 200 and np.allclose(answer["keypoints"], keypoints_from(people, (400, 300), 1)[:, ::-1])
    for pose_size, person, words in (
        ("300", 0, "pose-size"),
        ("1x1", 0, "must lie in an image of 1x1"),
        ("300x400", 2, "person must be"),
    ):
        status, answer = ask(
            server,
            "/pose",
            {"text": json.dumps(people.tolist()), "pose_size": pose_size, "person": person, "min_confidence": 0},
        )
        assert status == 400 and words in answer["error"]


def test_coordinates_have_one_order_so_each_answer_can_be_asked_with(server: PlaygroundServer) -> None:
    text = json.dumps(POSE)
    _, answer = ask(server, "/pose", {"text": text, "pose_size": "", "person": 0, "min_confidence": 0})
    assert np.allclose(answer["keypoints"][0], JOINT_NUMBERS[:2]) and answer["keypoints"][0][0] == 60  # x
    presets = ask(server, "/settings")[1]["presets"]
    for pose in (answer["keypoints"], *presets.values()):
        again = ask(server, "/pose", {"text": json.dumps(pose), "pose_size": "", "person": 0, "min_confidence": 0})[1]
        assert np.allclose(again["keypoints"], pose)
        asked = read_paint_request(json.dumps(order(pose=pose)).encode(), server.model).keypoints
        assert np.allclose(asked[:, ::-1], pose)


def test_an_error_says_what_it_is_in(server: PlaygroundServer) -> None:
    bad = base64.b64encode(BAD_PHOTOS["half a JPEG"][0]).decode()
    text = {"text": "{}", "pose_size": "", "person": 0, "min_confidence": 0}
    for path, body, about in (
        ("/photo", b"x", "photo"),
        ("/photo", b"\xff\xd8" + bytes(PHOTO_LIMIT), "photo"),
        ("/people/x.png", None, "photo"),
        ("/pose", text, "pose"),
        ("/paint", order(photo=bad), "photo"),
        ("/paint", order(photo="*"), "photo"),
        ("/paint", order(pose={}), "pose"),
        ("/paint", order(source_pose={}), "pose"),
        ("/paint", order(steps=0), "paint"),
        ("/paint", order(seeds=3), "paint"),
    ):
        status, answer = ask(server, path, body)
        assert status >= 400 and answer["about"] == about, (path, answer)


def test_each_field_of_the_requests_is_documented(server: PlaygroundServer) -> None:
    page = (Path(cfld.__file__).parents[1] / "docs" / "playground.md").read_text()
    interface = page[page.index("## The HTTP interface") :]
    fields = [*order(), "source_pose", "text", "pose_size", "person", "min_confidence", "keypoints", "waiting", "step"]
    fields += ["preview", "picture", "error", "about", *ask(server, "/settings")[1]]
    assert [field for field in fields if f"`{field}`" not in interface] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": []}, f"1 .. {SEED_LIMIT}, found 0"),
        ({"seeds": list(range(99))}, "found 99"),
        ({"seeds": [-1]}, "seeds must be whole"),
        ({"seeds": [2**63]}, "below 2^63"),
        ({"seeds": [True]}, "seeds must be whole"),
        ({"seeds": 3}, "seeds must be whole"),
        ({"steps": 0}, "steps must be a whole number of at least 1, found 0"),
        ({"steps": 1000}, "steps must be within 1 .. 999, found 1000"),
        ({"steps": 2.5}, "steps must be a whole"),
        ({"sampler": "euler"}, "ddpm, ddim"),
        ({"sampler": ["ddpm"]}, "ddpm, ddim"),
        ({"pose_scale": float("nan")}, "-100 .. 100"),
        ({"appearance_scale": None}, "-100 .. 100"),
        ({"photo": "*"}, "base64"),
        ({"photo": 5}, "base64"),
        ({"more": 1}, "an object of photo, pose"),
    ],
)
def test_a_bad_order_is_answered_with_a_reason(server: PlaygroundServer, changes: dict, words: str) -> None:
    status, answer = ask(server, "/paint", order(**changes))
    assert status == 400 and words in answer["error"]


def test_a_request_must_be_of_a_known_kind_and_length(server: PlaygroundServer) -> None:
    assert (
        ask(server, "/../cfld/files.py")[0] == ask(server, "/people/x.png")[0] == ask(server, "/settings", {})[0] == 404
    )
    assert ask(server, "/paint", b"[" * 200_000)[0] == ask(server, "/paint", b"\xff")[0] == 400
    for length in (None, "-1", "x", "\u00b2"):
        connection = connect(server)
        connection.putrequest("POST", "/photo")
        if length is not None:
            connection.putheader("Content-Length", length.encode("latin-1"))
        connection.endheaders()
        assert connection.getresponse().status == 411
    assert ask(server, "/settings")[0] == 200


def test_what_the_page_offers_can_be_painted(server: PlaygroundServer) -> None:
    settings = ask(server, "/settings")[1]
    assert tuple(settings["joints"]) == JOINTS and list(settings["presets"]) == list(PRESET_POSES)
    for keypoints in settings["presets"].values():
        joints = np.array(keypoints)
        assert joints.shape == (18, 2) and (joints >= 0).all(axis=1).sum() >= 8
        assert (joints < [settings["frame"]["width"], settings["frame"]["height"]]).all()
    status, person = ask(server, "/people/5.png")
    assert status == 200 and Image.open(io.BytesIO(person)).size == (176, 256)


def test_a_pose_is_retargeted_to_the_pose_in_the_photo(server: PlaygroundServer) -> None:
    def painted(**changes: Any) -> Image.Image:
        status, lines = ask(server, "/paint", order(**changes))
        assert status == 200
        return picture_in(json.loads(lines.splitlines()[-1])["picture"])

    walking, standing = (np.array(server.settings["presets"][name]) for name in ("walking", "standing"))
    asked = walking.tolist()
    own = np.where(standing >= 0, standing * [0.8, 1] + [0, 40], 0).clip(0, [175, 255]).tolist()
    pose = read_paint_request(json.dumps(order(pose=asked)).encode(), server.model).keypoints
    request = read_paint_request(json.dumps(order(pose=asked, source_pose=own)).encode(), server.model)
    assert request.source_keypoints is not None and np.abs(retarget(pose, request.source_keypoints) - pose).max() > 1
    (expected,) = generate(
        server.model, server.vae, request.photo, pose, request.config, seed=3, source_keypoints=request.source_keypoints
    )
    assert np.abs(np.asarray(painted(pose=asked, source_pose=own), int) - np.asarray(expected, int)).max() <= 1
    assert ask(server, "/paint", order(source_pose=[[1, 2]]))[0] == 400


def test_painting_tells_of_each_step_and_ends_with_the_pictures_of_generate(server: PlaygroundServer) -> None:
    status, answer = ask(server, "/paint", order(seeds=[3, 9], steps=3, sampler="unipc", appearance_scale=1.5))
    events = [json.loads(line) for line in answer.splitlines()]
    assert status == 200
    assert [(e["seed"], e.get("step")) for e in events] == [(s, i) for s in (3, 9) for i in (1, 2, 3, None)]
    assert picture_in(events[0]["preview"]).size == (32, 32)
    for event, seed in ((events[3], 3), (events[7], 9)):
        ours = cfld.generate(
            *MODEL,
            read_image(PHOTO),
            keypoints_from(POSE, layout="openpose"),
            cfld.SamplingConfig(3, "unipc", appearance_scale=1.5),
            seed=seed,
        )
        assert picture_in(event["picture"]).tobytes() == ours[0].tobytes()


def test_a_student_paints_what_turbo_asks_for_and_its_teacher_the_rest() -> None:
    model, vae = MODEL
    student = copy.copy(model)
    student.config = dataclasses.replace(model.config, distilled=DistilledConfig())
    with serving(PlaygroundServer(model, vae, student=student)) as server:
        settings = ask(server, "/settings")[1]
        assert settings["samplers"][0] == "turbo" and settings["turbo_steps"] == 4 and "ddpm" in settings["samplers"]
        for sampler, painter in (("turbo", student), ("ddpm", model)):
            _, answer = ask(server, "/paint", order(sampler=sampler))
            picture = picture_in(json.loads(answer.splitlines()[-1])["picture"])
            how = (painter, vae, read_image(PHOTO), keypoints_from(POSE, layout="openpose"))
            expected = cfld.generate(*how, cfld.SamplingConfig(2, sampler), seed=3)
            assert picture.tobytes() == expected[0].tobytes()
        status, answer = ask(server, "/paint", order(sampler="turbo", pose_scale=3))
        assert status == 400 and "scales must be 2 and 2" in answer["error"]
    with serving(PlaygroundServer(student, vae)) as server:
        assert ask(server, "/settings")[1]["samplers"] == ["turbo"]
        assert ask(server, "/paint", order(sampler="ddpm"))[0] == 400
    with serving(PlaygroundServer(model, vae)) as server:
        assert "turbo" not in ask(server, "/settings")[1]["samplers"]
        assert "must be used with a student" in ask(server, "/paint", order(sampler="turbo"))[1]["error"]


def test_a_preview_is_the_decoded_latents_only_smaller() -> None:
    _, vae = MODEL
    latents = noise(1, 4, 4, 4).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = (vae.decode(noise(1, 4, 4, 4)) / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0) * 255
    assert (torch.from_numpy(np.array(step_preview(vae, latents))).float() - expected).abs().max() <= 1.01


def test_one_paints_at_a_time_and_the_others_are_told_their_place(server: PlaygroundServer) -> None:
    answers = []
    with server.turns.take(lambda before: None):
        for place in (1, 2):
            connection = connect(server)
            connection.request("POST", "/paint", json.dumps(order()))
            answers.append(connection.getresponse())
            assert json.loads(answers[-1].readline()) == {"waiting": place}
        answers[0].close()  # whoever hangs up leaves the queue
        while json.loads(answers[1].readline()) != {"waiting": 1}:
            pass
    assert [sorted(json.loads(line)) for line in answers[1].readlines()][-1] == ["picture", "seed"]


def test_a_full_queue_refuses(server: PlaygroundServer) -> None:
    server.turns.queue.extend(range(QUEUE_LIMIT + 1))
    try:
        status, answer = ask(server, "/paint", order())
    finally:
        server.turns.queue.clear()
    assert status == 503 and "8 others are waiting" in answer["error"]
    assert ask(server, "/paint", order())[0] == 200


def test_to_hang_up_is_to_cancel(server: PlaygroundServer) -> None:
    steps: list[int] = []
    handle = MODEL[0].unet.register_forward_pre_hook(lambda module, args: steps.append(int(args[1][0])))
    connection = connect(server)
    connection.request("POST", "/paint", json.dumps(order(steps=900)))
    response = connection.getresponse()
    assert json.loads(response.readline())["step"] == 1
    response.close()
    connection.close()
    wait_until(lambda: not server.turns.queue)
    handle.remove()
    assert len(steps) < 900


def test_a_failure_is_told_and_the_server_lives_on(
    server: PlaygroundServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **settings: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")

    with monkeypatch.context() as patch:
        patch.setattr("cfld.playground.server.generate", fail)
        status, answer = ask(server, "/paint", order())
    assert status == 200
    assert json.loads(answer) == {"error": "painting failed: there is not enough memory for 64 bytes more"}
    assert "RuntimeError: [enforce fail]" in capfd.readouterr().err
    assert b"picture" in ask(server, "/paint", order())[1]


def test_mistakes_of_the_command_are_one_line(
    server: PlaygroundServer, micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails
) -> None:
    fails(main, "--model", tmp_path / "none", "--port", server.server_port,  # which would be found later
          words=[f"--port {server.server_port} cannot be used (Address already in use)"])  # fmt: skip
    fails(main, "--model", micro_folder, "--port", 80, words=["1024 .. 65535, found 80"])
    fails(main, "--model", tmp_path / "none", words=["no such model folder"])
    monkeypatch.setattr("cfld.folder.resources.files", lambda package: tmp_path / package)
    fails(main, words=["bundled model", "make tiny"])


def address(server: PlaygroundServer) -> str:
    return f"http://{server.hosts[0]}"


def drop(page, name: str, kind: str, data: bytes) -> None:
    """Drop a file on the page, as from a folder of the desktop."""
    transfer = page.evaluate_handle(
        """([name, type, base64]) => {
            const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type }));
            return transfer;
        }""",
        [name, kind, base64.b64encode(data).decode()],
    )
    page.dispatch_event("#drop", "dragover", {"dataTransfer": transfer})
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def saved_pose(page, folder: Path) -> np.ndarray:
    """The keypoints (18, 2) that "Save pose" saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save pose").click()
    assert download.value.suggested_filename == "pose.json"
    download.value.save_as(folder / "pose.json")
    return read_pose(str(folder / "pose.json"))


def alerts_in(page, section: str):
    """What a section of the page says is wrong."""
    return page.get_by_role("region", name=section).get_by_role("alert")


def joint(page, name: str):
    return page.get_by_role("slider", name=name, exact=True)


def press_joint(page, name: str) -> tuple[float, float]:
    """Press the mouse on a joint; where that is."""
    box = joint(page, name).locator(".ring").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    return x, y


@pytest.mark.browser
def test_a_photo_is_dropped_a_joint_dragged_and_the_saved_picture_is_that_of_the_command(
    server: PlaygroundServer, visit, tmp_path: Path
) -> None:
    page = visit(address(server))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    drop(page, "photo.jpg", "image/jpeg", PHOTO.read_bytes())
    page.get_by_alt_text("the photo").wait_for()
    before = saved_pose(page, tmp_path)

    unit = page.locator("#editor").bounding_box()["width"] / 176
    x, y = press_joint(page, "left wrist")
    page.mouse.move(x + 15 * unit, y - 40 * unit, steps=5)
    page.mouse.up()
    page.mouse.move(x, y)
    after = saved_pose(page, tmp_path)
    moved = (after - before)[JOINTS.index("left wrist")]
    assert np.abs(moved - [-40, 15]).max() < 1 and (before == after).all(axis=1).sum() == 17

    page.get_by_label("Seeds to compare").fill("2")
    page.get_by_label("Seed", exact=True).fill("5")
    page.get_by_label("Steps").fill("4")
    page.get_by_role("button", name="Paint").click()
    page.get_by_text("Done.").wait_for()
    for seed in (5, 6):
        with page.expect_download() as download:
            page.get_by_role("link", name=f"picture of seed {seed} ").click()
        assert download.value.suggested_filename == f"seed-{seed}.png"
        download.value.save_as(tmp_path / "out.png")
        ours = cfld.generate(*MODEL, read_image(PHOTO), after, cfld.SamplingConfig(4), seed=seed)[0]
        assert Image.open(tmp_path / "out.png").tobytes() == ours.tobytes()
    assert all(url.startswith((address(server), "data:", "blob:")) for url in asked)


@pytest.mark.browser
def test_everything_is_done_with_the_keyboard(server: PlaygroundServer, visit, tmp_path: Path) -> None:
    page = visit(address(server))
    before = saved_pose(page, tmp_path)
    page.get_by_role("button", name="Mirror").focus()
    focused = "document.activeElement.getAttribute('aria-label')"
    for name in JOINTS[:5]:
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == name
    assert (
        page.evaluate("getComputedStyle(document.activeElement.querySelector('.ring')).stroke") == "rgb(255, 255, 255)"
    )
    for key in ("ArrowUp", "Shift+ArrowUp", "ArrowRight", "Shift+ArrowLeft"):
        page.keyboard.press(key)
    after = saved_pose(page, tmp_path)
    assert np.allclose((after - before)[4], [-11, -9])
    assert joint(page, "right wrist").get_attribute("aria-valuetext") in page.locator("#where").inner_text()

    joint(page, "right wrist").focus()
    page.keyboard.press("Delete")
    assert page.evaluate(focused) == JOINTS[5]
    assert saved_pose(page, tmp_path)[4].tolist() == [-1, -1]
    page.get_by_text("Missing joints").focus()
    page.keyboard.press("Enter")
    page.get_by_role("checkbox", name="right wrist").focus()
    page.keyboard.press("Space")
    assert np.array_equal(saved_pose(page, tmp_path), after)

    page.get_by_role("button", name="Example person").focus()
    page.keyboard.press("Enter")
    page.get_by_alt_text("the photo").wait_for()
    page.get_by_label("Steps").fill("2")
    page.keyboard.press("Enter")
    page.get_by_text("Done.").wait_for()


@pytest.mark.browser
def test_the_pose_cannot_be_touched_before_the_settings_arrive(server: PlaygroundServer, visit, tmp_path: Path) -> None:
    page = visit(address(server))
    held: list[Any] = []
    page.route("**/settings", lambda route: held.append(route))
    page.reload()
    wait_until(lambda: held or page.wait_for_timeout(10))
    for name in ("Mirror", "Save pose", "This is the pose in the photo"):
        assert page.get_by_role("button", name=name).evaluate("button => Boolean(button.closest('[inert]'))")
    held[0].continue_()
    wait_until(lambda: joint(page, "neck").count() or page.wait_for_timeout(10))
    assert (saved_pose(page, tmp_path)[JOINTS.index("neck")] > 0).all()


@pytest.mark.browser
def test_poses_are_mirrored_chosen_and_loaded(server: PlaygroundServer, visit, tmp_path: Path) -> None:
    page = visit(address(server))
    before = saved_pose(page, tmp_path)
    page.get_by_role("button", name="Mirror").click()
    after = saved_pose(page, tmp_path)
    other = [JOINTS.index(re.sub("left|right", lambda m: {"left": "right"}.get(m[0], "left"), name)) for name in JOINTS]
    assert np.allclose(after, before[other] * [1, -1] + [0, 176], atol=1e-3)

    page.get_by_label("Preset").select_option("from behind")
    assert saved_pose(page, tmp_path)[JOINTS.index("nose")].tolist() == [-1, -1]
    assert joint(page, "nose").count() == 0 and joint(page, "neck").is_visible()

    coco = coco_people()
    (tmp_path / "coco.json").write_text(json.dumps(coco.tolist()))
    page.get_by_label("Load pose").set_input_files(tmp_path / "coco.json")
    page.get_by_text("give pose-size WxH").wait_for()
    page.get_by_text("Pose files of other sizes").click()
    page.get_by_label("pose-size").fill("300x300")
    page.get_by_label("person, from 0").fill("1")
    page.get_by_label("Load pose").set_input_files(tmp_path / "coco.json")
    expected = keypoints_from(coco, (300, 300), 1)
    y, x = expected[0]
    page.get_by_text("give pose-size WxH").wait_for(state="hidden")
    wait_until(lambda: joint(page, "nose").get_attribute("aria-valuetext") == f"x {x:.0f}, y {y:.0f}")
    assert np.allclose(saved_pose(page, tmp_path), expected, atol=1e-3)
    assert page.locator("#problem").inner_text() == ""


@pytest.mark.browser
def test_bad_files_are_explained_on_the_page_and_the_next_good_one_is_taken(
    server: PlaygroundServer, visit, tmp_path: Path
) -> None:
    page = visit(address(server))
    for data, _, words in BAD_PHOTOS.values():
        (tmp_path / "photo.png").write_bytes(data)
        page.set_input_files("#photo-file", tmp_path / "photo.png")
        alerts_in(page, "1. A photo").filter(has_text=words[0]).wait_for()
        page.evaluate("document.getElementById('photo-problem').textContent = ''")
    for text, words in BAD_POSES.values():
        (tmp_path / "pose.json").write_text(text)
        page.get_by_label("Load pose").set_input_files(tmp_path / "pose.json")
        alerts_in(page, "2. A pose").filter(has_text=words[0]).wait_for()
        page.evaluate("document.getElementById('pose-problem').textContent = ''")
    page.get_by_role("button", name="Paint").click()
    alerts_in(page, "1. A photo").filter(has_text="Choose a photo first.").wait_for()
    page.set_input_files("#photo-file", PHOTO)
    page.get_by_alt_text("the photo").wait_for()
    page.get_by_label("Steps").fill("5000")
    page.get_by_role("button", name="Paint").click()
    alerts_in(page, "3. The picture").filter(has_text="steps must be within 1 .. 999, found 5000").wait_for()
    assert [place.inner_text() for place in page.locator(".problem").all()].count("") == 2
    page.get_by_label("Load pose").set_input_files(tmp_path / "pose.json")
    alerts_in(page, "2. A pose").filter(has_text=words[0]).wait_for()
    assert page.locator("#problem").inner_text() == ""  # which is of what was asked before


@pytest.mark.browser
def test_the_page_shows_its_place_in_the_queue_each_step_and_cancels(
    server: PlaygroundServer, visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted = cfld.playground.server.generate

    def slowly(*args: Any, on_step: Callable[..., None], **settings: Any) -> list[Image.Image]:
        def wait(*step: Any) -> None:
            time.sleep(0.02)
            on_step(*step)

        return painted(*args, on_step=wait, **settings)

    monkeypatch.setattr("cfld.playground.server.generate", slowly)
    page = visit(address(server))
    page.set_input_files("#photo-file", PHOTO)
    page.get_by_alt_text("the photo").wait_for()
    page.get_by_label("Steps").fill("900")
    with server.turns.take(lambda before: None):
        page.get_by_role("button", name="Paint").click()
        page.get_by_text("In the queue: 1 before this one.").wait_for()
    page.get_by_alt_text(re.compile("seed 0 after step [0-9]+ of 900")).wait_for()
    assert page.get_by_role("progressbar").get_attribute("value") != "0"
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled.").wait_for()
    wait_until(lambda: not server.turns.queue)
    assert page.get_by_role("button", name="Paint").is_enabled()


@pytest.mark.browser
def test_the_page_fits_phones_follows_the_scheme_and_says_when_the_server_has_gone(visit) -> None:
    with PlaygroundServer(*MODEL) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        light, dark = visit(address(server)), visit(address(server), width=360, scheme="dark")
        for page in (light, dark):
            joint(page, "neck").wait_for()
            page.get_by_text("Missing joints").click()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        colours = [page.evaluate("getComputedStyle(document.body).backgroundColor") for page in (light, dark)]
        assert len(set(colours)) == 2
        server.shutdown()
    dark.get_by_role("button", name="Example person").click()
    dark.get_by_text("The server does not answer").wait_for()


def painted_by(page) -> tuple[dict[str, Any], np.ndarray]:
    """Press "Paint" -> what the page asks for, and the picture (h, w, 3) that it shows in the end."""
    with page.expect_request("**/paint") as asked:
        page.get_by_role("button", name="Paint", exact=True).click()
    return asked.value.post_data_json, shown_in(page)


def shown_in(page) -> np.ndarray:
    """The picture (h, w, 3) of a painting that is done."""
    page.get_by_text("Done.").wait_for()
    return np.asarray(picture_in(page.get_by_alt_text("painted with").get_attribute("src")), int)


@pytest.mark.browser
def test_the_page_retargets_to_the_pose_in_the_photo_until_it_is_unticked_or_the_photo_changes(
    server: PlaygroundServer, visit, tmp_path: Path
) -> None:
    page = visit(address(server))
    page.set_input_files("#photo-file", PHOTO)
    page.get_by_alt_text("the photo").wait_for()
    box = page.get_by_role("checkbox", name="Retarget")
    assert box.is_disabled() and not box.is_checked()
    page.get_by_label("Preset").select_option("standing")
    standing = saved_pose(page, tmp_path)
    wrist = joint(page, "left wrist")
    for _ in range(3):  # a person of a longer arm
        wrist.press("Shift+ArrowDown")
    page.get_by_role("button", name="This is the pose in the photo").click()
    assert box.is_enabled() and box.is_checked()
    page.get_by_label("Preset").select_option("walking")
    walking = saved_pose(page, tmp_path)
    page.get_by_label("Steps").fill("2")

    asked, longer = painted_by(page)
    request = read_paint_request(json.dumps(asked).encode(), server.model)
    own = request.source_keypoints
    assert own is not None and np.abs(own - standing).max() > 20
    assert np.abs(own - standing).max(axis=1).argmax() == JOINTS.index("left wrist")
    assert np.abs(request.keypoints - walking).max() < 1
    how = (server.model, server.vae, read_image(PHOTO), request.keypoints, request.config)
    expected = generate(*how, source_keypoints=own)[0]
    assert np.abs(longer - np.asarray(expected, int)).max() <= 1

    box.uncheck()
    asked, as_it_is = painted_by(page)
    assert "source_pose" not in asked and (as_it_is != longer).any()
    assert np.abs(as_it_is - np.asarray(generate(*how)[0], int)).max() <= 1
    box.check()
    page.get_by_role("button", name="Example person").click()
    wait_until(box.is_disabled)
    assert not box.is_checked()
    assert "source_pose" not in painted_by(page)[0]


@pytest.mark.browser
def test_a_picture_of_a_student_is_refined_by_the_whole_model(visit) -> None:
    model, vae = MODEL
    student = copy.copy(model)
    student.config = dataclasses.replace(model.config, distilled=DistilledConfig())
    with serving(PlaygroundServer(model, vae, student=student)) as server:
        page = visit(address(server))
        page.set_input_files("#photo-file", PHOTO)
        page.get_by_alt_text("the photo").wait_for()
        page.get_by_label("Seed", exact=True).fill("5")
        page.get_by_label("Seeds to compare").fill("2")
        with page.expect_request("**/paint") as quick:
            page.get_by_role("button", name="Paint", exact=True).click()
        page.get_by_text("Done.").wait_for()
        buttons = page.get_by_role("button", name=re.compile("Paint seed . again in 50 steps of the whole model"))
        assert buttons.all_inner_texts() == ["Refine", "Refine"]
        with page.expect_request("**/paint") as slow:
            buttons.nth(1).click()
        page.get_by_alt_text("painted with seed 6").wait_for()
        refined = shown_in(page)
        assert not buttons.count()  # which are of the student's pictures
        before, after = (asked.value.post_data_json for asked in (quick, slow))
        assert before | {"seeds": [6], "steps": 50, "sampler": "ddpm"} == after
        assert (before["seeds"], before["steps"], before["sampler"]) == ([5, 6], 4, "turbo")
        request = read_paint_request(json.dumps(after).encode(), model, student)
        expected = generate(model, vae, read_image(PHOTO), request.keypoints, request.config, seed=6)[0]
        assert np.abs(refined - np.asarray(expected, int)).max() <= 1
