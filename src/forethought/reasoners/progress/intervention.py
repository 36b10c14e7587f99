"""Overclocking: the progress vector added after the final norm, by the bias on the logits that is the same.

What can be done with a vector there is exactly what can be done with a bias on the logits, so a bias is what is turned,
taken apart and compared: whole, its entry at the mark that ends the thought alone, everything but that entry, the
paper's raw vector, and random biases that move the distribution as far. All of them act while the model thinks and
never on its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from forethought.data.problems import Problem
from forethought.errors import DataError
from forethought.instruments.capture import Transcript, capture
from forethought.instruments.logit_route import ThinkingBias, advantage, logit_bias, parts
from forethought.instruments.probe import LengthProbe
from forethought.instruments.schedules import EntropyAdaptive, Need, Places
from forethought.instruments.transcripts import choose
from forethought.reasoners.progress.preparation import Prepared
from forethought.reasoners.progress.trained import Trained
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.strength.knobs import Knob, Setting, bias_knob, digest

WHOLE, ADAPTIVE = "overclocking", "adaptive"
KLS = (0.01, 0.03, 0.1, 0.3, 1.0)  # nats a token
_ALPHAS = np.geomspace(1e-2, 1e5, 22)  # between which those divergences are looked for; KL goes as α² at first
_CLOSER = 2  # times the divergence is looked at again where it was last thought to be
_ROWS = 256  # logits at once
_BASES = (5 / 3, 1.0, 1 / 3)  # of α for easy, medium and hard problems: the follow-up's 50, 30, 10
_SPAN = 1 / 3  # its R = 10


@dataclass(frozen=True)
class Foretold:
    """What a bias will do, told from the model's own thoughts before it is used.

    Attributes:
        norm: of the bias, over the vocabulary.
        end: its entry at the mark that ends the thought.
        advantage: of that mark over its competitors, for each unit of α at α = 0, in log-odds; a mean over positions
            weighted by p (1 - p), p the probability of the mark, so that its sign is that of the change of the mean p.
            That is of first order, on thoughts as they were, and no forecast of lengths.
        kl: nats a thinking token, by α.
    """

    norm: float
    end: float
    advantage: float
    kl: dict[float, float]


@dataclass(frozen=True)
class Difficulty:
    """How long a model will think, told from its state at the end of the prompt, in three classes.

    Attributes:
        probe: expected thinking tokens.
        edges: between the classes: thirds of what it expects of the problems it was fitted on.
    """

    probe: LengthProbe
    edges: tuple[float, float]

    @classmethod
    def fit(cls, prepared: Prepared, seed: int = 0) -> Difficulty:
        """From the first states of the thoughts that fit.

        Raises:
            DataError: too few problems, or lengths that do not vary.
        """
        states = prepared.states()
        first = np.flatnonzero(np.diff(states.sequence, prepend=-1))
        lengths = np.diff(np.append(first, len(states)))
        rows = np.flatnonzero(np.isin(states.problem[first], prepared.parts["fit"]))
        vectors = np.concatenate([states.at("norm", slice(first[i], first[i] + 1)) for i in rows])
        probe = LengthProbe.fit(vectors, lengths[rows], groups=states.problem[first][rows], level=0.5, seed=seed)
        low, high = np.quantile(probe.predict(vectors), [1 / 3, 2 / 3])
        return cls(probe, (float(low), float(high)))

    def of(self, reasoner: Reasoner, problems: Sequence[Problem]) -> list[int]:
        """The class of each problem, 0 to 2."""
        prompts = [Transcript(reasoner.prompt(p.question), problem=i) for i, p in enumerate(problems)]
        with TemporaryDirectory() as scratch:
            states = capture(reasoner.model, prompts, ["norm"], "last-prompt", Path(scratch) / "states", quiet=True)
            expected = self.probe.predict(states.at("norm"))
        return [int(place) for place in np.searchsorted(self.edges, expected)]


@torch.no_grad()
def foretell(reasoner: Reasoner, transcripts: Sequence[Transcript], bias: Tensor, alphas: Sequence[float]) -> Foretold:
    """Read a bias against the logits of thoughts as they were, one text at a time.

    Args:
        reasoner: whose logits.
        transcripts: its thoughts.
        bias: float ``[V]``.
        alphas: strengths to tell the divergence of.

    Raises:
        ArtefactError: the transcripts hold no thinking position, or the bias is of another vocabulary.
    """
    favour, weights, kl, rows = 0.0, 0.0, np.zeros(len(alphas)), 0
    for transcript in transcripts:
        where, _ = choose(transcript, "think", reasoner.delimiters)
        if not len(where):
            continue
        ids = torch.tensor([transcript.ids[: int(where[-1]) + 1]], device=reasoner.model.device)
        logits = reasoner.model(input_ids=ids).logits[0, where.to(ids.device)]
        for some in logits.split(_ROWS):
            ends = some.float().softmax(dim=-1)[:, reasoner.delimiters.close[-1]]
            weight = ends * (1 - ends)
            favour += float((weight * advantage(bias, some, reasoner.delimiters)).sum())
            weights += float(weight.sum())
            kl += np.array([float(divergence(some, bias, alpha).sum()) for alpha in alphas])
        rows += len(where)
    if not rows:
        raise DataError("There is no thought to read the logits of; give finished thoughts.")
    end = float(bias[reasoner.delimiters.close[-1]])
    return Foretold(
        float(bias.norm()), end, favour / max(weights, 1e-30),
        {float(alpha): float(value) for alpha, value in zip(alphas, kl / rows, strict=True)},
    )  # fmt: skip


def divergence(logits: Tensor, bias: Tensor, alpha: float) -> Tensor:
    """KL of the biased distribution from the plain one, in nats; logits ``[m, V]`` → float32 ``[m]``."""
    plain = logits.float().log_softmax(dim=-1)
    biased = (logits.float() + alpha * bias.to(logits.device).float()).log_softmax(dim=-1)
    return (biased.exp() * (biased - plain)).sum(dim=-1)


def alpha_grid(
    reasoner: Reasoner, transcripts: Sequence[Transcript], bias: Tensor, kls: Sequence[float] = KLS
) -> list[float]:
    """The α, rising, at which the bias moves the distribution by so much a token, pushed either way.

    A vector's length is an accident of its fit, so that no one α means the same for two models, and α means one thing
    pushed up and another pushed down; a divergence does not. Which way is shorter, only thinking tells.
    """
    return strengths_at(reasoner, transcripts, bias, [*(-kl for kl in reversed(kls)), *kls])


def strengths_at(
    reasoner: Reasoner, transcripts: Sequence[Transcript], bias: Tensor, kls: Sequence[float]
) -> list[float]:
    """The strengths, to three digits, at which a bias moves the distribution by so many nats a token.

    Args:
        reasoner, transcripts, bias: as :func:`foretell` takes them.
        kls: with the sign of the strength that is wanted; one out of reach gives the end of what is looked through.
    """
    found = [0.0] * len(kls)
    for sign in (-1.0, 1.0):
        places = [place for place, kl in enumerate(kls) if sign * kl > 0]
        if not places:
            continue
        wanted = np.log([sign * kls[place] for place in places])
        tried, reached, at = np.empty(0), np.empty(0), _ALPHAS
        for _ in range(1 + _CLOSER):
            told = foretell(reasoner, transcripts, bias, [*(sign * at)])
            tried, reached = np.append(tried, at), np.append(reached, [told.kl[float(sign * alpha)] for alpha in at])
            order = np.argsort(tried)
            curve = np.maximum.accumulate(np.maximum(reached[order], 1e-12))
            at = np.exp(np.interp(wanted, np.log(curve), np.log(tried[order])))
        for place, alpha in zip(places, at, strict=True):
            found[place] = float(f"{sign * alpha:.3g}")
    return found


def knobs(
    reasoner: Reasoner, trained: Trained, alphas: Sequence[float], raw_alphas: Sequence[float],
    randoms: Sequence[tuple[Tensor, Sequence[float]]] = (),
) -> list[Knob]:  # fmt: skip
    """The vector as a bias, taken apart, and what it stands beside.

    Args:
        reasoner: who thinks.
        trained: whose vectors.
        alphas: of the centred vector and its parts.
        raw_alphas: of the paper's raw vector, whose length is another.
        randoms: biases ``[V]`` and their strengths.
    """
    whole, raw = biases(reasoner, trained)
    end, rest = parts(whole, reasoner.delimiters)
    return [
        bias_knob(WHOLE, reasoner, whole, alphas),
        bias_knob("raw vector", reasoner, raw, raw_alphas),
        bias_knob("its end entry alone", reasoner, end, alphas),
        bias_knob("all but its end entry", reasoner, rest, alphas),
        *(bias_knob(f"random {i}", reasoner, bias, strengths) for i, (bias, strengths) in enumerate(randoms, start=1)),
    ]


def biases(reasoner: Reasoner, trained: Trained) -> tuple[Tensor, Tensor]:
    """What the centred and the raw vector add to the logits, float32 ``[V]`` each."""
    return tuple(  # type: ignore[return-value]  # two
        logit_bias(reasoner.model, torch.from_numpy(probe.weight).float()) for probe in (trained.tpv, trained.raw)
    )


@dataclass(frozen=True)
class ClassAdaptive:
    """The follow-up's schedule (Jiang et al. 2025): more where the model is sure, and more on easier questions.

    α_t = α_base + R (1 - σ(k (u_t - u_0))), where the class of the question gives α_base. The strength multiplies it:
    with bases of 5/3, 1 and 1/3 and a span of 1/3, a strength of 30 is the published 50, 30, 10 and R = 10.

    Attributes:
        classes: 0 to 2 of each prompt, by its token ids without padding.
        pad: the token of the padding.
    """

    classes: dict[tuple[int, ...], int]
    pad: int
    steepness: float = 100.0
    middle: float = 0.02
    needs: ClassVar[frozenset[Need]] = frozenset({"entropy"})

    def __call__(self, at: Places) -> Tensor:
        """float32 ``[B, T]``; a prompt of no known class counts as medium."""
        length = int((at.generated[0] <= 0).sum())  # of the padded prompt, the same for all rows
        prompts = [stripped(row, self.pad) for row in at.ids[:, :length].tolist()]
        bases = torch.tensor([_BASES[self.classes.get(prompt, 1)] for prompt in prompts], device=at.ids.device)
        return bases[:, None] + EntropyAdaptive(0.0, _SPAN, self.steepness, self.middle)(at)


def adaptive_knob(
    reasoner: Reasoner, bias: Tensor, values: Sequence[float], problems: Sequence[Problem], classes: Sequence[int]
) -> Knob:
    """The bias under :class:`ClassAdaptive`; the value is α of the medium class."""
    pad = reasoner.tokenizer.pad_token_id
    prompts = [stripped(reasoner.prompt(problem.question), pad) for problem in problems]
    schedule = ClassAdaptive(dict(zip(prompts, classes, strict=True)), pad)

    def at(alpha: float) -> Setting:
        processor = ThinkingBias(bias, alpha, reasoner.delimiters, schedule)
        return Setting(options={"logits_processor": LogitsProcessorList([processor])})

    about = f"{digest({'norm': bias})} {schedule.steepness} {schedule.middle} {[*classes]}"
    return Knob(ADAPTIVE, tuple(values), "logits", at, about)


def stripped(ids: Sequence[int], pad: int) -> tuple[int, ...]:
    """Token ids without the padding on their left."""
    first = next((place for place, token in enumerate(ids) if token != pad), len(ids))
    return tuple(ids[first:])


def document(found: Foretold, alphas: Sequence[float]) -> dict[str, Any]:
    """For JSON."""
    return {
        "norm": found.norm, "end": found.end, "advantage": found.advantage,
        "alpha": {f"{alpha:g}": {"advantage": alpha * found.advantage, "kl": found.kl[alpha]} for alpha in alphas},
    }  # fmt: skip
