"""States are read where, when and from whom they are said to be, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from forethought.errors import ArtefactError
from forethought.instruments.capture import Transcript, capture, captured, moments
from forethought.instruments.moments import Moments
from forethought.instruments.phases import ANSWER, THINK, Delimiters
from forethought.instruments.sites import Site, Stack
from forethought.instruments.states import States

from .models import VOCABULARY, WIDTH, every_family, make_model

OPEN, CLOSE = 1, 2
BRACKETS = Delimiters((OPEN,), (CLOSE,))


def make_transcripts(number: int, seed: int = 0, longest: int = 20) -> list[Transcript]:
    """Prompts that end in the opening delimiter, thoughts, answers, of mixed lengths and in no order."""
    draw = np.random.default_rng(seed)

    def text(low: int) -> list[int]:
        return draw.integers(3, VOCABULARY, draw.integers(low, longest)).tolist()

    return [Transcript([*text(1), OPEN], [*text(0), CLOSE, *text(1)], i // 2, i % 2) for i in range(number)]


def reference(model: PreTrainedModel, ids: list[int]) -> dict[Site, Tensor]:
    """Every site of one text alone, ``[T, d]``, as Transformers gives them."""
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    found: dict[Site, Tensor] = {i - 1: states[i][0] for i in range(len(states) - 1)}
    return found | {"norm": states[-1][0]}


def assert_rows(states: States, model: PreTrainedModel, transcripts: list[Transcript]) -> None:
    """Every row is what the model gives for its transcript alone."""
    wanted = [reference(model, each.ids) for each in transcripts]
    for site in states.sites:
        if site == len(Stack.of(model)) - 1:
            continue  # Transformers gives the last block's output normed only
        rows = [wanted[s][site][t] for s, t in zip(states.sequence, states.position, strict=True)]
        np.testing.assert_allclose(states.at(site), torch.stack(rows).numpy(), atol=1e-5)


@every_family
def test_captured_states_are_transformers_hidden_states(family: str) -> None:
    model = make_model(family)
    ids = torch.randint(VOCABULARY, (3, 11))
    with captured(model, Stack.of(model).sites()) as seen, torch.no_grad():
        wanted = model(ids, output_hidden_states=True).hidden_states
    for i, states in enumerate(wanted[:-1]):
        torch.testing.assert_close(seen.at(i - 1), states, atol=0, rtol=0)
    torch.testing.assert_close(seen.at("norm"), wanted[-1], atol=0, rtol=0)
    norm = Stack.of(model).norm
    assert norm is not None
    torch.testing.assert_close(norm(seen.at(2)), wanted[-1])
    assert len(seen.at(0)) == 3  # the hooks are gone: a later pass adds nothing
    model(ids)
    assert len(seen.passes[0]) == 1


@every_family
def test_left_padded_batches_equal_single_runs(family: str, tmp_path: Path) -> None:
    model, transcripts = make_model(family), make_transcripts(13)
    states = capture(model, transcripts, Stack.of(model).sites(), "all", tmp_path / "out", batch_size=5)
    assert len(states) == sum(len(each) for each in transcripts)
    assert_rows(states, model, transcripts)


def test_rows_stand_in_the_order_given_and_know_what_they_are(tmp_path: Path) -> None:
    model, transcripts = make_model(), make_transcripts(9)
    states = capture(model, transcripts, [0, "norm"], "all", tmp_path / "out", delimiters=BRACKETS)
    assert [*zip(states.sequence, states.position, strict=True)] == [
        (i, t) for i, each in enumerate(transcripts) for t in range(len(each))
    ]
    for row in range(len(states)):
        each = transcripts[states.sequence[row]]
        ids, t = [*each.ids, -1], states.position[row]
        assert (states.problem[row], states.sample[row]) == (each.problem, each.sample)
        assert (states.token[row], states.produced[row]) == (ids[t], ids[t + 1])
    assert (states.phase[states.produced == CLOSE] == THINK).all()  # the position that decides to stop still thinks
    assert (states.phase[states.token == CLOSE] == ANSWER).all()
    assert (states.phase[states.token == OPEN] == THINK).all()


def test_each_choice_of_positions(tmp_path: Path) -> None:
    model, transcripts = make_model(), make_transcripts(7)

    def read(positions: Any) -> States:
        return capture(model, transcripts, [1], positions, tmp_path / positions, delimiters=BRACKETS, quiet=True)

    whole, last, generated = read("all"), read("last-prompt"), read("generated")
    thought, answered = read("think"), read("answer")
    assert [*last.sequence] == [*range(7)]
    assert [*last.position] == [len(each.prompt) - 1 for each in transcripts]
    assert [*last.token] == [OPEN] * 7
    assert len(generated) == sum(len(each.generated) for each in transcripts)
    assert [*generated.produced] == [token for each in transcripts for token in each.generated]
    assert len(thought) + len(answered) == len(generated)
    assert [*thought.produced[thought.produced == CLOSE]] == [CLOSE] * 7  # the label 1 of a thought's progress
    for part in (last, generated, thought, answered):  # shorter runs, the same states
        rows = [np.flatnonzero((whole.sequence == s) & (whole.position == t))[0]
                for s, t in zip(part.sequence, part.position, strict=True)]  # fmt: skip
        np.testing.assert_allclose(part.at(1), whole.at(1)[rows], atol=1e-5)


def test_the_first_generated_token_comes_from_the_last_position_of_the_prompt(tmp_path: Path) -> None:
    model = make_model()
    prompt = [5, 9, 17, 4, 30]
    with captured(model, [1, "norm"], last=True) as seen:
        written = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0, len(prompt) :].tolist()
    states = capture(model, [Transcript(prompt, written)], [1, "norm"], "generated", tmp_path / "out")
    assert [*states.position] == [4, 5, 6, 7, 8, 9]
    assert [*states.produced] == written
    for site in (1, "norm"):  # read while it was written and from the finished text: the same
        np.testing.assert_allclose(states.at(site), seen.at(site)[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(states.at(1)[0], reference(model, prompt)[1][-1].numpy(), atol=1e-5)
    head = model.get_output_embeddings()
    assert head(torch.from_numpy(states.at("norm"))).argmax(dim=1).tolist() == written


def test_captured_sees_every_position_of_generate_once() -> None:
    model = make_model()
    ids = torch.randint(3, VOCABULARY, (2, 5))
    with captured(model, [0]) as seen:
        whole = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert [states.shape[1] for states in seen.passes[0]] == [5, 1, 1, 1]
    with torch.no_grad():
        wanted = model(whole[:, :-1], output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(seen.at(0), wanted, atol=1e-5, rtol=0)


def test_captured_says_what_it_cannot_give() -> None:
    model = make_model()
    with captured(model, [0]) as seen:
        pass
    with pytest.raises(ArtefactError, match="No forward pass"):
        seen.at(0)
    with pytest.raises(ArtefactError, match=r"Site 2 was not captured; captured were 0\."):
        seen.at(2)
    with captured(model, [0]) as seen:
        for rows in (2, 3):
            model(torch.ones(rows, 4, dtype=torch.int64))
    with pytest.raises(ArtefactError, match="batches of 2, 3 rows"):
        seen.at(0)
    with pytest.raises(ArtefactError, match="no site 3"), captured(model, [0, 3]):
        pass
    assert not Stack.of(model).blocks[0]._forward_hooks  # those put on before the error are gone


def test_neither_later_blocks_nor_the_head_run(tmp_path: Path) -> None:
    model, transcripts = make_model(), make_transcripts(3)
    ran: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: ran.append(name))
    capture(model, transcripts, [-1, 1], "last-prompt", tmp_path / "out", batch_size=1)
    assert ran.count("model.layers.0") == 3
    assert "lm_head" not in ran
    assert ran.count("model.layers.2") == 1  # the first pass shows whether the network goes through a site once
    with torch.no_grad():  # and the model is as it was
        assert model(torch.tensor([[3, 4]])).logits.isfinite().all()


def test_a_training_model_is_read_without_dropout_and_goes_on_training(tmp_path: Path) -> None:
    model, transcripts = make_model(attention_dropout=0.5), make_transcripts(4)
    quiet = capture(model, transcripts, [2], "generated", tmp_path / "eval").at(2)
    model.train()
    np.testing.assert_array_equal(capture(model, transcripts, [2], "generated", tmp_path / "train").at(2), quiet)
    assert model.training
    model.model.layers[1].eval()  # a part that is kept still while the rest learns
    before = [module.training for module in model.modules()]
    capture(model, transcripts, [2], "generated", tmp_path / "mixed")
    assert [module.training for module in model.modules()] == before


def test_bfloat16_is_kept_as_it_is(tmp_path: Path) -> None:
    model, transcripts = make_model().to(torch.bfloat16), make_transcripts(4)
    states = capture(model, transcripts, [0], "last-prompt", tmp_path / "out", batch_size=1)
    with torch.no_grad():
        wanted = [model(torch.tensor([each.prompt]), output_hidden_states=True).hidden_states[1][0, -1].float()
                  for each in transcripts]  # fmt: skip
    assert json.loads((tmp_path / "out" / "index.json").read_text())["dtype"] == "bfloat16"
    np.testing.assert_array_equal(states.at(0), torch.stack(wanted).numpy())


class Plain(nn.Module):
    """Blocks of our own, without attention mask or config: each adds what stood at the position before."""

    def __init__(self, again: int = 1) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.again = again

    def forward(self, ids: Tensor) -> Tensor:
        stream = self.embed(ids)
        for block in self.blocks:
            for _ in range(self.again):
                stream = block(stream + stream.cumsum(dim=1))
        return self.norm(stream)


def test_any_module_with_blocks_can_be_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, transcripts = Plain(), make_transcripts(12)
    states = capture(model, transcripts, [1, "norm"], "last-prompt", tmp_path / "out", batch_size=4)
    with torch.no_grad():
        wanted = torch.stack([model(torch.tensor([each.prompt]))[0, -1] for each in transcripts])
    np.testing.assert_allclose(states.at("norm"), wanted.numpy(), atol=1e-5)


def test_a_block_that_runs_twice_or_never_is_no_silent_row(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="through site 1 more than once"):
        capture(Plain(again=2), make_transcripts(2), [1], "last-prompt", tmp_path / "twice")
    with pytest.raises(ArtefactError, match="does not come through site 0"):
        capture(Plain(again=0), make_transcripts(2), [0, "norm"], "last-prompt", tmp_path / "never")


def test_what_does_not_fit_is_said_before_any_work(tmp_path: Path) -> None:
    model, out = make_model(), tmp_path / "out"

    def refused(transcripts: list[Transcript], pattern: str, positions: Any = "generated", **more: Any) -> None:
        with pytest.raises(ArtefactError, match=pattern):
            capture(model, transcripts, [0], positions, out, **more)
        assert not out.exists()

    refused([Transcript([5] * 60, [6] * 6, 7, 2)], "Problem 7, sample 2 has to be run over 65 tokens.*reads 64")
    assert len(capture(model, [Transcript([5] * 60, [6] * 5)], [0], "generated", tmp_path / "fits")) == 5
    assert len(capture(model, [Transcript([5] * 60, [6] * 60)], [0], "last-prompt", tmp_path / "prompt")) == 1
    refused([Transcript([], [5], 3)], "Problem 3, sample 0 has no prompt")
    refused([Transcript([5, 50])], r"tokens from 5 to 50, and the model embeds 0 to 49")
    refused([Transcript([5])], "None of the 1 transcripts has a position of 'generated'")
    refused([Transcript([5], [6])], "told by delimiters", "think")
    refused([Transcript([5], [6])], "no positions 'middle'", "middle")
    with pytest.raises(ArtefactError, match="at least one"):
        capture(model, [Transcript([5])], [], "last-prompt", out)


def test_shards_stay_within_their_size_and_hold_long_transcripts_in_pieces(tmp_path: Path) -> None:
    model, transcripts = make_model(), make_transcripts(9)
    whole = capture(model, transcripts, [0, 2], "all", tmp_path / "whole")
    for rows in (1, 4, 7, 50):
        states = capture(
            model, transcripts, [0, 2], "all", tmp_path / str(rows), batch_size=3, shard_bytes=rows * 2 * WIDTH * 4
        )
        shards = json.loads((tmp_path / str(rows) / "index.json").read_text())["shards"]
        assert max(shards) <= rows
        assert sum(shards) == len(whole)
        np.testing.assert_array_equal(states.position, whole.position)
        np.testing.assert_allclose(states.at(2), whole.at(2), atol=1e-5)
        for part, chunk in states.chunks(0, size=11):
            np.testing.assert_allclose(chunk, whole.at(0)[part], atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_transcripts(tmp_path: Path) -> None:
    model = make_model()

    def peak(number: int) -> int:
        transcripts = make_transcripts(number, longest=12)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            capture(model, transcripts, [0, 1, 2], "all", tmp_path / str(number), batch_size=4, shard_bytes=1 << 16)
        held = most = 0
        for event in sorted(trace.profiler.kineto_results.events(), key=lambda entry: entry.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        return most

    few, many = peak(40), peak(320)
    on_disk = sum(file.stat().st_size for file in (tmp_path / "320").glob("states-*"))
    assert on_disk > 3 * many  # the states alone would not have fitted
    labels = 320 * 33 * 7 * 8  # opened in the end: these grow, the states do not
    assert many < few + labels


def test_files_listed_in_any_order_and_more_than_ten_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original code took the place in an unsorted listing for the number of the layer."""
    model, transcripts = make_model(blocks=12), make_transcripts(30)
    sites = Stack.of(model).sites()
    states = capture(model, transcripts, sites, "last-prompt", tmp_path / "out", shard_bytes=14 * WIDTH * 4)
    assert len(list((tmp_path / "out").glob("states-*"))) == 30
    assert_rows(states, model, transcripts)
    (tmp_path / "copy").mkdir()
    files = sorted((tmp_path / "out").iterdir(), key=lambda file: hash(file.name[::-1]))
    for file in files:
        shutil.copy(file, tmp_path / "copy" / file.name)
    copy = States.open(tmp_path / "copy", verify=True)
    assert copy.sites == (*range(-1, 12), "norm")
    for site in sites:
        np.testing.assert_array_equal(copy.at(site), states.at(site))
    assert not np.allclose(states.at(10), states.at(2))


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.instruments.models import make_model
from tests.instruments.test_capture import killed_capture
killed_capture(make_model(), Path(sys.argv[2]))
"""


def killed_capture(model: PreTrainedModel, out: Path) -> States:
    return capture(
        model, make_transcripts(300), [0, 2], "generated", out, batch_size=4, shard_bytes=64 * 2 * WIDTH * 4, quiet=True
    )


@pytest.mark.slow
def test_killed_and_resumed_nothing_is_lost_and_nothing_double(tmp_path: Path) -> None:
    whole = killed_capture(make_model(), tmp_path / "whole")
    out, root = tmp_path / "killed", Path(__file__).resolve().parents[2]
    there: dict[Path, int] = {}
    for least in (3, 20):
        command = [sys.executable, "-c", RUN, str(root), str(out)]
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        while process.poll() is None and len(list(out.glob("states-*"))) < least:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it was still at work
        with pytest.raises(ArtefactError, match=r"holds \d+ of \d+ shards; run the same capture again"):
            States.open(out)
        now = {file: file.stat().st_mtime_ns for file in out.glob("states-*")}
        assert {file: now[file] for file in there} == there  # what was whole was not made again
        there = now
    (out / ".states-00000.safetensors.x.part.safetensors").write_bytes(b"half")
    states = killed_capture(make_model(), out)
    assert {file: file.stat().st_mtime_ns for file in there} == there
    assert not list(out.glob(".states-*"))
    for label in ("sequence", "problem", "sample", "position", "token", "produced", "phase"):
        np.testing.assert_array_equal(getattr(states, label), getattr(whole, label))
    for site in (0, 2):
        np.testing.assert_array_equal(states.at(site), whole.at(site))
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (out / file.name).read_bytes()


def test_damaged_shards_are_refused_when_read_and_made_anew_when_captured(tmp_path: Path) -> None:
    model, transcripts, out = make_model(), make_transcripts(20), tmp_path / "out"

    def again(**more: Any) -> States:
        return capture(model, transcripts, [0], "generated", out, shard_bytes=40 * WIDTH * 4, **more)

    wanted = again().at(0)
    one, two = out / "states-00001.safetensors", out / "states-00002.safetensors"
    good = one.read_bytes()
    for bad, pattern in (
        (good[:-7] + b"\x00\x01\x02\x03\x04\x05\x06", "does not match its digest"),
        (good[:-100], "cannot be read"),
        (b"", "cannot be read"),
        (two.read_bytes(), "belongs to another capture"),
    ):
        one.write_bytes(bad)
        with pytest.raises(ArtefactError, match=f"states-00001.safetensors {pattern}.*run the same capture again"):
            States.open(out, verify=True)
        np.testing.assert_array_equal(again().at(0), wanted)
        assert one.read_bytes() == good
    one.unlink()
    with pytest.raises(ArtefactError, match=r"holds \d+ of \d+ shards"):
        States.open(out)
    np.testing.assert_array_equal(again().at(0), wanted)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    model, out = make_model(), tmp_path / "out"
    states = capture(model, make_transcripts(4), [0], "generated", out)
    wanted = states.at(0)
    for other, differs in (
        (lambda: capture(model, make_transcripts(5), [0], "generated", out), "transcripts, shards"),
        (lambda: capture(model, make_transcripts(4), [1], "generated", out), "sites"),
        (lambda: capture(make_model(seed=1), make_transcripts(4), [0], "generated", out), "model"),
    ):
        with pytest.raises(ArtefactError, match=rf"holds another capture \(different: {differs}\)"):
            other()
    np.testing.assert_array_equal(States.open(out, verify=True).at(0), wanted)
    model.name_or_path = "./the/same/model"  # a name is no difference
    assert capture(model, make_transcripts(4), [0], "generated", out).model == states.model
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ArtefactError, match="holds no captured states; choose another folder"):
        capture(model, make_transcripts(4), [0], "generated", tmp_path / "mine")
    with pytest.raises(ArtefactError, match=r"no captured states \(no index\.json\)"):
        States.open(tmp_path / "mine")
    with pytest.raises(ArtefactError, match=r"no states of site 2; it has 0\."):
        states.at(2)
    index = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(index | {"version": 9}))
    with pytest.raises(ArtefactError, match=r"version 9; this forethought reads forethought\.states 1"):
        States.open(out)
    (out / "index.json").write_text("{")
    with pytest.raises(ArtefactError, match="is damaged"):
        States.open(out)


def test_a_full_disk_is_said_and_the_rest_can_follow(tmp_path: Path, small_disk: Any) -> None:
    model, transcripts, out = make_model(), make_transcripts(200), small_disk("256k") / "out"
    with pytest.raises(ArtefactError, match=r"Cannot write .*states-.*free the space"):
        capture(model, transcripts, [0, 1], "all", out, shard_bytes=1 << 16)
    kept = {file.name for file in out.glob("states-*")}
    assert kept
    assert not list(out.glob(".states-*"))


# moments


def assert_moments(found: Moments, rows: dict[Any, np.ndarray[Any, Any]]) -> None:
    for group, states in rows.items():
        exact = states.astype(np.float64)
        size = max(1.0, float(np.abs(exact).max()) ** 2)
        assert found.count(group) == len(exact)
        np.testing.assert_allclose(found.mean(group), exact.mean(axis=0), atol=1e-10 * size, rtol=1e-10)
        if len(exact) > 1:
            np.testing.assert_allclose(found.covariance(group), np.cov(exact.T), atol=1e-10 * size, rtol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    offset=st.floats(-1e3, 1e3),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32 - 1),
    merged=st.booleans(),
)
def test_moments_are_numpy_s(parts: list[int], offset: float, scale: float, seed: int, merged: bool) -> None:
    draw = np.random.default_rng(seed)
    found, rows = Moments(4), {}
    for size in parts:
        states, groups = offset + scale * draw.standard_normal((size, 4)), draw.integers(0, 3, size)
        part = Moments(4) if merged else found
        part.add(states, groups)
        if merged:
            found.merge(part)
        for group in np.unique(groups):
            rows.setdefault(int(group), []).append(states[groups == group])
    assert sorted(found.groups) == sorted(rows)
    assert_moments(found, {group: np.concatenate(chunks) for group, chunks in rows.items()})


def test_moments_keep_their_digits_far_from_zero() -> None:
    states = 1e6 + np.random.default_rng(0).standard_normal((10_000, 3))
    found = Moments(3)
    for chunk in np.array_split(states, 97):
        found.add(chunk)
    np.testing.assert_allclose(found.covariance(), np.cov(states.T), atol=1e-9)


def test_moments_without_states_are_those_of_the_states(tmp_path: Path) -> None:
    model, transcripts = make_model(), make_transcripts(25)
    levels = [f"level {i % 3}" for i in range(25)]
    found = moments(model, transcripts, [0, "norm"], "think", levels, delimiters=BRACKETS, batch_size=4)
    states = capture(model, transcripts, [0, "norm"], "think", tmp_path / "out", delimiters=BRACKETS)
    of = np.array(levels)[states.sequence]
    for site in (0, "norm"):
        rows = {group: states.at(site)[of == group] for group in set(levels)}
        for group, part in rows.items():  # padded otherwise, so the same to float32 only
            np.testing.assert_allclose(found[site].mean(group), part.mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(found[site].covariance(group), np.cov(part.T), atol=1e-4)
        streamed = Moments(WIDTH)
        for part, chunk in states.chunks(site, size=7):
            streamed.add(chunk, of[part])
        assert_moments(streamed, rows)
    whole = moments(model, transcripts, [0], "last-prompt", covariance=False)
    np.testing.assert_allclose(
        whole[0].mean(), capture(model, transcripts, [0], "last-prompt", tmp_path / "last").at(0).mean(0), atol=1e-5
    )


def test_moments_say_what_they_cannot_give() -> None:
    found = Moments(3)
    found.add(np.ones((1, 3)), ["a"])
    with pytest.raises(ArtefactError, match="'a' has 1 rows, and 2 are needed"):
        found.covariance("a")
    with pytest.raises(ArtefactError, match="'b' has 0 rows"):
        found.mean("b")
    with pytest.raises(ArtefactError, match=r"shape \(2, 4\)"):
        found.add(np.ones((2, 4)))
    with pytest.raises(ArtefactError, match="1 groups were given for 2 rows"):
        found.add(np.ones((2, 3)), ["a"])
    with pytest.raises(ArtefactError, match="cannot be merged"):
        found.merge(Moments(4))
    lean = Moments(3, covariance=False)
    lean.add(np.ones((5, 3)))
    with pytest.raises(ArtefactError, match="keep no covariances"):
        lean.covariance()
    with pytest.raises(ArtefactError, match="2 groups were given for 3 transcripts"):
        moments(make_model(), make_transcripts(3), [0], "last-prompt", ["a", "b"])
