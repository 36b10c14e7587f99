"""End a thought when its answer is ready: a probe for that, and the knob that acts on it.

Of a thought that is cut anywhere, whether the answer is ready can be seen by forcing one: close the thought, let the
model answer, grade. A linear probe learns it from the state at the cut. While the model thinks, the probe reads every
state, and where it is sure enough, the thought is ended. Unlike a bias on the end, it does not hurry a thought that
still has work to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from forethought.errors import DataError
from forethought.instruments.capture import Transcript, capture
from forethought.instruments.class_probe import ClassProbe
from forethought.instruments.phases import THINK, Delimiters, phases
from forethought.instruments.sites import Site, Stack
from forethought.reasoners.grading import boxed, is_correct
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.strength.collection import Collection
from forethought.reasoners.strength.knobs import FORCE, Knob, Setting, digest

ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Ready:
    """A probe for whether an answer is ready.

    Attributes:
        site: where it reads.
        probe: the chance that an answer forced now is right.
        numbers: ``share`` of cuts at which it was, ``auc``, ``brier`` on the problems to choose by, and the ``auc`` of
            the position alone, ``position/auc``.
    """

    site: Site
    probe: ClassProbe
    numbers: dict[str, float]


def force_answers(reasoner: Reasoner, prompts: Sequence[list[int]], batch_size: int = 128) -> list[str | None]:
    """What a model answers where its thought is closed now; None where there is no box."""
    close = _close(reasoner)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[str | None] = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        forced = reasoner.generate([prompts[index] + close for index in batch], max_new_tokens=ANSWER_TOKENS)
        for index, ids in zip(batch, forced, strict=True):
            answers[index] = boxed(reasoner.tokenizer.decode(ids))
    return answers


def _close(reasoner: Reasoner) -> list[int]:
    return [*reasoner.delimiters.close, *reasoner.tokenizer.encode("\n", add_special_tokens=False)]


def fit_ready(collection: Collection, reasoner: Reasoner, out: Path, *, cuts: int = 8, seed: int = 0) -> Ready:
    """Cut thoughts, force answers, fit the probe; states are kept in ``out``.

    Args:
        collection: whose problems to fit and to choose by are used.
        reasoner: that made it.
        out: folder for the states at the cuts.
        cuts: of one thought a problem, anywhere in it.
        seed: of where.

    Raises:
        DataError: answers are always ready, or never.
    """
    random, samples = np.random.default_rng(seed), collection.lengths()[0].shape[1]
    close = _close(reasoner)
    transcripts, places, parts, problems = [], [], [], []
    for part in ("fit", "choose"):
        for index in collection.part("fit" if part == "fit" else "choose"):
            rollout = collection.rollouts.rollouts[index * samples]
            room = reasoner.context - len(rollout.prompt) - len(close) - ANSWER_TOKENS
            last = min(rollout.thinking_tokens, room)
            for cut in sorted(set(random.integers(0, last + 1, cuts).tolist())) if last >= 0 else ():
                transcripts.append(Transcript(rollout.prompt + rollout.ids[:cut], problem=int(index), sample=int(cut)))
                places.append(cut)
                parts.append(part == "fit")
                problems.append(int(index))
    answers = force_answers(reasoner, [list(transcript.prompt) for transcript in transcripts])
    right = [
        is_correct(answer, collection.problems[problem].answer)
        for answer, problem in zip(answers, problems, strict=True)
    ]
    states = capture(
        reasoner.model, transcripts, Stack.of(reasoner.model).sites(), "last-prompt", out,
        delimiters=reasoner.delimiters, quiet=True,
    )  # fmt: skip
    label, fitting, group = np.array(right), np.array(parts), np.array(problems)
    if label.all() or not label.any():
        raise DataError("Answers forced anywhere are all right or all wrong, so that there is nothing to detect.")
    best: tuple[float, Site, ClassProbe] | None = None
    for site in states.sites:
        x = states.at(site)
        probe = ClassProbe.fit(x[fitting], label[fitting], group[fitting], seed=seed)
        area = probe.scores(x[~fitting], label[~fitting])["auc"]
        if best is None or area > best[0]:
            best = (area, site, probe)
    assert best is not None
    _, site, probe = best
    numbers = {"cuts": float(len(label)), "share": float(label.mean())}
    numbers |= probe.scores(states.at(site)[~fitting], label[~fitting])
    numbers["position/auc"] = _area(np.array(places)[~fitting], label[~fitting])
    return Ready(site, probe, numbers)


class EndWhenReady(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """Adds a bias to the end of the thought at the steps where a probe says that the answer is ready.

    It reads states by a hook, so generation has to happen inside :meth:`watching`.

    Args:
        ready: the probe; logistic.
        threshold: the probability from which on it acts, in (0, 1).
        delimiters: of the model; the close has to be one token.
        strength: of the bias; the default leaves nothing else to say.

    Attributes:
        count: how often it acted.
    """

    def __init__(self, ready: Ready, threshold: float, delimiters: Delimiters, strength: float = FORCE) -> None:
        if not 0 < threshold < 1:
            raise DataError(f"threshold is {threshold}; it is a probability between 0 and 1.")
        if len(delimiters.close) != 1:
            raise DataError(f"The closing delimiter is {len(delimiters.close)} tokens long; only one can be biased.")
        (weight, bias), *hidden = ready.probe.layers
        if hidden:
            raise DataError("The probe has hidden layers; fit a logistic one.")
        self.weight, self.bias = torch.tensor(weight).float(), torch.tensor(bias).float()
        self.site, self.at, self.strength = ready.site, float(np.log(threshold / (1 - threshold))), strength
        self.delimiters, self.count = delimiters, 0
        self._logit: Tensor | None = None

    @contextlib.contextmanager
    def watching(self, model: torch.nn.Module) -> Iterator[EndWhenReady]:
        """Read the model's states inside the block."""

        def read(stream: Tensor) -> None:
            self._logit = (stream[:, -1].float() @ self.weight.to(stream.device) + self.bias.to(stream.device))[:, 0]

        handle = Stack.of(model).hook(self.site, read)
        try:
            yield self
        finally:
            handle.remove()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """int64 ``[B, T]``, float ``[B, V]`` → float ``[B, V]``."""
        if self._logit is None or len(self._logit) != len(scores):
            raise DataError("No states were read for these rows; generate inside watching(model), without beams.")
        thinking = phases(input_ids, torch.ones_like(input_ids), 0, self.delimiters)[:, -1] == THINK
        acting = thinking & (self._logit >= self.at)
        self.count += int(acting.sum())
        scores = scores.clone()
        scores[:, self.delimiters.close[-1]] += self.strength * acting.to(scores)
        return scores


def ready_knob(reasoner: Reasoner, ready: Ready, thresholds: Sequence[float]) -> Knob:
    """Ending thoughts whose answer is ready; the value is the probability from which on."""

    def at(threshold: float) -> Setting:
        processor = EndWhenReady(ready, threshold, reasoner.delimiters)
        return Setting(
            options={"logits_processor": LogitsProcessorList([processor])},
            around=lambda: processor.watching(reasoner.model),
        )

    about = digest({ready.site: torch.tensor(ready.probe.layers[0][0])[:, 0]})
    return Knob("end when ready", tuple(thresholds), "probability", at, about)


def _area(scores: npt.NDArray[np.int64], labels: npt.NDArray[np.bool_]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))
