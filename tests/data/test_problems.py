"""Every trace is worked again by other means: each step has to follow from what stands before it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from forethought.data.problems import (
    FAMILIES,
    HIDDEN,
    LEVELS,
    STEPS,
    Problem,
    draw_problem,
    draw_problems,
    read_problems,
)
from forethought.errors import DataError
from forethought.reasoners.tokenizer import build_tokenizer

SEEDS = st.integers(0, 2**32 - 1)
any_family, any_level = st.sampled_from(FAMILIES), st.sampled_from(LEVELS)


def drawn(family: str, level: int, seed: int, split: str = "train") -> Problem:
    return draw_problem(family, level, split, np.random.default_rng(seed))  # type: ignore[arg-type]


def value(text: str) -> int:
    """Of a bracketed expression, read from left to right with a stack."""
    stack: list[list[object]] = [[]]
    for token in re.findall(r"\d+|[-+*()]", text):
        if token == "(":
            stack.append([])
        elif token == ")":
            left, sign, right = stack.pop()
            assert isinstance(left, int)
            assert isinstance(right, int)
            stack[-1].append({"+": left + right, "-": left - right, "*": left * right}[str(sign)])
        else:
            stack[-1].append(int(token) if token.isdigit() else token)
    (result,) = stack[0]
    assert isinstance(result, int)
    return result


for _made in ("gcd", "collatz"):
    drawn(_made, 1, 0)  # the first of each fills a table, which is no part of what a drawn example may take


@given(any_level, SEEDS)
def test_every_step_of_a_sum_adds_the_first_two(level: int, seed: int) -> None:
    problem = drawn("sum", level, seed)
    before = [int(term) for term in problem.question.removeprefix("sum ").split()]
    total = sum(before)
    for step in problem.steps:
        after = [int(term) for term in step.split()]
        assert after == [before[0] + before[1], *before[2:]]
        before = after
    assert before == [total] == [int(problem.answer)]


@given(any_level, SEEDS)
def test_every_step_of_an_expression_works_out_one_bracket(level: int, seed: int) -> None:
    problem = drawn("expression", level, seed)
    before = problem.question
    for step in problem.steps:
        places = list(re.finditer(r"\(\d+[-+*]\d+\)", before))
        assert step in {before[: m.start()] + str(value(m[0])) + before[m.end() :] for m in places}
        assert value(step) == value(before)
        assert all(0 <= int(number) <= 99 for number in re.findall(r"\d+", step))
        before = step
    assert before == problem.answer == str(value(problem.question))


@given(any_level, SEEDS)
def test_every_step_of_a_gcd_takes_the_smaller_from_the_larger(level: int, seed: int) -> None:
    problem = drawn("gcd", level, seed)
    first, second = map(int, problem.question.removeprefix("gcd ").split())
    greatest = max(d for d in range(1, 200) if first % d == 0 and second % d == 0)
    for step in problem.steps:
        assert first != second
        pair = tuple(map(int, step.split()))
        first, second = (first - second, second) if first > second else (first, second - first)
        assert pair == (first, second)
    assert first == second == greatest == int(problem.answer)


@given(any_level, SEEDS)
def test_every_step_of_a_collatz_is_the_next_and_the_last_is_the_first_below(level: int, seed: int) -> None:
    problem = drawn("collatz", level, seed)
    start, below = map(int, re.findall(r"\d+", problem.question))
    now, number = start, 0
    while number == 0 or now >= below:
        now, number = (now // 2 if now % 2 == 0 else 3 * now + 1), number + 1
        assert problem.steps[number - 1] == f"{number}:{now}"
        assert now < 1000
    assert number == len(problem.steps) == int(problem.answer)


@given(any_level, SEEDS)
def test_every_step_of_a_chase_is_one_of_its_arrows_and_none_leads_on(level: int, seed: int) -> None:
    problem = drawn("chase", level, seed)
    start, arrows = re.fullmatch(r"chase (\w) in (.*)", problem.question).groups()  # type: ignore[union-attr]
    pairs = {arrow[0].lower(): arrow[1] for arrow in arrows.split()}
    assert len(pairs) == len(arrows.split())  # one way on from everywhere
    at = start
    for step in problem.steps:
        assert step == f"{at.upper()}{pairs[at]}"
        at = pairs[at]
    assert at == problem.answer
    assert at not in pairs


@given(any_family, any_level, SEEDS, st.sampled_from(["train", "valid", "test"]))
def test_levels_hold_their_steps_and_splits_their_questions(family: str, level: int, seed: int, split: str) -> None:
    problem = drawn(family, level, seed, split)
    low, high = STEPS[family][level - 1]  # type: ignore[index]
    assert low <= len(problem.steps) <= high
    assert (problem.family, problem.level, problem.split) == (family, level, split)
    assert problem == drawn(family, level, seed, split)


def test_levels_do_not_overlap() -> None:
    for ranges in STEPS.values():
        ends = [end for pair in ranges for end in pair]
        assert ends == sorted(ends)
        assert all(high < low for (_, high), (low, _) in pairwise(ranges))


def test_splits_are_disjoint_and_stay_where_they_are() -> None:
    parts = {split: {p.question for p in draw_problems(150, split, 1)} for split in ("train", "valid", "test")}  # type: ignore[arg-type]
    assert sum(map(len, parts.values())) == 450
    assert len(set.union(*parts.values())) == 450
    # a hash of the text, whatever the release: a model that was trained once must not have seen the test part
    known = {"gcd 98 41": "train", "sum 1 2": "train", "gcd 9 6": "test", "sum 2 2": "test"}
    assert {question: Problem("", 0, question, (), "").split for question in known} == known
    # one question in two orders is one question
    assert all(
        Problem("gcd", 0, f"gcd {a} {b}", (), "").split == Problem("gcd", 0, f"gcd {b} {a}", (), "").split
        for a in range(1, 100, 7) for b in range(1, 100)
    )  # fmt: skip


def test_what_asks_the_same_has_one_key_and_is_drawn_once() -> None:
    ways = [("gcd 98 41", "1", "gcd 41 98", "1"), ("collatz 19 below 15", "6", "collatz 19 below 16", "6")]
    for one, first, other, second in ways:
        assert Problem("", 0, one, (), first).key == Problem("mine", 0, other, (), second).key
    apart = ["gcd 98 42", "gcd 9 8 41", "What is gcd 98 41", "collatz 19 below 15", "sum 1 2", "sum 2 1"]
    assert len({Problem("gcd", 0, question, (), str(n)).key for n, question in enumerate(apart)}) == len(apart)
    held_out = [draw_problems(400, split, 0, families=("gcd", "collatz")) for split in ("valid", "test")]  # type: ignore[arg-type]
    keys = [{p.key for p in problems} for problems in held_out]
    assert [len(some) for some in keys] == [400, 400]
    assert not keys[0] & keys[1]


def test_a_set_is_balanced_different_and_the_same_again() -> None:
    problems = draw_problems(250, "test", 3)
    assert problems == draw_problems(250, "test", 3)
    assert problems != draw_problems(250, "test", 4)
    assert len({problem.question for problem in problems}) == 250
    assert set(Counter((problem.family, problem.level) for problem in problems).values()) == {10}


def test_a_used_up_cell_gives_way_to_the_others() -> None:
    """The easiest gcds of the test part are some tens; asking for 40 of each kind used to end at seven hundred."""
    problems = draw_problems(500, "test", 0, families=("gcd", "chase"), levels=(1, 2))
    assert len({problem.question for problem in problems}) == 500
    sizes = Counter((problem.family, problem.level) for problem in problems)
    assert sizes["gcd", 1] < 50 < sizes["chase", 1]


def test_there_are_no_more_problems_than_there_are() -> None:
    def steps(a: int, b: int) -> int:
        return 0 if a == b else 1 + steps(min(a, b), abs(a - b))

    pairs = [(a, b) for a in range(1, 100) for b in range(1, 100) if 2 <= steps(a, b) <= 3]
    there = {f"gcd {a} {b}" for a, b in pairs if Problem("gcd", 0, f"gcd {a} {b}", (), "").split == "test"}
    drawn = draw_problems(1000, "test", 0, families=("gcd",), levels=(1,))
    assert {p.key for p in drawn} == {Problem("gcd", 0, question, (), "").key for question in there}
    assert len(drawn) == len({p.key for p in drawn}) < len(there)


def test_the_length_of_a_question_tells_the_steps_in_shown_families_only() -> None:
    tokenizer, random = build_tokenizer(), np.random.default_rng(0)
    for family in FAMILIES:
        problems = [draw_problem(family, level, "train", random) for level in LEVELS for _ in range(100)]
        lengths = [len(tokenizer.encode(problem.question)) for problem in problems]
        if len(set(lengths)) == 1:
            assert family in HIDDEN
            continue
        rho = spearmanr(lengths, [len(problem.steps) for problem in problems]).statistic
        assert abs(rho) < 0.3 if family in HIDDEN else rho > 0.9, family


@pytest.mark.parametrize(
    ("family", "question", "state"),
    [
        ("sum", "sum 1 2 3", "1 2 3"),
        ("expression", "((1+2)*3)", "((1+2)*3)"),
        ("gcd", "gcd 9 6", "9 6"),
        ("collatz", "collatz 27 below 20", ""),
        ("chase", "chase u in Jq Ua", ""),
    ],
)
def test_a_thought_says_first_what_it_rewrites(family: str, question: str, state: str) -> None:
    problem = Problem(family, 1, question, ("step",), "")
    assert problem.state == state
    assert problem.trace().splitlines() == [*([state] if state else []), "step"]


def test_checks_repeat_right_steps_and_are_as_many_as_said() -> None:
    problem = Problem("sum", 2, "sum 1 2 3 4", ("3 3 4", "6 4", "10"), "10")
    assert problem.trace() == "1 2 3 4\n3 3 4\n6 4\n10\n"
    assert problem.trace(4) == "1 2 3 4\n3 3 4\n6 4\n10\nWait 3 3 4\nWait 6 4\nWait 10\nWait 3 3 4\n"
    random = np.random.default_rng(0)
    for level, share in zip(LEVELS, (0.6, 0.75, 0.9, 1.05, 1.2), strict=True):
        checks = [Problem("", level, "", ("",) * 10, "").draw_checks(random) for _ in range(2000)]
        assert np.mean(checks) == pytest.approx(10 * share, rel=0.03)
        null = [Problem("", level, "", ("",) * level, "").draw_checks(random, planned=False) for _ in range(2000)]
        assert np.mean(null) == pytest.approx(10, abs=0.5)
        assert (min(null), max(null)) == (0, 20)
    assert math.isclose(
        np.mean([Problem("", 1, "", ("",), "").draw_checks(random) for _ in range(4000)]), 0.6, abs_tol=0.05
    )


def test_there_is_no_such_family_or_level() -> None:
    for family, level, words in (("sums", 1, "no family 'sums'"), ("sum", 6, "level is 6")):
        with pytest.raises(DataError, match=words):
            drawn(family, level, 0)


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_problems_of_a_user_are_read(tmp_path: Path) -> None:
    rows = [
        {"question": "1+1?", "answer": 2},
        {"problem": "a\u2028b", "answer": "x", "level": "Level 3", "subject": "Algebra"},
        "",
        {"question": "c", "answer": "y", "level": 4.0, "family": "own"},
        {"question": "d", "answer": "z", "level": "Level ?"},
        {"question": "e", "answer": "z", "level": 12},
    ]
    path = written(tmp_path / "mine.jsonl", *rows)
    path.write_text(path.read_text().replace("\\u2028", "\u2028"), encoding="utf-8")  # as JSON may hold it
    found = read_problems(path)
    assert [(p.family, p.level, p.question, p.answer) for p in found] == [
        ("mine", 0, "1+1?", "2"),
        ("Algebra", 3, "a\u2028b", "x"),
        ("own", 4, "c", "y"),
        ("mine", 0, "d", "z"),
        ("mine", 12, "e", "z"),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is no object"),
        ({"answer": "1"}, "line 2: question is None"),
        ({"question": "x"}, "line 2: answer is None"),
        ({"question": "x", "answer": " "}, "line 2: answer is ' '"),
        ({"question": ["x"], "answer": "1"}, "line 2: question is"),
        ({"question": "first", "answer": "1"}, "line 2 asks what line 1 does"),
        # "\boxed" in JSON is a backspace and "oxed", which the original asked of every problem
        ('{"question": "put it in \\boxed{}", "answer": "1"}', r"U\+0008; where .* two backslashes"),
        ('{"question": "what is \\frac{1}{2}", "answer": "1"}', r"U\+000C"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, row: Any, words: str) -> None:
    path = written(tmp_path / "p.jsonl", {"question": "first", "answer": "1"}, row)
    with pytest.raises(DataError, match=words):
        read_problems(path)


def test_there_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_problems(tmp_path / "none.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_problems(tmp_path / "bytes.jsonl")


@pytest.mark.parametrize("level", [-1, 3.5, "3.25", "-1", 10**30, float("nan")])
def test_a_level_that_is_no_whole_number_is_refused(tmp_path: Path, level: object) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "1", "level": level}), encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1: level is .* whole number"):
        read_problems(path)
