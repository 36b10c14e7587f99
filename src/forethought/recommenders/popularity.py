"""Popularity: the same list for everyone, by training counts. What every other model has to beat."""

from __future__ import annotations

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from forethought.data.dataset import Dataset
from forethought.recommenders.base import RecommenderConfig
from forethought.recommenders.counting import CountingRecommender


@strict
class PopularityConfig(RecommenderConfig):
    """Popularity has no settings of its own."""

    model_type = "forethought-popularity"


class Popularity(CountingRecommender):
    """Scores each item by how often it occurs in training."""

    config_class = PopularityConfig
    counts: Tensor

    def __init__(self, config: PopularityConfig) -> None:
        super().__init__(config)
        self.register_buffer("counts", torch.zeros(config.num_items))
        self.post_init()

    def observe(self, dataset: Dataset) -> None:
        self.counts = torch.from_numpy(dataset.item_counts()[1:]).float()

    def score_all(self, history: Tensor) -> Tensor:
        return self.counts.expand(len(history), -1)
