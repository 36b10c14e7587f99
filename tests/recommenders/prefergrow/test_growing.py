"""Growing with exact ratios reaches the preference; growing with bad ones stays a distribution.

Exact means exact: the law of the whole chain is propagated through its transition matrices, without sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.testing import assert_close

from forethought.recommenders.prefergrow.growing import LAST_TIME, analytic_step, euler_step, grow, noise_levels
from forethought.recommenders.prefergrow.kernels import FadingKernel
from forethought.recommenders.prefergrow.schedules import Geometric, LogLinear, NoiseSchedule

ENOUGH = Geometric(1e-3, 20.0)  # alpha(1) = 2e-9: the start of growing is the limit p


def peaked(size: int, states: int, seed: int = 0) -> Tensor:
    """A preference over ``size`` items that is far from uniform; float64 ``[states]``, 0 at the disliked item."""
    logits = np.random.default_rng(seed).normal(scale=2.0, size=size)
    preference = np.append(np.exp(logits) / np.exp(logits).sum(), np.zeros(states - size))
    return torch.from_numpy(preference)


def exact_log_ratios(kernel: FadingKernel, preference: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """ln p_t(y) - ln p_t(x) for the preference faded by σ; the log of 0 where p_t has no mass."""

    def log_ratios(x: Tensor, sigma: Tensor) -> Tensor:
        log_p = kernel.transition(preference.expand(len(x), -1), torch.exp(-sigma)).log()
        # a chain is never in a state that p_t gives no mass; any finite number does there
        here = log_p.gather(1, x[:, None])
        return log_p - torch.where(here.isfinite(), here, 0.0)

    return log_ratios


def start_law(kernel: FadingKernel, preference: Tensor) -> Tensor:
    """p, shared among the groups as the preference is."""
    return kernel.transition(preference, 0.0)


def propagate(
    kernel: FadingKernel,
    preference: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    euler: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The law of the denoised state after T steps with exact ratios, given in ``dtype``; float64 ``[M]``."""
    log_ratios, states = exact_log_ratios(kernel, preference), torch.arange(kernel.num_states)
    law = start_law(kernel, preference)
    sigmas = [*schedule.sigma(torch.linspace(1, LAST_TIME, steps + 1, dtype=torch.float64)).tolist(), 0.0]
    for step, (now, then) in enumerate(pairwise(sigmas)):
        scores = log_ratios(states, torch.full((kernel.num_states,), now, dtype=torch.float64)).to(dtype)
        if euler and step < steps:
            law = law @ euler_step(scores, states, kernel, now - then)
        else:
            law = law @ analytic_step(scores, states, kernel, math.exp(then - now))
    return law


def total_variation(p: Tensor, q: Tensor) -> float:
    return (p - q).abs().sum().item() / 2


@pytest.mark.parametrize("steps", [1, 5, 20, 100])
def test_exact_ratios_grow_into_the_preference(case: Any, steps: int) -> None:
    preference = peaked(12, case.size)
    assert total_variation(propagate(case.kernel, preference, ENOUGH, steps), preference) < 1e-6
    assert total_variation(start_law(case.kernel, preference), preference) > 0.2  # there was a way to go


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_ratios_rounded_to_float32_lose_little(case: Any, steps: int) -> None:
    """A network gives its ratios in float32; the step itself runs in float64, or what is left at α = 4.5e-5 drowns."""
    preference = peaked(12, case.size)
    law = propagate(case.kernel, preference, Geometric(), steps, dtype=torch.float32)
    exact = propagate(case.kernel, preference, Geometric(), steps)
    assert total_variation(law, exact) < 5e-4


@pytest.mark.parametrize("gamma", [1.0, 0.9999])
def test_one_rounded_step_from_the_strongest_noise(gamma: float) -> None:
    """Where p is uniform the ratios lie near 1 and their logarithms keep their digits; probabilities would not."""
    kernel, preference = FadingKernel.hybrid(12, gamma, torch.float64), peaked(12, 13)
    assert total_variation(propagate(kernel, preference, ENOUGH, 1, dtype=torch.float32), preference) < 0.01


@pytest.mark.parametrize("steps", [1, 5, 20, 100])
@pytest.mark.parametrize("name", ["pair", "point", "hybrid"])
def test_the_default_noise_is_enough_for_fifty_items(name: str, steps: int) -> None:
    kernel = {
        "pair": FadingKernel.pair(50, torch.float64),
        "point": FadingKernel.point(50, torch.float64),
        "hybrid": FadingKernel.hybrid(50, 0.9999, torch.float64),
    }[name]
    preference = peaked(50, kernel.num_states)
    assert total_variation(propagate(kernel, preference, Geometric(), steps), preference) < 1e-6


@pytest.mark.parametrize("steps", [1, 20, 100])
def test_noise_of_one_is_too_little(steps: int) -> None:
    """σmax = 1 leaves a third of the preference in place, so p is the wrong law to start from (spec §8)."""
    kernel, preference = FadingKernel.pair(50, torch.float64), peaked(50, 50)
    assert total_variation(propagate(kernel, preference, Geometric(1e-3, 1.0), steps), preference) > 0.02


def test_the_denoiser_takes_over_before_the_noise_is_gone() -> None:
    """T steps on an even grid of times from 1 to 1e-5, then the rest at once; with T = 0 all of it."""
    times = torch.tensor([1.0, 0.500005, 1e-5, 0.0]).double()
    assert_close(noise_levels(LogLinear(0.1), 2), -torch.log1p(-0.9 * times), rtol=1e-5, atol=0)
    assert_close(noise_levels(LogLinear(0.1), 0), -torch.log1p(-0.9 * times[[0, 3]]))


def test_log_linear_noise_suits_the_point_kernel() -> None:
    kernel = FadingKernel.point(12, torch.float64)
    preference = peaked(12, 13)
    assert total_variation(propagate(kernel, preference, LogLinear(1e-3), 20), preference) < 1e-6


def test_euler_comes_closer_with_more_steps(case: Any) -> None:
    preference = peaked(12, case.size)
    errors = [
        total_variation(propagate(case.kernel, preference, ENOUGH, steps, euler=True), preference)
        for steps in (50, 200, 800)
    ]
    rounding = 1e-12  # the point kernel is exact at any number: a chain leaves d once, by the right odds
    assert errors[1] < errors[0] / 2 + rounding
    assert errors[2] < errors[1] / 2 + rounding
    assert errors[2] < 0.01


@pytest.mark.parametrize(("method", "steps"), [("analytic", 0), ("analytic", 1), ("analytic", 7), ("euler", 200)])
def test_grown_states_follow_the_preference(case: Any, method: Any, steps: int) -> None:
    kernel, preference, count = case.kernel, peaked(12, case.size), 2000
    generator = torch.Generator().manual_seed(1)
    wanted = torch.multinomial(preference, count, replacement=True, generator=generator)
    group = None if kernel.groups is None else kernel.groups[wanted]
    growth = grow(
        exact_log_ratios(kernel, preference),
        kernel,
        ENOUGH,
        steps,
        count,
        method=method,
        group=group,
        generator=generator,
    )
    counts = np.bincount(growth.final.numpy(), minlength=case.size)
    expected = preference.numpy() * count
    assert counts[expected == 0].sum() == 0
    frequent = expected > 5
    observed, predicted = counts[frequent], expected[frequent]
    if group is None:
        assert (
            chisquare(np.append(observed, count - observed.sum()), np.append(predicted, count - predicted.sum())).pvalue
            > 1e-3
        )
    else:  # the groups were drawn above; inside each the items follow the preference
        for label in range(3):
            member = (kernel.groups == label).numpy()
            inside = preference.numpy() * member
            assert chisquare(counts[member], inside[member] / inside.sum() * counts[member].sum()).pvalue > 1e-3


def test_the_trace_tells_what_each_state_was_drawn_from(case: Any) -> None:
    kernel, preference = case.kernel, peaked(12, case.size)
    log_ratios = exact_log_ratios(kernel, preference)
    start = torch.arange(12)
    runs = [
        grow(log_ratios, kernel, Geometric(), 5, start, generator=torch.Generator().manual_seed(2), trace=trace)
        for trace in (True, False)
    ]
    growth = runs[0]
    assert growth.states.shape == (12, 7)
    assert growth.distributions is not None
    assert growth.distributions.shape == (12, 6, case.size)
    assert runs[1].distributions is None
    assert torch.equal(runs[0].states, runs[1].states)  # the same seed, the same chain
    assert torch.equal(growth.states[:, 0], start)
    assert torch.equal(growth.distributions[:, -1], growth.denoised)
    assert torch.equal(growth.final, growth.states[:, -1])
    assert growth.sigmas[0].item() == pytest.approx(10.0)
    assert growth.sigmas[-1].item() == 0.0
    for step in range(6):
        x, sigma = growth.states[:, step], growth.sigmas[step]
        alpha = torch.exp(growth.sigmas[step + 1] - sigma)
        expected = analytic_step(log_ratios(x, sigma.expand(12)), x, kernel, alpha)
        assert_close(growth.distributions[:, step], expected)
        drawn = expected.gather(1, growth.states[:, step + 1, None])
        assert bool((drawn > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("alpha", [1.0, 0.999, 0.3, 4.5e-5, 2e-9])
def test_bad_ratios_still_give_distributions(case: Any, dtype: torch.dtype, scale: float, alpha: float) -> None:
    kernel = FadingKernel(case.kernel.p.to(dtype), case.kernel.groups)
    x = torch.arange(case.size).repeat(4)
    noise = np.random.default_rng(4).normal(scale=scale, size=(len(x), case.size))
    reachable = kernel.row(x, alpha) > 0
    analytic = analytic_step(torch.from_numpy(noise), x, kernel, alpha)
    euler = euler_step(torch.from_numpy(noise), x, kernel, -math.log(alpha))
    for probability in (analytic, euler):
        assert probability.dtype == dtype
        assert bool((probability >= 0).all())
        assert_close(probability.sum(dim=1), torch.ones(len(x), dtype=dtype))
        assert float(probability[~reachable].sum()) == 0.0


def test_scores_outside_the_group_do_not_matter() -> None:
    kernel = FadingKernel.block(torch.tensor([0, 0, 1, 1]))
    x, scores = torch.tensor([0]), torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    louder = scores + torch.tensor([[0.0, 0.0, 500.0, -500.0]])
    assert torch.equal(analytic_step(scores, x, kernel, 0.5), analytic_step(louder, x, kernel, 0.5))
    assert torch.equal(euler_step(scores, x, kernel, 0.5), euler_step(louder, x, kernel, 0.5))
