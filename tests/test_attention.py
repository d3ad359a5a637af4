"""attend() in each of its forms against the formula in float64."""

import pytest
import torch
from references import noise, relative_error

from cfld import attention
from cfld.attention import attend


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize(
    ("keys", "dtype", "tolerance"),
    [(16, torch.float32, 1e-6), (300, torch.float32, 3e-6), (16, torch.bfloat16, 0.02), (300, torch.bfloat16, 0.02)],
)
def test_attention_and_its_gradients_are_the_formulas(
    keys: int, dtype: torch.dtype, tolerance: float, amx: bool, monkeypatch
) -> None:
    monkeypatch.setattr(attention, "AMX", amx)
    monkeypatch.setattr(attention, "SLICE", 64 * keys)  # of 150 queries: two whole slices and a tail
    inputs = [2 * noise(2, 3, length, 8, seed=i) for i, length in enumerate((150, keys, keys))]
    ours = [x.to(dtype).requires_grad_() for x in inputs]
    theirs = [x.detach().double().requires_grad_() for x in ours]
    weights = noise(2, 3, 150, 8, seed=9)
    out, truth = attend(*ours), exact(*theirs)
    with torch.no_grad():
        without = attend(*ours)
    for result in (out, without):
        assert result.dtype == dtype and relative_error(result.double(), truth) <= tolerance
    for gradient, wanted in zip(
        torch.autograd.grad(out, ours, weights.to(dtype)),
        torch.autograd.grad(truth, theirs, weights.double()),
        strict=True,
    ):
        assert relative_error(gradient.double(), wanted) <= tolerance


@pytest.mark.parametrize("amx", [False, True])
def test_long_attention_in_half_precision_is_sliced_and_other_attention_is_not(amx: bool, monkeypatch) -> None:
    monkeypatch.setattr(attention, "AMX", amx)
    calls: list[torch.Size] = []
    monkeypatch.setattr(attention.SlicedAttention, "apply", lambda q, k, v: calls.append(k.shape) or q)
    for keys in (16, 257):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.ones(1, 2, keys, 8, dtype=dtype)
            attend(x, x, x)
    assert calls == ([] if amx else [(2, 257, 8)])
