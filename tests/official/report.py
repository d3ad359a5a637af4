"""How far the project is from the authors' own code, as the page docs/parity.md:

python tests/official/report.py > docs/parity.md
"""

import platform
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from test_official import report  # noqa: E402


def processor() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())


if __name__ == "__main__":
    print("# Parity with the authors' own outputs\n")
    command = "python tests/official/report.py"
    print(f"Relative L2 errors in float32, by `{command}`: {processor()}, torch {torch.__version__}.")
    print("[tests/official](../tests/official/README.md) says where the numbers come from and how they are compared.\n")
    print(report())
