"""A leaderboard that can be trusted: one data set, one protocol, every seed, and a test of the best against each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from forethought.errors import ArtefactError
from forethought.evaluation import metrics
from forethought.evaluation.evaluator import Evaluation, Ranges, Table
from forethought.evaluation.ranking import SEEN
from forethought.evaluation.runs import RunRecord, read_run
from forethought.evaluation.significance import PairedTest, holm, intervals, paired_tests

BASELINES = ("popularity", "markov", "knn", "sasrec")  # what every leaderboard has to carry
ENOUGH_SEEDS = 3  # before the word "better"
LEVEL = 0.05


@dataclass(frozen=True)
class Gap:
    """The best entry minus this one, in the leaderboard's metric.

    Attributes:
        test: the paired test over users, seeds averaged.
        p: of its randomisation test, corrected by Holm for all entries compared with the best.
    """

    test: PairedTest
    p: float


@dataclass(frozen=True)
class Entry:
    """Runs that differ only by seed: one row of the leaderboard.

    Attributes:
        name: as the recipe is called, with the settings that tell it from others of that name.
        model: its type.
        runs: one a seed, in the order of the seeds.
        mean, sd: over seeds; ``mean["seen_removed"]["ndcg@10"]``. ``sd`` is empty with one seed.
        intervals: 95 %, over users, of the mean over seeds; for hr, ndcg and mrr.
        gap: None for the best.
    """

    name: str
    model: str
    runs: tuple[RunRecord, ...]
    mean: Table
    sd: Table
    intervals: Ranges
    gap: Gap | None

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def baseline(self) -> bool:
        return self.model in BASELINES

    @property
    def parameters(self) -> int:
        return self.runs[0].parameters

    @property
    def seconds(self) -> float:
        """Training, mean over seeds."""
        return float(np.mean([run.seconds for run in self.runs]))

    @property
    def enough_seeds(self) -> bool:
        """Three or more, or nothing in it is random."""
        return len(self.runs) >= ENOUGH_SEEDS or self.parameters == 0


@dataclass(frozen=True)
class Comparison:
    """A leaderboard.

    Attributes:
        metric: what it is sorted by, best first.
        seen: whether items of the history are ``removed`` from the ranking or ``kept``.
        evaluation: one of the evaluations; data, protocol, split, fingerprint, users and cases are those of all.
        entries: the rows, best first.
    """

    metric: str
    seen: Literal["removed", "kept"]
    evaluation: Evaluation
    entries: tuple[Entry, ...]

    @property
    def best(self) -> Entry:
        return self.entries[0]

    @property
    def column(self) -> str:
        """The key of ``seen`` in the tables of metrics."""
        return f"seen_{self.seen}"

    def verdict(self) -> str:
        """The result in a sentence that claims no more than was shown."""
        best = self.best
        value, (low, high) = best.mean[self.column][self.metric], best.intervals[self.column][self.metric]
        text = f"{best.name} leads with {metrics.title(self.metric)} {value:.4f} (95 % interval {low:.4f}–{high:.4f})"
        gaps = {entry.name: entry.gap for entry in self.entries if entry.gap is not None}
        if not gaps:
            return f"{text}; there is nothing to compare it with."
        unclear = [name for name, gap in gaps.items() if gap.p >= LEVEL]
        if not unclear:
            text += f"; its lead over every other entry is more than chance over users (Holm-corrected p < {LEVEL})"
        elif len(unclear) < len(gaps):
            text += f"; its lead is more than chance over users (Holm-corrected p < {LEVEL}), but not over "
            text += ", ".join(unclear)
        else:
            text += "; its lead over the others is within chance over users"
        few = [entry.name for entry in self.entries if not entry.enough_seeds]
        if few:
            text += f". Fewer than {ENOUGH_SEEDS} seeds, too few to call a method better or worse: {', '.join(few)}"
        return text + "."

    def notes(self) -> list[str]:
        """What a reader has to know before trusting the table."""
        notes = []
        missing = [name for name in BASELINES if name not in {entry.model for entry in self.entries}]
        if missing:
            notes.append(
                f"Not in this leaderboard: {', '.join(missing)}. Without these baselines a good rank says little."
            )
        if self.evaluation.split == "valid":
            notes.append("These are validation numbers: the models were selected on them.")
        if self.evaluation.unreachable:
            share = self.evaluation.unreachable / self.evaluation.cases
            notes.append(
                f"{self.evaluation.unreachable:,} targets ({share:.1%}) stand in their user's own history: "
                "where seen items are removed they are misses for every model."
            )
        if not self.evaluation.complete:
            notes.append(f"Only {self.evaluation.cases:,} cases of the split were ranked.")
        return notes

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        about = self.evaluation
        return {
            "format": "forethought.comparison",
            "version": 1,
            "data": about.data,
            "fingerprint": about.fingerprint,
            "protocol": about.protocol,
            "split": about.split,
            "users": about.users,
            "cases": about.cases,
            "unreachable": about.unreachable,
            "seen": self.seen,
            "metric": self.metric,
            "verdict": self.verdict(),
            "notes": self.notes(),
            "entries": [
                {
                    "name": entry.name,
                    "model": entry.model,
                    "baseline": entry.baseline,
                    "seeds": entry.seeds,
                    "runs": [str(run.path) for run in entry.runs],
                    "parameters": entry.parameters,
                    "seconds": entry.seconds,
                    "mean": entry.mean,
                    "sd": entry.sd,
                    "intervals": entry.intervals,
                    "best_minus_this": None if entry.gap is None else {**vars(entry.gap.test), "p_holm": entry.gap.p},
                }
                for entry in self.entries
            ],
        }


def compare(
    runs: Sequence[str | os.PathLike[str]],
    split: Literal["valid", "test"] = "test",
    *,
    seen: Literal["removed", "kept"] = "removed",
    metric: str = "ndcg@10",
    replicates: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Make a leaderboard of evaluated runs; those that differ only by seed become one row.

    Args:
        runs: run folders, each with an evaluation on ``split``.
        seen: which of the two rankings is sorted and tested.
        metric: hr, ndcg or mrr at a cut-off that was evaluated.
        replicates: resamples and sign flips of the tests; the intervals take a tenth.
        seed: of both.

    Raises:
        ArtefactError: a run cannot be read, two runs are one and the same, or they rank different cases.
    """
    if not runs:
        raise ArtefactError("There is no run to compare; name at least one run folder.")
    records = [read_run(path, split) for path in runs]
    for record in records[1:]:
        _check_same_cases(records[0], record)
    cutoffs = sorted(set.intersection(*(set(record.evaluation.ks) for record in records)))
    tested = [f"{name}@{k}" for k in cutoffs for name in ("hr", "ndcg", "mrr")]
    if metric not in tested:
        raise ArtefactError(f"There is no metric {metric!r} in these evaluations; choose one of {', '.join(tested)}.")
    groups = _group(records)
    groups.sort(key=lambda group: -float(np.mean([run.evaluation.metrics[f"seen_{seen}"][metric] for run in group])))
    per_case = [np.stack([run.evaluation.values(metric, seen) for run in group]) for group in groups]
    users = records[0].evaluation.owners
    tests = paired_tests(per_case[0], per_case[1:], users, replicates, seed) if len(groups) > 1 else []
    corrected = holm([test.p_randomisation for test in tests])
    gaps = [None, *(Gap(test, p) for test, p in zip(tests, corrected, strict=True))]
    names = _names(groups)
    entries = tuple(
        Entry(
            name=name,
            model=group[0].model,
            runs=tuple(group),
            mean=_over_seeds(group, lambda values: float(np.mean(values))),
            sd=_over_seeds(group, lambda values: float(np.std(values, ddof=1))) if len(group) > 1 else {},
            intervals=_intervals(group, tested, max(100, replicates // 10), seed),
            gap=gap,
        )
        for name, group, gap in zip(names, groups, gaps, strict=True)
    )
    return Comparison(metric, seen, records[0].evaluation, entries)


def _check_same_cases(first: RunRecord, other: RunRecord) -> None:
    a, b = first.evaluation, other.evaluation
    for what, one, two in (
        ("protocol", a.protocol, b.protocol),
        ("data (fingerprint)", a.fingerprint[:12], b.fingerprint[:12]),
        ("number of cases", a.cases, b.cases),
    ):
        if one != two:
            raise ArtefactError(
                f"{other.path} and {first.path} differ in their {what}: {two} and {one}; "
                "a leaderboard compares runs on the same cases, so compare them apart."
            )
    if not np.array_equal(a.owners, b.owners):
        raise ArtefactError(f"{other.path} and {first.path} rank different users; evaluate both on the whole split.")


def _group(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        group = groups.setdefault(repr(sorted(record.settings.items())), [])
        twin = next((run for run in group if run.seed == record.seed), None)
        if twin is not None:
            raise ArtefactError(
                f"{twin.path} and {record.path} have the same recipe and seed {record.seed}; give one of them."
            )
        group.append(record)
    return [sorted(group, key=lambda run: run.seed) for group in groups.values()]


def _names(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """The runs' names; groups of one name are told apart by the settings in which they differ."""
    names = []
    for group in groups:
        namesakes = [other[0].settings for other in groups if other[0].name == group[0].name]
        keys = sorted({key for settings in namesakes for key in settings})
        differing = [key for key in keys if len({repr(settings.get(key)) for settings in namesakes}) > 1]
        values = ", ".join(f"{key.rpartition('.')[2]}={group[0].settings.get(key)}" for key in differing)
        names.append(f"{group[0].name} ({values})" if values else group[0].name)
    return names


def _over_seeds(group: Sequence[RunRecord], summary: Any) -> Table:
    tables = [run.evaluation.metrics for run in group]
    return {
        column: {
            name: summary([table[column][name] for table in tables])
            for name in tables[0][column]
            if all(name in table[column] for table in tables)
        }
        for column in (f"seen_{seen}" for seen in SEEN)
    }


def _intervals(group: Sequence[RunRecord], names: Sequence[str], replicates: int, seed: int) -> Ranges:
    cutoffs = sorted({int(name.partition("@")[2]) for name in names})
    runs = [metrics.accuracy(run.evaluation.ranks, cutoffs) for run in group]
    values = np.concatenate([np.mean([run[name] for run in runs], axis=0) for name in names], axis=1)
    bounds = intervals(values, group[0].evaluation.owners, replicates, seed).tolist()
    return {
        f"seen_{seen}": {name: (bounds[2 * i + column][0], bounds[2 * i + column][1]) for i, name in enumerate(names)}
        for column, seen in enumerate(SEEN)
    }
