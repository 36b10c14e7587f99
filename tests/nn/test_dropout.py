"""Dropout drops as often as it says, keeps the mean, and follows torch's seed."""

from __future__ import annotations

import pytest
import torch

from forethought.nn.dropout import Dropout


@pytest.mark.parametrize("p", [0.0, 1e-5, 0.1, 0.5, 0.9, 1.0])
def test_rate_and_scale(p: float) -> None:
    torch.manual_seed(0)
    ones = torch.ones(1001, 999)
    dropped = Dropout(p)(ones)
    kept = dropped != 0
    deviation = (p * (1 - p) / ones.numel()) ** 0.5
    assert abs(float((~kept).double().mean()) - p) <= 5 * deviation + 2**-16
    if p < 1:
        torch.testing.assert_close(dropped[kept], ones[kept] / (1 - p))


def test_neighbours_are_independent() -> None:
    """Four of them share one draw of 64 bits."""
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(2**20)) != 0).double() - 0.5
    for lag in range(1, 9):
        assert abs(float((kept[lag:] * kept[:-lag]).mean()) * 4) < 5 / 2**10


def test_gradient_takes_the_same_mask() -> None:
    torch.manual_seed(0)
    states = torch.randn(7, 3, 5, requires_grad=True)
    dropped = Dropout(0.3)(states)
    (gradient,) = torch.autograd.grad(dropped.sum(), states)
    torch.testing.assert_close(gradient * states, dropped)


def test_same_seed_same_mask_and_none_in_evaluation() -> None:
    layer, states = Dropout(0.3), torch.randn(50, 4)
    torch.manual_seed(1)
    first = layer(states)
    torch.manual_seed(1)
    assert torch.equal(layer(states), first)
    assert not torch.equal(layer(states), first)
    assert torch.equal(layer.eval()(states), states)
