"""cfld.convert fetch and a server that fails in every way: a whole file or one clear line, and never half a file."""

import argparse
import errno
import hashlib
import importlib.util
import random
import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import MICRO, micro_model
from file_server import FileServer
from safetensors.torch import save_file

from cfld.convert import __main__ as command
from cfld.convert import download, fetch
from cfld.convert.__main__ import main
from cfld.convert.export import in_layout
from cfld.convert.fetch import FILES, OFFICIAL, PublicFile
from cfld.convert.layouts import layout_of
from cfld.evaluate.lpips import LPIPS
from cfld.evaluate.protocol import load_network, missing_weights
from cfld.evaluate.weights import ALEXNET, FOLDERS, LPIPS_HEADS
from cfld.folder import load
from cfld.tools.card import read_card
from cfld.tools.cli import UserError
from cfld.tools.files import alone_in
from cfld.tools.sums import check_sums, checked_sum, read_sums, record_sum

DATA = random.Random(7).randbytes(30_000)
SUM = hashlib.sha256(DATA).hexdigest()
TOKEN = "hf_secret"


def test_the_table_is_that_of_the_publishers() -> None:
    files = {file for group in FILES.values() for file in group}
    assert len({file.path for file in files}) == len(files)
    page = (Path(__file__).parents[1] / "weights" / "README.md").read_text()
    for file in files:
        assert file.url.startswith(("https://", "{hub}/")) and file.url.endswith(file.path.rsplit("/")[-1])
        assert file.licence and (file.sha256 is None) == (file.size is None)
        assert file.sha256 is None or f"| `{file.path}` | {file.sha256} |" in page
        stem, _, prefix = Path(file.path).stem.rpartition("-")
        if stem and len(prefix) == 8 and set(prefix) <= set("0123456789abcdef"):  # torch.hub's form of a name
            assert file.sha256 and file.sha256.startswith(prefix)
    assert all(f"| `{name}` |" in page for name in (*FILES, "cfld"))
    metrics = {Path(file.path).name: file.url.rpartition("/")[0] for file in FILES["metrics"]}
    assert metrics == FOLDERS
    lpips = importlib.util.find_spec("lpips")
    if lpips is None or lpips.origin is None:
        pytest.skip("the package lpips, which carries alex.pth, is not installed")
    heads = Path(lpips.origin).parent / "weights" / "v0.1" / "alex.pth"
    (alex,) = (file for file in FILES["metrics"] if file.path.endswith("alex.pth"))
    assert (heads.stat().st_size, hashlib.sha256(heads.read_bytes()).hexdigest()) == (alex.size, alex.sha256)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    for name in ("HF_ENDPOINT", "HF_TOKEN", *(f"{kind}_proxy" for kind in ("http", "https", "all"))):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    running = FileServer()
    running.files["/model.bin"] = DATA
    yield running
    running.close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time here."""
    found: list[float] = []
    monkeypatch.setattr(download, "sleep", found.append)
    return found


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch, waits: list[float]):
    """Make FILES one small file, of which this is known."""

    def describe(size: int | None = len(DATA), sha256: str | None = SUM) -> None:
        file = PublicFile("unet", "public/model.bin", "{hub}/model.bin", size, sha256, "MIT")
        monkeypatch.setattr(fetch, "FILES", {"small": (file,)})

    describe()
    return describe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "public"


@pytest.fixture
def argv(server: FileServer, folder: Path, public) -> list[str]:
    return ["fetch", "small", "--to", str(folder.parent), "--endpoint", server.url]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def assert_whole(folder: Path) -> None:
    assert (folder / "model.bin").read_bytes() == DATA
    assert names(folder) == {"model.bin", "SHA256SUMS"}
    assert (folder / "SHA256SUMS").read_text() == f"{SUM}  model.bin\n"


def test_a_file_is_fetched_checked_and_listed_and_then_left_alone(argv, server, folder, capsys) -> None:
    assert main(argv) == 0
    assert_whole(folder)
    assert f"{SUM}  {folder / 'model.bin'}" in capsys.readouterr().out
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and "model.bin: OK" in done.stdout
    requests = len(server.requests)
    assert main(argv) == 0 and main(["fetch", "small", *argv[1:]]) == 0
    assert len(server.requests) == requests
    assert "is there already" in capsys.readouterr().out


def test_a_dry_run_lists_and_fetches_nothing(argv, server, folder, capsys) -> None:
    assert main([*argv, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert str(folder / "model.bin") in out and "0.03 MB" in out and "MIT" in out and f"{server.url}/model.bin" in out
    assert not server.requests and not folder.parent.exists()


def test_the_real_table_can_be_listed(tmp_path, capsys) -> None:
    assert main(["fetch", *FILES, "cfld", "--to", str(tmp_path / "w"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert all(file.path in out for group in FILES.values() for file in group)
    assert "drive.google.com" in out and "pytorch_model_1.bin" in out and "official --weights" in out
    assert not (tmp_path / "w").exists()


def test_the_way_to_the_authors_checkpoint_is_said(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", "cfld"]) == 0
    out = capsys.readouterr().out
    assert "drive.google.com" in out and all(path in out for path in OFFICIAL.values())
    assert "python -m cfld.convert official --out weights/official" in out
    for path in OFFICIAL.values():
        (tmp_path / "weights" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "weights" / path).write_bytes(b"x")
    assert main(["fetch", "cfld"]) == 0
    assert capsys.readouterr().out.strip() == "python -m cfld.convert official --out weights/official"


WORTH_ANOTHER_TRY = {
    "a cut": [{"cut": 20_000}],
    "a reset": [{"cut": 20_000, "reset": True}],
    "a cut before anything": [{"cut": 0}],
    "429": [{"status": 429, "body": b"slow down"}],
    "500, 502, 503 and 408": [{"status": status, "body": b""} for status in (500, 502, 503, 408)],
    "Range not looked at": [{"cut": 20_000}, {"ranges": False}],
    "Range not looked at, and a cut": [{"cut": 20_000}, {"ranges": False, "cut": 10_000}],
    "a range that begins elsewhere": [
        {"cut": 20_000},
        {"status": 206, "headers": {"Content-Range": "bytes 19999-29998/30000"}, "body": DATA[19_999:29_999]},
    ],
    "a range of no place": [{"cut": 20_000}, {"headers": {"Content-Range": "nonsense"}}],
    "416 of a file that goes on": [{"cut": 20_000}, {"status": 416, "headers": {"Content-Range": "bytes */30000"}}],
    "416 that says nothing": [{"cut": 20_000}, {"status": 416, "body": b""}],
    "chunks": [{"chunked": True}],
    "chunks that are cut": [{"chunked": True, "cut": 15_000}],
    "no length": [{"length": None, "headers": {"Connection": "close"}}],
    "no length, and a cut": [{"length": None, "cut": 20_000, "headers": {"Connection": "close"}}],
}


@pytest.mark.parametrize("known", ["sum and size", "the publisher's sum", "neither"])
@pytest.mark.parametrize("faults", WORTH_ANOTHER_TRY.values(), ids=WORTH_ANOTHER_TRY)
def test_what_may_pass_is_tried_again_until_the_file_is_whole(
    argv, server, folder, public, faults, known, fails
) -> None:
    if known != "sum and size":
        public(None, None)
    server.headers["/model.bin"] = {"X-Linked-Etag": f'"{SUM}"', "X-Linked-Size": "30000"}
    if known == "neither":
        server.headers["/model.bin"] = {"ETag": '"version 1"'}
    server.fail("/model.bin", *faults)
    if known == "neither" and faults[0].get("length", 1) is None:
        fails(main, *argv, words=["neither the file's length nor its sum"])
        assert names(folder) <= {"model.bin.unknown.part"}
        return
    assert main(argv) == 0
    assert_whole(folder)
    assert not server.faults["/model.bin"]


def test_a_cut_download_goes_on_where_it_was_also_in_another_command(argv, server, folder, fails) -> None:
    server.fail("/model.bin", {"cut": 12_345}, *[{"status": 503, "body": b""}] * 9)
    fails(main, *argv, words=["503", "0.0123 MB", "model.bin"])
    (part,) = folder.glob("*.part")
    assert part.read_bytes() == DATA[:12_345] and not (folder / "model.bin").exists()
    server.faults.clear()
    assert main(argv) == 0
    assert_whole(folder)
    assert server.ranges("/model.bin")[-1] == "bytes=12345-"


def test_a_part_that_was_whole_is_not_fetched_again(argv, server, folder) -> None:
    server.fail("/model.bin", {"cut": 0, "status": 503})
    folder.mkdir(parents=True)
    name = download.Version(SUM, None, None, False).name(None)
    (folder / f"model.bin.{name}.part").write_bytes(DATA)  # killed before it got its name
    assert main(argv) == 0
    assert_whole(folder)
    assert len(server.requests) == 2  # the second was answered by 416


@pytest.mark.parametrize("known", ["sum and size", "the publisher's sum", "neither"])
def test_parts_of_two_versions_are_never_joined(argv, server, folder, public, known, fails) -> None:
    if known != "sum and size":
        public(None, None)
    old = bytes(len(DATA))
    server.files["/model.bin"] = old
    old_sum = hashlib.sha256(old).hexdigest()
    server.headers["/model.bin"] = {"ETag": '"1"'} if known != "the publisher's sum" else {"X-Linked-Etag": old_sum}
    server.fail("/model.bin", {"cut": 20_000}, *[{"status": 503, "body": b""}] * 9)
    fails(main, *argv, words=["503"])
    server.faults.clear()
    server.files["/model.bin"] = DATA
    server.headers["/model.bin"] = {"ETag": '"2"'} if known != "the publisher's sum" else {"X-Linked-Etag": SUM}
    assert main(argv) == 0
    assert_whole(folder)


def test_a_part_without_a_version_is_not_continued(argv, server, folder, public) -> None:
    public(None, None)
    server.fail("/model.bin", {"cut": 20_000})
    assert main(argv) == 0
    assert_whole(folder)
    assert server.ranges("/model.bin") == [None, "bytes=20000-", None]


def test_a_weak_etag_does_not_tell_versions_apart(argv, server, folder, public) -> None:
    public(None, None)
    server.headers["/model.bin"] = {"ETag": 'W/"1"'}  # means much the same, not the same bytes
    server.fail("/model.bin", {"cut": 20_000, "body": bytes(len(DATA))})
    assert main(argv) == 0
    assert_whole(folder)


def test_a_damaged_part_is_found_out_and_the_file_fetched_anew(argv, server, folder) -> None:
    server.fail("/model.bin", {"cut": 20_000}, *[{"status": 503, "body": b""}] * 9)
    assert main(argv) == 2
    (part,) = folder.glob("*.part")
    part.write_bytes(bytes(20_000))
    server.faults.clear()
    assert main(argv) == 0
    assert_whole(folder)


def page(**more: object) -> dict[str, object]:
    return {"body": b"<!DOCTYPE html><title>Sign in</title>", **more}


NOT_WORTH_IT = {
    "404": ([{"status": 404, "body": b""}], ["404", "moved", "weights/README.md"]),
    "403": ([{"status": 403, "body": b""}], ["403", "HF_TOKEN"]),
    "401": ([{"status": 401, "body": b""}], ["401", "HF_TOKEN"]),
    "400": ([{"status": 400, "body": b""}], ["400"]),
    "416 that was not asked for": ([{"status": 416, "body": b""}], ["416"]),
    "206 that was not asked for": ([{"status": 206}], ["206"]),
    "204": ([{"status": 204, "body": b""}], ["204"]),
    "a page": ([page(headers={"Content-Type": "text/html; charset=utf-8"})], ["a web page"]),
    "a page after a cut": ([{"cut": 9_000}, page(headers={"Content-Type": "text/html"}, status=206)], ["a web page"]),
    "gzip": ([{"headers": {"Content-Encoding": "gzip"}}], ["gzip"]),
    "another length": ([{"body": DATA + b"x"}], ["30001 bytes", "expected 30000"]),
    "too long, in chunks": ([{"body": DATA + b"x", "chunked": True}], ["30001 bytes", "expected 30000"]),
    "nothing": ([{"body": b""}], ["0 bytes", "expected 30000"]),
    "another sum": ([{"body": bytes(30_000)}], ["SHA-256", SUM]),
    "another sum of the publisher's": (
        [{"headers": {"X-Linked-Etag": '"' + "0" * 64 + '"'}}],
        ["now another", "0" * 64],
    ),
    "a wait of an hour": ([{"status": 429, "body": b"", "headers": {"Retry-After": "3600"}}], ["429", "3600 seconds"]),
    "a circle": ([{"redirect": "/model.bin"}] * 20, ["302"]),
    "a redirect to a file here": ([{"redirect": "file:///etc/passwd"}], ["302"]),
    "a redirect to ftp": ([{"redirect": "ftp://127.0.0.1/model.bin"}], ["ftp", "not safe"]),
}


@pytest.mark.parametrize(("faults", "words"), NOT_WORTH_IT.values(), ids=NOT_WORTH_IT)
def test_what_stays_wrong_is_one_line_and_no_file(argv, server, folder, faults, words, fails) -> None:
    server.fail("/model.bin", *faults)
    fails(main, *argv, words=[*words, "model.bin"])
    assert "model.bin" not in names(folder)
    assert read_sums(folder) == {}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (page(), ["a web page"]),
        (page(chunked=True), ["a web page"]),
        ({"body": b""}, ["an empty file"]),
        ({"headers": {"X-Linked-Etag": SUM, "X-Linked-Size": "29999"}}, ["30000 bytes", "29999"]),
        ({"body": bytes(30_000), "headers": {"X-Linked-Etag": SUM}}, [SUM]),
    ],
)
def test_so_it_is_of_a_file_of_which_nothing_is_known(argv, server, folder, public, fault, words, fails) -> None:
    public(None, None)
    server.fail("/model.bin", fault)
    fails(main, *argv, words=[*words, "model.bin"])
    assert "model.bin" not in names(folder)


def test_it_gives_up_after_some_tries_without_progress(argv, server, folder, waits, fails) -> None:
    server.fail("/model.bin", *[{"status": 503, "body": b""}] * 99)
    fails(main, *argv, words=["503", "try again later"])
    assert len(server.requests) == download.ATTEMPTS + 1
    assert waits == sorted(waits) and max(waits) <= 60


def test_a_server_that_ignores_range_and_always_cuts_is_given_up(argv, server, folder, fails) -> None:
    server.fail("/model.bin", *[{"ranges": False, "cut": 20_000}] * 99)
    fails(main, *argv, words=["cut after"])
    assert not (folder / "model.bin").exists()


def test_retry_after_is_kept(argv, server, folder, waits) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    for text in ("7", date, "tomorrow"):
        server.fail("/model.bin", {"status": 429, "body": b"", "headers": {"Retry-After": text}})
    assert main(argv) == 0
    assert waits[0] == 7 and 90 < waits[1] <= 100 and waits[2] < 10


def test_nobody_there_and_a_server_that_says_nothing_are_one_line(argv, server, monkeypatch, folder, fails) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fails(main, *argv[:-1], f"http://127.0.0.1:{silent.getsockname()[1]}", words=["no answer in time"])
    server.close()
    fails(main, *argv, words=["refused"])


@pytest.fixture
def other() -> FileServer:
    """Another host (by its port)."""
    running = FileServer()
    running.files["/blob"] = DATA
    yield running
    running.close()


def test_the_token_goes_to_its_host_alone_and_is_never_printed(argv, server, other, folder, monkeypatch, capfd) -> None:
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    server.fail("/model.bin", {"redirect": "/moved", "status": 307}, {"status": 403, "body": b""})
    server.fail("/moved", {"redirect": f"{other.url}/blob?signature={TOKEN}2", "headers": {"X-Linked-Etag": SUM}})
    other.files[f"/blob?signature={TOKEN}2"] = DATA
    other.fail(f"/blob?signature={TOKEN}2", {"cut": 100})
    server.fail("/model.bin")
    server.faults["/model.bin"].insert(1, {"redirect": f"{other.url}/blob"})
    assert main(argv) == 0
    assert_whole(folder)
    assert [headers.get("Authorization") for _, headers in server.requests] == [f"Bearer {TOKEN}"] * 3
    assert len(other.requests) == 2
    assert not any("Authorization" in headers or TOKEN in str(headers) for _, headers in other.requests)
    (folder / "model.bin").unlink()
    assert main(argv) == 2  # the 403
    out, err = capfd.readouterr()
    assert TOKEN not in out + err


def test_the_token_is_for_hugging_face_and_not_for_others(argv, server, other, folder, monkeypatch) -> None:
    file = PublicFile("swin", "public/swin.pth", f"{other.url}/blob", None, None, "MIT")
    monkeypatch.setattr(fetch, "FILES", {"small": (file,)})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(argv) == 0
    assert "Authorization" not in other.requests[0][1]


def test_a_redirect_from_https_to_http_is_refused() -> None:
    request = download.urllib.request.Request("https://hub.example/a?x=1")
    with pytest.raises(UserError, match="from https to http"):
        download.Redirects(request.full_url, TOKEN).redirect_request(request, None, 302, "", {}, "http://hub.example/b")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("HF_TOKEN", "two words", ["HF_TOKEN"]),
        ("HF_TOKEN", "pass\x07", ["HF_TOKEN"]),
        ("HF_ENDPOINT", "hub.example", ["hub.example", "https://huggingface.co"]),
        ("HF_ENDPOINT", "ftp://hub.example", ["ftp://hub.example"]),
    ],
)
def test_a_wrong_endpoint_or_token_is_one_line(argv, monkeypatch, variable, value, words, fails) -> None:
    monkeypatch.setenv(variable, value)
    fails(main, *argv[:4], words=words)


def test_a_token_does_not_travel_unencrypted(argv, monkeypatch, fails) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert TOKEN not in fails(main, *argv[:4], "--endpoint", "http://hub.example", words=["https", "HF_TOKEN"])


def test_hf_endpoint_names_a_mirror_and_the_option_goes_before_it(argv, server, monkeypatch, folder) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(argv) == 0
    (folder / "model.bin").unlink()
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    assert main(argv[:4]) == 0
    assert_whole(folder)


def test_another_file_is_said_and_kept(argv, server, folder, public, fails) -> None:
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"mine")
    fails(main, *argv, words=["another file", "4 bytes", "30000", "remove it"])
    (folder / "model.bin").write_bytes(bytes(len(DATA)))
    fails(main, *argv, words=["another file", SUM])
    assert not server.requests
    public(None, None)
    for headers in ({"X-Linked-Etag": SUM}, {}):
        server.headers["/model.bin"] = headers
        (folder / "model.bin").write_bytes(b"mine")
        fails(main, *argv, words=["another file", "4 bytes"])
    assert (folder / "model.bin").read_bytes() == b"mine" and names(folder) == {"model.bin"}


def test_a_file_that_was_put_there_by_hand_is_taken(argv, server, folder, public, capsys, waits) -> None:
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(DATA)
    public(None, None)
    server.fail("/model.bin", {"cut": 0, "status": 503}, {"headers": {"X-Linked-Etag": SUM}}, None)
    assert main(argv) == 0
    assert_whole(folder)
    (folder / "SHA256SUMS").unlink()
    assert main(argv) == 0
    assert "no sum to compare" in capsys.readouterr().out
    assert_whole(folder)
    assert len(server.requests) == 3


def test_a_publisher_that_changes_its_file_is_said(argv, server, folder, public, fails) -> None:
    public(None, None)
    assert main(argv) == 0
    (folder / "model.bin").unlink()
    server.files["/model.bin"] = DATA[::-1]
    fails(main, *argv, words=[SUM, "expected"])
    server.headers["/model.bin"] = {"X-Linked-Etag": hashlib.sha256(DATA[::-1]).hexdigest()}
    fails(main, *argv, words=[SUM, "now another file"])
    assert not (folder / "model.bin").exists()


def test_lists_of_sums_are_read_as_sha256sum_writes_them(tmp_path, fails) -> None:
    path = tmp_path / "SHA256SUMS"
    path.write_text(f"{SUM.upper()} *a file.bin\n\n{SUM}  b\n")
    assert read_sums(tmp_path) == {"a file.bin": SUM, "b": SUM}
    record_sum(tmp_path / "c", SUM)
    assert path.read_text() == f"{SUM}  a file.bin\n{SUM}  b\n{SUM}  c\n"
    (tmp_path / "a file.bin").write_bytes(DATA)
    (tmp_path / "unlisted").write_bytes(b"1")
    check_sums(tmp_path / "a file.bin", None, tmp_path / "unlisted", tmp_path / "not there")
    (tmp_path / "a file.bin").write_bytes(DATA[1:])
    with pytest.raises(UserError, match="is another file than"):
        check_sums(tmp_path / "a file.bin")
    with pytest.raises(UserError, match="is another file than"):
        checked_sum(tmp_path / "a file.bin")
    path.write_text("nonsense\n")
    with pytest.raises(UserError, match="line 1"):
        read_sums(tmp_path)


def test_too_little_room_is_said_before_anything_is_fetched(argv, server, folder, public, monkeypatch, fails) -> None:
    free = 10_000
    usage = download.shutil.disk_usage(".")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda place: usage._replace(free=free))
    fails(main, *argv, words=["0.03 MB are needed", "0.01 MB are free"])
    assert not server.requests
    public(None, None)  # nothing is known before the server is asked
    fails(main, *argv, words=["are needed"])
    assert names(folder) == set()
    free = 40_000
    assert main(argv) == 0


class FullDisk:
    """A file on a disk that has room for this many more bytes."""

    def __init__(self, path: Path, mode: str, room: int):
        self.file, self.room = path.open(mode), room

    def __enter__(self):
        return self

    def __exit__(self, *words: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: self.room])
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_is_one_line_and_what_fits_is_kept(argv, server, folder, monkeypatch, fails) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(download, "open", partial(FullDisk, room=12_000), raising=False)
        fails(main, *argv, words=["model.bin", "No space left on device", "make room"])
    (part,) = folder.glob("*.part")
    assert part.read_bytes() == DATA[:12_000] and names(folder) == {part.name}
    assert main(argv) == 0
    assert_whole(folder)
    assert server.ranges("/model.bin") == [None, "bytes=12000-"]


def test_a_full_disk_is_one_line(argv, server, folder, monkeypatch, fails) -> None:
    def full(path: Path, digest: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "record_sum", full)
    fails(main, *argv, words=["No space left on device", "make room"])
    assert not (folder / "model.bin").exists()


def test_one_command_at_a_time_fetches_into_a_folder(argv, folder, monkeypatch, fails) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with alone_in(folder):
        fails(main, *argv, words=["in use by another process"])
    assert main(argv) == 0


def test_after_a_hundred_random_cuts_no_file_is_wrong(server, tmp_path, monkeypatch, waits, capsys) -> None:
    """Of files of which much, little or nothing is known; by a close or a reset, with Range heeded or not."""
    rng = random.Random(1)
    files = {}
    for i in range(20):
        data = rng.randbytes(rng.randrange(2_000, 200_000))
        digest, url = hashlib.sha256(data).hexdigest(), f"/{i}.bin"
        server.files[url] = data
        known = i % 3 == 0
        if i % 3 == 1:
            server.headers[url] = {"X-Linked-Etag": digest, "X-Linked-Size": str(len(data))}
        if i % 3 == 2:
            server.headers[url] = {"ETag": f'"{digest[:9]}"'}
        size, digest = (len(data), digest) if known else (None, None)
        files[f"f{i}"] = (PublicFile("unet", f"public/{i}.bin", f"{{hub}}{url}", size, digest, "MIT"),)
    monkeypatch.setattr(fetch, "FILES", files)
    wrong, rounds = 0, 0
    while server.cuts < 100:
        folder, rounds = tmp_path / f"{rounds}", rounds + 1
        server.faults.clear()
        for url in server.files:
            for _ in range(rng.randrange(2, 7)):
                server.fail(url, {"cut": rng.random(), "reset": rng.random() < 0.3, "ranges": rng.random() < 0.8})
        for _ in range(9):
            done = main(["fetch", *files, "--to", str(folder), "--endpoint", server.url]) == 0
            there = [url for url in server.files if (folder / "public" / url[1:]).exists()]
            wrong += sum((folder / "public" / url[1:]).read_bytes() != server.files[url] for url in there)
            if done:
                break
        assert done and len(there) == 20 and not list((folder / "public").glob("*.part"))
    assert wrong == 0


def write_public(folder: Path, part: str, module: torch.nn.Module, layout: tuple[str, str]) -> None:
    """Put a part of a small model where fetch puts the public file of it."""
    path = folder / next(file.path for group in FILES.values() for file in group if file.part == part)
    tensors = {name: x.detach().contiguous() for name, x in in_layout(module, layout_of(*layout)).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    record_sum(path, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose weights/ has all that fetch gets, of MICRO's widths instead of SD 1.5's."""
    model, vae = micro_model()
    folder = tmp_path / "weights"
    for part, module, layout in (
        ("unet", model.unet, ("UNet", "diffusers")),
        ("vae", vae, ("VAE", "diffusers")),
        ("swin", model.source_encoder, ("Swin", "Microsoft")),
    ):
        write_public(folder, part, module, layout)
    monkeypatch.setattr(command, "SD15", MICRO)
    monkeypatch.chdir(tmp_path)
    return folder


def test_init_finds_what_was_fetched(fetched: Path, fails) -> None:
    assert main(["init", "--out", "start"]) == 0
    model, _ = load("start")
    assert torch.equal(model.unet.conv_in.weight, micro_model()[0].unet.conv_in.weight)
    licence, base_models = read_card("start")
    assert licence == "creativeml-openrail-m" and base_models == ["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    (path,) = (fetched / "public" / "sd15" / "vae").glob("*.safetensors")
    record_sum(path, SUM)
    fails(main, "init", "--out", "other", words=["vae", "is another file than", "SHA256SUMS", SUM])
    path.unlink()
    fails(main, "init", "--out", "other", words=["--vae", "--sd", "fetch sd15"])
    fetched.rename("elsewhere")
    fails(main, "init", "--weights", "elsewhere", "--out", "other", words=["--vae"])
    assert not Path("other").exists()


def test_official_finds_what_was_fetched_and_put_there(fetched: Path, fails) -> None:
    fails(main, "official", "--out", "official", words=["pytorch_model.bin", "fetch cfld"])
    model = micro_model()[0]
    for part, module, layout in (("model", model, "CFLD"), ("unet", model.unet, "UNet")):
        path = fetched / OFFICIAL[part]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({n: x.detach() for n, x in in_layout(module, layout_of(layout, "official CFLD")).items()}, path)
    assert main(["official", "--out", "official"]) == 0
    ours, _ = load("official")
    assert torch.equal(ours.null_prompt, model.null_prompt)
    assert "DeepFashion" in Path("official", "README.md").read_text()
    (path,) = (fetched / "public" / "sd15" / "vae").glob("*.safetensors")
    path.unlink()
    fails(main, "official", "--out", "other", words=["--vae FILE is needed", "fetch sd15-vae"])


def test_the_single_file_serves_both_and_what_is_given_goes_first(fetched: Path) -> None:
    def parse(**given: object) -> argparse.Namespace:
        defaults = dict.fromkeys(("unet", "vae", "sd", "swin", "clip", "config", "ablation"))
        options = argparse.Namespace(**defaults | {"weights": fetched} | given)
        fetch.use_fetched(options)
        return options

    single = fetched / "public" / "sd15" / "v1-5-pruned-emaonly.safetensors"
    for path in (fetched / "public" / "sd15").glob("*/*.safetensors"):
        path.rename(single)
    found = parse()
    assert found.unet == found.vae == str(single) and found.swin and found.clip is None
    assert parse(vae="mine").vae == "mine" and parse(vae="mine").unet == str(single)
    assert parse(sd="mine").unet is None and parse(sd="mine").swin
    assert parse(config="other widths").unet is None
    assert parse(ablation="B2").swin is None and parse(clip="mine").swin is None


def test_evaluate_says_that_a_file_is_another_one(tmp_path: Path) -> None:
    lpips = LPIPS()
    torch.save({f"features.{name}": x for name, x in lpips.features.state_dict().items()}, tmp_path / ALEXNET)
    heads = {f"lin{i}.model.1.weight": x[None, :, None, None].detach() for i, x in enumerate(lpips.heads)}
    torch.save(heads, tmp_path / LPIPS_HEADS)
    assert load_network(tmp_path, "LPIPS")
    record_sum(tmp_path / LPIPS_HEADS, SUM)
    with pytest.raises(UserError, match=f"alex.pth is another file than .*{SUM}"):
        load_network(tmp_path, "LPIPS")
    assert "python -m cfld.convert fetch metrics" in missing_weights(tmp_path, "FID")[0]
