"""A reasoner in llama.cpp: what is written, and, where llama.cpp is there, that it thinks and is steered the same."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from forethought.errors import ArtefactError
from forethought.instruments.artefact import Instrument
from forethought.instruments.exchange import export_gguf as export_vector
from forethought.instruments.fingerprint import Identity
from forethought.instruments.steering import Steering
from forethought.reasoners.llama_cpp import export_gguf
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.training import ReasonerConfig, build_reasoner, reasoner_of

PYTHON = Path(os.environ.get("FORETHOUGHT_LLAMA_PYTHON", "build/llama/bin/python")).absolute()


@pytest.fixture(scope="module")
def small() -> Reasoner:
    config = ReasonerConfig(hidden_size=64, num_layers=3, intermediate_size=96)
    return reasoner_of(build_reasoner(config, 0).eval())


def test_the_file_holds_every_weight_and_token(small: Reasoner, tmp_path: Path) -> None:
    export_gguf(small, tmp_path / "small.gguf")
    read = gguf.GGUFReader(tmp_path / "small.gguf")
    tensors = {tensor.name: tensor.data for tensor in read.tensors}
    weights = small.model.state_dict()
    assert len(tensors) == len(weights) - 1  # the head is the embeddings
    np.testing.assert_array_equal(tensors["token_embd.weight"], weights["model.embed_tokens.weight"].numpy())
    np.testing.assert_array_equal(tensors["blk.2.attn_q.bias"], weights["model.layers.2.self_attn.q_proj.bias"].numpy())
    tokens = read.get_field("tokenizer.ggml.tokens").contents()
    assert [tokens.index(text) for text in ("<think>", "</think>")] == [
        small.delimiters.open[0], small.delimiters.close[0],
    ]  # fmt: skip
    kinds = read.get_field("tokenizer.ggml.token_type").contents()
    assert (kinds[small.tokenizer.eos_token_id], kinds[small.delimiters.close[0]]) == (3, 4)
    assert len(tokens) == len(kinds) == small.model.config.vocab_size


def test_what_it_cannot_write_is_refused(small: Reasoner, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    other = LlamaForCausalLM(
        LlamaConfig(vocab_size=298, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64)
    )
    with pytest.raises(ArtefactError, match="is a llama; this writes Qwen2"):
        export_gguf(replace(small, model=other), tmp_path / "other.gguf")
    for name, value, told in (
        ("rope_parameters", {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, "has the rope_type 'linear'"),
        ("use_sliding_window", True, "has use_sliding_window"),
    ):
        model = copy.deepcopy(small.model)
        setattr(model.config, name, value)
        with pytest.raises(ArtefactError, match=told):
            export_gguf(replace(small, model=model), tmp_path / "other.gguf")
    for splitting in (None, ByteLevel(), Sequence([Split(Regex(r"\p{N}{1,3}"), "isolated"), ByteLevel(False, False)])):
        tokenizer = copy.deepcopy(small.tokenizer)
        tokenizer.backend_tokenizer.pre_tokenizer = splitting
        with pytest.raises(ArtefactError, match="does not split text as Qwen2's does"):
            export_gguf(replace(small, tokenizer=tokenizer), tmp_path / "other.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(
    not PYTHON.is_file(), reason="no llama.cpp: make test-llama builds it, or name its Python: FORETHOUGHT_LLAMA_PYTHON"
)
def test_llama_cpp_thinks_the_same_and_is_steered_the_same_way(tmp_path: Path) -> None:
    reasoner = Reasoner.open(device="cpu")
    model, end = reasoner.model, reasoner.delimiters.close[0]
    generator = torch.Generator().manual_seed(0)
    vectors = {site: torch.randn(model.config.hidden_size, generator=generator) for site in range(1, 5)}
    instrument = Instrument(
        "direction", "drawn", {site: {"direction": v} for site, v in vectors.items()}, Identity.of(model), "any", "1"
    )
    export_gguf(reasoner, tmp_path / "model.gguf")
    export_vector(instrument, tmp_path / "vector.gguf")
    questions = ["gcd 84 36", "sum 7 4 9 2", "collatz 27 below 10", "((3+5)*2)"]
    prompts = [reasoner.prompt(question) for question in questions]
    texts = [reasoner.tokenizer.decode(prompt) for prompt in prompts]
    strengths = [0.0, -0.3, 0.3]
    request = {"prompts": prompts, "texts": texts, "strengths": strengths, "tokens": 60, "end": end}
    (tmp_path / "request.json").write_text(json.dumps(request))
    script = Path(__file__).with_name("llama_script.py")
    command = [PYTHON, script, tmp_path / "model.gguf", tmp_path / "vector.gguf", tmp_path / "request.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["texts"] == prompts  # its tokenizer agrees
    for run in found["runs"]:
        for prompt, theirs in zip(prompts, run["prompts"], strict=True):
            with torch.no_grad(), Steering(vectors, run["strength"]).applied(model, reasoner.delimiters):
                logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
            assert theirs["end"] == pytest.approx(float(logits[end]), abs=2e-2)
    plain = [theirs["tokens"] for theirs in found["runs"][0]["prompts"]]
    assert plain == reasoner.generate(prompts, max_new_tokens=60)
