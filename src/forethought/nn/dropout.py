"""Dropout whose noise costs a CPU a third of torch's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Zeroes each element with probability p while training and scales the others by 1 / (1 - p).

    On a CPU torch draws one number an element, one after the other however many threads there are. Sixteen bits
    decide as well (p is met to 1.5e-5), and one draw has four times sixteen.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def extra_repr(self) -> str:
        return f"p={self.p}"

    def forward(self, states: Tensor) -> Tensor:
        """float of any shape → the same."""
        if not self.training or not 0 < self.p < 1 or states.device.type != "cpu":
            return F.dropout(states, self.p, self.training)
        count = states.numel()
        draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = draws.view(torch.int16)[:count].view(states.shape)
        kept = bits >= min(round(self.p * 2**16), 2**16 - 1) - 2**15
        return states * kept.to(states.dtype).div_(1 - self.p)
