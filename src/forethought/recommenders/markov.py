"""First-order Markov: what followed the newest item in training."""

from __future__ import annotations

from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from forethought.data.dataset import Dataset
from forethought.recommenders.base import RecommenderConfig
from forethought.recommenders.counting import CountingRecommender, SparseRows, newest_pairs, pair_table, train_pairs


@strict
class MarkovConfig(RecommenderConfig):
    """How transitions are counted.

    Attributes:
        transitions: ``all`` of the training part, or each user's ``last`` one (the supervision of models trained on
            one target a user).
        nonzeros: entries of the table; set by the data.
    """

    model_type = "forethought-markov"

    transitions: Literal["all", "last"] = "all"
    nonzeros: int = 0


class Markov(CountingRecommender):
    """Scores item j after item i by the number of training transitions i → j.

    Half the relative popularity (at most 1/2) is added, less than any transition counts: it orders items that followed
    equally often, and those that never did.
    """

    config_class = MarkovConfig
    popularity: Tensor

    def __init__(self, config: MarkovConfig) -> None:
        super().__init__(config)
        self.register_buffer("popularity", torch.zeros(config.num_items))
        self.table = SparseRows(config.num_items, config.nonzeros)
        self.post_init()

    def observe(self, dataset: Dataset) -> None:
        counts = torch.from_numpy(dataset.item_counts()[1:]).float()
        self.popularity = counts / counts.max().clamp(min=1)
        pairs = train_pairs(dataset, 1) if self.config.transitions == "all" else newest_pairs(dataset)
        self.config.nonzeros = self.table.fill(pair_table(pairs, dataset.num_items))

    def score_all(self, history: Tensor) -> Tensor:
        newest = (history > 0).sum(dim=1, keepdim=True) - 1
        item = history.gather(1, newest.clamp(min=0))
        return self.table.weighted_sum(item, torch.ones_like(item, dtype=torch.float32)) + self.popularity / 2
