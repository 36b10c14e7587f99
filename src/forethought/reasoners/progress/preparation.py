"""From rollouts to thoughts: the states that produced the thinking tokens, split by problem, and what was left out.

Only a thought that ended has a known length, so that only those can be learned from. That is a selection: thoughts cut
off at the limit are the long ones. It is counted and told, and it cannot be undone except by a larger limit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forethought.atomic import atomic_file
from forethought.data.problems import Problem, same
from forethought.errors import ArtefactError, DataError
from forethought.instruments.capture import Transcript, capture
from forethought.instruments.states import States
from forethought.reasoners.progress.generation import Generations
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import Sampling

FORMAT, VERSION = "forethought progress", 1
PREPARED, STATES = "prepared.json", "thoughts"
Part = Literal["fit", "validation", "test"]
PARTS: tuple[Part, ...] = ("fit", "validation", "test")
_TRAINING = 0.8  # of the problems
_FIT = 0.75  # of the training problems; the others calibrate and choose
_IN_MEMORY = 1 << 30  # bytes of states
_FEWEST = 8  # problems


class Thoughts(Sequence[Tensor]):
    """Whole thoughts: the states float32 ``[N, d]`` of each, at the final norm, read when they are asked for.

    Row j - 1 is the state that produced token j, the first of them at the last position of the prompt; the last
    produced the mark that closes the thought.

    Attributes:
        problem, sample: int64 ``[thoughts]``.
        lengths: int64 ``[thoughts]``, N.
    """

    def __init__(self, states: States) -> None:
        self._states = states
        starts = np.flatnonzero(np.diff(states.sequence, prepend=-1))
        self._bounds = np.append(starts, len(states))
        self.problem, self.sample = states.problem[starts], states.sample[starts]
        self.lengths = np.diff(self._bounds)
        self._all = states.at("norm") if len(states) * states.model.width * 4 <= _IN_MEMORY else None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        rows = self._rows(index)
        return torch.from_numpy(self._states.at("norm", rows) if self._all is None else self._all[rows])

    def read(self, index: int) -> npt.NDArray[np.int64]:
        """The tokens read at the thought's positions, int64 ``[N]``: first the last of the prompt, never the mark."""
        return self._states.token[self._rows(index)]

    def of(self, problems: Any) -> npt.NDArray[np.int64]:
        """The thoughts about these problems, as indices."""
        return np.flatnonzero(np.isin(self.problem, problems))

    def _rows(self, index: int) -> slice:
        return slice(int(self._bounds[index]), int(self._bounds[index + 1]))


class Chosen(Sequence[Tensor]):
    """Some thoughts of many, still read when they are asked for."""

    def __init__(self, thoughts: Thoughts, rows: npt.NDArray[np.int64]) -> None:
        self.thoughts, self.rows = thoughts, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if not -len(self.rows) <= index < len(self.rows):
            raise IndexError(index)
        return self.thoughts[int(self.rows[index])]


@dataclass(frozen=True)
class Prepared:
    """What progress is learned from, and what it is chosen and tested on.

    Attributes:
        place: the folder of the states.
        problems: by number.
        parts: numbers of the problems that fit, of those that calibrate and choose, of those that test.
        settings: of the rollouts: model, fingerprint, instruction, sampling, template where there was one.
        left_out: ``thoughts``, ``unfinished``, their share by family and level, mean tokens of the kept.
        provenance: digests of the rollouts, ratio and seed of the split; no ratio where a collection dealt the parts.
    """

    place: Path
    problems: dict[int, Problem]
    parts: dict[Part, list[int]]
    settings: dict[str, Any]
    left_out: dict[str, Any]
    provenance: dict[str, Any]

    @classmethod
    def make(
        cls,
        generations: Generations,
        reasoner: Reasoner,
        out: str | os.PathLike[str],
        *,
        train_split_ratio: float | None = None,
        seed: int = 42,
        command: str = "",
        quiet: bool = True,
    ) -> Prepared:
        """Read the states of finished thoughts and split the problems.

        Args:
            generations: rollouts of problems.
            reasoner: that made them; its delimiters tell what is a thought.
            out: folder for the states and what is known of them.
            train_split_ratio: share of the problems that are trained on, by default 0.8; a quarter of those calibrate
                and choose. A ``forethought strength collect`` keeps the parts that it has: nothing is learned from what
                it tests on.
            seed: of the split.
            command: told in what is kept.
            quiet: no progress bar.

        Raises:
            DataError: no thought ended, too few problems, a ratio that leaves a part empty, or one for a collection.
            ArtefactError: the folder holds other states, or cannot be written.
        """
        out, problems = Path(out), generations.problems
        dealt = generations.dealt
        if dealt is None:
            ratio = _TRAINING if train_split_ratio is None else train_split_ratio
            parts = split(problems, ratio, seed)
        elif train_split_ratio is None:
            ratio, parts = None, {"fit": dealt["fit"], "validation": dealt["choose"], "test": dealt["test"]}
        else:
            raise DataError(
                f"{generations.path} keeps the parts of its collection; leave the ratio {train_split_ratio:g} out."
            )
        finished, lengths, cut = [], [], []
        for number, rollout in generations:
            thinking, ended = reasoner.thought(rollout.ids)  # its mark may be another than when they were generated
            if ended:
                end = thinking + len(reasoner.delimiters.close)
                finished.append(Transcript(rollout.prompt, rollout.ids[:end], number, rollout.sample))
                lengths.append(thinking)
            else:
                cut.append(number)
        if not finished:
            raise DataError(
                f"None of the {len(cut)} thoughts in {generations.path} ended within "
                f"{generations.sampling.max_new_tokens} tokens; generate again with a larger --max-new-tokens."
            )
        kept = {transcript.problem for transcript in finished}
        for part in PARTS:
            if not kept & set(parts[part]):
                raise DataError(f"No thought about any of the problems to {part} ended; generate more or longer ones.")
        capture(reasoner.model, finished, ["norm"], "think", out / STATES, delimiters=reasoner.delimiters, quiet=quiet)
        left_out = {
            "thoughts": len(finished) + len(cut),
            "unfinished": len(cut),
            "share": len(cut) / (len(finished) + len(cut)),
            "limit": generations.sampling.max_new_tokens,
            "kept/mean-tokens": float(np.mean(lengths)),
            "problems-without": sorted(set(problems) - kept),
            "by-family": _shares([problems[n].family for n in cut], [p.family for p, _ in _owners(generations)]),
            "by-level": _shares([str(problems[n].level) for n in cut], [str(p.level) for p, _ in _owners(generations)]),
        }
        keys = ("model", "fingerprint", "instruction", "sampling", "template")
        found = cls(
            out / STATES, problems, parts,
            {key: generations.settings[key] for key in keys if key in generations.settings}
            | {"delimiters": {end: list(mark) for end, mark in asdict(reasoner.delimiters).items()}},
            left_out,
            {"command": command, "rollouts": generations.digests, "ratio": ratio, "seed": seed},
        )  # fmt: skip
        found.save(out)
        return found

    def save(self, folder: Path) -> None:
        """Write everything but the states."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "states": STATES if self.place == folder / STATES else str(self.place.resolve()),
            "settings": self.settings,
            "parts": self.parts,
            "left_out": self.left_out,
            "provenance": self.provenance,
            "problems": {str(number): asdict(problem) for number, problem in self.problems.items()},
        }
        with atomic_file(folder / PREPARED) as scratch:
            scratch.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Prepared:
        """Open a folder of ``forethought progress prepare``.

        Raises:
            ArtefactError: it is missing or damaged.
        """
        path = Path(path)
        file = path / PREPARED
        if not file.is_file():
            raise ArtefactError(f"{path} holds no prepared thoughts; make them with 'forethought progress prepare'.")
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            if (document["format"], document["version"]) != (FORMAT, VERSION):
                raise ArtefactError(f"{file} is of another version; prepare it again.")
            problems = {
                int(number): Problem(**{**problem, "steps": tuple(problem["steps"])})
                for number, problem in document["problems"].items()
            }
            parts: dict[Part, list[int]] = {part: list(document["parts"][part]) for part in PARTS}
            place = path / document["states"]
            return cls(place, problems, parts, document["settings"], document["left_out"], document["provenance"])
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, ArtefactError):
                raise
            raise ArtefactError(f"{file} is damaged ({type(error).__name__}: {error}); prepare it again.") from error

    def states(self) -> States:
        """The states of the thoughts.

        Raises:
            ArtefactError: they are missing, unfinished or damaged.
        """
        return States.open(self.place)

    @property
    def sampling(self) -> Sampling:
        """How the rollouts were drawn."""
        return Sampling(**self.settings["sampling"])

    def part(self, name: Part) -> list[Problem]:
        """The problems of a part, those without a finished thought too."""
        return [self.problems[number] for number in self.parts[name]]

    def told(self) -> list[str]:
        """What was left out, in sentences."""
        found = self.left_out
        kept = found["thoughts"] - found["unfinished"]
        lines = [
            f"{kept} thoughts of {found['kept/mean-tokens']:.1f} tokens on average; problems to fit, to choose, to "
            f"test: {', '.join(str(len(self.parts[part])) for part in PARTS)}."
        ]
        if found["unfinished"]:
            families = ", ".join(f"{name} {share:.0%}" for name, share in found["by-family"].items() if share)
            lines.append(
                f"Left out: {found['unfinished']} thoughts ({found['share']:.1%}) that had not ended after "
                f"{found['limit']} tokens ({families}). What is learned holds for thoughts shorter than that."
            )
        return lines


def split(problems: Mapping[int, Problem], ratio: float, seed: int) -> dict[Part, list[int]]:
    """Deal problems, never single thoughts, into the parts; those that ask the same into one.

    Raises:
        DataError: too few problems, or a ratio that leaves a part empty.
    """
    numbers = sorted(problems)
    asked = same([problems[number] for number in numbers])
    different = len(set(asked))
    training = round(ratio * different)
    fit = round(_FIT * training)
    if different < _FEWEST or not 0 < fit < training < different:
        raise DataError(
            f"{different} different problems at a training share of {ratio:g} cannot be dealt out to fit, choose and "
            f"test; give {_FEWEST} or more, and a share such as 0.8."
        )
    dealt = np.split(np.random.default_rng(seed).permutation(different), [fit, training])
    return {
        part: [number for number, what in zip(numbers, asked, strict=True) if what in some]
        for part, some in zip(PARTS, dealt, strict=True)
    }


def _owners(generations: Generations) -> list[tuple[Problem, int]]:
    problems = generations.problems
    return [(problems[number], number) for number, _ in generations]


def _shares(cut: Sequence[str], everything: Sequence[str]) -> dict[str, float]:
    return {name: cut.count(name) / everything.count(name) for name in dict.fromkeys(everything)}
