"""Tiny random language models of several families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCABULARY, WIDTH = 50, 32
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS = {
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
}
FAMILIES = [*CONFIGS, "gpt2"]


def make_model(family: str = "qwen2", blocks: int = 3, seed: int = 0, **changed: Any) -> PreTrainedModel:
    """A model whose weights are large enough for its blocks to matter."""
    torch.manual_seed(seed)
    if family == "gpt2":
        sizes = {"n_embd": WIDTH, "n_layer": blocks, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}
        config: Any = GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
    else:
        config = CONFIGS[family](**SIZES | {"num_hidden_layers": blocks} | changed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


every_family = pytest.mark.parametrize("family", FAMILIES)
