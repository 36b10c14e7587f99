"""How fast one PreferGrow step is, against a plain autograd version and against the products it cannot avoid.

    python benchmarks/prefergrow_step.py [--threads 2] [--rounds 20] [--json FILE]

In one run: loss and gradients of a hybrid step at B 256, d 256, N 12,101, fused and plain, beside the three bare
matrix products; peak memory and agreement of both; guided scores of 2,048 users, one mixed product against two; the
whole step with encoder, optimiser and average. Products in bfloat16 are timed where the processor has them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from forethought.evaluation.ranking import CELLS
from forethought.recommenders.prefergrow import fused
from forethought.recommenders.prefergrow.config import PreferGrowConfig
from forethought.recommenders.prefergrow.fused import Corruption
from forethought.recommenders.prefergrow.kernels import FadingKernel
from forethought.recommenders.prefergrow.model import PreferGrow
from forethought.training.devices import find_precision
from forethought.training.ema import ExponentialMovingAverage
from forethought.training.memory import keep_freed_memory
from measuring import peak_megabytes, seconds
from report import Cell, Result

ROWS, WIDTH, ITEMS = 256, 256, 12101


def milliseconds(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    return {name: 1e3 * value for name, value in seconds(work, rounds, warm_up=2).items()}


def plain_loss(query: torch.Tensor, vectors: torch.Tensor, p: torch.Tensor, noise: Corruption) -> torch.Tensor:
    """The score entropy as its pseudo-code reads, ratios and all, left to autograd."""
    scores = query @ vectors.T
    column = (1 - noise.alpha)[:, None] * p.expand(len(query), -1)
    column = column.scatter_add(1, noise.x_0[:, None], noise.alpha[:, None])
    ratios = column / column.gather(1, noise.x_t[:, None])
    constant = torch.xlogy(ratios, ratios) - ratios
    terms = torch.exp(scores) - ratios * scores + constant
    terms = terms.scatter(1, noise.x_t[:, None], 0.0)
    return (noise.weight * p[noise.x_t] * terms.sum(dim=1)).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="keep the result here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    result = Result("PreferGrow: one training step, guided ranking", options.threads)

    kernel = FadingKernel.hybrid(ITEMS, 0.999)
    query = (torch.randn(ROWS, WIDTH) * 0.1).requires_grad_()
    vectors = (torch.randn(kernel.num_states, WIDTH) * 0.1).requires_grad_()
    x_0, sigma = torch.randint(ITEMS, (ROWS,)), torch.rand(ROWS) * 5 + 1e-2
    alpha = torch.exp(-sigma)
    noise = Corruption(x_0, kernel.sample(x_0, alpha), alpha, sigma * 9.2)

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return [loss.detach(), *torch.autograd.grad(loss, (query, vectors))]

    def fast() -> list[torch.Tensor]:
        return gradients(fused.score_entropy(query, vectors, kernel, noise))

    def plain() -> list[torch.Tensor]:
        return gradients(plain_loss(query, vectors, kernel.p, noise))

    def half() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = fused.score_entropy(query, vectors, kernel, noise)
        return gradients(loss)

    def bare() -> None:
        with torch.no_grad():
            scores = query @ vectors.T
            _ = scores @ vectors, scores.T @ query

    memory = {"plain": peak_megabytes(plain), "fused": peak_megabytes(fast)}
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(fast(), plain(), strict=True))

    narrow = find_precision("auto", torch.device("cpu")) == "bf16"
    half_goal = "; bfloat16 at least 3 x faster than (a)" if narrow else ""

    def losses(where: str) -> None:
        work: dict[str, Callable[[], object]] = {"plain": plain, "bare": bare, "fused": fast}
        times = milliseconds(work | ({"bf16": half} if narrow else {}), options.rounds)
        rows: list[list[Cell]] = [
            ["(a) plain autograd, float32", times["plain"], memory["plain"]],
            ["(b) three bare products, float32", times["bare"], "-"],
            ["fused, float32", times["fused"], memory["fused"]],
        ]
        if narrow:
            rows.append(["fused, bfloat16 products", times["bf16"], "-"])
        result.table(
            f"Score entropy and its gradients, B {ROWS}, d {WIDTH}, N {ITEMS:,}, {where}. Goals: float32 at most "
            f"1.3 x (b), at least 1.35 x faster than (a), half its peak memory{half_goal}. "
            f"Largest relative difference between the fused and the plain loss and gradients in float32: {worst:.1e}.",
            ["", "ms", "peak MB", "x (b)", "x faster than (a)"],
            [[*row, float(row[1]) / times["bare"], times["plain"] / float(row[1])] for row in rows],
        )

    losses("memory as the C library gives it")
    ranking(result, options.rounds, narrow)
    keep_freed_memory()
    losses("freed memory kept, as the trainer does for either")
    result.table(
        "The whole step: encoder, loss, clipping, AdamW, average of the weights. Goal: 50 ms.",
        ["", "ms"],
        [[name, whole_step(name, options.rounds)] for name in (["float32", "bfloat16"] if narrow else ["float32"])],
    )
    result.save(options.json)


def whole_step(precision: str, rounds: int) -> float:
    """Milliseconds of a training step of the published hybrid: encoder, loss, clipping, AdamW, average."""
    config = PreferGrowConfig(
        num_items=ITEMS, kernel="hybrid", gamma=0.999, encoder="paper", hidden_size=WIDTH, max_length=10,
        item_bias=False, ratio_offset=False, nonpreference_user_ratio=0.1,
    )  # fmt: skip
    model = PreferGrow(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    average = ExponentialMovingAverage(model, 0.9999)
    history = torch.randint(1, ITEMS + 1, (ROWS, 10))
    target = torch.zeros_like(history)
    target[:, -1] = torch.randint(1, ITEMS + 1, (ROWS,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(history, target).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        average.update(100_000)

    return milliseconds({"step": step}, rounds)["step"]


def ranking(result: Result, rounds: int, narrow: bool) -> None:
    """Guided scores of 2,048 users: two products, then mixed; against queries mixed, then one product."""
    users, w = 2048, 2.0
    conditional, empty, items = torch.randn(users, WIDTH), torch.randn(1, WIDTH), torch.randn(ITEMS, WIDTH)
    everybody = empty.expand(users, -1).contiguous()
    rows = CELLS // ITEMS

    def two() -> torch.Tensor:
        return w * (conditional @ items.T) + (1 - w) * (everybody @ items.T)

    def one() -> torch.Tensor:
        return (w * conditional + (1 - w) * empty) @ items.T

    def in_chunks(dtype: torch.dtype) -> Callable[[], None]:
        buffer, vectors = torch.empty(rows, ITEMS, dtype=dtype), items.to(dtype).T

        def score() -> None:
            for part in (w * conditional + (1 - w) * empty).to(dtype).split(rows):
                torch.mm(part, vectors, out=buffer[: len(part)])

        return score

    work = {"two": two, "one": one, "chunks": in_chunks(torch.float32)}
    if narrow:
        work["narrow"] = in_chunks(torch.bfloat16)
    times = milliseconds(work, rounds)
    error = float((one() - two()).abs().max() / two().abs().max())
    names = [
        "two head products, then mixed",
        "the queries mixed, one product",
        "the same, in chunks into one buffer, as evaluation does",
        "the same in bfloat16",
    ]
    result.table(
        f"Guided scores of {users:,} users over {ITEMS:,} items. Goal: 2.5 x faster. Largest relative difference: "
        f"{error:.1e}.",
        ["", "ms", "x faster"],
        [[name, times[key], times["two"] / times[key]] for name, key in zip(names, work, strict=False)],
    )


if __name__ == "__main__":
    main()
