"""A recurrent reading of progress: one state after another, so that it can count, compare and remember.

The TPV paper reports that a one-layer GRU beats its linear probe and releases neither code nor sizes; those here are
ours. A thought's rows and labels are as in :mod:`~forethought.instruments.progress`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from forethought.errors import DataError
from forethought.instruments.controls import Floats, problems_of


class ProgressGRU(nn.Module):
    """LayerNorm, d → ``inner``, GRU of one layer, a linear head, sigmoid: progress in (0, 1) after every state.

    Args:
        width: d.
        inner: width into the GRU.
        hidden: width of its memory.
    """

    def __init__(self, width: int, inner: int = 256, hidden: int = 128) -> None:
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, inner)
        self.gru = nn.GRU(inner, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, states: Tensor) -> Tensor:
        """Progress after every state, ``[B, T]`` of float ``[B, T, d]``; padding on the right does not reach back."""
        return self._read(states, None)[0]

    def step(self, state: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One token more, at a cost that does not grow with the thought.

        Args:
            state: float ``[B, d]``, the newest.
            memory: float ``[1, B, hidden]`` that the step before gave; None at the first.

        Returns:
            Progress ``[B]``, and the memory for the next step.
        """
        progress, memory = self._read(state[:, None], memory)
        return progress[:, 0], memory

    def _read(self, states: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        outputs, memory = self.gru(self.project(self.norm(states)), memory)
        return torch.sigmoid(self.head(outputs)).squeeze(-1), memory

    @torch.no_grad()
    def predict(self, states: Tensor) -> Floats:
        """Progress of one thought's float ``[N, d]`` states, float64 ``[N]``."""
        self.eval()
        parameter = self.head.weight
        return np.asarray(self(states[None].to(parameter))[0].cpu().double().numpy())

    @classmethod
    def fit(
        cls,
        thoughts: Sequence[Tensor],
        problems: Any = None,
        held_out: float = 0.2,
        epochs: int = 50,
        patience: int = 5,
        batch: int = 16,
        rate: float = 1e-3,
        seed: int = 0,
        device: str = "cpu",
        **sizes: int,
    ) -> ProgressGRU:
        """Train on whole thoughts with Adam, and keep the weights that were best on problems held out.

        Args:
            thoughts: float ``[N, d]`` of each; any sequence, so one that reads a thought from disk when it is asked
                for keeps memory at one batch.
            problems: of each thought; None: every thought its own.
            held_out: share of the problems that decide when to stop.
            epochs, patience: the most, and how many without gain end it.
            sizes: ``inner``, ``hidden``.

        The same seed gives the same model on one device.

        Raises:
            DataError: no thoughts, problems that do not fit them, fewer than two problems, none left to train on, or
                NaN in a state.
        """
        owner = problems_of(problems, len(thoughts))
        names = np.unique(owner)
        if len(names) < 2:
            raise DataError("Training needs thoughts of two problems or more, one of them to decide when to stop.")
        number = max(1, round(held_out * len(names))) if 0 <= held_out < 1 else len(names)
        if number == len(names):
            raise DataError(
                f"held_out is {held_out:g}, which leaves none of {len(names)} problems to train on; give a share such "
                "as 0.2."
            )
        random = np.random.default_rng(seed)
        aside = np.isin(owner, random.permutation(names)[:number])
        training, validation = np.flatnonzero(~aside), np.flatnonzero(aside)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(thoughts[0].shape[-1], **sizes).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        best, kept, since = float("inf"), copy.deepcopy(model.state_dict()), 0
        for _ in range(epochs):
            model.train()
            for rows in np.array_split(random.permutation(training), -(-len(training) // batch)):
                optimizer.zero_grad()
                losses = model._losses([thoughts[i] for i in rows])
                losses.mean().backward()  # type: ignore[no-untyped-call]  # torch has no types for it
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            model.eval()
            with torch.no_grad():
                chunks = [validation[i : i + batch] for i in range(0, len(validation), batch)]
                error = float(torch.cat([model._losses([thoughts[i] for i in rows]) for rows in chunks]).mean())
            if not np.isfinite(error):
                raise DataError("The states of a thought hold NaN or infinity; leave such thoughts out.")
            if error < best:
                best, kept, since = error, copy.deepcopy(model.state_dict()), 0
            else:
                since += 1
                if since == patience:
                    break
        model.load_state_dict(kept)
        return model.eval()

    def _losses(self, thoughts: Sequence[Tensor]) -> Tensor:
        """The mean squared error of each thought, ``[B]``: every thought counts once, however long."""
        parameter = self.head.weight
        lengths = torch.tensor([len(thought) for thought in thoughts], device=parameter.device)
        states = pad_sequence([thought.to(parameter) for thought in thoughts], batch_first=True)
        j = torch.arange(1, states.shape[1] + 1, device=parameter.device)
        squares = (self._read(states, None)[0] - j / lengths[:, None]) ** 2
        return squares.masked_fill(j > lengths[:, None], 0).sum(dim=1) / lengths
