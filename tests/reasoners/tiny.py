"""A tiny reasoner with random weights that ends its thoughts, and its texts, by chance."""

from __future__ import annotations

import torch
from transformers import Qwen2ForCausalLM

from forethought.data.problems import Problem, draw_problems
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.training import ReasonerConfig, build_reasoner, reasoner_of

CONFIG = ReasonerConfig(hidden_size=64, num_layers=2, intermediate_size=64)


def drawn(config: ReasonerConfig, seed: int) -> Qwen2ForCausalLM:
    """A network that is not ready to copy, so that what its head is made to say does not pile up."""
    ready = build_reasoner(config, seed)
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(ready.config)


def tiny(seed: int = 0, end: float = 0.0, stop: float = 0.0, context: int | None = None) -> Reasoner:
    """``end`` and ``stop`` are about the logits of what closes the thought and the text, beside 0 of all others."""
    model = drawn(CONFIG, seed).eval()
    reasoner = reasoner_of(model)
    if context is not None:
        model.config.max_position_embeddings = context
    with torch.no_grad():
        table = model.get_input_embeddings().weight  # the unembedding too
        along = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(seed)), dim=0)
        table += 0.3 * along  # every state lies along it, as long as the norm makes it, √64
        for token, logit in ((reasoner.delimiters.close[0], end), (reasoner.tokenizer.eos_token_id, stop)):
            table[token] += logit / 8 * along
    return reasoner


def problems(number: int, seed: int = 0) -> list[Problem]:
    return draw_problems(number, "train", seed)
