"""SINE against plain NumPy: activation, assignment, attention, aggregation, and both separations (METHODS 4.6)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gemirec.data.dataset import Dataset, DataSpec
from gemirec.errors import ConfigError
from gemirec.models.base import Histories
from gemirec.models.sine import SINE, interest_cosine, prototype_covariance
from support_models import held_out, shake, tiny, train_batch
from support_numpy import softmax, unit


@pytest.fixture(scope="module")
def spec(planted: Dataset) -> DataSpec:
    return planted.spec()


def shaken(spec: DataSpec, **over: Any) -> SINE:
    model = tiny("sine", spec, **over)
    assert isinstance(model, SINE)
    shake(model)
    return model.eval()


def attention_logits(p: dict[str, Any], key: str, x_LD: Any) -> Any:
    """``W2 tanh(W1 (x + position) + b1)``, ``[K, L]``."""
    hidden = np.tanh(
        (x_LD + p[f"{key}.position_LD"][: len(x_LD)]) @ p[f"{key}.inner.weight"].T + p[f"{key}.inner.bias"]
    )
    return (hidden @ p[f"{key}.outer.weight"].T).T


def by_hand(model: SINE, items: Any) -> tuple[Any, Any]:
    """The user's vector and interests of one history without padding, in float64."""
    config = model.config
    p = {key: value.double().numpy() for key, value in model.state_dict().items()}
    x = p["item_table.weight"][items]
    table = p["prototypes.table_CD"]
    z = softmax(attention_logits(p, "prototypes.summary", x), 1)[0] @ x
    score = unit(table) @ unit(z) if config.cosine_activation else table @ z
    top = np.argsort(-score)[: config.num_interests]
    assignment = softmax(unit(table[top]) @ unit(x).T / config.assignment_temperature, 0)  # [K, L]
    h = softmax(attention_logits(p, "prototypes.attention", x) * assignment, 1) @ x
    gated = table[top] / (1 + np.exp(-score[top]))[:, None]
    imagined = assignment.T @ gated + (x if config.residual else 0)
    context = softmax(attention_logits(p, "fusion.pooling", imagined), 1)[0] @ imagined
    mu = p["fusion.intent.weight"] @ np.concatenate([h.mean(0), context]) + p["fusion.intent.bias"]
    return softmax(h @ mu, 0) @ h, h


@pytest.mark.parametrize(("cosine", "residual"), [(False, False), (True, True)])
def test_the_user_vector_is_the_papers(cosine: bool, residual: bool, planted: Dataset, spec: DataSpec) -> None:
    model = shaken(spec, cosine_activation=cosine, residual=residual)
    histories = held_out(planted, model.max_length)
    found = model.interests(histories).vector_BKD.detach()
    assert found.shape[1:] == (1, 16)
    for b in range(12):
        items = histories.item_BL[b][histories.item_BL[b] > 0].numpy()
        np.testing.assert_allclose(found[b, 0].numpy(), by_hand(model, items)[0], rtol=1e-4, atol=1e-5)


def test_users_activate_different_prototypes(planted: Dataset, spec: DataSpec) -> None:
    model = shaken(spec)
    histories = held_out(planted, model.max_length)
    active = model.prototypes.activate(model.item_table(histories.item_BL), histories.mask_BL)
    assert len(torch.unique(active.index_BK.sort(1).values, dim=0)) > 1
    assert (active.gate_BK[:, :-1] >= active.gate_BK[:, 1:]).all()


def test_a_prototype_that_nobody_activates_learns_from_the_separation_alone(planted: Dataset, spec: DataSpec) -> None:
    model = shaken(spec)
    batch = train_batch(planted, model.max_length, size=3)
    index_BK = model.prototypes.activate(model.item_table(batch.item_BL), batch.mask_BL).index_BK
    active = sorted(set(index_BK.flatten().tolist()))
    idle = [c for c in range(8) if c not in active]
    assert idle
    terms = model.losses(batch, "train").terms
    (gradient_CD,) = torch.autograd.grad(terms["retrieval"], model.prototypes.table_CD, retain_graph=True)
    assert (gradient_CD[idle] == 0).all()
    assert (gradient_CD[active].abs().sum(1) > 0).all()
    (gradient_CD,) = torch.autograd.grad(terms["separation"], model.prototypes.table_CD)
    assert (gradient_CD.abs().sum(1) > 0).all()


def test_separations_against_numpy(planted: Dataset, spec: DataSpec) -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(5, 7))
    m = np.cov(table, bias=True)
    wanted = (np.square(m).sum() - np.square(np.diag(m)).sum()) / 2
    assert prototype_covariance(torch.tensor(table)).item() == pytest.approx(wanted, rel=1e-5)

    h, weight = rng.normal(size=(4, 3, 7)), rng.random(4)
    cos = unit(h) @ unit(h).transpose(0, 2, 1)
    per_row = 0.5 + np.triu(cos, 1).sum((1, 2)) / 6
    got = interest_cosine(torch.tensor(h), torch.tensor(weight))
    assert got.item() == pytest.approx(np.average(per_row, weights=weight), rel=1e-5)
    assert interest_cosine(torch.tensor(h)[:, :1]).item() == 0.5

    for kind in ("covariance", "interests"):
        model = shaken(spec, separation=kind, separation_weight=0.3)
        batch = train_batch(planted, model.max_length)
        terms = model.losses(batch, "train")
        assert terms.weights == {"retrieval": 1.0, "separation": 0.3}
        if kind == "covariance":
            m = np.cov(model.prototypes.table_CD.detach().double().numpy(), bias=True)
            wanted = (np.square(m).sum() - np.square(np.diag(m)).sum()) / 2
        else:
            rows = [by_hand(model, row[row > 0].numpy())[1] for row in batch.item_BL]
            wanted = np.mean([0.5 + np.triu(unit(h) @ unit(h).T, 1).sum() / 6 for h in rows])
        assert terms.terms["separation"].item() == pytest.approx(wanted, rel=1e-4)


def test_one_interest_works_and_more_than_the_pool_is_refused(planted: Dataset, spec: DataSpec) -> None:
    model = shaken(spec, num_interests=1, separation="interests")
    assert model.losses(train_batch(planted, model.max_length), "train").total().isfinite()
    items = torch.tensor([[1, 2, 3]])
    _, h = by_hand(model, items[0].numpy())
    np.testing.assert_allclose(model.interests(Histories(items)).vector_BKD[0].detach(), h, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="more prototypes than there are"):
        tiny("sine", spec, num_interests=9)
