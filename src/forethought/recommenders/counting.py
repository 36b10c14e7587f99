"""What the baselines that count have in common: pairs of training items, sparse tables, and the contract."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor, nn

from forethought.data.dataset import Dataset
from forethought.nn.thought import Thought
from forethought.recommenders.base import Recommender

Items = npt.NDArray[np.int64]


def train_pairs(dataset: Dataset, distance: int) -> tuple[Items, Items]:
    """Every training item and the one ``distance`` events later of the same user: int64 ``[pairs]`` twice."""
    items = dataset.train_items().astype(np.int64)
    owner = np.repeat(np.arange(dataset.num_users), dataset.train_stop - dataset.sequences.offsets[:-1])
    together = owner[:-distance] == owner[distance:]
    return items[:-distance][together], items[distance:][together]


def newest_pairs(dataset: Dataset) -> tuple[Items, Items]:
    """The last two training items of each user who has two: int64 ``[users]`` twice."""
    last = dataset.train_stop[dataset.train_stop - dataset.sequences.offsets[:-1] >= 2] - 1
    items = np.asarray(dataset.sequences.items)
    return items[last - 1].astype(np.int64), items[last].astype(np.int64)


def pair_table(pairs: tuple[Items, Items], num_items: int, weight: float = 1.0) -> sparse.csr_array:
    """How often each ordered pair (i, j) occurs, times ``weight``: float32 ``[N + 1, N]``, at row i, column j - 1."""
    earlier, later = pairs
    weights = np.full(len(earlier), weight, dtype=np.float32)
    return sparse.coo_array((weights, (earlier, later - 1)), shape=(num_items + 1, num_items)).tocsr()


class SparseRows(nn.Module):
    """A fixed sparse matrix ``[N + 1, N]``, row i for item i; row 0, of the padding, is empty. Saved with its model.

    Args:
        num_items: N.
        nonzeros: entries to make room for; :meth:`fill` brings its own.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, num_items: int, nonzeros: int) -> None:
        super().__init__()
        self.num_items = num_items
        self.register_buffer("starts", torch.zeros(num_items + 2, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(nonzeros, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(nonzeros))

    def fill(self, matrix: sparse.csr_array) -> int:
        """Take the entries of ``matrix``; returns how many."""
        self.starts = torch.from_numpy(matrix.indptr.astype(np.int64))
        self.columns = torch.from_numpy(matrix.indices.astype(np.int32))
        self.values = torch.from_numpy(matrix.data.astype(np.float32))
        return len(self.values)

    def weighted_sum(self, items: Tensor, weights: Tensor) -> Tensor:
        """Sum of the rows of ``items`` int64 ``[B, L]`` times ``weights`` float ``[B, L]``; float ``[B, N]``."""
        total = self.values.new_zeros(len(items), self.num_items)
        flat = total.view(-1)
        for position in range(items.shape[1]):
            start = self.starts[items[:, position]]
            count = self.starts[items[:, position] + 1] - start
            owner = torch.repeat_interleave(count)
            entry = torch.arange(len(owner), device=owner.device) + (start - count.cumsum(0) + count)[owner]
            value = self.values[entry] * weights[:, position][owner]
            flat.index_add_(0, owner * self.num_items + self.columns[entry], value)
        return total


class CountingRecommender(Recommender):
    """A baseline fitted by one look at the data; it ranks by a table and has nothing to train."""

    @property
    def device(self) -> torch.device:
        """Where its buffers are; it has no parameters, by which other models tell."""
        return torch.device(next(self.buffers()).device)

    @property
    def dtype(self) -> torch.dtype:
        """Of its scores."""
        return torch.float32

    def score_all(self, history: Tensor) -> Tensor:
        """float ``[B, N]``, column j for item j + 1; ``history`` as for :meth:`score`. Each baseline defines it."""
        raise NotImplementedError(f"{type(self).__name__} has to define score_all.")

    def score(self, history: Tensor, candidates: Tensor | None = None) -> Tensor:
        scores = self.score_all(history)
        if candidates is None:
            return scores
        return scores[:, candidates - 1] if candidates.dim() == 1 else scores.gather(1, candidates - 1)

    def think(self, history: Tensor, steps: int | None = None) -> Thought:
        """One step, whose state is the table's answer."""
        answers = self.score_all(history)[:, None]
        mask = torch.ones(len(answers), 1, dtype=torch.bool, device=answers.device)
        return Thought(answers, mask, "encode", answers)
