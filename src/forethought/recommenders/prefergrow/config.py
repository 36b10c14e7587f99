"""What makes one PreferGrow: its settings, and which of them go together."""

from __future__ import annotations

from math import inf
from typing import Literal

from huggingface_hub.dataclasses import strict

from forethought.recommenders.base import RecommenderConfig


@strict
class PreferGrowConfig(RecommenderConfig):
    """Everything that makes one PreferGrow.

    Attributes:
        kernel: where preference fades to: ``pair`` (uniform items), ``point`` (the disliked item), ``hybrid``
            (``gamma`` to items), ``popularity`` (items ∝ (count + 1)^``beta``), ``adaptive`` (learned from the
            targets by its own likelihood), ``block`` (uniform items of its own group; ``marginal`` only).
        gamma: share of fading that goes to items where there is a disliked item.
        beta: of ``popularity``.
        disliked_item: add the disliked state d to ``popularity`` and ``adaptive`` (``point`` and ``hybrid`` have it,
            ``pair`` and ``block`` have not).
        block_by: what the groups of ``block`` are: each item's first ``category``, or ``num_groups`` equal parts of
            the catalogue by ``popularity``.
        schedule: the noise over time, between ``sigma_min`` and ``sigma_max`` where it is ``geometric``, until a share
            ``eps`` of the preference is left where it is ``log_linear``.
        time_grid: draw training times from the T + 1 points the release uses; 0 draws them continuously.
        parametrization: ``score``: the network gives log-ratios (the paper). ``marginal``: it gives the logits of the
            preference, and the ratios at every state and noise level follow exactly from the kernel.
        loss: ``score_entropy``; ``bce`` with soft labels (``score`` only); or ``exact`` (``marginal`` only): the score
            entropy's integral over all states and noise levels, which for consistent ratios is the cross-entropy
            -ln pi(x_0) whatever the kernel, without the variance of drawing them.
        raw: leave out the weight dsigma/dt.
        ce_weight: of a cross-entropy on the ranking scores, added to the loss; 0 is none.
        encoder: ``paper`` (the release's block) or ``pre`` (a pre-norm transformer).
        ratio_offset: add to the network's log-ratios those of a user who likes every item alike, known exactly at every
            state and noise level, so that the network starts at the right scale (``score`` only).
        score_method, head, item_bias, temperature: of the score head; ``temperature`` is for the normalised methods.
        noise_features: what the noise embedding reads (``score`` only).
        nonpreference_user_ratio: how often training swaps the user for the non-preference user.
        guidance: w in s = w s(user) + (1 - w) s(non-preference user), s being the log-ratios (``score``) or the
            logits of the preference (``marginal``).
        growing_steps, sampler: of chains.
        scoring_sigma: noise level at which the one-step ranking reads the ratios (``score`` only).
    """

    model_type = "forethought-prefergrow"

    kernel: Literal["pair", "point", "hybrid", "popularity", "adaptive", "block"] = "hybrid"
    gamma: float = 0.9
    beta: float = 0.5
    disliked_item: bool = True
    block_by: Literal["popularity", "category"] = "popularity"
    num_groups: int = 10
    schedule: Literal["geometric", "log_linear"] = "geometric"
    sigma_min: float = 1e-3
    sigma_max: float = 10.0
    eps: float = 1e-3
    time_grid: int = 0
    parametrization: Literal["score", "marginal"] = "score"
    loss: Literal["score_entropy", "bce", "exact"] = "score_entropy"
    raw: bool = False
    ce_weight: float = 0.0
    hidden_size: int = 64
    num_blocks: int = 1
    num_heads: int = 2
    inner_size: int = 0
    dropout: float = 0.1
    encoder: Literal["paper", "pre"] = "pre"
    max_length: int = 10
    embedding_std: float = 0.05
    ratio_offset: bool = True
    score_method: Literal["oricos", "diffcos", "diffcosNorm", "oricosNorm1", "oricosNorm2", "untied"] = "oricos"
    head: Literal["additive", "mlp", "none"] = "additive"
    item_bias: bool = True
    temperature: float = 0.07
    noise_features: Literal["sigma", "log_sigma"] = "log_sigma"
    nonpreference_user_ratio: float = 0.1
    guidance: float = 1.0
    growing_steps: int = 20
    sampler: Literal["analytic", "euler"] = "analytic"
    scoring_sigma: float = 1.0

    def validate_noise(self) -> None:
        """Refuse noise, shares and levels that mean nothing; called when the config is made."""
        for key, low, high in (
            ("gamma", 0, 1), ("nonpreference_user_ratio", 0, 1), ("beta", 0, inf), ("ce_weight", 0, inf),
            ("time_grid", 0, inf), ("growing_steps", 0, inf), ("embedding_std", 0, inf), ("num_groups", 1, inf),
        ):  # fmt: skip
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"{key} is {getattr(self, key)}; it has to lie between {low} and {high}")
        if not 1e-6 <= self.sigma_min < self.sigma_max <= 100:
            raise ValueError(
                f"sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}; the one has to be less than the other, "
                "and both between 1e-6, below which float32 knows no noise, and 100, where no preference is left"
            )
        for key in ("scoring_sigma", "temperature"):
            if not 0 < getattr(self, key) < inf:
                raise ValueError(f"{key} is {getattr(self, key)}; it has to be greater than 0")

    def validate_parts(self) -> None:
        """Refuse parts that do not go together. A number that the chosen parts do not read is let be, so that a search
        over parts may keep it."""
        marginal, exact, paper = self.parametrization == "marginal", self.loss == "exact", self.encoder == "paper"
        for wrong, why in (
            (exact and not marginal, "loss exact needs parametrization marginal"),
            (self.loss == "bce" and marginal, "loss bce needs parametrization score"),
            (self.head == "none" and not marginal, "head none needs parametrization marginal: it reads the user alone"),
            (self.kernel == "block" and not marginal, "kernel block needs parametrization marginal: ratios do not "
             "compare items of different groups"),
            (self.kernel in ("point", "hybrid") and not self.disliked_item,
             f"kernel {self.kernel} has the disliked item; disliked_item false goes with popularity and adaptive"),
            (self.score_method in ("diffcos", "diffcosNorm") and marginal,
             f"score_method {self.score_method} takes away the present state, which parametrization marginal does not "
             "read; choose oricos, or oricosNorm1"),
            (self.guidance != 1 and self.nonpreference_user_ratio == 0,
             f"guidance is {self.guidance} and nonpreference_user_ratio 0; a non-preference user who is never trained "
             "guides nobody"),
            (exact and self.raw, "raw goes with the drawn losses, not with loss exact"),
            (exact and self.ce_weight > 0, "ce_weight adds to the drawn losses; loss exact is a cross-entropy already"),
            (exact and self.time_grid > 0, "time_grid goes with the drawn losses; loss exact draws no times"),
            (paper and (self.num_blocks > 1 or self.inner_size not in (0, self.hidden_size)),
             "encoder paper is one block of hidden_size; leave out num_blocks and inner_size"),
            (self.hidden_size % 2 > 0 and (paper or not marginal), f"hidden_size is {self.hidden_size}; sinusoids "
             "come in pairs, so it has to be even"),
        ):  # fmt: skip
            if wrong:
                raise ValueError(why)

    @property
    def has_disliked_item(self) -> bool:
        """Whether there is a state d after the N items."""
        return self.kernel in ("point", "hybrid") or (self.kernel in ("popularity", "adaptive") and self.disliked_item)

    @property
    def num_states(self) -> int:
        """M: N, or N + 1 with the disliked item."""
        return self.num_items + int(self.has_disliked_item)
