"""``forethought demo``: the other commands, one after the other, on bundled films."""

from __future__ import annotations

import argparse
import shlex
import time
from datetime import datetime
from pathlib import Path
from typing import Any

LOG = "bundled:movielens-latest-small"
USER = "42"
MODELS = {
    "popularity": "popularity",
    "markov": "markov",
    "knn": "knn",
    "sasrec": "sasrec/demo",
    "prefergrow": "prefergrow/demo",
}


def register(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "demo",
        parents=[common],
        allow_abbrev=False,
        help="prepare, train, evaluate, compare and report on bundled MovieLens",
        description="Prepare the bundled MovieLens-latest-small, train PreferGrow beside SASRec, kNN, Markov and "
        "popularity, recommend for one user, draw how that user's preference grows, and compare all on the test part. "
        "Every command is shown before it runs. The leaderboard comes last. Keys of the recipes that are trained can "
        "be overridden as in 'forethought train'.",
    )
    parser.add_argument("--out", metavar="DIR", help="a new folder for everything; by default one under runs/")
    parser.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> int:
    from forethought.cli import main

    started = time.monotonic()
    folder = Path(options.out or f"runs/demo-{datetime.now():%Y%m%d-%H%M%S}")
    common = [] if options.seed is None else ["--seed", str(options.seed)]
    common += [] if options.device is None else ["--device", options.device]
    common += [] if options.threads is None else ["--threads", str(options.threads)]
    common += ["--quiet"] * options.quiet
    for words in commands(folder, [f"--{key}={value}" for key, value in options.overrides.items()]):
        if words[0] == "compare":  # the leaderboard is to come last
            seconds = time.monotonic() - started
            print(f"\nEverything is in {folder}. After {seconds:.0f} s the comparison on the test part remains:")
        print(f"\n$ {shlex.join(['forethought', *words])}", flush=True)
        code = main([*words, *common])
        if code:
            return code
    return 0


def commands(folder: Path, overrides: list[str]) -> list[list[str]]:
    """What the demo runs, as words after ``forethought``."""
    data, runs = str(folder / "data"), {name: str(folder / name) for name in MODELS}
    return [
        ["data", "prepare", LOG, "--out", data, "--min-rating", "4", "--k-core", "5"],
        *(
            ["train", recipe, "--data.path", data, "--out", runs[name], *(overrides if recipe != name else [])]
            for name, recipe in MODELS.items()
        ),
        ["recommend", runs["prefergrow"], "--user", USER],
        ["grow", runs["prefergrow"], "--user", USER],
        ["compare", *runs.values(), "--out", str(folder / "report")],
    ]
