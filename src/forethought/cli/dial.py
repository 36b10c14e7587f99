"""``forethought dial``: choose how long a model thinks about whom, and measure it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    from forethought.cli import positive

    parser = subparsers.add_parser(
        "dial",
        parents=[common],
        allow_abbrev=False,
        help="choose how long a model thinks about whom, and measure it",
        description="Choose on the validation users how long a ReaRec or a LARES is to think about whom: by the "
        "entropy of its answer, by how far a step moved it, or by a probe of the state before the first step, each "
        "turned towards fewer steps for as long as it can be trusted to keep a stated share of the best fixed depth's "
        "NDCG@10. Then measure them on the test users, beside every fixed depth, the same steps dealt by lot, and what "
        "looking at the label would give. Afterwards '--steps auto' of recommend and evaluate goes by one of them.",
    )
    parser.add_argument("path", metavar="RUN", help="a run folder of a rearec or a lares")
    parser.add_argument(
        "--steps", type=positive, metavar="K", help="the most steps; by default as many as it was trained for"
    )
    parser.add_argument(
        "--loss", type=float, default=0.01, metavar="A",
        help="share of the best fixed depth's NDCG@10 that may be given up (default 0.01)",
    )  # fmt: skip
    parser.add_argument(
        "--level", type=float, default=0.8, metavar="P",
        help="confidence that no more is, judged by the validation users; 0.5 goes by their mean alone (default 0.8)",
    )  # fmt: skip
    parser.add_argument(
        "--rule", choices=["fixed", "probe", "entropy", "divergence"],
        help="what auto steps go by; by default the rule that takes the fewest on the validation users, for which each "
        "of them has to be trusted more",
    )  # fmt: skip
    parser.add_argument(
        "--dropout-draws", type=positive, metavar="N",
        help="answers under dropout that the best is taken of, beside the oracle; by default K + 1",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON; - for standard output, alone")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from forethought.atomic import atomic_file
    from forethought.cli import open_run
    from forethought.cli.evaluate import print_rows, progress_bar
    from forethought.recommenders import dialling

    opened, seed = open_run(options), options.seed or 0
    with progress_bar(options.quiet) as progress:
        dial = dialling.fit(
            opened,
            most=options.steps,
            loss=options.loss,
            level=options.level,
            seed=seed,
            rule=options.rule,
            progress=progress,
        )
        found = dialling.measure(opened, dial, draws=options.dropout_draws, seed=seed, progress=progress)
    command = shlex.join(["forethought", *sys.argv[1:]])
    figure = dialling.save(opened, dial, found, command)
    text = json.dumps({"command": command, **found}, indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
        return
    if options.json is not None:
        with atomic_file(Path(options.json)) as scratch:
            scratch.write_text(text, encoding="utf-8")
    names = ("ndcg@10", "hr@10", "milliseconds")
    print_rows([{"": f"{row['steps']} steps", **{name: row[name] for name in names}} for row in found["fixed"]])
    print_rows([_row(row) for row in found["rules"]])
    print(_verdict(found, options.rule))
    print(figure)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """Of a policy, * the one of auto; − best is its NDCG@10 less the best fixed depth's."""
    difference = row["difference"]
    return {
        "": row["rule"] + ("*" if row["auto"] else ""), "steps": f"{row['steps']:.2f}", "ndcg@10": row["ndcg@10"],
        "by lot": row["by_lot"], "− best": f"{difference['mean']:+.4f}",
        "95 %": f"{difference['low']:+.4f}, {difference['high']:+.4f}", "ms": f"{row['milliseconds']:.2f}",
    }  # fmt: skip


def _verdict(found: dict[str, Any], named: str | None) -> str:
    """What was chosen, in sentences; ``named`` is the rule of ``--rule``."""
    row = next(row for row in found["rules"] if row["auto"])
    best, label = found["best"], found["label"]
    if best == 0:
        aside = "" if named in (None, "fixed") else f", and the rule {named} is set aside, as no step helps"
        lines = [f"No fixed depth was better than 0 steps on the validation users: auto takes none{aside}."]
    else:
        kept = "–" if row["of_best_quality"] is None else f"{row['of_best_quality']:.1%}"
        lines = [
            f"* auto ({row['rule']}) keeps {kept} of the NDCG@10 of {best} steps, the best fixed depth on the "
            f"validation users, in {row['of_best_steps']:.1%} of its steps."
        ]
    told = f"Looking at the label: each user's best depth {label['oracle']['ndcg@10']:.4f}"
    if label["dropout"] is not None:
        told += f", the best of {label['dropout']['draws']} dropout passes {label['dropout']['ndcg@10']:.4f}"
    return "\n".join([*lines, f"{told}; neither can be had without it."])
