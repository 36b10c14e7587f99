"""How the preference of one user grows in a trained PreferGrow, as numbers and as a picture with titles."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forethought.data.arguments import check_whole
from forethought.errors import ArtefactError, DataError
from forethought.recommenders.base import newest
from forethought.recommenders.prefergrow.growing import noise_levels
from forethought.recommenders.prefergrow.model import AT_ONCE, PreferGrow
from forethought.recommenders.run import Run


@dataclass(frozen=True)
class Growing:
    """The law of one user's preference while it grows.

    Attributes:
        guidance: the strengths w.
        levels: float64 ``[steps + 1]``, the noise left after each step, falling to 0.
        probabilities: float64 ``[w, steps + 1, N]`` of item j + 1 after each step.
        chains: how many random chains these are the average of, or None where the law is known exactly.
        history: int64 ``[events]``, what the user did before, oldest first.
        target: the item that came next, or None where it is not known.
        ranks: the target's place at each w in the one-step ranking of all items, ties at half; empty without a target.
    """

    guidance: tuple[float, ...]
    levels: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64]
    chains: int | None
    history: npt.NDArray[np.int64]
    target: int | None
    ranks: tuple[float, ...]


@torch.no_grad()
def grow_user(
    run: Run,
    user: object,
    *,
    guidance: Sequence[float] = (0.0, 1.0, 3.0),
    steps: int | None = None,
    chains: int = 256,
    seed: int = 0,
) -> Growing:
    """Grow a user's preference from noise, before the test target where the user has one, else after everything.

    With the marginal parametrisation the law of a chain is known at every noise level, and this is it. With the score
    parametrisation it is not, and an average over random chains stands for it.

    Args:
        user: the user's own id.
        guidance: one growing a strength w.
        steps: of the growing; by default the model's.
        chains: how many are averaged where the law is not known.
        seed: of their draws, the same for every w.

    Raises:
        ArtefactError: the run's model does not grow preferences.
        DataError: there is no such user, nothing is known of the user, or a number is none that fits.
    """
    model = run.model
    if not isinstance(model, PreferGrow):
        raise ArtefactError(f"{run.path} holds a {run.kind}, which does not grow; name a PreferGrow run.")
    steps = model.config.growing_steps if steps is None else steps
    check_whole("chains", chains, least=1)
    check_whole("seed", seed)
    if not guidance or not all(map(math.isfinite, guidance)):
        raise DataError(f"guidance is {tuple(guidance)}; it has to be one finite number or more.")
    row = run.dataset.user_index(user)
    tests = run.dataset.targets("test")
    start, stop = map(int, run.dataset.sequences.offsets[row : row + 2])
    tested = tests.positions[tests.users == row]
    target = int(run.dataset.sequences.items[tested[0]]) if len(tested) else None
    stop = int(tested[0]) if len(tested) else stop
    history = np.asarray(run.dataset.sequences.items[start:stop], dtype=np.int64)
    if not len(history):
        raise DataError(
            f"User {user!r} did nothing before the item to be found, so there is no preference to grow from."
        )
    read = newest(torch.from_numpy(history)[None].to(model.device), model.config.max_length)
    exact = model.config.parametrization == "marginal"
    levels = noise_levels(model.schedule, steps)[1:]
    laws, ranks = [], []
    for w in guidance:
        if exact:
            pi = model.preference(model.user(read), w).double().expand(len(levels), -1)
            law = model.current_kernel().precise().transition(pi, (-levels).exp().to(pi.device))
        else:
            law = _mean_law(model, read, steps, w, chains, seed)
        laws.append(law[:, : model.config.num_items].cpu().numpy())
        if target is not None:
            scores = (model.query(read, w) @ model.item_vectors().T)[0]
            higher, as_high = (scores > scores[target - 1]).sum(), (scores == scores[target - 1]).sum()
            ranks.append(float(higher + (as_high + 1) / 2))
    return Growing(
        tuple(guidance), levels.numpy(), np.stack(laws), None if exact else chains, history, target, tuple(ranks)
    )


def _mean_law(model: PreferGrow, read: Tensor, steps: int, w: float, chains: int, seed: int) -> Tensor:
    """What the states of ``chains`` chains were drawn from, averaged: float64 ``[steps + 1, M]``."""
    draws = torch.Generator(model.device).manual_seed(seed)
    total = torch.zeros(steps + 1, model.config.num_states, dtype=torch.float64, device=model.device)
    for begun in range(0, chains, AT_ONCE):
        together = read.expand(min(AT_ONCE, chains - begun), -1)
        growth = model.grow(together, steps, w, draws, trace=True)
        assert growth.distributions is not None
        total += growth.distributions.sum(dim=0)
    return total / chains


def draw_user(
    run: Run, user: object, growing: Growing, path: str | os.PathLike[str] | None = None, command: str = ""
) -> tuple[Path, Path]:
    """Write the picture as ``PATH.png`` and ``PATH.html``; by default into ``growing/`` of the run folder.

    Raises:
        ArtefactError: the place cannot be written.
    """
    from forethought.evaluation.report import write_growing  # matplotlib

    if path is None:
        name = re.sub(r"[^\w.-]", lambda found: quote(found[0], safe=""), str(user))  # another for every user
        path = run.path / "growing" / f"user-{name}"
    titles = [run.catalog.title(item) for item in range(1, len(run.catalog) + 1)]
    return write_growing(
        path,
        growing.guidance,
        growing.levels,
        growing.probabilities,
        titles,
        None if growing.target is None else growing.target - 1,
        growing.ranks,
        chains=growing.chains,
        heading=f"How the preference of user {user} grows",
        history=[titles[item - 1] for item in growing.history],
        facts=[("run", str(run.path)), ("user", str(user)), ("growing steps", str(len(growing.levels) - 1))],
        command=command,
    )
