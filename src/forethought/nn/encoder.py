"""The causal transformer that turns a history into one state a position."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from forethought.nn.attention import causal_attention
from forethought.nn.dropout import Dropout

Norm = Literal["pre", "original"]


class CausalAttention(nn.Module):
    """Multi-head attention of each position on itself and what came before.

    Histories are padded on the right, so the causal mask alone keeps padding out of every real position.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """``queries`` and ``context`` float ``[B, L, d]`` → float ``[B, L, d]``."""
        q = self.query(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = causal_attention(q, k, v)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class Block(nn.Module):
    """One transformer block.

    ``pre`` normalises what each sub-layer reads and leaves the residual stream alone. ``original`` is SASRec's
    (Kang & McAuley 2018, §3.2): only the queries are normalised, the residual adds the normalised queries, and the
    feed-forward reads a second norm that is also its residual.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        activation = nn.GELU() if norm == "pre" else nn.ReLU()
        self.feed_forward = nn.Sequential(
            nn.Linear(width, inner), activation, Dropout(dropout), nn.Linear(inner, width), Dropout(dropout)
        )
        self.dropout = Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """float ``[B, L, d]`` → float ``[B, L, d]``."""
        normal = self.attention_norm(states)
        if self.norm == "pre":
            states = states + self.dropout(self.attention(normal, normal))
            normal = self.feed_forward_norm(states)
        else:
            states = normal = self.feed_forward_norm(normal + self.dropout(self.attention(normal, states)))
        output: Tensor = states + self.feed_forward(normal)
        return output


class CausalEncoder(nn.Module):
    """Item vectors in, one state a position out.

    Args:
        width: d.
        blocks, heads, inner: how many blocks, heads in each, width of the feed-forward layer.
        dropout: of the input, the attention's output and the feed-forward.
        max_length: longest history; position 0 is the oldest item kept.
        norm: see :class:`Block`.
    """

    def __init__(
        self, width: int, blocks: int, heads: int, inner: int, dropout: float, max_length: int, norm: Norm = "pre"
    ) -> None:
        super().__init__()
        self.scale = width**0.5 if norm == "original" else 1.0
        self.positions = nn.Parameter(torch.randn(max_length, width) * 0.02)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, inner, dropout, norm) for _ in range(blocks))
        self.final_norm = nn.LayerNorm(width)

    def forward(self, vectors: Tensor) -> Tensor:
        """float ``[B, L, d]`` → float ``[B, L, d]``."""
        states = self.dropout(vectors * self.scale + self.positions[: vectors.shape[1]])
        for block in self.blocks:
            states = block(states)
        final: Tensor = self.final_norm(states)
        return final


def last_state(states: Tensor, history: Tensor) -> Tensor:
    """The state at each row's newest item; an empty history gives the state at position 0; ``[B, d]``."""
    last = ((history > 0).sum(dim=1) - 1).clamp(min=0)
    return states[torch.arange(len(states), device=states.device), last]
