"""Cross-entropy over a sample of the catalogue, or all of it without holding a gradient of ``[targets, items]``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**21  # logits held at a time: 8 MB of float32, near enough to the cache, and products large enough to be fast
WIDER = 32  # so many times as many on a GPU, where each launch costs as much as a small product


def product_dtype(like: Tensor) -> torch.dtype:
    """The dtype of large products: autocast's where it is on (bfloat16 with float32 sums), else that of ``like``."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def rows_at_once(cells: int, columns: int, device: torch.device) -> int:
    """How many rows of a matrix are held at a time: ``cells`` of it, on a GPU :data:`WIDER` times as many."""
    return max(cells * (1 if device.type == "cpu" else WIDER) // columns, 1)


class _SoftmaxCrossEntropy(torch.autograd.Function):
    """Forward computes the loss and both gradients chunk by chunk: three matrix products and one exponential."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, vectors: Tensor, bias: Tensor | None, target: Tensor, dtype: torch.dtype
    ) -> Tensor:
        rows = rows_at_once(CHUNK, len(vectors), vectors.device)
        narrow_hidden, narrow_vectors = hidden.to(dtype), vectors.to(dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_vectors = torch.zeros_like(vectors)
        grad_bias = torch.zeros_like(bias) if bias is not None else None
        loss = hidden.new_zeros(())
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = (narrow_hidden[part] @ narrow_vectors.T).to(vectors.dtype)
            if bias is not None:
                logits += bias
            chosen = logits.gather(1, target[part, None])[:, 0]
            peak = logits.amax(dim=1)
            probabilities = torch.softmax(logits, dim=1, out=logits)
            # the logarithm of the partition, from the largest probability = exp(peak) / partition
            loss += (peak - probabilities.amax(dim=1).log() - chosen).sum()
            low = probabilities.to(dtype)
            grad_hidden[part] = low @ narrow_vectors
            grad_vectors += low.T @ narrow_hidden[part]
            if grad_bias is not None:
                grad_bias += probabilities.sum(dim=0)
        # softmax - onehot, the onehot applied as a look-up
        grad_hidden -= vectors[target]
        grad_vectors.index_add_(0, target, hidden, alpha=-1)
        if grad_bias is not None:
            grad_bias.index_add_(0, target, grad_bias.new_ones(len(target)), alpha=-1)
        ctx.save_for_backward(grad_hidden, grad_vectors, grad_bias)
        return loss

    @staticmethod
    @once_differentiable
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
        # torch does not annotate Function.apply
        loss: Tensor = _SoftmaxCrossEntropy.apply(hidden, vectors, bias, target, dtype)  # type: ignore[no-untyped-call]
    return loss


def sampled_cross_entropy(
    hidden: Tensor, vectors: Tensor, target: Tensor, log_proposal: Tensor, negatives: int, logq: bool = True
) -> Tensor:
    """Summed cross-entropy of each target against negatives that are drawn once for the batch.

    A negative that is a row's own target says nothing against it and is left out of that row.

    Args:
        hidden: float ``[M, d]``.
        vectors: float ``[N, d]``.
        target: int64 ``[M]``, values 0..N-1.
        log_proposal: float ``[N]``, log-probability of drawing each item.
        negatives: k, drawn with replacement.
        logq: weigh each negative by 1 / (k q), so that their sum estimates the partition without the target.

    Returns:
        A scalar, differentiable in ``hidden`` and ``vectors``.
    """
    drawn = torch.multinomial(log_proposal.exp(), negatives, replacement=True)
    positive, negative = sampled_scores(hidden, vectors, target, drawn)
    if logq:
        negative = negative - (log_proposal[drawn] + torch.tensor(float(negatives)).log())
    return (torch.logsumexp(torch.cat([positive[:, None], negative], dim=1), dim=1) - positive).sum()


def sampled_scores(hidden: Tensor, vectors: Tensor, target: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the targets, float ``[M]``, and of the drawn items, float ``[M, k]``, -inf where one is the target."""
    positive = torch.einsum("md,md->m", hidden, vectors[target].to(hidden.dtype)).float()
    negative = (hidden @ vectors[drawn].to(hidden.dtype).T).float()
    return positive, negative.masked_fill(target[:, None] == drawn, float("-inf"))
