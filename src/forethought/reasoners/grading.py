"""Where a text's thought ends, what it answers, and whether that is right."""

from __future__ import annotations

import re
from fractions import Fraction

_BRACES = re.compile(r"\\boxed\s*\{|\\?[{}]")
_SPACING = re.compile(r"\\[,;:! ]|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\?\$|(?<!\d)\s+|\s+(?!\d)")
_WRAPPER = re.compile(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}")
_FRACTION = re.compile(r"(?<!\d)\\frac\{([+-]?\d+)\}\{([+-]?\d+)\}")
_MIXED = re.compile(r"([+-]?)(\d+)\\frac\{(\d+)\}\{(\d+)\}")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:(?:,|\{,\})\d{3})+(?:\.\d*)?")
# no exponents: a model that writes 1e999999999 would keep the grader busy for ever
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:/([+-]?\d+))?", re.ASCII)
_DIGITS = 1000  # of a number; Python refuses to read more than a few thousand


def boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{…}`` of a text, braces balanced; None where there is none that is closed."""
    found, inside = -1, None
    opened: list[int] = []  # where what is open began; -1 for braces of no box
    for mark in _BRACES.finditer(text):
        if mark[0] in (r"\{", r"\}"):
            continue  # a brace that is shown
        if mark[0] != "}":
            opened.append(mark.end() if len(mark[0]) > 1 else -1)
        elif opened and (start := opened.pop()) > found:
            found, inside = start, text[start : mark.start()]
    return inside


def is_correct(answer: str | None, reference: str) -> bool:
    """Whether an answer is the reference: as numbers where both are, otherwise letter by letter without spacing.

    An empty or missing answer is never right.
    """
    ours, theirs = _normal(answer or ""), _normal(reference)
    if not ours:
        return False
    numbers = _number(ours), _number(theirs)
    return numbers[0] == numbers[1] if None not in numbers else ours == theirs


def _normal(text: str) -> str:
    plain = re.sub(r"\\[dt]frac", r"\\frac", _SPACING.sub("", _WRAPPER.sub(r"\1", text)))
    return _FRACTION.sub(r"\1/\2", plain).rstrip(".")


def _number(text: str) -> Fraction | None:
    if len(text) > _DIGITS:
        return None
    if (mixed := _MIXED.fullmatch(text)) is not None:  # 2 1/2 is two and a half, not 21 halves
        sign, whole, top, bottom = mixed.groups()
        return Fraction(f"{sign}{int(whole) * int(bottom) + int(top)}") / int(bottom) if int(bottom) else None
    if _THOUSANDS.fullmatch(text) is not None:
        text = re.sub(r"[,{}]", "", text)
    found = _NUMBER.fullmatch(text)
    if found is None or int(found[2] or 1) == 0:
        return None
    return Fraction(found[1]) / int(found[2] or 1)
