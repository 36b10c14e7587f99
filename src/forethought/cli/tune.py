"""``forethought tune``: search a recipe's keys on the validation part."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "tune",
        parents=[common],
        allow_abbrev=False,
        help="search a recipe's keys on the validation part",
        usage="forethought tune RECIPE [--search KEY=RANGE …] [--trials N] [--out DIR] [--section.key VALUE …]",
        description="Train variants of a recipe, keep the one best on the validation part (the test part is never "
        "looked at), and print the path of the best recipe on the last line. The same command goes on where it was "
        "stopped.",
    )
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument(
        "--search", action="extend", nargs="+", default=[], metavar="KEY=RANGE",
        help="model.dropout=0.0..0.5  training.learning_rate=1e-4..1e-2:log  model.norm=pre,original; "
        "by default learning rate and dropout",
    )  # fmt: skip
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="finished trials in all (default 20)")
    parser.add_argument("--out", metavar="DIR", help="folder of the search; by default runs/NAME-tune")
    parser.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from forethought.recommenders.tuning import tune

    console = Console(stderr=True)

    def tell(number: int, values: Mapping[str, Any], outcome: float | str) -> None:
        words = "  ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
        )
        result = f"{outcome:.4f}" if isinstance(outcome, float) else outcome
        console.print(
            f"trial {number}  {escape(words)}  [bold]{escape(result)}[/bold]", highlight=False, soft_wrap=True
        )

    found = tune(
        options.recipe,
        search=dict(entry.partition("=")[::2] for entry in options.search),
        trials=options.trials,
        out=options.out,
        seed=options.seed,
        device=options.device,
        threads=options.threads,
        overrides=options.overrides,
        progress=None if options.quiet else tell,
    )
    best = sorted(found.trials, key=lambda row: -row["value"])[:10]
    table = Table(
        *best[0], title=f"best of {len(found.trials)} by validation {found.recipe.training.select_by}", box=None
    )
    for row in best:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else escape(str(value)) for value in row.values()))
    Console().print(table)
    print(found.path / "recipe.yaml")
