"""Search a recipe's keys for the best validation metric. The test part is never looked at."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.data.dataset import Dataset
from forethought.errors import ArtefactError, DataError, RecipeError
from forethought.evaluation.evaluator import Evaluation
from forethought.evaluation.ranking import ScoringError
from forethought.recommenders.models import data_folder, read_recipe
from forethought.recommenders.run import train
from forethought.training.recipe import Recipe

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Tuning:
    """What a search found.

    Attributes:
        path: the folder of the search; ``recipe.yaml`` in it is the best recipe.
        recipe: the best recipe.
        value: its validation metric.
        trials: one row a finished trial: its number, ``value`` and the values of the keys searched.
    """

    path: Path
    recipe: Recipe
    value: float
    trials: list[dict[str, Any]]


def tune(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    *,
    search: Mapping[str, str] | None = None,
    trials: int = 20,
    out: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Callable[[int, Mapping[str, Any], float | str], None] | None = None,
) -> Tuning:
    """Train ``trials`` variants of a recipe (tree-structured Parzen estimator) and keep the best of them.

    Called again with the same ``out`` it goes on where it was stopped, up to ``trials`` finished trials in all.

    Args:
        search: for each dotted key its range: ``"low..high"``, ``"low..high:log"``, or ``"a,b,c"`` to choose from;
            by default learning rate and dropout.
        out: by default ``runs/NAME-tune``.
        progress: called after each trial with its number, the values of the keys, and the metric, or why it failed.

    Others as :func:`forethought.train`.

    Raises:
        RecipeError: a key or range does not fit, no data is named, no trial could be trained, or optuna is not
            installed.
        DataError: the data has nothing to validate on.
        ArtefactError: ``out`` holds another search.
    """
    try:
        import optuna
    except ImportError as error:
        raise RecipeError("Tuning needs optuna; install it with: pip install 'forethought[tune]'.") from error
    base = read_recipe(recipe, overrides, seed)
    if trials < 1:
        raise RecipeError(f"{trials} trials find nothing; ask for at least one.")
    if not search and "dropout" in base.model:
        search = {"training.learning_rate": "3e-4..3e-3:log", "model.dropout": "0.0..0.5"}
    if not search:
        raise RecipeError("Nothing is searched; name a key and its range, such as --search model.window=1..20.")
    spaces = {key: _space(key, text, base) for key, text in search.items()}
    for key, space in spaces.items():  # every end has to fit the recipe before anything is trained
        for value in getattr(space, "choices", None) or (space.low, space.high):
            read_recipe(base, {key: value})
    data = data_folder(base)
    if not len(Dataset.open(data).targets("valid")):
        raise DataError(
            f"{data} has no validation cases to choose by; prepare it with longer histories or another split."
        )
    folder = Path(out or Path("runs") / f"{base.name.replace('/', '-')}-tune")
    study = _open_study(folder, base, dict(search))
    column, metric = f"seen_{base.evaluation.seen}", base.training.select_by
    failure = ""
    for _ in range(trials - len(_finished(study))):
        trial = study.ask(spaces)
        try:
            run = train(
                read_recipe(base, trial.params),
                out=folder / f"trial-{trial.number:04}",
                device=device,
                threads=threads,
                quiet=True,
            )
        except (RecipeError, ScoringError) as error:  # it diverged, or its sizes do not fit together
            failure = str(error)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            if progress is not None:
                progress(trial.number, trial.params, failure)
            continue
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)  # the model is kept, the way to it is not
        value = Evaluation.load(run.path / "evaluation", "valid").metrics[column][metric]
        study.tell(trial, value)
        if progress is not None:
            progress(trial.number, trial.params, value)
    rows = [{"trial": trial.number, "value": trial.value, **trial.params} for trial in _finished(study)]
    if not rows:
        raise RecipeError(
            f"None of {trials} trials could be trained; search other keys or narrower ranges (the last one: "
            f"{failure.rstrip('.')})."
        )
    best = read_recipe(base, study.best_params)
    best.save(folder / "recipe.yaml")
    return Tuning(folder, best, study.best_value, rows)


def _open_study(folder: Path, base: Recipe, search: dict[str, str]) -> optuna.Study:
    import optuna

    if folder.is_dir() and any(folder.iterdir()) and not (folder / "study.sqlite3").is_file():
        raise ArtefactError(f"{folder} holds something else than a search (no study.sqlite3); choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = f"sqlite:///{folder / 'study.sqlite3'}"
    try:
        study = optuna.create_study(study_name="tune", storage=storage, direction="maximize", load_if_exists=True)
    except Exception as error:  # whatever the database layer raises
        raise ArtefactError(f"{folder / 'study.sqlite3'} cannot be opened: {str(error).splitlines()[0]}.") from error
    said = {"search": search, "recipe": base.to_dict()}
    if study.user_attrs and study.user_attrs != said:
        raise ArtefactError(f"{folder} holds a search over other keys or of another recipe; choose another --out.")
    for name, value in said.items():
        study.set_user_attr(name, value)
    for stopped in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # left by a search that was killed
        shutil.rmtree(folder / f"trial-{stopped.number:04}", ignore_errors=True)
        study.enqueue_trial(stopped.params)
        study.tell(stopped.number, state=optuna.trial.TrialState.FAIL)
    # the sampler keeps no state: after a resume it has to draw on, not to draw the same again
    study.sampler = optuna.samplers.TPESampler(seed=base.seed + len(study.trials))
    return study


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    import optuna

    return study.get_trials(states=[optuna.trial.TrialState.COMPLETE])


def _space(key: str, text: str, base: Recipe) -> Any:
    """``low..high``, ``low..high:log`` or ``a,b,c`` as an optuna distribution, of fractions if ``key`` takes them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    span, _, scale = text.partition(":")
    low, dots, high = span.partition("..")
    if dots and scale in ("", "log"):
        apart = 0.0
        with contextlib.suppress(ValueError):
            apart = float(high) - float(low)
        if not math.isfinite(apart):
            raise RecipeError(f"--search {key}={text} has no end; give finite numbers that are less far apart.")
        with contextlib.suppress(ValueError):
            whole = IntDistribution(int(low), int(high), log=scale == "log")
            try:
                read_recipe(base, {key: whole.low + 0.5})
            except RecipeError:
                return whole
        with contextlib.suppress(ValueError):
            return FloatDistribution(float(low), float(high), log=scale == "log")
    elif not dots and len(choices := text.split(",")) > 1:
        return CategoricalDistribution(choices)
    raise RecipeError(f"--search {key}={text} is no range; write {key}=LOW..HIGH, {key}=LOW..HIGH:log or {key}=A,B,C.")
