"""How benchmarks measure: calls in turns, and the memory of tensors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


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
