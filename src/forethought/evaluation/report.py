"""HTML pages that need nothing else: no script, style, font or picture is loaded."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy.typing as npt
from matplotlib.figure import Figure

from forethought.atomic import atomic_file
from forethought.evaluation import figures
from forethought.evaluation.compare import Comparison
from forethought.evaluation.leaderboard import Column, beyond_accuracy, columns, facts, heading, made, to_markdown
from forethought.evaluation.metrics import title

HOW_TO_READ = (
    "Each row is one method; runs that differ only by seed are averaged. <b>HR@K</b> is the share of cases whose next "
    "item stands among the K best of the whole catalogue, <b>NDCG@K</b> also rewards a high place, <b>MRR@K</b> is the "
    "mean of 1 / place. Tied scores count as the mean over their orders. <b>±</b> is the standard deviation over "
    "seeds; the interval is the 95 % bootstrap interval over users. <b>Best − this</b> is how far the leader is ahead "
    "on the same users, and <b>p</b> how often chance alone gives such a lead: a paired randomisation test over users, "
    "corrected by Holm for the number of rows. <b>Coverage</b> is the share of the catalogue that appears in some "
    "list, <b>novelty</b> the mean surprise of a listed item in bits, <b>popular</b> the share of list entries from "
    "the most popular tenth of the catalogue. Compare numbers only within this page: another protocol, another file "
    "or another rule for seen items makes other numbers."
)
FIGURES: dict[str, tuple[str, Callable[[Comparison], Figure | None]]] = {
    "How sure": (
        "{metric}: the mark is the mean over seeds, the bar its 95 % interval over users, ticks are single seeds. "
        "Overlapping bars do not mean that a difference is chance: the users are the same, so read p.",
        figures.leaderboard,
    ),
    "Who is served": (
        "{metric} for quarters of the cases, by how long the history is and by how often the target occurs in "
        "training; bars are 95 % intervals over users. A model that lives on popular items falls to the left of the "
        "second panel.",
        figures.slices,
    ),
    "What it costs": ("{metric} against training time and size; up and to the left is better.", figures.cost),
    "How it was learned": (
        "Validation {metric} over training (of the first phase, where there are two); the mark is the best checkpoint "
        "by what its recipe selects by.",
        figures.learning_curves,
    ),
}
GROWING = (
    "The model starts from noise, where every item is about equally likely (dotted line), and removes it step by step. "
    "Lines are the items that end highest in each panel; the thick one is what the user really chose next, and rank is "
    "its place in the ranking at that w. w is the guidance strength: 0 ignores the user, 1 is the model as trained, "
    "more stresses what sets this user apart. "
)
EXACT = "The probabilities are exact: this model's law is known at every noise level."
AVERAGED = (
    "Each is an average over {chains:,} random chains, so one of a few in {chains:,} is mostly chance; more chains "
    "(--chains) make it smoother. The rank is that of the one-step scores, which nothing random goes into."
)
SHOWN_HISTORY = 20  # newest items listed below the picture


def to_html(comparison: Comparison, command: str = "") -> str:
    """One page with table and figures; it loads nothing."""
    metric = title(comparison.metric)
    parts = [f'<p class="lead">{html.escape(comparison.verdict())}</p>']
    parts += [f'<div class="note"><p>{html.escape(note)}</p></div>' for note in comparison.notes()]
    table, extra = columns(comparison), beyond_accuracy(comparison)
    parts += [_section("Leaderboard", "Click a heading to sort.", _sortable(comparison, table))]
    for name, (caption, draw) in FIGURES.items():
        figure = draw(comparison)
        if figure is not None:
            drawing = f'<div class="wide">{figures.to_svg(figure, name)}</div>'
            parts.append(_section(name, caption.format(metric=metric), drawing))
    parts.append(
        _section(
            "Beyond accuracy", "What the lists are made of, and the price.", _sortable(comparison, [table[0], *extra])
        )
    )
    parts.append(f"<section><h2>How to read this</h2><p>{HOW_TO_READ}</p></section>")
    parts.append(
        _section("Every cut-off", "With seen items removed from the ranking and with them kept.", _cutoffs(comparison))
    )
    parts.append(_section("Where the numbers come from", "", _provenance(comparison)))
    return _page(heading(comparison), facts(comparison).items(), "\n".join(parts), command)


def write_report(comparison: Comparison, folder: str | os.PathLike[str], command: str = "") -> Path:
    """Write ``leaderboard.md``, ``leaderboard.json`` and ``report.html`` into ``folder``; returns the page.

    Raises:
        ArtefactError: the folder cannot be written.
    """
    folder = Path(folder)
    for name, text in (
        ("leaderboard.md", to_markdown(comparison, command)),
        ("leaderboard.json", json.dumps(comparison.as_dict(), indent=2, ensure_ascii=False) + "\n"),
        ("report.html", to_html(comparison, command)),
    ):
        with atomic_file(folder / name) as scratch:
            scratch.write_text(text, encoding="utf-8")
    return folder / "report.html"


def write_growing(
    path: str | os.PathLike[str],
    guidance: Sequence[float],
    levels: Sequence[float] | npt.NDArray[Any],
    probabilities: npt.NDArray[Any],
    titles: Sequence[str],
    target: int | None = None,
    ranks: Sequence[float] = (),
    *,
    chains: int | None = None,
    heading: str = "How a preference grows",
    history: Sequence[str] = (),
    facts: Iterable[tuple[str, str]] = (),
    command: str = "",
) -> tuple[Path, Path]:
    """Draw growing preferences as ``PATH.png`` and ``PATH.html``.

    Args:
        path: without suffix.
        guidance, levels, probabilities, titles, target, ranks: as :func:`figures.draw_growing`.
        chains: how many random chains the probabilities are averages of; None where they are exact.
        heading: of the page.
        history: titles of what the user did before, oldest first.
        facts: names and values for the top of the page, such as the run and the user.

    Returns:
        The two files.
    """
    figure = figures.draw_growing(guidance, levels, probabilities, titles, target, ranks)
    png, page = Path(f"{path}.png"), Path(f"{path}.html")
    with atomic_file(png) as scratch, figures.drawing():
        figure.savefig(scratch, format="png", dpi=160, facecolor="white")
    explained = GROWING + (EXACT if chains is None else AVERAGED.format(chains=chains))
    parts = [_section("Growing", explained, f'<div class="wide">{figures.to_svg(figure, heading)}</div>')]
    if history:
        items = "".join(f"<li>{html.escape(item)}</li>" for item in history[-SHOWN_HISTORY:])
        shown = f"The newest {SHOWN_HISTORY} of {len(history):,}" if len(history) > SHOWN_HISTORY else "Everything"
        parts.append(_section("What the user did before", f"{shown}, oldest first.", f"<ol>{items}</ol>"))
    with atomic_file(page) as scratch:
        scratch.write_text(_page(heading, facts, "\n".join(parts), command), encoding="utf-8")
    return png, page


def _sortable(comparison: Comparison, table: Sequence[Column]) -> str:
    rows = []
    for row, entry in enumerate(comparison.entries):
        cells = []
        for column in table:
            text, key = column.cells[row]
            shown = html.escape(text).replace(" ±", " <small>±").replace(" [", " <small>[").replace(" (", " <small>(")
            shown += "</small>" if "<small>" in shown else ""
            if column is table[0]:
                shown = html.escape(text) + ('<span class="tag">baseline</span>' if entry.baseline else "")
            cells.append(f'<td data-sort="{html.escape("" if key is None else str(key))}">{shown}</td>')
        rows.append(f"<tr{' class=best' if entry is comparison.best else ''}>{''.join(cells)}</tr>")
    heads = "".join(
        f'<th scope="col" title="{html.escape(column.hint)}">'
        f'<button type="button">{html.escape(column.heading)}</button></th>'
        for column in table
    )
    return _table(heads, "".join(rows), "sortable")


def _cutoffs(comparison: Comparison) -> str:
    names = sorted(comparison.best.intervals[comparison.column], key=lambda name: name.partition("@")[0])
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("Model", *map(title, names)))
    text = ""
    for seen in (comparison.seen, "kept" if comparison.seen == "removed" else "removed"):
        rows = ""
        for entry in comparison.entries:
            values = "".join(f"<td>{entry.mean[f'seen_{seen}'][name]:.4f}</td>" for name in names)
            rows += f"<tr><td>{html.escape(entry.name)}</td>{values}</tr>"
        opened = " open" if seen == comparison.seen else ""
        text += f"<details{opened}><summary>Seen items {seen}</summary>{_table(heads, rows)}</details>"
    return text


def _provenance(comparison: Comparison) -> str:
    names = ("Model", "Run", "Seed", "Machine", "Started", "Versions", "Command")
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows, number = "", 0
    for entry in comparison.entries:
        for run in entry.runs:
            number += 1
            versions = ", ".join(f"{name} {version}" for name, version in dict(run.info.get("versions", {})).items())
            machine = f"{run.info.get('device', '')}, {run.info.get('threads', '')} threads"
            command = run.info.get("command", "")
            said = command if isinstance(command, str) else " ".join(map(str, command))
            cells = (entry.name, run.path, run.seed, machine, run.info.get("started", ""), versions, said)
            rows += "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"
    return (
        f"<p>Data fingerprint <code>{html.escape(comparison.evaluation.fingerprint)}</code></p>"
        f"<details><summary>{number} runs</summary>{_table(heads, rows)}</details>"
    )


def _table(heads: str, rows: str, kind: str = "") -> str:
    return f'<div class="wide"><table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _section(heading: str, hint: str, content: str) -> str:
    said = f'<p class="hint">{html.escape(hint)}</p>' if hint else ""
    return f"<section><h2>{html.escape(heading)}</h2>{said}{content}</section>"


def _page(heading: str, facts: Iterable[tuple[str, str]], body: str, command: str) -> str:
    template = Template(files("forethought.evaluation").joinpath("page.html").read_text(encoding="utf-8"))
    chips = "".join(f"<li><b>{html.escape(name)}</b>{html.escape(value)}</li>" for name, value in facts)
    return template.substitute(
        title=html.escape(f"{heading} · forethought"),
        heading=html.escape(heading),
        facts=chips,
        body=body,
        made=html.escape(made(command)),
    )
