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


def causal_attention_at(
    position: Tensor,
    query: Tensor,
    context: Tensor,
    key: tuple[Tensor, Tensor],
    value: tuple[Tensor, Tensor],
    scale: float | None = None,
) -> Tensor:
    """The same for one position a row, without projecting every position to a key and a value.

    ``q (W x + b) = (q W) x + q b`` and ``sum_j a_j (W x_j + b) = W (sum_j a_j x_j) + b``: the two matrices meet one row
    of the batch instead of L.

    Args:
        position: int64 ``[B]``, where each row looks from.
        query: float ``[B, H, e]``, projected already.
        context: float ``[B, L, d]``, what keys and values are made of.
        key, value: weight ``[H e, d]`` and bias ``[H e]`` of either projection.
        scale: 1 / sqrt(e) by default.

    Returns:
        float ``[B, H, e]``.
    """
    heads = query.shape[1:]
    key_weight, value_weight = (weight.view(*heads, -1) for weight, _ in (key, value))
    key_bias, value_bias = (bias.view(heads) for _, bias in (key, value))
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    logits = torch.einsum("bhe,hed->bhd", query, key_weight) @ context.mT + (query * key_bias).sum(-1, keepdim=True)
    future = torch.arange(context.shape[1], device=context.device) > position[:, None]
    weights = logits.masked_fill(future[:, None], float("-inf")).softmax(dim=-1).to(context.dtype)
    mixed: Tensor = torch.einsum("bhd,hed->bhe", weights @ context, value_weight) + value_bias
    return mixed


def attend_appended(
    query: Tensor, key: Tensor, value: Tensor, own_key: Tensor, own_value: Tensor, visible: Tensor
) -> Tensor:
    """Attention of P tokens a row, each the newest of its own thought, on a history they share and on that thought.

    Args:
        query: float ``[B, H, P, e]``.
        key, value: float ``[B, H, L, e]``, of the history.
        own_key, own_value: float ``[B, H, P, k, e]``, of the k tokens of each thought, the newest among them.
        visible: bool ``[B, P, L]``, which part of the history each thought comes after.

    Returns:
        float ``[B, H, P, e]``.
    """
    query = query * query.shape[-1] ** -0.5
    shared = (query @ key.mT).masked_fill(~visible[:, None], float("-inf"))
    own = (own_key @ query[..., None])[..., 0]
    weights = torch.cat([shared, own], dim=-1).softmax(dim=-1).to(value.dtype)
    length = key.shape[2]
    mixed: Tensor = weights[..., :length] @ value + (weights[..., None, length:] @ own_value)[..., 0, :]
    return mixed
