"""softmax(q k^T / sqrt(d)) v, which all parts share: PyTorch's fused kernel on a GPU, or with AMX where no gradient is
wanted. Else a CPU is faster with the scores of few keys written out, and in half precision without AMX with a slice of
many at a time, that stays in the cache and is computed again in the backward (FlashAttention; Dao et al., 2022).

Letters in shapes: M images times heads, N queries, L keys, d width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_KEYS = 256
SLICE = 2**21  # scores at a time: 4 MiB
AMX = getattr(torch.cpu, "_is_amx_tile_supported", bool)()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the last two axes. q (..., N, d), k and v (..., L, d) -> (..., N, d)."""
    half, needs_grad = q.dtype in (torch.bfloat16, torch.float16), any(x.requires_grad for x in (q, k, v))
    if q.device.type == "cpu" and not (AMX and half and not needs_grad):
        if k.shape[-2] <= FEW_KEYS:
            return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) @ v
        if half and not AMX:
            out = SlicedAttention.apply(*(x.flatten(0, -3).contiguous() for x in (q * q.shape[-1] ** -0.5, k, v)))
            return out.view(q.shape)
    return F.scaled_dot_product_attention(q, k, v)


class SlicedAttention(torch.autograd.Function):
    """softmax(q k^T) v of one head after the other, and of each some of the queries at a time."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (M, N, d), k and v (M, L, d), contiguous -> (M, N, d)."""
        out = torch.empty_like(q)
        count = max(SLICE // k.shape[1], 1)
        for q_m, k_m, v_m, out_m in zip(q, k, v, out, strict=True):
            for q_n, out_n in zip(q_m.split(count), out_m.split(count), strict=True):
                torch.mm((q_n @ k_m.mT).softmax(dim=-1), v_m, out=out_n)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With P = softmax(S), S = q k^T: dv = P^T dout, dP = dout v^T, dS = P * (dP - sum_L P dP), dq = dS k,
        dk = dS^T q; sum_L P dP = dout . out."""
        q, k, v, out = ctx.saved_tensors
        grad = grad.contiguous()
        dots = (grad.float() * out.float()).sum(dim=-1, keepdim=True).to(q.dtype)
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
        count = max(SLICE // k.shape[1], 1)
        for m in range(len(q)):
            parts = (x.split(count) for x in (q[m], grad[m], dots[m], dq[m]))
            for q_n, grad_n, dots_n, dq_n in zip(*parts, strict=True):
                weights = (q_n @ k[m].mT).softmax(dim=-1)
                dv[m] += weights.mT @ grad_n
                scores_grad = (grad_n @ v[m].mT).sub_(dots_n).mul_(weights)
                torch.mm(scores_grad, k[m], out=dq_n)
                dk[m] += scores_grad.mT @ q_n
        return dq, dk.to(k.dtype), dv.to(v.dtype)
