"""``forethought think``: what a model would have recommended after each step of its thought."""

from __future__ import annotations

import argparse
import json
from typing import Any


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "think",
        parents=[common],
        allow_abbrev=False,
        help="what a model would recommend after each step of its thought",
        description="Print the best items after each step a model takes between reading a history and answering: "
        "reasoning tokens, applications of a core, or blocks. An item that the step before did not have is marked with "
        "+, and beside each step stands how far its answer moved, in nats.",
    )
    parser.add_argument("path", metavar="RUN", help="a run folder; with --history its model folder is enough")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", metavar="ID", help="the user's own id; everything the data tells of the user is read")
    who.add_argument("--history", metavar='"ID,ID,…"', help="the items' own ids, oldest first")
    parser.add_argument("-k", type=int, default=5, metavar="K", help="how many items a step (default 5)")
    parser.add_argument("--steps", type=int, metavar="T", help="by default as many as the model was trained for")
    parser.add_argument("--json", action="store_true", help="print JSON: [{step, titles, scores, moved}, …]")
    parser.add_argument("--include-seen", action="store_true", help="do not leave out items of the history")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import torch

    from forethought.cli import open_run, printable
    from forethought.cli.recommend import parse_history
    from forethought.recommenders.thinking import answers

    opened = open_run(options)
    torch.manual_seed(options.seed or 0)  # of models that think by chance
    if options.user is not None:
        history = opened.history_of(options.user)
    else:
        history = torch.from_numpy(opened.catalog.encode(parse_history(options.history, opened.catalog)))
    steps = answers(opened, history, options.k, options.steps, not options.include_seen)
    if options.json:
        print(json.dumps([step._asdict() for step in steps], ensure_ascii=False, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("step", "moved", "best items", box=box.SIMPLE_HEAD)
    before: list[str] = []
    for step in steps:
        marks = ["+ " if before and title not in before else "  " for title in step.titles]
        lines = "\n".join(f"{mark}{printable(title)}" for mark, title in zip(marks, step.titles, strict=True))
        table.add_row(str(step.step), "" if step.moved is None else f"{step.moved:.4f}", Text(lines))
        before = step.titles
    Console().print(table)
