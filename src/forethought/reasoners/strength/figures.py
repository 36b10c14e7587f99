"""Figures of reasoning strength, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from forethought.evaluation.figures import INK, MARKERS, MUTED, SERIES, drawing

if TYPE_CHECKING:
    from forethought.reasoners.strength.analysis import Analysis
    from forethought.reasoners.strength.knobs import Outcome


def draw_analysis(analysis: Analysis, folder: Path) -> None:
    """``probe.png``: rank correlation by site, and predicted against actual; ``directions.png`` where there are any."""
    with drawing():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        rows = [row for row in analysis.sites if "test/spearman" in row]
        places = range(len(rows))
        left.plot(places, [row["test/spearman"] for row in rows], "o-", color=SERIES[0], label="probe")
        for name, colour in (("prompt-length", SERIES[1]), ("bag-of-tokens", SERIES[2]), ("ceiling", MUTED)):
            if f"{name}/spearman" in analysis.controls:
                left.axhline(analysis.controls[f"{name}/spearman"], color=colour, ls="--", label=name.replace("-", " "))
        left.axhline(analysis.controls["spearman/null-95"], color=MUTED, ls=":", label="null, 95 %")
        left.set_xticks(list(places), [str(row["site"]) for row in rows])
        left.set(title="Rank correlation with the length, test", xlabel="site", ylabel="Spearman")
        left.legend(fontsize=8)
        right.scatter(analysis.predicted, analysis.actual, s=10, color=SERIES[0], alpha=0.6)
        ends = [0, float(max(analysis.actual.max(), analysis.predicted.max()))]
        right.plot(ends, ends, color=MUTED, lw=1)
        right.set(title=f"Site {analysis.best}", xlabel="predicted tokens", ylabel="thinking tokens, mean of samples")
        figure.savefig(folder / "probe.png", dpi=150)
        rows = [row for row in analysis.sites if "cosine" in row]
        if not rows:
            return
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        places = range(len(rows))
        left.plot(places, [row["cosine"] for row in rows], "o-", color=SERIES[0], label="between levels")
        left.plot(places, [row["cosine/null-95"] for row in rows], ":", color=MUTED, label="levels permuted, 95 %")
        left.set_xticks(list(places), [str(row["site"]) for row in rows])
        left.set(title="Mean cosine of level directions", xlabel="site")
        left.legend(fontsize=8)
        for place, row in enumerate(rows):
            right.plot(range(2, 2 + len(row["norms"])), row["norms"], "o-", color=SERIES[place % len(SERIES)],
                       label=f"site {row['site']}")  # fmt: skip
        right.set(title="Norm by level", xlabel="level", ylabel="‖mean − mean of level 1‖")
        right.legend(fontsize=7)
        figure.savefig(folder / "directions.png", dpi=150)


def draw_frontier(outcomes: Sequence[Outcome], path: Path, chosen: Outcome | None = None) -> None:
    """Accuracy against mean thinking tokens, a line a knob, with bootstrap bounds; the plain model is a star."""
    with drawing():
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        plain = next(found for found in outcomes if found.knob == "none")
        names = [name for name in dict.fromkeys(found.knob for found in outcomes) if name != "none"]
        for index, name in enumerate(names):
            points = sorted((f for f in outcomes if f.knob == name), key=lambda f: f.numbers["mean"])
            faint = name.startswith("random")
            axes.errorbar(
                [p.numbers["mean"] for p in points],
                [p.numbers["accuracy"] for p in points],
                yerr=_bars(points),
                marker=MARKERS[index % len(MARKERS)],
                ms=5,
                lw=1.2,
                elinewidth=0.6,
                color=MUTED if faint else SERIES[index % len(SERIES)],
                alpha=0.5 if faint else 1,
                label=name,
            )
        axes.plot(plain.numbers["mean"], plain.numbers["accuracy"], "*", ms=14, color=INK, label="unchanged")
        if chosen is not None:
            axes.plot(chosen.numbers["mean"], chosen.numbers["accuracy"], "o", ms=13, mfc="none", mec=INK,
                      label="chosen on validation")  # fmt: skip
        axes.set(title="Accuracy against length", xlabel="mean thinking tokens", ylabel="accuracy")
        axes.legend(fontsize=8)
        figure.savefig(path, dpi=150)


def draw_sweep(outcomes: Sequence[Outcome], logits: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Length, accuracy and the end token's first logit against the strength, the direction beside random ones."""
    with drawing():
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        panels = figure.subplots(1, 3)
        plain = next(found for found in outcomes if found.knob == "none")
        for axes, key, name in zip(panels, ("mean", "accuracy"), ("mean thinking tokens", "accuracy"), strict=False):
            for index, knob in enumerate(dict.fromkeys(f.knob for f in outcomes if f.knob != "none")):
                points = sorted([plain, *(f for f in outcomes if f.knob == knob)], key=lambda f: f.value)
                style: dict[str, Any] = {"color": SERIES[0], "marker": "o"}
                if knob.startswith("random"):
                    style = {"color": MUTED, "marker": MARKERS[index % len(MARKERS)], "alpha": 0.5}
                axes.plot([p.value for p in points], [p.numbers[key] for p in points], ms=4, label=knob, **style)
            axes.set(title=name, xlabel="strength λ")
        panels[0].legend(fontsize=8)
        for name, found in logits.items():
            panels[2].plot(found["strength"], found["end"], "o-", ms=4, label=name,
                           color=SERIES[0] if name == "direction" else MUTED)  # fmt: skip
        panels[2].set(title="logit of the end, first position", xlabel="strength λ")
        figure.savefig(path, dpi=150)


def draw_roc(curves: dict[str, tuple[Any, Any, float]], reliability: tuple[Any, Any], path: Path) -> None:
    """ROC of a detector and its baselines, and how far its probabilities are to be believed."""
    with drawing():
        figure = Figure(figsize=(8.5, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for index, (name, (false, true, area)) in enumerate(curves.items()):
            left.plot(false, true, color=SERIES[index], label=f"{name}, AUC {area:.3f}")
        left.plot([0, 1], [0, 1], color=MUTED, lw=0.8)
        left.set(title="ROC, test problems", xlabel="false positives", ylabel="true positives")
        left.legend(fontsize=8)
        right.plot(*reliability, "o-", color=SERIES[0])
        right.plot([0, 1], [0, 1], color=MUTED, lw=0.8)
        right.set(title="Calibration", xlabel="probability given", ylabel="share that did")
        figure.savefig(path, dpi=150)


def _bars(points: Sequence[Outcome]) -> Any:
    values = np.array([[p.numbers[f"accuracy{end}"] for end in ("", "/low", "/high")] for p in points])
    return np.maximum([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]], 0)
