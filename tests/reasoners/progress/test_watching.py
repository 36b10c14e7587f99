"""One pass a token, the state of that very pass, and a bar that never goes back."""

from __future__ import annotations

import io
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from forethought.data.problems import Problem
from forethought.errors import ArtefactError
from forethought.instruments.logit_route import ThinkingBias
from forethought.instruments.progress import IsotonicMap
from forethought.reasoners.progress.bar import show, status
from forethought.reasoners.progress.intervention import biases
from forethought.reasoners.progress.trained import SOURCES, Trained
from forethought.reasoners.progress.watching import Ending, Event, Speller, Watcher, plain
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.tokenizer import build_tokenizer

QUESTION = "sum 3 9 4"


@pytest.fixture
def watcher(reasoner: Reasoner, trained: Trained) -> Watcher:
    return Watcher(reasoner, trained, max_new_tokens=60, temperature=1.0, top_p=1.0, seed=1)


def taken(watcher: Watcher, question: str) -> tuple[list[Event], Ending]:
    *events, ending = watcher.stream(question)
    assert isinstance(ending, Ending)
    assert all(isinstance(event, Event) for event in events)
    return events, ending  # type: ignore[return-value]


def slowly(item: Event | Ending) -> Event | Ending:
    """As a model of some size: a terminal is redrawn twelve times a second."""
    time.sleep(0.03)
    return item


def whose_thought_ends(watcher: Watcher) -> Watcher:
    """With a seed that makes a thought of some length and an answer after it."""
    for seed in range(100):
        found = replace(watcher, seed=seed)
        events, ending = taken(found, QUESTION)
        if ending.ended and ending.thinking_tokens > 5 and events[-1].phase == "answer":
            return found
    raise AssertionError("no thought ends")


@pytest.mark.parametrize("source", SOURCES)
def test_the_bar_reads_the_states_of_a_full_pass(
    watcher: Watcher, reasoner: Reasoner, trained: Trained, source: Any
) -> None:
    watcher = whose_thought_ends(watcher)
    events, ending = taken(replace(watcher, source=source), QUESTION)
    ids = [*reasoner.prompt(QUESTION), *(event.token for event in events)]
    with torch.no_grad():
        hidden = reasoner.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    first = len(reasoner.prompt(QUESTION)) - 1
    states = hidden[first : first + ending.thinking_tokens + 1]
    shown = trained.meters[source].shown(trained.predict(source, states))
    thinking = [event for event in events if event.phase == "think"]
    assert len(thinking) == len(shown)
    np.testing.assert_allclose([event.fraction for event in thinking[:-1]], np.minimum(shown[:-1], 0.99), atol=2e-4)
    assert [event.closed for event in events] == [False] * (len(thinking) - 1) + [True] * (len(events) - len(shown) + 1)
    closing = thinking[-1]
    assert (closing.token, closing.fraction, closing.eta_tokens) == (reasoner.delimiters.close[0], 1.0, 0.0)
    assert all(event.fraction == 1.0 for event in events[len(thinking) :])
    assert (np.diff([event.fraction for event in events]) >= 0).all()
    assert all(event.low <= event.high and event.source == source for event in events)


def test_no_thought_is_told_to_be_over_before_it_is(watcher: Watcher, trained: Trained) -> None:
    watcher = whose_thought_ends(watcher)
    sure = replace(trained.meters["position"], mapping=IsotonicMap(np.array([0.0]), np.array([1.0])))
    sure = replace(trained, meters=dict(trained.meters) | {"position": sure}, source="position")
    events, ending = taken(replace(watcher, trained=sure), QUESTION)
    for place, event in enumerate(events):
        over = place >= ending.thinking_tokens
        assert (event.closed, event.fraction, plain(event)["fraction"]) == (over, *(2 * [1.0 if over else 0.99]))
        assert ("thought over · " in status(event)) is over


def test_a_token_takes_one_pass_over_one_position(watcher: Watcher, problems: list[Problem]) -> None:
    widths: list[int] = []
    handle = watcher.reasoner.model.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: widths.append((args or (kwargs["hidden_states"],))[0].shape[1]), with_kwargs=True
    )
    try:
        events, _ = taken(watcher, problems[0].question)
    finally:
        handle.remove()
    assert widths == [len(watcher.reasoner.prompt(problems[0].question)), *[1] * (len(events) - 1)]


def test_greedy_watching_writes_what_generate_writes(watcher: Watcher, problems: list[Problem]) -> None:
    for alpha in (0.0, 30.0):
        processors = []
        if alpha:
            bias, _ = biases(watcher.reasoner, watcher.trained)
            processors = [ThinkingBias(bias, alpha, watcher.reasoner.delimiters)]
        prompts = [watcher.reasoner.prompt(problem.question) for problem in problems[:3]]
        for problem, prompt in zip(problems[:3], prompts, strict=True):
            [wanted] = watcher.reasoner.generate([prompt], max_new_tokens=40, logits_processor=processors)
            events, ending = taken(replace(watcher, temperature=0, alpha=alpha, max_new_tokens=40), problem.question)
            assert [event.token for event in events] == wanted
            assert ending.thinking_tokens == watcher.reasoner.thought(wanted)[0]


def test_the_seed_makes_the_text(watcher: Watcher, problems: list[Problem]) -> None:
    texts = [
        [event.token for event in taken(replace(watcher, seed=seed), problems[2].question)[0]] for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_it_ends_by_limit_by_time_and_from_outside_and_leaves_no_hook(watcher: Watcher) -> None:
    watcher = whose_thought_ends(watcher)
    norm = watcher.reasoner.model.model.norm
    assert taken(replace(watcher, max_new_tokens=3), QUESTION)[1].why == "tokens"
    late = taken(replace(watcher, max_seconds=1e-9), QUESTION)
    assert late == ([], replace(late[1], why="time", tokens=0, thinking_tokens=0, ended=False))
    [*events, ending] = watcher.stream(QUESTION, stop=lambda: True)
    assert (events, ending.why) == ([], "stopped")  # type: ignore[union-attr]
    stream = watcher.stream(QUESTION)
    next(stream)
    assert len(norm._forward_hooks) == 1
    stream.close()  # type: ignore[attr-defined]
    assert not norm._forward_hooks


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", 0.0), ("temperature", math.nan), ("temperature", 1e-320), ("temperature", -1.0), ("alpha", math.nan),
        ("max_new_tokens", 0), ("max_new_tokens", -4), ("max_seconds", -1.0), ("max_seconds", math.nan),
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(watcher: Watcher, name: str, value: float) -> None:
    with pytest.raises(ArtefactError, match=f"{name} (is )?{value}"):
        replace(watcher, **{name: value})


def test_characters_are_written_when_they_are_whole() -> None:
    tokenizer = build_tokenizer()
    text = "sum 3 9 → naïve 😀 end\nWait "
    for whole in (text, " a b", "😀😀"):
        speller = Speller(tokenizer)
        pieces = [speller.push(token) for token in tokenizer.encode(whole)]
        assert "".join(pieces) == whole
        assert all("\ufffd" not in piece for piece in pieces)


def test_why_says_what_is_read(watcher: Watcher) -> None:
    assert "probe" in replace(watcher, source="tpv").why()
    fallen = replace(watcher, trained=replace(watcher.trained, source="position"))
    assert "neither probe was better" in fallen.why()


def test_the_bar_in_a_terminal_and_the_text_elsewhere(watcher: Watcher, capsys: pytest.CaptureFixture[str]) -> None:
    watcher = whose_thought_ends(watcher)
    events, _ = taken(watcher, QUESTION)
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    ending = show((slowly(item) for item in watcher.stream(QUESTION)), "why", terminal)
    assert ending is not None
    written = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "tokens left [" in written
    assert f"{ending.thinking_tokens} thinking tokens" in written
    pipe = Console(file=io.StringIO(), force_terminal=False)
    show(watcher.stream(QUESTION), "why", pipe)
    text = "".join(event.text for event in events)
    assert pipe.file.getvalue().rstrip("\n") == "".join(
        c for c in text if c == "\n" or (c >= " " and c != "\x7f")
    ).rstrip("\n")  # type: ignore[attr-defined]
    assert capsys.readouterr().err.startswith("why\n")


def test_what_a_model_writes_cannot_steer_a_terminal() -> None:
    event = Event(1, "a\x1b[2Jb\x07", 0.5, 3, 9, 6, "think", False, "gru", 5, 1.0)
    ending = Ending("end", 1, 1, False, None, 1.0)
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=60)
        show(iter([event, ending]), "", console)
        assert "\x1b[2J" not in console.file.getvalue()  # type: ignore[attr-defined]
        assert "\x07" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert status(event) == " 50%  ≈ 6 tokens left [3–9] · 1.2 s · by gru"
    assert plain(event)["eta_tokens"] == 6
