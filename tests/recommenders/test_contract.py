"""What every recommender promises, whatever it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from forethought.data.dataset import Dataset
from forethought.errors import ArtefactError, DataError
from forethought.recommenders import MODELS, model_class
from forethought.recommenders.base import Recommender, newest
from forethought.recommenders.counting import CountingRecommender
from forethought.recommenders.models import open_model, save_model
from forethought.training.checkpoints import seal

from .logs import NUM_ITEMS

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "markov": [{"transitions": "all"}, {"transitions": "last"}],
    "sasrec": [
        {"hidden_size": 8},
        {"hidden_size": 8, "norm": "original", "loss": "gbce", "negatives": 4},
        {"hidden_size": 8, "loss": "sampled", "negatives": 4, "similarity": "cosine"},
    ],
    "rearec": [
        {"hidden_size": 8, "readout": "mean", "kl_weight": 0.05},
        {"hidden_size": 8, "supervision": "every", "cooling": 1.5, "contrast_weight": 1.0, "norm": "post"},
        {"hidden_size": 8, "readout": "gate", "kl_weight": 0.05, "kl_form": "paper", "similarity": "cosine"},
        {"hidden_size": 8, "adapter": "concat"},
        {"hidden_size": 8, "steps": 0, "trajectory_weight": 0.1},
        {"hidden_size": 8, "backbone": "bert4rec", "supervision": "every", "kl_weight": 0.05},
        {"hidden_size": 8, "supervision": "teacher", "cooling": 0.67},
        {"hidden_size": 8, "items": "text", "readout": "mean", "kl_weight": 0.05, "experts": 3},
        {"hidden_size": 8, "items": "both", "contrast_weight": 0.5, "similarity": "cosine", "text_dropout": 0.0},
    ],
    "lares": [
        {"hidden_size": 8, "trajectory_weight": 0.1, "step_alignment_weight": 0.1},
        {"hidden_size": 8, "items": "both", "supervision": "teacher", "step_alignment_weight": 0.1},
        {"hidden_size": 8, "start": "normal", "adapter": "add", "core_norm": True, "norm": "post", "test_draws": 3},
        {"hidden_size": 8, "start": "normal_zero", "adapter": "concat", "readout": "dual", "depth": "uniform"},
        {"hidden_size": 8, "start": "zero", "adapter": "gated", "readout": "mean", "similarity": "cosine"},
    ],
    "prefergrow": [
        {"hidden_size": 8, "kernel": "pair"},
        {"hidden_size": 8, "kernel": "point", "guidance": 2.0},
        {"hidden_size": 8, "kernel": "hybrid", "encoder": "paper", "score_method": "untied"},
        {"hidden_size": 8, "kernel": "popularity", "head": "mlp", "item_bias": False},
        {"hidden_size": 8, "kernel": "adaptive", "parametrization": "marginal"},
        {"hidden_size": 8, "kernel": "block", "num_groups": 3, "parametrization": "marginal"},
    ],
}
CASES = [
    pytest.param((name, settings), id=f"{name}-{number}")
    for name in MODELS
    for number, settings in enumerate(SETTINGS.get(name, [{}]))
]
HISTORY = torch.tensor([[2, 5, 1, 0, 0], [3, 0, 0, 0, 0], [1, 1, 4, 2, 6], [7, 6, 0, 0, 0]])


@pytest.fixture(params=CASES)
def model(request: pytest.FixtureRequest, tiny: Dataset) -> Recommender:
    name, settings = request.param
    torch.manual_seed(0)
    kind = model_class(name)
    made = kind(kind.config_class(num_items=NUM_ITEMS, max_length=4, **settings))
    made.observe(tiny)
    return made.eval()


def test_scores_every_item(model: Recommender) -> None:
    scores = model.score(newest(HISTORY, 4))
    assert scores.shape == (4, NUM_ITEMS)
    assert scores.dtype == torch.float32
    assert bool(scores.isfinite().all())
    assert len(scores[0].unique()) > 1  # it tells items apart


def test_what_is_longer_than_a_network_reads_is_refused(model: Recommender) -> None:
    if isinstance(model, CountingRecommender):
        assert model.score(HISTORY).shape == (4, NUM_ITEMS)  # it counts as much as there is
        return
    with pytest.raises(DataError, match=r"The histories are 5 items long, and the model reads 4 \(max_length\); cut"):
        model.score(HISTORY)


def test_padding_and_neighbours_do_not_change_a_score(model: Recommender) -> None:
    together = model.score(newest(HISTORY, 4))
    for row, history in enumerate(HISTORY):
        alone = newest(history[None, : int((history > 0).sum())], 4)
        assert_close(model.score(alone), together[row : row + 1])


def test_candidates_are_columns_of_all_scores(model: Recommender) -> None:
    history, scores = newest(HISTORY, 4), model.score(newest(HISTORY, 4))
    assert_close(model.score(history, torch.tensor([8, 1, 1])), scores[:, [7, 0, 0]])
    each = torch.tensor([[1, 2], [8, 3], [4, 4], [5, 6]])
    assert_close(model.score(history, each), scores.gather(1, each - 1))


def test_recommends_the_best_unseen(model: Recommender) -> None:
    scores = model.score(newest(HISTORY, 4))
    every = model.recommend(HISTORY, k=3, exclude_seen=False)
    assert_close(every.scores, scores.topk(3).values)
    assert_close(scores.gather(1, every.items - 1), every.scores)
    unseen = model.recommend(HISTORY, k=4)  # row 2 has seen four items, one of them beyond max_length
    for row, history in enumerate(HISTORY):
        seen = set(history.tolist()) - {0}
        assert not seen & set(unseen.items[row].tolist())
        left = scores[row].clone()
        left[[item - 1 for item in seen]] = float("-inf")
        assert_close(unseen.scores[row], left.topk(4).values)


def test_a_saved_model_scores_alike(model: Recommender, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = type(model).from_pretrained(tmp_path).eval()
    assert_close(again.score(HISTORY[:2, :3]), model.score(HISTORY[:2, :3]))
    assert again.config.to_dict() == {**model.config.to_dict(), "_name_or_path": again.config._name_or_path}
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_folder_with_other_weights_is_refused(model: Recommender, tiny: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(model, tiny.catalog, folder)
    again, _ = open_model(folder, None)
    assert_close(again.score(HISTORY[:2, :3]), model.score(HISTORY[:2, :3]))
    weights = load_file(folder / "model.safetensors")
    name, value = next(iter(weights.items()))
    others = {key: kept for key, kept in weights.items() if key != name}
    more = {**weights, "other": value.clone()}
    for changed, wrong in ((others, f"{name} are missing"), (more, "other are unexpected")):
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        (folder / "files.json").unlink()
        seal(folder)
        with pytest.raises(ArtefactError, match=rf"model cannot be opened as a model: the weights {wrong}; train"):
            open_model(folder, None)


def test_inner_products_are_the_scores(model: Recommender) -> None:
    if not model.inner_product:
        with pytest.raises(NotImplementedError):
            model.query(HISTORY)
        return
    product = model.query(newest(HISTORY, 4)) @ model.item_vectors().T
    assert_close(product, model.score(newest(HISTORY, 4)))


def test_a_thought_has_states_and_answers(model: Recommender) -> None:
    thought = model.think(newest(HISTORY, 4))
    assert thought.states.shape[:2] == thought.mask.shape
    assert len(thought.states) == 4
    assert bool((thought.lengths >= 1).all())
    assert thought.answers is not None
    assert thought.answers.shape == (*thought.mask.shape, NUM_ITEMS)


def test_the_loss_falls_or_there_is_none(model: Recommender) -> None:
    history = newest(HISTORY, 4)
    target = torch.where(history > 0, history % NUM_ITEMS + 1, 0)
    if isinstance(model, CountingRecommender):
        with pytest.raises(NotImplementedError, match="counting"):
            model(history, target)
        return
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)

    def mean_loss(count: int) -> float:
        with torch.no_grad():
            return sum(model(history, target).loss.item() for _ in range(count)) / count

    torch.manual_seed(1)
    before = mean_loss(30)
    for _ in range(60):
        optimiser.zero_grad()
        model(history, target).loss.backward()
        optimiser.step()
    torch.manual_seed(1)
    assert mean_loss(30) < before
    model.eval()  # no dropout
    torch.manual_seed(2)
    mean = model(history, target).loss
    torch.manual_seed(2)
    assert_close(model(history, target, num_targets=2 * (target > 0).sum()).loss, mean / 2)
