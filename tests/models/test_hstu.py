"""HSTU's encoder, its K interests and its loss over all positions against plain NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gemirec.data.dataset import Dataset
from gemirec.errors import ConfigError
from gemirec.models.catalog import build_model
from gemirec.models.hstu import HSTU
from support_models import held_out, shake, tiny, train_batch

Array = NDArray[np.float64]


def hstu(dataset: Dataset, **over: Any) -> HSTU:
    model = tiny("hstu", dataset.spec(), **over)
    assert isinstance(model, HSTU)
    shake(model)
    return model.double().eval()


def silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


def norm(x: Array) -> Array:
    return np.asarray((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6))


def states(model: HSTU, events: list[int]) -> Array:
    """The encoder written out for one user, head by head and position by position."""
    encoder: Any = model.encoder
    dim = model.config.dim
    x = model.item_table.weight.detach().numpy()[events] * np.sqrt(dim)
    x = x + encoder.position_LD.detach().numpy()[: len(events)]
    for layer in encoder.layers:
        u, v, q, k = np.split(silu(norm(x) @ layer.gate_value_query_key.weight.detach().numpy().T), 4, axis=1)
        bias = layer.distance_L.detach().numpy()
        seen = np.zeros_like(x)
        for part in np.split(np.arange(dim), layer.heads):
            for i in range(len(events)):
                for j in range(i + 1):
                    weight = silu(q[i, part] @ k[j, part] + bias[i - j]) / model.max_length
                    seen[i, part] += weight * v[j, part]
        x = x + (norm(seen) * u) @ layer.output.weight.detach().numpy().T + layer.output.bias.detach().numpy()
    return np.asarray(x)


def interests(model: HSTU, events: list[int]) -> Array:
    """``[K, D]`` unit vectors after the last of ``events``."""
    s = states(model, events)
    if model.attention is None:
        h = s[-1:]
    else:
        inner, outer = model.attention.inner, model.attention.outer.weight.detach().numpy()
        logit = np.tanh(s @ inner.weight.detach().numpy().T + inner.bias.detach().numpy()) @ outer.T
        h = (np.exp(logit) / np.exp(logit).sum(0)).T @ s
    return np.asarray(h / np.linalg.norm(h, axis=1, keepdims=True))


@pytest.mark.parametrize("over", [{}, {"heads": 4}, {"num_interests": 3, "heads": 2}], ids=str)
def test_interests(over: dict[str, Any], planted: Dataset) -> None:
    model = hstu(planted, **over)
    histories = held_out(planted, model.max_length)
    found = model.interests(histories).vector_BKD.numpy(force=True)
    for b in range(6):
        own = [i for i in histories.item_BL[b].tolist() if i]
        np.testing.assert_allclose(found[b], interests(model, own), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("readout", ["hard", "best"])
@pytest.mark.parametrize("num_interests", [1, 3])
def test_every_position_is_trained_as_its_prefix(num_interests: int, readout: str, planted: Dataset) -> None:
    """The loss is the mean over all prefixes of all rows, each with the interests that it would be served with."""
    model = hstu(planted, num_interests=num_interests, loss={"readout": readout})
    batch = train_batch(planted, model.max_length, size=8)
    weight_B = torch.rand(8, generator=torch.Generator().manual_seed(1))
    terms = model.losses(replace(batch, weight_B=weight_B), "train")
    table = model.item_table.weight.detach().numpy()
    unit = table[1:] / np.linalg.norm(table[1:], axis=1, keepdims=True)
    drawn = model.retrieval_loss.sampler.sample(batch.target_B, torch.Generator().manual_seed(0)).id_S.numpy()
    losses, weights = [], []
    for b, (row, target) in enumerate(zip(batch.item_BL.tolist(), batch.target_B.tolist(), strict=True)):
        window = [i for i in row if i]
        for n, item in enumerate([*window[1:], target], start=1):
            h = interests(model, window[:n])
            own = h @ unit[item - 1]
            others = h @ unit[drawn[drawn != item] - 1].T
            score = others.max(0) if readout == "best" else others[own.argmax()]
            losses.append(np.log(1 + np.exp((score - own.max()) / 0.05).sum()))
            weights.append(weight_B[b].item())
    assert terms.terms["retrieval"].item() == pytest.approx(np.average(losses, weights=weights), rel=1e-4)


def test_attention_keeps_how_often_something_occurs(planted: Dataset) -> None:
    """A softmax's weights sum to 1 at any length; these grow with the number of equal items."""
    model = hstu(planted, num_interests=1)
    layer: Any = model.encoder.layers[0]
    query_BHLX = torch.full((1, 1, 8, 4), 0.5, dtype=torch.float64)
    total_L = layer._weights(query_BHLX, query_BHLX)[0, 0].sum(dim=1)
    expected = np.cumsum(silu(1.0 + layer.distance_L.detach().numpy()[:8])) / model.max_length
    np.testing.assert_allclose(total_L.detach().numpy(), expected)


def test_attribution_is_the_attention_over_states(planted: Dataset) -> None:
    assert hstu(planted).attribution(held_out(planted, 12)) is None
    model = hstu(planted, num_interests=3, loss={"normalize": False})
    histories = held_out(planted, model.max_length)
    weight_BKL = model.attribution(histories)
    assert weight_BKL is not None
    state_BLD = model.encoder(model.item_table(histories.item_BL))
    torch.testing.assert_close((weight_BKL @ state_BLD.float()), model.interests(histories).vector_BKD)


def test_heads_must_divide_the_width(planted: Dataset) -> None:
    with pytest.raises(ConfigError, match="heads must divide"):
        build_model("hstu", {"dim": 16, "heads": 3}, planted.spec())
