"""``forethought data`` from the command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from forethought.cli import main
from forethought.data.dataset import Dataset
from forethought.data.interactions import Interactions
from forethought.errors import ArtefactError
from tests.data.logs import SEQUENCES, sequences_of, write_csv

Printed = pytest.CaptureFixture[str]


def test_prepare(tmp_path: Path, capsys: Printed) -> None:
    log, out = write_csv(tmp_path / "log.csv"), tmp_path / "out"
    assert main(["data", "prepare", str(log), "--out", str(out), "--quiet"]) == 0
    dataset = Dataset.open(out, verify=True)
    assert sequences_of(dataset) == SEQUENCES
    printed = capsys.readouterr()
    assert "4 users, 5 items, 12 events; leave-one-out: 3 validation and 3 test cases" in printed.out
    assert "1 users have too few events to be tested" in printed.out
    assert printed.err == ""


def test_prepare_with_every_option(tmp_path: Path, capsys: Printed) -> None:
    log, out = tmp_path / "log.tsv", tmp_path / "out"
    rows = [
        f"{u}\t{i}\t{t}\t{r}" for u in range(6) for i, t, r in ((1, 1, 5), (2, 2, 5), (2, 3, 5), (3, 4, 1), (4, 5, 4))
    ]
    log.write_text("\n".join(["who\twhat\twhen\tstars", *rows, "9\t1\tnever\t5"]) + "\n")
    (tmp_path / "items.csv").write_text("key,title\n1,One\n2,Two\n")
    words = f"""data prepare {log} --out {out} --format tsv --user-column who --item-column what --time-column when
        --rating-column stars --min-rating 2 --duplicates consecutive --k-core 2 --min-length 2 --max-length 3
        --split user-split --seed 4 --on-error drop --items {tmp_path / "items.csv"} --items-id key --name mine
        --engine duckdb --threads 1 --quiet""".split()
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "dropped 1 rows (time: unparsable time)" in printed
    assert "duplicates: 6 events left out, 18 remain" in printed
    manifest = Dataset.open(out).manifest
    assert (manifest["name"], manifest["protocol"]) == ("mine", "user-split")
    assert manifest["rules"][-1]["seed"] == 4
    assert manifest["provenance"]["items"]["described"] == 2
    assert main([*words, "--replace"]) == 0


def test_a_folder_that_exists_is_refused_before_anything_is_read(tmp_path: Path, capsys: Printed) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert main(["data", "prepare", str(tmp_path / "no.csv"), "--out", str(out)]) == 2
    assert f"{out} exists already; choose another folder or overwrite it with --replace." in capsys.readouterr().err
    stages: list[str] = []
    with pytest.raises(ArtefactError, match="exists already; choose another folder or overwrite it with replace=True"):
        Interactions.read(write_csv(tmp_path / "log.csv")).prepare(out, progress=stages.append)
    assert stages == []


def test_what_replace_may_not_touch(tmp_path: Path, capsys: Printed) -> None:
    foreign = tmp_path / "papers"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    assert main(["data", "prepare", str(tmp_path / "no.csv"), "--out", str(foreign), "--replace"]) == 2
    assert f"{foreign} is neither an empty folder nor a prepared data folder" in capsys.readouterr().err
    assert (foreign / "thesis.txt").read_text() == "mine"
    out = tmp_path / "out"
    assert main(["data", "prepare", str(write_csv(tmp_path / "log.csv")), "--out", str(out), "--quiet"]) == 0
    log = write_csv(out / "log.csv")
    assert main(["data", "prepare", str(log), "--out", str(out), "--replace"]) == 2
    assert f"{out} holds {log}, which is read, so it is not replaced" in capsys.readouterr().err


def test_cuts_go_with_global_time(tmp_path: Path, capsys: Printed) -> None:
    rows = [(user, step % 5, 10 * user + step) for user in range(6) for step in range(8)]
    log, out = write_csv(tmp_path / "log.csv", rows), tmp_path / "out"
    words = ["data", "prepare", str(log), "--out", str(out), "--quiet", "--cuts", "0.5", "0.7"]
    for more in ([], ["--split", "leave-one-out"]):
        assert main([*words, *more]) == 2
        assert "Cuts go with the split global-time alone" in capsys.readouterr().err
    assert main([*words, "--split", "global-time"]) == 0
    assert "users have no event after a cut that has one before it\n" in capsys.readouterr().out
    assert Dataset.open(out).manifest["rules"][-1]["quantiles"] == [0.5, 0.7]
    assert main([*words[:-3], "--split", "global-time", "--replace"]) == 0
    assert Dataset.open(out).manifest["rules"][-1]["quantiles"] == [0.8, 0.9]


def test_brackets_are_no_markup(tmp_path: Path, capsys: Printed) -> None:
    log = write_csv(tmp_path / "log [b].csv")
    out = tmp_path / "[/out]"
    assert main(["data", "prepare", str(log), "--out", str(out), "--name", "[b]mine[/i] :smile:"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 4 users")
    assert main(["data", "check", str(out)]) == 0
    assert "[b]mine[/i] :smile: · leave-one-out" in " ".join(capsys.readouterr().out.split())


def test_a_user_error_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", [("u", "a", 1), ("u", "b", "soon"), ("u", "c", 3)])
    run = subprocess.run(
        [sys.executable, "-m", "forethought", "data", "prepare", str(log), "--out", str(tmp_path / "out")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stdout == ""
    lines = run.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"forethought: error: {log}, row 2 (line 3), column 'timestamp': 'soon' is no time")
    assert not (tmp_path / "out").exists()


def test_files_are_utf_8_wherever_this_runs(tmp_path: Path) -> None:
    log, out, report = tmp_path / "log.csv", tmp_path / "out", tmp_path / "r.json"
    log.write_text("user,item,timestamp,action\nu,a,1,kjøp\nu,b,2,kjøp\nu,c,3,kjøp\n", encoding="utf-8")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}  # text is ASCII

    def call(*words: object) -> None:
        command = [sys.executable, "-m", "forethought", "data", *map(str, words)]
        subprocess.run(command, check=True, env={**os.environ, **plain})

    call("prepare", log, "--out", out, "--action-column", "action")
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["actions"] == ["kjøp"]
    (out / "manifest.json").write_text(json.dumps({**manifest, "name": "kjøp"}, ensure_ascii=False), encoding="utf-8")
    call("check", out, "--json", report)
    assert json.loads(report.read_text(encoding="utf-8"))["name"] == "kjøp"


def test_check(tmp_path: Path, capsys: Printed) -> None:
    words = ["data", "check", "bundled:movielens-latest-small", "--quiet"]
    assert main([*words, "--json", str(tmp_path / "r.json"), "--figure", str(tmp_path / "r.png")]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"Figure: {tmp_path / 'r.png'}\n")
    assert "users whose last two events tie" in printed.out
    assert "look into the future" in " ".join(printed.out.split())
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["counts"]["events"] == 100_836
    assert (tmp_path / "r.png").stat().st_size > 20_000
    log = write_csv(tmp_path / "log.csv")
    assert main(["data", "prepare", str(log), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert main(["data", "check", str(tmp_path / "out"), "--quiet"]) == 0
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2
    capsys.readouterr()
    assert main(["data", "check", str(log), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["events"] == 12


def test_download(tmp_path: Path, capsys: Printed) -> None:
    log = write_csv(tmp_path / "log.csv")
    files = lambda *args, **kept: SimpleHTTPRequestHandler(*args, directory=str(tmp_path), **kept)  # noqa: E731
    with ThreadingHTTPServer(("127.0.0.1", 0), files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = ["data", "download", "mine", "--url", f"http://127.0.0.1:{server.server_port}/log.csv", "--quiet"]
        words += ["--out", str(tmp_path / "got")]
        assert main(words) == 2
        assert "--accept-unverified" in capsys.readouterr().err
        assert main([*words, "--sha256", "0" * 64]) == 2
        assert "expected 0000" in capsys.readouterr().err
        assert main([*words, "--sha256", hashlib.sha256(log.read_bytes()).hexdigest()]) == 0
        server.shutdown()
    printed = capsys.readouterr().out
    assert f"next: forethought data prepare {tmp_path / 'got'} --out DIR" in printed
    words = ["data", "download", "mine", "--path", str(log), "--accept-unverified", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "nowhere" / ".." / "beside")]) == 0
    assert (tmp_path / "got" / "log.csv").read_bytes() == log.read_bytes()


def test_a_file_of_items_is_told_to_stand_beside_its_log(tmp_path: Path, capsys: Printed) -> None:
    shelf, got = tmp_path / "shelf", tmp_path / "got"
    shelf.mkdir()
    with gzip.open(shelf / "steam_games.json.gz", "wt") as file:
        file.write('{"id": "10", "title": "Chess", "genres": ["Strategy"]}\n')
    words = ["data", "download", "steam-items", "--path", str(shelf), "--out", str(got), "--quiet"]
    assert main([*words, "--accept-unverified"]) == 0
    items = got / "steam_games.json.gz"
    assert f"next: forethought data prepare LOG --format steam --items {items} --out DIR" in capsys.readouterr().out
    log = tmp_path / "log.jsonl"
    events = [{"username": "u", "product_id": "10", "date": f"2017-12-0{day}"} for day in range(1, 5)]
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    prepared = ["data", "prepare", str(log), "--format", "steam", "--items", str(items)]
    assert main([*prepared, "--out", str(tmp_path / "data")]) == 0
    assert Dataset.open(tmp_path / "data").catalog.title(1) == "Chess"


def test_a_file_that_was_downloaded_already(tmp_path: Path, capsys: Printed) -> None:
    log = write_csv(tmp_path / "log.csv")
    digest = hashlib.sha256(log.read_bytes()).hexdigest()
    words = ["data", "download", "mine", "--path", str(log), "--out", str(tmp_path / "got"), "--quiet"]
    assert main([*words, "--sha256", digest]) == 0
    printed = capsys.readouterr().out
    assert f"file: {log}\nsha256: {digest} (as expected)\n" in printed
    assert sequences_of(Interactions.read(tmp_path / "got").prepare()) == SEQUENCES
    with pytest.raises(SystemExit):
        main(["data", "download", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "The SHA-256 is known of movielens-1m-sasrec; the others need" in told
