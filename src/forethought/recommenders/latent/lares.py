"""LARES: a recurrence over all tokens whose depth is chosen when it answers (Liu et al. 2025, arXiv 2505.16865)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from forethought.nn.reasoning import RecurrentEncoder, draw_depth
from forethought.recommenders.latent.config import LARESConfig
from forethought.recommenders.latent.model import LatentReasoner


class LARES(LatentReasoner):
    """An encoder, then a core of shared weights, applied a random number of times in training and m times to answer."""

    config_class = LARESConfig
    kind = "recur"

    def make_encoder(self, config: Any) -> RecurrentEncoder:
        return RecurrentEncoder(
            config.hidden_size, config.num_blocks, config.num_heads, config.inner_size or 4 * config.hidden_size,
            config.dropout, config.max_length, config.norm, core_blocks=config.core_blocks, start=config.start,
            adapter=config.adapter, core_norm=config.core_norm, start_std=config.start_std,
            start_scale=config.start_scale,
        )  # fmt: skip

    def training_steps(self) -> int:
        return draw_depth(self.config.depth, self.config.steps, self.config.shallowest) if self.config.steps else 0

    def query(self, history: Tensor, steps: int | None = None) -> Tensor:
        """As :meth:`Recommender.query`; a mean over ``test_draws`` initial states where these are noise."""
        encoder: Any = self.encoder
        if encoder.start != "normal":
            return super().query(history, steps)
        draws = [None] if self.config.test_draws == 0 else list(range(self.config.test_draws))
        queries = []
        try:
            for encoder.draw in draws:
                queries.append(super().query(history, steps))
        finally:
            encoder.draw = 0
        return torch.stack(queries).mean(dim=0)
