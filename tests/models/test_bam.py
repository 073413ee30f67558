"""BaM's draw and its losses against plain NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gemirec.data.dataset import Dataset
from gemirec.models.bam import BaM
from support_models import shake, tiny, train_batch
from support_numpy import numpy_of, softmax


def build(planted: Dataset, **over: Any) -> BaM:
    model = tiny("bam", planted.spec(), item_init="normal", item_std=0.5, **over)
    assert isinstance(model, BaM)
    shake(model)
    return model.eval()


@pytest.mark.parametrize("selection", ["inner", "linear"])
def test_chances(selection: str, planted: Dataset) -> None:
    model = build(planted, selection=selection, sharpness=1.7)
    batch = train_batch(planted, model.max_length)
    h, v = numpy_of(model.interests(batch).vector_BKD), numpy_of(model.item_vectors(batch.target_B))
    if selection == "linear":
        h, v = h @ numpy_of(model.interest_map_ED).T, v @ numpy_of(model.item_map_ED).T
    by_hand = softmax(1.7 * np.einsum("bkd,bd->bk", h, v))
    got = model.probabilities(model.interests(batch).vector_BKD, model.item_vectors(batch.target_B))
    np.testing.assert_allclose(numpy_of(got), by_hand, rtol=1e-4)


def test_interests_are_drawn_by_their_chances_and_missing_ones_never(planted: Dataset) -> None:
    model = build(planted)
    interest = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0)).expand(20_000, -1, -1) * 0.3
    target = torch.randn(1, 16, generator=torch.Generator().manual_seed(1)).expand(20_000, -1)
    for mask in (None, torch.tensor([[True, False, True]]).expand(20_000, -1)):
        chance = model.probabilities(interest, target, mask)[0].numpy()
        drawn = model.draw(interest, target, mask, torch.Generator().manual_seed(2)).numpy()
        share = np.bincount(drawn, minlength=3) / len(drawn)
        np.testing.assert_allclose(share, chance, atol=0.015)
    assert share[1] == 0


def test_only_the_drawn_interest_learns_and_the_loss_is_its(planted: Dataset) -> None:
    model = build(planted, selection="inner")
    batch = train_batch(planted, model.max_length)
    vector_BKD, _ = model._encode(batch)
    generator = torch.Generator().manual_seed(0)
    chosen = model.draw(vector_BKD, model.item_vectors(batch.target_B), None, generator)
    sampled = model.retrieval_loss.sampler.sample(batch.target_B, generator).id_S.numpy()
    table, h, out = numpy_of(model.item_vectors()), numpy_of(vector_BKD), []
    for b, target in enumerate(batch.target_B.numpy()):
        own = h[b, chosen[b]]
        e = np.exp([own @ table[i] for i in [target, *(i for i in sampled if i != target)]])
        out.append(-np.log(e[0] / e.sum()))
    assert model.losses(batch, "train").terms["retrieval"].item() == pytest.approx(np.mean(out), rel=1e-4)

    leaf = vector_BKD.detach().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_encode", lambda _: (leaf, None))
        again = replace(batch, generator=torch.Generator().manual_seed(0))
        model.losses(again, "train").terms["retrieval"].backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    moved_BK = leaf.grad.abs().sum(2) > 0
    assert torch.equal(moved_BK, torch.nn.functional.one_hot(chosen, 3).bool())


def test_multi_interest_loss(planted: Dataset) -> None:
    over: dict[str, Any] = {"loss": {"negatives": "popularity", "temperature": 0.8}}
    model = build(planted, selection="readout", multi_interest_weight=0.5, **over)
    batch = train_batch(planted, model.max_length)
    generator = torch.Generator().manual_seed(0)
    model.retrieval_loss.sampler.sample(batch.target_B, generator)  # the retrieval loss draws first
    drawn = model.retrieval_loss.sampler.sample(batch.target_B, generator)
    h, table, out = numpy_of(model.interests(batch).vector_BKD), numpy_of(model.item_vectors()), []
    q_S, q_B = np.exp(numpy_of(drawn.log_q_S)), np.exp(numpy_of(drawn.log_q_target_B))
    for b, target in enumerate(batch.target_B.numpy()):
        positive = np.exp(h[b] @ table[target] / 0.8).sum() / q_B[b]
        negative = [
            np.exp(h[b] @ table[i] / 0.8).sum() / q for i, q in zip(drawn.id_S.numpy(), q_S, strict=True) if i != target
        ]
        out.append(-np.log(positive / (positive + np.sum(negative))))
    terms = model.losses(batch, "train")
    assert terms.terms["multi_interest"].item() == pytest.approx(np.mean(out), rel=1e-4)
    assert terms.weights["multi_interest"] == 0.5


def test_the_maps_of_the_correlation_are_no_parameters(planted: Dataset) -> None:
    model = build(planted, selection="linear")
    assert not [name for name, _ in model.named_parameters() if "map" in name]
    assert {"interest_map_ED", "item_map_ED"} <= model.state_dict().keys()


def test_drawing_feeds_the_interests_that_the_readout_starves(planted: Dataset) -> None:
    """One interest ahead of the others: the readout gives it every target, the draw does not."""
    batch = train_batch(planted, 12)
    target = torch.nn.functional.normalize(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    interest = target[:, None] * torch.tensor([1.0, 0.9, 0.8])[None, :, None]
    assert (torch.einsum("bkd,bd->bk", interest, target).argmax(1) == 0).all()
    drawn = build(planted).draw(interest, target, None, batch.generator)
    assert np.bincount(drawn.numpy(), minlength=3).min() > 8


def test_other_extractors(planted: Dataset) -> None:
    model = build(planted, extractor={"kind": "routing"})
    batch = train_batch(planted, model.max_length)
    model.train()
    model.losses(batch, "train").total().backward()  # type: ignore[no-untyped-call]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.extractor.parameters())
