"""REMI's loss, term by term, against plain NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gemirec.data.dataset import Dataset
from gemirec.models.remi import REMI
from support_models import shake, tiny, train_batch


@pytest.fixture(scope="module")
def model(planted: Dataset) -> REMI:
    model = tiny("remi", planted.spec(), routing_reduce="sum", routing_padding="counted", loss={"beta": 1.5})
    assert isinstance(model, REMI)
    shake(model)
    return model.double()


def test_both_terms(model: REMI, planted: Dataset) -> None:
    """Attention, interests, hard readout, weighted negatives and the covariance, all written out again."""
    batch = train_batch(planted, model.max_length)
    terms = model.losses(batch, "train")
    table = model.item_table.weight.detach().numpy()
    layer = model.attention
    assert layer.position_LD is not None
    position, inner, bias, outer = (
        p.detach().numpy() for p in (layer.position_LD, layer.inner.weight, layer.inner.bias, layer.outer.weight)
    )
    sampled = model.retrieval_loss.sampler.sample(batch.target_B, torch.Generator().manual_seed(0)).id_S.numpy()
    retrieval, routing = [], 0.0
    for row, target in zip(batch.item_BL.numpy(), batch.target_B.numpy(), strict=True):
        items = table[row[row > 0]]
        logits = np.tanh((items + position[: len(items)]) @ inner.T + bias) @ outer.T
        attention = (np.exp(logits) / np.exp(logits).sum(0)).T
        interests = attention @ items
        own = interests[(interests @ table[target]).argmax()]
        s = table[[i for i in sampled if i != target]] @ own
        w = np.exp(1.5 * s) / np.exp(1.5 * s).mean()
        positive = np.exp(table[target] @ own)
        retrieval.append(-np.log(positive / (positive + (w * np.exp(s)).sum())))
        wide = np.zeros((len(attention), model.max_length))
        wide[:, : len(items)] = attention
        centred = wide - wide.mean(1, keepdims=True)
        routing += float(np.sum(np.diag(centred @ centred.T / 16) ** 2))
    assert terms.terms["retrieval"].item() == pytest.approx(np.mean(retrieval), rel=1e-4)
    assert terms.terms["routing"].item() == pytest.approx(routing, rel=1e-4)
    assert terms.weights == {"retrieval": 1.0, "routing": 100.0}
    assert terms.total().item() == pytest.approx(np.mean(retrieval) + 100 * routing, rel=1e-4)


def test_the_release_regularises_larger_batches_more(model: REMI, planted: Dataset) -> None:
    small = train_batch(planted, model.max_length, size=16)
    twice = replace(small, item_BL=small.item_BL.repeat(2, 1), target_B=small.target_B.repeat(2))
    ratio = model.losses(twice, "train").terms["routing"] / model.losses(small, "train").terms["routing"]
    assert ratio.item() == pytest.approx(2)


def test_the_regularisation_drives_attention_to_uniform(planted: Dataset) -> None:
    """What a strong weight does: every interest nears the mean of the history, and the interests collapse."""
    model = tiny("remi", planted.spec(), item_init="normal", item_std=0.5)
    assert isinstance(model, REMI)
    shake(model, 0.5)
    optimizer = torch.optim.Adam(model.attention.parameters(), lr=0.02)
    batch = train_batch(planted, model.max_length)

    def distance() -> float:
        uniform_BKL = (batch.mask_BL / batch.length_B[:, None])[:, None]
        return (model._attend(batch)[0] - uniform_BKL).abs().sum(2).mean().item()

    before = distance()
    for _ in range(150):
        optimizer.zero_grad()
        model.losses(batch, "train").terms["routing"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert distance() < before / 3
