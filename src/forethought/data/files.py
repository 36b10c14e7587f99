"""Text files: their bytes, their lines, their header."""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

from forethought.data.formats import Table
from forethought.data.workspace import Workspace
from forethought.errors import DataError

_DELIMITERS = ("\t", ",", ";", "|")
GZIP = b"\x1f\x8b"


@contextmanager
def long_fields() -> Iterator[None]:
    """Inside, the fields that :mod:`csv` reads may be as long as they like, as DuckDB's may."""
    before = csv.field_size_limit(2**31 - 1)  # a C long is no longer than this on Windows
    try:
        yield
    finally:
        csv.field_size_limit(before)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unzipped where it is gzip.

    Raises:
        DataError: the file cannot be opened, or its gzip is truncated or damaged; also in reading on.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == GZIP
        with cast(BinaryIO, gzip.open(path)) if zipped else path.open("rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is a truncated or damaged gzip file ({error}); fetch or pack it again.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def plain(path: Path, workspace: Workspace) -> Path:
    """The file itself, or its unzipped copy in the scratch folder.

    DuckDB reads a cut-off gzip up to the cut without a word; unzipping first checks its length and checksum.

    Raises:
        DataError: the gzip is truncated or damaged, or the file is empty or binary.
        ArtefactError: there is no room for the copy.
    """
    refuse_binary(path)
    with path.open("rb") as file:
        if file.read(2) != GZIP:
            return path
    target = workspace.folder / f"unzipped-{path.stem}"
    with workspace.limits(), target.open("wb") as copy, opened(path) as source:
        while block := source.read(1 << 20):
            with workspace.limits():  # what opened() catches it says of the source
                copy.write(block)
    return target


def refuse_binary(path: Path) -> None:
    """Refuse files that are empty, UTF-16, or hold zero bytes, which no text format here has."""
    with opened(path) as file:
        head = file.read(1 << 16)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16 text; convert it to UTF-8.")
    if not head.strip():
        raise DataError(f"{path} is empty; it needs at least one line with an event.")
    if b"\0" in head:
        raise DataError(f"{path} is a binary file and not Parquet or DuckDB; give a text, Parquet or DuckDB file.")


def head_lines(path: Path, count: int, encoding: str = "utf-8") -> list[str]:
    """The first lines that are not blank, for looking at; broken bytes become U+FFFD.

    Raises:
        DataError: the file cannot be read, is empty or binary.
    """
    refuse_binary(path)
    with opened(path) as file:
        head = file.read(1 << 20)
    lines = re.split(r"\r\n|\n|\r", head.decode(encoding, "replace").removeprefix("\ufeff"))
    lines = [line for line in lines if line.strip()][:count]
    if not lines:
        raise DataError(f"{path} is empty; it needs at least one line with an event.")
    return lines


def find_delimiter(line: str) -> str | None:
    """The delimiter of a header line: tab, comma, semicolon or bar, whichever comes most often."""
    best = max(_DELIMITERS, key=line.count)
    return best if best in line else None


def header(path: Path, table: Table) -> tuple[list[str], str]:
    """Column names and delimiter of a delimited file.

    Raises:
        DataError: a name stands there twice.
    """
    first = head_lines(path, 1, table.encoding)[0]
    delimiter = table.delimiter or find_delimiter(first) or ","
    if table.names is not None:
        return list(table.names), delimiter
    if len(delimiter) > 1 or not table.quoted:
        names = first.split(delimiter)
    else:
        with long_fields():
            names = next(csv.reader([first], delimiter=delimiter), [])
    names = [name.split(":")[0] for name in names] if table.typed_header else names
    refuse_twice(path, names)
    return names, delimiter


def refuse_twice(source: object, names: Iterable[str]) -> None:
    """Raise a DataError where a column name stands twice."""
    names = list(names)
    seen: set[str] = set()
    for name in names:
        if name in seen:
            _refuse_numbers(source, names)
            raise DataError(f"{source} has the column {name!r} twice; rename one of them.")
        seen.add(name)


def require(source: object, names: Iterable[str], columns: Mapping[str, str]) -> None:
    """Refuse where a wanted column is absent."""
    names = list(names)
    options = {"time": " (or --time-column none to keep the order of the file)"}
    for role, column in columns.items():
        if column not in names:
            _refuse_numbers(source, names)
            found = ", ".join(names[:20]) or "none"
            raise DataError(
                f"{source} has no column {column!r} for the {role}; its columns are {found}; "
                f"name the right one with --{role}-column{options.get(role, '')}."
            )


def _refuse_numbers(source: object, names: list[str]) -> None:
    """Where columns of a file do not fit and are all called by numbers, its first line is no header."""
    if isinstance(source, Path) and names and all(name.strip().isdecimal() for name in names):
        raise DataError(
            f"{source} begins with {', '.join(names[:20])} and not with names of columns; put a line such as "
            "user,item,timestamp first, or name a format without one, such as --format user-item."
        )


def is_python_literal(line: str) -> bool:
    """Whether a line is a Python dict, as the older Amazon and Steam files have, and not JSON."""
    return line.lstrip().startswith(("{'", "{u'", '{u"'))


def joined(text: str, errors: Literal["strict", "replace"] = "strict") -> str:
    """The text with each two halves of a character (surrogates, as JSON and Python 2 escape it) made one.

    Args:
        text: read from a file.
        errors: what a half alone does: raise, or become U+FFFD.

    Raises:
        UnicodeDecodeError: a half stands alone, so that this is no text.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", errors)


def numbered_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their number from 1.

    Raises:
        DataError: the gzip is truncated or damaged, or a line is not text.
    """
    number = 0
    with opened(path) as file:
        try:
            for number, line in enumerate(file, 1):
                text = _decode(line, encoding)
                if text.strip():
                    yield number, text.removeprefix("\ufeff") if number == 1 else text
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number} is not {encoding} text; convert the file to UTF-8.") from error


def _decode(line: bytes, encoding: str) -> str:
    """UTF-8 where it is; a format known as latin-1 has UTF-8 files too (MovieLens-10M)."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode(encoding)
