"""Next-item models. ``MODELS`` names each ``type`` a recipe can ask for; classes load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from forethought.errors import RecipeError

if TYPE_CHECKING:
    from forethought.recommenders.base import Recommender

MODELS = {
    "popularity": "forethought.recommenders.popularity:Popularity",
    "markov": "forethought.recommenders.markov:Markov",
    "knn": "forethought.recommenders.knn:CooccurrenceKNN",
    "sasrec": "forethought.recommenders.sasrec:SASRec",
    "rearec": "forethought.recommenders.latent.rearec:ReaRec",
    "lares": "forethought.recommenders.latent.lares:LARES",
    "prefergrow": "forethought.recommenders.prefergrow.model:PreferGrow",
}


def model_class(name: str) -> type[Recommender]:
    """The recommender a recipe's ``model.type`` names.

    Raises:
        RecipeError: there is no such model.
    """
    if name not in MODELS:
        raise RecipeError(f"model.type is {name!r}; choose one of {', '.join(MODELS)}.")
    module, attribute = MODELS[name].split(":")
    found: type[Recommender] = getattr(import_module(module), attribute)
    return found
