"""The parts of PreferGrow's network: the paper's history block, the noise embedding, the score heads."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.nn.attention import causal_attention, causal_attention_at
from forethought.nn.dropout import Dropout
from forethought.nn.encoder import check_length, take

ScoreMethod = Literal["oricos", "diffcos", "diffcosNorm", "oricosNorm1", "oricosNorm2", "untied"]


class PaperBlock(nn.Module):
    """The history encoder of the release (after DreamRec), one block, causal.

    The embeddings themselves are rotated by position over their full width; queries are normalised, keys and values
    are not; the logits are divided by the root of the full width; there is no output projection; the residual adds
    the normalised queries; the feed-forward sits between two norms.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, heads: int, dropout: float, max_length: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.query_norm, self.attention_norm, self.final_norm = (nn.LayerNorm(width, bias=False) for _ in range(3))
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)
        frequency = 1e4 ** (-torch.arange(0, width, 2) / width)
        angle = torch.arange(max_length)[:, None] * frequency
        self.register_buffer("cos", angle.cos().repeat(1, 2))
        self.register_buffer("sin", angle.sin().repeat(1, 2))

    def forward(self, vectors: Tensor, position: Tensor | None = None) -> Tensor:
        """float ``[B, L, d]`` → float ``[B, L, d]``, or ``[B, d]`` at ``position``, int64 ``[B]``, alone."""
        check_length(vectors, len(self.cos))
        length, scale = vectors.shape[1], vectors.shape[-1] ** -0.5
        left, right = vectors.chunk(2, dim=-1)
        vectors = vectors * self.cos[:length] + torch.cat([-right, left], dim=-1) * self.sin[:length]
        vectors = self.dropout(vectors)
        if position is None:
            normal = self.query_norm(vectors)
            q, k, v = (
                layer(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for layer, source in ((self.query, normal), (self.key, vectors), (self.value, vectors))
            )
            mixed = causal_attention(q, k, v, scale).transpose(1, 2)
        else:
            normal = self.query_norm(take(vectors, position))
            q = self.query(normal).unflatten(-1, (self.heads, -1))
            key, value = ((layer.weight, layer.bias) for layer in (self.key, self.value))
            mixed = causal_attention_at(position, q, vectors, key, value, scale)
        states = self.attention_norm(normal + mixed.flatten(-2))
        inner = self.dropout(F.relu(self.inner(states)))
        states = self.feed_forward_norm(states + self.dropout(self.outer(inner)))
        final: Tensor = self.final_norm(states)
        return final


class NoiseEmbedding(nn.Module):
    """Sinusoids of sigma (as released) or of ln sigma, then two layers; float ``[B]`` → float ``[B, d]``."""

    frequency: Tensor

    def __init__(self, width: int, of: Literal["sigma", "log_sigma"]) -> None:
        super().__init__()
        self.of = of
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.SiLU())
        self.register_buffer("frequency", torch.exp(-math.log(1e4) * torch.arange(width // 2) / (width // 2)))

    def forward(self, sigma: Tensor) -> Tensor:
        sigma = sigma.to(self.frequency.dtype)
        level = sigma.log() if self.of == "log_sigma" else sigma
        angle = level[:, None] * self.frequency
        embedded: Tensor = self.layers(torch.cat([angle.cos(), angle.sin()], dim=-1))
        return embedded


class ScoreHead(nn.Module):
    """Log-ratios as inner products: ``s = query @ vectors.T + bias``, whatever the method.

    ``additive`` is the paper's single linear layer over [state; user; noise]: the three never interact. ``mlp`` puts a
    hidden layer between; with ``none`` what is read, the user alone, is the query. Methods: ``oricos`` ⟨z, e_y⟩;
    ``diffcos`` ⟨z - e(x_t), e_y⟩; ``diffcosNorm`` the same with both sides on the unit sphere; ``oricosNorm1``
    ⟨z, e_y⟩ with both, ``oricosNorm2`` with z alone on it; ``untied`` an output matrix of its own.
    """

    def __init__(
        self, width: int, states: int, method: ScoreMethod, kind: Literal["additive", "mlp", "none"], inputs: int,
        bias: bool, temperature: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.method, self.temperature = method, temperature
        self.mix: nn.Module
        out = inputs if method == "untied" and kind == "additive" else width
        if kind == "mlp":
            self.mix = nn.Sequential(nn.Linear(inputs, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        elif method == "untied" or kind == "none":
            self.mix = nn.Identity()  # the output matrix reads the three parts directly; the user is the query
        else:
            self.mix = nn.Linear(inputs, width)
            if inputs == width and method == "oricos":
                # the state alone is read, and by a plain inner product: as a query it is good already, and learning
                # from there takes half the epochs
                nn.init.eye_(self.mix.weight)
                nn.init.zeros_(self.mix.bias)
        if method == "untied":
            self.matrix = nn.Parameter(torch.randn(states, out) * out**-0.5)
        self.bias = nn.Parameter(torch.zeros(states)) if bias else None

    def query(self, inputs: Tensor, state: Tensor | None) -> Tensor:
        """float ``[B, inputs]`` → float ``[B, d]``; ``state`` float ``[B, d]`` is e(x_t), None where there is none."""
        z: Tensor = self.mix(inputs)
        if self.method.startswith("diffcos") and state is not None:
            z = z - state
        if "Norm" in self.method:
            z = F.normalize(z, dim=-1) / self.temperature
        return z

    def vectors(self, embeddings: Tensor) -> Tensor:
        """The states' side of the inner product, from the tied table float ``[M, d]``."""
        if self.method == "untied":
            return self.matrix
        return F.normalize(embeddings, dim=-1) if self.method in ("diffcosNorm", "oricosNorm1") else embeddings
