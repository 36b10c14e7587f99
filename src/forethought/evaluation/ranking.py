"""Where each held-out target stands among all items: counted, never sorted.

The target's place depends on two counts only: the items scored above it and the other items with the same score. Both
are taken with all items as candidates ("seen kept") and then, from the same scores, without the items of the user's
history ("seen removed"). Every item is scored once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forethought.data.batches import target_batches
from forethought.data.dataset import Targets
from forethought.errors import DataError, ForethoughtError

SEEN = ("removed", "kept")  # the two columns of every count and list
CELLS = 1 << 20  # scores held at once on a CPU: 4 MiB stays in cache; an accelerator takes 64 times that


class ScoringError(ForethoughtError, ValueError):
    """A model gave scores that cannot be ranked."""


class Ranker(Protocol):
    """What a model needs for its ranking to be evaluated; every ``Recommender`` has it."""

    config: Any
    inner_product: bool
    training: bool

    def eval(self) -> Any: ...
    def train(self, mode: bool = ...) -> Any: ...
    def score(self, history: Tensor) -> Tensor: ...
    def query(self, history: Tensor) -> Tensor: ...
    def item_vectors(self) -> Tensor: ...


def kind_of(model: Ranker) -> str:
    """The model's type as recipes name it, such as ``knn``; the class of a model that no recipe can name."""
    family, _, kind = str(getattr(model.config, "model_type", "")).partition("-")
    return kind if family == "forethought" and kind else type(model).__name__


@dataclass(frozen=True)
class Ranks:
    """Where the targets stand. Column 0 of each array: seen items removed; column 1: kept.

    Attributes:
        greater: int32 ``[cases, 2]``, items scored above the target; N where the target itself was removed as seen.
        ties: int32 ``[cases, 2]``, other items with the target's score.
        num_items: N, the size of the catalogue.
        lists: int32 ``[cases, 2, k]``, the best items 1..N, best first, 0 where fewer than k are left; None where
            they were not asked for. Equal scores are listed in no particular order.
    """

    greater: npt.NDArray[np.int32]
    ties: npt.NDArray[np.int32]
    num_items: int
    lists: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.greater)

    @property
    def expected(self) -> npt.NDArray[np.float32]:
        """float32 ``[cases, 2]``: 1 + greater + ties / 2, the mean rank over all orders of the tied items."""
        return (1 + self.greater + self.ties / 2).astype(np.float32)

    @property
    def unreachable(self) -> npt.NDArray[np.bool_]:
        """bool ``[cases]``: the target is in the history, so it cannot be found once seen items are removed."""
        return np.asarray(self.greater[:, 0] == self.num_items)


@torch.no_grad()
def rank_targets(
    model: Ranker,
    targets: Targets,
    *,
    max_length: int | None = None,
    batch_size: int = 1024,
    rows: npt.NDArray[np.int64] | None = None,
    top_k: int = 0,
    bfloat16: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Ranks:
    """Rank the target of each case among all N items.

    The model reads the newest ``max_length`` items of a history; all of it counts as seen. A target inside its own
    history gets ``greater = N`` in the column "seen removed": a miss at every cut-off, counted as ``unreachable``.

    Args:
        model: any recommender; where ``model.inner_product`` the items' vectors are computed once.
        targets: ``dataset.targets(split)``.
        max_length: by default ``model.config.max_length``.
        batch_size: histories encoded together; it does not change the result.
        rows: int64, the cases to rank, in this order; all by default.
        top_k: length of the lists to keep; none are kept with 0.
        bfloat16: let inner products use bfloat16 factors with float32 sums where the processor has them.
        progress: called with the number of cases ranked so far.

    Raises:
        ScoringError: a score is NaN or infinite, or there is not one score for each item.
        DataError: the model and the data have different catalogues.
    """
    num_items = int(model.config.num_items)
    goal = targets.items
    if len(goal) and int(goal.max()) > num_items:
        raise DataError(
            f"The data has item {int(goal.max())} and the model knows {num_items} items; use the data it was made for."
        )
    cases = np.arange(len(targets), dtype=np.int64) if rows is None else np.asarray(rows, dtype=np.int64)
    greater = np.zeros((len(targets), 2), dtype=np.int32)
    ties = np.zeros((len(targets), 2), dtype=np.int32)
    top_k = min(top_k, num_items)
    lists = np.zeros((len(targets), 2, top_k), dtype=np.int32) if top_k else None
    was_training, done, flags = model.training, 0, torch.empty(0)
    model.eval()
    try:
        with _products(bfloat16):
            for chunk, scores in _scores(model, targets, max_length or model.config.max_length, batch_size, cases):
                if len(flags) < len(scores):
                    flags = torch.empty_like(scores)
                greater[chunk], ties[chunk], best = _count(scores, flags, targets, chunk, goal[chunk], top_k)
                if lists is not None and best is not None:
                    lists[chunk] = best
                done += len(chunk)
                if progress is not None:
                    progress(done)
    finally:
        model.train(was_training)
    return Ranks(greater[cases], ties[cases], num_items, None if lists is None else lists[cases])


def _scores(
    model: Ranker, targets: Targets, max_length: int, batch_size: int, cases: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """Case numbers int64 ``[b]`` and their scores float ``[b, N]``, which the caller may overwrite."""
    num_items, device = int(model.config.num_items), _device(model)
    rows = max(1, (CELLS if device.type == "cpu" else 64 * CELLS) // max(num_items, 1))
    vectors = model.item_vectors().float().T if model.inner_product else None
    buffer = torch.empty(rows if vectors is not None else 0, num_items, device=device)
    for batch, history in target_batches(targets, batch_size, max_length, cases):
        history = history.to(device)
        query = model.query(history).float() if vectors is not None else None
        for start in range(0, len(batch), rows):
            part = slice(start, min(start + rows, len(batch)))
            if query is not None and vectors is not None:
                scores = torch.mm(query[part], vectors, out=buffer[: part.stop - start])
            else:
                scores = model.score(history[part]).float().clone()
            if scores.shape != (part.stop - start, num_items):
                raise ScoringError(
                    f"{kind_of(model)} gave scores of shape {tuple(scores.shape)} for {part.stop - start} "
                    f"histories and {num_items} items; it must give one score for each item."
                )
            # One cheap sum; only where it overflows does every score have to be looked at.
            if not torch.isfinite(scores.sum()) and not torch.isfinite(scores).all():
                bad = int((~torch.isfinite(scores)).sum())
                raise ScoringError(
                    f"{kind_of(model)} gave {bad} scores that are NaN or infinite among {scores.numel()}; "
                    "its training diverged or its score is wrong, so there is nothing to rank."
                )
            yield batch[part], scores


def _count(
    scores: Tensor,
    flags: Tensor,
    targets: Targets,
    cases: npt.NDArray[np.int64],
    goal: npt.NDArray[np.int64],
    top_k: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32] | None]:
    """Greater and ties, int32 ``[b, 2]``, and lists int32 ``[b, 2, top_k]``; overwrites ``scores`` and ``flags``."""
    target = torch.from_numpy(goal - 1).to(scores.device)[:, None]
    own = scores.gather(1, target)
    greater, equal = _above(scores, own, flags)
    kept = scores.topk(top_k, dim=1).indices + 1 if top_k else None
    scores.view(-1).index_fill_(0, _seen_cells(targets, cases, scores.shape[1]).to(scores.device), float("-inf"))
    greater_left, equal_left = _above(scores, own, flags)
    unreachable = scores.gather(1, target)[:, 0] == float("-inf")
    greater_left = torch.where(unreachable, scores.shape[1], greater_left)
    ties_left = torch.where(unreachable, 0, equal_left - 1)
    counts = torch.stack([greater_left, greater, ties_left, equal - 1], dim=1).int().cpu().numpy()
    if kept is None:
        return counts[:, :2], counts[:, 2:], None
    removed = scores.topk(top_k, dim=1)
    left = torch.where(removed.values == float("-inf"), 0, removed.indices + 1)
    return counts[:, :2], counts[:, 2:], torch.stack([left, kept], dim=1).int().cpu().numpy()


def _above(scores: Tensor, own: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
    """How many scores of each row are greater than, and equal to, its own; both int64 ``[b]``."""
    # A 0/1 matrix of floats sums several times faster than one of booleans, and exactly up to 2^24 items. It is made
    # once and used again: fresh memory costs as much as the comparison.
    flags = flags[: len(scores)]
    greater = torch.gt(scores, own, out=flags).sum(1).long()
    return greater, torch.eq(scores, own, out=flags).sum(1).long()


def _seen_cells(targets: Targets, cases: npt.NDArray[np.int64], num_items: int) -> Tensor:
    """Where the items of the cases' whole histories stand in flattened scores ``[b, N]``; int64 ``[events]``."""
    lengths = targets.lengths[cases]
    ends = np.cumsum(lengths)
    events = np.arange(ends[-1] if len(ends) else 0) + np.repeat(targets.starts[cases] - (ends - lengths), lengths)
    cells = np.repeat(np.arange(len(cases)) * num_items - 1, lengths) + targets.sequences.items[events]
    return torch.from_numpy(cells)


def _device(model: Any) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return torch.device(tensor.device)
    return torch.device("cpu")


@contextlib.contextmanager
def _products(bfloat16: bool) -> Iterator[None]:
    """Inside, float32 matrix products may round their factors to bfloat16; sums and results stay float32."""
    # torch's stubs do not know mkldnn.matmul
    backends: list[Any] = [
        torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]  # as said above
        torch.backends.cuda.matmul,
    ]
    before = [backend.fp32_precision for backend in backends]
    if bfloat16:
        for backend, precision in zip(backends, ["bf16", "tf32"], strict=True):
            backend.fp32_precision = precision
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
