"""How a preference grows: the reverse of fading, step by step from the log-ratios s_y = ln p_t(y) / p_t(x).

The softmax of the log-ratios is p_t itself, so nothing here takes the exponential of a bare score: unfade p_t to p_s,
weigh with the way back, P_{t|s}[x, y], and clamp what model error made negative. With exact ratios the analytic step
is Bayes' rule, and any number of steps ends in the true distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from forethought.data.arguments import MOST_STEPS, check_whole
from forethought.recommenders.prefergrow.kernels import Alpha, FadingKernel
from forethought.recommenders.prefergrow.schedules import NoiseSchedule

LogRatios = Callable[[Tensor, Tensor], Tensor]
LAST_TIME = 1e-5  # the denoiser takes over here (SEDD, arXiv 2310.16834)


@dataclass(frozen=True)
class Growth:
    """A chain from noise to preference, of T steps and one denoising.

    Attributes:
        denoised: float64 ``[B, M]``, the distribution of the preferred state that the last step gives: the scores.
        states: int64 ``[B, T + 2]``: the start, the state after each step, and a draw from ``denoised``.
        sigmas: float64 ``[T + 2]``, the noise left at each of ``states``, from σ(1) to 0.
        distributions: float64 ``[B, T + 1, M]``, what each state after the start was drawn from; None unless asked for.
    """

    denoised: Tensor
    states: Tensor
    sigmas: Tensor
    distributions: Tensor | None = None

    @property
    def final(self) -> Tensor:
        """int64 ``[B]``, the grown states."""
        return self.states[:, -1]


def analytic_step(log_ratios: Tensor, x: Tensor, kernel: FadingKernel, alpha: Alpha) -> Tensor:
    """Bayes' rule: the law of the state before the last fading by α, given where it is now.

    ``prob[y] ∝ (P⁻¹ p_t)[y] P[x, y]``; with α from σ(t) down to 0 it is the Tweedie denoiser.

    Args:
        log_ratios: float ``[B, M]``, s; the entry at x is taken as 0.
        x: int64 ``[B]``, the present states.
        kernel: how states fade.
        alpha: e^{-Δσ} of the step, ``[B]`` or one number.

    Returns:
        float ``[B, M]``, rows non-negative and summing to 1. A row whose estimate leaves no mass stays at x.
    """
    back = kernel.row(x, alpha)
    # states that x cannot have come from (of other groups) have untrained scores, which must not drown the rest
    noised = log_ratios.to(back).scatter(1, x[:, None], 0.0).masked_fill(back == 0, -math.inf).softmax(dim=1)
    probability = kernel.inverse(noised, alpha).clamp(min=0) * back
    total = probability.sum(dim=1, keepdim=True)
    stay = one_hot(x, kernel.num_states).to(back)
    return torch.where(total > 0, probability / total, stay)


def euler_step(log_ratios: Tensor, x: Tensor, kernel: FadingKernel, delta: Tensor | float) -> Tensor:
    """One jump at most: to y with probability Δσ Q[x, y] e^{s_y}, scaled down where that adds up to more than 1.

    First order in Δσ, and kept for comparison: the analytic step costs the same and is exact.

    Args:
        log_ratios: float ``[B, M]``, s.
        x: int64 ``[B]``, the present states.
        kernel: how states fade.
        delta: Δσ of the step, ``[B]`` or one number.

    Returns:
        float ``[B, M]``, rows non-negative and summing to 1.
    """
    delta = delta[:, None] if isinstance(delta, Tensor) and delta.dim() else delta
    log_jump = log_ratios.to(kernel.p) + (delta * kernel.rate_row(x)).log()
    total = log_jump.logsumexp(dim=1, keepdim=True)
    jump = (log_jump - total.clamp(min=0)).exp()
    return jump.scatter(1, x[:, None], (1 - jump.sum(dim=1, keepdim=True)).clamp(min=0))


def noise_levels(schedule: NoiseSchedule, steps: int) -> Tensor:
    """The noise at the start of a chain, after each of its T steps and after the denoiser: float64 ``[T + 2]``.

    Raises:
        DataError: T is no whole number from 0 to 10,000.
    """
    check_whole("steps", steps, most=MOST_STEPS)
    times = torch.linspace(1, LAST_TIME if steps else 1, steps + 1, dtype=torch.float64)
    return torch.nn.functional.pad(schedule.sigma(times), (0, 1))


@torch.no_grad()
def grow(
    log_ratios: LogRatios,
    kernel: FadingKernel,
    schedule: NoiseSchedule,
    steps: int,
    start: Tensor | int,
    *,
    method: Literal["analytic", "euler"] = "analytic",
    group: Tensor | None = None,
    generator: torch.Generator | None = None,
    trace: bool = False,
) -> Growth:
    """Grow B states from noise: T steps on an even time grid from 1 to 1e-5, then the denoiser; all in float64.

    Args:
        log_ratios: ``f(x int64 [B], sigma float64 [B]) -> float [B, M]``, the (guided) log-ratios to x; called T + 1
            times.
        kernel: how states fade.
        schedule: how much noise at which time.
        steps: T ≥ 0; with 0 the denoiser does everything.
        start: int64 ``[B]``, the states to start from, or B, to draw them from the kernel's limit.
        method: of the T steps; the denoiser is always analytic.
        group: int64 ``[B]``, the group each chain lives in; needed where B states are drawn from a kernel of groups.
        generator: of every draw.
        trace: also keep each step's distribution.
    """
    device, kernel = kernel.p.device, kernel.precise()
    x = kernel.prior_sample(start, generator, group) if isinstance(start, int) else start
    sigmas = noise_levels(schedule, steps)
    deltas: list[float] = (-sigmas.diff()).tolist()
    states, distributions = [x], []
    for step, delta in enumerate(deltas):
        scores = log_ratios(x, sigmas[step].to(kernel.p).expand(len(x)))
        if method == "euler" and step < steps:
            probability = euler_step(scores, x, kernel, delta)
        else:
            probability = analytic_step(scores, x, kernel, math.exp(-delta))
        x = torch.multinomial(probability, 1, generator=generator)[:, 0]
        states.append(x)
        if trace:
            distributions.append(probability)
    return Growth(
        probability, torch.stack(states, dim=1), sigmas.to(device), torch.stack(distributions, dim=1) if trace else None
    )
