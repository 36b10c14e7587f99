"""The counting baselines against loops over a tiny log, and against known rows on real data."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.testing import assert_close

from forethought.data.dataset import Dataset
from forethought.data.interactions import Interactions
from forethought.errors import RecipeError
from forethought.evaluation.evaluator import evaluate
from forethought.recommenders.base import Recommender
from forethought.recommenders.counting import SparseRows
from forethought.recommenders.knn import CooccurrenceKNN, CooccurrenceKNNConfig, strongest
from forethought.recommenders.markov import Markov, MarkovConfig
from forethought.recommenders.models import read_recipe
from forethought.recommenders.popularity import Popularity, PopularityConfig
from forethought.recommenders.run import Run, train

from .logs import NUM_ITEMS, TRAINING, make_dataset

HISTORIES = [[3], [1, 2, 3], [6, 6], [8], [2, 4, 2, 5, 1, 7]]
COUNTS = np.array([sum(user.count(i) for user in TRAINING) for i in range(1, NUM_ITEMS + 1)])


def padded(histories: list[list[int]]) -> torch.Tensor:
    width = max(map(len, histories))
    return torch.tensor([history + [0] * (width - len(history)) for history in histories])


def fitted(model: Recommender, dataset: Dataset) -> Recommender:
    model.observe(dataset)
    return model


def test_popularity_counts_training_events(tiny: Dataset) -> None:
    model = fitted(Popularity(PopularityConfig(num_items=NUM_ITEMS)), tiny)
    assert_close(model.score(padded(HISTORIES)), torch.from_numpy(COUNTS).float().expand(len(HISTORIES), -1))


@pytest.mark.parametrize("transitions", ["all", "last"])
def test_markov_counts_transitions(tiny: Dataset, transitions: Any) -> None:
    model = fitted(Markov(MarkovConfig(num_items=NUM_ITEMS, transitions=transitions)), tiny)
    scores = model.score(padded(HISTORIES))
    for row, history in enumerate(HISTORIES):
        for item in range(1, NUM_ITEMS + 1):
            count = 0
            for user in TRAINING:
                steps = list(pairwise(user))
                count += (steps if transitions == "all" else steps[-1:]).count((history[-1], item))
            expected = count + COUNTS[item - 1] / COUNTS.max() / 2
            assert scores[row, item - 1].item() == pytest.approx(expected)


def test_markov_falls_back_to_popularity(tiny: Dataset) -> None:
    model = fitted(Markov(MarkovConfig(num_items=NUM_ITEMS)), tiny)
    unseen = model.score(torch.tensor([[8]]))[0]  # nothing ever follows item 8
    assert torch.equal(unseen.argsort(stable=True), torch.from_numpy(COUNTS).argsort(stable=True))


def knn_by_loops(history: list[int], config: CooccurrenceKNNConfig) -> np.ndarray:
    near = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for user in TRAINING:
        for a in range(len(user)):
            for b in range(a + 1, min(a + config.window, len(user) - 1) + 1):
                weight = (b - a) ** -config.pair_decay
                near[user[a] - 1, user[b] - 1] += weight
                near[user[b] - 1, user[a] - 1] += config.backward * weight
    size = np.maximum(COUNTS, 1.0)
    near /= size[:, None] ** config.source_power * size[None, :] ** config.target_power
    for row in near:
        row[np.argsort(-row)[config.neighbours :]] = 0
    scores = 1e-6 * COUNTS / COUNTS.max()
    for age, item in enumerate(reversed(history), start=1):
        scores = scores + near[item - 1] * age**-config.history_decay
    return scores


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 1, "backward": 0.0},
        {"window": 50, "pair_decay": 0.0, "history_decay": 0.0},
        {
            "window": 3,
            "pair_decay": 1.3,
            "backward": 1.0,
            "source_power": 0.5,
            "target_power": 0.5,
            "history_decay": 2.0,
        },
        {"neighbours": 2, "pair_decay": 0.9},
    ],
)
def test_knn_equals_loops(tiny: Dataset, options: dict[str, Any]) -> None:
    config = CooccurrenceKNNConfig(num_items=NUM_ITEMS, **options)
    scores = fitted(CooccurrenceKNN(config), tiny).score(padded(HISTORIES))
    expected = np.stack([knn_by_loops(history, config) for history in HISTORIES])
    assert_close(scores, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-8)


def test_held_out_events_teach_nothing(tiny: Dataset) -> None:
    """Item 8 and what surrounds it occur only in the held-out part."""
    for model in (
        Markov(MarkovConfig(num_items=NUM_ITEMS)),
        CooccurrenceKNN(CooccurrenceKNNConfig(num_items=NUM_ITEMS)),
    ):
        fitted(model, tiny)
        assert model.score(torch.tensor([[8]])).max().item() <= 0.5
        assert bool((model.score(torch.arange(1, NUM_ITEMS)[:, None])[:, 7] == 0).all())


def test_a_log_without_pairs_ranks_by_popularity() -> None:
    dataset = make_dataset([[1], [2], [2]], [[], [], []], num_items=2)
    for model in (Markov(MarkovConfig(num_items=2)), CooccurrenceKNN(CooccurrenceKNNConfig(num_items=2))):
        assert fitted(model, dataset).recommend(torch.tensor([[1]]), exclude_seen=False).items.tolist() == [[2, 1]]


@pytest.mark.parametrize("options", [{"window": 0}, {"neighbours": 0}])
def test_impossible_neighbourhoods_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="at least 1"):
        CooccurrenceKNN(CooccurrenceKNNConfig(num_items=3, **options))


@pytest.mark.parametrize(("key", "value"), [("pair_decay", -1000.0), ("backward", -1.0), ("history_decay", np.inf)])
def test_weights_that_grow_with_distance_are_refused(key: str, value: float) -> None:
    with pytest.raises(RecipeError, match=f"{key} is {value}; it has to be a finite number"):
        read_recipe({"model": {"type": "knn", key: value}})


def test_sparse_rows_equal_a_dense_product() -> None:
    random = np.random.default_rng(0)
    dense = random.random((21, 20)) * (random.random((21, 20)) < 0.3)
    dense[0] = 0
    rows = SparseRows(20, 0)
    rows.fill(sparse.csr_array(dense))
    items = torch.from_numpy(random.integers(0, 21, (13, 6)))
    weights = torch.from_numpy(random.random((13, 6))).float()
    expected = torch.einsum("bl,bln->bn", weights, torch.from_numpy(dense).float()[items])
    assert_close(rows.weighted_sum(items, weights), expected)


def test_strongest_keeps_the_largest_of_each_row() -> None:
    dense = np.random.default_rng(1).random((7, 9)) * (np.random.default_rng(2).random((7, 9)) < 0.7)
    for k in (1, 3, 100):
        kept = strongest(sparse.csr_array(dense), k).toarray()
        expected = np.where(dense >= np.sort(dense, axis=1)[:, ::-1][:, [min(k, 9) - 1]], dense, 0)
        np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("name", ["popularity", "markov", "knn"])
def test_a_shipped_recipe_makes_a_run_that_opens(tiny: Dataset, name: str, tmp_path: Path) -> None:
    tiny.save(tmp_path / "data")
    run = train(name, out=tmp_path / "run", overrides={"data.path": str(tmp_path / "data")}, quiet=True)
    again = Run.open(tmp_path / "run")
    assert again.recommend(["item 4"], k=3) == run.recommend(["item 4"], k=3)
    assert again.recommend(["item 4"], k=1)[0].id == ("item 2" if name == "popularity" else "item 5")
    assert again.info["parameters"] == 0


@pytest.mark.data
def test_known_rows_on_beauty(shared_data: Path, tmp_path: Path) -> None:
    """Users 8:1:1, rank the last item; the rows were counted independently of this code (spec §5)."""
    dataset = Interactions.read(shared_data / "amazon-beauty", format="preferdiff").prepare(tmp_path / "beauty")
    assert len(dataset.targets("test")) == 2237

    def reached(model: Recommender, seen: str) -> tuple[float, float]:
        metrics = evaluate(fitted(model, dataset), dataset, "test", bootstrap=0, slices=False).metrics[f"seen_{seen}"]
        return metrics["hr@10"], metrics["ndcg@10"]

    n = dataset.num_items
    assert reached(Popularity(PopularityConfig(num_items=n)), "kept") == pytest.approx((0.0130, 0.0050), abs=2e-4)
    last = reached(Markov(MarkovConfig(num_items=n, transitions="last")), "kept")
    assert last[0] == pytest.approx(0.0474, abs=2e-4)
    # popularity orders our ties, where that count left them
    assert last[1] >= 0.0326
    everything = reached(Markov(MarkovConfig(num_items=n)), "kept")
    assert everything[0] >= 0.0720
    assert everything[1] >= 0.0467
    knn = reached(CooccurrenceKNN(CooccurrenceKNNConfig(num_items=n)), "removed")
    assert knn[0] >= 0.0876
    assert knn[1] >= 0.0541
