"""What tests of trainings share: reading a run folder."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert not [name for name, x in theirs.items() if not torch.equal(ours[name], x)]


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
