"""The plain loss against loops over dense matrices, its zeros, its minimum, and its value in nats."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor
from torch.testing import assert_close

from forethought.recommenders.prefergrow.kernels import FadingKernel
from forethought.recommenders.prefergrow.score_entropy import score_entropy_reference

Form = Literal["score_entropy", "bce"]
FORMS: list[Form] = ["score_entropy", "bce"]


def brute_force(s: Tensor, x_t: int, x_0: int, sigma: float, Q: np.ndarray, form: Form) -> Tensor:
    """One sample's loss, edge by edge."""
    P = expm(sigma * Q)
    loss = torch.zeros((), dtype=torch.float64)
    for y in range(len(Q)):
        if y == x_t or Q[x_t, y] == 0:
            continue
        r = P[y, x_0] / P[x_t, x_0]
        if form == "score_entropy":
            constant = r * (math.log(r) - 1) if r > 0 else 0.0
            edge = torch.exp(s[y]) - r * s[y] + constant
        else:
            label = r / (1 + r)
            entropy = -sum(q * math.log(q) for q in (label, 1 - label) if q > 0)
            yes = torch.sigmoid(s[y])
            edge = (1 + r) * (-label * torch.log(yes) - (1 - label) * torch.log(1 - yes) - entropy)
        loss = loss + Q[x_t, y] * edge
    return loss


def pairs(case: Any) -> tuple[Tensor, Tensor]:
    """Every (x_t, x_0) that can happen: int64 ``[B]`` twice."""
    x_t, x_0 = torch.cartesian_prod(torch.arange(case.size), torch.arange(case.size)).T
    possible = case.kernel.column(x_0, 0.5).gather(1, x_t[:, None])[:, 0] > 0
    return x_t[possible], x_0[possible]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sigma", [1e-3, 0.4, 3.0, 10.0])
def test_loss_and_gradient_equal_brute_force(case: Any, form: Form, sigma: float) -> None:
    x_t, x_0 = pairs(case)
    s = torch.from_numpy(np.random.default_rng(0).normal(size=(len(x_t), case.size))).requires_grad_()
    alpha = torch.tensor(-sigma, dtype=torch.float64).exp()
    expected = torch.stack(
        [brute_force(s[b], int(x_t[b]), int(x_0[b]), sigma, case.generator, form) for b in range(0, len(x_t), 7)]
    )
    ours = score_entropy_reference(s, x_t, x_0, alpha, case.kernel, form=form)[::7]
    tight = {"rtol": 1e-9, "atol": 1e-9}
    assert_close(ours, expected, **tight)
    assert_close(torch.autograd.grad(ours.sum(), s), torch.autograd.grad(expected.sum(), s), **tight)


def true_log_ratios(case: Any, x_t: Tensor, x_0: Tensor, alpha: float) -> Tensor:
    column = case.kernel.column(x_0, alpha).log()
    return column - column.gather(1, x_t[:, None])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [0.999, 0.5, 1e-3])
def test_zero_loss_and_gradient_at_the_true_ratios(case: Any, form: Form, alpha: float) -> None:
    x_t, x_0 = pairs(case)
    s = true_log_ratios(case, x_t, x_0, alpha).clamp(min=-80).requires_grad_()  # e^-80 stands for a ratio of 0
    loss = score_entropy_reference(s, x_t, x_0, alpha, case.kernel, form=form)
    (gradient,) = torch.autograd.grad(loss.sum(), s)
    largest = (case.kernel.rate_row(x_t) * s.exp()).max().item() + 1
    assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-12 * largest)
    assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12 * largest)
    elsewhere = score_entropy_reference(s.detach() + 0.1, x_t, x_0, alpha, case.kernel, form=form)
    assert bool((elsewhere >= loss.detach() - 1e-12 * largest).all())


@pytest.mark.parametrize("form", FORMS)
def test_the_expected_loss_is_least_at_the_marginal_ratios(case: Any, form: Form) -> None:
    """Over x₀ given x_t the loss teaches p_t(y) / p_t(x_t), though no single sample has those ratios."""
    kernel, alpha = case.kernel, 0.4
    preference = torch.from_numpy(np.random.default_rng(1).dirichlet(np.ones(case.size)))
    marginal = kernel.transition(preference, alpha)
    for x_t in range(case.size):
        x_0 = pairs(case)[1][pairs(case)[0] == x_t]
        here = torch.full_like(x_0, x_t)
        joint = preference[x_0] * kernel.column(x_0, alpha)[:, x_t]  # Pr(x_0, x_t)

        def expected(s: Tensor, here: Tensor = here, x_0: Tensor = x_0, joint: Tensor = joint) -> Tensor:
            loss = score_entropy_reference(s.expand(len(x_0), -1), here, x_0, alpha, kernel, form=form)
            return (joint * loss).sum()

        s = (marginal.log() - marginal[x_t].log()).requires_grad_()
        least = expected(s)
        (gradient,) = torch.autograd.grad(least, s)
        assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
        if case.E[x_t].sum() - case.E[x_t, x_t] > 0:  # else x_t has no edges and nothing to learn
            for y in {0, case.size - 1} - {x_t}:
                step = torch.zeros_like(s)
                step[y] = 0.3
                if case.E[x_t, y] > 0:
                    assert expected(s + step) > least
                    assert expected(s - step) > least


def test_bce_without_its_factor_would_learn_the_wrong_ratios() -> None:
    """Why each edge carries 1 + r: the plain soft-label BCE averages r / (1 + r), and its minimum is elsewhere."""
    kernel, alpha = FadingKernel.pair(5, torch.float64), 0.4
    preference = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.04], dtype=torch.float64)
    marginal = kernel.transition(preference, alpha)
    x_0 = torch.arange(5)
    posterior = preference * kernel.column(x_0, alpha)[:, 2] / marginal[2]
    columns = kernel.column(x_0, alpha)
    r = columns / columns[:, 2:3]
    label = (posterior[:, None] * r / (1 + r)).sum(dim=0)
    learned = label / (1 - label)
    assert abs(learned[0] / (marginal[0] / marginal[2]) - 1) > 0.2


def test_pair_closed_form() -> None:
    """Spec §2.6: with e = (1 - α) / α, at x_t = x₀ every r is (e/N)/(1 + e/N); else r = 1 but for r_{x₀} = 1 + N/e."""
    n, alpha = 6, 0.3
    e = (1 - alpha) / alpha
    kernel = FadingKernel.pair(n, torch.float64)
    s = torch.from_numpy(np.random.default_rng(2).normal(size=(2, n)))

    def constant(r: float) -> float:
        return r * (math.log(r) - 1)

    ours = score_entropy_reference(s, torch.tensor([0, 0]), torch.tensor([0, 3]), alpha, kernel)
    r = (e / n) / (1 + e / n)
    stayed = (s[0, 1:].exp().sum() - r * s[0, 1:].sum() + (n - 1) * constant(r)) / n
    moved = (
        s[1, 1:].exp().sum() - s[1, 1:].sum() - n / e * s[1, 3] + (n - 2) * constant(1.0) + constant(1 + n / e)
    ) / n
    assert_close(ours, torch.stack([stayed, moved]))


def test_point_closed_form() -> None:
    """Spec §2.6: nothing unless x_t = d; then Σ e^{s_y} - s_{x₀} / e + constant(1/e)."""
    n, alpha = 6, 0.3
    e = (1 - alpha) / alpha
    kernel = FadingKernel.point(n, torch.float64)
    s = torch.from_numpy(np.random.default_rng(2).normal(size=(2, n + 1)))
    ours = score_entropy_reference(s, torch.tensor([n, 3]), torch.tensor([3, 3]), alpha, kernel)
    faded = s[0, :n].exp().sum() - s[0, 3] / e + (math.log(1 / e) - 1) / e
    assert_close(ours, torch.stack([faded, torch.zeros_like(faded)]))


def test_rate_weighs_the_samples(case: Any) -> None:
    x_t, x_0 = pairs(case)
    s = torch.from_numpy(np.random.default_rng(5).normal(size=(len(x_t), case.size)))
    rate = torch.linspace(0.1, 3.0, len(x_t), dtype=torch.float64)
    raw = score_entropy_reference(s, x_t, x_0, 0.5, case.kernel)
    assert_close(score_entropy_reference(s, x_t, x_0, 0.5, case.kernel, rate), rate * raw)


def test_the_score_at_x_t_is_not_read(case: Any) -> None:
    x_t, x_0 = pairs(case)
    s = torch.from_numpy(np.random.default_rng(6).normal(size=(len(x_t), case.size)))
    other = s.scatter(1, x_t[:, None], 1e3)
    for form in FORMS:
        assert_close(
            score_entropy_reference(s, x_t, x_0, 0.5, case.kernel, form=form),
            score_entropy_reference(other, x_t, x_0, 0.5, case.kernel, form=form),
        )


def test_a_state_that_cannot_be_costs_nothing() -> None:
    """Under the point kernel x_t is x₀ or d; any other state has no edge, and no division by zero."""
    kernel = FadingKernel.point(4)
    s = torch.zeros(1, 5, requires_grad=True)
    for form in FORMS:
        loss = score_entropy_reference(s, torch.tensor([2]), torch.tensor([1]), 0.5, kernel, form=form)
        (gradient,) = torch.autograd.grad(loss.sum(), s)
        assert loss.item() == 0.0
        assert torch.equal(gradient, torch.zeros(1, 5))


def test_bce_survives_scores_that_overflow_an_exponential() -> None:
    kernel = FadingKernel.pair(4)
    s = torch.tensor([[0.0, 200.0, -200.0, 1.0]], requires_grad=True)
    loss = score_entropy_reference(s, torch.tensor([0]), torch.tensor([1]), 0.5, kernel, form="bce")
    (gradient,) = torch.autograd.grad(loss.sum(), s)
    assert bool(loss.isfinite().all())
    assert bool(gradient.isfinite().all())


def test_the_loss_is_a_likelihood_bound_in_nats(case: Any) -> None:
    """∫ loss dσ at the exact marginal ratios is -ln Pr(x₀), in the group where fading keeps to one."""
    kernel, size = case.kernel, case.size
    preference = torch.zeros(size, dtype=torch.float64)
    preference[:12] = torch.from_numpy(np.random.default_rng(7).dirichlet(np.ones(12)))
    nodes, weights = np.polynomial.legendre.leggauss(400)
    low, high = math.log(1e-9), math.log(40.0)
    total = torch.zeros(12, dtype=torch.float64)
    x_t, x_0 = pairs(case)
    x_t, x_0 = x_t[x_0 < 12], x_0[x_0 < 12]
    for node, weight in zip(nodes, weights, strict=True):
        sigma = math.exp(low + (node + 1) / 2 * (high - low))
        alpha = torch.tensor(-sigma, dtype=torch.float64).exp()
        marginal = kernel.transition(preference, alpha).log()
        column = kernel.column(x_0, alpha).gather(1, x_t[:, None])[:, 0]  # Pr(x_t | x_0)
        loss = column * score_entropy_reference(marginal - marginal[x_t, None], x_t, x_0, alpha, kernel)
        total.index_add_(0, x_0, loss * (weight * (high - low) / 2 * sigma))
    reach = kernel.transition(preference, 0.0) / kernel.p if kernel.groups is not None else torch.ones(size)
    assert_close(total, -(preference / reach)[:12].log(), rtol=1e-4, atol=1e-5)
