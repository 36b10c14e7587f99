"""A recommender that halts answers as one told to take so many steps; every readout, either way of reasoning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from forethought.nn.halting import Divergence, Entropy, Moment, Probe, divergence, entropy
from forethought.recommenders.latent import model as latent
from forethought.recommenders.latent.lares import LARES, LARESConfig
from forethought.recommenders.latent.model import LatentReasoner
from forethought.recommenders.latent.policies import Watch
from forethought.recommenders.latent.rearec import ReaRec, ReaRecConfig
from forethought.recommenders.thinking import Counted, thinking

N = 30
SIZES: dict[str, Any] = {"num_items": N, "max_length": 6, "hidden_size": 8, "num_heads": 2, "steps": 3}
HISTORY = torch.tensor(
    [[3, 9, 1, 0, 0], [7, 7, 2, 30, 0], [5, 0, 0, 0, 0], [8, 4, 2, 11, 6], [1, 2, 0, 0, 0], [20, 21, 22, 23, 24]]
)
HEADS = torch.eye(8, 2).double(), torch.zeros(2).double()
MODELS: dict[str, Any] = {
    "last": (ReaRec, ReaRecConfig, {}),
    "mean": (ReaRec, ReaRecConfig, {"readout": "mean"}),
    "gate": (ReaRec, ReaRecConfig, {"readout": "gate", "similarity": "cosine", "temperature": 0.1}),
    "dual": (ReaRec, ReaRecConfig, {"readout": "dual"}),
    "bert4rec": (ReaRec, ReaRecConfig, {"backbone": "bert4rec", "norm": "post", "temperature": 3.0}),
    "lares": (LARES, LARESConfig, {}),
    "lares, dual": (LARES, LARESConfig, {"readout": "dual"}),
    "lares, two starts": (LARES, LARESConfig, {"start": "normal", "adapter": "add", "test_draws": 2}),
}


def make(name: str) -> LatentReasoner:
    kind, config, settings = MODELS[name]
    torch.manual_seed(0)
    made: LatentReasoner = kind(config(**SIZES, **settings)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)  # of no particular form
    return made


class Taken:
    """A rule that lets rows go in turn, and remembers r_0 of those that stay."""

    reads_answers = False

    def halts(self, moment: Moment) -> Tensor:
        return (moment.first[:, 0] * 1000).long() % 4 <= moment.step


@pytest.mark.parametrize("name", list(MODELS))
def test_a_halted_answer_is_the_one_of_so_many_steps(name: str) -> None:
    model = make(name)
    with torch.no_grad(), thinking(model, 3, halting=Taken()):
        found = model.query(HISTORY)
        steps = ((model._alone(HISTORY, (HISTORY > 0).sum(dim=1) - 1, 1)[:, 0, 0] * 1000).long() % 4).clamp(max=3)
        assert len(set(steps.tolist())) > 1
        for row, step in enumerate(steps.tolist()):
            torch.testing.assert_close(found[row], model.query(HISTORY, step)[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.score(HISTORY), found @ model.item_vectors().T)
    assert model.halting is None


@pytest.mark.parametrize("name", ["mean", "lares"])
def test_a_change_is_made_to_halted_thoughts_too(name: str) -> None:
    model = make(name)
    with torch.no_grad(), thinking(model, 3, change=torch.zeros_like, halting=Divergence(0.0)):
        found = model.query(HISTORY)
        torch.testing.assert_close(found, model.query(HISTORY, 3), atol=1e-5, rtol=1e-5)
        model.change = None
        assert not torch.allclose(found, model.query(HISTORY, 3), atol=1e-3)


@pytest.mark.parametrize("held", [1, 70, 10**6])
@pytest.mark.parametrize(
    "rule", [Entropy(2.87), Divergence(0.003), Probe(*HEADS, easy=0, normal=1, hard=3, confidence=0.5)]
)
def test_an_answer_depends_on_the_history_alone(rule: Any, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the others of its batch, nor on how many are held at once."""
    monkeypatch.setattr(latent, "HELD", held)
    model = make("mean")
    counted = Counted(rule)
    with torch.no_grad(), thinking(model, 3, halting=counted):
        together = model.query(HISTORY)
        steps, counted.steps = counted.steps, 0
        assert 0 < steps < 3 * len(HISTORY)
        alone = torch.cat([model.query(row[row > 0][None]) for row in HISTORY])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert counted.steps == steps


@pytest.mark.parametrize("name", ["mean", "lares"])
def test_what_is_watched_is_what_the_thought_tells(name: str) -> None:
    model, watch = make(name), Watch()
    with torch.no_grad(), thinking(model, 3, halting=watch):
        model.query(HISTORY)
        thought = model.think(HISTORY, 3)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    table = watch.table(torch.zeros(6, 4).double().numpy(), torch.arange(6).numpy(), order.numpy())
    answers = thought.answers.log_softmax(dim=-1)
    for case, row in zip(order.tolist(), range(6), strict=True):
        torch.testing.assert_close(table.first[case], thought.states[row, 0], atol=1e-5, rtol=1e-5)
        expected = entropy(answers[row, :3]).double()
        torch.testing.assert_close(torch.from_numpy(table.entropy[case]), expected, atol=1e-4, rtol=1e-4)
        moved = divergence(answers[row, :2], answers[row, 1:3]).double()
        torch.testing.assert_close(torch.from_numpy(table.divergence[case, 1:]), moved, atol=1e-4, rtol=1e-3)
        assert table.divergence[case, 0] == torch.inf
