"""How long thoughts are when some were cut off: Kaplan-Meier, never a mean that takes the cap for a length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from forethought.errors import DataError
from forethought.instruments.controls import Floats, finite, problems_of


@dataclass(frozen=True)
class Survival:
    """The share of thoughts longer than each length.

    Attributes:
        lengths: float64 ``[m]``, distinct lengths at which a thought ended, ascending.
        survival: float64 ``[m]``, S(t) = P(length > t) there.
        largest: the greatest length seen, ended or not; beyond it nothing is known.
    """

    lengths: Floats
    survival: Floats
    largest: float

    def quantile(self, share: float) -> float:
        """The least length by which a share of the thoughts has ended; infinity where fewer were seen to end."""
        # equal up to the rounding of a product of many factors
        reached = self.survival <= 1 - share + 1e-12
        return float(self.lengths[reached.argmax()]) if reached.any() else math.inf

    @property
    def median(self) -> float:
        """The least length by which half have ended; infinity where fewer than half were seen to end."""
        return self.quantile(0.5)

    def mean(self, limit: float | None = None) -> float:
        """The restricted mean, E[min(length, limit)]: the area under S up to ``limit`` (the greatest length seen).

        Raises:
            DataError: the limit lies beyond the greatest length, and the thoughts have not all ended there.
        """
        end = self.largest if limit is None else float(limit)
        if end > self.largest and (not len(self.survival) or self.survival[-1] > 0):
            raise DataError(
                f"A mean up to {end:g} tokens needs thoughts watched that far; the longest was watched for "
                f"{self.largest:g}."
            )
        inside = self.lengths < end
        edges = np.concatenate([[0.0], self.lengths[inside], [end]])
        return float(np.diff(edges) @ np.concatenate([[1.0], self.survival[inside]]))


def kaplan_meier(lengths: Any, censored: Any, weights: Any = None) -> Survival:
    """The product-limit estimate (Kaplan & Meier 1958): S(t) = Π over ends at or before t of (1 − ended / at risk).

    A thought cut off at t counts as at risk at t: it is known to be at least so long.

    Args:
        lengths: tokens thought, ``[rows]``, not negative.
        censored: bool ``[rows]``, true where the thought was cut off and not ended.
        weights: how often each row counts, ``[rows]``; once by default.

    Raises:
        DataError: bad input.
    """
    time, cut = finite("lengths", lengths), np.asarray(finite("censored", censored), dtype=bool)
    if len(cut) != len(time) or time.min() < 0:
        raise DataError(
            f"There are {len(time)} lengths, the least {time.min():g}, and {len(cut)} marks of censoring; give one "
            "mark for each length, and no negative length."
        )
    weight = np.ones(len(time)) if weights is None else finite("weights", weights, rows=len(time))
    return _product_limit(*_sorted(time, cut), weight)


def _sorted(time: Floats, cut: Any) -> tuple[Floats, Any, Any]:
    """Distinct lengths ascending, the place of each row among them, and whether each row ended."""
    distinct, place = np.unique(time, return_inverse=True)
    return distinct, place, ~cut


def _product_limit(distinct: Floats, place: Any, ended: Any, weight: Floats) -> Survival:
    size = len(distinct)
    leaving = np.bincount(place, weight, size)
    at_risk = np.cumsum(leaving[::-1])[::-1]
    ends = np.bincount(place, weight * ended, size)
    event = ends > 0
    # equal counts give exactly zero, so that the curve of a complete sample reaches it
    curve = np.cumprod(1 - ends[event] / at_risk[event], dtype=np.float64)
    return Survival(distinct[event], np.asarray(curve), float(distinct[leaving > 0][-1]))


def survival_summary(
    lengths: Any,
    censored: Any,
    problems: Any = None,
    limit: float | None = None,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Restricted mean, median and share ended of thinking lengths, with bootstrap intervals over problems.

    Args:
        lengths, censored: as :func:`kaplan_meier`.
        problems: the problem of each row; rollouts of one are drawn together (Efron 1981). None: every row its own.
        limit: of the restricted mean, in tokens; by default the greatest length seen. Set it where runs are compared:
            the means of both must be up to the same length.
        level: of the intervals.

    Returns:
        ``rows``, ``problems``, ``ended``, ``mean``, ``median``, ``limit``, and ``…/low``, ``…/high`` of the first three
        measures. A median, or a bound of it, that was not reached is infinity.

    Raises:
        DataError: bad input, no replicates, fewer than two problems, or a limit beyond what was watched.
    """
    if replicates < 1:
        raise DataError(f"replicates is {replicates}; a bootstrap takes at least 1.")
    curve = kaplan_meier(lengths, censored)
    time, cut = finite("lengths", lengths), np.asarray(censored, dtype=bool)
    owner = problems_of(problems, len(time))
    size = int(owner.max()) + 1
    if size < 2:
        raise DataError("An interval over problems needs two problems or more; all rows belong to one.")
    end = curve.largest if limit is None else float(limit)
    numbers = {"rows": float(len(time)), "problems": float(size), "limit": end}
    estimates = {"ended": float((~cut).mean()), "mean": curve.mean(end), "median": curve.median}

    prepared, random, draws = _sorted(time, cut), np.random.default_rng(seed), np.empty((replicates, 3))
    for i in range(replicates):
        weight = np.bincount(random.integers(size, size=size), minlength=size).astype(np.float64)[owner]
        drawn = _product_limit(*prepared, weight)
        # a resample may miss the longest rows: its curve is then held level up to the common limit
        held = Survival(drawn.lengths, drawn.survival, max(drawn.largest, end))
        draws[i] = weight @ ~cut / weight.sum(), held.mean(end), drawn.median
    # an order statistic, never a mean of two of them: medians may be infinite
    tail = (1 - level) / 2
    bounds = np.quantile(draws, [tail, 1 - tail], axis=0, method="inverted_cdf")
    for column, (name, value) in enumerate(estimates.items()):
        numbers |= {name: value, f"{name}/low": float(bounds[0, column]), f"{name}/high": float(bounds[1, column])}
    return numbers
