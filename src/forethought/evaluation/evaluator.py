"""One evaluation for every model: metrics with and without seen items, intervals, slices, and what they refer to."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from forethought.atomic import atomic_file
from forethought.data.arguments import check_whole
from forethought.data.dataset import Dataset
from forethought.errors import ArtefactError, DataError
from forethought.evaluation import metrics
from forethought.evaluation.ranking import SEEN, Ranker, Ranks, kind_of, rank_targets
from forethought.evaluation.significance import intervals

FORMAT = "forethought.evaluation"
VERSION = 1
BANDS = 4  # slices cut the cases into quarters

Table = dict[str, dict[str, float]]
Ranges = dict[str, dict[str, tuple[float, float]]]


@dataclass(frozen=True)
class Slice:
    """Part of the cases.

    Attributes:
        by: what the cases are divided by: "history length" or "target popularity".
        band: the bounds in words, such as "5–8 items".
        cases: how many.
        metrics, intervals: as in :class:`Evaluation`.
    """

    by: str
    band: str
    cases: int
    metrics: Table
    intervals: Ranges


@dataclass(frozen=True)
class Evaluation:
    """What a model reached on a split, and all that the numbers refer to.

    Attributes:
        model: its type, as recipes name it; the class of a model that no recipe can name.
        data, fingerprint, protocol, split: what was ranked.
        users, cases: how many were ranked; ``complete`` is false where only some rows of the split were.
        unreachable: cases whose target is in its own history, so that it is a miss once seen items are removed.
        num_items: N.
        ks: cut-offs.
        metrics: ``metrics["seen_removed" | "seen_kept"]["ndcg@10"]``: hr, ndcg, mrr, coverage, novelty (bits),
            popularity_share at each K.
        intervals: 95 % bootstrap intervals over users, for all of these but coverage; empty without bootstrap.
        slices: by history length and by target popularity (training count), quarters of the cases.
        seconds: spent encoding, scoring and counting.
        ranks: where each target stands.
        owners: int64 ``[cases]``, the user row of each case.
    """

    model: str
    data: str
    fingerprint: str
    protocol: str
    split: str
    users: int
    cases: int
    complete: bool
    unreachable: int
    num_items: int
    ks: tuple[int, ...]
    metrics: Table
    intervals: Ranges
    slices: tuple[Slice, ...]
    bootstrap: int
    seed: int
    seconds: float
    ranks: Ranks = field(repr=False, compare=False)
    owners: npt.NDArray[np.int64] = field(repr=False, compare=False)

    def values(self, metric: str, seen: Literal["removed", "kept"]) -> npt.NDArray[np.float64]:
        """float64 ``[cases]``: hr, ndcg or mrr at some K of each case, such as ``values("ndcg@10", "removed")``."""
        k = int(metric.partition("@")[2])
        return metrics.accuracy(self.ranks, [k])[metric][:, SEEN.index(seen)]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the ranks, for JSON."""
        plain = {name: value for name, value in vars(self).items() if name not in ("ranks", "owners", "slices")}
        return {"format": FORMAT, "version": VERSION, **plain, "slices": [vars(part) for part in self.slices]}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``SPLIT.json`` and ``SPLIT-ranks.npy`` (int32 ``[cases, 5]``: user row, greater and ties with seen
        items removed, greater and ties with them kept) into ``folder``."""
        counts = np.stack([self.ranks.greater, self.ranks.ties], axis=2).reshape(len(self.ranks), 4)
        table = np.column_stack([self.owners, counts])
        with atomic_file(Path(folder) / f"{self.split}-ranks.npy") as scratch, scratch.open("wb") as file:
            # plain numbers: nothing in an artefact is pickled, here and where it is read
            np.save(file, table.astype(np.int32), allow_pickle=False)
        with atomic_file(Path(folder) / f"{self.split}.json") as scratch:
            scratch.write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str], split: str = "test") -> Evaluation:
        """Read what :meth:`save` wrote (without the lists).

        Raises:
            ArtefactError: the files are missing, damaged or of another version.
        """
        file = Path(folder) / f"{split}.json"
        if not file.is_file():
            raise ArtefactError(f"{file} is missing; make it with 'forethought evaluate RUN --split {split}'.")
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
            if saved.pop("format") != FORMAT or saved.pop("version") != VERSION:
                raise ArtefactError(f"{file} is no {FORMAT} version {VERSION}; evaluate the run again.")
            table = np.load(Path(folder) / f"{split}-ranks.npy", allow_pickle=False)
            if table.shape != (saved["cases"], 5) or table.dtype != np.int32:
                raise ValueError(f"the ranks are {table.dtype} of shape {table.shape}")
            ranks = Ranks(table[:, [1, 3]].astype(np.int32), table[:, [2, 4]].astype(np.int32), saved["num_items"])
            slices = tuple(Slice(**{**part, "intervals": _ranges(part["intervals"])}) for part in saved.pop("slices"))
            saved["ks"], saved["intervals"] = tuple(saved["ks"]), _ranges(saved["intervals"])
            evaluation = cls(**saved, slices=slices, ranks=ranks, owners=table[:, 0].astype(np.int64))
            _check(evaluation, split)
        except ArtefactError:
            raise
        except Exception as error:  # numpy reads its header as Python, and fails in as many ways
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ArtefactError(f"{file} is damaged ({reason}); evaluate the run again.") from error
        return evaluation


def _check(evaluation: Evaluation, split: str) -> None:
    """Hold what was read to itself: its counts and accuracy to the ranks.

    Raises:
        ValueError: it contradicts itself.
        KeyError, TypeError, AttributeError: something is missing, or of another type.
    """
    ranks, owners = evaluation.ranks, evaluation.owners
    for name, kind in (
        ("model", str), ("data", str), ("fingerprint", str), ("protocol", str), ("complete", bool),
        ("num_items", int), ("bootstrap", int), ("seed", int), ("seconds", (int, float)),
    ):  # fmt: skip
        if not isinstance(getattr(evaluation, name), kind):
            raise TypeError(f"{name} is {getattr(evaluation, name)!r}")
    greater, ties = ranks.greater.astype(np.int64), ranks.ties
    removed = (greater == ranks.num_items) & (ties == 0)
    inside = (greater >= 0) & (ties >= 0) & (removed | (greater + ties < ranks.num_items))
    if owners.min() < 0 or not inside.all():
        raise ValueError(f"a rank lies outside the {ranks.num_items} items")
    for name, found in (
        ("split", split),
        ("users", len(np.unique(owners))),
        ("unreachable", int(ranks.unreachable.sum())),
    ):
        if getattr(evaluation, name) != found:
            raise ValueError(f"{name} is {getattr(evaluation, name)!r} and has to be {found!r}")
    for part in evaluation.slices:
        if not isinstance(part.by, str) or not isinstance(part.band, str):
            raise TypeError(f"a slice is called {part.by!r} {part.band!r}")
    for by in {part.by for part in evaluation.slices}:
        if sum(part.cases for part in evaluation.slices if part.by == by) != evaluation.cases:
            raise ValueError(f"the slices by {by} do not make up the cases")
    for column, means in metrics.mean_metrics(ranks, evaluation.ks).items():
        for name, value in means.items():
            if not math.isclose(evaluation.metrics[column][name], value, abs_tol=1e-9):
                raise ValueError(f"{name} is {evaluation.metrics[column][name]} and the ranks give {value}")
        of_lists = [f"{name}@{k}" for name in ("coverage", "novelty", "popularity_share") for k in evaluation.ks]
        numbers: list[Any] = [evaluation.metrics[column][name] for name in of_lists]
        for part in evaluation.slices:
            numbers += [part.metrics[column][name] for name in means]
            numbers += [bound for name in means if part.intervals for bound in part.intervals[column][name]]
        if not all(isinstance(number, float) for number in numbers):
            raise TypeError("a metric is no number")


def _ranges(saved: dict[str, dict[str, list[float]]]) -> Ranges:
    return {seen: {name: (low, high) for name, (low, high) in table.items()} for seen, table in saved.items()}


def evaluate(
    model: Ranker,
    dataset: Dataset,
    split: Literal["valid", "test"] = "test",
    *,
    max_length: int | None = None,
    batch_size: int = 1024,
    ks: Sequence[int] = (5, 10, 20),
    rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_] | None = None,
    slices: bool = True,
    bootstrap: int = 1000,
    seed: int = 0,
    bfloat16: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Rank every target of a split among all items and say how well it went.

    Args:
        max_length: newest items of a history the model reads; by default, and at most, ``model.config.max_length``.
        ks: cut-offs.
        rows: only these cases: their numbers, or a mask, bool ``[cases]``.
        slices: also by history length and target popularity.
        bootstrap: resamples for the intervals; 0 for none.
        seed: of the resampling.
        progress: called with the number of cases ranked so far.

    Raises:
        DataError: the split has no cases, or another catalogue than the model, or an argument does not fit.
        ScoringError: the model gave scores that cannot be ranked.
    """
    targets = dataset.targets(split)
    if not len(targets):
        where = dataset.path or "The data set"
        raise DataError(f"{where} has no {split} cases to evaluate; prepare it with longer histories or another split.")
    if dataset.num_items != model.config.num_items:
        raise DataError(
            f"The data has {dataset.num_items} items and the model {model.config.num_items}; "
            "evaluate on the data it was trained on."
        )
    if max_length is not None:
        check_whole("max_length", max_length, least=1, most=model.config.max_length)
    if not len(ks):
        raise DataError("ks is empty; give at least one cut-off.")
    for k in ks:
        check_whole("ks", k, least=1)
    check_whole("batch_size", batch_size, least=1)
    check_whole("bootstrap", bootstrap)
    check_whole("seed", seed)
    cases = np.arange(len(targets)) if rows is None else _chosen(rows, len(targets))
    started = time.perf_counter()
    ranks = rank_targets(
        model, targets, max_length=max_length, batch_size=batch_size, rows=cases, top_k=max(ks), bfloat16=bfloat16,
        progress=progress,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    counts, owners = dataset.item_counts(), targets.users[cases]
    accuracy = metrics.accuracy(ranks, ks)
    table, ranges = _summary({**accuracy, **metrics.list_values(ranks, counts, ks)}, owners, bootstrap, seed)
    for k in ks:
        for seen, share in zip(SEEN, metrics.coverage(ranks, k), strict=True):
            table[f"seen_{seen}"][f"coverage@{k}"] = float(share)
    parts: list[Slice] = []
    if slices:
        for by, unit, value in (
            ("history length", "items", targets.lengths[cases]),
            ("target popularity", "training events", counts[targets.items[cases]]),
        ):
            for band, inside in bands(value, unit):
                part = {name: numbers[inside] for name, numbers in accuracy.items()}
                parts.append(Slice(by, band, int(inside.sum()), *_summary(part, owners[inside], bootstrap, seed)))
    return Evaluation(
        model=kind_of(model),
        data=str(dataset.manifest.get("name", "")),
        fingerprint=dataset.fingerprint,
        protocol=dataset.protocol,
        split=split,
        users=len(np.unique(owners)),
        cases=len(cases),
        complete=rows is None,
        unreachable=int(ranks.unreachable.sum()),
        num_items=dataset.num_items,
        ks=tuple(ks),
        metrics=table,
        intervals=ranges,
        slices=tuple(parts),
        bootstrap=bootstrap,
        seed=seed,
        seconds=seconds,
        ranks=ranks,
        owners=owners,
    )


def _chosen(rows: npt.ArrayLike, count: int) -> npt.NDArray[np.int64]:
    """The numbers of the cases that ``rows`` names among ``count``."""
    named = np.asarray(rows)
    if not named.size:
        raise DataError("rows names no case; leave it out for all.")
    if named.dtype == bool and named.shape == (count,):
        return _chosen(np.flatnonzero(named), count)
    if named.ndim != 1 or named.dtype.kind not in "iu" or not (0 <= named.min() <= named.max() < count):
        raise DataError(f"rows are numbers of cases from 0 to {count - 1}, or a mask of all {count}; give such.")
    return named.astype(np.int64)


def _summary(
    values: dict[str, metrics.Floats], owners: npt.NDArray[np.int64], bootstrap: int, seed: int
) -> tuple[Table, Ranges]:
    names = list(values)
    stacked = np.concatenate([values[name] for name in names], axis=1)  # removed and kept side by side
    with np.errstate(invalid="ignore"):
        means = np.nansum(stacked, axis=0) / (~np.isnan(stacked)).sum(axis=0)
    table = {
        f"seen_{seen}": {name: float(means[2 * i + column]) for i, name in enumerate(names)}
        for column, seen in enumerate(SEEN)
    }
    if not bootstrap:
        return table, {}
    bounds = intervals(stacked, owners, bootstrap, seed)
    return table, {
        f"seen_{seen}": {
            name: (float(bounds[2 * i + column, 0]), float(bounds[2 * i + column, 1])) for i, name in enumerate(names)
        }
        for column, seen in enumerate(SEEN)
    }


def bands(values: npt.NDArray[np.int64], unit: str, count: int = BANDS) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Cut whole numbers at their quantiles into at most ``count`` bands with different bounds.

    Returns:
        ``(name, mask)`` of each band, lowest first; the name holds the least and the greatest value found inside.
    """
    edges = np.unique(np.quantile(values, np.arange(1, count) / count, method="higher"))
    band = np.searchsorted(edges, values, side="right")
    result = []
    for index in np.unique(band):
        inside = band == index
        low, high = int(values[inside].min()), int(values[inside].max())
        result.append((f"{low:,} {unit}" if low == high else f"{low:,}–{high:,} {unit}", inside))
    return result
