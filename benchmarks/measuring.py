"""How benchmarks measure: calls in turns, the memory of tensors, and logs that are made up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch.profiler import ProfilerActivity, profile

from forethought.data.catalog import Catalog
from forethought.data.dataset import Dataset, Sequences


def seconds(work: dict[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each, the rounds interleaved so that a noisy moment hits all alike; the first do not count."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(warm_up + rounds):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_megabytes(call: Callable[[], object]) -> float:
    """Most memory that tensors made in the call held at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda entry: entry.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def leave_one_out(offsets: npt.NDArray[np.int64], items: npt.NDArray[np.integer], num_items: int) -> Dataset:
    """A data set in memory of made-up sequences, user u's from ``offsets[u]`` to ``offsets[u + 1]``."""
    return Dataset(
        Sequences(offsets, items.astype(np.int32)),
        train_stop=offsets[1:] - 2,
        valid_positions=offsets[1:] - 2,
        test_positions=offsets[1:] - 1,
        catalog=Catalog(pa.table({"id": np.arange(1, num_items + 1)})),
        users=pa.array(np.arange(len(offsets) - 1)),
        manifest={"name": "synthetic", "protocol": "leave-one-out", "fingerprint": "none"},
    )
