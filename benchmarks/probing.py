"""The instruments on trained recommenders: docs/results/recommender-probes.md.

    python benchmarks/probing.py RUN … --out docs/results/recommender-probes.md

Runs ``forethought probe`` on each run folder and puts its tables and figure on one page.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forethought.atomic import atomic_file
from forethought.evaluation.leaderboard import made
from forethought.training.record import read_record, told_command
from report import REPOSITORY

INTRODUCTION = """# Probes on recommenders

What `forethought probe` tells of trained models. After each step of a model's thought (a block of SASRec, a growing
step of PreferGrow): whether the steps after it will change the top 10, told by a logistic probe on the state, beside
what the length of the history and the popularity of the newest item tell. Then what steering along the direction of
popularity does to accuracy and novelty, a random direction of the same norm beside. Probes are fitted on validation
users and tested on test users; `changed` is the share of users whose top 10 keeps less than half of the final one.
The PreferGrow below was read when its state was its query alone, which with `marginal` no step moves; its probes know
the user and not the step. A state has e(x_t) beside the query since.
[Instruments](../guide/instruments.md)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    sections = [INTRODUCTION, made("python benchmarks/probing.py RUN … --out docs/results/recommender-probes.md")]
    images = options.out.parent / "images"
    images.mkdir(exist_ok=True)
    for run in options.runs:
        subprocess.run([sys.executable, "-m", "forethought", "probe", str(run)], check=True)
        found = json.loads((run / "probe" / "probe.json").read_text())
        command = told_command(read_record(run)).replace(f"{REPOSITORY}/", "")
        sections.append(f"## {run.name}\n\nTrained by `{command}`.")
        sections += table(found["settling"])
        if found["popularity"]:
            shutil.copy(run / "probe" / "novelty.png", images / f"probe-{run.name}.png")
            sections += [*table(found["popularity"]), f"![Accuracy against novelty](images/probe-{run.name}.png)"]
    with atomic_file(options.out) as scratch:
        scratch.write_text("\n\n".join(sections) + "\n")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    names = list(max(rows, key=len))
    lines = [names, ["---:"] * len(names)]
    for row in rows:
        cells = [row.get(name, "–") for name in names]
        lines.append([f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in cells])
    yield "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
