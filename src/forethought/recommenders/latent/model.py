"""What every model that reasons in latent space does: think, read out, learn from the steps."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.data.dataset import Dataset
from forethought.data.text import TextVectors
from forethought.nn.encoder import CausalEncoder, like_lengths, newest_position, supervised_states
from forethought.nn.halting import Rule, unroll_until
from forethought.nn.reasoning import Change, unroll
from forethought.nn.softmax import sampled_cross_entropy, softmax_cross_entropy
from forethought.nn.text_items import TextEmbedding
from forethought.nn.thought import StepKind, Thought
from forethought.recommenders.base import Recommender, RecommenderOutput, log_proposal
from forethought.recommenders.latent.config import LatentConfig
from forethought.recommenders.latent.item_graph import item_graph
from forethought.recommenders.latent.losses import info_nce, step_divergence, teacher_divergence
from forethought.recommenders.latent.same_target import SameTarget

HELD = 1 << 22  # log-probabilities that a rule holds at once


class LatentReasoner(Recommender):
    """States ``r_0`` (the history is read) to ``r_K``; an inner product of their readout with the items ranks.

    The cross-entropy learns from every position with a target. Divergence, contrast and alignments learn from one
    prefix a row, drawn uniformly: their cost grows with the number of thoughts squared, or with the catalogue.

    Attributes:
        steps: taken for an answer; ``config.steps`` until it is set to another number.
        change: made to what each step goes on from, to learn what the thought is worth; None leaves it alone.
        halting: lets each row answer before ``steps`` are taken; None takes them all.
    """

    config_class = LatentConfig
    inner_product = True
    kind: StepKind
    neighbours: Tensor | None
    one_prefix = False  # whether the encoder reads one prefix a row at a time

    def __init__(self, config: LatentConfig) -> None:
        super().__init__(config)
        self.embedding = self.make_embedding(config)
        self.encoder = self.make_encoder(config)
        gated = config.readout in ("gate", "dual")
        self.readout_gate = nn.Linear(config.hidden_size, config.hidden_size, bias=False) if gated else None
        self.register_buffer("log_proposal", torch.zeros(config.num_items).log_softmax(0))
        self.steps = config.steps
        self.change: Change | None = None
        self.halting: Rule | None = None
        self._same_target: SameTarget | None = None
        self.register_buffer("neighbours", None, persistent=False)  # of the items' graph, where there is a teacher
        self.post_init()

    def make_embedding(self, config: Any) -> nn.Embedding | TextEmbedding:
        """What items are to the model: one table, for histories and answers."""
        if config.items != "id":
            return TextEmbedding(
                config.num_items, config.text_size, config.hidden_size, config.experts, config.text_dropout,
                with_ids=config.items == "both",
            )  # fmt: skip
        embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        nn.init.normal_(embedding.weight, std=0.02)
        return embedding

    def one_table(self) -> contextlib.AbstractContextManager[None]:
        """Inside, items of text are read once; those of ids need not be."""
        return self.embedding.held() if isinstance(self.embedding, TextEmbedding) else contextlib.nullcontext()

    def make_encoder(self, config: Any) -> CausalEncoder:
        """The encoder, which has the calls of :class:`forethought.nn.reasoning.Backbone`."""
        raise NotImplementedError(f"{type(self).__name__} has to define make_encoder.")

    def observe(self, dataset: Dataset) -> None:
        self.log_proposal.copy_(log_proposal(dataset, self.config.negative_power))
        if self.config.items != "id":
            known = TextVectors.open(dataset)
            self.config.text_size, self.config.text_encoder = known.vectors.shape[1], known.encoder
            self.embedding = self.make_embedding(self.config)  # as wide as the vectors are
            assert isinstance(self.embedding, TextEmbedding)
            self.embedding.text.copy_(torch.from_numpy(known.vectors))
        if self.config.trajectory_weight and self.config.view == "same_target":
            self._same_target = SameTarget(dataset, self.config.max_length)
        if self.config.supervision == "teacher" and self.config.steps:
            self.neighbours = torch.from_numpy(item_graph(dataset, self.config.teacher_neighbours))

    # -- thoughts and what is read of them

    def states(self, history: Tensor, position: Tensor | None, steps: int) -> Tensor:
        """r_0 … r_steps of P thoughts a row; float ``[B, P, steps + 1, d]``.

        Args:
            history: int64 ``[B, L]``, padded on the right with 0.
            position: int64 ``[B, P]``, where each thought's history ends; None is a thought a position.
            steps: how many.
        """
        return unroll(self.encoder, self.embedding(history), position, steps, self.change)  # type: ignore[arg-type]

    def _alone(self, history: Tensor, position: Tensor, steps: int) -> Tensor:
        """The states of one thought a row at ``position``, int64 ``[B]``; float ``[B, steps + 1, d]``."""
        if steps == 0:  # the plain encoder, bit for bit
            plain: Tensor = self.encoder(self.embedding(history), position)
            return plain[:, None]
        return self.states(history, position[:, None], steps)[:, 0]

    def _of_any_length(self, histories: list[Tensor], steps: int) -> list[Tensor]:
        """:meth:`_alone` at the newest item of each; int64 ``[B, L]`` each → float ``[B, steps + 1, d]`` each."""
        width, counts = max(each.shape[1] for each in histories), [len(each) for each in histories]
        history = torch.cat([F.pad(each, (0, width - each.shape[1])) for each in histories])
        position = newest_position(history)
        parts = like_lengths(position)
        states = torch.cat(
            [self._alone(history[rows, : int(position[rows[-1]]) + 1], position[rows], steps) for rows in parts]
        )
        return list(torch.split(states[torch.cat(parts).argsort()], counts))

    def read_out(self, states: Tensor) -> Tensor:
        """What is ranked by; float ``[..., T, d]`` → float ``[..., d]``."""
        if self.config.readout == "last" or states.shape[-2] == 1:
            return states[..., -1, :]
        if self.config.readout == "mean":
            return states.mean(dim=-2)
        assert self.readout_gate is not None
        first, dual = states[..., 0, :], self.config.readout == "dual"
        mixed = states[..., 1:, :] if dual else states
        weights = (mixed @ self.readout_gate(first)[..., None] * first.shape[-1] ** -0.5).softmax(dim=-2)
        read: Tensor = (weights * mixed).sum(dim=-2)
        return read if not dual or self.training else first + read

    def _compared(self, states: Tensor) -> Tensor:
        """The states' side of the inner product."""
        if self.config.similarity == "cosine":
            states = F.normalize(states, dim=-1)
        compared: Tensor = states / self.config.temperature
        return compared

    def item_vectors(self) -> Tensor:
        vectors = self.embedding.weight[1:]
        return F.normalize(vectors, dim=-1) if self.config.similarity == "cosine" else vectors

    def logits(self, states: Tensor) -> Tensor:
        """The scores of the items by states as they are, without a readout; float ``[..., d]`` → ``[..., N]``.

        Also under autocast they have the items' dtype: bfloat16 would drown how little a step changes, and make ties.
        """
        with torch.autocast(states.device.type, enabled=False):
            vectors = self.item_vectors()
            return self._compared(states.to(vectors.dtype)) @ vectors.T

    def query(self, history: Tensor, steps: int | None = None) -> Tensor:
        """As :meth:`Recommender.query`, after ``steps`` steps; by default ``self.steps``, or fewer if ``halting``."""
        if steps is None and self.halting is not None:
            return self.until(history, self.halting)
        return self._after(history, self.steps if steps is None else steps)

    def _after(self, history: Tensor, steps: int) -> Tensor:
        return self._compared(self.read_out(self._alone(history, newest_position(history), steps)))

    def until(self, history: Tensor, rule: Rule) -> Tensor:
        """As :meth:`query`, each row after as many of ``self.steps`` as the rule asks of it.

        A rule that reads answers gets them for so many rows at a time that their scores stay small.
        """
        vectors = self.item_vectors()
        rows = max(1, HELD // len(vectors)) if rule.reads_answers else len(history)
        found = [
            unroll_until(
                self.encoder,  # type: ignore[arg-type]  # as in states
                self._started(part, newest_position(part)[:, None]),
                self.steps,
                rule,
                lambda chain: self._compared(self.read_out(chain)),
                lambda read: (read @ vectors.T).log_softmax(dim=-1),
                self.change,
            )[0]
            for part in torch.split(history, max(rows, 1))
        ]
        return torch.cat(found)

    def _started(self, history: Tensor, position: Tensor) -> list[Any]:
        """The states before the first step, one an initial state."""
        return [self.encoder.encode(self.embedding(history), position)]  # type: ignore[operator]

    def think(self, history: Tensor, steps: int | None = None) -> Thought:
        """The states after 0, 1, … steps, and what a thought that ends there would recommend.

        ``steps`` is ``self.steps`` by default; more than were trained are allowed.
        """
        states = self._alone(history, newest_position(history), self.steps if steps is None else steps)
        answers = [
            self._compared(self.read_out(states[:, : step + 1])) @ self.item_vectors().T
            for step in range(states.shape[1])
        ]
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return Thought(states, mask, self.kind, torch.stack(answers, dim=1))

    # -- what is learned

    def training_steps(self) -> int:
        """How many steps the next batch takes."""
        return int(self.config.steps)

    def forward(self, history: Tensor, target: Tensor, num_targets: Tensor | None = None) -> RecommenderOutput:
        with self.one_table():
            return RecommenderOutput(loss=self._loss(history, target, num_targets))

    def _loss(self, history: Tensor, target: Tensor, num_targets: Tensor | None) -> Tensor:
        count = (target > 0).sum()
        if self.one_prefix:
            rows = (target > 0).any(dim=1)
            history, target = history[rows], target[rows]
            target = target * F.one_hot(draw_position(target), target.shape[1])
        supervised, steps = target > 0, self.training_steps()
        wanted = target[supervised] - 1
        alone = bool((supervised.sum(dim=1) == 1).all())
        if steps == 0:
            states = supervised_states(self.encoder, self.embedding(history), target)[:, None]
        elif alone:
            states = self._alone(history, supervised.int().argmax(dim=1), steps)
        else:
            states = self.states(history, None, steps)[supervised]
        loss = self._cross_entropy(states, wanted)
        rows = supervised.any(dim=1)
        if self._regularised(steps) and bool(rows.any()):
            history, target, supervised = history[rows], target[rows], supervised[rows]
            if alone:
                position = supervised.int().argmax(dim=1)
            else:
                position = draw_position(target)
                index = supervised.flatten().cumsum(0).view_as(supervised) - 1  # of each target among ``states``
                states = states[index.gather(1, position[:, None])[:, 0]]
            chosen = target.gather(1, position[:, None])[:, 0]
            loss = loss + len(wanted) * self._regularisers(states, history, position, chosen)
        loss = loss * (count / len(wanted))  # of a prefix a row, drawn for all of the row's
        return loss / (count if num_targets is None else num_targets)

    def _cross_entropy(self, states: Tensor, wanted: Tensor) -> Tensor:
        """Summed over the targets: of the readout, and of the states that predict by themselves."""
        config, last = self.config, states.shape[1] - 1
        loss = self._classify(self._compared(self.read_out(states)), wanted)
        supervised, weight = self._supervised(last)
        if not supervised or not weight:
            return loss
        hot = torch.tensor([config.cooling ** (last - step) for step in supervised], device=states.device)
        hidden = self._compared(states[:, supervised]) / hot.to(states.dtype)[:, None]
        each = self._classify(hidden.flatten(0, 1), wanted.repeat_interleave(len(supervised)))
        return loss + weight * each

    def _classify(self, hidden: Tensor, wanted: Tensor) -> Tensor:
        config, vectors = self.config, self.item_vectors()
        if config.loss == "ce":
            return softmax_cross_entropy(hidden, vectors, wanted)
        return sampled_cross_entropy(hidden, vectors, wanted, self.log_proposal, config.negatives, config.logq)

    def _supervised(self, last: int) -> tuple[list[int], float]:
        """Which of the states 0..last predict the target by themselves besides the readout, and what each counts.

        Without steps none does: the only state is the readout.
        """
        config = self.config
        states = {"none": [], "final": [last]}.get(config.supervision, list(range(last + 1)))
        if config.readout == "last" or last == 0:
            states = [step for step in states if step != last]
        return states, config.step_weight / (max(len(states), 1) if config.step_reduction == "mean" else 1)

    def _regularised(self, steps: int) -> bool:
        """Whether anything but cross-entropies is learned from; without steps, only from another view."""
        config = self.config
        return bool(config.trajectory_weight) or bool(
            steps
            and (
                config.kl_weight
                or config.contrast_weight
                or config.step_alignment_weight
                or (config.supervision == "teacher" and config.teacher_weight)
            )
        )

    def _regularisers(self, states: Tensor, history: Tensor, position: Tensor, target: Tensor) -> Tensor:
        """Their weighted sum, a mean over rows.

        Args:
            states: float ``[B, T, d]``, the thought of each row at ``position``.
            history: int64 ``[B, L]``.
            position: int64 ``[B]``.
            target: int64 ``[B]``.
        """
        config, loss = self.config, states.new_zeros(())
        if config.kl_weight and states.shape[1] > 1:
            loss = loss - config.kl_weight * step_divergence(self.logits(states), config.kl_form)
        if config.contrast_weight and states.shape[1] > 1:
            loss = loss + config.contrast_weight * self._contrast(states, history, position, target)
        if config.trajectory_weight or config.step_alignment_weight:
            loss = loss + self._alignment(history, position, target)
        if config.supervision == "teacher" and config.teacher_weight and states.shape[1] > 1:
            newest = history.gather(1, position[:, None])[:, 0]
            loss = loss + config.teacher_weight * self._teacher(states, newest, target)
        return loss

    def _teacher(self, states: Tensor, newest: Tensor, target: Tensor) -> Tensor:
        """How far the states' answers are from the teacher's, each weighed as its cross-entropy is (ManCAR)."""
        assert self.neighbours is not None, "observe() has to be called before training"
        config, count = self.config, states.shape[1]
        candidates = torch.cat([target[:, None], newest[:, None], self.neighbours[newest]], dim=1)
        vectors = self.item_vectors()[candidates.clamp(min=1) - 1]
        left = torch.arange(count - 1, -1, -1, device=states.device, dtype=states.dtype)  # steps after each state
        logits = self._compared(states) / (config.cooling**left)[:, None] @ vectors.mT
        each = teacher_divergence(logits, candidates, config.teacher_gamma * (left + 1))
        supervised, weight = self._supervised(count - 1)
        weights = torch.ones_like(each)  # of the last state where it is the readout
        weights[supervised] = weight
        return each @ weights

    def _contrast(self, states: Tensor, history: Tensor, position: Tensor, target: Tensor) -> Tensor:
        """Each noised state against the clean ones of the batch (PRL).

        The noised chain is a second reading of the history, under its own dropout mask, whose every step goes on from
        the clean state plus noise.
        """
        state: Any = self.encoder.encode(self.embedding(history), position[:, None])  # type: ignore[operator]
        loss, same = states.new_zeros(()), target if self.config.mask_false_negatives else None
        for step in range(1, states.shape[1]):
            noise = self.config.noise_std * torch.randn_like(states[:, :1])
            before = states[:, step - 1, None] + noise
            state = self.encoder.step(self.encoder.change(state, lambda _, fed=before: fed))  # type: ignore[operator]
            loss = loss + self._told_apart(state.latest[:, 0], states[:, step], same)
        return loss if self.config.step_reduction == "sum" else loss / (states.shape[1] - 1)

    def _told_apart(self, query: Tensor, key: Tensor, same: Tensor | None) -> Tensor:
        """:func:`info_nce` of states, float ``[B, d]`` each."""
        if self.config.contrast_temperature:
            query = F.normalize(query, dim=-1) / self.config.contrast_temperature
            return info_nce(query, F.normalize(key, dim=-1), same)
        key = F.normalize(key, dim=-1) if self.config.similarity == "cosine" else key
        return info_nce(self._compared(query), key, same)

    def _alignment(self, history: Tensor, position: Tensor, target: Tensor) -> Tensor:
        """Trajectory-level and step-level alignment, both ways (LARES, SPT); both thoughts have one depth."""
        config, depth, loss = self.config, self.training_steps(), torch.zeros((), device=history.device)
        same = target if config.mask_false_negatives else None
        history = history * (torch.arange(history.shape[1], device=history.device) <= position[:, None])
        views = [history]
        if config.trajectory_weight and config.view == "same_history":
            views.append(history)
        elif config.trajectory_weight:
            assert self._same_target is not None, "observe() has to be called before training"
            views.append(self._same_target.draw(history, target))
        states, *others = self._of_any_length(views, depth)
        for other in others:
            thoughts = self.read_out(states), self.read_out(other)
            loss = loss + config.trajectory_weight * self._both_ways(*thoughts, same)
        if config.step_alignment_weight and depth > 1:
            earlier = states[:, int(torch.randint(1, depth, ()))]  # never the last, which would meet itself
            loss = loss + config.step_alignment_weight * self._both_ways(states[:, -1], earlier, same)
        return loss

    def _both_ways(self, one: Tensor, other: Tensor, same: Tensor | None) -> Tensor:
        return (self._told_apart(one, other, same) + self._told_apart(other, one, same)) / 2


def draw_position(target: Tensor) -> Tensor:
    """A position of each row that has a target, drawn uniformly; int64 ``[B, L]`` → int64 ``[B]``."""
    weights = (target > 0).float()
    weights[:, 0] += ~weights.any(dim=1)  # a row without a target gets the first, where there is none
    return torch.multinomial(weights, 1)[:, 0]
