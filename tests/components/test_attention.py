"""The self-attentive extractor against plain NumPy."""

from __future__ import annotations

from typing import Any

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


def numpy_softmax(logit: Any) -> Any:
    e = np.exp(logit - logit.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(("temperature", "power"), [(0.5, 1.0), (1.0, 3.0), (2.0, 0.5), (0.3, 0.0)])
@pytest.mark.parametrize("cosine", [False, True])
def test_temperature_power_and_cosine_equal_numpy(temperature: float, power: float, cosine: bool) -> None:
    torch.manual_seed(1)
    module = SelfAttention(D, K, L, A, "none", temperature=temperature, power=power, cosine=cosine)
    item_BLD, mask_BL = case()
    w1, b1, w2 = (p.detach().numpy() for p in (module.inner.weight, module.inner.bias, module.outer.weight))
    got = module.attention(item_BLD, mask_BL).detach().numpy()
    for b, length in enumerate([6, 2]):
        hidden = np.tanh(item_BLD[b, :length].numpy() @ w1.T + b1)
        if cosine:
            logit = (w2 / np.linalg.norm(w2, axis=1, keepdims=True)) @ (
                hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
            ).T
        else:
            logit = w2 @ hidden.T
        weight = numpy_softmax(logit / temperature) ** power
        np.testing.assert_allclose(got[b, :, :length], weight / weight.sum(1, keepdims=True), rtol=1e-4)
        assert (got[b, :, length:] == 0).all()


def test_power_goes_from_the_mean_to_one_item() -> None:
    torch.manual_seed(1)
    item_BLD, mask_BL = case()
    mean, hard = (SelfAttention(D, K, L, A, "none", power=power) for power in (0.0, 1e6))
    expected = item_BLD[:2].sum(1) / mask_BL[:2].sum(1, keepdim=True)
    torch.testing.assert_close(mean(item_BLD, mask_BL)[:2], expected[:, None].expand(-1, K, -1))
    assert (hard.attention(item_BLD, mask_BL)[:2].amax(2) > 0.999).all()


def test_gumbel_noise_selects_in_proportion_to_the_weights() -> None:
    """The argmax of logits with Gumbel noise is a draw from their softmax; without training there is none."""
    torch.manual_seed(1)
    plain, noisy = SelfAttention(D, K, L, A, "none"), SelfAttention(D, K, L, A, "none", gumbel=1.0, power=1e6)
    noisy.load_state_dict(plain.state_dict())
    item_BLD, mask_BL = case()
    rows, generator = item_BLD[:1].expand(20_000, -1, -1), torch.Generator().manual_seed(0)
    drawn = noisy.attention(rows, mask_BL[:1].expand(20_000, -1), generator).mean(0)
    torch.testing.assert_close(drawn, plain.attention(item_BLD, mask_BL)[0], atol=0.015, rtol=0)
    again = noisy.attention(rows, mask_BL[:1].expand(20_000, -1), torch.Generator().manual_seed(0)).mean(0)
    assert torch.equal(drawn, again)
    noisy.eval()
    assert torch.equal(noisy.attention(rows[:2], mask_BL[:1]), noisy.attention(rows[:2], mask_BL[:1]))
