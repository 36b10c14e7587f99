"""Reasoning strength and progress on the embedded reasoner, three seeds, and the pages that tell of it.

    python benchmarks/strength.py --runs RUNS [--seeds 0,1,2] [--model embedded] [--number 300]
    python benchmarks/strength.py --write docs/results

Runs the commands a user would (collect, analyse, steer, overthink, progress, efficient) for every seed, and keeps their
JSON and figures in benchmarks/strength/. What is kept is not made again; strength.md and progress.md are written from
it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import combine_pvalues

from forethought.atomic import atomic_file, atomic_folder
from forethought.data.problems import HIDDEN
from forethought.evaluation.leaderboard import made
from report import circumstances

KEPT = Path(__file__).with_name("strength")
FILES = (
    "analysis/analysis.json", "analysis/probe.png", "analysis/directions.png", "steer/steer.json", "steer/steer.png",
    "overthink/overthink.json", "overthink/roc.png", "efficient/efficient.json", "efficient/frontier.png",
)  # fmt: skip
PROGRESS_FILES = ("progress.json", "thoughts.png", "deciles.png", "intervene/intervene.json", "intervene/parts.png")
PAGES = {  # and the figures of each
    "strength": ("probe", "directions", "steer", "roc", "frontier"),
    "progress": ("thoughts", "deciles", "parts"),
}


def make(seed: int, options: argparse.Namespace) -> None:
    """All commands of one seed."""
    folder, progress = options.runs / f"strength-{seed}", options.runs / f"progress-{seed}"
    common = ["--seed", str(seed), "--threads", str(options.threads), "--quiet"]
    sampling = ["--samples", "4", "--max-new-tokens", "400", "--number", str(options.number), "--batch-size", "32"]
    model = ["--model", options.model]
    forethought("strength", "collect", "--out", str(folder), *model, *sampling, *common)
    for step in ("analyse", "steer", "overthink"):
        forethought("strength", step, str(folder), *common)
    forethought("progress", "generate", "--out", str(progress), *model, "--number", str(options.number // 2), *common)
    forethought("progress", "prepare", str(progress), *common)
    for step in ("train", "intervene"):
        forethought("progress", step, str(progress), *common)
    forethought("strength", "efficient", str(folder), "--progress", str(progress), *common)
    with atomic_folder(KEPT / f"seed-{seed}") as scratch:
        for path in (*(folder / name for name in FILES), *(progress / name for name in PROGRESS_FILES)):
            shutil.copy(path, scratch)
        text = json.dumps({**circumstances(), "commands": [list(command) for command in COMMANDS]}, indent=2)
        (scratch / "made.json").write_text(text + "\n")
        for file in scratch.glob("*.json"):
            file.write_text(file.read_text().replace(str(options.runs), "RUNS"))


COMMANDS: list[tuple[str, ...]] = []


def forethought(*words: str) -> None:
    COMMANDS.append(("forethought", *words))
    print("$ forethought", *words, flush=True)
    subprocess.run([sys.executable, "-m", "forethought", *words], check=True)


def kept(folders: Sequence[Path], name: str) -> list[dict[str, Any]]:
    """What every seed's command came to."""
    return [json.loads((folder / f"{name}.json").read_text()) for folder in folders]


def strength_page(folders: Sequence[Path]) -> Iterator[str]:
    """The results of ``forethought strength`` in Markdown."""
    seeds = len(folders)
    analyses, steered, detected, efficient = (
        kept(folders, name) for name in ("analysis", "steer", "overthink", "efficient")
    )
    yield f"## How long will it think? Probe on held-out problems, {seeds} seeds"
    yield from table(
        ["measure", "mean", "± s.d."],
        [
            [f"{name}, combined", combined([(a["controls"][name], a["controls"]["rows"]) for a in analyses]), "–"]
            if name.endswith("/p")
            else [name, *spread([a["controls"].get(name) for a in analyses])]
            for name in analyses[0]["controls"]
        ],
    )
    yield (
        "Inside each family, seed by seed (rank correlation with the mean length; the hidden families' questions do "
        "not tell it):"
    )
    names = list(dict.fromkeys(name for a in analyses for name in a["families"]))
    rows = []
    for name in names:
        found = [a["families"].get(name, {}) for a in analyses]
        sizes, probe, p, prompt = (
            [f.get(key) for f in found] for key in ("problems", "spearman", "spearman/p", "prompt-length/spearman")
        )
        rows.append([
            f"{name}{' (hidden)' if name in HIDDEN else ''}", each(sizes, ".0f"), each(probe, ".2f"), each(p, ".3f"),
            combined([(one, size) for one, size in zip(p, sizes, strict=True) if one is not None]), each(prompt, ".2f"),
        ])  # fmt: skip
    yield from table(["family", "problems", "ρ probe", "p", "p combined", "ρ prompt length"], rows)
    yield (
        "p are one-sided, of permutations (200 of the whole, where the least is .005; 500 inside families, .002). "
        "Combined: Stouffer's method, weighted by √n. The seeds draw from one pool of problems and ask one model, so "
        "they are not wholly independent."
    )
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
    yield from choices([e["choices"] for e in efficient])
    yield verdict([e["choices"] for e in efficient])


def combined(found: Sequence[tuple[float, float]]) -> str:
    """One p of those of all seeds, each with its number of rows: a mean of p is none."""
    p, rows = np.array(found).T
    return f"{combine_pvalues(p, method='stouffer', weights=np.sqrt(rows)).pvalue:.2g}"


def each(values: Sequence[float | None], form: str) -> str:
    """Seed by seed."""
    return ", ".join("–" if value is None else f"{value:{form}}" for value in values)


def measured(folders: Sequence[Path]) -> str:
    """What made the numbers that are kept: commit, day and machine of each seed."""
    told: dict[str, list[str]] = {}
    for folder, seed in zip(folders, kept(folders, "made"), strict=True):
        where = f"{seed['processor']}, {seed['cores']} cores, Python {seed['python']}, torch {seed['torch']}"
        about = f"commit {seed['commit']}, {seed['date']}: {where}"
        told.setdefault(about, []).append(folder.name.removeprefix("seed-"))
    return " ".join(f"Seeds {', '.join(seeds)} were measured at {about}." for about, seeds in told.items())


def verdict(seeds: Sequence[dict[str, Any]]) -> str:
    """Whether the goal was reached, seed by seed."""
    told, met = [], 0
    for choices in seeds:
        best, plain = choices["best"], choices["end bias"]
        saved, lost, other = best["saved"][0], best["lost"][0], plain["saved"][0]
        met += saved >= 0.3 and lost <= 0.01 and saved > other
        lines = [f"{name} {saved:.1%} at {100 * lost:.1f}" for name, saved, lost in (
            (best["knob"], saved, lost), ("the plain bias", other, plain["lost"][0]),
        )]  # fmt: skip
        told.append(" and ".join(lines))
    return (
        "The goal: one setting, chosen on other problems, that saves 30 % of the thinking tokens, loses a point of "
        "accuracy at most, and saves more than a plain bias on the closing mark that was chosen alike. **Reached in "
        f"{met} of {len(seeds)} seeds** (saved, at points lost): {'; '.join(told)}."
    )


def progress_page(folders: Sequence[Path]) -> Iterator[str]:
    """The results of ``forethought progress`` in Markdown."""
    trained, hurried = kept(folders, "progress"), kept(folders, "intervene")
    yield f"## How much of a thought is over? Readers on held-out problems, {len(folders)} seeds"
    rows = []
    for name in trained[0]["test"]:
        found = [t["test"][name] for t in trained]
        gains = [spread([f[key] for f in found])[0] for key in ("gain", "gain/low", "gain/high")]
        eta = [f"{mean(f[f'eta-{share}'] for f in found):.1f}" for share in (25, 50, 75)]
        held = f"{mean(f['coverage'] for f in found):.0%} of {found[0]['level']:.0%}" if "coverage" in found[0] else ""
        rows.append([
            name, " ± ".join(spread([f["mse"] for f in found])), "" if name == "position" else
            f"{gains[0]} [{gains[1]}, {gains[2]}]", f"{mean(f['order'] for f in found):.2f}", *eta, held,
        ])  # fmt: skip
    yield from table(
        ["reader", "MSE", "gain over the position", "order", "ETA at 25 %", "at 50 %", "at 75 %", "interval held"], rows
    )
    yield (
        "MSE of the fraction that is over, each thought counting once; brackets: mean 95 % bounds over problems. "
        "Order: rank correlation with the truth inside a thought. ETA: median error of the tokens left, in "
        "tokens. *Shown* is what a bar shows: smoothed, mapped and made to rise."
    )
    chosen = ", ".join(t["source"] for t in trained)
    yield f"Chosen for the bar on the validation problems, seed by seed: {chosen}."
    yield "![Thoughts](images/progress-thoughts.png)\n\n![Tenths](images/progress-deciles.png)"
    yield "## Within families and across them (MSE)"
    rows = []
    for family in trained[0]["families"]:
        found = [t["families"][family] for t in trained if family in t["families"]]
        cells = [
            spread([f.get(part, {}).get(name) for f in found])[0]
            for part in ("within", "across") for name in ("position", "TPV, centred", "GRU")
        ]  # fmt: skip
        rows.append([family, *cells])
    heads = [f"{name}, {part}" for part in ("trained on all", "on others only") for name in ("position", "TPV", "GRU")]
    yield from table(["family", *heads], rows)
    yield "## Overclocking: the vector as a bias on the logits, and its parts"
    yield from outcomes([h["outcomes"]["test"] for h in hurried])
    yield "![Parts](images/progress-parts.png)\n\n## Chosen on other problems, measured on the test problems"
    yield from choices([h["choices"] for h in hurried])


def choices(seeds: Sequence[dict[str, Any]]) -> Iterator[str]:
    rows = []
    for name in seeds[0]:
        found = [s[name] for s in seeds]
        chosen = ", ".join(f"{f['knob']} {f['value']:g}" for f in found)
        rows.append([name, chosen, *(
            f"{mean(f[key][0] for f in found):.1%} [{min(f[key][1] for f in found):.1%}, "
            f"{max(f[key][2] for f in found):.1%}]" for key in ("saved", "lost")
        )])  # fmt: skip
    yield from table(["of", "chosen, seed by seed", "thinking tokens saved", "accuracy lost"], rows)
    yield "Brackets hold the widest bootstrap bounds over problems of all seeds."


def outcomes(runs: Sequence[Sequence[dict[str, Any]]]) -> Iterator[str]:
    """A row a knob and value, in the order of the values; those of some knobs depend on the seed."""
    knobs: dict[str, dict[float, list[dict[str, Any]]]] = {}
    for run in runs:
        plain = next(row["mean"] for row in run if row["knob"] == "none")
        for row in run:
            knobs.setdefault(row["knob"], {}).setdefault(row["value"], []).append({**row, "share": row["mean"] / plain})
    rows = []
    for knob, values in knobs.items():
        for value, found in sorted(values.items()):
            cells = [
                f"{mean(f[key] for f in found):{form}}"
                for key, form in (("mean", ".1f"), ("share", ".0%"), ("accuracy", ".3f"), ("ended", ".1%"))
            ]
            rows.append([knob, f"{value:g}", str(len(found)), *cells])
    yield from table(["knob", "value", "seeds", "thinking tokens", "of none", "accuracy", "ended"], rows)


def mean(values: Iterable[float]) -> float:
    return float(np.mean([*values]))


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
    parser.add_argument("--number", type=int, default=300, help="of problems")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, metavar="DIR", help="write the pages from what is kept, and run nothing")
    options = parser.parse_args()
    if not options.write and not options.runs:
        parser.error("--runs is needed to measure; --write alone writes the pages")
    if not options.write:
        for seed in (int(seed) for seed in options.seeds.split(",")):
            if not (KEPT / f"seed-{seed}").is_dir():
                COMMANDS.clear()
                make(seed, options)
        return
    folders = sorted(KEPT.glob("seed-*"))
    images = options.write / "images"
    images.mkdir(exist_ok=True)
    for (name, figures), page in zip(PAGES.items(), (strength_page, progress_page), strict=True):
        for figure in figures:
            shutil.copy(folders[0] / f"{figure}.png", images / f"{name}-{figure}.png")
        introduction = Path(__file__).with_name(f"{name}.md").read_text().strip()
        command = made(f"python benchmarks/strength.py --write {options.write}")
        with atomic_file(options.write / f"{name}.md") as scratch:
            about = f"{measured(folders)} {command}"
            scratch.write_text("\n\n".join([introduction, about, *page(folders)]) + "\n")


if __name__ == "__main__":
    main()
