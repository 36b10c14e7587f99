"""How much noise at which time: σ(t) for t in [0, 1], its rate dσ/dt and α = e^{-σ}; and the times training draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from forethought.errors import RecipeError

FIRST_TIME = 1e-3  # training looks at no earlier time (SEDD, arXiv 2310.16834)


class NoiseSchedule(Protocol):
    """Accumulated noise over time. ``t`` is float of any shape, values in [0, 1]; results have its shape and dtype."""

    def sigma(self, t: Tensor) -> Tensor:
        """σ(t), accumulated noise, increasing."""
        ...

    def rate(self, t: Tensor) -> Tensor:
        """dσ/dt."""
        ...

    def alpha(self, t: Tensor) -> Tensor:
        """e^{-σ(t)}, the probability that a state has not faded."""
        ...


@dataclass(frozen=True)
class Geometric:
    """σ(t) = σmin^{1-t} σmax^t: PreferGrow's schedule. At σmax = 10, α(1) = 4.5e-5: the start of growing matches p."""

    sigma_min: float = 1e-3
    sigma_max: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise RecipeError(f"sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}; choose 0 < min < max.")

    def sigma(self, t: Tensor) -> Tensor:
        """σ(t)."""
        return torch.exp((1 - t) * math.log(self.sigma_min) + t * math.log(self.sigma_max))

    def rate(self, t: Tensor) -> Tensor:
        """dσ/dt."""
        return self.sigma(t) * math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        """e^{-σ(t)}."""
        return torch.exp(-self.sigma(t))


@dataclass(frozen=True)
class LogLinear:
    """σ(t) = -ln(1 - (1 - ε) t), so α(t) = 1 - (1 - ε) t is linear: SEDD's schedule for absorbing kernels."""

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 1e-6 <= self.eps < 1:
            raise RecipeError(
                f"eps is {self.eps}; it is the share of preference left at t = 1, less than 1 and at least 1e-6, below "
                "which float32 knows none."
            )

    def sigma(self, t: Tensor) -> Tensor:
        """σ(t)."""
        return -torch.log1p(-(1 - self.eps) * t)

    def rate(self, t: Tensor) -> Tensor:
        """dσ/dt."""
        return (1 - self.eps) / self.alpha(t)

    def alpha(self, t: Tensor) -> Tensor:
        """e^{-σ(t)}."""
        return 1 - (1 - self.eps) * t


def sample_times(
    count: int,
    grid: int | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Training times, float ``[count]`` in [1e-3, 1].

    Args:
        grid: None draws continuously; T draws from the T + 1 points of ``linspace(1, 1e-3, T + 1)``, as the paper's
            code does with T = 20.
    """
    if grid is None:
        uniform = torch.rand(count, generator=generator, device=device, dtype=dtype)
        return FIRST_TIME + (1 - FIRST_TIME) * uniform
    points = torch.linspace(1, FIRST_TIME, grid + 1, device=device, dtype=dtype)
    return points[torch.randint(grid + 1, (count,), generator=generator, device=device)]
