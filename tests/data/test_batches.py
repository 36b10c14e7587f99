"""Batches against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.data.batches import LengthBuckets, TrainingExamples, gather_rows, target_batches
from forethought.data.dataset import Dataset
from forethought.data.planted import plant
from forethought.errors import DataError
from tests.recommenders.logs import HELD_OUT, NUM_ITEMS, TRAINING, make_dataset


@pytest.fixture
def log() -> Dataset:
    return make_dataset(TRAINING, HELD_OUT, NUM_ITEMS)


def padded(rows: list[list[int]]) -> list[list[int]]:
    width = max(map(len, rows), default=0)
    return [row + [0] * (width - len(row)) for row in rows]


def test_gather_rows_pads_on_the_right() -> None:
    items = torch.tensor([5, 6, 7, 8], dtype=torch.int32)
    found = gather_rows(items, torch.tensor([1, 3, 0]), torch.tensor([3, 1, 0]))
    assert found.tolist() == [[6, 7, 8], [8, 0, 0], [0, 0, 0]]
    assert found.dtype == torch.int64
    assert gather_rows(items, torch.tensor([0]), torch.tensor([0])).shape == (1, 0)


@pytest.mark.parametrize("max_length", [2, 4, 50])
@pytest.mark.parametrize("targets", ["all", "last"])
def test_training_examples(log: Dataset, max_length: int, targets: str) -> None:
    examples = TrainingExamples(log, max_length, targets)  # type: ignore[arg-type]
    users = [user for user in TRAINING if len(user) >= 2]
    batch = examples[np.arange(len(examples))]
    histories = [user[:-1][-max_length:] for user in users]
    wanted = [user[1:][-max_length:] for user in users]
    if targets == "last":
        wanted = [[0] * (len(row) - 1) + row[-1:] for row in wanted]
    assert batch["history"].tolist() == padded(histories)
    assert batch["target"].tolist() == padded(wanted)


@pytest.mark.parametrize("max_length", [1, 2, 4, 50])
def test_windows_are_the_full_histories_or_the_newest(log: Dataset, max_length: int) -> None:
    examples = TrainingExamples(log, max_length, "windows")
    wanted = []
    for user in (user for user in TRAINING if len(user) >= 2):
        ends = [end for end in range(1, len(user)) if end >= max_length] or [len(user) - 1]
        wanted += [(user[:end][-max_length:], user[end]) for end in ends]
    batch = examples[np.arange(len(examples))]
    found = [
        ([item for item in history if item], target[length - 1])
        for history, target, length in zip(
            batch["history"].tolist(), batch["target"].tolist(), examples.lengths.tolist(), strict=True
        )
    ]
    assert sorted(found) == sorted(wanted)
    assert int((batch["target"] > 0).sum()) == len(wanted)


def test_nothing_to_learn_from() -> None:
    with pytest.raises(DataError, match="no user with two training events"):
        TrainingExamples(make_dataset([[1], [2]], [[1, 2], [2, 1]], 2), 5)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=300), st.sampled_from([4, 8, 12]), st.sampled_from([1, 2, 4]),
    st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_buckets_take_every_row_once(lengths: list[int], batch_size: int, world_size: int, epoch: int) -> None:
    samplers = [LengthBuckets(torch.tensor(lengths), batch_size, 7, rank, world_size) for rank in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in samplers]
    alone = LengthBuckets(torch.tensor(lengths), batch_size, 7)
    alone.set_epoch(epoch)
    whole = list(alone)
    assert len(whole) == len(alone)
    assert sorted(np.concatenate(whole).tolist()) == list(range(len(lengths)))
    for index, batch in enumerate(whole):  # N processes see exactly the batches of one
        shared = np.concatenate([rank[index] for rank in batches])
        times = world_size if len(batch) < world_size else 1  # a rest too small to share
        assert sorted(shared.tolist()) == sorted(batch.tolist() * times)
    again = LengthBuckets(torch.tensor(lengths), batch_size, 7)
    again.set_epoch(epoch)
    assert all(np.array_equal(a, b) for a, b in zip(again, whole, strict=True))


def test_a_rest_too_small_to_share_weighs_each_row_alike() -> None:
    ranks = [list(LengthBuckets(torch.full((5,), 4), 3, 0, rank, 3)) for rank in range(3)]
    shared = [np.concatenate(batch).tolist() for batch in zip(*ranks, strict=True)]
    assert {len(batch): {batch.count(row) for row in batch} for batch in shared} == {3: {1}, 6: {3}}


def test_buckets_shuffle_and_save_padding() -> None:
    lengths = torch.from_numpy(np.random.default_rng(0).geometric(0.05, 5000))
    sampler = LengthBuckets(lengths, 64, 0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert not all(np.array_equal(a, b) for a, b in zip(first, sampler, strict=True))
    filled = int(lengths.sum()) / sum(int(lengths[batch].max()) * len(batch) for batch in first)
    shuffled = np.random.default_rng(0).permutation(5000).reshape(-1, 50)
    without = int(lengths.sum()) / sum(int(lengths[batch].max()) * len(batch) for batch in shuffled)
    assert filled > 0.9 > 0.5 > without
    with pytest.raises(DataError, match="cannot be shared by 3 processes"):
        LengthBuckets(lengths, 64, 0, 0, 3)


@pytest.mark.parametrize("rows", [None, np.array([2, 0])])
def test_target_batches(log: Dataset, rows: np.ndarray | None) -> None:
    targets = log.targets("test")
    histories = [train + rest[:-1] for train, rest in zip(TRAINING, HELD_OUT, strict=True) if len(rest) >= 2]
    seen = []
    for numbers, history in target_batches(targets, 2, 3, rows):
        assert history.tolist() == padded([histories[number][-3:] for number in numbers])
        seen += numbers.tolist()
    assert sorted(seen) == (list(range(len(histories))) if rows is None else [0, 2])


def test_histories_end_before_their_targets() -> None:
    dataset = plant(items=20).dataset(users=50, length=6)
    targets = dataset.targets("valid")
    for numbers, history in target_batches(targets, 16, 50):
        for number, row in zip(numbers, history, strict=True):
            start, stop = targets.starts[number], targets.positions[number]
            assert row.tolist() == dataset.sequences.items[start:stop].tolist()
