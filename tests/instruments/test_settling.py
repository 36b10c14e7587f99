"""How much of its final answer a thought has after each step."""

from __future__ import annotations

import pytest
import torch

from forethought.errors import DataError
from forethought.instruments.settling import kept, top
from forethought.nn.thought import Thought


def thought(answers: torch.Tensor | None, mask: list[list[bool]]) -> Thought:
    real = torch.tensor(mask)
    return Thought(torch.zeros(*real.shape, 2), real, "recur", answers)


def test_the_share_of_the_final_top_k_by_hand() -> None:
    first = [[5.0, 4, 3, 2, 1, 0], [5, 0, 4, 3, 0, 0], [5, 0, 4, 0, 3, 0]]  # top 3: 012, 023, 024
    second = [[0.0, 1, 2, 3, 4, 5], [5, 4, 3, 0, 0, 0], [9, 9, 9, 9, 9, 9.5]]  # two steps taken: 345, 012
    found = kept(thought(torch.tensor([first, second]), [[True] * 3, [True, True, False]]), k=3)
    assert found[0].tolist() == pytest.approx([2 / 3, 2 / 3, 1])
    assert found[1, :2].tolist() == [0, 1]
    assert bool(found[1, 2].isnan())


def test_the_order_inside_the_top_k_does_not_count() -> None:
    answers = torch.tensor([[[1.0, 2, 3, 0], [3, 2, 1, 0]]])
    assert top(answers, 3).tolist() == [[[0, 1, 2], [0, 1, 2]]]
    assert kept(thought(answers, [[True, True]]), k=3).tolist() == [[1, 1]]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match="has no answers"):
        kept(thought(None, [[True]]))
    with pytest.raises(DataError, match="There are 4 candidates, fewer than the 10"):
        kept(thought(torch.zeros(1, 1, 4), [[True]]))
