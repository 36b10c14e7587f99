from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forethought.data.problems import Problem
from forethought.errors import ArtefactError, DataError
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import Rollouts, Sampling
from forethought.reasoners.strength.collection import LEAST, PARTS, Collection, deal
from tests.reasoners.tiny import problems, tiny

SAMPLING = Sampling(samples=2, max_new_tokens=6, temperature=1.0, seed=5, batch_size=16)


@pytest.fixture(scope="module")
def model() -> Reasoner:
    return tiny(end=4.0)


@pytest.fixture(scope="module")
def collection(model: Reasoner, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return Collection.collect(tmp_path_factory.mktemp("c") / "c", model, problems(LEAST), SAMPLING)


def test_parts_are_disjoint_whole_and_stay(collection: Collection) -> None:
    parts = [collection.part(name).tolist() for name in PARTS]
    assert sorted(index for part in parts for index in part) == list(range(LEAST))
    assert [len(part) for part in parts] == [12, 5, 7]
    again = Collection.open(collection.path)
    assert [again.part(name).tolist() for name in PARTS] == parts
    # another seed deals otherwise
    settings = {**again.rollouts.settings, "sampling": dataclasses.asdict(dataclasses.replace(SAMPLING, seed=6))}
    other = dataclasses.replace(again, rollouts=Rollouts(again.path, settings, again.problems, []))
    assert other.part("fit").tolist() != parts[0]


def test_what_asks_the_same_is_dealt_into_one_part() -> None:
    pairs = [(a, b) for a in range(2, 12) for b in range(a + 1, a + 4)]
    asked = [Problem("gcd", 1, f"gcd {a} {b}", (), "") for a, b in [*pairs, *((b, a) for a, b in pairs)]]
    asked += [
        Problem("collatz", 1, f"collatz {start} below {start - by}", (), "1") for start in (16, 40) for by in (2, 4)
    ]
    parts = deal(asked, 3)
    assert sorted(index for rows in parts.values() for index in rows) == list(range(len(asked)))
    keys = [{asked[index].key for index in rows} for rows in parts.values()]
    assert [len(some) for some in keys] == [16, 6, 10]
    assert len(set.union(*keys)) == 32


def test_states_are_of_the_prompts_that_were_answered(collection: Collection, model: Reasoner) -> None:
    """The original read its states on a prompt with other spaces than the one that gave the lengths."""
    assert len(collection.states) == LEAST
    assert collection.states.problem.tolist() == list(range(LEAST))
    first = {rollout.problem: rollout.prompt for rollout in collection.rollouts.rollouts}
    assert collection.states.position.tolist() == [len(first[index]) - 1 for index in range(LEAST)]
    # the position is said: the newline after the mark
    assert {model.tokenizer.decode([token]) for token in collection.states.token} == {"\n"}
    site = collection.states.sites[-1]
    hidden: Any = model.model(input_ids=torch.tensor([first[4]]), output_hidden_states=True).hidden_states
    assert np.allclose(collection.states.at(site)[4], hidden[-1][0, -1].detach().numpy(), atol=1e-5)


def test_sites_are_in_the_order_of_the_network(collection: Collection) -> None:
    assert collection.states.sites == (-1, 0, 1, "norm")  # never that of file names


def test_lengths_are_a_row_a_problem(collection: Collection) -> None:
    tokens, censored = collection.lengths()
    assert tokens.shape == censored.shape == (LEAST, 2)
    for rollout in collection.rollouts.rollouts:
        assert tokens[rollout.problem, rollout.sample] == rollout.thinking_tokens
        assert censored[rollout.problem, rollout.sample] == (not rollout.ended)


def test_stopped_between_rollouts_and_states_it_goes_on(
    collection: Collection, model: Reasoner, tmp_path: Path
) -> None:
    Rollouts.collect(tmp_path / "rollouts", model, problems(LEAST), SAMPLING)
    with pytest.raises(ArtefactError, match="no states yet; finish it"):
        Collection.open(tmp_path)
    again = Collection.collect(tmp_path, model, problems(LEAST), SAMPLING)
    assert again.rollouts.rollouts == collection.rollouts.rollouts
    assert np.array_equal(again.states.at(1), collection.states.at(1))
    assert Collection.open(tmp_path).provenance() == collection.provenance()


def test_states_of_something_else_are_refused(collection: Collection, model: Reasoner, tmp_path: Path) -> None:
    other = Collection.collect(tmp_path / "a", tiny(seed=9), problems(LEAST), SAMPLING)
    Rollouts.collect(tmp_path / "b" / "rollouts", model, problems(LEAST), SAMPLING)
    (other.path / "states").rename(tmp_path / "b" / "states")
    with pytest.raises(ArtefactError, match="states of other prompts"):
        Collection.open(tmp_path / "b")


def test_too_few_problems_are_refused_before_any_is_answered(model: Reasoner, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"23 different problems; .* at least {LEAST}"):
        Collection.collect(tmp_path / "c", model, [*problems(LEAST - 1), problems(1)[0]], SAMPLING)
    assert not (tmp_path / "c").exists()
    with pytest.raises(ArtefactError, match="holds no collection"):
        Collection.open(tmp_path / "c")


# ---------------------------------------------------------------------------------------------------- a user's problems
