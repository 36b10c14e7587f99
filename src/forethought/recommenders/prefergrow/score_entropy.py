"""The loss of PreferGrow, written as its formula reads; the fast version beside it is held equal to this one.

A sample that started at x₀ and faded to x_t teaches the log-ratios s_y ≈ ln p_t(y | user) / p_t(x_t | user) with the
ratios of its own column, r_y = P[y, x₀] / P[x_t, x₀], at the weight Q[x_t, y] of the edge x_t → y (SEDD, arXiv
2310.16834, denoising score entropy).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from forethought.recommenders.prefergrow.kernels import Alpha, FadingKernel


def score_entropy_reference(
    log_ratios: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    alpha: Alpha,
    kernel: FadingKernel,
    rate: Tensor | None = None,
    form: Literal["score_entropy", "bce"] = "score_entropy",
) -> Tensor:
    """The loss of each sample, materialising ``[B, M]``.

    ``score_entropy``: Σ_{y≠x_t} Q[x_t, y] (e^{s_y} - r_y s_y + K(r_y)), K(r) = r (ln r - 1), K(0) = 0.
    ``bce``: the same edges with (1 + r) times the binary cross-entropy of logit s_y and soft label r / (1 + r), less
    its minimum. The factor 1 + r makes its gradient linear in r, so in expectation it has the same minimum, the
    marginal ratio; it never takes the exponential of a score.
    Both are 0, with zero gradient, where every s_y = ln r_y.

    Args:
        log_ratios: float ``[B, M]``, s; the entry at x_t is not read.
        x_t: int64 ``[B]``, the faded states.
        x_0: int64 ``[B]``, the preferred states.
        alpha: e^{-σ(t)}, ``[B]`` or one number.
        kernel: how x₀ faded.
        rate: float ``[B]``, dσ/dt; None gives the raw form without it.
        form: which loss.

    Returns:
        float ``[B]``.
    """
    weight = kernel.rate_row(x_t)
    column = kernel.column(x_0, alpha)
    # an edge without weight costs nothing, even where x_t could not have come from x_0 and r has no value
    r = torch.where(weight > 0, column / column.gather(1, x_t[:, None]), 1.0)
    s = torch.where(weight > 0, log_ratios, 0.0)
    if form == "score_entropy":
        edges = s.exp() - r * s + torch.xlogy(r, r) - r
    else:
        edges = (1 + r) * (softplus(s) - torch.log1p(r)) - r * s + torch.xlogy(r, r)
    loss = (weight * edges).sum(dim=1)
    return loss if rate is None else rate * loss
