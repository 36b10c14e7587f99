"""Metrics are the means over all orders of the tied items, and equal ir-measures where nothing is tied."""

from __future__ import annotations

import itertools

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.evaluation.metrics import accuracy, coverage, list_values, mean_metrics
from forethought.evaluation.ranking import Ranks, rank_targets

from .models import make_dataset, sum_of_vectors


def made(greater, ties, num_items):
    both = lambda values: np.repeat(np.asarray(values, dtype=np.int32)[:, None], 2, axis=1)  # noqa: E731
    return Ranks(both(greater), both(ties), num_items)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data(), st.sampled_from([1, 2, 3, 5, 10]))
def test_ties_are_the_mean_over_every_order(levels, data, k):
    target = data.draw(st.integers(0, len(levels) - 1))
    orders = [
        order
        for order in itertools.permutations(range(len(levels)))
        if all(levels[a] >= levels[b] for a, b in itertools.pairwise(order))
    ]
    places = np.array([order.index(target) + 1 for order in orders])
    own = levels[target]
    ranks = made([sum(level > own for level in levels)], [levels.count(own) - 1], len(levels))
    values = accuracy(ranks, [k])
    assert ranks.expected[0, 0] == pytest.approx(places.mean())
    assert values[f"hr@{k}"][0, 0] == pytest.approx((places <= k).mean())
    assert values[f"ndcg@{k}"][0, 0] == pytest.approx(np.where(places <= k, 1 / np.log2(places + 1), 0).mean())
    assert values[f"mrr@{k}"][0, 0] == pytest.approx(np.where(places <= k, 1 / places, 0).mean())


def test_equal_to_ir_measures():
    random = np.random.default_rng(0)
    cases, items = 300, 60
    scores, targets = random.random((cases, items)), random.integers(items, size=cases)
    greater = (scores > scores[np.arange(cases), targets][:, None]).sum(axis=1)
    ours = mean_metrics(made(greater, np.zeros(cases), items), (5, 10, 20))["seen_kept"]
    relevant = {f"q{u}": {f"d{targets[u]}": 1} for u in range(cases)}
    run = {f"q{u}": {f"d{i}": float(scores[u, i]) for i in range(items)} for u in range(cases)}
    names = {"hr": ir_measures.Success, "ndcg": ir_measures.nDCG, "mrr": ir_measures.RR}
    wanted = {f"{name}@{k}": measure @ k for name, measure in names.items() for k in (5, 10, 20)}
    theirs = ir_measures.calc_aggregate(wanted.values(), relevant, run)
    assert ours == pytest.approx({name: theirs[measure] for name, measure in wanted.items()})


def test_an_unreachable_target_is_a_miss_at_any_cut():
    values = accuracy(made([4], [0], 4), [1, 4, 5, 20])
    assert all(value[0, 0] == 0 for value in values.values())
    last = accuracy(made([3], [0], 4), [4, 20])
    assert last["hr@4"][0, 0] == last["hr@20"][0, 0] == 1


def test_a_constant_model_gets_chance():
    """A model that says nothing has HR@K = K / N in expectation, whatever order its ties are stored in."""
    values = accuracy(made([0, 0], [99, 99], 100), [10])
    assert values["hr@10"].mean() == pytest.approx(0.1)


def test_list_metrics_by_hand():
    counts = np.array([0, 7, 3, 1, 1, 0, 0, 0, 0, 0, 0])  # 10 items, 12 events; the popular tenth is item 1
    lists = np.array([[[1, 2], [1, 3]], [[4, 0], [1, 2]]], dtype=np.int32)
    ranks = Ranks(np.zeros((2, 2), np.int32), np.zeros((2, 2), np.int32), 10, lists)
    values = list_values(ranks, counts, [2])
    bits = -np.log2((counts + 1) / 22)
    assert values["novelty@2"] == pytest.approx(
        np.array([[bits[[1, 2]].mean(), bits[[1, 3]].mean()], [bits[4], bits[[1, 2]].mean()]])
    )
    assert values["popularity_share@2"].tolist() == [[0.5, 0.5], [0.0, 0.5]]
    assert coverage(ranks, 2) == pytest.approx([0.3, 0.3])
    assert coverage(ranks, 1) == pytest.approx([0.2, 0.1])


def test_mean_metrics_have_both_columns():
    ranks = rank_targets(sum_of_vectors(40), make_dataset().targets("test"))
    table = mean_metrics(ranks, [10])
    values = accuracy(ranks, [10])
    assert table["seen_removed"]["ndcg@10"] == pytest.approx(values["ndcg@10"][:, 0].mean())
    assert table["seen_kept"]["ndcg@10"] == pytest.approx(values["ndcg@10"][:, 1].mean())
