"""Where a text's thought ends, what it answers, and whether that is right."""

from __future__ import annotations

import re
from fractions import Fraction

_SPACING = re.compile(r"\\[,;:! ]|\\left|\\right|\\displaystyle|[\s$]")
_WRAPPER = re.compile(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(-?\d+)\}")


def boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{…}`` of a text, braces balanced; None where there is none that is closed."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start:position]
    return None


def is_correct(answer: str | None, reference: str) -> bool:
    """Whether an answer is the reference: as numbers where both are, otherwise letter by letter without spacing.

    An empty or missing answer is never right.
    """
    if answer is None or not answer.strip():
        return False
    ours, theirs = _normal(answer), _normal(reference)
    numbers = _number(ours), _number(theirs)
    return numbers[0] == numbers[1] if None not in numbers else ours == theirs


def _normal(text: str) -> str:
    return _SPACING.sub("", _WRAPPER.sub(r"\1", _FRACTION.sub(r"\1/\2", text))).rstrip(".")


def _number(text: str) -> Fraction | None:
    try:
        return Fraction(re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text))
    except (ValueError, ZeroDivisionError):
        return None
