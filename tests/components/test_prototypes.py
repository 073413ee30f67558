"""SINE's interests and its aggregation against a plain NumPy transcription."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gemirec.components.attention import SelfAttention
from gemirec.components.prototypes import IntentFusion, SparsePrototypes
from support_numpy import softmax, unit

B, L, K, D, C, A = 3, 6, 2, 4, 5, 8
LENGTHS = [6, 2, 0]


def case() -> tuple[torch.Tensor, torch.Tensor]:
    item_BLD = torch.randn(B, L, D, generator=torch.Generator().manual_seed(0))
    mask_BL = torch.arange(L) < torch.tensor(LENGTHS)[:, None]
    return item_BLD * mask_BL[:, :, None], mask_BL


def logits(module: SelfAttention, x: Any) -> Any:
    """``[k, n]`` logits of ``n`` items."""
    w1, b1, w2 = (p.detach().numpy() for p in (module.inner.weight, module.inner.bias, module.outer.weight))
    assert module.position_LD is not None
    return w2 @ np.tanh((x + module.position_LD.detach().numpy()[: len(x)]) @ w1.T + b1).T


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_sine_equals_the_transcription(cosine: bool, residual: bool) -> None:
    torch.manual_seed(0)
    sparse = SparsePrototypes(D, C, K, L, A, temperature=0.3, cosine=cosine)
    fusion = IntentFusion(D, L, A, residual=residual)
    for bias in (sparse.summary.inner.bias, sparse.attention.inner.bias, fusion.pooling.inner.bias, fusion.intent.bias):
        torch.nn.init.normal_(bias)
    item_BLD, mask_BL = case()
    interest_BKD, weight_BKL, assignment_BKL, active = sparse(item_BLD, mask_BL)
    user_BD = fusion(interest_BKD, item_BLD, mask_BL, assignment_BKL, active).detach().numpy()
    table = sparse.table_CD.detach().numpy()
    w, mu0 = fusion.intent.weight.detach().numpy(), fusion.intent.bias.detach().numpy()
    for b, n in enumerate(LENGTHS):
        if n == 0:
            assert (interest_BKD[b] == 0).all()
            assert (user_BD[b] == 0).all()
            continue
        x = item_BLD[b, :n].numpy()
        z = softmax(logits(sparse.summary, x), 1)[0] @ x
        s = unit(table) @ unit(z) if cosine else table @ z
        top = np.argsort(-s)[:K]
        gate = 1 / (1 + np.exp(-s[top]))
        assert active.index_BK[b].tolist() == top.tolist()
        p = softmax(unit(table[top]) @ unit(x).T / 0.3, 0)  # [K, n]
        a = softmax(logits(sparse.attention, x) * p, 1)
        h = a @ x
        np.testing.assert_allclose(assignment_BKL[b, :, :n].detach(), p, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(weight_BKL[b, :, :n].detach(), a, rtol=1e-4, atol=1e-6)
        assert (weight_BKL[b, :, n:] == 0).all()
        np.testing.assert_allclose(interest_BKD[b].detach(), h, rtol=1e-4, atol=1e-6)
        imagined = p.T @ (gate[:, None] * table[top]) + (x if residual else 0)
        context = softmax(logits(fusion.pooling, imagined), 1)[0] @ imagined
        mu = w @ np.concatenate([h.mean(0), context]) + mu0
        np.testing.assert_allclose(user_BD[b], softmax(h @ mu, 0) @ h, rtol=1e-4, atol=1e-6)


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    sparse, fusion = SparsePrototypes(D, C, K, L, A), IntentFusion(D, L, A)
    item_BLD, mask_BL = case()
    interest_BKD, _, assignment_BKL, active = sparse(item_BLD, mask_BL)
    fusion(interest_BKD, item_BLD, mask_BL, assignment_BKL, active).square().sum().backward()
    still = {name for name, p in sparse.named_parameters() if p.grad is None or not (p.grad != 0).any()}
    assert still == set()  # the summary learns through the gates
    assert all(p.grad is not None for p in fusion.parameters())
