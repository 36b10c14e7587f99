"""How the preference of one user grows in a trained PreferGrow, as numbers and as a picture with titles."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from forethought.errors import ArtefactError, DataError
from forethought.recommenders.base import newest
from forethought.recommenders.prefergrow.model import PreferGrow
from forethought.recommenders.run import Run

AT_ONCE = 64  # chains whose laws are held together: 64 x 21 x 12,000 numbers are 64 MB
SHOWN_HISTORY = 20  # newest items listed beside the picture


@dataclass(frozen=True)
class Growing:
    """The law of one user's preference while it grows.

    Attributes:
        guidance: the strengths w.
        levels: float64 ``[steps + 1]``, the noise left after each step, falling to 0.
        probabilities: float64 ``[w, steps + 1, N]`` of item j + 1 after each step, averaged over chains.
        history: int64 ``[events]``, what the user did before, oldest first.
        target: the item that came next, or None where it is not known.
    """

    guidance: tuple[float, ...]
    levels: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64]
    history: npt.NDArray[np.int64]
    target: int | None


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

    Args:
        user: the user's own id.
        guidance: one growing a strength w.
        steps: of each chain; by default the model's.
        chains: grown side by side and averaged; their start and every state between are random.
        seed: of these draws, the same for every w.

    Raises:
        ArtefactError: the run's model does not grow preferences.
        DataError: there is no such user, or nothing is known of the user.
    """
    model = run.model
    if not isinstance(model, PreferGrow):
        raise ArtefactError(f"{run.path} holds a {type(model).__name__}, which does not grow; name a PreferGrow run.")
    if chains < 1 or (steps is not None and steps < 0) or not guidance:
        raise DataError("Growing needs one guidance strength, one chain and no negative number of steps at least.")
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
    laws, levels = [], np.zeros(0)
    for w in guidance:
        draws = torch.Generator(model.device).manual_seed(seed)
        total = np.zeros(())
        for begun in range(0, chains, AT_ONCE):
            together = read.expand(min(AT_ONCE, chains - begun), -1)
            growth = model.grow(together, steps, w, draws, trace=True)
            assert growth.distributions is not None
            law = growth.distributions[..., : model.config.num_items].sum(dim=0)
            total, levels = total + law.double().cpu().numpy(), growth.sigmas[1:].cpu().numpy()
        laws.append(total / chains)
    return Growing(tuple(guidance), levels, np.stack(laws), history, target)


def draw_user(
    run: Run, user: object, growing: Growing, path: str | os.PathLike[str] | None = None, command: str = ""
) -> tuple[Path, Path]:
    """Write the picture as ``PATH.png`` and ``PATH.html``; by default into ``growing/`` of the run folder.

    Raises:
        ArtefactError: the place cannot be written.
    """
    from forethought.evaluation.report import write_growing  # matplotlib

    if path is None:
        path = run.path / "growing" / f"user-{re.sub(r'[^A-Za-z0-9._-]+', '_', str(user))}"
    titles = [run.catalog.title(item) for item in range(1, len(run.catalog) + 1)]
    return write_growing(
        path,
        growing.guidance,
        growing.levels,
        growing.probabilities,
        titles,
        None if growing.target is None else titles[growing.target - 1],
        heading=f"How the preference of user {user} grows",
        history=[titles[item - 1] for item in growing.history[-SHOWN_HISTORY:]],
        facts=[("run", str(run.path)), ("user", str(user)), ("steps", str(len(growing.levels)))],
        command=command,
    )
