"""Searches that meet bad trials or data: they end with a sentence, and never stand still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forethought.data.dataset import Dataset
from forethought.errors import ArtefactError, DataError, RecipeError
from forethought.recommenders.run import train
from forethought.recommenders.tuning import tune
from tests.planted import ring

LEARNING_RATE = {"training.learning_rate": "1e25..1e30:log"}


def search(data: Dataset | None, out: Path, **options: Any) -> Any:
    """Two trials that all diverge: validation meets scores that are no numbers before a loss is logged."""
    recipe = {
        "model": {"type": "sasrec", "hidden_size": 8, "num_blocks": 1, "dropout": 0.0},
        "data": {} if data is None else {"path": str(data.path)},
        "training": {"epochs": 2, "batch_size": 64},
    }
    return tune(recipe, search=LEARNING_RATE, trials=2, out=out, device="cpu", **options)


def test_a_trial_that_diverges_ends_the_trial_and_not_the_search(tmp_path: Path) -> None:
    data = ring(users=60).save(tmp_path / "ring")
    told: list[tuple[int, Any]] = []
    for _ in range(2):
        with pytest.raises(
            RecipeError, match=r"None of 2 trials could be trained; .* \(the last one: .*NaN or infinite"
        ):
            search(data, tmp_path / "search", progress=lambda number, _, result: told.append((number, result)))
    assert [number for number, _ in told] == [0, 1, 2, 3]  # nothing is tried again
    assert all("NaN or infinite" in result for _, result in told)


def test_what_cannot_be_searched_is_refused_before_a_trial(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Recipe run names no data; give --data.path"):
        search(None, tmp_path / "search")
    whole = ring(users=60)
    nobody = whole.targets("valid").positions[:0]
    manifest = {**whole.manifest, "counts": {**whole.manifest["counts"], "valid": 0}}
    blind = Dataset(
        whole.sequences, whole.train_stop, nobody, whole.targets("test").positions, whole.catalog, whole.users, manifest
    ).save(tmp_path / "blind")
    with pytest.raises(DataError, match=r"blind has no validation cases to choose by; prepare"):
        search(blind, tmp_path / "search")
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize("span", ["0..inf", "nan..1", "-1e308..1e308", "1..1" + "0" * 400])
def test_a_range_has_an_end(tmp_path: Path, span: str) -> None:
    data = ring(users=60).save(tmp_path / "ring")
    recipe = {"model": {"type": "knn"}, "data": {"path": str(data.path)}}
    with pytest.raises(RecipeError, match=r"--search model.window=.* has no end; give finite numbers"):
        tune(recipe, search={"model.window": span}, out=tmp_path / "search")
    assert not (tmp_path / "search").exists()


def test_a_run_is_no_place_for_a_search(tmp_path: Path) -> None:
    data = ring(users=60).save(tmp_path / "ring")
    recipe = {"model": {"type": "knn"}, "data": {"path": str(data.path)}}
    train(recipe, out=tmp_path / "run")
    before = (tmp_path / "run" / "recipe.yaml").read_text()
    with pytest.raises(ArtefactError, match=r"run holds something else than a search \(no study.sqlite3\)"):
        tune(recipe, search={"model.window": "1..5"}, trials=1, out=tmp_path / "run")
    assert (tmp_path / "run" / "recipe.yaml").read_text() == before
    assert not (tmp_path / "run" / "study.sqlite3").exists()
