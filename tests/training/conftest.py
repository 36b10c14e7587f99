"""One small prepared folder, and recipes over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from forethought.data.dataset import Dataset
from forethought.recommenders.models import read_recipe
from forethought.training.recipe import Recipe
from tests.planted import ring

RECIPE = {
    "name": "small",
    "model": {"type": "sasrec", "hidden_size": 16, "dropout": 0.0, "num_blocks": 1},
    "training": {"epochs": 3, "batch_size": 64, "patience": 0},
}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring().save(tmp_path_factory.mktemp("data") / "ring")


@pytest.fixture
def recipe(data: Dataset) -> Callable[..., Recipe]:
    """``recipe(training__epochs=5)`` is the small recipe with that key changed."""

    def change(**overrides: object) -> Recipe:
        dotted = {key.replace("__", "."): value for key, value in overrides.items()}
        return read_recipe(RECIPE, {"data.path": str(data.path), **dotted})

    return change


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"
