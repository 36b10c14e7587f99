"""The kernel that fades inside groups: its loss, its groups, and chains that stay in them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from forethought.data.catalog import Catalog
from forethought.data.dataset import Dataset
from forethought.errors import RecipeError
from forethought.recommenders.prefergrow.config import PreferGrowConfig
from forethought.recommenders.prefergrow.fused import Corruption, marginal_score_entropy
from forethought.recommenders.prefergrow.kernels import FadingKernel
from forethought.recommenders.prefergrow.model import PreferGrow

from ..logs import NUM_ITEMS, make_dataset

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.2, 1.5, 0.9]).double()


def group_loss(logits: Tensor, x_0: int, x_t: int, alpha: float, weight: float, groups: list[int]) -> Tensor:
    """-ln π(group of x₀), and the weighted score entropy of π inside that group, edge by edge."""
    mates = [y for y in range(len(groups)) if groups[y] == groups[x_0]]
    pi = logits.softmax(dim=0)
    mass = sum(pi[y] for y in mates)
    p = {y: WEIGHTS[y] / sum(WEIGHTS[z] for z in mates) for y in mates}
    u = {y: alpha * pi[y] / mass + (1 - alpha) * p[y] for y in mates}
    column = {y: alpha * (y == x_0) + (1 - alpha) * p[y] for y in mates}
    loss = -torch.as_tensor(mass).log()
    for y in mates:
        if y != x_t:
            s, r = u[y].log() - u[x_t].log(), float(column[y] / column[x_t])
            loss = loss + weight * p[x_t] * (s.exp() - r * s + r * (math.log(r) - 1))
    return loss


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=7, max_size=7), st.integers(0, 2**31))
def test_the_loss_is_that_of_the_group_and_of_the_item_in_it(groups: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    kernel = FadingKernel.block(torch.tensor(groups), WEIGHTS, torch.float64)
    query, vectors = torch.randn(9, 3).double().requires_grad_(), torch.randn(7, 3).double().requires_grad_()
    bias = torch.randn(7).double().requires_grad_()
    x_0, alpha, weight = torch.randint(7, (9,)), torch.rand(9).double() * 0.98 + 0.01, torch.rand(9).double()
    noise = Corruption(x_0, kernel.sample(x_0, alpha), alpha, weight)
    found = marginal_score_entropy(query, vectors, kernel, noise, bias)
    rows = zip(query @ vectors.T + bias, x_0.tolist(), noise.x_t.tolist(), alpha.tolist(), weight.tolist(), strict=True)
    expected = sum((group_loss(*row, groups) for row in rows), start=torch.zeros(()).double())
    assert_close(found, expected)
    inputs = (query, vectors, bias)
    for ours, theirs in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert_close(ours, theirs)


def test_the_mean_over_all_draws_teaches_what_the_exact_loss_does() -> None:
    """Over all noise and states it is -ln π(x₀), with the gradient of the cross-entropy."""
    groups = torch.tensor([0, 0, 1, 1, 1, 2, 0])
    kernel = FadingKernel.block(groups, WEIGHTS, torch.float64)
    logits = torch.randn(1, 7, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    # the integral over sigma as one over ln sigma, by the trapezoidal rule; states summed out exactly
    level = torch.linspace(-18, 4, 2001).double()
    sigma = level.exp()
    step = torch.full_like(level, float(level[1] - level[0]))
    step[[0, -1]] /= 2
    for x_0 in range(7):
        mates = (groups == groups[x_0]).nonzero()[:, 0]
        rows = [torch.full((len(level) * len(mates),), x_0), mates.repeat_interleave(len(level))]
        alpha = torch.exp(-sigma).repeat(len(mates))
        chance = kernel.column(rows[0], alpha).gather(1, rows[1][:, None])[:, 0]
        noise = Corruption(*rows, alpha, chance * (step * sigma).repeat(len(mates)))
        drawn = marginal_score_entropy(logits.expand(len(alpha), -1), torch.eye(7).double(), kernel, noise)
        group = -(logits[0].softmax(dim=0)[mates].sum().log())  # each of the rows has it once, unweighted
        mean = drawn - (len(alpha) - 1) * group
        exact = nn.functional.cross_entropy(logits, torch.tensor([x_0]))
        assert_close(mean, exact, rtol=1e-4, atol=1e-4)
        assert_close(torch.autograd.grad(mean, logits), torch.autograd.grad(exact, logits), rtol=1e-4, atol=1e-4)


def made(dataset: Dataset, **keys: Any) -> PreferGrow:
    torch.manual_seed(0)
    config = PreferGrowConfig(
        num_items=dataset.num_items, hidden_size=8, kernel="block", parametrization="marginal", **keys
    )
    model = PreferGrow(config)
    model.observe(dataset)
    nn.init.normal_(model.embedding.weight)
    return model.eval()


@pytest.mark.parametrize("number", [1, 3, 8, 20])
def test_popularity_makes_equal_parts_in_the_order_of_counts(tiny: Dataset, number: int) -> None:
    groups = made(tiny, num_groups=number).fading.groups
    assert groups is not None
    counts, parts = tiny.item_counts()[1:], min(number, NUM_ITEMS)
    sizes = np.bincount(groups.numpy())
    assert len(sizes) == parts
    assert max(sizes) - min(sizes) <= 1
    for group in range(parts - 1):
        assert counts[groups == group].max() <= counts[groups == group + 1].min()


def with_categories(categories: list[list[str] | None]) -> Dataset:
    dataset = make_dataset([[1, 2, 3, 4, 5]], [[]], num_items=5)
    dataset.catalog = Catalog(
        pa.table({"id": list("abcde"), "categories": pa.array(categories, pa.list_(pa.string()))})
    )
    return dataset


def test_the_first_category_is_the_group() -> None:
    data = with_categories([["x", "y"], None, ["y", "x"], ["x"], []])
    groups = made(data, block_by="category").fading.groups
    assert groups is not None
    same = groups[:, None] == groups
    firsts = ["x", "", "y", "x", ""]  # items without one are a group of their own
    assert same.tolist() == [[a == b for b in firsts] for a in firsts]


def test_a_catalogue_without_categories_is_refused(tiny: Dataset) -> None:
    for data in (tiny, with_categories([None, [], None, [], None])):
        with pytest.raises(RecipeError, match=r"model.block_by is category, and the catalogue .* has no categories"):
            made(data, block_by="category")


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_chains_stay_in_their_groups_and_follow_the_model(tiny: Dataset, steps: int) -> None:
    model, count = made(tiny, num_groups=3, guidance=1.5, sigma_max=20.0), 20_000
    history = torch.tensor([[3, 1, 2]])
    growth = model.grow(history.expand(count, -1), steps, generator=torch.Generator().manual_seed(0))
    groups = model.fading.groups[growth.states]
    assert bool((groups == groups[:, :1]).all())
    assert len(groups.unique()) == 3
    law = model.score(history).detach().double().softmax(dim=1)[0]
    for found in (torch.bincount(growth.final, minlength=NUM_ITEMS) / count, growth.denoised.mean(dim=0)):
        assert float((found - law).abs().sum()) / 2 < 0.015  # sampling noise alone gives about 0.007
    scores = model.chain_scores(history.expand(500, -1), 20, steps, generator=torch.Generator().manual_seed(0))
    assert_close(scores.sum(dim=1), torch.ones(500).double())
    assert float((scores.mean(dim=0) - law).abs().sum()) / 2 < 0.025


def test_the_groups_are_saved(tiny: Dataset, tmp_path: Path) -> None:
    model = made(tiny, num_groups=3)
    model.save_pretrained(tmp_path)
    again = PreferGrow.from_pretrained(tmp_path)
    assert model.fading.groups is not None
    assert again.fading.groups.tolist() == model.fading.groups.tolist()
    assert_close(again.fading.p, model.fading.p)
    first, second = (
        each.eval().grow(torch.tensor([[3, 1, 2]] * 50), 5, generator=torch.Generator().manual_seed(0)).states
        for each in (model, again)
    )
    assert torch.equal(first, second)
