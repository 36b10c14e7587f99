"""Figures for reports, growing preferences and adaptive depth; :func:`to_svg` makes them fit light and dark pages."""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from forethought.evaluation.compare import Comparison, Entry
from forethought.evaluation.metrics import title

# Three neutral colours stand for roles; a page replaces them by its own, so one drawing serves light and dark.
INK, MUTED, GRID = "#1b2430", "#67717e", "#dde2e8"
ROLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
SERIES = ("#2f7ed8", "#e4673a", "#1f9d76", "#b455c0", "#c9961a", "#0f9fb8", "#d6487e", "#7a72d8", "#7d8b3c", "#a8705a")
MARKERS = "osD^vPX*"
STYLE: Any = {
    "figure.dpi": 100,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar in a title is a dollar
    "svg.fonttype": "none",
    "svg.hashsalt": "forethought",
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """The style while something is drawn; a title in a script that the font has not is no reason for warnings."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


@contextlib.contextmanager
def _figure(width: float, height: float, columns: int = 1, **options: Any) -> Iterator[tuple[Figure, list[Axes]]]:
    with drawing():
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(figure.subplots(1, columns, squeeze=False, **options)[0])
        figure.draw_without_rendering()  # ticks are made on drawing, while the style holds


def _looks(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Colour and marker of each entry, its own and the same in every figure; baselines are hollow and dashed."""
    return {
        entry.name: {
            "color": SERIES[i % len(SERIES)],
            "marker": MARKERS[i % len(MARKERS)],
            "markerfacecolor": "none" if entry.baseline else SERIES[i % len(SERIES)],
            "linestyle": "--" if entry.baseline else "-",
        }
        for i, entry in enumerate(comparison.entries)
    }


def leaderboard(comparison: Comparison) -> Figure:
    """Mean over seeds with its 95 % interval over users; each seed is a small mark."""
    entries, looks = comparison.entries[::-1], _looks(comparison)
    with _figure(8.4, 0.42 * len(entries) + 1.0) as (figure, [axes]):
        for row, entry in enumerate(entries):
            value, (low, high) = _value(comparison, entry)
            look = {**looks[entry.name], "linestyle": "none", "clip_on": False}
            axes.hlines(row, low, high, color=look["color"], linewidth=2.6, alpha=0.55)
            if len(entry.runs) > 1:
                seeds = [run.evaluation.metrics[comparison.column][comparison.metric] for run in entry.runs]
                axes.plot(seeds, [row] * len(seeds), "|", color=look["color"], markersize=11)
            axes.plot(value, row, markersize=8, **look)
            axes.annotate(
                f"{value:.4f}", (high, row), (7, 0), textcoords="offset points", va="center", color=INK, size=9
            )
        axes.set_yticks(range(len(entries)), [entry.name for entry in entries], color=INK)
        axes.set_ylim(-0.6, len(entries) - 0.4)
        axes.set_xlim(left=0)
        axes.margins(x=0.1)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(_label(comparison))
    return figure


def learning_curves(comparison: Comparison) -> Figure | None:
    """Validation metric over training, a line a seed; None where no run logged it."""
    looks, drawn = _looks(comparison), False
    with _figure(8.4, 3.4) as (figure, [axes]):
        for entry in comparison.entries:
            look = {**looks[entry.name], "marker": "none"}
            for run in entry.runs:
                key = f"valid/{comparison.metric}"
                points = [
                    (event["epoch"], event[key], event["step"])
                    for event in run.log
                    if key in event and "epoch" in event
                ]
                if not points:
                    continue
                epochs, values, steps = np.array(points).T
                name = entry.name if run is entry.runs[0] else None
                axes.plot(epochs, values, label=name, alpha=0.9, **look)
                kept = steps == run.info.get("best_step")
                axes.plot(epochs[kept], values[kept], markersize=6, **looks[entry.name])
                drawn = True
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"validation {title(comparison.metric)}")
        axes.set_ylim(bottom=0)
        _legend(figure, axes)
    return figure if drawn else None


def slices(comparison: Comparison) -> Figure | None:
    """The metric by history length and by target popularity; None where no evaluation was sliced."""
    looks = _looks(comparison)
    sliced = [entry for entry in comparison.entries if all(run.evaluation.slices for run in entry.runs)]
    if not sliced:
        return None
    kinds = list(dict.fromkeys(part.by for part in sliced[0].runs[0].evaluation.slices))
    with _figure(8.4, 3.7, len(kinds), sharey=True) as (figure, panels):
        for axes, kind in zip(panels, kinds, strict=True):
            bands = [part for part in sliced[0].runs[0].evaluation.slices if part.by == kind]
            for number, entry in enumerate(sliced):
                parts = [[part for part in run.evaluation.slices if part.by == kind] for run in entry.runs]
                values = [[part.metrics[comparison.column][comparison.metric] for part in run] for run in parts]
                place = np.arange(len(bands)) + (number - (len(sliced) - 1) / 2) * 0.06
                bounds = [
                    [part.intervals.get(comparison.column, {}).get(comparison.metric) for part in run] for run in parts
                ]
                if all(bound for run in bounds for bound in run):
                    low, high = np.mean(np.array(bounds, dtype=float), axis=0).T
                    axes.vlines(place, low, high, color=looks[entry.name]["color"], alpha=0.4, linewidth=1.6)
                axes.plot(place, np.mean(values, axis=0), markersize=5, label=entry.name, **looks[entry.name])
            unit = bands[0].band.partition(" ")[2]
            names = [f"{part.band.partition(' ')[0]}\nn = {part.cases:,}" for part in bands]
            axes.set_xticks(range(len(bands)), names)
            axes.set_title(f"by {kind}")
            axes.set_xlabel(unit)
            axes.grid(axis="x", visible=False)
        panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel(title(comparison.metric))
        _legend(figure, panels[0])
    return figure


def cost(comparison: Comparison) -> Figure:
    """The metric against seconds of training and against trained parameters."""
    looks = _looks(comparison)
    with _figure(8.4, 3.4, 2, sharey=True) as (figure, panels):
        for entry in comparison.entries:
            value, (low, high) = _value(comparison, entry)
            look = {**looks[entry.name], "linestyle": "none", "clip_on": False, "markeredgewidth": 1.6}
            look["markeredgecolor"] = look["color"]
            if not entry.baseline:
                look["markerfacecolor"] = (look["color"], 0.3)  # points that coincide show through
            for axes, place in zip(panels, (max(entry.seconds, 1e-3), entry.parameters), strict=True):
                axes.vlines(place, low, high, color=look["color"], alpha=0.45)
                axes.plot(place, value, markersize=9, label=entry.name, **look)
        panels[0].set_xlabel("seconds of training (log scale)")
        panels[1].set_xlabel("trained parameters (log scale; 0 for counting)")
        panels[0].set_xscale("log")
        panels[1].set_xscale("symlog", linthresh=1e3, linscale=0.6)
        most = max(entry.parameters for entry in comparison.entries)
        panels[1].set_xticks([0, *(10**power for power in range(4, len(str(most)) + 1))])
        for axes in panels:
            axes.margins(x=0.15)
            axes.xaxis.set_major_formatter(FuncFormatter(_short))
            axes.xaxis.set_minor_formatter(NullFormatter())
        panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel(title(comparison.metric))
        _legend(figure, panels[0])
    return figure


def draw_growing(
    guidance: Sequence[float],
    levels: Sequence[float] | npt.NDArray[Any],
    probabilities: npt.NDArray[Any],
    titles: Sequence[str],
    target: int | None = None,
    ranks: Sequence[float] = (),
) -> Figure:
    """Draw how a preference grows from noise: the probability of single items over the growing steps, for each w.

    Drawn are the items that end highest in each panel, and the target with its rank.

    Args:
        guidance: the w of each panel.
        levels: float ``[steps]``, noise level (total noise, sigma bar) at each step, falling as the preference grows.
        probabilities: float ``[w, steps, items]``, of items 1..N after each step.
        titles: of these items.
        target: place in ``titles`` of the item that really came next.
        ranks: its place at each w, shown above the panels; none are shown where none are given.

    Raises:
        ValueError: the shapes do not fit together.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.shape != (len(guidance), len(levels), len(titles)):
        raise ValueError(
            f"probabilities are {probabilities.shape} for {len(guidance)} w, {len(levels)} levels, {len(titles)} titles"
        )
    shown = _grown(probabilities, target)
    # no floor far below what matters: an item may have a probability of zero
    drawn = [*shown, *([] if target is None else [target])]
    floor = max(float(probabilities[:, :, drawn].min()), 0.02 / len(titles))
    width = max(8.4, 2.9 * len(guidance))
    rows = -(-(len(shown) + 1) // _fitting([_cut(titles[item]) for item in shown], width))
    with _figure(width, 3.5 + 0.24 * rows, len(guidance), sharey=True) as (figure, panels):
        steps = np.arange(len(levels))
        for panel, (axes, w, chance) in enumerate(zip(panels, guidance, probabilities, strict=True)):
            for number, item in enumerate(shown):
                axes.plot(steps, chance[:, item], color=SERIES[number % len(SERIES)], label=_cut(titles[item]))
            if target is not None:
                axes.plot(
                    steps, chance[:, target], color=INK, linewidth=2.8, label=f"came next: {_cut(titles[target])}"
                )
                end = max(chance[-1, target], floor)
                axes.plot(steps[-1], end, "o", color=INK, markersize=7, clip_on=False)
                if ranks:
                    axes.set_title(f"rank {ranks[panel]:,.0f}", loc="right", fontweight="normal", color=MUTED)
            axes.axhline(1 / len(titles), color=MUTED, linewidth=1, linestyle=":")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(_short))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_title(f"w = {w:g}")
            chosen = np.unique(np.linspace(0, len(levels) - 1, min(len(levels), 4)).round().astype(int))
            axes.set_xticks(chosen, [f"{step}\nσ {levels[step]:.2g}" for step in chosen])
            # the labels of neighbouring panels would touch
            axes.get_xticklabels()[0].set_horizontalalignment("left")
            axes.get_xticklabels()[-1].set_horizontalalignment("right")
            axes.set_xlabel("growing step, noise left")
        panels[0].set_ylim(floor, 1.5)
        panels[0].set_ylabel("probability (dotted: all items equal)")
        _legend(figure, panels[0])
    return figure


def _grown(probabilities: npt.NDArray[np.float64], target: int | None) -> list[int]:
    """Items to draw: the first of each w, the second of each w, and so on, as many as there are colours."""
    best = np.argsort(-probabilities[:, -1], axis=1, kind="stable")[:, : len(SERIES) + 1]
    chosen = dict.fromkeys(int(item) for item in best.T.ravel() if item != target)
    return list(chosen)[: len(SERIES)]


def dial(found: Mapping[str, Any]) -> Figure:
    """Quality against mean steps and against time of fixed and adaptive depths; what looking at the label gives beside.

    Filled marks are the settings chosen on validation users. Labels are given an axis of their own: an oracle is no
    point on the curve of what can be had.

    Args:
        found: as :func:`forethought.recommenders.dialling.measure` returns it.
    """
    metric, fixed, best = found["metric"], found["fixed"], found["fixed"][found["best"]]
    with _figure(11.4, 4.2, 3, width_ratios=[1, 1, 0.5]) as (figure, [by_steps, by_time, beside]):
        for axes, across in ((by_steps, "steps"), (by_time, "milliseconds")):
            axes.axhline((1 - found["loss"]) * best[metric], color=MUTED, linewidth=1, linestyle=":")
            at = [row[across] for row in fixed], [row[metric] for row in fixed]
            axes.plot(*at, "o-", color=MUTED, markerfacecolor="none", markersize=6, label="fixed depth")
            for row in fixed:
                axes.annotate(
                    str(row["steps"]), (row[across], row[metric]), (0, 7), textcoords="offset points", ha="center",
                    color=MUTED, size=8,
                )  # fmt: skip
            for number, row in enumerate(found["rules"]):
                look: Any = {"color": SERIES[number], "marker": MARKERS[number]}
                curve = found["curves"].get(row["rule"], [])
                points = [each[across] for each in curve], [each[metric] for each in curve]
                axes.plot(*points, markersize=4, markerfacecolor="none", linewidth=1.2, alpha=0.8, **look)
                name = "least fixed depth" if row["rule"] == "fixed" else row["rule"]
                name += ", auto" if row["auto"] else ""
                axes.plot(row[across], row[metric], linestyle="none", markersize=9, label=name, **look)
            axes.margins(x=0.08, y=0.12)
        by_steps.set_ylabel(f"{title(metric)}, seen items removed")
        by_steps.set_xlabel("mean steps")
        by_time.set_xlabel("milliseconds a user, ranking included")
        by_time.sharey(by_steps)
        bars = {f"best fixed: {best['steps']}": (best[metric], MUTED)}
        bars["oracle depth"] = (found["label"]["oracle"][metric], SERIES[8])
        if (dropout := found["label"]["dropout"]) is not None:
            bars[f"best of {dropout['draws']}\ndropouts"] = (dropout[metric], SERIES[9])
        for place, (value, colour) in enumerate(bars.values()):
            beside.bar(place, value, color=colour, width=0.6)
            beside.annotate(
                f"{value:.4f}", (place, value), (0, 3), textcoords="offset points", ha="center", size=8, color=INK
            )
        beside.set_xticks(range(len(bars)), list(bars), size=8, rotation=25, ha="right")
        beside.grid(axis="x", visible=False)
        beside.set_title("looking at the label")
        by_steps.set_title(f"keep {1 - found['loss']:.0%} of the best fixed depth (dotted)")
        _legend(figure, by_steps)
    return figure


def to_svg(figure: Figure, label: str) -> str:
    """The figure as an inline SVG element for a page that defines --ink, --muted and --grid.

    Args:
        label: what it shows, for those who cannot see it; also makes its ids unique on the page.
    """
    buffer = io.StringIO()
    with drawing():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    prefix = re.sub(r"\W+", "-", label.lower())
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*|sans-serif", "var(--font)", text)
    for colour, role in ROLES.items():
        text = text.replace(colour, role)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1).strip()


def _value(comparison: Comparison, entry: Entry) -> tuple[float, tuple[float, float]]:
    return entry.mean[comparison.column][comparison.metric], entry.intervals[comparison.column][comparison.metric]


def _label(comparison: Comparison) -> str:
    return (
        f"{title(comparison.metric)}, seen items {comparison.seen}: mean over seeds (ticks), 95 % interval over users"
    )


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = _fitting(labels, figure.get_figwidth())
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, labelcolor=INK)


def _fitting(labels: Sequence[str], width: float) -> int:
    """Columns of a legend, judged by its longest label; ``width`` in inches."""
    return max(1, min(len(labels), int(12.5 * width / (max(map(len, labels), default=0) + 7))))


def _short(value: float, _: Any = None) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _cut(text: str, length: int = 44) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
