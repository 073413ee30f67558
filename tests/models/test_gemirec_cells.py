"""GemiRec's cells: which vector of a user speaks for which item."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.components.cells import item_cells, user_cells
from gemirec.data.dataset import Dataset
from gemirec.evaluation.collapse import overlaps
from gemirec.models.gemirec import GemiRec
from gemirec.retrieval.index import ExactIndex
from gemirec.retrieval.merge import merge
from gemirec.retrieval.retrieve import retrieve_lists
from support_models import begin, held_out, shake, tiny, train_batch

PARTED: dict[str, Any] = {
    "cells": "apart",
    "cell_bonus": 2.0,
    "keep_user_vector": True,
    "train_interests": "served",
    "quantizer": {"sizes": [6], "code_dim": 4, "hidden": 16},
    "loss": {"normalize": True},
}


@given(
    cells=st.integers(1, 5),
    interests=st.integers(1, 4),
    user_first=st.booleans(),
    apart=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_a_score_is_the_product_plus_a_bonus_where_the_vector_may_speak(
    cells: int, interests: int, user_first: bool, apart: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    cell_BK = rng.integers(-1, cells, size=(3, interests))
    if user_first:
        cell_BK[:, 0] = -1
    bonus_BK, weight = rng.uniform(0.5, 3, size=(3, interests)), 1.3
    cell_N = rng.integers(0, cells, size=7)
    got_BKM = user_cells(
        torch.from_numpy(cell_BK), torch.from_numpy(bonus_BK), cells, weight, user_first=user_first, apart=apart
    )
    got_BKN = (got_BKM @ item_cells(torch.from_numpy(cell_N), cells, weight).T.double()).numpy()
    for b in range(3):
        for k in range(interests):
            for n in range(7):
                may = cell_BK[b, k] == cell_N[n]
                if user_first and k == 0:
                    may = not (apart and cell_N[n] in cell_BK[b, 1:])
                assert got_BKN[b, k, n] == pytest.approx(bonus_BK[b, k] if may else 0.0, rel=1e-5)


def parted(planted: Dataset, **over: Any) -> GemiRec:
    model = tiny("gemirec", planted.spec(), **{**PARTED, "refresh_every": 0, **over})
    shake(model, 0.1)
    for stage in model.stages:
        begin(model, stage)
    assert isinstance(model, GemiRec)
    return model.eval()


def test_apart_no_item_is_in_two_lists(planted: Dataset) -> None:
    model = parted(planted)
    histories = held_out(planted, model.max_length)
    with torch.no_grad():
        found, index = model.interests(histories), ExactIndex(model.item_vectors())
        shortest = int(torch.bincount(model.code_MC[model.item_interests()[1:], 0]).min())
        n = min(shortest, 5)
        id_BKR, score_BKR = retrieve_lists(found, index, n)
    merged = merge(id_BKR, score_BKR, n, mask_BK=found.mask_BK)
    shares = overlaps(id_BKR.numpy(), merged.interest_BN.numpy(), merged.rank_BN.numpy(), [n])
    assert (shares[f"exclusive@{n}"] == 1).all()
    assert (shares[f"list_div@{n}"] == 1).all()
    cell_BKR = model.code_MC[model.item_interests()[id_BKR], 0]
    own_BK1 = found.code_BKC[:, 1:, :1]  # type: ignore[index]
    assert (cell_BKR[:, 1:] == own_BK1).all()


def test_the_user_vector_searches_everything_with_own(planted: Dataset) -> None:
    """The list of the user's own vector is the same with and without cells."""
    histories = held_out(planted, 12)
    lists = {}
    for cells in ("none", "own"):
        model = parted(planted, cells=cells)
        with torch.no_grad():
            found = model.interests(histories)
            id_BKR, _ = retrieve_lists(found, ExactIndex(model.item_vectors()), 8)
        lists[cells] = id_BKR[:, 0]
    assert torch.equal(lists["none"], lists["own"])


def test_the_prior_raises_probable_interests(planted: Dataset) -> None:
    """The score of an item is ``v.e + bonus + a log p`` of its interest."""
    model = parted(planted, cell_prior=0.25)
    plain = parted(planted, cell_prior=0.0)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "prior"})
    histories = held_out(planted, model.max_length)
    with torch.no_grad():
        one, two = model.interests(histories), plain.interests(histories)
        item_ND = model.item_vectors()
        gain_BKN = (one.vector_BKD - two.vector_BKD) @ item_ND.T
    assert model.prior is not None
    assert one.weight_BK is not None
    want_BK = model.prior.item() * one.weight_BK.clamp(min=1e-4).log()
    cell_N = model.code_MC[model.item_interests(), 0]
    for k in range(1, one.vector_BKD.shape[1]):
        own_BN = cell_N[None] == one.code_BKC[:, k, :1]  # type: ignore[index]
        own_BN[:, 0] = False
        torch.testing.assert_close(gain_BKN[:, k][own_BN], want_BK[:, k, None].expand_as(own_BN)[own_BN])


def test_training_scores_as_serving_does(planted: Dataset) -> None:
    """The joint loss with one negative set equals the softmax over served scores, computed here."""
    model = parted(planted, loss={"normalize": True, "negatives": "in_batch", "log_q": False, "readout": "best"})
    batch = train_batch(planted, model.max_length, size=16)
    batch = replace(batch, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = model.losses(batch, "joint").terms["retrieval"]
        found = model.interests(batch)
        score_BKS = found.vector_BKD @ model.item_vectors(batch.target_B).T
    score_BS = score_BKS.masked_fill(~found.mask_BK[:, :, None], -torch.inf).amax(1).double()
    target_B = batch.target_B
    same_BS = (target_B[:, None] == target_B[None]) & ~torch.eye(16, dtype=torch.bool)
    want = -torch.log_softmax(score_BS.masked_fill(same_BS, -torch.inf) / 1.0, dim=1).diagonal().mean()
    assert float(got) == pytest.approx(float(want), rel=1e-4)


def test_before_the_dictionary_all_items_are_alike(planted: Dataset) -> None:
    model = tiny("gemirec", planted.spec(), **PARTED).eval()
    histories = held_out(planted, model.max_length)
    with torch.no_grad():
        found = model.interests(histories)
        score_BN = (found.vector_BKD @ model.item_vectors().T)[:, 0]
        plain_BN = (found.vector_BKD[..., :16] @ model.item_vectors()[:, :16].T)[:, 0]
    assert found.vector_BKD.shape[2] == model.item_vectors().shape[1]
    torch.testing.assert_close(score_BN, plain_BN)
