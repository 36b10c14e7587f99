"""Noise schedules: their ends, their rates, and the times drawn for training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch.testing import assert_close

from forethought.errors import RecipeError
from forethought.recommenders.prefergrow.schedules import Geometric, LogLinear, NoiseSchedule, sample_times

SCHEDULES = [Geometric(), Geometric(1e-4, 20.0), LogLinear(), LogLinear(0.05)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rate_is_the_derivative_of_sigma(schedule: NoiseSchedule) -> None:
    t = torch.linspace(0, 1, 41, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(schedule.sigma(t).sum(), t)
    assert_close(schedule.rate(t), derivative)
    assert bool((derivative > 0).all())
    assert_close(schedule.alpha(t), torch.exp(-schedule.sigma(t)))


def test_ends() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert_close(Geometric(1e-3, 10.0).sigma(ends), torch.tensor([1e-3, 10.0], dtype=torch.float64))
    assert_close(LogLinear(1e-3).alpha(ends), torch.tensor([1.0, 1e-3], dtype=torch.float64))
    assert Geometric().alpha(ends)[1].item() == pytest.approx(4.54e-5, rel=1e-3)


def test_times_are_uniform_or_on_the_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    continuous = sample_times(20_000, generator=generator, dtype=torch.float64).numpy()
    assert kstest(continuous, "uniform", args=(1e-3, 0.999)).pvalue > 1e-3
    values, counts = np.unique(sample_times(21_000, grid=20, generator=generator).numpy(), return_counts=True)
    np.testing.assert_allclose(values, np.linspace(1e-3, 1, 21), rtol=1e-6)
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("make", [lambda: Geometric(1.0, 0.5), lambda: Geometric(0.0, 1.0), lambda: LogLinear(0.0)])
def test_impossible_schedules_are_refused(make: type) -> None:
    with pytest.raises(RecipeError):
        make()
