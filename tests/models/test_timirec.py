"""TiMiRec against plain NumPy, its two stages, and where gradient may not go (METHODS 4.7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gemirec.data.dataset import Dataset, DataSpec
from gemirec.models.timirec import FINETUNE, PRETRAIN, TiMiRec, distillation
from gemirec.training.schedule import frozen, plan_stages
from support_models import begin, fit, held_out, shake, tiny, train_batch
from support_numpy import softmax


@pytest.fixture(scope="module")
def spec(planted: Dataset) -> DataSpec:
    return planted.spec()


def shaken(spec: DataSpec, **over: Any) -> TiMiRec:
    model = tiny("timirec", spec, **over)
    assert isinstance(model, TiMiRec)
    shake(model)
    return model.eval()


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def norm(p: dict[str, Any], key: str, x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{key}.weight"] + p[f"{key}.bias"]


def linear(p: dict[str, Any], key: str, x: Any) -> Any:
    return x @ p[f"{key}.weight"].T + p[f"{key}.bias"]


def interests_by_hand(model: TiMiRec, p: dict[str, Any], items: Any) -> Any:
    x = p["item_table.weight"][items]
    if model.config.use_positions:
        x = x + p["extractor.position_LD"][len(items) - 1 - np.arange(len(items))]
    for number in range(model.config.layers):
        key = f"extractor.layers.{number}"
        q, k, v = np.split(linear(p, f"{key}.query_key_value", x), 3, axis=1)
        x = norm(p, f"{key}.first_norm", x + softmax(q @ k.T / np.sqrt(q.shape[1]), 1) @ v)
        x = norm(p, f"{key}.second_norm", x + linear(p, f"{key}.outer", np.maximum(linear(p, f"{key}.inner", x), 0)))
    hidden = np.tanh(linear(p, "extractor.attention.inner", x))
    return softmax(p["extractor.attention.outer.weight"] @ hidden.T, 1) @ x


def logits_by_hand(model: TiMiRec, p: dict[str, Any], items: Any) -> Any:
    h = np.zeros(model.config.dim)
    for x in p["predictor.table.weight"][items]:
        from_x = p["predictor.gru.weight_ih_l0"] @ x + p["predictor.gru.bias_ih_l0"]
        from_h = p["predictor.gru.weight_hh_l0"] @ h + p["predictor.gru.bias_hh_l0"]
        (xr, xz, xn), (hr, hz, hn) = np.split(from_x, 3), np.split(from_h, 3)
        z = sigmoid(xz + hz)
        h = (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h
    for number in range(model.config.predictor_layers - 1):
        h = np.maximum(linear(p, f"predictor.head.{3 * number}", h), 0)
    return linear(p, f"predictor.head.{3 * (model.config.predictor_layers - 1)}", h)


@pytest.mark.parametrize("over", [{}, {"layers": 0, "predictor_layers": 2}, {"layers": 2, "use_positions": False}])
def test_interests_mixture_and_distillation_against_numpy(
    over: dict[str, Any], planted: Dataset, spec: DataSpec
) -> None:
    model = shaken(spec, distillation_temperature=0.5, **over)
    p = {key: value.double().numpy() for key, value in model.state_dict().items()}
    batch = train_batch(planted, model.max_length, size=12)
    rows = [row[row > 0].numpy() for row in batch.item_BL]
    interests = np.stack([interests_by_hand(model, p, row) for row in rows])
    found = model.interests(batch).vector_BKD.detach()
    np.testing.assert_allclose(found, interests, rtol=1e-4, atol=1e-5)

    begin(model, model.stages[1])
    logits = np.stack([logits_by_hand(model, p, row) for row in rows])
    mixed = np.einsum("bk,bkd->bd", softmax(logits, 1), interests)
    found = model.interests(batch).vector_BKD.detach()
    assert found.shape == (12, 1, 16)
    np.testing.assert_allclose(found[:, 0], mixed, rtol=1e-4, atol=1e-5)

    terms = model.losses(batch, FINETUNE)
    assert terms.weights == {"retrieval": 1.0, "distillation": 0.25}
    target = p["item_table.weight"][batch.target_B.numpy()]
    length = np.linalg.norm(interests, axis=2) * np.linalg.norm(target, axis=1)[:, None]
    q = softmax(np.einsum("bkd,bd->bk", interests, target) / length / 0.5, 1)
    divergence = (q * (np.log(q) - np.log(softmax(logits / 0.5, 1)))).sum(1).mean()
    assert terms.terms["distillation"].item() == pytest.approx(divergence, rel=1e-4)


def test_the_teacher_gets_no_gradient(planted: Dataset, spec: DataSpec) -> None:
    """The distillation trains the predictor, and neither the interests nor the target that teach it."""
    logit, interest, target = (torch.randn(shape, requires_grad=True) for shape in [(4, 3), (4, 3, 5), (4, 5)])
    distillation(logit, interest, target, 0.3).sum().backward()  # type: ignore[no-untyped-call]
    assert logit.grad is not None
    assert logit.grad.abs().sum() > 0
    assert interest.grad is None
    assert target.grad is None

    model = shaken(spec)
    begin(model, model.stages[1])
    term = model.losses(train_batch(planted, model.max_length), FINETUNE).terms["distillation"]
    term.backward()  # type: ignore[no-untyped-call]
    reached = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {key for key, _ in model.named_parameters() if key.startswith("predictor.")}


def test_the_first_stage_trains_the_extractor_alone(planted: Dataset, spec: DataSpec) -> None:
    """And the second trains everything; the interest trained first is the nearest to the target."""
    model = tiny("timirec", spec)
    assert isinstance(model, TiMiRec)
    states: list[dict[str, Tensor]] = [clone(model), *(clone(model) for _ in fit(model, planted, steps=12))]
    first, second = plan_stages(model.stages, 12)
    assert changed(states[0], states[first.end]) == {"item_table", "extractor"}
    assert changed(states[second.start], states[second.end]) == {"item_table", "extractor", "predictor", "phase"}

    batch = train_batch(planted, model.max_length)
    for stage in model.stages:
        model.zero_grad()
        with frozen(model, stage):
            model.losses(batch, stage.name).total().backward()  # type: ignore[no-untyped-call]
            assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_before_the_second_stage_a_user_is_served_all_interests(planted: Dataset, spec: DataSpec) -> None:
    model = shaken(spec)
    histories = held_out(planted, model.max_length)
    assert model.interests(histories).vector_BKD.shape[1] == 3
    assert set(model.losses(train_batch(planted, model.max_length), PRETRAIN).terms) == {"retrieval"}
    begin(model, model.stages[1])
    other = tiny("timirec", spec)
    other.load_state_dict(model.state_dict())  # the stage that was reached is part of what is saved
    assert other.eval().interests(histories).vector_BKD.shape[1] == 1


def clone(model: TiMiRec) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
