"""``evaluate`` and ``compare``: what they print, write and refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from forethought.cli import main
from forethought.evaluation.evaluator import Evaluation

Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def popularity(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "popularity"
    assert main(["train", "popularity", "--data.path", str(data), "--out", str(out), "--quiet"]) == 0
    return out


def test_evaluate_prints_both_rankings_and_keeps_the_result(popularity: Path, tmp_path: Path, capsys: Printed):
    assert main(["evaluate", str(popularity), "--json", str(tmp_path / "scores.json"), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    saved = Evaluation.load(popularity / "evaluation", "test")
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(json.dumps(saved.as_dict()))
    rows = {line.split()[0]: line.split() for line in printed.out.splitlines() if line.split()}
    for column, seen in ((1, "seen_removed"), (3, "seen_kept")):
        assert rows["NDCG@10"][column] == f"{saved.metrics[seen]['ndcg@10']:.4f}"
    for word in ("popularity on", "leave-one-out", saved.fingerprint[:12], "test", f"{saved.users} users"):
        assert word in printed.out


def test_evaluate_shows_one_ranking_and_another_split(popularity: Path, capsys: Printed):
    assert main(["evaluate", str(popularity), "--split", "valid", "--seen", "kept", "--json", "-", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["split"] == "valid"
    assert main(["evaluate", str(popularity), "--seen", "kept", "--quiet"]) == 0
    assert "seen removed" not in capsys.readouterr().out


def test_the_seed_moves_the_intervals_and_nothing_else(popularity: Path, capsys: Printed):
    found = []
    for seed in ("1", "1", "2"):
        assert main(["evaluate", str(popularity), "--seed", seed, "--json", "-", "--quiet"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["intervals"] == found[1]["intervals"] != found[2]["intervals"]
    assert found[0]["metrics"] == found[2]["metrics"]


def test_compare_evaluates_what_is_missing_and_writes_everything(
    trained: Path, popularity: Path, tmp_path: Path, capsys: Printed
):
    runs = [shutil.copytree(run, tmp_path / run.name) for run in (trained, popularity)]
    shutil.rmtree(runs[0] / "evaluation")
    out = tmp_path / "report"
    assert main(["compare", *map(str, runs), "--out", str(out), "--json", str(tmp_path / "all.json"), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"report.html", "leaderboard.md", "leaderboard.json"}
    saved = json.loads((tmp_path / "all.json").read_text())
    assert saved == json.loads((out / "leaderboard.json").read_text())
    assert [entry["model"] for entry in saved["entries"]] == ["sasrec", "popularity"]  # a ring is no popularity contest
    assert (runs[0] / "evaluation" / "test.json").is_file()
    places = [printed.index(text) for text in ("Report:", "NDCG@10 leaderboard", "small (baseline)", "leads with")]
    assert places == sorted(places)


def test_compare_takes_a_folder_of_runs(trained: Path, popularity: Path, tmp_path: Path, capsys: Printed):
    demo = tmp_path / "demo"
    for run in (trained, popularity):
        shutil.copytree(run, demo / run.name)
    (demo / "data").mkdir()
    (demo / "data" / "manifest.json").write_text("{}")
    words = ["--out", str(tmp_path / "report"), "--json", "-"]
    assert main(["compare", str(demo), *words]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # a bar is for a terminal
    assert [entry["model"] for entry in json.loads(printed.out)["entries"]] == ["sasrec", "popularity"]
    # a run that is named comes before its like in a folder
    assert main(["compare", str(demo), str(popularity), *words, "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"][1]["runs"] == [str(popularity)]


def test_compare_checks_every_path_before_it_evaluates(trained: Path, tmp_path: Path, capsys: Printed):
    run = shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "report").mkdir()
    shutil.rmtree(run / "evaluation")
    for wrong in ("nowhere", "report"):
        assert main(["compare", str(run), str(tmp_path / wrong)]) == 2
        assert "is no run folder (no run.json) and holds none; make one with" in capsys.readouterr().err
    assert not (run / "evaluation").exists()


def test_compare_refuses_in_one_sentence(trained: Path, log: Path, tmp_path: Path, capsys: Printed):
    other = tmp_path / "other"
    words = [
        "data",
        "prepare",
        str(log),
        "--out",
        str(tmp_path / "data"),
        "--k-core",
        "3",
        "--split",
        "global-time",
        "--quiet",
    ]
    assert main(words) == 0
    assert main(["train", "markov", "--data.path", str(tmp_path / "data"), "--out", str(other), "--quiet"]) == 0
    capsys.readouterr()
    run = shutil.copytree(trained, tmp_path / "run")
    assert main(["compare", str(run), str(other), "--out", str(tmp_path / "no"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("forethought: error: ")
    assert "differ in their protocol: global-time and leave-one-out" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "no").exists()
    assert main(["compare", str(tmp_path / "nowhere"), "--quiet"]) == 2
    assert "no run folder" in capsys.readouterr().err
