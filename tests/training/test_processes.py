"""Whole processes: killed at random, two at once, on a full disk, in a folder that cannot be written."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from forethought.atomic import claimed
from forethought.data.dataset import Dataset
from forethought.training.checkpoints import checkpoints, verify
from tests.conftest import REPOSITORY

RECIPE = """\
model: {type: sasrec, hidden_size: 32, dropout: 0.0}
training: {epochs: 6, batch_size: 64, patience: 0, ema_decay: 0.9}
"""


def run(*words: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """``limit``: bytes a file may grow to, which ends writing as a full disk does."""
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


def train(folder: Path, data: Dataset, *words: str, launcher: tuple[str, ...] = (), **options: Any) -> Any:
    assert data.path is not None
    recipe = data.path.parent / "recipe.yaml"
    recipe.write_text(RECIPE)
    command = ["-m", "forethought", "train", str(recipe), "--data.path", str(data.path), "--out", str(folder)]
    return run(*launcher, *command, "--quiet", "--device", "cpu", *words, **options)


def curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_killed_at_random_and_resumed_it_ends_with_the_same_weights():
    result = run(str(REPOSITORY / "benchmarks" / "kill_resume.py"), "--kills", "10", "--epochs", "12")
    assert result.returncode == 0, result.stdout + result.stderr
    row = next(line for line in result.stdout.splitlines() if "killed and resumed" in line)
    assert row.split()[-2:] == ["yes", "yes"], row  # same weights, same ranks


@pytest.mark.slow
def test_a_run_that_is_being_trained_is_left_alone(data: Dataset, folder: Path):
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(RECIPE.replace("epochs: 6", "epochs: 600"))
    command = ["-m", "forethought", "train", str(recipe), "--data.path", str(data.path), "--out", str(folder)]
    first = subprocess.Popen([sys.executable, *command, "--quiet", "--device", "cpu"])
    try:
        while not checkpoints(folder / "checkpoints") and first.poll() is None:
            time.sleep(0.02)
        first.send_signal(signal.SIGSTOP)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        second = run(*command, "--quiet", "--device", "cpu", "--resume")
        assert second.returncode == 2
        assert second.stderr == (
            f"forethought: error: Another process is writing {folder}; "
            "wait until it has ended, or choose another folder.\n"
        )
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    finally:
        first.kill()
        first.wait()
    with claimed(folder):  # the claim of a process that was killed is gone
        pass


def launch(port: int) -> tuple[str, ...]:
    # --cpu alone starts one process only, whatever --num_processes says (accelerate 1.15 wants MPI for more)
    launcher = ("-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1")
    return (
        *launcher,
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--multi_gpu",
        "--main_process_port",
        str(port),
    )


@pytest.mark.slow
def test_two_processes_have_the_loss_of_one(data: Dataset, folder: Path):
    alone, both = folder / "alone", folder / "both"
    folder.mkdir()
    assert train(alone, data).returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = train(both, data, launcher=launch(port))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines() == [str(both)]  # told once, not once a process
    assert json.loads((both / "run.json").read_text())["processes"] == 2
    assert [set(event) for event in curve(alone)] == [set(event) for event in curve(both)]
    for one, two in zip(curve(alone), curve(both), strict=True):
        assert {**two, "seconds": 0} == pytest.approx({**one, "seconds": 0}, rel=1e-4)
    weights, other = (load_file(each / "model" / "model.safetensors") for each in (alone, both))
    for name, value in weights.items():
        # where a gradient is about zero Adam makes a whole step (1e-3) of its rounding error
        torch.testing.assert_close(value, other[name], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_a_full_disk_leaves_the_previous_checkpoint_to_go_on_from(data: Dataset, folder: Path):
    folder.mkdir()
    whole, run_folder = folder / "whole", folder / "run"
    assert train(whole, data).returncode == 0
    sizes = {path.name: path.stat().st_size for path in checkpoints(whole / "checkpoints")[max_step(whole)].iterdir()}
    assert train(run_folder, data, "--training.epochs", "2").returncode == 0
    forget_the_end(run_folder, whole)
    before = max_step(run_folder)
    # what grows is the optimiser's file: it no longer fits, then not even the weights do
    for limit in (sizes["optimizer.pt"] // 2, sizes["model.safetensors"] // 2):
        result = train(run_folder, data, "--resume", limit=limit)
        assert result.returncode == 2, result.stderr
        assert result.stderr.startswith(f"forethought: error: Cannot write to {run_folder}: ")
        assert result.stderr.count("\n") == 1
        assert f"checkpoint-{before} is intact, go on from it with --resume" in result.stderr
        verify(checkpoints(run_folder / "checkpoints")[before])
        assert max_step(run_folder) == before
    assert train(run_folder, data, "--resume").returncode == 0
    same(whole, run_folder)


def max_step(folder: Path) -> int:
    return max(checkpoints(folder / "checkpoints"))


def forget_the_end(folder: Path, whole: Path) -> None:
    """Make of a run of two epochs one of six that was stopped after two."""
    (folder / "recipe.yaml").write_bytes((whole / "recipe.yaml").read_bytes())
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "status": "failed"}))


def same(one: Path, other: Path) -> None:
    assert (one / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()


@contextlib.contextmanager
def small_disk(at: Path, kilobytes: int) -> Iterator[Path]:
    at.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(at)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk here")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


@pytest.mark.slow
def test_a_disk_that_really_is_full_and_one_that_is_read_only(data: Dataset, folder: Path):
    with small_disk(folder / "disk", 800) as disk:
        result = train(disk / "run", data)
        assert result.returncode == 2
        assert "No space left on device" in result.stderr
        assert result.stderr.count("\n") == 1
        kept = checkpoints(disk / "run" / "checkpoints")
        assert kept
        for checkpoint in kept.values():
            verify(checkpoint)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for words in (["--resume"], ["--out", str(disk / "other")]):
            result = train(disk / "run", data, *words)
            assert result.returncode == 2
            assert "Read-only file system" in result.stderr
            assert result.stderr.count("\n") == 1
        subprocess.run(["mount", "-o", "remount,rw,size=20m", str(disk)], check=True)
        assert train(disk / "run", data, "--resume").returncode == 0
        assert train(folder / "whole", data).returncode == 0
        same(folder / "whole", disk / "run")


def test_a_folder_that_may_not_be_written(data: Dataset, folder: Path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; the read-only disk is tried instead")
    folder.mkdir()
    folder.chmod(0o500)
    result = train(folder / "run", data)
    assert result.returncode == 2
    assert "Permission denied" in result.stderr
