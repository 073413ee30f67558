"""UMI's gates against plain NumPy."""

from __future__ import annotations

import numpy as np
import torch

from gemirec.components.gates import ProfileGate


def test_gate_equals_numpy() -> None:
    torch.manual_seed(0)
    gate = ProfileGate(4, 3, outputs=2, hidden=8, bias=0.5)
    x, p = torch.randn(2, 5, 4), torch.randn(2, 3)
    got = gate(x, p).detach().numpy()
    w1, b1 = gate.inner.weight.detach().numpy(), gate.inner.bias.detach().numpy()
    w2, b2 = gate.outer.weight.detach().numpy(), gate.outer.bias.detach().numpy()
    assert (b2 == 0.5).all()
    for b in range(2):
        for i in range(5):
            hidden = np.maximum(w1 @ np.concatenate([x[b, i].numpy(), p[b].numpy()]) + b1, 0)
            np.testing.assert_allclose(got[b, i], 1 / (1 + np.exp(-(w2 @ hidden + b2))), rtol=1e-5)
