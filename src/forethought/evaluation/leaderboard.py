"""A comparison as a table on the terminal, and as Markdown, from the same columns."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from forethought.evaluation.compare import Comparison, Entry
from forethought.evaluation.metrics import title


@dataclass(frozen=True)
class Column:
    """One column of the leaderboard: its heading, what it means, and for each entry a text and a key to sort by."""

    heading: str
    hint: str
    cells: Sequence[tuple[str, float | str | None]]


def columns(comparison: Comparison) -> list[Column]:
    """The leaderboard, the same for every way of showing it."""
    k, seen = comparison.metric.partition("@")[2], comparison.column
    entries, metric = comparison.entries, comparison.metric
    bounds = [entry.intervals[seen][metric] for entry in entries]
    table = [Column("Model", "name of the run's recipe", [(entry.name, entry.name) for entry in entries])]
    spread = "mean over seeds ± standard deviation over seeds"
    for name in [metric, *(name for name in (f"hr@{k}", f"ndcg@{k}") if name != metric)][:2]:
        cells = [(_with_spread(entry, seen, name), entry.mean[seen][name]) for entry in entries]
        table.append(Column(title(name), spread, cells))
    table += [
        Column("95 % interval", "bootstrap over users", [(f"{low:.4f}–{high:.4f}", low) for low, high in bounds]),
        Column("p", "paired randomisation test, Holm", [_p(entry) for entry in entries]),
        Column("Best − this", "difference to the leader and its 95 % interval", [_gap(entry) for entry in entries]),
        Column("Seeds", "runs averaged", [(str(len(entry.runs)), len(entry.runs)) for entry in entries]),
    ]
    return table


def beyond_accuracy(comparison: Comparison) -> list[Column]:
    """What the lists are made of and what the model cost, a row an entry as in :func:`columns`."""
    k, entries = comparison.metric.partition("@")[2], comparison.entries
    values = {
        name: [entry.mean[comparison.column][f"{name}@{k}"] for entry in entries]
        for name in ("coverage", "novelty", "popularity_share")
    }
    popular = [(f"{value:.1%}", value) for value in values["popularity_share"]]
    return [
        Column(f"Coverage@{k}", "share of the catalogue in some list", [(f"{v:.1%}", v) for v in values["coverage"]]),
        Column(f"Popular@{k}", "share of list entries from the most popular tenth of the catalogue", popular),
        Column(f"Novelty@{k}", "mean surprise of a listed item, bits", [(f"{v:.2f}", v) for v in values["novelty"]]),
        Column("Seconds", "of training, mean over seeds", [(f"{e.seconds:,.1f}", e.seconds) for e in entries]),
        Column("Parameters", "trained numbers", [(f"{e.parameters:,}", e.parameters) for e in entries]),
    ]


def facts(comparison: Comparison) -> dict[str, str]:
    """What every leaderboard names."""
    about = comparison.evaluation
    seeds = sorted({seed for entry in comparison.entries for seed in entry.seeds})
    return {
        "data": about.data or "unnamed",
        "protocol": about.protocol,
        "split": about.split,
        "fingerprint": about.fingerprint[:12],
        f"{about.split} users": f"{about.users:,}",
        "items": f"{about.num_items:,}",
        "seen items": comparison.seen,
        "seeds": ", ".join(map(str, seeds)),
    }


def terminal_table(comparison: Comparison, width: int) -> RichTable:
    """The leaderboard for a terminal: as many columns as ``width`` characters hold, the telling ones first."""
    table = RichTable(title=escape(heading(comparison)), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    found = columns(comparison)
    width -= 1
    extra = beyond_accuracy(comparison)
    shown: list[list[str]] = []
    for column in [*found[:-2], *extra[:2], extra[3], *found[-2:]]:
        cells = [escape(text) for text, _ in column.cells]
        if column is found[0]:
            cells = [
                cell + " (baseline)" * entry.baseline for cell, entry in zip(cells, comparison.entries, strict=True)
            ]
        width -= max(map(len, [column.heading, *cells])) + 3
        if width < 0 and shown:
            break
        table.add_column(column.heading, justify="left" if column is found[0] else "right", no_wrap=True)
        shown.append(cells)
    for row, entry in enumerate(comparison.entries):
        table.add_row(*(cells[row] for cells in shown), style="bold" if entry is comparison.best else "")
    return table


def print_leaderboard(comparison: Comparison, console: Console | None = None) -> None:
    """Print table, facts, verdict and notes."""
    console = console or Console(width=None if sys.stdout.isatty() else 140)
    console.print(terminal_table(comparison, console.width))
    console.print(escape(" · ".join(f"{name} {value}" for name, value in facts(comparison).items())), style="dim")
    console.print(escape(comparison.verdict()), highlight=False)
    for note in comparison.notes():
        console.print(f"[yellow]Note:[/yellow] {escape(note)}", highlight=False)


def to_markdown(comparison: Comparison, command: str = "") -> str:
    """Facts, table, verdict, notes and the runs behind it."""
    table = columns(comparison) + beyond_accuracy(comparison)
    lines = [f"# {heading(comparison)}", ""]
    lines += [" · ".join(f"{name} **{_plain(value)}**" for name, value in facts(comparison).items()), ""]
    lines += ["| " + " | ".join(column.heading for column in table) + " |"]
    lines += ["|---|" + "---:|" * (len(table) - 1)]
    for row, entry in enumerate(comparison.entries):
        cells = [_plain(column.cells[row][0]) for column in table]
        if entry.baseline:
            cells[0] += " (baseline)"
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", _plain(comparison.verdict()), ""]
    lines += [f"- {_plain(note)}" for note in comparison.notes()]
    lines += ["", "Runs:", ""]
    lines += [
        f"- {_plain(entry.name)}: " + ", ".join(f"`{run.path}`" for run in entry.runs) for entry in comparison.entries
    ]
    lines += ["", made(command)]
    return "\n".join(lines) + "\n"


def heading(comparison: Comparison) -> str:
    """What the leaderboard is of."""
    about = comparison.evaluation
    return f"{title(comparison.metric)} leaderboard: {about.data or about.fingerprint[:12]}"


def _with_spread(entry: Entry, seen: str, metric: str) -> str:
    value = f"{entry.mean[seen][metric]:.4f}"
    return f"{value} ±{entry.sd[seen][metric]:.4f}" if entry.sd and entry.parameters else value


def _gap(entry: Entry) -> tuple[str, float | None]:
    if entry.gap is None:
        return "", None
    test = entry.gap.test
    return f"{test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}]", test.difference


def _p(entry: Entry) -> tuple[str, float | None]:
    if entry.gap is None:
        return "", None
    p = entry.gap.p
    return "< 0.001" if p < 0.001 else f"{p:.3f}", p


def made(command: str) -> str:
    """The sentence at the foot of a result: when it was made, and by which command."""
    by = f" by {command}" if command else ""
    return f"Made on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC{by}."


def _plain(text: str) -> str:
    """Text that a Markdown table shows as it is."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
