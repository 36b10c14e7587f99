"""What a caller hands over, refused in one sentence where it is no value of its kind."""

from __future__ import annotations

from numbers import Integral
from typing import Any, get_args

from forethought.errors import DataError

MOST_THREADS = 1024
MOST_STEPS = 10_000  # of a thought; far beyond where one still gains, and a row of memory each


def check_whole(name: str, value: object, least: int = 0, most: int = 2**63 - 1) -> None:
    """Refuse what is no whole number, or one out of bounds.

    Args:
        name: of the argument.
        value: what was given for it.
        least: the smallest number that fits.
        most: the greatest.

    Raises:
        DataError: it is another kind of value, less than ``least`` or more than ``most``.
    """
    if not isinstance(value, Integral) or int(value) < least:
        raise DataError(f"{name} is {value!r}; it has to be a whole number of {least} or more.")
    if int(value) > most:
        raise DataError(f"{name} is {value!r}; it has to be a whole number of {most} or less.")


def check_text(name: str, value: str) -> None:
    """Refuse what cannot be written as UTF-8, such as the name of a file that is not.

    Args:
        name: of the argument.
        value: what was given for it.

    Raises:
        DataError: it has a surrogate, half a character.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} is {value!r}, which is not UTF-8 text; rename it.") from error


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse what is none of the choices.

    Args:
        name: of the argument.
        value: what was given for it.
        choices: a ``Literal`` type.

    Raises:
        DataError: it is another value.
    """
    if value not in get_args(choices):
        raise DataError(f"{name} is {value!r}; it has to be {' or '.join(map(repr, get_args(choices)))}.")
