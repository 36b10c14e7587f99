"""``forethought recommend``: the best next items of a run."""

from __future__ import annotations

import argparse
import csv
import io
import json
from typing import TYPE_CHECKING, Any

from forethought.errors import DataError

if TYPE_CHECKING:
    from forethought.data.catalog import Catalog


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "recommend",
        parents=[common],
        allow_abbrev=False,
        help="the best next items after a history, or for a user",
        description="Print the best next items after a history, or for a user of the training data, best first.",
    )
    parser.add_argument("path", metavar="RUN", help="a run folder; with --history its model folder is enough")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument(
        "--history", metavar='"ID,ID,…"',
        help="the items' own ids, oldest first; as in a CSV file, quotes hold an id with a comma: 'ID,\"ID, II\",ID'",
    )  # fmt: skip
    who.add_argument("--user", metavar="ID", help="the user's own id; everything the data tells of the user is read")
    parser.add_argument("-k", type=int, default=10, metavar="K", help="how many (default 10)")
    parser.add_argument(
        "--chains", type=int, default=0, metavar="N",
        help="of a PreferGrow: draw the list by N random chains; few make varied lists, each --seed another",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=steps, metavar="K",
        help="of a ReaRec or a LARES: think so many steps before answering, by default as many as it was trained for; "
        "auto thinks as long as 'forethought dial' found this history to need",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON: [{id, title, score}, …]")
    parser.add_argument("--include-seen", action="store_true", help="do not leave out items of the history")
    parser.set_defaults(run=run)


def steps(text: str) -> int | str:
    """A number of steps, or ``auto``."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is neither a whole number nor auto") from None


def parse_history(text: str, catalog: Catalog) -> list[str]:
    """The items' own ids in ``"ID,ID,…"``, as in a line of CSV; spaces around one that is not known are let be.

    Raises:
        DataError: one of them is longer than :mod:`csv` reads.
    """
    rows = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        parts = [part for row in rows for part in row if part.strip()]
    except csv.Error as error:
        raise DataError(f"The history cannot be read as ids parted by commas ({error}).") from error
    return [part if part in catalog else part.strip() for part in parts]


def run(options: argparse.Namespace) -> None:
    from forethought.cli import open_run, printable

    opened = open_run(options)
    how = (options.k, not options.include_seen, options.chains, options.seed or 0, options.steps)
    if options.history is not None:
        best = opened.recommend(parse_history(options.history, opened.catalog), *how)
    else:
        best = opened.recommend_user(options.user, *how)
    if options.json:
        print(json.dumps([item._asdict() for item in best], ensure_ascii=False, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "id", "title", "score", box=None)
    for place, item in enumerate(best, start=1):
        own, title = (Text(printable(str(text))) for text in (item.id, item.title))  # brackets are no markup here
        table.add_row(str(place), own, title, f"{item.score:.4f}")
    Console().print(table)
