"""Two processes train as one, and stop together."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from references import relative_error
from run_folders import ONE_THREAD, logged, weights


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_processes_train_as_one(run, fashion: Path, micro_folder: Path, tmp_path: Path, accumulate: int) -> None:
    steps = ["--steps", "3", "--ema", "0.9", "--clip", "1", "--accumulate", str(accumulate)]
    alone = run(f"alone{accumulate}", *steps)
    options = json.loads((alone / "config.json").read_text())["options"]
    argv = ["--config", options["config"], "--data", fashion, "--init", micro_folder, "--batch", 4, "--lr", 1e-3]
    argv += ["--precision", "fp32", "--warmup", 2, "--sample-every", 0, "--log-every", 1, "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["-m", "cfld.train", *argv, "--out", tmp_path / "two", *steps]
    done = subprocess.run([str(a) for a in launch], env=ONE_THREAD, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = ([line["loss"] for line in logged(folder)] for folder in (tmp_path / "two", alone))
    assert ours == pytest.approx(theirs, rel=1e-5)
    first, second = weights(tmp_path / "two"), weights(alone)
    assert max(relative_error(first[name], second[name]) for name in second) <= 1e-3


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("SIGTERM", 143),
        pytest.param("SIGKILL", 2, marks=pytest.mark.slow),
        pytest.param("SIGSTOP", 2, marks=pytest.mark.slow),
    ],
)
def test_two_processes_stop_together_and_neither_waits_for_a_dead_one(argv, name: str, code: int) -> None:
    """One of two is sent the signal in the middle of training; what the other does."""
    arguments = argv(f"two {name}", "--steps", 10_000, "--timeout", 0.5 if name == "SIGSTOP" else 5)
    folder = Path(arguments[arguments.index("--out") + 1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = ONE_THREAD | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "cfld.train", *arguments]
    first, second = (
        subprocess.Popen(
            command,
            env=together | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    )
    try:
        while not (folder / "log.jsonl").is_file() and first.poll() is None:
            time.sleep(0.05)
        second.send_signal(signal.Signals[name])
        output, errors = first.communicate(timeout=120)
        assert first.returncode == code, errors[-2000:]
        if name == "SIGTERM":
            assert second.wait(60) == code
            assert "saved" in output and len(list((folder / "checkpoints").iterdir())) == 1
        else:
            (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
            assert "process 0 has lost another" in line and "--timeout" in line
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


UNEQUAL_WORK = """
import os, sys, time
from cfld.tools import processes as module
from cfld.tools.cli import command

module.HEARTBEAT = 0.1

@command
def main(argv):
    with module.join("cpu", timeout=0.05) as processes:  # three seconds
        if processes.rank == 1:
            if argv == ["die"]:
                os._exit(0)
            time.sleep(6)
        processes.wait_for_work()
        total = processes.all_reduce(module.torch.tensor([float(processes.rank)]))
        print(processes.rank, [*processes.share(5)], total, processes.broadcast(processes.rank == 0), flush=True)

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("fate", ["work", "die"])
def test_a_process_waits_for_one_that_works_long_and_not_for_a_dead_one(fate: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = ONE_THREAD | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", UNEQUAL_WORK, fate],
            env=together | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        (said, errors), (said_too, _) = (process.communicate(timeout=60) for process in both)
    finally:
        for process in both:
            process.kill()
    if fate == "work":
        assert said.strip() == "0 [0, 2, 4] [1.0] True", errors
        assert said_too.strip() == "1 [1, 3] [1.0] True"
    else:
        assert both[0].returncode == 2 and "process 0 has lost another" in errors and "Traceback" not in errors, errors
