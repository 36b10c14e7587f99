"""A PreferGrow does what its config says: its draws, losses, rankings and chains beside formulas written out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from forethought.data.dataset import Dataset
from forethought.nn.dropout import Dropout
from forethought.recommenders.prefergrow import fused
from forethought.recommenders.prefergrow.config import PreferGrowConfig
from forethought.recommenders.prefergrow.fused import Corruption
from forethought.recommenders.prefergrow.kernels import FadingKernel
from forethought.recommenders.prefergrow.model import PreferGrow
from forethought.recommenders.prefergrow.score_entropy import score_entropy_reference
from forethought.recommenders.sasrec import SASRec, SASRecConfig

N, WIDTH = 8, 6
HISTORY = torch.tensor([[3, 1, 2, 0], [5, 5, 0, 0], [7, 1, 4, 2]])
TARGET = torch.tensor([[1, 2, 6, 0], [5, 7, 0, 0], [1, 4, 2, 3]])
MANY = torch.ones(1000, 4, dtype=torch.int64)
ROUNDED = {"rtol": 1e-4, "atol": 1e-5}  # p and the noise levels are kept in float32
Make = Callable[..., PreferGrow]


@pytest.fixture
def make(tiny: Dataset) -> Make:
    """``make(kernel="pair")`` is a model in evaluation mode that tells items, users and noise levels apart."""

    def make(**keys: Any) -> PreferGrow:
        torch.manual_seed(0)
        model = PreferGrow(PreferGrowConfig(num_items=N, max_length=5, hidden_size=WIDTH, **keys))
        model.observe(tiny)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
        return model.double().eval()

    return make


class Draw:
    """What one of the fused losses was given."""

    def __init__(self, query: Tensor, kernel: FadingKernel, noise: Corruption) -> None:
        self.query, self.kernel, self.noise = query.detach(), kernel, noise
        self.sigma = -noise.alpha.double().log()


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[Draw]:
    """Filled as the model draws."""
    seen: list[Draw] = []

    def watch(name: str) -> None:
        loss_of = getattr(fused, name)

        def watched(query: Tensor, vectors: Tensor, kernel: FadingKernel, noise: Corruption, *rest: Any) -> Tensor:
            seen.append(Draw(query, kernel, noise))
            loss: Tensor = loss_of(query, vectors, kernel, noise, *rest)
            return loss

        monkeypatch.setattr(fused, name, watched)

    for name in ("score_entropy", "soft_label_bce", "marginal_score_entropy"):
        watch(name)
    return seen


def plain_query(model: PreferGrow, user: Tensor, state: Tensor, sigma: Tensor) -> Tensor:
    """z = A [e(x_t); user; noise] + b; where the network gives logits it reads the user alone."""
    parts = user
    if model.config.parametrization == "score":
        level = sigma.log() if model.config.noise_features == "log_sigma" else sigma
        angle = level[:, None] * 1e4 ** (-torch.arange(WIDTH // 2) / (WIDTH // 2))
        parts = torch.cat(
            [state, user, model.noise.layers(torch.cat([angle.cos(), angle.sin()], dim=1).double())], dim=1
        )
    z: Tensor = parts @ model.head.mix.weight.T + model.head.mix.bias
    return z - state if model.config.score_method == "diffcos" else z


def plain_scores(model: PreferGrow, user: Tensor, state: Tensor, sigma: Tensor) -> Tensor:
    """⟨z, e_y⟩ of every state, or of every item where the network gives logits."""
    count = N if model.config.parametrization == "marginal" else model.config.num_states
    scores = plain_query(model, user, state, sigma) @ model.embedding.weight[1 : count + 1].T
    return scores if model.head.bias is None else scores + model.head.bias


def plain_log_ratios(model: PreferGrow, user: Tensor, x_t: Tensor, sigma: Tensor, w: float = 1.0) -> Tensor:
    """The guided log-ratios to x_t: of the network, or of the faded preference where that is what the network gives."""
    p, alpha, state = model.current_kernel().p.double(), torch.exp(-sigma)[:, None], model.embedding.weight[1:][x_t]
    liked, anybody = (plain_scores(model, who, state, sigma) for who in (user, nobody(model, len(user))))
    s = w * liked + (1 - w) * anybody
    if model.config.parametrization == "marginal":
        faded = alpha * F.pad(s.softmax(dim=1), (0, len(p) - N)) + (1 - alpha) * p
        return faded.log() - faded.gather(1, x_t[:, None]).log()
    if model.config.ratio_offset and model.config.has_disliked_item:
        # the user who likes every item alike
        faded = ((alpha + (1 - alpha) * p[:N].sum()) / N).expand(-1, N)
        faded = torch.cat([faded, (1 - alpha) * p[N]], dim=1)
        s = s + faded.log() - faded.gather(1, x_t[:, None]).log()
    return s


def nobody(model: PreferGrow, count: int) -> Tensor:
    return model.nonpreference_user.expand(count, -1)


def newest(model: PreferGrow) -> Tensor:
    """The users after the newest item of HISTORY."""
    states: Tensor = model.encoder(model.embedding(HISTORY))[[0, 1, 2], [2, 1, 3]]
    return states


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"kernel": "pair", "score_method": "diffcos", "item_bias": False},
        {"kernel": "point", "noise_features": "sigma"},
        {"ratio_offset": False, "raw": True},
        {"loss": "bce", "kernel": "popularity"},
        {"loss": "bce", "schedule": "log_linear", "ce_weight": 0.7, "nonpreference_user_ratio": 0.0},
        {"ce_weight": 0.7, "nonpreference_user_ratio": 1.0, "scoring_sigma": 0.2},
        {"parametrization": "marginal"},
        {"parametrization": "marginal", "kernel": "popularity", "disliked_item": False, "ce_weight": 2.0},
        {"parametrization": "marginal", "loss": "exact", "nonpreference_user_ratio": 0.0},
        {"parametrization": "marginal", "loss": "exact", "nonpreference_user_ratio": 1.0, "kernel": "adaptive"},
    ],
    ids=str,
)
def test_the_loss_is_the_formula_on_its_own_draws(make: Make, draws: list[Draw], keys: dict[str, Any]) -> None:
    model = make(**{"nonpreference_user_ratio": 0.0, "kernel": "hybrid"} | keys)
    x_0 = TARGET[TARGET > 0] - 1
    user = model.encoder(model.embedding(HISTORY))[TARGET > 0]
    if model.config.nonpreference_user_ratio == 1:
        user = nobody(model, len(user))
    found = model(HISTORY, TARGET).loss

    neutral, level = model.neutral_state().expand(len(user), -1), torch.full((len(user),), model.config.scoring_sigma)
    cross_entropy = F.cross_entropy(plain_scores(model, user, neutral, level)[:, :N], x_0)
    expected = model.config.ce_weight * cross_entropy
    if model.config.loss == "exact":
        assert not draws
        expected = cross_entropy
    else:
        [draw] = draws
        assert torch.equal(draw.noise.x_0, x_0)
        s = plain_log_ratios(model, user, draw.noise.x_t, draw.sigma)
        form = "bce" if model.config.loss == "bce" else "score_entropy"
        losses = score_entropy_reference(s, draw.noise.x_t, x_0, draw.noise.alpha, draw.kernel, draw.noise.weight, form)
        expected = expected + losses.mean()
    if model.adaptive is not None:
        expected = expected + F.cross_entropy(model.adaptive.expand(len(x_0), -1), x_0)
    assert_close(found, expected, **ROUNDED)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("grid", [0, 4])
@pytest.mark.parametrize(
    "keys",
    [{"sigma_min": 0.02, "sigma_max": 3.0}, {"schedule": "log_linear", "eps": 0.05}],
    ids=["geometric", "linear"],
)
def test_noise_is_drawn_as_the_config_says(
    make: Make, draws: list[Draw], keys: dict[str, Any], grid: int, raw: bool
) -> None:
    model = make(kernel="hybrid", gamma=0.7, raw=raw, time_grid=grid, **keys)
    model(MANY, torch.randint(1, N + 1, MANY.shape))
    sigma, noise = draws[0].sigma, draws[0].noise
    if "eps" in keys:
        t = (1 - torch.exp(-sigma)) / 0.95
        rate = 0.95 / torch.exp(-sigma)
    else:
        span = math.log(3.0 / 0.02)
        t = (sigma / 0.02).log() / span
        rate = sigma * span
    if grid:
        distance, nearest = (t[:, None] - torch.tensor([0.001, 0.25075, 0.5005, 0.75025, 1.0])).abs().min(dim=1)
        assert float(distance.max()) < 1e-3
        assert nearest.unique().tolist() == [0, 1, 2, 3, 4]
    else:
        assert float(t.min()) == pytest.approx(0.001, abs=0.005)
        assert float(t.max()) == pytest.approx(1.0, abs=0.005)
    assert float(t.mean()) == pytest.approx(0.5, abs=0.03)
    assert_close(noise.weight.double(), torch.ones_like(rate) if raw else rate, rtol=1e-3, atol=1e-4)
    stays = (noise.alpha + (1 - noise.alpha) * 0.7 / N).mean()
    assert float((noise.x_t == noise.x_0).float().mean()) == pytest.approx(float(stays), abs=0.03)
    assert float((noise.x_t == N).float().mean()) == pytest.approx(float((1 - noise.alpha).mean()) * 0.3, abs=0.03)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_the_user_is_swapped_as_often_as_the_config_says(make: Make, draws: list[Draw], ratio: float) -> None:
    model = make(parametrization="marginal", nonpreference_user_ratio=ratio)
    model(MANY, MANY)
    swapped = nobody(model, 1) @ model.head.mix.weight.T + model.head.mix.bias
    share = torch.isclose(draws[0].query, swapped).all(dim=1).double().mean()
    assert float(share) == pytest.approx(ratio, abs=0.03)


def test_the_nonpreference_user_is_somebody_at_first() -> None:
    """N(0, 1) in the release; near the length of the other encoder's users elsewhere."""
    for encoder, std in (("paper", 1.0), ("pre", 0.1)):
        torch.manual_seed(0)
        model = PreferGrow(PreferGrowConfig(num_items=N, hidden_size=512, encoder=encoder))
        assert float(model.nonpreference_user.detach().std()) == pytest.approx(std, rel=0.1)


def test_the_network_has_the_sizes_of_the_config(make: Make) -> None:
    keys = {"num_blocks": 3, "num_heads": 2, "dropout": 0.4, "encoder": "pre"}
    for inner, width in ((0, 4 * WIDTH), (10, 10)):
        blocks = make(inner_size=inner, **keys).encoder.blocks
        assert len(blocks) == 3
        assert {(block.feed_forward[0].out_features, block.attention.heads) for block in blocks} == {(width, 2)}
        assert {layer.p for layer in blocks.modules() if isinstance(layer, Dropout)} == {0.4}
    paper = make(encoder="paper", num_heads=3, dropout=0.4).encoder
    assert (paper.heads, paper.dropout.p) == (3, 0.4)
    model = PreferGrow(PreferGrowConfig(num_items=2000, hidden_size=WIDTH, kernel="hybrid", embedding_std=0.3))
    assert model.embedding.weight.shape == (2002, WIDTH)  # padding, the items, d
    assert float(model.embedding.weight.detach()[1:].std()) == pytest.approx(0.3, rel=0.05)


def test_cosines_are_divided_by_the_temperature(make: Make) -> None:
    model = make(parametrization="marginal", score_method="oricosNorm1", temperature=0.5, item_bias=False)
    z = plain_query(model, newest(model), torch.empty(0), torch.empty(0))
    expected = F.cosine_similarity(z[:, None], model.embedding.weight[1 : N + 1], dim=2) / 0.5
    assert_close(model.score(HISTORY), expected, **ROUNDED)


def test_fading_follows_the_config_and_the_counts(make: Make, tiny: Dataset) -> None:
    uniform = torch.full((N,), 1 / N).double()
    counts = torch.zeros(N).double()
    for row in range(tiny.num_users):
        for position in range(tiny.sequences.offsets[row], tiny.train_stop[row]):
            counts[tiny.sequences.items[position] - 1] += 1
    popular = (counts + 1) ** 0.3 / ((counts + 1) ** 0.3).sum()
    learned = torch.linspace(-1, 1, N).double()
    for keys, items, disliked in (
        ({"kernel": "pair"}, uniform, None),
        ({"kernel": "point"}, 0 * uniform, 1.0),
        ({"kernel": "hybrid", "gamma": 0.7}, 0.7 * uniform, 0.3),
        ({"kernel": "popularity", "beta": 0.3, "gamma": 0.7}, 0.7 * popular, 0.3),
        ({"kernel": "popularity", "beta": 0.3, "disliked_item": False}, popular, None),
        ({"kernel": "adaptive", "gamma": 0.7}, 0.7 * learned.softmax(0), 0.3),
        ({"kernel": "adaptive", "disliked_item": False}, learned.softmax(0), None),
    ):
        model = make(**keys)
        if model.adaptive is not None:
            with torch.no_grad():
                model.adaptive.copy_(learned)
        p = items if disliked is None else torch.cat([items, torch.tensor([disliked]).double()])
        assert_close(model.current_kernel().p.double(), p, **ROUNDED)
        assert model.config.num_states == len(p)
        # rankings are read from the mean state, which for point is d's own
        assert_close(model.neutral_state(), p @ model.embedding.weight[1:], **ROUNDED)


BOTH = pytest.mark.parametrize(
    "keys",
    [
        {"score_method": "diffcos", "scoring_sigma": 0.3, "gamma": 0.6},
        {"noise_features": "sigma", "ratio_offset": False, "kernel": "popularity"},
        {"parametrization": "marginal", "gamma": 0.6},
        {"parametrization": "marginal", "kernel": "pair", "item_bias": False},
    ],
    ids=str,
)


@BOTH
@pytest.mark.parametrize("w", [0.0, 1.0, 3.0])
def test_guidance_mixes_the_user_with_nobody(make: Make, keys: dict[str, Any], w: float) -> None:
    """In the ranking and in the log-ratios, from the config or as asked for."""
    model, other = make(guidance=w, **keys), make(guidance=-1.0, **keys)
    user, level = newest(model), torch.full((3,), model.config.scoring_sigma).double()
    neutral = model.neutral_state().expand(3, -1)
    liked, anybody = (plain_scores(model, who, neutral, level)[:, :N] for who in (user, nobody(model, 3)))
    expected = w * liked + (1 - w) * anybody
    assert_close(model.score(HISTORY), expected, **ROUNDED)
    assert_close(other.query(HISTORY, w) @ other.item_vectors().T, expected, **ROUNDED)

    x_t, sigma = torch.tensor([0, 5, model.config.num_states - 1]), torch.tensor([0.05, 0.8, 4.0]).double()
    ratios = plain_log_ratios(model, user, x_t, sigma, w)
    assert_close(model.log_ratios(user)(x_t, sigma), ratios, **ROUNDED)
    assert_close(other.log_ratios(user, w)(x_t, sigma), ratios, **ROUNDED)


@BOTH
@pytest.mark.parametrize("sampler", ["analytic", "euler"])
@pytest.mark.parametrize("noise", [{"sigma_max": 0.9}, {"schedule": "log_linear", "eps": 0.4}], ids=str)
def test_chains_grow_as_the_config_says(make: Make, keys: dict[str, Any], sampler: Any, noise: dict[str, Any]) -> None:
    """The start, and what the first of two steps draws from: Bayes' rule or one jump, by dense matrices."""
    model = make(guidance=2.5, sampler=sampler, growing_steps=2, **noise, **keys)
    states, p = model.config.num_states, model.current_kernel().p.double()
    growth = model.grow(HISTORY.repeat(400, 1), trace=True, generator=torch.Generator().manual_seed(0))
    assert growth.states.shape == (1200, 4)
    share = torch.bincount(growth.states[:, 0], minlength=states) / 1200
    assert float((share - p).abs().max()) < 0.05

    now, then = (0.9, (1e-3 * 0.9) ** 0.5) if "sigma_max" in noise else (-math.log(0.4), -math.log(0.7))
    assert_close(growth.sigmas[:2], torch.tensor([now, then]).double(), rtol=1e-4, atol=0)
    x, E = growth.states[:, 0], p[:, None].expand(states, states)
    s = plain_log_ratios(model, newest(model).repeat(400, 1), x, torch.full((1200,), now).double(), 2.5)
    s = s.scatter(1, x[:, None], 0.0)
    if sampler == "analytic":
        alpha = math.exp(then - now)
        P = alpha * torch.eye(states).double() + (1 - alpha) * E
        law = (s.softmax(dim=1) @ torch.linalg.inv(P).T).clamp(min=0) * P[x]
    else:
        law = (now - then) * E[x] * s.exp()
        law = law.scatter(1, x[:, None], 0.0)
        law = law / law.sum(dim=1, keepdim=True).clamp(min=1)
        law = law.scatter(1, x[:, None], 1 - law.sum(dim=1, keepdim=True))
    assert growth.distributions is not None
    assert_close(growth.distributions[:, 0], law / law.sum(dim=1, keepdim=True), rtol=1e-3, atol=1e-4)


@BOTH
def test_a_thought_is_one_guided_chain(make: Make, keys: dict[str, Any]) -> None:
    model = make(guidance=3.0, growing_steps=4, **keys)
    thoughts = [model.think(HISTORY, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert_close(thoughts[0].answers, thoughts[1].answers, rtol=0, atol=0)
    assert not torch.allclose(thoughts[0].answers, thoughts[2].answers)
    growth = model.grow(HISTORY, generator=torch.Generator().manual_seed(0), trace=True)
    assert growth.distributions is not None
    assert_close(thoughts[0].answers, growth.distributions[..., :N], rtol=0, atol=0)
    assert thoughts[0].mask.tolist() == [[True] * 5] * 3
    for step in range(5):
        x, sigma = growth.states[:, step], growth.sigmas[step].expand(3)
        liked, anybody = (
            plain_query(model, who, model.embedding.weight[1:][x], sigma) for who in (newest(model), nobody(model, 3))
        )
        expected = 3.0 * liked - 2.0 * anybody
        if model.config.parametrization == "marginal":  # the query is of the user alone; the step shows in where x_t is
            expected = torch.cat([expected, model.embedding.weight[1:][x]], dim=1)
        assert_close(thoughts[0].states[:, step], expected, **ROUNDED)


@pytest.mark.parametrize("loss", ["score_entropy", "bce"])
def test_the_strongest_noise_leaves_the_loss_finite(loss: str) -> None:
    """At σ = 20 of ``point`` 1 - α is 1 in float32; what is left for the items is α, and no difference."""
    torch.manual_seed(0)
    model = PreferGrow(PreferGrowConfig(num_items=N, max_length=5, kernel="point", sigma_max=20.0, loss=loss))
    for _ in range(20):
        model.zero_grad()
        value = model(HISTORY.expand(64, -1, -1).flatten(0, 1), TARGET.expand(64, -1, -1).flatten(0, 1)).loss
        value.backward()
        assert bool(value.isfinite())
        assert all(bool(each.grad.isfinite().all()) for each in model.parameters() if each.grad is not None)
    alpha = torch.tensor([2e-9])
    offset = model._offset(model.fading, torch.tensor([N]), alpha)
    assert float(offset.items) == pytest.approx(math.log(2e-9 / N), rel=1e-5)


def test_a_steep_popularity_kernel_stays_in_range(tiny: Dataset) -> None:
    config = PreferGrowConfig(num_items=tiny.num_items, max_length=5, kernel="popularity", beta=200.0)
    model = PreferGrow(config)
    model.observe(tiny)
    weights = (tiny.item_counts()[1:] + 1.0) ** 200.0  # beyond float32
    expected = config.gamma * weights / weights.sum()
    assert_close(model.fading.p[:-1].double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-30)


def test_without_a_head_guidance_or_swaps_it_is_sasrec(make: Make) -> None:
    """The exact loss is a softmax over the catalogue, so only what PreferGrow adds can set the two apart."""
    keys = {"num_blocks": 2, "num_heads": 2, "dropout": 0.0}
    model = make(
        parametrization="marginal", loss="exact", head="none", item_bias=False, nonpreference_user_ratio=0.0, **keys
    )
    sasrec = SASRec(SASRecConfig(num_items=N, max_length=5, hidden_size=WIDTH, **keys)).double().eval()
    sasrec.encoder.load_state_dict(model.encoder.state_dict())
    with torch.no_grad():
        sasrec.embedding.weight.copy_(model.embedding.weight[: N + 1])
    assert_close(model(HISTORY, TARGET).loss, sasrec(HISTORY, TARGET).loss)
    assert_close(model.score(HISTORY), sasrec.score(HISTORY))
    model.config.guidance = 0.5
    assert float((model.score(HISTORY) - sasrec.score(HISTORY)).abs().max().detach()) > 0.01
