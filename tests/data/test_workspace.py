"""What happens when the scratch space runs out."""

from __future__ import annotations

import gc
import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from forethought.data.interactions import Interactions
from forethought.data.workspace import Workspace
from forethought.errors import ArtefactError
from tests.data.logs import SEQUENCES, sequences_of, write_csv


@pytest.mark.parametrize("room", ["4k", "64k", "1m"])  # for the database, for its first rows, for the log
def test_a_full_scratch_disk_is_not_blamed_on_the_log(
    room: str, tmp_path: Path, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = small_disk(room)
    random = np.random.default_rng(0)
    table = pa.table({name: random.integers(0, 10**6, 200_000) for name in ("user", "item", "timestamp")})
    pyarrow.csv.write_csv(table, tmp_path / "log.csv")
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress((tmp_path / "log.csv").read_bytes(), 1))
    pq.write_table(table, tmp_path / "log.parquet")
    table.to_pandas().to_json(tmp_path / "log.jsonl", orient="records", lines=True)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    (tmp_path / "log.txt").write_text((tmp_path / "log.csv").read_text().replace(",", "  "))
    for name in ("log.csv", "log.csv.gz", "log.parquet", "log.jsonl", "log.txt"):
        form = "user-sequence" if name == "log.txt" else "auto"
        with pytest.raises(ArtefactError, match=r"^Working space ran out \(.*\); free .* or set TMPDIR") as full:
            Interactions.read(tmp_path / name, form, threads=1)
        assert name not in str(full.value)
        del full
        gc.collect()
        assert list(scratch.iterdir()) == []


# DuckDB has 20 MB, the disk 40 MB: neither 4 million rows in memory nor the spilled rest have room.
FULL_SCRATCH = """
import sys
from forethought.cli import main
from forethought.data.workspace import Workspace
Workspace.__init__.__defaults__ = (20, None)
sys.exit(main(["data", "prepare", sys.argv[1], "--out", sys.argv[2], "--quiet", "--threads", "1"]))
"""


@pytest.mark.slow
def test_a_full_scratch_disk_is_one_sentence(tmp_path: Path, small_disk: Callable[[str], Path]) -> None:
    scratch = small_disk("40m")
    random = np.random.default_rng(0)
    log = tmp_path / "log.csv"
    columns = {name: random.integers(0, 10**6, 4_000_000) for name in ("user", "item", "timestamp")}
    pyarrow.csv.write_csv(pa.table(columns), log)
    run = subprocess.run(
        [sys.executable, "-c", FULL_SCRATCH, str(log), str(tmp_path / "out")],
        capture_output=True, text=True, env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith("forethought: error: Working space ran out ("), run.stderr
    assert "TMPDIR" in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert list(scratch.iterdir()) == []


def test_the_scratch_folder_goes_away_and_the_data_stay(tmp_path: Path) -> None:
    interactions = Interactions.read(write_csv(tmp_path / "log.csv"))
    folder = interactions.workspace.folder
    first = interactions.prepare()
    second = interactions.prepare(k_core=2)
    assert folder.is_dir()
    interactions.close()
    assert not folder.exists()
    assert sequences_of(first) == SEQUENCES  # its arrays are mapped from files that no longer have a name
    assert second.manifest["counts"]["events"] < first.manifest["counts"]["events"]


def test_tables_larger_than_the_memory_live_on_disk(tmp_path: Path) -> None:
    workspace = Workspace(30, threads=1)
    kept = [
        workspace.store(workspace.backend.sql(f"SELECT range + {n} AS a, hash(range) AS b FROM range(2000000)"))
        for n in range(2)
    ]
    assert sum(file.stat().st_size for file in workspace.folder.rglob("*")) > 30_000_000
    assert [table.count().to_pyarrow().as_py() for table in kept] == [2_000_000] * 2
    workspace.drop(kept[0])
    assert kept[1].a.max().to_pyarrow().as_py() == 2_000_000


def test_names_that_need_quoting(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "odd" [dir]*?'
    folder.mkdir()
    table = pa.table({'us"er': [1, 1, 1], "it'em": [1, 2, 3], "time; DROP": [1, 2, 3]})
    log = folder / "a'b.csv"
    table.to_pandas().to_csv(log, index=False)
    names = ('us"er', "it'em", "time; DROP")
    assert len(Interactions.read(log, "auto", *names)) == 3
    table.to_pandas().to_parquet(folder / "a'b.parquet")
    assert len(Interactions.read(folder / "a'b.parquet", "auto", *names)) == 3
    assert len(Interactions.from_table(table, *names)) == 3
