"""What thinking progress prints and keeps."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from forethought.reasoners.progress.intervention import Foretold, document
from forethought.reasoners.progress.overclocking import Overclocked, Plan
from forethought.reasoners.progress.preparation import Prepared
from forethought.reasoners.progress.trained import NAMES, Trained
from forethought.reasoners.progress.training import Report
from forethought.reasoners.strength.sweep import document as outcomes_document
from forethought.reasoners.strength.tables import choices_document


def readers(report: Report) -> list[Table]:
    """Every reader on the test problems: how far off it is, and what it makes of the tokens left."""
    error = _table("Test problems", "reader", "MSE", "gain over position", "MSE/token", "order", "rising")
    left = _table("Error of the tokens left, median", "reader", "at 25 %", "at 50 %", "at 75 %", "interval held")
    for name, row in report.rows.items():
        gained = "" if name == "position" else f"{row['gain']:.3f} [{row['gain/low']:.3f}, {row['gain/high']:.3f}]"
        error.add_row(
            name, f"{row['mse']:.4f}", gained, f"{row['mse-token']:.4f}", f"{row['order']:.2f}", f"{row['rising']:.0%}"
        )
        etas = [f"{row[f'eta-{share}']:.0f} ({row[f'eta-{share}-relative']:.0%})" for share in (25, 50, 75)]
        left.add_row(name, *etas, f"{row['coverage']:.0%} of {row['level']:.0%}" if "coverage" in row else "")
    return [error, left]


def families(report: Report) -> Table:
    """Errors by family, trained on all of them and on others only."""
    names = {"position": "position", "TPV, centred": "TPV", "GRU": "GRU"}
    table = _table("MSE by family: trained on all, on others only", "family", *names.values(), *names.values())
    for family, row in report.families.items():
        across = row.get("across", {})
        cells = [f"{row['within'][name]:.4f}" for name in names]
        table.add_row(family, *cells, *(f"{across[name]:.4f}" if name in across else "–" for name in names))
    return table


def told(trained: Trained, report: Report) -> str:
    """Which source a bar will show, and why."""
    gains = ", ".join(
        f"{name} {found[0]:.4f} [{found[1]:.4f}, {found[2]:.4f}]" for name, found in report.validation.items()
    )
    if trained.source == "position":
        return f"On validation no probe is better than the position for certain (gains {gains}): a bar shows that."
    return f"A bar shows the {NAMES[trained.source]}, the best on validation (gains over the position: {gains})."


def foretold(planned: Plan) -> Table:
    """What the vectors will do, before they are used."""
    table = _table(
        "Before use, on validation thoughts", "vector", "α", "α · advantage at α = 0", "KL, nats a token", "‖bias‖"
    )
    for name, alphas in planned.alphas.items():
        found = planned.foretold[name]
        for alpha in sorted(alphas):
            table.add_row(
                name, f"{alpha:g}", f"{alpha * found.advantage:+.3f}", f"{found.kl[alpha]:.3f}",
                f"{abs(alpha) * found.norm:.2f}",
            )  # fmt: skip
    return table


def vectors(trained: Trained, planned: Plan) -> str:
    """Their norms and what they favour, in sentences."""
    lines = []
    for name, probe in (("centred", trained.tpv), ("raw", trained.raw)):
        found: Foretold = planned.foretold[name]
        lines.append(
            f"The {name} vector: ‖θ‖ = {float((probe.weight @ probe.weight) ** 0.5):.3f}, its entry at the end "
            f"{found.end:+.4f}, advantage {found.advantage:+.4f} for each unit of α."
        )
    told = "The advantage is the first step of the end's log-odds, at α = 0; which way is shorter, the outcomes tell."
    return "\n".join([*lines, f"Their cosine is {planned.cosine:.3f}. {told}"])


def progress_document(trained: Trained, report: Report, prepared: Prepared, command: str) -> dict[str, Any]:
    """For JSON."""
    return {
        "command": command,
        "source": trained.source,
        "validation": report.validation,
        "test": report.rows,
        "families": report.families,
        "deciles": {name: values.tolist() for name, values in report.deciles.items()},
        "beta": {source: meter.beta for source, meter in trained.meters.items()},
        "left_out": prepared.left_out,
        "provenance": prepared.provenance,
    }


def overclocked_document(found: Overclocked, planned: Plan, command: str) -> dict[str, Any]:
    """For JSON."""
    return {
        "command": command,
        "foretold": {
            **{name: document(planned.foretold[name], alphas) for name, alphas in planned.alphas.items()},
            "cosine": planned.cosine,
        },
        "note": planned.note,
        "outcomes": {part: outcomes_document(done) for part, done in found.outcomes.items()},
        "choices": choices_document(found.choices),
    }


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for index, head in enumerate(heads):
        table.add_column(head, justify="left" if index == 0 else "right")
    return table
