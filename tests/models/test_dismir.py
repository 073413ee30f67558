"""DisMIR's two losses against plain NumPy, the draw of its neighbours, and its routing that must not collapse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gemirec.components.bpr import HardestNegativeLoss
from gemirec.components.losses import MultiInterestLossConfig
from gemirec.data.cooccurrence import cooccurrence
from gemirec.data.dataset import Dataset
from gemirec.models.dismir import DisMIR
from support_models import fit, shake, tiny, train_batch
from support_numpy import Array, numpy_of


def build(planted: Dataset, **over: Any) -> DisMIR:
    model = tiny("dismir", planted.spec(), **over)
    assert isinstance(model, DisMIR)
    shake(model)
    model.learn_from(planted)
    return model.eval()


def squash(s: Array) -> Array:
    square = (s**2).sum(-1, keepdims=True)
    return square / (1 + square) * s / np.sqrt(square + 1e-9)  # type: ignore[no-any-return]


def test_capsules(planted: Dataset) -> None:
    """Identity votes from the fixed random logits, agreement added, shares over the capsules."""
    model = build(planted)
    batch = train_batch(planted, model.max_length)
    table, start = numpy_of(model.item_table.weight), numpy_of(model.logit_KL)
    for row, got in zip(batch.item_BL.numpy(), model.interests(batch).vector_BKD, strict=True):
        x = table[row[row > 0]]
        b = start[:, : len(x)].copy()
        for _ in range(3):
            c = np.exp(b) / np.exp(b).sum(0)
            h = squash(c @ x)
            b += h @ x.T
        np.testing.assert_allclose(numpy_of(got), h, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rounds", [1, 3])
def test_zero_logits_make_all_interests_equal_and_are_not_the_default(rounds: int, planted: Dataset) -> None:
    """The ports' routing: one interest, K times."""
    batch = train_batch(planted, 12)
    equal = build(planted, initial_logits="zero", rounds=rounds).interests(batch).vector_BKD
    torch.testing.assert_close(equal, equal[:, :1].expand_as(equal))
    apart = build(planted, rounds=rounds).interests(batch).vector_BKD
    long_B = batch.length_B >= 6
    assert (apart[long_B, 0] - apart[long_B, 1]).norm(dim=1).min() > 1e-3


def test_partition_contrast_of_targets(planted: Dataset) -> None:
    model = build(planted, partition_temperature=0.7)
    batch = train_batch(planted, model.max_length)
    generator = torch.Generator().manual_seed(0)
    model.retrieval_loss.sampler.sample(batch.target_B, generator)  # the retrieval loss draws first
    negatives = torch.randint(1, planted.num_items + 1, (100,), generator=generator)
    neighbours = model.draw_neighbours(batch.target_B, generator)
    table, out = numpy_of(model.item_table.weight), []
    for i, j in zip(batch.target_B.numpy(), neighbours.numpy(), strict=True):
        assert j > 0
        e = np.exp(np.array([table[i] @ table[j], *(table[negatives.numpy()] @ table[i])]) / 0.7)
        out.append(-np.log(e[0] / e.sum()))
    terms = model.losses(batch, "train")
    assert terms.terms["partition"].item() == pytest.approx(np.mean(out), rel=1e-4)
    assert terms.weights == {"retrieval": 1.0, "partition": 0.1}


def test_neighbours_are_drawn_by_their_confidence(planted: Dataset) -> None:
    model = build(planted, neighbours=6)
    found = cooccurrence(planted, window=10, decay="none", max_neighbours=6)
    drawn = model.draw_neighbours(torch.full((20_000,), 9), torch.Generator().manual_seed(1)).numpy()
    for item, weight in zip(found.id_NM[9], found.weight_NM[9], strict=True):
        assert np.mean(drawn == item) == pytest.approx(weight / found.weight_NM[9].sum(), abs=0.015)


def test_items_without_neighbours_are_left_out(planted: Dataset) -> None:
    model = build(planted)
    batch = train_batch(planted, model.max_length)
    model.neighbour_NM.zero_()
    model.chance_NM.fill_(1.0)
    assert model.losses(batch, "train").terms["partition"].item() == 0
    assert (model.draw_neighbours(batch.target_B, None) == 0).all()


@pytest.mark.parametrize("readout", ["hard", "best", "label_aware"])
def test_bpr_against_the_hardest(readout: Any) -> None:
    rng = np.random.default_rng(0)
    table, interests = rng.normal(size=(7, 5)), rng.normal(size=(6, 3, 5))
    target = rng.integers(1, 7, 6)
    mask = np.array([[True, True, False]] * 6)
    config = MultiInterestLossConfig(readout=readout, power=2.0, temperature=0.5)
    loss = HardestNegativeLoss(config, num_items=6, num_negatives=4)
    drawn = torch.randint(1, 7, (6, 4), generator=torch.Generator().manual_seed(3)).numpy()
    by_hand = []
    for b in range(6):
        h, others = interests[b][mask[b]], [i for i in drawn[b] if i != target[b]]
        s = h @ table[target[b]]
        if readout == "best":
            own, scores = s.max(), [(h @ table[i]).max() for i in others]
        else:
            a = np.exp(np.sign(s) * np.abs(s) ** 2)
            user = h[s.argmax()] if readout == "hard" else (a / a.sum()) @ h
            own, scores = user @ table[target[b]], [user @ table[i] for i in others]
        by_hand.append(np.log1p(np.exp((max(scores) - own) / 0.5)) if others else 0.0)
    tensor = torch.from_numpy(table).float()
    got = loss(
        torch.from_numpy(interests).float(),
        torch.from_numpy(target),
        lambda ids: tensor[ids],
        mask_BK=torch.from_numpy(mask),
        weight_B=torch.arange(6.0),
        generator=torch.Generator().manual_seed(3),
    )
    assert got.item() == pytest.approx(np.average(by_hand, weights=np.arange(6)), rel=1e-4)


def test_a_row_that_drew_only_its_target_costs_nothing() -> None:
    loss = HardestNegativeLoss(MultiInterestLossConfig(), num_items=1, num_negatives=3)
    interest = torch.ones(2, 1, 4, requires_grad=True)
    got = loss(interest, torch.tensor([1, 1]), lambda ids: torch.ones(len(ids), 4))
    got.backward()  # type: ignore[no-untyped-call]
    assert got.item() == 0
    assert interest.grad is not None
    assert interest.grad.isfinite().all()
    assert loss(interest[:0], torch.empty(0, dtype=torch.int64), lambda ids: torch.ones(len(ids), 4)).item() == 0


def test_training_draws_the_planted_clusters_together(planted: Dataset) -> None:
    """With the partition contrast, items of a cluster come nearer to each other than to others'."""
    model = tiny("dismir", planted.spec(), recommendation="bpr", partition_weight=1.0)
    losses = list(fit(model, planted, steps=60))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    vector_ND = torch.nn.functional.normalize(model.item_vectors()[1:], dim=1)
    cosine_NN = (vector_ND @ vector_ND.T).detach()
    cluster_N = torch.arange(planted.num_items) % 6
    same_NN = cluster_N[:, None] == cluster_N
    assert cosine_NN[same_NN].mean() > cosine_NN[~same_NN].mean() + 0.2
