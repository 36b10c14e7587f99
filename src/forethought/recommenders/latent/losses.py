"""What the steps of a thought learn from, besides the cross-entropy of its answer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def step_divergence(logits: Tensor, form: Literal["paper", "released"]) -> Tensor:
    """How far the answers of the steps lie apart, a scalar, mean over rows (ReaRec, eq. of L_KL without its sign).

    ``KL(p_i ‖ p_j) = Σ p_i ln p_i - p_i · ln p_j``, so all pairs are one batched product ``[B, T, N] × [B, N, T]``,
    never in bfloat16: the difference of two near numbers would be its rounding.

    Args:
        logits: float ``[B, T, N]``.
        form: ``paper``: the sum over i < j of KL(p_i ‖ p_j); ``released``: the mean over i ≠ j of KL(p_j ‖ p_i) with
            no gradient into p_i. Both are 0 for one step.
    """
    log_p = logits.log_softmax(dim=-1)
    p, steps = log_p.exp(), logits.shape[1]
    against = log_p.detach() if form == "released" else log_p
    with torch.autocast(logits.device.type, enabled=False):
        divergence = (p * log_p).sum(dim=-1)[:, :, None] - p @ against.mT  # [B, i, j]: KL(p_i ‖ p_j)
    if form == "paper":
        return divergence.triu(1).sum(dim=(1, 2)).mean()
    apart = ~torch.eye(steps, dtype=torch.bool, device=logits.device)
    return (divergence * apart).sum(dim=(1, 2)).mean() / max(steps * (steps - 1), 1)


def info_nce(query: Tensor, key: Tensor, target: Tensor | None = None) -> Tensor:
    """-ln softmax of each query over the batch's keys, at its own row; a scalar, mean over rows.

    Args:
        query: float ``[B, d]``, divided by the temperature already.
        key: float ``[B, d]``; row b is the positive of query b.
        target: int64 ``[B]``; other rows with the same are no negatives. None takes all.
    """
    logits = query @ key.T
    if target is not None:
        alike = target[:, None] == target[None]
        alike.fill_diagonal_(False)
        logits = logits.masked_fill(alike, float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def teacher_divergence(logits: Tensor, candidates: Tensor, gamma: Tensor) -> Tensor:
    """How far the steps' answers among a few candidates are from a teacher's (ManCAR, arXiv 2602.20093).

    ``KL(q_t ‖ p_t)`` with ``q_t(c) ∝ exp(-rank(c) / γ_t)``, rank 0 being the target's, and p_t the softmax over the
    candidates alone; a mean over rows.

    Args:
        logits: float ``[B, T, C]``, of the candidates after each step.
        candidates: int64 ``[B, C]``, the target first, then the others by their rank; 0 is none, and the target's
            further occurrences are none.
        gamma: float ``[T]``: how many ranks the teacher's trust reaches.

    Returns:
        float32 ``[T]``.
    """
    known = candidates > 0
    known[:, 1:] &= candidates[:, 1:] != candidates[:, :1]
    rank = known.cumsum(dim=1) - 1
    outside = ~known[:, None]
    teacher = (-rank[:, None] / gamma[:, None]).masked_fill(outside, float("-inf")).log_softmax(dim=-1)
    answer = logits.float().masked_fill(outside, float("-inf")).log_softmax(dim=-1)
    return (teacher.exp() * (teacher - answer).masked_fill(outside, 0)).sum(dim=-1).mean(dim=0)
