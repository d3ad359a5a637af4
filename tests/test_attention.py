"""Attention written out, for training on a CPU in half precision, against the formula in float64."""

import pytest
import torch
from conftest import micro_model
from references import noise, relative_error

from cfld.training.attention import FEW_KEYS, attend, write_out_attention
from cfld.unet import Attention


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v


@pytest.mark.parametrize(
    ("keys", "dtype", "tolerance"),
    [(16, torch.float32, 1e-6), (300, torch.float32, 3e-6), (16, torch.bfloat16, 0.02), (300, torch.bfloat16, 0.02)],
)
def test_attention_and_its_gradients_are_the_formulas(keys: int, dtype: torch.dtype, tolerance: float) -> None:
    inputs = [2 * noise(2, 3, length, 8, seed=i) for i, length in enumerate((150, keys, keys))]
    ours = [x.to(dtype).requires_grad_() for x in inputs]
    theirs = [x.detach().double().requires_grad_() for x in ours]
    weights = noise(2, 3, 150, 8, seed=9)
    out, truth = attend(*ours), exact(*theirs)
    assert out.dtype == dtype and relative_error(out.double(), truth) <= tolerance
    for gradient, wanted in zip(
        torch.autograd.grad(out, ours, weights.to(dtype)),
        torch.autograd.grad(truth, theirs, weights.double()),
        strict=True,
    ):
        assert relative_error(gradient.double(), wanted) <= tolerance


def test_few_keys_in_half_precision_are_written_out_and_others_are_not(monkeypatch) -> None:
    calls: list[tuple[int, torch.dtype]] = []
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention",
                        lambda q, k, v: calls.append((k.shape[-2], q.dtype)) or q)  # fmt: skip
    for keys in (16, FEW_KEYS + 1):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = torch.ones(1, 2, keys, 8, dtype=dtype)
            attend(x, x, x)
    assert calls == [(16, torch.float32), *((FEW_KEYS + 1, d) for d in (torch.float32, torch.bfloat16, torch.float16))]


def test_the_attention_of_one_model_is_written_out_and_of_no_other() -> None:
    model, _ = micro_model()
    other, _ = micro_model()
    write_out_attention(model)
    assert all(m.attend is attend for m in model.modules() if isinstance(m, Attention))
    assert not any(m.attend is attend for m in other.modules() if isinstance(m, Attention))
    assert model.state_dict().keys() == other.state_dict().keys()
    inputs = noise(2, 4, 8, 8), torch.tensor([3, 981])
    with torch.autocast("cpu", torch.bfloat16):
        outs = [m(*inputs, m.condition(noise(2, 3, 32, 32), noise(2, 21, 32, 32))) for m in (model, other)]
    assert 0 < relative_error(outs[0].float(), outs[1].float()) <= 0.03
