"""The logit route inside vLLM: ``alpha · bias`` on the logits of the requests that asked, while they think.

Adding a direction after the final norm is exactly a constant bias on the logits (``bias = W_U · direction``), so that
this steers without touching the model: with compiled graphs, any attention, quantised or not. It is a custom logits
processor of vLLM's V1 model runner, named when the engine starts::

    LLM(model, logits_processors=["forethought.serving.vllm_logits:SteeringLogits"])
    SamplingParams(extra_args={"bias": "progress", "alpha": 20.0})

It is no entry point of ``vllm.logits_processors``: vLLM keeps the tokens that a request has generated up to date only
for processors that are named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

from forethought.serving.vllm_plugin import engine
from forethought.serving.vllm_requests import Order, token_bias


@dataclass
class Biased:
    """A request whose logits are steered.

    Attributes:
        bias: ``alpha · bias``, float32 ``[vocabulary]``.
        generated: its tokens so far; the list is vLLM's, and grows.
        seen: how many of them have been looked at. thinking: whether the next token belongs to a thought.
    """

    order: Order
    bias: Tensor
    generated: list[int]
    seen: int = 0
    thinking: bool = False

    def active(self) -> bool:
        """Whether the token that is drawn now is to be biased."""
        if self.order.bias_phase == "generated":
            return True
        for token in self.generated[self.seen :]:
            if token in (self.order.opening, self.order.closing):
                self.thinking = token == self.order.opening
        self.seen = len(self.generated)
        return self.thinking


class SteeringLogits(LogitsProcessor):  # type: ignore[misc]  # vLLM is not there when types are checked
    """vLLM's logits processor for requests with a ``bias``."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.engine = engine(vllm_config)
        self.device = device
        self.requests: dict[int, Biased] = {}

    def is_argmax_invariant(self) -> bool:
        """A bias changes which token is likeliest."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the requests that come, go and change rows."""
        process_dict_updates(self.requests, batch_update, self._biased)

    def apply(self, logits: Tensor) -> Tensor:
        """Add the biases to ``[requests, vocabulary]`` logits, in place."""
        for row, request in self.requests.items():
            if request.active():
                logits[row] += request.bias
        return logits

    def _biased(self, params: Any, prompt: list[int] | None, generated: list[int]) -> Biased | None:
        order = Order.of(params.extra_args)
        if order is None or not order.bias:
            return None
        engine = self.engine
        bias = token_bias(order.bias, order.bias_stamp, engine.width, engine.vocabulary, engine.model)
        scaled = torch.from_numpy(order.alpha * bias).to(self.device, torch.float32)
        return Biased(order, scaled, generated, thinking=order.thinking)
