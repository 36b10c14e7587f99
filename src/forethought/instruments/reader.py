"""Forward passes over batches of token ids that give back the states of chosen sites and positions, nothing else."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import ArtefactError
from forethought.instruments.fingerprint import trunk, width
from forethought.instruments.sites import Site, Stack


@dataclass(frozen=True)
class Work:
    """Something to run.

    Attributes:
        ids: tokens.
        where: int64 ``[rows]``, the positions to keep, rising.
        owner: what the caller knows it by.
    """

    ids: Sequence[int]
    where: Tensor
    owner: int

    @property
    def length(self) -> int:
        """Tokens to run: what comes later does not change a causal network's states."""
        return int(self.where[-1]) + 1


Store = Callable[[Site, Tensor, list[Work]], None]


class Reader:
    """A network with hooks at the sites, as :func:`reading` makes it.

    Attributes:
        stack: its blocks.
        width: d.
        dtype: of its weights.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], stack: Stack) -> None:
        self.network, self.stack, self.sites = trunk(model), stack, sites
        self.width = width(model, stack)
        weight = next(self.network.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self._accepts = inspect.signature(self.network.forward).parameters
        self._seen: dict[Site, Tensor] = {}
        self._rows: tuple[Tensor, Tensor] | None = None
        self._proven = False  # whether a whole pass has shown that it goes through each site once

    def batches(self, work: Iterable[Work], size: int) -> Iterator[list[Work]]:
        """Like lengths together, the longest first: what does not fit into memory fails at once.

        A network that takes no attention mask gets no padding: its batches are of one length.
        """
        batch: list[Work] = []
        for item in sorted(work, key=lambda item: -item.length):
            other = "attention_mask" not in self._accepts and batch and batch[-1].length != item.length
            if len(batch) == size or other:
                yield batch
                batch = []
            batch.append(item)
        if batch:
            yield batch

    def run(self, batch: list[Work], store: Store) -> None:
        """One forward pass.

        Args:
            batch: padded on the left here.
            store: gets, of each site, the rows of the whole batch one after another, ``[rows, d]``.

        Raises:
            ArtefactError: the pass goes through a site not at all, or more than once.
        """
        longest = max(item.length for item in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, item in enumerate(batch):
            ids[row, longest - item.length :] = torch.tensor(item.ids[: item.length])
            mask[row, longest - item.length :] = 1
        keywords: dict[str, Any] = {"use_cache": False} if "use_cache" in self._accepts else {}
        if not mask.all():
            keywords["attention_mask"] = mask.to(self.device)
            if "position_ids" in self._accepts:  # a padded row begins at position 0 all the same
                keywords["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0).to(self.device)
        counts = torch.tensor([len(item.where) for item in batch])
        columns = torch.cat([item.where + longest - item.length for item in batch])
        self._rows = (torch.arange(len(batch)).repeat_interleave(counts), columns)
        try:
            with torch.no_grad(), contextlib.suppress(_Enough):
                self.network(ids.to(self.device), **keywords)
            for site in self.sites:
                if site not in self._seen:
                    raise ArtefactError(f"A pass of {type(self.network).__name__} does not come through site {site!r}.")
                store(site, self._seen.pop(site), batch)
            self._proven = True
        finally:
            self._rows, self._seen = None, {}

    def _keep(self, site: Site, ends: bool) -> Callable[[Tensor], None]:
        def change(stream: Tensor) -> None:
            if self._rows is None:
                return  # a pass of someone else
            if site in self._seen:
                raise ArtefactError(f"A pass goes through site {site!r} more than once; read it with captured().")
            row, column = (index.to(stream.device) for index in self._rows)
            self._seen[site] = stream[row, column]
            if ends and self._proven:
                raise _Enough

        return change


class _Enough(Exception):  # noqa: N818  # no error: the last site was read, the blocks after it need not run
    pass


@contextlib.contextmanager
def reading(model: nn.Module, sites: Sequence[Site], stack: Stack | None) -> Iterator[Reader]:
    """A reader whose hooks are taken away in the end, the model in evaluation mode meanwhile.

    Raises:
        ArtefactError: no site, one twice, or one that the network does not have.
    """
    stack = stack or Stack.of(model)
    if not sites or len(set(sites)) < len(sites):
        raise ArtefactError(f"The sites to read are {list(sites)}; give at least one, and each of them once.")
    reader, training = Reader(model, sites, stack), {module: module.training for module in model.modules()}
    deepest = max(sites, key=lambda site: len(stack) if site == "norm" else site)
    with contextlib.ExitStack() as hooks:
        for site in sites:
            hooks.callback(stack.hook(site, reader._keep(site, ends=site == deepest)).remove)
        hooks.callback(_restore, training)
        model.eval()
        yield reader


def _restore(training: dict[nn.Module, bool]) -> None:
    for module, flag in training.items():
        module.training = flag
