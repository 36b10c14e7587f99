"""One position computed alone is what it is among all of them, in value and in gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from forethought.nn.encoder import CausalEncoder, newest_position, supervised_states, take
from forethought.recommenders.prefergrow.network import PaperBlock

ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "pre": lambda: CausalEncoder(12, 2, 3, 20, 0.1, 9, "pre"),
    "original": lambda: CausalEncoder(12, 2, 3, 20, 0.1, 9, "original"),
    "one block": lambda: CausalEncoder(12, 1, 1, 20, 0.1, 9),
    "paper": lambda: PaperBlock(12, 3, 0.1, 9),
}
BOTH = pytest.mark.parametrize("name", ENCODERS)


@pytest.fixture
def encoder(name: str) -> nn.Module:
    torch.manual_seed(0)
    encoder = ENCODERS[name]().double().eval()
    for parameter in encoder.parameters():  # biases begin at 0, where a forgotten one would not be seen
        nn.init.normal_(parameter, std=0.3)
    return encoder


@BOTH
def test_a_position_alone(encoder: nn.Module) -> None:
    vectors = torch.randn(7, 9, 12, dtype=torch.float64, requires_grad=True)
    position = torch.tensor([0, 8, 3, 5, 1, 8, 0])
    alone, among = encoder(vectors, position), take(encoder(vectors), position)
    torch.testing.assert_close(alone, among)
    outer = torch.randn_like(alone)
    inputs = [vectors, *encoder.parameters()]
    for found, expected in zip(
        torch.autograd.grad(alone, inputs, outer), torch.autograd.grad(among, inputs, outer), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


@BOTH
def test_what_comes_later_is_out_of_sight(encoder: nn.Module) -> None:
    vectors = torch.randn(2, 9, 12, dtype=torch.float64)
    changed = vectors.clone()
    changed[:, 4:] = 9.0
    position = torch.tensor([3, 2])
    torch.testing.assert_close(encoder(vectors, position), encoder(changed, position), atol=0, rtol=0)


@BOTH
@pytest.mark.parametrize("targets", [[[0, 4, 0], [5, 0, 0]], [[0, 4, 2], [5, 0, 0]], [[0, 4, 2], [0, 0, 0]]])
def test_states_at_the_targets(encoder: nn.Module, targets: list[list[int]]) -> None:
    target, vectors = torch.tensor(targets), torch.randn(2, 3, 12, dtype=torch.float64)
    torch.testing.assert_close(supervised_states(encoder, vectors, target), encoder(vectors)[target > 0])


def test_the_newest_position() -> None:
    history: Tensor = torch.tensor([[3, 1, 2], [3, 0, 0], [0, 0, 0]])
    assert newest_position(history).tolist() == [2, 0, 0]
