"""The cleaning rules against plain Python, and DuckDB against Spark."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forethought.data.cleaning import Rules, clean
from forethought.data.interactions import Interactions
from forethought.errors import DataError
from tests.data.logs import sequences_of

Event = tuple[int, int, int]
PROPERTY = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
EVENTS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=40)


def cleaned(events: list[Event], **rules: Any) -> list[Event]:
    """What is left, in the order of users and of the declared tie rule."""
    columns = {name: [event[place] for event in events] for place, name in enumerate(("user", "item", "timestamp"))}
    interactions = Interactions.from_table(
        pa.table(columns, schema=pa.schema([(name, pa.int64()) for name in columns]))
    )
    table, _ = clean(interactions.table, Rules(**rules), interactions.workspace.store, interactions.workspace.drop)
    rows = table.order_by(["user", "time", "row"]).select("user", "item", "time").to_pyarrow().to_pylist()
    return [(row["user"], row["item"], row["time"] // 1000) for row in rows]


def ordered(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda event: (event[0], event[2]))  # stable: rows break ties


def brute_force_core(events: list[Event], k: int) -> list[Event]:
    """Remove one offending user or item at a time until there is none."""
    while True:
        users, items = Counter(event[0] for event in events), Counter(event[1] for event in events)
        few_users = [user for user, number in users.items() if number < k]
        few_items = [item for item, number in items.items() if number < k]
        if few_users:
            events = [event for event in events if event[0] != few_users[0]]
        elif few_items:
            events = [event for event in events if event[1] != few_items[0]]
        else:
            return events


@given(EVENTS, st.integers(2, 4))
@PROPERTY
def test_k_core_is_the_greatest_core(events: list[Event], k: int) -> None:
    expected = ordered(brute_force_core(events, k))
    if expected:
        assert cleaned(events, k_core=k) == expected
    else:
        with pytest.raises(DataError, match="No event is left after the rule 'k_core'"):
            cleaned(events, k_core=k)


@given(EVENTS)
@PROPERTY
def test_duplicates(events: list[Event]) -> None:
    events = ordered(events)
    first = list({event[:2]: event for event in reversed(events)}.values())
    last = list({event[:2]: event for event in events}.values())
    exact = list(dict.fromkeys(events))
    consecutive = [
        e for before, e in zip([None, *events], events, strict=False) if before is None or before[:2] != e[:2]
    ]
    assert cleaned(events, duplicates="keep") == events
    assert sorted(cleaned(events, duplicates="first")) == sorted(first)
    assert sorted(cleaned(events, duplicates="last")) == sorted(last)
    assert cleaned(events, duplicates="exact") == exact
    assert cleaned(events, duplicates="consecutive") == consecutive


@given(EVENTS, st.integers(1, 5), st.integers(1, 4))
@PROPERTY
def test_lengths(events: list[Event], least: int, newest: int) -> None:
    lengths = Counter(event[0] for event in events)
    kept = ordered([event for event in events if lengths[event[0]] >= least])
    if kept:
        assert cleaned(events, min_length=least) == kept
    expected = [event for user in range(1, 7) for event in [e for e in ordered(events) if e[0] == user][-newest:]]
    assert cleaned(events, max_length=newest) == expected


def test_rules_are_written_to_the_manifest() -> None:
    dataset = Interactions.read("bundled:movielens-latest-small").prepare(
        min_rating=4, k_core=5, min_length=6, max_length=50
    )
    rules = dataset.manifest["rules"]
    assert [rule["rule"] for rule in rules] == ["min_rating", "k_core", "min_length", "max_length", "split"]
    assert rules[0]["before"] == {"users": 610, "items": 9724, "events": 100_836}
    for before, after in pairwise(rules[:-1]):
        assert before["after"] == after["before"]
    assert rules[3]["after"]["events"] == dataset.manifest["counts"]["events"]
    assert dataset.sequences.ratings is not None
    assert dataset.sequences.ratings.min() >= 4


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ({"duplicates": "some"}, "no duplicate policy 'some'"),
        ({"k_core": -1}, "k_core is -1"),
        ({"max_length": 0}, "max_length is 0"),
        ({"k_core": 10**20}, "k_core is 1[0]+; it has to be a whole number of 9223372036854775807 or less"),
        ({"min_length": 2**63}, "min_length is 9223372036854775808; it has to be"),
        ({"max_length": 2**63}, "max_length is 9223372036854775808; it has to be"),
        ({"k_core": 2**63 - 1}, "No event is left after the rule 'k_core'"),
        ({"min_rating": 3}, "needs a rating column"),
        ({"min_length": 99}, "No event is left after the rule 'min_length'"),
    ],
)
def test_bad_rules(rules: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        cleaned([(1, 1, 1), (1, 2, 2), (1, 3, 3)], **rules)


RULES: list[dict[str, Any]] = [
    {
        "min_rating": 3.5,
        "duplicates": "consecutive",
        "k_core": 5,
        "min_length": 7,
        "max_length": 40,
        "split": "global-time",
    },
    {"duplicates": "last", "k_core": 10, "split": "user-split", "seed": 3},
]


@pytest.mark.slow
@pytest.mark.spark
@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is not installed (the extra [spark])")
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java for Spark")
def test_spark_gives_the_same_fingerprints(tmp_path: Path) -> None:
    for rules in RULES:
        made = {
            engine: Interactions.read("bundled:movielens-latest-small", engine=engine).prepare(**rules)
            for engine in ("duckdb", "spark")
        }
        assert made["duckdb"].fingerprint == made["spark"].fingerprint
        assert made["spark"].manifest["provenance"]["engine"] == "spark"
        assert made["duckdb"].manifest["rules"] == made["spark"].manifest["rules"]
    strange = [
        ("u 1", 'q"uote', 5, "v"), ("u 1", "日本", 5, "b"), ("u 1", "a,b", 4, "v"),
        ("Ü", "日本", 1, "v"), ("Ü", "é", 1, "b"), ("Ü", 'q"uote', 1, "v"),
    ]  # fmt: skip
    path = tmp_path / "strange.jsonl"
    names = ("user", "item", "timestamp", "did")
    path.write_text("\n".join(json.dumps(dict(zip(names, event, strict=True))) for event in strange))
    made = {
        engine: Interactions.read(path, action_column="did", engine=engine).prepare() for engine in ("duckdb", "spark")
    }
    assert sequences_of(made["spark"]) == {"u 1": ["a,b", 'q"uote', "日本"], "Ü": ["日本", "é", 'q"uote']}
    assert made["duckdb"].fingerprint == made["spark"].fingerprint


@pytest.mark.slow
@pytest.mark.spark
@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is not installed (the extra [spark])")
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java for Spark")
def test_an_ibis_table_on_spark_stays_there() -> None:
    import ibis

    from forethought.data.spark import _session

    session = _session("")
    rows = [("u", item, place * 10, place) for place, item in enumerate("cabd")]
    session.createDataFrame(rows, "user string, item string, timestamp long, place long").createOrReplaceTempView(
        "events"
    )
    table = ibis.pyspark.connect(session).table("events")
    dataset = Interactions.from_table(table, row_column="place").prepare()
    assert dataset.manifest["provenance"]["engine"] == "pyspark"
    assert sequences_of(dataset) == {"u": ["c", "a", "b", "d"]}
    moments = session.sql(
        "SELECT 'u' AS user, id AS item, timestamp_millis(1577836800250 + id) AS timestamp FROM range(3)"
    )
    moments.createOrReplaceTempView("moments")
    session.conf.set("spark.sql.session.timeZone", "America/New_York")
    times = Interactions.from_table(ibis.pyspark.connect(session).table("moments")).prepare().sequences.times
    assert times is not None
    assert times.tolist() == [1577836800250, 1577836800251, 1577836800252]
    days = session.sql("SELECT 'u' AS user, id AS item, 20200101 + id AS timestamp FROM range(3)")
    days.createOrReplaceTempView("days")
    times = Interactions.from_table(ibis.pyspark.connect(session).table("days")).prepare().sequences.times
    assert times is not None
    assert times.tolist() == [1577836800000, 1577923200000, 1578009600000]
    session.conf.set("spark.sql.session.timeZone", "UTC")
    with pytest.raises(DataError, match="column 'timestamp': the value is missing"):
        Interactions.from_table(table.mutate(timestamp=ibis.null("int64")))
