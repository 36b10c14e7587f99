"""The data doctor: what in a data set makes its results hard to trust or hard to compare."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from forethought.data.dataset import Dataset, Targets
from forethought.data.interactions import Interactions

if TYPE_CHECKING:
    from rich.table import Table

Ints = npt.NDArray[np.int64]
MISSING = ("NULL", "null", "NaN", "nan", "None", "<NA>", "N/A", r"\N")  # what programs write where there is no value


@dataclass(frozen=True)
class Report:
    """What the doctor found. Shares are between 0 and 1; None means it cannot be known from this data.

    Attributes:
        name, protocol, fingerprint: of the data set.
        counts: users, items, events and cases, from its manifest.
        dropped: rows left out while reading, by reason.
        tied_events: share of events at the same moment as the user's event before.
        tied_last: share of users whose last two events are at the same moment, so that only the tie rule (for most logs
            the order of the file) decides which one is tested.
        looks_missing: events of each user and item whose id is a word for a missing value, by ``user NULL`` and so on.
        duplicates: events that repeat an earlier item of the same user.
        consecutive_repeats: events that repeat the item just before.
        cold_targets: by split, cases whose target never occurs in training.
        repeated_targets: by split, cases whose target is in the history; with seen items removed they cannot be found.
        later_training: by split, mean share of the training events that happened after the target did; None without
            times.
        copied_sequences: by split, held-out users whose whole sequence is some training user's, to the letter; None
            where users are not split.
        lengths: events a user: least, lower quartile, median, mean, upper quartile, greatest.
        popularity: Gini coefficient of the items' counts, share of events on the most popular 1 % of items, items that
            occur once.
        findings: the above where it matters, as sentences.
    """

    name: str
    protocol: str
    fingerprint: str
    counts: dict[str, int]
    dropped: dict[str, int]
    tied_events: float | None
    tied_last: float | None
    looks_missing: dict[str, int]
    duplicates: int
    consecutive_repeats: int
    cold_targets: dict[str, int]
    repeated_targets: dict[str, int]
    later_training: dict[str, float] | None
    copied_sequences: dict[str, int] | None
    lengths: dict[str, float]
    popularity: dict[str, float]
    findings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return asdict(self)

    def table(self) -> Table:
        """The report for a terminal."""
        from rich.markup import escape
        from rich.table import Table

        title = escape(f"{self.name} · {self.protocol} · {self.fingerprint[:12]}")
        table = Table(title=title, title_justify="left")
        table.add_column("what")
        table.add_column("value", justify="right")
        for label, value in self._rows():
            table.add_row(label, value)
        return table

    def _rows(self) -> list[tuple[str, str]]:
        events = self.counts["events"]
        rows = [(name, f"{self.counts[name]:,}") for name in ("users", "items", "events")]
        rows += [(f"rows dropped: {reason}", f"{number:,}") for reason, number in self.dropped.items()]
        if self.tied_last is not None and self.tied_events is not None:
            rows.append(("users whose last two events tie", f"{self.tied_last:.1%}"))
            rows.append(("events tied with the one before", f"{self.tied_events:.1%}"))
        rows.append(("events that repeat an earlier item", f"{self.duplicates:,} ({self.duplicates / events:.1%})"))
        repeats = self.consecutive_repeats
        rows.append(("… the item just before", f"{repeats:,} ({repeats / events:.1%})"))
        for split in ("valid", "test"):
            cases = self.counts[split]
            rows.append((f"{split} cases", f"{cases:,}"))
            kinds = {"target never in training": self.cold_targets, "target in its history": self.repeated_targets}
            for label, found in kinds.items():
                rows.append((f"… {label}", f"{found[split]:,} ({found[split] / max(cases, 1):.2%})"))
            if self.copied_sequences is not None:
                rows.append(("… sequence copied from training", f"{self.copied_sequences[split]:,}"))
            if self.later_training is not None and split in self.later_training:
                rows.append(("… training events after the target", f"{self.later_training[split]:.1%}"))
        lengths, popularity = self.lengths, self.popularity
        span = " / ".join(f"{lengths[key]:,.0f}" for key in ("least", "median", "greatest"))
        rows.append(("events a user: least / median / greatest", span))
        rows.append(("popularity: Gini coefficient", f"{popularity['gini']:.3f}"))
        rows.append(("events on the top 1 % of items", f"{popularity['top_1_percent']:.1%}"))
        rows.append(("items that occur once", f"{popularity['once']:,.0f}"))
        return rows


def check(source: str | os.PathLike[str] | Dataset | Interactions) -> Report:
    """Examine a prepared folder, a data set, or a log (which is split leave-one-out, or as it came).

    Raises:
        DataError: the source cannot be read.
    """
    dataset = open_any(source)
    sequences = dataset.sequences
    owner = np.repeat(np.arange(len(sequences), dtype=np.int64), np.diff(sequences.offsets))
    splits = {"valid": dataset.targets("valid"), "test": dataset.targets("test")}
    tied_events, tied_last = _ties(dataset, owner)
    duplicates, consecutive = _repeats(dataset, owner)
    seen = dataset.item_counts() > 0
    cold = {name: int((~seen[cases.items]).sum()) for name, cases in splits.items()}
    repeated = {name: _in_history(cases, owner) for name, cases in splits.items()}
    found: dict[str, Any] = {
        "name": str(dataset.manifest.get("name", "data")),
        "protocol": dataset.protocol,
        "fingerprint": dataset.fingerprint,
        "counts": dict(dataset.manifest["counts"]),
        "dropped": dict(dataset.manifest.get("dropped", {})),
        "tied_events": tied_events,
        "tied_last": tied_last,
        "looks_missing": _looks_missing(dataset),
        "duplicates": duplicates,
        "consecutive_repeats": consecutive,
        "cold_targets": cold,
        "repeated_targets": repeated,
        "later_training": _later_training(dataset, splits, owner),
        "copied_sequences": _copied(dataset, splits) if dataset.protocol == "user-split" else None,
        "lengths": _lengths(np.diff(sequences.offsets)),
        "popularity": _popularity(np.bincount(sequences.items, minlength=dataset.num_items + 1)[1:]),
    }
    return Report(**found, findings=_findings(found))


def open_any(source: str | os.PathLike[str] | Dataset | Interactions) -> Dataset:
    """The data set behind a prepared folder, a log or a data set."""
    if isinstance(source, Dataset):
        return source
    if isinstance(source, Interactions):
        return source.prepare()
    if (Path(source) / "manifest.json").is_file():
        return Dataset.open(source, verify=True)
    return Interactions.read(source).prepare()


def _ties(dataset: Dataset, owner: Ints) -> tuple[float | None, float | None]:
    times, offsets = dataset.sequences.times, dataset.sequences.offsets
    if times is None:
        return None, None
    tied = (times[1:] == times[:-1]) & (owner[1:] == owner[:-1])
    last = offsets[1:][np.diff(offsets) >= 2] - 1
    return float(tied.mean()) if len(tied) else 0.0, float(tied[last - 1].mean()) if len(last) else 0.0


def _looks_missing(dataset: Dataset) -> dict[str, int]:
    events = {
        "user": (dataset.users, np.diff(dataset.sequences.offsets)),
        "item": (dataset.catalog.ids, np.bincount(dataset.sequences.items, minlength=dataset.num_items + 1)[1:]),
    }
    found: dict[str, int] = {}
    for role, (ids, counts) in events.items():
        if pa.types.is_string(ids.type):
            alike = pc.is_in(ids, value_set=pa.array(MISSING)).to_numpy(zero_copy_only=False)
            found |= {f"{role} {ids[row]}": int(counts[row]) for row in np.flatnonzero(alike).tolist()}
    return found


def _repeats(dataset: Dataset, owner: Ints) -> tuple[int, int]:
    items = dataset.sequences.items
    pairs = owner * (dataset.num_items + 1) + items
    consecutive = int((pairs[1:] == pairs[:-1]).sum())
    pairs.sort()
    return int((pairs[1:] == pairs[:-1]).sum()), consecutive


def _in_history(cases: Targets, owner: Ints) -> int:
    """Cases whose target occurs before its own position in the sequence."""
    users = len(cases.sequences)
    position, item = np.zeros(users, dtype=np.int64), np.zeros(users, dtype=np.int64)
    position[cases.users], item[cases.users] = cases.positions, cases.items
    before = np.arange(len(owner)) < position[owner]
    return len(np.unique(owner[before & (cases.sequences.items == item[owner])]))


def _later_training(dataset: Dataset, splits: dict[str, Targets], owner: Ints) -> dict[str, float] | None:
    times = dataset.sequences.times
    if times is None:
        return None
    trained = np.sort(times[np.arange(len(owner)) < dataset.train_stop[owner]])
    after = {}
    for name, cases in splits.items():
        if len(cases):
            later = len(trained) - np.searchsorted(trained, times[cases.positions], side="right")
            after[name] = float(later.mean() / max(len(trained), 1))
    return after


def _copied(dataset: Dataset, splits: dict[str, Targets]) -> dict[str, int]:
    items, offsets = np.asarray(dataset.sequences.items), dataset.sequences.offsets
    stops = dataset.train_stop
    trained = {items[offsets[user] : stops[user]].tobytes() for user in np.flatnonzero(stops > offsets[:-1])}
    return {
        name: sum(items[offsets[user] : offsets[user + 1]].tobytes() in trained for user in cases.users)
        for name, cases in splits.items()
    }


def _lengths(lengths: Ints) -> dict[str, float]:
    least, lower, median, upper, greatest = np.quantile(lengths, (0, 0.25, 0.5, 0.75, 1))
    return {
        "least": float(least), "lower_quartile": float(lower), "median": float(median),
        "mean": float(lengths.mean()), "upper_quartile": float(upper), "greatest": float(greatest),
    }  # fmt: skip


def _popularity(counts: Ints) -> dict[str, float]:
    ascending = np.sort(counts)
    total, items = ascending.sum(), len(ascending)
    # Gini from ordered values: 2 Σ i x_i / (n Σ x) - (n + 1) / n, i = 1..n ascending
    gini = 2 * (np.arange(1, items + 1) * ascending).sum() / (items * total) - (items + 1) / items
    top = ascending[-max(1, round(items / 100)) :].sum() / total
    return {"gini": float(gini), "top_1_percent": float(top), "once": float((counts == 1).sum())}


def _findings(found: dict[str, Any]) -> list[str]:
    said = []
    counts = found["counts"]
    if found["tied_last"] is not None and found["tied_last"] >= 0.01:
        said.append(
            f"{found['tied_last']:.0%} of the users have a tie between their last two events: the tie rule, not time, "
            "picks their test item, so compare only with results on this fingerprint."
        )
    if found["tied_last"] is None:
        said.append("There are no times: the order of the source is taken on trust.")
    if found["looks_missing"]:
        alike = ", ".join(f"{name} ({events:,} events)" for name, events in found["looks_missing"].items())
        said.append(
            f"Ids that mostly mark a missing value are taken as they are: {alike}; mend the log if they mean none."
        )
    test = max(counts["test"], 1)
    cold, repeated = found["cold_targets"]["test"], found["repeated_targets"]["test"]
    if cold:
        said.append(
            f"Of the test targets {cold:,} ({cold / test:.2%}) never occur in training; no model that knows items by "
            "id can find them."
        )
    if repeated:
        said.append(
            f"Of the test targets {repeated:,} ({repeated / test:.2%}) are in their own history; with seen items "
            "removed they count as misses."
        )
    later = (found["later_training"] or {}).get("test", 0.0)
    if later >= 0.01:
        said.append(
            f"On average {later:.0%} of the training events happened after the test target: this protocol lets a model "
            "look into the future; use --split global-time for a forecast."
        )
    if found["copied_sequences"] and found["copied_sequences"]["test"]:
        copied = found["copied_sequences"]["test"]
        said.append(f"The whole sequence of {copied:,} test users is that of a training user.")
    if found["consecutive_repeats"] / counts["events"] >= 0.01:
        share = found["consecutive_repeats"] / counts["events"]
        said.append(f"{share:.1%} of the events repeat the item just before; consider --duplicates consecutive.")
    if found["lengths"]["median"] < 3:
        said.append("Half of the users have fewer than three events; consider --min-length 3 or --k-core 5.")
    return said
