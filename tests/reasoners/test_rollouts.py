from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.data.problems import Problem
from forethought.errors import ArtefactError
from forethought.instruments.phases import Delimiters
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import LINES, SETTINGS, Rollouts, Sampling, grade, lengths, roll_out
from tests.conftest import REPOSITORY
from tests.reasoners.tiny import problems, tiny

SAMPLING = Sampling(samples=3, max_new_tokens=10, temperature=1.0, top_p=1.0, seed=2, batch_size=8)
PROBLEMS = problems(12)
# kills itself where the fourth batch is about to be answered
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import Rollouts
from tests.reasoners.test_rollouts import PROBLEMS, SAMPLING, reasoner

calls, generate = [], Reasoner.generate
def counted(self, *args, **options):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return generate(self, *args, **options)

Reasoner.generate = counted
Rollouts.collect(sys.argv[1], reasoner(), PROBLEMS, SAMPLING)
"""


def reasoner() -> Reasoner:
    return tiny(end=4.0, stop=2.0)


@pytest.fixture(scope="module")
def model() -> Reasoner:
    return reasoner()


@pytest.fixture(scope="module")
def whole(model: Reasoner, tmp_path_factory: pytest.TempPathFactory) -> Rollouts:
    return Rollouts.collect(tmp_path_factory.mktemp("rollouts") / "whole", model, PROBLEMS, SAMPLING)


@pytest.fixture
def copy(whole: Rollouts, tmp_path: Path) -> Path:
    """The finished folder, to be damaged."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in whole.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_every_problem_has_every_sample_once_and_is_graded_as_said(whole: Rollouts, model: Reasoner) -> None:
    assert [(r.problem, r.sample) for r in whole.rollouts] == [(i, j) for i in range(12) for j in range(3)]
    assert {r.ended for r in whole.rollouts} == {True, False}
    close = model.delimiters.close[0]
    for rollout in whole.rollouts:
        assert rollout.prompt == model.prompt(PROBLEMS[rollout.problem].question)
        assert rollout.ended == (close in rollout.ids)
        # the reasoning of the generated ids, neither the answer with it nor a text encoded anew
        assert rollout.thinking_tokens == (rollout.ids.index(close) if rollout.ended else len(rollout.ids))
        assert len(rollout.ids) <= SAMPLING.max_new_tokens
        assert rollout.correct <= rollout.ended
    assert len({tuple(r.ids) for r in whole.rollouts}) > 30  # samples are draws of their own
    tokens, censored = lengths(whole.rollouts, 12)
    assert sum(map(sum, censored)) == sum(not r.ended for r in whole.rollouts)
    assert sum(map(sum, tokens)) == sum(r.thinking_tokens for r in whole.rollouts)


def test_an_answer_in_the_thought_is_none(model: Reasoner) -> None:
    def graded(text: str) -> dict[str, Any]:
        return grade(model, Problem("sum", 1, "sum 1 2", (), "3"), model.tokenizer.encode(text))

    right = {"thinking_tokens": 2, "ended": True, "answer": "3", "correct": True}
    assert graded("3\n</think>\n\\boxed{3}<|im_end|>") == right
    assert graded("3\n</think>\n\\boxed{4}") == right | {"answer": "4", "correct": False}
    assert graded("\\boxed{3}</think>\nthree") == {
        "thinking_tokens": 3, "ended": True, "answer": None, "correct": False,
    }  # fmt: skip
    assert graded("\\boxed{3}") == {"thinking_tokens": 3, "ended": False, "answer": None, "correct": False}
    assert not graded("</think>\\boxed{}")["correct"]


@pytest.mark.slow
def test_killed_and_begun_again_it_loses_nothing_and_doubles_nothing(
    whole: Rollouts, model: Reasoner, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(out), str(REPOSITORY)]
    assert subprocess.run(command, timeout=300, capture_output=True).returncode == -signal.SIGKILL
    written = (out / LINES).read_text().splitlines()
    assert len(written) == 24
    with pytest.raises(ArtefactError, match="24 of 36 rollouts; finish it"):
        Rollouts.open(out)
    again = Rollouts.collect(out, model, PROBLEMS, SAMPLING)
    assert again.rollouts == whole.rollouts
    assert (out / LINES).read_bytes() == (whole.path / LINES).read_bytes()
    assert again.digest == whole.digest


@pytest.mark.parametrize("cut", [0, 1, 100, 5000, -1, -100])
def test_wherever_the_file_was_cut_off_it_is_made_whole(copy: Path, whole: Rollouts, model: Reasoner, cut: int) -> None:
    text = (copy / LINES).read_bytes()
    (copy / LINES).write_bytes(text[:cut])
    assert Rollouts.collect(copy, model, PROBLEMS, SAMPLING).rollouts == whole.rollouts
    assert (copy / LINES).read_bytes() == text


def test_a_finished_folder_is_not_touched(copy: Path, model: Reasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in copy.iterdir()}
    monkeypatch.setattr(Reasoner, "generate", lambda *args, **options: pytest.fail("nothing is left to do"))
    Rollouts.collect(copy, model, PROBLEMS, SAMPLING)
    # by another path it is the same model
    Rollouts.collect(copy, dataclasses.replace(model, name="elsewhere"), PROBLEMS, SAMPLING)
    assert {file.name: file.stat().st_mtime_ns for file in copy.iterdir()} == before


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"reasoner": tiny(seed=1)}, "model"),
        ({"reasoner": dataclasses.replace(tiny(end=4.0, stop=2.0), instruction="Think.")}, "instruction"),
        ({"reasoner": dataclasses.replace(tiny(end=4.0, stop=2.0), delimiters=Delimiters((3,), (9,)))}, "delimiters"),
        ({"sampling": dataclasses.replace(SAMPLING, temperature=0.5)}, "sampling"),
        ({"sampling": dataclasses.replace(SAMPLING, seed=3)}, "sampling"),
        ({"problems": PROBLEMS[:-1]}, "problems"),
        ({"suffix": "Be brief."}, "suffix"),
    ],
)
def test_it_goes_on_with_nothing_else(copy: Path, model: Reasoner, changed: dict[str, Any], key: str) -> None:
    given = {"reasoner": model, "problems": PROBLEMS, "sampling": SAMPLING, **changed}
    before = (copy / LINES).read_bytes()
    with pytest.raises(ArtefactError, match=f"rollouts of another {key};"):
        Rollouts.collect(copy, given.pop("reasoner"), given.pop("problems"), given.pop("sampling"), **given)
    assert (copy / LINES).read_bytes() == before


def test_another_number_type_is_another_model(copy: Path) -> None:
    half = reasoner()
    half.model.to(torch.bfloat16)
    with pytest.raises(ArtefactError, match="rollouts of another dtype"):
        Rollouts.collect(copy, half, PROBLEMS, SAMPLING)


def twice(text: str) -> str:
    first, _, rest = text.split("\n", 2)
    return f"{first}\n{first}\n{rest}"


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        (SETTINGS, lambda text: text[: len(text) // 2], "damaged"),
        (SETTINGS, lambda text: "[]", "damaged"),
        (SETTINGS, lambda text: text.replace("forethought rollouts", "cake"), "cake"),
        (SETTINGS, lambda text: text.replace('"steps"', '"stops"'), "damaged"),
        (LINES, lambda text: text.replace("{", "[", 1), "damaged"),
        (LINES, lambda text: text.replace('"sample"', '"simple"', 1), "damaged"),
        (LINES, twice, "not one rollout a sample"),
        (LINES, lambda text: text + text.split("\n", 1)[0] + "\n", "not one rollout a sample"),
        (LINES, lambda text: "\udcff" + text, "damaged"),
    ],
)
def test_damage_is_told_in_a_sentence(
    copy: Path, model: Reasoner, file: str, damage: Callable[[str], str], words: str
) -> None:
    text = (copy / file).read_text()
    (copy / file).write_bytes(damage(text).encode(errors="surrogateescape"))
    with pytest.raises(ArtefactError, match=words):
        Rollouts.open(copy)
    with contextlib.suppress(ArtefactError):  # or it is mended
        Rollouts.collect(copy, model, PROBLEMS, SAMPLING)
        assert (copy / LINES).read_text() == text


def test_there_are_none(tmp_path: Path, model: Reasoner) -> None:
    with pytest.raises(ArtefactError, match="holds no rollouts"):
        Rollouts.open(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ArtefactError, match="exists already"):
        Rollouts.collect(tmp_path / "other", model, PROBLEMS, SAMPLING)


def test_thoughts_that_never_end_are_counted_as_lower_bounds(tmp_path: Path) -> None:
    found = Rollouts.collect(
        tmp_path / "out", tiny(end=-9.0, stop=-9.0), PROBLEMS, dataclasses.replace(SAMPLING, temperature=0.0)
    )
    assert not any(rollout.ended or rollout.correct for rollout in found.rollouts)
    assert {rollout.thinking_tokens for rollout in found.rollouts} == {10}
    # where the context is the end, there is less to see, and it counts as cut off all the same
    narrow = tiny(end=-9.0, stop=-9.0, context=20)
    short = next(iter(roll_out(narrow, PROBLEMS[:1], SAMPLING)))
    assert {(r.thinking_tokens, r.ended) for r in short} == {(20 - len(short[0].prompt), False)}


def test_two_seeds_share_no_draws(model: Reasoner) -> None:
    """Batches were seeded by seed + position: seed 0's second batch drew what seed 8's first one did."""
    same = [PROBLEMS[0]] * 4

    def drawn(seed: int) -> list[list[list[int]]]:
        sampling = Sampling(samples=4, max_new_tokens=10, temperature=1.0, top_p=1.0, seed=seed, batch_size=8)
        return [[rollout.ids for rollout in batch] for batch in roll_out(model, same, sampling)]

    batches = [batch for seed in (0, 8, 1) for batch in drawn(seed)]
    assert len(batches) == 6
    assert all(a != b for i, a in enumerate(batches) for b in batches[:i])
    assert drawn(8) == batches[2:4]


def test_what_was_skipped_changes_nothing(model: Reasoner, whole: Rollouts) -> None:
    batches = list(roll_out(model, PROBLEMS, SAMPLING))
    assert list(roll_out(model, PROBLEMS, SAMPLING, skip=2)) == batches[2:]
    assert sorted((r for b in batches for r in b), key=lambda r: (r.problem, r.sample)) == whole.rollouts
    order = [(PROBLEMS[r.problem].level, len(r.prompt)) for batch in batches for r in batch]
    assert order == sorted(order)


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0}, {"max_new_tokens": 0}, {"batch_size": -1}, {"temperature": -1.0}, {"temperature": float("nan")},
        {"temperature": float("inf")}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": float("nan")}, {"seed": -1},
    ],
)  # fmt: skip
def test_sampling_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_the_folder_is_plain_text(whole: Rollouts) -> None:
    settings = json.loads((whole.path / SETTINGS).read_text())
    assert settings["sampling"] == dataclasses.asdict(SAMPLING)
    assert [problem["question"] for problem in settings["problems"]] == [problem.question for problem in PROBLEMS]
    assert len((whole.path / LINES).read_text().splitlines()) == 36
