"""What is known of the items: their own ids, titles, categories, text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from forethought.errors import DataError


class Catalog:
    """Items 1..N and what is known of them, one row an item.

    The table has a column ``id`` (string or int64, unique) and, where known, ``title`` (string), ``categories``
    (list of string), ``text`` (string) and ``count`` (int64, occurrences in training).
    """

    def __init__(self, table: pa.Table) -> None:
        if "id" not in table.column_names:
            raise DataError(f"An item catalogue needs a column 'id'; found {', '.join(table.column_names)}.")
        self.table = table.combine_chunks()
        self._rows: dict[str, int] | None = None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __contains__(self, own_id: object) -> bool:
        return str(own_id) in self._by_id()

    @property
    def ids(self) -> pa.Array:
        """The items' own ids; row r is item r + 1."""
        column = self.table["id"]
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)

    def item(self, own_id: object) -> int:
        """The item 1..N of a user's own id (the id or its text).

        Raises:
            DataError: the id is not in the catalogue.
        """
        row = self._by_id().get(str(own_id))
        if row is None:
            example = ", ".join(str(value) for value in self.ids[:3].to_pylist())
            raise DataError(
                f"Item {own_id!r} is not in the catalogue of {len(self)} items; its ids look like {example}."
            )
        return row + 1

    def _by_id(self) -> dict[str, int]:
        if self._rows is None:
            self._rows = {str(value): row for row, value in enumerate(self.ids.to_pylist())}
        return self._rows

    def encode(self, own_ids: Iterable[object]) -> npt.NDArray[np.int64]:
        """Own ids to items 1..N; int64 of the same length."""
        return np.array([self.item(own_id) for own_id in own_ids], dtype=np.int64)

    def decode(self, items: Sequence[int] | npt.NDArray[Any]) -> list[Any]:
        """Items 1..N to own ids."""
        rows = np.asarray(items, dtype=np.int64) - 1
        return list(self.ids.take(pa.array(rows)).to_pylist())

    def title(self, item: int) -> str:
        """The item's title, or its own id where no title is known."""
        row = int(item) - 1
        if "title" in self.table.column_names:
            title = self.table["title"][row].as_py()
            if title:
                return str(title)
        return str(self.ids[row].as_py())

    def categories(self, item: int) -> list[str]:
        """The item's categories; empty where none are known."""
        if "categories" not in self.table.column_names:
            return []
        return list(self.table["categories"][int(item) - 1].as_py() or [])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``items.parquet``."""
        pq.write_table(self.table, path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Catalog:
        """Read ``items.parquet``.

        Raises:
            DataError: the file is missing or not Parquet.
        """
        try:
            return cls(pq.read_table(Path(path)))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read as an item catalogue: {error}.") from error
