"""Is a difference more than the luck of the users, or of the seed?

The user is the unit that is drawn: a user's cases are kept together in every resample and every swap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DRAWN = 2**21  # users of all resamples that are held at a time: 16 MB


def user_sums(values: Floats, users: Ints) -> tuple[Floats, Floats]:
    """Add up each user's cases.

    Args:
        values: float64 ``[cases, M]``; NaN where a case has no value.
        users: int64 ``[cases]``, the user of each case.

    Returns:
        Sums and numbers of values, both float64 ``[users, M]``.
    """
    _, owner = np.unique(users, return_inverse=True)
    present = ~np.isnan(values)
    sums = np.zeros((int(owner.max(initial=-1)) + 1, values.shape[1]))
    numbers = np.zeros_like(sums)
    np.add.at(sums, owner, np.where(present, values, 0.0))
    np.add.at(numbers, owner, present)
    return sums, numbers


def bootstrap_means(values: Floats, users: Ints, replicates: int = 1000, seed: int = 0) -> Floats:
    """Means over users drawn with replacement (Efron 1979), each bringing all of its cases.

    Args:
        values: float64 ``[cases, M]``; NaN where a case has no value.
        users: int64 ``[cases]``.

    Returns:
        float64 ``[replicates, M]``.
    """
    sums, numbers = user_sums(values, users)
    if (numbers == numbers[:, :1]).all():
        numbers = numbers[:, :1]
    random, size = np.random.default_rng(seed), len(sums)
    means = np.empty((replicates, values.shape[1]))
    held = np.empty((max(min(DRAWN // max(size, 1), replicates), 1), size))
    # many at a time: each product starts threads, and where cores are busy they wait for each other
    for start in range(0, replicates, len(held)):
        drawn = held[: replicates - start]
        for row in drawn:
            row[:] = np.bincount(random.integers(size, size=size), minlength=size)
        with np.errstate(invalid="ignore"):
            means[start : start + len(drawn)] = (drawn @ sums) / (drawn @ numbers)
    return means


def intervals(values: Floats, users: Ints, replicates: int = 1000, seed: int = 0, level: float = 0.95) -> Floats:
    """Bootstrap percentile intervals of the means; float64 ``[M, 2]``, low and high."""
    tail = 100 * (1 - level) / 2
    return np.asarray(np.nanpercentile(bootstrap_means(values, users, replicates, seed), [tail, 100 - tail], axis=0).T)


@dataclass(frozen=True)
class PairedTest:
    """The mean difference a − b over users.

    Attributes:
        difference: mean of a − b over the cases.
        low, high: its 95 % bootstrap interval over users.
        p_bootstrap: two-sided; twice the share of bootstrap means on the other side of zero.
        p_randomisation: two-sided; the share of random sign flips, a user at a time, that give as large a difference.
        users: how many were paired.
    """

    difference: float
    low: float
    high: float
    p_bootstrap: float
    p_randomisation: float
    users: int


def paired_tests(
    a: Floats, others: Sequence[Floats], users: Ints, replicates: int = 10_000, seed: int = 0
) -> list[PairedTest]:
    """Compare one system with each of several on the same cases.

    Args:
        a: float64 ``[cases]`` or ``[seeds, cases]``. Seeds are averaged for each case first, so the test asks whether
            the two methods differ over users, with the luck of a single seed reduced.
        others: the other systems, each shaped like ``a``; the number of seeds may differ.
        users: int64 ``[cases]``.
        replicates: of the resampling and of the sign flips.

    Sources: paired bootstrap, Efron & Tibshirani 1993; randomisation (Fisher's) test, Smucker, Allan & Carterette,
    CIKM 2007. Both p-values count the observed outcome once, so they are never zero.
    """
    mean = np.atleast_2d(a).mean(axis=0)
    gaps = np.stack([mean - np.atleast_2d(other).mean(axis=0) for other in others], axis=1)
    sums, numbers = user_sums(gaps, users)
    means = bootstrap_means(gaps, users, replicates, seed)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    other_side = np.minimum((means <= 0).sum(axis=0), (means >= 0).sum(axis=0))
    p_bootstrap = np.minimum(1.0, 2 * (other_side + 1) / (replicates + 1))
    p_randomisation = _sign_flips(sums, replicates, seed)
    difference = sums.sum(axis=0) / numbers.sum(axis=0)
    return [
        PairedTest(
            difference=float(difference[i]),
            low=float(low[i]),
            high=float(high[i]),
            p_bootstrap=float(p_bootstrap[i]),
            p_randomisation=float(p_randomisation[i]),
            users=len(sums),
        )
        for i in range(len(others))
    ]


def paired_test(a: Floats, b: Floats, users: Ints, replicates: int = 10_000, seed: int = 0) -> PairedTest:
    """Compare two systems on the same cases; arguments as :func:`paired_tests`."""
    return paired_tests(a, [b], users, replicates, seed)[0]


def _sign_flips(gaps: Floats, replicates: int, seed: int) -> Floats:
    """The share of random sign vectors whose sum is at least as large as the observed one; float64 ``[M]``."""
    random, step = np.random.default_rng(seed), max(1, (1 << 22) // max(len(gaps), 1))
    total = gaps.sum(axis=0)
    extreme = np.ones(gaps.shape[1])
    for start in range(0, replicates, step):
        flips = random.integers(0, 2, size=(min(step, replicates - start), len(gaps)), dtype=np.int8)
        sums = flips.astype(np.float64) @ (2 * gaps) - total
        extreme += (np.abs(sums) >= np.abs(total) - 1e-9 * np.abs(gaps).sum(axis=0)).sum(axis=0)
    return extreme / (replicates + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction: adjusted p-values that hold for the whole family, in the given order."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = highest
    return adjusted
