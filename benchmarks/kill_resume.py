"""Kill a training run with SIGKILL at random moments, resume it each time, and compare it with a run left alone.

    python benchmarks/kill_resume.py [--kills 10] [--epochs 40] [--seed 0]

Dropout, the average of the weights, accumulation and checkpoints in the middle of epochs are all on. Exit code 0 and a
ratio of time where the final weights are the same bit for bit, 1 where they are not.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from forethought.data.interactions import Interactions
from report import Result

RECIPE = """\
model: {type: sasrec, hidden_size: 32, dropout: 0.2, loss: sampled, negatives: 64}
training:
  {epochs: EPOCHS, batch_size: 32, learning_rate: 1e-3, ema_decay: 0.99, gradient_accumulation_steps: 2,
   evaluate_every: 7, patience: 0, scheduler: cosine, warmup_steps: 10}
"""


def log(users: int, items: int, seed: int) -> pa.Table:
    """Walks on a ring: after item x comes one of the next three."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(5, 40, users)
    owner = np.repeat(np.arange(users), lengths)
    time_of = np.arange(len(owner))
    start = np.repeat(draw.integers(0, items, users), lengths)
    item = (start + draw.integers(1, 4, len(owner)).cumsum()) % items
    return pa.table({"user": owner, "item": item, "timestamp": time_of})


def start(recipe: Path, data: Path, out: Path, resume: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "forethought", "train", str(recipe), "--data.path", str(data), "--out", str(out)]
    command += ["--quiet", "--threads", "1", "--device", "cpu"] + ["--resume"] * resume
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def steps(run: Path) -> int:
    found = [int(path.name.rpartition("-")[2]) for path in run.glob("checkpoints/checkpoint-*")]
    return max(found, default=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="keep the result here")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        Interactions.from_table(log(400, 100, options.seed)).prepare(folder / "data")
        (folder / "recipe.yaml").write_text(RECIPE.replace("EPOCHS", str(options.epochs)))
        whole, killed = folder / "whole", folder / "killed"

        began = time.perf_counter()
        if start(folder / "recipe.yaml", folder / "data", whole, False).wait():
            return 1
        alone = time.perf_counter() - began
        final = steps(whole)
        print(f"left alone: {final} steps in {alone:.1f} s")

        began = time.perf_counter()
        for kill in range(1, options.kills + 1):
            events = killed / "log.jsonl"
            before = events.stat().st_mtime_ns if events.exists() else 0
            process = start(folder / "recipe.yaml", folder / "data", killed, kill > 1)
            while process.poll() is None and (not events.exists() or events.stat().st_mtime_ns == before):
                time.sleep(0.005)  # until it trains
            time.sleep(draw.uniform(0, alone / options.kills))
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(f"kill {kill}: checkpoint at step {steps(killed)} of {final}")
        if start(folder / "recipe.yaml", folder / "data", killed, True).wait():
            return 1
        same = [
            (whole / name).read_bytes() == (killed / name).read_bytes()
            for name in ("model/model.safetensors", "evaluation/valid-ranks.npy")
        ]
        again = time.perf_counter() - began
    result = Result("Killed and resumed", 1)
    result.table(
        f"{final} optimiser steps, left alone and killed by SIGKILL {options.kills} times at random moments.",
        ["", "s", "same weights", "same ranks"],
        [["left alone", alone, "-", "-"], ["killed and resumed", again, *("yes" if equal else "NO" for equal in same)]],
    )
    result.save(options.json)
    return 0 if all(same) else 1


if __name__ == "__main__":
    raise SystemExit(main())
