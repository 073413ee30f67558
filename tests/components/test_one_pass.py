"""One-pass routing and transforms against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemirec.components.capsule import Routing, RoutingAxis
from gemirec.components.one_pass import Collected, OnePassRouting
from gemirec.components.transform import InterestTransforms

B, L, K, D = 3, 5, 3, 4
LENGTHS = [5, 2, 0]


def case() -> tuple[torch.Tensor, torch.Tensor]:
    item_BLD = torch.randn(B, L, D, generator=torch.Generator().manual_seed(0))
    mask_BL = torch.arange(L) < torch.tensor(LENGTHS)[:, None]
    return item_BLD * mask_BL[:, :, None], mask_BL


@pytest.mark.parametrize("axis", ["interests", "positions"])
@pytest.mark.parametrize("collect", ["squash", "mean"])
def test_one_pass_equals_numpy(axis: RoutingAxis, collect: Collected) -> None:
    torch.manual_seed(0)
    module = OnePassRouting(D, K, axis=axis, temperature=0.3, collect=collect)
    item_BLD, mask_BL = case()
    interest, weight = (part.detach().numpy() for part in module(item_BLD, mask_BL))
    p = module.prototype_KD.detach().numpy()
    np.testing.assert_allclose(p @ p.T, np.eye(K), atol=1e-6)
    for b, n in enumerate(LENGTHS):
        u = item_BLD[b, :n].numpy()
        e = np.exp(p @ (u / np.linalg.norm(u, axis=1, keepdims=True)).T / 0.3)
        c = e / e.sum(0 if axis == "interests" else 1, keepdims=True) if n else e
        s = c @ u
        norm = np.linalg.norm(s, axis=1, keepdims=True)
        if collect == "squash":
            expected = norm**2 / (1 + norm**2) * s / np.maximum(norm, 1e-9)
        else:
            expected = s / np.maximum(c.sum(1, keepdims=True), 1e-6)
        np.testing.assert_allclose(weight[b, :, :n], c, rtol=1e-4)
        assert (weight[b, :, n:] == 0).all()
        np.testing.assert_allclose(interest[b], expected, rtol=1e-4, atol=1e-6)


def test_one_pass_is_the_last_round_of_routing() -> None:
    torch.manual_seed(0)
    module = OnePassRouting(D, K, temperature=0.3)
    item_BLD, mask_BL = case()
    logit_BKL = torch.nn.functional.normalize(module.prototype_KD, dim=1) @ torch.nn.functional.normalize(
        item_BLD, dim=2
    ).transpose(1, 2)
    routed = Routing(1, "interests")(item_BLD[:, None], logit_BKL / 0.3, mask_BL)
    torch.testing.assert_close(module(item_BLD, mask_BL)[0], routed)


def test_fixed_prototypes_do_not_train() -> None:
    assert not list(OnePassRouting(D, K, train_prototypes=False).parameters())


def test_transforms_equal_numpy() -> None:
    torch.manual_seed(0)
    module = InterestTransforms(D, K, slope=0.2)
    torch.nn.init.normal_(module.bias_KD)
    u = torch.randn(B, D)
    w, bias = module.weight_KDD.detach().numpy(), module.bias_KD.detach().numpy()
    for b in range(B):
        z = np.einsum("d,kde->ke", u[b].numpy(), w) + bias
        np.testing.assert_allclose(module(u)[b].detach(), np.where(z > 0, z, 0.2 * z), rtol=1e-4, atol=1e-6)
