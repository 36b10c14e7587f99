from __future__ import annotations

import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessorList

from forethought.errors import ArtefactError, DataError
from forethought.instruments.capture import captured
from forethought.instruments.class_probe import ClassProbe
from forethought.instruments.logit_route import logit_bias
from forethought.instruments.phases import Delimiters
from forethought.instruments.sites import Site
from forethought.instruments.steering import Steering
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import Rollout, Sampling
from forethought.reasoners.strength import figures, sweep
from forethought.reasoners.strength import ready as readiness
from forethought.reasoners.strength.collection import Collection
from forethought.reasoners.strength.knobs import (
    Knob,
    Outcome,
    Setting,
    brief_knob,
    budget_knob,
    digest,
    direction_knob,
    end_knob,
    norm_knob,
    outcome,
    random_knobs,
    random_vectors,
    run,
)
from forethought.reasoners.strength.ready import EndWhenReady, Ready, fit_ready, force_answers, ready_knob
from forethought.reasoners.strength.sweep import against, choose, end_logits, plain_of, turn
from forethought.reasoners.strength.tables import choices, choices_document
from tests.reasoners.tiny import problems, tiny

PROBLEMS = problems(10)
SAMPLING = Sampling(samples=2, max_new_tokens=12, temperature=1.0, top_p=1.0, seed=1, batch_size=8)
VECTORS: dict[Site, torch.Tensor] = {
    site: torch.randn(64, generator=torch.Generator().manual_seed(site)) for site in (0, 1)
}


@pytest.fixture(scope="module")
def model() -> Reasoner:
    return tiny(end=3.0, stop=-9.0)


@pytest.fixture(scope="module")
def plain(model: Reasoner) -> Outcome:
    return run(model, PROBLEMS, SAMPLING)


def mean(found: Outcome) -> float:
    return float(np.mean(found.tokens))


# ---------------------------------------------------------------------------------------------------- knobs


def test_nothing_turned_changes_nothing(model: Reasoner, plain: Outcome) -> None:
    knobs = [direction_knob("d", model, VECTORS, [0.0]), end_knob(model, [0.0]), budget_knob(model, [12])]
    for knob in knobs:
        found = run(model, PROBLEMS, SAMPLING, knob, knob.values[0])
        assert (found.knob, found.value) == (knob.name, knob.values[0])
        if knob.name != "hard budget":  # at the limit it ends a thought that would have been cut off
            assert (found.tokens, found.correct, found.numbers) == (plain.tokens, plain.correct, plain.numbers)
    assert plain.knob == "none"
    assert 0 < plain.numbers["ended"] < 1


@pytest.mark.parametrize("budget", [0, 1, 5, 11])
def test_a_budget_ends_thoughts_exactly_there(plain: Outcome, model: Reasoner, budget: int) -> None:
    found = run(model, PROBLEMS, SAMPLING, budget_knob(model, [budget]), budget)
    assert found.numbers["ended"] == 1
    assert max(map(max, found.tokens)) == budget
    # what would have ended before still does
    assert found.tokens == [[min(length, budget) for length in row] for row in plain.tokens]


def test_a_budget_begins_anew_with_every_batch(model: Reasoner) -> None:
    """Prompts that are just as wide as the texts before them have become were taken for more of those texts."""
    endless = tiny(end=-9.0, stop=-9.0)
    options = budget_knob(endless, [3]).at(3).options
    close = endless.delimiters.close[0]
    first = endless.prompt("sum 1 2")
    for tokens in range(5, 12):
        wide = endless.prompt("sum 1 2" + "7" * tokens)
        assert len(wide) == len(first) + tokens
        for prompt, number in ((first, tokens), (wide, 6)):
            (ids,) = endless.generate([prompt], max_new_tokens=number, **options)
            assert ids.index(close) == 3


def test_a_bias_on_the_end_shortens_and_its_opposite_lengthens(model: Reasoner, plain: Outcome) -> None:
    knob = end_knob(model, [-2, 2, 30])
    longer, shorter, least = (run(model, PROBLEMS, SAMPLING, knob, value) for value in (-2, 2, 30))
    assert mean(longer) > mean(plain) > mean(shorter) > mean(least) == 0
    assert least.numbers["answer_tokens"] > 8  # it acts while the model thinks, not on what comes after


def test_a_direction_steers_and_its_controls_are_as_long(model: Reasoner, plain: Outcome) -> None:
    found = run(model, PROBLEMS, SAMPLING, direction_knob("d", model, VECTORS, [8.0]), 8.0)
    assert found.tokens != plain.tokens
    drawn = random_vectors(VECTORS, 3, seed=5)
    for control in drawn:
        for site, vector in VECTORS.items():
            assert control[site].norm() == pytest.approx(float(vector.norm()), rel=1e-5)
            assert abs(float(torch.cosine_similarity(control[site], vector, dim=0))) < 0.6
    assert not torch.allclose(drawn[0][0], drawn[1][0])
    knobs = list(random_knobs(model, VECTORS, [8.0], 3, seed=5))
    assert [knob.name for knob in knobs] == ["random 1", "random 2", "random 3"]
    by_hand = direction_knob("random 2", model, drawn[1], [8.0])
    assert knobs[1].about == by_hand.about
    again = run(model, PROBLEMS, SAMPLING, by_hand, 8.0)
    assert run(model, PROBLEMS, SAMPLING, knobs[1], 8.0) == again


def test_controls_have_the_dose_of_the_direction_in_sum_too() -> None:
    """Drawn site by site they cancelled, where the direction is nearly the same at all sites and adds up."""
    along, random = torch.randn(64), torch.Generator().manual_seed(2)
    vectors: dict[Site, torch.Tensor] = {
        site: (site + 1) * (along + 0.2 * torch.randn(64, generator=random)) for site in range(5)
    }
    wanted = Steering(vectors).dose()
    for control in random_vectors(vectors, 5, seed=0):
        found = Steering(control).dose()
        assert list(control) == list(vectors)
        assert float(found.total) == pytest.approx(float(wanted.total), rel=1e-3)
        torch.testing.assert_close(found.each, wanted.each, rtol=1e-3, atol=0)
        assert abs(float(torch.cosine_similarity(control[4], vectors[4], dim=0))) < 0.6


def test_a_vector_after_the_norm_is_the_bias_it_comes_to(model: Reasoner) -> None:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(9))
    steered = run(model, PROBLEMS, SAMPLING, direction_knob("x", model, {"norm": vector}, [2.0], gate="think"), 2.0)
    biased = run(model, PROBLEMS, SAMPLING, norm_knob("x", model, vector, [2.0]), 2.0)
    assert steered.tokens == biased.tokens
    assert logit_bias(model.model, vector).shape == (len(model.tokenizer),)


def test_a_vector_of_another_width_is_refused(model: Reasoner) -> None:
    wrong = direction_knob("d", model, {0: torch.ones(32)}, [1.0])
    with pytest.raises(ArtefactError, match="32"):
        run(model, PROBLEMS, SAMPLING, wrong, 1.0)
    with pytest.raises(ArtefactError, match="no site 7"):
        run(model, PROBLEMS, SAMPLING, direction_knob("d", model, {7: torch.ones(64)}, [1.0]), 1.0)
    with pytest.raises(ArtefactError, match="32"):
        norm_knob("n", model, torch.ones(32), [1.0])


def test_asking_to_be_brief_is_a_longer_prompt(model: Reasoner) -> None:
    assert brief_knob("Be brief.").at(1.0) == Setting(suffix="Be brief.")


def rolled(*rows: tuple[int, int, bool, bool]) -> list[Rollout]:
    """Problem, thinking tokens, ended, correct."""
    return [Rollout(p, i, [1], [2] * n + [3] * e, n, e, None, c) for i, (p, n, e, c) in enumerate(rows)]


def test_an_outcome_counts_what_was_cut_off() -> None:
    rows = [(0, 10, True, True), (0, 20, False, False), (1, 10, True, False), (1, 20, True, True)]
    found = outcome("k", 1.0, rolled(*rows), limit=20)
    assert found.numbers["ended"] == 0.75
    assert found.numbers["accuracy"] == 0.5
    # Kaplan-Meier: half gone at 10; of two at 20 one ends there, after all of the mean up to 20
    assert found.numbers["mean"] == pytest.approx(15)
    assert found.tokens == [[10, 20], [10, 20]]
    assert found.correct == [[True, False], [False, True]]
    assert found.numbers["answer_tokens"] == 0.75
    never = outcome("k", 1.0, rolled((0, 9, False, False), (1, 9, False, False)), limit=100)
    assert never.numbers["median"] == math.inf
    assert never.numbers["ended"] == 0
    with pytest.raises(DataError, match="two problems"):
        outcome("k", 1.0, rolled((0, 9, True, True), (0, 9, True, True)), limit=10)


# ---------------------------------------------------------------------------------------------------- sweeps


def test_outcomes_are_measured_once_however_often_it_is_stopped(
    model: Reasoner, plain: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, measured, measure = tmp_path / "cache.jsonl", [], sweep.run
    knobs = [end_knob(model, [1.0, 2.0]), direction_knob("d", model, VECTORS, [4.0])]

    def stopped(*given: Any, **more: Any) -> Outcome:
        if len(measured) == stop:
            raise KeyboardInterrupt
        measured.append(given[3:5])
        return measure(*given, **more)

    monkeypatch.setattr(sweep, "run", stopped)
    for stop in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            turn(model, PROBLEMS, SAMPLING, knobs, cache=cache)
        assert len(cache.read_text().splitlines()) == stop
    stop = 99
    found = turn(model, PROBLEMS, SAMPLING, knobs, cache=cache)
    assert len(measured) == 4
    assert found[0] == plain
    assert found == turn(model, PROBLEMS, SAMPLING, knobs)
    assert [(o.knob, o.value) for o in found] == [("none", 0.0), ("end bias", 1.0), ("end bias", 2.0), ("d", 4.0)]


def test_outcomes_of_something_else_are_not_taken(model: Reasoner, tmp_path: Path) -> None:
    """Another number of samples, other vectors or other problems gave what was measured before, under the same name."""
    cache, knob = tmp_path / "cache.jsonl", direction_knob("d", model, VECTORS, [4.0])
    turn(model, PROBLEMS, SAMPLING, [knob], cache=cache)
    other = direction_knob("d", model, {0: VECTORS[1], 1: VECTORS[0]}, [4.0])
    once = dataclasses.replace(SAMPLING, samples=1)
    for changed in (
        (model, PROBLEMS, once, [knob]),
        (model, PROBLEMS[:5], SAMPLING, [knob]),
        (model, PROBLEMS, SAMPLING, [other]),
        (tiny(seed=1, end=3.0), PROBLEMS, SAMPLING, [end_knob(model, [1.0])]),
    ):
        assert turn(*changed, cache=cache) == turn(*changed)
    lines = len(cache.read_text().splitlines())
    turn(model, PROBLEMS, SAMPLING, [knob], cache=cache)  # what was measured first is there still
    assert len(cache.read_text().splitlines()) == lines
    assert digest({0: VECTORS[0]}) != digest({1: VECTORS[0]})


def test_a_median_that_was_not_reached_is_read_as_it_was(tmp_path: Path) -> None:
    endless, cache = tiny(end=-9.0, stop=-9.0), tmp_path / "cache.jsonl"
    first = turn(endless, PROBLEMS, SAMPLING, [], cache=cache)
    assert first[0].numbers["median"] == math.inf
    assert "Infinity" not in cache.read_text()
    assert turn(endless, PROBLEMS, SAMPLING, [], cache=cache) == first


@pytest.mark.parametrize("text", ["{", "[]", '{"key": "x"}', '{"key": "x", "numbers": {}, "more": 1}'])
def test_a_damaged_cache_is_told(model: Reasoner, tmp_path: Path, text: str) -> None:
    (tmp_path / "cache.jsonl").write_text(text + "\n")
    with pytest.raises(ArtefactError, match="damaged"):
        turn(model, PROBLEMS, SAMPLING, [], cache=tmp_path / "cache.jsonl")


def test_the_logit_of_the_end_is_that_of_single_prompts(model: Reasoner) -> None:
    found = end_logits(model, PROBLEMS, VECTORS, [0.0, 1.0], batch_size=4)
    rows = [model.model(input_ids=torch.tensor([model.prompt(p.question)])).logits[0, -1] for p in PROBLEMS]
    logits = torch.stack(rows).detach()
    assert found["strength"] == [0.0, 1.0]
    assert found["end"][0] == pytest.approx(float(logits[:, model.delimiters.close[0]].mean()), abs=1e-4)
    assert found["stop"][0] == pytest.approx(float(logits[:, model.tokenizer.eos_token_id].mean()), abs=1e-4)
    assert found["mean"][0] == pytest.approx(float(logits.mean()), abs=1e-4)
    assert found["end"][1] != found["end"][0]


# ---------------------------------------------------------------------------------------------------- choosing


def made(knob: str, value: float, accuracy: float, tokens: float) -> Outcome:
    numbers = {"accuracy": accuracy, "accuracy/low": accuracy, "accuracy/high": accuracy, "ended": 1.0}
    numbers |= {"mean": tokens, "mean/low": tokens, "mean/high": tokens, "median": tokens}
    right = [[index < round(accuracy * 10)] for index in range(10)]
    return Outcome(knob, value, numbers, [[int(tokens)]] * 10, right)


ON = [
    made("none", 0, 0.9, 100), made("a", 1, 0.9, 80), made("a", 2, 0.8, 40), made("b", 1, 0.9, 90),
    made("b", 2, 1.0, 110), made("random 1", 1, 0.9, 10),
]  # fmt: skip


def test_the_fewest_tokens_at_the_accuracy_that_is_asked_for() -> None:
    found = choose(ON, ON, max_loss=0.0)
    assert {name: (c.knob, c.value) for name, c in found.items()} == {
        "best": ("a", 1), "a": ("a", 1), "b": ("b", 1), "random 1": ("random 1", 1),
    }  # fmt: skip
    assert choose(ON, ON, max_loss=0.1)["best"].value == 2  # 0.9 - 0.1 and 0.8 differ in rounding
    assert choose(ON, ON, max_loss=-1.0)["best"].knob == "none"
    saved, lost = choose(ON, ON, max_loss=0.1)["best"].saved, choose(ON, ON, max_loss=0.1)["best"].lost
    assert saved == pytest.approx((0.6, 0.6, 0.6))
    assert lost[0] == pytest.approx(0.1)
    assert lost[1] <= lost[0] <= lost[2]


def test_the_most_accurate_within_a_budget() -> None:
    assert choose(ON, ON, budget=120)["best"].value == 2
    assert (choose(ON, ON, budget=100)["best"].knob, choose(ON, ON, budget=100)["best"].value) == ("a", 1)
    assert choose(ON, ON, budget=50)["best"].chosen_on.numbers["mean"] == 40
    missed = choose(ON, ON, budget=5)
    assert (missed["best"].knob, missed["best"].missed) == ("none", "nothing within the budget")
    assert choices_document(missed)["best"]["missed"] == "nothing within the budget"
    assert "nothing within the budget" in list(choices(missed).columns[1].cells)
    assert not any(choice.missed for choice in choose(ON, ON, max_loss=0.0).values())


@given(st.permutations(range(6)), st.lists(st.floats(0.1, 1), min_size=6, max_size=6), st.sampled_from([None, 85.0]))
def test_the_choice_never_looks_at_the_test(order: list[int], accuracy: list[float], budget: float | None) -> None:
    """The original reported the best of all strengths on the test problems."""
    tested = [made(ON[i].knob, ON[i].value, accuracy[i], 200 * accuracy[-1 - i]) for i in order]
    wanted = choose(ON, ON, max_loss=0.05, budget=budget)
    found = choose(ON, tested, max_loss=0.05, budget=budget)
    assert {n: (c.knob, c.value) for n, c in found.items()} == {n: (c.knob, c.value) for n, c in wanted.items()}
    for choice in found.values():
        assert choice.tested in tested
        assert choice.chosen_on in ON


def test_every_setting_has_to_be_tested_and_compared() -> None:
    with pytest.raises(DataError, match=r"\('b', 2\) was not tested"):
        choose(ON, [found for found in ON if (found.knob, found.value) != ("b", 2)])
    with pytest.raises(DataError, match="unchanged model"):
        choose(ON[1:], ON)
    with pytest.raises(DataError, match="unchanged model"):
        plain_of(ON[1:])


def test_differences_are_of_the_same_problems() -> None:
    random = np.random.default_rng(0)
    long, right = random.integers(50, 500, (40, 2)), random.random((40, 2)) < 0.5
    half = Outcome("k", 1, {}, (long // 2).tolist(), right.tolist())
    saved, lost = against(Outcome("none", 0, {}, long.tolist(), right.tolist()), half)
    # lengths differ tenfold between problems; that all are halved is sure all the same
    assert saved == pytest.approx((0.5, 0.5, 0.5), abs=0.01)
    assert lost == (0, 0, 0)
    nothing = Outcome("none", 0, {}, (0 * long).tolist(), right.tolist())
    with warnings.catch_warnings(action="error"):
        assert np.isnan(against(nothing, half)[0]).all()  # no share of nothing


def test_figures_are_drawn(tmp_path: Path) -> None:
    logits = {"direction": {"strength": [0.0, 1.0], "end": [1.0, 2.0]}, "random 1": {"strength": [0.0], "end": [1.0]}}
    figures.draw_sweep(ON, logits, tmp_path / "sweep.png")
    figures.draw_frontier(ON, tmp_path / "frontier.png", ON[1])
    for name in ("sweep.png", "frontier.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert [row["knob"] for row in sweep.document(ON)] == [found.knob for found in ON]
    assert "tokens" not in json.dumps(sweep.document(ON))


# ---------------------------------------------------------------------------------------------------- when ready


def ready(weight: torch.Tensor, bias: float, site: Site = 1) -> Ready:
    return Ready(site, ClassProbe(((weight.double().numpy()[:, None], np.array([bias])),)), {})


def test_it_acts_while_thinking_and_from_the_threshold_on(model: Reasoner, plain: Outcome) -> None:
    sure = ready(torch.zeros(64), 0.0)
    found = run(model, PROBLEMS, SAMPLING, ready_knob(model, sure, [0.5]), 0.5)
    assert set(map(tuple, found.tokens)) == {(0, 0)}
    above = run(model, PROBLEMS, SAMPLING, ready_knob(model, sure, [0.51]), 0.51)
    assert above.tokens == plain.tokens
    processor = EndWhenReady(sure, 0.5, model.delimiters)
    with processor.watching(model.model):
        rows = model.generate(
            [model.prompt(p.question) for p in PROBLEMS[:3]], max_new_tokens=6, temperature=1.0,
            logits_processor=LogitsProcessorList([processor]),
        )  # fmt: skip
    close = model.delimiters.close[0]
    assert [ids[0] for ids in rows] == [close] * 3
    assert processor.count == 3  # once a row, and never in the answer
    assert not all(ids == [close] * 6 for ids in rows)


def test_it_ends_a_thought_at_the_first_state_that_is_ready() -> None:
    endless = tiny(seed=4, end=-9.0, stop=-9.0)
    prompt = endless.prompt("sum 1 2 3")
    arguments: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.0, "seed": 3}
    with captured(endless.model, [1], last=True) as seen:
        (free,) = endless.generate([prompt], **arguments)
    states = seen.at(1)[0]
    assert len(states) == len(free) == 20
    weight = torch.randn(64, generator=torch.Generator().manual_seed(0))
    logits = states @ weight
    at = float(logits[:12].max()) - 1e-4
    first = int((logits >= at).float().argmax())
    assert 0 < first < 12
    probe = ready(weight, -at)
    processor = EndWhenReady(probe, 0.5, endless.delimiters)
    with processor.watching(endless.model):
        (ended,) = endless.generate([prompt], logits_processor=LogitsProcessorList([processor]), **arguments)
    assert endless.thought(ended) == (first, True)
    assert ended[:first] == free[:first]
    assert processor.count == 1


def test_what_it_cannot_act_with_is_refused(model: Reasoner) -> None:
    probe = ready(torch.zeros(64), 0.0)
    for threshold in (0.0, 1.0, float("nan")):
        with pytest.raises(DataError, match="threshold is"):
            EndWhenReady(probe, threshold, model.delimiters)
    with pytest.raises(DataError, match="2 tokens long"):
        EndWhenReady(probe, 0.5, Delimiters((3,), (4, 5)))
    deep = Ready(1, ClassProbe((probe.probe.layers[0], probe.probe.layers[0])), {})
    with pytest.raises(DataError, match="hidden layers"):
        EndWhenReady(deep, 0.5, model.delimiters)
    with pytest.raises(DataError, match="No states were read"):
        EndWhenReady(probe, 0.5, model.delimiters)(torch.tensor([[3]]), torch.zeros(1, 300))


def test_forced_answers_are_those_of_closed_thoughts(monkeypatch: pytest.MonkeyPatch, model: Reasoner) -> None:
    asked: list[list[int]] = []

    def answers(self: Reasoner, prompts: list[list[int]], **options: Any) -> list[list[int]]:
        asked.extend(prompts)
        return [self.tokenizer.encode(f"\\boxed{{{len(prompt)}}}<|im_end|>") for prompt in prompts]

    monkeypatch.setattr(Reasoner, "generate", answers)
    close = model.tokenizer.encode("</think>\n")
    assert force_answers(model, [[5] * 7, [5] * 3, [5] * 9], batch_size=2) == ["9", "5", "11"]
    assert all(prompt[-2:] == close for prompt in asked)


def test_readiness_is_fitted_on_problems_and_cuts_of_the_collection(
    planted: Collection, reasoner: Reasoner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="all right or all wrong"):  # random weights box nothing
        fit_ready(planted, reasoner, tmp_path / "cuts", cuts=1)
    sizes: list[int] = []

    def by_length(reasoner: Reasoner, prompts: list[list[int]], batch_size: int = 128) -> list[str | None]:
        sizes.extend(map(len, prompts))
        middle = np.median([len(prompt) for prompt in prompts])
        right = {tuple(reasoner.prompt(p.question)): p.answer for p in planted.problems}
        return [
            next(answer for known, answer in right.items() if tuple(prompt[: len(known)]) == known)
            if len(prompt) > middle
            else None
            for prompt in prompts
        ]

    monkeypatch.setattr(readiness, "force_answers", by_length)
    narrow = tiny(seed=3, context=120)
    found = fit_ready(planted, narrow, tmp_path / "others", cuts=2)
    assert max(sizes) + 2 + readiness.ANSWER_TOKENS <= 120  # the answer has its room in the context
    assert found.numbers["position/auc"] > 0.8  # what the position tells stands beside it
    assert 0.2 < found.numbers["share"] < 0.8
    assert {"auc", "brier", "cuts"} <= found.numbers.keys()


def test_a_knob_tells_what_it_was_made_of(model: Reasoner) -> None:
    knobs: list[Knob] = [
        ready_knob(model, ready(torch.ones(64), 0.0), [0.5]),
        ready_knob(model, ready(torch.ones(64), 0.0, site=0), [0.5]),
        ready_knob(model, ready(2 * torch.ones(64), 0.0), [0.5]),
        brief_knob("a"),
        brief_knob("b"),
        direction_knob("d", model, VECTORS, [1.0]),
        direction_knob("d", model, VECTORS, [1.0], gate="think"),
        norm_knob("n", model, VECTORS[0], [1.0]),
        norm_knob("n", model, VECTORS[1], [1.0]),
    ]
    assert len({knob.about for knob in knobs}) == len(knobs)
