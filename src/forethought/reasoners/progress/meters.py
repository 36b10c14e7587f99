"""From a raw reading of progress to what a bar shows: smoothed in time, mapped, never going back, with tokens left.

A meter is fitted on thoughts that its reader has not seen, and does the same to a whole thought at once
(:meth:`Meter.shown`) as to one token after another (:class:`Needle`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forethought.errors import DataError
from forethought.instruments.progress import Eta, IsotonicMap, monotone, progress_labels, smooth

Floats = npt.NDArray[np.float64]
BETAS = (1.0, 0.5, 0.2, 0.1)  # 0.1 is the paper's
LEVELS = (0.9, 0.8, 0.5)
_FOLDS = 5


@dataclass(frozen=True)
class Meter:
    """What stands between a reader and a bar.

    Attributes:
        beta: of the exponential smoothing in time; 1 is none.
        mapping: from smoothed to true progress.
        eta: tokens left, by what is shown.
    """

    beta: float
    mapping: IsotonicMap
    eta: Eta

    @classmethod
    def fit(cls, raw: Sequence[Floats], problems: Any, level: float | None = None) -> tuple[Meter, list[Floats]]:
        """Choose the smoothing, fit the map, calibrate the interval.

        The smoothing is chosen, and the interval calibrated, on values that come from maps fitted to other problems.

        Args:
            raw: readings of whole thoughts that the reader was not fitted on, float ``[N]`` each.
            problems: of each thought, ``[thoughts]``.
            level: of the interval; by default 0.9, or the widest that so few problems can tell.

        Returns:
            The meter, and what it would have shown of each thought, the map fitted to other problems.

        Raises:
            DataError: too few problems for the level.
        """
        problems = np.asarray(problems)
        names = np.unique(problems)
        folds = [names[fold::_FOLDS] for fold in range(min(_FOLDS, len(names)))]
        if len(folds) < 2:
            raise DataError("A meter is fitted on finished thoughts about two problems or more; generate more.")
        best: tuple[float, float, list[Floats]] | None = None
        for beta in BETAS:
            smoothed = [smooth(values, beta) for values in raw]
            shown: list[Floats] = [np.empty(0)] * len(raw)
            for fold in folds:
                held = np.isin(problems, fold)
                mapping = IsotonicMap.fit([smoothed[i] for i in np.flatnonzero(~held)])
                for i in np.flatnonzero(held):
                    shown[i] = monotone(mapping(smoothed[i]))
            error = float(thought_errors(shown).mean())
            if best is None or error < best[0]:
                best = (error, beta, shown)
        assert best is not None
        _, beta, shown = best
        level = level or next((one for one in LEVELS if _needed(one) <= len(names)), LEVELS[0])
        eta = Eta.fit(shown, problems, level)
        return cls(beta, IsotonicMap.fit([smooth(values, beta) for values in raw]), eta), shown

    def shown(self, raw: Any) -> Floats:
        """What the bar shows of a whole thought, float64 ``[N]``, in [0, 1] and never falling."""
        return monotone(self.mapping(smooth(raw, self.beta)))

    def state(self, name: str) -> tuple[dict[str, Tensor], dict[str, float]]:
        """All of it as tensors and numbers, their names beginning with ``name``."""
        tensors = {
            "knots": self.mapping.knots, "values": self.mapping.values,
            "edges": self.eta.edges, "low": self.eta.low, "high": self.eta.high,
        }  # fmt: skip
        return (
            {f"{name}.{key}": torch.from_numpy(np.asarray(value, dtype=np.float64)) for key, value in tensors.items()},
            {f"{name}.beta": self.beta, f"{name}.level": self.eta.level},
        )

    @classmethod
    def from_state(cls, name: str, tensors: Any, numbers: Any) -> Meter:
        """The meter that :meth:`state` described."""
        knots, values, edges, low, high = (
            tensors[f"{name}.{key}"].double().numpy() for key in ("knots", "values", "edges", "low", "high")
        )
        eta = Eta(edges, low, high, float(numbers[f"{name}.level"]))
        return cls(float(numbers[f"{name}.beta"]), IsotonicMap(knots, values), eta)


@dataclass(frozen=True)
class Reading:
    """What a bar shows after a token.

    Attributes:
        fraction: of the thought that is over, in [0, 1].
        eta: tokens left.
        low, high: ends of its interval.
    """

    fraction: float
    eta: float
    low: float
    high: float


class Needle:
    """A meter over one thought while it goes on; a token costs the same however many there were.

    Args:
        meter: that it belongs to.
        reader: raw progress from the state that produced the newest token, float ``[d]``.
    """

    def __init__(self, meter: Meter, reader: Callable[[Tensor], float]) -> None:
        self.meter, self.reader = meter, reader
        self._smoothed = self._shown = 0.0
        self._position = 0

    def step(self, state: Tensor) -> Reading:
        """One token more, by the state that produced it."""
        raw, beta = self.reader(state), self.meter.beta
        self._smoothed = raw if not self._position else beta * raw + (1 - beta) * self._smoothed
        self._position += 1
        self._shown = max(self._shown, float(self.meter.mapping([self._smoothed])[0]))
        left, low, high = self.meter.eta.remaining([self._shown], [self._position])
        return Reading(self._shown, float(left[0]), float(low[0]), float(high[0]))


def thought_errors(predictions: Sequence[Floats]) -> Floats:
    """The mean squared error of each whole thought, float64 ``[thoughts]``."""
    return np.array([np.mean((values - progress_labels(len(values))) ** 2) for values in predictions])


def problem_means(values: Floats, problems: Any) -> Floats:
    """The mean over the thoughts of each problem, float64 ``[problems]``, in the order of their numbers."""
    _, place = np.unique(problems, return_inverse=True)
    return np.asarray(np.bincount(place, values) / np.bincount(place))


def gain(baseline: Floats, other: Floats, problems: Any, draws: int = 2000) -> tuple[float, float, float]:
    """How much less error ``other`` makes than ``baseline``, with 95 % bounds of a bootstrap over problems.

    Args:
        baseline, other: errors of the same thoughts, float ``[thoughts]``.
        problems: of each thought.
        draws: of the bootstrap.
    """
    less = problem_means(baseline - other, problems)
    means = np.random.default_rng(0).choice(less, (draws, len(less))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(less.mean()), float(low), float(high)


def coverage(meter: Meter, shown: Sequence[Floats], problems: Any) -> float:
    """The share of tokens at which the interval held the tokens left, each problem counting once."""
    hits = []
    for values in shown:
        position = np.arange(1, len(values) + 1)
        _, low, high = meter.eta.remaining(values, position)
        left = len(values) - position
        hits.append(float(((low <= left + 1e-9) & (left <= high + 1e-9)).mean()))
    return float(problem_means(np.array(hits), problems).mean())


def _needed(level: float) -> int:
    return int(np.ceil((1 + level) / (1 - level) - 1e-9))
