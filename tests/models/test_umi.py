"""UMI against plain NumPy: gates, gated routing with either update, profiles and their substitutes (METHODS 4.4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gemirec.components.capsule import squash
from gemirec.data.dataset import Dataset, DataSpec
from gemirec.errors import ConfigError
from gemirec.models.base import TrainBatch
from gemirec.models.umi import UMI
from support_models import shake, tiny, train_batch
from support_numpy import softmax


@pytest.fixture(scope="module")
def spec(planted: Dataset) -> DataSpec:
    return planted.spec()


@pytest.fixture(scope="module")
def bare(spec: DataSpec) -> DataSpec:
    """The same data without user features."""
    return DataSpec(num_items=spec.num_items, train_count_N=spec.train_count_N)


def shaken(spec: DataSpec, **over: Any) -> UMI:
    model = tiny("umi", spec, **over)
    assert isinstance(model, UMI)
    shake(model)
    return model.eval()


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def layers(p: dict[str, Any], first: str, second: str, x: Any) -> Any:
    """``W2 relu(W1 x + b1) + b2``."""
    hidden = np.maximum(x @ p[f"{first}.weight"].T + p[f"{first}.bias"], 0)
    return hidden @ p[f"{second}.weight"].T + p[f"{second}.bias"]


def couplings(model: UMI, p: dict[str, Any], votes: Any, gate: Any) -> Any:
    """``c`` ``[K, L]`` of the last round."""
    b = p["logit_KL"][:, : votes.shape[1]]
    for _ in range(model.config.rounds - 1):
        s = np.einsum("kl,l,kld->kd", softmax(b, 0), gate, votes)
        square = (s**2).sum(1, keepdims=True)
        v = square / (1 + square) * s / np.sqrt(square + 1e-9)
        agreement = np.einsum("kld,kd->kl", votes, v)
        b = agreement if model.config.logit_update == "replace" else b + agreement
    return softmax(b, 0)


def by_hand(model: UMI, batch: TrainBatch, row: int) -> Any:
    """Interests ``[K, D]`` of one row."""
    p = {key: value.double().numpy() for key, value in model.state_dict().items()}
    items = batch.item_BL[row][batch.item_BL[row] > 0].numpy()
    x = p["item_table.weight"][items]
    profile, fields = x.mean(0), 1
    if model.profile.kind == "constant":
        profile = p["profile.constant_P"]
    elif model.profile.kind == "features":
        assert batch.user_categorical_BF is not None
        assert batch.user_numeric_BG is not None
        table = p["profile.features.tables.0.weight"]
        numeric = p["profile.features.numeric.weight"] @ batch.user_numeric_BG[row].double().numpy()
        profile, fields = np.concatenate([table[int(batch.user_categorical_BF[row, 0])], numeric]), 2

    def beside(vectors: Any) -> Any:
        return np.concatenate([vectors, np.tile(profile, (len(vectors), 1))], axis=1)

    gate = sigmoid(layers(p, "item_gate.inner", "item_gate.outer", beside(x)))[:, 0]
    votes = np.einsum("ld,kde->kle", x, p["votes.weight_KDD"])
    s = np.einsum("kl,l,kld->kd", couplings(model, p, votes, gate), gate, votes)
    square = (s**2).sum(1, keepdims=True)
    capsule = square / (1 + square) * s / np.sqrt(square + 1e-9)
    gates = sigmoid(layers(p, "field_gate.inner", "field_gate.outer", beside(capsule)))  # [K, F]
    gated = (gates[:, :, None] * profile.reshape(1, fields, -1)).reshape(len(capsule), -1)
    out = layers(p, "layers.0", "layers.2", np.concatenate([gated, capsule], axis=1))
    return out + capsule if model.config.residual else out


@pytest.mark.parametrize(
    "over",
    [
        {"profile": "features", "feature_dim": 4},
        {"profile": "features", "logit_update": "replace", "rounds": 4},
        {"profile": "history_mean", "residual": True},
        {"profile": "constant", "feature_dim": 5, "logit_update": "replace"},
    ],
)
def test_interests_are_the_papers(over: dict[str, Any], planted: Dataset, spec: DataSpec) -> None:
    model = shaken(spec, **over)
    batch = train_batch(planted, model.max_length)
    found = model.interests(batch).vector_BKD.detach()
    for row in range(12):
        np.testing.assert_allclose(found[row], by_hand(model, batch, row), rtol=1e-4, atol=1e-5)


def test_couplings_get_no_gradient(planted: Dataset, spec: DataSpec) -> None:
    """Maps and gates learn through the last round alone: as if the couplings were constants."""
    model = shaken(spec, profile="history_mean", residual=True)
    batch = train_batch(planted, model.max_length, size=1)
    parameters = [model.votes.weight_KDD, *model.item_gate.parameters()]
    found = torch.autograd.grad(model.interests(batch).vector_BKD.square().sum(), parameters)

    items = batch.item_BL[:, : int(batch.length_B)]
    x_BLD = model.item_table(items)
    profile_BP = x_BLD.mean(1)
    votes_BKLD, gate_BL = model.votes(x_BLD), model.item_gate(x_BLD, profile_BP)[:, :, 0]
    p = {key: value.double().numpy() for key, value in model.state_dict().items()}
    fixed = couplings(model, p, votes_BKLD[0].detach().double().numpy(), gate_BL[0].detach().double().numpy())
    capsule_BKD = squash(torch.einsum("kl,bl,bkld->bkd", torch.tensor(fixed).float(), gate_BL, votes_BKLD))
    gated = model.field_gate(capsule_BKD, profile_BP) * profile_BP[:, None]
    interest_BKD = model.layers(torch.cat([gated, capsule_BKD], dim=2)) + capsule_BKD
    for got, wanted in zip(found, torch.autograd.grad(interest_BKD.square().sum(), parameters), strict=True):
        assert wanted.abs().sum() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


def test_the_profile_is_chosen_by_the_data_and_reaches_the_interests(
    planted: Dataset, spec: DataSpec, bare: DataSpec
) -> None:
    model = shaken(spec, profile="auto")
    assert (model.profile.kind, model.profile.fields, model.profile.width) == ("features", 2, 16)
    batch = train_batch(planted, model.max_length)
    assert not torch.allclose(model.interests(batch).vector_BKD, model.interests(TrainBatch(batch.item_BL)).vector_BKD)
    assert shaken(bare, profile="auto").profile.kind == "history_mean"
    with pytest.raises(ConfigError, match="the data have none"):
        shaken(bare, profile="features")


def test_serving_keeps_its_logits_when_training_redraws_them(planted: Dataset, spec: DataSpec) -> None:
    model = shaken(spec, redraw_logits=True)
    batch = train_batch(planted, model.max_length)
    served = model.interests(batch).vector_BKD
    assert torch.equal(served, model.interests(batch).vector_BKD)
    model.train()
    assert not torch.equal(model.interests(batch).vector_BKD, model.interests(batch).vector_BKD)
    fixed = shaken(spec, redraw_logits=False).eval()
    fixed.load_state_dict(model.state_dict())
    assert torch.equal(fixed.interests(batch).vector_BKD, served)
