"""``forethought evaluate``: honest numbers of a run on a held-out part."""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forethought.evaluation.evaluator import Evaluation


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        parents=[common],
        allow_abbrev=False,
        help="rank the held-out targets of a run",
        description="Rank every held-out target among all items, with seen items removed and kept, and print HR, NDCG "
        "and MRR with 95 % intervals over users, and coverage, novelty and popularity share of the lists. The result "
        "stays in RUN/evaluation, where 'forethought compare' reads it.",
    )
    parser.add_argument("path", metavar="RUN")
    parser.add_argument("--split", choices=["test", "valid"], default="test", help="default test")
    parser.add_argument("--seen", choices=["removed", "kept", "both"], default="both", help="which ranking to show")
    parser.add_argument(
        "--steps",
        type=_steps,
        metavar="K,K,…",
        help="also at these numbers of reasoning steps, such as 0,1,2,4,8; auto is what 'forethought dial' chose",
    )
    parser.add_argument(
        "--interventions", action="store_true",
        help="also with the thoughts set to zero, shuffled across users, and random of equal norm",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON; - for standard output, alone")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from forethought.atomic import atomic_file
    from forethought.cli import open_run
    from forethought.recommenders import thinking

    opened = open_run(options)
    with progress_bar(options.quiet) as progress:
        seed = 0 if options.seed is None else options.seed
        tell = None if progress is None else functools.partial(progress, opened.path.name)
        for each in options.steps or ():  # before the work is done
            thinking.depth(opened, each)
        if options.interventions:
            changed = thinking.changeable(opened)
        evaluation = opened.evaluate(options.split, seed=seed, progress=tell)
        thoughts: dict[str, list[dict[str, Any]]] = {}
        if options.steps is not None:
            thoughts["steps"] = thinking.by_steps(opened, options.steps, options.split, progress=progress)
        if options.interventions:
            found = thinking.by_intervention(opened, options.split, seed=seed, progress=progress)
            thoughts["interventions"] = found
        if thoughts:
            thinking.save(opened, options.split, thoughts, shlex.join(["forethought", *sys.argv[1:]]))
    text = json.dumps({**evaluation.as_dict(), **thoughts}, indent=2, ensure_ascii=False) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
        return
    if options.json is not None:
        with atomic_file(Path(options.json)) as scratch:
            scratch.write_text(text, encoding="utf-8")
    print_evaluation(evaluation, ["removed", "kept"] if options.seen == "both" else [options.seen])
    for rows in thoughts.values():
        print_rows(rows)
    if options.interventions and changed < opened.model.steps:
        print(
            "The first step reads the history alone, so before it there is no thought to take away: of "
            f"{opened.model.steps} steps, {changed} went on from a changed one."
        )


def _steps(text: str) -> list[int | str]:
    try:
        steps = [part if part == "auto" else int(part) for part in text.split(",")]
    except ValueError:
        steps = [-1]
    if min((step for step in steps if isinstance(step, int)), default=0) < 0:
        raise argparse.ArgumentTypeError(f"{text} is no list of whole numbers such as 0,1,2,4,8 or 0,2,auto")
    return steps


def print_rows(rows: list[dict[str, Any]]) -> None:
    """A table of rows that have the same keys."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row.values()))
    Console().print(table)


def print_evaluation(evaluation: Evaluation, shown: list[str]) -> None:
    """A table, a column for each rule of seen items, and what the numbers refer to."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from forethought.evaluation.metrics import title

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for seen in shown:
        table.add_column(f"seen {seen}", justify="right", no_wrap=True)
        table.add_column("95 % interval", justify="right", no_wrap=True)
    for name in evaluation.metrics["seen_removed"]:
        row = [title(name)]
        for seen in shown:
            value = evaluation.metrics[f"seen_{seen}"][name]
            bounds = evaluation.intervals.get(f"seen_{seen}", {}).get(name)
            digits = 4 if value < 1 else 2
            row.append(f"{value:.{digits}f}")
            row.append("" if bounds is None else f"{bounds[0]:.{digits}f}–{bounds[1]:.{digits}f}")
        table.add_row(*row)
    console = Console()
    console.print(table)
    facts = (
        f"{evaluation.model} on {evaluation.data or 'unnamed data'} · {evaluation.protocol} · {evaluation.split} · "
        f"{evaluation.users:,} users, {evaluation.num_items:,} items · fingerprint {evaluation.fingerprint[:12]} · "
        f"{evaluation.unreachable:,} targets stand in their user's history · {evaluation.seconds:.2f} s"
    )
    console.print(facts, style="dim", highlight=False, markup=False, emoji=False)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[str, int], None] | None]:
    """Yield a function that shows a run's name and the number of its cases ranked so far; None where nobody looks."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), console=console, transient=True
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda name, done: bar.update(task, description=f"evaluating {name}  {done:,} cases")
