"""The full-size model on this machine: convert, sample two steps, train one; peak memory and time of fresh processes.

    python benchmarks/full_size.py          about 10 minutes and 25 GB of disk under runs/full_size

No public weights are needed: files of random weights stand in for them, in the public layouts and at full width. Writes
docs/full_size.md.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from report import machine_line, table

from cfld import VAE, Swin, UNet
from cfld.convert import in_layout, layout_of
from cfld.data import prepare
from cfld.files import write_tensors, write_text

ROOT = Path(__file__).parents[1]
RUN = ROOT / "runs" / "full_size"
PHOTO = ROOT / "tests" / "data" / "fashion" / "MEN" / "Tees_Tanks" / "id_00800018" / "01_1_front.jpg"
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
    ]
    page = "\n".join(lines)
    write_text(ROOT / "docs" / "full_size.md", page)
    print(page)


if __name__ == "__main__":
    main()
