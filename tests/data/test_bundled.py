"""The bundled data set is small, whole, and stands under its notice."""

from __future__ import annotations

from pathlib import Path

import pyarrow.csv
import pytest

from forethought.data.bundled import bundled_path
from forethought.data.interactions import Interactions

NAME = "movielens-latest-small"


def test_size_and_notice() -> None:
    folder = bundled_path(NAME)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 1_500_000
    notice = " ".join((folder / "NOTICE").read_text().split())
    for condition in (
        "endorsement", "Harper", "Konstan", "commercial", "redistribute", "same conditions", "without warranty",
        "How they were converted", "NOT under the licence of this package",
    ):  # fmt: skip
        assert condition in notice


def test_it_is_prepared_with_titles_and_ratings(tmp_path: Path) -> None:
    dataset = Interactions.read(f"bundled:{NAME}").prepare(tmp_path / "out")
    counts = dataset.manifest["counts"]
    assert (counts["users"], counts["items"], counts["events"]) == (610, 9_724, 100_836)
    assert dataset.catalog.title(dataset.catalog.item(1)) == "Toy Story (1995)"
    assert dataset.catalog.categories(dataset.catalog.item(1))[:2] == ["Adventure", "Animation"]
    assert dataset.sequences.ratings is not None
    assert dataset.manifest["provenance"]["items"]["not_described"] == 0


@pytest.mark.data
def test_it_is_the_original(shared_data: Path) -> None:
    original = Interactions.read(shared_data / NAME).prepare()
    bundled = Interactions.read(f"bundled:{NAME}").prepare()
    assert original.fingerprint == bundled.fingerprint
    columns = original.catalog.table.column_names
    assert original.catalog.table.equals(bundled.catalog.table.select(columns))
    assert original.catalog.table["title"].null_count == 0
    assert pyarrow.csv.read_csv(shared_data / NAME / "ratings.csv").num_rows == 100_836
