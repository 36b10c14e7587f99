"""Turn the knobs: the sweep of a direction beside its controls, and the choice of a setting that saves tokens."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from forethought.atomic import atomic_file
from forethought.data.problems import Problem
from forethought.errors import ArtefactError, DataError
from forethought.instruments.fingerprint import fingerprint
from forethought.instruments.sites import Site
from forethought.instruments.steering import Steering
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import Sampling
from forethought.reasoners.strength.analysis import clean
from forethought.reasoners.strength.knobs import Knob, Outcome, run


def turn(
    reasoner: Reasoner,
    problems: Sequence[Problem],
    sampling: Sampling,
    knobs: Iterable[Knob],
    *,
    cache: Path | None = None,
    quiet: bool = True,
) -> list[Outcome]:
    """The unchanged model, then every value of every knob, on the same problems.

    Args:
        reasoner, problems, sampling: who answers what, and how.
        knobs: to turn.
        cache: a JSON-lines file of outcomes; those of this model, these problems, this sampling and the same knob at
            the same value are not measured again, and what else is there stays.
        quiet: no progress bar.

    Raises:
        ArtefactError: the cache is damaged.
    """
    jobs: list[tuple[Knob | None, float]] = [(None, 0.0)]
    jobs += [(knob, value) for knob in knobs for value in knob.values]
    known = {} if cache is None or not cache.is_file() else _read(cache)
    asked = _digest(
        fingerprint(reasoner.model), str(reasoner.model.dtype), asdict(reasoner.delimiters), reasoner.instruction,
        asdict(sampling), [(problem.question, problem.answer) for problem in problems],
    )  # fmt: skip
    outcomes = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("turning knobs", total=len(jobs))
        for knob, value in jobs:
            name = knob.name if knob is not None else "none"
            progress.update(task, description=f"{name} {value:g}")
            key = _digest(asked, name, knob.about if knob is not None else "", value)
            if key not in known:
                known[key] = run(reasoner, problems, sampling, knob, value)
                if cache is not None:
                    with atomic_file(cache) as scratch:  # whole after every outcome, whenever it is stopped
                        lines = (json.dumps({"key": key, **clean(asdict(found))}) for key, found in known.items())
                        scratch.write_text("\n".join(lines) + "\n", encoding="utf-8")
            outcomes.append(known[key])
            progress.advance(task)
    return outcomes


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _read(cache: Path) -> dict[str, Outcome]:
    known = {}
    try:
        for line in cache.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            # JSON has no infinity, which a median is that was not reached
            row["numbers"] = {name: math.inf if value is None else value for name, value in row["numbers"].items()}
            key = row.pop("key")
            known[key] = Outcome(**row)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(f"{cache} is damaged ({type(error).__name__}: {error}); remove it.") from error
    return known


@torch.no_grad()
def end_logits(
    reasoner: Reasoner,
    problems: Sequence[Problem],
    vectors: dict[Site, torch.Tensor],
    strengths: Sequence[float],
    batch_size: int = 64,
) -> dict[str, list[float]]:
    """The logit that ends the thought, at the position of its first token, by strength, as means over problems.

    Beside it the mean logit of all tokens (``mean``) and of the end of the text (``stop``). It shifts whether or not
    lengths do, so it is no evidence that they will.
    """
    end, stop = reasoner.delimiters.close[-1], reasoner.tokenizer.eos_token_id
    prompts = sorted((reasoner.prompt(problem.question) for problem in problems), key=len)
    known = signature(reasoner.model.forward).parameters
    found: dict[str, list[float]] = {"strength": [], "end": [], "stop": [], "mean": []}
    for strength in strengths:
        sums = np.zeros(3)
        for start in range(0, len(prompts), batch_size):
            batch = reasoner.tokenizer.pad({"input_ids": prompts[start : start + batch_size]}, return_tensors="pt")
            batch = {key: batch[key].to(reasoner.model.device) for key in ("input_ids", "attention_mask")}
            # what generate would pass: places counted without padding, and no logits of any but the last
            places = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
            batch |= {"position_ids": places} if "position_ids" in known else {}
            batch |= {"logits_to_keep": 1} if "logits_to_keep" in known else {}
            with Steering(vectors, strength).applied(reasoner.model, reasoner.delimiters):
                logits = reasoner.model(**batch).logits[:, -1].float()
            sums += [float(logits[:, end].sum()), float(logits[:, stop].sum()), float(logits.mean(dim=1).sum())]
        for key, value in zip(("end", "stop", "mean"), sums / len(prompts), strict=True):
            found[key].append(float(value))
        found["strength"].append(float(strength))
    return found


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen on some problems and measured on others.

    Attributes:
        knob, value: of it; ``none`` is the unchanged model.
        chosen_on: its outcome where it was chosen.
        tested: its outcome on the test problems.
        saved: share of the unchanged model's mean thinking tokens, on the test problems, with bootstrap bounds over
            problems.
        lost: accuracy of the unchanged model minus this one's, likewise.
        missed: the condition that no setting kept to, where it is the unchanged model for want of a better; else "".
    """

    knob: str
    value: float
    chosen_on: Outcome
    tested: Outcome
    saved: tuple[float, float, float]
    lost: tuple[float, float, float]
    missed: str = ""


def choose(
    on: Sequence[Outcome], tested: Sequence[Outcome], *, max_loss: float | None = 0.01, budget: float | None = None
) -> dict[str, Choice]:
    """The best value of every knob, and under ``best`` the best of all; chosen on ``on``, told of ``tested``.

    Args:
        on, tested: outcomes of the same settings, the unchanged model among them.
        max_loss: with no budget: the fewest tokens at an accuracy at most so far below the unchanged model's.
        budget: the most accurate setting whose mean thought is at most so many tokens, of equals the shortest.

    Raises:
        DataError: a setting was not tested, or the unchanged model is not among them.
    """
    after = {(outcome.knob, outcome.value): outcome for outcome in tested}
    if missing := [(found.knob, found.value) for found in on if (found.knob, found.value) not in after]:
        raise DataError(f"The setting {missing[0]} was not tested; test the settings that were chosen from.")
    plain = plain_of(on)
    choices = {}
    names = [name for name in dict.fromkeys(outcome.knob for outcome in on) if name != "none"]
    for name in ["best", *names]:
        pool = [plain, *(found for found in on if name in ("best", found.knob) and found.knob != "none")]
        if name == "best":
            pool = [found for found in pool if not found.knob.startswith("random")]
        if budget is not None:
            allowed = [found for found in pool if found.numbers["mean"] <= budget]
            best = max(allowed, key=lambda found: (found.numbers["accuracy"], -found.numbers["mean"]), default=plain)
        else:
            least = (
                plain.numbers["accuracy"] - (max_loss or 0.0) - 1e-9
            )  # shares of equal counts may differ in rounding
            allowed = [found for found in pool if found.numbers["accuracy"] >= least]
            best = min(allowed, key=lambda found: found.numbers["mean"], default=plain)
        end = after[best.knob, best.value]
        saved, lost = against(after["none", 0.0], end)
        limit = "loss" if budget is None else "budget"
        missed = "" if allowed else f"nothing within the {limit}"
        choices[name] = Choice(best.knob, best.value, best, end, saved, lost, missed)
    return choices


def against(plain: Outcome, other: Outcome, draws: int = 2000) -> tuple[Any, Any]:
    """Share of tokens saved, and accuracy lost, each with 95 % bounds of a bootstrap over problems.

    Lengths of thoughts that never ended count as far as they were watched. Of no tokens no share can be saved: NaN.
    """
    tokens = np.array([np.mean(plain.tokens, axis=1), np.mean(other.tokens, axis=1)])
    right = np.array([np.mean(plain.correct, axis=1), np.mean(other.correct, axis=1)])
    pick = np.random.default_rng(0).integers(tokens.shape[1], size=(draws, tokens.shape[1]))
    drawn = tokens[:, pick].mean(axis=2)
    before, after = np.append(tokens[0].mean(), drawn[0]), np.append(tokens[1].mean(), drawn[1])
    share = 1 - after / np.where(before > 0, before, np.nan)
    saved = [share[0], *np.quantile(share[1:], [0.025, 0.975])]
    fallen = (right[0] - right[1])[pick].mean(axis=1)
    lost = [(right[0] - right[1]).mean(), *np.quantile(fallen, [0.025, 0.975])]
    return tuple(map(float, saved)), tuple(map(float, lost))


def plain_of(outcomes: Sequence[Outcome]) -> Outcome:
    """The unchanged model's.

    Raises:
        DataError: it is not among them.
    """
    found = next((outcome for outcome in outcomes if outcome.knob == "none"), None)
    if found is None:
        raise DataError("The unchanged model is not among the outcomes; measure it too, to compare with.")
    return found


def document(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """For JSON, without what was measured of each problem."""
    return [clean({"knob": o.knob, "value": o.value, **o.numbers}) for o in outcomes]


def with_samples(sampling: Sampling, samples: int, temperature: float | None = None) -> Sampling:
    """The sampling of a collection, for other numbers of samples."""
    changed = replace(sampling, samples=samples)
    return changed if temperature is None else replace(changed, temperature=temperature)
