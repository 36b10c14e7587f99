"""Parts that do not go together, and values that mean nothing, are refused with the name of their key."""

from __future__ import annotations

from typing import Any

import pytest

from forethought.data.dataset import Dataset
from forethought.errors import RecipeError
from forethought.recipes import shipped_recipes
from forethought.recommenders.models import build, read_recipe

MARGINAL = {"parametrization": "marginal"}
EXACT = {**MARGINAL, "loss": "exact"}


def make(dataset: Dataset, keys: dict[str, Any]) -> None:
    build(read_recipe({"model": {"type": "prefergrow", "hidden_size": 8, **keys}}), dataset)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"loss": "exact"}, "loss exact needs parametrization marginal"),
        ({"loss": "bce", **MARGINAL}, "loss bce needs parametrization score"),
        ({"kernel": "block"}, "kernel block needs parametrization marginal"),
        ({"raw": True, **EXACT}, "raw"),
        ({"ce_weight": 0.5, **EXACT}, "ce_weight"),
        ({"time_grid": 20, **EXACT}, "time_grid"),
        ({"encoder": "paper", "num_blocks": 2}, "num_blocks"),
        ({"encoder": "paper", "inner_size": 16}, "inner_size"),
        ({"hidden_size": 7, "num_heads": 1}, "hidden_size is 7"),
        ({"hidden_size": 7, "num_heads": 1, "encoder": "paper", **MARGINAL}, "hidden_size is 7"),
        ({"hidden_size": 8, "num_heads": 3}, "hidden_size 8"),
        ({"kernel": "hybrid", "disliked_item": False}, "kernel hybrid has the disliked item"),
        ({"score_method": "diffcos", **MARGINAL}, "score_method diffcos takes away the present state"),
        ({"score_method": "diffcosNorm", **MARGINAL}, "score_method diffcosNorm takes away"),
        ({"guidance": 2.0, "nonpreference_user_ratio": 0.0}, "guidance is 2.0 and nonpreference_user_ratio 0"),
        ({"head": "none"}, "head none needs parametrization marginal"),
        *(({key: -0.1}, f"{key} is -0.1") for key in ("gamma", "nonpreference_user_ratio", "beta", "ce_weight")),
        *(({key: 1.1}, f"{key} is 1.1") for key in ("gamma", "nonpreference_user_ratio")),
        *(({key: -1}, f"{key} is -1") for key in ("time_grid", "growing_steps")),
        ({"embedding_std": -1.0}, "embedding_std is -1"),
        ({"num_groups": 0, "kernel": "block", **MARGINAL}, "num_groups is 0"),
        *(({key: 0.0}, f"{key} is 0") for key in ("sigma_min", "scoring_sigma", "temperature")),
        *(({key: 0}, f"{key} is 0") for key in ("hidden_size", "num_heads", "max_length")),
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min is 3.0 and sigma_max 2.0"),
        ({"sigma_min": 1e-8}, "sigma_min is 1e-08 and sigma_max 10.0"),
        ({"sigma_max": 1000.0}, "sigma_max 1000.0; the one has to be less"),
        ({"schedule": "log_linear", "eps": 1.0}, "eps is 1"),
        ({"schedule": "log_linear", "eps": 1e-8}, "eps is 1e-08"),
        ({"kernel": "block", "block_by": "category", **MARGINAL}, r"model\.block_by"),
        ({"kernel": "pairs"}, r"model\.kernel"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(tiny: Dataset, keys: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        make(tiny, keys)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        EXACT,
        {"encoder": "paper", "inner_size": 8},
        {"hidden_size": 7, "num_heads": 1, **MARGINAL},  # no sinusoids there
        {"kernel": "block", **MARGINAL},
        {"kernel": "block", **EXACT},
        {"kernel": "pair", "gamma": 0.5, "scoring_sigma": 2.0, **MARGINAL},  # numbers a search over parts may keep
        {"nonpreference_user_ratio": 0.0},
        {"gamma": 0.0, "nonpreference_user_ratio": 1.0, "beta": 0.0, "growing_steps": 0},
    ],
    ids=str,
)
def test_what_goes_together_is_not(tiny: Dataset, keys: dict[str, Any]) -> None:
    make(tiny, keys)


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name.startswith("prefergrow/")])
def test_shipped_recipes_make_models(tiny: Dataset, name: str) -> None:
    build(read_recipe(name), tiny)
