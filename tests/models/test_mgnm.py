"""MGNM against plain NumPy: graph, levels, both capsule networks, every loss part (METHODS 4.5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gemirec.data.dataset import Dataset, DataSpec
from gemirec.errors import ConfigError
from gemirec.models.base import Histories, TrainBatch
from gemirec.models.mgnm import MGNM
from support_models import shake, tiny, train_batch
from support_numpy import softmax


@pytest.fixture(scope="module")
def spec(planted: Dataset) -> DataSpec:
    return planted.spec()


def shaken(spec: DataSpec, **over: Any) -> MGNM:
    model = tiny("mgnm", spec, **over)
    assert isinstance(model, MGNM)
    shake(model, 0.2)
    return model.eval()


def numbers(model: MGNM) -> dict[str, Any]:
    return {key: value.double().numpy() for key, value in model.state_dict().items()}


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def squash(s: Any) -> Any:
    square = (s**2).sum(-1, keepdims=True)
    return square / (1 + square) * s / np.sqrt(square + 1e-9)


def edges(model: MGNM, x: Any) -> Any:
    return sigmoid((x * x.mean(0) if model.config.user_graph == "history_mean" else x) @ x.T)


def lstm(p: dict[str, Any], key: str, x: Any) -> Any:
    """The states of one direction, gates in torch's order: input, forget, cell, output."""
    h = c = np.zeros(p[f"{key}.weight_hh_l0"].shape[1])
    states = []
    for step in x:
        z = p[f"{key}.weight_ih_l0"] @ step + p[f"{key}.bias_ih_l0"] + p[f"{key}.weight_hh_l0"] @ h
        i, f, g, o = np.split(z + p[f"{key}.bias_hh_l0"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states)


def capsules(model: MGNM, p: dict[str, Any], x: Any) -> Any:
    """``[K, D]`` of one level ``[L, D]``."""
    (length, dim), interests = x.shape, model.config.num_interests
    votes = np.einsum("ld,lde->le", x, p["votes.weight_LDE"][:length]).reshape(length, interests, dim)
    votes = votes.transpose(1, 0, 2)
    b = p["logit_KL"][:, :length]
    for number in range(model.config.rounds):
        heard = votes
        if model.config.sequential and number == 1:
            flat = votes.transpose(1, 0, 2).reshape(length, -1)
            both = [lstm(p, "sequence.onward", flat), lstm(p, "sequence.reverse", flat[::-1])[::-1]]
            spoken = np.concatenate(both, axis=1) @ p["sequence.outer.weight"].T
            heard = votes + spoken.reshape(length, interests, dim).transpose(1, 0, 2)
        v = squash(np.einsum("kl,kld->kd", softmax(b, 0), heard))
        b = b + np.einsum("kd,kld->kl", v, heard)
    return v


def by_hand(model: MGNM, items: Any) -> Any:
    """Interests ``[E, K, D]`` of one history."""
    p, config = numbers(model), model.config
    x = p["item_table.weight"][items]
    graph = edges(model, x)
    if config.normalise_graph:
        graph = graph + np.eye(len(x))
        graph = graph / graph.sum(1, keepdims=True)
    levels = [x]
    for number in range(config.levels - 1):
        source = levels[-1] if config.hops == "chained" else x
        hop = graph @ source @ p[f"graph.maps.{number}.weight"].T + p[f"graph.maps.{number}.bias"]
        levels.append(np.where(hop > 0, hop, 0.2 * hop))
    return np.stack([capsules(model, p, level) for level in levels])


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"hops": "input", "normalise_graph": False, "rounds": 2},
        {"user_graph": "history_mean", "sequential": True},
        {"sequential": True, "rounds": 4, "levels": 1},
    ],
)
def test_interests_of_all_levels_are_the_papers(over: dict[str, Any], planted: Dataset, spec: DataSpec) -> None:
    model = shaken(spec, **over)
    batch = train_batch(planted, model.max_length)
    found = model.interests(batch).vector_BKD.detach()
    assert found.shape[1:] == (3 * model.config.levels, 16)
    for row in range(8):
        items = batch.item_BL[row][batch.item_BL[row] > 0].numpy()
        np.testing.assert_allclose(found[row], by_hand(model, items).reshape(-1, 16), rtol=1e-3, atol=1e-5)


def test_every_part_of_the_loss(planted: Dataset, spec: DataSpec) -> None:
    """The sum over levels of the loss with the level's soft target attention, L1 of the edges, L2 of the parameters."""
    model = shaken(spec, graph_weight=0.01, l2_weight=0.02, loss={"negatives": "in_batch", "log_q": False})
    batch = train_batch(planted, model.max_length, size=12)
    terms = model.losses(batch, "train")
    assert terms.weights == {"retrieval": 1.0, "graph": 0.01, "l2": 0.02}
    p = numbers(model)
    table, target = p["item_table.weight"], batch.target_B.numpy()
    rows = [row[row > 0].numpy() for row in batch.item_BL]
    interests = np.stack([by_hand(model, row) for row in rows])
    wanted = 0.0
    for level in range(3):
        h, v = interests[:, level], table[target]
        mixed = np.einsum("bk,bkd->bd", softmax(np.einsum("bkd,bd->bk", h, v), 1), h)
        logits = np.where((target[:, None] == target) & ~np.eye(12, dtype=bool), -np.inf, mixed @ v.T)
        wanted += -np.log(np.diag(softmax(logits, 1))).mean()
    assert terms.terms["retrieval"].item() == pytest.approx(wanted, rel=1e-4)
    assert terms.terms["graph"].item() == pytest.approx(np.mean([edges(model, table[row]).sum() for row in rows]))
    dense = sum((p[key] ** 2).sum() / 2 for key, _ in model.named_parameters() if key != "item_table.weight")
    assert terms.terms["l2"].item() == pytest.approx(dense, rel=1e-5)


def test_gradient_flows_where_the_routing_lets_it(planted: Dataset, spec: DataSpec) -> None:
    """The LSTM learns through the logits of its round; its input, and the first rounds' votes, give no gradient."""
    model = shaken(spec, sequential=True)
    assert model.sequence is not None
    batch = train_batch(planted, model.max_length, size=8)
    model.losses(batch, "train").terms["retrieval"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.sequence.parameters())

    item = torch.randn(2, 5, 16, requires_grad=True)
    logit, mask = torch.zeros(1, 3, 5), torch.ones(2, 5, dtype=torch.bool)
    capsule = model._route(item, logit, mask)
    reached = (item, model.votes.weight_LDE)
    through = torch.autograd.grad(capsule.square().sum(), reached)
    with torch.no_grad():  # votes as constants but in the last sum: couplings that reproduce the capsules
        fixed = coupling_of(model, model.votes(item), logit, mask)
    s = torch.einsum("gkl,gkld->gkd", fixed, model.votes(item))
    square = s.square().sum(-1, keepdim=True)
    again = square / (1 + square) * s / (square + 1e-9).sqrt()
    torch.testing.assert_close(again, capsule)
    wanted = torch.autograd.grad(again.square().sum(), reached)
    torch.testing.assert_close(through, wanted, rtol=1e-4, atol=1e-6)


def test_sequential_capsules_under_autocast(planted: Dataset, spec: DataSpec) -> None:
    model = shaken(spec, sequential=True)
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses.append(model.losses(train_batch(planted, model.max_length), "train").total())
        losses[-1].backward()  # type: ignore[no-untyped-call]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.03)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def coupling_of(model: MGNM, vote: torch.Tensor, logit: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last round's couplings ``[G, K, L]``, in NumPy."""
    p, u = numbers(model), vote.double().numpy()
    out = []
    for row in u:
        b = np.zeros(row.shape[:2])
        for number in range(2):
            heard = row
            if number == 1:
                flat = row.transpose(1, 0, 2).reshape(row.shape[1], -1)
                both = [lstm(p, "sequence.onward", flat), lstm(p, "sequence.reverse", flat[::-1])[::-1]]
                spoken = np.concatenate(both, axis=1) @ p["sequence.outer.weight"].T
                heard = row + spoken.reshape(row.shape[1], row.shape[0], -1).transpose(1, 0, 2)
            b = b + np.einsum("kd,kld->kl", squash(np.einsum("kl,kld->kd", softmax(b, 0), heard)), heard)
        out.append(softmax(b, 0))
    return torch.tensor(np.stack(out)).float()


def test_serving_keeps_its_logits_when_training_redraws_them(planted: Dataset, spec: DataSpec) -> None:
    model = shaken(spec, redraw_logits=True)
    batch = Histories(train_batch(planted, model.max_length).item_BL)
    assert torch.equal(model.interests(batch).vector_BKD, model.interests(batch).vector_BKD)
    model.train()
    seeded = [
        TrainBatch(batch.item_BL, generator=torch.Generator().manual_seed(seed), target_B=batch.item_BL[:, 0])
        for seed in (1, 1, 2)
    ]
    one, same, other = (model.interests(histories).vector_BKD for histories in seeded)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_sequential_capsules_need_three_rounds(spec: DataSpec) -> None:
    with pytest.raises(ConfigError, match="second round"):
        tiny("mgnm", spec, sequential=True, rounds=2)
