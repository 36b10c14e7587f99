"""Files into the workspace: one table a log, its columns named by role, its rows in the file's order."""

from __future__ import annotations

import ast
import contextlib
import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from forethought.data.files import (
    head_lines,
    header,
    is_python_literal,
    numbered_lines,
    opened,
    plain,
    refuse_binary,
    refuse_twice,
    require,
)
from forethought.data.formats import Table
from forethought.data.workspace import Workspace
from forethought.errors import DataError

ROWS_AT_ONCE = 200_000
_PAIRS = Table("csv", " ", ("user", "item"), quoted=False)
_FIELD = re.compile(r"[^ \t\r\n\v\f]+")  # an id may hold other white space, such as a no-break space


@dataclass
class Staged:
    """A log as it was found, open to queries but not yet checked.

    Attributes:
        table: columns by role (user, item, and where known time, rating, action, session, part), and ``row`` (int64) in
            a table of another engine that names an order.
        source: what to call it in a message.
        columns: role to the column's own name.
        ordered: whether the rows of ``table`` have an order of their own.
        line: the line of a row in the source, or None where there are no lines.
        rejected: after the table was read, how many lines could not be, by reason.
    """

    table: ir.Table
    source: str
    columns: Mapping[str, str]
    ordered: bool = True
    line: Callable[[int], int] | None = None
    rejected: Callable[[], dict[str, int]] = dict

    def place(self, row: int | None) -> str:
        """``row 3 (line 4)`` for the third row of a file with a header line."""
        if row is None:
            return "an unknown row"
        line = None if self.line is None else self.line(row)
        return f"row {row + 1}" if line is None else f"row {row + 1} (line {line})"


def stage(
    workspace: Workspace, paths: list[Path], table: Table, columns: Mapping[str, str], *, drop: bool = False
) -> Staged:
    """Open a log in the workspace; what is wrong inside the file shows in reading on, under :func:`explained`.

    Args:
        workspace: where to.
        paths: the file, or for Parquet and ``preferdiff`` the files.
        table: how they are written.
        columns: role to column name; unused by the layouts whose lines have no columns.
        drop: leave malformed lines out and count them instead of raising.

    Raises:
        DataError: the file cannot be read as this layout.
    """
    if table.layout == "csv":
        return _stage_csv(workspace, paths[0], table, columns, drop)
    if table.layout == "jsonl":
        return _stage_json(workspace, paths[0], columns, drop)
    if table.layout == "parquet":
        return _stage_parquet(workspace, paths, columns)
    if table.layout == "duckdb":
        return _stage_duckdb(workspace, paths[0], columns)
    if table.layout == "user-item" and not drop:
        with contextlib.suppress(duckdb.Error):
            return _stage_pairs(workspace, paths[0])
    return _stage_lines(workspace, paths, table, drop)


@contextlib.contextmanager
def explained(workspace: Workspace, path: Path, table: Table) -> Iterator[None]:
    """Say in one sentence what is wrong with the file that is being read.

    Raises:
        DataError: the file is not what it should be.
        ArtefactError: memory or the scratch folder ran out.
    """
    try:
        yield
    except duckdb.Error as error:
        ours = isinstance(error, duckdb.IOException) and any(
            str(workspace.folder / name) in str(error) for name in ("work", "spill")
        )
        if ours or isinstance(error, duckdb.OutOfMemoryException):  # not the file's fault
            with workspace.limits():
                raise
        if table.layout == "jsonl":
            refuse_malformed_json(path)  # DuckDB's own line number may be one off
        raise DataError(_sentence(path, error)) from error
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from error


def _select(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{quoted(name)} AS {quoted(role)}" for role, name in columns.items())


def quoted(name: str) -> str:
    """A column name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _view(workspace: Workspace, columns: Mapping[str, str], scan: str) -> ir.Table:
    """A scan, with its columns named by role. Reading a file twice costs less than keeping it as text."""
    workspace.sql(f"CREATE OR REPLACE VIEW raw AS SELECT {_select(columns)} FROM {scan}")
    return workspace.table("raw")


def _stage_csv(workspace: Workspace, path: Path, table: Table, columns: Mapping[str, str], drop: bool) -> Staged:
    file = plain(path, workspace)
    names, delimiter = header(path, table)
    require(path, names, columns)
    types = ", ".join(f"{_text(name)}: 'VARCHAR'" for name in names)
    quote = '"' if table.quoted else ""
    rejects = ", ignore_errors = true, store_rejects = true" if drop else ""
    scan = (
        f"read_csv({_text(str(file))}, auto_detect = false, columns = {{{types}}}, header = {table.names is None}, "
        f"delim = {_text(delimiter)}, quote = {_text(quote)}, escape = {_text(quote)}, "
        f"encoding = {_text(table.encoding)}{rejects})"
    )

    def rejected() -> dict[str, int]:
        lines = workspace.sql("SELECT count(DISTINCT line) FROM reject_errors")[0][0] if drop else 0
        return {"malformed line": int(lines)} if lines else {}

    def line(row: int) -> int:
        if not table.quoted:  # a record is a line
            return next(itertools.islice(filled_lines(file), row + (table.names is None), None))
        with file.open(encoding=table.encoding, errors="replace", newline="") as text:
            records = csv.reader(text, delimiter=delimiter)
            filled = (record for record in records if record)
            next(itertools.islice(filled, row + (table.names is None), None), None)
            return records.line_num

    return Staged(_view(workspace, columns, scan), str(path), columns, line=line, rejected=rejected)


def filled_lines(path: Path) -> Iterator[int]:
    """The numbers, from 1, of lines that are not blank."""
    with opened(path) as file:
        yield from (number for number, line in enumerate(file, 1) if line.strip())


def refuse_malformed_json(path: Path) -> None:
    """Refuse the first line that is not JSON."""
    for number, line in numbered_lines(path):
        try:
            json.loads(line)
        except (ValueError, RecursionError) as error:
            said = f"{path}, line {number} is not JSON: {line[:60]!r}; mend it or use --on-error drop."
            raise DataError(said) from error


def _stage_json(workspace: Workspace, path: Path, columns: Mapping[str, str], drop: bool) -> Staged:
    first = head_lines(path, 1)[0]
    if is_python_literal(first):
        return _stage_python(workspace, path, columns, drop)
    file = plain(path, workspace)
    try:
        keys = json.loads(first, object_pairs_hook=lambda pairs: [key for key, _ in pairs])
    except (ValueError, RecursionError):
        keys = None
    if not isinstance(keys, list) or not first.lstrip().startswith("{"):
        raise DataError(
            f"{path} is not JSON lines: it begins with {first[:60]!r}; every line has to be one JSON object."
        )
    refuse_twice(path, keys)
    require(path, keys, columns)
    types = ", ".join(f"{_text(name)}: 'VARCHAR'" for name in dict.fromkeys(columns.values()))
    scan = f"read_json({_text(str(file))}, format = 'newline_delimited', columns = {{{types}}}, ignore_errors = {drop})"

    def line(row: int) -> int:
        return next(itertools.islice(filled_lines(file), row, None))

    return Staged(_view(workspace, columns, scan), str(path), columns, line=line)


def _stage_parquet(workspace: Workspace, paths: list[Path], columns: Mapping[str, str]) -> Staged:
    for path in paths:
        try:
            names = pq.read_schema(path).names
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} is not a readable Parquet file ({str(error).splitlines()[0]}).") from error
        refuse_twice(path, names)
        require(path, names, columns)
    files = ", ".join(_text(str(path)) for path in paths)
    source = paths[0] if len(paths) == 1 else paths[0].parent
    return Staged(_view(workspace, columns, f"read_parquet([{files}])"), str(source), columns)


def _stage_duckdb(workspace: Workspace, path: Path, columns: Mapping[str, str]) -> Staged:
    workspace.sql(f"ATTACH {_text(str(path))} AS source (READ_ONLY)")
    tables = workspace.sql("SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = 'source'")
    if len(tables) != 1:
        found = ", ".join(name for _, name in tables) or "none"
        raise DataError(f"{path} has to hold one table, found {found}; pass one through Interactions.from_table.")
    name = ".".join(quoted(part) for part in ("source", *tables[0]))
    require(path, [row[0] for row in workspace.sql(f"DESCRIBE {name}")], columns)
    return Staged(_view(workspace, columns, name), str(path), columns)


def _stage_python(workspace: Workspace, path: Path, columns: Mapping[str, str], drop: bool) -> Staged:
    def rows() -> Iterator[tuple[Any, ...]]:
        for number, line in numbered_lines(path):
            try:
                record = ast.literal_eval(line)
                yield (*(None if record.get(name) is None else str(record[name]) for name in columns.values()), number)
            except (ValueError, SyntaxError, AttributeError, MemoryError, RecursionError) as error:
                if not drop:
                    raise DataError(f"{path}, line {number} is no Python dict: {line[:60]!r}.") from error
                dropped["malformed line"] = dropped.get("malformed line", 0) + 1

    dropped: dict[str, int] = {}
    try:
        first = ast.literal_eval(head_lines(path, 1)[0])
        names = list(first)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise DataError(f"{path} is no file of Python dicts: its first line cannot be read as one.") from error
    require(path, names, columns)
    return _stage_rows(workspace, path, rows(), [(role, pa.string()) for role in columns], columns, dropped)


def _stage_pairs(workspace: Workspace, path: Path) -> Staged:
    """The quick way for lines of just two fields and one space; DuckDB raises at any other line."""
    staged = _stage_csv(workspace, path, _PAIRS, {"user": "user", "item": "item"}, drop=False)
    odd = workspace.sql("SELECT 1 FROM raw WHERE regexp_matches(concat(\"user\", item), '\\s') OR item IS NULL LIMIT 1")
    if odd:
        raise duckdb.InvalidInputException("a field holds white space")
    return staged


def _stage_lines(workspace: Workspace, paths: list[Path], table: Table, drop: bool) -> Staged:
    dropped: dict[str, int] = {}
    parts = ("train", "valid", "test")

    def malformed(path: Path, number: int, said: str) -> None:
        if not drop:
            raise DataError(f"{path}, line {number} {said}.")
        dropped["malformed line"] = dropped.get("malformed line", 0) + 1

    def rows() -> Iterator[tuple[Any, ...]]:
        user = 0
        for part, path in zip(parts, paths, strict=False):
            for number, line in numbered_lines(path):
                fields = _FIELD.findall(line)
                if table.layout == "preferdiff":
                    user += 1
                    for item in fields:
                        yield str(user), item, part, number
                elif table.layout == "user-item":
                    if len(fields) == 2:
                        yield fields[0], fields[1], number
                    else:
                        malformed(path, number, f"has {len(fields)} fields where 'user item' has two")
                elif len(fields) > 1:
                    for item in fields[1:]:
                        yield fields[0], item, number
                else:
                    malformed(path, number, f"has the user {fields[0]!r} and no item")

    for path in paths:
        refuse_binary(path)
    roles = ["user", "item", *(["part"] if table.layout == "preferdiff" else [])]
    columns = {"user": "user", "item": "item"}
    return _stage_rows(workspace, paths[0], rows(), [(role, pa.string()) for role in roles], columns, dropped)


def _stage_rows(
    workspace: Workspace,
    path: Path,
    rows: Iterator[tuple[Any, ...]],
    fields: list[tuple[str, pa.DataType]],
    columns: Mapping[str, str],
    dropped: dict[str, int],
) -> Staged:
    schema = pa.schema([*fields, ("line", pa.int64())])
    types = ", ".join(f"{quoted(name)} {'BIGINT' if name == 'line' else 'VARCHAR'}" for name in schema.names)
    workspace.sql(f"DROP VIEW IF EXISTS raw; CREATE TABLE raw ({types})")
    while batch := list(itertools.islice(rows, ROWS_AT_ONCE)):
        columns_here = zip(schema, zip(*batch, strict=True), strict=True)
        chunk = pa.table([pa.array(values, field.type) for field, values in columns_here], schema=schema)
        workspace.backend.con.register("chunk", chunk)
        workspace.sql("INSERT INTO raw SELECT * FROM chunk")
        workspace.backend.con.unregister("chunk")

    def line(row: int) -> int:
        return int(workspace.sql("SELECT line FROM raw WHERE rowid = ?", [row])[0][0])

    return Staged(workspace.table("raw").drop("line"), str(path), columns, line=line, rejected=lambda: dropped)


def _sentence(path: Path, error: duckdb.Error) -> str:
    """DuckDB's report as one sentence."""
    said = str(error)
    line = re.search(r"CSV Error on Line: (\d+)", said) or re.search(r"line (\d+)", said)
    where = f"{path}, line {line.group(1)}" if line else str(path)
    counts = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", said)
    if counts:
        expected, got = counts.groups()
        return f"{where} has {got} fields where the header has {expected}; mend it or use --on-error drop."
    said = re.sub(r"^[A-Z][A-Za-z ]+Error: (CSV Error on Line: \d+\s*)?", "", said)
    lines = (part.strip() for part in said.splitlines())
    reason = next((part for part in lines if part and not part.startswith("Original Line")), type(error).__name__)
    return f"{where} cannot be read: {reason.rstrip('.:')}; mend it or use --on-error drop."
