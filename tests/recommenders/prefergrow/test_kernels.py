"""Fading kernels against matrix exponentials, and their samples against their columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.linalg import expm
from scipy.stats import chisquare
from torch.testing import assert_close

from forethought.errors import RecipeError
from forethought.recommenders.prefergrow.kernels import FadingKernel

SIGMAS = [1e-3, 0.1, 1.0, 10.0]


def alpha_of(sigma: float, count: int) -> torch.Tensor:
    return torch.full((count,), -sigma, dtype=torch.float64).exp()


def check_closed_forms(kernel: FadingKernel, E: np.ndarray, sigma: float) -> None:
    """Row, column, transition and inverse are those of the matrix exponential of E - I."""
    size = len(E)
    P = torch.from_numpy(expm(sigma * (E - np.eye(size))))
    states, alpha = torch.arange(size), alpha_of(sigma, size)
    v = torch.from_numpy(np.random.default_rng(0).normal(size=(size, size)))
    exact = {"rtol": 0.0, "atol": 1e-12}
    assert_close(kernel.column(states, alpha).T, P, **exact)
    assert_close(kernel.row(states, alpha), P, **exact)
    assert_close(kernel.transition(v, alpha), v @ P.T, **exact)
    assert_close(kernel.transition(v[0], alpha[0]), P @ v[0], **exact)
    assert_close(kernel.inverse(kernel.transition(v, alpha), alpha), v, rtol=0.0, atol=1e-14 / alpha[0].item() * 100)
    assert_close(kernel.inverse(v, alpha) @ P.T, v, rtol=0.0, atol=1e-14 / alpha[0].item() * 100)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_closed_form_is_the_matrix_exponential(case: Any, sigma: float) -> None:
    check_closed_forms(case.kernel, case.E, sigma)


def test_semigroup(case: Any) -> None:
    size = case.size
    v = torch.from_numpy(np.random.default_rng(1).normal(size=(size, size)))
    once = case.kernel.transition(v, alpha_of(0.7 + 1.9, size))
    twice = case.kernel.transition(case.kernel.transition(v, alpha_of(0.7, size)), alpha_of(1.9, size))
    assert_close(once, twice)


def test_reversible_and_stationary(case: Any) -> None:
    P = case.kernel.column(torch.arange(case.size), alpha_of(0.8, case.size)).T
    flow = P * case.kernel.p  # p_x P[y, x]
    assert_close(flow, flow.T)
    assert_close(P @ case.kernel.p, case.kernel.p)


def test_limit_is_the_non_preference_distribution(case: Any) -> None:
    limit = case.kernel.column(torch.arange(case.size), alpha_of(60.0, case.size)).T
    assert_close(limit, torch.from_numpy(case.E))


def test_rate_row_is_the_generator_off_the_diagonal(case: Any) -> None:
    expected = case.generator - np.diag(np.diag(case.generator))
    assert_close(case.kernel.rate_row(torch.arange(case.size)), torch.from_numpy(expected))


def check_frequencies(draws: torch.Tensor, expected: np.ndarray) -> None:
    counts = np.bincount(draws.numpy(), minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    if possible.sum() > 1:  # one possible state leaves nothing to test but the line above
        assert chisquare(counts[possible], expected[possible] * len(draws)).pvalue > 1e-3


@pytest.mark.parametrize("start", [0, 3, -1])
def test_samples_follow_the_column(case: Any, start: int) -> None:
    x = torch.full((20_000,), range(case.size)[start])
    alpha = alpha_of(1.1, len(x))
    draws = case.kernel.sample(x, alpha, torch.Generator().manual_seed(5))
    check_frequencies(draws, case.kernel.column(x[:1], alpha[:1])[0].numpy())


def test_prior_samples_follow_the_limit(case: Any) -> None:
    group = None if case.kernel.groups is None else torch.full((20_000,), 2)
    draws = case.kernel.prior_sample(20_000, torch.Generator().manual_seed(6), group)
    start = 0 if group is None else int((case.kernel.groups == 2).nonzero()[0])
    check_frequencies(draws, case.E[:, start])


@st.composite
def kernels(draw: st.DrawFn) -> tuple[FadingKernel, np.ndarray]:
    size = draw(st.integers(2, 50))
    weight = st.floats(0, 1e6, allow_subnormal=False).filter(lambda w: w == 0 or w > 1e-6)
    p = draw(arrays(np.float64, size, elements=weight))
    groups = draw(arrays(np.int64, size, elements=st.integers(0, min(size - 1, 5))))
    if draw(st.booleans()):
        groups[:] = 0
    for group in np.unique(groups):
        p[np.argmax(groups == group)] += 1.0  # mass in every group
    E = np.array(
        [[p[y] / p[groups == groups[y]].sum() * (groups[y] == groups[x]) for x in range(size)] for y in range(size)]
    )
    plain = not groups.any() and draw(st.booleans())
    return FadingKernel(torch.from_numpy(p), None if plain else torch.from_numpy(groups)), E


@settings(max_examples=60, deadline=None)
@given(kernels(), st.floats(1e-4, 8.0))
def test_any_distribution_in_any_groups(kernel_and_matrix: tuple[FadingKernel, np.ndarray], sigma: float) -> None:
    check_closed_forms(*kernel_and_matrix, sigma)


def test_one_alpha_for_all_or_one_a_sample(case: Any) -> None:
    x = torch.arange(case.size)
    for method in (case.kernel.column, case.kernel.row):
        assert_close(method(x, 0.3), method(x, torch.full((case.size,), 0.3, dtype=torch.float64)))
        assert_close(method(x, 0.3), method(x, torch.tensor(0.3, dtype=torch.float64)))
    mixed = torch.linspace(0.1, 0.9, case.size, dtype=torch.float64)
    assert_close(case.kernel.column(x, mixed)[2], case.kernel.column(x[2:3], mixed[2].item())[0])


def test_little_noise_keeps_its_digits_in_float32() -> None:
    kernel = FadingKernel.pair(10)
    alpha = torch.tensor([-1e-6], dtype=torch.float64).exp()
    faded = kernel.column(torch.tensor([0]), alpha)[0, 1]
    assert faded.dtype == torch.float32
    assert faded.item() == pytest.approx(1e-7, rel=1e-5)  # 1 - float32(alpha) alone would be off by a tenth


def test_a_large_catalogue_needs_no_matrix() -> None:
    size = 1_000_000
    kernel = FadingKernel.hybrid(size, 0.9999)
    x = torch.tensor([0, size])
    assert_close(kernel.column(x, 0.5).sum(dim=1), torch.ones(2), rtol=1e-4, atol=0)
    many = kernel.sample(torch.zeros(100_000, dtype=torch.int64), 0.0, torch.Generator().manual_seed(0))
    # uniform over a million items: the distinct ones among n draws are N (1 - (1 - 1/N)^n) = 95,163 ± 66
    assert len(many.unique()) == pytest.approx(95_163, abs=400)
    assert (many >= size // 2).float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_kernel_travels_with_its_module() -> None:
    kernel = FadingKernel.block(torch.tensor([0, 1, 0]), torch.tensor([1.0, 2.0, 3.0]))
    other = FadingKernel.block(torch.tensor([0, 0, 1]))
    other.load_state_dict(kernel.state_dict())
    assert_close(other.column(torch.tensor([0]), 0.5), torch.tensor([[0.625, 0.0, 0.375]]))
    assert list(kernel.parameters()) == []


@pytest.mark.parametrize(
    ("p", "groups"),
    [([1.0, -0.1], None), ([1.0, float("nan")], None), ([0.0, 0.0], None), ([1.0, 0.0], [0, 1])],
)
def test_impossible_distributions_are_refused(p: list[float], groups: list[int] | None) -> None:
    with pytest.raises(RecipeError, match="non-negative"):
        FadingKernel(torch.tensor(p), None if groups is None else torch.tensor(groups))


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_impossible_gamma_is_refused(gamma: float) -> None:
    with pytest.raises(RecipeError, match="gamma"):
        FadingKernel.hybrid(5, gamma)


def test_growing_in_groups_has_to_name_them() -> None:
    with pytest.raises(ValueError, match="group"):
        FadingKernel.block(torch.tensor([0, 0, 1])).prior_sample(3)
    with pytest.raises(ValueError, match="group"):
        FadingKernel.pair(3).prior_sample(3, group=torch.tensor([0, 0, 0]))
