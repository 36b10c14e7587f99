"""What a claim about hidden states is held to: nulls, baselines that read no state, and the ceiling of the data.

A rank correlation between predicted and real thinking lengths says little by itself. Part of it is the length of the
prompt, part is its words, part is that difficulty levels differ, and no predictor can reach 1 where the lengths are
means of a few rollouts. The numbers here stand beside the claim. Rows of one problem always stay together: in folds,
and in permutations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from forethought.errors import DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Folds = list[tuple[Ints, Ints]]

RIDGES = tuple(10.0**power for power in range(-2, 3))
_LEAVES = (5, 10, 20, 40)  # rows at least between two cuts of a prompt's length


def finite(name: str, values: Any, ndim: int = 1, rows: int | None = None) -> Floats:
    """An array or tensor as float64, after a look at its shape and values.

    Args:
        name: what a message calls it.
        values: anything numpy reads; a tensor may be of any float type and on any device.
        ndim: dimensions it must have.
        rows: length that its first dimension must have; None for any.

    Raises:
        DataError: another shape, no rows, NaN or infinity.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().double()  # numpy knows no bfloat16
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim:
        raise DataError(f"{name} must have {ndim} dimensions, but has the shape {array.shape}.")
    if rows is not None and len(array) != rows:
        raise DataError(f"{name} has {len(array)} rows where the states or values beside it have {rows}.")
    if not len(array):
        raise DataError(f"{name} is empty.")
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if bad.any():
        raise DataError(f"{name} holds NaN or infinity, first in row {int(bad.argmax())}; leave such rows out.")
    return array


def problems_of(groups: Any, rows: int) -> Ints:
    """The problem of each row as 0, 1, …; every row its own where ``groups`` is None.

    Args:
        groups: ids of any sortable type ``[rows]``, or None.

    Raises:
        DataError: not one id a row.
    """
    if groups is None:
        return np.arange(rows)
    ids = np.asarray(groups)
    if ids.shape != (rows,):
        raise DataError(f"groups has the shape {ids.shape}; give one problem for each of the {rows} rows.")
    return np.asarray(np.unique(ids, return_inverse=True)[1], dtype=np.int64)


def grouped_folds(groups: Ints, folds: int = 5, seed: int = 0) -> Folds:
    """Split rows into folds by problem, fewer where there are fewer problems.

    Returns:
        ``(training rows, held-out rows)`` of each fold.

    Raises:
        DataError: all rows belong to one problem.
    """
    from sklearn.model_selection import GroupKFold

    problems = len(np.unique(groups))
    if problems < 2:
        raise DataError("All rows belong to one problem, so that nothing can be held out; give two problems or more.")
    splitter = GroupKFold(min(folds, problems), shuffle=True, random_state=seed)
    return [(train, test) for train, test in splitter.split(groups, groups=groups)]


def spearman(a: Floats, b: Floats) -> float:
    """Rank correlation, ties at their mean rank; NaN where either side is constant."""
    from scipy.stats import rankdata

    return pearson(rankdata(a), rankdata(b))


def pearson(a: Floats, b: Floats) -> float:
    """Linear correlation; NaN where either side is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 1e-300 else math.nan


def r2(predictions: Floats, lengths: Floats) -> float:
    """Share of the variance that is explained; NaN where the lengths are constant."""
    rest, total = float(((lengths - predictions) ** 2).sum()), float(((lengths - lengths.mean()) ** 2).sum())
    return 1 - rest / total if total > 0 else math.nan


@dataclass(frozen=True)
class Null:
    """A statistic beside what it is when labels mean nothing.

    Attributes:
        observed: with the real labels.
        mean, high: mean and 95 % quantile over permutations.
        p: share of permutations at least as large, the real labels counted once (one-sided; never zero).
    """

    observed: float
    mean: float
    high: float
    p: float

    @classmethod
    def of(cls, observed: float, draws: Floats) -> Null:
        """From float64 ``[permutations]``; NaN throughout where the statistic is undefined."""
        if math.isnan(observed) or np.isnan(draws).any():
            return cls(observed, math.nan, math.nan, math.nan)
        larger = int((draws >= observed - 1e-12 * abs(observed)).sum())
        return cls(observed, float(draws.mean()), float(np.quantile(draws, 0.95)), (1 + larger) / (1 + len(draws)))


def exchanges(random: np.random.Generator, groups: Ints, number: int, within: Ints | None = None) -> Iterator[Ints]:
    """Random exchanges of labels, int64 ``[rows]`` each: problems of equally many rows swap theirs whole.

    Args:
        random: the generator.
        groups: problem of each row.
        number: how many.
        within: int64 ``[rows]``, such as the level; problems swap with those of the same only.

    Raises:
        DataError: no two problems can swap.
    """
    order = np.argsort(groups, kind="stable")
    blocks = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    alike: dict[tuple[int, int], list[Ints]] = {}
    for block in blocks:
        alike.setdefault((len(block), 0 if within is None else int(within[block[0]])), []).append(block)
    if max(map(len, alike.values())) < 2:
        raise DataError("No two problems have equally many rows, so that labels cannot be permuted; give one row each.")
    rooms = [np.stack(same) for same in alike.values()]
    for _ in range(number):
        result = np.arange(len(groups))
        for room in rooms:
            result[room] = room[random.permutation(len(room))]
        yield result


def permutation_null(
    statistic: Callable[[Floats], float],
    labels: Any,
    groups: Any = None,
    within: Ints | None = None,
    permutations: int = 200,
    seed: int = 0,
) -> Null:
    """Hold a statistic to what it is when labels are exchanged between problems.

    Args:
        statistic: of float64 ``[rows]`` labels, such as ``lambda y: spearman(predictions, y)``; to count what fitting
            alone can find, let it fit a probe to the labels that it is given.
        labels: float ``[rows]``.
        groups, within: as :func:`exchanges`.

    Raises:
        DataError: as :func:`finite` and :func:`exchanges`.
    """
    values = finite("labels", labels)
    problems, random = problems_of(groups, len(values)), np.random.default_rng(seed)
    draws = [statistic(values[moved]) for moved in exchanges(random, problems, permutations, within)]
    return Null.of(statistic(values), np.array(draws))


def within_level(predictions: Any, lengths: Any, levels: Any) -> tuple[float, dict[int, float]]:
    """Spearman inside each difficulty level: what is left once "the level is decodable" is taken away.

    Args:
        predictions, lengths: float ``[rows]``.
        levels: int ``[rows]``.

    Returns:
        The mean over levels weighted by their rows, and each level's own; levels of fewer than three rows, or with
        nothing to rank, are left out, and NaN is the mean of none.

    Raises:
        DataError: bad input.
    """
    guess = finite("predictions", predictions)
    real, level = finite("lengths", lengths, rows=len(guess)), finite("levels", levels, rows=len(guess))
    found, sizes = {}, {}
    for value in np.unique(level):
        rows = level == value
        rho = spearman(guess[rows], real[rows]) if rows.sum() > 2 else math.nan
        if not math.isnan(rho):
            found[int(value)], sizes[int(value)] = rho, int(rows.sum())
    total = sum(sizes.values())
    return (sum(found[k] * sizes[k] for k in found) / total if total else math.nan), found


@dataclass(frozen=True)
class SplitHalf:
    """How far rollout means can be predicted at all.

    Attributes:
        half: correlation of the means of two random halves of the rollouts.
        reliability: that of means over all rollouts, by Spearman-Brown; the most R² that a perfect predictor reaches.
        ceiling: its square root, the most correlation.
    """

    half: float
    reliability: float
    ceiling: float


def split_half(rollouts: Any, splits: int = 50, seed: int = 0, ranks: bool = False) -> SplitHalf:
    """Split-half reliability of mean lengths.

    Args:
        rollouts: float ``[problems, r]``, lengths of r ≥ 2 rollouts of each problem.
        splits: random halvings, averaged.
        ranks: correlate ranks (the ceiling beside a Spearman) instead of values (beside R²). The correction is exact
            for values and close for ranks.

    Sources: Spearman 1910, Brown 1910: ``k ρ / (1 + (k − 1) ρ)`` with k = r / (size of a half).

    Raises:
        DataError: fewer than two rollouts, fewer than three problems, or bad values.
    """
    lengths = finite("rollouts", rollouts, ndim=2)
    size = lengths.shape[1] // 2
    if size < 1 or len(lengths) < 3:
        raise DataError(
            f"Rollouts of the shape {lengths.shape} have no halves; give 3 problems and 2 rollouts or more."
        )
    random, correlate = np.random.default_rng(seed), spearman if ranks else pearson
    found = []
    for _ in range(splits):
        mixed = random.permuted(lengths, axis=1)
        found.append(correlate(mixed[:, :size].mean(axis=1), mixed[:, size : 2 * size].mean(axis=1)))
    half, k = float(np.mean(found)), lengths.shape[1] / size
    reliability = max(0.0, k * half / (1 + (k - 1) * half)) if not math.isnan(half) else math.nan
    return SplitHalf(half, reliability, math.sqrt(reliability))


def prompt_length_baseline(prompt_lengths: Any, lengths: Any, new: Any, groups: Any = None, seed: int = 0) -> Floats:
    """Lengths of new rows, float64 ``[m]``, from their prompts' lengths alone, along whatever curve goes with those.

    Linear in the length and its logarithm, or means between cuts of the length (a regression tree, which may rise and
    fall): which of them, and how fine, is chosen by cross-validation over the problems to fit on.

    Args:
        prompt_lengths: tokens (or characters) of each prompt to fit on ``[n]``.
        lengths: of their thoughts, float ``[n]``; of a class, 0 and 1.
        new: prompt lengths of the rows to predict ``[m]``.
        groups: the problem of each row to fit on; None: every row its own.
        seed: of the folds.

    Raises:
        DataError: bad input, or one problem only.
    """
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.tree import DecisionTreeRegressor

    real = finite("lengths", lengths)
    known, asked = (
        np.stack([size, np.log1p(np.maximum(size, 0))], axis=1)
        for size in (finite("prompt_lengths", prompt_lengths, rows=len(real)), finite("new", new))
    )
    curves = [LinearRegression(), *(DecisionTreeRegressor(min_samples_leaf=n, random_state=0) for n in _LEAVES)]
    folds = grouped_folds(problems_of(groups, len(real)), seed=seed)
    search = GridSearchCV(Pipeline([("curve", None)]), {"curve": curves}, cv=folds, scoring="neg_mean_squared_error")
    return np.asarray(search.fit(known, real).predict(asked))


def bag_of_tokens_baseline(
    tokens: Sequence[Sequence[int]], lengths: Any, new: Sequence[Sequence[int]], groups: Any = None, seed: int = 0
) -> Floats:
    """Lengths of new rows, float64 ``[m]``, from their prompts' words alone: TF-IDF of token ids, ridge.

    The penalty is chosen by cross-validation over the problems to fit on.

    Args:
        tokens: the ids of each prompt to fit on.
        lengths: of their thoughts, float ``[n]``.
        new: the ids of each prompt to predict.
        groups: the problem of each row to fit on; None: every row its own.
        seed: of the folds.

    Raises:
        DataError: bad input, no tokens at all, or one problem only.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    real = finite("lengths", lengths)
    if len(tokens) != len(real) or not any(len(row) for row in tokens):
        raise DataError(f"There are token ids of {len(tokens)} prompts for {len(real)} lengths; give those of each.")
    known, asked = ([[str(int(token)) for token in row] for row in rows] for rows in (tokens, new))
    # an analyzer that changes nothing: the tokenizer has done the work
    model = make_pipeline(TfidfVectorizer(analyzer=list, sublinear_tf=True), Ridge())
    folds = grouped_folds(problems_of(groups, len(real)), seed=seed)
    search = GridSearchCV(model, {"ridge__alpha": RIDGES}, cv=folds, scoring="neg_mean_squared_error")
    return np.asarray(search.fit(known, real).predict(asked))


def length_controls(
    predictions: Any,
    lengths: Any,
    groups: Any = None,
    levels: Any = None,
    baselines: Mapping[str, Any] | None = None,
    rollouts: Any = None,
    permutations: int = 200,
    seed: int = 0,
) -> dict[str, float]:
    """Everything that belongs beside "the probe predicts the length", as far as there is data for it.

    Args:
        predictions: the probe's **held-out** predictions, float ``[rows]``.
        lengths: what came, float ``[rows]``.
        groups, levels: of each row; what is None is left out.
        baselines: by name, such as ``bag-of-tokens``, what predictors of no state say of the same rows, float
            ``[rows]``, fitted on the very rows that the probe was fitted on.
        rollouts: float ``[rows, r]``, the lengths that ``lengths`` are means of.

    Returns:
        Names such as ``spearman``, ``spearman/p``, ``within-level/spearman``, ``prompt-length/spearman``,
        ``bag-of-tokens/r2``, ``ceiling/spearman``, in the order of a report.

    Raises:
        DataError: bad input.
    """
    guess = finite("predictions", predictions)
    real = finite("lengths", lengths, rows=len(guess))
    null = permutation_null(lambda y: spearman(guess, y), real, groups, permutations=permutations, seed=seed)
    numbers = {"rows": float(len(real)), "spearman": null.observed, "spearman/null-95": null.high, "spearman/p": null.p}
    numbers |= {"r2": r2(guess, real)}
    if levels is not None:
        numbers["within-level/spearman"], _ = within_level(guess, real, levels)
        level = np.asarray(finite("levels", levels), dtype=np.int64)
        try:
            inside = permutation_null(
                lambda y: within_level(guess, y, level)[0], real, groups, level, permutations=permutations, seed=seed
            )
            numbers["within-level/p"] = inside.p
        except DataError:  # no two problems of a level can swap
            numbers["within-level/p"] = math.nan
    for name, values in (baselines or {}).items():
        guess = finite(name, values, rows=len(real))
        numbers |= {f"{name}/spearman": spearman(guess, real), f"{name}/r2": r2(guess, real)}
    if rollouts is not None:
        finite("rollouts", rollouts, ndim=2, rows=len(real))
        numbers["ceiling/spearman"] = split_half(rollouts, seed=seed, ranks=True).ceiling
        numbers["ceiling/r2"] = split_half(rollouts, seed=seed).reliability
    return numbers
