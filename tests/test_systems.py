"""Other systems and bad ends: consoles, Windows's locks and memory, no compiler, workers whose parent is killed."""

import contextlib
import ctypes
import io
import os
import pickle
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

import cfld.tools.files as files
from cfld.data.batch import Readable, StepOrder, begin_worker, collate_readable, lost_worker, step_batches
from cfld.data.pairs import FashionPairs, PeoplePairs
from cfld.people.__main__ import main as people
from cfld.photos.__main__ import main as preview
from cfld.tools.cli import UserError, command, pick_device
from cfld.tools.files import alone_in, atomic, contents, refuse_overwrite
from cfld.tools.workers import in_workers
from cfld.train import main as train
from cfld.training import memory

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts processes as Linux does")


def test_a_console_of_another_encoding_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)

    @command
    def main(argv: list[str]) -> None:
        print("wrote 新しい.png")

    assert main([]) == 0
    out.flush()
    assert out.buffer.getvalue() == b"wrote \\u65b0\\u3057\\u3044.png\n"  # type: ignore[attr-defined]


def test_a_device_on_which_nothing_can_be_computed_is_refused() -> None:
    with pytest.raises(UserError, match="--device meta cannot be used here"):
        pick_device("meta")
    with pytest.raises(UserError, match="--device nowhere cannot be used here"):
        pick_device("nowhere")


@pytest.mark.parametrize("module", ["torch._dynamo.exc", "torch._inductor.exc"])
def test_an_error_of_the_compiler_is_one_line_and_one_of_the_code_is_not(fails, module: str) -> None:
    kind = type("InvalidCxxCompiler", (RuntimeError,), {"__module__": module})

    @command
    def main(argv: list[str]) -> None:
        raise kind("no C++ compiler\nin /nonexistent")

    fails(main, words=["--compile needs a compiler", "(InvalidCxxCompiler)", "leave --compile out"])

    @command
    def other(argv: list[str]) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        other([])


def test_a_compiler_that_is_not_there_is_missed_before_the_work(tmp_path: Path, fails, argv) -> None:
    options = argv("no compiler", "--steps", 1, "--compile")
    environment = {**os.environ, "CXX": "/nonexistent/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = [sys.executable, "-m", "cfld.train", *options]
    done = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: --compile needs a compiler" in done.stderr and not list(tmp_path.iterdir())


def test_a_file_is_not_replaced_by_way_of_a_folder_that_is_not_there(tmp_path: Path, fails) -> None:
    Image.new("RGB", (88, 128)).save(tmp_path / "a.png")
    (tmp_path / "p.json").write_text("precious")
    around = tmp_path / "new" / ".." / "p.json"
    with pytest.raises(UserError, match=r"p\.json already exists"):
        refuse_overwrite(around, force=False)
    fails(preview, tmp_path / "a.png", "--out", around, words=["p.json already exists"])
    with atomic(around) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "p.json").read_text() == "new" and not (tmp_path / "new").exists()


# Windows.


class Lock(types.ModuleType):
    """msvcrt, with locks of a descriptor's file that this process holds itself."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.held: dict[int, tuple[int, int]] = {}

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        assert mode == self.LK_NBLCK and count == 1
        place = os.fstat(descriptor)
        open_still = {d: p for d, p in self.held.items() if d != descriptor and self.is_open(d)}
        if (place.st_dev, place.st_ino) in open_still.values():
            raise OSError(36, "Resource deadlock avoided")
        self.held = open_still | {descriptor: (place.st_dev, place.st_ino)}

    @staticmethod
    def is_open(descriptor: int) -> bool:
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            return True
        return False


def test_windows_locks_a_file_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", Lock())
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    with alone_in(tmp_path / "run"):
        assert contents(tmp_path / "run") == set()  # the lock is nobody's work
        with pytest.raises(UserError, match="in use by another process"), alone_in(tmp_path / "run"):
            pass
    with alone_in(tmp_path / "run"):
        pass


def test_windows_writes_out_only_what_is_open_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def commit(descriptor: int, sync=os.fsync) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", commit)
    files.write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


def test_windows_says_how_much_memory_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    class Function:
        restype: object = None

        def __call__(self) -> int:
            return 2**64 - 1

    def info(process: ctypes.c_void_p, counters, size: int) -> int:
        assert process.value == 2**64 - 1 and size == ctypes.sizeof(memory.Counters)
        counters._obj.PeakWorkingSetSize, counters._obj.WorkingSetSize = 7 << 30, 5 << 30
        return 1

    library = types.SimpleNamespace(GetCurrentProcess=Function(), K32GetProcessMemoryInfo=info)
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: {"kernel32": library}[name], raising=False)
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(memory.Path, "write_text", lambda *args: (_ for _ in ()).throw(FileNotFoundError()))
    monkeypatch.setattr(memory.Path, "read_text", lambda *args: (_ for _ in ()).throw(FileNotFoundError()))
    assert memory.memory(torch.device("cpu")) == 5 << 30
    assert memory.memory(torch.device("cpu"), peak=True) == 7 << 30


def test_windows_has_no_c_library_whose_memory_could_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_windows(name: str | None) -> None:
        raise TypeError("argument of type 'NoneType' is not iterable") if name is None else OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", on_windows)
    memory.keep_freed_memory()


def test_what_goes_to_a_spawned_worker_can_be_pickled(fashion: Path) -> None:
    for pairs in (FashionPairs(fashion, "train", 64, 32), PeoplePairs(2, 2, 0, 64, 32)):
        kept = pickle.loads(pickle.dumps((Readable(pairs), collate_readable, begin_worker)))
        assert len(kept[0].pairs) == len(pairs)


# Workers.


def children(process: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def alive(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for(what, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@linux
@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("people", "SIGKILL"),
        ("train", "SIGTERM"),
        pytest.param("people", "SIGTERM", marks=pytest.mark.slow),
        pytest.param("train", "SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_workers_end_with_their_parent_however_it_ends(argv, tmp_path: Path, what: str, name: str) -> None:
    out = tmp_path / "out"
    if what == "people":
        arguments = ["cfld.people", str(out), "--identities", "40", "--poses", "2", "--height", "64", "--workers", "2"]
        begun = out / "records.jsonl"
    else:
        options = argv("workers", "--steps", 100_000, "--workers", 2)
        options[options.index("--out") + 1] = str(out)
        arguments, begun = ["cfld.train", *options], out / "log.jsonl"
    parent = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers: list[int] = []
    try:
        wait_for(lambda: begun.is_file() and begun.stat().st_size)
        workers = children(parent.pid)
        assert len(workers) >= 2
        parent.send_signal(signal.Signals[name])
        parent.wait(timeout=600)
        wait_for(lambda: not any(map(alive, workers)), 60)
    finally:
        parent.kill()
        parent.wait()
        for worker in filter(alive, workers):
            os.kill(worker, signal.SIGKILL)


@linux
def test_a_killed_worker_of_a_training_is_one_line(argv, tmp_path: Path) -> None:
    options = argv("killed worker", "--steps", 100_000, "--save-every", 1, "--workers", 2)
    out = tmp_path / "out"
    options[options.index("--out") + 1] = str(out)
    run = subprocess.Popen([sys.executable, "-m", "cfld.train", *options], stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: list((out / "checkpoints").glob("step_*.safetensors")))
        os.kill(children(run.pid)[-1], signal.SIGKILL)
        _, said = run.communicate(timeout=600)
    finally:
        run.kill()
    assert run.returncode == 2 and "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "a worker that loads photos was ended from outside" in line and "--resume" in line
    assert list((out / "checkpoints").glob("step_*.safetensors"))


def test_an_error_that_is_none_of_a_worker_keeps_its_traceback() -> None:
    with pytest.raises(UserError, match=r"ended from outside.*: go on"), lost_worker("go on"):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    with pytest.raises(RuntimeError, match="mat1"), lost_worker("go on"):
        raise RuntimeError("mat1")


def test_workers_give_what_one_process_gives(fashion: Path) -> None:
    assert sorted(in_workers(abs, [-3, 2, -1], 2)) == list(in_workers(abs, [-1, 2, -3], 1)) == [1, 2, 3]
    pairs = FashionPairs(fashion, "train", 64, 32)
    order = StepOrder(len(pairs), 2, 0, 0, 3)
    alone, helped = (list(step_batches(pairs, order, workers)) for workers in (0, 2))
    assert all(torch.equal(x.images, y.images) for x, y in zip(alone, helped, strict=True))


def test_a_photo_that_is_gone_from_a_finished_folder_is_drawn_again(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    argv = [str(out), "--identities", "3", "--poses", "2", "--height", "64", "--test-fraction", "0", "--workers", "1"]
    assert people(argv) == 0
    kinds = ("train_highres", "masks_train")
    before = {path: path.read_bytes() for kind in kinds for path in (out / kind).iterdir()}
    times = {path: path.stat().st_mtime_ns for path in before}
    gone = [sorted(before)[0], sorted(before)[-1]]
    for path in gone:
        path.unlink()
    assert people(argv) == 0
    assert {path: path.read_bytes() for kind in kinds for path in (out / kind).iterdir()} == before
    redrawn = {path.name.partition("id")[2][:8] for path in before if path.stat().st_mtime_ns != times[path]}
    assert redrawn == {path.name.partition("id")[2][:8] for path in gone}  # nobody else
    (out / "records.jsonl").write_text('{"seed": 0, "photos": [{"nam": 1}]}\n')
    assert people(argv) == 2 and "records.jsonl is damaged" in capsys.readouterr().err


def test_a_training_says_at_once_that_its_device_cannot_compute(argv, fails) -> None:
    options = argv("meta", "--steps", 1)
    options[options.index("--device") + 1] = "meta"
    fails(train, *options, words=["--device meta cannot be used here"])
