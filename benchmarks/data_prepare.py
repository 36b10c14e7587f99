"""``data prepare`` on ML-1M and on a synthetic log: seconds and peak memory, against the same in pandas.

    python benchmarks/data_prepare.py [--events 20_000_000] [--threads 2] [--json FILE]

Every measurement is a process of its own, from the text file to the written arrays, with the 5-core, a stable sort and
leave-one-out; both sides have to write the same sequences. The synthetic log is measured at a quarter and at
twice its length too: pandas' peak grows with the log; ours is DuckDB's 512 MB, the interpreter, and the arrays that are
written, which are mapped from their files and can leave memory at any time. Anonymous memory, the part that can not, is
what has to stay bounded; it is sampled every 10 ms from /proc, so "-" without that. ML-1M is read from FORETHOUGHT_DATA
(default: shared/data beside the repository) and left out where that is absent. Seconds of CPU tell more than seconds
where the machine is shared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from report import Cell, Result

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FORETHOUGHT_DATA", REPOSITORY.parent / "shared" / "data"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="keep the result here")
    parser.add_argument("--measure", nargs=4, metavar=("SIDE", "LOG", "COLUMNS", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        side, log, columns, out = args.measure
        measure({"forethought": prepare, "pandas": reference}[side], Path(log), columns, Path(out), args.threads)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = []
        original = DATA / "movielens-1m" / "interactions.csv.gz"
        if original.is_file():
            rows += compare("ML-1M ratings, gzip", original, "user_id,movie_id", 1_000_209, folder, args.threads)
        for events in (args.events // 4, args.events, 2 * args.events):
            log = synthetic(folder / f"{events}.csv", events)
            rows += compare("synthetic", log, "user,item,timestamp", events, folder, args.threads)
            log.unlink()
    result = Result("Preparing data", args.threads)
    result.table(
        "From a text file to the written arrays: 5-core, stable sort, leave-one-out; both sides write the same.",
        ["", "events", "s", "s of CPU", "peak MB", "peak anonymous MB", "x faster", "x less memory"],
        rows,
    )
    result.save(args.json)


def synthetic(path: Path, events: int) -> Path:
    """A log of Zipf users and items, in no order, written in blocks."""
    import pyarrow as pa
    import pyarrow.csv

    random = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, events, 1_000_000):
            rows = min(1_000_000, events - start)
            table = pa.table({
                "user": random.zipf(1.3, rows) % 500_000, "item": random.zipf(1.2, rows) % 100_000,
                "timestamp": 1_500_000_000 + random.integers(0, 50_000_000, rows),
            })  # fmt: skip
            pyarrow.csv.write_csv(table, file, pyarrow.csv.WriteOptions(include_header=start == 0))
    return path


def compare(label: str, log: Path, columns: str, events: int, folder: Path, threads: int) -> list[list[Cell]]:
    """Measure both sides and hold their results equal; a row for each."""
    found: dict[str, list[Cell]] = {}
    for side in ("pandas", "forethought"):
        command = [sys.executable, __file__, "--threads", str(threads)]
        command += ["--measure", side, str(log), columns, str(folder / side)]
        found[side] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    for array in ("offsets", "items", "train_stop"):
        ours, theirs = (np.load(folder / side / f"{array}.npy") for side in ("forethought", "pandas"))
        assert np.array_equal(ours, theirs), f"the two sides differ in {array}"
    for side in found:
        shutil.rmtree(folder / side)
    seconds, _, peak, _ = found["pandas"]
    return [
        [f"{label}, {side}", events, *numbers, seconds / numbers[0], peak / numbers[2]]
        for side, numbers in found.items()
    ]


def measure(
    run: Callable[[Path, list[str], Path, int], None], log: Path, columns: str, out: Path, threads: int
) -> None:
    anonymous, done = [0], threading.Event()
    sampler = threading.Thread(target=sample_anonymous, args=(anonymous, done))
    sampler.start()
    start = time.perf_counter()
    run(log, columns.split(","), out, threads)
    seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    done.set()
    sampler.join()
    print(json.dumps([
        seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, max(anonymous) / 1024 if any(anonymous) else "-"
    ]))  # fmt: skip


def sample_anonymous(kilobytes: list[int], done: threading.Event) -> None:
    """Append the process's anonymous resident memory to ``kilobytes`` until ``done``."""
    status = Path("/proc/self/status")
    while not done.wait(0.01) and status.is_file():
        kilobytes += [int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("RssAnon")]


def prepare(log: Path, columns: list[str], out: Path, threads: int) -> None:
    from forethought.data.interactions import Interactions

    time_column = columns[2] if len(columns) > 2 else None
    Interactions.read(log, "csv", columns[0], columns[1], time_column, threads=threads).prepare(out, k_core=5)


def reference(log: Path, columns: list[str], out: Path, threads: int) -> None:
    """What one writes in pandas: everything in memory, no checks, no manifest, no vocabulary."""
    import pandas as pd

    frame = pd.read_csv(log, usecols=columns)
    user, item, *times = columns
    while True:
        before = len(frame)
        frame = frame[frame.groupby(item)[item].transform("size") >= 5]
        frame = frame[frame.groupby(user)[user].transform("size") >= 5]
        if len(frame) == before:
            break
    frame = frame.sort_values([user, *times], kind="stable")
    frame["code"] = frame[item].rank(method="dense").astype("int32")
    lengths = frame.groupby(user).size().to_numpy()
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    out.mkdir()
    np.save(out / "offsets.npy", offsets)
    np.save(out / "items.npy", frame["code"].to_numpy())
    np.save(out / "train_stop.npy", offsets[1:] - 2)
    if times:
        np.save(out / "times.npy", frame[times[0]].to_numpy() * 1000)


if __name__ == "__main__":
    main()
