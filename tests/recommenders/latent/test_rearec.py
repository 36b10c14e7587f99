"""ReaRec against SASRec and against its losses written out; what the release gets wrong is not wrong here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional as F

from forethought.nn.encoder import newest_position
from forethought.recommenders.latent.losses import step_divergence
from forethought.recommenders.latent.model import LatentReasoner
from forethought.recommenders.latent.rearec import ReaRec, ReaRecConfig
from forethought.recommenders.sasrec import SASRec, SASRecConfig

N = 30
SIZES: dict[str, Any] = {"num_items": N, "max_length": 6, "hidden_size": 8, "num_heads": 2}
HISTORY = torch.tensor([[3, 9, 1, 0, 0], [7, 7, 2, 30, 0], [5, 0, 0, 0, 0], [8, 4, 2, 11, 6]])
TARGET = torch.tensor([[9, 1, 4, 0, 0], [0, 2, 30, 5, 0], [12, 0, 0, 0, 0], [0, 0, 0, 0, 9]])
ONE = torch.tensor([[0, 0, 4, 0, 0], [0, 0, 0, 5, 0], [12, 0, 0, 0, 0], [0, 0, 0, 0, 9]])


def model(**settings: Any) -> ReaRec:
    torch.manual_seed(0)
    made = ReaRec(ReaRecConfig(**SIZES, **settings)).eval()
    with torch.no_grad():
        made.embedding.weight[1:].normal_(std=0.6)  # scores far enough apart to tell losses apart
    return made


def loss_of(rearec: LatentReasoner, target: Tensor = TARGET) -> float:
    torch.manual_seed(3)
    return float(rearec(HISTORY, target).loss.detach())


def chain(rearec: ReaRec) -> Tensor:
    """r_0 … r_K at every target, ``[targets, K + 1, d]``."""
    return rearec.states(HISTORY, None, rearec.config.steps)[TARGET > 0].detach()


def cross_entropy(rearec: ReaRec, states: Tensor, temperature: float = 1.0) -> float:
    logits = states @ rearec.embedding.weight[1:].T / temperature
    return float(F.cross_entropy(logits, TARGET[TARGET > 0] - 1).detach())


@pytest.mark.parametrize("norm", ["pre", "original", "post"])
@pytest.mark.parametrize("loss", [{}, {"loss": "sampled", "negatives": 7}])
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"readout": "mean", "kl_weight": 0.05}, {"supervision": "every", "contrast_weight": 1.0},
        {"readout": "mean", "supervision": "every"}, {"readout": "gate", "supervision": "final"},
        {"supervision": "teacher"}, {"step_alignment_weight": 0.1},
    ],
)  # fmt: skip
def test_without_steps_it_is_sasrec_bit_for_bit(norm: Any, settings: dict[str, Any], loss: dict[str, Any]) -> None:
    """The release has no base model, and crashes or gives NaN at K = 0: the usual way to an unfair baseline."""
    torch.manual_seed(0)
    base = SASRec(SASRecConfig(**SIZES, norm=norm, **loss))
    torch.manual_seed(0)
    rearec = ReaRec(ReaRecConfig(**SIZES, norm=norm, steps=0, **settings, **loss))
    own = {name for name, _ in rearec.named_parameters()} - {name for name, _ in base.named_parameters()}
    assert own - {"readout_gate.weight"} == {"encoder.reasoning_positions"}
    for target in (TARGET, ONE):
        losses = []
        for made in (base, rearec):
            torch.manual_seed(1)
            made.train().zero_grad()
            loss = made(HISTORY, target).loss
            loss.backward()
            losses.append((loss.detach(), torch.rand(())))  # what the next batch draws is the same too
        assert losses[0] == losses[1]
        grads = dict(rearec.named_parameters())
        assert all(torch.equal(own.grad, grads[name].grad) for name, own in base.named_parameters())
    assert torch.equal(base.eval().score(HISTORY), rearec.eval().score(HISTORY))


@pytest.mark.parametrize("supervision", ["none", "every"])
def test_many_negatives_estimate_the_full_softmax(supervision: Any) -> None:
    full = model(supervision=supervision)
    sampled = model(supervision=supervision, loss="sampled", negatives=200_000)
    assert loss_of(sampled) == pytest.approx(loss_of(full), rel=0.005)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_erl_as_it_is_written(similarity: Any) -> None:
    rearec = model(readout="mean", kl_weight=0.3, similarity=similarity, temperature=0.5)
    states = rearec.states(HISTORY, None, 2)[ONE > 0].detach()
    items = rearec.embedding.weight[1:]

    def logits(of: Tensor) -> Tensor:
        if similarity == "cosine":
            return F.cosine_similarity(of[..., None, :], items, dim=-1) / 0.5
        return of @ items.T / 0.5

    expected = F.cross_entropy(logits(states.mean(dim=1)), ONE[ONE > 0] - 1)
    expected = expected - 0.3 * step_divergence(logits(states), "released")
    assert loss_of(rearec, ONE) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_under_autocast_the_divergence_is_that_of_float32(similarity: Any, form: Any) -> None:
    """It is the small difference of two large sums, which bfloat16 rounds to anything, below 0 too."""
    rearec = model(readout="mean", kl_weight=0.05, similarity=similarity)
    states = chain(rearec)
    for scale in (1.0, 0.1, 0.03):
        near, found = (states[:, :1] + scale * (states - states[:, :1])).requires_grad_(), []
        for low in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                divergence = step_divergence(rearec.logits(near), form)
            assert float(divergence.detach()) >= 0
            found.append((divergence.detach(), *torch.autograd.grad(divergence, near)))
        torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("cooling", [1.0, 5.0, 0.5])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_prl_supervises_every_step_at_its_temperature(cooling: float, reduction: Any) -> None:
    """Cooling multiplies the temperature of earlier states, heating divides it; the last is always at τ."""
    rearec = model(steps=3, supervision="every", cooling=cooling, step_reduction=reduction, step_weight=0.7)
    states = chain(rearec)
    early = [cross_entropy(rearec, states[:, k], cooling ** (3 - k)) for k in range(3)]
    share = 1 / 3 if reduction == "mean" else 1.0
    expected = cross_entropy(rearec, states[:, 3]) + 0.7 * share * sum(early)
    assert loss_of(rearec) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("supervision", ["none", "final", "every"])
@pytest.mark.parametrize("readout", ["last", "mean", "gate", "dual"])
def test_readouts_and_supervision_combine(readout: Any, supervision: Any) -> None:
    rearec = model(readout=readout, supervision=supervision, step_reduction="sum").train()
    for part in rearec.modules():
        if hasattr(part, "p"):
            part.p = 0.0
    states = chain(rearec)
    first, last = states[:, 0], states[:, -1]
    if readout in ("gate", "dual"):
        mixed = states if readout == "gate" else states[:, 1:]
        query = first @ rearec.readout_gate.weight.T
        weights = torch.softmax(torch.einsum("md,mtd->mt", query, mixed) / 8**0.5, dim=1)
        read = torch.einsum("mt,mtd->md", weights, mixed)
    else:
        read = last if readout == "last" else states.mean(dim=1)
    expected = cross_entropy(rearec, read.detach())
    supervised = {"none": [], "final": [2], "every": [0, 1, 2]}[supervision]
    expected += sum(cross_entropy(rearec, states[:, k]) for k in supervised if readout != "last" or k != 2)
    assert loss_of(rearec) == pytest.approx(expected, rel=1e-5)
    ranked = rearec.eval().query(HISTORY)[3].detach()
    answer = read[-1] + first[-1] if readout == "dual" else read[-1]  # the last target is row 3's newest
    torch.testing.assert_close(ranked, answer.detach(), atol=1e-5, rtol=1e-4)


def test_the_answer_of_erl_is_read_as_it_was_trained() -> None:
    """A port ranks ERL by its last state, although the mean was trained."""
    rearec = model(readout="mean")
    states = rearec.states(HISTORY, newest_position(HISTORY)[:, None], 2)[:, 0]
    torch.testing.assert_close(rearec.score(HISTORY), states.mean(dim=1) @ rearec.embedding.weight[1:].T)


def test_both_views_are_one_without_noise_and_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    rearec = model(steps=3, contrast_weight=1.0, noise_std=0.0)
    met: list[tuple[Tensor, Tensor]] = []

    def record(query: Tensor, key: Tensor, target: Tensor | None = None) -> Tensor:
        met.append((query.detach(), key.detach()))
        return query.sum() * 0

    monkeypatch.setattr("forethought.recommenders.latent.model.info_nce", record)
    loss_of(rearec)
    assert len(met) == 3
    for query, key in met:
        torch.testing.assert_close(query, key)


@pytest.mark.parametrize("std", [0.01, 0.1])
def test_the_contrast_counts_from_the_first_step_on(std: float) -> None:
    """The release crashes in every epoch: before its warm-up ends the contrast was never computed."""
    plain, contrasted = model(), model(contrast_weight=1.0, noise_std=std)
    assert loss_of(contrasted, ONE) > loss_of(plain, ONE)
    erl = model(readout="mean", kl_weight=0.05)
    assert loss_of(erl, ONE) < loss_of(model(readout="mean"), ONE)


def test_noise_has_the_deviation_that_is_named() -> None:
    """The paper's ε ~ N(0, γ I) has deviation sqrt(γ); the release multiplies by γ itself."""
    rearec = model(contrast_weight=1.0, noise_std=0.25)
    states = rearec.states(HISTORY, newest_position(HISTORY)[:, None], 2)[:, 0]
    fed: list[Tensor] = []
    original = rearec.encoder.step
    rearec.encoder.step = lambda state: (fed.append(state.latest.detach()), original(state))[1]
    torch.manual_seed(0)
    for _ in range(60):
        rearec._contrast(states, HISTORY, newest_position(HISTORY), torch.arange(4))
    noise = torch.stack(fed).view(60, 2, 4, 8) - states[:, :2].transpose(0, 1)  # each goes on from the clean state
    assert float(noise.std().detach()) == pytest.approx(0.25, rel=0.06)
    assert float(noise.mean().detach()) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("contrast_temperature", -0.5, "at least 0"), ("contrast_temperature", math.nan, "at least 0"),
        ("teacher_neighbours", -1, "at least 0"), ("temperature", 0.0, "greater than 0"),
        ("cooling", math.inf, "greater than 0"), ("teacher_gamma", 0.0, "greater than 0"), ("experts", 0, "at least 1"),
        ("text_dropout", 1.0, "less than 1"), ("negatives", 0, "at least 1"),
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(key: str, value: float, reason: str) -> None:
    with pytest.raises(StrictDataclassError, match=rf"{key} is {value}; it has to be .*{reason}"):
        ReaRecConfig(**SIZES, **{key: value})


def test_padding_is_no_class_and_no_answer() -> None:
    rearec = model(supervision="every", contrast_weight=1.0)
    rearec(HISTORY, TARGET).loss.backward()
    assert float(rearec.embedding.weight.grad[0].abs().max()) == 0
    assert rearec.item_vectors().shape == (N, 8)


def test_every_part_learns() -> None:
    rearec = model(steps=3, readout="gate", supervision="every", kl_weight=0.1, contrast_weight=0.5).train()
    rearec(HISTORY, TARGET).loss.backward()
    assert not [name for name, own in rearec.named_parameters() if own.grad is None or not own.grad.abs().sum() > 0]


@pytest.mark.parametrize("readout", ["last", "mean", "gate", "dual"])
def test_a_thought_answers_after_every_step(readout: Any) -> None:
    rearec = model(steps=3, readout=readout)
    thought = rearec.think(HISTORY, 5)  # more than were trained
    assert thought.kind == "append"
    assert thought.states.shape == (4, 6, 8)
    for step in range(6):
        rearec.steps = step
        torch.testing.assert_close(thought.answers[:, step], rearec.score(HISTORY))


def test_settings_that_mean_nothing() -> None:
    for key, value in (("temperature", 0.0), ("cooling", -1.0), ("kl_weight", -0.1), ("steps", -1)):
        with pytest.raises(Exception, match=key):
            model(**{key: value})
