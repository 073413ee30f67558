"""MIMA's decoder, matched loss and routing loss against plain NumPy, and where gradients stop."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gemirec.data.dataset import Dataset
from gemirec.errors import ConfigError
from gemirec.models.catalog import build_model
from gemirec.models.mima import MIMA
from support_models import held_out, shake, tiny, train_batch
from support_numpy import Array, softmax


def mima(dataset: Dataset, **over: Any) -> MIMA:
    model = tiny("mima", dataset.spec(), **over)
    assert isinstance(model, MIMA)
    shake(model)
    return model.double().eval()


def layer_norm(x: Array, layer: torch.nn.LayerNorm) -> Array:
    centred = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
    return np.asarray(centred * layer.weight.detach().numpy() + layer.bias.detach().numpy())


def linear(x: Array, layer: torch.nn.Linear) -> Array:
    return np.asarray(x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())


def read(model: MIMA, events: list[int]) -> tuple[Array, Array]:
    """Interests ``[K, D]`` and routing weights ``[K]`` of one user, written out again, one head at a time."""
    table = model.item_table.weight.detach().numpy()
    decoder: Any = model.decoder
    position = decoder.position_LD.detach().numpy()
    items = table[events]
    age = np.arange(len(events))[::-1]
    memory = layer_norm(items * np.sqrt(model.config.dim) + position[age], decoder.memory_norm)
    state = decoder.query_QD.detach().numpy()
    for layer in decoder.layers:
        mixed = linear(layer_norm(state, layer.self_norm), layer.self_query_key_value)
        seen = []
        for q, k, v in zip(*(np.split(part, layer.heads, axis=1) for part in np.split(mixed, 3, axis=1)), strict=True):
            logit = q @ k.T / np.sqrt(q.shape[1])
            logit[np.triu_indices(len(logit), 1)] = -np.inf
            seen.append(softmax(logit) @ v)
        state = state + linear(np.concatenate(seen, axis=1), layer.self_output)
        query = linear(layer_norm(state, layer.cross_norm), layer.cross_query)
        key, value = np.split(linear(memory, layer.cross_key_value), 2, axis=1)
        seen, weights = [], []
        for q, k, v in zip(*(np.split(part, layer.heads, axis=1) for part in (query, key, value)), strict=True):
            weights.append(softmax(q @ k.T / np.sqrt(q.shape[1])))
            seen.append(weights[-1] @ v)
        state = state + linear(np.concatenate(seen, axis=1), layer.cross_output)
        hidden = np.maximum(linear(layer_norm(state, layer.network_norm), layer.inner), 0)
        state = state + linear(hidden, layer.outer)
    first, last = (model.routing[0], model.routing[2])
    assert isinstance(first, torch.nn.Linear)
    assert isinstance(last, torch.nn.Linear)
    pi = softmax(linear(np.maximum(linear(state[-1], first), 0), last))
    return np.mean(weights, axis=0)[:-1] @ items, pi


@pytest.mark.parametrize("heads", [1, 2])
def test_interests_and_their_calibration(heads: int, planted: Dataset) -> None:
    model = mima(planted, heads=heads)
    histories = held_out(planted, model.max_length)
    found = model.interests(histories)
    assert found.weight_BK is not None
    for b in range(10):
        interests, pi = read(model, [i for i in histories.item_BL[b].tolist() if i])
        np.testing.assert_allclose(found.vector_BKD[b].numpy(force=True), pi[:, None] * interests, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(found.weight_BK[b].numpy(force=True), pi, rtol=1e-5)
    formed_BKD = model.attribution(histories).double() @ model.item_table(histories.item_BL)
    torch.testing.assert_close((formed_BKD * found.weight_BK[:, :, None]).float(), found.vector_BKD)


@pytest.mark.parametrize("weighted", [False, True])
def test_both_terms(weighted: bool, planted: Dataset) -> None:
    """Sets, best matching by trying all, sampled softmax of the pairs, and the hinge on calibrated scores."""
    model = mima(planted, margin=0.7, routing_weight=0.5)
    table = model.item_table.weight.detach().numpy()
    batch = train_batch(planted, model.max_length)
    weight_B = torch.rand(64, generator=torch.Generator().manual_seed(1)) if weighted else None
    terms = model.losses(replace(batch, weight_B=weight_B), "train")
    rng = torch.Generator().manual_seed(0)
    first, second = (model.retrieval_loss.sampler.sample(batch.target_B, rng).id_S.numpy() for _ in range(2))
    retrieval, routing, weights = [], [], []
    for b, (row, target) in enumerate(zip(batch.item_BL.tolist(), batch.target_B.tolist(), strict=True)):
        window = [i for i in row if i]
        held = min(2, len(window) // 2)
        own = list(dict.fromkeys([target, *reversed(window[len(window) - held :])]))
        interests, pi = read(model, window[: len(window) - held])
        score = interests @ table[own].T
        orders = list(itertools.permutations(range(3), len(own)))
        best = max(orders, key=lambda order: sum(score[k, j] for j, k in enumerate(order)))
        hardest = max((pi * (interests @ table[i])).max() for i in second if i not in own)
        for j, item in enumerate(own):
            s = table[[i for i in first if i != item]] @ interests[best[j]]
            retrieval.append(np.log(1 + np.exp(s - score[best[j], j]).sum()))
            routing.append(max(0.0, 0.7 - (pi * score[:, j]).max() + hardest))
            weights.append(1.0 if weight_B is None else weight_B[b].item())
    assert terms.terms["retrieval"].item() == pytest.approx(np.average(retrieval, weights=weights), rel=1e-4)
    assert terms.terms["routing"].item() == pytest.approx(np.average(routing, weights=weights), rel=1e-4)
    assert terms.weights == {"retrieval": 1.0, "routing": 0.5}


@pytest.mark.parametrize(
    ("reach", "touched"),
    [("routing", {"routing"}), ("score", {"routing", "item_table", "decoder"}), ("all", {"last query"})],
)
def test_how_far_the_routing_loss_reaches(reach: str, touched: set[str], planted: Dataset) -> None:
    model = mima(planted, routing_gradient=reach, margin=5.0)
    model.losses(train_batch(planted, model.max_length), "train").terms["routing"].backward()  # type: ignore[no-untyped-call]
    moved = {key.split(".")[0] for key, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    query = model.decoder.query_QD.grad
    if reach == "all":
        assert query is not None
        assert query[-1].any()
    else:
        assert moved == touched
        assert query is None or not query[-1].any(), "the last query feeds the routing network alone"


def test_each_pair_trains_its_own_interest(planted: Dataset) -> None:
    """Matching itself passes no gradient, and only matched interests get one from the retrieval loss."""
    model = mima(planted)
    vector_BKD = torch.randn(4, 3, 16, dtype=torch.float64, requires_grad=True)
    positive_BJ, mask_BJ = torch.tensor([[1, 2, 3]] * 4), torch.tensor([[True, False, True]] * 4)
    pairs = model._pair(vector_BKD, positive_BJ, mask_BJ)
    assert pairs.vector_PKD.shape == (8, 1, 16)
    pairs.vector_PKD.sum().backward()  # type: ignore[no-untyped-call]
    assert vector_BKD.grad is not None
    assert (vector_BKD.grad[:, :, 0] != 0).sum(1).tolist() == [2] * 4
    assert model.item_table.weight.grad is None


def test_a_set_of_positives_keeps_interests_apart(planted: Dataset) -> None:
    """The paper's claim at its smallest: two planted interests, learned from pairs and not from the nearest alone."""
    batch = train_batch(planted, 12, size=64)
    model = mima(planted, num_interests=2, routing_weight=0.0)
    score_BKJ = torch.tensor([[[0.9, 0.8], [0.7, 0.1]]], dtype=torch.float64)
    assert score_BKJ.argmax(1).tolist() == [[0, 0]], "the nearest interest takes both"
    table = model.item_table.weight.data
    table[1:3, :2] = torch.tensor([[0.9, 0.7], [0.8, 0.1]], dtype=torch.float64)
    table[1:3, 2:] = 0
    vector_BKD = torch.eye(16, dtype=torch.float64)[None, :2]
    pairs = model._pair(vector_BKD, torch.tensor([[1, 2]]), torch.tensor([[True, True]]))
    assert pairs.vector_PKD[:, 0, :2].tolist() == [[0, 1], [1, 0]]
    assert "routing" not in model.losses(batch, "train").terms


def test_impossible_configs_are_refused(planted: Dataset) -> None:
    with pytest.raises(ConfigError, match="exact matching"):
        build_model("mima", {"num_interests": 13}, planted.spec())
    build_model("mima", {"num_interests": 13, "matching": "greedy"}, planted.spec())
    with pytest.raises(ConfigError, match="heads must divide"):
        build_model("mima", {"heads": 3}, planted.spec())
