"""The one path: search of every interest, then merge, equals the best score over interests by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemirec.config import MergeConfig
from gemirec.errors import ConfigError, DataError
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


@pytest.mark.parametrize(("pool", "diversity"), [(1, 2.0), (2, 0.0), (3, 1.5), (9, 40.0)])
def test_diverse_lists_are_greedy_over_the_best_of_the_pool(pool: int, diversity: float) -> None:
    interests, item_ND = case(4)
    category_I = torch.arange(71) % 4  # every fourth item has none
    index, how = ExactIndex(item_ND), MergeConfig(kind="diverse", diversity=diversity, pool=pool)
    merged = retrieve(interests, index, 10, merge=how, category_I=category_I)
    best = retrieve(interests, index, 10 * pool)
    for user in range(11):
        left = [
            pair for pair in zip(best.id_BN[user].tolist(), best.score_BN[user].tolist(), strict=True) if pair[0] > 0
        ]
        taken: list[int] = []
        while left and len(taken) < 10:
            counts = [sum(int(category_I[item]) == c for item in taken) if c else 0 for c in range(4)]
            choice = max(left, key=lambda pair: pair[1] - diversity * counts[int(category_I[pair[0]])])
            left.remove(choice)
            taken.append(choice[0])
        assert merged.id_BN[user].tolist() == taken
        score_KN = interests.vector_BKD[user].numpy() @ item_ND.numpy().T
        score_KN[~interests.mask_BK[user].numpy()] = -np.inf
        assert merged.interest_BN[user].tolist() == [int(score_KN[:, i].argmax()) for i in taken]


def test_quotas_are_equal_shared_or_weighted() -> None:
    """Four interests on four axes, items of one axis each: the interests' places can be counted."""
    item_ND = torch.cat([torch.zeros(1, 4), torch.eye(4).repeat_interleave(20, 0) * torch.arange(81, 1, -1)[:, None]])
    mask_BK = torch.tensor([[True] * 4, [True, True, False, True]])
    weight_BK = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.0, 9.0, 0.5]])
    interests, index = Interests(torch.eye(4).expand(2, 4, 4), mask_BK, weight_BK), ExactIndex(item_ND)

    def places(how: MergeConfig) -> list[list[int]]:
        merged = retrieve(interests, index, 10, merge=how)
        return [torch.bincount(row, minlength=4).tolist() for row in merged.interest_BN]

    assert places(MergeConfig()) == [[10, 0, 0, 0], [10, 0, 0, 0]]
    assert places(MergeConfig(kind="quota")) == [[3, 3, 2, 2], [4, 3, 0, 3]]
    assert places(MergeConfig(kind="quota", quota="weight")) == [[1, 2, 3, 4], [5, 0, 0, 5]]
    assert places(MergeConfig(kind="quota", quota=(2, 1, 1))) == [[5, 3, 2, 0], [7, 3, 0, 0]]
    with pytest.raises(ConfigError, match=r"more interests than the model has\n  got: 5 shares, 4 interests"):
        places(MergeConfig(kind="quota", quota=(1, 1, 1, 1, 1)))


def test_a_merge_that_lacks_something_says_what() -> None:
    interests, item_ND = case(5)
    with pytest.raises(ConfigError, match="need the items' categories"):
        retrieve(interests, ExactIndex(item_ND), 3, merge=MergeConfig(kind="diverse", diversity=1.0))
    with pytest.raises(ConfigError, match="a model that weighs its interests"):
        retrieve(interests, ExactIndex(item_ND), 3, merge=MergeConfig(kind="quota", quota="weight"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"diversity": 0.1}, "belongs to the kind diverse"),
        ({"kind": "diverse", "quota": "weight"}, "belongs to the kind quota"),
        ({"kind": "diverse", "diversity": -1.0}, "0 or more"),
        ({"kind": "diverse", "diversity": float("nan")}, "0 or more"),
        ({"pool": 0}, "1 or more"),
        ({"kind": "quota", "quota": (0.0, 0.0)}, "one of them above 0"),
        ({"kind": "quota", "quota": ()}, "one of them above 0"),
        ({"kind": "quota", "quota": (2.0, -1.0)}, "0 or more"),
    ],
)
def test_a_merge_that_cannot_be_is_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        MergeConfig(**wrong)  # type: ignore[arg-type]
    assert caught.value.got
    assert caught.value.fix
