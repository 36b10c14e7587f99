"""Has a model made up its mind? How much of its final answer each step of a thought has already.

From it a :class:`~forethought.instruments.class_probe.ClassProbe` learns to tell, from the state after a step, whether
thinking on will change the answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from forethought.errors import DataError
from forethought.nn.thought import Thought


def top(answers: Tensor, k: int) -> Tensor:
    """The k best of every answer, in ascending order of their index; float ``[..., N]`` → int64 ``[..., k]``."""
    return answers.topk(k, dim=-1).indices.sort(dim=-1).values


def kept(thought: Thought, k: int = 10) -> Tensor:
    """How much of the final top k each step has already; float ``[B, steps]`` between 0 and 1, at the last step 1.

    The last step of a row is the last that was really taken; steps that were not are NaN.

    Raises:
        DataError: the thought has no answers, or fewer than k candidates.
    """
    if thought.answers is None:
        raise DataError("The thought has no answers to compare; ask the model for them.")
    if thought.answers.shape[-1] < k:
        raise DataError(f"There are {thought.answers.shape[-1]} candidates, fewer than the {k} that are compared.")
    best = top(thought.answers, k)
    last = best[torch.arange(len(best), device=best.device), thought.lengths - 1]
    shared = (best[..., :, None] == last[:, None, None, :]).any(dim=-1).float().mean(dim=-1)
    return torch.where(thought.mask, shared, torch.nan)
