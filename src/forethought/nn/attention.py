"""Causal attention by the fastest way at hand."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """``softmax(scale * query @ key.T) @ value``, each position looking at itself and what came before.

    Args:
        query, key, value: float ``[B, H, L, d]``.
        scale: 1 / sqrt(d) by default.

    Returns:
        float ``[B, H, L, d]``.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # torch's fused kernel goes backwards 3 to 30 times slower than plain products here
        length = query.shape[-2]
        query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
        future = torch.full((length, length), float("-inf"), dtype=query.dtype).triu(1)
        return (query @ key.transpose(-1, -2) + future).softmax(dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
