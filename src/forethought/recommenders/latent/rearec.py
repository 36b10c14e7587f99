"""ReaRec: think before recommending, by tokens that are fed back (Tang et al. 2025, arXiv 2503.22675)."""

from __future__ import annotations

from typing import Any

from forethought.nn.reasoning import AppendingEncoder
from forethought.recommenders.latent.config import ReaRecConfig
from forethought.recommenders.latent.model import LatentReasoner


class ReaRec(LatentReasoner):
    """SASRec with K reasoning tokens. With K = 0 it is SASRec, bit for bit."""

    config_class = ReaRecConfig
    kind = "append"

    def __init__(self, config: ReaRecConfig) -> None:
        super().__init__(config)
        self.one_prefix = config.backbone == "bert4rec"

    def make_encoder(self, config: Any) -> AppendingEncoder:
        return AppendingEncoder(
            config.hidden_size, config.num_blocks, config.num_heads, config.inner_size or 4 * config.hidden_size,
            config.dropout, config.max_length, config.norm, steps=config.steps,
            adapter=config.adapter, bidirectional=config.backbone == "bert4rec",
        )  # fmt: skip
