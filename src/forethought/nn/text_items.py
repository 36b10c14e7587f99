"""Item vectors made of frozen text vectors: a mixture of whitenings, in the place of an embedding table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought.nn.dropout import Dropout


class WhiteningExperts(nn.Module):
    """UniSRec's adaptor of text vectors (Hou et al. 2022, arXiv 2206.05941, §2.2): a mixture of parametric whitenings.

    ``Σ_e g_e(x) (x - b_e) W_e`` with ``g(x) = softmax(x G + δ)``. While training x is read through dropout by the
    experts, and ``δ = n · softplus(x S)`` with n standard normal; else δ = 0. The gates begin equal and the shifts 0.

    Args:
        text_size: w.
        width: d.
        experts: E.
        dropout: of what the experts read; one mask for all of them.
    """

    def __init__(self, text_size: int, width: int, experts: int, dropout: float) -> None:
        super().__init__()
        # a text of length 1 begins as an embedding does, with coordinates of deviation 0.02
        self.weight = nn.Parameter(torch.randn(text_size, experts, width) * 0.02)
        self.shift = nn.Parameter(torch.zeros(experts, text_size))
        self.gate = nn.Parameter(torch.zeros(text_size, experts))
        self.gate_noise = nn.Parameter(torch.zeros(text_size, experts))
        self.dropout = Dropout(dropout)

    def forward(self, text: Tensor) -> Tensor:
        """float ``[N, w]`` → float ``[N, d]``."""
        scores = text @ self.gate
        if self.training:
            scores = scores + torch.randn_like(scores) * F.softplus(text @ self.gate_noise)
        read = (self.dropout(text) @ self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])
        whitened = read - torch.einsum("ew,wed->ed", self.shift, self.weight)
        return torch.einsum("ne,ned->nd", scores.softmax(dim=-1), whitened)


class TextEmbedding(nn.Module):
    """What ``nn.Embedding`` offers, ``weight`` and a look-up, with every row made of the item's text.

    The text vectors are a buffer: not trained, saved with the model. Making the table costs a product ``[N, w] × [w,
    E d]``: inside :meth:`held` it is made once, and outside training once until what it is made of is seen to change.

    Args:
        num_items: N; items are 1..N, and row 0, of the padding, is zero.
        text_size, width, experts, dropout: see :class:`WhiteningExperts`.
        with_ids: whether an embedding of the item itself is added.
    """

    text: Tensor

    def __init__(
        self, num_items: int, text_size: int, width: int, experts: int, dropout: float, with_ids: bool
    ) -> None:
        super().__init__()
        self.register_buffer("text", torch.zeros(num_items, text_size, dtype=torch.float16))
        self.adaptor = WhiteningExperts(text_size, width, experts, dropout)
        self.ids = nn.Parameter(torch.randn(num_items, width) * 0.02) if with_ids else None
        self._holding = False
        self._held: Tensor | None = None
        self._kept: tuple[list[tuple[int, int]], Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        """float32 ``[N + 1, d]``, row i for item i."""
        if self._holding or self.training or torch.is_grad_enabled():
            self._kept = None  # a step of training may follow, and not every optimiser leaves a trace of it
            if not self._holding:
                return self._make()
            if self._held is None:
                self._held = self._make()
            return self._held
        made_of = [(each.data_ptr(), each._version) for each in (self.text, *self.parameters())]
        if self._kept is None or self._kept[0] != made_of:
            with torch.autocast(self.text.device.type, enabled=False):  # one table, whoever asks first
                self._kept = made_of, self._make()
        return self._kept[1]

    def _make(self) -> Tensor:
        # in float32 also under autocast: the softmax over the items takes its dtype from here
        table: Tensor = self.adaptor(self.text.to(self.adaptor.weight.dtype)).float()
        return F.pad(table if self.ids is None else table + self.ids, (0, 0, 1, 0))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, every look-up is into one table, whatever dropout and noise draw; its gradients are summed."""
        self._holding = True
        try:
            yield
        finally:
            self._holding, self._held = False, None

    def forward(self, items: Tensor) -> Tensor:
        """int64 of any shape, 0..N → float32 of that shape and d."""
        return F.embedding(items, self.weight)
