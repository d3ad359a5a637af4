"""A training that is killed over and over (SIGKILL) ends with the weights, bit for bit, of one that was not.

Each life of the training is forked from a server that has imported everything. Every other kill comes at a random
moment, the others as soon as a file is half written. After each kill, all checkpoints must be whole. A training that
ends is compared with one that was never killed, and begun anew.
"""

import dataclasses
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import MICRO
from tqdm import tqdm

import cfld.train as train_module
from cfld import CFLD, VAE
from cfld.folder import save
from cfld.tools.tensors import read_safetensors

SERVER = multiprocessing.get_context("forkserver")
OPTIONS = (
    "--batch 2 --ema 0.9 --lr 1e-3 --warmup 2 --save-every 1 --eval-every 3 --sample-every 0 --log-every 1 --device cpu"
)
LIMIT = 1800  # seconds for all kills of a test


def train(argv: list[str], log: Path) -> None:
    """One life: cfld.train, with its output in a file. Ends the process with its exit code."""
    torch.set_num_threads(1)
    train_module.VALIDATION_PAIRS = 2
    tqdm.set_lock(threading.RLock())  # a lock that processes share would be left over by a kill
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1), os.dup2(output, 2)
    sys.exit(train_module.main(argv))


def half_written(out: Path) -> set[str]:
    """The files of a run that are being written, or were when it was killed."""
    entries = (name for _, folders, files in os.walk(out) for name in (*folders, *files))  # skips what vanishes
    return {name for name in entries if name.startswith(".") and ".tmp" in name}


def live(argv: list[str], log: Path, out: Path, seconds: float, writes: float) -> int:
    """Begin a training, and kill it after so many seconds or when it begins to write its file of this number. Returns
    its exit code, or -SIGKILL."""
    before, seen = half_written(out), set[str]()
    process = SERVER.Process(target=train, args=(argv, log))
    process.start()
    started = time.perf_counter()
    while process.is_alive():
        seen |= half_written(out) - before
        if time.perf_counter() - started > seconds or len(seen) >= writes:
            process.kill()
            process.join()
        time.sleep(0.0003)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("kills", "steps"), [(2, 3), pytest.param(200, 6, marks=pytest.mark.slow)], ids=["twice", "200 times"]
)
def test_a_training_that_is_killed_ends_bit_for_bit_as_one_that_was_not(
    fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, kills: int, steps: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # so that the server can import this file
    lazy = ["torch._dynamo", "torch._refs"]  # which torch imports with the first optimiser
    SERVER.set_forkserver_preload(["cfld.train", "test_kills", *lazy])
    config = dataclasses.replace(MICRO, unet_trainable="all")
    torch.manual_seed(0)
    model, log, out, whole = (tmp_path / name for name in ("model", "log.txt", "out", "whole"))
    save(model, CFLD(config), VAE(config.vae))
    common = ["--config", str(model / "config.json"), "--init", str(model), "--data", str(fashion)]
    common += f"--steps {steps} --precision {precision} {OPTIONS} --out".split()
    started = time.perf_counter()
    assert live([*common, str(whole)], log, whole, 1e9, 1e9) == 0, log.read_text()
    duration = time.perf_counter() - started
    wanted = (whole / "model" / "model.safetensors").read_bytes()

    rng, done, halves, ended = random.Random(0), 0, 0, 0
    while done < kills or out.exists():
        assert time.perf_counter() - started < LIMIT, f"{done} of {kills} kills in {LIMIT} seconds"
        seconds = rng.uniform(0, duration) if done < kills and done % 2 else 1e9
        writes = rng.randint(1, 16) if done < kills and not done % 2 else 1e9
        code = live([*common, str(out), "--resume"], log, out, seconds, writes)
        if code == -signal.SIGKILL:
            done += 1
            halves += bool(half_written(out))
            for path in (out / "checkpoints").glob("[!.]*.safetensors"):
                read_safetensors(path)  # raises UserError if it is damaged
            continue
        assert code == 0, log.read_text()
        ended += 1
        assert (out / "model" / "model.safetensors").read_bytes() == wanted, f"other weights after {done} kills"
        assert not half_written(out)
        shutil.rmtree(out)
    print(f"{precision}: {done} kills, {halves} of them while a file was being written; {ended} trainings ended")
    assert ended
