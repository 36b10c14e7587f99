"""Intervals cover, tests are level under the null and see a planted difference, corrections equal their definition."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, ttest_rel

from forethought.evaluation import significance
from forethought.evaluation.significance import bootstrap_means, holm, intervals, paired_test, paired_tests, user_sums

ONCE = np.arange(200)


def test_intervals_cover_the_true_mean():
    random, covered = np.random.default_rng(0), 0
    for trial in range(300):
        values = random.exponential(1.0, size=(200, 1))
        [(low, high)] = intervals(values, ONCE, replicates=400, seed=trial)
        covered += low <= 1.0 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_users_with_several_cases_are_drawn_whole():
    """Cases of one user go together: intervals that forget it cover far too seldom."""
    random, covered, forgetful = np.random.default_rng(1), 0, 0
    users = np.repeat(np.arange(60), 10)
    for trial in range(200):
        values = (np.repeat(random.normal(size=60), 10) + 0.3 * random.normal(size=600))[:, None]
        [(low, high)] = intervals(values, users, replicates=200, seed=trial)
        covered += low <= 0 <= high
        [(low, high)] = intervals(values, np.arange(600), replicates=200, seed=trial)
        forgetful += low <= 0 <= high
    assert covered / 200 > 0.89
    assert forgetful / 200 < 0.6


def test_resamples_do_not_depend_on_how_many_are_held(monkeypatch):
    draw = np.random.default_rng(0)
    values, users = draw.random((50, 3)), np.sort(draw.integers(0, 20, 50))
    values[draw.random(values.shape) < 0.1] = np.nan
    whole = bootstrap_means(values, users, 25, seed=4)
    for held in (1, 60, 25 * 20):  # less than a user's row, three rows of 20 users and a rest of one, all
        monkeypatch.setattr(significance, "DRAWN", held)
        np.testing.assert_allclose(bootstrap_means(values, users, 25, seed=4), whole, rtol=1e-12)


def test_bootstrap_has_the_standard_error_of_the_mean():
    values = np.random.default_rng(2).normal(size=(500, 2)) * [1.0, 3.0]
    spread = bootstrap_means(values, np.arange(500), replicates=4000).std(axis=0)
    assert spread == pytest.approx(values.std(axis=0) / np.sqrt(500), rel=0.06)


def test_missing_values_leave_the_mean_of_the_rest():
    values = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, 7.0]])
    sums, numbers = user_sums(values, np.array([4, 4, 9]))
    assert sums.tolist() == [[4.0, 5.0], [0.0, 7.0]]
    assert numbers.tolist() == [[2.0, 1.0], [0.0, 1.0]]
    draws = bootstrap_means(values, np.array([4, 4, 9]), replicates=50)
    assert set(np.unique(draws[:, 1])) <= {5.0, 6.0, 7.0}


def metric_values(random, users=200):
    """Like reciprocal ranks: most of them zero."""
    ranks = random.geometric(0.02, size=users)
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0)


def test_p_values_are_uniform_under_the_null():
    random = np.random.default_rng(3)
    pairs = [(metric_values(random), metric_values(random)) for _ in range(300)]
    tests = [paired_test(a, b, ONCE, replicates=400, seed=trial) for trial, (a, b) in enumerate(pairs)]
    for name in ("p_randomisation", "p_bootstrap"):
        p = np.array([getattr(test, name) for test in tests])
        assert kstest(p, "uniform").pvalue > 1e-3
        assert (p <= 0.05).mean() < 0.09


def test_a_planted_difference_is_found():
    random, found = np.random.default_rng(4), 0
    for trial in range(60):
        base = random.random(200)
        test = paired_test(base + random.normal(0.08, 0.25, 200), base, ONCE, replicates=600, seed=trial)
        found += test.p_randomisation < 0.05 and test.p_bootstrap < 0.05 and test.low > 0
    assert found >= 58


def test_close_to_the_t_test_where_that_holds():
    random = np.random.default_rng(5)
    a, b = random.normal(0.15, 1, 400), random.normal(0, 1, 400)
    test = paired_test(a, b, np.arange(400), replicates=20_000)
    expected = ttest_rel(a, b).pvalue
    assert test.difference == pytest.approx((a - b).mean())
    assert test.p_randomisation == pytest.approx(expected, abs=0.02)
    assert test.p_bootstrap == pytest.approx(expected, abs=0.02)


def test_sign_flips_equal_their_enumeration():
    gaps = np.array([0.5, -0.1, 0.4, 0.0, 0.3, 0.3, -0.2])
    sums = [abs(np.dot(signs, gaps)) for signs in itertools.product([-1, 1], repeat=len(gaps))]
    exact = np.mean(np.array(sums) >= abs(gaps.sum()) - 1e-12)
    test = paired_test(gaps, np.zeros(7), np.arange(7), replicates=40_000)
    assert test.p_randomisation == pytest.approx(exact, abs=0.01)


def test_equal_systems_do_not_differ():
    values = metric_values(np.random.default_rng(6))
    test = paired_test(values, values, ONCE, replicates=200)
    assert (test.difference, test.p_bootstrap, test.p_randomisation) == (0.0, 1.0, 1.0)


def test_seeds_are_averaged_per_case_and_systems_are_tested_one_by_one():
    random = np.random.default_rng(7)
    a, b, c = random.random((3, 200)), random.random((2, 200)), random.random(200)
    both = paired_tests(a, [b, c], ONCE, replicates=300)
    assert both[0].difference == pytest.approx(a.mean() - b.mean())
    alone = paired_test(a.mean(axis=0), c, ONCE, replicates=300)
    assert dataclasses.astuple(both[1]) == pytest.approx(dataclasses.astuple(alone))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_equals_its_definition(p_values):
    """Holm rejects at level α just while the i-th smallest p is at most α / (m - i)."""
    adjusted = holm(p_values)
    order = np.argsort(p_values, kind="stable")
    for level in (0.01, 0.05, 0.2, *(p for p in adjusted if p < 1)):
        rejected = set()
        for step, index in enumerate(order):
            if (len(p_values) - step) * p_values[index] > level:
                break
            rejected.add(int(index))
        assert rejected == {i for i, p in enumerate(adjusted) if p <= level}
