"""Chains of a model in float32: their law is the model's own, and the same draws give the same lists."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from forethought.errors import DataError
from forethought.recommenders.prefergrow.config import PreferGrowConfig
from forethought.recommenders.prefergrow.model import PreferGrow

HISTORY = torch.tensor([[3, 1, 2, 0], [5, 4, 6, 1]])


def marginal(num_items: int = 8, **keys: Any) -> PreferGrow:
    torch.manual_seed(0)
    model = PreferGrow(
        PreferGrowConfig(num_items=num_items, max_length=4, hidden_size=8, parametrization="marginal", **keys)
    )
    nn.init.normal_(model.embedding.weight)
    nn.init.normal_(model.nonpreference_user)
    model.head.mix.reset_parameters()  # a law that is not all on one item, as it is where the head is the identity
    return model.eval()


def law_of(model: PreferGrow, history: Tensor) -> Tensor:
    """What the model likes, float64 ``[B, N]``."""
    return model.score(history).detach().double().softmax(dim=1)


def noise_of(law: Tensor, draws: int) -> float:
    """The total variation that so many independent draws are expected to have from the law they were drawn from."""
    return float((law * (1 - law) / draws).sqrt().sum()) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize(
    "keys", [{"kernel": "pair"}, {"kernel": "hybrid", "gamma": 0.9999}, {"kernel": "point"}], ids=str
)
def test_one_step_from_the_strongest_noise_loses_nothing(keys: dict[str, Any]) -> None:
    """At σ = 20 a share of 2e-9 of the preference is left; chains in float32 do not find it again."""
    model, chains = marginal(1000, sigma_max=20.0, **keys), 4000
    law = law_of(model, HISTORY[:1])[0]
    grown = model.grow(HISTORY[:1].expand(chains, -1), steps=1, generator=torch.Generator().manual_seed(0))
    assert grown.denoised.dtype == torch.float64
    assert float((grown.denoised.mean(dim=0)[:1000] - law).abs().sum()) / 2 < 1.2 * noise_of(law, chains)


@pytest.mark.parametrize("keys", [{"kernel": "hybrid"}, {"kernel": "pair"}], ids=str)
@pytest.mark.parametrize(("configured", "asked", "steps"), [(2.0, None, None), (1.0, 0.0, 2)])
def test_chain_scores_approach_the_law_of_the_model(
    keys: dict[str, Any], configured: float, asked: float | None, steps: int | None
) -> None:
    model = marginal(guidance=configured, growing_steps=4, **keys)
    law = law_of(marginal(guidance=configured if asked is None else asked, **keys), HISTORY[:1])
    history, distance = HISTORY[:1].expand(300, -1), {}
    for chains in (1, 20):
        scores = model.chain_scores(history, chains, steps, asked, torch.Generator().manual_seed(0))
        assert (scores.shape, scores.dtype) == ((300, 8), torch.float64)
        assert bool((scores >= 0).all())
        assert bool((scores.sum(dim=1) <= 1 + 1e-12).all())
        distance[chains] = float((scores - law).abs().sum(dim=1).mean()) / 2
        assert float((scores.mean(dim=0) - law).abs().sum()) / 2 < 2 * noise_of(law, 300 * chains)
    assert distance[20] == pytest.approx(noise_of(law, 20), rel=0.3)
    assert distance[20] < distance[1] / 2


def test_the_same_generator_gives_the_same_chain_scores() -> None:
    model = marginal()
    first, same, other = (
        model.chain_scores(HISTORY, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)


def test_a_preference_is_the_softmax_of_guided_logits() -> None:
    model = marginal(kernel="hybrid")
    user = model.user(HISTORY)
    liked, anybody = (model.head.query(who, None) for who in (user, model.nonpreference_user[None]))
    for w in (0.0, 1.0, 3.0):
        logits = (w * liked + (1 - w) * anybody) @ model.embedding.weight[1:9].T + model.head.bias
        preference = model.preference(user, w)
        assert_close(preference[:, :8], logits.softmax(dim=1))
        assert preference[:, 8].tolist() == [0.0, 0.0]


def test_numbers_of_steps_and_chains_that_do_not_fit_are_refused() -> None:
    model = marginal()
    with pytest.raises(DataError, match="steps is -1; it has to be a whole number of 0 or more"):
        model.grow(HISTORY, steps=-1)
    with pytest.raises(DataError, match="chains is 0; it has to be a whole number of 1 or more"):
        model.chain_scores(HISTORY, 0)
