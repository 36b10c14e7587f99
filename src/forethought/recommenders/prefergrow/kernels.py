"""How a preference fades: the forward kernels of PreferGrow (arXiv 2509.26063), in O(M) and never as a matrix.

Let p be the non-preference distribution over M states and E = p 1ᵀ, so every column of E is p. E is idempotent, hence
with generator Q = E - I

    P(α) = exp(σ Q) = α I + (1 - α) E,   α = e^{-σ},   P[y, x] = Pr(to y | from x) = α 1{y = x} + (1 - α) p_y,

a reversible semigroup with limit p, and P(α)⁻¹ = P(1/α). All of it stays true for the rank-r E of a partition into
groups, where a state fades inside its own group only: E[y, x] = p_y 1{group y = group x}, p summing to 1 in each group.

States: item i (1..N) is state i - 1; the disliked item d, where there is one, is state N, so M is N or N + 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forethought.errors import RecipeError

Alpha = Tensor | float  # [B], or one number for all


class FadingKernel(nn.Module):
    """The family P(α) of one non-preference distribution.

    A module, so that it moves with its model and p travels in the checkpoint. ``alpha`` is a float, or a float tensor
    that is a scalar or ``[B]``; given in float64 it keeps 1 - α exact where little noise has been added.

    Args:
        p: float ``[M]``, non-negative; normalised here (inside each group).
        groups: int64 ``[M]`` with values 0..M-1, the group of each state; None is one group of all.

    Attributes:
        p: float ``[M]``, the normalised distribution; its dtype is that of all results.
        groups: int64 ``[M]`` or None.

    Raises:
        RecipeError: p has a negative or non-finite entry, or a group without mass.
    """

    p: Tensor
    groups: Tensor | None

    def __init__(self, p: Tensor, groups: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("groups", None if groups is None else groups.long())
        mass = self._group_sums(p)
        # on the meta device (a model about to be filled from a checkpoint) there are no values to look at
        if not p.is_meta and not bool(((p >= 0) & p.isfinite() & (mass > 0)).all()):
            raise RecipeError("A non-preference distribution is finite and non-negative and has mass in every group.")
        self.register_buffer("p", p / mass)

    @classmethod
    def pair(cls, num_items: int, dtype: torch.dtype = torch.float32) -> FadingKernel:
        """Fade into a uniform item (M = N): the positive is compared with random items."""
        return cls(torch.ones(num_items, dtype=dtype))

    @classmethod
    def point(cls, num_items: int, dtype: torch.dtype = torch.float32) -> FadingKernel:
        """Fade into the disliked item d (M = N + 1): every item is compared with one universal state."""
        return cls.hybrid(num_items, 0.0, dtype)

    @classmethod
    def hybrid(cls, num_items: int, gamma: float, dtype: torch.dtype = torch.float32) -> FadingKernel:
        """Fade into a uniform item with probability ``gamma``, else into d (M = N + 1)."""
        return cls.from_popularity(torch.ones(num_items), 0.0, 0.0, gamma, dtype)

    @classmethod
    def from_popularity(
        cls,
        counts: Tensor,
        beta: float = 1.0,
        smoothing: float = 1.0,
        gamma: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> FadingKernel:
        """Fade into item i with probability proportional to ``(counts[i - 1] + smoothing) ** beta``.

        Args:
            counts: ``[N]``, training occurrences of items 1..N.
            beta: 0 is uniform, 1 is popularity.
            smoothing: added to every count, so that unseen items keep some mass.
            gamma: share of the items; the rest is d's (M = N + 1). None leaves d out (M = N).

        Raises:
            RecipeError: ``gamma`` is no share.
        """
        weights = (counts.double() + smoothing) ** beta
        if gamma is None:
            return cls(weights.to(dtype))
        if not 0.0 <= gamma <= 1.0:
            raise RecipeError(f"gamma is {gamma}; it is the share of fading that goes to items, between 0 and 1.")
        items = weights * (gamma / weights.sum())
        return cls(torch.cat([items, items.new_tensor([1.0 - gamma])]).to(dtype))

    @classmethod
    def block(cls, groups: Tensor, weights: Tensor | None = None, dtype: torch.dtype = torch.float32) -> FadingKernel:
        """Fade inside one's own group (a category, a cluster), uniformly or in proportion to ``weights``.

        Args:
            groups: int64 ``[M]``, values 0..M-1.
            weights: ``[M]``, non-negative, some mass in every group.
        """
        return cls(torch.ones(len(groups), dtype=dtype) if weights is None else weights.to(dtype), groups)

    @property
    def num_states(self) -> int:
        """M."""
        return len(self.p)

    def precise(self) -> FadingKernel:
        """The same in float64, for growing: unfading subtracts numbers that differ by α alone."""
        return FadingKernel(self.p.double(), self.groups)

    def column(self, x: Tensor, alpha: Alpha) -> Tensor:
        """Where each x goes: ``P[y, x]`` for every y, ``[B, M]``, rows summing to 1. ``x`` is int64 ``[B]``."""
        keep, fade = self._split(alpha)
        return (fade * self._same_group(x) * self.p).scatter_add(1, x[:, None], keep.expand(len(x), 1))

    def row(self, x: Tensor, alpha: Alpha) -> Tensor:
        """Where each x may come from: ``P[x, y]`` for every y, ``[B, M]``. ``x`` is int64 ``[B]``."""
        keep, fade = self._split(alpha)
        away = (fade * self._same_group(x) * self.p[x, None]).expand(len(x), self.num_states)
        return away.scatter_add(1, x[:, None], keep.expand(len(x), 1))

    def transition(self, v: Tensor, alpha: Alpha) -> Tensor:
        """``P v`` of ``v`` float ``[M]`` or ``[B, M]``: distributions faded by α."""
        keep, fade = self._split(alpha)
        return keep * v + fade * self._group_sums(v) * self.p

    def inverse(self, v: Tensor, alpha: Alpha) -> Tensor:
        """``P⁻¹ v`` of ``v`` float ``[M]`` or ``[B, M]``: the fading by α undone; entries may be negative."""
        keep, fade = self._split(alpha)
        return (v - fade * self._group_sums(v) * self.p) / keep

    def sample(self, x: Tensor, alpha: Alpha, generator: torch.Generator | None = None) -> Tensor:
        """One draw from each column: int64 ``[B]``; x stays with probability α, else is drawn from p."""
        stays = torch.rand(len(x), generator=generator, device=x.device) < alpha
        group = None if self.groups is None else self.groups[x]
        return torch.where(stays, x, self.prior_sample(len(x), generator, group))

    def prior_sample(self, count: int, generator: torch.Generator | None = None, group: Tensor | None = None) -> Tensor:
        """Draws from the limit p: int64 ``[count]``, where growing starts.

        Args:
            group: int64 ``[count]``, the group of each draw. Fading never leaves a group, so growing has to be told
                which; needed exactly where the kernel has groups.

        Raises:
            ValueError: ``group`` is missing, or given to a kernel without groups.
        """
        if (group is None) != (self.groups is None):
            raise ValueError("A kernel with groups draws inside a given group, one without groups takes none.")
        uniform = torch.rand(count, generator=generator, device=self.p.device, dtype=torch.float64)
        uniform = uniform.clamp_(max=1 - 1e-9)  # rounding must not reach past the last state with mass
        if self.groups is None or group is None:
            cumulative = self.p.double().cumsum(0)
            return torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)
        sorted_groups, order = self.groups.sort(stable=True)
        cumulative = self.p[order].double().cumsum(0)
        before = torch.cat([cumulative.new_zeros(1), cumulative])
        start = before[torch.searchsorted(sorted_groups, group)]
        stop = before[torch.searchsorted(sorted_groups, group, right=True)]
        return order[torch.searchsorted(cumulative, start + uniform * (stop - start), right=True)]

    def rate_row(self, x: Tensor) -> Tensor:
        """``Q[x, y]`` for every y ≠ x and 0 at y = x: the edge weights of the loss, ``[B, M]``. ``x`` is int64 ``[B]``.

        It is ``p[x]`` for every other state of x's group.
        """
        return (self._same_group(x) * self.p[x, None]).expand(len(x), self.num_states).scatter(1, x[:, None], 0.0)

    def _same_group(self, x: Tensor) -> Tensor:
        """1 where a state is in x's group, in p's dtype: ``[B, M]``, or ``[B, 1]`` where all are."""
        if self.groups is None:
            return self.p.new_ones(len(x), 1)
        return (self.groups[x, None] == self.groups).to(self.p.dtype)

    def _group_sums(self, v: Tensor) -> Tensor:
        """The sum of v over each state's group: ``[..., M]``, or ``[..., 1]`` where all are one group."""
        if self.groups is None:
            return v.sum(-1, keepdim=True)
        return torch.zeros_like(v).index_add(-1, self.groups, v)[..., self.groups]

    def _split(self, alpha: Alpha) -> tuple[Tensor, Tensor]:
        """(α, 1 - α) as scalars or ``[B, 1]``, in p's dtype."""
        keep = alpha if isinstance(alpha, Tensor) else torch.tensor(alpha, dtype=torch.float64)
        keep = keep[:, None] if keep.dim() else keep
        return keep.to(self.p), (1 - keep).to(self.p)
