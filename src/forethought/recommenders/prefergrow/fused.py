"""The diffusion losses without a ``[targets, states]`` ratio matrix.

With an inner-product head the score entropy needs one exponential of the scores; everything linear in them collapses
to inner products with sums of item vectors (:func:`score_entropy`). The soft-label BCE and the marginal
parametrisation need one elementwise pass more. All three compute their gradients in the forward pass, chunk by
chunk, with three matrix products, and are held equal to :mod:`.score_entropy`, the plain reference, by tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from forethought.nn.softmax import CHUNK, product_dtype, rows_at_once
from forethought.recommenders.prefergrow.kernels import FadingKernel


class Corruption(NamedTuple):
    """One noised target a row, all ``[B]``.

    Attributes:
        x_0: int64, the liked state.
        x_t: int64, what it has faded to.
        alpha: float, how much of the preference is left, e^-sigma.
        weight: float, the row's weight in the loss: dsigma/dt, or 1 for the raw form.
    """

    x_0: Tensor
    x_t: Tensor
    alpha: Tensor
    weight: Tensor


class Offset(NamedTuple):
    """What is added to the scores of every item, and to those of the disliked item: float ``[B]`` each, no gradient."""

    items: Tensor
    disliked: Tensor


class _Coefficients(NamedTuple):
    """The scalars of a row, all ``[B]``, in which every loss of this module is written.

    The target ratios are ``r_y = slope * p_y`` for every ``y`` but ``x_0``, which has ``spike`` on top.
    """

    edge: Tensor  # weight * Q[x_t, y], the same for every y of x_t's group
    slope: Tensor  # (1 - alpha) / P[x_t, x_0]
    spike: Tensor  # alpha / P[x_t, x_0] where x_0 != x_t, else 0
    constant: Tensor  # sum over y != x_t of K(r_y)


def _coefficients(kernel: FadingKernel, noise: Corruption) -> _Coefficients:
    p = kernel.p
    p_x, p_0 = p[noise.x_t], p[noise.x_0]
    moved = (noise.x_t != noise.x_0).to(p.dtype)
    there = (1 - noise.alpha) * p_x + noise.alpha * (1 - moved)  # P[x_t, x_0]
    # x_t cannot be where it cannot fade to; such a row has no edge and must not divide by zero
    there = torch.where(there > 0, there, 1.0)
    slope = (1 - noise.alpha) / there
    spike = noise.alpha / there * moved
    p_log_p = torch.xlogy(p, p)
    entropy = p_log_p.sum() if kernel.groups is None else _by_group(kernel, p_log_p)[kernel.groups[noise.x_t]]
    mass = 1.0 - p_x
    # sum_y K(slope p_y) over y != x_t, then x_0's own term exchanged where it carries the spike
    constant = slope * ((torch.log(slope) - 1) * mass + entropy - torch.xlogy(p_x, p_x))
    constant = torch.where(slope > 0, constant, 0.0)
    plain = slope * p_0
    constant = constant + moved * (_k(plain + spike) - _k(plain))
    return _Coefficients(noise.weight * p_x, slope, spike, constant)


def _k(ratio: Tensor) -> Tensor:
    """K(r) = r (ln r - 1), K(0) = 0 (Lou et al. 2024, eq. 5)."""
    return torch.xlogy(ratio, ratio) - ratio


def _by_group(kernel: FadingKernel, values: Tensor) -> Tensor:
    """Sums over each group of states; ``values`` ``[M, ...]`` → ``[groups, ...]``."""
    assert kernel.groups is not None
    sums = values.new_zeros(int(kernel.groups.max()) + 1, *values.shape[1:])
    return sums.index_add_(0, kernel.groups, values)


class _ScoreEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, vectors: Tensor, bias: Tensor | None, kernel: FadingKernel, noise: Corruption,
        offset: Offset | None, dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        p, (x_0, x_t) = kernel.p, (noise.x_0, noise.x_t)
        edge, slope, spike, constant = _coefficients(kernel, noise)
        # an offset is one factor for all items' exponentials of a row, and another for d's
        factor = edge if offset is None else edge * offset.items.exp()
        narrow = vectors.to(dtype)
        exp_sum = torch.empty_like(edge)
        grad_query = torch.empty_like(query)
        grad_vectors: Tensor | None = None
        grad_bias = torch.zeros_like(bias) if bias is not None else None
        rows = rows_at_once(CHUNK * 2, len(vectors), vectors.device)
        for start in range(0, len(query), rows):
            part = slice(start, start + rows)
            ratios = (query[part].to(dtype) @ narrow.T).to(vectors.dtype)
            if bias is not None:
                ratios += bias
            ratios.exp_()
            if offset is not None:
                ratios[:, -1] *= (offset.disliked - offset.items)[part].exp()
            if kernel.groups is not None:
                ratios *= kernel.groups == kernel.groups[x_t[part], None]
            ratios.scatter_(1, x_t[part, None], 0.0)
            exp_sum[part] = ratios.sum(dim=1)
            low = ratios.to(dtype)
            grad_query[part] = (low @ narrow).to(query.dtype) * factor[part, None]
            weighted = query[part] * factor[part, None]
            product = (low.T @ weighted.to(dtype)).to(vectors.dtype)
            grad_vectors = product if grad_vectors is None else grad_vectors.add_(product)
            if grad_bias is not None:
                grad_bias += factor[part] @ ratios
        if grad_vectors is None:
            grad_vectors = torch.zeros_like(vectors)
        # The part linear in the scores, sum over y != x_t of r_y s_y: a sum of p_y v_y, and two rows of the table.
        if kernel.groups is None:
            mean = (p @ vectors).expand_as(query)
        else:
            mean = _by_group(kernel, p[:, None] * vectors)[kernel.groups[x_t]]
        v_0, v_t, p_t = vectors[x_0], vectors[x_t], p[x_t]
        pull = slope[:, None] * (mean - p_t[:, None] * v_t) + spike[:, None] * v_0  # d(linear)/d(query)
        linear = (query * pull).sum(dim=1)
        grad_query -= edge[:, None] * pull
        drawn = query * (edge * slope)[:, None]
        if kernel.groups is None:
            grad_vectors.addr_(p, drawn.sum(dim=0), alpha=-1)
        else:
            per_group = drawn.new_zeros(int(kernel.groups.max()) + 1, drawn.shape[1])
            per_group.index_add_(0, kernel.groups[x_t], drawn)
            grad_vectors -= p[:, None] * per_group[kernel.groups]
        grad_vectors.index_add_(0, x_t, drawn * p_t[:, None])
        grad_vectors.index_add_(0, x_0, query * (edge * spike)[:, None], alpha=-1)
        if bias is not None and grad_bias is not None:
            if kernel.groups is None:
                bias_mean = (p * bias).sum()
                grad_bias.add_(p * (edge * slope).sum(), alpha=-1)
            else:
                bias_mean = _by_group(kernel, p * bias)[kernel.groups[x_t]]
                drawn_bias = edge.new_zeros(len(per_group)).index_add_(0, kernel.groups[x_t], edge * slope)
                grad_bias.sub_(p * drawn_bias[kernel.groups])
            linear += slope * (bias_mean - p_t * bias[x_t]) + spike * bias[x_0]
            grad_bias.index_add_(0, x_t, edge * slope * p_t)
            grad_bias.index_add_(0, x_0, edge * spike, alpha=-1)
        ctx.save_for_backward(grad_query, grad_vectors, grad_bias)
        if offset is not None:
            at_disliked = x_t == len(p) - 1
            rest_items, rest_d = torch.where(at_disliked, 0.0, p_t), torch.where(at_disliked, p_t, 0.0)
            linear += slope * (offset.items * (1 - p[-1] - rest_items) + offset.disliked * (p[-1] - rest_d))
            linear += spike * offset.items
        return (factor * exp_sum - edge * (linear - constant)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outer
        return (*(None if g is None else g * scale for g in ctx.saved_tensors), None, None, None, None)


RowLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


class _CatalogLoss(torch.autograd.Function):
    """Any loss that is a sum over rows of a function of that row's scores of all states."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, vectors: Tensor, bias: Tensor | None, row_loss: RowLoss, dtype: torch.dtype
    ) -> Tensor:
        narrow = vectors.to(dtype)
        grad_query, grad_vectors = torch.empty_like(query), torch.zeros_like(vectors)
        grad_bias = torch.zeros_like(bias) if bias is not None else None
        loss = query.new_zeros(())
        rows = rows_at_once(CHUNK, len(vectors), vectors.device)
        for start in range(0, len(query), rows):
            part = slice(start, start + rows)
            scores = (query[part].to(dtype) @ narrow.T).to(vectors.dtype)
            if bias is not None:
                scores += bias
            values, slopes = row_loss(scores, part)
            loss += values.sum()
            low = slopes.to(dtype)
            grad_query[part] = (low @ narrow).to(query.dtype)
            grad_vectors += (low.T @ query[part].to(dtype)).to(vectors.dtype)
            if grad_bias is not None:
                grad_bias += slopes.sum(dim=0)
        ctx.save_for_backward(grad_query, grad_vectors, grad_bias)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outer
        return (*(None if g is None else g * scale for g in ctx.saved_tensors), None, None)


def score_entropy(
    query: Tensor,
    vectors: Tensor,
    kernel: FadingKernel,
    noise: Corruption,
    bias: Tensor | None = None,
    offset: Offset | None = None,
) -> Tensor:
    """Summed score entropy of log-ratios ``s = query @ vectors.T + bias``.

    ``sum_b weight_b sum_{y != x_t} Q[x_t, y] (e^{s_y} - r_y s_y + K(r_y))`` with
    ``r_y = P[y, x_0] / P[x_t, x_0]`` (Lou et al. 2024, eq. 5 and 7, at sequence length one). Under autocast the
    products run in bfloat16 with float32 sums.

    Args:
        query: float ``[B, d]``.
        vectors: float ``[M, d]``, one a state.
        kernel: the fading kernel over the M states.
        noise: what each row's target has faded to.
        bias: float ``[M]`` or None.
        offset: added to the scores; kept out of the bfloat16 products, which would round it.
    """
    trained = (noise.weight * kernel.p[noise.x_t] > 0).nonzero()[:, 0]  # what nothing fades to has no edge
    query, noise = query[trained], Corruption(*(field[trained] for field in noise))
    offset = None if offset is None else Offset(*(field[trained] for field in offset))
    dtype = product_dtype(vectors)
    with torch.autocast(query.device.type, enabled=False):
        # torch does not annotate Function.apply
        loss: Tensor = _ScoreEntropy.apply(  # type: ignore[no-untyped-call]
            query.to(vectors.dtype), vectors, bias, kernel, noise, offset, dtype
        )
    return loss


def soft_label_bce(
    query: Tensor,
    vectors: Tensor,
    kernel: FadingKernel,
    noise: Corruption,
    bias: Tensor | None = None,
    offset: Offset | None = None,
) -> Tensor:
    """Summed binary cross-entropy with the soft labels r/(1+r), each weighted by 1 + r, less its minimum.

    ``(1 + r) BCE(s, r / (1 + r)) = softplus(s) + r softplus(-s)`` has the sign and the zero of the score entropy's
    gradient and no exponential that can overflow. Arguments as in :func:`score_entropy`.
    """
    edge, slope, spike, _ = _coefficients(kernel, noise)

    def row_loss(scores: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        if offset is not None:
            scores[:, :-1] += offset.items[part, None]
            scores[:, -1] += offset.disliked[part]
        ratios = slope[part, None] * kernel.p
        ratios.scatter_add_(1, noise.x_0[part, None], spike[part, None])
        keep = (
            torch.ones_like(scores) if kernel.groups is None else _same_group(kernel, noise.x_t[part]).to(scores.dtype)
        )
        keep.scatter_(1, noise.x_t[part, None], 0.0).mul_(edge[part, None])
        least = (1 + ratios) * torch.log1p(ratios) - torch.xlogy(ratios, ratios)
        values = keep * (F.softplus(scores) + ratios * F.softplus(-scores) - least)
        probability = torch.sigmoid(scores)
        return values.sum(dim=1), keep * (probability - ratios * (1 - probability))

    return _apply(query, vectors, bias, row_loss)


def marginal_score_entropy(
    query: Tensor, vectors: Tensor, kernel: FadingKernel, noise: Corruption, bias: Tensor | None = None
) -> Tensor:
    """Summed score entropy where the scores are logits of the preference itself, not of its ratios.

    With pi = softmax(query @ vectors.T + bias) the noised law is ``u = alpha pi + (1 - alpha) p`` exactly, and the
    log-ratios follow: ``s_y = ln u_y - ln u_{x_t}``. The loss is then the same diffusion bound, but state and noise
    level no longer have to be learned; for the ``point`` kernel it is cross-entropy weighted by the schedule.
    ``vectors`` and ``bias`` cover the N items only; the disliked state, if there is one, has pi = 0.

    Ratios inside a group say nothing of the group. With a kernel of groups pi is therefore taken inside that of the
    target, and the cross-entropy of the group itself is added: -ln pi(x_0) = -ln pi(group) - ln pi(x_0 | group).
    Arguments as in :func:`score_entropy`, ``vectors`` and ``bias`` for items alone.
    """
    edge, slope, spike, constant = _coefficients(kernel, noise)
    items = len(vectors)
    p, p_rest = kernel.p[:items], kernel.p[items:]
    p_log_rest = torch.xlogy(p_rest, p_rest).sum(), p_rest.sum()

    def row_loss(scores: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        x_0, x_t, alpha = noise.x_0[part, None], noise.x_t[part, None], noise.alpha[part, None]
        outside = None if kernel.groups is None else ~_same_group(kernel, noise.x_t[part])
        reached = scores if outside is None else scores.masked_fill(outside, -torch.inf)
        pi = reached.softmax(dim=1)
        u = torch.addcmul((1 - alpha) * p, alpha, pi)
        if outside is not None:
            u.masked_fill_(outside, 0.0)
        tiny = torch.finfo(u.dtype).tiny
        on_item = x_t < items
        state = x_t.clamp(max=items - 1)
        u_x = torch.where(on_item, u.gather(1, state), (1 - alpha) * kernel.p[x_t]).clamp(min=tiny)
        p_x = kernel.p[x_t]
        # sum over y != x_t of r_y ln u_y; states without an item keep u = (1 - alpha) p
        log_u = u.clamp(min=tiny).log()
        rest = p_log_rest[0] + p_log_rest[1] * torch.log1p(-alpha)
        log_u_x = u_x.log()
        mean_log_u = (log_u if outside is None else log_u.masked_fill(outside, 0.0)) @ p
        linear = slope[part, None] * (mean_log_u[:, None] + rest - p_x * log_u_x)
        linear = linear + spike[part, None] * log_u.gather(1, x_0)
        mass = slope[part, None] * (1 - p_x) + spike[part, None]
        values = edge[part, None] * ((1 - u_x) / u_x - linear + mass * log_u_x + constant[part, None])
        # pi_y times d loss / d pi_y; the share of u_y that is pi's stays finite where both are too small for a float
        share = torch.where(u > 0, alpha * pi / u, 1.0)
        if outside is not None:
            share.masked_fill_(outside, 0.0)
        slopes = (-slope[part, None] * p * share).scatter_add_(1, x_0, -spike[part, None] * share.gather(1, x_0))
        at_state = (mass - 1 / u_x) * share.gather(1, state)
        slopes.scatter_(1, state, torch.where(on_item, at_state, slopes.gather(1, state)))
        slopes *= edge[part, None]
        slopes -= pi * slopes.sum(dim=1, keepdim=True)  # through the softmax
        if outside is not None:  # the cross-entropy of the group
            values = values + (scores.logsumexp(dim=1) - reached.logsumexp(dim=1))[:, None]
            slopes += scores.softmax(dim=1) - pi
        return values[:, 0], slopes

    return _apply(query, vectors, bias, row_loss)


def _same_group(kernel: FadingKernel, states: Tensor) -> Tensor:
    assert kernel.groups is not None
    return kernel.groups == kernel.groups[states, None]


def _apply(query: Tensor, vectors: Tensor, bias: Tensor | None, row_loss: RowLoss) -> Tensor:
    dtype = product_dtype(vectors)
    with torch.autocast(query.device.type, enabled=False):
        # torch does not annotate Function.apply
        loss: Tensor = _CatalogLoss.apply(  # type: ignore[no-untyped-call]
            query.to(vectors.dtype), vectors, bias, row_loss, dtype
        )
    return loss
