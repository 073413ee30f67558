"""Re4's forward flow and its three backward losses against plain NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gemirec.data.dataset import Dataset
from gemirec.models.base import TrainBatch
from gemirec.models.re4 import Re4
from support_models import shake, tiny, train_batch
from support_numpy import Array, numpy_of, softmax, unit


def build(planted: Dataset, **over: Any) -> Re4:
    model = tiny("re4", planted.spec(), item_init="normal", item_std=0.5, **over)
    assert isinstance(model, Re4)
    shake(model)
    return model.eval()


class ByHand:
    """Rows of a batch, item by item."""

    def __init__(self, model: Re4, batch: TrainBatch) -> None:
        self.model = model
        table = numpy_of(model.item_table.weight)
        self.items = [table[row[row > 0]] for row in batch.item_BL.numpy()]
        layer = model.attention
        w1, b1, w12 = numpy_of(layer.inner.weight), numpy_of(layer.inner.bias), numpy_of(layer.outer.weight)
        self.attention = [softmax((np.tanh(x @ w1.T + b1) @ w12.T).T) for x in self.items]
        w2 = numpy_of(model.value.weight).T
        self.raw = [a @ (x @ w2) for a, x in zip(self.attention, self.items, strict=True)]

    def scored(self) -> list[Array]:
        fc = self.model.scored
        return [np.tanh(z @ numpy_of(fc.weight).T + numpy_of(fc.bias)) for z in self.raw]

    def positives(self, b: int, gate_items: int) -> list[tuple[int, int]]:
        found = np.argwhere(self.attention[b] > 1 / (gate_items or len(self.items[b])))
        return [(int(k), int(place)) for k, place in found]

    def reattend(self) -> float:
        rows = []
        for a, z, x in zip(self.attention, self.raw, self.items, strict=True):
            rows += list(-(softmax(z @ x.T) * np.log(a)).sum(1))
        return float(np.mean(rows))

    def recontrast(self, tau: float, gate_items: int, *, previous: bool, all_cells: bool) -> float:
        rows = []
        for b, (z, x) in enumerate(zip(self.raw, self.items, strict=True)):
            total, positives = 0.0, self.positives(b, gate_items)
            for k, place in positives:
                against = [*x, *np.delete(z, k, axis=0), *(self.items[b - 1] if previous else [])]
                e = np.exp([unit(z[k]) @ unit(y) / tau for y in against])
                total -= np.log(np.exp(unit(z[k]) @ unit(x[place]) / tau) / e.sum())
            rows.append(total / (len(z) * self.model.max_length if all_cells else max(len(positives), 1)))
        return float(np.mean(rows))

    def reconstruct(self, gate_items: int, *, all_cells: bool) -> float:
        builder, rows = self.model.builder, []
        w3, w32, w5 = (numpy_of(layer.weight) for layer in (builder.inner, builder.outer, builder.value))
        for b, (z, x) in enumerate(zip(self.raw, self.items, strict=True)):
            total, positives = 0.0, self.positives(b, gate_items)
            for k, place in positives:
                slots = numpy_of(builder.slots.weight) @ z[k] + numpy_of(builder.slots.bias)
                slots = slots.reshape(self.model.max_length, -1)
                weights = softmax((w32 @ np.tanh(w3 @ slots.T))[:, : len(x)])
                total += np.mean(((weights @ (slots[: len(x)] @ w5.T))[place] - x[place]) ** 2)
            rows.append(total / (len(z) * self.model.max_length if all_cells else max(len(positives), 1)))
        return float(np.mean(rows))


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"gate_items": 4, "contrast_temperature": 0.3, "contrast_with": "own"},
        {"cells": "positive", "stop_targets": True},
        {"num_interests": 1},
    ],
)
def test_every_term(over: dict[str, Any], planted: Dataset) -> None:
    model = build(planted, **over)
    batch = train_batch(planted, model.max_length)
    terms = model.losses(batch, "train")
    hand, config = ByHand(model, batch), model.config
    everywhere = config.cells == "all"
    assert terms.terms["reattend"].item() == pytest.approx(hand.reattend(), rel=1e-4)
    contrast = hand.recontrast(
        config.contrast_temperature,
        config.gate_items,
        previous=config.contrast_with == "previous_row",
        all_cells=everywhere,
    )
    assert contrast > 0
    assert terms.terms["recontrast"].item() == pytest.approx(contrast, rel=1e-3)
    built = hand.reconstruct(config.gate_items, all_cells=everywhere)
    assert terms.terms["reconstruct"].item() == pytest.approx(built, rel=1e-3)
    assert terms.weights == {"retrieval": 1.0, "reattend": 0.001, "recontrast": 0.1, "reconstruct": 0.1}


def test_served_interests(planted: Dataset) -> None:
    model = build(planted)
    batch = train_batch(planted, model.max_length)
    by_hand = np.stack(ByHand(model, batch).scored())
    np.testing.assert_allclose(numpy_of(model.interests(batch).vector_BKD), by_hand, rtol=1e-4, atol=1e-5)
    empty = replace(batch, item_BL=torch.zeros_like(batch.item_BL))
    assert (model.interests(empty).vector_BKD == 0).all()


@pytest.mark.parametrize("stop", [False, True])
def test_where_the_gradient_stops(stop: bool, planted: Dataset) -> None:
    """With stopped targets, re-attend moves the attention and nothing behind ``Z``, and construction no target item."""
    model = build(planted, stop_targets=stop)
    batch = train_batch(planted, model.max_length)
    terms = model.losses(batch, "train").terms
    (through_value,) = torch.autograd.grad(
        terms["reattend"], [model.value.weight], retain_graph=True, allow_unused=True
    )
    assert (through_value is None) == stop
    (through_attention,) = torch.autograd.grad(terms["reattend"], [model.attention.outer.weight], retain_graph=True)
    assert through_attention.abs().sum() > 0
    with torch.no_grad():  # without interests, only the targets are left to move
        model.value.weight.zero_()
        model.builder.slots.bias.zero_()
    terms = model.losses(batch, "train").terms
    (moved_ND,) = torch.autograd.grad(terms["reconstruct"], [model.item_table.weight])
    assert (moved_ND.abs().sum() == 0) == stop


def test_training_points_interests_back_at_their_items(planted: Dataset) -> None:
    """The backward losses alone: interests come to be nearer their own items than the items of others."""
    model = build(planted, recontrast_weight=1.0)
    batch = train_batch(planted, model.max_length)
    before = model.losses(batch, "train").terms
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(30):
        optimizer.zero_grad()
        terms = model.losses(batch, "train").terms
        (terms["reattend"] + terms["recontrast"] + terms["reconstruct"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = model.losses(batch, "train").terms
    for name in ("reattend", "recontrast", "reconstruct"):
        assert after[name] < before[name]
