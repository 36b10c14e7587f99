"""What is wrong with a file that DuckDB will not read, as one sentence."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import duckdb

from forethought.data.files import numbered_lines, opened
from forethought.data.formats import Table
from forethought.data.workspace import Workspace
from forethought.errors import DataError

_MOST = 2_000_000  # bytes of a line that DuckDB reads


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
        if workspace.ran_out(error):
            with workspace.limits():
                raise
        if table.layout == "jsonl":
            refuse_malformed_json(path)  # DuckDB's own line number may be one off
        raise DataError(_sentence(path, error)) from error
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from error


def unclosed(where: str) -> str:
    """The sentence on a quote that is not closed; ``where`` is the file and the line."""
    return (
        f"{where} opens a quote that is not closed at the end of its field; "
        "remove it, or double it where it belongs to the text."
    )


def refuse_malformed_json(path: Path) -> None:
    """Refuse the first line that is no JSON object."""
    for number, line in numbered_lines(path):
        reason: Exception | None = None
        try:
            record = json.loads(line)
            json.dumps(record, ensure_ascii=False).encode()  # half a character is none
        except (ValueError, RecursionError) as error:
            record, reason = None, error
        if not isinstance(record, dict):
            said = f"{path}, line {number} is not a JSON object: {line[:60]!r}; mend it or use --on-error drop."
            raise DataError(said) from reason


def _sentence(path: Path, error: duckdb.Error) -> str:
    """DuckDB's report as one sentence."""
    said = str(error)
    line = re.search(r"CSV Error on Line: (\d+)", said) or re.search(r"line (\d+)", said)
    where = f"{path}, line {line.group(1)}" if line else str(path)
    if line and "Maximum line size" in said and _is_long(path, int(line.group(1))):
        return f"{where} is longer than {_MOST:,} bytes; shorten it or use --on-error drop."
    if re.search("unterminated quote|Maximum line size", said):
        return unclosed(where)
    if "state machine" in said and (odd := _odd_line_end(path)):
        return f"{path}, {odd}; end all lines in LF or CR LF."
    counts = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", said)
    if counts:
        expected, got = counts.groups()
        return f"{where} has {got} fields where the header has {expected}; mend it or use --on-error drop."
    said = re.sub(r"^[A-Z][A-Za-z ]+Error: (CSV Error on Line: \d+\s*)?", "", said)
    lines = (part.strip() for part in said.splitlines())
    reason = next((part for part in lines if part and not part.startswith("Original Line")), type(error).__name__)
    advice = "mend it or use --on-error drop" if line else "mend the file, or fetch or write it again"
    return f"{where} cannot be read: {reason.rstrip('.:')}; {advice}."


def _is_long(path: Path, number: int) -> bool:
    """Whether a line by itself is longer than DuckDB reads, each of its quotes closed."""
    with opened(path) as file:
        line = next(itertools.islice(file, number - 1, None), b"")
    return len(line) > _MOST and line.count(b'"') % 2 == 0


def _odd_line_end(path: Path) -> str | None:
    """The first line that ends otherwise than it should or than the first one does, outside quotes."""
    names = {13: "CR", 10: "LF"}
    number, first, in_quotes = 0, b"", False
    with opened(path) as file:
        for block in file:
            for mark in re.findall(rb'"|\r*\n|\r', block):
                if mark == b'"':
                    in_quotes = not in_quotes
                    continue
                number, first = number + 1, first or mark
                if not in_quotes and (mark != first or len(mark) > 2):
                    end, usual = (" ".join(map(names.__getitem__, each)) for each in (mark, first))
                    return f"line {number} ends in {end}" + (f" and line 1 in {usual}" if number > 1 else "")
    return None
