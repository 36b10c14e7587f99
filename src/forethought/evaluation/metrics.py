"""Ranking metrics, exact under ties, and what the lists are made of.

With g items above the target and e others at its score, every order of the e + 1 tied items is equally likely, so the
target's rank is uniform on g + 1 … g + e + 1. HR, NDCG and MRR below are the exact means over these ranks: a cut-off
inside the tie counts the share of orders in which the target makes it. With one relevant item, NDCG@K is
1 / log2(rank + 1) up to K (Järvelin & Kekäläinen 2002) and MRR@K is 1 / rank up to K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from forethought.evaluation.ranking import SEEN, Ranks

Floats = npt.NDArray[np.float64]
POPULAR_SHARE = 0.1  # the most popular tenth of the catalogue


def accuracy(ranks: Ranks, ks: Sequence[int] = (5, 10, 20)) -> dict[str, Floats]:
    """Expected HR, NDCG and MRR of each case.

    Returns:
        ``{"hr@5": float64 [cases, 2], …}``; column 0 with seen items removed, column 1 with them kept.
    """
    result: dict[str, Floats] = {}
    for k in ks:
        # No reachable target stands below N, so a longer list changes nothing, and an unreachable one stays a miss.
        gain = 1.0 / np.arange(1, min(k, ranks.num_items) + 1)
        place = np.arange(1, len(gain) + 1)
        result[f"hr@{k}"] = _mean_gain(ranks, np.ones(len(gain)))
        result[f"ndcg@{k}"] = _mean_gain(ranks, 1.0 / np.log2(place + 1))
        result[f"mrr@{k}"] = _mean_gain(ranks, gain)
    return result


def _mean_gain(ranks: Ranks, gain: Floats) -> Floats:
    """Mean of ``gain[rank - 1]`` (0 beyond its end) over the tied ranks: a difference of two running sums."""
    running = np.concatenate([[0.0], np.cumsum(gain)])
    first = np.minimum(ranks.greater, len(gain))
    last = np.minimum(ranks.greater.astype(np.int64) + ranks.ties + 1, len(gain))
    return np.asarray((running[last] - running[first]) / (ranks.ties + 1))


def mean_metrics(ranks: Ranks, ks: Sequence[int] = (5, 10, 20)) -> dict[str, dict[str, float]]:
    """``{"seen_removed": {"hr@5": …}, "seen_kept": {…}}``: means over the cases."""
    values = accuracy(ranks, ks)
    return {
        f"seen_{seen}": {name: float(value[:, column].mean()) for name, value in values.items()}
        for column, seen in enumerate(SEEN)
    }


def list_values(ranks: Ranks, counts: npt.NDArray[np.int64], ks: Sequence[int] = (5, 10, 20)) -> dict[str, Floats]:
    """What each case's lists are made of.

    ``novelty@K`` is the mean self-information -log2 p(i) of the list, in bits, where p is the training popularity with
    one added to each count, so that an item never seen in training has a finite value. ``popularity_share@K`` is the
    share of list entries that belong to the most popular tenth of the catalogue by training count.

    Args:
        ranks: with lists of at least ``max(ks)`` items.
        counts: int64 ``[N + 1]``, ``dataset.item_counts()``.

    Returns:
        ``{"novelty@5": float64 [cases, 2], …}``; NaN for an empty list.
    """
    assert ranks.lists is not None, "rank_targets(top_k=…) keeps the lists"
    information = np.zeros(len(counts))
    information[1:] = -np.log2((counts[1:] + 1) / (counts[1:].sum() + len(counts) - 1))
    popular = np.zeros(len(counts))
    order = np.argsort(-counts[1:], kind="stable") + 1
    popular[order[: math.ceil(POPULAR_SHARE * (len(counts) - 1))]] = 1.0
    result: dict[str, Floats] = {}
    for k in ks:
        lists = ranks.lists[:, :, :k]
        with np.errstate(invalid="ignore"):
            entries = (lists > 0).sum(axis=2)
            result[f"novelty@{k}"] = information[lists].sum(axis=2) / entries
            result[f"popularity_share@{k}"] = popular[lists].sum(axis=2) / entries
    return result


def coverage(ranks: Ranks, k: int) -> Floats:
    """float64 ``[2]``: the share of the catalogue that stands in at least one list of k."""
    assert ranks.lists is not None, "rank_targets(top_k=…) keeps the lists"
    shown = np.zeros((2, ranks.num_items + 1), dtype=bool)
    for column in range(2):
        shown[column, ranks.lists[:, column, :k].ravel()] = True
    return np.asarray(shown[:, 1:].mean(axis=1))


def title(metric: str) -> str:
    """The name to print: ``ndcg@10`` is NDCG@10."""
    name, at, k = metric.partition("@")
    known = {"hr": "HR", "ndcg": "NDCG", "mrr": "MRR", "popularity_share": "Popular"}
    return known.get(name, name.capitalize()) + at + k
