"""The five commands, one after another, as a user gives them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from forethought.cli import main
from forethought.instruments.artefact import Instrument
from forethought.reasoners.progress.generation import Generations
from forethought.reasoners.progress.preparation import Prepared
from forethought.reasoners.strength import knobs

TRUTHS = [(["--do_sample", "True"], 0.6), (["--do_sample"], 0.6), (["--do-sample", "false"], 0.0), ([], 0.6)]


def run(*words: object) -> int:
    return main([*map(str, words), "--quiet", "--device", "cpu", "--threads", "1"])


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("commands") / "progress"
    assert run(
        "progress", "generate", "--model", folder, "--output_dir", out, "--generations_per_problem", 2, "--end", 40,
        "--number", 40, "--max_new_tokens", 50, "--do_sample", "True", "--temperature", 1, "--top_p", 1,
    ) == 0  # fmt: skip
    assert run("progress", "prepare", out) == 0
    assert run("progress", "train", out) == 0
    return out


def test_the_folder_holds_what_is_promised(made: Path) -> None:
    for name in ("prepared.json", "progress.json", "thoughts.png", "deciles.png", "gru", "tpv"):
        assert (made / name).exists()
    assert set(Instrument.open(made / "tpv").steering()) == {"norm"}
    assert run("export", made / "tpv", made / "tpv.npy") == 0
    assert np.array_equal(np.load(made / "tpv.npy"), Instrument.open(made / "tpv").tensors["norm"]["tpv"].numpy())
    document = json.loads((made / "progress.json").read_text())
    assert document["test"]["constant"]["mse"] == pytest.approx(1 / 12, rel=0.3)
    assert "generate" not in document["command"]


def test_training_again_gives_the_same(made: Path, tmp_path: Path) -> None:
    before = Instrument.open(made / "tpv").tensors["norm"]
    assert run("progress", "train", "--input_dir", made, "--output_dir", tmp_path / "other") == 0
    after = Instrument.open(tmp_path / "other" / "tpv").tensors["norm"]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert Prepared.open(tmp_path / "other").states().at("norm").shape[1] == 64  # known from there too


def test_it_overclocks_and_tells_before(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("progress", "intervene", made, "--alpha", 20, "--random", 1, "--max_new_tokens", 40) == 0
    told = capsys.readouterr().out
    assert "advantage" in told.split("Test problems")[0]
    document = json.loads((made / "intervene" / "intervene.json").read_text())
    assert document["foretold"]["centred"]["alpha"]["20"]["kl"] > 0
    knobs = {row["knob"] for row in document["outcomes"]["test"]}
    assert {"overclocking", "its end entry alone", "all but its end entry", "raw vector", "random 1"} <= knobs
    assert (made / "intervene" / "frontier.png").exists()
    assert (made / "intervene" / "parts.png").exists()


@pytest.mark.slow
def test_what_is_learned_from_a_collection_is_tested_beside_its_other_knobs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knobs, "survival_summary", partial(knobs.survival_summary, replicates=20))
    out = tmp_path / "c"
    words = ("--model", folder, "--number", 40, "--max-new-tokens", 50, "--temperature", 1, "--top-p", 1)
    assert run("strength", "collect", "--out", out, *words) == 0
    assert run("strength", "analyse", out, "--permutations", 5) == 0
    for step in ("prepare", "train"):
        assert run("progress", step, out) == 0
    assert run("strength", "efficient", out, "--progress", out) == 0
    tested = json.loads((out / "efficient" / "efficient.json").read_text())["outcomes"]["test"]
    assert {"overclocking", "direction", "end bias"} <= {row["knob"] for row in tested}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        *((("train", "--level", level), f"level is {level};") for level in ("1", "90", "-3", "0", "nan")),
        (("intervene", "--random", "-1"), "-1 is not between 0 and"),
        (("intervene", "--max-new-tokens", "0"), "max_new_tokens is 0"),
        (("intervene", "--top-p", "0"), "top_p 0.0"),
        (("intervene", "--problem_end_idx", "3"), "count the problems of --dataset; name it too"),
        (("intervene", "--problem_start_idx", "0"), "count the problems of --dataset; name it too"),
        (("intervene", "--dataset", "mine.jsonl", "--problem_start_idx", "-3"), "-3 is not between 0 and"),
        (("watch", "1+1", "--max-new-tokens", "0"), "max_new_tokens is 0"),
        (("watch", "1+1", "--top-p", "0"), "top_p 0.0"),
        (("watch", "1+1", "--temperature", "1e-320"), "temperature is 1e-320"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    made: Path, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    step, *more = words
    place = ["--progress", made] if step == "watch" else [made]
    try:
        code = run("progress", step, *more, *place)
    except SystemExit as end:  # of argparse
        code = int(end.code or 0)
    assert code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--number", 40), ("--family", "gcd")])
def test_problems_are_made_or_given(
    folder: Path, tmp_path: Path, words: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"question": "1+1=", "answer": "2"}) + "\n")
    assert run("progress", "generate", "--model", folder, "--out", tmp_path / "p", "--dataset", file, *words) == 2
    assert "are of problems made here, and --dataset names" in capsys.readouterr().err


def test_a_dataset_of_ones_own_is_numbered_as_it_is_and_its_end_is_not_in_it(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"question": f"{n}+{n}=", "answer": str(2 * n)}) + "\n" for n in range(8)))
    words = ["progress", "intervene", "--intervention_vector_path", made / "tpv", "--dataset", file, "--alpha", 20]
    words += ["--random", 0, "--output_generations_dir", tmp_path, "--task_name", "mine", "--max_new_tokens", 30]
    assert run(*words, "--problem_start_idx", 3, "--problem_end_idx", 6) == 0
    lines = [json.loads(line) for line in (tmp_path / "mine" / "generations.jsonl").read_text().splitlines()]
    assert [line["problem"] for line in lines] == [3, 4, 5]
    assert run(*words, "--problem_start_idx", 8) == 2
    assert "none in the range" in capsys.readouterr().err


def test_it_can_be_watched(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("progress", "watch", "sum 3 9", "--progress", made, "--max_new_tokens", 30) == 0
    captured = capsys.readouterr()
    assert "Progress is read from" in captured.err
    assert "thinking tokens" in captured.err
    assert run("progress", "watch", "--progress", made) == 2
    assert run("progress", "watch", "sum 3 9", "--sse", 0, "--progress", made) == 2


def test_progress_that_does_not_say_how_its_thoughts_were_drawn_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("tpv", "gru"):
        kept = Instrument.open(made / part)
        provenance = {key: value for key, value in kept.provenance.items() if key != "sampling"}
        replace(kept, provenance=provenance).save(tmp_path / "p" / part)
    assert run("progress", "watch", "sum 3 9", "--progress", tmp_path / "p") == 2
    told = capsys.readouterr().err
    assert "does not say in provenance.sampling how its thoughts were sampled (KeyError: 'sampling'); train it" in told


def test_the_embedded_reasoner_can_be_watched_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("progress", "watch", "gcd 84 36") == 0
    assert "answer 12" in capsys.readouterr().err
    assert run("progress", "watch", "gcd 84 36", "--model", "other") == 2
    assert "How other progresses has to be learned first" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "temperature"), TRUTHS)
def test_do_sample_takes_a_value_or_none(folder: Path, tmp_path: Path, words: list[str], temperature: float) -> None:
    assert run(
        "progress", "generate", "--model", folder, "--out", tmp_path, *words, "--start", 1, "--end", 2,
        "--samples", 1, "--max-new-tokens", 2,
    ) == 0  # fmt: skip
    found = Generations.open(tmp_path)
    assert found.sampling.temperature == temperature
    assert list(found.problems) == [1]


def test_a_truth_that_is_none_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("progress", "generate", "--model", folder, "--out", tmp_path, "--do_sample", "maybe")
    assert "maybe is neither True nor False" in capsys.readouterr().err


def test_no_folder_or_two_is_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("progress", "train") == 2
    assert run("progress", "train", made, "--input_dir", made) == 2
    assert capsys.readouterr().err.count("Name the folder to work on, once.") == 2
