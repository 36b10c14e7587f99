"""Whatever is handed to the readers, the answer is a whole data set or one sentence, never another exception."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from forethought.data.formats import FORMATS
from forethought.data.interactions import Interactions
from forethought.errors import ForethoughtError

# more examples with FORETHOUGHT_FUZZ=2000
FUZZ = settings(
    max_examples=int(os.environ.get("FORETHOUGHT_FUZZ", "40")), deadline=None, suppress_health_check=list(HealthCheck)
)
pytestmark = pytest.mark.slow


def attempt(make: object, **options: object) -> None:
    """Read and prepare; a data set that comes out has to be consistent, an error has to be one sentence."""
    try:
        interactions = make(**options)  # type: ignore[operator]
        dataset = interactions.prepare()
    except ForethoughtError as error:
        message = str(error)
        assert message
        assert "\n" not in message.replace("\\n", ""), message
        event("refused")
        return
    event("read")
    dataset._check_shape()
    counts = dataset.manifest["counts"]
    assert counts["events"] == len(dataset.sequences.items) > 0
    assert counts["users"] == len(set(dataset.users.to_pylist()))
    assert counts["items"] == len(set(dataset.catalog.ids.to_pylist()))


def attempt_bytes(content: bytes, suffix: str, **options: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"log{suffix}"
        path.write_bytes(content)
        attempt(lambda **kept: Interactions.read(path, **kept), **options)


_SUFFIXES = st.sampled_from(
    [".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet", ".inter", ".dat", ".csv.gz", ".duckdb", ""]
)
_FORMATS = st.one_of(st.just("auto"), st.sampled_from([*FORMATS]))
_ON_ERROR = st.sampled_from(["fail", "drop"])
_VALUES = st.sampled_from(
    ["1", "2", "3", "-1", "0", "007", "+5", "1.0", "1e3", "a", "B00X", " 7", "", "é", "日本", '"q"', '"', '""', "'"]
    + ["NaN", "null", "None", "inf", "1577836800", "1577836800000", "2020-01-01", "2020-01-01T00:00:00Z", "2020-13-45"]
    + ["x y", "99999999999999999999", "\x00", "\x1a", "\u2028", "a,b", "{}", "[1]", "true", "\\"]
)
# mostly what a log holds, now and then one of the values above
_FIELD = st.integers(0, 30).flatmap(lambda rare: st.integers(1, 4).map(str) if rare else _VALUES)
_LINES = st.one_of(
    st.lists(st.lists(_VALUES, max_size=5), max_size=12),
    st.lists(st.tuples(_FIELD, _FIELD, _FIELD).map(list), min_size=8, max_size=25),
)


@given(st.binary(max_size=300), _SUFFIXES, _FORMATS, _ON_ERROR)
@FUZZ
def test_any_bytes(content: bytes, suffix: str, form: str, on_error: str) -> None:
    attempt_bytes(content, suffix, format=form, on_error=on_error)


@given(
    _LINES, st.sampled_from([",", "\t", " ", "::", ";", "|"]), st.sampled_from(["\n", "\r\n", "\r"]), _SUFFIXES,
    _FORMATS, _ON_ERROR, st.booleans(),
)  # fmt: skip
@FUZZ
def test_text_that_looks_like_a_log(
    lines: list[list[str]], delimiter: str, newline: str, suffix: str, form: str, on_error: str, header: bool
) -> None:
    head = [["user", "item", "timestamp"]] if header else []
    content = newline.join(delimiter.join(fields) for fields in head + lines).encode()
    attempt_bytes(content, suffix, format=form, on_error=on_error)


_ODD_VALUE = st.one_of(_VALUES, st.floats(), st.none(), st.booleans(), st.lists(st.integers(), max_size=2))
_JSON_VALUE = st.integers(0, 30).flatmap(lambda rare: st.integers(1, 4) if rare else _ODD_VALUE)
_RECORD = st.fixed_dictionaries({"user": _JSON_VALUE, "item": _JSON_VALUE, "timestamp": _JSON_VALUE})
_ODD_RECORD = st.dictionaries(st.sampled_from(["user", "item", "timestamp", "x"]), _JSON_VALUE)


@given(st.one_of(st.lists(_RECORD, min_size=8, max_size=20), st.lists(_ODD_RECORD, max_size=8)), _ON_ERROR)
@FUZZ
def test_json_lines(records: list[dict[str, object]], on_error: str) -> None:
    attempt_bytes("\n".join(json.dumps(record) for record in records).encode(), ".jsonl", on_error=on_error)


@given(st.one_of(st.binary(max_size=200), st.text('id,title12\n"{}:|é', max_size=80).map(str.encode)), _SUFFIXES)
@FUZZ
def test_any_item_file(content: bytes, suffix: str) -> None:
    log = pa.table({"user": [1] * 4, "item": [1, 2, 1, 2], "timestamp": [1, 2, 3, 4]})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"items{suffix}"
        path.write_bytes(content)
        attempt(lambda: Interactions.from_table(log, items=path))


@given(_LINES, st.integers(0, 400), st.integers(0, 400), st.integers(0, 255))
@FUZZ
def test_damaged_gzip(lines: list[list[str]], keep: int, where: int, byte: int) -> None:
    packed = bytearray(gzip.compress(b"user,item,timestamp\n" + "\n".join(",".join(line) for line in lines).encode()))
    packed[where % len(packed)] = byte
    attempt_bytes(bytes(packed[: max(keep, 1)]), ".csv.gz", on_error="drop")


_TYPES = [pa.int64(), pa.int8(), pa.uint64(), pa.float64(), pa.float32(), pa.string(), pa.large_string(), pa.bool_(),
          pa.timestamp("ns"), pa.timestamp("s", "UTC"), pa.date32(), pa.decimal128(10, 2), pa.list_(pa.int64()),
          pa.binary(), pa.dictionary(pa.int32(), pa.string()), pa.null(), pa.time64("us"), pa.duration("s"),
          pa.struct([("a", pa.int64())])]  # fmt: skip


_NUMBER = st.one_of(st.none(), st.integers(-3, 9), st.sampled_from([0, 2**40, 1577836800, 1.5, float("nan")]))


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    length = draw(st.integers(0, 20))
    columns = {}
    for name in ("user", "item", "timestamp"):
        kind = draw(st.one_of(st.just(pa.int64()), st.just(pa.string()), st.sampled_from(_TYPES)))
        value = st.integers(1, 4) if kind == pa.int64() else _NUMBER
        plain = [draw(value) for _ in range(length)]
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
            plain = [draw(st.one_of(_FIELD, st.none())) for _ in range(length)]
        try:
            columns[name] = pa.array(plain, kind)
        except (pa.ArrowException, TypeError, OverflowError, ValueError):
            columns[name] = pa.nulls(length, kind)
    return pa.table(columns)


@given(tables(), _ON_ERROR, st.sampled_from(["auto", "text"]))
@FUZZ
def test_any_table(table: pa.Table, on_error: str, ids: str) -> None:
    attempt(lambda **kept: Interactions.from_table(table, **kept), on_error=on_error, ids=ids)


@given(tables(), _ON_ERROR)
@FUZZ
def test_any_parquet(table: pa.Table, on_error: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.parquet"
        pq.write_table(table, path)
        attempt(lambda **kept: Interactions.read(path, **kept), on_error=on_error)
