"""The command line as a whole: the guide, exit codes, flags on either side, one line for every error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import forethought as package
from forethought import cli
from tests.cli.conftest import Command


def test_the_guide_names_every_command(forethought: Command):
    result = forethought("--help")
    assert result.returncode == 0
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name}\b", result.stdout, re.MULTILINE), name
    tour = [line for line in result.stdout.splitlines() if line.startswith("  forethought ")]
    assert len(tour) == 5
    assert len(max(result.stdout.splitlines(), key=len)) <= 120


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_takes_the_four_flags(name: str, capsys: pytest.CaptureFixture[str]):
    step = {"data": ["prepare"], "strength": ["collect"], "progress": ["generate"]}.get(name, [])
    words = [name, *step, "--help"]
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 0
    told = capsys.readouterr().out
    for flag in ("--seed", "--device", "--threads", "--quiet"):
        assert flag in told


def test_help_and_version_load_nothing_heavy():
    program = (
        "import sys, contextlib\n"
        "from forethought.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'duckdb', 'optuna'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


def test_version(forethought: Command):
    assert forethought("--version").stdout == f"forethought {package.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["trian"], "; did you mean 'train'?"),
        (["data", "prepar"], "; did you mean 'prepare'?"),
        (["compare", "run", "--split", "tset"], "; did you mean 'test'?"),
        (["xyz"], "; see 'forethought --help'."),
        (["train"], "the following arguments are required: RECIPE"),
        (["train", "r.yaml", "--learning_rate", "3"], "unrecognized arguments: --learning_rate 3"),
        (["train", "r.yaml", "--training.epochs"], "--training.epochs needs a value"),
        (["recommend", "run"], "one of the arguments --history --user is required"),
        (["recommend", "run", "--user", "u", "--model.gamma", "3"], "unrecognized arguments: --model.gamma"),
        (["train", "r.yaml", "--threads", "0"], "argument --threads: 0 is not at least 1"),
        (["train", "r.yaml", "--threads", "x"], "argument --threads: x is no whole number; see 'forethought train"),
        (["train", "r.yaml", "--threads", "1025"], "argument --threads: 1025 is more than 1024"),
        (["probe", "run", "--random", "-1"], "argument --random: -1 is not between 0 and"),
        (["train", "r.yaml", "--seed", "-1"], "argument --seed: -1 is not between 0 and"),
        (["data", "prepare", "log.csv", "--out", "o", "--repl"], "unrecognized arguments: --repl"),
        (["data", "check", "log.csv", "--fig", "c.png"], "unrecognized arguments: --fig"),
        (["data", "download", "steam", "--accept"], "unrecognized arguments: --accept"),
        (["data", "download", "steam", "--url", "x", "--path", "y"], "--path: not allowed with argument --url"),
        (["grow", "run", "--user", "u", "--guidance", "1", "nan"], "nan is no number between -1000 and 1000"),
        (["grow", "run", "--user", "u", "--guidance", "1e30"], "1e30 is no number between"),
        (["grow", "run", "--user", "u", "--guidance", "big"], "big is no number between"),
        (["data", "prepare", "log\udcff.csv", "--out", "o"], "log\\udcff.csv is not UTF-8 text; rename what it names"),
        (["train", "r.yaml", "--name", "n\udcff"], "n\\udcff is not UTF-8 text"),
        (["train", "r.yaml", "--out", ""], "argument --out: the path is empty"),
        (["compare", "run", "--json", ""], "argument --json: the path is empty"),
        (["recommend", "run", "--user", "u", "--\x1b[31m"], "unrecognized arguments: --\\x1b[31m"),
    ],
)  # fmt: skip
def test_usage_errors_are_one_line_and_exit_with_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("forethought: error: ")
    assert message in told.err
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "no/such"], "There is no recipe file 'no/such'"),
        (["train", "{recipe}"], "names no data; give --data.path FOLDER"),
        (["train", "{recipe}", "--data.path", "{tmp}/none"], "is no prepared data folder"),
        (["train", "{recipe}", "--data.path", "{data}", "--model.type", "x"], "model.type is 'x'; choose one of"),
        (["train", "{recipe}", "--model.hidden", "3"], "there is no key model.hidden; did you mean model.hidden_size?"),
        (["train", "{recipe}", "--data.path", "{data}", "--device", "cuda:7"], "no device 'cuda:7' on this machine"),
        (["train", "{recipe}", "--data.path", "{data}", "--device", "toaster"], "no device 'toaster' on this machine"),
        (["train", "{recipe}", "--data.path", "{data}", "--out", "{data}"], "exists already; go on with it"),
        (["train", "{recipe}", "--data.path", "{data}", "--out", "{data}", "--resume"], "holds no run (no run.json)"),
        (["train", "{recipe}", "--data.path", "{data}", "--out", "{recipe}", "--resume"], "holds no run (no run.json)"),
        (["train", "{recipe}", "--data.path", "{data}", "--resume"], "Name its folder with --out RUN"),
        (["recommend", "{tmp}/none", "--user", "u"], "is no run folder"),
        (["recommend", "{run}", "--user", "nobody"], "User 'nobody' is not in"),
        (["recommend", "{run}", "--history", "song-1,tune-2"], "Item 'tune-2' is not in the catalogue of 30 items"),
        (["recommend", "{run}", "--history", " , "], "The history is empty"),
        (["recommend", "{run}", "--history", "song-1\rnone"], "Item 'none' is not in the catalogue"),
        (["recommend", "{run}", "--history", "x" * 140_000], "The history cannot be read as ids parted by commas"),
        (["recommend", "{run}", "--history", "song-1", "-k", "0"], "k is 0; it has to be a whole number of 1 or more"),
        (["recommend", "{run}/model", "--user", "u"], "open the run folder"),
        (["recommend", "{run}", "--user", "\x1b[31m"], "User '\\x1b[31m' is not in"),
        (["data", "prepare", "\x1b[31mred.csv", "--out", "o"], "\\x1b[31mred.csv does not exist"),
        (["data", "check", "{data}", "--split", "user-split"], "is split already; leave --split out"),
        (["data", "check", "{data}", "--figure", "c.txt"], "c.txt is no kind of picture that can be drawn"),
        (["data", "download", "mine", "--path", "{recipe}"], "No SHA-256 is known for"),
        (["train", "{recipe}", "--data.path", "{data}", "--model.dropout", ".nan"], "'.nan'; it has to be a finite"),
        (["grow", "{run}", "--user", "ann 3"], "holds a sasrec, which does not grow"),
        (["tune", "{recipe}", "--data.path", "{data}", "--search", "model.dropout=3"], "is no range; write model"),
        (["tune", "{recipe}", "--data.path", "{data}", "--search", "model.drop=1..2"], "no key model.drop;"),
        (["tune", "{recipe}", "--data.path", "{data}", "--out", "{recipe}"], "{recipe}: File exists; free the space"),
        (["probe", "{run}", "--users", "0"], "users is 0; it has to be a whole number of 50 or more"),
        (["probe", "{run}", "--share", "nan"], "share is nan; it has to be more than 0 and at most 1"),
        (["probe", "{run}", "--share", "5"], "share is 5.0; it has to be more than 0 and at most 1"),
        (["evaluate", "x" * 300], "x/config.json: File name too long; free the space or choose another place"),
        (["tune", "{recipe}", "--data.path", "{data}", "--out", "{data}"], "something else than a search"),
        (["train", "{recipe}", "--data.path", "{data}", "--training.report_to", "[nope]"], "nope is not supported"),
        (["probe", "{run}", "--steps", "-1"], "steps is -1; it has to be a whole number of 0 or more"),
        (["tune", "{recipe}", "--data.path", "{data}", "--trials", "0"], "0 trials find nothing"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_exit_with_2(
    words: list[str], message: str, tmp_path: Path, trained: Path, recipe: Path, data: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    places = {"tmp": tmp_path, "run": trained, "recipe": recipe, "data": data}
    assert cli.main([word.format(**places) for word in words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("forethought: error: ")
    assert message.format(**places) in told.err
    assert told.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_flags_stand_before_or_after_the_command(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["recommend", str(trained), "--history", "song-1", "--json"]
    assert cli.main(["--device", "cpu", "--quiet", *words]) == 0
    first = capsys.readouterr().out
    assert cli.main([*words, "--device", "cpu", "--quiet", "--threads", "1"]) == 0
    assert capsys.readouterr().out == first


def test_nobody_reading_on_is_no_error(trained: Path):
    command = f"{sys.executable} -m forethought recommend {trained} --history song-1 | true"
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert result.stderr == ""


@pytest.mark.parametrize(
    "work",
    [
        "signal.raise_signal(signal.SIGINT)",
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        " duckdb.sql('SELECT sum(a.range % b.range) FROM range(100000000) a, range(1, 1000000) b').fetchall()",
    ],
)
def test_ctrl_c_is_quiet_while_modules_load_and_while_a_query_runs(work: str):
    program = (
        "import os, signal, threading, duckdb\n"
        "from forethought import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"def parser():\n {work}\n"
        "cli._parser = parser\n"
        "raise SystemExit(cli.main(['--help']))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (130, "forethought: error: stopped.\n")


def test_a_letter_that_the_terminal_lacks_is_spelled_out():
    command = [sys.executable, "-m", "forethought", "train", "--help"]
    result = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"[--section.key VALUE \\u2026]" in result.stdout


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, cli.SPIN), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_that_wait_give_their_core_away(
    given: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["compare", "nowhere"]) == 2
    assert os.environ.get("GOMP_SPINCOUNT") == found
