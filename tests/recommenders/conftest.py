"""What the tests of recommenders share."""

from __future__ import annotations

import pytest

from forethought.data.dataset import Dataset

from .logs import HELD_OUT, NUM_ITEMS, TRAINING, make_dataset


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    return make_dataset(TRAINING, HELD_OUT, NUM_ITEMS)
