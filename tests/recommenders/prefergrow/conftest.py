"""Every kernel beside its dense matrix E, which is built here from its definition and not from the kernel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from forethought.recommenders.prefergrow.kernels import FadingKernel

Floats = npt.NDArray[np.float64]
N = 12
COUNTS = np.array([40, 0, 3, 7, 1, 1, 25, 2, 0, 9, 5, 100])
GROUPS = np.array([0, 1, 1, 2, 0, 0, 2, 2, 2, 1, 3, 0])  # group 3 has one state


class Case(NamedTuple):
    """A kernel, and E with E[y, x] = Pr(to y | x has faded)."""

    kernel: FadingKernel
    E: Floats

    @property
    def size(self) -> int:
        return len(self.E)

    @property
    def generator(self) -> Floats:
        return self.E - np.eye(self.size)


def columns(p: Floats) -> Floats:
    return np.repeat(p[:, None], len(p), axis=1)


def hybrid(gamma: float) -> Case:
    p = np.append(np.full(N, gamma / N), 1 - gamma)
    return Case(FadingKernel.hybrid(N, gamma, torch.float64), columns(p))


def popularity(beta: float, smoothing: float, gamma: float | None) -> Case:
    weights = (COUNTS + smoothing) ** beta
    p = weights / weights.sum()
    if gamma is not None:
        p = np.append(gamma * p, 1 - gamma)
    kernel = FadingKernel.from_popularity(torch.from_numpy(COUNTS), beta, smoothing, gamma, torch.float64)
    return Case(kernel, columns(p))


def block(weights: Floats | None) -> Case:
    mass = np.ones(N) if weights is None else weights
    E = np.zeros((N, N))
    for x in range(N):
        mates = [y for y in range(N) if GROUPS[y] == GROUPS[x]]
        for y in mates:
            E[y, x] = mass[y] / sum(mass[z] for z in mates)
    tensor = None if weights is None else torch.from_numpy(weights)
    return Case(FadingKernel.block(torch.from_numpy(GROUPS), tensor, torch.float64), E)


CASES = {
    "pair": Case(FadingKernel.pair(N, torch.float64), np.full((N, N), 1 / N)),
    "point": Case(FadingKernel.point(N, torch.float64), columns(np.eye(N + 1)[N])),
    "hybrid-0.1": hybrid(0.1),
    "hybrid-0.9": hybrid(0.9),
    "hybrid-0.9999": hybrid(0.9999),
    "popularity": popularity(0.75, 1.0, None),
    "popularity-d": popularity(1.0, 0.0, 0.95),  # some items have no mass at all
    "block": block(None),
    "block-weighted": block(np.random.default_rng(3).gamma(1.0, size=N)),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]
