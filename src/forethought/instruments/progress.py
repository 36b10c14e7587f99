"""How much of a thought is over, and how many tokens are left: the thinking-progress vector (TPV), raw and centred.

A thought of N tokens, the last of which closes it, has N rows: row j = 1 … N is the state that **produced** token j,
and its label is ``j / N`` (Eisenstadt, Zimerman & Wolf 2025). So a list of whole thoughts needs no labels beside it. A
thought that was cut off has no known N and does not belong here; say how many were left out.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forethought.errors import DataError
from forethought.instruments.controls import Floats, finite, problems_of, spearman
from forethought.instruments.probe import conformal_quantile, same_width

RIDGES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
LEAST = 1e-3  # progress below this says no more about the end than this does


def progress_labels(length: int) -> Floats:
    """``j / N`` for j = 1 … N; float64 ``[N]``."""
    return np.arange(1, length + 1) / length


class NormalEquations:
    """The sums that a regression of progress on states needs, in float64, while the states stream by.

    Kept as weighted mean and scatter of ``[h, p]`` and merged as Chan, Golub & LeVeque (1979), so that centring
    subtracts no large numbers. Memory: 8 (d + 1)² bytes, whatever the number of tokens.

    Args:
        width: d.
    """

    def __init__(self, width: int) -> None:
        self.weight = 0.0
        self.mean = np.zeros(width + 1)
        self.scatter = np.zeros((width + 1, width + 1))

    def add(self, states: Any, labels: Any, weight: float = 1.0) -> None:
        """Take in some rows.

        Args:
            states: float ``[m, d]``.
            labels: float ``[m]``, progress.
            weight: of each of these rows; ``1 / N`` lets every thought count once.

        Raises:
            DataError: bad input.
        """
        x = finite("states", states, ndim=2)
        same_width(x, len(self.mean) - 1)
        rows = np.column_stack([x, finite("labels", labels, rows=len(x))])
        mean = rows.mean(axis=0)
        away = rows - mean
        self._merge(weight * len(rows), mean, weight * (away.T @ away))

    def merge(self, other: NormalEquations) -> None:
        """Take in what another has seen."""
        self._merge(other.weight, other.mean, other.scatter)

    def _merge(self, weight: float, mean: Floats, scatter: Floats) -> None:
        total = self.weight + weight
        if not total:
            return
        step = mean - self.mean
        self.scatter += scatter + np.outer(step, step) * (self.weight * weight / total)
        self.mean = self.mean + step * (weight / total)
        self.weight = total

    @classmethod
    def stream(
        cls, thoughts: Iterable[tuple[Any, Hashable]], folds: int = 5, per_thought: bool = True
    ) -> list[NormalEquations]:
        """Sums of whole thoughts in folds, the thoughts of a problem in one.

        Args:
            thoughts: pairs of states float ``[N, d]``, a whole thought, and its problem; read once, one at a time.
            folds: how many; problems go round in the order they appear.
            per_thought: each thought counts once; False, as the TPV paper: each token, so long thoughts count more.

        Raises:
            DataError: no thoughts, or bad states.
        """
        parts: list[NormalEquations] = []
        seen: dict[Hashable, int] = {}
        for states, problem in thoughts:
            x = finite("states", states, ndim=2)
            fold = seen.setdefault(problem, len(seen)) % folds
            if fold >= len(parts):
                parts.append(cls(x.shape[1]))
            parts[fold].add(x, progress_labels(len(x)), 1 / len(x) if per_thought else 1.0)
        if not parts:
            raise DataError("There are no thoughts to fit progress to.")
        return parts


@dataclass(frozen=True)
class ProgressProbe:
    """A linear reading of progress, ``p̂ = θ·h + b``.

    Attributes:
        weight: float64 ``[d]``, θ, in units of progress.
        bias: b; 0 where the fit was raw.
        ridge: ε that the fit added to the diagonal.
    """

    weight: Floats
    bias: float
    ridge: float

    @classmethod
    def fit(cls, parts: Sequence[NormalEquations], centred: bool = True, ridge: float | None = None) -> ProgressProbe:
        """Solve the normal equations, ``θ = (HᵀH + εI)⁻¹ Hᵀp``, over all parts.

        Args:
            parts: sums of disjoint problems, from :meth:`NormalEquations.stream`.
            centred: fit an intercept. The paper's raw fit has none, so that its θ holds the mean state too: part of
                what it does as a steering vector is not about progress.
            ridge: ε; the paper has 1e-10. None: the best of a grid, relative to the mean of the diagonal, by
                cross-validation over the parts; their sums are enough for that, so no state is read again.

        Raises:
            DataError: no rows, progress that never changes, or None as the ridge with a single part.
        """
        whole = _total(parts)
        if whole is None or whole.scatter[-1, -1] <= 0:
            raise DataError("Progress never changes in what is given; give thoughts of two tokens or more.")
        matrix, _ = _normal(whole, centred)
        unit = float(np.trace(matrix)) / len(matrix)
        if ridge is None:
            if len(parts) < 2:
                raise DataError("Choosing the ridge takes thoughts of two problems or more; give some, or the ridge.")
            errors = np.zeros(len(RIDGES))
            for held_out in parts:
                training = _total([part for part in parts if part is not held_out])
                assert training is not None  # two parts or more, none of them empty
                for i, found in enumerate(_solve(training, centred, [unit * value for value in RIDGES])):
                    errors[i] += held_out.weight * found.held_out_error(held_out)
            ridge = unit * RIDGES[int(errors.argmin())]
        return _solve(whole, centred, [ridge])[0]

    def predict(self, states: Any) -> Floats:
        """Progress of float ``[m, d]`` states, float64 ``[m]``; not clipped, as a regression gives it.

        Raises:
            DataError: NaN, or states of another width.
        """
        x = finite("states", states, ndim=2)
        same_width(x, len(self.weight))
        return np.asarray(x @ self.weight + self.bias)

    def held_out_error(self, part: NormalEquations) -> float:
        """Weighted mean squared error on the rows that a part has summed, from its sums alone."""
        combination = np.append(self.weight, -1.0)
        spread = float(combination @ part.scatter @ combination) / part.weight
        return spread + (float(combination @ part.mean) + self.bias) ** 2

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """All of it as tensors and numbers, for safetensors and JSON."""
        return {"weight": torch.from_numpy(self.weight)}, {"bias": self.bias, "ridge": self.ridge}

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], numbers: dict[str, float]) -> ProgressProbe:
        """The probe that :meth:`state` described."""
        return cls(tensors["weight"].double().numpy(), numbers["bias"], numbers["ridge"])


def _total(parts: Sequence[NormalEquations]) -> NormalEquations | None:
    if not parts:
        return None
    whole = NormalEquations(len(parts[0].mean) - 1)
    for part in parts:
        whole.merge(part)
    return whole


def _normal(sums: NormalEquations, centred: bool) -> tuple[Floats, Floats]:
    """HᵀH and Hᵀp, about the means or about zero."""
    moments = sums.scatter if centred else sums.scatter + sums.weight * np.outer(sums.mean, sums.mean)
    return moments[:-1, :-1], moments[:-1, -1]


def _solve(sums: NormalEquations, centred: bool, ridges: Sequence[float]) -> list[ProgressProbe]:
    matrix, target = _normal(sums, centred)
    values, vectors = np.linalg.eigh(matrix)
    turned, found = vectors.T @ target, []
    for ridge in ridges:
        weight = vectors @ (turned / np.maximum(np.maximum(values, 0) + ridge, 1e-300))
        bias = float(sums.mean[-1] - sums.mean[:-1] @ weight) if centred else 0.0
        found.append(ProgressProbe(weight, bias, float(ridge)))
    return found


def smooth(values: Any, beta: float = 0.1) -> Floats:
    """Exponential smoothing in time, ``s_t = β p̂_t + (1 − β) s_{t−1}``, from the first value on.

    Of one thought at a time, in the order of its tokens, and of nothing else: the figure that the TPV code draws
    smooths across tokens of many thoughts sorted by their true progress, which no one has while a thought goes on.

    Args:
        values: float ``[N]``.
        beta: 0 < β ≤ 1; the TPV code has 0.1. 1 leaves the values alone.

    Raises:
        DataError: bad values, or a β outside its range.
    """
    from scipy.signal import lfilter

    raw = finite("values", values)
    if not 0 < beta <= 1:
        raise DataError(f"The smoothing factor is {beta}; it must be above 0 and at most 1.")
    return np.asarray(lfilter([beta], [1.0, beta - 1.0], raw, zi=[(1 - beta) * raw[0]])[0])


def monotone(values: Any) -> Floats:
    """The running maximum of one thought's progress: a bar that never goes back; raises as :func:`finite`."""
    return np.asarray(np.maximum.accumulate(finite("values", values)))


@dataclass(frozen=True)
class IsotonicMap:
    """A rising map from predicted to true progress, put behind a probe that is off in scale or bent.

    Attributes:
        knots: float64 ``[k]``, predicted progress, ascending.
        values: float64 ``[k]``, true progress there; linear between, constant beyond.
    """

    knots: Floats
    values: Floats

    @classmethod
    def fit(cls, predictions: Sequence[Any]) -> IsotonicMap:
        """Least squares over all rising maps, each thought counting once.

        Args:
            predictions: float ``[N]`` of each whole thought, held out from the probe's fit.

        Raises:
            DataError: no thoughts, or NaN.
        """
        from sklearn.isotonic import IsotonicRegression

        guesses = _thoughts(predictions)
        labels, weights = (np.concatenate(x) for x in zip(*[_rows(len(guess)) for guess in guesses], strict=True))
        fitted = IsotonicRegression().fit(np.concatenate(guesses), labels, sample_weight=weights)
        return cls(np.asarray(fitted.X_thresholds_), np.asarray(fitted.y_thresholds_))

    def __call__(self, values: Any) -> Floats:
        """Map predictions of any thought, float ``[N]``; raises as :func:`finite`."""
        return np.asarray(np.interp(finite("values", values), self.knots, self.values))


@dataclass(frozen=True)
class Eta:
    """Tokens that are left, with an interval calibrated on thoughts that the probe has not seen.

    Attributes:
        edges: float64 ``[bins − 1]``, ascending, between bins of predicted progress.
        low, high: float64 ``[bins]``, how far the logarithm of the whole length lies from that of ``j / p̂``.
        level: of the interval.
    """

    edges: Floats
    low: Floats
    high: Floats
    level: float

    @classmethod
    def fit(cls, predictions: Sequence[Any], problems: Any = None, level: float = 0.9, bins: int = 10) -> Eta:
        """Conformal intervals of the length in bins of predicted progress.

        A bin covers ``level`` of the tokens that fall in it, each problem counting once; where it holds too few
        problems to know, the interval of all bins together stands in.

        Args:
            predictions: float ``[N]`` of each whole thought, held out from the probe's fit.
            problems: of each thought; None: every thought its own.

        Raises:
            DataError: bad input, or too few problems for the level.
        """
        guesses = _thoughts(predictions)
        owner = np.repeat(problems_of(problems, len(guesses)), [len(guess) for guess in guesses])
        flat = np.concatenate(guesses)
        score = np.concatenate([np.log(len(guess) / _length(guess, np.arange(1, len(guess) + 1))) for guess in guesses])
        edges = np.unique(np.quantile(flat, np.linspace(0, 1, bins + 1)[1:-1]))
        place, reach = np.searchsorted(edges, flat, side="right"), (1 + level) / 2
        rooms = [np.ones(len(flat), dtype=bool), *(place == b for b in range(len(edges) + 1))]
        # the least and the greatest that a new problem exceeds with half of what the level leaves
        high = np.array(
            [conformal_quantile(score[room], owner[room], reach) if room.any() else np.inf for room in rooms]
        )
        low = np.array(
            [-conformal_quantile(-score[room], owner[room], reach) if room.any() else -np.inf for room in rooms]
        )
        if not np.isfinite(high[0] - low[0]):
            needed = int(np.ceil((1 + level) / (1 - level) - 1e-9))
            raise DataError(f"An interval of {100 * level:g} % needs thoughts of {needed} problems; there are fewer.")
        known = np.isfinite(high[1:]) & np.isfinite(low[1:])
        return cls(edges, np.where(known, low[1:], low[0]), np.where(known, high[1:], high[0]), level)

    def remaining(self, progress: Any, position: Any) -> tuple[Floats, Floats, Floats]:
        """Tokens left, ``j (1 − p̂) / p̂``, and the lower and upper end of its interval; float64 ``[m]`` each.

        Args:
            progress: float ``[m]``, predicted; at or below 0 it is taken for 0.001, above 1 for 1.
            position: j, tokens produced so far ``[m]``, the one whose state gave the progress included.

        Raises:
            DataError: bad input.
        """
        guess = finite("progress", progress)
        j = finite("position", position, rows=len(guess))
        whole, place = _length(guess, j), np.searchsorted(self.edges, guess, side="right")
        left = [np.maximum(whole * np.exp(shift) - j, 0) for shift in (0.0, self.low[place], self.high[place])]
        return left[0], left[1], left[2]


def progress_scores(predictions: Sequence[Any]) -> dict[str, float]:
    """What to say of any predictor of progress, baselines too.

    Args:
        predictions: float ``[N]`` of each whole thought, none of them seen in the fit.

    Returns:
        ``mse`` where each thought counts once, and ``mse-token`` where each token does (long thoughts rule it);
        ``rising``, the share of steps that do not fall; ``order``, the mean Spearman of progress with time in a thought
        (0 for one that is constant); and at 25, 50 and 75 % of a thought ``eta-25`` …, the median error of the tokens
        left, and ``eta-25-relative`` …, the same as a share of the thought's length. A constant ½ has an mse of 1/12.

    Raises:
        DataError: no thoughts, or NaN.
    """
    guesses = _thoughts(predictions)
    squares = [(guess - progress_labels(len(guess))) ** 2 for guess in guesses]
    steps = np.concatenate([np.diff(guess) for guess in guesses])
    orders = [spearman(guess, progress_labels(len(guess))) for guess in guesses if len(guess) > 1]
    numbers = {
        "thoughts": float(len(guesses)),
        "mse": float(np.mean([square.mean() for square in squares])),
        "mse-token": float(np.concatenate(squares).mean()),
        "rising": float((steps >= 0).mean()) if len(steps) else 1.0,
        "order": float(np.mean(np.nan_to_num(orders))) if orders else 0.0,
    }
    for share in (25, 50, 75):
        at = [(guess, -(-share * len(guess) // 100)) for guess in guesses]  # rounded up, so never before the first
        gaps = np.array([abs(_length(guess[j - 1 : j], np.array([j]))[0] - len(guess)) for guess, j in at])
        numbers[f"eta-{share}"] = float(np.median(gaps))
        numbers[f"eta-{share}-relative"] = float(np.median(gaps / [len(guess) for guess in guesses]))
    return numbers


def _length(progress: Floats, position: Any) -> Floats:
    """The whole length that progress p at token j foretells, j / p."""
    return np.asarray(position / np.clip(progress, LEAST, 1.0))


def _rows(length: int) -> tuple[Floats, Floats]:
    """Labels of a thought's rows, and weights with which it counts once."""
    return progress_labels(length), np.full(length, 1 / length)


def _thoughts(predictions: Sequence[Any]) -> list[Floats]:
    if not len(predictions):
        raise DataError("There are no thoughts to look at.")
    return [finite(f"thought {i}", values) for i, values in enumerate(predictions)]
