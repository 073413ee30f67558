"""The one path: search of every interest, then merge, equals the best score over interests by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemirec.errors import DataError
from gemirec.models.base import Interests
from gemirec.retrieval.index import ExactIndex
from gemirec.retrieval.retrieve import retrieve, retrieve_lists


def case(seed: int = 0, users: int = 11, count: int = 3, items: int = 70) -> tuple[Interests, torch.Tensor]:
    """Small integers: every product is exact, and scores tie."""
    generator = torch.Generator().manual_seed(seed)
    vector_BKD = torch.randint(-3, 4, (users, count, 6), generator=generator).float()
    mask_BK = torch.rand(users, count, generator=generator) < 0.7
    mask_BK[:, 0] = True
    return Interests(vector_BKD, mask_BK), torch.randint(-3, 4, (items + 1, 6), generator=generator).float()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("allow", [False, True])
def test_equals_the_best_score_over_interests(seed: int, exclude: bool, allow: bool) -> None:
    interests, item_ND = case(seed)
    rng = np.random.default_rng(seed)
    seen = [rng.integers(0, 71, rng.integers(0, 60)) for _ in range(11)]
    allow_ids = rng.choice(np.arange(1, 71), 25, replace=False)
    merged = retrieve(
        interests,
        ExactIndex(item_ND),
        20,
        seen_E=torch.from_numpy(np.concatenate(seen)) if exclude else None,
        seen_offset_B1=torch.tensor([0, *np.cumsum([len(s) for s in seen])]) if exclude else None,
        allow_ids=torch.from_numpy(allow_ids) if allow else None,
    )
    for user in range(11):
        score_KN = interests.vector_BKD[user].numpy() @ item_ND.numpy().T
        score_KN[~interests.mask_BK[user].numpy()] = -np.inf
        best_N = score_KN.max(0)
        best_N[0] = -np.inf
        if exclude:
            best_N[seen[user]] = -np.inf
        if allow:
            best_N[~np.isin(np.arange(71), allow_ids)] = -np.inf
        order = [int(i) for i in np.lexsort((np.arange(71), -best_N))[:20] if best_N[i] > -np.inf]
        assert merged.id_BN[user].tolist() == order + [-1] * (20 - len(order))
        assert merged.interest_BN[user, : len(order)].tolist() == [int(score_KN[:, i].argmax()) for i in order]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(1)
    interests = Interests(torch.randn(40, 4, 64, generator=generator), torch.ones(40, 4, dtype=torch.bool))
    index = ExactIndex(torch.randn(3000, 64, generator=generator))
    whole = retrieve(interests, index, 25)
    for user in (0, 17, 39):
        alone = retrieve(
            Interests(interests.vector_BKD[user : user + 1], interests.mask_BK[user : user + 1]), index, 25
        )
        assert torch.equal(alone.id_BN[0], whole.id_BN[user])
        assert torch.equal(alone.score_BN[0], whole.score_BN[user])
        assert torch.equal(alone.interest_BN[0], whole.interest_BN[user])


def test_lists_of_absent_interests_are_missing() -> None:
    interests, item_ND = case(2)
    id_BKR, score_BKR = retrieve_lists(interests, ExactIndex(item_ND), 5)
    assert ((id_BKR == -1).all(dim=2) == ~interests.mask_BK).all()
    assert (torch.isinf(score_BKR).all(dim=2) == ~interests.mask_BK).all()


def test_absent_interests_may_hold_anything_present_ones_may_not() -> None:
    interests, item_ND = case(3)
    vector_BKD = interests.vector_BKD.clone()
    vector_BKD[~interests.mask_BK] = float("nan")
    index = ExactIndex(item_ND)
    dirty = retrieve(Interests(vector_BKD, interests.mask_BK), index, 9)
    assert torch.equal(dirty.id_BN, retrieve(interests, index, 9).id_BN)
    vector_BKD[4, 0, 2] = float("inf")
    with pytest.raises(DataError, match="interest vectors must be finite") as caught:
        retrieve(Interests(vector_BKD, interests.mask_BK), index, 9)
    assert "row 4" in caught.value.got


def test_nobody_has_an_interest() -> None:
    interests, item_ND = case(4)
    merged = retrieve(Interests(interests.vector_BKD, torch.zeros_like(interests.mask_BK)), ExactIndex(item_ND), 3)
    assert (merged.id_BN == -1).all()
