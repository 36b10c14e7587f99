"""An evaluation names what it refers to, survives the disk, and its slices and intervals are those of its cases."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from forethought.errors import ArtefactError, DataError
from forethought.evaluation import metrics
from forethought.evaluation.evaluator import Evaluation, bands, evaluate
from forethought.evaluation.ranking import kind_of, rank_targets
from forethought.recommenders import MODELS, model_class

from .models import dataset_of, make_dataset, sum_of_vectors


@pytest.fixture(scope="module")
def evaluation():
    return evaluate(sum_of_vectors(40), make_dataset(300, 40), bootstrap=200)


def test_it_says_what_it_refers_to(evaluation):
    dataset = make_dataset(300, 40)
    assert evaluation.fingerprint == dataset.fingerprint
    assert (evaluation.protocol, evaluation.split) == ("leave-one-out", "test")
    assert (evaluation.users, evaluation.cases, evaluation.complete) == (300, 300, True)
    items, offsets = dataset.sequences.items, dataset.sequences.offsets
    repeated = [items[stop - 1] in items[start : stop - 1] for start, stop in itertools.pairwise(offsets)]
    assert evaluation.unreachable == sum(repeated) > 0
    assert evaluation.seconds > 0


def test_a_model_is_called_what_recipes_call_it(evaluation):
    for name in MODELS:
        kind = model_class(name)
        assert kind_of(kind(kind.config_class(num_items=40))) == name
    assert evaluation.model == "SumOfVectors"  # no recipe can name it


def test_metrics_are_those_of_the_ranks(evaluation):
    ranks = rank_targets(sum_of_vectors(40), make_dataset(300, 40).targets("test"))
    for seen, table in metrics.mean_metrics(ranks).items():
        for name, value in table.items():
            assert evaluation.metrics[seen][name] == pytest.approx(value)
    assert set(evaluation.metrics["seen_kept"]) == {
        f"{name}@{k}" for name in ("hr", "ndcg", "mrr", "coverage", "novelty", "popularity_share") for k in (5, 10, 20)
    }
    assert evaluation.values("ndcg@10", "removed").mean() == pytest.approx(
        evaluation.metrics["seen_removed"]["ndcg@10"]
    )


def test_intervals_hold_their_means(evaluation):
    for seen, table in evaluation.intervals.items():
        for name, (low, high) in table.items():
            assert low <= evaluation.metrics[seen][name] <= high
            assert low < high


def test_slices_are_a_partition(evaluation):
    for by in ("history length", "target popularity"):
        parts = [part for part in evaluation.slices if part.by == by]
        assert len(parts) > 1
        assert sum(part.cases for part in parts) == evaluation.cases
        whole = sum(part.cases * part.metrics["seen_kept"]["ndcg@10"] for part in parts) / evaluation.cases
        assert whole == pytest.approx(evaluation.metrics["seen_kept"]["ndcg@10"])


def test_bands_name_their_bounds():
    values = np.array([1, 1, 1, 2, 5, 9, 9, 40])
    found = bands(values, "items")
    assert sum(mask.sum() for _, mask in found) == len(values)
    for name, mask in found:
        low, high = values[mask].min(), values[mask].max()
        assert name == (f"{low} items" if low == high else f"{low}–{high} items")
    assert [name for name, _ in bands(np.array([7, 7, 7]), "items")] == ["7 items"]


def test_saved_and_loaded(evaluation, tmp_path):
    evaluation.save(tmp_path)
    again = Evaluation.load(tmp_path)
    assert again == evaluation
    np.testing.assert_array_equal(again.ranks.greater, evaluation.ranks.greater)
    np.testing.assert_array_equal(again.values("mrr@20", "kept"), evaluation.values("mrr@20", "kept"))
    assert json.loads((tmp_path / "test.json").read_text())["metrics"] == evaluation.metrics


@pytest.mark.parametrize("harm", ["missing", "half", "no metrics", "other version", "no ranks", "short ranks"])
def test_damaged_evaluations_are_refused_with_a_sentence(evaluation, tmp_path, harm):
    evaluation.save(tmp_path)
    file, ranks = tmp_path / "test.json", tmp_path / "test-ranks.npy"
    text = file.read_text()
    if harm == "missing":
        file.unlink()
    elif harm == "half":
        file.write_text(text[: len(text) // 2])
    elif harm == "no metrics":
        file.write_text(json.dumps({key: value for key, value in json.loads(text).items() if key != "metrics"}))
    elif harm == "other version":
        file.write_text(text.replace('"version": 1', '"version": 99'))
    elif harm == "no ranks":
        ranks.unlink()
    else:
        np.save(ranks, np.load(ranks)[:-1])
    with pytest.raises(ArtefactError, match=str(file)):
        Evaluation.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda saved: saved["metrics"]["seen_removed"].update({"ndcg@10": 0.9}), "ndcg@10 is 0.9 and the ranks give"),
        (lambda saved: saved["metrics"]["seen_kept"].update({"hr@5": float("nan")}), "hr@5 is nan and the ranks give"),
        (lambda saved: saved["metrics"]["seen_kept"].update({"mrr@5": None}), "must be real number"),
        (lambda saved: saved["metrics"]["seen_kept"].pop("coverage@10"), "coverage@10"),
        (lambda saved: saved["metrics"]["seen_kept"].update({"novelty@10": None}), "a metric is no number"),
        (lambda saved: saved.update(metrics={}), "seen_removed"),
        (lambda saved: saved.update(num_items=5), "a rank lies outside the 5 items"),
        (lambda saved: saved.update(num_items=41), "unreachable is"),
        (lambda saved: saved.update(split="valid"), "split is 'valid' and has to be 'test'"),
        (lambda saved: saved.update(users=299), "users is 299 and has to be 300"),
        (lambda saved: saved.update(data=None), "data is None"),
        (lambda saved: saved.update(fingerprint=5), "fingerprint is 5"),
        (lambda saved: saved["slices"].pop(), "do not make up the cases"),
        (lambda saved: saved["slices"][0].update(metrics={}), "seen_removed"),
        (lambda saved: saved["slices"][0].update(band=5), "a slice is called 'history length' 5"),
        (lambda saved: saved["slices"][0].update(cases="many"), "unsupported operand"),
    ],
)
def test_an_evaluation_that_contradicts_itself_is_refused(evaluation, tmp_path, change, said):
    evaluation.save(tmp_path)
    file = tmp_path / "test.json"
    saved = json.loads(file.read_text())
    change(saved)
    file.write_text(json.dumps(saved))
    with pytest.raises(ArtefactError, match=rf"test.json is damaged \(.*{said}.*\); evaluate the run again"):
        Evaluation.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ranks: ranks[:, 1].fill(0), "unreachable is"),
        (lambda ranks: ranks[:, 3].fill(0), "the ranks give"),
        (lambda ranks: ranks[:, 2].fill(-1), "a rank lies outside"),
        (lambda ranks: ranks[:, 3].fill(-5), "a rank lies outside"),
        (lambda ranks: ranks[:, 0].fill(3), "users is 300 and has to be 1"),
    ],
)
def test_ranks_that_do_not_give_the_metrics_are_refused(evaluation, tmp_path, change, said):
    evaluation.save(tmp_path)
    ranks = np.load(tmp_path / "test-ranks.npy")
    change(ranks)
    np.save(tmp_path / "test-ranks.npy", ranks)
    with pytest.raises(ArtefactError, match=f"test.json is damaged .*{said}"):
        Evaluation.load(tmp_path)


def test_ranks_of_another_kind_and_files_that_cannot_be_parsed_are_refused(evaluation, tmp_path):
    evaluation.save(tmp_path)
    file, ranks = tmp_path / "test.json", tmp_path / "test-ranks.npy"
    table = np.load(ranks)
    np.save(ranks, table.astype(np.float64))
    with pytest.raises(ArtefactError, match=r"the ranks are float64 of shape \(300, 5\)"):
        Evaluation.load(tmp_path)
    np.save(ranks, table)
    whole = ranks.read_bytes()
    for broken in (whole.replace(b"}", b" ", 1), b"PK\x03\x04" + whole, whole[:60]):
        ranks.write_bytes(broken)
        with pytest.raises(ArtefactError, match=r"test.json is damaged"):
            Evaluation.load(tmp_path)
    file.write_text("[" * 100_000)
    with pytest.raises(ArtefactError, match=r"test.json is damaged \(RecursionError"):
        Evaluation.load(tmp_path)


def test_a_subset_says_so():
    part = evaluate(sum_of_vectors(40), make_dataset(300, 40), rows=np.arange(50), bootstrap=0)
    assert (part.cases, part.complete, part.intervals) == (50, False, {})


def test_a_mask_chooses_its_cases():
    model, dataset, chosen = sum_of_vectors(40), make_dataset(300, 40), np.arange(300) % 3 == 0
    masked, told = (evaluate(model, dataset, rows=rows, bootstrap=0) for rows in (chosen, np.flatnonzero(chosen)))
    assert masked.cases == 100
    assert masked.metrics == told.metrics
    assert np.array_equal(masked.owners, told.owners)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rows": [0, 300]}, "rows are numbers of cases from 0 to 299, or a mask of all 300"),
        ({"rows": [-1]}, "rows are numbers of cases"),
        ({"rows": [0.5]}, "rows are numbers of cases"),
        ({"rows": np.ones(299, dtype=bool)}, "rows are numbers of cases"),
        ({"rows": []}, "rows names no case"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": 13}, "max_length is 13; it has to be a whole number of 12 or less"),
        ({"ks": []}, "ks is empty"),
        ({"ks": [10, 0]}, "ks is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"bootstrap": -1}, "bootstrap is -1"),
        ({"seed": -1}, "seed is -1"),
    ],
    ids=str,
)
def test_arguments_that_mean_nothing_are_refused(wrong, said):
    model = sum_of_vectors(40)
    model.config.max_length = 12
    with pytest.raises(DataError, match=said):
        evaluate(model, make_dataset(300, 40), **wrong)


def test_a_split_without_cases_and_another_catalogue_are_refused():
    dataset = make_dataset(30, 20)
    with pytest.raises(DataError, match="20 items and the model 21"):
        evaluate(sum_of_vectors(21), dataset)
    empty = dataset_of([np.array([1, 2, 3])], 20)
    empty._positions["test"] = np.array([], dtype=np.int64)
    with pytest.raises(DataError, match="no test cases"):
        evaluate(sum_of_vectors(20), empty)
