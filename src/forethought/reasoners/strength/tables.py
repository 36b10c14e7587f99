"""What reasoning strength prints and keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from forethought.atomic import atomic_file
from forethought.reasoners.rollouts import Sampling
from forethought.reasoners.strength.analysis import Analysis, clean
from forethought.reasoners.strength.collection import Collection
from forethought.reasoners.strength.knobs import Outcome
from forethought.reasoners.strength.sweep import Choice

if TYPE_CHECKING:
    from forethought.reasoners.strength.overthink import Overthinking


def show(*tables: Table) -> None:
    """Print tables to standard output."""
    console = Console()
    for table in tables:
        console.print(table)


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, atomically."""
    with atomic_file(path) as scratch:
        scratch.write_text(json.dumps(clean(content), indent=2) + "\n", encoding="utf-8")


def sampling_of(collection: Collection) -> Sampling:
    """How its rollouts were drawn."""
    return Sampling(**collection.rollouts.settings["sampling"])


def sites(analysis: Analysis) -> Table:
    """Probe and directions, a row a site."""
    table = _table("Every site", "site", "ρ choose", "ρ test", "R² test", "cosine", "null 95 %", "norms by level")
    for row in analysis.sites:
        if row.get("constant"):
            table.add_row(str(row["site"]), "the same for every prompt")
            continue
        norms = ", ".join(f"{norm:.2f}" for norm in row.get("norms", []))
        cells = [
            row["choose/spearman"],
            row["test/spearman"],
            row["test/r2"],
            row.get("cosine"),
            row.get("cosine/null-95"),
        ]
        mark = " *" if row["site"] == analysis.best else ""
        table.add_row(f"{row['site']}{mark}", *map(_number, cells), norms)
    return table


def controls(analysis: Analysis) -> Table:
    """The best probe on the test problems, and what it is held to."""
    table = _table(f"Probe ({analysis.probe.kind}) at site {analysis.best}, test problems", "measure", "value")
    for name, value in analysis.controls.items():
        table.add_row(name, _number(value))
    if cut := analysis.controls["censored"]:
        table.caption = (
            f"{cut:.1%} of the thoughts were cut off. Here and in the other tables they count as if they ended there: "
            "all but the interval's coverage is against such capped means."
        )
    return table


def families(analysis: Analysis) -> Table:
    """The same inside each family."""
    table = _table("Inside each family", "family", "problems", "ρ probe", "p", "ρ prompt length")
    for name, row in analysis.families.items():
        cells = [row["spearman"], row["spearman/p"], row["prompt-length/spearman"]]
        table.add_row(name, f"{row['problems']:.0f}", *map(_number, cells))
    return table


def outcomes(found: list[Outcome]) -> Table:
    """Length and accuracy, a row a setting."""
    table = _table("Test problems", "knob", "value", "thinking tokens", "median", "ended", "accuracy")
    for outcome in found:
        n = outcome.numbers
        table.add_row(
            outcome.knob,
            f"{outcome.value:g}",
            f"{n['mean']:.1f} [{n['mean/low']:.1f}, {n['mean/high']:.1f}]",
            f"{n['median']:.0f}",
            f"{n['ended']:.1%}",
            f"{n['accuracy']:.3f} [{n['accuracy/low']:.3f}, {n['accuracy/high']:.3f}]",
        )
    return table


def choices(found: dict[str, Choice]) -> Table:
    """What was chosen of each knob, and what it came to."""
    table = _table("Chosen on other problems", "of", "knob", "value", "tokens saved", "accuracy lost")
    for name, choice in found.items():
        table.add_row(
            name, choice.missed or choice.knob, f"{choice.value:g}", _share(choice.saved), _share(choice.lost)
        )
    return table


def choices_document(found: dict[str, Choice]) -> dict[str, Any]:
    """For JSON."""
    return {
        name: {
            "knob": c.knob,
            "value": c.value,
            "missed": c.missed,
            "saved": c.saved,
            "lost": c.lost,
            "chosen_on": c.chosen_on.numbers,
            "tested": c.tested.numbers,
        }
        for name, c in found.items()
    }


def detector(found: Overthinking) -> Table:
    """The detector and its baselines."""
    table = _table(f"More than {found.threshold:.0f} thinking tokens, read at site {found.site}", "measure", "value")
    for name, value in found.numbers.items():
        table.add_row(name, _number(value))
    return table


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for index, head in enumerate(heads):
        table.add_column(head, justify="left" if index == 0 else "right")
    return table


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"


def _share(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.1%} [{found[1]:.1%}, {found[2]:.1%}]"
