"""An epoch and an evaluation of SASRec on Amazon Beauty, against RecBole's SASRec on the same targets.

    python benchmarks/sasrec_epoch.py --data data/beauty [--recbole-venv build/recbole] [--ml1m data/ml1m]

Ours is what `forethought train` runs: the Trainer with AdamW and clipping, 256 users a batch, full softmax over every
training target (the newest 50 of a user), and sampled softmax beside it, in float32 and, where the processor has it, in
bfloat16; then all test users ranked with seen items removed and kept. Theirs is RecBole 1.2.1 from PyPI with its own
loops, in a virtual environment that is made on first use, on the same targets of the same users. Both have width 64,
two blocks, one head and dropout 0.5. Seconds are those of the fastest of a few epochs; quality after them is printed to
show that both learn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from forethought.data.batches import TrainingExamples
from forethought.data.dataset import Dataset, Sequences
from forethought.evaluation.evaluator import evaluate
from forethought.evaluation.metrics import mean_metrics
from forethought.evaluation.ranking import Ranks, rank_targets
from forethought.recommenders.base import Recommender
from forethought.recommenders.models import build, read_recipe
from forethought.training.devices import find_precision
from forethought.training.ranking import RankingTrainer
from report import Result

HERE = Path(__file__).resolve().parent
WIDTH, DROPOUT = 64, 0.5
NAMES = {"ce": "full softmax", "sampled": "sampled softmax, 256 shared negatives"}


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of each epoch, without what comes after it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/beauty"), help="prepared Beauty, leave-one-out")
    parser.add_argument("--ml1m", type=Path, help="prepared ML-1M, leave-one-out: an epoch of ours in seconds")
    parser.add_argument("--recbole-venv", type=Path, help="where RecBole is or gets installed; without it, ours alone")
    parser.add_argument("--recbole-epochs", type=int, default=2)
    parser.add_argument("--recbole-batch", type=int, default=512, help="its fastest from 256 to 4096 on two cores")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit-users", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="keep the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dataset = first_users(Dataset.open(args.data), args.limit_users)
    result = Result("SASRec against RecBole", args.threads)

    rows = []
    epoch: dict[str, float] = {}
    precisions = list(dict.fromkeys(("fp32", find_precision("auto", torch.device("cpu")))))
    for loss, precision in itertools.product(("ce", "sampled"), precisions):
        name = f"{NAMES[loss]}, {precision}"
        seconds, last_loss, model = train(dataset, 50, 256, loss, precision, args.epochs)
        epoch[name] = min(seconds)
        ranking, ranks = fastest(lambda model=model: rank_targets(model, dataset.targets("test")))
        rows.append([name, min(seconds), ranking, last_loss, mean_metrics(ranks)["seen_kept"]["ndcg@10"]])
    whole, _ = fastest(lambda model=model: evaluate(model, dataset))

    targets = int(TrainingExamples(dataset, 50).lengths.sum())
    ratios, goals = [], ""
    if args.recbole_venv is not None:
        ratios = ["epoch, times faster", "evaluation, times faster"]
        goals = " Goals: an epoch 10 times faster, an evaluation 5 times."
        theirs = recbole(dataset, args)
        assert (theirs["targets"], theirs["cases"]) == (targets, len(dataset.targets("test")))
        slow_epoch, slow_ranking = min(theirs["epochs"]), min(theirs["evaluations"])
        name = f"RecBole 1.2.1, full softmax, fp32, batch {args.recbole_batch:,}"
        rows.append([name, slow_epoch, slow_ranking, theirs["losses"][-1], theirs["reached"]["ndcg@10"]])
        rows = [[*row[:3], slow_epoch / row[1], slow_ranking / row[2], *row[3:]] for row in rows]
    result.table(
        f"{dataset.num_users:,} users, {dataset.num_items:,} items; {targets:,} training targets an epoch and "
        f"{len(dataset.targets('test')):,} test users on both sides. Our seconds of an evaluation are for ranks with "
        f"and without seen items; with intervals, slices, coverage and novelty of the lists it takes {whole:.2f} s."
        f"{goals}",
        ["", "s an epoch", "s an evaluation", *ratios, "loss after the last", "NDCG@10, seen kept"],
        rows,
    )
    result.save(args.json)  # minutes of work, whatever becomes of the rest
    if args.ml1m is not None:
        films = first_users(Dataset.open(args.ml1m), args.limit_users)
        rows = []
        for precision in precisions:
            seconds, _, model = train(films, 200, 128, "ce", precision, args.epochs)
            ranking, _ = fastest(lambda model=model: rank_targets(model, films.targets("test"), batch_size=256))
            rows.append([f"full softmax, {precision}", min(seconds), ranking])
        count = int(TrainingExamples(films, 200).lengths.sum())
        result.table(
            f"MovieLens-1M, length 200, 128 users a batch: {films.num_users:,} users, {films.num_items:,} items, "
            f"{count:,} training targets an epoch.",
            ["", "s an epoch", "s an evaluation"],
            rows,
        )
    result.save(args.json)


def train(
    dataset: Dataset, max_length: int, batch_size: int, loss: str, precision: str, epochs: int
) -> tuple[list[float], float, Recommender]:
    """Seconds of each epoch, the mean loss near the end, and the model."""
    recipe = read_recipe({
        "model": {"type": "sasrec", "max_length": max_length, "hidden_size": WIDTH, "dropout": DROPOUT, "loss": loss},
        "training": {
            "epochs": epochs, "batch_size": batch_size, "precision": precision, "patience": 0,
        },
    })  # fmt: skip
    model, clock = build(recipe, dataset), Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = RankingTrainer(model, dataset, recipe, Path(scratch), device="cpu", quiet=True, callbacks=[clock])
        trainer.fit()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return clock.seconds, losses[-1] if losses else float("nan"), model


def fastest(run: Callable[[], Ranks], repeats: int = 3) -> tuple[float, Ranks]:
    """Least seconds of a few runs, after one to warm up, and the result."""
    seconds, found = [], run()
    for _ in range(repeats):
        began = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - began)
    return min(seconds), found


def first_users(dataset: Dataset, count: int | None) -> Dataset:
    """The data of the first users alone; the catalogue stays whole."""
    if count is None or count >= dataset.num_users:
        return dataset
    stop = int(dataset.sequences.offsets[count])
    held_out = [dataset.targets(split).positions for split in ("valid", "test")]
    return Dataset(
        Sequences(dataset.sequences.offsets[: count + 1], dataset.sequences.items[:stop]),
        dataset.train_stop[:count],
        *(positions[positions < stop] for positions in held_out),
        dataset.catalog,
        dataset.users[:count],
        dataset.manifest,
    )


def recbole(dataset: Dataset, args: argparse.Namespace) -> dict[str, Any]:
    """What RecBole takes for the same targets."""
    python = args.recbole_venv.absolute() / "bin" / "python"  # it runs in another folder
    if subprocess.run([python, "-c", "import recbole"], capture_output=True).returncode if python.exists() else True:
        print(f"Installing RecBole into {args.recbole_venv} (once; a few minutes) ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", args.recbole_venv], check=True)
        install = ["-m", "pip", "install", "--quiet", "--requirement", HERE / "recbole-requirements.txt"]
        subprocess.run([python, *install], check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(dataset, folder / "beauty" / "beauty.inter", 50)
        command = [python, HERE / "recbole_sasrec.py", folder, folder / "result.json", "--threads", args.threads]
        command += ["--epochs", args.recbole_epochs, "--batch-size", args.recbole_batch]
        command += ["--hidden-size", WIDTH, "--dropout", DROPOUT]
        done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"RecBole failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return found


def export(dataset: Dataset, path: Path, max_length: int) -> None:
    """Write each user's events as a RecBole atomic file, without those too old for our training to reach.

    RecBole holds out a user's last two events, as leave-one-out does, and trains on every other one that has a history.
    """
    offsets = np.asarray(dataset.sequences.offsets)
    starts, stops = np.maximum(offsets[:-1], dataset.train_stop - max_length - 1), offsets[1:]
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            items = dataset.sequences.items[start:stop]
            file.writelines(f"{user + 1}\t{item}\t{place}\n" for place, item in enumerate(items))


if __name__ == "__main__":
    main()
