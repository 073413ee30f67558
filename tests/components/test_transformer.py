"""The causal encoder against plain NumPy, its causality, its poolings and the user features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gemirec.components.features import UserFeatures
from gemirec.components.pooling import last_state, mean_pool
from gemirec.components.transformer import CausalEncoder

L, D = 5, 6


def encoder(heads: int = 2, scale_input: bool = True) -> CausalEncoder:
    torch.manual_seed(0)
    module = CausalEncoder(D, layers=2, heads=heads, hidden=8, dropout=0.5, max_length=L, scale_input=scale_input)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module.eval()


def norm(x: Any, layer: torch.nn.LayerNorm) -> Any:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
    return scaled * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def dense(x: Any, layer: torch.nn.Linear) -> Any:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("scale_input", [True, False])
def test_encoder_equals_numpy(heads: int, scale_input: bool) -> None:
    module = encoder(heads, scale_input)
    item = torch.randn(1, L, D, generator=torch.Generator().manual_seed(1))
    x = item[0].numpy() * (np.sqrt(D) if scale_input else 1) + module.position_LD.detach().numpy()
    width = D // heads
    for block in module.blocks:
        b: Any = block
        query, key, value = np.split(dense(norm(x, b.attention_norm), b.query_key_value), 3, axis=1)
        seen = np.zeros((L, D))
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            for t in range(L):
                logit = key[: t + 1, part] @ query[t, part] / np.sqrt(width)
                weight = np.exp(logit) / np.exp(logit).sum()
                seen[t, part] = weight @ value[: t + 1, part]
        x = x + dense(seen, b.output)
        x = x + dense(np.maximum(dense(norm(x, b.network_norm), b.inner), 0), b.outer)
    np.testing.assert_allclose(module(item)[0].detach().numpy(), norm(x, module.norm), atol=2e-5)


def test_a_state_does_not_see_the_future() -> None:
    module = encoder()
    item = torch.randn(1, L, D, generator=torch.Generator().manual_seed(1))
    changed = item.clone()
    changed[:, 3:] = torch.randn(1, L - 3, D, generator=torch.Generator().manual_seed(2))
    before, after = module(item), module(changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().amax(2).min() > 0.01


def test_dropout_acts_in_training_only() -> None:
    module = encoder()
    item = torch.randn(1, L, D, generator=torch.Generator().manual_seed(1))
    assert torch.equal(module(item), module(item))
    module.train()
    assert not torch.equal(module(item), module(item))


def test_poolings() -> None:
    value = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    value = value * mask[:, :, None]
    assert mean_pool(value, mask).tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert last_state(value + 1, mask).tolist() == [[3.0, 4.0], [0.0, 0.0]]


def test_user_features_concatenate_embeddings_and_a_linear_map() -> None:
    torch.manual_seed(0)
    module = UserFeatures((3, 4), 2, dim=5)
    code, number = torch.tensor([[1, 3], [2, 0]]), torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    got = module(2, code, number).detach().numpy()
    tables: Any = module.tables
    assert module.numeric is not None
    for row in range(2):
        parts = [tables[f].weight[code[row, f]].detach().numpy() for f in range(2)]
        parts.append(module.numeric.weight.detach().numpy() @ number[row].numpy())
        np.testing.assert_allclose(got[row], np.concatenate(parts), rtol=1e-5)
    unknown = module(2, None, None)
    assert torch.equal(unknown, module(2, torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2)))
