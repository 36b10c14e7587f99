"""Figures of thinking progress, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from forethought.evaluation.figures import MARKERS, MUTED, SERIES, drawing
from forethought.reasoners.progress.intervention import ADAPTIVE, WHOLE
from forethought.reasoners.progress.training import Report
from forethought.reasoners.strength.knobs import Outcome


def draw_thoughts(report: Report, path: Path) -> None:
    """True and read progress over time, a panel a test thought, by length; smoothed in time and in nothing else."""
    with drawing():
        figure = Figure(figsize=(3 * len(report.drawn), 3), layout="constrained")
        for axes, readings in zip(figure.subplots(1, len(report.drawn), squeeze=False)[0], report.drawn, strict=True):
            length = len(readings["shown"])
            axes.plot([0, length], [0, 1], color=MUTED, lw=1, label="true")
            for index, (name, values) in enumerate(readings.items()):
                style = "-" if name == "shown" else ":"
                axes.plot(range(1, length + 1), values, style, lw=1.8 if name == "shown" else 1, color=SERIES[index],
                          label=name)  # fmt: skip
            axes.set(title=f"{length} tokens", xlabel="token", ylim=(-0.1, 1.1))
        figure.axes[0].set(ylabel="progress")
        figure.axes[0].legend(fontsize=7)
        figure.savefig(path, dpi=150)


def draw_deciles(report: Report, path: Path) -> None:
    """Mean squared error in every tenth of a thought, a line a reader."""
    with drawing():
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for index, (name, errors) in enumerate(report.deciles.items()):
            axes.plot(np.arange(10) / 10 + 0.05, errors, marker=MARKERS[index], ms=4, color=SERIES[index], label=name)
        axes.axhline(1 / 12, color=MUTED, lw=0.8, ls=":")
        axes.set(title="Error by true progress, test problems", xlabel="progress", ylabel="MSE", ylim=(0, None))
        axes.legend(fontsize=8)
        figure.savefig(path, dpi=150)


def draw_parts(outcomes: Sequence[Outcome], path: Path) -> None:
    """Length and accuracy against α: the whole bias, its parts, the schedule, random biases where it goes as far."""
    with drawing():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        plain = next(found for found in outcomes if found.knob == "none")
        # the raw vector has another length, so that its α is another unit
        names = [name for name in dict.fromkeys(f.knob for f in outcomes) if name not in ("none", "raw vector")]
        whole = sorted([0.0, *(f.value for f in outcomes if f.knob == WHOLE)])
        for axes, key, title in zip(
            figure.subplots(1, 2), ("mean", "accuracy"), ("mean thinking tokens", "accuracy"), strict=True
        ):
            for index, name in enumerate(names):
                points = sorted([plain, *(f for f in outcomes if f.knob == name)], key=lambda f: f.value)
                faint = name.startswith("random")
                axes.plot(
                    whole if faint else [p.value for p in points],
                    [p.numbers[key] for p in points],
                    marker=MARKERS[index % len(MARKERS)],
                    ms=4,
                    lw=2.2 if name == WHOLE else 1.2,
                    ls="--" if name == ADAPTIVE else "-",
                    color=MUTED if faint else SERIES[index],
                    label=name,
                )
            axes.set(title=title, xlabel="α")
        figure.axes[0].legend(fontsize=7)
        figure.savefig(path, dpi=150)
