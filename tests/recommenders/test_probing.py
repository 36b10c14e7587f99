"""The instruments on next-item models: what a settling probe and a popularity direction can be held to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forethought.data.dataset import Dataset
from forethought.errors import ArtefactError, DataError
from forethought.recommenders.latent.config import ReaRecConfig
from forethought.recommenders.latent.lares import LARES, LARESConfig
from forethought.recommenders.latent.rearec import ReaRec
from forethought.recommenders.popularity import Popularity, PopularityConfig
from forethought.recommenders.prefergrow.config import PreferGrowConfig
from forethought.recommenders.prefergrow.model import PreferGrow
from forethought.recommenders.probing import popularity_direction, save, settling, steer_popularity
from forethought.recommenders.run import Run
from forethought.recommenders.sasrec import SASRec, SASRecConfig
from tests.planted import ring

from .test_growth import run_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data") / "ring"
    ring().save(folder)
    return Dataset.open(folder)


def sasrec(dataset: Dataset, **keys: Any) -> Run:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(num_items=dataset.num_items, max_length=12, hidden_size=8, num_heads=1, **keys))
    torch.nn.init.normal_(model.embedding.weight)
    return run_of(model, dataset)


@pytest.mark.parametrize("keys", [{}, {"norm": "original"}, {"similarity": "cosine"}], ids=str)
def test_the_last_step_of_a_thought_is_the_answer(data: Dataset, keys: dict[str, Any]) -> None:
    model = sasrec(data, num_blocks=3, **keys).model
    history = torch.tensor([[3, 4, 5, 0], [7, 0, 0, 0]])
    with torch.no_grad():
        thought = model.think(history)
        shorter = model.think(history, steps=1)
        torch.testing.assert_close(thought.states[:, -1], model.query(history))
        torch.testing.assert_close(thought.answers[:, -1], model.score(history))
    assert (thought.states.shape, thought.kind, thought.lengths.tolist()) == ((2, 4, 8), "encode", [4, 4])
    torch.testing.assert_close(shorter.states, thought.states[:, :2])


def test_settling_is_told_for_every_step_but_the_last(data: Dataset) -> None:
    found = settling(sasrec(data, num_blocks=2), k=5, share=0.6)
    assert [row["step"] for row in found.rows] == [0, 1]
    assert all(0 <= row["changed"] <= 1 and 0 < row["kept"] < 1 for row in found.rows)
    told = [row for row in found.rows if "auc" in row]
    assert told
    assert all(set(row) >= {"brier", "length/auc", "popularity/auc"} for row in told)
    assert settling(sasrec(data, num_blocks=2), k=5, share=0.6).rows == found.rows


def test_a_change_that_is_written_in_the_state_is_found(data: Dataset) -> None:
    run = sasrec(data, num_blocks=2)
    history_of_last = run.model.think

    def planted(history: torch.Tensor, steps: int | None = None) -> Any:
        """The answer changes wherever the first coordinate of the first state is positive."""
        thought = history_of_last(history, steps)
        same = thought.answers[:, -1:].expand_as(thought.answers).clone()
        turned = thought.states[:, 0, 0] > 0
        same[turned, 0] = -same[turned, 0]
        return type(thought)(thought.states, thought.mask, thought.kind, same)

    run.model.think = planted
    row = settling(run, k=5, share=0.6).rows[0]
    assert row["auc"] > 0.9
    assert row["auc"] > max(row["length/auc"], row["popularity/auc"]) + 0.1


def test_a_growing_preference_is_a_thought_too(data: Dataset) -> None:
    torch.manual_seed(0)
    config = PreferGrowConfig(num_items=data.num_items, max_length=8, hidden_size=8, parametrization="marginal")
    found = settling(run_of(PreferGrow(config), data), k=5, steps=3)
    assert len(found.rows) == 3
    assert all(0 <= row["kept"] <= 1 for row in found.rows)


def test_popularity_moves_along_its_direction_and_not_along_a_random_one(data: Dataset, tmp_path: Path) -> None:
    run = sasrec(data, num_blocks=1)
    counts = run.dataset.item_counts()[1:]
    vectors = run.model.embedding.weight.data
    vectors[1:, 0] += torch.from_numpy(np.log1p(counts) - np.log1p(counts).mean()).float()  # popularity is planted
    direction = popularity_direction(run)
    assert int(direction.abs().argmax()) == 0
    steered = steer_popularity(run, [-1.0, 0.0, 1.0], random=2)
    assert [(row["direction"], row["strength"]) for row in steered.rows] == [
        ("none", 0.0), *((name, s) for name in ("popularity", "random 1", "random 2") for s in (-1.0, 1.0)),
    ]  # fmt: skip
    by = {(row["direction"], row["strength"]): row for row in steered.rows}
    less, more = by["popularity", -1.0], by["popularity", 1.0]
    assert less["novelty@10"] > by["none", 0.0]["novelty@10"] > more["novelty@10"]
    out = save(settling(run, k=5), steered, run, tmp_path / "probe", "a command")
    assert json.loads((out / "probe.json").read_text())["popularity"] == steered.rows
    assert (out / "novelty.png").stat().st_size > 1000
    assert not run.model.encoder.final_norm._forward_hooks  # nothing stays steered


@pytest.mark.parametrize("core_norm", [True, False])
def test_a_recurrence_is_steered_at_the_norm_its_answers_are_read_by(data: Dataset, core_norm: bool) -> None:
    def lares(**keys: Any) -> Run:
        torch.manual_seed(0)
        sizes = {"num_items": data.num_items, "max_length": 12, "hidden_size": 8, "core_blocks": 2}
        return run_of(LARES(LARESConfig(**sizes, core_norm=core_norm, **keys)), data)

    run = lares()
    encoder, hooked = run.model.encoder, set()
    norms = encoder.final_norm, encoder.core_norm
    encoder.final_norm.register_forward_pre_hook(
        lambda *_: hooked.add(tuple(bool(norm._forward_hooks) for norm in norms))
    )
    steer_popularity(run, [1.0], random=0)
    assert hooked == {(False, False), (True, False)}
    with pytest.raises(ArtefactError, match="has no final norm to read or steer"):
        steer_popularity(lares(norm="post"), [1.0])
    with pytest.raises(DataError, match=r"strengths are \(1.0, nan\); they have to be finite numbers"):
        steer_popularity(run, [1.0, float("nan")])


@pytest.mark.parametrize("item_bias", [True, False])
@pytest.mark.parametrize(
    "keys", [{}, {"head": "mlp"}, {"parametrization": "marginal"}, {"parametrization": "marginal", "head": "none"}],
    ids=str,
)  # fmt: skip
def test_only_what_is_multiplied_with_the_items_is_steered(data: Dataset, keys: Any, item_bias: bool) -> None:
    """Between the norm and the items of a PreferGrow stands a layer, and a bias is no direction of the norm."""
    torch.manual_seed(0)
    config = PreferGrowConfig(num_items=data.num_items, max_length=8, hidden_size=8, item_bias=item_bias, **keys)
    run = run_of(PreferGrow(config), data)
    if keys.get("head") == "none":
        assert len(steer_popularity(run, [0.5], random=0).rows) == 2
        return
    with pytest.raises(ArtefactError, match="reads its state through a head"):
        steer_popularity(run, [0.5])


def test_steps_of_a_model_that_has_none_are_refused(data: Dataset) -> None:
    config = ReaRecConfig(num_items=data.num_items, max_length=8, hidden_size=8, steps=0)
    with pytest.raises(ArtefactError, match="trained with 0 steps and can take none"):
        settling(run_of(ReaRec(config), data), steps=2)


def test_models_without_steps_or_vectors_are_refused(data: Dataset, tiny: Dataset) -> None:
    counted = run_of(Popularity(PopularityConfig(num_items=data.num_items)), data)
    with pytest.raises(ArtefactError, match="has no item vectors"):
        popularity_direction(counted)
    with pytest.raises(DataError, match="a probe takes at least 50"):
        settling(sasrec(tiny, num_blocks=1))
