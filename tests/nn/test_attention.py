"""The explicit bfloat16 attention of CPUs gives what torch's own gives, and looks at no later position."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from forethought.nn.attention import causal_attention


@pytest.mark.parametrize("scale", [None, 0.05])
def test_bfloat16_equals_torch_within_rounding(scale: float | None) -> None:
    torch.manual_seed(0)
    exact = [torch.randn(4, 2, 9, 16, requires_grad=True) for _ in range(3)]
    rough = [each.detach().bfloat16().requires_grad_() for each in exact]
    expected = scaled_dot_product_attention(*exact, is_causal=True, scale=scale)
    found = causal_attention(*rough, scale=scale)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
    outer = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, rough, outer.bfloat16()), torch.autograd.grad(expected, exact, outer), strict=True
    ):
        assert float((ours.float() - theirs).norm() / theirs.norm()) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_future_is_out_of_sight(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, 6, 4, dtype=dtype) for _ in range(3))
    before = causal_attention(query, key, value)
    key[..., 4:, :] = 100.0
    value[..., 4:, :] = -100.0
    after = causal_attention(query, key, value)
    torch.testing.assert_close(after[..., :4, :], before[..., :4, :])
    assert not torch.allclose(after[..., 4:, :], before[..., 4:, :])
