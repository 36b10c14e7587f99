"""Ranges of problems in one folder: none overwritten, none twice, each problem under its own number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from forethought.data.problems import Problem
from forethought.errors import ArtefactError, DataError
from forethought.reasoners.progress.generation import Generations, default_length
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import LINES, Rollouts

from .conftest import SAMPLING


def test_the_end_of_a_range_is_not_in_it_and_ranges_keep_their_numbers(
    reasoner: Reasoner, problems: list[Problem], tmp_path: Path
) -> None:
    first = Generations.collect(tmp_path, reasoner, problems, SAMPLING, start=0, end=3)
    before = (first.path / LINES).read_bytes()
    Generations.collect(tmp_path, reasoner, problems, SAMPLING, start=3, end=5)
    assert (first.path / LINES).read_bytes() == before
    found = Generations.open(tmp_path)
    assert found.problems == dict(enumerate(problems[:5]))
    pairs = [(number, rollout.sample) for number, rollout in found]
    assert pairs == [(number, sample) for number in range(5) for sample in range(SAMPLING.samples)]
    for number, rollout in found:
        assert rollout.prompt == reasoner.prompt(problems[number].question)


def test_a_problem_cannot_be_generated_twice(reasoner: Reasoner, problems: list[Problem], tmp_path: Path) -> None:
    Generations.collect(tmp_path, reasoner, problems, SAMPLING, start=2, end=5)
    with pytest.raises(ArtefactError, match="holds problems 2 to 4 already"):
        Generations.collect(tmp_path, reasoner, problems, SAMPLING, start=4, end=8)


@pytest.mark.parametrize(("start", "end"), [(5, 5), (-1, 2), (38, 41)])
def test_a_range_has_to_be_part_of_the_problems(
    reasoner: Reasoner, problems: list[Problem], tmp_path: Path, start: int, end: int
) -> None:
    with pytest.raises(DataError, match="problems 0 to 39"):
        Generations.collect(tmp_path, reasoner, problems, SAMPLING, start=start, end=end)


def test_ranges_drawn_otherwise_do_not_belong_together(
    reasoner: Reasoner, problems: list[Problem], tmp_path: Path
) -> None:
    Generations.collect(tmp_path, reasoner, problems, SAMPLING, start=0, end=2)
    with pytest.raises(ArtefactError, match="another sampling"):
        Generations.collect(tmp_path, reasoner, problems, replace(SAMPLING, temperature=0.5), start=2, end=4)


def test_a_killed_run_goes_on_and_loses_and_doubles_nothing(
    reasoner: Reasoner, problems: list[Problem], generated: Path, tmp_path: Path
) -> None:
    whole = Generations.open(generated).ranges[0][1]
    Generations.collect(tmp_path, reasoner, problems, SAMPLING)
    file = tmp_path / "rollouts-00000-00040" / LINES
    text = file.read_bytes()
    file.write_bytes(text[: len(text) * 2 // 3])  # in the middle of a line
    with pytest.raises(ArtefactError, match="finish it"):
        Generations.open(tmp_path)
    again = Generations.collect(tmp_path, reasoner, problems, SAMPLING)
    assert again.rollouts == whole.rollouts
    assert file.read_bytes() == text


def test_rollouts_of_a_collection_are_read_as_they_are(
    reasoner: Reasoner, problems: list[Problem], tmp_path: Path
) -> None:
    made = Rollouts.collect(tmp_path / "rollouts", reasoner, problems[:2], SAMPLING)
    assert [rollout for _, rollout in Generations.open(tmp_path)] == made.rollouts


def test_nothing_generated_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="progress generate"):
        Generations.open(tmp_path)


def test_the_length_by_default_lets_thoughts_end(reasoner: Reasoner) -> None:
    assert default_length(reasoner) == reasoner.context // 2 > 400


def test_a_template_is_known_again_and_needs_a_place_for_the_question(
    reasoner: Reasoner, problems: list[Problem], tmp_path: Path
) -> None:
    Generations.collect(tmp_path, reasoner, problems, SAMPLING, end=2, template="Solve: {problem}")
    found = Generations.open(tmp_path)
    assert found.problems[1].question == f"Solve: {problems[1].question}"
    assert found.settings["template"] == "Solve: {problem}"
    with pytest.raises(ArtefactError, match="another template"):
        Generations.collect(tmp_path, reasoner, problems, SAMPLING, start=2, end=4)
    with pytest.raises(DataError, match="problem"):
        Generations.collect(tmp_path, reasoner, problems, SAMPLING, start=2, end=4, template="Solve it")
