"""Training of a next-item model, selected by how it ranks the validation targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from forethought.data.batches import TrainingExamples
from forethought.data.dataset import Dataset
from forethought.errors import RecipeError
from forethought.evaluation.metrics import mean_metrics
from forethought.evaluation.ranking import rank_targets
from forethought.training.recipe import Recipe
from forethought.training.trainer import Trainer


def check_measured(recipe: Recipe) -> None:
    """Refuse to select by what is not measured here.

    Raises:
        RecipeError: the recipe selects by ``accuracy``.
    """
    if recipe.training.select_by == "accuracy":
        raise RecipeError(
            f"Recipe {recipe.name} has training.select_by accuracy, which recommenders are not measured by; "
            "choose hr, ndcg or mrr, such as ndcg@10."
        )


class RankingTrainer(Trainer):
    """Trains a recommender as its recipe says.

    Args:
        model: ``forward(history, target, num_targets)`` returns an output with ``loss``.
        dataset: the prepared data; trained on its training part, selected on its validation part.
        recipe, folder, options: as :class:`Trainer`.

    Raises:
        RecipeError: the recipe asks for what this machine or data cannot give.
    """

    def __init__(self, model: PreTrainedModel, dataset: Dataset, recipe: Recipe, folder: Path, **options: Any) -> None:
        self.targets = dataset.targets("valid")
        examples = TrainingExamples(dataset, model.config.max_length, recipe.data.targets)
        super().__init__(model, examples, recipe, folder, validates=len(self.targets) > 0, **options)

    def validate(self) -> dict[str, float]:
        """``{"ndcg@10": …}``, each process having ranked its share of the targets."""
        evaluation, processes = self.recipe.evaluation, self.args.world_size
        rows = np.arange(self.args.process_index, len(self.targets), processes)
        ranks = rank_targets(self.model, self.targets, batch_size=evaluation.batch_size, rows=rows)
        metrics = mean_metrics(ranks)[f"seen_{evaluation.seen}"]
        if processes > 1:
            share = [value * len(rows) if len(rows) else 0.0 for value in metrics.values()]
            sums = torch.tensor(share, device=self.args.device)
            means = self.accelerator.reduce(sums) / len(self.targets)
            metrics = dict(zip(metrics, means.tolist(), strict=True))
        return metrics
