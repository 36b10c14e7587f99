"""``forethought data``: prepare a log, check it, fetch a public one."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from forethought.data.formats import FORMATS
from forethought.data.splitting import SPLITS


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Add ``data prepare``, ``data check`` and ``data download`` to the command line."""
    parser = subparsers.add_parser("data", help="prepare, check or download interaction logs")
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_prepare(commands, common)


def _add_prepare(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "prepare", parents=[common], help="clean and split a log into a folder that models train on"
    )
    parser.add_argument("path", metavar="PATH", help="file, folder of a known data set, or bundled:movielens-latest-small")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--replace", action="store_true", help="overwrite DIR")
    parser.add_argument("--name", help="what to call the data set")
    _add_reading(parser)
    cleaning = parser.add_argument_group("cleaning, in this order")
    cleaning.add_argument("--min-rating", type=float, metavar="R", help="leave out events rated lower")
    cleaning.add_argument(
        "--duplicates", choices=("keep", "first", "last", "consecutive", "exact"), default="keep",
        help="repeats of an item by a user: keep all, the first or the last, or drop repeats in a row or at the same time",
    )  # fmt: skip
    cleaning.add_argument("--k-core", type=int, default=0, metavar="K", help="users and items with K events or more")
    cleaning.add_argument("--min-length", type=int, default=0, metavar="N", help="users with N events or more")
    cleaning.add_argument("--max-length", type=int, metavar="N", help="only each user's N newest events")
    splitting = parser.add_argument_group("splitting")
    splitting.add_argument("--split", choices=SPLITS, help="default: the split of the source, or leave-one-out")
    splitting.add_argument(
        "--cuts", type=float, nargs=2, default=(0.8, 0.9), metavar=("A", "B"),
        help="global-time: shares of events before validation and before test (default 0.8 0.9)",
    )  # fmt: skip
    parser.set_defaults(run=prepare)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    reading = parser.add_argument_group("reading")
    reading.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="default: found out", metavar="FORMAT")
    reading.add_argument("--user-column", default="user", metavar="NAME", help="default: user")
    reading.add_argument("--item-column", default="item", metavar="NAME", help="default: item")
    reading.add_argument(
        "--time-column", default="timestamp", metavar="NAME", help="default: timestamp; 'none' keeps the order of the file"
    )
    reading.add_argument("--rating-column", metavar="NAME")
    reading.add_argument("--action-column", metavar="NAME")
    reading.add_argument("--session-column", metavar="NAME", help="each session becomes a sequence of its own")
    reading.add_argument("--ids", choices=("auto", "text"), default="auto", help="'text' keeps ids as text")
    reading.add_argument("--items", metavar="FILE", help="titles, categories and text, one row an item")
    reading.add_argument("--items-id", metavar="NAME", help="the id column of that file")
    reading.add_argument(
        "--on-error", choices=("fail", "drop"), default="fail", help="stop at a bad row, or drop and count (default fail)"
    )
    reading.add_argument("--engine", choices=("duckdb", "spark"), default="duckdb", help="what cleans and sorts")


def _read(args: argparse.Namespace) -> Any:
    from forethought.data.interactions import Interactions

    return Interactions.read(
        args.path, args.format, args.user_column, args.item_column, args.time_column, args.rating_column,
        args.action_column, args.session_column, args.on_error, args.engine, args.ids, args.items, args.items_id,
        getattr(args, "threads", None),
    )  # fmt: skip


@contextlib.contextmanager
def working(quiet: bool, title: str) -> Iterator[Callable[[str], None]]:
    """A spinner on standard error that says what is being done and for how long; yields how to change its text."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda text: progress.update(task, description=f"{title}: {text}")


def prepare(args: argparse.Namespace) -> None:
    """Read, clean, split and write a log; print what became of it."""
    with working(args.quiet, f"Preparing {args.path}") as say:
        say("reading")
        interactions = _read(args)
        dataset = interactions.prepare(
            args.out, split=args.split, min_rating=args.min_rating, duplicates=args.duplicates, k_core=args.k_core,
            min_length=args.min_length, max_length=args.max_length, seed=getattr(args, "seed", None) or 0,
            quantiles=tuple(args.cuts), name=args.name, replace=args.replace, command=" ".join(sys.argv), progress=say,
        )  # fmt: skip
    if args.quiet:
        return
    manifest = dataset.manifest
    counts = manifest["counts"]
    console = Console(soft_wrap=True)
    for reason, number in manifest["dropped"].items():
        console.print(f"dropped {number:,} rows ({reason})", highlight=False)
    for rule in manifest["rules"]:
        if "before" in rule:
            gone = rule["before"]["events"] - rule["after"]["events"]
            console.print(f"{rule['rule']}: {gone:,} events left out, {rule['after']['events']:,} remain", highlight=False)
    console.print(
        f"{args.out}: {counts['users']:,} users, {counts['items']:,} items, {counts['events']:,} events; "
        f"{manifest['protocol']}: {counts['valid']:,} validation and {counts['test']:,} test cases",
        highlight=False,
    )
    if counts["users_without_target"]:
        console.print(f"{counts['users_without_target']:,} users have too few events to be tested", highlight=False)
