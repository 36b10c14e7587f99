"""Exponential moving average of the weights: what is evaluated, kept and shared in place of the last step's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ExponentialMovingAverage:
    """A second copy of the trainable parameters that follows them slowly.

    After update n = 0, 1, …: ``average += (1 - d) (parameter - average)`` with ``d = min(decay, (1 + n) / (10 + n))``,
    so that the first, far-off weights are soon forgotten.

    Args:
        model: its parameters' values are the first average.
        decay: the limit of d, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.names = list(named)
        self.parameters: list[Tensor] = list(named.values())
        self.average: list[Tensor] = [parameter.detach().clone() for parameter in self.parameters]
        self.decay = decay

    def decay_at(self, update: int) -> float:
        """d of the update number ``update``, counted from 0."""
        return min(self.decay, (1 + update) / (10 + update))

    @torch.no_grad()
    def update(self, update: int) -> None:
        """Move the average towards the parameters as they are now."""
        torch._foreach_lerp_(self.average, self.parameters, 1 - self.decay_at(update))

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Overwrite the parameters with their average."""
        torch._foreach_copy_(self.parameters, self.average)

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own again."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages under their parameters' names."""
        return dict(zip(self.names, self.average, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up averages that :meth:`state_dict` gave.

        Raises:
            KeyError: a parameter has no average in ``state``.
        """
        torch._foreach_copy_(self.average, [state[name].to(own) for name, own in self.state_dict().items()])


class AverageWeights(TrainerCallback):  # type: ignore[misc]  # transformers ships no types for this base
    """Updates the average after every optimiser step; the number of steps so far is the update's number."""

    def __init__(self, average: ExponentialMovingAverage) -> None:
        self.average = average

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.average.update(state.global_step)
