"""Evaluation of 6,040 users over 3,416 items, the size of ML-1M: counting in chunks against sorting user by user.

    python benchmarks/evaluation.py [--threads 2] [--width 64] [--json FILE]

Both sides give HR, NDCG and MRR at 5, 10 and 20 with seen items removed and kept, and must agree. Two models: one whose
query is a look-up of the newest item, so that what is timed is ranking; and SASRec of two blocks over the newest 200
items, which the loop encodes one user at a time. The weights are random: the time does not depend on them. The loop
sorts with numpy, the fastest sort at hand.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from forethought.data.batches import gather_rows
from forethought.data.dataset import Dataset, Targets
from forethought.evaluation.evaluator import evaluate
from forethought.evaluation.metrics import mean_metrics
from forethought.evaluation.ranking import rank_targets
from forethought.recommenders.base import Recommender, RecommenderConfig
from forethought.recommenders.sasrec import SASRec, SASRecConfig
from forethought.training.devices import find_precision
from measuring import leave_one_out
from report import Cell, Result

USERS, ITEMS, EVENTS, KS = 6040, 3416, 165, (5, 10, 20)

Table = dict[str, dict[str, float]]


class NewestItem(Recommender):
    """The query is the vector of the newest item."""

    inner_product = True

    def __init__(self, config: RecommenderConfig, width: int) -> None:
        super().__init__(config)
        self.embedding = torch.nn.Embedding(config.num_items + 1, width, padding_idx=0)

    def query(self, history: Tensor) -> Tensor:
        return self.embedding(history[:, -1])

    def item_vectors(self) -> Tensor:
        return self.embedding.weight[1:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--json", help="keep the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dataset = synthetic_log()
    targets = dataset.targets("test")
    newest = NewestItem(RecommenderConfig(num_items=ITEMS, max_length=1), args.width).eval()
    sasrec = SASRec(SASRecConfig(num_items=ITEMS, max_length=200, hidden_size=args.width)).eval()
    result = Result("Evaluation by counting", args.threads)
    full, _ = timed(lambda: evaluate(newest, dataset).metrics)
    result.table(
        f"HR, NDCG and MRR of {USERS:,} users over {ITEMS:,} items, {len(dataset.sequences.items):,} events. "
        "Goal: 20 x faster than the loop. All of `evaluate`, with lists, novelty, slices and 1,000 bootstrap resamples "
        f"of each, takes {full:.2f} s for the look-up.",
        ["", "s", "x faster than the loop"],
        [*measure("look-up", newest, targets, 1024), *measure("SASRec", sasrec, targets, 256)],
    )
    result.save(args.json)


def measure(name: str, model: Recommender, targets: Targets, batch: int) -> list[list[Cell]]:
    slow, expected = timed(lambda: loop(model, targets), repeats=1)
    fast, found = timed(lambda: mean_metrics(rank_targets(model, targets, batch_size=batch), KS))
    agree(expected, found)
    rows: list[list[Cell]] = [
        [f"{name}, loop over users that sorts", slow, 1.0],
        [f"{name}, counted in chunks", fast, slow / fast],
    ]
    if find_precision("auto", torch.device("cpu")) == "bf16":
        half, _ = timed(lambda: mean_metrics(rank_targets(model, targets, batch_size=batch, bfloat16=True), KS))
        rows.append([f"{name}, counted, bfloat16 products", half, slow / half])
    return rows


def synthetic_log() -> Dataset:
    """Random sequences without repeats, log-normal in length, Zipf-like in popularity; leave-one-out."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(EVENTS) - 0.4, 0.9, USERS), 5, 2300).astype(int)
    log_popularity = -0.8 * np.log(np.arange(1, ITEMS + 1))
    rows = [np.argsort(-(log_popularity + random.gumbel(size=ITEMS)))[:length] + 1 for length in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return leave_one_out(offsets, np.concatenate(rows), ITEMS)


@torch.no_grad()
def loop(model: Recommender, targets: Targets) -> Table:
    """What is usually written: score one user, sort, look for the target, mask the history, sort again."""
    items, goals = torch.from_numpy(targets.sequences.items), targets.items - 1
    starts, positions = targets.starts, targets.positions
    vectors = model.item_vectors()
    names = [f"{metric}@{k}" for k in KS for metric in ("hr", "ndcg", "mrr")]
    sums = {seen: dict.fromkeys(names, 0.0) for seen in ("seen_removed", "seen_kept")}
    for user in range(len(targets)):
        length = min(positions[user] - starts[user], model.config.max_length)
        history = gather_rows(items, torch.tensor([positions[user] - length]), torch.tensor([length]))
        scores = (vectors @ model.query(history)[0]).numpy().copy()
        for seen, table in sums.items():
            if seen == "seen_removed":
                seen_items = targets.sequences.items[starts[user] : positions[user]] - 1
                kept_scores, scores = scores, scores.copy()
                scores[seen_items] = -np.inf
            rank = int(np.nonzero(np.argsort(-scores) == goals[user])[0][0]) + 1
            if seen == "seen_removed":
                scores = kept_scores
            for k in KS:
                if rank <= k:
                    table[f"hr@{k}"] += 1
                    table[f"ndcg@{k}"] += 1 / np.log2(rank + 1)
                    table[f"mrr@{k}"] += 1 / rank
    return {seen: {name: value / len(targets) for name, value in table.items()} for seen, table in sums.items()}


def agree(expected: Table, found: Table) -> None:
    for seen, table in expected.items():
        for name, value in table.items():
            # a product of one row rounds differently from a product of many: a rank or two may move by one
            assert abs(value - found[seen][name]) < 5e-4, (seen, name, value, found[seen][name])


def timed(run: Callable[[], Table], repeats: int = 5, warm_up: bool = True) -> tuple[float, Table]:
    """Best of ``repeats`` in seconds, and the result."""
    best, result = float("inf"), run() if warm_up else {}
    for _ in range(repeats):
        started = time.perf_counter()
        result = run()
        best = min(best, time.perf_counter() - started)
    return best, result


if __name__ == "__main__":
    main()
