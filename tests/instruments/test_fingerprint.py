"""A fingerprint tells models apart, and does not tell apart what is one model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from forethought.errors import ArtefactError
from forethought.instruments.fingerprint import Identity, fingerprint, stored_fingerprint
from forethought.instruments.sites import Stack

from .models import FAMILIES, WIDTH, every_family, make_model


@every_family
def test_the_same_whatever_it_is_loaded_as(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    wanted = fingerprint(model)
    assert wanted == fingerprint(model)
    assert len(bytes.fromhex(wanted)) == 32
    assert fingerprint(model.base_model) == wanted  # with its head and without
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)) == wanted
    assert stored_fingerprint(tmp_path) == wanted
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert stored_fingerprint(tmp_path / "shards") == wanted
    assert fingerprint(model.to(torch.bfloat16).float()) == wanted


def test_what_files_do_not_tell(tmp_path: Path) -> None:
    assert stored_fingerprint(tmp_path) is None
    make_model().save_pretrained(tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    assert stored_fingerprint(tmp_path) is not None
    whole = config.read_text()
    config.write_text(json.dumps(json.loads(whole) | {"quantization_config": {"quant_method": "fp8"}}))
    assert stored_fingerprint(tmp_path) is None
    config.write_text(json.dumps(json.loads(whole) | {"model_type": "unheard of"}))
    assert stored_fingerprint(tmp_path) is None
    config.write_text(whole)
    tensors = load_file(file)
    save_file({f"fused.{name}": tensor for name, tensor in tensors.items()}, file)
    assert stored_fingerprint(tmp_path) is None
    save_file({name: tensor[..., :1].contiguous() for name, tensor in tensors.items()}, file)
    assert stored_fingerprint(tmp_path) is None
    file.write_bytes(b"nothing")
    assert stored_fingerprint(tmp_path) is None


def test_every_other_model_has_another() -> None:
    others = [make_model(family) for family in FAMILIES]
    others += [make_model(seed=1), make_model(blocks=4), make_model(num_attention_heads=2)]
    assert len({fingerprint(model) for model in others}) == len(others)


def test_a_step_of_training_changes_it() -> None:
    model = make_model()
    before = fingerprint(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(50, (4, 12))
    model(ids, labels=ids).loss.backward()
    optimiser.step()
    assert fingerprint(model) != before


def test_a_low_rank_change_of_one_large_matrix_changes_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4096, 1024, bias=False))
    before = fingerprint(model)
    with torch.no_grad():
        model[0].weight += 1e-4 * torch.randn(1024, 1) @ torch.randn(1, 4096)
    assert fingerprint(model) != before


def test_identity_names_what_matters(tmp_path: Path) -> None:
    model = make_model("qwen3")
    model.save_pretrained(tmp_path / "thinker")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "thinker")
    assert Identity.of(loaded) == Identity(str(tmp_path / "thinker"), "qwen3", fingerprint(model), WIDTH, 3)
    assert Identity.of(model).name == "Qwen3ForCausalLM"
    assert Identity.of(make_model("gpt2")).width == WIDTH


def test_models_that_do_not_tell_are_refused() -> None:
    block = nn.Linear(4, 4)
    with pytest.raises(ArtefactError, match="Sequential does not tell its width"):
        Identity.of(nn.Sequential(block), Stack((block,)))
    assert Identity.of(nn.Sequential(block), Stack((block,), nn.LayerNorm(4))).width == 4
    with pytest.raises(ArtefactError, match=r"weight 0\.bias of Sequential is not loaded"):
        fingerprint(nn.Sequential(nn.Linear(2, 2, device="meta")))
