"""Every bad input is one sentence and exit code 2; and all five steps on a tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from forethought.cli import main
from forethought.instruments.artefact import Instrument
from forethought.instruments.fingerprint import Identity
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.strength import knobs
from tests.reasoners.tiny import problems, tiny

Words = tuple[object, ...]


def saved(reasoner: Reasoner, path: Path) -> Path:
    reasoner.model.save_pretrained(path)
    reasoner.tokenizer.save_pretrained(path)
    return path


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, another, one that does not think, problems, and a collection with an analysis."""
    folder = tmp_path_factory.mktemp("strength")
    saved(tiny(seed=3, end=2.0), folder / "model")
    saved(tiny(seed=4, end=2.0), folder / "other")
    vocabulary = {text: number for number, text in enumerate(["[UNK]", "[END]", *"abcdefghij"])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", eos_token="[END]").save_pretrained(
        folder / "llama"
    )
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    rows = [{"question": p.question, "answer": p.answer, "level": p.level, "family": p.family} for p in problems(40)]
    jsonl(folder / "problems.jsonl", rows)
    assert collect(folder, folder / "c") == 0
    return folder


def collect(there: Path, out: Path, *more: object) -> int:
    words = [
        "strength", "collect", "--out", out, "--model", there / "model", "--problems", there / "problems.jsonl",
        "--samples", 4, "--max-new-tokens", 40, "--temperature", 1, "--top-p", 1, "--quiet", "--device", "cpu", *more,
    ]  # fmt: skip
    return call(*words)


def call(*words: object) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as end:  # of argparse
        return int(end.code or 0)


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*words: object) -> str:
        capfd.readouterr()
        assert call("strength", *words, "--quiet") == 2
        told = capfd.readouterr()
        assert told.out == ""
        (line,) = told.err.splitlines()
        assert line.startswith("forethought: error: ")
        return line

    return run


def test_collecting_says_what_was_cut_off_and_goes_on(
    there: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert collect(there, tmp_path / "c", "--max-new-tokens", 3) == 0
    told = capfd.readouterr().out
    assert "40 problems, 160 rollouts" in told
    assert "were not closed within 3 tokens" in told
    assert "No answer stood in a box; ask for it" in told
    assert told.splitlines()[-1] == str(tmp_path / "c")
    lines = tmp_path / "c" / "rollouts" / "rollouts.jsonl"
    whole = lines.read_bytes()
    lines.write_bytes(whole[: len(whole) // 2])
    assert collect(there, tmp_path / "c", "--max-new-tokens", 3) == 0
    assert lines.read_bytes() == whole
    assert capfd.readouterr().out == told


def test_fewer_problems_than_asked_for_are_told(there: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = (
        "strength",
        "collect",
        "--out",
        tmp_path / "c",
        "--model",
        there / "model",
        "--family",
        "gcd",
        "--number",
        5000,
    )
    assert call(*words, "--samples", 1, "--max-new-tokens", 1, "--quiet", "--device", "cpu", "--batch-size", 512) == 0
    told = capfd.readouterr()
    assert "there are only" in told.err
    assert "5000 problems" not in told.out


# what is wrong -> the words, given the folder, and a piece of the sentence
WRONG: dict[str, tuple[Callable[[Path], Words], str]] = {
    "no collection": (lambda f: ("analyse", f / "nothing"), "holds no collection"),
    "no collection to steer": (lambda f: ("steer", f / "nothing"), "holds no collection"),
    "no collection to detect in": (lambda f: ("overthink", f / "nothing"), "holds no collection"),
    "no collection to save in": (lambda f: ("efficient", f / "nothing"), "holds no collection"),
    "no name": (lambda f: ("collect", "--out", f / "x", "--model", ""), "The model has no name"),
    "no model": (lambda f: ("collect", "--out", f / "x", "--model", f / "nothing"), "no folder"),
    "no delimiters": (lambda f: ("collect", "--out", f / "x", "--model", f / "llama"), "has no token <think>"),
    "other delimiters": (
        lambda f: ("collect", "--out", f / "x", "--model", f / "model", "--think", "<a>", "<b>"), "has no token <a>"
    ),
    "no problems": (
        lambda f: ("collect", "--out", f / "x", "--model", f / "model", "--problems", f / "none"), "cannot be read"
    ),
    "too few problems": (
        lambda f: ("collect", "--out", f / "x", "--model", f / "model", "--number", 5), "There are 5 different problems"
    ),
    "no such family": (
        lambda f: ("collect", "--out", f / "x", "--model", f / "model", "--family", "cake"), "no family 'cake'"
    ),
    "no samples": (lambda f: ("collect", "--out", f / "x", "--samples", 0), "samples is 0"),
    "no top": (lambda f: ("collect", "--out", f / "x", "--top-p", 2), "top_p 2.0"),
    "no temperature": (lambda f: ("collect", "--out", f / "x", "--temperature", "nan"), "temperature is nan"),
    "hardly a temperature": (lambda f: ("collect", "--out", f / "x", "--temperature", 1e-320), "temperature is 1e-320"),
    "no device": (lambda f: ("steer", f / "c", "--device", "abacus"), "no device 'abacus'"),
    "no permutations": (lambda f: ("analyse", f / "c", "--permutations", 0), "permutations is 0"),
    "no kind": (lambda f: ("analyse", f / "c", "--kind", "magic"), "invalid choice: 'magic'"),
    "no step": (lambda f: ("collekt",), "did you mean 'collect'?"),
    "a model to analyse with": (lambda f: ("analyse", f / "c", "--model", "embedded"), "unrecognized arguments"),
    "thoughts to detect by": (lambda f: ("overthink", f / "c", "--think", "<a>", "<b>"), "unrecognized arguments"),
    "made and given": (
        lambda f: ("collect", "--out", f / "x", "--problems", f / "problems.jsonl", "--number", 40),
        "--number and --family are of problems made here, and --problems names",
    ),
    "families of given": (
        lambda f: ("collect", "--out", f / "x", "--problems", f / "problems.jsonl", "--family", "gcd"),
        "leave one out",
    ),
    "no share": (lambda f: ("overthink", f / "c", "--share", 1.5), "share is 1.5"),
    "another model": (lambda f: ("steer", f / "c", "--model", f / "other"), "not the model that"),
    "no direction": (lambda f: ("steer", f / "c"), "no direction yet; make it with 'forethought strength analyse"),
    "no direction to save with": (lambda f: ("efficient", f / "c"), "no direction yet"),
    "no vectors": (lambda f: ("steer", f / "c", "--vectors", f / "nothing"), "is no instrument"),
    "fewer than no controls": (lambda f: ("steer", f / "c", "--random", -1), "-1 is not between 0 and"),
    "no number of controls": (lambda f: ("steer", f / "c", "--random", "x"), "x is no whole number"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_sentence(there: Path, refused: Callable[..., str], name: str) -> None:
    words, told = WRONG[name]
    assert told in refused(*words(there))
    assert not (there / "x").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"hidden_size": 32}, "of width 32, and"),
        ({"blocks": 9}, "has no site 5"),
        ({}, "other weights"),
        ({"site": "norm", "right": True}, "no vector that goes into a block"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(
    there: Path, tmp_path: Path, refused: Callable[..., str], changed: dict[str, Any], told: str
) -> None:
    right = Identity.of(Reasoner.open(there / "model", device="cpu").model)
    width, blocks = changed.get("hidden_size", 64), changed.get("blocks", 2)
    made_on = right if changed.get("right") else Identity("elsewhere", "qwen2", "0" * 64, width, blocks)
    site = changed.get("site", 5 if blocks > 2 else 0)
    Instrument("direction", "difficulty", {site: {"direction": torch.ones(width)}}, made_on, "last-prompt", "x").save(
        tmp_path / "v"
    )
    assert told in refused("steer", there / "c", "--vectors", tmp_path / "v", "--device", "cpu")


@pytest.mark.parametrize("step", ["analyse", "steer", "overthink", "efficient"])
def test_an_unfinished_collection_is_refused(
    there: Path, tmp_path: Path, refused: Callable[..., str], step: str
) -> None:
    shutil.copytree(there / "c", tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "states")
    assert "finish it with the command that began it" in refused(step, tmp_path / "c")
    lines = tmp_path / "c" / "rollouts" / "rollouts.jsonl"
    lines.write_text("".join(line + "\n" for line in lines.read_text().splitlines()[:-3]))
    assert "157 of 160 rollouts" in refused(step, tmp_path / "c")


@pytest.mark.parametrize("line", ["{", '{"question": "x"}', '{"question": "\\boxed", "answer": "1"}'])
def test_a_broken_line_is_named(there: Path, tmp_path: Path, refused: Callable[..., str], line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text((there / "problems.jsonl").read_text() + line + "\n")
    assert "line 41" in refused("collect", "--out", tmp_path / "c", "--model", there / "model", "--problems", path)
    assert not (tmp_path / "c").exists()


def test_a_prompt_longer_than_the_context_is_refused(there: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    rows = [{"question": f"{number} " + "1" * 1100 * (number == 30), "answer": "1"} for number in range(40)]
    path = jsonl(tmp_path / "p.jsonl", rows)
    told = refused("collect", "--out", tmp_path / "c", "--model", there / "model", "--problems", path)
    assert "the context of" in told
    assert "is 1024" in told


def test_a_collection_goes_on_with_nothing_else(there: Path, refused: Callable[..., str]) -> None:
    words = ("collect", "--out", there / "c", "--problems", there / "problems.jsonl", "--device", "cpu", "--model")
    assert "rollouts of another model, sampling" in refused(*words, there / "other")
    assert "rollouts of another sampling" in refused(*words, there / "model")


def test_progress_learned_from_what_is_tested_on_is_refused(
    there: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    shutil.copytree(there / "c" / "rollouts", tmp_path / "rollouts-00000-00040")
    assert call("progress", "prepare", tmp_path, "--quiet", "--device", "cpu") == 0  # deals the problems otherwise
    assert "of the questions to test on were learned from" in refused("efficient", there / "c", "--progress", tmp_path)


def test_the_kind_of_the_probe_is_told_and_why(there: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("strength", "analyse", there / "c", "--kind", "lasso", "--permutations", 2) == 0
    told = capfd.readouterr().out
    assert "Probe (tobit) at site" in told
    assert "The probe is a tobit, not the lasso asked for: " in told
    assert "of the thoughts were cut off" in told


@pytest.mark.slow
def test_all_steps_of_a_model_whose_thoughts_mean_nothing(
    there: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knobs, "survival_summary", partial(knobs.survival_summary, replicates=20))
    folder = tmp_path / "c"
    shutil.copytree(there / "c", folder)
    assert call("strength", "analyse", folder, "--permutations", 5) == 0
    assert call("strength", "steer", folder, "--strengths", -0.5, 0.5, "--random", 1, "--quiet", "--device", "cpu") == 0
    assert call("strength", "overthink", folder, "--share", 0.6) == 0
    capfd.readouterr()
    assert call("strength", "efficient", folder, "--quiet", "--device", "cpu") == 0
    assert "without the knob that ends thoughts whose answer is ready" in capfd.readouterr().err
    for name in (
        "analysis/probe.png",
        "analysis/directions.png",
        "steer/steer.png",
        "overthink/roc.png",
        "efficient/frontier.png",
    ):
        assert (folder / name).read_bytes().startswith(b"\x89PNG"), name
    steered = json.loads((folder / "steer" / "steer.json").read_text())
    assert [(row["knob"], row["value"]) for row in steered["outcomes"]] == [
        ("none", 0.0), ("direction", -0.5), ("direction", 0.5), ("random 1", -0.5), ("random 1", 0.5),
    ]  # fmt: skip
    assert set(steered["logits"]) == {"direction", "random 1"}
    document = json.loads((folder / "efficient" / "efficient.json").read_text())
    assert document["ready"] is None
    assert {"none", "direction", "random 1", "end bias", "hard budget", "be brief"} == {
        row["knob"] for row in document["outcomes"]["test"]
    }
    assert set(document["choices"]) == {"best", "direction", "random 1", "end bias", "hard budget", "be brief"}
