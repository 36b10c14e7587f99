"""Models whose items are made of text: one table a pass, whole when saved, and able to rank what was never bought."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forethought.data.batches import TrainingExamples
from forethought.data.dataset import Dataset
from forethought.data.text import FILE, TextVectors, item_texts, text_digest
from forethought.errors import DataError, RecipeError
from forethought.nn.text_items import TextEmbedding, WhiteningExperts
from forethought.recommenders.latent.lares import LARES, LARESConfig
from forethought.recommenders.latent.rearec import ReaRec, ReaRecConfig
from forethought.recommenders.models import build, read_recipe, save_model
from forethought.recommenders.run import Run, train

from ..logs import NUM_ITEMS, make_dataset

HISTORY = torch.tensor([[2, 5, 1, 0], [3, 4, 0, 0], [1, 2, 4, 5]])
TARGET = torch.tensor([[5, 1, 2, 0], [4, 3, 0, 0], [2, 4, 5, 6]])


def model(tiny: Dataset, kind: Any = ReaRec, **options: Any) -> Any:
    config = ReaRecConfig if kind is ReaRec else LARESConfig
    torch.manual_seed(0)
    made = kind(config(num_items=NUM_ITEMS, max_length=4, hidden_size=8, experts=3, **{"items": "text", **options}))
    made.observe(tiny)
    return made.eval()


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many items each reading of the text was of."""
    read: list[int] = []
    original = WhiteningExperts.forward

    def counted(self: WhiteningExperts, text: torch.Tensor) -> torch.Tensor:
        read.append(len(text))
        return original(self, text)

    monkeypatch.setattr(WhiteningExperts, "forward", counted)
    return read


@pytest.mark.parametrize("items", ["text", "both"])
def test_a_pass_reads_the_text_once(tiny: Dataset, tables: list[int], items: str) -> None:
    made = model(
        tiny, items=items, supervision="teacher", readout="mean", kl_weight=0.1, contrast_weight=0.1, steps=3
    ).train()
    loss = made(HISTORY, TARGET).loss
    assert tables == [NUM_ITEMS]
    loss.backward()
    embedding = made.embedding
    assert isinstance(embedding, TextEmbedding)
    assert all(bool(own.grad.abs().sum() > 0) for own in embedding.parameters())
    assert not embedding.text.requires_grad


@pytest.mark.parametrize("objective", ["thought", "released"])
def test_the_second_phase_reads_the_text_once_too(tiny: Dataset, tables: list[int], objective: str) -> None:
    made = model(tiny, LARES, post_objective=objective, post_rollouts=3, post_candidates=0).train()
    made.start_post_training()
    dropped = made.embedding.adaptor.dropout.p
    tables.clear()
    made(HISTORY, TARGET).loss.backward()
    assert tables == [NUM_ITEMS] * 2  # its own, and the frozen copy's
    assert made.embedding.training
    assert bool(made.embedding.adaptor.weight.grad.abs().sum() > 0)
    made.end_post_training()
    assert made.embedding.adaptor.dropout.p == dropped == made.config.text_dropout


def test_outside_training_the_text_is_read_once_for_all_batches(tiny: Dataset, tables: list[int]) -> None:
    made = model(tiny)
    with torch.no_grad():
        first = made.score(HISTORY)
        assert torch.equal(made.score(HISTORY), first)
        made.recommend(HISTORY)
    assert tables == [NUM_ITEMS]


@pytest.mark.parametrize("items", ["text", "both"])
def test_a_model_folder_alone_scores_bit_for_bit(tiny: Dataset, tmp_path: Path, items: str) -> None:
    recipe = read_recipe({"model": {"type": "rearec", "items": items, "hidden_size": 8, "max_length": 4}})
    made = build(recipe, tiny).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_model(made, tiny.catalog, tmp_path / "model")
    again = Run.open(tmp_path / "model").model
    assert torch.equal(again.score(HISTORY), made.score(HISTORY))
    assert again.embedding.text.dtype == torch.float16
    assert torch.equal(again.embedding.text, made.embedding.text)
    assert (again.config.text_size, again.config.text_encoder) == (12, "drawn")


def test_items_of_one_text_are_one_unless_they_have_ids(tiny: Dataset) -> None:
    for items, alike in (("text", True), ("both", False)):
        made = model(tiny, items=items)
        made.embedding.text[3] = made.embedding.text[4]
        vectors = made.item_vectors()
        assert bool(torch.equal(vectors[3], vectors[4])) == alike


def test_data_that_was_not_embedded_is_refused(tmp_path: Path) -> None:
    bare = make_dataset([[1, 2, 3]], [[4, 5]], 5).save(tmp_path / "bare")
    with pytest.raises(DataError, match=r"bare has no vectors of its items' text .*'forethought data embed .*bare'"):
        build(read_recipe({"model": {"type": "rearec", "items": "text"}}), bare)


def test_a_run_goes_on_only_with_the_vectors_it_began_with(tiny: Dataset, tmp_path: Path) -> None:
    assert tiny.path is not None
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny.path, data)
    recipe = {
        "model": {"type": "rearec", "items": "text", "hidden_size": 8, "max_length": 4},
        "data": {"path": str(data)},
        "training": {"epochs": 1, "batch_size": 4},
    }
    run = train(recipe, out=out, quiet=True, device="cpu")
    assert run.info["text_encoder"] == "drawn"
    (out / "run.json").write_text(json.dumps({**run.info, "status": "interrupted"}))
    known = TextVectors.open(tiny)
    TextVectors(known.vectors[:, :7], "another", known.text_sha256).save(data)
    with pytest.raises(DataError, match=r"was begun with text vectors of drawn, and .*data now has those of another"):
        train(recipe, out=out, resume=True, quiet=True, device="cpu")
    known.save(data)
    assert train(recipe, out=out, resume=True, quiet=True, device="cpu").info["status"] == "finished"


@pytest.mark.parametrize(("key", "value"), [("experts", 0), ("text_dropout", 1.0), ("items", "words")])
def test_settings_that_mean_nothing(tiny: Dataset, key: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=key):
        build(read_recipe({"model": {"type": "rearec", key: value}}), tiny)


def series(folder: Path) -> tuple[Dataset, list[list[int]]]:
    """Four series of eight items. A user buys within one of them; the last item of each is never bought in training."""
    draws = np.random.default_rng(0)
    groups = [list(range(8 * g + 1, 8 * g + 9)) for g in range(4)]
    training = [draws.permutation(groups[user % 4][:7])[:5].tolist() for user in range(80)]
    dataset = make_dataset(training, [[] for _ in training], 32)
    dataset.manifest["counts"]["test"] = 0
    dataset = dataset.save(folder)
    centres = draws.normal(size=(4, 12))
    vectors = np.repeat(centres, 8, axis=0) + 0.3 * draws.normal(size=(32, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert dataset.path is not None
    TextVectors(vectors.astype(np.float16), "drawn", text_digest(item_texts(dataset.catalog))).save(dataset.path)
    return dataset, groups


def test_text_ranks_an_item_that_was_never_bought(tmp_path: Path) -> None:
    """By ids an unbought item is pushed to the end of every list; by text it stands with those it is like."""
    dataset, groups = series(tmp_path / "data")
    cold = torch.tensor([group[-1] for group in groups])
    history = torch.tensor([group[:4] for group in groups])
    batch = TrainingExamples(dataset, 5)[np.arange(80)]
    ranks = {}
    for items in ("id", "text", "both"):
        torch.manual_seed(0)
        config = ReaRecConfig(
            num_items=32, max_length=5, hidden_size=16, num_blocks=1, steps=1, items=items, experts=4, dropout=0.2
        )
        made = ReaRec(config).train()
        made.observe(dataset)
        optimiser = torch.optim.Adam(made.parameters(), lr=0.01)
        for _ in range(80):
            optimiser.zero_grad()
            made(**batch).loss.backward()
            optimiser.step()
        with torch.no_grad():
            scores = made.eval().score(history).scatter(1, history - 1, float("-inf"))
        own = scores.gather(1, cold[:, None] - 1)
        ranks[items] = float((scores > own).sum(dim=1).float().mean() + 1)
    assert ranks["text"] <= 4  # four of the series are left, and it is one of them
    assert ranks["id"] >= 8
    assert ranks["text"] < ranks["both"] < ranks["id"]


def test_the_vectors_travel_with_the_model_and_not_with_the_data(tiny: Dataset, tmp_path: Path) -> None:
    made = model(tiny)
    made.save_pretrained(tmp_path)
    assert not (tmp_path / FILE).exists()
    again = ReaRec.from_pretrained(tmp_path).eval()
    assert torch.equal(again.score(HISTORY), made.score(HISTORY))
