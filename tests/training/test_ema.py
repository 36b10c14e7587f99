"""The average of the weights, against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from forethought.training.ema import ExponentialMovingAverage


def test_the_decay_rises_to_its_limit():
    average = ExponentialMovingAverage(nn.Linear(2, 2), 0.95)
    assert [average.decay_at(n) for n in (0, 1, 10)] == pytest.approx([1 / 10, 2 / 11, 11 / 20])
    assert average.decay_at(10_000) == 0.95


def test_the_average_is_the_weighted_sum_of_all_weights_so_far():
    layer = nn.Linear(3, 2).double()
    average = ExponentialMovingAverage(layer, 0.9)
    seen, weights = [layer.weight.detach().clone()], [1.0]
    for update in range(30):
        with torch.no_grad():
            layer.weight.copy_(torch.randn(2, 3, dtype=torch.float64))
        average.update(update)
        decay = min(0.9, (1 + update) / (10 + update))
        weights = [weight * decay for weight in weights] + [1 - decay]
        seen.append(layer.weight.detach().clone())
    expected = sum(weight * value for weight, value in zip(weights, seen, strict=True))
    assert sum(weights) == pytest.approx(1)
    torch.testing.assert_close(average.state_dict()["weight"], expected)


def test_the_model_has_the_average_only_inside():
    layer = nn.Linear(2, 2)
    average = ExponentialMovingAverage(layer, 0.5)
    before, own = layer.weight.detach().clone(), torch.randn(2, 2)
    with torch.no_grad():
        layer.weight.copy_(own)
    with average.in_model():
        assert torch.equal(layer.weight, before)
    assert torch.equal(layer.weight, own)


def test_a_saved_average_goes_on_where_it_was_and_frozen_weights_have_none():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    first = ExponentialMovingAverage(layer, 0.5)
    assert list(first.state_dict()) == ["weight"]
    state = {name: tensor.clone() + 2 for name, tensor in first.state_dict().items()}
    first.load_state_dict(state)
    assert torch.equal(first.state_dict()["weight"], layer.weight + 2)
    with pytest.raises(KeyError):
        first.load_state_dict({})
