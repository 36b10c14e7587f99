"""From a recipe to a run folder, and from a run folder to recommendations."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from forethought.data.arguments import MOST_THREADS, check_whole
from forethought.data.catalog import Catalog
from forethought.data.dataset import Dataset
from forethought.errors import ArtefactError, DataError, RecipeError
from forethought.evaluation.evaluator import Evaluation, evaluate
from forethought.evaluation.ranking import kind_of
from forethought.recommenders import model_class
from forethought.recommenders.base import Recommender, best_items, newest
from forethought.recommenders.models import build, config_class, data_folder, open_model, read_recipe, save_model
from forethought.training.devices import find_device
from forethought.training.recipe import Recipe
from forethought.training.record import (
    check_same,
    is_main_process,
    new_record,
    now,
    read_record,
    recording,
    run_folder,
    write_record,
)

if TYPE_CHECKING:
    from forethought.recommenders.dialling import Dial
    from forethought.training.ranking import RankingTrainer


class Recommendation(NamedTuple):
    """One item of a list, best first: the item's own ``id``, its ``title``, and the model's ``score``."""

    id: Any
    title: str
    score: float


class Run:
    """A run folder: a model, its catalogue, and how it came to be. A ``model`` folder alone is enough to recommend.

    Attributes:
        path: the folder.
        model: the recommender, in evaluation mode.
        catalog: the items it knows.
        recipe: the resolved recipe; None where only a model folder was opened.
        info: what ``run.json`` holds.
    """

    def __init__(
        self, path: Path, model: Recommender, catalog: Catalog, recipe: Recipe | None, info: Mapping[str, Any]
    ) -> None:
        self.path = path
        self.model = model
        self.catalog = catalog
        self.recipe = recipe
        self.info = dict(info)

    @classmethod
    def open(cls, path: str | os.PathLike[str], device: str | None = None) -> Run:
        """Open a run folder, or a model folder.

        Raises:
            ArtefactError: the folder is missing, unfinished, damaged or of another version.
        """
        path = Path(path)
        if (path / "config.json").is_file():
            return cls(path, *open_model(path, device), None, {})
        info = read_record(path)
        if not (path / "model" / "config.json").is_file():
            raise ArtefactError(
                f"{path} holds no trained model (its status is {info['status']}); go on with "
                f"'forethought train … --out {path} --resume'."
            )
        recipe = Recipe.load(path / "recipe.yaml", config_class)
        return cls(path, *open_model(path / "model", device), recipe, info)

    @property
    def kind(self) -> str:
        """The type of the model, as recipes name it."""
        return kind_of(self.model)

    @cached_property
    def dataset(self) -> Dataset:
        """The data the model was trained on.

        Raises:
            DataError: it is no longer there, or is not what it was.
        """
        data = self.info.get("data")
        if data is None:
            raise DataError(
                f"{self.path} is a model folder and does not say which data it was trained on; open the run folder."
            )
        dataset = Dataset.open(data["path"], verify=True)
        if dataset.fingerprint != data["fingerprint"]:
            raise DataError(f"{data['path']} was prepared anew since {self.path} was trained on it; train again.")
        return dataset

    @cached_property
    def dial(self) -> Dial:
        """What was chosen for this run's adaptive depth.

        Raises:
            ArtefactError: there is none yet, or it is damaged or of other weights.
        """
        from forethought.recommenders.dialling import Dial  # it reads runs

        return Dial.open(self)

    def evaluate(self, split: Literal["valid", "test"] = "test", **options: Any) -> Evaluation:
        """Evaluate on a held-out split and keep the result in ``evaluation/``; options as ``forethought.evaluate``."""
        evaluation = evaluate(self.model, self.dataset, split, **options)
        evaluation.save(self.path / "evaluation")
        return evaluation

    def recommend(
        self,
        history: Iterable[object],
        k: int = 10,
        exclude_seen: bool = True,
        chains: int = 0,
        seed: int = 0,
        steps: int | Literal["auto"] | None = None,
    ) -> list[Recommendation]:
        """The best next items after a history.

        Args:
            history: the items' own ids, oldest first.
            k: how many.
            exclude_seen: leave out items of the history.
            chains: of a PreferGrow, draw the list by so many random chains: another ``seed`` gives another list. Scores
                are nearly the share of chains that ended in an item; those that none ended in follow, as the model
                likes them (with ``point`` none do). 0 is the deterministic ranking.
            seed: of the chains.
            steps: of latent reasoning, before a ReaRec or a LARES answers; by default as many as it was trained for.
                ``auto`` takes as many as the run's dial gives this history.

        Raises:
            ArtefactError: chains or steps are asked of a model that has none, or ``auto`` of a run without a dial.
            DataError: the history is empty or has an item that is not in the catalogue, a number is none that fits, or
                all chains ended in the history.
        """
        return self._recommend(torch.from_numpy(self.catalog.encode(history)), k, exclude_seen, chains, seed, steps)

    def recommend_user(
        self,
        user: object,
        k: int = 10,
        exclude_seen: bool = True,
        chains: int = 0,
        seed: int = 0,
        steps: int | Literal["auto"] | None = None,
    ) -> list[Recommendation]:
        """The best next items for a user of the training data, after everything the data tells of that user.

        Arguments as in :meth:`recommend`.

        Raises:
            ArtefactError: chains or steps are asked of a model that has none, or ``auto`` of a run without a dial.
            DataError: there is no such user, or all chains ended in the history.
        """
        return self._recommend(self.history_of(user), k, exclude_seen, chains, seed, steps)

    def history_of(self, user: object) -> Tensor:
        """Everything the data tells of a user, oldest first; int64 ``[L]``.

        Raises:
            DataError: there is no such user.
        """
        row = self.dataset.user_index(user)
        start, stop = self.dataset.sequences.offsets[row : row + 2]
        return torch.from_numpy(self.dataset.sequences.items[start:stop].astype("int64"))

    def _recommend(
        self,
        history: Tensor,
        k: int,
        exclude_seen: bool,
        chains: int,
        seed: int,
        steps: int | Literal["auto"] | None,
    ) -> list[Recommendation]:
        if not len(history):
            raise DataError("The history is empty; give at least one item.")
        check_whole("k", k, least=1)
        check_whole("chains", chains)
        check_whole("seed", seed)
        rows = history[None].to(self.model.device)
        if steps is not None:  # before the chains, which no model with a choice of steps has
            from forethought.recommenders.thinking import depth, reasoner, thinking  # it reads runs

            most, rule = depth(self, steps)
        if chains:
            if not hasattr(self.model, "chain_scores"):
                raise ArtefactError(f"{self.path} holds a {self.kind}, which draws no chains; name a PreferGrow run.")
            draws = torch.Generator(rows.device).manual_seed(seed)
            read = newest(rows, self.model.config.max_length)
            best = best_items(self.model.chain_scores(read, chains, generator=draws), rows, k, exclude_seen)
        elif steps is not None:
            with thinking(reasoner(self), most, halting=rule):
                best = self.model.recommend(rows, k, exclude_seen)
        else:
            best = self.model.recommend(rows, k, exclude_seen)
        pairs = [(item, score) for item, score in zip(best.items[0].tolist(), best.scores[0].tolist(), strict=True)]
        least = 0.0 if chains else float("-inf")  # no chain ended there; the catalogue is used up
        kept = [(item, score) for item, score in pairs if score > least]
        if chains and not kept:
            raise DataError(f"All {chains} chains ended in the history; ask for more, or include seen items.")
        ids = self.catalog.decode([item for item, _ in kept])
        return [
            Recommendation(own, self.catalog.title(item), score) for own, (item, score) in zip(ids, kept, strict=True)
        ]


def train(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    quiet: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Train the model a recipe names, evaluate it on the validation part, and write a run folder.

    Args:
        recipe: a YAML file, the name of a recipe that comes with forethought, nested keys, or a :class:`Recipe`.
        out: the run folder; by default a new one under ``runs/``.
        resume: go on with ``out`` where it was stopped, or with the second phase where it was trained without; the
            result is the one of an uninterrupted run.
        seed: in place of the recipe's.
        device: ``cpu``, ``cuda`` …; by default the accelerator, where there is one.
        threads: of torch on the CPU.
        quiet: no progress bar.
        overrides: values of dotted keys, such as ``{"model.dropout": 0.2}``.

    Raises:
        RecipeError, DataError, ArtefactError: recipe, data or run folder are not what they have to be.
    """
    from forethought.training.ranking import RankingTrainer, check_measured  # seconds to import; opening does without
    from forethought.training.trainer import check_trackers

    recipe = read_recipe(recipe, overrides, seed)
    path = data_folder(recipe)
    if recipe.post_training is not None and not model_class(recipe.model["type"]).has_post_training:
        raise RecipeError(f"Recipe {recipe.name}: a {recipe.model['type']} has no second phase; remove post_training.")
    if recipe.post_training is not None and not recipe.model["steps"]:
        raise RecipeError(f"Recipe {recipe.name}: with 0 steps there is no second phase; give --one-phase.")
    check_measured(recipe)  # before a folder is begun that no other recipe can go on with
    check_trackers(recipe)
    dataset = Dataset.open(path, verify=True)
    data = dataclasses.replace(recipe.data, path=str(Path(path).resolve()))
    recipe = dataclasses.replace(recipe, data=data)
    if threads is not None:
        check_whole("threads", threads, least=1, most=MOST_THREADS)
        torch.set_num_threads(threads)
    record = new_record(recipe, dataset.fingerprint, dataset.protocol, find_device(device))
    folder = run_folder(recipe, out, resume)
    before: dict[str, Any] = {}
    if resume and (folder / "recipe.yaml").is_file():
        before, begun = read_record(folder), Recipe.load(folder / "recipe.yaml", config_class)
        if not check_same(folder, begun, recipe, before, record):
            return Run.open(folder, device)
        record["started"] = before["started"]
    began = time.monotonic()
    model = build(recipe, dataset)
    record["seconds"] = round(time.monotonic() - began, 3)  # counting is all the training some models have
    if getattr(model.config, "text_encoder", ""):
        record["text_encoder"] = model.config.text_encoder
    if before.get("text_encoder") not in (None, record.get("text_encoder")):
        raise DataError(
            f"{folder} was begun with text vectors of {before['text_encoder']}, and {data.path} now has those of "
            f"{record.get('text_encoder')}; embed the data as before, or train anew."
        )
    record["parameters"] = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    with recording(folder, record, recipe):
        if record["parameters"]:
            trainer = RankingTrainer(model, dataset, recipe, folder, device=device, quiet=quiet)
            trainer.fit(resume)
            record |= {"seconds": record["seconds"] + trainer.seconds, "steps": trainer.state.global_step}
            record["best_step"] = trainer.state.best_global_step
            if recipe.post_training is not None:
                record["post_training"] = _post_train(trainer, model, dataset, recipe, folder, device, quiet, resume)
                record["seconds"] += record["post_training"]["seconds"]
        model.eval()
        if is_main_process():
            if (folder / "evaluation").exists():
                shutil.rmtree(folder / "evaluation")  # of weights that are replaced, where a second phase followed
            if len(dataset.targets("valid")):
                evaluate(model, dataset, "valid").save(folder / "evaluation")
            save_model(model, dataset.catalog, folder / "model")
            record |= {"status": "finished", "finished": now()}
            write_record(folder, record)
    return Run(folder, model, dataset.catalog, recipe, record)


def _post_train(
    before: RankingTrainer,
    model: Recommender,
    dataset: Dataset,
    recipe: Recipe,
    folder: Path,
    device: str | None,
    quiet: bool,
    resume: bool,
) -> dict[str, Any]:
    """The second phase, by a trainer of its own in ``post-training/``; the better of both stays in the model.

    Returns:
        What ``run.json`` says of it: steps, the best validation metric of either phase, and which was kept.
    """
    from forethought.training.ranking import RankingTrainer

    assert recipe.post_training is not None
    own = folder / "post-training"
    if is_main_process():
        own.mkdir(exist_ok=True)
    model.start_post_training()
    second = dataclasses.replace(recipe, training=recipe.post_training)
    trainer = RankingTrainer(model, dataset, second, own, device=device, quiet=quiet)
    trainer.fit(resume)
    model.end_post_training()
    kept = before.best is None or (trainer.best is not None and trainer.best > before.best)
    if not kept:
        before.take_best()
    return {
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "seconds": trainer.seconds,
        "metric": recipe.training.select_by,
        "before": before.best,
        "after": trainer.best,
        "kept": kept,
    }
