"""Train, evaluate and compare every system of the pages on quality, and write them.

    python benchmarks/quality.py --data DATA --runs RUNS [--only NAME …] [--seeds 0,1,2] [--threads 2]
    python benchmarks/quality.py --data DATA --runs RUNS --device cuda --workers 16 --threads 1
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
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np

from forethought import cli as command_line
from forethought.atomic import atomic_file, atomic_folder
from forethought.evaluation.compare import Comparison, compare
from forethought.evaluation.leaderboard import beyond_accuracy, columns, facts, made
from forethought.evaluation.metrics import title
from forethought.evaluation.significance import holm, paired_tests
from report import circumstances

US = ("beauty-us", "toys-us", "sports-us")
NAMES = {"beauty-us": "Amazon Beauty", "toys-us": "Amazon Toys and Games", "sports-us": "Amazon Sports and Outdoors"}


@dataclass(frozen=True)
class System:
    """One row of a table: a recipe and what differs from it; seed 0 alone where nothing is ``random``. A row
    that another table has too is trained once, under the name ``shared``; one whose first phase is the row
    ``first`` goes on from that. One that reasons is asked with seed 0 what its thought is worth, at the depths
    ``steps`` and by its dial."""

    recipe: str
    overrides: tuple[str, ...] = ()
    random: bool = True
    shared: str | None = None
    first: str | None = None
    steps: str | None = None


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
EVERY = ("--model.steps", "2", "--model.readout", "mean", "--model.supervision", "every")
UNALIGNED = ("--model.trajectory_weight", "0", "--model.step_alignment_weight", "0")
APPENDED, RECURRED = "0,1,2,4", "0,1,2,4,8"  # depths to be asked
THINKING = THOUGHTS, DIAL_BY_MEAN, DIAL = "test-thoughts.json", "test-dial-by-mean.json", "test-dial.json"
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
        "erl": System("rearec/beauty-erl", steps=APPENDED),
        "every-two-views": System("rearec/beauty-contrast", EVERY, steps=APPENDED),
        "prl-cooling": System("rearec/beauty-prl", steps=APPENDED),
        "prl-heating": System("rearec/beauty-heat", steps=APPENDED),
        "lares-unaligned": System("lares/beauty", (*UNALIGNED, *ONE_PHASE), steps=RECURRED),
        "lares-pretrained": System("lares/beauty", ONE_PHASE, steps=RECURRED),
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

    @property
    def thinks(self) -> bool:
        """Whether it is asked what its thought is worth."""
        return self.system.steps is not None and self.seed == 0

    @property
    def kept(self) -> bool:
        """Whether all that a table needs of it is there."""
        needed = THINKING if self.thinks else ()
        return (KEPT / self.run).is_dir() and all((KEPT / self.run / "evaluation" / file).is_file() for file in needed)


def jobs(name: str, study: Study, seeds: list[int], labels: list[str] | None) -> list[list[Job]]:
    """The runs of a table that are not kept yet, of the rows ``labels`` in that order, by default of all; those that
    go on from each other in one list."""
    wanted = [label for label in labels or study.systems if label in study.systems]
    chains: dict[str, list[Job]] = {}
    for label in wanted:
        system = study.systems[label]
        for run, (_, seed) in run_names(name, replace(study, systems={label: system}), seeds).items():
            job = Job(run, system, study.data, seed, system.first and f"{name}-{system.first}-s{seed}")
            if not job.kept:
                chains.setdefault(job.first or run, []).append(job)
    return list(chains.values())


def make_all(chain: list[Job], options: argparse.Namespace) -> None:
    """Make runs one after the other; what a worker does."""
    for job in chain:
        make(job, options)
        if job.thinks:
            think(job, options)


def make(job: Job, options: argparse.Namespace) -> None:
    """Train and evaluate one run, and keep what a table needs of it."""
    folder, system = options.runs / job.run, job.system
    anew = not (folder / "model").is_dir()
    if job.first and not folder.exists() and (options.runs / job.first / "model").is_dir():
        with atomic_folder(folder) as scratch:
            made_anew = shutil.ignore_patterns("model", "evaluation")
            shutil.copytree(options.runs / job.first, scratch, ignore=made_anew, dirs_exist_ok=True)
    if anew:
        words = ["train", system.recipe, "--data.path", str(options.data / job.data), "--out", str(folder)]
        words += ["--seed", str(job.seed)]
        words += ["--training.precision", "fp32"] if system.random else []  # on every machine, so that rows compare
        forethought(options, *words, *system.overrides, *(["--resume"] if folder.exists() else []))
    if not (folder / "evaluation" / "test.json").is_file():
        forethought(options, "evaluate", str(folder), "--split", "test")
    if anew:
        shutil.rmtree(KEPT / job.run, ignore_errors=True)  # of another model
    keep(job, options)


def think(job: Job, options: argparse.Namespace, files: Sequence[str] = THINKING) -> None:
    """Ask a run what its thought is worth, where it was not asked yet, and keep that too."""
    folder = options.runs / job.run
    by_mean = ["--level", "0.5", "--json", str(folder / "evaluation" / DIAL_BY_MEAN)]
    commands = {
        THOUGHTS: ["evaluate", str(folder), "--split", "test", "--steps", job.system.steps, "--interventions"],
        DIAL_BY_MEAN: ["dial", str(folder), *by_mean],
        DIAL: ["dial", str(folder)],
    }
    for file in files:
        if file == DIAL or not (folder / "evaluation" / file).is_file():  # the dial by the mean wrote it too
            forethought(options, *commands[file])
    keep(job, options)


def keep(job: Job, options: argparse.Namespace) -> None:
    """Copy what a table needs of a run; of one that is kept already, what is new."""
    folder, kept = options.runs / job.run, KEPT / job.run
    files = [f"evaluation/{file}" for file in THINKING if (folder / "evaluation" / file).is_file()]
    with atomic_folder(kept, replace=True) as scratch:
        if kept.is_dir():
            shutil.copytree(kept, scratch, dirs_exist_ok=True)
        else:
            files += ["recipe.yaml", "run.json", "evaluation/test.json"]
            (scratch / "evaluation").mkdir()
            shutil.copy(folder / "evaluation" / "test-ranks.npy", scratch / "evaluation")
        for file in files:
            text = (folder / file).read_text(encoding="utf-8")
            for path, name in ((options.data, "DATA"), (options.runs, "RUNS")):
                text = text.replace(str(path), name)
            if file == "run.json":
                record, where = json.loads(text), circumstances()
                processor = where["processor"] if record["device"] == "cpu" else record["machine"].partition(", ")[2]
                text = json.dumps({**record, "commit": where["commit"], "processor": processor}, indent=2)
            (scratch / file).write_text(text, encoding="utf-8")


def forethought(options: argparse.Namespace, *given: str) -> None:
    """Run a command in this process; each new one would import torch, and on a GPU take hold of it, first."""
    words = [*given, "--device", options.device, "--threads", str(options.threads), "--quiet"]
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
    if "base" in labels:
        lines += [*beside_base(found, study), "", *for_whom(found), ""]
    asked = [(row_of(name, study, folder)[0], folder / "evaluation") for folder in folders]
    told_of = worth([(label, folder) for label, folder in asked if (folder / THOUGHTS).is_file()])
    told_of += adaptive([(label, folder) for label, folder in asked if (folder / DIAL).is_file()])
    return "\n".join([*lines, *rows(beyond), "", *told_of, f"{about}."])


def beside_base(found: Comparison, study: Study) -> list[str]:
    """Every other network less the base, paired over users; Holm's correction is for these rows."""
    values = {
        entry.name: np.stack([run.evaluation.values(found.metric, found.seen) for run in entry.runs])
        for entry in found.entries
        if study.systems[entry.name].random
    }
    base = values.pop("base")
    tests = paired_tests(base, list(values.values()), found.evaluation.owners)
    corrected = holm([test.p_randomisation for test in tests])
    told = {
        label: (
            f"{-test.difference:+.4f}", f"{-test.high:+.4f} to {-test.low:+.4f}", "< 0.001" if p < 0.001 else f"{p:.3f}"
        )
        for label, test, p in zip(values, tests, corrected, strict=True)
    }  # fmt: skip
    table = [
        [
            entry.name,
            *told.get(entry.name, ("", "", "")),
            " / ".join(f"{run.info['best_step']:,}" for run in entry.runs),
        ]
        for entry in found.entries
        if study.systems[entry.name].random
    ]
    return markdown(("Less base, paired over users", title(found.metric), "95 %", "p", "Best step of each seed"), table)


def for_whom(found: Comparison) -> list[str]:
    """Each entry by length of history and by popularity of target, in bands as the evaluator cuts them; means over
    seeds."""
    table = []
    for entry in found.entries:
        seeds = [[part.metrics[found.column][found.metric] for part in run.evaluation.slices] for run in entry.runs]
        table.append([entry.name, *(f"{value:.4f}" for value in np.mean(seeds, axis=0))])
    heads = [f"{title(found.metric)} by history and target", *(part.band for part in found.evaluation.slices)]
    return markdown(heads, table)


def worth(asked: list[tuple[str, Path]]) -> list[str]:
    """What the steps of each model bring, and what is left when its thoughts are taken away or exchanged."""
    if not asked:
        return []
    table: list[list[str]] = []
    found = [json.loads((folder / THOUGHTS).read_text()) for _, folder in asked]
    depths = sorted({row["steps"] for each in found for row in each["steps"]})
    changes = [row["thoughts"] for row in found[0]["interventions"]]
    for (label, _), each in zip(asked, found, strict=True):
        by_depth = {row["steps"]: f"{row['ndcg@10']:.4f}" for row in each["steps"]}
        by_change = {row["thoughts"]: f"{row['ndcg@10']:.4f}" for row in each["interventions"]}
        table.append([label, *(by_depth.get(k, "") for k in depths), *(by_change[change] for change in changes)])
    heads = ["NDCG@10, seed 0", *(f"{k} steps" for k in depths), *(f"thoughts {change}" for change in changes)]
    return [*markdown(heads, table), ""]


def adaptive(asked: list[tuple[str, Path]]) -> list[str]:
    """Adaptive depth: what each model's dial chose on validation users, and what that keeps and saves on test users."""
    if not asked:
        return []
    table: list[list[str]] = []
    for label, folder in asked:
        for file in (DIAL, DIAL_BY_MEAN):
            found = json.loads((folder / file).read_text())
            chosen = next(row for row in found["rules"] if row["auto"])
            best, kept, gap = found["best"], chosen["of_best_quality"], chosen["difference"]
            table.append([
                f"{label}, level {found['level']:g}", f"{best}, {found['fixed'][best]['ndcg@10']:.4f}", chosen["rule"],
                f"{chosen['steps']:.2f}", f"{chosen['steps'] / best:.0%}" if best else "", f"{chosen['ndcg@10']:.4f}",
                "" if kept is None else f"{kept:.1%}", f"{gap['low']:+.4f} to {gap['high']:+.4f}",
                f"{chosen['by_lot']:.4f}", f"{found['label']['oracle']['ndcg@10']:.4f}",
                f"{found['label']['dropout']['ndcg@10']:.4f}" if found["label"]["dropout"] else "",
            ])  # fmt: skip
    heads = ["Adaptive depth, seed 0", "Best fixed depth", "Rule", "Mean steps", "Of best's", "NDCG@10", "Kept",
             "Less best, 95 %", "By lot", "Each user's best depth", "Best of dropout"]  # fmt: skip
    return [*markdown(heads, table), ""]


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


def rows(columns: list[tuple[str, list[str]]]) -> list[str]:
    """A table in Markdown, from its columns."""
    heads, cells = zip(*columns, strict=True)
    return markdown(heads, zip(*cells, strict=True))


def markdown(heads: Sequence[str], table: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown, from its rows."""
    return ["| " + " | ".join(line) + " |" for line in (heads, ["---", *["---:"] * (len(heads) - 1)], *table)]


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
        failed = [f"{chain[0].run}: {error}" for each, chain in zip(made_now, waiting.values(), strict=True)
                  if (error := each.exception())]  # fmt: skip
        sys.exit("\n".join(failed) or None)
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
