"""What a finished run folder tells a leaderboard: its recipe, its log and its evaluation. No model is loaded."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from forethought.errors import ArtefactError
from forethought.evaluation.evaluator import Evaluation

FORMAT = "forethought.run"
VERSION = 1
KINDS: dict[str, type] = {  # of what a report shows of run.json; the last two older runs need not have
    "name": str, "model": str, "seed": int, "parameters": int, "versions": dict, "command": list,
}  # fmt: skip


@dataclass(frozen=True)
class RunRecord:
    """A run folder, read.

    Attributes:
        path: the folder.
        name: how the run is called.
        model: the ``type`` of its model.
        seed: of its weights, batches and noise.
        parameters: trained numbers; 0 for models that are fitted by counting.
        seconds: training took.
        settings: its recipe as flat dotted keys, without name, seed and data path; ``precision: auto`` is what it was.
        log: the events of ``log.jsonl``, oldest first.
        evaluation: of the split that was asked for.
        info: all of ``run.json``.
    """

    path: Path
    name: str
    model: str
    seed: int
    parameters: int
    seconds: float
    settings: Mapping[str, Any]
    log: tuple[Mapping[str, Any], ...]
    evaluation: Evaluation
    info: Mapping[str, Any]


def find_runs(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The run folders that paths stand for: a run for itself, a folder of runs for the finished runs directly in it.

    Of the runs in a folder, those that repeat another one (same recipe, seed and data) are left out.

    Raises:
        ArtefactError: a path is neither, or a run is damaged, or one that is named itself is not finished.
    """
    named: list[Path] = []
    inside: list[Path] = []
    for path in map(Path, paths):
        if (path / "run.json").is_file():
            _check_finished(path, _read_info(path))
            named.append(path)
            continue
        runs = sorted(file.parent for file in path.glob("*/run.json"))
        if not runs:
            raise ArtefactError(
                f"{path} is no run folder (no run.json) and holds none; make one with 'forethought train RECIPE'."
            )
        finished = [run for run in runs if _read_info(run)["status"] == "finished"]
        if not finished:
            raise ArtefactError(f"None of the runs in {path} is finished; resume one, or leave the folder out.")
        inside += finished
    known = {_identity(run) for run in named}
    others: dict[str, Path] = {}
    for run in inside:
        others.setdefault(_identity(run), run)
    return named + [run for identity, run in others.items() if identity not in known]


def read_run(path: str | os.PathLike[str], split: str = "test") -> RunRecord:
    """Read a finished run and its evaluation on a split.

    Raises:
        ArtefactError: the folder is no finished run, is damaged, or was not evaluated on that split.
    """
    path = Path(path)
    info = _read_info(path)
    _check_finished(path, info)
    try:
        for key, kind in KINDS.items():
            if not isinstance(info.get(key, kind()), kind):
                raise TypeError(f"{key} is {info[key]!r}")
        if not (0 <= info["parameters"] < 2**63 and 0 <= info["seconds"] < 2**63):
            raise ValueError(f"parameters are {info['parameters']} and seconds {info['seconds']}")
        return RunRecord(
            path=path,
            name=info["name"],
            model=info["model"],
            seed=info["seed"],
            parameters=info["parameters"],
            seconds=float(info["seconds"]),
            settings=_read_settings(path, info),
            log=_read_log(path / "log.jsonl"),
            evaluation=Evaluation.load(path / "evaluation", split),
            info=info,
        )
    except ArtefactError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OSError, RecursionError, yaml.YAMLError) as error:
        raise _damaged(path, error) from error


def _read_info(path: Path) -> dict[str, Any]:
    file = path / "run.json"
    if not file.is_file():
        raise ArtefactError(f"{path} is no run folder (no run.json); make one with 'forethought train RECIPE'.")
    try:
        info: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        known = (info["format"], info["version"]) == (FORMAT, VERSION)
        _ = info["status"]
    except (KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not known:
        raise ArtefactError(f"{file} is no {FORMAT} version {VERSION}; train the run again.")
    return info


def _read_settings(path: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    settings = _flat(yaml.safe_load((path / "recipe.yaml").read_text(encoding="utf-8")))
    if info.get("text_encoder"):
        settings["model.text_encoder"] = info["text_encoder"]  # a matter of the data, so not in the recipe
    for key in ("training.precision", "post_training.precision"):
        if settings.get(key) == "auto":  # a matter of the machine; what it came to is no other recipe
            settings[key] = info.get("precision", "auto")
    return {key: value for key, value in settings.items() if key not in ("name", "seed", "data.path")}


def _identity(path: Path) -> str:
    """What tells a run from others: its settings, its seed, and the data."""
    info = _read_info(path)
    try:
        return repr((sorted(_read_settings(path, info).items()), info["seed"], info["data"]["fingerprint"]))
    except (KeyError, TypeError, AttributeError, ValueError, OSError, RecursionError, yaml.YAMLError) as error:
        raise _damaged(path, error) from error


def _check_finished(path: Path, info: Mapping[str, Any]) -> None:
    if info["status"] != "finished":
        raise ArtefactError(f"{path} is not finished ({info['status']}); resume it, or leave it out.")


def _damaged(path: Path, error: Exception) -> ArtefactError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return ArtefactError(f"{path} is damaged ({reason}); train it again, or leave it out.")


def _read_log(file: Path) -> tuple[Mapping[str, Any], ...]:
    """The events, none where a model is fitted by counting and has no log."""
    if not file.is_file():
        return ()
    events = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            event = json.loads(line)
            curve = [value for key, value in event.items() if key in ("step", "epoch") or key.startswith("valid/")]
            if "step" not in event or not all(map(math.isfinite, curve)):
                raise ValueError("an event tells its step, and numbers")
            events.append(event)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ArtefactError(
                f"{file} is damaged in line {number}; remove that line, or leave the run out."
            ) from error
    return tuple(events)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
