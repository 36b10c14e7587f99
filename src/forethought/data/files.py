"""Text files: their bytes, their lines, their header."""

from __future__ import annotations

import csv
import gzip
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

from forethought.data.formats import Table
from forethought.data.workspace import Workspace
from forethought.errors import DataError

_DELIMITERS = ("\t", ",", ";", "|")
BINARY = "is a binary file and not Parquet or DuckDB; give a text, Parquet or DuckDB file"


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, unzipped where it is gzip."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path)) if zipped else path.open("rb")


def plain(path: Path, workspace: Workspace) -> Path:
    """The file itself, or its unzipped copy in the scratch folder.

    DuckDB reads a cut-off gzip up to the cut without a word; unzipping first checks its length and checksum.

    Raises:
        DataError: the gzip is truncated or damaged, or the file is binary.
    """
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            refuse_binary(path)
            return path
    target = workspace.folder / f"{len(list(workspace.folder.iterdir()))}-{path.stem}"
    try:
        with gzip.open(path) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is a truncated or damaged gzip file ({error}); fetch or pack it again.") from error
    refuse_binary(target, path)
    return target


def refuse_binary(path: Path, name: Path | None = None) -> None:
    """Refuse files that are empty or hold zero bytes, which no text format here has."""
    with open_bytes(path) as file:
        head = file.read(1 << 16)
    if not head.strip():
        raise DataError(f"{name or path} is empty; it needs at least one line with an event.")
    if b"\0" in head:
        raise DataError(f"{name or path} {BINARY}.")


def head_lines(path: Path, count: int, encoding: str = "utf-8") -> list[str]:
    """The first lines of a file, for looking at; broken bytes become U+FFFD."""
    try:
        with open_bytes(path) as file:
            head = file.read(1 << 20)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is a truncated or damaged gzip file ({error}); fetch or pack it again.") from error
    return head.decode(encoding, "replace").removeprefix("\ufeff").splitlines()[:count]


def find_delimiter(line: str) -> str | None:
    """The delimiter of a header line: tab, comma, semicolon or bar, whichever comes most often."""
    best = max(_DELIMITERS, key=line.count)
    return best if best in line else None


def header(path: Path, table: Table) -> tuple[list[str], str]:
    """Column names and delimiter of a delimited file.

    Raises:
        DataError: a name stands there twice.
    """
    lines = head_lines(path, 1, table.encoding)
    first = lines[0] if lines else ""
    delimiter = table.delimiter or find_delimiter(first) or ","
    if table.names is not None:
        return list(table.names), delimiter
    if len(delimiter) > 1 or not table.quoted:
        names = first.split(delimiter)
    else:
        names = next(csv.reader([first], delimiter=delimiter), [])
    names = [name.split(":")[0] for name in names] if table.typed_header else names
    refuse_twice(path, names)
    return names, delimiter


def refuse_twice(source: object, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{source} has the column {name!r} twice; rename one of them.")
        seen.add(name)


def require(source: object, names: Iterable[str], columns: Mapping[str, str]) -> None:
    """Refuse where a wanted column is absent."""
    names = list(names)
    options = {"time": " (or --time-column none to keep the order of the file)"}
    for role, column in columns.items():
        if column not in names:
            found = ", ".join(names[:20]) or "none"
            raise DataError(
                f"{source} has no column {column!r} for the {role}; its columns are {found}; "
                f"name the right one with --{role}-column{options.get(role, '')}."
            )


def is_python_literal(line: str) -> bool:
    """Whether a line is a Python dict, as the older Amazon and Steam files have, and not JSON."""
    return line.lstrip().startswith(("{'", "{u'", '{u"'))


def numbered_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their number from 1.

    Raises:
        DataError: the gzip is truncated or damaged, or a line is not text.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, 1):
                text = line.decode(encoding)
                if text.strip():
                    yield number, text.removeprefix("\ufeff") if number == 1 else text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is a truncated or damaged gzip file ({error}); fetch or pack it again.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number} is not {encoding} text; convert the file to UTF-8.") from error
