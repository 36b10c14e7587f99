"""Counted ranks equal a plain sort; seen items go once; nothing depends on how the work is cut up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.data.batches import target_batches
from forethought.errors import DataError
from forethought.evaluation import ranking
from forethought.evaluation.ranking import ScoringError, rank_targets
from forethought.recommenders.base import RecommenderConfig

from .models import SumOfVectors, dataset_of, make_dataset, score_table, sum_of_vectors


def naive(model, targets, max_length):
    """Greater, ties and expected rank of each case by sorting one user's scores at a time."""
    found = {"greater": [], "ties": [], "expected": []}
    for case in range(len(targets)):
        [(_, history)] = target_batches(targets, 1, max_length, np.array([case]))
        scores = model.score(history)[0].double().numpy()
        target = int(targets.items[case])
        seen = set(targets.sequences.items[targets.starts[case] : targets.positions[case]].tolist())
        greater, ties, expected = [], [], []
        for removed in (seen, set()):
            if target in removed:
                greater.append(len(scores)), ties.append(0), expected.append(len(scores) + 1)
                continue
            candidates = sorted((-scores[i - 1], i) for i in range(1, len(scores) + 1) if i not in removed)
            ordered = [score for score, _ in candidates]
            own = -scores[target - 1]
            first, last = np.searchsorted(ordered, own, "left"), np.searchsorted(ordered, own, "right")
            greater.append(first), ties.append(last - first - 1), expected.append((first + 1 + last) / 2)
        for name, value in zip(found, (greater, ties, expected), strict=True):
            found[name].append(value)
    return {name: np.array(value) for name, value in found.items()}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    items=st.integers(3, 60),
    repeats=st.booleans(),
    kind=st.sampled_from(["vectors", "whole vectors", "table", "few levels", "constant"]),
    max_length=st.integers(1, 12),
)
def test_counted_ranks_equal_a_sort(seed, items, repeats, kind, max_length):
    dataset = make_dataset(25, items, seed=seed, repeats=repeats)
    model = {
        "vectors": lambda: sum_of_vectors(items, seed=seed, max_length=max_length),
        "whole vectors": lambda: sum_of_vectors(items, width=2, seed=seed, max_length=max_length, whole=True),
        "table": lambda: score_table(items, seed=seed, max_length=max_length),
        "few levels": lambda: score_table(items, levels=3, seed=seed, max_length=max_length),
        "constant": lambda: score_table(items, levels=1, seed=seed, max_length=max_length),
    }[kind]()
    targets = dataset.targets("test")
    ranks, expected = rank_targets(model, targets), naive(model, targets, max_length)
    np.testing.assert_array_equal(ranks.greater, expected["greater"])
    np.testing.assert_array_equal(ranks.ties, expected["ties"])
    np.testing.assert_allclose(ranks.expected, expected["expected"])


@pytest.mark.parametrize(
    "make", [lambda: sum_of_vectors(50, whole=True, max_length=5), lambda: score_table(50, levels=7, max_length=5)]
)
def test_nothing_depends_on_the_cut(make, monkeypatch):
    targets = make_dataset(200, 50).targets("test")
    model = make()
    whole = rank_targets(model, targets, batch_size=1000, top_k=5)
    for cells, batch_size in [(50, 1), (50, 64), (170, 7), (1000, 33)]:
        monkeypatch.setattr(ranking, "CELLS", cells)
        cut = rank_targets(model, targets, batch_size=batch_size, top_k=5)
        np.testing.assert_array_equal(cut.greater, whole.greater)
        np.testing.assert_array_equal(cut.ties, whole.ties)
    rows = np.array([150, 3, 77])
    some = rank_targets(model, targets, rows=rows)
    np.testing.assert_array_equal(some.expected, whole.expected[rows])


def test_lists_are_the_best_items_without_the_whole_history():
    dataset = make_dataset(80, 30, repeats=False, longest=28)
    model, targets = sum_of_vectors(30, max_length=3), dataset.targets("test")
    ranks = rank_targets(model, targets, top_k=10)
    for case in range(len(targets)):
        [(_, history)] = target_batches(targets, 1, 3, np.array([case]))
        order = (torch.argsort(-model.score(history)[0]) + 1).tolist()
        seen = set(targets.sequences.items[targets.starts[case] : targets.positions[case]].tolist())
        left = [item for item in order if item not in seen][:10]
        assert ranks.lists[case, 1].tolist() == order[:10]
        assert ranks.lists[case, 0].tolist() == left + [0] * (10 - len(left))


def test_a_target_in_its_own_history_is_unreachable_only_where_seen_items_go():
    dataset = dataset_of([np.array([2, 3, 3, 1, 2]), np.array([1, 3, 2])], 4)
    ranks = rank_targets(score_table(4, seed=1), dataset.targets("test"))
    assert ranks.unreachable.tolist() == [True, False]
    assert ranks.expected[0, 0] == 5
    assert ranks.expected[0, 1] <= 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_no_numbers_are_refused_by_name(bad):
    dataset = make_dataset(30, 20)
    table, vectors = score_table(20), sum_of_vectors(20)
    table.table[:, 3] = bad
    vectors.table[3] = bad
    for model in (table, vectors):
        with pytest.raises(ScoringError, match=f"{type(model).__name__} gave .* NaN or infinite"):
            rank_targets(model, dataset.targets("test"))


def test_large_finite_scores_are_ranked():
    dataset = make_dataset(30, 20)
    model = score_table(20)
    model.table.abs_().clamp_(max=3).mul_(1e38)  # the sum of a row overflows, no score does
    assert (rank_targets(model, dataset.targets("test")).expected >= 1).all()


def test_a_model_of_another_catalogue_is_refused():
    with pytest.raises(DataError, match="knows 3 items"):
        rank_targets(sum_of_vectors(3), make_dataset(30, 20).targets("test"))


def test_a_wrong_shape_is_refused():
    model = score_table(20)
    model.table = model.table[:, :-1].clone()
    with pytest.raises(ScoringError, match="one score for each item"):
        rank_targets(model, make_dataset(30, 20).targets("test"))


def test_the_model_keeps_its_mode_and_its_tables():
    model = score_table(20).train()
    before = model.table.clone()
    rank_targets(model, make_dataset(30, 20).targets("test"), top_k=3)
    assert model.training
    assert torch.equal(model.table, before)
    rank_targets(model.eval(), make_dataset(30, 20).targets("test"))
    assert not model.training


def test_bfloat16_products_move_few_ranks_and_leave_the_setting():
    dataset = make_dataset(300, 200)
    generator = torch.Generator().manual_seed(0)
    model = SumOfVectors(RecommenderConfig(num_items=200, max_length=50), torch.randn(200, 64, generator=generator))
    before = torch.backends.mkldnn.matmul.fp32_precision
    exact = rank_targets(model, dataset.targets("test")).expected
    fast = rank_targets(model, dataset.targets("test"), bfloat16=True).expected
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert np.abs(exact - fast).mean() < 1.0


def test_progress_reaches_the_number_of_cases():
    seen = []
    rank_targets(score_table(20), make_dataset(70, 20).targets("test"), batch_size=16, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 70
