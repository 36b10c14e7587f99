"""Which format a file or a folder is."""

from __future__ import annotations

import json
import re
from ast import literal_eval
from pathlib import Path

from forethought.data.files import find_delimiter, head_lines, is_python_literal, opened
from forethought.data.formats import FORMATS, Format, Table
from forethought.errors import DataError

# the names of their files tell nothing, the content does
GENERIC = (
    "csv", "tsv", "parquet", "jsonl", "duckdb",
    "amazon-2018", "amazon-2018-ratings", "amazon-2023", "amazon-2023-ratings",
)  # fmt: skip
_UNIX_TIME = re.compile(r"[1-9]\d{8,9}(\.\d+|\d{3})?")  # in seconds or milliseconds, after 1973
PARTS = (("user-split-train", "user-split-valid", "user-split-test"), ("train_data", "valid_data", "test_data"))


def locate(path: Path, name: str = "auto") -> tuple[Format, list[Path]]:
    """The format and the files of a log.

    Args:
        path: a file or a folder.
        name: a format's name, or ``auto``.

    Raises:
        DataError: the path does not exist, the name is unknown, or the folder is no data set.
    """
    if name != "auto" and name not in FORMATS:
        raise DataError(f"There is no format {name!r}; choose auto, {', '.join(FORMATS)}.")
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    if not path.is_dir() and not path.is_file():  # what flows is read once, and a log several times
        raise DataError(f"{path} is no regular file; save the log to one first.")
    if path.is_dir():
        found, file = _in_folder(path, name)
    else:
        file = path
        found = FORMATS[name] if name != "auto" else _of_file(path)
    if found.table.layout == "preferdiff":
        return found, _three_parts(file)
    if found.table.layout == "parquet" and path.is_dir():
        return found, sorted(path.glob("*.parquet"))
    return found, [file]


def item_file(form: Format, events: Path) -> Path | None:
    """The file beside the events that describes the items, where the format has one."""
    found = [file for pattern in form.item_files for file in sorted(events.parent.glob(pattern)) if file != events]
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(f"{events.parent} holds several item files ({names}); name one with --items.")
    return found[0] if found else None


def _in_folder(folder: Path, name: str) -> tuple[Format, Path]:
    if (folder / "manifest.json").is_file():
        raise DataError(f"{folder} is a prepared data folder already; give the log it was made from.")
    forms = [FORMATS[name]] if name != "auto" else [form for form in FORMATS.values() if form.name not in GENERIC]
    found = _matches(folder, forms)
    if not found and name == "auto":
        found = _matches(folder, [FORMATS[generic] for generic in GENERIC])
    if len(found) == 1 or {form.name for form in found.values()} == {"parquet"}:
        file, form = next(iter(found.items()))
        return _of_file(file) if name == "auto" else form, file  # a name may fit two formats, the content fits one
    if found:
        names = ", ".join(f"{file.name} ({form.name})" for file, form in found.items())
        raise DataError(f"{folder} holds several data sets: {names}; give one of the files, or choose with --format.")
    kind = "" if name == "auto" else f" of format {name}"
    raise DataError(f"{folder} is not a data set{kind}: no file in it is known.")


def _matches(folder: Path, forms: list[Format]) -> dict[Path, Format]:
    """Files that may hold the events, each with the first of the formats that its name fits."""
    items = {file for form in forms for pattern in form.item_files for file in folder.glob(pattern)}
    found: dict[Path, Format] = {}
    for form in forms:
        for file in sorted(file for pattern in form.files for file in folder.glob(pattern)):
            if file.is_file() and file not in items:
                found.setdefault(file, form)
    return found


def _three_parts(file: Path) -> list[Path]:
    for stems in PARTS:
        if any(file.name.startswith(f"{stem}.") for stem in stems):
            ending = file.name[file.name.index(".") :]
            paths = [file.with_name(stem + ending) for stem in stems]
            missing = [path for path in paths if not path.is_file()]
            if missing:
                needed = ", ".join(path.name for path in paths)
                raise DataError(f"{missing[0]} does not exist; a user split needs {needed}.")
            return paths
    expected = " or ".join(f"{stems[0]}.txt" for stems in PARTS)
    raise DataError(f"{file} is no user split; its files are called {expected}, and likewise for valid and test.")


def _of_file(path: Path) -> Format:
    with opened(path) as file:
        magic = file.read(12)
    if magic[:4] == b"PAR1":
        return FORMATS["parquet"]
    if magic[8:12] == b"DUCK":
        return FORMATS["duckdb"]
    lines = head_lines(path, 50)
    first = lines[0]
    if any(path.name.startswith(f"{stem}.") for stems in PARTS for stem in stems):
        return FORMATS["preferdiff"]
    if re.match(r"\s*\[\s*(\{|$)", first):
        raise DataError(f"{path} is one JSON array; write each of its objects on a line of its own (JSON lines).")
    if first.lstrip().startswith("{"):
        return _by_signature(_keys(first), "jsonl")
    delimiter = find_delimiter(first)
    if delimiter is None and "::" in first:
        return FORMATS["movielens-dat"]
    if delimiter is None:
        _refuse_columns(path, lines)
        pairs = all(len(line.split()) == 2 for line in lines)
        return FORMATS["user-item" if pairs else "user-sequence"]
    names = first.split(delimiter)
    if all(":" in name for name in names) and "user_id:token" in names:
        return FORMATS["recbole"]
    if path.match("ratings_*.csv*") and len(names) == 4 and names[3].strip().isdigit():
        return FORMATS["amazon-2014-ratings"]
    return _by_signature([name.strip('"') for name in names], "csv")


def _refuse_columns(path: Path, lines: list[str]) -> None:
    """Refuse what looks like columns parted by spaces, and would be read as sequences of items."""
    rows = [line.split() for line in lines]
    names = {name.lower().removesuffix("id").removesuffix("_") for name in rows[0]}
    if {"user", "item"} <= names:
        found = f"begins with {' '.join(rows[0][:20])!r}, which are names of columns"
    elif all(len(row) in (3, 4) and _UNIX_TIME.fullmatch(row[-1]) for row in rows):
        found = f"has lines such as {lines[0].strip()[:60]!r}, which end in a time"
    else:
        return
    raise DataError(
        f"{path} is parted by spaces and {found}; save it with a line of names and commas or tabs, or say with "
        "--format user-item or --format user-sequence that all but the first of a line are items."
    )


def _keys(line: str) -> list[str]:
    try:
        record = literal_eval(line) if is_python_literal(line) else json.loads(line)
        return list(record) if isinstance(record, dict) else []
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []


def _by_signature(names: list[str], layout: str) -> Format:
    known = [form for form in FORMATS.values() if form.table.layout == layout and form.signature]
    fitting = [form for form in known if set(form.signature) <= set(names)]
    return max(fitting, key=lambda form: len(form.signature), default=FORMATS[layout])


def guess_table(path: Path) -> Table:
    """How a file of items is written, by its name or else by its content."""
    for form in FORMATS.values():
        if form.item_table is not None and any(path.match(pattern) for pattern in form.item_files):
            return form.item_table
    return _of_file(path).table
