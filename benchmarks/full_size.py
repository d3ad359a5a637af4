"""The full-size model on this machine: convert, sample two steps, train one; peak memory and time of fresh processes.
And what a training step of more pairs needs of memory, by what is computed again.

    python benchmarks/full_size.py          about 10 minutes and 25 GB of disk under runs/full_size

No public weights are needed: files of random weights stand in for them, in the public layouts and at full width. Writes
docs/full_size.md.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from report import machine_line, table
from tqdm import tqdm

from cfld import VAE, Swin, UNet
from cfld.convert.export import in_layout
from cfld.convert.layouts import layout_of
from cfld.data.deepfashion import prepare
from cfld.tools.files import write_text
from cfld.tools.tensors import write_tensors

ROOT = Path(__file__).parents[1]
RUN = ROOT / "runs" / "full_size"
PHOTO = ROOT / "tests" / "data" / "fashion" / "MEN" / "Tees_Tanks" / "id_00800018" / "01_1_front.jpg"
AT_A_TIME = (1, 2, 4)  # pairs
POSE = f"{ROOT}/tests/data/fashion/fasion-resize-annotation-test.csv#fashionMENTees_Tanksid0080001801_2back.jpg"


def public_files() -> None:
    """Random weights as SD 1.5's UNet and VAE and Microsoft's Swin-B."""
    torch.manual_seed(0)
    for name, component, layout, module in (
        ("unet", "UNet", "diffusers", UNet),
        ("vae", "VAE", "diffusers, old spelling", VAE),
        ("swin", "Swin", "Microsoft", Swin),
    ):
        write_tensors(RUN / f"{name}.safetensors", in_layout(module(), layout_of(component, layout)))


def step_memory(pairs: int, checkpointing: str) -> float:
    """What cfld.train --dry-run says that a step needs, in GiB, with cached latents."""
    options = ("--preset", "sd15", "--init", RUN / "model", "--data", RUN / "data", "--cache", RUN / "cache")
    options = (*options, "--out", RUN / "dry", "--batch", str(pairs), "--checkpointing", checkpointing, "--dry-run")
    argv = [sys.executable, "-m", "cfld.train", *map(str, options), "--device", "cpu"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    found = re.search(r"all, a process +([\d.]+) GiB", said)
    assert found, said
    return float(found[1])


def measure(module: str, *options: str | Path) -> tuple[float, float]:
    """Run a command in a fresh process -> seconds, peak resident GiB (loading, and file pages it touched, included)."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", module, *map(str, options)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{module} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def main() -> None:
    shutil.rmtree(RUN, ignore_errors=True)
    public_files()
    files = [x for name in ("unet", "vae", "swin") for x in (f"--{name}", RUN / f"{name}.safetensors")]
    shutil.copytree(ROOT / "tests" / "data" / "fashion", RUN / "data")
    prepare(RUN / "data")
    sampling = ("--source", PHOTO, "--pose", POSE, "--device", "cpu", "--precision", "bf16", "--side-by-side")
    training = ("--init", RUN / "model", "--data", RUN / "data", "--batch", "1", "--steps", "1", "--device", "cpu")
    rows = {
        "convert public files to a model folder (fp32)": measure(
            "cfld.convert", "init", *files, "--out", RUN / "model"
        ),
        "sample 2 steps, 512x512, bf16": measure(
            "cfld.sample", "--model", RUN / "model", "--steps", "2", *sampling, "--out", RUN / "two.png"
        ),
        "train 1 step of 1 pair (2 rows), bf16 autocast, write checkpoint and model": measure(
            "cfld.train", *training, "--out", RUN / "run", "--sample-every", "0"
        ),
    }
    subprocess.run(
        [sys.executable, "-m", "cfld.data", "cache", RUN / "data", "--model", RUN / "model", "--out", RUN / "cache"],
        check=True,
    )
    needs = {
        kind: [step_memory(pairs, kind) for pairs in AT_A_TIME]
        for kind in tqdm(("none", "attention", "all"), desc="dry runs")
    }
    lines = [
        "# The full-size model on a small machine",
        "",
        "Made by `python benchmarks/full_size.py`: random weights at full width, each row a fresh process, loading and",
        "saving included.",
        "",
        machine_line(),
        "",
        table(
            ["what", "seconds", "peak GiB"],
            [[name, f"{seconds:.0f}", f"{gib:.2f}"] for name, (seconds, gib) in rows.items()],
        ),
        "",
        "What a training step needs in GiB, by `cfld.train --dry-run`, in bf16 autocast with cached latents: weights,",
        "gradients, Adam's moments, activations. A GPU needs as much and what CUDA takes; none was tried.",
        "",
        table(
            ["--checkpointing", *(f"{pairs} pair{'s'[: pairs > 1]} at a time" for pairs in AT_A_TIME)],
            [[kind, *(f"{gib:.2f}" for gib in row)] for kind, row in needs.items()],
        ),
        "",
    ]
    page = "\n".join(lines)
    write_text(ROOT / "docs" / "full_size.md", page)
    print(page)


if __name__ == "__main__":
    main()
