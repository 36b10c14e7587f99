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

from forethought.data.explaining import unclosed
from forethought.data.files import (
    head_lines,
    header,
    is_python_literal,
    joined,
    long_fields,
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
_LOOKED_AT = 1000  # lines of JSON whose keys are the columns
_PLAIN = "hive_partitioning = false"  # or a folder called item=7 would be a column
_TEXT = f"{_PLAIN}, compression = 'uncompressed'"  # whatever the file's name: what is packed was unpacked
_IDS = ("user", "item", "session")
_DROP = "mend the file, or use --on-error drop to leave such rows out and count them"
_NO_ID = "an id that is no text or number"
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


def _select(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{quoted(name)} AS {quoted(role)}" for role, name in columns.items())


def quoted(name: str) -> str:
    """A column name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _file(path: Path) -> str:
    """A path as SQL writes it where it might be a pattern of many."""
    return _text(re.sub(r"[*?[]", r"[\g<0>]", str(path)))


def _view(workspace: Workspace, columns: Mapping[str, str], scan: str) -> ir.Table:
    """A scan, with its columns named by role. Reading a file twice costs less than keeping it as text."""
    workspace.sql(f"CREATE OR REPLACE VIEW raw AS SELECT {_select(columns)} FROM {scan}")
    return workspace.table("raw")


def _stage_csv(workspace: Workspace, path: Path, table: Table, columns: Mapping[str, str], drop: bool) -> Staged:
    file = plain(path, workspace)
    names, delimiter = header(path, table)
    require(path, names, columns)
    # by place, for DuckDB takes names that differ in case alone for one
    types = ", ".join(f"'column{place}': 'VARCHAR'" for place in range(len(names)))
    places = {role: f"column{names.index(name)}" for role, name in columns.items()}
    quote = '"' if table.quoted else ""
    rejects = ", ignore_errors = true, store_rejects = true" if drop else ""
    scan = (
        f"read_csv({_file(file)}, {_TEXT}, auto_detect = false, columns = {{{types}}}, "
        f"header = {table.names is None}, delim = {_text(delimiter)}, quote = {_text(quote)}, "
        f"escape = {_text(quote)}, encoding = {_text(table.encoding)}{rejects})"
    )

    def rejected() -> dict[str, int]:
        return _rejected_lines(workspace, path, file, table, delimiter) if drop else {}

    def line(row: int) -> int:
        if not table.quoted:  # a record is a line
            return next(itertools.islice(filled_lines(file), row + (table.names is None), None))
        with file.open(encoding=table.encoding, errors="replace", newline="") as text, long_fields():
            records = csv.reader(text, delimiter=delimiter)
            filled = (record for record in records if record)
            next(itertools.islice(filled, row + (table.names is None), None), None)
            return records.line_num

    return Staged(_view(workspace, places, scan), str(path), columns, line=line, rejected=rejected)


def _rejected_lines(workspace: Workspace, path: Path, file: Path, table: Table, delimiter: str) -> dict[str, int]:
    """How many lines DuckDB left out, by reason; a record of several lines counts each of them.

    Raises:
        DataError: a quote that is not closed swallowed lines, for DuckDB does not say how many.
    """
    swallowing = "error_type IN ('UNQUOTED VALUE', 'LINE SIZE OVER MAXIMUM')"
    suspects = {line for (line,) in workspace.sql(f"SELECT DISTINCT line FROM reject_errors WHERE {swallowing}")}
    if suspects:  # the line that DuckDB keeps may be another one where its buffers meet, so the file is asked
        with file.open(encoding=table.encoding, errors="replace") as text:
            for number, line in enumerate(text, 1):
                if number in suspects and _ends_in_quotes(line, delimiter):
                    raise DataError(unclosed(f"{path}, line {number}"))
    counts = workspace.sql(
        "SELECT unread, sum(lines)::BIGINT FROM (SELECT max(error_type = 'INVALID ENCODING') AS unread, "
        "max(1 + len(regexp_extract_all(trim(csv_line, chr(10) || chr(13)), '\\r\\n|\\r|\\n'))) AS lines "
        "FROM reject_errors GROUP BY line) GROUP BY unread ORDER BY unread"
    )
    return {"text that is not UTF-8" if unread else "malformed line": int(lines) for unread, lines in counts}


def _ends_in_quotes(line: str, delimiter: str) -> bool:
    try:
        with long_fields():
            next(csv.reader([line], delimiter=delimiter, strict=True), None)
    except csv.Error as error:
        return "expected after" not in str(error)  # that would be text behind a quote that is closed
    return False


def filled_lines(path: Path) -> Iterator[int]:
    """The numbers, from 1, of lines that are not blank."""
    with opened(path) as file:
        yield from (number for number, line in enumerate(file, 1) if line.strip())


def _stage_json(workspace: Workspace, path: Path, columns: Mapping[str, str], drop: bool) -> Staged:
    lines = head_lines(path, _LOOKED_AT)
    if is_python_literal(lines[0]):
        return _stage_python(workspace, path, columns, drop)
    file = plain(path, workspace)
    keys = _json_keys(lines[0])
    if keys is None:
        raise DataError(
            f"{path} is not JSON lines: it begins with {lines[0][:60]!r}; every line has to be one JSON object."
        )
    refuse_twice(path, keys)
    require(path, dict.fromkeys(key for line in lines for key in _json_keys(line) or ()), columns)
    names = list(dict.fromkeys(columns.values()))
    objects = f"read_json_objects({_file(file)}, {_TEXT}, format = 'newline_delimited', ignore_errors = true)"
    pointers = [_text("/" + columns[role].replace("~", "~0").replace("/", "~1")) for role in _IDS if role in columns]
    odd = " OR ".join(f"json_type(json, {pointer}) IN ('OBJECT', 'ARRAY', 'BOOLEAN')" for pointer in pointers)
    fits = f"coalesce(json_type(json) = 'OBJECT' AND NOT coalesce({odd}, false), false)"
    if drop:  # read_json would give rows of nulls for what is no object
        kinds = _text(json.dumps(dict.fromkeys(names, "VARCHAR"), ensure_ascii=False))
        scan = f"(SELECT unnest(json_transform(json, {kinds})) FROM {objects} WHERE {fits})"
    else:
        types = ", ".join(f"{_text(name)}: 'VARCHAR'" for name in names)
        scan = f"read_json({_file(file)}, {_TEXT}, format = 'newline_delimited', columns = {{{types}}})"

    def rejected() -> dict[str, int]:
        if not drop:
            return {}
        query = f"SELECT count(*), count(*) FILTER (json_type(json) = 'OBJECT') FROM {objects} WHERE NOT {fits}"
        lines, odd_ids = workspace.sql(query)[0]
        counts = {"malformed line": int(lines - odd_ids), _NO_ID: int(odd_ids)}
        return {reason: count for reason, count in counts.items() if count}

    def line(row: int) -> int:
        return next(itertools.islice(filled_lines(file), row, None))

    staged = Staged(_view(workspace, columns, scan), str(path), columns, line=line, rejected=rejected)
    looks = " OR ".join(f"regexp_matches({quoted(role)}, '^([{{[]|true$|false$)')" for role in _IDS if role in columns)
    if not drop and workspace.sql(f"SELECT 1 FROM raw WHERE {looks} LIMIT 1"):  # it may be text that looks so
        _refuse_json_ids(path, columns)
    return staged


def _json_keys(line: str) -> list[str] | None:
    """The keys of a JSON object, or None."""
    try:
        keys = json.loads(line, object_pairs_hook=lambda pairs: [key for key, _ in pairs])
    except (ValueError, RecursionError):
        return None
    return keys if isinstance(keys, list) and line.lstrip().startswith("{") else None


def _refuse_json_ids(path: Path, columns: Mapping[str, str]) -> None:
    """Refuse the first id that is an object, a list or a boolean."""
    for number, line in numbered_lines(path):
        with contextlib.suppress(json.JSONDecodeError, RecursionError):  # DuckDB refuses that line when it reads it
            record = json.loads(line)
            if isinstance(record, dict):
                _refuse_odd_id(path, number, record, columns)


def _odd_id(record: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    """The first column whose value is an object, a list or a boolean where it has to be an id."""
    names = (columns[role] for role in _IDS if role in columns)
    return next((name for name in names if isinstance(record.get(name), (dict, list, tuple, set, bool))), None)


def _refuse_odd_id(path: Path, number: int, record: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    name = _odd_id(record, columns)
    if name is not None:
        found = repr(record[name])[:60]
        raise DataError(
            f"{path}, line {number}, column {name!r}: {found} is no id, which is text or a number; {_DROP}."
        )


def _stage_parquet(workspace: Workspace, paths: list[Path], columns: Mapping[str, str]) -> Staged:
    for path in paths:
        try:
            names = pq.read_schema(path).names
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} is not a readable Parquet file ({str(error).splitlines()[0]}).") from error
        refuse_twice(path, names)
        require(path, names, columns)
        for name in columns.values():
            alike = [other for other in names if other.lower() == name.lower()]
            if len(alike) > 1:  # DuckDB would take the first
                raise DataError(f"{path} has columns that differ in case alone ({', '.join(alike)}); rename one.")
    first = _kinds(paths[0], columns)
    for path in paths[1:]:
        for name, kind in _kinds(path, columns).items():
            whole = pa.types.is_integer(kind) and pa.types.is_integer(first[name])
            if kind != first[name] and not whole and not pa.types.is_null(kind):  # DuckDB would take the first file's
                raise DataError(
                    f"{path}, column {name!r} holds {kind} and in {paths[0].name} {first[name]}; "
                    "write all parts with the same types."
                )
    files = ", ".join(_file(path) for path in paths)
    source = paths[0] if len(paths) == 1 else paths[0].parent
    return Staged(_view(workspace, columns, f"read_parquet([{files}], {_PLAIN})"), str(source), columns)


def _kinds(path: Path, columns: Mapping[str, str]) -> dict[str, pa.DataType]:
    """The types of the columns in a Parquet file, of those that stand for text one alone."""
    schema = pq.read_schema(path)
    kinds: dict[str, pa.DataType] = {}
    for name in columns.values():
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        kinds[name] = pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind
    return kinds


def _stage_duckdb(workspace: Workspace, path: Path, columns: Mapping[str, str]) -> Staged:
    with opened(path) as file:
        if file.read(12)[8:] != b"DUCK":
            raise DataError(f"{path} is no DuckDB file; leave --format out or choose another.")
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
                values = [record.get(name) for name in columns.values()]
                if _odd_id(record, columns) is not None:
                    if not drop:
                        _refuse_odd_id(path, number, record, columns)
                    dropped[_NO_ID] = dropped.get(_NO_ID, 0) + 1
                    continue
                yield (*(None if value is None else joined(str(value)) for value in values), number)
            except DataError:
                raise
            except (ValueError, SyntaxError, AttributeError, MemoryError, RecursionError) as error:
                if not drop:
                    raise DataError(f"{path}, line {number} is no Python dict of text: {line[:60]!r}.") from error
                dropped["malformed line"] = dropped.get("malformed line", 0) + 1

    dropped: dict[str, int] = {}
    try:
        first, *others = head_lines(path, _LOOKED_AT)
        names = list(ast.literal_eval(first))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise DataError(f"{path} is no file of Python dicts: its first line cannot be read as one.") from error
    for other in others:
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            names.extend(ast.literal_eval(other))
    require(path, dict.fromkeys(names), columns)
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
