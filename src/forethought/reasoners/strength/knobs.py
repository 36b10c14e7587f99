"""Knobs that change how long a model thinks, all turned and measured in the same way."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from forethought.data.problems import Problem
from forethought.errors import ArtefactError
from forethought.instruments.direction import random_directions
from forethought.instruments.logit_route import ThinkingBias, end_bias, logit_bias
from forethought.instruments.schedules import Budget
from forethought.instruments.sites import Site
from forethought.instruments.steering import Steering
from forethought.instruments.survival import survival_summary
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import Rollout, Sampling, roll_out

FORCE = 1e4  # a bias that no other logit withstands


@dataclass(frozen=True)
class Setting:
    """What one position of a knob does to a generation.

    Attributes:
        options: for ``model.generate``.
        suffix: added to the question.
        around: what generation happens inside of.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    suffix: str = ""
    around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


@dataclass(frozen=True)
class Knob:
    """One way to change how long a model thinks.

    Attributes:
        name: how tables call it.
        values: positions to try; the one that does nothing is not among them.
        unit: of the values.
        at: the setting at a value.
        about: tells it from another knob of this name, such as a :func:`digest` of its vectors.
    """

    name: str
    values: tuple[float, ...]
    unit: str
    at: Callable[[float], Setting]
    about: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a setting came to on some problems.

    Attributes:
        knob, value: of the setting; ``none`` and 0 where nothing was changed.
        numbers: ``accuracy``, ``ended``, ``mean`` and ``median`` thinking tokens with bootstrap bounds over problems,
            ``answer_tokens``.
        tokens, correct: ``[problems, samples]`` for paired comparisons.
    """

    knob: str
    value: float
    numbers: dict[str, float]
    tokens: list[list[int]]
    correct: list[list[bool]]


def run(
    reasoner: Reasoner,
    problems: Sequence[Problem],
    sampling: Sampling,
    knob: Knob | None = None,
    value: float = 0.0,
    *,
    quiet: bool = True,
) -> Outcome:
    """Answer the problems with a knob at a value, and measure."""
    setting = knob.at(value) if knob is not None else Setting()
    rollouts: list[Rollout] = []
    with setting.around():
        for batch in roll_out(reasoner, problems, sampling, suffix=setting.suffix, quiet=quiet, **setting.options):
            rollouts += batch
    rollouts.sort(key=lambda rollout: (rollout.problem, rollout.sample))
    return outcome(knob.name if knob is not None else "none", value, rollouts, sampling.max_new_tokens)


def outcome(knob: str, value: float, rollouts: Sequence[Rollout], limit: int) -> Outcome:
    """Measure rollouts, sorted by problem and sample; ``limit`` is that of the restricted mean, in tokens.

    Accuracy counts a thought that never ended as wrong, and its length as a lower bound (Kaplan-Meier).
    """
    problem = np.array([rollout.problem for rollout in rollouts])
    tokens = np.array([rollout.thinking_tokens for rollout in rollouts], dtype=np.float64)
    correct = np.array([rollout.correct for rollout in rollouts])
    ended = np.array([rollout.ended for rollout in rollouts])
    numbers = survival_summary(tokens, ~ended, problem, limit=min(float(limit), float(tokens.max()))) | {
        "accuracy": float(correct.mean()),
        "answer_tokens": float(np.mean([len(rollout.ids) - rollout.thinking_tokens for rollout in rollouts])),
    }
    means = np.array([correct[problem == index].mean() for index in np.unique(problem)])
    draws = np.random.default_rng(0).choice(means, (1000, len(means))).mean(axis=1)
    numbers["accuracy/low"], numbers["accuracy/high"] = np.quantile(draws, [0.025, 0.975]).tolist()
    samples = len(rollouts) // len(means)
    return Outcome(
        knob, value, numbers, tokens.astype(int).reshape(-1, samples).tolist(), correct.reshape(-1, samples).tolist()
    )


def direction_knob(
    name: str, reasoner: Reasoner, vectors: Mapping[Site, Tensor], values: Sequence[float], **how: Any
) -> Knob:
    """Steering along vectors, at every position and in the answer too, as RSP does, unless ``how`` says otherwise."""
    steering = Steering(vectors, **how)

    def at(value: float) -> Setting:
        turned = replace(steering, strength=float(value))
        return Setting(around=lambda: turned.applied(reasoner.model, reasoner.delimiters))

    return Knob(name, tuple(values), "strength", at, f"{digest(vectors)} {how or ''}".strip())


def random_knobs(
    reasoner: Reasoner, vectors: Mapping[Site, Tensor], values: Sequence[float], number: int, seed: int
) -> Iterator[Knob]:
    """Controls of :func:`direction_knob`: random vectors of the same dose, at each site and in sum."""
    for index, control in enumerate(random_vectors(vectors, number, seed), start=1):
        yield direction_knob(f"random {index}", reasoner, control, values)


def random_vectors(vectors: Mapping[Site, Tensor], number: int, seed: int) -> list[dict[Site, Tensor]]:
    """``number`` times a random vector for each, all of them turned alike: as long, and at the same angles."""
    drawn = random_directions(torch.stack([*vectors.values()]), number, torch.Generator().manual_seed(seed))
    return [dict(zip(vectors, found, strict=True)) for found in drawn]


def bias_knob(name: str, reasoner: Reasoner, bias: Tensor, values: Sequence[float]) -> Knob:
    """A bias on the logits while thinking."""
    return Knob(
        name,
        tuple(values),
        "logits",
        lambda value: _processor(ThinkingBias(bias, value, reasoner.delimiters)),
        digest({"norm": bias}),
    )


def end_knob(reasoner: Reasoner, values: Sequence[float]) -> Knob:
    """The plain control: a bias on the token that ends the thought, and on nothing else."""
    return bias_knob("end bias", reasoner, end_bias(reasoner.delimiters, vocabulary(reasoner)), values)


def norm_knob(name: str, reasoner: Reasoner, vector: Tensor, values: Sequence[float]) -> Knob:
    """A vector added after the final norm (overclocking), by the bias that is the same."""
    return bias_knob(name, reasoner, logit_bias(reasoner.model, vector), values)


def budget_knob(reasoner: Reasoner, budgets: Sequence[int]) -> Knob:
    """A hard limit: the thought is ended after so many tokens, wherever it is."""
    bias = end_bias(reasoner.delimiters, vocabulary(reasoner))

    def at(tokens: float) -> Setting:
        schedule = Budget(int(tokens), before=0.0, after=1.0)
        return _processor(ThinkingBias(bias, FORCE, reasoner.delimiters, schedule))

    return Knob("hard budget", tuple(float(budget) for budget in budgets), "tokens", at)


def brief_knob(text: str) -> Knob:
    """Asking for it."""
    return Knob("be brief", (1.0,), "asked", lambda value: Setting(suffix=text), text)


def digest(vectors: Mapping[Site, Tensor]) -> str:
    """Sixteen hexadecimal digits that tell vectors from others."""
    found = hashlib.sha256()
    for site in sorted(vectors, key=str):
        found.update(f"{site}\n".encode())
        found.update(vectors[site].detach().float().cpu().contiguous().numpy().data)
    return found.hexdigest()[:16]


def vocabulary(reasoner: Reasoner) -> int:
    """Entries of the model's logits."""
    head = reasoner.model.get_output_embeddings()
    if head is None:
        raise ArtefactError(f"{reasoner.name} has no unembedding, so that no token can be biased.")
    return int(head.weight.shape[0])


def _processor(processor: Any) -> Setting:
    return Setting(options={"logits_processor": LogitsProcessorList([processor])})
