"""ULIM's interests, scores and both losses against plain NumPy; where gradients stop; what an interest may find."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gemirec.data.dataset import Dataset, DataSpec
from gemirec.errors import ConfigError
from gemirec.models.catalog import build_model
from gemirec.models.ulim import ULIM
from support_models import fit, held_out, shake, tiny, train_batch
from support_numpy import Array, numpy_of, softmax


def ulim(dataset: Dataset, **over: Any) -> ULIM:
    model = tiny("ulim", dataset.spec(), **over)
    assert isinstance(model, ULIM)
    shake(model)
    return model.double().eval()


class Plain:
    """One user's window, read again without torch."""

    def __init__(self, model: ULIM, events: list[int]) -> None:
        self.model, dim = model, model.config.dim
        self.item = numpy_of(model.item_table.weight)[events]
        self.category = numpy_of(model.category_MD)
        self.cell = numpy_of(model.category_N)[events].astype(int)
        place = numpy_of(model.position_LD)[np.arange(len(events))[::-1]]
        raw = self.item * np.sqrt(dim) + self.category[self.cell] + place
        raw = (raw - raw.mean(1, keepdims=True)) / np.sqrt(raw.var(1, keepdims=True) + 1e-5)
        self.key = raw * numpy_of(model.key_norm.weight) + numpy_of(model.key_norm.bias)
        self.recent = np.arange(len(events))[::-1] < model.config.short_length
        layer = model.short_attention
        hidden = np.tanh(self.key @ numpy_of(layer.inner.weight).T + numpy_of(layer.inner.bias))
        logit = (hidden @ numpy_of(layer.outer.weight)[0])[self.recent]
        self.state = softmax(logit) @ self.key[self.recent]

    def pool(self, query: Array, places: Array) -> Array:
        weight = softmax(self.key[places] @ query / np.sqrt(len(query)))
        return np.asarray(weight @ self.item[places])

    def interest(self, c: int) -> Array:
        model, own = self.model, self.cell == c
        long = self.pool(numpy_of(model.long_query.weight) @ self.category[c], own if own.any() else own | True)
        gate, short = 1.0, np.zeros_like(long)
        if (own & self.recent).any():
            short = self.pool(numpy_of(model.short_query.weight) @ self.state, own & self.recent)
            both = np.concatenate([self.state, self.category[c]])
            gate = 1 / (1 + np.exp(-(numpy_of(model.gate.weight)[0] @ both + model.gate.bias.item())))
        h = gate * long + (1 - gate) * short + numpy_of(model.base_MD)[c]
        return np.asarray(h / np.linalg.norm(h))

    def chances(self) -> Array:
        """The pointer-generator has a test of its own."""
        tensors = (torch.from_numpy(a)[None] for a in (self.state, self.key, self.cell))
        found = self.model.next_category(*tensors, torch.ones(1, len(self.cell), dtype=torch.bool))[0]
        return numpy_of(found)


def unit_items(model: ULIM) -> Array:
    table = numpy_of(model.item_table.weight)
    return np.asarray(table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12))


def test_interests_search_their_own_category(planted: Dataset) -> None:
    """``v.e + bonus + prior log p`` for the category's items, ``v.e`` for all others."""
    model = ulim(planted, prior=0.4)
    histories = held_out(planted, model.max_length)
    found = model.interests(histories)
    assert found.weight_BK is not None
    score_BKN = numpy_of(found.vector_BKD @ model.item_vectors().T)
    category_N = numpy_of(model.category_N)
    for b in range(12):
        plain = Plain(model, [i for i in histories.item_BL[b].tolist() if i])
        chance = plain.chances()
        chosen = np.argsort(-chance)[:3]
        np.testing.assert_allclose(numpy_of(found.weight_BK)[b], chance[chosen], rtol=1e-5)
        for k, c in enumerate(chosen):
            expected = unit_items(model) @ plain.interest(c)
            expected += (category_N == c) * (3.0 + 0.4 * np.log(max(chance[c], 1e-4)))
            np.testing.assert_allclose(score_BKN[b, k, 1:], expected[1:], rtol=1e-4, atol=1e-5)
            assert score_BKN[b, k, 0] == 0


@pytest.mark.parametrize("train_search", ["category", "all"])
@pytest.mark.parametrize("train_categories", ["target", "served"])
def test_both_terms(train_categories: str, train_search: str, planted: Dataset) -> None:
    over = {"train_categories": train_categories, "train_search": train_search, "category_weight": 0.5}
    model = ulim(planted, **over, loss={"readout": "best"})
    batch = train_batch(planted, model.max_length, size=16)
    weight_B = torch.rand(16, generator=torch.Generator().manual_seed(1))
    terms = model.losses(replace(batch, weight_B=weight_B), "train")
    drawn = model.retrieval_loss.sampler.sample(batch.target_B, torch.Generator().manual_seed(0)).id_S.numpy()
    category_N, unit = numpy_of(model.category_N), unit_items(model)
    retrieval, category = [], []
    for row, target in zip(batch.item_BL.tolist(), batch.target_B.tolist(), strict=True):
        plain = Plain(model, [i for i in row if i])
        chance, goal = plain.chances(), int(category_N[target])
        category.append(-np.log(chance[goal]))
        chosen = [goal] if train_categories == "target" else list(np.argsort(-chance)[:3])
        ids = np.array([target, *drawn[drawn != target]])
        score = np.stack([unit[ids] @ plain.interest(c) for c in chosen])
        if train_search == "category":
            for k, c in enumerate(chosen):
                prior = 0.1 * np.log(max(chance[c], 1e-4)) if train_categories == "served" else 0
                score[k] += (category_N[ids] == c) * (3.0 + prior)
        best = score.max(0) / 0.1
        retrieval.append(np.log(np.exp(best - best[0]).sum()))
    assert terms.terms["retrieval"].item() == pytest.approx(np.average(retrieval, weights=weight_B), rel=1e-4)
    assert terms.terms["category"].item() == pytest.approx(np.average(category, weights=weight_B), rel=1e-4)
    assert terms.weights == {"retrieval": 1.0, "category": 0.5}


def moved(model: ULIM, dataset: Dataset, term: str) -> set[str]:
    """The parts of the model that a loss term has a gradient for."""
    model.zero_grad()
    model.losses(train_batch(dataset, model.max_length), "train").terms[term].backward()  # type: ignore[no-untyped-call]
    return {key.split(".")[0] for key, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


def test_where_gradients_stop(planted: Dataset) -> None:
    """Retrieval never trains the choice of categories; the next category trains the rest only if it may."""
    shared = {"item_table", "category_MD", "position_LD", "key_norm", "short_attention"}
    for train_categories in ("target", "served"):
        model = ulim(planted, train_categories=train_categories)
        assert moved(model, planted, "retrieval") == shared | {"long_query", "short_query", "gate", "base_MD"}
    assert moved(ulim(planted), planted, "category") == shared | {"next_category"}
    assert moved(ulim(planted, category_gradient="apart"), planted, "category") == {"next_category"}


def test_lists_come_from_the_predicted_categories(planted: Dataset) -> None:
    """With unit vectors and the default bonus, no item of another category is ahead of any of the interest's own."""
    model = tiny("ulim", planted.spec())
    list(fit(model, planted, steps=20))
    found = model.interests(held_out(planted, model.max_length))
    score_BKN = found.vector_BKD @ model.item_vectors()[1:].T
    category_N = torch.from_numpy(np.asarray(planted.spec().category_N[1:], dtype=np.int64))
    top_BK20 = category_N[score_BKN.topk(20, dim=2).indices]
    assert (top_BK20 == top_BK20[:, :, :1]).all(), "each category has 20 items"
    assert (top_BK20[:, 0, 0] != top_BK20[:, 1, 0]).all()


def test_what_the_data_must_have(planted: Dataset) -> None:
    spec = planted.spec()
    bare = DataSpec(num_items=spec.num_items, train_count_N=spec.train_count_N)
    with pytest.raises(ConfigError, match="the data have none"):
        build_model("ulim", {}, bare)
    with pytest.raises(ConfigError, match="6 categories"):
        build_model("ulim", {"num_interests": 7}, spec)
