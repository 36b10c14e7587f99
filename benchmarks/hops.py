"""Does a step of latent reasoning add a step of computation? Chains of known length to follow, and walks to need none.

    python benchmarks/hops.py [--models NAME …] [--seeds 0,1,2] [--threads 1] [--json FILE]

A case is 8 edges in random order, of two disjoint chains of 4 over 24 nodes, and a node to start from; wanted is the
end of its chain, 1 to 4 edges away. An edge is one token, the sum of a "from" and a "to" vector, so each hop is one
look-up that needs the one before; choosing between the two ends blindly is right half the time. The network is the
reasoning engine of the recommenders: one block (one before the core and one in it, where the core recurs), d 64, 2
heads, pre-norm, no dropout, batches of 128, Adam at 1e-3, cross-entropy of the last state alone unless the name says
otherwise, for --steps steps: nothing is chosen on the cases that are told of.

The negative control are walks of a first-order Markov chain over 24 nodes, where the newest node says all there is to
say: beside the loss of each network stands the entropy of the chain, which none can go below.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.nn.reasoning import AppendingEncoder, RecurrentEncoder, unroll

NODES, HOPS, CHAINS, WIDTH, HEADS, BATCH = 24, 4, 2, 64, 2, 128
LENGTH = CHAINS * HOPS + 1
Network = tuple[nn.Module, Callable[[], int], int]  # what reads, how deep a training batch is, how deep an answer


def appending(steps: int, blocks: int = 1) -> Network:
    return AppendingEncoder(WIDTH, blocks, HEADS, 4 * WIDTH, 0.0, LENGTH, steps=steps), lambda: steps, steps


def recurring(low: int = 3, high: int = 6, **parts: Any) -> Network:
    """Depths drawn evenly from ``low`` to ``high``, which is the mean 4 of LARES where they are 3 and 5."""
    encoder = RecurrentEncoder(WIDTH, 1, HEADS, 4 * WIDTH, 0.0, LENGTH, parts.pop("norm", "pre"), **parts)
    return encoder, lambda: int(torch.randint(low, high + 1, ())), 4


MODELS: dict[str, Callable[[], Network]] = {
    "append, K = 0": lambda: appending(0),
    "append, K = 3": lambda: appending(3),
    "append, K = 3, every step": lambda: appending(3),
    "append, K = 3, mean": lambda: appending(3),
    "4 blocks, K = 0": lambda: appending(0, 4),
    "recur from H": lambda: recurring(),
    "recur from H, mean depth 4": lambda: recurring(3, 5),
    "recur from H, mean depth 4, 2 to 6": lambda: recurring(2, 6),
    "recur from H, T + H": lambda: recurring(adapter="residual"),
    "recur from H, (T + H) / 2, norm": lambda: recurring(adapter="add", core_norm=True),
    "recur from H, concat": lambda: recurring(adapter="concat"),
    "recur from 0, T + H": lambda: recurring(adapter="residual", start="zero"),
    "recur as published": lambda: recurring(adapter="add", core_norm=True, start="normal", norm="post"),
    "recur as published, from H": lambda: recurring(adapter="add", core_norm=True, norm="post"),
    "recur as published, pre-norm": lambda: recurring(adapter="add", core_norm=True, start="normal"),
}
DEPTHS = (1, 2, 3, 4, 6, 8, 12)


class Task(nn.Module):
    """Node vectors in, a network, scores of the nodes out.

    Args:
        network: encoder, depths of training and depth of an answer.
        loss: of the ``last`` state, of ``every`` state with equal weight, or of the ``mean`` of all.
    """

    def __init__(self, network: Network, loss: Literal["last", "every", "mean"] = "last") -> None:
        super().__init__()
        self.encoder, self.depth, self.answer = network
        self.source, self.end, self.start = (nn.Embedding(NODES, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, NODES)
        self.loss_of = loss

    def vectors(self, edges: Tensor, start: Tensor) -> Tensor:
        """int64 ``[B, 8, 2]``, int64 ``[B]`` → float ``[B, 9, d]``; the start is the newest token."""
        tokens = self.source(edges[..., 0]) + self.end(edges[..., 1])
        return torch.cat([tokens, self.start(start)[:, None]], dim=1)

    def states(self, vectors: Tensor, steps: int) -> Tensor:
        """float ``[B, steps + 1, d]``, at the newest token."""
        newest = torch.full((len(vectors), 1), vectors.shape[1] - 1)
        return unroll(self.encoder, vectors, newest, steps)[:, 0]  # type: ignore[arg-type]

    def scores(self, vectors: Tensor, steps: int) -> Tensor:
        """float ``[B, nodes]``."""
        states = self.states(vectors, steps)
        return self.head(states.mean(dim=1) if self.loss_of == "mean" else states[:, -1])

    def loss(self, vectors: Tensor, goal: Tensor) -> Tensor:
        steps = self.depth()
        if self.loss_of != "every":
            return F.cross_entropy(self.scores(vectors, steps), goal)
        scores = self.head(self.states(vectors, steps))
        return F.cross_entropy(scores.flatten(0, 1), goal.repeat_interleave(steps + 1))


def cases(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Edges int64 ``[B, 8, 2]``, start, end of its chain, and hops between them, int64 ``[B]`` each."""
    nodes = torch.rand(count, NODES, generator=generator).argsort(dim=1)[:, : CHAINS * (HOPS + 1)]
    chains = nodes.view(count, CHAINS, HOPS + 1)
    edges = torch.stack([chains[..., :-1], chains[..., 1:]], dim=-1).flatten(1, 2)
    order = torch.rand(count, CHAINS * HOPS, generator=generator).argsort(dim=1)
    edges = edges.gather(1, order[..., None].expand(-1, -1, 2))
    hops = torch.randint(1, HOPS + 1, (count,), generator=generator)
    chain = torch.randint(0, CHAINS, (count,), generator=generator)
    own = chains[torch.arange(count), chain]
    return edges, own.gather(1, HOPS - hops[:, None])[:, 0], own[:, -1], hops


@torch.no_grad()
def accuracy(task: Task, steps: int, count: int = 4000) -> list[float]:
    """Share of cases that are right, for 1 to 4 hops; the cases are the same for all."""
    edges, start, goal, hops = cases(count, torch.Generator().manual_seed(10**6))
    right = task.scores(task.vectors(edges, start), steps).argmax(dim=1) == goal
    return [float(right[hops == hop].float().mean()) for hop in range(1, HOPS + 1)]


def follow(name: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one network on chains and say how it does at every depth."""
    torch.manual_seed(seed)
    loss: Literal["last", "every", "mean"] = "last"
    if name.endswith(("every step", "mean")):
        loss = "every" if name.endswith("every step") else "mean"
    task = Task(MODELS[name](), loss)
    optimiser, generator = torch.optim.Adam(task.parameters(), 1e-3), torch.Generator().manual_seed(seed)
    began = time.perf_counter()
    for _ in range(steps):
        edges, start, goal, _ = cases(BATCH, generator)
        optimiser.zero_grad()
        task.loss(task.vectors(edges, start), goal).backward()
        optimiser.step()
    row: dict[str, Any] = {"model": name, "seed": seed, "steps": steps, "seconds": time.perf_counter() - began}
    depths = DEPTHS if isinstance(task.encoder, RecurrentEncoder) else range(task.answer + 1)
    return {**row, "depth": task.answer, "accuracy": {str(depth): accuracy(task, depth) for depth in depths}}


def walk(name: str, seed: int, steps: int, length: int = LENGTH) -> dict[str, Any]:
    """Train one network on a first-order Markov chain; its loss on new walks beside the chain's entropy, in nats."""
    torch.manual_seed(seed)
    task, generator = Task(MODELS[name]()), torch.Generator().manual_seed(seed)
    law = (torch.randn(NODES, NODES, generator=torch.Generator().manual_seed(7)) * 2).softmax(dim=1)
    optimiser = torch.optim.Adam(task.parameters(), 1e-3)

    def walks(count: int, draws: torch.Generator) -> Tensor:
        nodes = [torch.randint(0, NODES, (count,), generator=draws)]
        for _ in range(length):
            nodes.append(torch.multinomial(law[nodes[-1]], 1, generator=draws)[:, 0])
        return torch.stack(nodes, dim=1)

    for _ in range(steps):
        nodes = walks(BATCH, generator)
        optimiser.zero_grad()
        task.loss(task.source(nodes[:, :-1]), nodes[:, -1]).backward()
        optimiser.step()
    nodes = walks(20_000, torch.Generator().manual_seed(10**6))
    with torch.no_grad():
        loss = float(F.cross_entropy(task.scores(task.source(nodes[:, :-1]), task.answer), nodes[:, -1]))
    own = law[nodes[:, -2]]
    known = float(-own.gather(1, nodes[:, -1:]).log().mean())  # on these walks, of the law itself
    return {"model": name, "seed": seed, "steps": steps, "depth": task.answer, "loss": loss, "law": known}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="NAME")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps on chains (default 3000)")
    parser.add_argument(
        "--walk-steps", type=int, default=1000, help="optimiser steps on Markov walks; 0 leaves them out"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write every row here, one a line, as it is found")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.models:
        for seed in map(int, options.seeds.split(",")):
            rows = [follow(name, seed, options.steps)] if options.steps else []
            rows += [walk(name, seed, options.walk_steps)] if options.walk_steps else []
            for row in rows:
                if options.json:
                    with Path(options.json).open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                if "loss" in row:
                    print(f"{name:34} seed {seed}  walks   loss {row['loss']:.4f}, law {row['law']:.4f}", flush=True)
                    continue
                print(f"{name:34} seed {seed}  {row['steps']:5} steps, {row['seconds']:.0f} s", flush=True)
                for depth, values in row["accuracy"].items():
                    print(f"    depth {depth:>2}: " + "  ".join(f"{value:.3f}" for value in values), flush=True)


if __name__ == "__main__":
    main()
