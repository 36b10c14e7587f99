"""Reasoning in latent space: an encoder reads once, then takes steps, each giving a state an answer is read from.

There are two ways to take a step. :class:`AppendingEncoder` feeds the newest state back as one more token, on the
encoder's key-value cache. :class:`RecurrentEncoder` applies a core of shared weights to the states of all tokens again.
Whatever is a :class:`Backbone`, a plain encoder with their two calls ``encode`` and ``step``, can reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self, cast

import torch
from torch import Tensor, nn

from forethought.nn.encoder import Block, Cache, CausalEncoder, Norm, take_each

Start = Literal["history", "zero", "normal", "normal_zero"]
Adapter = Literal["add", "concat", "gated", "residual", "none"]
Depth = Literal["poisson-lognormal", "poisson", "uniform", "constant"]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class State:
    """Where the thoughts of a batch stand: P thoughts a row, each about the history up to a position of its own.

    Attributes:
        latest: float ``[B, P, d]``, the state after this step.
        step: how many steps were taken; 0 after ``encode``.
        position: int64 ``[B, P]``; None stands for a thought at each of the L positions.
    """

    latest: Tensor
    step: int
    position: Tensor | None

    def select(self, rows: Tensor) -> Self:
        """The thoughts of some rows alone, int64 ``[b]``: what the others cost is saved from here on."""
        position = None if self.position is None else self.position[rows]
        return replace(self, latest=self.latest[rows], position=position)


@dataclass(frozen=True)
class Appended(State):
    """The state of :class:`AppendingEncoder`.

    Attributes:
        first: float ``[B, P, d]``, the state before the first step.
        caches: of each block.
        visible: bool ``[B or 1, P, L]``, the history each thought is about.
    """

    first: Tensor
    caches: tuple[Cache, ...]
    visible: Tensor

    def select(self, rows: Tensor) -> Self:
        """As :meth:`State.select`."""
        caches = tuple(cache.select(rows) for cache in self.caches)
        visible = self.visible.expand(len(self.latest), -1, -1)[rows]
        return replace(super().select(rows), first=self.first[rows], caches=caches, visible=visible)


@dataclass(frozen=True)
class Recurred(State):
    """The state of :class:`RecurrentEncoder`.

    Attributes:
        tokens: float ``[B, L, d]``, what the core reads next.
        history: float ``[B, L, d]``, what the blocks before it made of the history.
    """

    tokens: Tensor
    history: Tensor

    def select(self, rows: Tensor) -> Self:
        """As :meth:`State.select`."""
        return replace(super().select(rows), tokens=self.tokens[rows], history=self.history[rows])


class Backbone(Protocol):
    """An encoder that can go on thinking; its states are a :class:`State`, which has ``select``."""

    def forward(self, vectors: Tensor, position: Tensor | None = None) -> Tensor:
        """The plain encoder, as :meth:`CausalEncoder.forward`: what a model without steps answers by."""

    def encode(self, vectors: Tensor, position: Tensor | None) -> Any:
        """Read a history, float ``[B, L, d]``, for thoughts at ``position`` (see :class:`State`)."""

    def step(self, state: Any) -> Any:
        """The state one step later."""

    def change(self, state: Any, change: Change) -> Any:
        """The state with ``change`` made to the tensor that the next step goes on from."""


def unroll(
    backbone: Backbone, vectors: Tensor, position: Tensor | None, steps: int, change: Change | None = None
) -> Tensor:
    """The states after 0, 1, … ``steps`` steps; float ``[B, P, steps + 1, d]``.

    Args:
        backbone: what takes them.
        vectors: float ``[B, L, d]``.
        position: int64 ``[B, P]``, or None for all L.
        steps: how many.
        change: made, before every step, to what it goes on from.
    """
    state = backbone.encode(vectors, position)
    states = [state.latest]
    for _ in range(steps):
        state = backbone.step(state if change is None else backbone.change(state, change))
        states.append(state.latest)
    return torch.stack(states, dim=2)


class Adapt(nn.Module):
    """f(T, H): what the next step reads of a state T and of the state H before the first step.

    Args:
        adapter: ``(T + H) / 2`` (``add``), ``W [T; H]`` (``concat``), ``g T + (1 - g) H`` with a learned scalar g
            (``gated``), ``T + H`` (``residual``) or T alone (``none``).
        width: d.
    """

    def __init__(self, adapter: Adapter, width: int) -> None:
        super().__init__()
        self.adapter = adapter
        self.mix = nn.Linear(2 * width, width) if adapter == "concat" else None
        self.gate = nn.Parameter(torch.zeros(())) if adapter == "gated" else None

    def forward(self, state: Tensor, first: Tensor) -> Tensor:
        """float ``[..., d]`` twice → float ``[..., d]``."""
        if self.mix is not None:
            mixed: Tensor = self.mix(torch.cat([state, first], dim=-1))
            return mixed
        if self.gate is not None:
            return torch.lerp(first, state, self.gate.sigmoid())
        if self.adapter == "add":
            return (state + first) / 2
        return state + first if self.adapter == "residual" else state


class AppendingEncoder(CausalEncoder):
    """A causal encoder whose newest state can be fed back as one more token (ReaRec, arXiv 2503.22675, §3.2).

    A step computes one new row a thought, whatever the length of the history: keys and values of all that came before
    are kept. Padding stands between the history and the appended tokens and is hidden from them.

    Args:
        steps: rows of the table of reasoning positions; a step beyond it takes the last row.
        adapter: what is fed back of the newest state and the first one; see :class:`Adapt`.
        bidirectional: items look at all of their history, as in BERT4Rec, and reasoning tokens at what came before them
            ("prefix masking", §4.1). A row then has one thought: its items see as far as it does.

    Others as :class:`CausalEncoder`.
    """

    def __init__(
        self,
        width: int,
        blocks: int,
        heads: int,
        inner: int,
        dropout: float,
        max_length: int,
        norm: Norm = "pre",
        *,
        steps: int = 0,
        adapter: Adapter = "none",
        bidirectional: bool = False,
    ) -> None:
        super().__init__(width, blocks, heads, inner, dropout, max_length, norm)
        self.bidirectional = bidirectional
        self.reasoning_positions = nn.Parameter(torch.randn(steps, width) * 0.02)
        self.adapt = Adapt(adapter, width)

    def encode(self, vectors: Tensor, position: Tensor | None = None) -> Appended:
        """float ``[B, L, d]``, int64 ``[B, P]`` or None → the state before the first step."""
        index = torch.arange(vectors.shape[1], device=vectors.device)
        visible = index <= (index[None, :, None] if position is None else position[..., None])
        states, caches = self.enter(vectors), []
        *before, last = cast(list[Block], list(self.blocks))
        if self.bidirectional and visible.shape[1] > 1:
            raise ValueError("A bidirectional encoder has one thought a row; give one position.")
        everywhere = visible.expand(-1, vectors.shape[1], -1) if self.bidirectional else None
        for block in before:
            states, cache = block.remember(states, None, everywhere)
            caches.append(cache)
        states, cache = last.remember(states, position, None if position is None else visible)
        if position is not None:  # the caches of whole passes know one thought a position, not one of P
            caches = [each._replace(own_key=cache.own_key, own_value=cache.own_value) for each in caches]
        first = self.final_norm(states)
        return Appended(first, 0, position, first, (*caches, cache), visible)

    def forward(self, vectors: Tensor, position: Tensor | None = None) -> Tensor:
        """As :meth:`CausalEncoder.forward`; a bidirectional encoder needs ``position``."""
        if not self.bidirectional:
            return super().forward(vectors, position)
        return self.encode(vectors, None if position is None else position[:, None]).latest[:, 0]

    def step(self, state: Appended) -> Appended:
        """Append a token to every thought and return the states at it."""
        row = min(state.step, len(self.reasoning_positions) - 1)
        fed = self.adapt(state.latest, state.first)
        token, caches = self.enter_token(fed + self.reasoning_positions[row]), []
        for block, cache in zip(cast(list[Block], list(self.blocks)), state.caches, strict=True):
            token, cache = block.append(token, state.visible, cache)
            caches.append(cache)
        return replace(state, latest=self.final_norm(token), step=state.step + 1, caches=tuple(caches))

    def enter_token(self, token: Tensor) -> Tensor:
        """What the first block reads of a reasoning token: it goes through the input's own norm and dropout."""
        entered: Tensor = self.dropout(self.input_norm(token))
        return entered

    def change(self, state: Appended, change: Change) -> Appended:
        """``change`` made to the state that is fed back, float ``[B, P, d]``."""
        return replace(state, latest=change(state.latest))


class RecurrentEncoder(CausalEncoder):
    """A causal encoder followed by a core of shared weights that is applied as often as asked (LARES, 2505.16865).

    After i steps the tokens are ``T_i = Core(LN(f(T_{i-1}, H)))``, H being the encoded history and f the adapter. Every
    part is causal, so each position is a thought about its own prefix. After 0 steps the state is the encoder's.

    Args:
        core_blocks: blocks of the core.
        start: T_0: H itself (``history``), nothing (``zero``), or truncated normal noise of deviation ``start_std``
            times ``start_scale`` (``normal``; ``normal_zero`` only while training).
        adapter: f; see :class:`Adapt`.
        core_norm: whether the core reads through a layer norm, as published.

    Others as :class:`CausalEncoder`.
    """

    def __init__(
        self,
        width: int,
        blocks: int,
        heads: int,
        inner: int,
        dropout: float,
        max_length: int,
        norm: Norm = "pre",
        *,
        core_blocks: int = 1,
        start: Start = "history",
        adapter: Adapter = "none",
        core_norm: bool = False,
        start_std: float = 1.0,
        start_scale: float = 3.0,
    ) -> None:
        super().__init__(width, blocks, heads, inner, dropout, max_length, norm)
        self.core = nn.ModuleList(Block(width, heads, inner, dropout, norm) for _ in range(core_blocks))
        self.core_norm = nn.LayerNorm(width) if core_norm else nn.Identity()
        self.adapt = Adapt(adapter, width)
        self.start = start
        self.start_std, self.start_scale = start_std, start_scale
        self.draw: int | None = 0  # seed of the initial state outside training; None draws a new one a call

    def encode(self, vectors: Tensor, position: Tensor | None = None) -> Recurred:
        """float ``[B, L, d]``, int64 ``[B, P]`` or None → the state before the first step."""
        history = self.enter(vectors)
        for block in self.blocks:
            history = block(history)
        return Recurred(self.read_out(history, position), 0, position, self.first_tokens(history), history)

    def first_tokens(self, history: Tensor) -> Tensor:
        """T_0 for an encoded history; float ``[B, L, d]`` → the same.

        Outside training noise is drawn from the seed ``draw``, alike for all rows, so that an answer depends on the
        history alone.
        """
        if self.start == "history":
            return history
        if self.start == "zero" or (self.start == "normal_zero" and not self.training):
            return torch.zeros_like(history)
        length, width = history.shape[1:]
        if self.training or self.draw is None:
            noise = torch.empty_like(history)
            nn.init.trunc_normal_(noise, std=self.start_std, a=-3 * self.start_std, b=3 * self.start_std)
        else:
            fixed = torch.empty(len(self.positions), width)
            generator = torch.Generator().manual_seed(self.draw)
            limit = 3 * self.start_std
            nn.init.trunc_normal_(fixed, std=self.start_std, a=-limit, b=limit, generator=generator)
            noise = fixed[:length].to(history).expand_as(history)
        return self.start_scale * noise

    def step(self, state: Recurred) -> Recurred:
        """Apply the core once more."""
        tokens = self.core_norm(self.adapt(state.tokens, state.history))
        for block in self.core:
            tokens = block(tokens)
        latest = self.read_out(tokens, state.position)
        return replace(state, latest=latest, step=state.step + 1, tokens=tokens)

    def read_out(self, tokens: Tensor, position: Tensor | None) -> Tensor:
        """The states that answers are read from; float ``[B, L, d]`` → float ``[B, P, d]``."""
        read: Tensor = self.final_norm(tokens if position is None else take_each(tokens, position))
        return read

    @property
    def only_tokens_remember(self) -> bool:
        """Whether nothing but the tokens carries the history from step to step."""
        return self.start == "history" and self.adapt.adapter == "none"

    @property
    def begins_thoughtless(self) -> bool:
        """Whether :meth:`change` finds nothing before the first step: the tokens are the history alone, or 0."""
        return self.only_tokens_remember or self.start in ("zero", "normal_zero")

    def change(self, state: Recurred, change: Change) -> Recurred:
        """``change`` made to the thought that the core reads next, float ``[B, L, d]``: to the tokens, or, where only
        they carry the history, to what the steps have added to it."""
        if self.only_tokens_remember:
            return replace(state, tokens=state.history + change(state.tokens - state.history))
        return replace(state, tokens=change(state.tokens))


def draw_depth(kind: Depth, mean: int, shallowest: int = 1, sigma: float = 0.5) -> int:
    """How many steps the next training batch takes.

    ``poisson-lognormal`` is min(Poisson(r) + 1, 3 m) with ln r normal of mean ln m - sigma² / 2 (Geiping et al. 2025);
    ``poisson`` the same with r = m; ``uniform`` from ``shallowest`` to 2 m - ``shallowest``; ``constant`` is m.

    Args:
        kind: of the law.
        mean: m.
        shallowest: of ``uniform``.
        sigma: of the log-normal.
    """
    if kind == "constant":
        return mean
    if kind == "uniform":
        return int(torch.randint(shallowest, 2 * mean - shallowest + 1, ()))
    rate = torch.tensor(float(mean))
    if kind == "poisson-lognormal":
        rate = (rate.log() - sigma**2 / 2 + sigma * torch.randn(())).exp()
    return min(int(torch.poisson(rate)) + 1, 3 * mean)
