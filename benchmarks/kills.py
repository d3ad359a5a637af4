"""A training that is killed over and over (SIGKILL) ends with the weights, bit for bit, of one that was not.

    python benchmarks/kills.py --kills 200

Each life of a training is a fork of this process. Every other kill comes at a random moment, the others as soon as a
file is half written. After each, all checkpoints must be whole. A training that ends is compared, and begun anew.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm

from cfld import CFLD, VAE, AdapterConfig, CFLDConfig, HGAConfig, PRDConfig, SwinConfig, UNetConfig, VAEConfig
from cfld.data.deepfashion import prepare
from cfld.folder import save
from cfld.tools.cli import UserError
from cfld.tools.tensors import read_safetensors
from cfld.train import main as train

SMALL = CFLDConfig(
    image_size=64,
    unet_trainable="all",
    unet=UNetConfig(channels=(16, 16, 32, 32), num_heads=2, context_width=16, groups=8),
    vae=VAEConfig(channels=(8, 8, 16, 16), groups=8),
    swin=SwinConfig(image_size=32, width=16, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), window=4),
    prd=PRDConfig(num_queries=3, width=16, depth=1, num_heads=2, source_width=128, source_positions=1),
    hga=HGAConfig(source_widths=(16, 32, 64), output_widths=(32, 16, 16), depth=1, head_width=8),
    adapter=AdapterConfig(pose_size=32, channels=(16, 16, 32), groups=8),
)

OPTIONS = (
    "--batch 2 --ema 0.9 --lr 1e-3 --warmup 2 --save-every 1 --eval-every 3 --sample-every 0 --log-every 1 --device cpu"
)


def begin(argv: list[str], log: Path) -> int:
    """Train in a fork of this process. Returns its number."""
    if pid := os.fork():
        return pid
    code = 70
    tqdm.set_lock(threading.RLock())  # of its own: it would take the common one with it
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        code = train(argv)
    finally:
        os._exit(code)


def half_written(out: Path) -> set[str]:
    """The files of a run that are being written, or were when it was killed."""
    entries = (name for _, folders, files in os.walk(out) for name in (*folders, *files))  # what vanishes is left out
    return {name for name in entries if name.startswith(".") and ".tmp" in name}


def end(pid: int, out: Path, seconds: float, writes: float) -> int | None:
    """Kill a training after so many seconds, or as soon as it has begun to write its file of this number. Returns its
    exit code if it ended before."""
    started, before, seen = time.perf_counter(), half_written(out), set[str]()
    while True:
        seen |= half_written(out) - before
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.perf_counter() - started > seconds or len(seen) >= writes:
            os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            return None if code == -signal.SIGKILL else code
        time.sleep(0.0003)


def trial(folder: Path, precision: str, kills: int, steps: int) -> bool:
    """Kill a training so many times. Prints what was seen, and returns whether it was as it must be."""
    out, log = folder / precision, folder / "log.txt"
    places = {"config": folder / "model" / "config.json", "init": folder / "model", "data": folder / "data"}
    common = [word for name, place in places.items() for word in (f"--{name}", str(place))]
    common += f"--steps {steps} --precision {precision} {OPTIONS} --out".split()
    whole = folder / f"{precision} whole"
    started = time.perf_counter()
    _, status = os.waitpid(begin([*common, str(whole)], log), 0)
    if status:
        sys.exit(log.read_text()[-2000:])
    duration = time.perf_counter() - started
    wanted = (whole / "model" / "model.safetensors").read_bytes()

    rng = random.Random(0)
    done = halves = damaged = finished = different = 0
    bar = tqdm(total=kills, desc=precision, unit="kill")
    while done < kills or out.exists():
        seconds = rng.uniform(0, duration) if done < kills and done % 2 else 1e9
        writes = rng.randint(1, 16) if done < kills and not done % 2 else 1e9
        code = end(begin([*common, str(out), "--resume"], log), out, seconds, writes)
        if code is None:
            done += 1
            bar.update()
            halves += bool(half_written(out))
            for path in (out / "checkpoints").glob("*.safetensors"):
                try:
                    read_safetensors(path)
                except UserError:
                    damaged += 1
        elif code:
            sys.exit(log.read_text()[-2000:])
        else:
            finished += 1
            ended, left = out / "model" / "model.safetensors", sorted(half_written(out))
            if ended.read_bytes() != wanted or left:
                different += 1
                ours, theirs = (read_safetensors(path)[0] for path in (ended, whole / "model" / "model.safetensors"))
                names = [name for name in ours if not ours[name].equal(theirs[name])]
                bar.write(
                    f"{precision}, after {done} kills: {len(names)} tensors differ {names[:3]}, left over: {left}"
                )
            shutil.rmtree(out)
    bar.close()
    print(
        f"{precision}: {done} kills, {halves} of them while a file was being written; {damaged} damaged checkpoints; "
        f"{finished} trainings came to their end, {different} of them with other weights or with leftovers",
        flush=True,
    )
    return not damaged and not different and finished > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of each precision (default: 200)")
    parser.add_argument("--steps", type=int, default=6, help="length of the training (default: 6)")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    options = parser.parse_args()
    torch.set_num_threads(1)  # a pool of threads does not live on in a fork
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(Path(__file__).parents[1] / "tests" / "data" / "fashion", folder / "data")
        prepare(folder / "data")
        save(folder / "model", CFLD(SMALL), VAE(SMALL.vae))
        passed = [trial(folder, precision, options.kills, options.steps) for precision in options.precision]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
