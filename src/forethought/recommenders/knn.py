"""Co-occurrence kNN: items that stand near each other in the sequences of other users, near items counting more."""

from __future__ import annotations

from math import inf

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from scipy import sparse
from torch import Tensor

from forethought.data.dataset import Dataset
from forethought.errors import RecipeError
from forethought.recommenders.base import RecommenderConfig
from forethought.recommenders.counting import CountingRecommender, SparseRows, pair_table, train_pairs


@strict
class CooccurrenceKNNConfig(RecommenderConfig):
    """How neighbours are weighed.

    Attributes:
        window: two items of a user are neighbours up to this many events apart.
        pair_decay: a pair d events apart counts d^-pair_decay.
        backward: how much a pair counts against its direction, j before i as evidence for j after i.
        source_power, target_power: i's row is divided by n_i^source_power and j's column by n_j^target_power, n being
            training counts; 0.5 and 0.5 is the cosine.
        neighbours: the strongest entries kept of each item.
        history_decay: the k-th newest item of a history counts k^-history_decay.
        nonzeros: entries of the table; set by the data.
    """

    model_type = "forethought-knn"

    window: int = 10
    pair_decay: float = 0.5
    backward: float = 0.25
    source_power: float = 0.5
    target_power: float = 0.1
    neighbours: int = 1000
    history_decay: float = 1.0
    nonzeros: int = 0

    def validate_weights(self) -> None:
        """Refuse weights that grow with distance, or turn evidence around; called when the config is made."""
        for key in ("pair_decay", "backward", "source_power", "target_power", "history_decay"):
            if not 0 <= getattr(self, key) < inf:
                raise ValueError(f"{key} is {getattr(self, key)}; it has to be a finite number of 0 or more")


class CooccurrenceKNN(CountingRecommender):
    """Scores each item by its weighted neighbourhood with the history; items without any rank by popularity."""

    config_class = CooccurrenceKNNConfig
    popularity: Tensor

    def __init__(self, config: CooccurrenceKNNConfig) -> None:
        if config.window < 1 or config.neighbours < 1:
            raise RecipeError(f"window is {config.window} and neighbours {config.neighbours}; both are at least 1.")
        super().__init__(config)
        self.register_buffer("popularity", torch.zeros(config.num_items))
        self.table = SparseRows(config.num_items, config.nonzeros)
        self.post_init()

    def observe(self, dataset: Dataset) -> None:
        config, n = self.config, dataset.num_items
        counts = dataset.item_counts()
        self.popularity = torch.from_numpy(counts[1:] / max(counts.max(), 1)).float()
        longest = int((dataset.train_stop - dataset.sequences.offsets[:-1]).max(initial=0))
        near = sparse.csr_array((n + 1, n), dtype=np.float32)
        for distance in range(1, min(config.window, longest - 1) + 1):
            near = near + pair_table(train_pairs(dataset, distance), n, distance**-config.pair_decay)
        reverse = sparse.vstack([sparse.csr_array((1, n), dtype=np.float32), near[1:].T])
        near = (near + config.backward * reverse).tocsr()
        near.eliminate_zeros()
        size = np.maximum(counts, 1).astype(np.float32)
        near.data *= np.repeat(size**-config.source_power, np.diff(near.indptr))
        near.data *= (size[1:] ** -config.target_power)[near.indices]
        self.config.nonzeros = self.table.fill(strongest(near, config.neighbours))

    def score_all(self, history: Tensor) -> Tensor:
        lengths = (history > 0).sum(dim=1, keepdim=True)
        age = lengths - torch.arange(history.shape[1], device=history.device)  # 1 for the newest item
        weights = age.clamp(min=1).float() ** -self.config.history_decay
        # far below what any neighbour adds: it only orders items that no item of the history is near
        return self.table.weighted_sum(history, weights) + 1e-6 * self.popularity


def strongest(matrix: sparse.csr_array, k: int) -> sparse.csr_array:
    """``matrix`` with the k largest entries of each row."""
    widths = np.diff(matrix.indptr)
    if widths.max(initial=0) <= k:
        return matrix
    rows = np.repeat(np.arange(len(widths)), widths)
    order = np.lexsort((-matrix.data, rows))
    kept = order[np.arange(len(order)) - matrix.indptr[rows] < k]
    return sparse.csr_array(sparse.coo_array((matrix.data[kept], (rows[kept], matrix.indices[kept])), matrix.shape))
