"""The data doctor finds what was planted, and nothing where there is nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from forethought.data.assembly import assemble
from forethought.data.dataset import Dataset, Sequences
from forethought.data.doctor import check
from forethought.data.doctor_figure import draw
from forethought.data.interactions import Interactions
from forethought.data.planted import plant
from forethought.errors import ArtefactError, DataError
from tests.data.logs import write_csv


def make(rows: list[list[int]], times: list[list[int]] | None = None, **options: Any) -> Dataset:
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    items = np.array([item for row in rows for item in row], dtype=np.int32)
    moments = None if times is None else np.array([time for row in times for time in row], dtype=np.int64)
    described = pa.table({"id": pa.array(range(1, int(items.max()) + 1))})
    return assemble(Sequences(offsets, items, moments), pa.array(range(len(rows))), described, **options)


def test_a_healthy_log_has_no_findings() -> None:
    rows = [[1, 2, 3, 4], [2, 3, 4, 1], [3, 4, 1, 2], [4, 1, 2, 3]]
    times = [[10, 20, 300, 400 + user] for user in range(4)]
    report = check(make(rows, times))
    assert report.findings == []
    assert (report.tied_events, report.tied_last, report.duplicates, report.consecutive_repeats) == (0, 0, 0, 0)
    assert report.cold_targets == report.repeated_targets == {"valid": 0, "test": 0}
    assert report.later_training == {"valid": 0, "test": 0}
    assert report.copied_sequences is None
    assert report.popularity["gini"] == pytest.approx(0)


def test_ties() -> None:
    rows = [[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]]
    report = check(make(rows, [[1, 2, 2], [1, 1, 2], [5, 6, 7], [8, 8, 8]]))
    assert report.tied_last == 0.5
    assert report.tied_events == pytest.approx(4 / 11)  # of the 11 events that have one before
    assert "50% of the users have a tie between their last two events" in report.findings[0]


@pytest.mark.parametrize("ids", [["a", "NULL", "c", "nan"], [1, 2, 3, 4]])
def test_ids_that_look_missing(ids: list[Any]) -> None:
    table = pa.table({"user": [1, 1, 1, 2, 2, 2], "item": [ids[each] for each in (0, 1, 2, 1, 3, 1)]})
    report = check(Interactions.from_table(table, time_column=None))
    expected = {"item NULL": 3, "item nan": 1} if ids[0] == "a" else {}
    assert report.looks_missing == expected
    told = "Ids that mostly mark a missing value are taken as they are: item NULL (3 events), item nan (1 events);"
    assert any(finding.startswith(told) for finding in report.findings) == bool(expected)
    table = pa.table({"user": ["None"] * 3 + ["x"], "item": ["a", "b", "c", "Null"]})
    assert check(Interactions.from_table(table, time_column=None)).looks_missing == {"user None": 3}


def test_repeats() -> None:
    report = check(make([[1, 1, 1, 2, 3], [2, 3, 2, 3, 2], [1, 2, 3]]))
    assert report.duplicates == 2 + 3
    assert report.consecutive_repeats == 2
    assert report.repeated_targets == {"valid": 1, "test": 1}
    assert report.tied_last is None
    assert any("taken on trust" in finding for finding in report.findings)


def test_cold_targets() -> None:
    report = check(make([[1, 2, 3, 9], [1, 2, 8, 3], [3, 1, 2, 1]]))
    assert report.cold_targets == {"valid": 1, "test": 1}
    assert any(
        finding.startswith("Of the test targets 1 (33.33%) never occur in training") for finding in report.findings
    )


def test_training_after_the_target_is_a_leak_that_global_time_mends() -> None:
    rows = [[1, 2, 3, 4, 1]] * 4
    times = [[10 * (5 * user + step) for step in range(5)] for user in range(4)]  # one user after the other
    leaky = check(make(rows, times))
    # of the 12 training events 9, 6, 3 and 0 come after the users' targets
    assert leaky.later_training is not None
    assert leaky.later_training["test"] == pytest.approx((9 + 6 + 3 + 0) / 4 / 12)
    assert any("look into the future" in finding for finding in leaky.findings)
    overlapping = [[10 * step + user for step in range(5)] for user in range(4)]
    honest = check(make(rows, overlapping, split="global-time"))
    assert honest.later_training == {"valid": 0, "test": 0}


def test_copied_users_are_a_leak_of_the_user_split() -> None:
    rows = [[1, 2, 3], [4, 5, 6], [1, 2, 3], [1, 2, 4], [4, 5, 6], [2, 3]]
    report = check(make(rows, parts=np.array([0, 0, 1, 1, 2, 2])))
    assert report.protocol == "user-split"
    assert report.copied_sequences == {"valid": 1, "test": 1}
    assert any("1 test users is that of a training user" in finding for finding in report.findings)


def test_lengths_and_popularity() -> None:
    rows = [[1] * 90 + [2] * 7, [2, 3, 1]]
    report = check(make(rows))
    assert report.lengths == {
        "least": 3, "lower_quartile": 26.5, "median": 50, "mean": 50, "upper_quartile": 73.5, "greatest": 97
    }  # fmt: skip
    counts = [91, 8, 1]
    brute = sum(abs(a - b) for a in counts for b in counts) / (2 * len(counts) * sum(counts))
    assert report.popularity["gini"] == pytest.approx(brute)
    assert report.popularity["top_1_percent"] == 0.91
    assert report.popularity["once"] == 1


def test_planted_sequences_are_checked_like_any_other() -> None:
    report = check(plant(items=50).dataset(users=300, length=10))
    assert report.counts["events"] == 3000
    assert report.duplicates > 0


def test_it_takes_folders_logs_and_interactions(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv")
    interactions = Interactions.read(log)
    prepared = interactions.prepare(tmp_path / "out")
    reports = [check(source) for source in (log, str(log), interactions, prepared, tmp_path / "out")]
    assert len({report.fingerprint for report in reports}) == 1
    assert reports[0].tied_events == pytest.approx(1 / 11)
    np.save(tmp_path / "out" / "times.npy", np.load(tmp_path / "out" / "times.npy") + 1)
    with pytest.raises(DataError, match="does not match its fingerprint"):
        check(tmp_path / "out")


def test_table_json_and_figure(tmp_path: Path) -> None:
    for number, dataset in enumerate(
        (Interactions.read("bundled:movielens-latest-small").prepare(), plant(items=30).dataset(users=40, length=5))
    ):
        report = check(dataset)
        console = Console(file=io.StringIO(), width=120)
        console.print(report.table())
        assert f"{report.counts['users']:,}" in console.file.getvalue()  # type: ignore[attr-defined]
        assert json.loads(json.dumps(report.to_json()))["counts"] == report.counts
        draw(report, dataset, tmp_path / f"{number}.png")
        picture = (tmp_path / f"{number}.png").read_bytes()
        assert picture[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(picture) > 20_000
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="Cannot write"):
        draw(report, dataset, tmp_path / "file" / "x.png")
    with pytest.raises(DataError, match=r"c\.txt is no kind of picture .* \.png, \.pdf or \.svg"):
        draw(report, dataset, tmp_path / "c.txt")
    draw(report, dataset, tmp_path / "c.PDF")
    assert (tmp_path / "c.PDF").read_bytes().startswith(b"%PDF")


@pytest.mark.filterwarnings("error")
def test_a_name_is_shown_as_it_is_in_any_script(tmp_path: Path) -> None:
    report = check(make([[1, 2, 3]] * 4, name="[a] 音楽 [/b]"))
    console = Console(file=io.StringIO(), width=120)
    console.print(report.table())
    assert "[a] 音楽 [/b] · leave-one-out" in console.file.getvalue()  # type: ignore[attr-defined]
    draw(report, make([[1, 2, 3]] * 4), tmp_path / "figure.png")
