"""Rollouts: several sampled answers to each problem, graded, kept as one line of JSON each, and safe to interrupt."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from forethought.atomic import atomic_file, atomic_folder
from forethought.data.problems import Problem
from forethought.errors import ArtefactError
from forethought.instruments.fingerprint import fingerprint
from forethought.reasoners.grading import boxed, is_correct
from forethought.reasoners.reasoner import Reasoner

VERSION = 1
SETTINGS, LINES = "rollouts.json", "rollouts.jsonl"


@dataclass(frozen=True)
class Rollout:
    """One sampled answer.

    Attributes:
        problem: index into the problems.
        sample: which of the problem's, from 0.
        prompt, ids: token ids of the prompt, and of what was generated, with the end-of-text token where it came.
        thinking_tokens: before the mark that closes the thought; all of them where it never came.
        ended: the thought was closed; otherwise its length is a lower bound (censored).
        answer: what stands in the box; None where there is none.
        correct: whether it is right. A thought that was not closed has no answer.
    """

    problem: int
    sample: int
    prompt: list[int]
    ids: list[int]
    thinking_tokens: int
    ended: bool
    answer: str | None
    correct: bool


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        samples: of each problem.
        max_new_tokens: of each, thought and answer together.
        temperature, top_p: of the distribution; temperature 0 is greedy, and nothing lies between it and 10⁻⁶.
        seed: of the draws.
        batch_size: rollouts at once; another gives other draws.
    """

    samples: int = 8
    max_new_tokens: int = 512
    temperature: float = 0.6
    top_p: float = 0.95
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ArtefactError(f"{name} is {getattr(self, name)}; it has to be at least 1.")
        # below, logits that are divided by it overflow
        if not (self.temperature == 0 or 1e-6 <= self.temperature < math.inf) or not 0 < self.top_p <= 1:
            raise ArtefactError(
                f"temperature is {self.temperature} and top_p {self.top_p}; they have to be 0 or 1e-06 and more, "
                "and in (0, 1]."
            )
        if self.seed < 0:
            raise ArtefactError(f"seed is {self.seed}; it has to be 0 or more.")


def grade(reasoner: Reasoner, problem: Problem, ids: Sequence[int]) -> dict[str, Any]:
    """``thinking_tokens``, ``ended``, ``answer`` and ``correct`` of generated ids, as in :class:`Rollout`."""
    thinking, ended = reasoner.thought(ids)
    answer = boxed(reasoner.tokenizer.decode(list(ids[thinking:]))) if ended else None
    return {
        "thinking_tokens": thinking,
        "ended": ended,
        "answer": answer,
        "correct": is_correct(answer, problem.answer),
    }


def roll_out(
    reasoner: Reasoner,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    suffix: str = "",
    skip: int = 0,
    quiet: bool = True,
    **options: Any,
) -> Iterator[list[Rollout]]:
    """Answer problems, batch by batch; the same whatever was skipped.

    Args:
        reasoner: who answers.
        problems: what is asked.
        sampling: how.
        suffix: added to every question.
        skip: batches that are done already.
        quiet: no progress bar.
        options: for ``model.generate``.
    """
    jobs = [(index, sample) for index in range(len(problems)) for sample in range(sampling.samples)]
    prompts = [reasoner.prompt(problem.question, suffix) for problem in problems]
    # a batch lasts as long as its longest thought: equally hard problems together, then prompts of like length
    jobs.sort(key=lambda job: (problems[job[0]].level, len(prompts[job[0]])))
    starts = range(skip * sampling.batch_size, len(jobs), sampling.batch_size)
    console = Console(stderr=True)
    for start in track(
        starts, "rolling out", console=console, transient=True, disable=quiet or not console.is_terminal
    ):
        batch = jobs[start : start + sampling.batch_size]
        generated = reasoner.generate(
            [prompts[index] for index, _ in batch],
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=_seed(sampling.seed, start),
            **options,
        )
        yield [
            Rollout(index, sample, prompts[index], ids, **grade(reasoner, problems[index], ids))
            for (index, sample), ids in zip(batch, generated, strict=True)
        ]


def _seed(seed: int, start: int) -> int:
    """Of a batch, so that batches of one seed share no draws with those of another."""
    return int(np.random.SeedSequence((seed, start)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Rollouts:
    """A folder of problems and their rollouts.

    Attributes:
        path: the folder.
        settings: what made it: model, fingerprint, sampling, suffix, template.
        problems: that were asked.
        rollouts: of them, by problem and sample; complete.
    """

    def __init__(self, path: Path, settings: dict[str, Any], problems: list[Problem], rollouts: list[Rollout]) -> None:
        self.path = path
        self.settings = settings
        self.problems = problems
        self.rollouts = rollouts

    @classmethod
    def collect(
        cls,
        out: str | os.PathLike[str],
        reasoner: Reasoner,
        problems: Sequence[Problem],
        sampling: Sampling,
        *,
        suffix: str = "",
        template: str = "",
        quiet: bool = True,
    ) -> Rollouts:
        """Answer problems into a folder. Given again, it goes on where it was stopped, and loses and doubles nothing.

        Args:
            out: the folder.
            reasoner, problems, sampling: who answers what, and how.
            suffix: added to every question.
            template: that the questions were put into, only to be kept.
            quiet: no progress bar.

        Raises:
            ArtefactError: the folder holds other rollouts, or cannot be written.
        """
        out = Path(out)
        settings = {
            "format": "forethought rollouts",
            "version": VERSION,
            "model": reasoner.name,
            "fingerprint": fingerprint(reasoner.model),
            "dtype": str(reasoner.model.dtype).removeprefix("torch."),
            "delimiters": dataclasses.asdict(reasoner.delimiters),
            "instruction": reasoner.instruction,
            "suffix": suffix,
            "sampling": dataclasses.asdict(sampling),
            "problems": [dataclasses.asdict(problem) for problem in problems],
        }
        if template:
            settings["template"] = template
        settings = json.loads(json.dumps(settings))
        if (out / SETTINGS).is_file():
            before = _read_settings(out)
            # the fingerprint tells one model from another; its path may be written otherwise
            if other := [key for key in settings if key != "model" and before.get(key) != settings[key]]:
                other = ["model" if key == "fingerprint" else key for key in other]
                raise ArtefactError(
                    f"{out} holds rollouts of another {', '.join(other)}; choose another folder or remove it first."
                )
        else:
            with atomic_folder(out) as scratch:
                (scratch / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
                (scratch / LINES).touch()
        try:
            done = _whole_lines(out / LINES)
        except (OSError, ValueError) as error:
            raise ArtefactError(f"{out / LINES} is damaged ({error}); remove {out} and collect again.") from error
        batch, total = sampling.batch_size, len(problems) * sampling.samples
        kept = done if len(done) == total else done[: len(done) // batch * batch]
        if len(kept) < total:
            with atomic_file(out / LINES) as scratch_file:
                scratch_file.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            with (out / LINES).open("a", encoding="utf-8") as file:
                rolled = roll_out(reasoner, problems, sampling, suffix=suffix, skip=len(kept) // batch, quiet=quiet)
                for rollouts in rolled:
                    file.write("".join(json.dumps(dataclasses.asdict(rollout)) + "\n" for rollout in rollouts))
                    file.flush()
        return cls.open(out)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Rollouts:
        """Read a folder of rollouts.

        Raises:
            ArtefactError: it is missing, unfinished or damaged.
        """
        path = Path(path)
        settings = _read_settings(path)
        try:
            problems = [Problem(**{**problem, "steps": tuple(problem["steps"])}) for problem in settings["problems"]]
            rollouts = [Rollout(**json.loads(line)) for line in _whole_lines(path / LINES)]
            wanted = len(problems) * settings["sampling"]["samples"]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError(
                f"{path} is damaged ({type(error).__name__}: {error}); remove it and collect again."
            ) from error
        if len(rollouts) < wanted:
            raise ArtefactError(
                f"{path} holds {len(rollouts)} of {wanted} rollouts; finish it with the command that began it."
            )
        samples = settings["sampling"]["samples"]
        rollouts.sort(key=lambda rollout: (rollout.problem, rollout.sample))
        if [(r.problem, r.sample) for r in rollouts] != [divmod(place, samples) for place in range(wanted)]:
            raise ArtefactError(f"{path} is damaged: not one rollout a sample; remove it and collect again.")
        return cls(path, settings, problems, rollouts)

    @property
    def digest(self) -> str:
        """What names these rollouts in what is made of them."""
        return hashlib.sha256((self.path / LINES).read_bytes()).hexdigest()[:16]


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        found = (settings["format"], settings["version"])
    except FileNotFoundError as error:
        raise ArtefactError(
            f"{path} holds no rollouts (no {SETTINGS}); make some with 'forethought strength collect --out {path}'."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ArtefactError(f"{path / SETTINGS} is damaged ({reason}); collect again.") from error
    if found != ("forethought rollouts", VERSION):
        raise ArtefactError(f"{path} is {found[0]} version {found[1]}; this forethought reads version {VERSION}.")
    return settings


def _whole_lines(path: Path) -> list[str]:
    """The lines that were written to their end; the last may have been cut off."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return text[: text.rfind("\n") + 1].splitlines()


def lengths(rollouts: Iterable[Rollout], problems: int) -> tuple[list[list[int]], list[list[bool]]]:
    """Thinking tokens and whether they are censored, of each problem's samples."""
    tokens: list[list[int]] = [[] for _ in range(problems)]
    censored: list[list[bool]] = [[] for _ in range(problems)]
    for rollout in rollouts:
        tokens[rollout.problem].append(rollout.thinking_tokens)
        censored[rollout.problem].append(not rollout.ended)
    return tokens, censored
