"""Small real recommenders with known scores, and a small data set made in memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from forethought.data.catalog import Catalog
from forethought.data.dataset import Dataset, Sequences
from forethought.recommenders.base import Recommender, RecommenderConfig


class SumOfVectors(Recommender):
    """Ranks by the inner product of an item with the sum of the items read, and nothing is learned."""

    inner_product = True

    def __init__(self, config: RecommenderConfig, table: Tensor) -> None:
        super().__init__(config)
        self.register_buffer("table", table)
        self.post_init()

    def query(self, history: Tensor) -> Tensor:
        vectors = torch.cat([self.table.new_zeros(1, self.table.shape[1]), self.table])
        return vectors[history].sum(dim=1)

    def item_vectors(self) -> Tensor:
        return self.table


class ScoreTable(Recommender):
    """Gives the row of a fixed table that the newest item points to."""

    def __init__(self, config: RecommenderConfig, table: Tensor) -> None:
        super().__init__(config)
        self.register_buffer("table", table)
        self.post_init()

    def score(self, history: Tensor, candidates: Tensor | None = None) -> Tensor:
        newest = history.gather(1, ((history > 0).sum(dim=1, keepdim=True) - 1).clamp(min=0))[:, 0]
        return self.table[newest]


def sum_of_vectors(
    num_items: int, *, width: int = 8, seed: int = 0, max_length: int = 50, whole: bool = False
) -> SumOfVectors:
    """``whole`` numbers make every product exact, and ties frequent."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(num_items, width, generator=generator)
    config = RecommenderConfig(num_items=num_items, max_length=max_length)
    return SumOfVectors(config, table.round() if whole else table)


def score_table(num_items: int, *, levels: int = 0, seed: int = 0, max_length: int = 50) -> ScoreTable:
    """Random scores; with ``levels`` only that many different ones."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_items + 1, num_items)
    table = (
        torch.randint(levels, shape, generator=generator).float() if levels else torch.randn(shape, generator=generator)
    )
    return ScoreTable(RecommenderConfig(num_items=num_items, max_length=max_length), table)


def make_dataset(
    users: int = 60, items: int = 40, *, seed: int = 0, longest: int = 30, repeats: bool = True, name: str = "made"
) -> Dataset:
    """Random sequences of 3..longest items under leave-one-out; Zipf-like popularity."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, min(longest, items) + 1 if not repeats else longest + 1, size=users)
    popularity = 1 / np.arange(1, items + 1)
    popularity /= popularity.sum()
    rows = [random.choice(items, size=length, replace=repeats, p=popularity) + 1 for length in lengths]
    return dataset_of(rows, items, name=name)


def dataset_of(rows: list[np.ndarray], items: int, *, protocol: str = "leave-one-out", name: str = "made") -> Dataset:
    """The rows' last items are test targets and their second last validation targets."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    numbers = range(1, items + 1)
    catalog = Catalog(pa.table({"id": [f"item {i}" for i in numbers], "title": [f"Title {i}" for i in numbers]}))
    dataset = Dataset(
        Sequences(offsets, np.concatenate(rows).astype(np.int32)),
        offsets[1:] - 2,
        offsets[1:] - 2,
        offsets[1:] - 1,
        catalog,
        pa.array([f"user {i}" for i in range(len(rows))]),
        {"name": name, "protocol": protocol},
    )
    dataset.manifest["fingerprint"] = dataset._digest()
    return dataset
