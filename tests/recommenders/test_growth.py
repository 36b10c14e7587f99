"""Runs of PreferGrow: lists drawn by chains, and how one user's preference grows, beside formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from forethought.data.dataset import Dataset
from forethought.errors import ArtefactError, DataError
from forethought.recommenders.growth import draw_user, grow_user
from forethought.recommenders.knn import CooccurrenceKNN, CooccurrenceKNNConfig
from forethought.recommenders.prefergrow.config import PreferGrowConfig
from forethought.recommenders.prefergrow.model import PreferGrow
from forethought.recommenders.run import Run

from .logs import HELD_OUT, NUM_ITEMS, TRAINING

LEVELS = np.append(10 * 1e-4 ** (1 - np.linspace(1, 1e-5, 6)), 0.0)[1:]  # the noise left after each of five steps


def run_of(model: Any, dataset: Dataset) -> Run:
    """A run in memory."""
    model.observe(dataset)
    run = Run(Path("some run"), model.eval(), dataset.catalog, None, {})
    run.dataset = dataset
    return run


def grower(dataset: Dataset, **keys: Any) -> Run:
    torch.manual_seed(0)
    model = PreferGrow(PreferGrowConfig(num_items=NUM_ITEMS, max_length=4, hidden_size=8, **keys))
    nn.init.normal_(model.embedding.weight)
    nn.init.normal_(model.nonpreference_user)
    return run_of(model, dataset)


def guided_logits(model: PreferGrow, history: list[int], w: float) -> Tensor:
    """Of a model in the marginal parametrisation, float64 ``[N]``; the newest four items are read."""
    states = model.encoder(model.embedding(torch.tensor([history[-4:]])))[:, -1]
    liked, anybody = (model.head.mix(who) for who in (states, model.nonpreference_user[None]))
    logits = (w * liked + (1 - w) * anybody) @ model.embedding.weight[1 : NUM_ITEMS + 1].T + model.head.bias
    return logits[0].detach().double()


@pytest.mark.parametrize("kernel", ["hybrid", "popularity", "pair"])
def test_the_law_of_a_growing_preference_is_known(tiny: Dataset, kernel: str) -> None:
    run = grower(tiny, kernel=kernel, parametrization="marginal", gamma=0.8)
    p = run.model.current_kernel().p[:NUM_ITEMS].double().numpy()
    growing = grow_user(run, "user 5", guidance=(0.0, 1.0, 3.0), steps=5)
    history = HELD_OUT[5][:-1]  # the rest was held out as the target
    assert growing.history.tolist() == history
    assert (growing.chains, growing.target, growing.guidance) == (None, HELD_OUT[5][-1], (0.0, 1.0, 3.0))
    np.testing.assert_allclose(growing.levels, LEVELS)
    for row, w in enumerate(growing.guidance):
        logits = guided_logits(run.model, history, w)
        pi, alpha = logits.softmax(dim=0).numpy(), np.exp(-LEVELS)[:, None]
        np.testing.assert_allclose(growing.probabilities[row], alpha * pi + (1 - alpha) * p, rtol=1e-4)
        above = int((logits > logits[HELD_OUT[5][-1] - 1]).sum())
        assert growing.ranks[row] == 1 + above


def test_ties_count_half_and_nobody_is_ranked_without_a_target(tiny: Dataset) -> None:
    run = grower(tiny, parametrization="marginal", item_bias=False)
    nn.init.zeros_(run.model.embedding.weight)  # every item is liked alike
    assert grow_user(run, "user 3", guidance=(1.0,)).ranks == ((NUM_ITEMS + 1) / 2,)
    growing = grow_user(run, "user 0", guidance=(1.0,))
    assert (growing.target, growing.ranks) == (None, ())
    assert growing.history.tolist() == TRAINING[0]  # all of it, though four items are read


def test_chains_stand_in_where_the_law_is_not_known(tiny: Dataset) -> None:
    run, chains = grower(tiny, kernel="pair", guidance=7.0), 100
    growing = grow_user(run, "user 0", guidance=(0.0, 2.0), steps=3, chains=chains, seed=5)
    assert growing.chains == chains
    assert growing.probabilities.shape == (2, 4, NUM_ITEMS)
    np.testing.assert_allclose(growing.probabilities.sum(axis=2), 1.0)
    history = torch.tensor([TRAINING[0][-4:]])
    for row, w in enumerate(growing.guidance):
        many = run.model.grow(history.expand(4000, -1), 3, w, torch.Generator().manual_seed(1), trace=True)
        assert many.distributions is not None
        expected = many.distributions.mean(dim=0).numpy()
        assert np.abs(growing.probabilities[row] - expected).sum(axis=1).max() / 2 < 0.15
    assert np.abs(growing.probabilities[0, -1] - growing.probabilities[1, -1]).sum() / 2 > 0.15  # guidance is felt
    again, other = (grow_user(run, "user 0", guidance=(0.0,), steps=3, chains=chains, seed=seed) for seed in (5, 6))
    np.testing.assert_array_equal(again.probabilities[0], growing.probabilities[0])
    assert not np.allclose(other.probabilities[0], growing.probabilities[0])


def test_chains_and_a_number_of_steps_exclude_each_other(tiny: Dataset) -> None:
    with pytest.raises(ArtefactError, match="whose steps cannot be chosen"):
        grower(tiny).recommend_user("user 0", chains=5, steps=2)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"chains": 0}, "chains is 0; it has to be a whole number of 1 or more"),
        ({"chains": 1.5}, "chains is 1.5; it has to be a whole number"),
        ({"steps": -1}, "steps is -1; it has to be a whole number of 0 or more"),
        ({"steps": 3.0}, "steps is 3.0; it has to be a whole number"),
        ({"seed": -1}, "seed is -1; it has to be a whole number"),
        ({"guidance": ()}, r"guidance is \(\); it has to be one finite number or more"),
        ({"guidance": (1.0, float("nan"))}, r"guidance is \(1.0, nan\); it has to be one finite number or more"),
        ({"guidance": (float("inf"),)}, r"guidance is \(inf,\); it has to be one finite number or more"),
    ],
)
def test_growing_by_numbers_that_do_not_fit_is_refused(tiny: Dataset, bad: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        grow_user(grower(tiny, parametrization="marginal"), "user 0", **bad)


def test_every_user_has_a_picture_of_their_own(tiny: Dataset, tmp_path: Path) -> None:
    run = grower(tiny)
    run.path = tmp_path
    growing = grow_user(run, "user 0", guidance=(1.0,), steps=1)
    pictures = [draw_user(run, user, growing)[0] for user in ("日本", "中国", "a/b", "a_b", "a%2Fb")]
    assert [path.name for path in pictures[:2]] == ["user-日本.png", "user-中国.png"]
    assert sorted(pictures) == sorted((tmp_path / "growing").glob("*.png"))


@pytest.mark.parametrize("parametrization", ["marginal", "score"])
def test_another_seed_draws_another_list(tiny: Dataset, parametrization: str) -> None:
    run = grower(tiny, parametrization=parametrization)
    history = ["item 3", "item 1", "item 2", "item 5", "item 3"]
    lists = [run.recommend(history, 5, chains=20, seed=seed) for seed in (0, 0, *range(1, 20))]
    assert lists[0] == lists[1]
    assert len({tuple(each.id for each in best) for best in lists}) > 1
    read = torch.tensor([[1, 2, 5, 3]])  # the newest four
    scores = run.model.chain_scores(read, 20, generator=torch.Generator().manual_seed(0))[0]
    assert not {each.id for each in lists[0]} & set(history)
    for each in lists[0]:
        assert each.score == pytest.approx(float(scores[int(each.id.removeprefix("item ")) - 1]))
    assert [each.score for each in lists[0]] == sorted((each.score for each in lists[0]), reverse=True)
    assert "item 3" in {each.id for seed in range(5) for each in run.recommend(history, 8, False, 2, seed)}
    assert run.recommend_user("user 0", 5, chains=2, seed=3) == run.recommend(
        [f"item {item}" for item in TRAINING[0] + HELD_OUT[0]], 5, chains=2, seed=3
    )


def test_what_no_chain_ended_in_is_not_listed(tiny: Dataset) -> None:
    """A chain of ``point`` that has left d stays where it is, so all other items have nothing."""
    run = grower(tiny, kernel="point", parametrization="marginal")
    drawn = run.recommend(["item 1"], NUM_ITEMS, False, chains=2)
    assert 0 < len(drawn) <= 2
    assert all(item.score > 0 for item in drawn)
    everything = [f"item {item}" for item in range(1, NUM_ITEMS + 1)]
    with pytest.raises(DataError, match="All 2 chains ended in the history; ask for more"):
        run.recommend(everything, chains=2)


def test_steps_that_no_memory_holds_are_refused(tiny: Dataset) -> None:
    for parametrization in ("score", "marginal"):
        with pytest.raises(DataError, match="steps is 1000000000000; it has to be a whole number of 10000 or less"):
            grow_user(grower(tiny, parametrization=parametrization), "user 0", steps=10**12)


def test_a_knn_draws_no_chains_and_does_not_grow(tiny: Dataset) -> None:
    run = run_of(CooccurrenceKNN(CooccurrenceKNNConfig(num_items=NUM_ITEMS)), tiny)
    for ask in (lambda: run.recommend(["item 1"], chains=3), lambda: run.recommend_user("user 0", chains=3)):
        with pytest.raises(
            ArtefactError, match=r"^some run holds a knn, which draws no chains; name a PreferGrow run\.$"
        ):
            ask()
    with pytest.raises(ArtefactError, match=r"^some run holds a knn, which does not grow; name a PreferGrow run\.$"):
        grow_user(run, "user 0")
    with pytest.raises(DataError, match="chains is -1; it has to be a whole number of 0 or more"):
        run.recommend(["item 1"], chains=-1)
