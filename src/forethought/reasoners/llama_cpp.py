"""A reasoner as one GGUF file, as llama.cpp and everything built on it reads models."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from forethought.atomic import atomic_file
from forethought.errors import ArtefactError
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.tokenizer import SPLIT

SPLITTING = [  # what llama.cpp does to a text of the kind "qwen2" before the BPE
    {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
]
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # kinds of tokens in a GGUF


def export_gguf(reasoner: Reasoner, path: str | os.PathLike[str]) -> None:
    """Write weights, in float32, and tokenizer of a Qwen2 with a byte-level BPE into one file, atomically.

    For other architectures use the converter of llama.cpp; this one is for models whose tokenizer it does not know by
    name, as that of the embedded reasoner.

    Raises:
        ArtefactError: another architecture, tokenizer, scaling of positions or attention, the extra ``[gguf]`` is
            missing, or the place cannot be written.
    """
    try:
        import gguf
    except ImportError as error:
        raise ArtefactError("Writing GGUF needs the package gguf; install 'forethought[gguf]'.") from error
    config = reasoner.model.config
    if config.model_type != "qwen2":
        raise ArtefactError(f"{reasoner.name} is a {config.model_type}; this writes Qwen2, llama.cpp converts others.")
    tokenizer = json.loads(reasoner.tokenizer.backend_tokenizer.to_str())
    kind = tokenizer["model"]["type"]
    if kind != "BPE":
        raise ArtefactError(f"The tokenizer of {reasoner.name} is a {kind}; this writes byte-level BPEs.")
    rope = config.rope_parameters.get("rope_type", "default")
    if rope != "default":
        raise ArtefactError(f"The config of {reasoner.name} has the rope_type {rope!r}; this writes the default alone.")
    if config.use_sliding_window:
        raise ArtefactError(f"The config of {reasoner.name} has use_sliding_window; this writes whole attention alone.")
    if _splitting(tokenizer["pre_tokenizer"] or {}) != SPLITTING:
        raise ArtefactError(
            f"The tokenizer of {reasoner.name} does not split text as Qwen2's does; let llama.cpp convert it."
        )
    with atomic_file(path) as scratch:
        writer = gguf.GGUFWriter(scratch, "qwen2")
        writer.add_name(Path(reasoner.name).name)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        _add_tokenizer(writer, reasoner.tokenizer, tokenizer, config.vocab_size)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
        for name, weight in reasoner.model.state_dict().items():
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue  # llama.cpp takes the embeddings where there is no output matrix
            place = names.get_name(name, (".weight", ".bias"))
            if place is None:
                raise ArtefactError(f"{reasoner.name} has weights {name}, which no Qwen2 of llama.cpp has.")
            writer.add_tensor(place, weight.detach().float().cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _splitting(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, without what changes offsets alone."""
    steps = content.get("pretokenizers", [content])
    return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]


def _add_tokenizer(writer: Any, tokenizer: Any, content: dict[str, Any], size: int) -> None:
    added = {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in content["added_tokens"]}
    texts = [f"[unused {number}]" for number in range(size)]  # of embeddings without a token
    kinds = [CONTROL] * size
    for text, number in {**content["model"]["vocab"], **tokenizer.get_added_vocab()}.items():
        texts[number], kinds[number] = text, added.get(text, NORMAL)
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in content["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
