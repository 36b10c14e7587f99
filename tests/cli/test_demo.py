"""The demo, cut short: every command of it runs, and the leaderboard comes last."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import Command


@pytest.mark.slow
def test_the_demo_ends_with_the_leaderboard(forethought: Command, tmp_path: Path):
    words = ["demo", "--out", "demo", "--device", "cpu", "--seed", 1, "--training.max_steps", 30, "--threads", 1]
    result = forethought(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    shown = [shlex.split(line[2:]) for line in result.stdout.splitlines() if line.startswith("$ forethought ")]
    assert [words[1] for words in shown] == ["data", *["train"] * 5, "recommend", "grow", "compare"]
    before, _, ending = result.stdout.rpartition("$ forethought compare")
    assert before.splitlines()[-2].startswith("Everything is in demo. After ")
    assert "" not in result.stderr.splitlines()  # a bar is for a terminal
    for name in ("popularity", "markov", "knn", "sasrec", "prefergrow"):
        assert name in ending
        info = json.loads((tmp_path / "demo" / name / "run.json").read_text())
        assert (info["status"], info["seed"]) == ("finished", 1)
    board = json.loads((tmp_path / "demo" / "report" / "leaderboard.json").read_text())
    assert len(board["entries"]) == 5
    assert (tmp_path / "demo" / "report" / "report.html").stat().st_size > 10_000
    assert len(list((tmp_path / "demo" / "prefergrow" / "growing").iterdir())) == 2
    # what was shown can be typed again
    recommended = forethought(*shown[6][1:], cwd=tmp_path)
    assert recommended.stdout in result.stdout
