"""A Thought: what a model does between reading its input and giving its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

StepKind = Literal["encode", "append", "recur", "grow", "token"]


@dataclass(frozen=True)
class Thought:
    """The steps between input and answer, of any model.

    Attributes:
        states: float ``[batch, steps, width]``, the state after each step.
        mask: bool ``[batch, steps]``, True where a step was really taken.
        kind: what a step is: one encoding pass (``encode``), a reasoning token appended to the sequence
            (``append``), a core block applied again (``recur``), a preference grown by one noise level (``grow``),
            or a generated text token (``token``).
        answers: float ``[batch, steps, candidates]``, the scores the model would have answered with after each step,
            probabilities where a preference is grown; None where they were not asked for.
    """

    states: Tensor
    mask: Tensor
    kind: StepKind
    answers: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """int64 ``[batch]``, steps really taken."""
        return self.mask.sum(dim=1)
