"""A small log, prepared and trained once through the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def forethought() -> Command:
    """``forethought("train", "recipe.yaml")`` runs the command in a process of its own."""

    def call(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "forethought", *map(str, words)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)

    return call


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Walks on a ring of 30 songs, one of the next three following."""
    draw = np.random.default_rng(0)
    lines = ["user,item,timestamp"]
    for user in range(120):
        place = int(draw.integers(0, 30))
        for event in range(int(draw.integers(4, 20))):
            place = (place + int(draw.integers(1, 4))) % 30
            lines.append(f"ann {user},song-{place},{1_700_000_000 + 60 * event}")
    path = tmp_path_factory.mktemp("log") / "plays.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def data(forethought: Command, log: Path) -> Path:
    out = log.parent / "data"
    result = forethought("data", "prepare", log, "--out", out, "--quiet")
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="session")
def recipe(log: Path) -> Path:
    path = log.parent / "small.yaml"
    path.write_text(
        "model: {type: sasrec, hidden_size: 16, num_blocks: 1, dropout: 0.0}\n"
        "training: {epochs: 20, batch_size: 32, learning_rate: 0.01, patience: 0}\n"
    )
    return path


@pytest.fixture(scope="session")
def trained(forethought: Command, recipe: Path, data: Path) -> Path:
    out = data.parent / "run"
    result = forethought("train", recipe, "--data.path", data, "--out", out, "--device", "cpu", "--threads", 1)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(out)
    return out
