"""Choose how hard to overclock on validation problems, and say on test problems what that comes to."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from forethought.atomic import atomic_file
from forethought.data.problems import Problem
from forethought.errors import DataError
from forethought.instruments.capture import Transcript
from forethought.instruments.direction import random_directions
from forethought.reasoners.progress.intervention import (
    WHOLE,
    Difficulty,
    Foretold,
    adaptive_knob,
    alpha_grid,
    biases,
    foretell,
    knobs,
    strengths_at,
)
from forethought.reasoners.progress.preparation import Prepared
from forethought.reasoners.progress.trained import Trained
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import Sampling, roll_out
from forethought.reasoners.strength.knobs import Knob, Outcome, Setting
from forethought.reasoners.strength.sweep import Choice, against, choose, plain_of, turn

_FORETOLD_ON = 12  # problems


@dataclass(frozen=True)
class Plan:
    """What is to be turned, and what it is expected to do.

    Attributes:
        alphas: by what is turned: the ``centred`` and the ``raw`` vector, and ``random 1`` …, whose α move the
            distribution as far as those of the centred one.
        foretold: likewise.
        cosine: between the two vectors.
        knobs: by part, ``validation`` and ``test``; the schedule by class knows the problems of its part.
        note: why there is no adaptive schedule, where there is none; otherwise empty.
    """

    alphas: dict[str, list[float]]
    foretold: dict[str, Foretold]
    cosine: float
    knobs: dict[str, list[Knob]]
    note: str


@dataclass(frozen=True)
class Overclocked:
    """What turning came to.

    Attributes:
        outcomes: by part; only ``test`` where one α was given.
        choices: by knob, and the best of all under ``best``.
    """

    outcomes: dict[str, list[Outcome]]
    choices: dict[str, Choice]


def plan(
    prepared: Prepared, trained: Trained, reasoner: Reasoner, problems: dict[str, list[Problem]], *,
    alphas: Sequence[float] = (), randoms: int = 1, seed: int = 0,
) -> Plan:  # fmt: skip
    """Decide what to turn, from validation thoughts alone.

    Args:
        prepared, trained, reasoner: whose vectors.
        problems: ``validation`` and ``test``.
        alphas: strengths; by default those of either sign that move the distribution by 0.01 to 1 nats a token.
        randoms: random biases beside.
        seed: of their draw.

    Raises:
        DataError: no validation thought ended.
    """
    thoughts = validation_thoughts(prepared, reasoner)
    centred, raw = biases(reasoner, trained)
    chosen = {
        name: [float(alpha) for alpha in alphas] or alpha_grid(reasoner, thoughts, bias)
        for name, bias in (("centred", centred), ("raw", raw))
    }
    foretold = {
        "centred": foretell(reasoner, thoughts, centred, chosen["centred"]),
        "raw": foretell(reasoner, thoughts, raw, chosen["raw"]),
    }
    reached = [math.copysign(foretold["centred"].kl[alpha], alpha) for alpha in chosen["centred"]]
    drawn = [*random_directions(centred.cpu(), randoms, torch.Generator().manual_seed(seed))]
    for index, bias in enumerate(drawn, start=1):
        chosen[f"random {index}"] = strengths = strengths_at(reasoner, thoughts, bias, reached)
        foretold[f"random {index}"] = foretell(reasoner, thoughts, bias, strengths)
    controls = [(bias, chosen[f"random {index}"]) for index, bias in enumerate(drawn, start=1)]
    turned = knobs(reasoner, trained, chosen["centred"], chosen["raw"], controls)
    by_part, note = {part: list(turned) for part in problems}, ""
    try:
        difficulty = Difficulty.fit(prepared, seed)
    except DataError as error:
        note = f"No adaptive schedule, for difficulty cannot be told: {error}"
    else:
        for part, asked in problems.items():
            classes = difficulty.of(reasoner, asked)
            by_part[part].append(adaptive_knob(reasoner, centred, chosen["centred"], asked, classes))
    one, other = trained.tpv.weight, trained.raw.weight
    cosine = float(one @ other / ((one @ one) * (other @ other)) ** 0.5)
    return Plan(chosen, foretold, cosine, by_part, note)


def validation_thoughts(prepared: Prepared, reasoner: Reasoner) -> list[Transcript]:
    """One finished thought about each of some validation problems, as it was, from the states' own labels.

    Raises:
        DataError: there is none.
    """
    states = prepared.states()
    found: list[Transcript] = []
    for number in prepared.parts["validation"]:
        rows = states.problem == number
        if not rows.any() or len(found) == _FORETOLD_ON:
            continue
        rows &= states.sequence == states.sequence[rows][0]
        generated = states.produced[rows].tolist()
        found.append(Transcript(reasoner.prompt(prepared.problems[number].question), generated, number))
    if not found:
        raise DataError("No thought about a validation problem ended; generate more.")
    return found


def overclock(
    reasoner: Reasoner, problems: dict[str, list[Problem]], sampling: Sampling, planned: Plan, out: Path, *,
    max_loss: float = 0.01, quiet: bool = True,
) -> Overclocked:  # fmt: skip
    """Turn every knob on both parts, choose on validation, tell of test; one α given is not chosen, only tested.

    Args:
        reasoner, problems, sampling: who answers what, and how.
        planned: from :func:`plan`.
        out: folder; outcomes that are in it already are not measured again.
        max_loss: accuracy given up at most, on validation.
        quiet: no progress bar.
    """
    given = len(planned.alphas["centred"]) == 1
    outcomes = {
        part: turn(reasoner, problems[part], sampling, planned.knobs[part], cache=out / f"{part}.jsonl", quiet=quiet)
        for part in (("test",) if given else ("validation", "test"))
    }
    tested = outcomes["test"]
    if not given:
        return Overclocked(outcomes, choose(outcomes["validation"], tested, max_loss=max_loss))
    plain = plain_of(tested)
    choices = {o.knob: Choice(o.knob, o.value, o, o, *against(plain, o)) for o in tested if o is not plain}
    return Overclocked(outcomes, {"best": choices[WHOLE], **choices})


def refuse_learned(prepared: Prepared, problems: Sequence[Problem]) -> None:
    """Refuse to test on what the vectors, or their strength, come from, in its template or without.

    Raises:
        DataError: one of them is among the problems to fit or to choose.
    """
    first, *rest = map(re.escape, prepared.settings.get("template", "{problem}").split("{problem}"))
    template = re.compile(first + "(.*)" + r"\1".join(rest), re.DOTALL)

    def key(problem: Problem) -> str:
        found = template.fullmatch(problem.question)
        return replace(problem, question=found[1]).key if found else problem.key

    learned = {key(problem) for part in ("fit", "validation") for problem in prepared.part(part)}
    if known := [problem.question for problem in problems if key(problem) in learned]:
        raise DataError(
            f"{len(known)} of the questions to test on were learned from, the first of them {known[0][:40]!r}; "
            "learn from others, or test on others."
        )


def write_generations(
    path: Path, reasoner: Reasoner, problems: Sequence[Problem], numbers: Sequence[int], sampling: Sampling,
    knob: Knob, alpha: float,
) -> None:  # fmt: skip
    """The texts under one α, a JSON line each, with the number that the problem has in its list.

    The same draws as were measured, so the same texts.
    """
    setting = knob.at(alpha) if alpha else Setting()
    lines: list[dict[str, Any]] = []
    for batch in roll_out(reasoner, problems, sampling, suffix=setting.suffix, **setting.options):
        for rollout in batch:
            problem = problems[rollout.problem]
            lines.append(
                {
                    "problem": numbers[rollout.problem], "sample": rollout.sample, "alpha": alpha,
                    "question": problem.question, "text": reasoner.tokenizer.decode(rollout.ids),
                    "thinking_tokens": rollout.thinking_tokens, "ended": rollout.ended,
                    "answer": rollout.answer, "reference": problem.answer, "correct": rollout.correct,
                }
            )  # fmt: skip
    lines.sort(key=lambda line: (line["problem"], line["sample"]))
    with atomic_file(path) as scratch:
        scratch.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
