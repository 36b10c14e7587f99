"""Rollouts to learn progress from: ranges of one list of problems in one folder, none of them lost, none of them twice.

The published scripts number the folders of every run from 0, so that a second range overwrites the first. Here a range
has a folder that says what it holds, and a problem keeps the number that it has in the list.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forethought.data.problems import Problem
from forethought.errors import ArtefactError, DataError
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import Rollout, Rollouts, Sampling
from forethought.reasoners.strength.collection import Part, deal

_RANGE = re.compile(r"rollouts-(\d+)-(\d+)")
_LONGEST = 4096


@dataclass(frozen=True)
class Generations:
    """Rollouts of ranges of one list of problems.

    Attributes:
        path: the folder.
        ranges: the number of the first problem of each, and its rollouts; ascending.
    """

    path: Path
    ranges: tuple[tuple[int, Rollouts], ...]

    @classmethod
    def collect(
        cls,
        out: str | os.PathLike[str],
        reasoner: Reasoner,
        problems: Sequence[Problem],
        sampling: Sampling,
        *,
        start: int = 0,
        end: int | None = None,
        template: str = "",
        quiet: bool = True,
    ) -> Rollouts:
        """Answer problems ``start`` to ``end - 1``; given again, it goes on where it was stopped.

        Args:
            out: the folder; other ranges may be in it already.
            reasoner, problems, sampling: who answers what, and how.
            start, end: the range, its end **not** in it; by default all.
            template: what is asked instead of each question, with ``{problem}`` where that stands.
            quiet: no progress bar.

        Returns:
            The rollouts of this range.

        Raises:
            DataError: the range is empty or goes beyond the problems; the template has no place for them.
            ArtefactError: the folder holds some of these problems in another range, or rollouts of another kind.
        """
        out, end = Path(out), len(problems) if end is None else end
        if not 0 <= start < end <= len(problems):
            raise DataError(
                f"There are problems 0 to {len(problems) - 1}, and {start} to {end} (not included) is no part of them."
            )
        for first, last in _ranges(out):
            if (first, last) != (start, end) and first < end and start < last:
                raise ArtefactError(
                    f"{out} holds problems {first} to {last - 1} already; leave them out, or choose another folder."
                )
        asked = problems[start:end]
        if template:
            if "{problem}" not in template:
                raise DataError(
                    f"The prompt template {template[:40]!r} has no {{problem}} where the question is to stand."
                )
            asked = [replace(problem, question=template.replace("{problem}", problem.question)) for problem in asked]
        rollouts = Rollouts.collect(
            out / f"rollouts-{start:05d}-{end:05d}", reasoner, asked, sampling, template=template, quiet=quiet
        )
        cls.open(out, unfinished=True)  # refuses ranges that do not belong together
        return rollouts

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, unfinished: bool = False) -> Generations:
        """Open a folder of ``forethought progress generate``, or of ``forethought strength collect``.

        Args:
            path: the folder.
            unfinished: leave out ranges that are not complete yet.

        Raises:
            ArtefactError: there are no rollouts, some are damaged or unfinished, or they do not belong together.
        """
        path = Path(path)
        folders = [(first, path / f"rollouts-{first:05d}-{last:05d}") for first, last in _ranges(path)]
        if not folders and (path / "rollouts").is_dir():
            folders = [(0, path / "rollouts")]
        if not folders:
            raise ArtefactError(
                f"{path} holds no rollouts; make some with 'forethought progress generate --out {path}'."
            )
        found: list[tuple[int, Rollouts]] = []
        for first, folder in folders:
            try:
                found.append((first, Rollouts.open(folder)))
            except ArtefactError:
                if not unfinished:
                    raise
        for _, rollouts in found[1:]:
            mine, theirs = found[0][1].settings, rollouts.settings
            keys = ("fingerprint", "instruction", "sampling", "template")
            if other := [key for key in keys if mine.get(key) != theirs.get(key)]:
                raise ArtefactError(
                    f"{rollouts.path} has another {' and '.join(other)} than {found[0][1].path}; "
                    "keep them in folders of their own."
                )
        return cls(path, tuple(found))

    @property
    def settings(self) -> dict[str, Any]:
        """What made them: model, fingerprint, sampling, instruction, and template where there was one."""
        return self.ranges[0][1].settings

    @property
    def sampling(self) -> Sampling:
        """How they were drawn."""
        return Sampling(**self.settings["sampling"])

    @property
    def problems(self) -> dict[int, Problem]:
        """Every problem by its number in the list."""
        return {first + index: problem for first, part in self.ranges for index, problem in enumerate(part.problems)}

    @property
    def dealt(self) -> dict[Part, list[int]] | None:
        """The numbers of the problems in the parts of a ``forethought strength collect``; None of other rollouts."""
        if self.ranges[0][1].path.name != "rollouts":
            return None
        return {part: rows.tolist() for part, rows in deal([*self.problems.values()], self.sampling.seed).items()}

    def __iter__(self) -> Iterator[tuple[int, Rollout]]:
        """Every rollout with the number of its problem in the list; by problem and sample."""
        for first, part in self.ranges:
            for rollout in part.rollouts:
                yield first + rollout.problem, rollout

    @property
    def digests(self) -> list[str]:
        """What names these rollouts in what is made of them."""
        return [part.digest for _, part in self.ranges]


def default_length(reasoner: Reasoner) -> int:
    """Tokens that thought and answer may take where nothing is asked for: half of the context, 4,096 at most.

    The published default is 8, with which no thought ever ends.
    """
    return min(reasoner.context // 2, _LONGEST)


def _ranges(path: Path) -> list[tuple[int, int]]:
    """First problem and the one after the last, of every range in a folder."""
    matches = [_RANGE.fullmatch(folder.name) for folder in path.iterdir()] if path.is_dir() else []
    return sorted((int(match[1]), int(match[2])) for match in matches if match)
