"""What is kept comes back as it was, or not at all; and other programs' layers are counted as they count them."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from forethought.errors import ArtefactError
from forethought.instruments.artefact import MANIFEST, TENSORS, Instrument
from forethought.instruments.exchange import export_gguf, export_npy, import_gguf, import_npy
from forethought.instruments.fingerprint import Identity
from forethought.instruments.phases import Delimiters
from forethought.instruments.sites import Site, Stack

from .models import WIDTH, make_model

MODEL = make_model(blocks=12)
MADE_ON = Identity.of(MODEL)


def make_instrument(sites: list[Site], **changed: Any) -> Instrument:
    draw = torch.Generator().manual_seed(1)
    described: dict[str, Any] = {
        "kind": "direction",
        "name": "difficulty",
        "tensors": {site: {"direction": torch.randn(WIDTH, generator=draw)} for site in sites},
        "model": MADE_ON,
        "position": "last-prompt",
        "units": "1 adds the difference of level means",
        "numbers": {site: {"norm": 1.5, "cosine": -0.25} for site in sites},
        "delimiters": Delimiters((7,), (8, 9)),
        "provenance": {"command": "fit", "data": "problems", "rows": 40},
        "controls": {"permutation": {"mean": np.float32(0.5), "p": 0.01}, "random direction": None},
    }
    return Instrument(**described | changed)


def assert_same(found: Instrument, wanted: Instrument) -> None:
    assert found.sites == wanted.sites
    for site in wanted.sites:
        assert found.tensors[site].keys() == wanted.tensors[site].keys()
        for name, tensor in wanted.tensors[site].items():
            assert found.tensors[site][name].dtype == tensor.dtype
            assert torch.equal(found.tensors[site][name], tensor)
    for key in ("kind", "name", "model", "position", "units", "numbers", "delimiters", "provenance", "controls"):
        assert getattr(found, key) == getattr(wanted, key), key


def test_all_of_it_comes_back(tmp_path: Path) -> None:
    instrument = make_instrument([10, "norm", 2, -1, 9])
    saved = instrument.save(tmp_path / "difficulty")
    assert_same(saved, instrument)
    assert saved.sites == [-1, 2, 9, 10, "norm"]  # as numbers: text would have put 10 before 2
    assert list(saved.vectors()) == saved.sites
    assert sorted(file.name for file in (tmp_path / "difficulty").iterdir()) == [MANIFEST, TENSORS]
    again = saved.save(tmp_path / "again")
    for name in (MANIFEST, TENSORS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "difficulty" / name).read_bytes()
    assert_same(again, instrument)


def test_tensors_of_any_name_kind_and_sharing_come_back(tmp_path: Path) -> None:
    gru = torch.nn.GRU(WIDTH, 8)
    base = torch.randn(4, WIDTH)
    tensors: dict[Site, dict[str, torch.Tensor]] = {
        "norm": {f"gru.{name}": value.detach() for name, value in gru.named_parameters()},
        3: {"weight": base[0], "all": base, "turned": base.T, "bias": torch.tensor(0.5, dtype=torch.float64)},
        4: {"weight": base[0].to(torch.bfloat16), "steps": torch.arange(3)},
    }
    instrument = make_instrument([], kind="progress", tensors=tensors, numbers={})
    assert_same(instrument.save(tmp_path / "progress"), instrument)


def test_the_place_is_respected(tmp_path: Path) -> None:
    first, second = make_instrument([1]), make_instrument([2])
    first.save(tmp_path / "it")
    with pytest.raises(ArtefactError, match="exists already"):
        second.save(tmp_path / "it")
    assert_same(second.save(tmp_path / "it", replace=True), second)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ArtefactError, match="exists already"):
        second.save(tmp_path / "mine", replace=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_damage_and_other_versions_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good"
    make_instrument([1, 2]).save(good)
    manifest = json.loads((good / MANIFEST).read_text())
    stored = (good / TENSORS).read_bytes()

    def refused(pattern: str, told: Any = manifest, tensors: bytes | None = stored) -> None:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / MANIFEST).write_text(told if isinstance(told, str) else json.dumps(told))
        if tensors is not None:
            (tmp_path / "bad" / TENSORS).write_bytes(tensors)
        with pytest.raises(ArtefactError, match=pattern) as caught:
            Instrument.open(tmp_path / "bad")
        assert str(tmp_path / "bad") in str(caught.value)
        assert "\n" not in str(caught.value)

    refused("does not match its digest", tensors=stored[:-1] + bytes([stored[-1] ^ 1]))
    refused("does not match its digest", tensors=stored[:40])
    refused("is damaged.*No such file", tensors=None)
    refused(r"version 2; this forethought reads forethought\.instrument 1", manifest | {"version": 2})
    refused("is forethought.dataset version 1", manifest | {"format": "forethought.dataset"})
    refused("counts layers by 'block-input/1'", manifest | {"convention": "block-input/1"})
    refused("is damaged", (good / MANIFEST).read_text()[:-30])
    refused("is damaged.*TypeError", [1])
    for key in manifest:
        refused("is damaged", {name: value for name, value in manifest.items() if name != key})
    refused("for site 40, and .* has 12 blocks", manifest | {"numbers": {"40": {}}})
    refused("is damaged", manifest | {"sites": [1]})
    refused("is damaged.*RecursionError", "[" * 200_000 + "]" * 200_000)
    for number in (float("nan"), float("inf"), None, "much", 10**400):
        refused("is damaged.* for the number r2 at site 1; a finite", manifest | {"numbers": {"1": {"r2": number}}})
    for ids in ([], ["a"], [-1], [None]):
        refused("is damaged.* open a thought with", manifest | {"delimiters": {"open": ids, "close": [6]}})
        refused("is damaged.* close a thought with", manifest | {"delimiters": {"open": [5], "close": ids}})
    with pytest.raises(ArtefactError, match=r"nothing is no instrument \(no instrument.json\)"):
        Instrument.open(tmp_path / "nothing")


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="not finite in direction at site 3"):
        make_instrument([], tensors={3: {"direction": torch.tensor([1.0, float("nan")])}})
    with pytest.raises(ArtefactError, match="has no tensor"):
        make_instrument([])
    with pytest.raises(ArtefactError, match=r"for site 12, and .* has 12 blocks"):
        make_instrument([12])
    with pytest.raises(ArtefactError, match="write undefined numbers as None"):
        make_instrument([1], controls={"r": float("nan")}).save(tmp_path / "it")
    with pytest.raises(ArtefactError, match="a Tensor"):
        make_instrument([1], provenance={"states": torch.ones(3)}).save(tmp_path / "it")
    assert not (tmp_path / "it").exists()
    with pytest.raises(ArtefactError, match="no tensor 'weight' at any site"):
        make_instrument([1]).vectors("weight")


def test_it_steers_with_its_direction_or_its_progress_vector_and_not_at_the_norm_if_also_in_blocks() -> None:
    instrument = make_instrument([-1, 3, "norm"])
    assert list(instrument.steering()) == [-1, 3]
    assert torch.equal(instrument.steering()[3], instrument.vectors()[3])
    assert list(make_instrument(["norm"]).steering()) == ["norm"]
    probe = {"tpv": torch.ones(WIDTH, dtype=torch.float64), "raw": torch.zeros(WIDTH)}
    found = make_instrument([], kind="progress", tensors={"norm": probe}).steering()
    assert torch.equal(found["norm"], torch.ones(WIDTH))
    with pytest.raises(ArtefactError, match="has no tensor 'direction'"):
        make_instrument([], tensors={3: {"weight": torch.ones(1, WIDTH)}}).steering()
    with pytest.raises(ArtefactError, match=r"at site 3 has the shape \[2, 32\].*\[32\]"):
        make_instrument([], tensors={3: {"direction": torch.ones(2, WIDTH)}}).steering()


def test_only_its_own_model_is_taken() -> None:
    instrument = make_instrument([3, 11])
    instrument.check_model(MODEL)
    instrument.check_model(MODEL.base_model)
    other = make_model(blocks=12, seed=1)
    with pytest.raises(ArtefactError, match=r"with the fingerprint \w{12}, and Qwen2ForCausalLM has \w{12}: other"):
        instrument.check_model(other)
    instrument.check_model(other, force=True)
    wide = make_model(hidden_size=64)
    for force in (False, True):
        with pytest.raises(ArtefactError, match="Qwen2ForCausalLM of width 32, and Qwen2ForCausalLM has width 64"):
            instrument.check_model(wide, force=force)
        with pytest.raises(ArtefactError, match="of 12 blocks, and Qwen2ForCausalLM of 3 blocks has no site 3"):
            instrument.check_model(make_model(), force=force)


# other programs' files


def test_old_arrays_come_in_one_layer_down(tmp_path: Path) -> None:
    """Entry l of an RSP array was added to the input of block l: to the output of block l - 1."""
    array = np.random.default_rng(0).standard_normal((12, WIDTH)).astype(np.float16)
    np.save(tmp_path / "rsp.npy", array)
    instrument = import_npy(tmp_path / "rsp.npy", MODEL, "rsp", position="last-prompt", units="λ")
    assert instrument.sites == [*range(-1, 11)]
    assert (instrument.position, instrument.units) == ("last-prompt", "λ")
    for layer in range(12):
        assert torch.equal(instrument.vectors()[layer - 1], torch.from_numpy(array[layer]).float())
    export_npy(instrument, tmp_path / "back.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), array.astype(np.float32))

    # and it does to the model what adding it to the inputs of the blocks does
    ids, stack = torch.randint(50, (1, 6)), Stack.of(MODEL)

    def add(row: torch.Tensor) -> Any:
        return lambda module, given, more: ((given[0] + row, *given[1:]), more)

    rows = torch.from_numpy(array).float()
    inputs = [
        block.register_forward_pre_hook(add(row), with_kwargs=True)
        for block, row in zip(stack.blocks, rows, strict=True)
    ]
    with torch.no_grad():
        wanted = MODEL(ids).logits
    for hook in inputs:
        hook.remove()
    sites = [stack.hook(site, lambda stream, v=v: stream + v) for site, v in instrument.vectors().items()]
    with torch.no_grad():
        torch.testing.assert_close(MODEL(ids).logits, wanted, atol=1e-5, rtol=1e-5)
    for hook in sites:
        hook.remove()


def test_progress_vectors_belong_to_the_final_norm(tmp_path: Path) -> None:
    vector = np.random.default_rng(0).standard_normal(WIDTH)
    np.save(tmp_path / "tpv.npy", vector)
    instrument = import_npy(tmp_path / "tpv.npy", MADE_ON, "tpv", kind="progress", delimiters=Delimiters((1,), (2,)))
    assert (instrument.kind, instrument.sites, instrument.model) == ("progress", ["norm"], MADE_ON)
    assert instrument.provenance == {"file": "tpv.npy"}
    export_npy(instrument, tmp_path / "back.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), vector.astype(np.float32))


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "array.npy"
    for array, found in (
        (np.zeros((13, WIDTH)), r"float64 \[13, 32\]"),
        (np.zeros((12, 31)), r"float64 \[12, 31\]"),
        (np.zeros((12, WIDTH), dtype=np.int64), "int64"),
        (np.zeros((1, 12, WIDTH)), r"float64 \[1, 12, 32\]"),
    ):
        np.save(file, array)
        with pytest.raises(ArtefactError, match=rf"holds {found}.*shape \[12, 32\] or \[32\]"):
            import_npy(file, MODEL, "x")
    np.save(file, np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtefactError, match="cannot be read as an npy array of numbers"):
        import_npy(file, MODEL, "x")
    with pytest.raises(ArtefactError, match="cannot be read"):
        import_npy(tmp_path / "missing.npy", MODEL, "x")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(ArtefactError, match="cannot be read as an npy array"):
        import_npy(tmp_path / "zip.npy", MODEL, "x")
    with (tmp_path / "huge.npy").open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**13,)}
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(ArtefactError, match=r"huge.npy cannot be read as an npy array of numbers \(mmap length"):
        import_npy(tmp_path / "huge.npy", MODEL, "x")
    np.savez(tmp_path / "many.npz", a=np.zeros(WIDTH))
    with pytest.raises(ArtefactError, match="holds several arrays"):
        import_npy(tmp_path / "many.npz", MODEL, "x")
    with pytest.raises(ArtefactError, match="no place for site 11"):
        export_npy(make_instrument([3, 11]), tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


def test_control_vectors_go_out_and_come_back(tmp_path: Path) -> None:
    instrument = make_instrument([2, 10, 11, 1])
    export_gguf(instrument, tmp_path / "v.gguf")
    # as llama.cpp reads it: float32, one dimension, direction.N added to the output of block N
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert {tensor.name for tensor in reader.tensors} == {"direction.1", "direction.2", "direction.10", "direction.11"}
    for tensor in reader.tensors:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        site = int(tensor.name.removeprefix("direction."))
        np.testing.assert_array_equal(tensor.data, instrument.vectors()[site].numpy())
    told = {key: field.contents() for key, field in reader.fields.items()}
    assert told["general.architecture"] == "controlvector"
    assert told["controlvector.model_hint"] == "qwen2"
    assert told["controlvector.layer_count"] == 4
    back = import_gguf(tmp_path / "v.gguf", MODEL, position="last-prompt")
    assert (back.name, back.units, back.position) == (instrument.name, instrument.units, "last-prompt")
    assert back.sites == [1, 2, 10, 11]
    for site, vector in instrument.vectors().items():
        assert torch.equal(back.vectors()[site], vector)


def test_sites_that_llama_cpp_cannot_steer_are_not_lost_in_silence(tmp_path: Path) -> None:
    file = tmp_path / "v.gguf"
    with pytest.raises(ArtefactError, match=r"steers sites 1 to 11, and 'difficulty' has -1, 0;.*leave"):
        export_gguf(make_instrument([-1, 0, 5, "norm"]), file)
    assert not file.exists()
    assert export_gguf(make_instrument([-1, 0, 5, "norm"]), file, leave_out=True) == [-1, 0]
    assert import_gguf(file, MODEL).sites == [5]
    with pytest.raises(ArtefactError, match=r"has norm; choose other sites\.$"):
        export_gguf(make_instrument(["norm"]), file, leave_out=True)
    zero = {-1: {"direction": torch.zeros(WIDTH)}, 4: {"direction": torch.ones(WIDTH)}}
    export_gguf(make_instrument([], tensors=zero, numbers={}), file)  # RSP's row 0 is all zeros: nothing is lost
    assert import_gguf(file, MODEL).sites == [4]


def test_control_vectors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def write(name: str, architecture: str = "controlvector", **tensors: np.ndarray[Any, Any]) -> Path:
        writer = gguf.GGUFWriter(tmp_path / name, architecture)
        for key, tensor in tensors.items():
            writer.add_tensor(key.replace("_", "."), tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    vector = np.ones(WIDTH, dtype=np.float32)
    for key, bad in (
        ("direction_0", vector),
        ("direction_12", vector),
        ("weight", vector),
        ("direction_3", vector[:8]),
        ("direction_3", vector.astype(np.float16)),
        ("direction_3", np.stack([vector, vector])),
    ):
        with pytest.raises(ArtefactError, match=rf"has direction.1 to direction.11 of float32 \[{WIDTH}\]"):
            import_gguf(write("bad.gguf", **{key: bad}), MODEL)
    with pytest.raises(ArtefactError, match="of 'llama', not of 'controlvector'"):
        import_gguf(write("llama.gguf", "llama", direction_3=vector), MODEL)
    with pytest.raises(ArtefactError, match="has no tensor"):
        import_gguf(write("empty.gguf"), MODEL)
    for content in (b"", b"GGUF", b"something else altogether" * 9):
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(ArtefactError, match="cannot be read as GGUF"):
            import_gguf(tmp_path / "bad.gguf", MODEL)
    with pytest.raises(ArtefactError, match="cannot be read as GGUF"):
        import_gguf(tmp_path / "missing.gguf", MODEL)


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for call in (
        lambda: export_gguf(make_instrument([1]), tmp_path / "v.gguf"),
        lambda: import_gguf(tmp_path / "v.gguf", MADE_ON),
    ):
        with pytest.raises(ArtefactError, match=r"pip install 'forethought\[gguf\]'"):
            call()


def test_an_instrument_reads_states_where_it_was_fitted() -> None:
    """The site of a direction is the site of the states: adding at a site moves the states read there by as much."""
    from forethought.instruments.capture import captured

    instrument, stack = make_instrument([4]), Stack.of(MODEL)
    vector, ids = instrument.vectors()[4], torch.randint(50, (1, 6))
    with captured(MODEL, [4]) as before, torch.no_grad():
        MODEL(ids)
    hook = stack.hook(4, lambda stream: stream + vector)
    with captured(MODEL, [4]) as after, torch.no_grad():
        MODEL(ids)
    hook.remove()
    torch.testing.assert_close(after.at(4) - before.at(4), vector.expand(1, 6, WIDTH), atol=1e-5, rtol=1e-5)
