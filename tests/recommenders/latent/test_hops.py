"""The mechanism: appended tokens follow chains that the same network without them cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HOPS = Path(__file__).resolve().parents[3] / "benchmarks" / "hops.py"


def rows(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    out = tmp_path / "rows.jsonl"
    run = subprocess.run(
        [sys.executable, HOPS, *arguments, "--seeds", "0", "--json", out], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
def test_appended_tokens_follow_chains_of_four(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, "--models", "append, K = 3", "--steps", "1200", "--walk-steps", "0")
    assert min(row["accuracy"]["3"]) >= 0.99
    assert max(row["accuracy"]["1"][2:]) < 0.6  # stopped after one step of three, it is two edges on its way


@pytest.mark.slow
def test_without_steps_it_guesses_beyond_one_hop(tmp_path: Path) -> None:
    chains, walks = rows(tmp_path, "--models", "append, K = 0", "--steps", "1500", "--walk-steps", "300")
    assert chains["accuracy"]["0"][0] > 0.85
    assert max(chains["accuracy"]["0"][1:]) < 0.62
    assert walks["loss"] >= walks["law"] - 0.005  # nothing predicts a chain better than its law


@pytest.mark.slow
def test_a_recurrence_follows_chains_of_four(tmp_path: Path) -> None:
    options = ("--models", "recur from H, mean depth 4", "--steps", "1500", "--walk-steps", "0")
    (row,) = rows(tmp_path, *options)
    assert min(row["accuracy"]["4"]) >= 0.98
    assert min(row["accuracy"]["8"]) >= 0.9  # deeper than it was ever trained
    assert row["accuracy"]["1"][3] < 0.7  # the fourth hop takes steps
