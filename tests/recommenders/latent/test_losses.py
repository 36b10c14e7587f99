"""Divergence, contrast and same-target histories against what they are defined to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from forethought.data.dataset import Dataset
from forethought.recommenders.latent.losses import info_nce, step_divergence
from forethought.recommenders.latent.same_target import SameTarget

from ..logs import TRAINING


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(dim=-1)


def logits(steps: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, steps, 7, dtype=torch.float64, generator=generator).requires_grad_()


def test_the_papers_divergence_sums_over_pairs_in_order() -> None:
    given = logits()
    p = given.softmax(-1)
    expected = sum(kl(p[:, i], p[:, j]) for i in range(4) for j in range(i + 1, 4)).mean()
    found = step_divergence(given, "paper")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, given, retain_graph=True)[0] for x in (found, expected)))


def test_the_released_divergence_is_a_mean_with_one_side_held() -> None:
    given = logits()
    p = given.softmax(-1)
    pairs = [kl(p[:, j], p[:, i].detach()) for i in range(4) for j in range(4) if i != j]
    expected, found = torch.stack(pairs).mean(), step_divergence(given, "released")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, given, retain_graph=True)[0] for x in (found, expected)))


@pytest.mark.parametrize("form", ["paper", "released"])
def test_steps_that_agree_do_not_diverge(form: str) -> None:
    same = logits(1).detach().expand(-1, 3, -1)
    assert float(step_divergence(same, form)) == pytest.approx(0, abs=1e-12)
    assert float(step_divergence(same[:, :1], form)) == 0  # one step has nothing to differ from, and is not NaN
    assert float(step_divergence(logits().detach(), form)) > 0


def test_the_contrast_finds_its_own_row() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(5, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    torch.testing.assert_close(info_nce(query, key), F.cross_entropy(query @ key.T, torch.arange(5)))


def test_rows_with_ones_own_target_are_no_negatives() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(5, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    target = [4, 9, 4, 2, 4]
    total = 0.0
    for row in range(5):
        others = [other for other in range(5) if other == row or target[other] != target[row]]
        total -= float((query[row] @ key[others].T).log_softmax(0)[others.index(row)])
    assert float(info_nce(query, key, torch.tensor(target))) == pytest.approx(total / 5)
    assert float(info_nce(query, key, torch.full((5,), 3))) == 0  # nobody is left to be told from


def events() -> dict[int, list[list[int]]]:
    """Of every item the histories it followed in training."""
    found: dict[int, list[list[int]]] = {}
    for user in TRAINING:
        for place in range(1, len(user)):
            found.setdefault(user[place], []).append(user[:place])
    return found


@pytest.mark.parametrize("longest", [3, 20])
def test_another_history_with_the_target_is_drawn_evenly(tiny: Dataset, longest: int) -> None:
    torch.manual_seed(0)
    drawn, known = SameTarget(tiny, longest), events()
    for target, histories in known.items():
        for own in histories:
            if sum(other[-longest:][-len(own) :] == own[-longest:] for other in histories) > 1:
                continue  # another ends in the same items, and passes for one's own
            others = [tuple(other[-longest:]) for other in histories if other is not own]
            history = torch.tensor([own[-longest:]]).expand(4000, -1)
            rows = drawn.draw(history, torch.full((4000,), target)).tolist()
            found = [tuple(item for item in row if item) for row in rows]
            if not others:
                assert set(found) == {tuple(own[-longest:])}  # a target that is unique meets itself
                continue
            for other in set(others):
                share = np.mean([row == other for row in found])
                assert share == pytest.approx(others.count(other) / len(others), abs=0.04)


def test_a_target_that_training_never_saw_meets_its_own_history(tiny: Dataset) -> None:
    history = torch.tensor([[3, 1, 0], [2, 0, 0]])
    drawn = SameTarget(tiny, 5).draw(history, torch.tensor([8, 8]))
    assert drawn[:, :3].tolist() == history.tolist()
    assert not bool(drawn[:, 3:].any())


def test_the_index_keeps_a_number_an_event(tiny: Dataset) -> None:
    """The release kept, for each event, the list of all events with its target: the sum of squared counts."""
    drawn = SameTarget(tiny, 5)
    assert len(drawn.events) == len(drawn.lengths) == sum(len(user) - 1 for user in TRAINING if user)
    assert drawn.offsets.diff().tolist()[1:] == [len(events().get(item, [])) for item in range(1, 9)]
