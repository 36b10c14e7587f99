"""The three protocols, as properties of any log."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.data.assembly import assemble
from forethought.data.dataset import Dataset, Sequences
from forethought.data.splitting import Positions, Split, global_time, leave_one_out, user_split
from forethought.errors import DataError

PROPERTY = settings(max_examples=200, deadline=None)
LENGTHS = st.lists(st.integers(1, 8), min_size=1, max_size=60)


def offsets_of(lengths: list[int]) -> npt.NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def check_whole(offsets: npt.NDArray[np.int64], split: Positions) -> None:
    """Training parts begin where their users begin; a case lies after its user's training, with a history."""
    assert split.train_stop.dtype == split.valid.dtype == split.test.dtype == np.int64
    assert ((split.train_stop >= offsets[:-1]) & (split.train_stop <= offsets[1:])).all()
    for positions in (split.valid, split.test):
        users = np.searchsorted(offsets, positions, side="right") - 1
        assert len(np.unique(users)) == len(users)
        assert (np.diff(positions) > 0).all()
        assert (positions >= split.train_stop[users]).all()
        assert (positions > offsets[users]).all()


@given(LENGTHS)
@PROPERTY
def test_leave_one_out(lengths: list[int]) -> None:
    offsets = offsets_of(lengths)
    split = leave_one_out(offsets)
    check_whole(offsets, split)
    long = [user for user, length in enumerate(lengths) if length >= 3]
    assert split.test.tolist() == [offsets[user + 1] - 1 for user in long]
    assert split.valid.tolist() == [offsets[user + 1] - 2 for user in long]
    trained = split.train_stop - offsets[:-1]
    assert trained.tolist() == [length - 2 if length >= 3 else length for length in lengths]
    assert split.parameters["users_without_target"] == len(lengths) - len(long)


@given(LENGTHS, st.integers(1, 20), st.integers(0, 5))
@PROPERTY
def test_leave_one_out_with_few_users_for_validation(lengths: list[int], count: int, seed: int) -> None:
    offsets = offsets_of(lengths)
    long = [user for user, length in enumerate(lengths) if length >= 3]
    if count > len(long):
        with pytest.raises(DataError, match=f"there are {len(long)} with three events"):
            leave_one_out(offsets, count, seed)
        return
    split = leave_one_out(offsets, count, seed)
    check_whole(offsets, split)
    assert split.test.tolist() == leave_one_out(offsets).test.tolist()
    owners = np.searchsorted(offsets, split.valid, side="right") - 1
    assert len(owners) == count
    assert (split.valid == offsets[owners + 1] - 2).all()
    held_out = np.isin(np.arange(len(lengths)), long).astype(int) + np.isin(np.arange(len(lengths)), owners)
    assert (split.train_stop == offsets[1:] - held_out).all()
    assert (leave_one_out(offsets, count, seed).valid == split.valid).all()
    assert split.parameters["valid_users"] == count


@pytest.mark.parametrize("split", ["user-split", "global-time"])
def test_few_users_for_validation_are_of_leave_one_out_alone(split: Split) -> None:
    sequences = Sequences(np.array([0, 4, 8]), np.ones(8, np.int32), np.arange(8))
    with pytest.raises(DataError, match="goes with the split leave-one-out alone"):
        assemble(sequences, pa.array(["a", "b"]), pa.table({"id": [1]}), split, valid_users=1)


@given(LENGTHS, st.integers(0, 5))
@PROPERTY
def test_user_split(lengths: list[int], seed: int) -> None:
    offsets = offsets_of(lengths)
    split = user_split(offsets, seed)
    check_whole(offsets, split)
    eligible = sum(length >= 2 for length in lengths)
    owners = [np.searchsorted(offsets, positions, side="right") - 1 for positions in (split.valid, split.test)]
    assert not set(owners[0]) & set(owners[1])
    assert len(split.valid) == int(0.1 * eligible)
    assert len(split.test) == eligible - int(0.8 * eligible) - int(0.1 * eligible)
    for users, positions in zip(owners, (split.valid, split.test), strict=True):
        assert (positions == offsets[users + 1] - 1).all()
        assert (split.train_stop[users] == offsets[users]).all()
    others = np.setdiff1d(np.arange(len(lengths)), np.concatenate(owners))
    assert (split.train_stop[others] == offsets[others + 1]).all()
    again = user_split(offsets, seed)
    assert (again.test == split.test).all()


def test_user_split_depends_on_the_seed_and_has_the_published_sizes() -> None:
    offsets = np.arange(0, 5 * 22_364, 5, dtype=np.int64)
    first, second = user_split(offsets, 0), user_split(offsets, 1)
    assert (len(first.valid), len(first.test)) == (2236, 2237)
    assert not np.array_equal(first.test, second.test)


@given(LENGTHS, st.data())
@PROPERTY
def test_global_time(lengths: list[int], data: st.DataObject) -> None:
    offsets = offsets_of(lengths)
    events = int(offsets[-1])
    times = np.array(data.draw(st.lists(st.integers(0, 20), min_size=events, max_size=events)), dtype=np.int64)
    for user in range(len(lengths)):
        times[offsets[user] : offsets[user + 1]].sort()
    split = global_time(offsets, times)
    check_whole(offsets, split)
    first, second = split.parameters["cuts"]
    trained = np.arange(events) < np.repeat(split.train_stop, lengths)
    assert (trained == (times < first)).all()
    for positions, span in ((split.valid, (times >= first) & (times < second)), (split.test, times >= second)):
        expected = []
        for user, start in enumerate(offsets[:-1]):
            inside = np.flatnonzero(span[start : offsets[user + 1]])
            if len(inside) and inside[0] > 0:
                expected.append(start + inside[0])
        assert positions.tolist() == expected


def small(lengths: list[int], split: Split, times: bool = True) -> Dataset:
    offsets = offsets_of(lengths)
    events = int(offsets[-1])
    sequences = Sequences(offsets, np.ones(events, np.int32), np.arange(events, dtype=np.int64) if times else None)
    return assemble(sequences, pa.array(range(len(lengths))), pa.table({"id": ["only"]}), split)


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(DataError, match="leaves no test case under leave-one-out: its 2 users"):
        small([1, 2], "leave-one-out")
    with pytest.raises(DataError, match="leaves no training event under user-split"):
        small([2], "user-split")
    with pytest.raises(DataError, match="needs times"):
        small([4, 4], "global-time", times=False)
    with pytest.raises(DataError, match="ascending shares"):
        global_time(offsets_of([3]), np.arange(3), (0.9, 0.8))


def test_counts_in_training_are_those_of_the_catalogue() -> None:
    dataset = small([5, 1, 2], "leave-one-out")
    assert dataset.catalog.table["count"].to_pylist() == [6]
    assert dataset.manifest["counts"]["train_events"] == 6
