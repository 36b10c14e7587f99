"""A reasoning step on the cache is the step of a full re-run; a recurrence is its unrolled blocks."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from forethought.nn.encoder import CausalEncoder, Norm, take
from forethought.nn.reasoning import Adapter, AppendingEncoder, Depth, RecurrentEncoder, Start, draw_depth, unroll

WIDTH, LENGTH = 12, 9
NORMS = get_args(Norm)


def wild(encoder: Any) -> Any:
    """Parameters of no particular form, so that a forgotten bias or norm is seen; in double precision, no dropout."""
    generator = torch.Generator().manual_seed(1)
    for parameter in encoder.double().eval().parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return encoder


def appending(norm: Norm = "pre", blocks: int = 2, steps: int = 5, adapter: Adapter = "none") -> AppendingEncoder:
    return wild(AppendingEncoder(WIDTH, blocks, 3, 20, 0.1, LENGTH, norm, steps=steps, adapter=adapter))


def recurrent(norm: Norm = "pre", **more: Any) -> RecurrentEncoder:
    return wild(RecurrentEncoder(WIDTH, 1, 3, 20, 0.1, LENGTH, norm, **more))


def adapted(encoder: Any, adapter: Adapter, state: Tensor, first: Tensor) -> Tensor:
    """What a step reads of the newest state and the first, written out."""
    if adapter == "concat":
        return torch.cat([state, first], dim=-1) @ encoder.adapt.mix.weight.T + encoder.adapt.mix.bias
    if adapter == "gated":
        share = torch.sigmoid(encoder.adapt.gate)
        return share * state + (1 - share) * first
    return {"add": (state + first) / 2, "residual": state + first, "none": state}[adapter]


def rerun(encoder: AppendingEncoder, vectors: Tensor, steps: int) -> Tensor:
    """r_0 … r_steps of one history ``[n, d]``, each by a full pass over all tokens so far; ``[steps + 1, d]``."""
    tokens, states = encoder.enter(vectors[None]), []
    for step in range(steps + 1):
        stream = tokens
        for block in encoder.blocks:
            stream = block(stream)
        states.append(encoder.final_norm(stream)[0, -1])
        row = min(step, len(encoder.reasoning_positions) - 1)
        fed = adapted(encoder, encoder.adapt.adapter, states[-1], states[0]) + encoder.reasoning_positions[row]
        token = encoder.dropout(encoder.input_norm(fed))
        tokens = torch.cat([tokens, token[None, None]], dim=1)
    return torch.stack(states)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, LENGTH), min_size=1, max_size=4),
    steps=st.integers(0, 6),
    adapter=st.sampled_from(get_args(Adapter)),
)
def test_a_step_on_the_cache_is_a_full_rerun(
    norm: Norm, blocks: int, lengths: list[int], steps: int, adapter: Adapter
) -> None:
    encoder, width = appending(norm, blocks, adapter=adapter), max(lengths)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(len(lengths), width, WIDTH, dtype=torch.float64, generator=generator)
    position = torch.tensor(lengths) - 1
    found = unroll(encoder, vectors, position[:, None], steps)[:, 0]
    every = unroll(encoder, vectors, None, steps)
    for row, length in enumerate(lengths):
        expected = rerun(encoder, vectors[row, :length], steps)
        torch.testing.assert_close(found[row], expected, atol=1e-10, rtol=1e-9)
        torch.testing.assert_close(every[row, length - 1], expected, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("blocks", [1, 2])
def test_prefix_masking(norm: Norm, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items look both ways and never at reasoning tokens; those look back."""
    encoder, generator = appending(norm, blocks), torch.Generator().manual_seed(0)
    encoder.bidirectional = True
    vectors = torch.randn(3, 7, WIDTH, dtype=torch.float64, generator=generator)
    lengths = [7, 1, 4]
    found = unroll(encoder, vectors, torch.tensor(lengths)[:, None] - 1, 3)[:, 0]
    torch.testing.assert_close(encoder(vectors, torch.tensor(lengths) - 1), found[:, 0])

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        index = torch.arange(query.shape[2])
        seen = (index <= index[:, None]) | ((index < items) & (index[:, None] < items))
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)

    monkeypatch.setattr("forethought.nn.encoder.causal_attention", attention)
    for row, items in enumerate(lengths):
        torch.testing.assert_close(found[row], rerun(encoder, vectors[row, :items], 3), atol=1e-10, rtol=1e-9)
    with pytest.raises(ValueError, match="one thought a row"):
        encoder.encode(vectors)


def test_a_step_is_within_a_hundred_thousandth_in_single_precision() -> None:
    torch.manual_seed(0)
    encoder = AppendingEncoder(WIDTH, 2, 3, 20, 0.1, LENGTH, steps=4).eval()
    vectors = torch.randn(1, 7, WIDTH)
    found = unroll(encoder, vectors, torch.tensor([[6]]), 4)[0, 0]
    torch.testing.assert_close(found, rerun(encoder, vectors[0], 4), atol=1e-5, rtol=0)


def test_a_step_computes_one_row() -> None:
    """The release's cache fed all L + k rows through every feed-forward layer again."""
    encoder, rows = appending(), []
    for block in encoder.blocks:
        block.feed_forward.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    state = encoder.encode(torch.randn(4, LENGTH, WIDTH, dtype=torch.float64), torch.tensor([[8], [3], [0], [5]]))
    assert rows == [LENGTH, 1]  # the last block reads the newest position alone
    rows.clear()
    for _ in range(3):
        state = encoder.step(state)
    assert rows == [1] * 6
    assert state.latest.shape == (4, 1, WIDTH)


@pytest.mark.parametrize("norm", NORMS)
def test_no_step_is_the_encoder(norm: Norm) -> None:
    vectors, position = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64), torch.tensor([8, 2, 0])
    for encoder in (appending(norm), recurrent(norm), recurrent(norm, start="normal", adapter="concat")):
        plain = CausalEncoder.forward(encoder, vectors, position)
        torch.testing.assert_close(encoder.encode(vectors, position[:, None]).latest[:, 0], plain)


def test_reasoning_positions_learn_and_the_chain_is_not_cut() -> None:
    encoder = appending(steps=3)
    vectors = torch.randn(2, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    states = unroll(encoder, vectors, torch.tensor([[4], [2]]), 3)
    states[:, :, 3].square().sum().backward()
    assert encoder.reasoning_positions.grad is not None
    assert bool((encoder.reasoning_positions.grad.norm(dim=1) > 0).all())  # the last state learns from every step
    assert vectors.grad is not None
    assert float(vectors.grad[1, 3:].abs().max()) == 0  # padding stays out of sight
    assert float(vectors.grad[1, :3].abs().min()) > 0


@pytest.mark.parametrize("adapter", get_args(Adapter))
@pytest.mark.parametrize("start", get_args(Start))
@pytest.mark.parametrize("core_norm", [True, False])
def test_a_recurrence_is_its_unrolled_blocks(adapter: Adapter, start: Start, core_norm: bool) -> None:
    encoder = recurrent("post" if core_norm else "pre", start=start, adapter=adapter, core_norm=core_norm)
    vectors, position = torch.randn(2, 6, WIDTH, dtype=torch.float64), torch.tensor([5, 2])
    history = encoder.blocks[0](encoder.enter(vectors))
    tokens = history
    if start != "history":
        tokens = torch.zeros_like(history)
    if start == "normal":
        tokens = encoder.first_tokens(history)
        assert bool((tokens[0] == tokens[1]).all())  # one draw, whoever asks
        assert 0 < float(tokens.abs().max()) <= 9  # three deviations, times three
        assert bool((tokens == encoder.first_tokens(history)).all())
    expected = [history]
    for _ in range(3):
        tokens = encoder.core[0](encoder.core_norm(adapted(encoder, adapter, tokens, history)))
        expected.append(tokens)
    found = unroll(encoder, vectors, position[:, None], 3)[:, 0]
    for step, each in enumerate(expected):
        torch.testing.assert_close(found[:, step], encoder.final_norm(take(each, position)))
    torch.testing.assert_close(unroll(encoder, vectors, None, 3)[0, 5], found[0])


def test_initial_noise_is_drawn_anew_in_training_only() -> None:
    encoder, history = recurrent(start="normal", adapter="add"), torch.zeros(2, 4, WIDTH, dtype=torch.float64)
    encoder.train()
    assert not bool((encoder.first_tokens(history) == encoder.first_tokens(history)).any())
    assert not bool((encoder.first_tokens(history)[0] == encoder.first_tokens(history)[1]).any())
    encoder.start = "normal_zero"
    assert float(encoder.first_tokens(history).abs().max()) > 0
    assert float(encoder.eval().first_tokens(history).abs().max()) == 0


def test_a_change_meets_what_the_next_step_goes_on_from() -> None:
    vectors, position = torch.randn(3, 5, WIDTH, dtype=torch.float64), torch.tensor([[4], [1], [3]])
    for encoder in (appending(), recurrent(adapter="residual")):
        plain = unroll(encoder, vectors, position, 2)
        torch.testing.assert_close(unroll(encoder, vectors, position, 2, lambda fed: fed), plain)
        zeroed = unroll(encoder, vectors, position, 2, torch.zeros_like)
        torch.testing.assert_close(zeroed[:, :, 0], plain[:, :, 0])
        assert float((zeroed - plain)[:, :, 1:].detach().abs().min(dim=-1).values.max()) > 0


@pytest.mark.parametrize(
    ("kind", "mean", "least", "most"),
    [("poisson-lognormal", 4.93, 1, 12), ("poisson", 4.99, 1, 12), ("uniform", 4.0, 1, 7), ("constant", 4.0, 4, 4)],
)
def test_the_depths_of_training(kind: Depth, mean: float, least: int, most: int) -> None:
    torch.manual_seed(0)
    drawn = torch.tensor([draw_depth(kind, 4) for _ in range(20_000)], dtype=torch.float64)
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.05)
    assert (int(drawn.min()), int(drawn.max())) == (least, most)
    if kind == "poisson-lognormal":  # the law the spec's simulation of the release found
        share = torch.bincount(drawn.long(), minlength=13)[1:] / len(drawn)
        published = torch.tensor([0.06, 0.13, 0.17, 0.16, 0.14, 0.11, 0.08, 0.06, 0.04, 0.03, 0.02, 0.03])
        assert float((share - published).abs().max()) < 0.012
    if kind == "uniform":
        assert {draw_depth(kind, 4, 3) for _ in range(200)} == {3, 4, 5}
