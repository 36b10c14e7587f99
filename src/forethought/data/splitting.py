"""Which events are for training, which are to be found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from forethought.errors import DataError

Split = Literal["leave-one-out", "user-split", "global-time"]
SPLITS: tuple[Split, ...] = ("leave-one-out", "user-split", "global-time")
CUTS = (0.8, 0.9)  # of global-time: shares of the events before validation and before test
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Positions:
    """A split of sequences in compressed sparse layout.

    Attributes:
        train_stop: int64 ``[users]``: user u trains on ``offsets[u]:train_stop[u]``.
        valid, test: int64 ``[cases]``: flat positions of the events to be found, ascending.
        parameters: what the manifest says about the split.
    """

    train_stop: Ints
    valid: Ints
    test: Ints
    parameters: dict[str, Any]


def leave_one_out(offsets: Ints, valid_users: int | None = None, seed: int = 0) -> Positions:
    """A user's last event is for test, the one before for validation, the rest for training.

    Users with fewer than three events are training only.

    Args:
        offsets: int64 ``[users + 1]``.
        valid_users: so many users, drawn by ``seed``, have a validation case, and of the others the event before the
            last is trained on too; all have one by default.

    Raises:
        DataError: so many users there are not.
    """
    long = np.diff(offsets) >= 3
    validates, parameters = long, {"users_without_target": int((~long).sum())}
    if valid_users is not None:
        if not 0 < valid_users <= long.sum():
            raise DataError(
                f"{valid_users} users cannot give a validation case: there are {int(long.sum())} with three events."
            )
        drawn = np.random.default_rng(seed).choice(np.flatnonzero(long), valid_users, replace=False)
        validates = np.isin(np.arange(len(long)), drawn)
        parameters |= {"valid_users": valid_users, "seed": seed}
    train_stop = offsets[1:] - long.astype(np.int64) - validates
    return Positions(train_stop, offsets[1:][validates] - 2, offsets[1:][long] - 1, parameters)


def user_split(offsets: Ints, seed: int) -> Positions:
    """Users 8:1:1 after a seeded shuffle; of held-out users the last event is to be found, nothing is trained on.

    Users with fewer than two events are training only.
    """
    lengths = np.diff(offsets)
    eligible = np.flatnonzero(lengths >= 2)
    shuffled = np.random.default_rng(seed).permutation(eligible)
    train, valid = int(0.8 * len(eligible)), int(0.1 * len(eligible))
    parts = np.split(shuffled, [train, train + valid])
    return _held_out(offsets, parts[1], parts[2], {"seed": seed, "users_without_target": int((lengths < 2).sum())})


def given_split(offsets: Ints, parts: Ints) -> Positions:
    """The user split that the source came with.

    Args:
        offsets: int64 ``[users + 1]``.
        parts: int ``[users]``: 0 training, 1 validation, 2 test.
    """
    short = (np.diff(offsets) < 2) & (parts > 0)
    held = np.where(short, 0, parts)
    parameters = {"given": True, "users_without_target": int(short.sum())}
    return _held_out(offsets, np.flatnonzero(held == 1), np.flatnonzero(held == 2), parameters)


def _held_out(offsets: Ints, valid: Ints, test: Ints, parameters: dict[str, Any]) -> Positions:
    train_stop = offsets[1:].copy()
    for users in (valid, test):
        train_stop[users] = offsets[users]
    return Positions(train_stop, offsets[1:][np.sort(valid)] - 1, offsets[1:][np.sort(test)] - 1, parameters)


def global_time(offsets: Ints, times: Ints, quantiles: tuple[float, float] = CUTS) -> Positions:
    """Two moments cut the log: training before the first, validation between, test after.

    A user's case in a span is the first event there that has a history.

    Args:
        offsets: int64 ``[users + 1]``.
        times: int64 ``[events]``, ascending within each user.
        quantiles: share of events before each cut.
    """
    if not 0 < quantiles[0] <= quantiles[1] < 1:
        raise DataError(f"The cuts {quantiles} have to be two ascending shares between 0 and 1.")
    cuts = np.quantile(times, quantiles, method="higher")
    before = [np.concatenate(([0], np.cumsum(times < cut, dtype=np.int64))) for cut in cuts]
    first, second = (count[offsets[1:]] - count[offsets[:-1]] + offsets[:-1] for count in before)
    has_valid = (first < second) & (first > offsets[:-1])
    has_test = (second < offsets[1:]) & (second > offsets[:-1])
    parameters = {
        "quantiles": list(quantiles),
        "cuts": [int(cut) for cut in cuts],
        "users_without_target": int((~has_valid & ~has_test).sum()),
    }
    return Positions(first, first[has_valid], second[has_test], parameters)
