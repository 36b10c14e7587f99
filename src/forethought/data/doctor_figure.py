"""The data doctor's picture."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from forethought.atomic import atomic_file
from forethought.data.dataset import Dataset
from forethought.data.doctor import Report
from forethought.errors import DataError

_MAIN, _TRAIN, _VALID, _TEST, _GREY = "#2a7f78", "#9ecdc8", "#f2a65a", "#d1495b", "#6b7280"


def check_kind(path: str | Path) -> str:
    """The kind of picture that a file's name asks for; PNG where it has no suffix.

    Raises:
        DataError: it is none that can be drawn.
    """
    kind = Path(path).suffix.lstrip(".").lower() or "png"
    if kind not in FigureCanvasBase.filetypes:
        raise DataError(f"{path} is no kind of picture that can be drawn; end its name in .png, .pdf or .svg.")
    return kind


def draw(report: Report, dataset: Dataset, path: str | Path) -> None:
    """Write the figure: lengths, popularity, events over time, and the shares to look at.

    Args:
        report: what was found.
        dataset: where.
        path: the PNG (or PDF, SVG) to write.

    Raises:
        DataError: the file's name asks for another kind of picture.
        ArtefactError: the file cannot be written.
    """
    kind = check_kind(path)
    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titleweight": "bold",
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # a name in a script that the font has not is drawn as boxes, which is nothing to tell of
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure = Figure(figsize=(11, 7.5), layout="constrained")
        axes = figure.subplots(2, 2)
        figure.suptitle(
            f"{report.name}: {report.counts['users']:,} users, {report.counts['items']:,} items, "
            f"{report.counts['events']:,} events ({report.protocol})",
            fontsize=13, fontweight="bold",
        )  # fmt: skip
        _lengths(axes[0, 0], dataset, report)
        _popularity(axes[0, 1], dataset, report)
        _time(axes[1, 0], dataset)
        _shares(axes[1, 1], report)
        with atomic_file(path) as scratch:
            figure.savefig(scratch, dpi=150, facecolor="white", format=kind)


def _lengths(axis: Any, dataset: Dataset, report: Report) -> None:
    lengths = np.diff(dataset.sequences.offsets)
    top = max(int(lengths.max()), 2)
    least = int(lengths.min())
    bins = np.unique(np.geomspace(least, top + 1, 40).astype(int)) if top > 40 else np.arange(least, top + 2)
    axis.hist(lengths, bins=bins, color=_MAIN, edgecolor="white", linewidth=0.4, align="left" if top <= 40 else "mid")
    if top > 40:
        axis.set_xscale("log")
    axis.axvline(report.lengths["median"], color=_TEST, linewidth=1.5)
    axis.annotate(
        f"median {report.lengths['median']:,.0f}", (report.lengths["median"], 0.97), xycoords=("data", "axes fraction"),
        xytext=(5, 0), textcoords="offset points", color=_TEST, va="top",
    )  # fmt: skip
    axis.set(title="How long are the sequences?", xlabel="events a user", ylabel="users")


def _popularity(axis: Any, dataset: Dataset, report: Report) -> None:
    counts = np.sort(np.bincount(dataset.sequences.items, minlength=dataset.num_items + 1)[1:])[::-1]
    axis.plot(np.arange(1, len(counts) + 1), np.maximum(counts, 0.5), color=_MAIN, linewidth=2)
    axis.set(xscale="log", yscale="log", xlabel="items, most popular first", ylabel="events")
    axis.set_title("How unequal are the items?")
    text = f"Gini {report.popularity['gini']:.2f}\ntop 1 % of items: {report.popularity['top_1_percent']:.0%} of events"
    axis.annotate(text, (0.04, 0.08), xycoords="axes fraction", color=_GREY)


def _time(axis: Any, dataset: Dataset) -> None:
    times = dataset.sequences.times
    axis.set_title("When did it happen?")
    if times is None:
        axis.annotate("no times in this log", (0.5, 0.5), xycoords="axes fraction", ha="center", color=_GREY)
        axis.set_axis_off()
        return
    kind = np.zeros(len(times), dtype=np.int8)
    owner = np.repeat(np.arange(dataset.num_users), np.diff(dataset.sequences.offsets))
    kind[np.arange(len(times)) >= dataset.train_stop[owner]] = 1
    kind[dataset.targets("test").positions] = 2
    moments = np.asarray(times).astype("datetime64[ms]")
    edges = np.linspace(int(times.min()), int(times.max()) + 1, 61).astype(np.int64)
    bins = edges.astype("datetime64[ms]")
    parts = [moments[kind == part] for part in range(3)]
    labels = ["training", "validation, held-out histories", "test targets"]
    axis.hist(parts, bins=bins, stacked=True, color=[_TRAIN, _VALID, _TEST], label=labels)
    axis.legend(frameon=False, fontsize=8)
    axis.set(ylabel="events")
    axis.tick_params(axis="x", rotation=30)


def _shares(axis: Any, report: Report) -> None:
    test, events = max(report.counts["test"], 1), report.counts["events"]
    copied = report.copied_sequences
    shares = {
        "users with tied last events": report.tied_last,
        "events repeating an item": report.duplicates / events,
        "events repeating the item before": report.consecutive_repeats / events,
        "test targets not in training": report.cold_targets["test"] / test,
        "test targets in their history": report.repeated_targets["test"] / test,
        "training events after the target": (report.later_training or {}).get("test"),
        "test sequences copied from training": copied["test"] / test if copied else None,
    }
    known = {label: share for label, share in shares.items() if share is not None}
    places = np.arange(len(known))[::-1]
    values = [100 * share for share in known.values()]
    axis.barh(places, values, color=[_TEST if value >= 1 else _MAIN for value in values], height=0.28)
    for place, value, label in zip(places, values, known, strict=True):
        axis.annotate(label, (0, place), xytext=(4, 9), textcoords="offset points")
        size = f"{value:.2g} %" if 0 < value < 100 else f"{value:.0f} %"
        axis.annotate(size, (value, place), xytext=(4, 0), textcoords="offset points", va="center", color=_GREY)
    axis.set_yticks([])
    axis.set_ylim(-0.5, len(known) - 0.35)
    axis.set(title="What to look at", xlabel="per cent", xlim=(0, min(110, max(10.0, 1.3 * max(values)))))
