"""Kaplan-Meier equals a hand computation and scipy's, undoes censoring, and its intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import CensoredData, ecdf

from forethought.errors import DataError
from forethought.instruments.survival import kaplan_meier, survival_summary

# Six thoughts, + where cut off: 3, 5, 5, 5+, 8+, 9. At risk 6, 5, then 1 at 9:
# S(3) = 5/6; S(5) = 5/6 · 3/5 = 1/2; S(9) = 1/2 · 0/1 = 0.
LENGTHS = np.array([3, 5, 5, 5, 8, 9])
CUT = np.array([0, 0, 0, 1, 1, 0], dtype=bool)


def test_six_thoughts_by_hand():
    curve = kaplan_meier(LENGTHS, CUT)
    assert curve.lengths.tolist() == [3, 5, 9]
    assert curve.survival.tolist() == pytest.approx([5 / 6, 1 / 2, 0])
    assert curve.median == 5
    assert curve.quantile(0.1) == 3
    assert curve.quantile(0.9) == 9
    assert curve.mean() == pytest.approx(3 + 2 * 5 / 6 + 4 * 1 / 2)
    assert curve.mean(4) == pytest.approx(3 + 5 / 6)
    assert curve.mean(20) == curve.mean()  # all have ended by 9


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_it_equals_scipy(seed, rows):
    random = np.random.default_rng(seed)
    lengths, cut = random.integers(1, 12, rows).astype(float), random.random(rows) < 0.4
    if cut.all():
        cut[0] = False
    curve = kaplan_meier(lengths, cut)
    reference = ecdf(CensoredData(uncensored=lengths[~cut], right=lengths[cut])).sf
    assert curve.survival == pytest.approx(reference.evaluate(curve.lengths))
    weights = random.integers(1, 4, rows)
    repeated = kaplan_meier(np.repeat(lengths, weights), np.repeat(cut, weights))
    assert kaplan_meier(lengths, cut, weights).survival == pytest.approx(repeated.survival)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 60))
def test_with_one_cap_for_all_the_mean_is_that_of_capped_lengths(lengths, cap):
    true = np.array(lengths)
    curve = kaplan_meier(np.minimum(true, cap), true > cap)
    assert curve.mean() == pytest.approx(np.minimum(true, cap).mean())


def test_caps_that_differ_bias_a_plain_mean_and_not_this_one():
    """Rollouts under caps of 1k to 8k: pooling cut-off lengths with finished ones is far too short."""
    random = np.random.default_rng(0)
    true, cap = random.exponential(3000, 20_000), random.choice([1000, 2000, 4000, 8000], 20_000)
    curve = kaplan_meier(np.minimum(true, cap), true > cap)
    expected = 3000 * (1 - math.exp(-8000 / 3000))
    assert curve.mean(8000) == pytest.approx(expected, rel=0.02)
    assert np.minimum(true, cap).mean() < 0.7 * expected
    assert curve.median == pytest.approx(3000 * math.log(2), rel=0.04)


def test_a_median_that_was_not_reached_is_infinite():
    curve = kaplan_meier([3, 9, 9, 9], [False, True, True, True])
    assert curve.median == math.inf
    with pytest.raises(DataError, match="watched"):
        curve.mean(10)
    numbers = survival_summary([3, 9, 9, 9], [False, True, True, True], replicates=50)
    assert numbers["median"] == math.inf
    assert numbers["ended"] == 0.25
    assert kaplan_meier([5, 5], [True, True]).mean() == 5


def test_intervals_cover_and_problems_are_drawn_whole():
    random, covered, forgetful = np.random.default_rng(1), 0, 0
    owner = np.repeat(np.arange(40), 6)
    truth = np.minimum(np.exp(random.normal(6, 0.7, 200_000) + random.normal(0, 0.4, 200_000)), 600).mean()
    for trial in range(80):
        true = np.exp(np.repeat(random.normal(6, 0.7, 40), 6) + random.normal(0, 0.4, 240))
        given_ = (np.minimum(true, 600), true > 600)
        found = survival_summary(*given_, owner, limit=600, replicates=100, seed=trial)
        covered += found["mean/low"] <= truth <= found["mean/high"]
        alone = survival_summary(*given_, limit=600, replicates=100, seed=trial)
        forgetful += alone["mean/low"] <= truth <= alone["mean/high"]
    assert covered / 80 > 0.87
    assert forgetful / 80 < 0.75


def test_the_summary_is_plain_numbers_that_the_seed_repeats():
    one, two = (survival_summary(LENGTHS, CUT, [0, 0, 1, 1, 2, 2], replicates=40, seed=3) for _ in range(2))
    assert one == two
    assert all(type(value) is float for value in one.values())
    assert (one["rows"], one["problems"], one["ended"]) == (6, 3, 4 / 6)
    for name in ("ended", "mean", "median"):
        assert one[f"{name}/low"] <= one[name] <= one[f"{name}/high"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: kaplan_meier([1, math.nan], [0, 0]), "NaN"),
        (lambda: kaplan_meier([1, 2], [0]), "one mark for each"),
        (lambda: kaplan_meier([1, -2], [0, 0]), "negative"),
        (lambda: survival_summary([1, 2], [0, 0], [4, 4]), "two problems"),
        (lambda: survival_summary([1, 2], [0, 1], limit=5), "watched"),
        (lambda: survival_summary([1, 2], [0, 0], replicates=0), "replicates is 0"),
    ],
)
def test_bad_input_is_said_in_one_sentence(call, said):
    with pytest.raises(DataError, match=said):
        call()
