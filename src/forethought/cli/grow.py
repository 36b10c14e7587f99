"""``forethought grow``: draw how a user's preference grows from noise."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from typing import Any

STRONGEST = 1000.0  # guidance; far beyond what means anything, and well within what can be computed


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "grow",
        parents=[common],
        allow_abbrev=False,
        help="draw how a user's preference grows from noise",
        description="Draw the probability of the top items and of the item that really came next while a PreferGrow "
        "model grows a user's preference from noise, for several guidance strengths w, as PNG and as one HTML page.",
    )
    parser.add_argument("path", metavar="RUN", help="a run folder of a PreferGrow model")
    parser.add_argument("--user", required=True, metavar="ID", help="the user's own id")
    parser.add_argument(
        "--guidance", type=_strength, nargs="+", default=[0.0, 1.0, 3.0], metavar="W",
        help="strengths, a panel each: 0 ignores the user, 1 is the model as trained (default 0 1 3)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, metavar="T", help="growing steps; by default the model's")
    parser.add_argument(
        "--chains", type=int, default=256, metavar="N", help="averaged where the law is not known exactly (default 256)"
    )
    parser.add_argument("--out", metavar="PATH", help="PATH.png and PATH.html; by default RUN/growing/user-ID")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from forethought.cli import open_run
    from forethought.recommenders.growth import draw_user, grow_user

    opened = open_run(options)
    growing = grow_user(
        opened,
        options.user,
        guidance=options.guidance,
        steps=options.steps,
        chains=options.chains,
        seed=options.seed or 0,
    )
    command = shlex.join(["forethought", *sys.argv[1:]])
    for path in draw_user(opened, options.user, growing, options.out, command):
        print(path)


def _strength(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= STRONGEST:
        raise argparse.ArgumentTypeError(f"{text} is no number between -{STRONGEST:g} and {STRONGEST:g}")
    return number
