"""Level directions against chance: cosines that a shared reference level makes, and what w·r says of new questions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.errors import DataError
from forethought.instruments.direction import (
    LevelDirections,
    direction_nulls,
    held_out_projection,
    mean_null_cosine,
    null_cosine,
    random_directions,
    regression_direction,
)

MATH = (564, 1348, 1592, 1690, 2304)


def grown(sizes, width=40, step=1.0, seed=0, noise=1.0):
    """States that move along one axis with the level, off a large common mean."""
    random = np.random.default_rng(seed)
    levels = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    axis = random.normal(size=width)
    axis /= np.linalg.norm(axis)
    states = 20 + noise * random.normal(size=(len(levels), width)) + step * (levels[:, None] - 1) * axis
    return states, levels, axis


def test_differences_are_from_the_lowest_level_and_their_mean_is_unweighted():
    states, levels, _ = grown((3, 5, 7))
    found = LevelDirections.fit(torch.tensor(states), levels)
    mu = [states[levels == k].mean(axis=0) for k in (1, 2, 3)]
    assert found.counts.tolist() == [3, 5, 7]
    assert found.differences == pytest.approx(np.stack([mu[1] - mu[0], mu[2] - mu[0]]))
    assert found.vector() == pytest.approx((mu[1] + mu[2]) / 2 - mu[0])
    assert found.vector("counts") == pytest.approx((5 * mu[1] + 7 * mu[2]) / 12 - mu[0])
    assert found.vector([1, 3]) == pytest.approx(0.25 * mu[1] + 0.75 * mu[2] - mu[0])
    a, b = found.differences
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert found.mean_cosine() == pytest.approx(cosine)
    assert found.mean_cosine(diagonal=True) == pytest.approx((2 + 2 * cosine) / 4)
    assert found.norms == pytest.approx(np.linalg.norm(found.differences, axis=1))


@pytest.mark.parametrize(("sizes", "expected"), [((300,) * 5, 0.5), ((60, 300, 300, 300, 300), 0.84), (MATH, 0.75)])
def test_levels_that_mean_nothing_have_cosines_far_from_zero(sizes, expected):
    """Every difference subtracts the same mean. The formula, a simulation and the permutations agree."""
    assert mean_null_cosine(sizes) == pytest.approx(expected, abs=0.01)
    random, drawn = np.random.default_rng(0), []
    for _ in range(6):
        # means of rows of unit noise, drawn directly
        means = random.normal(size=(5, 2000)) / np.sqrt(sizes)[:, None]
        drawn.append(LevelDirections(np.arange(5), np.array(sizes), means).mean_cosine())
    assert np.mean(drawn) == pytest.approx(mean_null_cosine(sizes), abs=0.02)
    assert np.mean(drawn) == pytest.approx(expected, abs=0.03)


def test_with_equal_levels_the_mean_with_the_diagonal_is_five_eighths():
    means = np.random.default_rng(1).normal(size=(5, 50_000))
    assert LevelDirections(np.arange(5), np.ones(5, dtype=int), means).mean_cosine(diagonal=True) == pytest.approx(
        0.625, abs=0.01
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 500))
def test_the_null_cosine_is_a_cosine(n1, ni, nj):
    assert 0 < null_cosine(n1, ni, nj) < 1
    assert null_cosine(n1, ni, nj) == pytest.approx(null_cosine(n1, nj, ni))
    assert null_cosine(n1, n1, n1) == pytest.approx(0.5)
    assert null_cosine(n1, ni + 1, nj) > null_cosine(n1, ni, nj)


def test_permuted_levels_agree_with_the_formula_and_noise_is_not_found():
    states, levels, _ = grown((20, 100, 100, 100), width=300, step=0)
    nulls = direction_nulls(states, levels, permutations=60)
    assert nulls.mean_cosine.mean == pytest.approx(nulls.expected_cosine, abs=0.03)
    assert nulls.expected_cosine > 0.8
    assert nulls.mean_cosine.observed > 0.75  # "nearly parallel", and nothing is there
    assert nulls.mean_cosine.p > 0.05
    assert all(null.p > 0.02 for null in nulls.norms)


def test_a_planted_axis_is_found():
    states, levels, axis = grown((40, 40, 40, 40), step=1.5)
    nulls = direction_nulls(states, levels, permutations=60)
    assert nulls.mean_cosine.p == pytest.approx(1 / 61)
    assert [null.p for null in nulls.norms] == pytest.approx([1 / 61] * 3)
    vector = LevelDirections.fit(states, levels).vector()
    assert vector @ axis / np.linalg.norm(vector) > 0.9
    assert vector @ axis == pytest.approx(1.5 * 2, abs=0.3)


def test_rows_of_a_problem_swap_levels_together():
    """Ten rows of one state each: rows permuted singly would make every difference of levels a finding."""
    states, levels, _ = grown((8, 8, 8), step=0)
    repeated = [np.repeat(a, 10, axis=0) for a in (states, levels, np.arange(24))]
    honest = direction_nulls(*repeated, permutations=60)
    forgetful = direction_nulls(*repeated[:2], permutations=60)
    assert min(null.p for null in honest.norms) > 0.02
    assert max(null.p for null in forgetful.norms) < 0.02


def test_a_site_where_nothing_differs_has_no_direction_and_no_p():
    """The embedding of the last prompt token is the same for every question: r_0 is exactly zero."""
    states, levels = np.ones((30, 8)) * 0.3, np.arange(30) % 3
    found = LevelDirections.fit(states, levels)
    assert np.abs(found.vector()).max() < 1e-15
    nulls = direction_nulls(np.zeros((30, 8)), levels, permutations=5)
    assert np.isnan(nulls.mean_cosine.p)
    assert held_out_projection(np.zeros((30, 8)), np.arange(30), levels).predicted == 0


def test_regression_directions_change_the_prediction_by_a_token():
    states, levels, axis = grown((60, 60, 60), step=2.0)
    lengths = 1000.0 * levels
    pattern, weight = (regression_direction(states, lengths, kind) for kind in ("pattern", "weight"))
    assert pattern @ axis == pytest.approx(2 / 1000, rel=0.1)
    slopes = [np.polyfit(lengths, states[:, j], 1)[0] for j in range(states.shape[1])]
    assert pattern == pytest.approx(np.array(slopes))
    assert weight @ axis / np.linalg.norm(weight) > 0.9


def test_weights_cancel_noise_that_patterns_do_not_show():
    """Haufe et al. 2014: a column of pure noise that helps to clean another gets a weight and no pattern."""
    random = np.random.default_rng(2)
    lengths, noise = random.normal(size=(2, 2000))
    states = np.stack([lengths + noise, noise], axis=1)
    assert regression_direction(states, lengths, "pattern") == pytest.approx([1, 0], abs=0.06)
    assert regression_direction(states, lengths, "weight") == pytest.approx([0.5, -0.5], abs=0.01)


def test_w_r_is_automatic_in_the_fit_and_not_on_held_out_questions():
    """With states of pure noise, w·r is positive on the questions of the fit, and nothing on others."""
    random, levels = np.random.default_rng(3), np.repeat([1, 2, 3], 40)
    lengths = 1000.0 * levels + random.normal(0, 200, 120)
    inside, outside = [], []
    for seed in range(8):
        states = random.normal(size=(120, 80))
        weight = regression_direction(states, lengths, "weight", alpha=1.0)
        inside.append(LevelDirections.fit(states, levels).vector() @ (weight / (weight @ weight)))
        outside.append(held_out_projection(states, lengths, levels, alpha=1.0, seed=seed).predicted)
    assert min(inside) > 500
    assert abs(np.mean(outside)) < 200
    states, levels, _ = grown((40, 40, 40), step=3.0, noise=0.3)
    found = held_out_projection(states, lengths, levels)
    assert found.actual == pytest.approx(1500, abs=100)
    assert found.predicted == pytest.approx(1500, rel=0.1)
    assert len(found.folds) == 5


def test_problems_are_not_shared_between_folds():
    random = np.random.default_rng(4)
    groups = np.repeat(np.arange(30), 10)
    states = np.repeat(random.normal(size=(30, 60)), 10, axis=0)
    levels = np.repeat(np.arange(30) % 2, 10)
    lengths = 1000.0 * levels + 100
    assert held_out_projection(states, lengths, levels, alpha=0.1).predicted > 800
    assert held_out_projection(states, lengths, levels, groups, alpha=0.1).predicted < 500


@pytest.mark.parametrize("shape", [(16,), (3, 16)])
def test_random_directions_have_the_norms_of_their_counterparts(shape):
    like = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 7
    one, two = (random_directions(like, 5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.shape == (5, *shape)
    assert one.dtype == like.dtype
    assert torch.equal(one, two)
    torch.testing.assert_close(one.norm(dim=-1), like.norm(dim=-1).expand(5, *shape[:-1]))
    many = random_directions(torch.tensor([3.0, 4.0]), 4000, torch.Generator().manual_seed(2))
    assert many.mean(dim=0).abs().max() < 0.2
    pair = random_directions(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]), 4000, torch.Generator().manual_seed(3))
    torch.testing.assert_close((pair[:, 0] * pair[:, 1]).sum(dim=-1), torch.ones(4000))  # the angle stays
    assert pair.mean(dim=0).abs().max() < 0.1
    assert random_directions(torch.ones(5, 3), 2, torch.Generator()).shape == (2, 5, 3)  # more sites than dimensions
    assert random_directions(torch.zeros(4), 2, torch.Generator()).abs().max() == 0


X, LEVELS = np.random.default_rng(0).normal(size=(12, 3)), np.arange(12) % 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: LevelDirections.fit(X, np.ones(12)), "one level"),
        (lambda: LevelDirections.fit(X, LEVELS[1:]), "12 rows"),
        (lambda: LevelDirections.fit(X * np.nan, LEVELS), "NaN"),
        (lambda: LevelDirections.fit(X, LEVELS).vector([1, -1]), "zero"),
        (lambda: LevelDirections.fit(X, LEVELS).vector([1]), "weights has 1"),
        (lambda: direction_nulls(X, LEVELS, np.arange(11)), "one problem for each"),
        (lambda: regression_direction(X, np.ones(12)), "equal"),
        (lambda: regression_direction(0 * X, np.arange(12.0), "weight"), "tell nothing of the lengths"),
        (lambda: held_out_projection(X, LEVELS, [0] + [1] * 11), "one problem only"),
    ],
)
def test_bad_input_is_said_in_one_sentence(call, said):
    with pytest.raises(DataError, match=said):
        call()


def test_pairs_are_those_of_the_formula():
    others = MATH[1:]
    pairs = [null_cosine(MATH[0], a, b) for a, b in itertools.combinations(others, 2)]
    assert mean_null_cosine(MATH) == pytest.approx(np.mean(pairs))
