"""Each row answers at a step of its own, as if exactly so many steps had been asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from forethought.nn.halting import Divergence, Entropy, Moment, Probe, divergence, entropy, unroll_until
from forethought.nn.reasoning import AppendingEncoder, RecurrentEncoder, unroll

WIDTH, LENGTH, ITEMS = 12, 9, 15


def wild(encoder: Any) -> Any:
    """Parameters of no particular form, in double precision, without dropout."""
    generator = torch.Generator().manual_seed(1)
    for parameter in encoder.double().eval().parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return encoder


ENCODERS: dict[str, Callable[[], Any]] = {
    "append": lambda: wild(AppendingEncoder(WIDTH, 2, 3, 20, 0.1, LENGTH, steps=3)),
    "append, post": lambda: wild(AppendingEncoder(WIDTH, 1, 3, 20, 0.1, LENGTH, "post", steps=3)),
    "append both states": lambda: wild(AppendingEncoder(WIDTH, 1, 3, 20, 0.1, LENGTH, steps=3, adapter="gated")),
    "append, both ways": lambda: wild(AppendingEncoder(WIDTH, 2, 3, 20, 0.1, LENGTH, steps=3, bidirectional=True)),
    "recur": lambda: wild(RecurrentEncoder(WIDTH, 1, 3, 20, 0.1, LENGTH)),
    "recur from noise": lambda: wild(RecurrentEncoder(WIDTH, 1, 3, 20, 0.1, LENGTH, start="normal", adapter="concat")),
}


class Told:
    """Lets each row answer at a step that is told for its r_0."""

    reads_answers = False

    def __init__(self, first: Tensor, steps: Tensor) -> None:
        self.first, self.steps, self.asked = first, steps, 0

    def halts(self, moment: Moment) -> Tensor:
        self.asked += len(moment.first)
        row = (moment.first[:, None] - self.first).abs().amax(dim=-1).argmin(dim=1)
        return self.steps[row] <= moment.step


def begun(encoder: Any, lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Any]:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(lengths), max(lengths), WIDTH, dtype=torch.float64, generator=generator)
    position = torch.tensor(lengths)[:, None] - 1
    return vectors, position, encoder.encode(vectors, position)


def last(chain: Tensor) -> Tensor:
    return chain[:, -1]


def answers(read: Tensor) -> Tensor:
    items = torch.randn(WIDTH, ITEMS, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return (read @ items).log_softmax(dim=-1)


@pytest.mark.parametrize("name", list(ENCODERS))
@pytest.mark.parametrize("read_out", [last, lambda chain: chain.mean(dim=1)])
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(1, LENGTH), st.integers(0, 5)), min_size=1, max_size=6))
def test_a_row_that_leaves_is_one_told_to_take_so_many(name: str, read_out: Any, rows: list[tuple[int, int]]) -> None:
    encoder, (lengths, steps) = ENCODERS[name](), zip(*rows, strict=True)
    vectors, position, state = begun(encoder, list(lengths))
    rule = Told(state.latest[:, 0], torch.tensor(steps))
    found, taken = unroll_until(encoder, [state], 5, rule, read_out, answers)
    assert taken.tolist() == list(steps)
    chain = unroll(encoder, vectors, position, 5)[:, 0]
    for row, step in enumerate(steps):
        torch.testing.assert_close(found[row], read_out(chain[row : row + 1, : step + 1])[0], atol=1e-12, rtol=1e-10)
    assert rule.asked == sum(min(step, 4) + 1 for step in steps)  # and whoever answered is asked no more


@pytest.mark.parametrize("name", ["append", "recur"])
def test_rows_that_left_cost_nothing(name: str) -> None:
    encoder, rows = ENCODERS[name](), []
    _, _, state = begun(encoder, [9, 3, 1, 5])
    block = encoder.blocks[0] if name == "append" else encoder.core[0]
    block.feed_forward.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    unroll_until(encoder, [state], 4, Told(state.latest[:, 0], torch.tensor([0, 3, 1, 3])), last, answers)
    assert rows == [3, 2, 2]


@pytest.mark.parametrize("name", ["append", "recur"])
def test_selected_rows_go_on_as_they_would(name: str) -> None:
    encoder, kept = ENCODERS[name](), torch.tensor([2, 0])
    for position in (None, torch.tensor([[8, 0], [3, 3], [1, 7]])):
        vectors = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        state = encoder.step(encoder.encode(vectors, position))
        whole, part = encoder.step(encoder.step(state)), encoder.step(encoder.step(state.select(kept)))
        torch.testing.assert_close(part.latest, whole.latest[kept])


def test_several_initial_states_answer_together() -> None:
    encoder = ENCODERS["recur from noise"]()
    states = []
    for draw in (0, 1):
        encoder.draw = draw
        vectors, position, state = begun(encoder, [9, 3, 1])
        states.append((state, unroll(encoder, vectors, position, 3)[:, 0]))
    steps = torch.tensor([2, 0, 3])
    rule = Told(states[0][0].latest[:, 0], steps)
    found, _ = unroll_until(encoder, [state for state, _ in states], 3, rule, last, answers)
    for row, step in enumerate(steps.tolist()):
        torch.testing.assert_close(found[row], (states[0][1][row, step] + states[1][1][row, step]) / 2)


def test_entropy_and_divergence_as_they_are_written() -> None:
    logits = torch.randn(2, 40, ITEMS, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    before, now = logits.log_softmax(dim=-1)
    torch.testing.assert_close(entropy(now), Categorical(logits=logits[1]).entropy())
    expected = kl_divergence(Categorical(logits=logits[0]), Categorical(logits=logits[1]))
    torch.testing.assert_close(divergence(before, now), expected)
    sure = torch.tensor([[200.0, 0.0, 0.0]]).log_softmax(dim=-1)
    assert (float(entropy(sure)), float(divergence(sure, sure))) == (0.0, 0.0)  # never below a threshold of 0


@pytest.mark.parametrize("name", list(ENCODERS))
@pytest.mark.parametrize(("kind", "least"), [(Entropy, 0), (Divergence, 1)])
def test_no_threshold_is_the_full_depth_and_no_end_of_it_the_least(name: str, kind: Any, least: int) -> None:
    """The divergence has to see what one step changes."""
    encoder = ENCODERS[name]()
    _, _, state = begun(encoder, [9, 3, 1, 5, 5])
    for threshold, steps in ((0.0, 4), (torch.inf, least)):
        _, taken = unroll_until(encoder, [state], 4, kind(threshold), last, answers)
        assert taken.tolist() == [steps] * 5


@pytest.mark.parametrize("name", ["append", "recur"])
@pytest.mark.parametrize("kind", [Entropy, Divergence])
@settings(max_examples=25, deadline=None)
@given(some=st.lists(st.floats(0, 4), min_size=2, max_size=2).map(sorted), seed=st.integers(0, 50))
def test_a_larger_threshold_takes_no_more_steps(name: str, kind: Any, some: list[float], seed: int) -> None:
    encoder = ENCODERS[name]()
    _, _, state = begun(encoder, [9, 3, 1, 5, 5, 7], seed)
    fewer, more = (unroll_until(encoder, [state], 5, kind(each), last, answers)[1] for each in reversed(some))
    assert bool((fewer <= more).all())


@pytest.mark.parametrize("rule", [Entropy(2.0), Divergence(0.003)])
def test_a_row_is_judged_by_itself(rule: Any) -> None:
    encoder = ENCODERS["recur"]()
    vectors, position, state = begun(encoder, [9, 3, 1, 5, 5, 7, 8, 2])
    _, taken = unroll_until(encoder, [state], 5, rule, last, answers)
    assert len(set(taken.tolist())) > 1
    for row in range(len(taken)):
        alone = encoder.encode(vectors[row : row + 1, : position[row, 0] + 1], position[row : row + 1])
        assert unroll_until(encoder, [alone], 5, rule, last, answers)[1].tolist() == [taken[row]]


@given(confidence=st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted))
@settings(max_examples=25, deadline=None)
def test_a_probe_gives_the_first_budget_it_is_sure_of(confidence: list[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(30, WIDTH, generator=generator)
    weight = torch.randn(WIDTH, 2, dtype=torch.float64, generator=generator)
    bias = torch.tensor([0.3, -0.2], dtype=torch.float64)
    low, high = (Probe(weight, bias, 1, 2, 4, each).budget(first) for each in confidence)
    assert bool((low <= high).all())
    for row in range(30):
        sure = torch.sigmoid(first[row].double() @ weight + bias).tolist()
        expected = 1 if sure[0] >= confidence[0] else 2 if sure[1] >= confidence[0] else 4
        assert int(low[row]) == expected
