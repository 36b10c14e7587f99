"""Train, evaluate and compare every system of docs/results/prefergrow.md, and write that page.

    python benchmarks/quality.py --data DATA --runs RUNS [--only NAME …] [--seeds 0,1,2] [--threads 2]
    python benchmarks/quality.py --data DATA --runs RUNS --write docs/results/prefergrow.md

DATA holds the prepared folders beauty-us, toys-us, sports-us (user-split), beauty-loo and ml1m-loo (leave-one-out).
Runs that are there already are not trained again, so the command can be stopped and given again. The page is written
from the runs that are finished, whichever they are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from forethought.atomic import atomic_file
from forethought.evaluation.compare import compare
from forethought.evaluation.leaderboard import beyond_accuracy, columns, facts, made

US = ("beauty-us", "toys-us", "sports-us")
NAMES = {"beauty-us": "Amazon Beauty", "toys-us": "Amazon Toys and Games", "sports-us": "Amazon Sports and Outdoors"}


@dataclass(frozen=True)
class System:
    """One row of a table: a recipe and what differs from it; seed 0 alone where nothing is ``random``."""

    recipe: str
    overrides: tuple[str, ...] = ()
    random: bool = True


@dataclass(frozen=True)
class Study:
    """One table."""

    title: str
    data: str
    seen: Literal["removed", "kept"]
    systems: dict[str, System]


POPULARITY = System("popularity", random=False)
LAST = ("--data.targets", "last")


def studies() -> dict[str, Study]:
    """The tables in order, by name."""
    found = {}
    for data in US:
        found[f"{data}-last"] = Study(
            f"{NAMES[data]}, user-split, one target a user (the paper's supervision)", data, "kept",
            {
                "popularity": POPULARITY,
                "markov-last": System("markov", ("--model.transitions", "last"), random=False),
                "sasrec": System("sasrec/user-split-last"),
                "prefergrow": System("prefergrow/user-split-last"),
            },
        )  # fmt: skip
    for data in US:
        found[f"{data}-all"] = Study(
            f"{NAMES[data]}, user-split, all prefixes", data, "removed",
            {
                "popularity": POPULARITY,
                "markov": System("markov", random=False),
                "knn": System("knn", random=False),
                "sasrec": System("sasrec/user-split"),
                "prefergrow": System("prefergrow/user-split"),
            },
        )  # fmt: skip
    for data, recipe, title in (
        ("beauty-loo", "beauty", "Amazon Beauty, leave-one-out"),
        ("ml1m-loo", "ml1m", "MovieLens-1M (SASRec's file), leave-one-out"),
    ):
        found[data] = Study(
            title, data, "removed",
            {
                "popularity": POPULARITY,
                "markov": System("markov", random=False),
                "knn": System("knn-ml1m" if recipe == "ml1m" else "knn", random=False),
                "sasrec": System(f"sasrec/{recipe}"),
                "prefergrow": System(f"prefergrow/{recipe}"),
            },
        )  # fmt: skip
    return found


def commands(name: str, study: Study, seeds: list[int], data: Path, runs: Path, threads: int) -> dict[Path, list[str]]:
    """The words after ``forethought`` that make each run folder."""
    found = {}
    for label, system in study.systems.items():
        for seed in seeds if system.random else [0]:
            folder = runs / f"{name}-{label}-s{seed}"
            found[folder] = [
                "train", system.recipe, "--data.path", str(data / study.data), "--out", str(folder), "--seed",
                str(seed), "--threads", str(threads), "--quiet", *system.overrides,
            ]  # fmt: skip
    return found


def forethought(*words: str) -> None:
    print("$ forethought", *words, flush=True)
    subprocess.run([sys.executable, "-m", "forethought", *words], check=True)


def section(study: Study, folders: list[Path]) -> str:
    """One table in Markdown, both ways of treating seen items, best first."""
    chosen = compare(folders, "test", seen=study.seen)
    other = compare(folders, "test", seen="kept" if study.seen == "removed" else "removed")
    rows = {entry.name: entry for entry in other.entries}
    heads, cells = [], []
    for column in [*columns(chosen), *beyond_accuracy(chosen)]:
        heads.append(column.heading)
        cells.append([text for text, _ in column.cells])
    for metric, head in (("hr@10", "HR@10"), ("ndcg@10", "NDCG@10")):
        heads.append(f"{head}, seen {other.seen}")
        cells.append([f"{rows[e.name].mean[rows_column(other.seen)][metric]:.4f}" for e in chosen.entries])
    lines = [f"## {study.title}", "", " · ".join(f"{key} {value}" for key, value in facts(chosen).items()), ""]
    lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    lines += ["| " + " | ".join(row) + " |" for row in zip(*cells, strict=True)]
    return "\n".join(lines)


def rows_column(seen: str) -> str:
    return f"seen_{seen}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(studies()), choices=list(studies()))
    parser.add_argument("--systems", nargs="*", help="only these rows")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="write the page from the runs that are there, and train nothing")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    sections = []
    for name in options.only:
        study = studies()[name]
        made_by = commands(name, study, seeds, options.data, options.runs, options.threads)
        for folder, words in made_by.items():
            if options.write or (options.systems and not any(f"-{s}-s" in folder.name for s in options.systems)):
                continue
            if not (folder / "model").is_dir():
                forethought(*words, *(["--resume"] if folder.exists() else []))
            if not (folder / "evaluation" / "test.json").is_file():
                forethought("evaluate", str(folder), "--split", "test", "--threads", str(options.threads), "--quiet")
        done = [folder for folder in made_by if (folder / "evaluation" / "test.json").is_file()]
        if options.write and done:
            sections.append(section(study, done))
    if options.write:
        command = f"python benchmarks/quality.py --data DATA --runs RUNS --write {options.write}"
        introduction = Path(__file__).with_name("quality.md").read_text()
        machine = f"{made(command)} torch {torch.__version__}, 2 cores of a shared machine."
        with atomic_file(options.write) as scratch:
            scratch.write_text("\n\n".join([introduction.strip(), machine, *sections]) + "\n")


if __name__ == "__main__":
    main()
