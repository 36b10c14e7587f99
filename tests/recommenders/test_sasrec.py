"""SASRec's losses against what they estimate, and its two ways to compare a state with an item."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional as F

from forethought.recommenders.sasrec import SASRec, SASRecConfig

N = 40
HISTORY = torch.tensor([[3, 9, 1, 0], [7, 7, 2, 30]])
TARGET = torch.tensor([[9, 1, 4, 0], [0, 2, 30, 5]])


def model(**settings: Any) -> SASRec:
    torch.manual_seed(0)
    made = SASRec(SASRecConfig(num_items=N, max_length=4, hidden_size=8, num_heads=2, **settings)).eval()
    with torch.no_grad():
        made.embedding.weight.normal_(std=0.6)  # scores far enough apart to tell losses apart
    return made


def loss_of(sasrec: SASRec) -> float:
    return float(sasrec(HISTORY, TARGET).loss.detach())


def scores_and_wanted(sasrec: SASRec) -> tuple[Tensor, Tensor]:
    """Scores ``[targets, N]`` of every item at each position with a target, by the dense way; and the targets."""
    states = sasrec.encoder(sasrec.embedding(HISTORY))[TARGET > 0]
    return (states @ sasrec.embedding.weight[1:].T).detach(), TARGET[TARGET > 0] - 1


def test_ce_is_the_cross_entropy_over_the_catalogue() -> None:
    sasrec = model()
    assert loss_of(sasrec) == pytest.approx(float(F.cross_entropy(*scores_and_wanted(sasrec))))


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_many_negatives_with_logq_estimate_the_full_softmax(power: float) -> None:
    sasrec = model(loss="sampled", negatives=400_000, negative_power=power)
    sasrec.log_proposal.copy_(torch.linspace(0, 2, N).mul(power).log_softmax(0))
    full = float(F.cross_entropy(*scores_and_wanted(sasrec)))
    assert loss_of(sasrec) == pytest.approx(full, rel=0.005)
    sasrec.config.logq = False  # the uncorrected sum counts the catalogue ten thousand times over
    assert loss_of(sasrec) > full + 5


@pytest.mark.parametrize("negatives", [3, N - 1, 4 * N])
@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_gbce_is_binary_cross_entropy_of_a_raised_positive(
    calibration: float, negatives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-log sigma(s+)^beta - sum log(1 - sigma(s-)), with beta from the sampling rate (Petrov & Macdonald, eq. 7, 8).

    More negatives than items are a rate of 1, at which beta is 1 whatever the calibration.
    """
    sasrec = model(loss="gbce", negatives=negatives, calibration=calibration)
    drawn = torch.arange(negatives).mul(7).add(1) % N  # among them 8, the first target itself, and no negative there
    monkeypatch.setattr(torch, "multinomial", lambda *_, **__: drawn)
    scores, wanted = scores_and_wanted(sasrec)
    rate = min(negatives / (N - 1), 1.0)
    beta = {0.0: 1.0, 0.75: 0.75 * (rate - 1) + 1, 1.0: rate}[calibration]
    total = 0.0
    for row, positive in zip(scores, wanted.tolist(), strict=True):
        total -= float(torch.sigmoid(row[positive]).pow(beta).log())
        total -= sum(float((1 - torch.sigmoid(row[j])).log()) for j in drawn.tolist() if j != positive)
    assert loss_of(sasrec) == pytest.approx(total / len(wanted), rel=1e-5)


def test_cosine() -> None:
    sasrec = model(similarity="cosine", temperature=0.2)
    states = sasrec.encoder(sasrec.embedding(HISTORY))[[0, 1], [2, 3]]
    expected = F.cosine_similarity(states[:, None], sasrec.embedding.weight[None, 1:], dim=-1) / 0.2
    torch.testing.assert_close(sasrec.score(HISTORY), expected)
    with torch.no_grad():
        sasrec.embedding.weight[5] *= 3  # the length of an item's vector says nothing
    torch.testing.assert_close(sasrec.item_vectors() @ sasrec.query(HISTORY).T, sasrec.score(HISTORY).T)
    assert float(sasrec.item_vectors().detach().norm(dim=-1).max()) == pytest.approx(1)


@pytest.mark.parametrize("calibration", [-0.1, 5.0, float("nan")])
def test_a_calibration_that_would_push_targets_down(calibration: float) -> None:
    with pytest.raises(StrictDataclassError, match=r"calibration is .*has to lie between 0 and 1"):
        model(loss="gbce", calibration=calibration)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_cannot_divide(temperature: float) -> None:
    with pytest.raises(StrictDataclassError, match=r"temperature is .*has to be greater than 0"):
        model(similarity="cosine", temperature=temperature)
