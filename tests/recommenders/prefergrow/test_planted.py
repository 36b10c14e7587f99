"""Known answers: sequences with planted successors, fresh ones every step, ranked in one step from a fixed state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forethought.data.planted import plant
from forethought.recommenders.prefergrow.config import PreferGrowConfig
from forethought.recommenders.prefergrow.model import PreferGrow

pytestmark = pytest.mark.slow

PLANTED = plant()
USERS = 4000


def train(steps: int = 700, **keys: object) -> PreferGrow:
    torch.manual_seed(0)
    config = PreferGrowConfig(
        num_items=200, max_length=5, hidden_size=32, num_heads=2, dropout=0.0, embedding_std=0.1, **keys
    )  # fmt: skip
    model = PreferGrow(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, 4 * (1 - step / steps))
        items = torch.from_numpy(PLANTED.sample(256, 6, seed=(1, step)))
        target = torch.zeros_like(items[:, :-1])
        target[:, -1] = items[:, -1]
        loss = model(items[:, :-1], target).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


@torch.no_grad()
def hit_rate(model: PreferGrow, guidance: float = 1.0) -> float:
    """HR@10 over fresh users, seen items kept."""
    items = torch.from_numpy(PLANTED.sample(USERS, 6, seed=2))
    scores = model.query(items[:, :-1], guidance) @ model.item_vectors().T
    wanted = scores.gather(1, items[:, -1:] - 1)
    return float(((scores > wanted).sum(dim=1) < 10).float().mean())


def popularity_hit_rate() -> float:
    items = PLANTED.sample(USERS, 6, seed=2)
    best = np.argsort(-PLANTED.stationary())[:10] + 1
    return float(np.isin(items[:, -1], best).mean())


@pytest.fixture(scope="module")
def point() -> PreferGrow:
    return train(kernel="point")


@pytest.fixture(scope="module")
def hybrid() -> PreferGrow:
    return train(kernel="hybrid", gamma=0.9)


@pytest.fixture(scope="module")
def marginal() -> PreferGrow:
    return train(kernel="hybrid", gamma=0.9, parametrization="marginal", ce_weight=1.0)


def test_one_step_ranking_is_clearly_above_popularity(point: PreferGrow, hybrid: PreferGrow) -> None:
    popularity = popularity_hit_rate()
    assert hit_rate(point) > popularity + 0.15
    assert hit_rate(hybrid) > popularity + 0.10


def test_the_marginal_parametrisation_comes_nearest_the_best_possible(marginal: PreferGrow, hybrid: PreferGrow) -> None:
    assert hit_rate(marginal) > hit_rate(hybrid) + 0.1
    assert hit_rate(marginal) > 0.8 * PLANTED.best_hit_rate()


@pytest.mark.parametrize("name", ["point", "hybrid", "marginal"])
def test_the_nonpreference_user_ranks_by_popularity(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    assert hit_rate(model, guidance=0.0) == pytest.approx(popularity_hit_rate(), abs=0.05)


def test_guidance_curve(point: PreferGrow, hybrid: PreferGrow) -> None:
    """More guidance than none helps the hybrid kernel; for the point kernel it is best left at 1."""
    assert hit_rate(hybrid, 2.0) > hit_rate(hybrid, 1.0)
    assert hit_rate(point, 5.0) < hit_rate(point, 1.0)


def test_the_number_of_steps_does_not_matter_where_ratios_are_consistent(marginal: PreferGrow) -> None:
    """With exact Bayes steps a chain of any length draws from the same law."""
    items = torch.from_numpy(PLANTED.sample(1, 6, seed=5))[:, :-1].expand(20_000, -1)
    with torch.no_grad():
        law = marginal.score(items[:1]).softmax(dim=1)[0]
    for steps in (1, 20):
        drawn = marginal.grow(items, steps=steps, generator=torch.Generator().manual_seed(steps)).final
        share = torch.bincount(drawn, minlength=201)[:200] / len(drawn)
        assert 0.5 * float((share - law).abs().sum()) < 0.035  # sampling noise alone gives about 0.024
