"""What progress can be told without reading a state: a constant, the token's index, the last few tokens.

A progress probe is worth what it adds to these. Each has ``fit`` on whole thoughts and ``predict`` for others, and
:func:`~forethought.instruments.progress.progress_scores` judges them as it judges the probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forethought.errors import DataError
from forethought.instruments.controls import Floats, Ints, finite
from forethought.instruments.progress import progress_labels


def _lengths(lengths: Any) -> Ints:
    found = finite("lengths", lengths).astype(np.int64)
    if found.min() < 1:
        raise DataError(f"A thought is {found.min()} tokens long; each has one or more.")
    return found


@dataclass(frozen=True)
class ConstantBaseline:
    """The mean label, a little above ½, at every token."""

    value: float

    @classmethod
    def fit(cls, lengths: Any) -> ConstantBaseline:
        """From the lengths of thoughts, int ``[k]``; each counts once. Raises DataError on bad ones."""
        return cls(float(np.mean([progress_labels(length).mean() for length in _lengths(lengths)])))

    def predict(self, length: int) -> Floats:
        """For a thought of ``length`` tokens, float64 ``[length]``."""
        return np.full(length, self.value)


@dataclass(frozen=True)
class PositionBaseline:
    """The mean label of the training thoughts at each token index.

    Attributes:
        table: float64 ``[T]``, for j = 1 … T; the last value stands for every later token.
    """

    table: Floats

    @classmethod
    def fit(cls, lengths: Any, shrinkage: float = 5.0) -> PositionBaseline:
        """Average ``j / N`` over the thoughts that reach token j.

        Args:
            lengths: of thoughts, int ``[k]``.
            shrinkage: the estimate of token j − 1 counts as so many thoughts more at token j: few reach late tokens.

        Raises:
            DataError: bad lengths.
        """
        counts = np.bincount(_lengths(lengths))
        reach = np.cumsum(counts[::-1])[::-1][1:]  # thoughts with N ≥ j
        inverse = np.divide(counts, np.arange(len(counts)), out=np.zeros(len(counts)), where=counts > 0)
        sums = np.arange(1, len(counts)) * np.cumsum(inverse[::-1])[::-1][1:]  # Σ over N ≥ j of j / N
        table, before = np.empty(len(reach)), sums[0] / reach[0]
        for j in range(len(table)):
            before = table[j] = (sums[j] + shrinkage * before) / (reach[j] + shrinkage)
        return cls(table)

    def predict(self, length: int) -> Floats:
        """For a thought of ``length`` tokens, float64 ``[length]``."""
        return np.asarray(self.table[np.minimum(np.arange(length), len(self.table) - 1)])


@dataclass(frozen=True)
class LastTokensBaseline:
    """Progress from which tokens are among the last few, their order forgotten.

    Attributes:
        ids: int64 ``[V]``, token ids that were counted, ascending.
        weight: float64 ``[V]``.
        bias: the intercept.
        window: how many tokens back are seen.
    """

    ids: Ints
    weight: Floats
    bias: float
    window: int

    @classmethod
    def fit(cls, tokens: Sequence[Any], window: int = 4, alpha: float = 1.0) -> LastTokensBaseline:
        """Ridge on counts of the last ``window`` token ids, by conjugate gradients on sparse normal equations.

        Args:
            tokens: int ``[N]`` of each whole thought: the token **read** at the position whose state produced token j,
                so row 1 has the last token of the prompt. With the tokens produced instead, the closing tag would tell
                that the thought is over.
            alpha: L2 penalty, beside squares of weight ``mean length / N``, so that each thought counts once.

        Raises:
            DataError: no thoughts.
        """
        from sklearn.linear_model import Ridge

        if not len(tokens):
            raise DataError("There are no thoughts to fit progress to.")
        sequences = [np.asarray(thought, dtype=np.int64) for thought in tokens]
        ids = np.unique(np.concatenate(sequences))
        lengths = _lengths([len(thought) for thought in sequences])
        labels = np.concatenate([progress_labels(length) for length in lengths])
        weights = np.repeat(lengths.mean() / lengths, lengths)
        fitted = Ridge(alpha=alpha, solver="sparse_cg", tol=1e-8).fit(
            _counts(sequences, ids, window), labels, sample_weight=weights
        )
        return cls(ids, np.asarray(fitted.coef_), float(fitted.intercept_), window)

    def predict(self, tokens: Any) -> Floats:
        """For a thought of which ``tokens`` were read, int ``[N]``, float64 ``[N]``; unknown tokens say nothing."""
        return np.asarray(
            _counts([np.asarray(tokens, dtype=np.int64)], self.ids, self.window) @ self.weight + self.bias
        )


def _counts(sequences: Sequence[Ints], ids: Ints, window: int) -> Any:
    """How often each id is among the last ``window`` tokens, sparse ``[Σ N, V]``; never across two thoughts."""
    from scipy.sparse import coo_array

    rows, columns, start = [], [], 0
    for tokens in sequences:
        place = np.minimum(np.searchsorted(ids, tokens), len(ids) - 1)
        known = np.flatnonzero(ids[place] == tokens)
        for back in range(window):
            inside = known[known + back < len(tokens)]
            rows.append(start + inside + back)
            columns.append(place[inside])
        start += len(tokens)
    row, column = np.concatenate(rows), np.concatenate(columns)
    return coo_array((np.ones(len(row)), (row, column)), shape=(start, len(ids))).tocsr()
