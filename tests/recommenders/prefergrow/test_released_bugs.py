"""What the released PreferGrow code computes, written here from its description, and that ours is right instead.

Each test names the mistake, shows its effect with exact ratios, and holds our function to the truth.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.linalg import expm
from torch.testing import assert_close

from forethought.data.batches import LengthBuckets
from forethought.data.dataset import Dataset
from forethought.evaluation.ranking import rank_targets
from forethought.recipes import shipped_recipes
from forethought.recommenders.models import build, read_recipe
from forethought.recommenders.prefergrow import fused
from forethought.recommenders.prefergrow.config import PreferGrowConfig
from forethought.recommenders.prefergrow.fused import Corruption
from forethought.recommenders.prefergrow.growing import LAST_TIME, analytic_step, grow
from forethought.recommenders.prefergrow.kernels import FadingKernel
from forethought.recommenders.prefergrow.model import PreferGrow
from forethought.recommenders.prefergrow.schedules import Geometric
from forethought.recommenders.prefergrow.score_entropy import score_entropy_reference
from tests.planted import ring

N, GAMMA = 50, 0.9999
M = N + 1
P = np.append(np.full(N, GAMMA / N), 1 - GAMMA)
Floats = npt.NDArray[np.float64]


def preference() -> Floats:
    logits = np.random.default_rng(0).normal(scale=2.0, size=N)
    return np.append(np.exp(logits) / np.exp(logits).sum(), 0.0)


def right_inverse(ratios: Floats, alpha: float) -> Floats:
    return ratios / alpha + (1 - 1 / alpha) * ratios.sum(axis=1, keepdims=True) * P


def released_inverse(ratios: Floats, alpha: float) -> Floats:
    """Adds (α - 1)/M Σ p_y ρ_y to every state, where (1 - 1/α) (Σ ρ) p_y belongs."""
    return ratios / alpha + (alpha - 1) / M * (ratios @ P)[:, None]


def right_rows(alpha: float) -> Floats:
    return alpha * np.eye(M) + (1 - alpha) * P[:, None]


def released_rows(alpha: float) -> Floats:
    """Divides what reaches d from elsewhere by M."""
    rows = right_rows(alpha)
    rows[N] = alpha * np.eye(M)[N] + (1 - alpha) * P[N] / M
    return rows


RELEASED_START = np.append(np.full(N, (1 - GAMMA) / N), GAMMA)  # d with probability γ, where 1 - γ is meant


def chain(steps: int, inverse=right_inverse, rows=right_rows, start: Floats = P) -> Floats:  # type: ignore[no-untyped-def]
    """The law after T steps with exact ratios, before the last denoising."""
    sigmas = Geometric().sigma(torch.linspace(1, LAST_TIME, steps + 1, dtype=torch.float64)).numpy()
    law = start
    for now, then in pairwise(sigmas):
        noised = math.exp(-now) * preference() + (1 - math.exp(-now)) * P
        alpha = math.exp(then - now)
        step = np.clip(inverse(noised / noised[:, None], alpha), 0, None) * rows(alpha)
        law = law @ (step / step.sum(axis=1, keepdims=True))
    return law


def distance(law: Floats) -> float:
    return float(np.abs(law - preference()).sum()) / 2


def exact_log_ratios(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    alpha = torch.exp(-sigma.double())[:, None]
    log_p = (alpha * torch.from_numpy(preference()) + (1 - alpha) * torch.from_numpy(P)).log()
    return log_p - log_p.gather(1, x[:, None])


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name.endswith(("-hybrid", "-adaptive"))])
def test_1_every_published_command_starts(name: str, tiny: Dataset) -> None:
    model = build(read_recipe(name, {"model.hidden_size": 8}), tiny)
    history = torch.tensor([[3, 1, 2, 5], [7, 2, 0, 0]])
    loss = model(history, torch.tensor([[0, 0, 0, 6], [0, 4, 0, 0]])).loss
    loss.backward()
    assert bool(loss.isfinite())
    assert all(weights.grad is not None and bool(weights.grad.isfinite().all()) for weights in model.parameters())


@pytest.mark.parametrize(
    "keys",
    [
        {"ce_weight": 1.0},
        {"loss": "bce"},
        {"parametrization": "marginal", "ce_weight": 1.0},
        {"parametrization": "marginal", "loss": "exact"},
    ],
    ids=str,
)
def test_2_the_adaptive_distribution_has_the_gradient_of_its_own_likelihood_alone(keys: dict[str, Any]) -> None:
    """The release never applies one; that of the score entropy is ill-posed, since p also weighs it and draws x_t."""
    torch.manual_seed(0)
    model = PreferGrow(PreferGrowConfig(num_items=5, kernel="adaptive", gamma=0.8, hidden_size=8, **keys))
    with torch.no_grad():
        model.adaptive.copy_(torch.linspace(-1, 1, 5))
    model(torch.ones(2, 5, dtype=torch.int64), torch.tensor([[1, 1, 2, 5, 1], [2, 1, 1, 0, 1]])).loss.backward()
    shares = torch.tensor([6, 2, 0, 0, 1]) / 9
    assert_close(model.adaptive.grad, torch.linspace(-1, 1, 5).softmax(0) - shares)


def test_2_the_adaptive_distribution_learns_how_often_targets_occur() -> None:
    torch.manual_seed(0)
    model = PreferGrow(PreferGrowConfig(num_items=5, kernel="adaptive", gamma=0.8, hidden_size=8)).train()
    shares = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    history = torch.ones(500, 1, dtype=torch.int64)
    target = torch.arange(1, 6).repeat_interleave((shares * 500).round().long())[:, None]
    for _ in range(300):
        optimiser.zero_grad()
        model(history, target).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p is not model.adaptive], 0.1)
        optimiser.step()
    assert_close(model.current_kernel().p[:5], 0.8 * shares, atol=0.02, rtol=0)
    assert_close(model.current_kernel().p[5], torch.tensor(0.2))


def test_3a_the_inverse_of_the_hybrid_kernel() -> None:
    alpha = 0.3
    dense = np.linalg.inv(expm(-math.log(alpha) * (np.repeat(P[:, None], M, axis=1) - np.eye(M))))
    v = np.random.default_rng(1).random((1, M))
    ours = FadingKernel.hybrid(N, GAMMA, torch.float64).inverse(torch.from_numpy(v), alpha).numpy()
    np.testing.assert_allclose(ours, v @ dense.T, atol=1e-12)
    assert np.abs(released_inverse(v, alpha) - v @ dense.T).max() > 0.01

    assert distance(chain(20, inverse=released_inverse)) == pytest.approx(0.075, abs=0.02)
    assert distance(chain(1, inverse=released_inverse)) > 0.5
    assert distance(chain(20)) < 1e-3  # before the last denoising, with which it is < 1e-6 (test_growing)


def test_3b_the_row_of_the_disliked_state() -> None:
    alpha = 0.3
    dense = expm(-math.log(alpha) * (np.repeat(P[:, None], M, axis=1) - np.eye(M)))
    ours = FadingKernel.hybrid(N, GAMMA, torch.float64).row(torch.arange(M), alpha).numpy()
    np.testing.assert_allclose(ours, dense, atol=1e-14)
    released = released_rows(alpha)
    np.testing.assert_allclose(released[:N], dense[:N], atol=1e-14)
    np.testing.assert_allclose(released[N, :N] * M, dense[N, :N], atol=1e-14)


def test_3c_growing_starts_where_fading_ends() -> None:
    draws = FadingKernel.hybrid(N, GAMMA).prior_sample(50_000, torch.Generator().manual_seed(0))
    assert (draws == N).float().mean().item() < 10 * (1 - GAMMA)


def test_3b_and_3c_leave_the_chain_stuck_on_d() -> None:
    stuck = chain(20, rows=released_rows, start=RELEASED_START)
    assert stuck[N] == pytest.approx(0.35, abs=0.02)
    assert chain(20)[N] < 1e-6
    kernel = FadingKernel.hybrid(N, GAMMA, torch.float64)
    on_d = torch.full((2000,), N)
    growth = grow(exact_log_ratios, kernel, Geometric(), 20, on_d, generator=torch.Generator().manual_seed(0))
    assert int((growth.states[:, -2] == N).sum()) <= 2  # even from that start, the right row leaves d


def test_4_impossible_states_are_never_drawn() -> None:
    """log of a negative entry is NaN, and argmax returns the NaN: the released sampler draws state 1 every time."""
    unclamped = torch.tensor([0.5, -0.01, 0.4, 0.2])
    gumbel = -(-torch.rand(2000, 4, generator=torch.Generator().manual_seed(0)).log()).log()
    assert bool(((unclamped.log() + gumbel).argmax(dim=1) == 1).all())

    # ratios whose unfading is negative at state 1: p_t there is below (1 - α) p
    kernel = FadingKernel.pair(4, torch.float64)
    noised = kernel.transition(torch.tensor([0.5, -0.01, 0.31, 0.2], dtype=torch.float64), 0.5)
    x = torch.zeros(2000, dtype=torch.int64)
    log_ratios = (noised.log() - noised[0].log()).expand(2000, 4)
    assert kernel.inverse(noised, 0.5)[1] < 0
    probability = analytic_step(log_ratios, x, kernel, 0.5)
    assert_close(probability.sum(dim=1), torch.ones(2000, dtype=torch.float64))
    assert float(probability[:, 1].abs().sum()) == 0.0
    drawn = grow(
        lambda x, sigma: log_ratios,
        kernel,
        Geometric(0.1, math.log(2)),
        0,
        x,
        generator=torch.Generator().manual_seed(0),
    )
    counts = np.bincount(drawn.final.numpy(), minlength=4)
    assert counts[1] == 0
    assert counts[0] > 0
    assert counts[2] > 0
    assert counts[3] > 0


def test_5_scores_do_not_reward_the_present_sample() -> None:
    """At t = 1e-5 the denoiser puts nearly all mass on the state it is in, so its first place is a random draw.

    From a fixed state at a high noise level the same formula gives the preference itself, for everyone alike.
    """
    kernel, target = FadingKernel.point(N, torch.float64), torch.from_numpy(preference())

    def log_ratios(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        log_p = kernel.transition(target.expand(len(x), -1), torch.exp(-sigma)).log()
        return log_p - log_p.gather(1, x[:, None])

    generator = torch.Generator().manual_seed(0)
    chained = grow(log_ratios, kernel, Geometric(), 20, 200, generator=generator)
    last = chained.states[:, -2]
    assert torch.equal(chained.denoised.argmax(dim=1)[last < N], last[last < N])  # the lottery
    assert len(chained.denoised.argmax(dim=1).unique()) > 5
    read = grow(log_ratios, kernel, Geometric(), 0, torch.full((3,), N), generator=generator)
    assert_close(read.denoised, target.expand(3, -1))


def test_5_point_scores_at_items_are_never_trained() -> None:
    """Why a chain of the point kernel may not be asked for scores once it has left d."""
    kernel = FadingKernel.point(N)
    scores = torch.randn(N, M, generator=torch.Generator().manual_seed(0)).requires_grad_()
    items = torch.arange(N)
    loss = score_entropy_reference(scores, items, items, 0.5, kernel)
    loss.sum().backward()
    assert scores.grad is not None
    assert float(scores.grad.abs().sum()) == 0.0


def hybrid_on_d(scores: torch.Tensor, x_0: int, alpha: float, divisor: int, constant: float) -> torch.Tensor:
    """The hybrid loss at x_t = d from its closed form, p_d r_y = γ/N + 1{y = x₀}/e, with γ/divisor for γ/N."""
    e = (1 - alpha) / alpha
    return (1 - GAMMA) * scores[:N].exp().sum() - GAMMA / divisor * scores[:N].sum() - scores[x_0] / e + constant


def test_6_the_hybrid_loss_and_its_constant() -> None:
    """At x_t = d the constant lacks a factor γ/N, so the printed loss is no bound in nats; N + 1 stands for N."""
    alpha, x_0, p_d = 0.4, 7, 1 - GAMMA
    e = (1 - alpha) / alpha
    liked = GAMMA / N + 1 / e  # p_d r at x₀
    log_r = math.log(GAMMA / N / p_d)
    right = (N - 1) * GAMMA / N * (log_r - 1) + liked * (math.log(liked / p_d) - 1)
    released = (N - 1) * (log_r - 1) + liked * (math.log(liked / p_d) - 1)

    kernel = FadingKernel.hybrid(N, GAMMA, torch.float64)
    column = kernel.column(torch.tensor([x_0]), alpha)
    truth = (column.log() - column[0, N].log()).requires_grad_()
    ours = score_entropy_reference(truth, torch.tensor([N]), torch.tensor([x_0]), alpha, kernel)
    theirs = hybrid_on_d(truth[0], x_0, alpha, N + 1, released)
    corrected = hybrid_on_d(truth[0], x_0, alpha, N, right)
    assert ours.item() == pytest.approx(0.0, abs=1e-10)
    assert corrected.item() == pytest.approx(0.0, abs=1e-10)
    assert abs(theirs.item()) > 100

    (gradient,) = torch.autograd.grad(ours, truth)
    (released_gradient,) = torch.autograd.grad(theirs, truth)
    assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    wrong = GAMMA / N - GAMMA / (N + 1)
    assert_close(released_gradient[0, :N], torch.full((N,), wrong, dtype=torch.float64))


@pytest.mark.parametrize("x_t", [7, 3, N], ids=["stayed", "another item", "d"])
def test_6_the_hybrid_loss_in_each_of_its_cases(x_t: int) -> None:
    """The release also loses a γ in the constant where x_t is another item, so that its loss is not 0 at the truth."""
    gamma, alpha, x_0 = 0.5, 0.4, 7
    e, p = (1 - alpha) / alpha, np.append(np.full(N, gamma / N), 1 - gamma)
    # p_x r_y, from the closed form
    if x_t == x_0:
        targets = p * e * p[x_t] / (1 + e * p[x_t])
    else:
        targets = p + np.eye(M)[x_0] / e
    s = np.random.default_rng(3).normal(size=M)
    expected = 0.0
    for y in set(range(M)) - {x_t}:
        r = targets[y] / p[x_t]
        expected += p[x_t] * math.exp(s[y]) - targets[y] * s[y] + targets[y] * (math.log(r) - 1)
    kernel = FadingKernel.hybrid(N, gamma, torch.float64)
    noise = Corruption(torch.tensor([x_0]), torch.tensor([x_t]), torch.tensor([alpha]).double(), torch.ones(1).double())
    identity = torch.eye(M, dtype=torch.float64)
    assert fused.score_entropy(torch.from_numpy(s)[None], identity, kernel, noise).item() == pytest.approx(expected)
    truth = torch.from_numpy(np.log(targets / p[x_t]))[None]
    assert fused.score_entropy(truth, identity, kernel, noise).item() == pytest.approx(0.0, abs=1e-10)
    if x_t == 3:
        right, slipped = 1 + N / (gamma * e), 1 + N / e  # the ratio at x_0, and without its γ
        assert abs(right * (math.log(right) - 1) - slipped * (math.log(slipped) - 1)) * p[x_t] > 1


def test_7_batches_are_shuffled_and_every_case_is_ranked_without_noise() -> None:
    """The release trains in the order of the file, validates with dropout, and skips the last cases of 256."""
    data = ring(users=300, items=50)
    torch.manual_seed(0)
    config = PreferGrowConfig(num_items=50, max_length=24, hidden_size=8, dropout=0.5, nonpreference_user_ratio=0.5)
    model = PreferGrow(config).train()
    targets = data.targets("valid")
    ranks = rank_targets(model, targets, batch_size=256)
    assert len(ranks) == len(targets) == 300
    history = data.sequences.items[data.sequences.offsets[299] : targets.positions[299]].astype(np.int64)
    scores = model.eval().score(torch.from_numpy(history)[None])[0]
    assert ranks.greater[299, 1] == int((scores > scores[targets.items[299] - 1]).sum())

    batches = LengthBuckets(torch.full((300,), 10), 256, seed=0)
    orders = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        orders.append(np.concatenate(list(batches)).tolist())
    assert sorted(orders[0]) == list(range(300))
    assert orders[0] != orders[1] != sorted(orders[1])


@pytest.mark.parametrize("encoder", ["paper", "pre"])
def test_8_padding_is_no_disliked_item_and_the_newest_item_is_read(encoder: Literal["paper", "pre"]) -> None:
    """The release pads with the id of d, whose vector the encoder then reads, and reads position -1 of any history."""
    torch.manual_seed(0)
    model = PreferGrow(PreferGrowConfig(num_items=5, kernel="hybrid", hidden_size=8, encoder=encoder)).eval()
    alone, padded = torch.tensor([[4, 2]]), torch.tensor([[4, 2, 0, 0, 0]])
    before = model.user(alone)
    assert_close(model.user(padded), before)
    assert not torch.allclose(model.user(torch.tensor([[2, 4]])), before)
    with torch.no_grad():
        model.embedding.weight[[0, 6]] += 1.0  # padding, and d
    assert_close(model.user(padded), before)
    with torch.no_grad():
        model.embedding.weight[2] += torch.linspace(-1, 1, 8)  # the newest item
    assert not torch.allclose(model.user(padded), before)


@pytest.mark.parametrize("method", ["oricos", "diffcos", "untied"])
@pytest.mark.parametrize("head", ["additive", "mlp"])
def test_9_only_the_mlp_head_lets_user_noise_and_state_interact(head: Any, method: Any) -> None:
    """Of a sum of functions of one argument each, second differences vanish."""
    torch.manual_seed(0)
    config = PreferGrowConfig(num_items=5, kernel="hybrid", hidden_size=8, head=head, score_method=method)
    model = PreferGrow(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.config.ratio_offset = False  # known numbers on top, in which noise and state do interact
    users = torch.randn(2, 8).double()

    def scores(user: int, state: int, sigma: float) -> torch.Tensor:
        x_t, level = torch.tensor([state]), torch.tensor([sigma]).double()
        return model.log_ratios(users[user, None])(x_t, level)[0].detach()

    user_and_state = scores(0, 1, 0.5) - scores(1, 1, 0.5) - scores(0, 5, 0.5) + scores(1, 5, 0.5)
    user_and_noise = scores(0, 1, 0.5) - scores(1, 1, 0.5) - scores(0, 1, 2.0) + scores(1, 1, 2.0)
    noise_and_state = scores(0, 1, 0.5) - scores(0, 1, 2.0) - scores(0, 5, 0.5) + scores(0, 5, 2.0)
    for difference in (user_and_state, user_and_noise, noise_and_state):
        assert (float(difference.abs().max()) < 1e-9) == (head == "additive")
        assert (float(difference.abs().max()) > 1e-2) == (head == "mlp")
