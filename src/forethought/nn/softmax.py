"""Cross-entropy over the whole catalogue without ever holding its gradient as ``[targets, items]``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 2**20  # logits held at a time: 4 MB of float32, which stays in the cache


def product_dtype(like: Tensor) -> torch.dtype:
    """The dtype of large products: autocast's where it is on (bfloat16 with float32 sums), else that of ``like``."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


class _SoftmaxCrossEntropy(torch.autograd.Function):
    """Forward computes the loss and both gradients chunk by chunk: three matrix products and one exponential."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, vectors: Tensor, bias: Tensor | None, target: Tensor, dtype: torch.dtype
    ) -> Tensor:
        rows = max(CHUNK // len(vectors), 1)
        narrow = vectors.to(dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_vectors = torch.zeros_like(vectors)
        grad_bias = torch.zeros_like(bias) if bias is not None else None
        loss = hidden.new_zeros(len(hidden))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            states, wanted = hidden[part], target[part]
            weights = (states.to(dtype) @ narrow.T).to(vectors.dtype)
            if bias is not None:
                weights += bias
            chosen = weights.gather(1, wanted[:, None])[:, 0]
            peak = weights.amax(dim=1, keepdim=True)
            total = weights.sub_(peak).exp_().sum(dim=1, keepdim=True)
            loss[part] = total.log()[:, 0] + peak[:, 0] - chosen
            # softmax - onehot, with the division moved to the narrow factor and the onehot applied as a gather
            low = weights.to(dtype)
            grad_hidden[part] = (low @ narrow).to(hidden.dtype) / total - vectors[wanted]
            grad_vectors += (low.T @ (states / total).to(dtype)).to(vectors.dtype)
            grad_vectors.index_add_(0, wanted, states, alpha=-1)
            if grad_bias is not None:
                grad_bias += (weights / total).sum(dim=0)
                grad_bias.index_add_(0, wanted, grad_bias.new_ones(len(wanted)), alpha=-1)
        ctx.save_for_backward(grad_hidden, grad_vectors, grad_bias)
        return loss.sum()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outer
        return (*(None if g is None else g * scale for g in ctx.saved_tensors), None, None)


def softmax_cross_entropy(hidden: Tensor, vectors: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
    """Summed ``-log softmax(hidden @ vectors.T + bias)[target]``.

    Under autocast the products run in bfloat16 with float32 sums; the rest stays in float32.

    Args:
        hidden: float ``[M, d]``.
        vectors: float ``[N, d]``.
        target: int64 ``[M]``, values 0..N-1.
        bias: float ``[N]`` or None.

    Returns:
        A scalar, differentiable in ``hidden``, ``vectors`` and ``bias``.
    """
    dtype = product_dtype(vectors)
    with torch.autocast(hidden.device.type, enabled=False):
        hidden = hidden.to(vectors.dtype)
        loss: Tensor = _SoftmaxCrossEntropy.apply(hidden, vectors, bias, target, dtype)  # type: ignore[no-untyped-call]
    return loss
