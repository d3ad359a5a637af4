"""Attention written out, for training on a CPU in half precision.

There F.scaled_dot_product_attention takes longer, forward and backward, where keys are few. In float32, and where keys
are many, it is as fast or faster.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfld.unet import Attention

FEW_KEYS = 256


def write_out_attention(module: nn.Module) -> None:
    """Use explicit matrix products in this module's Attention where they are faster: on a CPU, in half precision, with
    few keys. Other modules are not touched."""
    for part in module.modules():
        if isinstance(part, Attention):
            part.attend = attend  # type: ignore[assignment]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v. q (..., N, d), k and v (..., L, d) -> (..., N, d)."""
    if q.dtype == torch.float32 or k.shape[-2] > FEW_KEYS:
        return F.scaled_dot_product_attention(q, k, v)
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) @ v
