"""``forethought compare``: a leaderboard of several runs."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "compare",
        parents=[common],
        allow_abbrev=False,
        help="leaderboard of several runs",
        description="Print a leaderboard and write it as Markdown, JSON and one HTML page with figures. Runs that "
        "differ only by seed become one row; the best row is tested against each other one. Runs that were not yet "
        "evaluated on the split are evaluated first. Runs on different data or protocols are not mixed. A folder of "
        "runs, such as that of a demo or a search, stands for the finished runs directly in it.",
    )
    parser.add_argument("paths", metavar="RUN", nargs="+", help="a run folder, or a folder of runs")
    parser.add_argument("--out", metavar="DIR", default="comparison", help="for the report (default ./comparison)")
    parser.add_argument("--split", choices=["test", "valid"], default="test", help="default test")
    parser.add_argument("--seen", choices=["removed", "kept"], default="removed", help="items of the history")
    parser.add_argument("--metric", default="ndcg@10", metavar="NAME", help="to sort and test by (default ndcg@10)")
    parser.add_argument("--json", metavar="FILE", help="also write the JSON here; - for standard output, alone")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from forethought.atomic import atomic_file
    from forethought.cli.evaluate import progress_bar
    from forethought.evaluation.leaderboard import print_leaderboard
    from forethought.evaluation.report import write_report
    from forethought.recommenders.comparing import compare

    with progress_bar(options.quiet) as progress:
        comparison = compare(
            options.paths, options.split, seen=options.seen, metric=options.metric, seed=options.seed or 0,
            device=options.device, progress=progress,
        )  # fmt: skip
    page = write_report(comparison, options.out, shlex.join(["forethought", *sys.argv[1:]]))
    text = json.dumps(comparison.as_dict(), indent=2, ensure_ascii=False) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
        return
    if options.json is not None:
        with atomic_file(Path(options.json)) as scratch:
            scratch.write_text(text, encoding="utf-8")
    print(f"Report: {page}")
    print_leaderboard(comparison)
