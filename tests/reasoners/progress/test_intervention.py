"""Told before it is used, taken apart into what adds up again, and chosen where it is not tested."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from forethought.data.problems import Problem
from forethought.errors import DataError
from forethought.instruments.capture import Transcript
from forethought.instruments.logit_route import ThinkingBias, parts
from forethought.instruments.schedules import EntropyAdaptive, Places
from forethought.reasoners.progress.figures import draw_parts
from forethought.reasoners.progress.intervention import (
    ADAPTIVE,
    WHOLE,
    ClassAdaptive,
    Difficulty,
    adaptive_knob,
    alpha_grid,
    biases,
    foretell,
    knobs,
)
from forethought.reasoners.progress.overclocking import (
    overclock,
    plan,
    refuse_learned,
    validation_thoughts,
    write_generations,
)
from forethought.reasoners.progress.preparation import Prepared
from forethought.reasoners.progress.tables import foretold, vectors
from forethought.reasoners.progress.trained import Trained
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import Sampling, roll_out

SAMPLING = Sampling(1, 40, 1.0, 1.0, 5, 16)


@pytest.fixture(scope="module")
def thoughts(planted: Prepared, reasoner: Reasoner) -> list[Transcript]:
    return validation_thoughts(planted, reasoner)


def test_what_is_foretold_is_what_the_logits_say(
    reasoner: Reasoner, trained: Trained, thoughts: list[Transcript]
) -> None:
    bias, _ = biases(reasoner, trained)
    found = foretell(reasoner, thoughts, bias, [0.0, 3.0, -2.0])
    end = reasoner.delimiters.close[0]
    kl, odds, weights = {0.0: [], 3.0: [], -2.0: []}, [], []
    for each in thoughts:
        with torch.no_grad():
            logits = reasoner.model(input_ids=torch.tensor([each.ids])).logits[0, len(each.prompt) - 1 : -1].double()
        for alpha, values in kl.items():
            biased = (logits + alpha * bias).softmax(-1)
            values.append(F.kl_div(logits.log_softmax(-1), biased, reduction="none").sum(-1))

        def log_odds(alpha: float, logits: torch.Tensor = logits) -> torch.Tensor:
            p = (logits + alpha * bias).softmax(-1)[:, end]
            return p.log() - (1 - p).log()

        odds.append((log_odds(1e-4) - log_odds(-1e-4)) / 2e-4)
        chance = logits.softmax(-1)[:, end]
        weights.append(chance * (1 - chance))
    for alpha, values in kl.items():
        assert found.kl[alpha] == pytest.approx(float(torch.cat(values).mean()), rel=1e-3, abs=1e-6)
    weight = torch.cat(weights)
    assert found.advantage == pytest.approx(float((weight * torch.cat(odds)).sum() / weight.sum()), rel=1e-2)
    assert found.norm == pytest.approx(float(bias.norm()))


def test_the_grid_moves_the_distribution_by_what_was_asked_either_way(
    reasoner: Reasoner, trained: Trained, thoughts: list[Transcript]
) -> None:
    bias, _ = biases(reasoner, trained)
    bias = bias.clamp(
        min=float(bias.min()) / 10
    )  # pushed down, what it lifts goes under before what it lowers comes up
    wanted = [0.01, 0.1, 0.5]
    grid = alpha_grid(reasoner, thoughts, bias, wanted)
    assert grid == sorted(grid)
    found = foretell(reasoner, thoughts, bias, grid)
    assert [found.kl[alpha] for alpha in grid] == pytest.approx([*reversed(wanted), *wanted], rel=0.05)
    assert [alpha > 0 for alpha in grid] == [False] * 3 + [True] * 3
    assert not np.allclose(grid, -np.array(grid)[::-1], rtol=0.1)  # of other sizes, or the test would show nothing


def test_the_parts_are_the_whole(reasoner: Reasoner, trained: Trained) -> None:
    found = {knob.name: knob for knob in knobs(reasoner, trained, [2.0], [5.0])}
    taken = {name: knob.at(knob.values[0]).options["logits_processor"][0] for name, knob in found.items()}
    whole = taken[WHOLE].bias
    assert torch.equal(taken["its end entry alone"].bias + taken["all but its end entry"].bias, whole)
    assert int((taken["its end entry alone"].bias != 0).sum()) <= 1
    assert {taken[name].strength for name in taken if name != "raw vector"} == {2.0}
    assert taken["raw vector"].strength == 5.0


def test_random_biases_move_the_distribution_as_far_as_the_vector(
    reasoner: Reasoner, trained: Trained, planted: Prepared, thoughts: list[Transcript]
) -> None:
    """As long as it, they moved it many times as far: whatever length such a bias has, it is not its effect."""
    planned = plan(planted, trained, reasoner, {"test": planted.part("test")}, alphas=[-9.0, 0.0, 4.0], randoms=2)
    wanted = planned.foretold["centred"].kl
    found = {knob.name: knob for knob in planned.knobs["test"]}
    whole = found[WHOLE].at(1.0).options["logits_processor"][0].bias
    for name in ("random 1", "random 2"):
        strengths = planned.alphas[name]
        assert found[name].values == tuple(strengths)
        assert [np.sign(strength) for strength in strengths] == [-1, 0, 1]
        bias = found[name].at(1.0).options["logits_processor"][0].bias
        assert abs(float(F.cosine_similarity(bias, whole, dim=0))) < 0.5
        told = foretell(reasoner, thoughts, bias, strengths).kl
        assert [told[strength] for strength in strengths] == pytest.approx([*wanted.values()], rel=0.05)
        assert planned.foretold[name].kl == told
    shown = foretold(planned)
    assert [*shown.columns[0].cells].count("random 2") == 3
    assert "thoughts" not in vectors(trained, planned)  # of their lengths nothing is foretold


def test_nothing_is_biased_after_the_thought(reasoner: Reasoner, trained: Trained, problems: list[Problem]) -> None:
    bias, _ = biases(reasoner, trained)
    processor = ThinkingBias(bias, 2.0, reasoner.delimiters)
    [batch] = roll_out(reasoner, problems[:12], SAMPLING, logits_processor=[processor])
    assert any(rollout.ended and len(rollout.ids) > rollout.thinking_tokens + 1 for rollout in batch)
    counted = [
        (count, rollout.thinking_tokens + 1)
        for count, rollout in zip(processor.count.tolist(), batch, strict=True)
        if rollout.ended
    ]
    assert all(count == wanted for count, wanted in counted)


def test_the_schedule_of_a_class_is_the_published_one(reasoner: Reasoner) -> None:
    pad = reasoner.tokenizer.pad_token_id
    prompts = [[5, 6, 285], [7, 285], [8, 9, 285]]
    width, drawn = 3, [11, 12]
    ids = torch.tensor([[pad] * (width - len(p)) + p + drawn for p in prompts])
    entropy = torch.full(ids.shape, float("nan"))
    entropy[:, width:] = torch.tensor([[0.0, 0.02], [0.01, 0.5], [0.3, 0.04]])
    at = Places.of(ids, torch.ones_like(ids), torch.full((3,), width), reasoner.delimiters, entropy)
    schedule = ClassAdaptive({tuple(p): place for place, p in enumerate(prompts)}, pad)
    found = 30 * schedule(at)
    for row, base in enumerate((50.0, 30.0, 10.0)):
        wanted = EntropyAdaptive(base, 10.0, 100.0, 0.02)(at)
        torch.testing.assert_close(found[row, width - 1 :], wanted[row, width - 1 :])


def test_classes_are_thirds_and_reach_their_rows(
    reasoner: Reasoner, trained: Trained, planted: Prepared, problems: list[Problem]
) -> None:
    difficulty = Difficulty.fit(planted)
    classes = difficulty.of(reasoner, problems)
    assert len(set(classes)) == 3
    bias, _ = biases(reasoner, trained)
    knob = adaptive_knob(reasoner, bias, [4.0], problems, classes)
    assert knob.name == ADAPTIVE
    setting = knob.at(4.0)
    schedule = setting.options["logits_processor"][0].schedule
    assert [schedule.classes[tuple(reasoner.prompt(p.question))] for p in problems] == classes
    together = [r.ids for batch in roll_out(reasoner, problems[:6], SAMPLING, **setting.options) for r in batch]
    assert len(together) == 6


def test_it_is_chosen_on_validation_and_tested_on_test_problems(
    reasoner: Reasoner, trained: Trained, planted: Prepared, tmp_path: Path
) -> None:
    problems = {"validation": planted.part("validation"), "test": planted.part("test")}
    planned = plan(planted, trained, reasoner, problems, alphas=[-20.0, 20.0])
    assert planned.foretold["centred"].kl.keys() == {-20.0, 20.0}
    assert planned.note == ""
    found = overclock(reasoner, problems, SAMPLING, planned, tmp_path, max_loss=1.0)
    names = {WHOLE, "raw vector", "its end entry alone", "all but its end entry", "random 1", ADAPTIVE}
    for part in ("validation", "test"):
        assert {o.knob for o in found.outcomes[part]} == {"none", *names}
        assert all(len(o.tokens) == len(problems[part]) for o in found.outcomes[part])
    choice = found.choices[WHOLE]
    on = {o.value: o.numbers["mean"] for o in found.outcomes["validation"] if o.knob in (WHOLE, "none")}
    assert on[choice.value] == min(on.values())
    again = overclock(reasoner, problems, SAMPLING, planned, tmp_path, max_loss=1.0)
    assert again.choices[WHOLE].tested == choice.tested  # kept, not measured anew
    draw_parts(found.outcomes["test"], tmp_path / "parts.png")

    knob = planned.knobs["test"][0]
    write_generations(tmp_path / "texts.jsonl", reasoner, problems["test"], planted.parts["test"], SAMPLING, knob, 20.0)
    lines = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert [line["problem"] for line in lines] == planted.parts["test"]  # its number in the list, not in the part
    measured = next(o for o in found.outcomes["test"] if (o.knob, o.value) == (WHOLE, 20.0))
    assert [[line["thinking_tokens"]] for line in lines] == measured.tokens


def test_one_strength_is_tested_without_a_choice(
    reasoner: Reasoner, trained: Trained, planted: Prepared, tmp_path: Path
) -> None:
    problems = {"validation": planted.part("validation"), "test": planted.part("test")}
    planned = plan(planted, trained, reasoner, problems, alphas=[15.0], randoms=0)
    found = overclock(reasoner, problems, SAMPLING, planned, tmp_path / "work")
    assert set(found.outcomes) == {"test"}
    assert found.choices["best"].value == 15.0
    assert np.isfinite(found.choices["best"].saved).all()


def test_learned_questions_are_not_tested_on(planted: Prepared) -> None:
    refuse_learned(planted, planted.part("test"))
    with pytest.raises(DataError, match="1 of the questions to test on were learned from"):
        refuse_learned(planted, [*planted.part("test"), planted.part("validation")[0]])
    # nor those that were learned in a template, which are the same questions
    asked = {n: replace(p, question=f"Solve: {p.question}!") for n, p in planted.problems.items()}
    settings = planted.settings | {"template": "Solve: {problem}!"}
    templated = replace(planted, problems=asked, settings=settings)
    refuse_learned(templated, planted.part("test"))
    for problem in (planted.part("fit")[0], templated.part("fit")[0]):
        with pytest.raises(DataError, match="1 of the questions to test on were learned from"):
            refuse_learned(templated, [problem])


def test_what_was_learned_is_not_tested_on_in_other_words(planted: Prepared) -> None:
    learned = [
        Problem("gcd", 2, "Solve: gcd 41 98!", (), "1"),
        Problem("collatz", 2, "Solve: collatz 19 below 15!", (), "6"),
    ]
    prepared = replace(
        planted, problems=dict(enumerate(learned)), parts={"fit": [0], "validation": [1], "test": []},
        settings=planted.settings | {"template": "Solve: {problem}!"},
    )  # fmt: skip
    for question, answer in (("gcd 98 41", "1"), ("collatz 19 below 16", "6"), ("Solve: gcd 98 41!", "1")):
        with pytest.raises(DataError, match="1 of the questions to test on were learned from"):
            refuse_learned(prepared, [Problem("mine", 0, question, (), answer)])
    refuse_learned(
        prepared, [Problem("gcd", 2, "gcd 98 42", (), "14"), Problem("collatz", 2, "collatz 19 below 9", (), "9")]
    )


def test_the_end_entry_is_what_parts_says(reasoner: Reasoner, trained: Trained) -> None:
    bias, _ = biases(reasoner, trained)
    end, rest = parts(bias, reasoner.delimiters)
    assert float(rest[reasoner.delimiters.close[0]]) == 0.0
    assert float(end.abs().sum()) == pytest.approx(abs(float(bias[reasoner.delimiters.close[0]])))
