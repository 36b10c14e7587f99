"""The recipes of the published commands beside the table of what was published, and the sizes of their models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from forethought.recommenders.models import read_recipe
from forethought.recommenders.prefergrow.config import PreferGrowConfig
from forethought.recommenders.prefergrow.model import PreferGrow

#        γ of hybrid, lr and null ratio of hybrid, the same of adaptive, items, millions of parameters of both
TABLE = {
    "steam": (0.99999, (1e-3, 0.1), (1e-3, 0.05), 9265, 3.03, 9.96),
    "ml1m": (0.9999, (1e-4, 0.1), (1e-4, 0.2), 3883, 1.65, 4.44),
    "beauty": (0.999, (1e-4, 0.1), (1e-4, 0.1), 12101, 3.76, 12.87),
    "atg": (0.9999, (1e-3, 0.2), (1e-4, 0.2), 11924, 3.71, 12.69),
    "aso": (0.9999, (1e-3, 0.2), (1e-4, 0.2), 18357, 5.36, 19.28),
}
MODEL = {
    "type": "prefergrow",
    "encoder": "paper",
    "hidden_size": 256,
    "num_blocks": 1,
    "num_heads": 2,
    "dropout": 0.1,
    "max_length": 10,
    "embedding_std": 1.0,
    "head": "additive",
    "noise_features": "sigma",
    "ratio_offset": False,
    "parametrization": "score",
    "loss": "score_entropy",
    "raw": False,
    "ce_weight": 0.0,
    "schedule": "geometric",
    "sigma_min": 1e-3,
    "sigma_max": 10.0,
    "time_grid": 20,
    "sampler": "analytic",
    "growing_steps": 20,
    "guidance": 2.0,
}
TRAINING = {
    "batch_size": 256,
    "max_steps": 2_000_000,
    "evaluate_every": 50_000,
    "patience": 0,
    "ema_decay": 0.9999,
    "scheduler": "constant",
    "warmup_steps": 2500,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
    "beta1": 0.9,
    "beta2": 0.999,
    "precision": "fp32",
    "gradient_accumulation_steps": 1,
}
HYBRID = {"kernel": "hybrid", "score_method": "oricos", "item_bias": False}
ADAPTIVE = {"kernel": "adaptive", "disliked_item": True, "score_method": "untied", "item_bias": True}
EACH = pytest.mark.parametrize(
    ("data", "kernel"), [(data, kernel) for data in TABLE for kernel in ("hybrid", "adaptive")]
)


@EACH
def test_settings_are_the_published_ones(data: str, kernel: str) -> None:
    gamma, hybrid, adaptive, *_ = TABLE[data]
    rate, ratio = hybrid if kernel == "hybrid" else adaptive
    expected = MODEL | {"nonpreference_user_ratio": ratio}
    # the adaptive distribution began uniform over the items and d
    items = TABLE[data][3]
    own = {**HYBRID, "gamma": gamma} if kernel == "hybrid" else {**ADAPTIVE, "gamma": round(items / (items + 1), 7)}
    expected |= own
    recipe = read_recipe(f"prefergrow/{data}-{kernel}").to_dict()
    assert {key: recipe["model"][key] for key in expected} == expected
    assert {key: recipe["training"][key] for key in TRAINING} == TRAINING
    assert recipe["training"]["learning_rate"] == rate
    # history items stay in the ranking; Amazon has one case a user, the others one a window of ten (spec §4, §5)
    assert recipe["evaluation"]["seen"] == "kept"
    assert recipe["data"]["targets"] == ("windows" if data in ("steam", "ml1m") else "last")
    assert recipe["seed"] == 100


@EACH
def test_sizes_are_the_published_ones(data: str, kernel: str) -> None:
    *_, items, hybrid, adaptive = TABLE[data]
    keys: dict[str, Any] = dict(read_recipe(f"prefergrow/{data}-{kernel}").model)
    del keys["type"]
    with torch.device("meta"):
        model = PreferGrow(PreferGrowConfig(num_items=items, **keys))
    # the release's p belongs to its kernel and not to the model
    count = sum(weights.numel() for name, weights in model.named_parameters() if name != "adaptive")
    assert round(count / 1e6, 2) == (hybrid if kernel == "hybrid" else adaptive)
