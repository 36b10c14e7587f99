"""Tiny language models with random weights, texts with thoughts in them, and steering said again, plainly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from forethought.instruments.phases import Delimiters
from forethought.instruments.sites import Site, Stack

WIDTH, VOCABULARY = 32, 40
PAD, EOS, OPEN, CLOSE, NEWLINE = 0, 1, 2, 3, 4
DELIMITERS = Delimiters((OPEN,), (CLOSE,))
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
    "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": EOS,
}  # fmt: skip
# Mistral's window is shorter than the texts, so that its cache lets go of what it held first
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Llama": {},
    "Mistral": {"sliding_window": 6},
    "Gemma": {"head_dim": 8},
}


def thinker(family: str = "Qwen3", **more: Any) -> Any:
    """A causal language model that never ends a text by itself."""
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES.get(family, {}), **more})
    torch.manual_seed(7)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():  # norms begin alike everywhere, where a forgotten one is not seen
        if "norm" in name:
            nn.init.normal_(parameter, mean=0.0 if "Gemma" in family else 1.0, std=0.2)
    return model


def vectors(*sites: Site, width: int = WIDTH) -> dict[Site, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {site: torch.randn(width, generator=generator) for site in sites}


def prompts() -> tuple[Tensor, Tensor]:
    """Three prompts of 6, 4 and 5 tokens, padded on the left, each ending in an open thought; ids, mask ``[3, 6]``."""
    rows = [[9, 17, 5, 11, OPEN, NEWLINE], [12, 6, OPEN, NEWLINE], [8, 13, 30, OPEN, NEWLINE]]
    ids = torch.tensor([[PAD] * (6 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (6 - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


class Script(transformers.LogitsProcessor):
    """Makes row r of a generation say ``tokens[r][step]``, where that is not None."""

    def __init__(self, tokens: list[dict[int, int]], prompt: int = 6) -> None:
        self.tokens, self.prompt = tokens, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        copies = len(input_ids) // len(self.tokens)
        scores = scores.clone()
        for row in range(len(scores)):
            token = self.tokens[row // copies].get(input_ids.shape[1] - self.prompt)
            if token is None:
                scores[row, [PAD, EOS, OPEN, CLOSE]] = -torch.inf
            else:
                scores[row] = torch.where(torch.arange(VOCABULARY) == token, 0.0, -torch.inf)
        return scores


# row 0 thinks 3 tokens and answers, row 1 thinks twice, row 2 never stops
SCRIPT = [{3: CLOSE}, {2: CLOSE, 5: OPEN, 7: CLOSE}, {}]


def generate(model: Any, **keywords: Any) -> Any:
    """Nine tokens after :func:`prompts`, greedily, with the model's own logits at each step."""
    ids, mask = prompts()
    given: dict[str, Any] = {
        "input_ids": ids, "attention_mask": mask, "max_new_tokens": 9, "do_sample": False,
        "logits_processor": [Script(SCRIPT)], "output_logits": True, "output_scores": True,
        "return_dict_in_generate": True,
    }  # fmt: skip
    return model.generate(**{**given, **keywords})


def by_hand(ids: list[int], prompt: int) -> list[str]:
    """The phase of each position of one text without padding, by walking through it."""
    phase, found = "prompt", []
    for place, token in enumerate(ids):
        phase = {OPEN: "think", CLOSE: "answer"}.get(token, phase)
        found.append("prompt" if place < prompt - 1 else phase)
    return found


def opened(ids: Tensor, mask: Tensor, prompt: list[int], gate: Callable[[str, int], bool]) -> Tensor:
    """Where ``gate(phase, number of the generated token)`` holds; bool ``[B, T]``, false at padding."""
    result = torch.zeros_like(ids, dtype=torch.bool)
    for row in range(len(ids)):
        places = mask[row].nonzero().flatten().tolist()
        phases = by_hand(ids[row, places].tolist(), prompt[row])
        for number, (place, phase) in enumerate(zip(places, phases, strict=True)):
            result[row, place] = gate(phase, number - prompt[row] + 1)
    return result


def reference(model: Any, ids: Tensor, mask: Tensor, steered: dict[Site, Tensor], scale: Tensor) -> Tensor:
    """The logits of a whole text, without a cache, where ``scale`` float ``[B, T]`` × vector is added at each site."""
    stack = Stack.of(model)
    hooks = [
        stack.hook(site, lambda stream, vector=vector: stream + scale[..., None] * vector)
        for site, vector in steered.items()
    ]
    with torch.no_grad():
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits: Tensor = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    for hook in hooks:
        hook.remove()
    return logits


def whole_mask(ids: Tensor) -> Tensor:
    """The mask of :func:`generate`'s texts, copies of a prompt included."""
    mask = prompts()[1].repeat_interleave(len(ids) // 3, dim=0)
    return torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], dim=1)
