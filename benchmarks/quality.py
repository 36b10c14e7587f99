"""Train, evaluate and compare every system of the pages on quality, and write them.

    python benchmarks/quality.py --data DATA --runs RUNS [--only NAME …] [--seeds 0,1,2] [--threads 2]
    python benchmarks/quality.py --data DATA --runs RUNS --device cuda --workers 15 --threads 1
    python benchmarks/quality.py --write docs/results/prefergrow.md
    python benchmarks/quality.py --write docs/results/latent-reasoning.md

DATA holds the prepared folders beauty-us, toys-us, sports-us (user-split), beauty-loo, toys-loo, sports-loo and
ml1m-loo (leave-one-out). What a table needs of each run (its recipe, its record, the rank of every test case) is kept
in benchmarks/quality/, and a run that is kept is not trained again: the command can be stopped and given again, on
another machine too; with --workers so many are trained at once. The pages are written from what is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from forethought import cli as command_line
from forethought.atomic import atomic_file, atomic_folder
from forethought.evaluation.compare import compare
from forethought.evaluation.leaderboard import beyond_accuracy, columns, facts, made
from forethought.evaluation.metrics import title
from report import circumstances

US = ("beauty-us", "toys-us", "sports-us")
NAMES = {"beauty-us": "Amazon Beauty", "toys-us": "Amazon Toys and Games", "sports-us": "Amazon Sports and Outdoors"}


@dataclass(frozen=True)
class System:
    """One row of a table: a recipe and what differs from it; seed 0 alone where nothing is ``random``. A row
    that another table has too is trained once, under the name ``shared``; one whose first phase is the row
    ``first`` goes on from that."""

    recipe: str
    overrides: tuple[str, ...] = ()
    random: bool = True
    shared: str | None = None
    first: str | None = None


@dataclass(frozen=True)
class Study:
    """One table, on the page of its name in docs/results."""

    page: str
    title: str
    data: str
    seen: Literal["removed", "kept"]
    systems: dict[str, System]


POPULARITY = System("popularity", random=False)
KEPT = Path(__file__).with_name("quality")
ONE_PHASE = ("--one-phase",)
ML1M = (  # what sasrec/ml1m has and sasrec/beauty has not
    "--model.max_length", "200", "--model.hidden_size", "64", "--model.num_blocks", "2", "--model.dropout", "0.2",
    "--training.epochs", "100", "--training.batch_size", "32", "--training.learning_rate", "2e-3",
    "--training.patience", "8",
)  # fmt: skip


def studies() -> dict[str, Study]:
    """The tables in order, by name."""
    found = {}
    for data in US:
        found[f"{data}-last"] = Study(
            "prefergrow", f"{NAMES[data]}, user-split, one target a user (the paper's supervision)", data, "kept",
            {
                "popularity": POPULARITY,
                "markov-last": System("markov", ("--model.transitions", "last"), random=False),
                "knn-all-prefixes": System("knn", random=False),
                "sasrec": System("sasrec/user-split-last"),
                "prefergrow": System("prefergrow/user-split-last"),
            },
        )  # fmt: skip
    for data in US:
        found[f"{data}-all"] = Study(
            "prefergrow", f"{NAMES[data]}, user-split, all prefixes", data, "removed",
            {
                **counting("beauty"),
                "sasrec": System("sasrec/user-split"),
                "prefergrow": System("prefergrow/user-split"),
            },
        )  # fmt: skip
    for data, recipe, headline in (
        ("beauty-loo", "beauty", "Amazon Beauty, leave-one-out, 2,048 validation users"),
        ("ml1m-loo", "ml1m", "MovieLens-1M (SASRec's file), leave-one-out, 2,048 validation users"),
    ):
        found[data] = Study(
            "prefergrow", headline, data, "removed",
            {
                **counting(recipe),
                "sasrec": System(f"sasrec/{recipe}"),
                "prefergrow": System(f"prefergrow/{recipe}"),
            },
        )  # fmt: skip
    for data, recipe, name in (
        ("beauty-loo", "beauty", "Amazon Beauty"), ("toys-loo", "beauty", "Amazon Toys and Games"),
        ("sports-loo", "beauty", "Amazon Sports and Outdoors"), ("ml1m-loo", "ml1m", "MovieLens-1M (SASRec's file)"),
    ):  # fmt: skip
        headline = f"{name}, leave-one-out, 2,048 validation users"
        found[f"{data}-latent"] = Study("latent-reasoning", headline, data, "removed", latent(data, recipe))
    return found


def counting(recipe: str) -> dict[str, System]:
    """The baselines that count."""
    return {
        "popularity": POPULARITY,
        "markov": System("markov", random=False),
        "knn": System("knn-ml1m" if recipe == "ml1m" else "knn", random=False),
    }


def latent(data: str, recipe: str) -> dict[str, System]:
    """Models that reason in latent space and their controls: one network, budget and loss for all."""
    changes, blocks = (ML1M, 2) if recipe == "ml1m" else ((), 1)
    rows = {
        "two-views": System("rearec/beauty-contrast"),
        "erl": System("rearec/beauty-erl"),
        "prl-cooling": System("rearec/beauty-prl"),
        "prl-heating": System("rearec/beauty-heat"),
        "lares-unaligned": System(
            "lares/beauty", ("--model.trajectory_weight", "0", "--model.step_alignment_weight", "0", *ONE_PHASE)
        ),
        "lares-pretrained": System("lares/beauty", ONE_PHASE),
        "lares": System("lares/beauty", ("--post_training.precision", "fp32"), first="lares-pretrained"),
    }
    return {
        **{label: replace(row, shared=f"{data}-{label}") for label, row in counting(recipe).items()},
        "base": System(f"sasrec/{recipe}", shared=f"{data}-sasrec"),
        # a state goes through as many blocks as with two steps appended; as with LARES' first block and four times its
        # core, which on MovieLens, where it has two first blocks, are as many as deeper's
        "deeper": System(f"sasrec/{recipe}", ("--model.num_blocks", str(3 * blocks))),
        **({"deeper-5": System(f"sasrec/{recipe}", ("--model.num_blocks", "5"))} if blocks == 1 else {}),
        **{label: replace(row, overrides=(*changes, *row.overrides)) for label, row in rows.items()},
    }


def run_names(name: str, study: Study, seeds: list[int]) -> dict[str, tuple[str, int]]:
    """The runs of a table: row and seed of each."""
    return {
        f"{system.shared or f'{name}-{label}'}-s{seed}": (label, seed)
        for label, system in study.systems.items()
        for seed in (seeds if system.random else [0])
    }


@dataclass(frozen=True)
class Job:
    """A run to be made: on which data, with which seed, and the run it goes on from."""

    run: str
    system: System
    data: str
    seed: int
    first: str | None


def jobs(name: str, study: Study, seeds: list[int], labels: list[str] | None) -> list[list[Job]]:
    """The runs of a table that are not kept yet, of the rows ``labels`` in that order, by default of all; those that
    go on from each other in one list."""
    wanted = [label for label in labels or study.systems if label in study.systems]
    chains: dict[str, list[Job]] = {}
    for label in wanted:
        system = study.systems[label]
        for run, (_, seed) in run_names(name, replace(study, systems={label: system}), seeds).items():
            first = system.first and f"{name}-{system.first}-s{seed}"
            if not (KEPT / run).is_dir():
                chains.setdefault(first or run, []).append(Job(run, system, study.data, seed, first))
    return list(chains.values())


def make_all(chain: list[Job], options: argparse.Namespace) -> None:
    """:func:`make` one after the other; what a worker does."""
    for job in chain:
        make(job, options)


def make(job: Job, options: argparse.Namespace) -> None:
    """Train and evaluate one run, and keep what a table needs of it."""
    run, system, first = job.run, job.system, job.first
    folder, threads = options.runs / run, ["--threads", str(options.threads), "--quiet"]
    if first and not folder.exists() and (options.runs / first / "model").is_dir():
        with atomic_folder(folder) as scratch:
            made_anew = shutil.ignore_patterns("model", "evaluation")
            shutil.copytree(options.runs / first, scratch, ignore=made_anew, dirs_exist_ok=True)
    where = ["--device", options.device, *threads]
    if not (folder / "model").is_dir():
        words = ["train", system.recipe, "--data.path", str(options.data / job.data), "--out", str(folder)]
        words += ["--seed", str(job.seed)]
        words += ["--training.precision", "fp32"] if system.random else []  # on every machine, so that rows compare
        forethought(*words, *where, *system.overrides, *(["--resume"] if folder.exists() else []))
    if not (folder / "evaluation" / "test.json").is_file():
        forethought("evaluate", str(folder), "--split", "test", *where)
    with atomic_folder(KEPT / run) as scratch:
        for file in ("recipe.yaml", "run.json", "evaluation/test.json"):
            text = (folder / file).read_text(encoding="utf-8")
            for path, name in ((options.data, "DATA"), (options.runs, "RUNS")):
                text = text.replace(str(path), name)
            if file == "run.json":
                where = circumstances()
                text = json.dumps(
                    {**json.loads(text), "commit": where["commit"], "processor": where["processor"]}, indent=2
                )
            (scratch / file).parent.mkdir(exist_ok=True)
            (scratch / file).write_text(text, encoding="utf-8")
        shutil.copy(folder / "evaluation" / "test-ranks.npy", scratch / "evaluation")


def forethought(*words: str) -> None:
    """Run a command in this process; each new one would import torch, and on a GPU take hold of it, first."""
    print("$ forethought", *words, flush=True)
    sys.argv = ["forethought", *words]  # a run's record tells it
    if code := command_line.main(words):
        raise RuntimeError(f"forethought {' '.join(words)} ended with {code}")


def section(name: str, study: Study, folders: list[Path]) -> str:
    """One study in Markdown: accuracy, best first, then what else the rows tell, then what the reader has to know."""
    folders, remarks = second_phases(name, study, folders)
    found = compare(folders, "test", seen=study.seen)
    # rows are called as in the study, not after their recipes
    labels = [row_of(name, study, entry.runs[0].path)[0] for entry in found.entries]
    entries = tuple(replace(entry, name=label) for entry, label in zip(found.entries, labels, strict=True))
    found = replace(found, entries=entries)
    other = "kept" if study.seen == "removed" else "removed"
    accuracy = [(column.heading, [text for text, _ in column.cells]) for column in columns(found)]
    accuracy += [
        (f"{title(metric)}, seen {other}", [f"{entry.mean[f'seen_{other}'][metric]:.4f}" for entry in entries])
        for metric in ("ndcg@10", "hr@10")
    ]
    beyond = [("Model", labels), *((c.heading, [text for text, _ in c.cells]) for c in beyond_accuracy(found))]
    records = [json.loads((folder / "run.json").read_text()) for folder in folders]
    days = sorted({record["started"][:10] for record in records})
    told = [record for record in records if "commit" in record]  # the first runs were kept without it
    about = f"Trained {' to '.join(dict.fromkeys([days[0], days[-1]]))}"
    if told:
        commits, processors = (sorted({record[key] for record in told}) for key in ("commit", "processor"))
        about += f"; {len(told)} of {len(records)} runs tell their commit and processor: "
        about += ", ".join([*commits, *processors])
    lines = [f"## {study.title}", "", " · ".join(f"{key} {value}" for key, value in facts(found).items()), ""]
    lines += [*rows(accuracy), "", found.verdict(), *(f"\n{note}" for note in (*found.notes(), *remarks)), ""]
    return "\n".join([*lines, *rows(beyond), "", f"{about}."])


def row_of(name: str, study: Study, folder: Path) -> tuple[str, str]:
    """The row of a table that a run belongs to, and its seed."""
    run, seed = folder.name.rsplit("-s", 1)
    return next(label for label, each in study.systems.items() if run == (each.shared or f"{name}-{label}")), seed


def second_phases(name: str, study: Study, folders: list[Path]) -> tuple[list[Path], list[str]]:
    """The runs without the rows whose second phase was kept of no seed, which are models that the table has already,
    and what to say of every second phase that was not kept."""
    remarks = []
    for label, system in study.systems.items():
        mine = [folder for folder in folders if row_of(name, study, folder)[0] == label]
        records = {row_of(name, study, folder)[1]: json.loads((folder / "run.json").read_text()) for folder in mine}
        found = {seed: record.get("post_training") for seed, record in records.items()}
        lost = {seed: phase for seed, phase in found.items() if phase and not phase["kept"]}
        if not lost:
            continue
        told = "; ".join(
            f"seed {seed}: {title(phase['metric'])} {phase['after']:.4f} at best, {phase['before']:.4f} before"
            for seed, phase in lost.items()
        )
        remarks.append(
            f"{label}: its second phase brought nothing on validation ({told}), so its weights"
            f"{' of these seeds' if len(lost) < len(found) else ''} are those of {system.first}."
        )
        if len(lost) == len(found):
            folders = [folder for folder in folders if folder not in mine]
    return folders, remarks


def rows(table: list[tuple[str, list[str]]]) -> list[str]:
    """A table in Markdown, from its columns."""
    heads, cells = zip(*table, strict=True)
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *zip(*cells, strict=True)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--only", nargs="*", default=list(studies()), choices=list(studies()), help="these tables")
    parser.add_argument("--systems", nargs="*", help="only these rows")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="runs that are made at once")
    parser.add_argument("--write", type=Path, help="write this page from what is kept, and train nothing")
    options = parser.parse_args()
    if not options.write and not (options.data and options.runs):
        parser.error("--data and --runs are needed to train; --write alone writes the page")
    if not options.write:  # absolute: as words they might stand anywhere in what is kept
        options.data, options.runs = options.data.resolve(), options.runs.resolve()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if not options.write:
        waiting: dict[str, list[Job]] = {}  # by its first run, for tables share some
        for name in options.only:
            waiting |= {chain[0].run: chain for chain in jobs(name, studies()[name], seeds, options.systems)}
        # spawned, for a forked process cannot use a GPU
        with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
            made_now = [pool.submit(make_all, chain, options) for chain in waiting.values()]
        for each in made_now:
            each.result()
        return
    sections = []
    for name in options.only:
        study = studies()[name]
        if study.page != options.write.stem:
            continue
        kept = [KEPT / run for run in run_names(name, study, seeds) if (KEPT / run).is_dir()]
        if any(folder.name.startswith(f"{name}-") for folder in kept):  # not what others share alone
            sections.append(section(name, study, kept))
    command = f"python benchmarks/quality.py --write {options.write}"
    introduction = Path(__file__).with_name(f"{options.write.stem}.md").read_text()
    machine = f"{made(command)} Each run's seconds are those of its machine, which other work shared."
    with atomic_file(options.write) as scratch:
        scratch.write_text("\n\n".join([introduction.strip(), machine, *sections]) + "\n")


if __name__ == "__main__":
    main()
