"""The fast losses equal the plain reference: value and every gradient, in float64, for every kernel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.nn import softmax
from forethought.recommenders.prefergrow import fused
from forethought.recommenders.prefergrow.fused import Corruption
from forethought.recommenders.prefergrow.kernels import FadingKernel
from forethought.recommenders.prefergrow.score_entropy import score_entropy_reference

N, ROWS, WIDTH = 9, 40, 4


def kernels() -> dict[str, FadingKernel]:
    torch.manual_seed(0)
    double = torch.float64
    return {
        "pair": FadingKernel.pair(N, double),
        "point": FadingKernel.point(N, double),
        "hybrid": FadingKernel.hybrid(N, 0.7, double),
        "hybrid-high": FadingKernel.hybrid(N, 0.9999, double),
        "popularity": FadingKernel.from_popularity(torch.arange(N), 0.5, 1.0, 0.8, double),
        "random": FadingKernel(torch.rand(N + 1, dtype=double)),
        "block": FadingKernel.block(torch.tensor([0, 0, 1, 1, 1, 2, 2, 0, 1, 2]), torch.rand(10), double),
    }


def problem(
    kernel: FadingKernel, states: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Corruption]:
    torch.manual_seed(seed)
    query = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    vectors = torch.randn(states, WIDTH, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(states, dtype=torch.float64, requires_grad=True)
    alpha = torch.rand(ROWS, dtype=torch.float64) * 0.98 + 0.01
    x_0 = torch.randint(N, (ROWS,))
    noise = Corruption(x_0, kernel.sample(x_0, alpha), alpha, torch.rand(ROWS, dtype=torch.float64))
    return query, vectors, bias, noise


def gradients(loss: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, inputs))


@pytest.fixture(autouse=True, params=[1, 10_000], ids=["many-chunks", "one-chunk"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "CHUNK", request.param * (N + 1) * 3)


@pytest.mark.parametrize("name", list(kernels()))
@pytest.mark.parametrize("form", ["score_entropy", "bce"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_fused_equals_reference(name: str, form: str, with_bias: bool) -> None:
    kernel = kernels()[name]
    query, vectors, bias, noise = problem(kernel, kernel.num_states, seed=1)
    inputs = (query, vectors, bias) if with_bias else (query, vectors)
    scores = query @ vectors.T + (bias if with_bias else 0)
    expected = score_entropy_reference(scores, noise.x_t, noise.x_0, noise.alpha, kernel, noise.weight, form).sum()
    loss_of = fused.score_entropy if form == "score_entropy" else fused.soft_label_bce
    found = loss_of(query, vectors, kernel, noise, bias if with_bias else None)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["point", "hybrid", "hybrid-high", "popularity", "random"])
@pytest.mark.parametrize("form", ["score_entropy", "bce"])
def test_an_offset_is_added_to_the_scores(name: str, form: str) -> None:
    kernel = kernels()[name]
    query, vectors, bias, noise = problem(kernel, N + 1, seed=5)
    offset = fused.Offset(torch.randn(ROWS, dtype=torch.float64) * 5, torch.randn(ROWS, dtype=torch.float64) * 5)
    sides = torch.cat([offset.items[:, None].expand(-1, N), offset.disliked[:, None]], dim=1)
    scores = query @ vectors.T + bias + sides
    expected = score_entropy_reference(scores, noise.x_t, noise.x_0, noise.alpha, kernel, noise.weight, form).sum()
    loss_of = fused.score_entropy if form == "score_entropy" else fused.soft_label_bce
    found = loss_of(query, vectors, kernel, noise, bias, offset)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    inputs = (query, vectors, bias)
    for ours, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["pair", "point", "hybrid", "hybrid-high", "popularity", "random"])
def test_marginal_equals_reference(name: str) -> None:
    kernel = kernels()[name]
    query, vectors, bias, noise = problem(kernel, N, seed=2)
    scores = query @ vectors.T + bias
    pi = torch.nn.functional.pad(scores.softmax(dim=1), (0, kernel.num_states - N))
    marginal = kernel.transition(pi, noise.alpha)
    log_ratios = marginal.log() - marginal.gather(1, noise.x_t[:, None]).log()
    expected = score_entropy_reference(log_ratios, noise.x_t, noise.x_0, noise.alpha, kernel, noise.weight).sum()
    found = fused.marginal_score_entropy(query, vectors, kernel, noise, bias)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    inputs = (query, vectors, bias)
    for ours, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["pair", "point", "hybrid", "hybrid-high", "popularity", "block"])
@pytest.mark.parametrize("alpha", [0.999, 0.4, 4.5e-5])
def test_marginal_of_extreme_logits_in_float32(name: str, alpha: float) -> None:
    """Every pair of x_0 and x_t, with preferences that float32 cannot hold: losses and slopes as in float64."""
    kernel = kernels()[name]
    items = N + 1 if name == "block" else N
    x_0, x_t = torch.cartesian_prod(torch.arange(items), torch.arange(kernel.num_states)).T
    possible = kernel.column(x_0, alpha).gather(1, x_t[:, None])[:, 0] > 0
    x_0, x_t = x_0[possible], x_t[possible]
    logits = torch.linspace(-60, 60, items)[torch.randperm(items, generator=torch.Generator().manual_seed(0))]

    def loss_and_slopes(rows: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        scores = logits.to(dtype).repeat(int(rows.sum()), 1).requires_grad_()
        level = torch.full((len(scores),), alpha, dtype=dtype)
        noise = Corruption(x_0[rows], x_t[rows], level, torch.ones_like(level))
        same = FadingKernel(kernel.p.to(dtype), kernel.groups)
        loss = fused.marginal_score_entropy(scores, torch.eye(items, dtype=dtype), same, noise)
        return loss.detach().double(), torch.autograd.grad(loss, scores)[0].double()

    every = torch.ones(len(x_0), dtype=torch.bool)
    loss, slopes = loss_and_slopes(every, torch.float32)
    assert bool(loss.isfinite())
    torch.testing.assert_close(slopes, loss_and_slopes(every, torch.float64)[1], rtol=1e-4, atol=1e-4)
    likely = logits[x_0] > -25  # -ln pi stops at 87 nats, float32's smallest number
    wide, narrow = loss_and_slopes(likely, torch.float64)[0], loss_and_slopes(likely, torch.float32)[0]
    torch.testing.assert_close(narrow, wide, rtol=1e-4, atol=1e-4)


def test_marginal_on_the_point_kernel_is_weighted_cross_entropy() -> None:
    kernel = FadingKernel.point(N, torch.float64)
    query, vectors, bias, noise = problem(kernel, N, seed=3)
    faded = noise.x_t == N
    weight = noise.weight * faded * noise.alpha / (1 - noise.alpha)
    nll = torch.nn.functional.cross_entropy(query @ vectors.T + bias, noise.x_0, reduction="none")
    expected = gradients((weight * nll).sum(), (query, vectors, bias))
    found = gradients(fused.marginal_score_entropy(query, vectors, kernel, noise, bias), (query, vectors, bias))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["pair", "point", "hybrid", "popularity", "random"])
def test_marginal_integrates_to_cross_entropy(name: str) -> None:
    """Consistent ratios make the bound tight: over all noise and states it is -ln pi(x_0), whatever the kernel."""
    kernel = kernels()[name]
    torch.manual_seed(4)
    logits = torch.randn(1, N, dtype=torch.float64)
    x_0 = torch.tensor([3])
    # the integral over sigma as one over ln sigma, by the trapezoidal rule; states summed out exactly
    level = torch.linspace(-18, 4, 4001, dtype=torch.float64)
    sigma, total = level.exp(), torch.zeros(len(level), dtype=torch.float64)
    alpha = torch.exp(-sigma)
    column = kernel.column(x_0.expand(len(level)), alpha)
    pi = torch.nn.functional.pad(logits.softmax(dim=1), (0, kernel.num_states - N))
    u = kernel.transition(pi.expand(len(level), -1), alpha)
    for x_t in range(kernel.num_states):
        state = torch.full((len(level),), x_t)
        ratios = u.log() - u.gather(1, state[:, None]).log()
        value = score_entropy_reference(ratios, state, x_0.expand(len(level)), alpha, kernel)
        total += torch.where(column[:, x_t] > 0, column[:, x_t] * value, 0.0)
    integral = torch.trapezoid(total * sigma, level)
    torch.testing.assert_close(integral, -logits.log_softmax(dim=1)[0, 3], rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**31), st.floats(1e-4, 0.9999))
def test_random_distributions(states: int, seed: int, alpha: float) -> None:
    torch.manual_seed(seed)
    kernel = FadingKernel(torch.rand(states, dtype=torch.float64) + 1e-3)
    x_0 = torch.randint(states, (5,))
    level = torch.full((5,), alpha, dtype=torch.float64)
    noise = Corruption(x_0, kernel.sample(x_0, level), level, torch.ones(5, dtype=torch.float64))
    query, vectors = torch.randn(5, 3, dtype=torch.float64), torch.randn(states, 3, dtype=torch.float64)
    expected = score_entropy_reference(query @ vectors.T, noise.x_t, noise.x_0, level, kernel).sum()
    torch.testing.assert_close(fused.score_entropy(query, vectors, kernel, noise), expected, rtol=1e-8, atol=1e-8)


def test_bfloat16_products_stay_close() -> None:
    kernel = FadingKernel.hybrid(500, 0.999)
    torch.manual_seed(0)
    query, vectors = torch.randn(64, 32) * 0.3, torch.randn(501, 32) * 0.3
    x_0, alpha = torch.randint(500, (64,)), torch.rand(64)
    noise = Corruption(x_0, kernel.sample(x_0, alpha), alpha, torch.ones(64))
    exact = fused.score_entropy(query, vectors, kernel, noise)
    with torch.autocast("cpu", torch.bfloat16):
        rough = fused.score_entropy(query, vectors, kernel, noise)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=2e-2, atol=1e-3)


def test_softmax_cross_entropy_equals_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, vectors = (torch.randn(n, 5, dtype=torch.float64, requires_grad=True) for n in (13, 11))
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True)
    target = torch.randint(11, (13,))
    inputs = (hidden, vectors, bias)
    for size in (1, 2**20):
        expected = torch.nn.functional.cross_entropy(hidden @ vectors.T + bias, target, reduction="sum")
        monkeypatch.setattr(softmax, "CHUNK", size)
        found = softmax.softmax_cross_entropy(hidden, vectors, target, bias)
        torch.testing.assert_close(found, expected)
        for ours, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_row_without_an_edge_teaches_nothing_however_high_it_scores() -> None:
    """Of ``point`` nothing fades to an item, so a target that is still there has no ratios to learn."""
    kernel, here = FadingKernel.point(N), torch.tensor([2, 3])
    query = torch.tensor([[100.0], [1.0]], requires_grad=True)
    vectors = torch.ones(N + 1, 1, requires_grad=True)
    noise = Corruption(here, torch.tensor([2, N]), torch.tensor([0.5, 0.5]), torch.ones(2))
    loss = fused.score_entropy(query, vectors, kernel, noise)
    alone = fused.score_entropy(query[1:], vectors, kernel, Corruption(*(field[1:] for field in noise)))
    torch.testing.assert_close(loss, alone)
    for ours, theirs in zip(gradients(loss, (query, vectors)), gradients(alone, (query, vectors)), strict=True):
        torch.testing.assert_close(ours, theirs)
    nothing = fused.score_entropy(query[:1], vectors, kernel, Corruption(*(field[:1] for field in noise)))
    assert nothing.item() == 0


@pytest.mark.parametrize("form", ["score_entropy", "bce", "exact"])
def test_a_second_derivative_is_refused(form: str) -> None:
    """The gradients were computed in the forward pass, so nothing can be known of theirs."""
    kernel = kernels()["hybrid"]
    query, vectors, _, noise = problem(kernel, N + 1, seed=1)
    losses = {
        "score_entropy": lambda: fused.score_entropy(query, vectors, kernel, noise),
        "bce": lambda: fused.soft_label_bce(query, vectors, kernel, noise),
        "exact": lambda: softmax.softmax_cross_entropy(query, vectors, noise.x_0),
    }
    (gradient,) = torch.autograd.grad(losses[form]() ** 2, query, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()
