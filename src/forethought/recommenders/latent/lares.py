"""LARES: a recurrence over all tokens whose depth is chosen when it answers (Liu et al. 2025, arXiv 2505.16865)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from forethought.nn.reasoning import RecurrentEncoder, draw_depth
from forethought.nn.thought import Thought
from forethought.recommenders.base import RecommenderOutput
from forethought.recommenders.latent.config import LARESConfig
from forethought.recommenders.latent.model import LatentReasoner, draw_position
from forethought.recommenders.latent.post_training import released_loss, set_dropout, thought_loss


class LARES(LatentReasoner):
    """An encoder, then a core of shared weights, applied a random number of times in training and m times to answer.

    Its first phase is :class:`LatentReasoner`'s: cross-entropy and alignments. In the second, ``forward`` gives the
    loss of ``config.post_objective`` on one prefix a row.
    """

    config_class = LARESConfig
    kind = "recur"
    has_post_training = True
    encoder: RecurrentEncoder

    def __init__(self, config: LARESConfig) -> None:
        super().__init__(config)
        self._reference: list[LARES] = []  # in a list, so that it is no part of what is trained and saved

    def make_encoder(self, config: Any) -> RecurrentEncoder:
        return RecurrentEncoder(
            config.hidden_size, config.num_blocks, config.num_heads, config.inner_size or 4 * config.hidden_size,
            config.dropout, config.max_length, config.norm, core_blocks=config.core_blocks, start=config.start,
            adapter=config.adapter, core_norm=config.core_norm, start_std=config.start_std,
            start_scale=config.start_scale,
        )  # fmt: skip

    def training_steps(self) -> int:
        return draw_depth(self.config.depth, self.config.steps, self.config.shallowest) if self.config.steps else 0

    def _after(self, history: Tensor, steps: int) -> Tensor:
        return torch.stack(self._each_draw(lambda: super(LARES, self)._after(history, steps))).mean(dim=0)

    def _started(self, history: Tensor, position: Tensor) -> list[Any]:
        each = self._each_draw(lambda: super(LARES, self)._started(history, position))
        return [state for started in each for state in started]

    def think(self, history: Tensor, steps: int | None = None) -> Thought:
        """As :meth:`LatentReasoner.think`, averaged over the initial states that an answer is averaged over."""
        each: list[Thought] = self._each_draw(lambda: super(LARES, self).think(history, steps))
        states = torch.stack([thought.states for thought in each]).mean(dim=0)
        answers = torch.stack([thought.answers for thought in each if thought.answers is not None]).mean(dim=0)
        return replace(each[0], states=states, answers=answers)

    def _each_draw(self, ask: Callable[[], Any]) -> list[Any]:
        """What comes of each of ``test_draws`` initial states; of the one there is where they are no noise."""
        if self.encoder.start != "normal":
            return [ask()]
        draws: list[int | None] = [None] if self.config.test_draws == 0 else list(range(self.config.test_draws))
        found, before = [], self.encoder.draw
        try:
            for draw in draws:
                self.encoder.draw = draw
                found.append(ask())
        finally:
            self.encoder.draw = before
        return found

    def start_post_training(self) -> None:
        """Keep a frozen copy to measure the distance from, and take the dropout of the second phase."""
        reference = copy.deepcopy(self).eval().requires_grad_(False)
        reference.training = True  # of the readout alone: what is compared is read out alike
        if self.config.post_objective == "released":
            reference.encoder.draw = None  # an initial state of its own
        self._reference = [reference]
        set_dropout(self.encoder, self.config.post_dropout)

    def end_post_training(self) -> None:
        """Let the copy go."""
        self._reference = []
        set_dropout(self.encoder, self.config.dropout)

    def forward(self, history: Tensor, target: Tensor, num_targets: Tensor | None = None) -> RecommenderOutput:
        if not self._reference:
            return super().forward(history, target, num_targets)
        (reference,) = self._reference
        count = (target > 0).sum()
        rows = (target > 0).any(dim=1)
        history, target = history[rows], target[rows]
        position = draw_position(target)
        wanted = target.gather(1, position[:, None])[:, 0] - 1
        history = history * (torch.arange(history.shape[1], device=history.device) <= position[:, None])
        with self.one_table():
            if self.config.post_objective == "thought":
                loss = thought_loss(self, reference, history, wanted, max(self.training_steps(), 1))
            else:
                loss = released_loss(self, reference, history, wanted)
        return RecommenderOutput(loss=loss * count / (count if num_targets is None else num_targets))
