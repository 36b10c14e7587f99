"""What every next-item model offers, whatever it does between history and answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from forethought.data.dataset import Dataset
from forethought.nn.thought import Thought


@strict
class RecommenderConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is only partly annotated
    """Sizes every recommender knows.

    Attributes:
        num_items: N; items are 1..N and 0 is padding.
        max_length: newest items of the history that are read.
    """

    model_type = "forethought"

    num_items: int = 0
    max_length: int = 50

    def validate_sizes(self) -> None:
        """Of the sizes that many models share, those that a config has: what no network can be made of is refused."""
        for key in ("max_length", "hidden_size", "num_blocks", "num_heads", "negatives"):
            if getattr(self, key, 1) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it has to be at least 1")
        if not 0 <= getattr(self, "dropout", 0) < 1:
            raise ValueError(f"dropout is {getattr(self, 'dropout', 0)}; it has to be at least 0 and less than 1")
        width, heads = getattr(self, "hidden_size", 0), getattr(self, "num_heads", 1)
        if width % heads:
            raise ValueError(f"hidden_size {width} cannot be shared by {heads} heads; choose a multiple")


@dataclass
class RecommenderOutput(ModelOutput):  # type: ignore[misc]  # as above
    """What ``forward`` returns: the scalar ``loss``, a mean over the supervised targets."""

    loss: Tensor | None = None


class Recommendations(NamedTuple):
    """The best items, best first: ``items`` int64 ``[B, k]`` (1..N) and ``scores`` float ``[B, k]``."""

    items: Tensor
    scores: Tensor


class Recommender(PreTrainedModel):  # type: ignore[misc]  # as above
    """A next-item model.

    A subclass defines ``forward`` (if it has parameters to train) and ``score``, and where its score is an inner
    product also ``query`` and ``item_vectors``.
    """

    config_class = RecommenderConfig
    base_model_prefix = "recommender"
    main_input_name = "history"
    # ``forward`` takes ``num_targets`` and divides its summed loss by it, so gradient accumulation and several
    # processes give the loss of one big batch (but for contrasts between its rows).
    accepts_loss_kwargs = True
    inner_product = False
    has_post_training = False

    config: Any

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Modules initialise themselves in their constructors; nothing is drawn again here."""

    def observe(self, dataset: Dataset) -> None:
        """Read what the model needs to know of the training part (counts, transitions) before any gradient step."""

    def start_post_training(self) -> None:
        """Make ready for the second phase of training; only where ``has_post_training``."""
        raise NotImplementedError(f"{type(self).__name__} is trained in one phase.")

    def end_post_training(self) -> None:
        """Let go of what the second phase needed alone; only where ``has_post_training``."""
        raise NotImplementedError(f"{type(self).__name__} is trained in one phase.")

    def forward(self, history: Tensor, target: Tensor, num_targets: Tensor | None = None) -> RecommenderOutput:
        """The training loss.

        Args:
            history: int64 ``[B, L]``, items 1..N, padded on the right with 0.
            target: int64 ``[B, L]``, the item after each position, 0 where none is to be predicted.
            num_targets: divisor of the summed loss; by default the number of non-zero targets.
        """
        raise NotImplementedError(f"{type(self).__name__} is fitted by counting and has no loss.")

    def score(self, history: Tensor, candidates: Tensor | None = None) -> Tensor:
        """How well each item would follow.

        Args:
            history: int64 ``[B, L]``, padded on the right with 0; L is at most ``max_length`` (see :func:`newest`).
            candidates: int64 ``[C]`` or ``[B, C]`` items 1..N; all N by default.

        Returns:
            float ``[B, N]``, column j for item j + 1, or ``[B, C]`` in the candidates' order. Higher is better.

        Raises:
            DataError: L is more than the network has positions for.
        """
        vectors = self.item_vectors()
        query = self.query(history)
        if candidates is None:
            return query @ vectors.T
        chosen = vectors[candidates - 1]
        return query @ chosen.T if candidates.dim() == 1 else torch.einsum("bd,bcd->bc", query, chosen)

    def query(self, history: Tensor) -> Tensor:
        """float ``[B, d]`` such that ``score = query @ item_vectors().T``; only where ``inner_product`` is true."""
        raise NotImplementedError(f"{type(self).__name__} does not rank by an inner product.")

    def item_vectors(self) -> Tensor:
        """float ``[N, d]``, row j for item j + 1; only where ``inner_product`` is true."""
        raise NotImplementedError(f"{type(self).__name__} does not rank by an inner product.")

    def think(self, history: Tensor, steps: int | None = None) -> Thought:
        """What happens between history and answer; a model that does not reason takes one ``encode`` step."""
        state = self.query(history)
        mask = torch.ones(len(state), 1, dtype=torch.bool, device=state.device)
        return Thought(state[:, None], mask, "encode", (state @ self.item_vectors().T)[:, None])

    @torch.no_grad()
    def recommend(self, history: Tensor, k: int = 10, exclude_seen: bool = True) -> Recommendations:
        """The k best items a user.

        Args:
            history: int64 ``[B, L]``, padded on the right with 0; all of it is excluded where ``exclude_seen``,
                the newest ``max_length`` of it are read.
            k: how many; at most N (fewer remain where seen items are excluded: their score is -inf).
            exclude_seen: leave out items of the history.
        """
        return best_items(self.score(newest(history, self.config.max_length)), history, k, exclude_seen)


def best_items(scores: Tensor, history: Tensor, k: int, exclude_seen: bool) -> Recommendations:
    """The k best of ``scores`` float ``[B, N]``; arguments as in :meth:`Recommender.recommend`."""
    if exclude_seen:
        padded = torch.cat([scores.new_zeros(len(scores), 1), scores], dim=1)
        scores = padded.scatter_(1, history, float("-inf"))[:, 1:]
    best = scores.topk(min(k, scores.shape[1]), dim=1)
    return Recommendations(best.indices + 1, best.values)


def log_proposal(dataset: Dataset, power: float) -> Tensor:
    """Log-probability of drawing each item as a negative, ∝ count^power in training; float ``[N]``."""
    counts = torch.from_numpy(dataset.item_counts()[1:]).float().clamp(min=1)
    return counts.log().mul(power).log_softmax(0)


def newest(history: Tensor, length: int) -> Tensor:
    """The newest ``length`` items of right-padded histories, right-padded again; ``[B, min(L, length)]``."""
    if history.shape[1] <= length:
        return history
    lengths = (history > 0).sum(dim=1)
    start = (lengths - length).clamp(min=0)
    steps = start[:, None] + torch.arange(length, device=history.device)
    inside = steps < lengths[:, None]
    return torch.where(inside, history.gather(1, steps.clamp(max=history.shape[1] - 1)), 0)
