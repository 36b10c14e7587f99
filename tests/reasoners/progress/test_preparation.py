"""The state that produced a token, in the row of that token; what was left out is told; problems are never divided."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from forethought.data.problems import Problem
from forethought.errors import ArtefactError, DataError
from forethought.instruments.phases import Delimiters
from forethought.reasoners.progress.generation import Generations
from forethought.reasoners.progress.preparation import PARTS, Prepared, Thoughts, split
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.strength.collection import deal

from .conftest import SAMPLING


@pytest.fixture(scope="module")
def prepared(reasoner: Reasoner, generated: Path) -> Prepared:
    return Prepared.make(Generations.open(generated), reasoner, generated)


def test_rows_are_the_states_that_produced_the_tokens_the_first_at_the_end_of_the_prompt(
    reasoner: Reasoner, generated: Path, prepared: Prepared
) -> None:
    finished = [(number, rollout) for number, rollout in Generations.open(generated) if rollout.ended]
    states, thoughts = prepared.states(), Thoughts(prepared.states())
    assert len(thoughts) == len(finished) > 50
    for index in (0, 7, len(finished) - 1):
        number, rollout = finished[index]
        with torch.no_grad():
            ids = torch.tensor([rollout.prompt + rollout.ids])
            hidden = reasoner.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        length = rollout.thinking_tokens + 1  # the mark that closes the thought is the last token of it
        first = len(rollout.prompt) - 1  # not position 0, as the first published version had it
        torch.testing.assert_close(thoughts[index], hidden[first : first + length], rtol=1e-4, atol=1e-4)
        rows = np.flatnonzero(states.sequence == index)
        assert states.produced[rows].tolist() == rollout.ids[:length]
        assert states.produced[rows[-1]] == reasoner.delimiters.close[0]
        assert (thoughts.problem[index], thoughts.sample[index]) == (number, rollout.sample)
        assert thoughts.read(index).tolist() == [rollout.prompt[-1], *rollout.ids[: length - 1]]


def test_unfinished_thoughts_are_counted_and_told(generated: Path, prepared: Prepared) -> None:
    rollouts = [rollout for _, rollout in Generations.open(generated)]
    cut = sum(not rollout.ended for rollout in rollouts)
    assert 0 < cut == prepared.left_out["unfinished"] == len(rollouts) - len(Thoughts(prepared.states()))
    assert prepared.left_out["share"] == pytest.approx(cut / len(rollouts))
    assert f"Left out: {cut} thoughts" in prepared.told()[1]


def test_another_mark_than_when_they_were_generated_ends_the_thoughts(
    reasoner: Reasoner, generated: Path, tmp_path: Path
) -> None:
    rollouts = [rollout for _, rollout in Generations.open(generated)]
    marks = {reasoner.delimiters.close[0], *reasoner.stops}
    tokens = Counter(token for rollout in rollouts for token in set(rollout.ids) if token not in marks)
    mark = tokens.most_common(1)[0][0]
    other = replace(reasoner, delimiters=Delimiters(reasoner.delimiters.open, (mark,)))
    found = Prepared.make(Generations.open(generated), other, tmp_path, train_split_ratio=0.5)
    wanted = [rollout.ids.index(mark) + 1 for rollout in rollouts if mark in rollout.ids]
    thoughts = Thoughts(found.states())
    assert thoughts.lengths.tolist() == wanted
    assert all(found.states().produced[thoughts._bounds[1:] - 1] == mark)
    assert found.left_out["unfinished"] == len(rollouts) - len(wanted) > 0
    assert Prepared.open(tmp_path).settings["delimiters"]["close"] == [mark]


def test_a_problem_is_in_one_part_and_every_part_is_known_again(prepared: Prepared, generated: Path) -> None:
    dealt = [number for part in PARTS for number in prepared.parts[part]]
    assert sorted(dealt) == list(range(40))
    assert [len(prepared.parts[part]) for part in PARTS] == [24, 8, 8]
    again = Prepared.open(generated)
    assert again == prepared
    assert split(prepared.problems, 0.8, 42) == prepared.parts != split(prepared.problems, 0.8, 43)


def test_what_asks_the_same_is_split_into_one_part(prepared: Prepared) -> None:
    turned = {40 + n: replace(p, question=" ".join(p.question.split()[i] for i in (0, 2, 1)))
              for n, p in prepared.problems.items() if p.family == "gcd"}  # fmt: skip
    found = split(prepared.problems | turned, 0.8, 42)
    assert len(turned) == 8
    assert sorted(n for part in found.values() for n in part) == sorted([*prepared.problems, *turned])
    assert all((n in part) == (n - 40 in part) for part in found.values() for n in turned)


def test_a_collection_keeps_its_parts(
    reasoner: Reasoner, problems: list[Problem], generated: Path, tmp_path: Path
) -> None:
    """So that what is learned from it can be tested on the problems that it tests on."""
    shutil.copytree(generated / "rollouts-00000-00040", tmp_path / "rollouts")
    found = Prepared.make(Generations.open(tmp_path), reasoner, tmp_path)
    parts = deal(problems, SAMPLING.seed)
    for mine, theirs in (("fit", "fit"), ("validation", "choose"), ("test", "test")):
        assert found.parts[mine] == parts[theirs].tolist()
    assert found.provenance["ratio"] is None
    with pytest.raises(DataError, match=r"keeps the parts of its collection; leave the ratio 0\.8 out"):
        Prepared.make(Generations.open(tmp_path), reasoner, tmp_path / "other", train_split_ratio=0.8)


@pytest.mark.parametrize(("number", "ratio"), [(7, 0.8), (40, 1.0), (40, 0.01)])
def test_a_split_that_leaves_a_part_empty_is_refused(number: int, ratio: float) -> None:
    with pytest.raises(DataError, match="cannot be dealt out"):
        split({n: Problem("", 0, str(n), (), "") for n in range(number)}, ratio, 0)


def test_thoughts_that_never_end_are_told(reasoner: Reasoner, generated: Path, tmp_path: Path) -> None:
    found = Generations.open(generated)
    short = [rollout for _, rollout in found if not rollout.ended]
    found.ranges[0][1].rollouts[:] = short
    with pytest.raises(DataError, match="larger --max-new-tokens"):
        Prepared.make(found, reasoner, tmp_path)


def test_a_damaged_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="progress prepare"):
        Prepared.open(tmp_path)
    (tmp_path / "prepared.json").write_text('{"format": 1}')
    with pytest.raises(ArtefactError, match="damaged"):
        Prepared.open(tmp_path)
