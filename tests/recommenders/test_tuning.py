"""Searches that meet bad trials or data: they end with a sentence, and never stand still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forethought.data.dataset import Dataset
from forethought.errors import DataError, RecipeError
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
