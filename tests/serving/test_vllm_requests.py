"""What a request to vLLM may ask, and which of its positions are steered: without vLLM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.errors import ArtefactError, RecipeError
from forethought.instruments.artefact import Instrument
from forethought.instruments.fingerprint import Identity
from forethought.instruments.logit_route import logit_bias
from forethought.instruments.phases import THINK, Delimiters, phases
from forethought.reasoners.progress.trained import EMBEDDED as PROGRESS
from forethought.reasoners.progress.trained import Trained
from forethought.reasoners.reasoner import EMBEDDED, Reasoner
from forethought.serving.vllm_plugin import Progress, _offsets
from forethought.serving.vllm_requests import Engine, Order, order, resolve, token_bias, vectors

ENGINE = Engine("model", layers=2, width=3, vocabulary=5, hooks=True, logits=True)
OPEN, CLOSE = 3, 4
ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


class Tokenizer:
    """One with the two delimiters, which is all that is asked of it."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return {"<think>": [OPEN], "</think>": [CLOSE], "[[": [1]}.get(text, [0, 0])


@pytest.fixture(autouse=True)
def steering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "steering"
    folder.mkdir()
    np.save(folder / "rows.npy", ROWS)
    np.save(folder / "bias.npy", np.arange(5, dtype=np.float64))
    monkeypatch.setenv("FORETHOUGHT_STEERING", f"alias={folder / 'rows.npy'}, {folder}")
    for name in ("steering_vector_path", "steering_strength_list", "FORETHOUGHT_DELIMITERS"):
        monkeypatch.delenv(name, raising=False)
    return folder


def asked(prompt: list[int] | None = None, **args: Any) -> Order | None:
    return order(args, prompt, len(prompt or [0]), ENGINE, Tokenizer())


def test_what_travels_with_a_request_is_what_arrives() -> None:
    found = asked([OPEN, 0], steer="rows", strength=-0.5, phase="think", bias="bias", alpha=2, foreign="kept")
    assert found is not None
    assert Order.of({"forethought": found.wire()}) == found
    assert (found.prompt, found.thinking, found.strength) == (2, True, (-0.5, -0.5, -0.5))
    assert Order.of(None) is Order.of({"foreign": 1}) is None


def test_names_stand_for_single_files_and_for_files_of_a_folder(steering: Path) -> None:
    for name in ("alias", "rows"):
        found = asked(steer=name, strength=1)
        assert found is not None
        assert found.vector == str((steering / "rows.npy").resolve())
    for name in ("../steering/rows", "rows.npy", str(steering / "rows"), "", 3):
        with pytest.raises(ArtefactError, match=r"There is no steering file called .*, known are alias, bias, rows;"):
            asked(steer=name, strength=1)


def test_a_file_without_a_name_is_called_as_it_is(steering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETHOUGHT_STEERING", f"{steering / 'rows.npy'},{PROGRESS / 'tpv'}")
    assert resolve("rows")[0] == str((steering / "rows.npy").resolve())
    assert resolve("tpv")[0] == str((PROGRESS / "tpv").resolve())
    with pytest.raises(ArtefactError, match="known are rows, tpv;"):
        resolve("bias")


def test_errors_do_not_tell_a_client_where_files_are(steering: Path) -> None:
    (steering / "broken.npy").write_bytes(b"nothing")
    np.save(steering / "infinite.npy", np.full((2, 3), np.inf))
    with (steering / "huge.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (10**13,)})
    (steering / "folder").mkdir()
    (steering / "folder" / "instrument.json").write_text("{}")
    for name in ("broken", "infinite", "huge", "folder", "bias"):
        with pytest.raises(ArtefactError) as caught:
            asked(steer=name, strength=1)
        assert str(steering) not in str(caught.value)


def test_nothing_is_asked_where_nothing_is_added() -> None:
    assert asked() is None
    assert asked(steer="rows", strength=0) is None
    assert asked(steer="rows", strength=[0, 0.0], bias="bias", alpha=0) is None


def test_strengths_are_one_number_or_one_a_block() -> None:
    found = asked(steer="rows", strength=[0.5, -1])
    assert found is not None
    assert found.strength == (0.5, -1.0, 0.0)
    for strength, message in (
        ([1], "strength lists 1 numbers and the model has 2 blocks"),
        ("0.5", "strength is '0.5', which is no finite number"),
        (True, "strength is True"),
        (float("nan"), "strength is nan"),
        ([1, "a"], "strength is 'a'"),
        (1e39, "strength is 1e"),
        (10**400, "strength is too large"),
    ):
        with pytest.raises(RecipeError, match=message):
            asked(steer="rows", strength=strength)


def test_the_variables_of_the_papers_code(steering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("steering_vector_path", str(steering / "rows.npy"))
    found = asked(strength=0.2)
    assert found is not None
    assert (found.vector, found.phase) == (str((steering / "rows.npy").resolve()), "all")
    assert asked() is None
    monkeypatch.setenv("steering_strength_list", "0.1,0.2")
    found = asked()
    assert found is not None
    assert found.strength == (0.1, 0.2, 0.0)
    assert asked(strength=0) is None
    monkeypatch.setenv("steering_strength_list", "a lot")
    with pytest.raises(RecipeError, match="steering_strength_list is 'a lot'"):
        asked()
    monkeypatch.setenv("steering_vector_path", "Empty")
    assert asked() is None


def test_a_prompt_thinks_where_its_last_delimiter_opens_a_thought(monkeypatch: pytest.MonkeyPatch) -> None:
    for prompt, thinking in (([OPEN, 0], True), ([OPEN, 0, CLOSE, 0], False), ([0], False), ([CLOSE, OPEN], True)):
        found = asked(prompt, steer="rows", strength=1, phase="think")
        assert found is not None
        assert found.thinking is thinking
    with pytest.raises(RecipeError, match="needs the prompt's tokens"):
        asked(None, steer="rows", strength=1, phase="think")
    monkeypatch.setenv("FORETHOUGHT_DELIMITERS", "[[,]]")
    with pytest.raises(ArtefactError, match="no token ]]"):
        asked([0], bias="bias", alpha=1)


def test_an_engine_that_was_not_started_for_it_refuses() -> None:
    plain = Engine("model", 2, 3, 5, hooks=False, logits=False)
    with pytest.raises(ArtefactError, match="cannot steer the residual stream; start it with enforce_eager"):
        order({"steer": "rows", "strength": 0}, [0], 1, plain, None)
    with pytest.raises(ArtefactError, match="cannot steer the logits; start it with logits_processors"):
        order({"bias": "bias", "alpha": 1}, [0], 1, plain, None)


def test_two_steerings_never_share_a_key_value_cache(steering: Path) -> None:
    np.save(steering / "other.npy", -ROWS)
    orders = [
        asked([OPEN, 0], steer=name, strength=strength, phase=phase)
        for name in ("rows", "other")
        for strength in (0.1, 0.2)
        for phase in ("all", "generated", "think")
    ]
    orders.append(asked([OPEN, 0, 0], steer="rows", strength=0.1, phase="generated"))  # begins later
    salts = [found.salt() for found in orders if found is not None]
    assert len({*salts}) == len(salts) == 13
    shared = asked([OPEN, 0, 0], steer="rows", strength=0.1)
    assert shared is not None
    assert shared.salt() == salts[0], "all positions: longer prompts share what they begin with"
    logits = asked([OPEN], bias="bias", alpha=1)
    assert logits is not None
    assert logits.salt() is None, "the logits are behind the cache"


def test_instruments_and_arrays_say_the_same(steering: Path) -> None:
    model = Identity("toy", "toy", "", width=3, blocks=2)
    kept = {-1: {"direction": torch.tensor(ROWS[0])}, 0: {"direction": torch.tensor(ROWS[1])}}
    Instrument("direction", "kept", kept, model, "last-prompt", "state").save(steering / "kept")
    array = vectors(str(steering / "rows.npy"), 0, 2, 3)
    assert array.tolist() == [*ROWS.tolist(), [0, 0, 0]]
    assert vectors(str(steering / "kept"), 0, 2, 3).tolist() == array.tolist()
    norm = {"norm": {"direction": torch.ones(3)}}
    Instrument("progress", "norm", norm, model, "think", "share").save(steering / "norm")
    with pytest.raises(ArtefactError, match="for the final norm; name it with bias"):
        asked(steer="norm", strength=1)
    Instrument("direction", "both", kept | norm, model, "last-prompt", "state").save(steering / "both")
    assert vectors(str(steering / "both"), 0, 2, 3).tolist() == array.tolist()
    for name in ("kept", "both"):
        with pytest.raises(ArtefactError, match="for blocks, not for the final norm; name it with steer"):
            asked(bias=name, alpha=1)
    with pytest.raises(ArtefactError, match="for 2 blocks of width 3, but the model has 4 blocks of width 3"):
        vectors(str(steering / "kept"), 0, 4, 3)


def test_a_direction_becomes_a_bias_by_the_models_own_unembedding(steering: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    head, embedding = torch.randn(5, 3, dtype=torch.bfloat16), torch.randn(5, 3)
    np.save(steering / "direction.npy", np.array([1.0, -2.0, 0.5]))
    for name, tensors in (("tied", {"model.embed_tokens.weight": embedding}), ("own", {"lm_head.weight": head})):
        (tmp_path / name).mkdir()
        save_file({"model.embed_tokens.weight": embedding, **tensors}, tmp_path / name / "model.safetensors")
        bias = token_bias(str(steering / "direction.npy"), 0, 3, 5, str(tmp_path / name))
        expected = list(tensors.values())[-1].double() @ torch.tensor([1.0, -2.0, 0.5]).double()
        np.testing.assert_allclose(bias, expected.numpy(), atol=1e-5)


def test_the_progress_vector_that_comes_along_is_a_bias(steering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``forethought progress train`` writes, as it is."""
    reasoner, kept = Reasoner.open(device="cpu"), Instrument.open(PROGRESS / "tpv")
    monkeypatch.setenv("FORETHOUGHT_STEERING", f"tpv={PROGRESS / 'tpv'}")
    vocabulary = reasoner.model.config.vocab_size
    engine = Engine(str(EMBEDDED), kept.model.blocks, kept.model.width, vocabulary, hooks=True, logits=True)
    found = order({"bias": "tpv", "alpha": 20.0, "bias_phase": "generated"}, [0], 1, engine, None)
    assert found is not None
    bias = token_bias(found.bias, found.bias_stamp, engine.width, vocabulary, engine.model)
    theta = torch.from_numpy(Trained.open(PROGRESS)[0].tpv.weight).float()
    np.testing.assert_allclose(bias, logit_bias(reasoner.model, theta).numpy(), atol=1e-4)
    with pytest.raises(ArtefactError, match="for the final norm; name it with bias"):
        order({"steer": "tpv", "strength": 1}, [0], 1, engine, None)


def test_an_instrument_of_other_weights_is_refused(steering: Path) -> None:
    tpv = Instrument.open(PROGRESS / "tpv")
    direction = replace(tpv, tensors={0: {"direction": torch.ones(tpv.model.width)}}, numbers={})
    other = replace(tpv.model, name="/srv/elsewhere", fingerprint="0" * 64)
    for name, instrument in (("tpv", tpv), ("direction", direction)):
        instrument.save(steering / name)
        replace(instrument, model=other).save(steering / f"{name} of another")
    engine = Engine(str(EMBEDDED), tpv.model.blocks, tpv.model.width, 273, hooks=True, logits=True)
    for name, more in (("steer", {"strength": 1}), ("bias", {"alpha": 1, "bias_phase": "generated"})):
        kept = {"steer": "direction", "bias": "tpv"}[name]
        assert order({name: kept, **more}, [0], 1, engine, None) is not None
        with pytest.raises(ArtefactError, match="with the fingerprint 000000000000, and this one has") as caught:
            order({name: f"{kept} of another", **more}, [0], 1, engine, None)
        assert "/srv" not in str(caught.value)
        assert str(steering) not in str(caught.value)
    elsewhere = replace(engine, model=str(steering))  # no files of a model, so nothing to compare
    assert order({"steer": "direction of another", "strength": 1}, [0], 1, elsewhere, None) is not None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_chunks_and_preemption_change_no_position(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.sampled_from([0, 1, 2, OPEN, CLOSE]), min_size=1, max_size=24))
    length = data.draw(st.integers(1, len(ids)))
    text = torch.tensor([ids])
    expected = (phases(text, torch.ones_like(text), length, Delimiters((OPEN,), (CLOSE,)))[0] == THINK).nonzero()
    last = next((token for token in reversed(ids[:length]) if token in (OPEN, CLOSE)), None)
    asked = Order(length, last == OPEN, OPEN, CLOSE, vector="file", phase="think")
    progress = Progress(-1, {length - 1: asked.thinking})
    steered: set[int] = set()
    position = 0
    while position < len(ids):
        count = data.draw(st.integers(1, len(ids) - position))
        offsets = _offsets(asked, progress, position, text[0, position : position + count])
        steered |= {position + offset for offset in offsets}
        position += count
        if data.draw(st.booleans()) and data.draw(st.booleans()):
            position = data.draw(st.integers(0, position))  # preempted, with some of its blocks still cached
            if position < len(ids):
                steered = {at for at in steered if at < position}
    assert sorted(steered) == expected[:, 0].tolist()
