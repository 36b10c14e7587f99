from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.reasoners.grading import boxed, is_correct


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{{a}{{b}}}", "{a}{{b}}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{}", ""),
        (r"\boxed{\left\{x\right.}", r"\left\{x\right."),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("5", None),
        (r"\boxed{5", None),
        ("", None),
    ],
)
def test_the_last_closed_box_is_the_answer(text: str, inside: str | None) -> None:
    assert boxed(text) == inside


@pytest.mark.parametrize("answer", [None, "", " ", "$$", r"\,", r"\ ", ".", r"\text{ }"])
@pytest.mark.parametrize("reference", ["", "0", "A", " "])
def test_an_empty_box_is_never_right(answer: str | None, reference: str) -> None:
    """GPQA was graded by 'is the answer a part of the reference', which nothing always is."""
    assert not is_correct(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("12", "12"),
        ("012", "12"),
        ("12.0", "12"),
        (" 12. ", "12"),
        ("$12$", "12"),
        (r"\$36", "36"),
        ("+12", "12"),
        ("-0", "0"),
        ("1,234", "1234"),
        ("1{,}234,567", "1234567"),
        (r"1\,234", "1234"),
        (r"12,\!345.5", "12345.5"),
        (r"\frac{1}{2}", "0.5"),
        (r"\dfrac{1}{-2}", "-1/2"),
        (r"-\tfrac{2}{4}", "-0.5"),
        (r"2\frac{1}{2}", "5/2"),
        (r"-2\frac{1}{2}", "-2.5"),
        (r"\frac{x}{2}", r"\dfrac{x}{2}"),
        (r"(\tfrac{1}{2}, 3)", "(1/2,3)"),
        (r"\text{yes}", "yes"),
        (r"\left( a, b \right)", "(a,b)"),
    ],
)
def test_two_ways_to_write_the_same(answer: str, reference: str) -> None:
    assert is_correct(answer, reference)
    assert is_correct(reference, answer)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("12", "1"),
        ("1", "12"),  # no substrings
        ("A", "a"),
        ("1 2", "12"),
        ("1,2", "12"),
        ("12,34", "1234"),
        ("(1,234)", "1234"),
        (r"2\frac{1}{2}", "21/2"),
        ("1/0", "0"),
        ("0.333", "1/3"),
        ("1e2", "100"),
        ("nan", "0"),
        ("inf", "0"),
    ],
)
def test_what_is_not_the_same(answer: str, reference: str) -> None:
    assert not is_correct(answer, reference)
    assert not is_correct(reference, answer)


def test_a_huge_number_is_no_reason_to_wait() -> None:
    """An exponent of nine digits would be worked out to the last of a thousand million zeros."""
    assert not is_correct("1e999999999", "1")
    assert not is_correct("1" * 100_000, "1")
    assert is_correct("1" * 100_000, "1" * 100_000)


@given(st.integers(), st.integers(1))
def test_numbers_are_right_however_they_are_written(top: int, bottom: int) -> None:
    assert is_correct(f"{top:,}", str(top))
    assert is_correct(rf"\frac{{{top}}}{{{bottom}}}", f"{top}/{bottom}")
    assert is_correct(f"{3 * top}/{3 * bottom}", f"{top}/{bottom}")
    assert not is_correct(str(top + 1), str(top))


def box_by_box(text: str) -> str | None:
    """From the last box to the first, braces counted."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start:position]
    return None


pieces = st.lists(st.sampled_from(["\\boxed{", "{", "}", "1", ",", "/", "\\frac", " ", "a", ".", "-", "$"])).map(
    "".join
)


@given(pieces, pieces)
def test_no_text_breaks_it(answer: str, reference: str) -> None:
    assert boxed(answer) == box_by_box(answer)
    assert is_correct(answer, reference) == is_correct(reference, answer)


def test_a_model_that_opens_boxes_for_ever_is_graded_at_once() -> None:
    assert boxed("\\boxed{" * 100_000) is None
