"""``forethought probe``: the instruments on a trained recommender."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    from forethought.cli import whole

    parser = subparsers.add_parser(
        "probe",
        parents=[common],
        allow_abbrev=False,
        help="does a recommender need to think on, and how popular is it to recommend",
        description="Fit, on validation users, a probe that tells after each step of a model's thought whether the "
        "steps after it will change the top 10, and test it beside what the history's length and the newest item's "
        "popularity tell. Then steer the model along the direction of popularity and draw accuracy against novelty.",
    )
    parser.add_argument("path", metavar="RUN", help="a run folder")
    parser.add_argument("--steps", type=int, metavar="T", help="steps of the thought; by default the model's")
    parser.add_argument(
        "--share", type=float, default=0.5, metavar="A",
        help="the top 10 changes where less than this share of the final one is there already (default 0.5)",
    )  # fmt: skip
    parser.add_argument("--users", type=int, default=4096, metavar="N", help="most of each split (default 4096)")
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=[-0.4, -0.2, -0.1, 0.1, 0.2, 0.4], metavar="S",
        help="of the popularity direction, 1 as long as a final state",
    )  # fmt: skip
    parser.add_argument("--random", type=whole, default=1, metavar="N", help="random directions beside (default 1)")
    parser.add_argument("--out", metavar="DIR", help="by default RUN/probe")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from forethought.cli import open_run
    from forethought.errors import ArtefactError
    from forethought.recommenders.probing import save, settling, steer_popularity

    opened = open_run(options)
    seed = options.seed or 0
    found = settling(opened, share=options.share, steps=options.steps, users=options.users, seed=seed)
    try:
        steered = steer_popularity(opened, options.strengths, random=options.random, seed=seed)
    except ArtefactError as error:  # no final norm, or no inner product
        print(f"forethought: not steered: {error}", file=sys.stderr)
        steered = None
    out = save(found, steered, opened, options.out or opened.path / "probe", shlex.join(["forethought", *sys.argv[1:]]))
    for heading, rows in (("Will the top 10 change?", found.rows), ("Steered", steered.rows if steered else [])):
        if not rows:
            continue
        table = Table(title=heading, box=box.SIMPLE_HEAD, title_justify="left")
        for name in max(rows, key=len):
            table.add_column(name, justify="right")
        for row in rows:
            cells = [row.get(name, "–") for name in max(rows, key=len)]
            table.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in cells))
        Console().print(table)
    print(out)
