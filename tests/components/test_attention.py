"""The self-attentive extractor against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemirec.components.attention import Positions, SelfAttention

B, L, K, D, A = 3, 6, 2, 4, 8


def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    item_BLD = torch.randn(B, L, D, generator=generator)
    mask_BL = torch.arange(L) < torch.tensor([6, 2, 0])[:, None]
    return item_BLD * mask_BL[:, :, None], mask_BL


@pytest.mark.parametrize("positions", ["oldest", "newest", "none"])
def test_attention_equals_numpy(positions: Positions) -> None:
    torch.manual_seed(1)
    module = SelfAttention(D, K, L, A, positions)
    torch.nn.init.normal_(module.inner.bias)
    item_BLD, mask_BL = case()
    w1, b1, w2 = (p.detach().numpy() for p in (module.inner.weight, module.inner.bias, module.outer.weight))
    position = None if module.position_LD is None else module.position_LD.detach().numpy()
    got_weight, got = module.attention(item_BLD, mask_BL).detach().numpy(), module(item_BLD, mask_BL).detach().numpy()
    for b, length in enumerate([6, 2, 0]):
        x = item_BLD[b, :length].numpy()
        key = x
        if position is not None:
            key = x + (position[:length] if positions == "oldest" else position[:length][::-1])
        logit = w2 @ np.tanh(key @ w1.T + b1).T  # [K, length]
        weight = np.exp(logit) / np.exp(logit).sum(1, keepdims=True) if length else logit
        np.testing.assert_allclose(got[b], weight @ x, rtol=1e-4, atol=1e-6)
        if length:
            np.testing.assert_allclose(got_weight[b, :, :length], weight, rtol=1e-4)
            assert (got_weight[b, :, length:] == 0).all()
    np.testing.assert_allclose(got_weight.sum(2), 1, rtol=1e-5)


def test_positions_enter_the_logits_and_not_the_values() -> None:
    module = SelfAttention(D, K, L, A, "oldest")
    assert module.position_LD is not None
    mask_BL = torch.ones(1, L, dtype=torch.bool)
    assert torch.equal(module(torch.zeros(1, L, D), mask_BL), torch.zeros(1, K, D))
    item_BLD = torch.randn(1, L, D, generator=torch.Generator().manual_seed(0))
    before = module(item_BLD, mask_BL)
    with torch.no_grad():
        module.position_LD.mul_(3)
    assert not torch.allclose(before, module(item_BLD, mask_BL))


def test_every_parameter_acts() -> None:
    module = SelfAttention(D, K, L, A, "oldest")
    item_BLD, mask_BL = case()
    module(item_BLD, mask_BL).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name


def test_logits_equal_numpy() -> None:
    """With their constants, which the softmax alone does not need."""
    torch.manual_seed(1)
    module = SelfAttention(D, K, L, A, "none")
    item_BLD, mask_BL = case()
    w1, b1, w2 = (p.detach().numpy() for p in (module.inner.weight, module.inner.bias, module.outer.weight))
    expected = np.einsum("ka,bla->bkl", w2, np.tanh(item_BLD.numpy() @ w1.T + b1))
    np.testing.assert_allclose(module.logits(item_BLD, mask_BL).detach(), expected, rtol=1e-4, atol=1e-5)
