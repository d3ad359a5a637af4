"""What the pages of the benchmarks share: where and when a number was measured, and tables."""

import datetime
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch


def machine() -> dict[str, str | int | None]:
    """Processor, cores in use, torch, commit and date."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or None,
        "date": str(datetime.date.today()),
    }


def machine_line(made: dict[str, str | int | None] | None = None) -> str:
    """The same as a sentence; or what was written down then."""
    m = made or machine()
    where = m["gpu"] or f"{m['cores']} cores of {m['cpu']}"
    return f"{where}, torch {m['torch']}, commit {m['commit']}, {m['date']}."


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows))
