"""When a thought is long enough: rules that let each row of a batch answer at a step of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from forethought.nn.reasoning import Backbone, Change


class Moment(NamedTuple):
    """Where the thoughts of b rows stand after ``step`` steps.

    Attributes:
        step: taken so far.
        first: float ``[b, d]``, r_0, the state before any step.
        answer, before: float ``[b, N]``, log-probabilities of the items now and a step ago. ``before`` is None at step
            0, and both are where the rule does not read answers.
    """

    step: int
    first: Tensor
    answer: Tensor | None
    before: Tensor | None


class Rule(Protocol):
    """What decides, of each row by itself, whether it answers now.

    Attributes:
        reads_answers: whether it needs the log-probabilities of all items after every step, the dear part of a rule.
    """

    @property
    def reads_answers(self) -> bool: ...

    def halts(self, moment: Moment) -> Tensor:
        """Which rows answer now; bool ``[b]``."""


def entropy(answer: Tensor) -> Tensor:
    """Of log-probabilities float ``[b, N]``, in nats; float ``[b]``, at least 0."""
    return -(answer.exp() * answer).sum(dim=-1).clamp(max=0)


def divergence(before: Tensor, now: Tensor) -> Tensor:
    """KL(before ‖ now) of log-probabilities float ``[b, N]``, in nats; float ``[b]``, at least 0."""
    return (before.exp() * (before - now)).sum(dim=-1).clamp(min=0)


@dataclass(frozen=True)
class Entropy:
    """Answer once the answer is sure: its entropy is below ``threshold`` nats. It may answer before the first step."""

    threshold: float
    reads_answers = True

    def halts(self, moment: Moment) -> Tensor:
        """As :meth:`Rule.halts`."""
        assert moment.answer is not None
        return entropy(moment.answer) < self.threshold


@dataclass(frozen=True)
class Divergence:
    """Answer once a step has changed little: KL(p_{k-1} ‖ p_k) is below ``threshold`` nats (ManCAR, 2602.20093).

    It takes at least one step, as it has to see what one changes.
    """

    threshold: float
    reads_answers = True

    def halts(self, moment: Moment) -> Tensor:
        """As :meth:`Rule.halts`."""
        if moment.before is None:
            return torch.zeros(len(moment.first), dtype=torch.bool, device=moment.first.device)
        assert moment.answer is not None
        return divergence(moment.before, moment.answer) < self.threshold


@dataclass(frozen=True, eq=False)
class Probe:
    """Give each row its steps before the first is taken, by what a linear probe reads from r_0.

    Attributes:
        weight, bias: float64 ``[d, 2]`` and ``[2]``; the logits that ``easy``, and that ``normal`` steps are enough.
        easy, normal, hard: the three budgets, in steps.
        confidence: a budget is taken where it is enough with at least this probability; otherwise the next.
    """

    weight: Tensor
    bias: Tensor
    easy: int
    normal: int
    hard: int
    confidence: float
    reads_answers = False

    def halts(self, moment: Moment) -> Tensor:
        """As :meth:`Rule.halts`."""
        return self.budget(moment.first) <= moment.step

    def budget(self, first: Tensor) -> Tensor:
        """float ``[b, d]`` → steps, int64 ``[b]``."""
        weight, bias = (each.to(first.device) for each in (self.weight, self.bias))
        enough = (first.double() @ weight + bias).sigmoid() >= self.confidence
        normal = torch.where(enough[:, 1], self.normal, self.hard)
        return torch.where(enough[:, 0], self.easy, normal)


def unroll_until(
    backbone: Backbone,
    started: Sequence[Any],
    most: int,
    rule: Rule,
    read_out: Callable[[Tensor], Tensor],
    answer: Callable[[Tensor], Tensor],
    change: Change | None = None,
) -> tuple[Tensor, Tensor]:
    """Take steps until the rule says, of each row, that it is enough; a row that answers leaves the batch.

    Args:
        backbone: what takes the steps.
        started: states after ``encode``, of one thought a row. Several are several initial states of the same rows,
            and what is answered by is the mean of what is read from them.
        most: steps after which whoever is left answers.
        rule: is asked after 0, 1, … ``most`` - 1 steps.
        read_out: what is answered by, of r_0 … r_k: float ``[b, k + 1, d]`` → float ``[b, q]``.
        answer: float ``[b, q]`` → log-probabilities float ``[b, N]``.
        change: as in :func:`forethought.nn.reasoning.unroll`.

    Returns:
        What is answered by, float ``[B, q]``, as if exactly so many steps had been asked for, and how many each row
        took, int64 ``[B]``.
    """
    chains = [state.latest for state in started]  # one thought a row: the states so far, [b, k + 1, d]
    rows = torch.arange(len(chains[0]), device=chains[0].device)
    taken, found, before = torch.zeros_like(rows), torch.empty(0), None
    for step in range(most + 1):
        read = torch.stack([read_out(chain) for chain in chains]).mean(dim=0)
        if step == 0:
            found = torch.empty_like(read)
        now = answer(read) if rule.reads_answers and step < most else None
        halts = rule.halts(Moment(step, chains[0][:, 0], now, before)) if step < most else torch.ones_like(rows).bool()
        found[rows[halts]], taken[rows[halts]] = read[halts], step
        left = (~halts).nonzero()[:, 0]
        if not len(left):
            break
        if len(left) < len(rows):
            rows, now = rows[left], None if now is None else now[left]
            chains, started = [chain[left] for chain in chains], [state.select(left) for state in started]
        if change is not None:
            started = [backbone.change(state, change) for state in started]
        started, before = [backbone.step(state) for state in started], now
        chains = [torch.cat([chain, state.latest], dim=1) for chain, state in zip(chains, started, strict=True)]
    return found, taken
