"""Sequences with a planted structure, for which the best possible ranking is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from forethought.data.assembly import assemble
from forethought.data.dataset import Dataset, Sequences
from forethought.data.splitting import Split
from forethought.errors import DataError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Planted:
    """A first-order chain: the next item is one of the last item's successors, or else drawn by popularity.

    Attributes:
        transition: float64 ``[N, N]``; row i - 1, column j - 1 is the probability that item j follows item i. To
            rank by a row is Bayes-optimal.
        popularity: float64 ``[N]``, the Zipf law that the other events (and the first ones) are drawn from.
    """

    transition: Floats
    popularity: Floats

    def sample(self, users: int, length: int, seed: int | tuple[int, ...] = 0) -> npt.NDArray[np.int64]:
        """Fresh sequences; int64 ``[users, length]`` of items 1..N."""
        random = np.random.default_rng(seed)
        cumulated = self.transition.cumsum(axis=1)
        items = np.empty((users, length), dtype=np.int64)
        items[:, 0] = random.choice(len(self.popularity), users, p=self.popularity)
        for step in range(1, length):
            draws = random.random((users, 1))
            items[:, step] = (cumulated[items[:, step - 1]] < draws).sum(axis=1)
        return np.minimum(items, len(self.popularity) - 1) + 1

    def stationary(self) -> Floats:
        """float64 ``[N]``: how often each item occurs in a long sequence."""
        share = self.popularity
        for _ in range(200):
            share = share @ self.transition
        normalised: Floats = share / share.sum()
        return normalised

    def best_hit_rate(self, k: int = 10) -> float:
        """HR@k of the Bayes-optimal ranking, in a long sequence, seen items kept."""
        best = -np.sort(-self.transition, axis=1)[:, :k].sum(axis=1)
        return float(self.stationary() @ best)

    def popularity_hit_rate(self, k: int = 10) -> float:
        """HR@k of the ranking by popularity, in a long sequence, seen items kept."""
        return float(np.sort(self.stationary())[::-1][:k].sum())

    def dataset(self, users: int, length: int = 20, seed: int = 0, split: Split = "leave-one-out") -> Dataset:
        """Sequences as a data set in memory; users and items are called 1, 2, 3 …"""
        items = self.sample(users, length, seed)
        sequences = Sequences(np.arange(users + 1, dtype=np.int64) * length, items.astype(np.int32).ravel())
        described = pa.table({"id": pa.array(np.arange(1, len(self.popularity) + 1))})
        names = pa.array(np.arange(1, users + 1))
        return assemble(sequences, names, described, split, seed=seed, name="planted", provenance={"source": "planted"})


def plant(items: int = 200, successors: int = 5, share: float = 0.6, exponent: float = 0.85, seed: int = 0) -> Planted:
    """Plant a structure.

    Args:
        items: N.
        successors: how many successors each item has, drawn once, alike for all users.
        share: probability that the next item is one of them (each equally likely); else it is drawn by popularity.
        exponent: of the Zipf law; 0.85 gives a Bayes-optimal HR@10 of about 0.72 with the other defaults.
        seed: of the structure.

    Raises:
        DataError: there are not more items than successors, or the share is no probability.
    """
    if not (0 < successors < items and 0 <= share <= 1):
        raise DataError(f"Cannot plant {successors} successors a share {share} of the time among {items} items.")
    random = np.random.default_rng(seed)
    popularity = random.permutation(np.arange(1, items + 1, dtype=np.float64) ** -exponent)
    popularity /= popularity.sum()
    transition = np.tile((1 - share) * popularity, (items, 1))
    for item in range(items):
        others = np.delete(np.arange(items), item)
        transition[item, random.choice(others, successors, replace=False)] += share / successors
    return Planted(transition, popularity)
