"""What a finished run folder tells a leaderboard: its recipe, its log and its evaluation. No model is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from forethought.errors import ArtefactError
from forethought.evaluation.evaluator import Evaluation

FORMAT = "forethought.run"
VERSION = 1


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
        settings: its recipe as flat dotted keys, without name, seed and data path.
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


def read_run(path: str | os.PathLike[str], split: str = "test") -> RunRecord:
    """Read a finished run and its evaluation on a split.

    Raises:
        ArtefactError: the folder is no finished run, is damaged, or was not evaluated on that split.
    """
    path = Path(path)
    file = path / "run.json"
    if not file.is_file():
        raise ArtefactError(f"{path} is no run folder (no run.json); make one with 'forethought train RECIPE'.")
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        if info["format"] != FORMAT or info["version"] != VERSION:
            raise ArtefactError(f"{file} is no {FORMAT} version {VERSION}; train the run again.")
        if info["status"] != "finished":
            raise ArtefactError(f"{path} is not finished ({info['status']}); resume it, or leave it out.")
        settings = _flat(yaml.safe_load((path / "recipe.yaml").read_text(encoding="utf-8")))
        for key in ("name", "seed", "data.path"):
            settings.pop(key, None)
        return RunRecord(
            path=path,
            name=str(info["name"]),
            model=str(info["model"]),
            seed=int(info["seed"]),
            parameters=int(info["parameters"]),
            seconds=float(info["seconds"]),
            settings=settings,
            log=_read_log(path / "log.jsonl"),
            evaluation=Evaluation.load(path / "evaluation", split),
            info=info,
        )
    except ArtefactError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OSError, yaml.YAMLError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ArtefactError(f"{path} is damaged ({reason}); train it again, or leave it out.") from error


def _read_log(file: Path) -> tuple[Mapping[str, Any], ...]:
    """The events, none where a model is fitted by counting and has no log."""
    if not file.is_file():
        return ()
    events = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            events.append(json.loads(line))
        except ValueError as error:
            raise ArtefactError(
                f"{file} is damaged in line {number}; remove that line, or leave the run out."
            ) from error
    return tuple(events)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
