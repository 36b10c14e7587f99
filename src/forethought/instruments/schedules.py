"""When to steer and how much of it: gates and schedules, shared by hooks on the stream and biases on the logits.

A position belongs to the token that it *produces* (see :mod:`forethought.instruments.phases`), and what a gate or a
schedule says of it hangs on the text up to it alone, so that a key-value cache changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor

from forethought.errors import ArtefactError
from forethought.instruments.phases import PHASES, THINK, Delimiters, phases

Gate = Literal["all", "prompt", "generated", "think", "answer"]
GATES: tuple[Gate, ...] = get_args(Gate)
Need = Literal["phase", "entropy"]


@dataclass(frozen=True)
class Places:
    """What is known of every position of the texts of a batch.

    Attributes:
        ids: int64 ``[B, T]``.
        real: bool ``[B, T]``, false at padding and from the end of a finished text on.
        generated: int64 ``[B, T]``, the number of the generated token that the position produces: 0 at the last of
            the prompt, negative inside the prompt.
        phase: int8 ``[B, T]`` as :func:`forethought.instruments.phases.phases`; None where no delimiters are known.
        entropy: float32 ``[B, T]``, of the distribution of the position's own token at temperature 1, over log V; NaN
            where it is not known, as in the prompt; None where no schedule asks for it.
    """

    ids: Tensor
    real: Tensor
    generated: Tensor
    phase: Tensor | None = None
    entropy: Tensor | None = None

    @classmethod
    def of(
        cls,
        ids: Tensor,
        mask: Tensor,
        prompt_length: Tensor,
        delimiters: Delimiters | None = None,
        entropy: Tensor | None = None,
        ends: tuple[int, ...] = (),
    ) -> Places:
        """The places of ids int64 ``[B, T]``, whose prompts have so many tokens, int64 ``[B]``, padding not counted.

        ``ends`` are the tokens that end a generated text: what ``generate`` appends to a finished row is not steered.
        """
        generated = mask.cumsum(dim=1) - prompt_length[:, None]
        end = torch.isin(ids, torch.tensor(ends, dtype=ids.dtype, device=ids.device)) & (generated > 0)
        real = mask & (end.cumsum(dim=1) == 0)
        phase = None if delimiters is None else phases(ids, real, prompt_length, delimiters)
        return cls(ids, real, generated, phase, entropy)

    def opened(self, gate: Gate, window: tuple[int, int | None] | None = None, after: int | None = None) -> Tensor:
        """Where a gate is open; bool ``[B, T]``. The arguments are those of ``Steering``."""
        if gate == "prompt":
            opened = self.real & (self.generated < 0)
        elif gate == "generated":
            opened = self.real & (self.generated >= 0)
        elif gate == "all":
            opened = self.real
        else:
            opened = self.real & (self._known_phase() == PHASES[gate])
        if window is not None:
            first, end = window
            opened = opened & (self.generated >= first)
            if end is not None:
                opened = opened & (self.generated < end)
        if after is not None:
            opened = opened & (((self.ids == after) & self.real).cumsum(dim=1) > 0)
        return opened

    def thought(self) -> Tensor:
        """How many thinking tokens were generated before the one that the position produces; int64 ``[B, T]``."""
        thinking = self._known_phase() == THINK
        return thinking.cumsum(dim=1) - thinking.long()

    def _known_phase(self) -> Tensor:
        if self.phase is None:
            raise ArtefactError("To know what is thought, give the delimiters of the model.")
        return self.phase


class Schedule(Protocol):
    """What the strength is multiplied with at every position, float32 ``[B, T]``."""

    needs: ClassVar[frozenset[Need]]

    def __call__(self, at: Places) -> Tensor: ...


@dataclass(frozen=True)
class Constant:
    """The same strength everywhere."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, at: Places) -> Tensor:
        return torch.ones_like(at.ids, dtype=torch.float32)


@dataclass(frozen=True)
class Ramp:
    """From ``start`` at the first generated token (and before) straight to ``end`` at token ``tokens`` (and after).

    Raises:
        ArtefactError: ``tokens`` is not positive.
    """

    tokens: int
    start: float = 0.0
    end: float = 1.0
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ArtefactError(f"A ramp over {self.tokens} tokens has no slope; take at least 1.")

    def __call__(self, at: Places) -> Tensor:
        return self.start + (self.end - self.start) * (at.generated / self.tokens).clamp(0, 1)


@dataclass(frozen=True)
class Budget:
    """``before`` until so many thinking tokens are generated, ``after`` from then on.

    The defaults stop steering when the budget is spent; ``before=0, after=1`` lets the model think freely and begins
    only then, which with a bias on the closing delimiter makes it end.

    Raises:
        ArtefactError: the budget is negative.
    """

    tokens: int
    before: float = 1.0
    after: float = 0.0
    needs: ClassVar[frozenset[Need]] = frozenset({"phase"})

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise ArtefactError(f"A budget of {self.tokens} thinking tokens cannot be spent; take 0 or more.")

    def __call__(self, at: Places) -> Tensor:
        return torch.where(at.thought() < self.tokens, self.before, self.after)


@dataclass(frozen=True)
class EntropyAdaptive:
    """More where the model was sure: α_t = base + range · (1 - σ(k (u_t - u_0))) (Jiang et al. 2025, arXiv 2509.17000).

    u_t is the entropy, over log V, of the newest token's distribution: already steered, at temperature 1, before
    temperature and top-p make of it what the token is drawn from. In the prompt there is none and the schedule is at
    its highest, base + range. The strength multiplies α_t; with strength 1 ``base`` and ``span`` are the paper's α_base
    and R.

    Attributes:
        base: where the model is unsure.
        span: R, how much more where it is sure.
        steepness: k.
        middle: u_0.
    """

    base: float = 1.0
    span: float = 1.0
    steepness: float = 100.0
    middle: float = 0.02
    needs: ClassVar[frozenset[Need]] = frozenset({"entropy"})

    def __call__(self, at: Places) -> Tensor:
        if at.entropy is None:
            raise ArtefactError("The entropy schedule follows generation; it cannot weigh a text that is only read.")
        sure = 1 - torch.sigmoid(self.steepness * (at.entropy - self.middle))
        return self.base + self.span * torch.where(at.generated > 0, sure, 1.0)


def relative_entropy(logits: Tensor) -> Tensor:
    """The entropy of a distribution over log V, from 0 (sure) to 1 (uniform); logits ``[B, V]`` → float32 ``[B]``."""
    entropy: Tensor = torch.special.entr(logits.float().softmax(dim=-1)).sum(dim=-1)
    return entropy / log(logits.shape[-1])


def expanded(values: float | Tensor, rows: int, copies: int = 1, name: str = "strengths") -> Tensor:
    """One value a row, float32 ``[rows]``, each ``copies`` times as ``generate`` copies its prompts.

    Raises:
        ArtefactError: there are more or fewer values than prompts.
    """
    given = torch.as_tensor(values, dtype=torch.float32)
    if given.ndim == 0:
        return given.expand(rows)
    if len(given) * copies != rows:
        raise ArtefactError(
            f"There are {len(given)} {name} for {rows // copies} rows; give one for each row, or one for all."
        )
    return given.repeat_interleave(copies)


def check_strength(strength: float | Tensor) -> None:
    """Refuse what cannot be a strength.

    Raises:
        ArtefactError: it has more than one dimension, or is not finite.
    """
    values = torch.as_tensor(strength, dtype=torch.float32)
    if values.ndim > 1:
        raise ArtefactError(f"The strength has shape {list(values.shape)}; give one number, or one for each row.")
    if not bool(values.isfinite().all()):
        raise ArtefactError("The strength is not finite; give a number such as 0.1 or -0.1.")


def check_delimiters(delimiters: Delimiters | None, needed: bool, vocabulary: int | None) -> None:
    """Refuse to look for thoughts without delimiters, or with those of another model.

    Raises:
        ArtefactError: they are needed and missing, or hold ids the model does not have.
    """
    if delimiters is None:
        if needed:
            raise ArtefactError(
                "Steering that follows the thought needs to know where it begins and ends; "
                "give delimiters, such as Delimiters.of(tokenizer)."
            )
        return
    highest = max(delimiters.open + delimiters.close)
    if vocabulary is not None and highest >= vocabulary:
        raise ArtefactError(
            f"The delimiters hold token {highest}, and the model has only {vocabulary} tokens; "
            "take the delimiters from the model's own tokenizer."
        )
