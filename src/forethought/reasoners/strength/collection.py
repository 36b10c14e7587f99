"""What all of reasoning strength is made of: rollouts of problems, and the states at the ends of their prompts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from forethought.data.problems import Problem, same
from forethought.errors import ArtefactError, DataError
from forethought.instruments.capture import Transcript, capture
from forethought.instruments.sites import Stack
from forethought.instruments.states import INDEX, States
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import Rollouts, Sampling

Part = Literal["fit", "choose", "test"]
PARTS: tuple[Part, ...] = ("fit", "choose", "test")
SHARES = (0.5, 0.2, 0.3)  # of the problems in each part
LEAST = 24  # problems: with fewer, those to fit do not calibrate an interval


@dataclass(frozen=True)
class Collection:
    """Rollouts and prompt states in one folder.

    Problems are dealt into parts by the seed of the sampling: probes and directions are made on ``fit``, whatever has
    to be chosen is chosen on ``choose``, and what is reported was measured on ``test``.

    Attributes:
        path: the folder.
        rollouts: several of each problem.
        states: a row a problem, at the last position of its prompt, at every site.
    """

    path: Path
    rollouts: Rollouts
    states: States

    @classmethod
    def collect(
        cls,
        out: str | os.PathLike[str],
        reasoner: Reasoner,
        problems: Sequence[Problem],
        sampling: Sampling,
        *,
        quiet: bool = True,
    ) -> Collection:
        """Answer the problems and read the states; given again, it goes on where it was stopped.

        Raises:
            ArtefactError: the folder holds another collection, or cannot be written.
            DataError: too few problems.
        """
        if (different := len(set(same(problems)))) < LEAST:
            raise DataError(
                f"There are {different} different problems; to fit, choose and test it takes at least {LEAST}."
            )
        out = Path(out)
        rollouts = Rollouts.collect(out / "rollouts", reasoner, problems, sampling, quiet=quiet)
        stack = Stack.of(reasoner.model)
        # the very prompts that were answered: lengths and states belong to one text
        transcripts = [Transcript(r.prompt, problem=r.problem) for r in rollouts.rollouts if r.sample == 0]
        states = capture(
            reasoner.model, transcripts, stack.sites(), "last-prompt", out / "states",
            delimiters=reasoner.delimiters, stack=stack, quiet=quiet,
        )  # fmt: skip
        return cls(out, rollouts, states)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Collection:
        """Open a folder that ``forethought strength collect`` made.

        Raises:
            ArtefactError: it is missing, unfinished or damaged.
        """
        path = Path(path)
        if not (path / "rollouts").is_dir():
            raise ArtefactError(
                f"{path} holds no collection; make one with 'forethought strength collect --out {path}'."
            )
        rollouts = Rollouts.open(path / "rollouts")
        if not (path / "states" / INDEX).is_file():
            raise ArtefactError(f"{path} has rollouts and no states yet; finish it with the command that began it.")
        states = States.open(path / "states")
        if states.model.fingerprint != rollouts.settings["fingerprint"] or len(states) != len(rollouts.problems):
            raise ArtefactError(f"{path} holds states of other prompts than its rollouts; remove it and collect again.")
        return cls(path, rollouts, states)

    @property
    def problems(self) -> list[Problem]:
        """That were asked, in order."""
        return self.rollouts.problems

    def part(self, name: Part) -> npt.NDArray[np.int64]:
        """The problems of a part, as sorted indices."""
        return deal(self.problems, self.rollouts.settings["sampling"]["seed"])[name]

    def lengths(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Thinking tokens, and whether they are lower bounds; both ``[problems, samples]``."""
        shape = (len(self.problems), -1)
        rollouts = self.rollouts.rollouts
        tokens = np.array([rollout.thinking_tokens for rollout in rollouts], dtype=np.float64).reshape(shape)
        return tokens, np.array([not rollout.ended for rollout in rollouts]).reshape(shape)

    def provenance(self) -> dict[str, Any]:
        """What an artefact made of this says of it."""
        settings = self.rollouts.settings
        return {
            "rollouts": self.rollouts.digest,
            "problems": len(self.problems),
            "sampling": settings["sampling"],
            "instruction": settings["instruction"],
            "parts": dict(zip(PARTS, SHARES, strict=True)),
        }


def deal(problems: Sequence[Problem], seed: int) -> dict[Part, npt.NDArray[np.int64]]:
    """The problems of each part, as sorted indices; those that ask the same are in one part."""
    asked = same(problems)
    number = int(asked.max()) + 1
    order = np.random.default_rng((seed, number)).permutation(number)
    first, second = round(SHARES[0] * number), round((SHARES[0] + SHARES[1]) * number)
    dealt = np.split(order, [first, second])
    return {part: np.flatnonzero(np.isin(asked, some)) for part, some in zip(PARTS, dealt, strict=True)}
