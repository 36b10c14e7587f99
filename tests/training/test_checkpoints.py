"""Checkpoint folders: whole or absent whatever interrupts, and refused where a byte has changed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forethought.errors import ArtefactError
from forethought.training.checkpoints import checkpoints, publish, seal, verify


def write(folder: Path, step: int) -> Path:
    scratch = folder / f".checkpoint-{step}.part"
    scratch.mkdir(parents=True)
    (scratch / "config.json").write_text("{}")
    (scratch / "model.safetensors").write_bytes(bytes([step]) * 1000)
    seal(scratch)
    return scratch


def test_at_most_the_best_and_the_last_are_kept(tmp_path: Path):
    for step, best in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3)]:
        publish(write(tmp_path, step), tmp_path, step, best)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-5"]


class Killed(BaseException):
    """Stands for the end of the process at one system call."""


@pytest.mark.parametrize("calls", range(12))
def test_whatever_call_is_the_last_a_whole_checkpoint_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
):
    publish(write(tmp_path, 1), tmp_path, 1, 1)
    publish(write(tmp_path, 2), tmp_path, 2, 1)
    left = [calls]

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "rmdir"):
            patch.setattr(f"os.{name}", dying(getattr(os, name)))
        with pytest.raises(Killed) if calls < 11 else contextlib.nullcontext():
            publish(write(tmp_path, 3), tmp_path, 3, 3)  # one checkpoint comes, two go: eleven calls
    found = checkpoints(tmp_path)
    assert max(found) in (2, 3)
    for path in found.values():
        verify(path)
    publish(write(tmp_path, 4), tmp_path, 4, 4)  # the next one clears what the kill left
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_half_written_checkpoints_are_not_found(tmp_path: Path):
    write(tmp_path, 7)
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoints(tmp_path) == {}
    assert checkpoints(tmp_path / "absent") == {}


WEIGHTS = "model.safetensors"


def forget(folder: Path, name: str) -> None:
    files = json.loads((folder / "files.json").read_text())
    del files[name]
    (folder / "files.json").write_text(json.dumps(files))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / WEIGHTS).write_bytes(bytes([1]) * 999 + b"x"), f"{WEIGHTS} is not what was written"),
        (lambda folder: (folder / WEIGHTS).write_bytes(bytes([1]) * 500), f"{WEIGHTS} is not what was written"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
        (lambda folder: (folder / "files.json").write_text("{}"), "files.json does not name config.json"),
        (lambda folder: forget(folder, WEIGHTS), f"files.json does not name {WEIGHTS}"),
        (lambda folder: (folder / "files.json").unlink(), "files.json cannot be read"),
        (lambda folder: (folder / "files.json").write_text("[1]"), "files.json cannot be read"),
        (lambda folder: (folder / "files.json").write_text("{"), "files.json cannot be read"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, message: str):
    publish(write(tmp_path, 1), tmp_path, 1, 1)
    verify(tmp_path / "checkpoint-1")
    damage(tmp_path / "checkpoint-1")
    with pytest.raises(ArtefactError, match=message):
        verify(tmp_path / "checkpoint-1")
