"""Problems with exact answers and honest worked traces, made on the spot: what the embedded reasoner learns from.

A user's own are read by :func:`read_problems`. Those made here are text in and text out. A trace says again what it
begins from, then holds the *necessary* steps, each of which rewrites the line before it by one operation (or follows
one link of a chase), and then *redundant* checks, which repeat steps that were right already. So how much of a thought
could be saved is known exactly. Levels 1 to 5 are ranges of the number of necessary steps.

In ``sum`` and ``expression`` that number can be read off the length of the question. In ``gcd``, ``collatz`` and
``chase`` it cannot: the question is about as long whatever it takes to answer it (in ``gcd`` small numbers, which are a
digit shorter, are a little more frequent at the low levels).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from forethought.errors import DataError

Family = Literal["sum", "expression", "gcd", "collatz", "chase"]
Split = Literal["train", "valid", "test"]

FAMILIES: tuple[Family, ...] = get_args(Family)
HIDDEN: tuple[Family, ...] = ("gcd", "collatz", "chase")  # families whose questions do not tell how long they take
LEVELS = (1, 2, 3, 4, 5)
BRIEF = "Be brief."

# the necessary steps of each level, both ends within it
STEPS: dict[Family, tuple[tuple[int, int], ...]] = {
    "sum": ((1, 2), (3, 3), (4, 4), (5, 5), (6, 7)),
    "expression": ((1, 2), (3, 3), (4, 4), (5, 5), (6, 6)),
    "gcd": ((2, 3), (4, 5), (6, 7), (8, 9), (10, 12)),
    "collatz": ((1, 3), (4, 6), (7, 9), (10, 13), (14, 18)),
    "chase": ((1, 2), (3, 4), (5, 6), (7, 7), (8, 8)),
}
_REWRITTEN = ("sum", "expression", "gcd")
_PAIRS = 10  # of a chase, whatever its level
_INNERMOST = re.compile(r"\((\d+)([-+*])(\d+)\)")
_USED_UP = 200  # draws without a new question, after which there is taken to be none
_LEVEL = re.compile(r"(?<!\d)(\d+)(?:\.0*)?$")
_PAIR = re.compile(r"gcd \d+ \d+")
_BOUND = re.compile(r"(collatz \d+) below \d+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# of each level: a check is added with this probability for every one of 2 n chances, n the number of necessary steps
_CHECKS = (0.3, 0.375, 0.45, 0.525, 0.6)


@dataclass(frozen=True)
class Problem:
    """A question, its exact answer, and how to get there.

    Attributes:
        family, level: of what kind, and how hard, 1 to 5.
        question: the user's message.
        steps: the necessary steps in order, one line each.
        answer: as it has to stand in the box.
    """

    family: str
    level: int
    question: str
    steps: tuple[str, ...]
    answer: str

    @property
    def key(self) -> str:
        """The same for questions that ask the same: a gcd in both orders, a collatz under bounds that end it alike."""
        if _PAIR.fullmatch(self.question):
            return " ".join(sorted(self.question.split()))
        if found := _BOUND.fullmatch(self.question):
            return f"{found[1]} in {self.answer}"
        return self.question

    @property
    def split(self) -> Split:
        """The part this question belongs to, by a hash of its text: 80 % train, 10 % valid, 10 % test.

        The two orders of the numbers of a gcd are one question. Bounds of a collatz that end it alike are not, for the
        embedded reasoner was trained on this split.
        """
        told = self.key if self.family == "gcd" else self.question
        digest = hashlib.sha256(told.encode()).digest()[0] % 10
        return "test" if digest == 0 else "valid" if digest == 1 else "train"

    @property
    def state(self) -> str:
        """What the first step of a sum, an expression or a gcd rewrites; empty for the other families."""
        return self.question.removeprefix(self.family).lstrip() if self.family in _REWRITTEN else ""

    def trace(self, checks: int = 0) -> str:
        """The thought, between the newline after ``<think>`` and ``</think>``: the state, the steps, then ``checks``
        of them again in the same order, over and over."""
        again = (f"Wait {self.steps[i % len(self.steps)]}" for i in range(checks))
        return "".join(f"{line}\n" for line in (self.state, *self.steps, *again) if line)

    def draw_checks(self, random: np.random.Generator, planned: bool = True) -> int:
        """How many checks a trace of this problem has: binomial, on average 0.6 n to 1.2 n by level for n steps.

        ``planned=False`` is the null world, in which their number has nothing to do with the question (0 to 20).
        """
        if not planned:
            return int(random.integers(0, 21))
        return int(random.binomial(2 * len(self.steps), _CHECKS[self.level - 1]))


def draw_problem(family: Family, level: int, split: Split, random: np.random.Generator) -> Problem:
    """A problem of this family, level and part.

    Raises:
        DataError: there is no such family or level.
    """
    if family not in FAMILIES:
        raise DataError(f"There is no family {family!r} of problems; choose from {', '.join(FAMILIES)}.")
    if level not in LEVELS:
        raise DataError(f"level is {level!r}; problems have the levels 1 to 5.")
    low, high = STEPS[family][level - 1]
    while True:
        found = _DRAW[family](int(random.integers(low, high + 1)), random)
        if found is not None and low <= len(found[1]) <= high:
            problem = Problem(family, level, *found)
            if problem.split == split:
                return problem


def draw_problems(
    number: int,
    split: Split,
    seed: int,
    *,
    families: tuple[Family, ...] = FAMILIES,
    levels: tuple[int, ...] = LEVELS,
    by_text: bool = False,
) -> list[Problem]:
    """``number`` problems that ask different things (:attr:`Problem.key`), families and levels in turn.

    No two problems of the validation and the test part ask the same either. A family and level whose
    questions are used up gives way to the others; there are fewer problems than were asked for only where all of them
    are.

    Args:
        number, split, seed, families, levels: of the draw.
        by_text: questions differ by their text alone, both orders of a gcd are two; for what is measured and never
            fitted.
    """
    random = np.random.default_rng((seed, ("train", "valid", "test").index(split)))
    found: dict[str, Problem] = {}
    cells = [(family, level) for level in levels for family in families]
    missed = dict.fromkeys(cells, 0)  # draws of each, one after another, that gave nothing new
    while len(found) < number and cells:
        cell = cells[len(found) % len(cells)]
        problem = draw_problem(*cell, split, random)
        key = problem.question if by_text else problem.key
        new = key not in found and (by_text or _of_this_part(problem))
        missed[cell] = 0 if new else missed[cell] + 1
        if new:
            found[key] = problem
        if missed[cell] == _USED_UP:
            cells.remove(cell)
    return list(found.values())


def _of_this_part(problem: Problem) -> bool:
    """Whether what is asked belongs to the part that the text does: the held-out parts share the starts of collatz."""
    if problem.family != "collatz" or problem.split == "train":
        return True
    return problem.split == ("valid", "test")[hashlib.sha256(problem.key.encode()).digest()[0] % 2]


def same(problems: Sequence[Problem]) -> npt.NDArray[np.int64]:
    """A number for each problem, int64 ``[n]``, the same for those that ask the same, counted as they come."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(problem.key, len(numbers)) for problem in problems], dtype=np.int64)


def read_problems(path: str | os.PathLike[str]) -> list[Problem]:
    """Problems from JSON lines with ``question`` or ``problem``, ``answer``, and if there are ``level`` and ``family``.

    A level may be a number or end in one (``Level 3``). Rows without a level have level 0 and take no part in
    directions between levels.

    Raises:
        DataError: the file is missing or not of this form, or asks one question twice; names the line and the key.
    """
    path, problems = Path(path), []
    asked: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold what else ends a line as it is
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is no object; give one with question and answer.")
        question = row.get("question", row.get("problem"))
        for key, value in (("question", question), ("answer", row.get("answer"))):
            if not isinstance(value, str | int | float) or not str(value).strip():
                raise DataError(f"{path}, line {number}: {key} is {value!r}; it has to be text.")
        if (found := _CONTROL.search(str(question))) is not None:
            raise DataError(
                f"{path}, line {number}: question holds the control character U+{ord(found[0]):04X}; where \\boxed or "
                "\\frac is meant, JSON wants two backslashes."
            )
        if str(question) in asked:  # it could be fitted on and tested on
            raise DataError(f"{path}, line {number} asks what line {asked[str(question)]} does; leave one of them out.")
        asked[str(question)] = number
        level = _level(row.get("level"), f"{path}, line {number}")
        family = str(row.get("family", row.get("subject", path.stem)))
        problems.append(Problem(family, level, str(question), (), str(row["answer"])))
    return problems


def _level(given: object, place: str) -> int:
    """A whole number, or the one that a text ends in; 0 where there is none."""
    text = "" if given is None else str(given).strip()
    try:
        number = float(text)
    except ValueError:
        found = _LEVEL.search(text)
        number = float(found[1]) if found else 0.0
    if not 0 <= number < 1e9 or number != int(number):
        raise DataError(
            f"{place}: level is {text[:40]}; it has to be a whole number, 0 or more, or to end in one; leave "
            "out levels that are not known."
        )
    return int(number)


_Drawn = tuple[str, tuple[str, ...], str]


def _sum(steps: int, random: np.random.Generator) -> _Drawn | None:
    terms = [int(term) for term in random.integers(1, 10, steps + 1)]
    question, lines = "sum " + " ".join(map(str, terms)), []
    while len(terms) > 1:
        terms = [terms[0] + terms[1], *terms[2:]]
        lines.append(" ".join(map(str, terms)))
    return question, tuple(lines), str(terms[0])


def _expression(steps: int, random: np.random.Generator) -> _Drawn | None:
    def build(operations: int) -> str:
        if operations == 0:
            return str(random.integers(1, 10))
        inside = int(random.integers(operations))
        return f"({build(inside)}{'+-*'[random.integers(3)]}{build(operations - 1 - inside)})"

    question, lines = build(steps), []
    text = question
    while (found := _INNERMOST.search(text)) is not None:
        left, sign, right = int(found[1]), found[2], int(found[3])
        value = left + right if sign == "+" else left - right if sign == "-" else left * right
        if not 0 <= value <= 99 or (sign == "*" and max(left, right) > 9):
            return None
        text = text[: found.start()] + str(value) + text[found.end() :]
        lines.append(text)
    return question, tuple(lines), text


def _gcd(steps: int, random: np.random.Generator) -> _Drawn | None:
    pairs = _gcd_pairs()[steps]
    first, second = pairs[int(random.integers(len(pairs)))]
    return f"gcd {first} {second}", _subtractions(first, second), str(math.gcd(first, second))


def _subtractions(first: int, second: int) -> tuple[str, ...]:
    lines = []
    while first != second:
        first, second = (first - second, second) if first > second else (first, second - first)
        lines.append(f"{first} {second}")
    return tuple(lines)


@cache
def _gcd_pairs() -> dict[int, list[tuple[int, int]]]:
    """All pairs below 100, by the number of subtractions they take."""
    pairs: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for first in range(1, 100):
        for second in range(1, 100):
            pairs[len(_subtractions(first, second))].append((first, second))
    return pairs


def _collatz(steps: int, random: np.random.Generator) -> _Drawn | None:
    starts = _collatz_starts()[steps]
    start, below = starts[int(random.integers(len(starts)))]
    lines, value = [], start
    for step in range(1, steps + 1):
        value = _collatz_step(value)
        lines.append(f"{step}:{value}")
    return f"collatz {start} below {below}", tuple(lines), str(steps)


def _collatz_step(value: int) -> int:
    return value // 2 if value % 2 == 0 else 3 * value + 1


@cache
def _collatz_starts() -> dict[int, list[tuple[int, int]]]:
    """Starts below 1000 and bounds below 100, by the steps from one to under the other in three digits."""
    starts: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for start in range(10, 1000):
        value, steps, lowest = start, 0, start
        while value < 1000 and steps < STEPS["collatz"][-1][1] and lowest > 1:
            value, steps = _collatz_step(value), steps + 1
            if value < lowest and value < 1000:
                starts[steps] += [(start, below) for below in range(value + 1, min(lowest, 99) + 1)]
                lowest = value
    return starts


def _chase(steps: int, random: np.random.Generator) -> _Drawn | None:
    letters = [_LETTERS[i] for i in random.permutation(len(_LETTERS))]
    path = letters[: steps + 1]
    rest = letters[steps + 1 :]
    pairs = [(path[i], path[i + 1]) for i in range(steps)]
    while len(pairs) < _PAIRS:  # the rest are chains of their own, of two or three links
        links = min(int(random.integers(1, 4)), _PAIRS - len(pairs), len(rest) - 1)
        pairs += [(rest[i], rest[i + 1]) for i in range(links)]
        rest = rest[links + 1 :]
        if len(rest) < 2 and len(pairs) < _PAIRS:
            return None
    shown_links = [f"{a.upper()}{b}" for a, b in pairs]  # a letter leads on where it is a capital
    shown = " ".join(shown_links[i] for i in random.permutation(len(shown_links)))
    return f"chase {path[0]} in {shown}", tuple(shown_links[:steps]), path[-1]


_DRAW: dict[Family, Callable[[int, np.random.Generator], _Drawn | None]] = {
    "sum": _sum,
    "expression": _expression,
    "gcd": _gcd,
    "collatz": _collatz,
    "chase": _chase,
}
