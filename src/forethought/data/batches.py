"""Batches by index arithmetic: no Python per sample, sequences of like length together.

One padding convention: histories are padded on the **right** with 0, so position 0 is the oldest item kept, a causal
mask needs no padding mask, and a batch is only as wide as its longest row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from forethought.data.dataset import Dataset, Targets
from forethought.errors import DataError

BUCKET = 64  # batches sorted by length together: padding stays small, order stays random


def gather_rows(items: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Rows ``items[start : start + length]``, padded on the right with 0; int64 ``[B, max(lengths)]``."""
    width = int(lengths.max()) if len(lengths) else 0
    steps = torch.arange(width)
    inside = steps < lengths[:, None]
    flat = (starts[:, None] + steps).clamp_(max=max(len(items) - 1, 0))
    return torch.where(inside, items[flat].long(), 0)


class TrainingExamples(TorchDataset[dict[str, Tensor]]):
    """Rows for training; indexed with an int64 array of rows it gives a whole batch.

    A batch is ``{"history": int64 [B, L], "target": int64 [B, L]}``, where ``target[b, i]`` follows ``history[b, i]``
    and 0 means nothing is to be predicted there.

    Args:
        dataset: the prepared data; only its training part is read.
        max_length: items of history kept, newest last.
        targets: ``"all"`` is a row a user and predicts the item after each of the newest ``max_length``; ``"last"`` is
            the same row and predicts each user's newest item alone. ``"windows"`` is a row for every item that follows
            a full history of ``max_length``, predicting that one; the newest stands for users that are shorter.

    Raises:
        DataError: no user has two training events.
    """

    def __init__(self, dataset: Dataset, max_length: int, targets: Literal["all", "last", "windows"] = "all") -> None:
        starts = np.asarray(dataset.sequences.offsets[:-1])
        stops = np.asarray(dataset.train_stop)
        kept = stops - starts >= 2
        if not kept.any():
            raise DataError(
                f"{dataset.path or 'The data set'} has no user with two training events: nothing to learn from."
            )
        self.items = torch.from_numpy(np.array(dataset.sequences.items))
        starts, stops = starts[kept], stops[kept]
        if targets == "windows":
            windows = np.maximum(stops - starts - max_length, 1)
            back = np.arange(windows.sum()) - np.repeat(np.cumsum(windows) - windows, windows)
            starts, stops = np.repeat(starts, windows), np.repeat(stops, windows) - back
        stop = torch.from_numpy(stops)
        self.lengths = torch.minimum(stop - torch.from_numpy(starts) - 1, torch.tensor(max_length))
        self.starts = stop - 1 - self.lengths
        self.targets = targets

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        index = torch.as_tensor(rows)
        starts, lengths = self.starts[index], self.lengths[index]
        history = gather_rows(self.items, starts, lengths)
        target = gather_rows(self.items, starts + 1, lengths)
        if self.targets != "all":
            target = torch.where(torch.arange(target.shape[1]) == lengths[:, None] - 1, target, 0)
        return {"history": history, "target": target}


class LengthBuckets(Sampler[npt.NDArray[np.int64]]):
    """Row indices of each batch: shuffled by (seed, epoch), then like lengths together.

    Every rank draws the same global batches and takes its own stride of each, so N processes see exactly the batches
    that one process sees. A rest of fewer rows than ranks each of them takes whole: its targets count N times in the
    loss and in what divides it, which makes no difference unless it is accumulated with other batches.

    Args:
        lengths: length of each row.
        batch_size: rows a batch, over all ranks.
        seed: of the shuffle; epoch e uses (seed, e).
        rank, world_size: which share of each batch this process takes.
    """

    def __init__(self, lengths: Tensor, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size % world_size:
            raise DataError(
                f"A batch of {batch_size} rows cannot be shared by {world_size} processes; choose a multiple."
            )
        self.lengths = lengths.numpy()
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.lengths))
        span = self.batch_size * BUCKET
        pools = [order[i : i + span] for i in range(0, len(order), span)]
        pools = [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        batches = [pool[i : i + self.batch_size] for pool in pools for i in range(0, len(pool), self.batch_size)]
        for index in random.permutation(len(batches)):
            batch = batches[index]
            yield batch[self.rank :: self.world_size] if len(batch) >= self.world_size else batch


def target_batches(
    targets: Targets, batch_size: int, max_length: int, rows: npt.NDArray[np.int64] | None = None
) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """Histories of held-out cases, like lengths together.

    Yields:
        ``(rows, history)``: int64 ``[B]`` case numbers, and int64 ``[B, L]`` the newest ``max_length`` items before
        each target, padded on the right.
    """
    items = torch.from_numpy(np.asarray(targets.sequences.items))
    lengths = np.minimum(targets.lengths, max_length)
    chosen = np.arange(len(targets)) if rows is None else rows
    order = chosen[np.argsort(lengths[chosen], kind="stable")]
    for i in range(0, len(order), batch_size):
        rows_here = order[i : i + batch_size]
        length = torch.from_numpy(lengths[rows_here])
        start = torch.from_numpy(targets.positions[rows_here]) - length
        yield rows_here, gather_rows(items, start, length)
