"""The items' graph against its definition in loops, and the teacher's loss against its formula."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch.nn import functional as F

from forethought.data.dataset import Dataset
from forethought.recommenders.latent.item_graph import item_graph, swing
from forethought.recommenders.latent.lares import LARES, LARESConfig
from forethought.recommenders.latent.losses import teacher_divergence
from forethought.recommenders.latent.rearec import ReaRec, ReaRecConfig

from ..logs import NUM_ITEMS, make_dataset

HISTORY = torch.tensor([[2, 5, 1, 0], [3, 4, 0, 0], [1, 2, 4, 5]])
LAST = torch.tensor([[0, 0, 2, 0], [0, 3, 0, 0], [0, 0, 0, 6]])

logs = st.lists(st.lists(st.integers(1, 6), max_size=6), min_size=1, max_size=7)


def defined(training: list[list[int]], items: int) -> npt.NDArray[np.float64]:
    """s(i → j), float64 ``[items, items]``, sum by sum."""
    had = [set(user) for user in training]
    scores = np.zeros((items, items))
    for i in range(1, items + 1):
        for j in range(1, items + 1):
            users = [u for u, own in enumerate(had) if i in own and j in own]
            if i == j or not users:
                continue
            for u, v in combinations(users, 2):
                weight = 1 / np.sqrt(len(had[u])) / np.sqrt(len(had[v]))
                scores[i - 1, j - 1] += weight / (1 + len(had[u] & had[v]))
            scores[i - 1, j - 1] /= np.sqrt(sum(j in own for own in had))
    return scores


@given(training=logs, entries=st.sampled_from([1, 10, 2**22]))
@settings(max_examples=150, deadline=None)
def test_swing_as_it_is_defined(training: list[list[int]], entries: int) -> None:
    bought = np.zeros((len(training), 6))
    for user, items in enumerate(training):
        bought[user, [item - 1 for item in items]] = 1
    found = swing(sparse.csr_array(bought), entries)
    np.testing.assert_allclose(found.toarray(), defined(training, 6), atol=1e-12)


@given(training=logs.filter(lambda users: any(users)), k=st.integers(0, 4))
@settings(max_examples=80, deadline=None)
def test_the_strongest_neighbours_in_order(training: list[list[int]], k: int) -> None:
    graph = item_graph(make_dataset(training, [[] for _ in training], 6), k)
    assert graph.shape == (7, k)
    scores = defined(training, 6)
    assert not graph[0].any()
    for item in range(1, 7):
        kept = graph[item][graph[item] > 0]
        assert len(set(kept.tolist())) == len(kept) == min(k, int((scores[item - 1] > 0).sum()))
        assert not graph[item, len(kept) :].any()
        best = np.sort(scores[item - 1])[::-1][: len(kept)]
        np.testing.assert_allclose(scores[item - 1, kept - 1], best, atol=1e-12)


def test_the_graph_reads_training_alone_and_repeats_once() -> None:
    training = [[1, 2, 1, 2], [2, 1], [3, 4]]
    graph = item_graph(make_dataset(training, [[3, 4], [3, 4], [1, 2]], 5), 3)
    assert graph[1:].tolist() == [[2, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 4), steps=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_the_divergence_as_it_is_written(seed: int, rows: int, steps: int) -> None:
    torch.manual_seed(seed)
    candidates = torch.randint(0, 5, (rows, 5))
    candidates[:, 0].clamp_(min=1)
    for row in candidates:  # of one item only the target is met twice
        for place in range(2, 5):
            if row[place] in row[1:place]:
                row[place] = 0
    logits, gamma = torch.randn(rows, steps, 5), torch.rand(steps) * 3 + 0.2
    expected = np.zeros(steps)
    for t in range(steps):
        for row in range(rows):
            target = int(candidates[row, 0])
            order = [0] + [c for c in range(1, 5) if candidates[row, c] > 0 and int(candidates[row, c]) != target]
            q = np.exp([-rank / float(gamma[t]) for rank in range(len(order))])
            p = np.exp([float(logits[row, t, c]) for c in order])
            q, p = q / q.sum(), p / p.sum()
            expected[t] += (q * np.log(q / p)).sum() / rows
    found = teacher_divergence(logits, candidates, gamma)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_one_who_answers_as_the_teacher_has_nothing_to_learn() -> None:
    candidates, gamma = torch.tensor([[3, 1, 3, 2, 0]]), torch.tensor([2.0, 1.0])
    rank = torch.tensor([0.0, 1.0, -50.0, 2.0, -70.0])  # what stands at no candidate is not asked
    logits = (-rank / gamma[:, None])[None].clone().requires_grad_()
    loss = teacher_divergence(logits, candidates, gamma)
    torch.testing.assert_close(loss, torch.zeros(2), atol=1e-6, rtol=0)
    loss.sum().backward()
    assert bool(logits.grad.isfinite().all())
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-6, rtol=0)


def model(tiny: Dataset, kind: Any = ReaRec, **options: Any) -> Any:
    config = ReaRecConfig if kind is ReaRec else LARESConfig
    torch.manual_seed(0)
    made = kind(config(num_items=NUM_ITEMS, max_length=4, hidden_size=8, **options))
    made.observe(tiny)
    with torch.no_grad():
        made.embedding.weight[1:].normal_(std=0.6)
    return made.eval()


@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_whole_loss_as_it_is_written(tiny: Dataset, readout: str, reduction: str) -> None:
    """Each state k: its weight times CE + λ KL, at temperature α^(K - k), the teacher's reach being γ (K - k + 1)."""
    made = model(
        tiny, steps=2, supervision="teacher", cooling=0.7, teacher_weight=0.3, teacher_gamma=0.8, teacher_neighbours=3,
        step_weight=0.6, readout=readout, step_reduction=reduction,
    )  # fmt: skip
    position, target = torch.tensor([2, 1, 3]), torch.tensor([2, 3, 6])
    states = made.states(HISTORY, position[:, None], 2)[:, 0].detach()
    items, graph = made.embedding.weight[1:], item_graph(tiny, 3)
    read = states[:, -1] if readout == "last" else states.mean(dim=1)
    expected = F.cross_entropy(read @ items.T, target - 1)
    early = [0, 1] if readout == "last" else [0, 1, 2]
    for k in range(3):
        logits = states[:, k] @ items.T / 0.7 ** (2 - k)
        weight = 0.6 / (len(early) if reduction == "mean" else 1) if k in early else 1.0
        if k in early:
            expected = expected + weight * F.cross_entropy(logits, target - 1)
        for row in range(3):
            near = [int(HISTORY[row, position[row]]), *graph[HISTORY[row, position[row]]].tolist()]
            known = [int(target[row])] + [item for item in near if item and item != int(target[row])]
            q = torch.softmax(-torch.arange(len(known)) / (0.8 * (2 - k + 1)), dim=0)
            log_p = torch.log_softmax(logits[row, [item - 1 for item in known]], dim=0)
            expected = expected + 0.3 * weight * (q * (q.log() - log_p)).sum() / 3
    assert float(made(HISTORY, LAST).loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_without_weight_the_teacher_is_supervision_of_every_step(tiny: Dataset) -> None:
    every = model(tiny, supervision="every", cooling=0.7)
    silent = model(tiny, supervision="teacher", cooling=0.7, teacher_weight=0.0)
    target = torch.tensor([[5, 1, 2, 0], [4, 3, 0, 0], [2, 4, 5, 6]])
    assert torch.equal(every(HISTORY, target).loss, silent(HISTORY, target).loss)
    taught = model(tiny, supervision="teacher", cooling=0.7, teacher_weight=0.5)
    assert float(taught(HISTORY, target).loss.detach()) > float(every(HISTORY, target).loss.detach())


@pytest.mark.parametrize("kind", [ReaRec, LARES])
def test_a_taught_model_learns_neighbours_it_was_not_asked_for(tiny: Dataset, kind: Any) -> None:
    made = model(tiny, kind, steps=2, supervision="teacher", teacher_weight=2.0, teacher_neighbours=3, dropout=0.0)
    near = item_graph(tiny, 3)[5]
    far = [item for item in range(1, NUM_ITEMS + 1) if item not in (*near.tolist(), 5, 6)]
    optimiser = torch.optim.Adam(made.parameters(), lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        made.train()(HISTORY, LAST).loss.backward()
        optimiser.step()
    scores = made.eval().score(HISTORY[2:])[0].detach()
    near = [item for item in near.tolist() if item and item != 6]
    assert near
    assert scores.argmax() == 5  # item 6, the target
    assert float(scores[[item - 1 for item in near]].mean()) > float(scores[[item - 1 for item in far]].mean()) + 1


def test_the_graph_is_no_part_of_a_saved_model(tiny: Dataset, tmp_path: Any) -> None:
    made = model(tiny, supervision="teacher")
    made.save_pretrained(tmp_path)
    again = ReaRec.from_pretrained(tmp_path).eval()
    assert "neighbours" not in again.state_dict()
    assert torch.equal(again.score(HISTORY), made.score(HISTORY))
