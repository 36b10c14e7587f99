"""Reasoning strength and progress on the embedded reasoner, three seeds, and the page that tells of it.

    python benchmarks/strength.py --runs RUNS [--seeds 0,1,2] [--model embedded] [--number 400]
    python benchmarks/strength.py --write docs/results/strength.md

Runs the commands a user would (collect, analyse, steer, overthink, progress, efficient) for every seed, and keeps their
JSON and figures in benchmarks/strength/. What is kept is not made again; the page is written from it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forethought.atomic import atomic_file, atomic_folder
from forethought.data.problems import HIDDEN
from forethought.evaluation.leaderboard import made
from report import circumstances

KEPT = Path(__file__).with_name("strength")
FILES = (
    "analysis/analysis.json", "analysis/probe.png", "analysis/directions.png", "steer/steer.json", "steer/steer.png",
    "overthink/overthink.json", "overthink/roc.png", "efficient/efficient.json", "efficient/frontier.png",
)  # fmt: skip


def make(seed: int, options: argparse.Namespace) -> None:
    """All commands of one seed."""
    folder, progress = options.runs / f"strength-{seed}", options.runs / f"progress-{seed}"
    common = ["--seed", str(seed), "--threads", str(options.threads), "--quiet"]
    sampling = ["--samples", "4", "--max-new-tokens", "400", "--number", str(options.number)]
    model = ["--model", options.model]
    forethought("strength", "collect", "--out", str(folder), *model, *sampling, *common)
    for step in ("analyse", "steer", "overthink"):
        forethought("strength", step, str(folder), *common)
    forethought("progress", "generate", "--out", str(progress), *model, "--number", str(options.number // 2), *common)
    forethought("progress", "prepare", str(progress), *common)
    forethought("progress", "train", str(progress), *common)
    forethought("strength", "efficient", str(folder), "--progress", str(progress), *common)
    with atomic_folder(KEPT / f"seed-{seed}") as scratch:
        for name in FILES:
            if (folder / name).is_file():
                shutil.copy(folder / name, scratch / Path(name).name)
        text = json.dumps({**circumstances(), "commands": [list(command) for command in COMMANDS]}, indent=2)
        (scratch / "made.json").write_text(text.replace(str(options.runs), "RUNS") + "\n")


COMMANDS: list[tuple[str, ...]] = []


def forethought(*words: str) -> None:
    COMMANDS.append(("forethought", *words))
    print("$ forethought", *words, flush=True)
    subprocess.run([sys.executable, "-m", "forethought", *words], check=True)


def page(folders: Sequence[Path]) -> Iterator[str]:
    """The results in Markdown."""
    seeds = len(folders)
    analyses, steered, detected, efficient = (
        [json.loads((folder / f"{name}.json").read_text()) for folder in folders]
        for name in ("analysis", "steer", "overthink", "efficient")
    )
    yield f"## How long will it think? Probe on held-out problems, {seeds} seeds"
    yield from table(
        ["measure", "mean", "± s.d."],
        [[name, *spread([a["controls"].get(name) for a in analyses])] for name in analyses[0]["controls"]],
    )
    yield "Inside each family (rank correlation with the mean length; the hidden families' questions do not tell it):"
    names = list(dict.fromkeys(name for a in analyses for name in a["families"]))
    rows = []
    for name in names:
        found = [a["families"][name] for a in analyses if name in a["families"]]
        cells = [spread([f[key] for f in found])[0] for key in ("spearman", "spearman/p", "prompt-length/spearman")]
        rows.append([f"{name}{' (hidden)' if name in HIDDEN else ''}", *cells])
    yield from table(["family", "ρ probe", "p", "ρ prompt length"], rows)
    yield "![Probe](images/strength-probe.png)\n\n## Directions"
    rows = []
    for index, site in enumerate(row["site"] for row in analyses[0]["sites"]):
        found = [a["sites"][index] for a in analyses]
        if "cosine" in found[0]:
            cells = [spread([f[key] for f in found])[0] for key in ("cosine", "cosine/null-95", "cosine/expected")]
            rows.append([str(site), *cells, ", ".join(f"{n:.2f}" for n in found[0]["norms"])])
    yield from table(["site", "mean cosine", "null, 95 %", "null, formula", "norms of levels 2 to 5, seed 0"], rows)
    yield "![Directions](images/strength-directions.png)\n\n## Steering along the direction"
    yield from outcomes([s["outcomes"] for s in steered])
    yield "![Steering](images/strength-steer.png)\n\n## Overthinking, before the first token"
    yield from table(
        ["measure", "mean", "± s.d."],
        [[name, *spread([d["numbers"].get(name) for d in detected])] for name in detected[0]["numbers"]],
    )
    yield "![ROC](images/strength-roc.png)\n\n## Accuracy against length, every knob"
    yield from outcomes([e["outcomes"]["test"] for e in efficient])
    yield "![Frontier](images/strength-frontier.png)\n\n## Chosen on other problems, measured on the test problems"
    rows = []
    for name in efficient[0]["choices"]:
        found = [e["choices"][name] for e in efficient]
        chosen = ", ".join(f"{f['knob']} {f['value']:g}" for f in found)
        rows.append([name, chosen, *(
            f"{np.mean([f[key][0] for f in found]):.1%} [{min(f[key][1] for f in found):.1%}, "
            f"{max(f[key][2] for f in found):.1%}]" for key in ("saved", "lost")
        )])  # fmt: skip
    yield from table(["of", "chosen, seed by seed", "thinking tokens saved", "accuracy lost"], rows)
    yield "Brackets hold the widest bootstrap bounds over problems of all seeds."


def outcomes(runs: Sequence[Sequence[dict[str, Any]]]) -> Iterator[str]:
    rows = []
    for row in runs[0]:
        found = [r for run in runs for r in run if (r["knob"], r["value"]) == (row["knob"], row["value"])]
        cells = [f"{np.mean([f[key] for f in found]):.{digits}f}" for key, digits in (("mean", 1), ("accuracy", 3))]
        rows.append([row["knob"], f"{row['value']:g}", *cells, f"{np.mean([f['ended'] for f in found]):.1%}"])
    yield from table(["knob", "value", "thinking tokens", "accuracy", "ended"], rows)


def spread(values: Sequence[float | None]) -> list[str]:
    """Mean and standard deviation over seeds."""
    known = [value for value in values if value is not None]
    if not known:
        return ["–", "–"]
    return [f"{np.mean(known):.3f}", f"{np.std(known, ddof=1):.3f}" if len(known) > 1 else "–"]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    yield "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--number", type=int, default=400, help="of problems")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="write the page from what is kept, and run nothing")
    options = parser.parse_args()
    if not options.write and not options.runs:
        parser.error("--runs is needed to measure; --write alone writes the page")
    if not options.write:
        for seed in (int(seed) for seed in options.seeds.split(",")):
            if not (KEPT / f"seed-{seed}").is_dir():
                COMMANDS.clear()
                make(seed, options)
        return
    folders = sorted(KEPT.glob("seed-*"))
    command = f"python benchmarks/strength.py --write {options.write}"
    introduction = Path(__file__).with_name("strength.md").read_text().strip()
    images = options.write.parent / "images"
    images.mkdir(exist_ok=True)
    for name in ("probe", "directions", "steer", "roc", "frontier"):
        if (folders[0] / f"{name}.png").is_file():
            shutil.copy(folders[0] / f"{name}.png", images / f"strength-{name}.png")
    with atomic_file(options.write) as scratch:
        scratch.write_text("\n\n".join([introduction, made(command), *page(folders)]) + "\n")


if __name__ == "__main__":
    main()
