"""The history's graph against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gemirec.components.graph import GraphLevels, Hops, adjacency

B, L, D = 3, 5, 4
LENGTHS = [5, 2, 0]


def case() -> tuple[torch.Tensor, torch.Tensor]:
    item_BLD = torch.randn(B, L, D, generator=torch.Generator().manual_seed(0))
    mask_BL = torch.arange(L) < torch.tensor(LENGTHS)[:, None]
    return item_BLD * mask_BL[:, :, None], mask_BL


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("user_aware", [False, True])
def test_adjacency_equals_numpy(user_aware: bool) -> None:
    item_BLD, mask_BL = case()
    user_BD = torch.randn(B, D, generator=torch.Generator().manual_seed(1)) if user_aware else None
    got = adjacency(item_BLD, mask_BL, user_BD).numpy()
    for b, length in enumerate(LENGTHS):
        expected = np.zeros((L, L))
        for i in range(length):
            for j in range(length):
                left = item_BLD[b, i].numpy() * (user_BD[b].numpy() if user_BD is not None else 1)
                expected[i, j] = sigmoid(left @ item_BLD[b, j].numpy())
        np.testing.assert_allclose(got[b], expected, rtol=1e-5)


@pytest.mark.parametrize("hops", ["chained", "input"])
@pytest.mark.parametrize("normalise", [False, True])
def test_levels_equal_numpy(hops: Hops, normalise: bool) -> None:
    torch.manual_seed(0)
    graph = GraphLevels(D, 3, hops=hops, normalise=normalise)
    for layer in graph.maps:
        torch.nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    item_BLD, mask_BL = case()
    got = [level.detach().numpy() for level in graph(item_BLD, mask_BL)]
    assert np.array_equal(got[0], item_BLD.numpy())
    for b, n in enumerate(LENGTHS):
        x = item_BLD[b, :n].numpy()
        edge = sigmoid(x @ x.T)
        if normalise:
            edge = edge + np.eye(n)
            edge = edge / edge.sum(1, keepdims=True)
        level = x
        for hop, layer in enumerate(graph.maps):
            weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()  # type: ignore[operator]
            z = edge @ (level if hops == "chained" else x) @ weight.T + bias
            level = np.where(z > 0, z, 0.2 * z)
            np.testing.assert_allclose(got[hop + 1][b, :n], level, rtol=1e-4, atol=1e-6)
            assert (got[hop + 1][b, n:] == 0).all()


def test_one_level_is_the_items() -> None:
    item_BLD, mask_BL = case()
    (only,) = GraphLevels(D, 1)(item_BLD, mask_BL)
    assert only is item_BLD
