"""From run folders to a leaderboard: runs are found, those not yet evaluated are evaluated, and all are compared."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Literal

from forethought.evaluation.compare import Comparison
from forethought.evaluation.compare import compare as compare_evaluated
from forethought.evaluation.runs import find_runs


def compare(
    runs: Sequence[str | os.PathLike[str]],
    split: Literal["valid", "test"] = "test",
    *,
    seen: Literal["removed", "kept"] = "removed",
    metric: str = "ndcg@10",
    replicates: int = 10_000,
    seed: int = 0,
    device: str | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Comparison:
    """Make a leaderboard of runs; those that were not yet evaluated on ``split`` are evaluated first.

    Args:
        runs: run folders, or folders of runs: such a folder stands for all finished runs directly in it.
        split, seen, metric, replicates, seed: as :func:`forethought.evaluation.compare.compare`.
        device: that evaluates; by default the CPU.
        progress: called with the name of the run that is evaluated and the number of its cases ranked so far.

    Raises:
        ArtefactError: a path is no run and holds none, a run cannot be read, or the runs do not compare.
        DataError: the data of a run that has to be evaluated are no longer what they were.
    """
    paths = find_runs(runs)
    for path in paths:
        if not (path / "evaluation" / f"{split}.json").is_file():
            from forethought.recommenders.run import Run  # seconds to import, and evaluated runs do without

            tell = None if progress is None else functools.partial(progress, path.name)
            Run.open(path, device).evaluate(split, progress=tell)
    return compare_evaluated(paths, split, seen=seen, metric=metric, replicates=replicates, seed=seed)
