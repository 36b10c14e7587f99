"""What a step of latent reasoning costs: on the cache against the whole sequence again, and in ranking.

    python benchmarks/latent_steps.py [--threads 2] [--json FILE]

The first table takes K steps for each of 256 histories of 50 items, d 128, 2 blocks: once as ReaRec here does, one new
row a step on the keys and values that are kept, and once by encoding history and tokens anew for every step. Both give
the same states to 1e-5. The second ranks 2,048 users, whose histories are as long as those of Amazon Beauty on average,
over 12,101 items, with K steps and with none. The weights are random: the time does not depend on them.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from forethought.data.dataset import Dataset
from forethought.evaluation.ranking import rank_targets
from forethought.recommenders.latent.rearec import ReaRec, ReaRecConfig
from measuring import leave_one_out, seconds
from report import Cell, Result

USERS, ITEMS, WIDTH, BLOCKS, HEADS, LENGTH, ROWS, DEPTHS = 2048, 12_101, 128, 2, 2, 50, 256, (1, 2, 4, 8)


@torch.no_grad()
def rerun(model: ReaRec, history: Tensor, steps: int) -> Tensor:
    """r_0 … r_steps, each by a pass over all tokens so far; its last block computes the newest row alone.

    Args:
        model: of which the encoder's weights are used.
        history: int64 ``[B, L]``, without padding.
        steps: how many.

    Returns:
        float ``[B, steps + 1, d]``.
    """
    encoder = model.encoder
    tokens = encoder.enter(model.embedding(history))
    states = [encoder(model.embedding(history), torch.full((len(history),), history.shape[1] - 1))]
    for step in range(steps):
        token = encoder.enter_token(states[-1] + encoder.reasoning_positions[step])
        tokens = torch.cat([tokens, token[:, None]], dim=1)
        passed = tokens
        for block in encoder.blocks[:-1]:
            passed = block(passed)
        newest = torch.full((len(history),), tokens.shape[1] - 1)
        states.append(encoder.final_norm(encoder.blocks[-1](passed, newest)))
    return torch.stack(states, dim=1)


@torch.no_grad()
def cached(model: ReaRec, history: Tensor, steps: int) -> Tensor:
    """The same states, on keys and values that are kept."""
    newest = torch.full((len(history), 1), history.shape[1] - 1)
    return model.states(history, newest, steps)[:, 0]


def log_like_beauty() -> Dataset:
    """2,048 users of 5 items and more, 8.9 on average as on Amazon Beauty; leave-one-out."""
    random = np.random.default_rng(0)
    lengths = np.minimum(5 + random.geometric(1 / 4.9, USERS) - 1, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return leave_one_out(offsets, random.integers(1, ITEMS + 1, offsets[-1]), ITEMS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9, help="of which the median counts (default 9)")
    parser.add_argument("--json", help="keep the result here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sizes = {"num_items": ITEMS, "max_length": LENGTH, "hidden_size": WIDTH, "num_blocks": BLOCKS, "num_heads": HEADS}
    model = ReaRec(ReaRecConfig(**sizes, steps=max(DEPTHS))).eval()
    result = Result("Steps of latent reasoning", options.threads)
    history = torch.randint(1, ITEMS + 1, (ROWS, LENGTH))
    rows: list[list[Cell]] = []
    for steps in DEPTHS:
        states = [way(model, history, steps) for way in (rerun, cached)]
        torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)
        took = seconds(
            {
                "read": lambda: cached(model, history, 0),
                "rerun": lambda k=steps: rerun(model, history, k),
                "cached": lambda k=steps: cached(model, history, k),
            },
            options.rounds,
        )
        again, kept = (took[way] - took["read"] for way in ("rerun", "cached"))
        rows.append([str(steps), 1e3 * again, 1e3 * kept, again / kept, took["rerun"] / took["cached"]])
    result.table(
        f"K steps of {ROWS} histories of {LENGTH} items, in milliseconds without the reading of the history, which "
        f"takes {1e3 * took['read']:.0f}. Goal: 5 x at K = 4. The last ratio has the reading in both.",
        ["K", "again, ms", "on the cache, ms", "x", "x with the reading"],
        rows,
    )
    targets = log_like_beauty().targets("test")
    names = {f"K = {steps}": steps for steps in (0, 1, 2, 4, 8)}

    def rank(steps: int) -> None:
        model.steps = steps
        rank_targets(model, targets)

    took = seconds({name: lambda k=steps: rank(k) for name, steps in names.items()}, options.rounds)
    result.table(
        f"Ranking {USERS:,} users over {ITEMS:,} items. Goal: K = 2 takes 1.15 x of K = 0 at most.",
        ["", "ms", "x of K = 0"],
        [[name, 1e3 * took[name], took[name] / took["K = 0"]] for name in names],
    )
    result.save(options.json)


if __name__ == "__main__":
    main()
