"""PreferGrow: a preference fades into non-preference and is grown back by learned ratios (Hu et al. 2025)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forethought.data.dataset import Dataset
from forethought.errors import RecipeError
from forethought.nn.encoder import CausalEncoder, newest_position, supervised_states
from forethought.nn.softmax import softmax_cross_entropy
from forethought.nn.thought import Thought
from forethought.recommenders.base import Recommender, RecommenderOutput
from forethought.recommenders.prefergrow import fused
from forethought.recommenders.prefergrow.config import PreferGrowConfig
from forethought.recommenders.prefergrow.fused import Corruption, Offset
from forethought.recommenders.prefergrow.growing import Growth, LogRatios, grow
from forethought.recommenders.prefergrow.kernels import FadingKernel
from forethought.recommenders.prefergrow.network import NoiseEmbedding, PaperBlock, ScoreHead
from forethought.recommenders.prefergrow.schedules import Geometric, LogLinear, NoiseSchedule, sample_times

AT_ONCE = 64  # chains whose laws are held together: a step of 64 with 12,000 states holds 6 MB in each of its arrays


class PreferGrow(Recommender):
    """States are 0..N-1 for items 1..N, and N for the disliked item where the kernel has one.

    The default ranking is deterministic and one step: the guided log-ratios read from one neutral state (the mean
    state under the non-preference distribution) at ``scoring_sigma``, an inner product. Chains are for drawing diverse
    lists (:meth:`chain_scores`) and for looking at how a preference grows (:meth:`grow`).
    """

    config_class = PreferGrowConfig
    inner_product = True

    def __init__(self, config: PreferGrowConfig) -> None:
        super().__init__(config)
        width, marginal = config.hidden_size, config.parametrization == "marginal"
        self.schedule: NoiseSchedule = (
            Geometric(config.sigma_min, config.sigma_max) if config.schedule == "geometric" else LogLinear(config.eps)
        )
        # row 0 is padding; state s is row s + 1, so the disliked item never doubles as padding
        self.embedding = nn.Embedding(config.num_states + 1, width, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=config.embedding_std)
        self.encoder: nn.Module
        if config.encoder == "paper":
            self.encoder = PaperBlock(width, config.num_heads, config.dropout, config.max_length)
        else:
            self.encoder = CausalEncoder(
                width, config.num_blocks, config.num_heads, config.inner_size or 4 * width, config.dropout,
                config.max_length,
            )  # fmt: skip
        self.nonpreference_user = nn.Parameter(torch.randn(width) * (1.0 if config.encoder == "paper" else 0.1))
        states = config.num_items if marginal else config.num_states
        self.head = ScoreHead(
            width, states, config.score_method, config.head, width if marginal else 3 * width, config.item_bias,
            config.temperature,
        )  # fmt: skip
        self.noise = None if marginal else NoiseEmbedding(width, config.noise_features)
        self.fading = self._kernel(torch.ones(config.num_items))
        # logits of the learned non-preference distribution over items; uniform before training
        self.adaptive = nn.Parameter(torch.zeros(config.num_items)) if config.kernel == "adaptive" else None
        self.post_init()

    def _kernel(self, weights: Tensor) -> FadingKernel:
        """The kernel whose items have non-preference proportional to ``weights``."""
        config = self.config
        if config.kernel == "pair":
            return FadingKernel.pair(config.num_items)
        if config.kernel == "point":
            return FadingKernel.point(config.num_items)
        if config.kernel == "hybrid":
            return FadingKernel.hybrid(config.num_items, config.gamma)
        if config.kernel == "block":
            return FadingKernel.block(torch.zeros(config.num_items, dtype=torch.long))  # one, until data is observed
        gamma = config.gamma if config.disliked_item else None
        return FadingKernel.from_popularity(weights, 1.0, 0.0, gamma, weights.dtype)

    def observe(self, dataset: Dataset) -> None:
        if self.config.kernel == "popularity":
            counts = torch.from_numpy(dataset.item_counts()[1:]).double()
            self.fading = self._kernel((self.config.beta * (counts + 1).log()).softmax(0).float())
        if self.config.kernel == "block":
            self.fading = FadingKernel.block(self._groups(dataset))

    def _groups(self, dataset: Dataset) -> Tensor:
        """The group of each item for ``block``: int64 ``[N]``."""
        n, groups = self.config.num_items, self.config.num_groups
        if self.config.block_by == "popularity":
            rank = torch.from_numpy(dataset.item_counts()[1:]).argsort(stable=True).argsort()
            return torch.div(rank * min(groups, n), n, rounding_mode="floor")
        first = [(dataset.catalog.categories(item) or [""])[0] for item in range(1, n + 1)]
        if not any(first):
            raise RecipeError(
                "model.block_by is category, and the catalogue of the data has no categories; prepare it with --items, "
                "or group by popularity."
            )
        number = {category: i for i, category in enumerate(dict.fromkeys(first))}
        return torch.tensor([number[category] for category in first])

    def current_kernel(self) -> FadingKernel:
        """The kernel now: for ``adaptive``, of the distribution learned so far, without its gradient."""
        if self.adaptive is not None:
            return self._kernel(self.adaptive.detach().softmax(0))
        return self.fading

    def user(self, history: Tensor) -> Tensor:
        """The user after the newest item of the history; float ``[B, d]``."""
        user: Tensor = self.encoder(self.embedding(history), newest_position(history))
        return user

    def forward(self, history: Tensor, target: Tensor, num_targets: Tensor | None = None) -> RecommenderOutput:
        config = self.config
        user = supervised_states(self.encoder, self.embedding(history), target)
        x_0 = target[target > 0] - 1
        swapped = torch.rand(len(user), device=user.device) < config.nonpreference_user_ratio
        user = torch.where(swapped[:, None], self.nonpreference_user.to(user.dtype), user)
        loss = self._exact_loss(user, x_0) if config.loss == "exact" else self._diffusion_loss(user, x_0)
        if self.adaptive is not None:
            # Its own likelihood, and no other gradient: inside the score entropy p would also rescale the loss and
            # decide which x_t are drawn, which makes that objective ill-posed in p.
            loss = loss - self.adaptive.log_softmax(0)[x_0].sum()
        return RecommenderOutput(loss=loss / (len(x_0) if num_targets is None else num_targets))

    def _exact_loss(self, user: Tensor, x_0: Tensor) -> Tensor:
        vectors = self.head.vectors(self.embedding.weight[1:])[: self.config.num_items]
        return softmax_cross_entropy(self.head.query(user, None), vectors, x_0, self.head.bias)

    def _diffusion_loss(self, user: Tensor, x_0: Tensor) -> Tensor:
        """The summed loss of one draw of time and faded state for each target."""
        config = self.config
        kernel = self.current_kernel()
        t = sample_times(len(x_0), config.time_grid or None, device=x_0.device)
        sigma, alpha = self.schedule.sigma(t), self.schedule.alpha(t)
        x_t = kernel.sample(x_0, alpha)
        weight = torch.ones_like(t) if config.raw else self.schedule.rate(t)
        noise = Corruption(x_0, x_t, alpha, weight)

        query = self._query(user, self.embedding(x_t + 1), sigma)
        vectors, bias = self.head.vectors(self.embedding.weight[1:]), self.head.bias
        if config.parametrization == "marginal":
            loss = fused.marginal_score_entropy(query, vectors[: config.num_items], kernel, noise, bias)
        else:
            loss_of = fused.soft_label_bce if config.loss == "bce" else fused.score_entropy
            loss = loss_of(query, vectors, kernel, noise, bias, self._offset(kernel, x_t, alpha))
        if config.ce_weight:
            n = config.num_items
            ranking = query if config.parametrization == "marginal" else self._ranking_query(user)
            loss = loss + config.ce_weight * softmax_cross_entropy(
                ranking, vectors[:n], x_0, None if bias is None else bias[:n]
            )
        return loss

    def _query(self, user: Tensor, state: Tensor | None, sigma: Tensor) -> Tensor:
        """The head's query: float ``[B, d]`` from the user, e(x_t) and the noise level ``[B]``."""
        if self.noise is None:  # the marginal parametrisation reads the user alone
            return self.head.query(user, None)
        assert state is not None
        parts = torch.cat([state.to(user.dtype), user, self.noise(sigma).to(user.dtype)], dim=-1)
        return self.head.query(parts, state)

    def _offset(self, kernel: FadingKernel, x_t: Tensor, alpha: Tensor) -> Offset | None:
        """The log-ratios of a user with uniform preference, to add to the network's; None where nothing is added.

        With p uniform over items such a user's law at noise alpha is ``u_y = (alpha + (1 - alpha) gamma) / N`` on each
        item and ``(1 - alpha)(1 - gamma)`` on d, so the offset takes one value for all items and one for d. Kernels
        that are not uniform over items use the mean of their p: an offset need not be exact, only near.
        """
        n, states = self.config.num_items, self.config.num_states
        if not self.config.ratio_offset or states == n:
            return None
        fade, tiny = 1 - alpha, torch.finfo(alpha.dtype).tiny
        item = ((alpha + fade * kernel.p[:n].sum()) / n).clamp(min=tiny).log()
        disliked = (fade * kernel.p[n]).clamp(min=tiny).log()
        now = torch.where(x_t == n, disliked, item)
        return Offset(item - now, disliked - now)

    def neutral_state(self) -> Tensor:
        """e(x_t) for ranking, float ``[d]``: the mean under the non-preference distribution, d's own for ``point``.

        Not d's wherever there is a d: with the published gamma training hardly ever stands there.
        """
        table = self.embedding.weight[1:]
        return self.current_kernel().p.to(table.dtype) @ table

    def _ranking_query(self, user: Tensor) -> Tensor:
        sigma = torch.full((len(user),), self.config.scoring_sigma, device=user.device)
        return self._query(user, self.neutral_state().expand(len(user), -1), sigma)

    def query(self, history: Tensor, guidance: float | None = None) -> Tensor:
        """float ``[B, d]`` or ``[B, d + 1]`` with an item bias: the guided query of the one-step ranking.

        Guidance is linear in an inner product, so the two queries are mixed and multiplied with the items once.
        """
        user = self.user(history)
        query = self._guide(self._ranking_query(user), self._ranking_query(self.nonpreference_user[None]), guidance)
        return query if self.head.bias is None else torch.cat([query, query.new_ones(len(query), 1)], dim=-1)

    def _guide(self, conditional: Tensor, unconditional: Tensor, w: float | None = None) -> Tensor:
        w = self.config.guidance if w is None else w
        return conditional if w == 1 else w * conditional + (1 - w) * unconditional

    def item_vectors(self) -> Tensor:
        """float ``[N, d]``, or ``[N, d + 1]`` whose last column is the item bias."""
        n = self.config.num_items
        vectors = self.head.vectors(self.embedding.weight[1:])[:n]
        return vectors if self.head.bias is None else torch.cat([vectors, self.head.bias[:n, None]], dim=-1)

    @torch.no_grad()
    def grow(
        self,
        history: Tensor,
        steps: int | None = None,
        guidance: float | None = None,
        generator: torch.Generator | None = None,
        trace: bool = False,
    ) -> Growth:
        """Grow one state a user from noise; the states are 0..N-1 for items 1..N.

        Args:
            history: int64 ``[B, L]``, padded on the right with 0.
            steps: T; ``config.growing_steps`` by default.
            guidance: w; ``config.guidance`` by default.
            generator: of every draw.
            trace: also keep each step's distribution.
        """
        user, kernel = self.user(history), self.current_kernel()
        steps = self.config.growing_steps if steps is None else steps
        group = None
        if kernel.groups is not None:  # a chain never leaves its group, so that is drawn first
            mass = torch.zeros(len(user), int(kernel.groups.max()) + 1, device=user.device)
            mass.index_add_(1, kernel.groups, self.preference(user, guidance).to(mass))
            group = torch.multinomial(mass, 1, generator=generator)[:, 0]
        return grow(
            self.log_ratios(user, guidance), kernel, self.schedule, steps, len(user),
            method=self.config.sampler, group=group, generator=generator, trace=trace,
        )  # fmt: skip

    @torch.no_grad()
    def chain_scores(
        self,
        history: Tensor,
        chains: int,
        steps: int | None = None,
        guidance: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Scores for a list that differs from draw to draw: the last distribution of ``chains`` chains, averaged.

        Few chains favour variety, many approach the model's own law. A chain puts nearly all of its mass on the item
        it ends in; what is left goes to others as the model likes them, and with ``point`` to none.

        Args:
            history: int64 ``[B, L]``, padded on the right with 0.
            steps, guidance, generator: as in :meth:`grow`.

        Returns:
            float64 ``[B, N]``, probabilities of items 1..N; what a row lacks to 1 is the disliked item's.
        """
        total = torch.zeros(len(history), self.config.num_items, dtype=torch.float64, device=history.device)
        together = max(AT_ONCE // max(len(history), 1), 1)
        for begun in range(0, chains, together):
            rows = history.repeat_interleave(min(together, chains - begun), dim=0)
            denoised = self.grow(rows, steps, guidance, generator).denoised
            total += denoised.view(len(history), -1, self.config.num_states).sum(dim=1)[:, : self.config.num_items]
        return total / chains

    def preference(self, user: Tensor, guidance: float | None = None) -> Tensor:
        """The guided preference of encoded users ``[B, d]``, known outright by the marginal parametrisation.

        Returns:
            float ``[B, M]``, rows summing to 1, nothing on d. Faded by :meth:`FadingKernel.transition` it is the law of
            a growing chain at that noise level.
        """
        n, vectors, bias = self.config.num_items, self.head.vectors(self.embedding.weight[1:]), self.head.bias
        nobody = self.nonpreference_user[None]
        query = self._guide(self.head.query(user, None), self.head.query(nobody, None), guidance)
        pi = (query @ vectors[:n].T + (0 if bias is None else bias)).softmax(dim=1)
        return nn.functional.pad(pi, (0, self.config.num_states - n))

    def log_ratios(self, user: Tensor, guidance: float | None = None) -> LogRatios:
        """The guided log-ratios of encoded users ``[B, d]``: ``f(x_t int64 [B], sigma [B]) -> [B, M]``."""
        table = self.embedding.weight[1:]
        vectors, bias, empty = self.head.vectors(table), self.head.bias, self.nonpreference_user[None]
        kernel = self.current_kernel()

        def scores(x_t: Tensor, sigma: Tensor) -> Tensor:
            state = table[x_t]
            conditional = self._query(user, state, sigma)
            nobody = self._query(empty.expand(len(user), -1), state, sigma)
            s = self._guide(conditional, nobody, guidance) @ vectors.T
            s = s if bias is None else s + bias
            offset = self._offset(kernel, x_t, (-sigma).exp())
            if offset is None:
                return s
            return torch.cat([s[:, :-1] + offset.items[:, None], (s[:, -1] + offset.disliked)[:, None]], dim=1)

        if self.config.parametrization == "score":
            return scores
        pi, kernel = self.preference(user, guidance).double(), kernel.precise()

        def exact(x_t: Tensor, sigma: Tensor) -> Tensor:
            log_u = kernel.transition(pi, (-sigma.double()).exp()).log()
            return log_u - log_u.gather(1, x_t[:, None])

        return exact

    def think(self, history: Tensor, steps: int | None = None, generator: torch.Generator | None = None) -> Thought:
        """One grown chain a user: the guided query and the law it gives at each of the T + 1 steps.

        A ``marginal`` query is of the user alone, so e(x_t) stands behind it and states are ``2 d`` wide. Answers are
        over the N items; what their rows lack to 1 is the disliked item's. ``generator`` makes the draws.
        """
        user, nobody = self.user(history), self.nonpreference_user[None]
        growth = self.grow(history, steps, generator=generator, trace=True)
        assert growth.distributions is not None
        table = self.embedding.weight[1:]
        queries = []
        for x, sigma in zip(growth.states[:, :-1].T, growth.sigmas[:-1].to(user.dtype), strict=True):
            levels = sigma.expand(len(user))
            unconditional = self._query(nobody.expand(len(user), -1), table[x], levels)
            query = self._guide(self._query(user, table[x], levels), unconditional)
            queries.append(query if self.noise is not None else torch.cat([query, table[x]], dim=1))
        states = torch.stack(queries, dim=1)
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return Thought(states, mask, "grow", growth.distributions[..., : self.config.num_items])
