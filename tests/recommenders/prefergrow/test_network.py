"""The parts of PreferGrow's network against their formulas, written out row by row in float64."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from forethought.recommenders.prefergrow.network import NoiseEmbedding, PaperBlock, ScoreHead, ScoreMethod

Floats = npt.NDArray[np.float64]
WIDTH, STATES, TEMPERATURE = 6, 9, 0.3
KINDS = pytest.mark.parametrize("kind", ["additive", "mlp"])
METHODS = pytest.mark.parametrize("method", get_args(ScoreMethod))


def randomised(module: nn.Module) -> Any:
    """In float64, with no parameter left at 0 or 1, where a forgotten one would not be seen."""
    for parameter in module.double().parameters():
        nn.init.normal_(parameter)
    return module


def plain_score(head: ScoreHead, parts: Tensor, now: Tensor, item: Tensor, y: int) -> Tensor:
    """The log-ratio of state y, of vector ``item``, read from the state of vector ``now``."""
    weights = {name: value.detach() for name, value in head.named_parameters()}
    if "mix.2.weight" in weights:
        z = weights["mix.2.weight"] @ F.gelu(weights["mix.0.weight"] @ parts + weights["mix.0.bias"])
        z = z + weights["mix.2.bias"]
    else:
        z = parts if head.method == "untied" else weights["mix.weight"] @ parts + weights["mix.bias"]
    if head.method == "untied":
        return weights["matrix"][y] @ z + weights["bias"][y]
    length = torch.linalg.vector_norm
    score = {
        "oricos": z @ item,
        "diffcos": (z - now) @ item,
        "diffcosNorm": (z - now) @ item / length(z - now) / length(item) / TEMPERATURE,
        "oricosNorm1": z @ item / length(z) / length(item) / TEMPERATURE,
        "oricosNorm2": z @ item / length(z) / TEMPERATURE,
    }[head.method]
    return score + weights["bias"][y]


@KINDS
@METHODS
def test_scores_follow_the_formula(method: ScoreMethod, kind: Literal["additive", "mlp"]) -> None:
    torch.manual_seed(0)
    head = randomised(ScoreHead(WIDTH, STATES, method, kind, 3 * WIDTH, True, TEMPERATURE))
    parts, now, table = torch.randn(4, 3 * WIDTH).double(), torch.randn(4, WIDTH).double(), torch.randn(STATES, WIDTH)
    table = table.double()
    found = head.query(parts, now) @ head.vectors(table).T + head.bias
    expected = [
        torch.stack([plain_score(head, parts[b], now[b], table[y], y) for y in range(STATES)]) for b in range(4)
    ]
    assert_close(found.detach(), torch.stack(expected))


@pytest.mark.parametrize(
    ("inputs", "method", "identity"), [(1, "oricos", True), (3, "oricos", False), (1, "diffcos", False)]
)
def test_a_head_that_reads_the_state_alone_begins_as_the_identity(
    inputs: int, method: ScoreMethod, identity: bool
) -> None:
    head = ScoreHead(WIDTH, STATES, method, "additive", inputs * WIDTH, False, TEMPERATURE)
    state = torch.randn(5, inputs * WIDTH)
    query = head.query(state, None)
    assert torch.equal(query, state[:, :WIDTH]) == identity


def test_no_bias_and_no_state_where_there_is_none() -> None:
    head = randomised(ScoreHead(WIDTH, STATES, "diffcos", "additive", WIDTH, False, TEMPERATURE))
    user = torch.randn(4, WIDTH).double()
    assert head.bias is None
    assert_close(head.query(user, None), user @ head.mix.weight.T + head.mix.bias)


@pytest.mark.parametrize("of", ["sigma", "log_sigma"])
def test_the_noise_embedding_reads_sigma_or_its_logarithm(of: Literal["sigma", "log_sigma"]) -> None:
    torch.manual_seed(0)
    embedding = randomised(NoiseEmbedding(WIDTH, of))
    first, second = embedding.layers[0], embedding.layers[2]
    for sigma in (1e-3, 0.7, 10.0):
        level = {"sigma": sigma, "log_sigma": math.log(sigma)}[of]
        angles = [level / 1e4 ** (k / (WIDTH / 2)) for k in range(WIDTH // 2)]
        waves = torch.tensor([*map(math.cos, angles), *map(math.sin, angles)]).double()
        expected = F.silu(second.weight @ F.gelu(first.weight @ waves + first.bias) + second.bias)
        assert_close(embedding(torch.tensor([sigma]).double())[0], expected, rtol=1e-5, atol=1e-6)


def paper_block(block: PaperBlock, vectors: Floats) -> Floats:
    """One history ``[L, d]`` through the release's block, position by position, head by head (spec §2.5, item 2)."""
    weights = {name: value.numpy() for name, value in block.state_dict().items()}
    length, width = vectors.shape

    def linear(name: str, x: Floats) -> Floats:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def norm(name: str, x: Floats) -> Floats:
        scaled = weights[f"{name}.weight"] * (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        return scaled + weights.get(f"{name}.bias", 0.0)

    # dimensions i and i + d/2 are one complex number, turned by the position times 10000^(-2i/d)
    pairs = vectors[:, : width // 2] + 1j * vectors[:, width // 2 :]
    pairs = pairs * np.exp(1j * np.arange(length)[:, None] * 1e4 ** (-2 * np.arange(width // 2) / width))
    rotated = np.concatenate([pairs.real, pairs.imag], axis=1)
    states = []
    for now in range(length):
        queries, past = norm("query_norm", rotated[now]), rotated[: now + 1]
        attended = []
        for head in np.split(np.arange(width), block.heads):
            q = linear("query", queries)[head]
            attention = np.exp([q @ linear("key", x)[head] / np.sqrt(width) for x in past])  # not the head's width
            values = np.array([linear("value", x)[head] for x in past])
            attended.append(attention @ values / attention.sum())
        state = norm("attention_norm", queries + np.concatenate(attended))
        state = norm("feed_forward_norm", state + linear("outer", np.maximum(linear("inner", state), 0)))
        states.append(norm("final_norm", state))
    return np.stack(states)


def test_the_paper_block_equals_loops() -> None:
    torch.manual_seed(0)
    block = randomised(PaperBlock(12, 3, 0.1, 9)).eval()
    vectors = torch.randn(5, 7, 12).double()
    expected = torch.from_numpy(np.stack([paper_block(block, row) for row in vectors.numpy()]))
    rounded = {"rtol": 1e-4, "atol": 1e-5}  # sines and cosines are kept in float32
    assert_close(block(vectors).detach(), expected, **rounded)
    position = torch.tensor([6, 0, 3, 5, 1])
    assert_close(block(vectors, position).detach(), expected[torch.arange(5), position], **rounded)


def test_the_paper_block_drops_in_training_only() -> None:
    torch.manual_seed(0)
    block = randomised(PaperBlock(12, 3, 0.5, 9))
    vectors = torch.randn(1, 7, 12).double()
    assert not torch.allclose(block.train()(vectors), block(vectors))
    assert_close(block.eval()(vectors), block(vectors))
