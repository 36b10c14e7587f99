"""What the tests of recommenders share."""

from __future__ import annotations

import numpy as np
import pytest

from forethought.data.dataset import Dataset
from forethought.data.text import TextVectors, item_texts, text_digest

from .logs import HELD_OUT, NUM_ITEMS, TRAINING, make_dataset


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The log, in a folder, with a text vector of each item but the last."""
    dataset = make_dataset(TRAINING, HELD_OUT, NUM_ITEMS).save(tmp_path_factory.mktemp("tiny") / "data")
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[-1] = 0
    assert dataset.path is not None
    digest = text_digest(item_texts(dataset.catalog))
    TextVectors(vectors.astype(np.float16), "drawn", digest).save(dataset.path)
    return dataset
