"""Recommenders that think before they rank: from an interaction log to honest recommendations.

Names load on first use, so ``import forethought`` costs nothing until a model is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forethought.data.catalog import Catalog
    from forethought.data.dataset import Dataset
    from forethought.data.interactions import Interactions
    from forethought.errors import ArtefactError, DataError, ForethoughtError, RecipeError
    from forethought.evaluation.evaluator import Evaluation, evaluate
    from forethought.nn.thought import Thought
    from forethought.recommenders import model_class
    from forethought.recommenders.base import Recommender
    from forethought.recommenders.comparing import compare
    from forethought.recommenders.run import Run, train
    from forethought.recommenders.tuning import tune
    from forethought.training.recipe import Recipe

__version__ = "0.1.0"

_HOMES = {
    "ArtefactError": "forethought.errors",
    "Catalog": "forethought.data.catalog",
    "DataError": "forethought.errors",
    "Dataset": "forethought.data.dataset",
    "Evaluation": "forethought.evaluation.evaluator",
    "ForethoughtError": "forethought.errors",
    "Interactions": "forethought.data.interactions",
    "Recipe": "forethought.training.recipe",
    "RecipeError": "forethought.errors",
    "Recommender": "forethought.recommenders.base",
    "Run": "forethought.recommenders.run",
    "Thought": "forethought.nn.thought",
    "compare": "forethought.recommenders.comparing",
    "evaluate": "forethought.evaluation.evaluator",
    "model_class": "forethought.recommenders",
    "train": "forethought.recommenders.run",
    "tune": "forethought.recommenders.tuning",
}

__all__ = [
    "ArtefactError",
    "Catalog",
    "DataError",
    "Dataset",
    "Evaluation",
    "ForethoughtError",
    "Interactions",
    "Recipe",
    "RecipeError",
    "Recommender",
    "Run",
    "Thought",
    "compare",
    "evaluate",
    "model_class",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'forethought' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
