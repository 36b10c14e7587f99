"""From a recipe to a model, from a model to a folder, and back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers

from forethought.atomic import atomic_folder
from forethought.data.catalog import Catalog
from forethought.data.dataset import Dataset
from forethought.errors import ArtefactError, RecipeError
from forethought.recipes import recipe_path
from forethought.recommenders import MODELS, model_class
from forethought.recommenders.base import Recommender
from forethought.training.checkpoints import seal, verify
from forethought.training.devices import find_device
from forethought.training.recipe import Recipe

transformers.utils.logging.disable_progress_bar()


def read_recipe(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    overrides: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Recipe:
    """Resolve a recipe, given in any of the ways that training takes it.

    Raises:
        RecipeError: there is no such recipe, or a key or value does not fit.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise RecipeError(
            f"overrides are {overrides!r}; they have to be values by dotted key, {{'model.dropout': 0.2}}."
        )
    if seed is not None:
        overrides = {**(overrides or {}), "seed": seed}
    if isinstance(recipe, Recipe):
        return Recipe.from_mapping(recipe.to_dict(), config_class, overrides) if overrides else recipe
    if isinstance(recipe, Mapping):
        return Recipe.from_mapping(recipe, config_class, overrides)
    return Recipe.load(recipe_path(recipe), config_class, overrides)


def data_folder(recipe: Recipe) -> str:
    """Where the data of a recipe lies.

    Raises:
        RecipeError: it names none.
    """
    if recipe.data.path is None:
        raise RecipeError(
            f"Recipe {recipe.name} names no data; give --data.path FOLDER (made with 'forethought data prepare')."
        )
    return recipe.data.path


def build(recipe: Recipe, dataset: Dataset) -> Recommender:
    """The untrained model of a recipe, having observed the training part; its weights depend on ``recipe.seed``.

    Raises:
        RecipeError: its sizes do not fit together.
    """
    torch.manual_seed(recipe.seed)
    settings = {key: value for key, value in recipe.model.items() if key != "type"}
    kind = model_class(recipe.model["type"])
    try:
        model = kind(kind.config_class(num_items=dataset.num_items, **settings))
    except (ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        reason = str(error).rstrip(".")
        raise RecipeError(f"The model section of recipe {recipe.name} does not make a model: {reason}.") from error
    model.observe(dataset)
    return model


def save_model(model: Recommender, catalog: Catalog, folder: Path) -> None:
    """Write weights, config and catalogue as one folder, atomically.

    Raises:
        ArtefactError: the place cannot be written.
    """
    try:
        with atomic_folder(folder, replace=True) as scratch:
            model.save_pretrained(scratch)
            shutil.copymode(scratch / "config.json", scratch / "model.safetensors")  # written for the owner alone
            catalog.save(scratch / "items.parquet")
            seal(scratch)
    except safetensors.SafetensorError as error:
        raise ArtefactError(f"Cannot write {folder}: {error}; free the space or choose another place.") from error


def open_model(folder: Path, device: str | None) -> tuple[Recommender, Catalog]:
    """The model and the catalogue that :func:`save_model` wrote.

    Raises:
        ArtefactError: they are not there, damaged, or of a kind that this forethought does not know.
    """
    place = find_device(device or "cpu")
    verify(folder)
    try:
        architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
        kinds = {home.partition(":")[2]: kind for kind, home in MODELS.items()}
        if architecture not in kinds:
            raise ArtefactError(f"{folder} holds a {architecture}; this forethought knows {', '.join(MODELS)}.")
        model: Recommender
        model, read = model_class(kinds[architecture]).from_pretrained(folder, output_loading_info=True)
        for wrong in ("missing", "unexpected"):  # what is missing would be left as memory happened to be
            if names := sorted(read[f"{wrong}_keys"]):
                raise ArtefactError(
                    f"{folder} cannot be opened as a model: the weights {', '.join(names)} are {wrong}; train again."
                )
    except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, safetensors.SafetensorError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(f"{folder} cannot be opened as a model: {error}.") from error
    return model.to(place).eval(), Catalog.open(folder / "items.parquet")


def config_class(kind: str) -> type[transformers.PreTrainedConfig]:
    """The settings of a kind of model."""
    return model_class(kind).config_class
