"""The research data sets, with the counts their publishers give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forethought.data.dataset import Dataset
from forethought.data.interactions import Interactions

pytestmark = pytest.mark.data


def counts(dataset: Dataset) -> tuple[int, int, int]:
    found = dataset.manifest["counts"]
    return found["users"], found["items"], found["events"]


@pytest.mark.parametrize(
    ("name", "expected", "first"),
    [
        ("amazon-beauty", (22_363, 12_101, 198_502), [1, 2, 3, 4, 5]),
        ("amazon-toys", (19_412, 11_924, 167_597), None),
        ("amazon-sports", (35_598, 18_357, 296_337), None),
    ],
)
def test_amazon_sequences(
    name: str, expected: tuple[int, int, int], first: list[int] | None, shared_data: Path
) -> None:
    dataset = Interactions.read(shared_data / name / "sequences.txt.gz").prepare(split="leave-one-out")
    assert counts(dataset) == expected
    assert dataset.manifest["counts"]["test"] == expected[0]
    if first:
        assert dataset.catalog.decode(dataset.sequences.items[:5]) == first


@pytest.mark.parametrize(
    ("name", "rows", "items", "events"),
    [
        ("amazon-beauty", (17_890, 2_236, 2_237), 12_101, 162_150),
        ("amazon-toys", (15_529, 1_941, 1_942), 11_921, 138_444),
        ("amazon-sports", (28_478, 3_559, 3_561), 18_357, 256_598),
    ],
)
def test_preferdiff(name: str, rows: tuple[int, int, int], items: int, events: int, shared_data: Path) -> None:
    dataset = Interactions.read(shared_data / name, "preferdiff").prepare()
    assert counts(dataset) == (sum(rows), items, events)
    found = dataset.manifest["counts"]
    assert (found["valid"], found["test"]) == rows[1:]
    assert dataset.protocol == "user-split"
    lines = (shared_data / name / "user-split-test.txt").read_text().splitlines()
    targets = dataset.targets("test")
    assert dataset.catalog.decode(targets.items) == [int(line.split()[-1]) for line in lines]
    assert targets.lengths.tolist() == [len(line.split()) - 1 for line in lines]


def test_movielens_1m_in_the_order_of_most_papers(shared_data: Path) -> None:
    dataset = Interactions.read(shared_data / "movielens-1m" / "sequences-sasrec.txt.gz").prepare()
    assert counts(dataset) == (6_040, 3_416, 999_611)
    assert dataset.manifest["tie_rule"] == "row in the source"


def test_movielens_1m_titles_from_a_latin_1_file(shared_data: Path) -> None:
    folder = shared_data / "movielens-1m"
    columns: dict[str, Any] = {"user_column": "user_id", "item_column": "movie_id", "rating_column": "rating"}
    interactions = Interactions.read(
        folder / "interactions.csv.gz", time_column=None, items=folder / "movies.dat", **columns
    )
    dataset = interactions.prepare(k_core=5)
    assert counts(dataset) == (6_040, 3_416, 999_611)
    assert dataset.catalog.title(dataset.catalog.item(2693)) == "Trekkies (1997)"
    assert any("é" in title for title in dataset.catalog.table["title"].to_pylist())


def test_beauty_titles_by_the_column_of_their_ids(shared_data: Path) -> None:
    folder = shared_data / "amazon-beauty"
    dataset = Interactions.read(
        folder / "sequences.txt.gz", items=folder / "items.jsonl.gz", items_id="s3rec_item_id"
    ).prepare()
    assert dataset.manifest["provenance"]["items"]["described"] > 12_000
    assert dataset.catalog.title(dataset.catalog.item(9700)).startswith("Glow in the Dark Neon Nail Polish")
    assert dataset.catalog.categories(dataset.catalog.item(9700)) == ["Beauty", "Makeup", "Nails", "Nail Polish"]


def test_retailrocket_actions(shared_data: Path) -> None:
    dataset = Interactions.read(shared_data / "retailrocket" / "events.csv.gz", action_column="behavior").prepare()
    assert dataset.manifest["counts"]["events"] == 97_381
    assert dataset.manifest["counts"]["users"] == 2_174
    assert dataset.manifest["actions"] == ["buy", "cart", "view"]
