"""Checkpoint folders: each is whole or absent, sealed by digests, and at most the best and the last are kept."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

from forethought.errors import ArtefactError

SEAL = "files.json"
WEIGHTS_AND_CONFIG = ("config.json", "model.safetensors")  # without them no model can be opened
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of an optimiser step lies."""
    return folder / f"checkpoint-{step}"


def checkpoints(folder: Path) -> dict[int, Path]:
    """Complete checkpoints by optimiser step, oldest first; half-written ones have another name and are left out."""
    found = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def seal(folder: Path) -> None:
    """Write ``files.json`` with size and SHA-256 of every file in the folder."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in sorted(folder.iterdir())}
    (folder / SEAL).write_text(json.dumps(files, indent=2) + "\n")


def verify(folder: Path) -> None:
    """Compare a sealed folder with its digests.

    Raises:
        ArtefactError: a file is missing, not named, or not what was written.
    """
    try:
        files = json.loads((folder / SEAL).read_text())
        wanted = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtefactError(f"{folder} is damaged: its {SEAL} cannot be read ({error}).") from error
    for name in WEIGHTS_AND_CONFIG:
        if name not in wanted:
            raise ArtefactError(f"{folder} is damaged: its {SEAL} does not name {name}.")
    for name, (size, digest) in wanted.items():
        path = folder / name
        if not path.is_file():
            raise ArtefactError(f"{folder} is damaged: {name} is missing.")
        if path.stat().st_size != size or _digest(path) != digest:
            raise ArtefactError(f"{folder} is damaged: {name} is not what was written.")


def publish(scratch: Path, folder: Path, step: int, best: int | None) -> None:
    """Give a finished scratch folder its name, then remove every checkpoint but this one and the best."""
    target = checkpoint_path(folder, step)
    if target.exists():
        _remove(target)
    scratch.rename(target)
    for old, path in checkpoints(folder).items():
        if old not in (step, best):
            _remove(path)
    for leftover in folder.glob(".checkpoint-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    # renamed first: a kill while files are deleted must not leave half a checkpoint under a good name
    doomed = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
