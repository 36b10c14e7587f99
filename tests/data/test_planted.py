"""The planted structure is the one that is promised."""

from __future__ import annotations

import numpy as np
import pytest

from forethought.data.planted import plant
from forethought.errors import DataError


def test_transition_matrix() -> None:
    planted = plant(items=50, successors=4, share=0.7, exponent=1.0, seed=3)
    assert planted.transition.shape == (50, 50)
    np.testing.assert_allclose(planted.transition.sum(axis=1), 1)
    extra = planted.transition - 0.3 * planted.popularity
    assert ((extra > 0.1).sum(axis=1) == 4).all()
    np.testing.assert_allclose(extra[extra > 0.1], 0.7 / 4)
    np.testing.assert_allclose(extra[extra <= 0.1], 0, atol=1e-12)
    assert (np.diag(extra) <= 0.1).all()  # nothing succeeds itself
    law = np.arange(1, 51) ** -1.0
    np.testing.assert_allclose(np.sort(planted.popularity)[::-1], law / law.sum())


def test_samples_follow_it() -> None:
    planted = plant(items=20, seed=1)
    items = planted.sample(users=20_000, length=8, seed=5)
    assert items.min() == 1
    assert items.max() == 20
    pairs = np.zeros((20, 20))
    np.add.at(pairs, (items[:, :-1].ravel() - 1, items[:, 1:].ravel() - 1), 1)
    counted = pairs.sum(axis=1, keepdims=True)
    error = (pairs / counted - planted.transition) / np.sqrt(planted.transition / counted)
    assert np.abs(error).max() < 5  # standard deviations, over 400 cells
    assert np.array_equal(items, planted.sample(20_000, 8, 5))
    assert not np.array_equal(items, planted.sample(20_000, 8, 6))


def test_the_best_hit_rate_is_reached_by_the_transition_matrix() -> None:
    planted = plant()
    assert planted.best_hit_rate() == pytest.approx(0.72, abs=0.01)
    assert planted.popularity_hit_rate() == pytest.approx(0.19, abs=0.02)
    items = planted.sample(users=20_000, length=12, seed=0)
    best = np.argsort(-planted.transition, axis=1)[:, :10] + 1
    hits = (best[items[:, -2] - 1] == items[:, -1:]).any(axis=1).mean()
    assert hits == pytest.approx(planted.best_hit_rate(), abs=0.015)
    popular = np.argsort(-planted.stationary())[:10] + 1
    assert np.isin(items[:, -1], popular).mean() == pytest.approx(planted.popularity_hit_rate(), abs=0.015)


def test_as_a_data_set() -> None:
    planted = plant()
    dataset = planted.dataset(users=100, length=7, seed=2, split="user-split")
    assert (dataset.num_users, dataset.num_items, dataset.protocol) == (100, 200, "user-split")
    assert dataset.sequences.items.reshape(100, 7).tolist() == planted.sample(100, 7, 2).tolist()
    assert dataset.fingerprint == planted.dataset(users=100, length=7, seed=2, split="user-split").fingerprint
    with pytest.raises(DataError, match="Cannot plant 5 successors"):
        plant(items=5)
