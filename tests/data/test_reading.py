"""Every way a log may come in gives the same data set; every way it may be wrong gives one sentence."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import ibis
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forethought.data.interactions import Interactions
from forethought.errors import DataError
from tests.data.logs import EVENTS, SEQUENCES, sequences_of, write_csv

COLUMNS = {name: [event[place] for event in EVENTS] for place, name in enumerate(("user", "item", "timestamp"))}


def as_csv(folder: Path) -> Path:
    return write_csv(folder / "log.csv")


def as_tsv(folder: Path) -> Path:
    path = folder / "log.tsv"
    path.write_text(as_csv(folder).read_text().replace(",", "\t"))
    return path


def as_windows_csv(folder: Path) -> Path:
    path = folder / "log.csv"
    path.write_bytes(b"\xef\xbb\xbf" + as_csv(folder).read_text().replace("\n", "\r\n").encode())
    return path


def as_gzip(folder: Path) -> Path:
    path = folder / "log.csv.gz"
    path.write_bytes(gzip.compress(as_csv(folder).read_bytes()))
    return path


def as_json_lines(folder: Path) -> Path:
    path = folder / "log.jsonl"
    path.write_text("\n".join(json.dumps({"user": u, "item": i, "timestamp": t}) for u, i, t in EVENTS))
    return path


def as_parquet(folder: Path) -> Path:
    pq.write_table(pa.table(COLUMNS), folder / "log.parquet")
    return folder / "log.parquet"


def as_parquet_folder(folder: Path) -> Path:
    parts = folder / "log"
    parts.mkdir()
    table = pa.table(COLUMNS)
    pq.write_table(table.slice(0, 5), parts / "part-0.parquet")
    pq.write_table(table.slice(5), parts / "part-1.parquet")
    return parts


def as_duckdb(folder: Path) -> Path:
    path = folder / "log.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.register("events", pa.table(COLUMNS))
        connection.execute("CREATE TABLE log AS SELECT * FROM events")
    return path


@pytest.mark.parametrize(
    "write", [as_csv, as_tsv, as_windows_csv, as_gzip, as_json_lines, as_parquet, as_parquet_folder, as_duckdb]
)
def test_every_file_gives_the_same_data_set(write: Any, tmp_path: Path) -> None:
    dataset = Interactions.read(write(tmp_path)).prepare()
    assert sequences_of(dataset) == SEQUENCES
    assert dataset.fingerprint == Interactions.read(as_csv(tmp_path)).prepare().fingerprint
    assert dataset.sequences.times is not None
    assert dataset.sequences.times[:4].tolist() == [100_000, 200_000, 200_000, 300_000]
    assert dataset.manifest["tie_rule"] == "time, then row in the source"


@pytest.mark.parametrize("write", [as_csv, as_gzip, as_json_lines, as_parquet, as_parquet_folder])
def test_a_path_is_no_pattern_and_no_column(write: Any, tmp_path: Path) -> None:
    for folder in ("item=7", "a[1]", "a1", "b?*", "bbb"):
        (tmp_path / folder).mkdir()
        path = write(tmp_path / folder)
        if folder in ("a1", "bbb"):  # what the pattern would find
            for file in path.iterdir() if path.is_dir() else [path]:
                file.write_text("something else")
    for folder, on_error in (
        ("item=7", "fail"),
        ("item=7", "drop"),
        ("a[1]", "fail"),
        ("a[1]", "drop"),
        ("b?*", "fail"),
    ):
        path = tmp_path / folder / path.name
        assert sequences_of(Interactions.read(path, on_error=on_error).prepare()) == SEQUENCES


@pytest.mark.parametrize("kind", ["pandas", "polars", "lazy polars", "arrow", "ibis"])
def test_every_table_gives_the_same_data_set(kind: str, tmp_path: Path) -> None:
    if kind == "ibis":
        database = ibis.duckdb.connect()
        rows = {**COLUMNS, "place": list(range(len(EVENTS)))}
        table: Any = database.create_table("events", pa.table(rows))
        dataset = Interactions.from_table(table, row_column="place").prepare()
    else:
        makers = {
            "pandas": pd.DataFrame, "polars": pl.DataFrame, "lazy polars": pl.LazyFrame, "arrow": pa.table,
        }  # fmt: skip
        table = makers[kind](COLUMNS)
        dataset = Interactions.from_table(table).prepare()
    assert sequences_of(dataset) == SEQUENCES
    assert dataset.fingerprint == Interactions.read(as_csv(tmp_path)).prepare().fingerprint


def test_an_ibis_table_without_an_order_breaks_ties_by_item() -> None:
    table = ibis.duckdb.connect().create_table("events", pa.table(COLUMNS).take(pa.array(range(11, -1, -1))))
    dataset = Interactions.from_table(table).prepare()
    assert dataset.manifest["tie_rule"] == "time, then item id"
    assert sequences_of(dataset) == SEQUENCES


def test_times_that_hang_on_a_foreign_time_zone_are_refused() -> None:
    database = ibis.duckdb.connect()
    database.raw_sql("SET TimeZone = 'America/New_York'")
    for written in (["2020-01-01"] * 3, pa.array([1577836800] * 3, pa.timestamp("s", "UTC"))):
        table = database.create_table(
            "events", pa.table({"user": [1] * 3, "item": [1, 2, 3], "timestamp": written}), overwrite=True
        )
        with pytest.raises(DataError, match="another engine give times as Unix numbers"):
            Interactions.from_table(table)
    naive = pa.array([1577836800] * 3, pa.timestamp("s"))
    table = database.create_table(
        "events", pa.table({"user": [1] * 3, "item": [1, 2, 3], "timestamp": naive}), overwrite=True
    )
    dataset = Interactions.from_table(table).prepare()
    assert dataset.sequences.times is not None
    assert set(dataset.sequences.times.tolist()) == {1577836800000}


def test_ties_follow_the_rows_of_the_source(tmp_path: Path) -> None:
    rows = [("u", item, 7) for item in "zaymb"]
    dataset = Interactions.read(write_csv(tmp_path / "log.csv", rows)).prepare()
    assert sequences_of(dataset) == {"u": list("zaymb")}


def test_row_order_survives_many_blocks_and_threads(tmp_path: Path) -> None:
    """A file large enough for DuckDB to read it in parallel; all times tie, so only the rows' order counts."""
    random = np.random.default_rng(0)
    items = random.integers(1, 1000, 400_000)
    users = random.integers(1, 50, 400_000)
    path = tmp_path / "log.csv"
    pd.DataFrame({"user": users, "item": items, "timestamp": 7}).to_csv(path, index=False)
    dataset = Interactions.read(path, threads=16).prepare()
    found = dataset.catalog.decode(dataset.sequences.items)
    assert found == items[np.argsort(users, kind="stable")].tolist()


def test_column_names_times_and_more_columns(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "who,what,when,stars,did\n"
        + "".join(f"1,{i},2020-01-0{i}T00:00:00Z,{i}.5,{'vb'[i % 2]}\n" for i in range(1, 5))
    )
    dataset = Interactions.read(path, "auto", "who", "what", "when", "stars", "did").prepare()
    sequences = dataset.sequences
    assert sequences.times is not None
    assert sequences.ratings is not None
    assert sequences.actions is not None
    assert sequences.times.astype("datetime64[ms]").astype("datetime64[D]").astype(str).tolist() == [
        f"2020-01-0{day}" for day in range(1, 5)
    ]
    assert sequences.ratings.tolist() == [1.5, 2.5, 3.5, 4.5]
    assert [dataset.manifest["actions"][code] for code in sequences.actions] == ["b", "v", "b", "v"]
    assert dataset.manifest["provenance"]["columns"]["time"] == "when"


@pytest.mark.parametrize(
    ("written", "milliseconds"),
    [
        ("1577836800", 1577836800000),
        ("1577836800.25", 1577836800250),
        ("1577836800250", 1577836800250),
        ("2020-01-01", 1577836800000),
        ("20200101", 1577836800000),
        ("20200101.5", 20200101500),  # no day has a fraction
        ("20201301", 20201301000),  # nor a year a 13th month
        ("9500000000000000000", 9500000000000),  # nanoseconds beyond int64
        ("2020-01-01 00:00:00.25", 1577836800250),
        ("2020-01-01T01:00:00+01:00", 1577836800000),
        ("2020-01-01 01:00:00+01", 1577836800000),
        ("2020-01-01T00:00Z", 1577836800000),
        ("2020-01-01 00:00 UTC", 1577836800000),
        ("2019-12-31T19:30-04:30", 1577836800000),
        ("2020-01-01 00:00", 1577836800000),
        ("2019-12-31T08:01:00-1559", 1577836800000),
        ("2020-01-01 00:00:00 UTC", 1577836800000),
        ("2020-01-01 00:00:00 ", 1577836800000),
        ("1969-12-31T23:59:58.500Z", -1500),
        ("-1.5", -1500),
    ],
)
def test_times(written: str, milliseconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    rows = [("u", item, written) for item in "abc"]
    dataset = Interactions.read(write_csv(tmp_path / "log.csv", rows)).prepare()
    assert dataset.sequences.times is not None
    assert set(dataset.sequences.times.tolist()) == {milliseconds}


@pytest.mark.parametrize(
    "kind", [pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns", "UTC"), pa.date32()]
)
def test_typed_times(kind: pa.DataType) -> None:
    times = pa.array([1577836800] * 3, pa.timestamp("s")).cast(kind)
    dataset = Interactions.from_table(pa.table({"user": [1] * 3, "item": [1, 2, 3], "timestamp": times})).prepare()
    assert dataset.sequences.times is not None
    assert set(dataset.sequences.times.tolist()) == {1577836800000}


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.float64(), pa.decimal128(21, 2), pa.string()])
def test_days_written_as_numbers(kind: pa.DataType) -> None:
    def log(*days: int) -> pa.Table:
        items = list(range(len(days)))
        return pa.table({"user": [1] * len(days), "item": items, "timestamp": pa.array(days).cast(kind)})

    times = Interactions.from_table(log(20200229, 20991231, 19700101)).prepare().sequences.times
    assert times is not None
    assert times.tolist() == [0, 1582934400000, 4102358400000]
    for wrong in (20200230, 1577836800):
        table = log(20200101, wrong, 20200102)
        with pytest.raises(DataError, match=rf"row 2, column 'timestamp': .*{wrong}.* is no day although most times"):
            Interactions.from_table(table)
        assert Interactions.from_table(table, on_error="drop").dropped == {"time: unparsable time": 1}
    few = Interactions.from_table(log(20200101, 20200532, 20200533)).prepare().sequences.times
    assert few is not None
    assert few.tolist() == [20200101000, 20200532000, 20200533000]  # seconds, of which one looks like a day


def test_a_number_beyond_64_bits_among_days_is_refused(tmp_path: Path) -> None:
    days = ["20200101", "15000000000000000000", "20200102"]
    path = write_csv(tmp_path / "log.csv", [("u", item, day) for item, day in zip("abc", days, strict=True)])
    with pytest.raises(DataError, match=r"row 2 \(line 3\), column 'timestamp': '15000000000000000000' is no day"):
        Interactions.read(path)


def test_a_time_with_a_zone_leaves_the_others_in_utc(tmp_path: Path) -> None:
    times = ["2020-01-01 12:00:00+05:00", "2020-01-01 08:00:00", "2020-01-01 09:00:00Z", "2020-01-01"]
    for order in (times, times[::-1]):
        rows = [("u", item, time) for item, time in zip("abcd", order, strict=True)]
        interactions = Interactions.read(write_csv(tmp_path / "log.csv", rows))
        found = interactions.table.time.to_pyarrow().to_pylist()
        assert dict(zip(order, found, strict=True)) == dict(
            zip(times, [1577862000000, 1577865600000, 1577869200000, 1577836800000], strict=True)
        )


@pytest.mark.parametrize("kind", ["TIMESTAMP", "TIMESTAMPTZ", "DATE"])
def test_a_time_that_is_infinite_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "log.duckdb"
    times = ", ".join(f"('u', 'a', '{time}'::{kind})" for time in ("2020-01-01", "infinity", "2020-01-02"))
    with duckdb.connect(str(path)) as connection:
        connection.execute(f'CREATE TABLE log AS SELECT * FROM (VALUES {times}) AS log(user, item, "timestamp")')
    with pytest.raises(DataError, match=r"row 2, column 'timestamp': 'infinity' is beyond the times that can be kept"):
        Interactions.read(path)
    kept = Interactions.read(path, on_error="drop")
    assert kept.dropped == {"time: unparsable time": 1}
    assert len(kept) == 2


def test_decimal_ids_are_whole_numbers() -> None:
    def read(numbers: list[str], kind: pa.DataType, **options: Any) -> Any:
        users = pa.array([Decimal(number) for number in numbers], kind)
        table = pa.table({"user": users, "item": ["a"] * len(numbers)})
        interactions = Interactions.from_table(table, time_column=None, **options)
        return interactions.table.user.to_pyarrow()

    for kind in (pa.decimal128(12, 2), pa.decimal128(38, 0)):
        assert read(["1", "20", "3"], kind).equals(pa.chunked_array([[1, 20, 3]]))
        assert read(["1", "20", "3"], kind, ids="text").to_pylist() == ["1", "20", "3"]
        with pytest.raises(DataError, match=r"row 2, column 'user': the id -1 is negative"):
            read(["1", "-1", "3"], kind)
    with pytest.raises(DataError, match=r"row 2, column 'user': '1\.50' is no whole number"):
        read(["1", "1.5", "3"], pa.decimal128(12, 2))
    huge = ["1", str(2**64)]
    with pytest.raises(DataError, match=rf"row 2, column 'user': '{2**64}' is beyond 64 bits \(use --ids text"):
        read(huge, pa.decimal128(38, 0))
    assert read(huge, pa.decimal128(38, 0), ids="text").to_pylist() == huge
    table = pa.table({"user": pa.array([1, 2**64 - 1], pa.uint64()), "item": ["a", "b"]})
    with pytest.raises(DataError, match=r"is beyond 64 bits \(use --ids text"):
        Interactions.from_table(table, time_column=None)
    assert len(Interactions.from_table(table, time_column=None, ids="text")) == 2


def test_without_times_the_order_of_the_file_stands(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", [("u", item) for item in "cab"], "user,item")
    dataset = Interactions.read(path, time_column=None).prepare()
    assert sequences_of(dataset) == {"u": ["c", "a", "b"]}
    assert dataset.sequences.times is None
    assert dataset.manifest["tie_rule"] == "row in the source"


STRANGE = ["with space", " leading", "trailing ", "日本語", "Ü✓", 'quo"te', "apos'trophe", "semi;colon", "com,ma",
           "tab\tbed", "new\nline", "back\\slash", "NULL", "nan", "-", "%s{}", "007", "1e5"]  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".jsonl", ".parquet"])
def test_strange_ids_come_back_as_they_were(suffix: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"user": [f"{name}!" for name in STRANGE for _ in range(3)], "item": STRANGE * 3})
    frame["timestamp"] = np.arange(len(frame))
    path = tmp_path / f"log{suffix}"
    if suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    dataset = Interactions.read(path).prepare(tmp_path / "out")
    assert sorted(dataset.catalog.ids.to_pylist()) == sorted(STRANGE)
    expected = frame.groupby("user")["item"].agg(list).to_dict()
    assert sequences_of(dataset) == expected
    assert dataset.catalog.decode(dataset.catalog.encode(STRANGE)) == STRANGE


def test_whole_numbers_stay_numbers_unless_asked(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", [(1, 10, 1), (1, 9, 2), (1, 100, 3)])
    assert Interactions.read(path).prepare().catalog.ids.to_pylist() == [9, 10, 100]
    assert Interactions.read(path, ids="text").prepare().catalog.ids.to_pylist() == ["10", "100", "9"]


def test_a_column_that_is_no_column_of_actions() -> None:
    table = pa.table({"user": [1] * 40_000, "item": [2] * 40_000, "timestamp": range(40_000), "what": range(40_000)})
    with pytest.raises(DataError, match="action column has 40,000 different values"):
        Interactions.from_table(table, action_column="what").prepare()


def test_sessions_become_sequences(tmp_path: Path) -> None:
    rows = [("u", "abcdef"[step], step, step // 3) for step in range(6)]
    path = write_csv(tmp_path / "log.csv", rows, "user,item,timestamp,session")
    assert sequences_of(Interactions.read(path, session_column="session").prepare()) == {
        "u/0": ["a", "b", "c"],
        "u/1": ["d", "e", "f"],
    }


def test_no_two_sessions_are_one_sequence() -> None:
    texts = ["".join(letters) for length in (1, 2, 3) for letters in product("a/%2F", repeat=length)]
    users, sessions = zip(*product(texts, texts[:30]), strict=True)
    table = pa.table({"user": users, "session": sessions, "item": users})
    interactions = Interactions.from_table(table, time_column=None, session_column="session", ids="text")
    found = set(interactions.table.user.to_pyarrow().to_pylist())
    assert found == {f"{quote(user, safe='')}/{session}" for user, session in zip(users, sessions, strict=True)}
    assert len(found) == len(users)


def test_a_user_with_one_event_trains_and_is_counted(tmp_path: Path) -> None:
    dataset = Interactions.read(write_csv(tmp_path / "log.csv")).prepare()
    assert dataset.manifest["counts"]["users_without_target"] == 1
    assert dataset.manifest["counts"]["test"] == 3
    assert dataset.train_stop[2] == dataset.sequences.offsets[3]


# what is written, what the sentence has to say, and what is dropped where that was asked for
BAD = [
    pytest.param("user,timestamp\nu,1\n", "no column 'item'.*user, timestamp.*--item-column", None, id="no-item"),
    pytest.param("user,item\nu,1\n", "no column 'timestamp'.*--time-column none", None, id="missing-time"),
    pytest.param("", "is empty", None, id="empty"),
    pytest.param("\n\n \n", "is empty", None, id="blank"),
    pytest.param("user,item,timestamp\n", "holds no events", None, id="header-only"),
    pytest.param("user,item,item,timestamp\nu,a,b,1\n", "column 'item' twice", None, id="column-twice"),
    pytest.param(
        "user,item,timestamp\nu,a,1\nu,b,2\nu,c,yesterday\nu,d,4\n",
        r"row 3 \(line 4\), column 'timestamp': 'yesterday' is no time", {"time: unparsable time": 1}, id="time",
    ),
    pytest.param(
        "user,item,timestamp\nu,a,2020-01-01\nu,b,2020-01-02\nu,c,2020-13-01\nu,d,2020-01-04\n",
        r"row 3 \(line 4\), column 'timestamp': '2020-13-01' is no time", {"time: unparsable time": 1}, id="iso-time",
    ),
    pytest.param(
        "user,item,timestamp\nu,a,2020-01-01 12:00:00Z\nu,b,2020-01-01 12:00:00 EST\nu,c,2020-01-01 12:00:00+16:00\n"
        "u,d,2020-01-01 12:00:00\nu,e,2020-01-01 13:00:00\n",
        r"row 2 \(line 3\), column 'timestamp': '2020-01-01 12:00:00 EST' is no time; .* \(1 more like it\)",
        {"time: unparsable time": 2}, id="named-zone",
    ),
    pytest.param(
        "user,item,timestamp\nu,a,1577836800\nu,b,1577836800000\nu,c,1577836801\nu,d,1577836802\n",
        r"row 2 .*'1577836800000' is not in seconds", {"time: mixed time units": 1}, id="mixed-units",
    ),
    pytest.param(
        "user,item,timestamp\nu,a,1\n,b,2\nu,,3\nu,c,4\nu,d,\nu,e,6\n",
        r"row 2 \(line 3\), column 'user': the value is missing",
        {"user: missing": 1, "item: missing": 1, "time: missing": 1}, id="nulls",
    ),
    pytest.param(
        "user,item,timestamp\n1,5,1\n1,-1,2\n1,6,3\n1,7,4\n",
        r"row 2 \(line 3\), column 'item': the id -1 is negative", {"item: negative": 1}, id="negative",
    ),
    pytest.param(
        "user,item,timestamp\n1,5,1\n1,six,2\n1,7,3\n1,8,4\n",
        r"row 2 \(line 3\), column 'item': 'six' is no whole number.*--ids text", {"item: mixed types": 1},
        id="mixed-types",
    ),
    pytest.param(
        f"user,item,timestamp\n1,5,1\n1,{2**64},2\n1,7,3\n1,8,4\n",
        r"row 2 \(line 3\), column 'item': '18446744073709551616' is beyond 64 bits \(use --ids text",
        {"item: too large": 1}, id="beyond-64-bits",
    ),
    pytest.param(
        "user,item,timestamp\nu,a,1\nu,b\nu,c,3,9\nu,d,4\nu,e,5\n",
        r"line 3 has 2 fields where the header has 3", {"malformed line": 2}, id="ragged",
    ),
    pytest.param(
        'user,item,timestamp\n"u\nv",a,1\nu,b,2\nu,c,3\n"u\nv",,4\nu,e,5\n',
        r"row 4 \(line 7\), column 'item'", {"item: missing": 1}, id="lines-after-multiline-ids",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("content", "sentence", "dropped"), BAD)
def test_bad_input_is_refused_in_one_sentence(
    content: str, sentence: str, dropped: dict[str, int] | None, tmp_path: Path
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(content)
    with pytest.raises(DataError) as refusal:
        Interactions.read(path)
    message = str(refusal.value)
    assert str(path) in message
    assert re.search(sentence, message), message
    assert "\n" not in message


@pytest.mark.parametrize(("content", "sentence", "dropped"), [case for case in BAD if case.values[2]])
def test_bad_rows_are_dropped_and_counted_where_asked(
    content: str, sentence: str, dropped: dict[str, int], tmp_path: Path
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(content)
    dataset = Interactions.read(path, on_error="drop").prepare()
    assert dataset.manifest["dropped"] == dropped
    rows = content.replace("u\nv", "uv").count("\n") - 1
    assert dataset.manifest["counts"]["events"] == rows - sum(dropped.values())


def test_truncated_and_damaged_gzip(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b"user,item,timestamp\n" + b"".join(b"u,%d,%d\n" % (i, i) for i in range(20_000))))
    path = tmp_path / "log.csv.gz"
    for damaged in (
        packed[: len(packed) // 2],
        packed[:-4],
        packed[:-8] + bytes(8),
        packed[:100] + b"\xff" + packed[101:],
    ):
        path.write_bytes(damaged)
        for on_error in ("fail", "drop"):  # half a file is never half a log
            with pytest.raises(DataError, match=r"log\.csv\.gz is a truncated or damaged gzip file"):
                Interactions.read(path, on_error=on_error)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("log.csv", bytes(range(256)), "is a binary file"),
        ("log.csv", "user,item,timestamp\nu,é,1\n".encode("utf-16"), "is UTF-16 text; convert it to UTF-8"),
        ("log.csv", "user,item,timestamp\nu,é,1\n".encode("utf-16-be"), "is a binary file"),  # no mark at the start
        ("log.csv", b"1\t1\n2\t3\n", "begins with 1, 1 and not with names of columns;.*--format user-item"),
        ("log.csv", b"1,2,3\n2,3,4\n", "begins with 1, 2, 3 and not with names of columns"),
        ("log.csv", b'user,item,timestamp\nu,"a"b,1\n', "line 2 opens a quote that is not closed"),
        ("log.json", b'[{"user": 1, "item": 2}, {"user": 1, "item": 3}]', "is one JSON array; write each"),
        ("log.json", b'[\n {"user": 1, "item": 2},\n {"user": 1, "item": 3}\n]', "is one JSON array; write each"),
        ("log.csv", b"user,item,timestamp\nu,\xff\xfe,1\nu,a,2\n", "line 2.*(unicode|utf-8)"),
        ("log.parquet", b"PAR1 and then nothing", "not a readable Parquet file"),
        ("log.duckdb", b"12345678DUCK and then nothing", "cannot be read"),
        ("log.jsonl", b'{"user": 1, "item": 2, "timestamp": 3}\n{"user": 1\n', "line 2"),
        ("log.jsonl", b'{"user": 1, "item": 2, "timestamp": 3}\n{"user" 1}\n{"user": 1}', "line 2"),
        ("log.jsonl", b'{"user": 1, "item": 2, "timestamp": 3}\n[1, 2]\n', "line 2 is not a JSON object"),
        ("log.jsonl", b'{"user": 1, "user": 2, "item": 2, "timestamp": 3}\n', "column 'user' twice"),
        ("log.jsonl", b"[1, 2]\n", "no column"),
        ("log.txt", b"1 2\n1 3 4\n", "line 2 has 3 fields|has the user"),
    ],
)
def test_files_that_are_something_else(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"(?i){re.escape(str(path))}.*({sentence})"):
        Interactions.read(path, "user-item" if name.endswith(".txt") else "auto")


@pytest.mark.parametrize(
    ("swallowed", "later"),
    [(1000, ""), (1000, 'u,"z",3\n'), (1000, 'u,"y\ny",3\n'), (200_000, 'u,z",3\n'), (200_000, "")],
)
def test_a_quote_that_is_not_closed_never_swallows_rows(swallowed: int, later: str, tmp_path: Path) -> None:
    """DuckDB leaves out all it swallowed, up to the next quote, the end or 2 MB, and calls that one line."""
    rows = [f"u{row % 9},i{row % 7},{row}\n" for row in range(swallowed)]
    path = tmp_path / "log.csv"
    path.write_text("".join(["user,item,timestamp\n", *rows[:500], 'u,"a,1\n', *rows, later, *rows[:500]]))
    for on_error in ("fail", "drop"):
        with pytest.raises(DataError, match=r"log\.csv, line 502 opens a quote that is not closed"):
            Interactions.read(path, on_error=on_error)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "dropped"),
    [
        (b'u,"a\nb\nc",1,2\n', {"malformed line": 3}),  # one record of three lines and a field too many
        (b'u,"a"b,1\nu,c\n', {"malformed line": 2}),
        (b"u,\xe9,1\n", {"text that is not UTF-8": 1}),
    ],
)
def test_every_line_that_is_left_out_counts(line: bytes, dropped: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"user,item,timestamp\nu,a,1\n" + line + b"u,b,2\nu,c,3\n")
    interactions = Interactions.read(path, on_error="drop")
    assert len(interactions) == 3
    assert interactions.dropped == dropped


def test_a_log_of_which_every_row_is_dropped_says_why(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"user,item,timestamp\n" + b"u,\xe9,1\n" * 50)
    with pytest.raises(DataError, match=r"no usable row: all were dropped \(50 for text that is not UTF-8\)"):
        Interactions.read(path, on_error="drop")
    path.write_text("user,item,timestamp\nu,,1\nu,a\n,b,3\n")
    with pytest.raises(DataError, match=r"\(1 for malformed line, 1 for user: missing, 1 for item: missing\)"):
        Interactions.read(path, on_error="drop")


def test_lines_of_json_that_are_no_object_are_malformed(tmp_path: Path) -> None:
    path = as_json_lines(tmp_path)
    path.write_text(path.read_text() + '\n[1, 2]\n3\n"x"\nnull\n{"user": 1\n{"item": "a"}\n')
    interactions = Interactions.read(path, on_error="drop")
    assert interactions.dropped == {"malformed line": 5, "user: missing": 1}
    assert sequences_of(interactions.prepare()) == SEQUENCES


def test_half_a_character_in_an_id_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    for mark in ("'", '"'):  # as Python wrote it, and as JSON
        items = [r"\ud83d\ude00", r"\ud83d", "b", "c"]
        rows = [f"{{'user': 'u', 'item': '{item}', 'timestamp': {row}}}" for row, item in enumerate(items)]
        path.write_text("\n".join(rows).replace("'", mark))
        with pytest.raises(DataError, match=r"log\.json, line 2 "):
            Interactions.read(path)
        kept = Interactions.read(path, on_error="drop")
        assert kept.dropped == {"malformed line": 1}
        assert sequences_of(kept.prepare()) == {"u": ["\U0001f600", "b", "c"]}


RECORDS: list[dict[str, Any]] = [{"user": u, "item": i, "timestamp": t} for u, i, t in EVENTS]


def write_records(folder: Path, records: list[dict[str, Any]], python: bool) -> Path:
    path = folder / "log.jsonl"
    path.write_text("\n".join(repr(record) if python else json.dumps(record) for record in records))
    return path


@pytest.mark.parametrize("odd", [{"$oid": "x"}, ["x"], True])
@pytest.mark.parametrize("python", [False, True], ids=["json", "python"])
def test_ids_of_json_are_text_or_numbers(odd: Any, python: bool, tmp_path: Path) -> None:
    odd_one = {"user": "u1", "item": odd, "timestamp": 1}
    alike = {"user": "[u5]", "item": "true", "timestamp": 1}  # text that looks like it
    path = write_records(tmp_path, [RECORDS[0], odd_one, *RECORDS[1:], alike], python)
    with pytest.raises(DataError, match=r"log\.jsonl, line 2, column 'item': .* is no id, which is text or a number"):
        Interactions.read(path)
    kept = Interactions.read(path, on_error="drop")
    assert kept.dropped == {"an id that is no text or number": 1}
    assert sequences_of(kept.prepare()) == {**SEQUENCES, "[u5]": ["true"]}


@pytest.mark.parametrize("python", [False, True], ids=["json", "python"])
def test_what_the_first_event_lacks_is_read_of_the_others(python: bool, tmp_path: Path) -> None:
    path = write_records(tmp_path, [{"user": "u1", "timestamp": 1}, *RECORDS], python)
    with pytest.raises(DataError, match=r"row 1 \(line 1\), column 'item': the value is missing"):
        Interactions.read(path)
    kept = Interactions.read(path, on_error="drop")
    assert kept.dropped == {"item: missing": 1}
    assert sequences_of(kept.prepare()) == SEQUENCES


def test_parts_of_other_types_are_refused(tmp_path: Path) -> None:
    table = pa.table({"user": [1, 1], "item": [1, 2], "timestamp": [1, 2]})
    for name, kind, said in (
        ("item", pa.float64(), "'item' holds double and in a.parquet int64"),
        ("item", pa.string(), "'item' holds string and in a.parquet int64"),
        ("timestamp", pa.timestamp("s"), r"'timestamp' holds timestamp\[ms\] and in a.parquet int64"),
        ("item", pa.int32(), None),
    ):
        other = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
        for file, part in (("a", table), ("b", other)):
            pq.write_table(part, tmp_path / f"{file}.parquet")
        if said is None:
            assert len(Interactions.read(tmp_path)) == 4
        else:
            with pytest.raises(DataError, match=rf"b\.parquet, column {said}; write all parts with the same types"):
                Interactions.read(tmp_path)
    texts = table.set_column(1, "item", pa.array(["1", "2"]))
    for file, kind in (("a", pa.large_string()), ("b", pa.dictionary(pa.int32(), pa.string()))):
        pq.write_table(texts.set_column(1, "item", texts["item"].cast(kind)), tmp_path / f"{file}.parquet")
    assert len(Interactions.read(tmp_path)) == 4


HEAD = b"user,item,timestamp\n"


@pytest.mark.parametrize("on_error", ["fail", "drop"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (HEAD + b"u,a,1\nu,b,2\r\nu,c,3\n", "line 3 ends in CR LF and line 1 in LF"),
        (HEAD + b'u,"a\nb",1\nu,b,2\ru,c,3\n', "line 4 ends in CR and line 1 in LF"),
        ((HEAD + b"u,a,1\nu,b,2\n").replace(b"\n", b"\r\r\n"), "line 1 ends in CR CR LF"),
    ],
)
def test_lines_that_end_in_several_ways(content: bytes, sentence: str, on_error: Any, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"log\.csv, {sentence}.*; end all lines in LF or CR LF"):
        Interactions.read(path, on_error=on_error)


def test_a_quoted_field_may_hold_any_line_end(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(HEAD.replace(b"\n", b"\r\n") + b'u,"a\rb",1\r\nu,"a\nb",2\r\nu,c,3\r\n')
    assert sequences_of(Interactions.read(path).prepare()) == {"u": ["a\rb", "a\nb", "c"]}


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_line_beyond_what_is_read_is_long_and_opens_no_quote(quote: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"user,item,timestamp\nu,a,1\nu,{quote}{'x' * 3_000_000}{quote},2\nu,b,3\n")
    with pytest.raises(DataError, match=r"line 3 is longer than 2,000,000 bytes; shorten it or use --on-error drop"):
        Interactions.read(path)
    assert Interactions.read(path, on_error="drop").dropped == {"malformed line": 1}


def test_what_cannot_help_is_not_advised(tmp_path: Path) -> None:
    for path in (as_parquet(tmp_path), as_duckdb(tmp_path)):
        content = bytearray(path.read_bytes())
        for place in (4, 12_288):
            content[place : place + 60] = bytes(255 - byte for byte in content[place : place + 60])
        if path.suffix == ".duckdb":
            content[8:12] = b"DUCK"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read: .*; mend the file, or fetch or write it again\.$"):
            Interactions.read(path)


def test_text_may_be_called_gz(tmp_path: Path) -> None:
    for path in (as_csv(tmp_path), as_json_lines(tmp_path)):
        packed = path.rename(path.with_name(path.name + ".gz"))
        assert sequences_of(Interactions.read(packed).prepare()) == SEQUENCES


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is no regular file; save the log to one first"):
        Interactions.read(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is no regular file; --items needs"):
        Interactions.read(as_csv(tmp_path), items=tmp_path / "pipe").prepare()


def test_columns_that_differ_in_case_alone(tmp_path: Path) -> None:
    rows = [("X", *event) for event in EVENTS]
    path = write_csv(tmp_path / "log.csv", rows, "User,user,item,timestamp")
    assert sequences_of(Interactions.read(path).prepare()) == SEQUENCES
    frame = pd.read_csv(path)
    frame.to_json(tmp_path / "log.jsonl", orient="records", lines=True)
    assert sequences_of(Interactions.read(tmp_path / "log.jsonl").prepare()) == SEQUENCES
    assert sequences_of(Interactions.from_table(frame).prepare()) == SEQUENCES
    frame.to_parquet(tmp_path / "log.parquet")  # DuckDB would take the first of them
    with pytest.raises(DataError, match=r"log\.parquet has columns that differ in case alone \(User, user\)"):
        Interactions.read(tmp_path / "log.parquet")
    assert (
        len(Interactions.read(tmp_path / "log.parquet", user_column="item", time_column=None, item_column="timestamp"))
        == 12
    )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_id_with_a_zero_byte_is_refused(suffix: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"user": "u", "item": [f"i{row}" for row in range(20_000)] + ["i\0z"]})
    path = tmp_path / f"log{suffix}"
    write = {".csv": frame.to_csv, ".parquet": frame.to_parquet}.get(suffix)
    write(path, index=False) if write else frame.to_json(path, orient="records", lines=True)
    with pytest.raises(DataError, match=r"The item id 'i\\x00z' holds a zero byte"):
        Interactions.read(path, time_column=None).prepare()


def test_a_column_of_lists_is_told_by_its_own_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({**COLUMNS, "stars": [[1.0]] * len(EVENTS)}), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"log\.parquet, column 'stars' holds array<float64>; it has to hold numbers"):
        Interactions.read(tmp_path / "log.parquet", rating_column="stars")


def test_a_file_that_is_no_duckdb_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.csv is no DuckDB file"):
        Interactions.read(as_csv(tmp_path), "duckdb")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"on_error": "ignore"}, "on_error is 'ignore'; it has to be 'fail' or 'drop'"),
        ({"ids": "int"}, "ids is 'int'; it has to be 'auto' or 'text'"),
        ({"engine": "polars"}, "engine is 'polars'; it has to be 'duckdb' or 'spark'"),
        ({"threads": -1}, "threads is -1; it has to be a whole number of 1 or more"),
        ({"threads": "2"}, "threads is '2'"),
        ({"threads": 10**20}, "threads is 1[0]+; it has to be a whole number of 1024 or less"),
        ({"item_column": "user"}, "'user' is named for the user and for the item; .* --item-column"),
        ({"time_column": "item"}, "'item' is named for the item and for the time; .* --time-column"),
        ({"session_column": "user"}, "'user' is named for the user and for the session"),
        ({"user_column": None}, "user_column is None; name the column of the users"),
        ({"item_column": None}, "item_column is None; name the column of the items"),
        ({"items": 5}, "the item table cannot be taken as a table"),
        ({"items": "\udcff.csv"}, r"items is '\\udcff.csv', which is not UTF-8 text"),
        ({"items_id": "key"}, "'key' is named for the items' ids, but no item table; give it with --items"),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=sentence):
        Interactions.read(as_csv(tmp_path), **options)
    if "engine" not in options:
        with pytest.raises(DataError, match=sentence):
            Interactions.from_table(pa.table(COLUMNS), **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seed": -1, "split": "user-split"}, "seed is -1; it has to be a whole number of 0 or more"),
        ({"k_core": "5"}, "k_core is '5'; it has to be a whole number"),
        ({"k_core": 2.5}, "k_core is 2.5; it has to be a whole number"),
        ({"min_length": 1.5}, "min_length is 1.5; it has to be a whole number"),
        ({"max_length": 2.5}, "max_length is 2.5; it has to be a whole number of 1 or more"),
        ({"valid_users": 1.5}, "valid_users is 1.5; it has to be a whole number"),
        ({"name": "\udcff"}, r"name is '\\udcff', which is not UTF-8 text"),
        ({"min_rating": "3"}, "min_rating is '3'; it has to be a number"),
        ({"quantiles": (0.5, 0.6)}, "Cuts go with the split global-time alone"),
        ({"quantiles": (0.5, 0.6), "split": "user-split"}, "Cuts go with the split global-time alone"),
    ],
)
def test_arguments_of_prepare_that_do_not_fit(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Interactions.from_table(pa.table(COLUMNS)).prepare(**options)
    assert Interactions.from_table(pa.table(COLUMNS)).prepare(k_core=np.int64(2), seed=np.int32(3)).num_users


def test_a_log_of_one_moment_has_no_time_to_cut_at() -> None:
    table = pa.table({**COLUMNS, "timestamp": [7] * len(EVENTS)})
    with pytest.raises(DataError, match="global-time needs times, and all of these are equal; choose another --split"):
        Interactions.from_table(table).prepare(split="global-time")


def test_places_that_are_no_log(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Interactions.read(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match="is not a data set"):
        Interactions.read(tmp_path)
    write_csv(tmp_path / "one.csv")
    write_csv(tmp_path / "two.csv")
    with pytest.raises(DataError, match=r"several data sets: one\.csv \(csv\), two\.csv \(csv\)"):
        Interactions.read(tmp_path)
    prepared = Interactions.read(tmp_path / "one.csv").prepare(tmp_path / "out").path
    assert prepared is not None
    with pytest.raises(DataError, match="prepared data folder already"):
        Interactions.read(prepared)
    with pytest.raises(DataError, match="no format 'exotic'"):
        Interactions.read(tmp_path / "one.csv", "exotic")
    with pytest.raises(DataError, match=r"path is 'log\\udcff.csv', which is not UTF-8 text"):
        Interactions.read("log\udcff.csv")
    with pytest.raises(DataError, match="no bundled data set 'x'"):
        Interactions.read("bundled:x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv")
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        Interactions.read(path)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"user": [1, "two", 3], "item": [1, 2, 3], "timestamp": [1, 2, 3]}, "cannot be taken as a table"),
        (
            {"user": [1.0, 2.5, 3.0], "item": [1, 2, 3], "timestamp": [1, 2, 3]},
            "row 2, column 'user': 2.5 is no whole number",
        ),
        (
            {"user": [1.0, None, 3.0], "item": [1, 2, 3], "timestamp": [1, 2, 3]},
            "row 2, column 'user': the value is missing",
        ),
        (
            {"user": [True, False, True], "item": [1, 2, 3], "timestamp": [1, 2, 3]},
            "table, column 'user' holds boolean; it has to hold whole numbers or text",
        ),
        (
            {"user": [1, 2, 3], "item": [1, 2, 3], "timestamp": [True, False, True]},
            "table, column 'timestamp' holds boolean; it has to hold Unix numbers",
        ),
        ({"user": [1, 2, 3], "timestamp": [1, 2, 3]}, "no column 'item'"),
    ],
)
def test_bad_tables(columns: dict[str, list[Any]], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Interactions.from_table(pd.DataFrame(columns))
    twice = pd.DataFrame([[1, 2, 3, 4]], columns=["user", "item", "item", "timestamp"])
    with pytest.raises(DataError, match="column 'item' twice"):
        Interactions.from_table(twice)


def test_item_descriptions(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv")
    items = tmp_path / "things.csv"
    items.write_text('item,title,genres,description\na,"Alpha, the first",x|y,long\nb,Beta,,\nzzz,unused,x,\n')
    dataset = Interactions.read(log, items=items).prepare(tmp_path / "out")
    assert [dataset.catalog.title(item) for item in (1, 2, 3)] == ["Alpha, the first", "Beta", "c"]
    assert dataset.catalog.categories(1) == ["x", "y"]
    assert dataset.catalog.table["text"].to_pylist()[:2] == ["long", None]
    assert dataset.manifest["provenance"]["items"] == {"source": str(items), "described": 2, "not_described": 3}
    with pytest.raises(DataError, match="no id there is an item of the log"):
        Interactions.read(log, items=items, items_id="title").prepare()
    with pytest.raises(DataError, match="does not exist"):
        Interactions.read(log, items=tmp_path / "none.csv").prepare()
    with pytest.raises(DataError, match="is a folder; --items needs a file"):
        Interactions.read(log, items=tmp_path).prepare()


def test_an_id_column_that_another_outdoes_is_not_taken(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("1 1 2 3\n2 3 2 1\n")
    items = tmp_path / "items.jsonl"
    rows = [{"item_id": i, "title": f"number {i + 1}", "catalogue_number": i + 1} for i in range(3)]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="3 items 2 are in column 'item_id' and 3 in 'catalogue_number'; name"):
        Interactions.read(log, items=items).prepare()
    right = Interactions.read(log, items=items, items_id="catalogue_number").prepare()
    assert right.catalog.title(right.catalog.item(3)) == "number 3"
    named = Interactions.read(log, items=items, items_id="item_id").prepare()  # who names it is believed
    assert named.catalog.title(named.catalog.item(1)) == "number 2"


def test_what_the_first_item_lacks_is_read_of_the_others(tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    rows = [{"id": "a"}, {"id": "b", "title": "Beta", "genres": ["x"]}, {"id": "c", "description": "long"}]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = Interactions.read(as_csv(tmp_path), items=items).prepare().catalog.table
    assert table["title"].to_pylist() == [None, "Beta", None, None, None]
    assert table["categories"].to_pylist()[:3] == [[], ["x"], []]
    assert table["text"].to_pylist()[:3] == [None, None, "long"]
    items.write_text('{"id": "a"}\n' + "".join(f'{{"id": "no {item}", "key": "{item}"}}\n' for item in "abc"))
    with pytest.raises(DataError, match="5 items 1 are in column 'id' and 3 in 'key'"):
        Interactions.read(as_csv(tmp_path), items=items).prepare()


def test_a_broken_character_of_an_item_is_replaced(tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text(r"""{"id": "a", "title": "cut \ud83d", "genres": ["\udcff"], "text": "\ud83d\ude00"}""" + "\n")
    catalog = Interactions.read(as_csv(tmp_path), items=items).prepare().catalog
    assert (catalog.title(1), catalog.categories(1)) == ("cut \ufffd", ["\ufffd"])
    assert catalog.table["text"][0].as_py() == "\U0001f600"
    items.write_text(r"""{'id': 'a', 'title': u'\ud83d\ude00 or \ude00'}""" + "\n")  # as Python 2 wrote it
    assert Interactions.read(as_csv(tmp_path), items=items).prepare().catalog.title(1) == "\U0001f600 or \ufffd"


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pl.LazyFrame, pa.table])
def test_items_may_be_described_by_any_table(make: Any, tmp_path: Path) -> None:
    items = make({"key": ["a", "b"], "title": ["Alpha", "Beta"]})
    for interactions in (
        Interactions.read(as_csv(tmp_path), items=items, items_id="key"),
        Interactions.from_table(pa.table(COLUMNS), items=items, items_id="key"),
    ):
        dataset = interactions.prepare()
        assert [dataset.catalog.title(item) for item in (1, 2, 3)] == ["Alpha", "Beta", "c"]


def test_an_item_of_which_nothing_but_the_id_is_told_is_not_described(tmp_path: Path) -> None:
    items = tmp_path / "things.csv"
    items.write_text("item,title,genres\na,Alpha,\nb,,x|y\nc,,\nd, ,\n")
    report = Interactions.read(as_csv(tmp_path), items=items).prepare().manifest["provenance"]["items"]
    assert report == {"source": str(items), "described": 2, "not_described": 3}


@pytest.mark.parametrize("odd", ["b,Beta, the second,y|z", "b,Beta"])
def test_an_item_of_more_or_fewer_fields_is_refused(odd: str, tmp_path: Path) -> None:
    items = tmp_path / "things.csv"
    items.write_text(f'item,title,genres\na,"Alpha,\nthe first",x\n{odd}\n')
    with pytest.raises(DataError, match=r"things\.csv, line 4 has . fields where there are 3 columns; put text .* ','"):
        Interactions.read(as_csv(tmp_path), items=items).prepare()


def test_nulls_and_bytes_of_an_item_are_no_text(tmp_path: Path) -> None:
    items = {"id": ["a", "b"], "title": [b"Alpha", b"caf\xe9"], "text": [["long", None], [None]]}
    table = pa.table({**items, "categories": [["x", None], [None]]})
    catalog = Interactions.read(as_csv(tmp_path), items=table).prepare().catalog
    assert [catalog.title(1), catalog.title(2)] == ["Alpha", "caf\ufffd"]
    assert [catalog.categories(1), catalog.categories(2)] == [["x"], []]
    assert catalog.table["text"].to_pylist()[:2] == ["long", None]


def test_a_damaged_item_file_is_told_as_one(tmp_path: Path) -> None:
    path = tmp_path / "things.parquet"
    pq.write_table(pa.table({"id": ["a"] * 5000, "title": [f"title {row}" for row in range(5000)]}), path)
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(255 - byte for byte in content[4:2000])
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"things\.parquet is (a damaged|not a readable) Parquet file"):
        Interactions.read(as_csv(tmp_path), items=path).prepare()


@pytest.mark.parametrize("broken", ['b,"Beta\n', 'b,"Beta\n\nc,"Gamma"\n', 'b,"Be"ta\n'])
def test_a_quote_that_is_not_closed_swallows_no_items(broken: str, tmp_path: Path) -> None:
    items = tmp_path / "things.csv"
    items.write_text('item,title\n\na,"Alpha,\nthe first"\n' + broken + "d,Delta\n")
    with pytest.raises(DataError, match=r"things\.csv, line 5 cannot be read .*; close the quotes that are open"):
        Interactions.read(as_csv(tmp_path), items=items).prepare()


def test_fields_may_be_long(tmp_path: Path) -> None:
    long, log, items = "x" * 140_000, tmp_path / "log.csv", tmp_path / "items.csv"
    log.write_text(f"user,item,timestamp,{long}\nu,{long},1,\nu,b,soon,\nu,c,3,\nu,d,4,\n")
    with pytest.raises(DataError, match=r"log\.csv, row 2 \(line 3\), column 'timestamp': 'soon' is no time"):
        Interactions.read(log)
    items.write_text(f'id,title\nb,Beta\nc,"{long}"\n')
    assert Interactions.read(log, on_error="drop", items=items).prepare().catalog.title(1) == long


def test_the_manifest_says_where_it_came_from(tmp_path: Path) -> None:
    path = as_gzip(tmp_path)
    manifest = Interactions.read(path).prepare(tmp_path / "out", name="mine", command="forethought …").manifest
    known = manifest["provenance"]
    assert known["sha256"] == {"log.csv.gz": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert (known["reader"], known["engine"], known["command"]) == ("csv", "duckdb", "forethought …")
    assert manifest["name"] == "mine"
    assert manifest["rules"][-1] == {"rule": "split", "protocol": "leave-one-out", "users_without_target": 1}
