"""Controls tell a finding from luck, from prompt length, from words and from levels; the ceiling is the data's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, spearmanr
from sklearn.metrics import r2_score, roc_auc_score

from forethought.errors import DataError
from forethought.instruments.controls import (
    Null,
    bag_of_tokens_baseline,
    exchanges,
    finite,
    grouped_folds,
    length_controls,
    permutation_null,
    prompt_length_baseline,
    r2,
    spearman,
    split_half,
    within_level,
)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 40), st.integers(2, 6))
def test_rank_correlation_and_r2_are_the_libraries(seed, rows, distinct):
    random = np.random.default_rng(seed)
    a, b = random.integers(0, distinct, rows).astype(float), random.normal(size=rows)
    if np.ptp(a) == 0:
        assert math.isnan(spearman(a, b))
    else:
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert r2(a, b) == pytest.approx(r2_score(b, a))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.booleans())
def test_a_permutation_moves_problems_whole_and_inside_their_level(seed, problems, leveled):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 3, problems)
    sizes[:2] = 1
    groups = random.permutation(np.repeat(np.arange(problems), sizes))
    of_problem = random.integers(0, 2, problems)
    of_problem[:2] = 0
    level = of_problem[groups] if leveled else None
    [moved] = exchanges(random, groups, 1, level)
    assert sorted(moved) == list(range(len(groups)))
    if leveled:
        assert (level[moved] == level).all()
    for problem in range(problems):
        rows = np.flatnonzero(groups == problem)
        sources = set(groups[moved[rows]])
        assert len(sources) == 1
        assert sizes[sources.pop()] == len(rows)


def test_p_values_of_a_null_are_even_and_of_a_planted_link_small():
    random, found = np.random.default_rng(0), []
    for trial in range(100):
        a, b = random.normal(size=(2, 40))
        found.append(permutation_null(lambda y, a=a: spearman(a, y), b, permutations=60, seed=trial).p)
    assert kstest(found, "uniform").pvalue > 0.01
    a = random.normal(size=60)
    null = permutation_null(lambda y: spearman(a, y), a + random.normal(size=60))
    assert null.p == pytest.approx(1 / 201)
    assert null.observed > null.high > null.mean


def test_repeated_rows_need_problems():
    """Ten rows of each of twelve problems: without the groups, chance correlations look certain."""
    random, forgetful, honest = np.random.default_rng(1), [], []
    groups = np.repeat(np.arange(12), 10)
    for trial in range(40):
        a, b = np.repeat(random.normal(size=(2, 12)), 10, axis=1)
        forgetful.append(permutation_null(lambda y, a=a: abs(spearman(a, y)), b, permutations=60, seed=trial).p)
        honest.append(permutation_null(lambda y, a=a: abs(spearman(a, y)), b, groups, permutations=60, seed=trial).p)
    assert np.mean(np.array(forgetful) < 0.05) > 0.4
    assert np.mean(np.array(honest) < 0.05) < 0.2


def test_levels_alone_correlate_across_but_not_within():
    """A predictor that knows nothing but the level has a high rank correlation, and none within levels."""
    random = np.random.default_rng(2)
    levels = np.repeat(np.arange(1, 6), 60)
    lengths = 500.0 * levels + random.normal(0, 200, 300)
    guess = levels + 0.1 * random.normal(size=300)
    numbers = length_controls(guess, lengths, levels=levels, permutations=100)
    assert numbers["spearman"] > 0.85
    assert numbers["spearman/p"] < 0.02
    assert abs(numbers["within-level/spearman"]) < 0.15
    assert numbers["within-level/p"] > 0.05
    mean, each = within_level(lengths, lengths, levels)
    assert (mean, each) == (pytest.approx(1), {k: pytest.approx(1) for k in range(1, 6)})


def test_a_level_with_nothing_to_rank_is_left_out():
    mean, each = within_level([1, 2, 3, 4, 5], [3, 1, 1, 9, 9], [1, 1, 1, 2, 2])
    assert list(each) == [1]
    assert mean == pytest.approx(spearmanr([1, 2, 3], [3, 1, 1]).statistic)
    assert math.isnan(within_level([1, 2], [1, 2], [1, 2])[0])


def test_split_half_finds_the_planted_reliability_and_a_perfect_predictor_meets_the_ceiling():
    random = np.random.default_rng(3)
    truth = random.normal(0, 1, 20_000)
    for r in (5, 8):  # an odd number leaves one rollout out of each pair of halves
        rollouts = truth[:, None] + random.normal(0, 2, (20_000, r))
        found = split_half(rollouts, splits=10)
        planted = 1 / (1 + 4 / r)
        assert found.reliability == pytest.approx(planted, abs=0.025)
        assert found.half == pytest.approx(1 / (1 + 4 / (r // 2)), abs=0.03)
        means = rollouts.mean(axis=1)
        assert np.corrcoef(truth, means)[0, 1] == pytest.approx(found.ceiling, abs=0.02)
        assert spearman(truth, means) == pytest.approx(split_half(rollouts, splits=5, ranks=True).ceiling, abs=0.025)
    assert split_half(random.normal(size=(500, 4))).ceiling < 0.4


@pytest.mark.parametrize("label", [False, True])
def test_the_prompts_length_may_rise_and_fall_with_what_it_tells(label):
    random = np.random.default_rng(4)
    size = random.integers(20, 80, 300)
    lengths = 100 + 80 * np.exp(-(((size - 50) / 8) ** 2)) + random.normal(0, 10, 300)
    wanted = (lengths > np.quantile(lengths, 0.75)).astype(float) if label else lengths
    found = prompt_length_baseline(size[:150], wanted[:150], size[150:])
    if label:  # a line finds nothing here: its area is about a half
        assert roc_auc_score(wanted[150:], found) > 0.9
    else:
        assert r2(found, wanted[150:]) > 0.75
    nothing = prompt_length_baseline(size[:150], random.permutation(wanted)[:150], size[150:])
    assert abs(spearman(nothing, wanted[150:])) < 0.3 or np.ptp(nothing) == 0
    assert np.isfinite(prompt_length_baseline(np.full(150, 9), wanted[:150], size[150:])).all()


def test_prompt_length_alone_explains_lengths_planted_on_it():
    random = np.random.default_rng(4)
    size = random.integers(20, 400, 200)
    lengths = 900 * np.log(size) + random.normal(0, 100, 200)
    for known, wanted in ((size, True), (random.permutation(size), False)):
        found = r2(prompt_length_baseline(known[:150], lengths[:150], known[150:]), lengths[150:])
        assert found > 0.9 if wanted else found < 0.1


def test_words_alone_explain_lengths_planted_on_them_and_nothing_else():
    random = np.random.default_rng(5)
    groups = np.repeat(np.arange(70), 2)
    tokens = [random.integers(0, 30, 12).tolist() for _ in range(110)]
    lengths = np.array([1000.0 + 800 * (7 in row) + 5 * random.normal() for row in tokens])
    doubled, repeated = [tokens[g] for g in groups], lengths[groups]
    assert r2(bag_of_tokens_baseline(doubled, repeated, tokens[70:], groups), lengths[70:]) > 0.7
    # each problem has a word of its own and a random length: only a leak between folds makes those words worth it
    named, chance = [[*row, 1000 + i] for i, row in enumerate(tokens)], random.normal(1000, 300, 110)
    twice, leaky = [named[g] for g in groups], chance[groups]
    whole, leaking = (bag_of_tokens_baseline(twice, leaky, named[70:], each) for each in (groups, None))
    assert np.ptp(whole) < 0.2 * np.ptp(leaking)


def test_the_table_has_every_row_there_is_data_for():
    random = np.random.default_rng(6)
    rollouts = random.gamma(2, 500, (60, 4))
    lengths = rollouts.mean(axis=1)
    numbers = length_controls(
        lengths + random.normal(0, 300, 60), lengths, levels=np.arange(60) % 3, rollouts=rollouts,
        baselines={"prompt-length": np.arange(60) + 5, "bag-of-tokens": lengths}, permutations=20,
    )  # fmt: skip
    assert set(numbers) == {
        "rows", "spearman", "spearman/null-95", "spearman/p", "r2", "within-level/spearman", "within-level/p",
        "prompt-length/spearman", "prompt-length/r2", "bag-of-tokens/spearman", "bag-of-tokens/r2",
        "ceiling/spearman", "ceiling/r2",
    }  # fmt: skip
    assert all(type(value) is float for value in numbers.values())
    assert numbers["bag-of-tokens/r2"] == 1.0
    assert "prompt-length/r2" not in length_controls(lengths, lengths, permutations=5)


def test_levels_of_one_problem_each_have_no_permutation():
    numbers = length_controls([1, 2, 4], [1, 2, 3], levels=[1, 2, 3], permutations=5)
    assert math.isnan(numbers["within-level/p"])


def test_folds_never_share_a_problem():
    groups = np.repeat(np.arange(7), [1, 2, 3, 4, 5, 6, 7])
    held_out = []
    for train, test in grouped_folds(groups, folds=3):
        assert not set(groups[train]) & set(groups[test])
        held_out += test.tolist()
    assert sorted(held_out) == list(range(28))
    assert len(grouped_folds(np.array([0, 1]), folds=5)) == 2


def test_an_undefined_statistic_has_no_p():
    assert math.isnan(Null.of(math.nan, np.zeros(3)).p)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: finite("states", [[1.0, math.nan]], ndim=2), "states holds NaN or infinity, first in row 0"),
        (lambda: finite("states", torch.ones(3, dtype=torch.bfloat16), ndim=2), r"2 dimensions.*\(3,\)"),
        (lambda: finite("lengths", [1, 2], rows=3), "lengths has 2 rows"),
        (lambda: finite("lengths", []), "empty"),
        (lambda: grouped_folds(np.zeros(4, dtype=int)), "one problem"),
        (lambda: permutation_null(np.mean, [1, 2, 3], [0, 0, 1]), "cannot be permuted"),
        (lambda: length_controls([1, 2], [1, 2, 3]), "3 rows"),
        (lambda: length_controls([1, 2], [1, 2], [0, 1, 2]), "one problem for each"),
        (lambda: split_half(np.ones((5, 1))), "halves"),
        (lambda: length_controls([1, 2], [1, 2], baselines={"bag": [1]}), "bag has 1 rows"),
        (lambda: bag_of_tokens_baseline([[1]], [1, 2], [[1]]), "1 prompts for 2"),
        (lambda: bag_of_tokens_baseline([[], []], [1, 2], [[1]]), "give those of each"),
    ],
)
def test_bad_input_is_said_in_one_sentence(call, said):
    with pytest.raises(DataError, match=said):
        call()
