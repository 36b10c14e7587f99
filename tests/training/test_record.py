from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forethought.errors import ArtefactError, RecipeError
from forethought.recommenders.run import Run, train
from forethought.training.recipe import Recipe
from forethought.training.record import told_command


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["forethought", "train", "x", "--out", "/a/b", "--seed", "1"], "forethought train x --out RUN --seed 1"),
        (["forethought", "train", "x", "--out=/a/b"], "forethought train x --out=RUN"),
        (["forethought", "train", "a recipe"], "forethought train 'a recipe'"),
    ],
)
def test_a_command_is_told_without_the_folder_of_this_machine(words: list[str], told: str) -> None:
    assert told_command({"command": words}) == told


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"processes": 2}, "was begun with processes 2, not 1; start as many or choose another --out"),
        (
            {"precision": "bf16"},
            "was begun with precision bf16, not fp32; resume it on a device that gives it or choose",
        ),
    ],
)
def test_a_run_goes_on_only_as_it_began(
    recipe: Callable[..., Recipe], folder: Path, told: dict[str, Any], sentence: str
) -> None:
    chosen = recipe(training__epochs=1)
    train(chosen, out=folder, device="cpu", quiet=True)
    info = json.loads((folder / "run.json").read_text())
    assert (info["processes"], info["precision"]) == (1, "fp32")

    def resume(**changes: Any) -> str:
        kept = {key: value for key, value in {**info, **changes}.items() if value is not None}
        (folder / "run.json").write_text(json.dumps(kept))
        return str(train(chosen, out=folder, resume=True, device="cpu", quiet=True).info["status"])

    with pytest.raises(ArtefactError, match=sentence):
        resume(status="interrupted", **told)
    assert resume(**told) == "finished"  # nothing is left to train
    assert resume(status="interrupted", processes=None) == "finished"  # as older runs were


def test_files_too_deep_to_read_are_refused_with_a_sentence(recipe: Callable[..., Recipe], folder: Path) -> None:
    train(recipe(training__epochs=1), out=folder, device="cpu", quiet=True)
    for file, kind in (("recipe.yaml", RecipeError), ("model/files.json", ArtefactError), ("run.json", ArtefactError)):
        whole = (folder / file).read_text()
        (folder / file).write_text("[" * 100_000)
        with pytest.raises(kind, match="maximum recursion depth"):
            Run.open(folder)
        (folder / file).write_text(whole)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"data": {"path": 5, "fingerprint": "x"}}))
    with pytest.raises(ArtefactError, match=r"run.json is damaged \(TypeError: 5 is no text\)"):
        Run.open(folder)


def test_a_run_says_at_its_start_how_many_processes_it_has(
    recipe: Callable[..., Recipe], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StopError

    monkeypatch.setattr("forethought.training.ranking.RankingTrainer.fit", stop)
    with pytest.raises(StopError):
        train(recipe(), out=folder, device="cpu", quiet=True)
    info = json.loads((folder / "run.json").read_text())
    assert (info["status"], info["processes"]) == ("failed", 1)
