"""Own ids and items 1..N, and what is known of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from forethought.data.catalog import Catalog
from forethought.errors import DataError


@pytest.fixture
def catalog() -> Catalog:
    return Catalog(pa.table({"id": [10, 20, 30], "title": ["Alpha", None, ""], "categories": [["x", "y"], None, []]}))


def test_ids_and_items(catalog: Catalog) -> None:
    assert catalog.encode([30, "10", 20]).tolist() == [3, 1, 2]
    assert catalog.decode([3, 1]) == [30, 10]
    assert len(catalog) == 3
    with pytest.raises(DataError, match="Item 40 is not in the catalogue of 3 items; its ids look like 10, 20, 30"):
        catalog.item(40)


def test_titles_fall_back_on_ids(catalog: Catalog) -> None:
    assert [catalog.title(item) for item in (1, 2, 3)] == ["Alpha", "20", "30"]
    assert [catalog.categories(item) for item in (1, 2, 3)] == [["x", "y"], [], []]
    bare = Catalog(pa.table({"id": ["a"]}))
    assert (bare.title(1), bare.categories(1)) == ("a", [])


def test_it_comes_back(catalog: Catalog, tmp_path: Path) -> None:
    catalog.save(tmp_path / "items.parquet")
    assert Catalog.open(tmp_path / "items.parquet").table.equals(catalog.table)
    (tmp_path / "items.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as an item catalogue"):
        Catalog.open(tmp_path / "items.parquet")
    with pytest.raises(DataError, match="cannot be read as an item catalogue"):
        Catalog.open(tmp_path / "absent.parquet")
    with pytest.raises(DataError, match="needs a column 'id'; found x"):
        Catalog(pa.table({"x": [1]}))
