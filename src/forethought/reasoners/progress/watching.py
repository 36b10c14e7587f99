"""Watch a model think: one token after another, with how much of its thought is over and how many tokens are left.

The state that produces a token is read by a hook in the very pass that produces it. There is no second pass, and what a
token costs does not grow with the thought, but for the model's own attention.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from forethought.errors import ArtefactError
from forethought.instruments.logit_route import ThinkingBias, logit_bias
from forethought.instruments.sites import Stack
from forethought.reasoners.grading import boxed
from forethought.reasoners.progress.trained import Source, Trained
from forethought.reasoners.reasoner import Reasoner
from forethought.reasoners.rollouts import Sampling

UNWRITTEN = "\ufffd"  # what a tokenizer makes of half a character
_OPEN = 0.99  # the most that is shown of a thought that goes on, whatever is read


@dataclass(frozen=True)
class Event:
    """A token, and what the bar shows after it.

    Attributes:
        token: its id.
        text: that is new; empty while a character is not whole.
        fraction: of the thought that is over, never falling; at most 0.99 while it goes on, 1 from its closing mark on.
        eta_tokens: thinking tokens left; ``low`` and ``high`` are the ends of its interval.
        phase: of the token; the mark that closes a thought belongs to ``think``.
        closed: the thought is over: this token closed it, or an earlier one.
        source: what the fraction is read from; ``position`` looks at the number of tokens alone.
        tokens: so far, this one included.
        seconds: since the first pass began.
    """

    token: int
    text: str
    fraction: float
    low: float
    high: float
    eta_tokens: float
    phase: Literal["think", "answer"]
    closed: bool
    source: Source
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Ending:
    """How it ended.

    Attributes:
        why: the text was over, a limit of tokens or of time was reached, or it was stopped from outside.
        tokens, thinking_tokens: generated.
        ended: the thought was closed.
        answer: what stands in the box; None where nothing does.
        seconds: in all.
    """

    why: Literal["end", "tokens", "time", "stopped"]
    tokens: int
    thinking_tokens: int
    ended: bool
    answer: str | None
    seconds: float


@dataclass(frozen=True)
class Watcher:
    """A reasoner and what reads its progress.

    Attributes:
        reasoner, trained: made for each other.
        source: what to read; by default what training chose.
        max_new_tokens: thought and answer together; never beyond the context.
        temperature, top_p: of the sampling; temperature 0 is greedy.
        seed: of the sampling; the same for the same question.
        alpha: of overclocking, while it thinks; 0 is none.
        max_seconds: after which it is cut off.

    Raises:
        ArtefactError: a number that means nothing.
    """

    reasoner: Reasoner
    trained: Trained
    source: Source | None = None
    max_new_tokens: int = 512
    temperature: float = 0.6
    top_p: float = 0.95
    seed: int = 0
    alpha: float = 0.0
    max_seconds: float = 600.0

    def __post_init__(self) -> None:
        Sampling(1, self.max_new_tokens, self.temperature, self.top_p, self.seed)  # checks them
        if not math.isfinite(self.alpha) or not self.max_seconds > 0:
            raise ArtefactError(
                f"alpha is {self.alpha} and max_seconds {self.max_seconds}; they have to be finite, and above 0."
            )

    def stream(self, question: str, stop: Callable[[], bool] = lambda: False) -> Iterator[Event | Ending]:
        """Answer a question, token by token; the last item is the :class:`Ending`.

        Closing the iterator ends the generation. One at a time: the model holds one hook, and threads share it.

        Args:
            question: the user's message.
            stop: asked before every token.

        Raises:
            ArtefactError: the question fills the context.
        """
        reasoner, source = self.reasoner, self.source or self.trained.source
        model, close = reasoner.model, reasoner.delimiters.close
        prompt = reasoner.prompt(question)
        ids = torch.tensor([prompt], device=model.device)
        needle = self.trained.needle(source, model.device)
        speller, choose = Speller(reasoner.tokenizer), _Chooser(self, model.device)
        room = min(self.max_new_tokens, reasoner.context - len(prompt))
        seen: list[Tensor] = []
        generated: list[int] = []
        closed: int | None = None
        shown = (0.0, 0.0, 0.0, 0.0)
        began, why, cache = time.monotonic(), "tokens", None
        handle = Stack.of(model).hook("norm", lambda stream: seen.append(stream[0, -1].detach()))
        try:
            for _ in range(room):
                if stop():
                    why = "stopped"
                    break
                if time.monotonic() - began > self.max_seconds:
                    why = "time"
                    break
                seen.clear()
                with torch.no_grad():
                    output = model(
                        input_ids=ids if cache is None else ids[:, -1:], past_key_values=cache, use_cache=True
                    )
                cache = output.past_key_values
                token = choose(ids, output.logits[:, -1])
                ids = torch.cat([ids, torch.tensor([[token]], device=ids.device)], dim=1)
                if token in reasoner.stops:
                    why = "end"
                generated.append(token)
                phase: Literal["think", "answer"] = "think" if closed is None else "answer"
                if closed is None:
                    reading = needle.step(seen[-1])
                    shown = (min(reading.fraction, _OPEN), reading.low, reading.high, reading.eta)
                    if tuple(generated[-len(close) :]) == close:
                        closed, shown = len(generated) - len(close), (1.0, 0.0, 0.0, 0.0)
                text = "" if why == "end" else speller.push(token)
                seconds = time.monotonic() - began
                yield Event(token, text, *shown, phase, closed is not None, source, len(generated), seconds)
                if why == "end":
                    break
        finally:
            handle.remove()
        answer = None if closed is None else boxed(reasoner.tokenizer.decode(generated[closed:]))
        thought = len(generated) if closed is None else closed
        yield Ending(why, len(generated), thought, closed is not None, answer, time.monotonic() - began)  # type: ignore[arg-type]

    def why(self) -> str:
        """What the bar is read from, and why, in a sentence."""
        source, level = self.source or self.trained.source, None
        level = self.trained.meters[source].eta.level
        if source == "position":
            reason = "asked for" if self.source else "neither probe was better than that on problems held out"
            told = f"the number of tokens alone ({reason})"
        else:
            told = {"tpv": "a linear probe of the state", "gru": "a GRU over the states"}[source]
        return f"Progress is read from {told}; the interval holds {level:.0%} of thoughts."


class Speller:
    """Text of one token after another, whole characters only, at a cost that does not grow.

    Args:
        tokenizer: whose.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._told = 0  # of the ids, how many are written out; those before them give the spacing

    def push(self, token: int) -> str:
        """What the token adds."""
        self._ids.append(token)
        before, after = self._decode(self._ids[: self._told]), self._decode(self._ids)
        if after.endswith(UNWRITTEN) and len(self._ids) - self._told < 8:
            return ""
        self._ids, self._told = self._ids[self._told :], len(self._ids) - self._told
        return after[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


class _Chooser:
    """The next token, under the bias, the temperature and the nucleus."""

    def __init__(self, watcher: Watcher, device: torch.device) -> None:
        reasoner, processors = watcher.reasoner, LogitsProcessorList()
        if watcher.alpha:
            bias = logit_bias(reasoner.model, torch.from_numpy(watcher.trained.tpv.weight).float())
            processors.append(ThinkingBias(bias, watcher.alpha, reasoner.delimiters))
        if watcher.temperature > 0:
            processors.append(TemperatureLogitsWarper(watcher.temperature))
        if watcher.temperature > 0 and watcher.top_p < 1:
            processors.append(TopPLogitsWarper(watcher.top_p))
        self.processors, self.greedy = processors, watcher.temperature == 0
        self.generator = torch.Generator(device).manual_seed(watcher.seed)

    def __call__(self, ids: Tensor, logits: Tensor) -> int:
        scores = self.processors(ids, logits.float())
        if self.greedy:
            return int(scores.argmax(dim=-1))
        return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=self.generator))


def plain(event: Event | Ending) -> dict[str, Any]:
    """For JSON; counts of tokens to a tenth, the fraction to a thousandth."""
    found = dataclasses.asdict(event)
    for key in ("low", "high", "eta_tokens", "seconds"):
        if key in found:
            found[key] = round(found[key], 1)
    if "fraction" in found:
        found["fraction"] = round(found["fraction"], 3)
    return found
