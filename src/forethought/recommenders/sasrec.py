"""SASRec: a causal transformer over the history (Kang & McAuley 2018), trained as strong reproductions train it."""

from __future__ import annotations

from math import inf
from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.data.dataset import Dataset
from forethought.nn.encoder import CausalEncoder, Norm, newest_position, supervised_states
from forethought.nn.softmax import sampled_cross_entropy, sampled_scores, softmax_cross_entropy
from forethought.nn.thought import Thought
from forethought.recommenders.base import Recommender, RecommenderConfig, RecommenderOutput, log_proposal


@strict
class SASRecConfig(RecommenderConfig):
    """Sizes and loss of SASRec.

    Attributes:
        hidden_size, num_blocks, num_heads, inner_size, dropout: of the transformer; ``inner_size`` 0 means 4 d.
        norm: ``pre`` (default), ``original`` (the 2018 block) or ``post`` (BERT's).
        similarity: of a state and an item: their inner product (``dot``, the paper), or their ``cosine`` divided by
            ``temperature``, which keeps frequent items from growing long vectors.
        loss: ``ce`` (softmax over the whole catalogue), ``sampled`` (softmax over shared negatives) or ``gbce``
            (generalised binary cross-entropy, Petrov & Macdonald 2023).
        negatives: shared by the batch, for ``sampled`` and ``gbce``.
        negative_power: negatives are drawn with probability ∝ count^power; 0 is uniform.
        logq: correct ``sampled`` for how likely each negative was to be drawn.
        calibration: t of gBCE, from 0 (plain BCE) to 1 (fully calibrated).
    """

    model_type = "forethought-sasrec"

    hidden_size: int = 64
    num_blocks: int = 2
    num_heads: int = 1
    inner_size: int = 0
    dropout: float = 0.1
    norm: Norm = "pre"
    similarity: Literal["dot", "cosine"] = "dot"
    temperature: float = 0.1
    loss: Literal["ce", "sampled", "gbce"] = "ce"
    negatives: int = 256
    negative_power: float = 0.0
    logq: bool = True
    calibration: float = 0.75

    def validate_temperature(self) -> None:
        """Refuse a temperature that cannot divide; called when the config is made."""
        if not 0 < self.temperature < inf:
            raise ValueError(f"temperature is {self.temperature}; it has to be greater than 0")

    def validate_calibration(self) -> None:
        """Refuse a calibration above 1, which would push targets down; called when the config is made."""
        if not 0 <= self.calibration <= 1:
            raise ValueError(f"calibration is {self.calibration}; it has to lie between 0 and 1")


class SASRec(Recommender):
    """Next-item scores are inner products (or cosines) of the newest state and the item embeddings."""

    config_class = SASRecConfig
    inner_product = True

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embedding = nn.Embedding(config.num_items + 1, width, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.encoder = CausalEncoder(
            width, config.num_blocks, config.num_heads, config.inner_size or 4 * width, config.dropout,
            config.max_length, config.norm,
        )  # fmt: skip
        self.register_buffer("log_proposal", torch.zeros(config.num_items).log_softmax(0))
        self.post_init()

    def observe(self, dataset: Dataset) -> None:
        self.log_proposal.copy_(log_proposal(dataset, self.config.negative_power))

    def forward(self, history: Tensor, target: Tensor, num_targets: Tensor | None = None) -> RecommenderOutput:
        hidden = self._compared(supervised_states(self.encoder, self.embedding(history), target))
        wanted = target[target > 0] - 1
        config, vectors = self.config, self.item_vectors()
        if config.loss == "ce":
            loss = softmax_cross_entropy(hidden, vectors, wanted)
        elif config.loss == "sampled":
            loss = sampled_cross_entropy(hidden, vectors, wanted, self.log_proposal, config.negatives, config.logq)
        else:
            loss = self._gbce(hidden, vectors, wanted)
        return RecommenderOutput(loss=loss / (len(wanted) if num_targets is None else num_targets))

    def _gbce(self, hidden: Tensor, vectors: Tensor, wanted: Tensor) -> Tensor:
        """Eq. 7 and 8 of Petrov & Macdonald: the positive's probability is raised to beta."""
        k = self.config.negatives
        drawn = torch.multinomial(self.log_proposal.exp(), k, replacement=True)
        positive, negative = sampled_scores(hidden, vectors, wanted, drawn)
        rate = min(k / max(self.config.num_items - 1, 1), 1.0)  # more negatives than items are a share of one
        beta = rate * (self.config.calibration * (1 - 1 / rate) + 1 / rate)
        loss: Tensor = (F.softplus(negative).sum(dim=1) - beta * F.logsigmoid(positive)).sum()
        return loss

    def query(self, history: Tensor) -> Tensor:
        return self._compared(self.encoder(self.embedding(history), newest_position(history)))

    def think(self, history: Tensor, steps: int | None = None) -> Thought:
        """A step a block, after one that has read the newest item alone: what each state would recommend.

        ``steps`` leaves out the blocks after so many. States and answers after step i are those of a model that ends
        there, by the final norm and the items of the whole one; the last are what it does recommend.
        """
        states = self._compared(self.encoder.layers(self.embedding(history), newest_position(history)))
        states = states[:, : (steps if steps is not None else states.shape[1] - 1) + 1]
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return Thought(states, mask, "encode", states @ self.item_vectors().T)

    def _compared(self, states: Tensor) -> Tensor:
        """The states' side of the inner product."""
        return F.normalize(states, dim=-1) / self.config.temperature if self.config.similarity == "cosine" else states

    def item_vectors(self) -> Tensor:
        vectors = self.embedding.weight[1:]
        return F.normalize(vectors, dim=-1) if self.config.similarity == "cosine" else vectors
