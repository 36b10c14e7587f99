"""What is known of the items, from a file beside the log."""

from __future__ import annotations

import csv
import json
from ast import literal_eval
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from forethought.data.detection import guess_table
from forethought.data.files import header, is_python_literal, joined, long_fields, numbered_lines, refuse_twice
from forethought.data.formats import Table
from forethought.errors import DataError

_GUESSES = {
    "id": ("id", "item", "item_id", "movieId", "parent_asin", "asin", "business_id", "product_id"),
    "title": ("title", "name", "movie_title"),
    "categories": ("categories", "genres", "category", "genre", "class"),
    "text": ("text", "description"),
}


@dataclass(frozen=True)
class ItemSource:
    """A table with one row an item.

    Attributes:
        source: the file, or an Arrow table.
        table: how the file is written; None means it is found out.
        columns: role (id, title, categories, text) to column name; empty means the usual names are looked for.
    """

    source: Path | pa.Table
    table: Table | None = None
    columns: Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        return str(self.source) if isinstance(self.source, Path) else "the item table"


def describe(ids: pa.Array, source: ItemSource | None) -> tuple[pa.Table, dict[str, Any]]:
    """Title, categories and text of each item.

    Args:
        ids: the items' own ids.
        source: where they are described; None gives the ids alone.

    Returns:
        A table with ``id`` and, where known, ``title``, ``categories``, ``text``; and what the manifest says: the
        source, of how many items it tells more than the id, and of how many it does not.

    Raises:
        DataError: the file cannot be read, has no id column, or has one that nobody named and another that knows more
            items of the log.
    """
    columns: dict[str, pa.Array] = {"id": ids}
    if source is None:
        return pa.table(columns), {}
    names, records = _records(source)
    roles = _roles(source, names)
    rows = {str(value): row for row, value in enumerate(ids.to_pylist())}
    found: dict[str, list[Any]] = {role: [None] * len(ids) for role in roles if role != "id"}
    spaced = isinstance(source.source, Path) and source.source.suffix == ".item"  # RecBole parts lists by spaces
    seen: set[int] = set()
    described = 0
    named = "id" in (source.columns or {})
    rivals: dict[str, set[int]] = {} if named else {name: set() for name in names if name != roles["id"]}
    for record in records:
        for name, value in record.items():
            if name in rivals and isinstance(value, (str, int)) and str(value) in rows:
                rivals[name].add(rows[str(value)])
        row = rows.get(str(record.get(roles["id"])))
        if row is None or row in seen:  # the first description of an item counts
            continue
        seen.add(row)
        for role, values in found.items():
            value = record.get(roles[role])
            values[row] = _categories(value, spaced) if role == "categories" else _text(value)
        described += any(values[row] for values in found.values())
    rival = max(rivals, key=lambda name: len(rivals[name]), default=None)
    if rival is not None and len(rivals[rival]) > len(seen):
        raise DataError(
            f"{source.name}: of the log's {len(ids):,} items {len(seen):,} are in column {roles['id']!r} and "
            f"{len(rivals[rival]):,} in {rival!r}; name the one that has their ids with --items-id."
        )
    if not seen:
        example = ", ".join(str(value) for value in ids[:3].to_pylist())
        raise DataError(
            f"{source.name}, column {roles['id']!r}: no id there is an item of the log, whose ids look like {example}; "
            "name the right column with --items-id."
        )
    for role, values in found.items():
        columns[role] = pa.array(values, pa.list_(pa.string()) if role == "categories" else pa.string())
    return pa.table(columns), {"source": source.name, "described": described, "not_described": len(ids) - described}


def _records(source: ItemSource) -> tuple[list[str], Iterable[Mapping[str, Any]]]:
    if isinstance(source.source, pa.Table):
        return source.source.column_names, source.source.to_pylist()
    path = source.source
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise DataError(f"{path} {found}; --items needs a file with one row an item.")
    table = source.table or guess_table(path)
    if table.layout == "parquet":
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} is not a readable Parquet file ({str(error).splitlines()[0]}).") from error
        refuse_twice(path, file.schema_arrow.names)
        return file.schema_arrow.names, _parquet_rows(path, file)
    if table.layout == "csv":
        names, delimiter = header(path, table)
        refuse_twice(path, names)
        return names, _delimited(path, table, names, delimiter)
    if table.layout == "jsonl":
        return list(dict.fromkeys(key for record in _objects(path) for key in record)), _objects(path)
    raise DataError(f"{path} is no item table; give CSV, TSV, Parquet or JSON lines.")


def _parquet_rows(path: Path, file: pq.ParquetFile) -> Iterator[Mapping[str, Any]]:
    try:
        for batch in file.iter_batches():
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{path} is a damaged Parquet file ({reason}); fetch or write it again.") from error


def _delimited(path: Path, table: Table, names: list[str], delimiter: str) -> Iterator[Mapping[str, Any]]:
    begun: list[int] = []  # the lines of the row that is being read

    def lines() -> Iterator[str]:
        for number, line in numbered_lines(path, table.encoding):
            begun.append(number)
            yield line

    if table.quoted and len(delimiter) == 1:
        rows: Iterator[list[str]] = csv.reader(lines(), delimiter=delimiter, strict=True)
    else:
        rows = (line.rstrip("\r\n").split(delimiter) for line in lines())
    try:
        with long_fields():
            for place, row in enumerate(rows):
                if len(row) != len(names):
                    advice = f"put text that holds {delimiter!r} in double quotes" if table.quoted else "mend it"
                    raise DataError(
                        f"{path}, line {begun[0]} has {len(row)} fields where there are {len(names)} columns; {advice}."
                    )
                begun.clear()
                if place or table.names is not None:
                    yield dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {begun[0]} cannot be read ({error}); close the quotes that are open, "
            "and double those that belong to the text."
        ) from error


def _objects(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in numbered_lines(path):
        try:
            record = literal_eval(line) if is_python_literal(line) else json.loads(line)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {line[:60]!r}.") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number} is not a JSON object: {line[:60]!r}.")
        yield record


def _roles(source: ItemSource, names: list[str]) -> dict[str, str]:
    roles = {role: name for role, name in (source.columns or {}).items() if name in names}
    for role, guesses in _GUESSES.items():
        wanted = (source.columns or {}).get(role)
        if role not in roles and wanted is None:
            known = [guess for guess in guesses if guess in names]
            roles.update({role: known[0]} if known else {})
    if "id" not in roles:
        wanted = (source.columns or {}).get("id", "item")
        found = ", ".join(map(str, names[:20]))
        raise DataError(f"{source.name} has no column {wanted!r} for the item id; its columns are {found}.")
    return roles


def _text(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        value = " ".join(_plain(part) for part in value if part is not None)
    return _plain(value).strip() or None if value is not None else None


def _plain(value: Any) -> str:
    return joined(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value), "replace")


def _categories(value: Any, spaced: bool = False) -> list[str]:
    """A list, a list of paths, or names parted by ``|``, a comma, or else by spaces where they are; each name once."""
    if value is None:
        return []
    if isinstance(value, (str, bytes)):
        value = _plain(value)
        delimiter = "|" if "|" in value else " " if spaced and "," not in value else ","
        value = [] if value == "(no genres listed)" else value.split(delimiter)
    flat: list[str] = []
    for part in value if isinstance(value, (list, tuple)) else [value]:
        flat.extend(_categories(part) if isinstance(part, (list, tuple)) else [_text(part) or ""])
    return [name for name in dict.fromkeys(flat) if name]
