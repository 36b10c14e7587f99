"""Directions in state space along which difficulty or length lies, and what such directions look like by chance.

Notation of the RSP paper: ``mu_k`` is the mean state of level k, and ``r_k = mu_k − mu_1`` its difference from the
lowest level, in the units of the states. One site at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from forethought.errors import DataError
from forethought.instruments.controls import Floats, Ints, Null, exchanges, finite, problems_of


@dataclass(frozen=True)
class LevelDirections:
    """Mean states of difficulty levels, and their differences from the lowest.

    Attributes:
        levels: int64 ``[G]``, ascending.
        counts: int64 ``[G]``, rows of each.
        means: float64 ``[G, d]``.
    """

    levels: Ints
    counts: Ints
    means: Floats

    @classmethod
    def fit(cls, states: Any, levels: Any) -> LevelDirections:
        """Average states by level.

        Args:
            states: float ``[n, d]``.
            levels: int ``[n]``. Leave rows of unknown level out; the RSP code counts them as level 3.

        Raises:
            DataError: bad input, or fewer than two levels.
        """
        level = finite("levels", levels)
        x = finite("states", states, ndim=2, rows=len(level))
        names, place = np.unique(level, return_inverse=True)
        return cls(names.astype(np.int64), np.bincount(place), _means(x, place, len(names)))

    def __post_init__(self) -> None:
        if len(self.levels) < 2:
            raise DataError("A direction between levels needs rows of two levels or more; there is one level.")

    @property
    def differences(self) -> Floats:
        """``r_k = mu_k − mu_1`` of every level but the lowest, float64 ``[G − 1, d]``."""
        return np.asarray(self.means[1:] - self.means[0])

    @property
    def norms(self) -> Floats:
        """‖r_k‖, float64 ``[G − 1]``."""
        return np.asarray(np.linalg.norm(self.differences, axis=1))

    @property
    def cosines(self) -> Floats:
        """Between the differences, float64 ``[G − 1, G − 1]``; NaN where one has no length (a constant site)."""
        return _cosines(self.differences)

    def mean_cosine(self, diagonal: bool = False) -> float:
        """Mean over pairs of levels; with the diagonal of ones, as the RSP code reports it, if asked."""
        return _mean_cosine(self.differences, diagonal)

    def vector(self, weights: Literal["equal", "counts"] | Sequence[float] = "equal") -> Floats:
        """The steering vector: the mean of the differences, not normalised; float64 ``[d]``.

        Args:
            weights: ``equal`` (RSP), ``counts`` (rows of each level), or one number for each level but the lowest.

        Raises:
            DataError: another number of weights, or a sum of zero.
        """
        size = len(self.levels) - 1
        if isinstance(weights, str):
            chosen = np.ones(size) if weights == "equal" else self.counts[1:].astype(np.float64)
        else:
            chosen = finite("weights", weights, rows=size)
        if chosen.sum() == 0:
            raise DataError("The weights of the levels add up to zero; give at least one.")
        return np.asarray(chosen @ self.differences / chosen.sum())


def null_cosine(n1: float, ni: float, nj: float) -> float:
    """The cosine of two difference vectors where levels mean nothing.

    Both subtract the same mean of n1 rows, so that they agree by chance:
    ``(1/n1) / sqrt((1/n1 + 1/ni)(1/n1 + 1/nj))``, which is ½ for equal levels and near 1 for a small first one. It
    holds for exchangeable rows of any covariance that many dimensions share (the trace of it cancels).

    Args:
        n1: rows of the lowest level.
        ni, nj: rows of two others.
    """
    return (1 / n1) / math.sqrt((1 / n1 + 1 / ni) * (1 / n1 + 1 / nj))


def mean_null_cosine(counts: Sequence[int]) -> float:
    """:func:`null_cosine` averaged over pairs of levels, as :meth:`LevelDirections.mean_cosine` does.

    Args:
        counts: rows of each level, the lowest first, three levels or more.
    """
    first, *others = counts
    pairs = [null_cosine(first, a, b) for i, a in enumerate(others) for b in others[i + 1 :]]
    return float(np.mean(pairs))


@dataclass(frozen=True)
class DirectionNulls:
    """Level directions beside those of permuted levels.

    Attributes:
        mean_cosine: of the off-diagonal mean; NaN where there are two levels only.
        norms: of ‖r_k‖ for each level but the lowest.
        expected_cosine: what the formula gives for these numbers of rows.
    """

    mean_cosine: Null
    norms: list[Null]
    expected_cosine: float


def direction_nulls(
    states: Any, levels: Any, groups: Any = None, permutations: int = 200, seed: int = 0
) -> DirectionNulls:
    """Hold cosines and norms to what they are when levels are exchanged between problems.

    Args:
        states: float ``[n, d]``.
        levels: int ``[n]``.
        groups: the problem of each row; None: every row its own.

    Raises:
        DataError: as :meth:`LevelDirections.fit`, or no two problems can swap levels.
    """
    found = LevelDirections.fit(states, levels)
    # differences do not change with the origin, and near it they lose fewer digits
    x = finite("states", states, ndim=2)
    x = x - x.mean(axis=0)
    place, size = np.searchsorted(found.levels, finite("levels", levels)), len(found.levels)
    problems, random = problems_of(groups, len(x)), np.random.default_rng(seed)
    cosines, norms = np.empty(permutations), np.empty((permutations, size - 1))
    for i, moved in enumerate(exchanges(random, problems, permutations)):
        means = _means(x, place[moved], size)
        differences = means[1:] - means[0]
        cosines[i], norms[i] = _mean_cosine(differences), np.linalg.norm(differences, axis=1)
    return DirectionNulls(
        Null.of(found.mean_cosine(), cosines),
        [Null.of(float(norm), draws) for norm, draws in zip(found.norms, norms.T, strict=True)],
        mean_null_cosine(found.counts.tolist()) if size > 2 else math.nan,
    )


def regression_direction(
    states: Any, lengths: Any, kind: Literal["weight", "pattern"] = "pattern", alpha: float | None = None
) -> Floats:
    """The change of state that goes with one token more; float64 ``[d]``.

    Args:
        states: float ``[n, d]``.
        lengths: float ``[n]``.
        kind: ``weight`` is the smallest change that raises a ridge probe's prediction by one token, ``w / ‖w‖²``;
            ``pattern`` is the slope of states on lengths, ``cov(x, y) / var(y)``, how states really differ (Haufe et
            al. 2014: weights also hold what cancels noise, patterns do not).
        alpha: of the ridge, on the raw centred states; None: scikit-learn's ``RidgeCV`` over a grid.

    Raises:
        DataError: bad input, constant lengths, or, for ``weight``, states that tell nothing of them.
    """
    y = finite("lengths", lengths)
    x = finite("states", states, ndim=2, rows=len(y))
    if np.ptp(y) == 0:
        raise DataError("All lengths are equal, so that no direction goes with them.")
    if kind == "pattern":
        away = y - y.mean()
        return np.asarray(away @ (x - x.mean(axis=0)) / (away @ away))
    weight = _ridge(x, y, alpha)
    if not weight.any():
        raise DataError(
            "The states tell nothing of the lengths, so that no direction goes with them; read another site."
        )
    return np.asarray(weight / (weight @ weight))


@dataclass(frozen=True)
class HeldOutProjection:
    """What a probe says of the difference between levels, on questions that neither has seen.

    Attributes:
        predicted: ``w · r`` in tokens, mean over folds: w from the training folds, r the mean over levels of
            ``mu_k − mu_1`` on the held-out one. No intercept.
        actual: the same difference of mean lengths on the held-out questions, in tokens.
        folds: ``w · r`` of each fold.
    """

    predicted: float
    actual: float
    folds: tuple[float, ...]


def held_out_projection(
    states: Any,
    lengths: Any,
    levels: Any,
    groups: Any = None,
    folds: int = 5,
    alpha: float | None = None,
    seed: int = 0,
) -> HeldOutProjection:
    """Cross-validated ``w · r``.

    On the questions of the fit, ``w · r`` is the probe's mean prediction for the higher levels minus that for the
    lowest: positive wherever harder questions take longer, even where the states are noise. Only its size on held-out
    questions, beside the actual difference, tells whether the states carry it.

    Args:
        states: float ``[n, d]``.
        lengths: float ``[n]``.
        levels: int ``[n]``.
        groups: the problem of each row; None: every row its own.
        folds: at most as many as the rarest level has problems.
        alpha: of the ridge on raw centred states; None: ``RidgeCV`` over a grid in each fold.

    Raises:
        DataError: bad input, or a level with fewer than two problems.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    y, level = finite("lengths", lengths), finite("levels", levels)
    x = finite("states", states, ndim=2, rows=len(y))
    finite("levels", level, rows=len(y))
    problems, names = problems_of(groups, len(y)), LevelDirections.fit(x, level).levels
    rarest = min(len(np.unique(problems[level == name])) for name in names)
    if rarest < 2:
        raise DataError("A level has one problem only, so that it cannot be held out; give two of each level or more.")
    splitter, predicted, actual = StratifiedGroupKFold(min(folds, rarest), shuffle=True, random_state=seed), [], []
    for train, test in splitter.split(x, level, problems):
        if len(np.unique(level[test])) < len(names):
            continue  # folds by problem cannot always hold every level
        weight = _ridge(x[train], y[train], alpha)
        place = np.searchsorted(names, level[test])
        means, real = _means(x[test], place, len(names)), _means(y[test, None], place, len(names))[:, 0]
        predicted.append(float(weight @ (means[1:] - means[0]).mean(axis=0)))
        actual.append(float((real[1:] - real[0]).mean()))
    if not predicted:
        raise DataError("No fold holds problems of every level; give more problems, or fewer folds.")
    return HeldOutProjection(float(np.mean(predicted)), float(np.mean(actual)), tuple(predicted))


def random_directions(like: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Controls for steering: directions drawn evenly from the sphere, as long as the one they stand beside.

    Those of several sites are turned alike: a stream that is steered at all of them receives as much as from the real
    ones, site by site and in sum.

    Args:
        like: float ``[…, d]``, the steering vector, or those of several sites.
        number: of draws.
        generator: on the CPU.

    Returns:
        ``[number, …, d]`` of the same type and device; every row along d has the norm of its counterpart, and two rows
        have its cosine.
    """
    rows = like.detach().cpu().double().reshape(-1, like.shape[-1])
    frame, inside = torch.linalg.qr(rows.T)  # [d, k] orthonormal, and the rows in it
    inside = inside * torch.where(inside.diagonal() < 0, -1.0, 1.0)[:, None]
    drawn = torch.randn(number, *frame.shape, generator=generator, dtype=torch.float64)
    turned, scale = torch.linalg.qr(drawn)
    turned = turned * scale.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # or they would not be drawn evenly
    found: Tensor = (turned @ inside).mT.reshape(number, *like.shape)
    return found.to(like)


def _means(x: Floats, place: Ints, size: int) -> Floats:
    member = np.zeros((size, len(x)))
    member[place, np.arange(len(x))] = 1
    return np.asarray(member @ x / member.sum(axis=1, keepdims=True))


def _cosines(differences: Floats) -> Floats:
    norms = np.linalg.norm(differences, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(differences @ differences.T / np.outer(norms, norms))


def _mean_cosine(differences: Floats, diagonal: bool = False) -> float:
    cosines, size = _cosines(differences), len(differences)
    if diagonal:
        return float(cosines.mean())
    return float((cosines.sum() - np.trace(cosines)) / (size * (size - 1))) if size > 1 else math.nan


def _ridge(x: Floats, y: Floats, alpha: float | None) -> Floats:
    from sklearn.linear_model import Ridge, RidgeCV

    if alpha is None:
        # in the units of the states: from nothing to far more than the sum of squares of all columns
        total = float(((x - x.mean(axis=0)) ** 2).sum())
        if total == 0:
            return np.zeros(x.shape[1])
        return np.asarray(RidgeCV(alphas=[total * 10.0**power for power in range(-7, 2)]).fit(x, y).coef_)
    return np.asarray(Ridge(alpha=alpha).fit(x, y).coef_)
