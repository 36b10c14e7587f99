"""The reading of text vectors against a loop in float64, and the table against what a table promises."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from forethought.nn.text_items import TextEmbedding, WhiteningExperts


def made(items: int = 7, text_size: int = 6, width: int = 4, experts: int = 3, **options: object) -> TextEmbedding:
    torch.manual_seed(0)
    table = TextEmbedding(items, text_size, width, experts, 0.5, bool(options.get("with_ids")))
    table.text.copy_(F.normalize(torch.randn(items, text_size), dim=1))
    with torch.no_grad():
        for name, parameter in table.adaptor.named_parameters():
            parameter.normal_(std=0.5 if name != "gate_noise" else 1.0)
    return table


@given(
    items=st.integers(1, 5), text_size=st.integers(1, 6), width=st.integers(1, 4), experts=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_the_mixture_as_it_is_written(items: int, text_size: int, width: int, experts: int, seed: int) -> None:
    torch.manual_seed(seed)
    adaptor = WhiteningExperts(text_size, width, experts, 0.5).double().eval()
    for parameter in adaptor.parameters():
        torch.nn.init.normal_(parameter)
    text = torch.randn(items, text_size, dtype=torch.float64)
    x, W, b = text.numpy(), adaptor.weight.detach().numpy(), adaptor.shift.detach().numpy()
    expected = np.zeros((items, width))
    for row in range(items):
        gates = np.exp(x[row] @ adaptor.gate.detach().numpy())
        for expert in range(experts):
            expected[row] += gates[expert] / gates.sum() * ((x[row] - b[expert]) @ W[:, expert])
    np.testing.assert_allclose(adaptor(text).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


def test_gates_are_noisy_and_texts_dropped_only_while_training() -> None:
    adaptor, text = made().adaptor, made().text.float()
    assert torch.equal(adaptor.eval()(text), adaptor(text))
    adaptor.train()
    assert not torch.equal(adaptor(text), adaptor(text))
    adaptor.dropout.p = 0.0
    assert not torch.equal(adaptor(text), adaptor(text))  # the noise of the gates
    with torch.no_grad():
        adaptor.gate_noise.fill_(0)
    torch.manual_seed(5)
    noise = torch.randn(7, 3) * np.log(2)  # softplus(0)
    gates = (text @ adaptor.gate + noise).softmax(dim=1)
    whitened = torch.stack([(text - adaptor.shift[e]) @ adaptor.weight[:, e] for e in range(3)], dim=1)
    torch.manual_seed(5)
    torch.testing.assert_close(adaptor(text), (gates[..., None] * whitened).sum(dim=1))


def test_a_text_begins_as_an_embedding_does() -> None:
    torch.manual_seed(0)
    adaptor = WhiteningExperts(384, 128, 1, 0.2).eval()
    table = adaptor(F.normalize(torch.randn(500, 384), dim=1))
    assert float(table.std().detach()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("with_ids", [False, True])
def test_what_a_table_promises(with_ids: bool) -> None:
    table = made(with_ids=with_ids).eval()
    weight = table.weight
    assert weight.shape == (8, 4)
    assert weight.dtype == torch.float32
    assert not weight[0].any()
    expected = table.adaptor(table.text.float())
    if table.ids is not None:
        expected = expected + table.ids
    assert torch.equal(weight[1:], expected)
    items = torch.tensor([[3, 1, 0], [7, 7, 2]])
    assert torch.equal(table(items), weight[items])


def test_gradients_reach_the_adaptor_and_not_the_text() -> None:
    table = made(with_ids=True).train()
    table(torch.tensor([[3, 1, 0]])).square().sum().backward()
    assert all(bool(own.grad.abs().sum() > 0) for own in table.parameters())
    assert not table.text.requires_grad
    assert "text" in dict(table.named_buffers())


def test_one_table_is_held_and_its_gradients_are_summed() -> None:
    table = made().train()
    with table.held():
        one, other = table.weight, table.weight
        assert one is other
        assert torch.equal(table(torch.tensor([2])), one[[2]])
        (one.sum() + other.sum()).backward()
    twice = table.adaptor.shift.grad.clone()
    assert not torch.equal(table.weight, table.weight)  # drawn anew, now that it is let go
    assert bool(twice.abs().sum() > 0)
    with pytest.raises(RuntimeError, match="stop"), table.held():
        raise RuntimeError("stop")
    assert not torch.equal(table.weight, table.weight)


def test_outside_training_a_table_is_made_anew_where_a_parameter_changed() -> None:
    table = made(with_ids=True).eval()
    with torch.no_grad():
        before = table.weight
        assert table.weight is before
        for parameter in table.parameters():
            parameter.mul_(1.5)
            assert torch.equal(table.weight, made_of(table))
        loaded = copy.deepcopy(table)
        loaded.load_state_dict(made(with_ids=True).state_dict())
        assert torch.equal(loaded.weight, made(with_ids=True).eval().weight)
        loaded.text.mul_(0.5)
        assert torch.equal(loaded.weight, made_of(loaded))
        torch._foreach_mul_(list(table.parameters()), 0.5)  # as averages of weights are put in
        assert torch.equal(table.weight, made_of(table))


@pytest.mark.parametrize("held", [False, True])
def test_a_step_of_training_is_seen_though_it_leaves_no_trace(held: bool) -> None:
    """The fused optimiser, which trains all models here, changes parameters without counting it as a change."""
    table = made(with_ids=True).eval()
    optimiser = torch.optim.AdamW(table.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        before = table.weight.clone()
    with table.held() if held else contextlib.nullcontext():
        table.weight.square().sum().backward()
    optimiser.step()
    with torch.no_grad():
        assert not torch.equal(table.weight, before)
        assert torch.equal(table.weight, made_of(table))


def test_under_autocast_the_table_is_float32_and_outside_training_exact() -> None:
    for training in (True, False):
        table = made().train(training)
        with torch.no_grad():
            exact = made().eval().weight
            with torch.autocast("cpu", torch.bfloat16):
                found = table.weight
        assert found.dtype == torch.float32
        assert torch.equal(found, exact) == (not training)


def made_of(table: TextEmbedding) -> torch.Tensor:
    with torch.enable_grad():
        return table.weight.detach()
