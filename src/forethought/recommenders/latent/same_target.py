"""Other histories with the same next item, for alignment: item → the training events it stands at."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from forethought.data.batches import gather_rows
from forethought.data.dataset import Dataset


class SameTarget:
    """The training events of every item that have a history, as one sorted list with an offset an item.

    Args:
        dataset: only its training part is read.
        max_length: newest items of a history that are given.
    """

    def __init__(self, dataset: Dataset, max_length: int) -> None:
        starts, stops = np.asarray(dataset.sequences.offsets[:-1]), np.asarray(dataset.train_stop)
        owner = np.repeat(np.arange(dataset.num_users), stops - starts)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(stops - starts) - (stops - starts), stops - starts)
        event = (starts[owner] + place)[place > 0]  # the first of a user follows nothing
        items = np.asarray(dataset.sequences.items)
        order = np.argsort(items[event], kind="stable")
        self.items = torch.from_numpy(items.copy())
        self.events = torch.from_numpy(event[order])
        self.lengths = torch.from_numpy(np.minimum(place[place > 0], max_length)[order])
        counts = np.bincount(items[event], minlength=dataset.num_items + 1)
        self.offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))

    def draw(self, history: Tensor, target: Tensor) -> Tensor:
        """For each row another history that its target followed, drawn uniformly; its own where there is none.

        Two events are drawn, and the second is taken where the first is the row's own: all others are equally likely.

        Args:
            history: int64 ``[B, L]``, padded on the right with 0. A row's own event is known by them: another that ends
                in the same items passes for it, and shows nothing new.
            target: int64 ``[B]``, items 1..N.

        Returns:
            int64 ``[B, L']``, padded on the right with 0, on the device of ``target``.
        """
        wanted, own = target.cpu(), history.cpu()
        first, count = self.offsets[wanted], self.offsets[wanted + 1] - self.offsets[wanted]
        one, other = torch.rand(2, len(wanted), dtype=torch.float64)
        one = (one * count).long()
        other = (one + 1 + (other * (count - 1).clamp(min=0)).long()) % count.clamp(min=1)
        chosen = first + torch.where(self._is(first + one, own), other, one)
        chosen = torch.where(count > 0, chosen, 0)
        lengths = self.lengths[chosen]
        starts = self.events[chosen] - lengths
        drawn = gather_rows(self.items, starts, lengths)
        alone = (count == 0) | self._is(chosen, own)
        width = max(drawn.shape[1], own.shape[1])
        drawn, own = (torch.nn.functional.pad(rows, (0, width - rows.shape[1])) for rows in (drawn, own))
        return torch.where(alone[:, None], own, drawn).to(target.device)

    def _is(self, event: Tensor, history: Tensor) -> Tensor:
        """Whether what an event followed ends in this history; bool ``[B]``."""
        event = event.clamp(max=len(self.events) - 1)
        lengths = (history > 0).sum(dim=1)
        newest = gather_rows(self.items, self.events[event] - torch.minimum(lengths, self.lengths[event]), lengths)
        newest = torch.nn.functional.pad(newest, (0, history.shape[1] - newest.shape[1]))
        return (newest == history).all(dim=1) & (lengths <= self.lengths[event])
