"""What a run folder says of itself: which recipe, which data, when, on what machine, and how far it came."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from forethought.atomic import atomic_file, claimed
from forethought.errors import ArtefactError, DataError, RecipeError
from forethought.evaluation.runs import FORMAT, VERSION
from forethought.training.devices import find_precision
from forethought.training.recipe import Recipe


def is_main_process() -> bool:
    """Whether this process, of those that torchrun or accelerate started, is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def processes() -> int:
    """How many processes train together, as torchrun or accelerate says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def run_folder(recipe: Recipe, out: str | os.PathLike[str] | None, resume: bool) -> Path:
    """The folder a run is to have; it may not exist already unless the run goes on.

    Raises:
        ArtefactError: ``out`` is taken or holds something else than a run, or is needed and was not given.
    """
    if out is None:
        if resume:
            raise ArtefactError("Which run is to go on? Name its folder with --out RUN.")
        if processes() > 1:
            raise ArtefactError("Several processes train together; name one run folder for them with --out RUN.")
        stem = Path("runs") / f"{recipe.name.replace('/', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
        names = (stem if number == 1 else Path(f"{stem}-{number}") for number in range(1, sys.maxsize))
        return next(name for name in names if not name.exists())
    folder = Path(out)
    begun = resume and (folder / "run.json").is_file()
    if begun or not is_main_process() or not folder.exists():
        return folder
    leftovers = ".run.json.*"  # of a run that was killed while it wrote its first file
    if not folder.is_dir() or any(not entry.match(leftovers) for entry in folder.iterdir()):
        if resume:
            raise ArtefactError(f"{folder} holds no run (no run.json) to go on with; choose another --out.")
        raise ArtefactError(f"{folder} exists already; go on with it by --resume, or choose another --out.")
    return folder


def check_same(
    folder: Path, begun: Recipe, recipe: Recipe, before: Mapping[str, Any], record: Mapping[str, Any]
) -> bool:
    """A run goes on only as it began; a second phase may follow one that had none.

    Recipe and data have to be the same, and where there is something left to train also the number of processes and
    the precision.

    Args:
        folder: of the run.
        begun, recipe: what it was begun with, and what it is to go on with.
        before, record: what ``run.json`` holds, and what it is to hold.

    Returns:
        Whether there is something left to train.

    Raises:
        RecipeError, DataError, ArtefactError: it is to go on with others.
    """
    old, new = _flat(begun.to_dict()), _flat(recipe.to_dict())
    if begun.post_training is None:
        new = {key: value for key, value in new.items() if not key.startswith("post_training.")}
    for key in [key for key in {**old, **new} if key != "data.path"]:
        if old.get(key) != new.get(key):
            raise RecipeError(
                f"{folder} was begun with {key} {old.get(key)!r}, not {new.get(key)!r}; "
                "resume it unchanged or choose another --out."
            )
    if before["data"]["fingerprint"] != record["data"]["fingerprint"]:
        raise DataError(f"{recipe.data.path} is not the data {folder} was begun with; train on it in another --out.")
    if before["status"] == "finished" and (begun.post_training or not recipe.post_training):
        return False
    for key, advice in {"processes": "start as many", "precision": "resume it on a device that gives it"}.items():
        if before.get(key, record[key]) != record[key]:  # older runs do not tell their processes
            raise ArtefactError(
                f"{folder} was begun with {key} {before[key]}, not {record[key]}; {advice} or choose another --out."
            )
    return True


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def new_record(recipe: Recipe, fingerprint: str, protocol: str, device: torch.device) -> dict[str, Any]:
    """What ``run.json`` says when a run begins; ``fingerprint`` and ``protocol`` are the data's."""
    program = "forethought" if Path(sys.argv[0]).name in ("__main__.py", "forethought") else sys.argv[0]
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": recipe.name,
        "model": recipe.model["type"],
        "data": {"path": recipe.data.path, "fingerprint": fingerprint, "protocol": protocol},
        "seed": recipe.seed,
        "device": device.type,
        "machine": _machine(device),
        "precision": find_precision(recipe.training.precision, device),
        "threads": torch.get_num_threads(),
        "processes": processes(),
        "versions": {
            "forethought": version("forethought"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "command": [program, *sys.argv[1:]],
        "started": now(),
        "status": "running",
    }


def _machine(device: torch.device) -> str:
    name = f"{os.cpu_count()} cores {platform.machine()}"
    return f"{name}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else name


def now() -> str:
    """The present moment, as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def told_command(record: Mapping[str, Any]) -> str:
    """The command of a run as anyone would give it: ``RUN`` in place of the folder."""
    words: list[str] = record["command"]
    kept = ["RUN" if before == "--out" else word for before, word in zip(["", *words], words, strict=False)]
    return shlex.join("--out=RUN" if word.startswith("--out=") else word for word in kept)


def write_record(folder: Path, info: Mapping[str, Any]) -> None:
    """Write ``run.json``, atomically."""
    with atomic_file(folder / "run.json") as scratch:
        scratch.write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def recording(folder: Path, record: dict[str, Any], recipe: Recipe) -> Iterator[None]:
    """Inside, a run is under way, and no other in its folder.

    ``run.json`` and ``recipe.yaml`` are there from the start; where the run fails or is stopped, ``run.json`` says so.

    Raises:
        ArtefactError: another process trains in the folder, or it cannot be written.
    """
    if not is_main_process():
        yield
        return
    with claimed(folder):
        write_record(folder, record)  # first: by it a run that was killed at once is known
        recipe.save(folder / "recipe.yaml")
        try:
            yield
        except BaseException as error:
            record["status"] = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(ArtefactError):  # the disk may be what failed
                write_record(folder, record)
            raise


def read_record(folder: Path) -> dict[str, Any]:
    """Read ``run.json``.

    Raises:
        ArtefactError: it is missing, damaged or of another version.
    """
    file = folder / "run.json"
    if not file.is_file():
        raise ArtefactError(
            f"{folder} is no run folder (no run.json); make one with 'forethought train RECIPE --out {folder}'."
        )
    try:
        info: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if info["format"] != FORMAT or info["version"] != VERSION:
            raise ArtefactError(
                f"{file} is {info['format']} version {info['version']}; this forethought reads {FORMAT} {VERSION}."
            )
        for told in (info["data"]["path"] or "", info["data"]["fingerprint"], info["status"]):  # a reasoner has no path
            if not isinstance(told, str):
                raise TypeError(f"{told!r} is no text")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(f"{file} is damaged ({type(error).__name__}: {error}); train again.") from error
    return info
