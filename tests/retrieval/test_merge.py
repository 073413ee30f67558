"""The merge routine against brute force: equal scores, duplicates, missing results, absent interests."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gemirec.errors import ConfigError, DataError
from gemirec.retrieval.merge import Merged, MergeKind, equal_quota, merge, shared_quota


def brute(
    id_BKR: torch.Tensor, score_BKR: torch.Tensor, n: int, mask_BK: torch.Tensor
) -> list[list[tuple[int, float, int, int]]]:
    """Walk every list in a plain loop: ``(id, score, interest, rank)`` of each user, best first."""
    out = []
    for ids, scores, mask in zip(id_BKR.tolist(), score_BKR.tolist(), mask_BK.tolist(), strict=True):
        best: dict[int, tuple[float, int, int]] = {}
        for interest, (row, values, exists) in enumerate(zip(ids, scores, mask, strict=True)):
            for rank, (item, score) in enumerate(zip(row, values, strict=True)):
                if exists and item > 0 and score > float("-inf") and (item not in best or score > best[item][0]):
                    best[item] = (score, interest, rank)
        order = sorted(best, key=lambda item: (-best[item][0], item))[:n]
        out.append([(item, *best[item]) for item in order])
    return out


def rows(merged: Merged) -> list[list[tuple[int, float, int, int]]]:
    """The merged lists without missing places; a missing place must look missing in every column, and stand last."""
    out = []
    for ids, scores, interests, ranks in zip(
        merged.id_BN.tolist(),
        merged.score_BN.tolist(),
        merged.interest_BN.tolist(),
        merged.rank_BN.tolist(),
        strict=True,
    ):
        real = [entry for entry in zip(ids, scores, interests, ranks, strict=True) if entry[0] != -1]
        missing = list(zip(ids, scores, interests, ranks, strict=True))[len(real) :]
        assert all(entry == (-1, float("-inf"), -1, -1) for entry in missing)
        out.append(real)
    return out


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_equals_brute_force(data: st.DataObject) -> None:
    users, count, places = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6)))
    size = users * count * places
    ids = data.draw(st.lists(st.integers(-1, 9), min_size=size, max_size=size))
    values = st.sampled_from([float("-inf"), -1.5, -0.0, 0.0, 0.25, 0.9, 2.0])
    scores = data.draw(st.lists(values, min_size=size, max_size=size))
    masks = data.draw(st.lists(st.booleans(), min_size=users * count, max_size=users * count))
    n = data.draw(st.integers(1, 30))
    id_BKR = torch.tensor(ids).view(users, count, places)
    score_BKR = torch.tensor(scores).view(users, count, places)
    mask_BK = torch.tensor(masks).view(users, count)
    merged = merge(id_BKR, score_BKR, n, mask_BK=mask_BK)
    assert merged.id_BN.shape == (users, n)
    assert rows(merged) == brute(id_BKR, score_BKR, n, mask_BK)


def lists(data: st.DataObject) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, scores and masks of a few users; every list is sorted, best first."""
    users, count, places = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6)))
    size = users * count * places
    ids = data.draw(st.lists(st.integers(-1, 9), min_size=size, max_size=size))
    values = st.sampled_from([float("-inf"), -1.5, 0.0, 0.25, 0.3, 0.9, 2.0])
    scores = data.draw(st.lists(values, min_size=size, max_size=size))
    masks = data.draw(st.lists(st.booleans(), min_size=users * count, max_size=users * count))
    score_BKR = torch.tensor(scores).view(users, count, places).sort(dim=2, descending=True).values
    return torch.tensor(ids).view(users, count, places), score_BKR, torch.tensor(masks).view(users, count)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_diverse_equals_the_greedy_rule(data: st.DataObject) -> None:
    """ComiRec's loop: take the item of the largest ``score - lambda x (number already chosen in its category)``."""
    id_BKR, score_BKR, mask_BK = lists(data)
    category_I = torch.tensor(data.draw(st.lists(st.integers(-1, 3), min_size=10, max_size=10)))
    penalty, n = data.draw(st.sampled_from([0.0, 0.05, 0.3, 5.0])), data.draw(st.integers(1, 30))
    got = merge(id_BKR, score_BKR, n, mask_BK=mask_BK, kind="diverse", category_I=category_I, diversity=penalty)
    for row, left in zip(rows(got), brute(id_BKR, score_BKR, 1000, mask_BK), strict=True):
        taken: list[tuple[int, float, int, int]] = []
        counts: dict[int, int] = {}
        while left and len(taken) < n:

            def value(entry: tuple[int, float, int, int], counts: dict[int, int] = counts) -> float:
                category = int(category_I[entry[0]])
                earlier = counts.get(category, 0) if category > 0 else 0
                return float(torch.tensor(entry[1]) - penalty * torch.tensor(float(earlier)))

            best = max(left, key=value)  # the first of equal ones
            left.remove(best)
            taken.append(best)
            counts[int(category_I[best[0]])] = counts.get(int(category_I[best[0]]), 0) + 1
        assert row == taken


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_diverse_is_the_best_of_all_lists(data: st.DataObject) -> None:
    """ComiRec's objective, sum of scores + lambda/2 x (ordered pairs of different categories), over every subset."""
    count = data.draw(st.integers(1, 8))
    scores = sorted(
        (s / 8 for s in data.draw(st.lists(st.integers(-9, 30), min_size=count, max_size=count))), reverse=True
    )
    category_I = torch.tensor([0, *data.draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))])
    penalty, n = data.draw(st.sampled_from([0.0, 0.125, 0.5, 1.0, 8.0])), data.draw(st.integers(1, count))
    ids = torch.arange(1, count + 1)
    got = merge(ids[None, None], torch.tensor([[scores]]), n, kind="diverse", category_I=category_I, diversity=penalty)

    def objective(chosen: tuple[int, ...]) -> float:
        kinds = [int(category_I[item]) for item in chosen]
        different = sum(a != b for a in kinds for b in kinds)
        return sum(scores[item - 1] for item in chosen) + penalty / 2 * different

    assert objective(tuple(got.id_BN[0].tolist())) == max(map(objective, combinations(ids.tolist(), n)))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_weighted_equals_brute_force(data: st.DataObject) -> None:
    id_BKR, score_BKR, mask_BK = lists(data)
    weights = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 3.0])
    weight_BK = torch.tensor(data.draw(st.lists(weights, min_size=mask_BK.numel(), max_size=mask_BK.numel())))
    weight_BK, n = weight_BK.view(mask_BK.shape), data.draw(st.integers(1, 20))
    got = merge(id_BKR, score_BKR, n, mask_BK=mask_BK, kind="weighted", weight_BK=weight_BK)
    for b, row in enumerate(rows(got)):
        above = mask_BK[b] & (weight_BK[b] > 0)
        taking, weight = (above, weight_BK[b]) if above.any() else (mask_BK[b], torch.ones(mask_BK.shape[1]))
        scaled = torch.where(score_BKR[b] > float("-inf"), score_BKR[b] * weight.clamp(min=0)[:, None], score_BKR[b])
        assert row == brute(id_BKR[b : b + 1], scaled[None], n, taking[None])[0]


def test_weights_let_an_important_interest_win() -> None:
    ids, scores = torch.tensor([[[1, 2], [2, 3]]]), torch.tensor([[[0.9, 0.8], [0.7, 0.6]]])
    merged = merge(ids, scores, 3, kind="weighted", weight_BK=torch.tensor([[0.25, 0.75]]))
    assert merged.id_BN.tolist() == [[2, 3, 1]]
    assert (merged.interest_BN.tolist(), merged.rank_BN.tolist()) == ([[1, 1, 0]], [[0, 1, 0]])
    with pytest.raises(ConfigError, match="weights"):
        merge(ids, scores, 3, kind="weighted")
    with pytest.raises(DataError, match="weight is NaN"):
        merge(ids, scores, 3, kind="weighted", weight_BK=torch.tensor([[float("nan"), 1.0]]))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_quota_equals_brute_force(data: st.DataObject) -> None:
    id_BKR, score_BKR, mask_BK = lists(data)
    n = data.draw(st.integers(1, 20))
    quota_BK = torch.tensor(
        data.draw(st.lists(st.integers(0, 5), min_size=mask_BK.numel(), max_size=mask_BK.numel()))
    ).view(mask_BK.shape)
    quota_BK = equal_quota(n, mask_BK) if data.draw(st.booleans()) else quota_BK
    got = merge(id_BKR, score_BKR, n, mask_BK=mask_BK, kind="quota", quota_BK=quota_BK)
    for b, row in enumerate(rows(got)):
        owned: dict[int, tuple[float, int, int]] = {}
        for rank in range(id_BKR.shape[2]):
            for k in range(id_BKR.shape[1]):
                item, score = int(id_BKR[b, k, rank]), float(score_BKR[b, k, rank])
                if bool(mask_BK[b, k]) and item > 0 and score > float("-inf") and item not in owned:
                    owned[item] = (score, k, rank)
        entries = sorted(((item, *rest) for item, rest in owned.items()), key=lambda e: (-e[1], e[0]))
        within = []
        for k in range(id_BKR.shape[1]):
            own = sorted((e for e in entries if e[2] == k), key=lambda e: e[3])
            within += own[: int(quota_BK[b, k])]
        within = [e for e in entries if e in within]
        chosen = (within + [e for e in entries if e not in within])[:n]
        assert row == [e for e in entries if e in chosen]


def test_quota_lets_a_weak_interest_in() -> None:
    """The second interest's scores are all below the first's: under ``max`` it gets nothing."""
    ids, scores = torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]]), torch.tensor([[[4.0, 3, 2, 1], [0.4, 0.3, 0.2, 0.1]]])
    assert merge(ids, scores, 4).id_BN.tolist() == [[1, 2, 3, 4]]
    assert merge(ids, scores, 4, kind="quota").id_BN.tolist() == [[1, 2, 5, 6]]
    three = merge(ids, scores, 4, kind="quota", quota_BK=torch.tensor([[1, 3]]))
    assert three.interest_BN.tolist() == [[0, 1, 1, 1]]


@given(st.integers(1, 30), st.lists(st.booleans(), min_size=1, max_size=6))
def test_equal_quotas_are_equal_and_spend_all(n: int, mask: list[bool]) -> None:
    quota = equal_quota(n, torch.tensor([mask]))[0]
    given_ = quota[torch.tensor(mask)]
    assert quota.sum() == (n if any(mask) else 0)
    assert not len(given_) or given_.max() - given_.min() <= 1


@given(st.integers(1, 60), st.lists(st.tuples(st.integers(-1, 9), st.booleans()), min_size=1, max_size=6))
@example(35, [(2, True), (5, True), (8, True)])  # three equal remainders, whose quotients differ in the last bit
def test_shared_quotas_are_the_largest_remainders(n: int, interests: list[tuple[int, bool]]) -> None:
    share, mask = [max(0, s) if m else 0 for s, m in interests], [m for _, m in interests]
    quota = shared_quota(n, torch.tensor([[s for s, _ in interests]]), torch.tensor([mask]))[0].tolist()
    if sum(share) == 0:  # nobody has a share: all that exist have the same
        share = [int(m) for m in mask]
    total = max(sum(share), 1)
    places = [n * s // total for s in share]
    rest = sorted(range(len(share)), key=lambda k: -(n * share[k] % total))  # stable: the lowest of equal ones
    for k in rest[: n - sum(places) if any(mask) else 0]:
        places[k] += 1
    assert quota == places
    assert sum(quota) == (n if any(mask) else 0)
    equal = shared_quota(n, torch.ones(1, len(mask)), torch.tensor([mask]))
    assert torch.equal(equal, equal_quota(n, torch.tensor([mask])))


def test_an_item_with_two_scores_is_kept_once() -> None:
    """TorchEasyRec removes duplicates by equal score and returns [7, 7, 3]."""
    merged = merge(torch.tensor([[[7, 3], [7, 5]]]), torch.tensor([[[0.75, 0.5], [0.625, 0.25]]]), 3)
    assert rows(merged) == [[(7, 0.75, 0, 0), (3, 0.5, 0, 1), (5, 0.25, 1, 1)]]


def test_two_items_with_one_score_are_both_kept() -> None:
    """TorchEasyRec keeps 8 and drops 7, which has the same score."""
    merged = merge(torch.tensor([[[8, 1], [7, 2]]]), torch.tensor([[[0.9, 0.2], [0.9, 0.1]]]), 4)
    assert merged.id_BN.tolist() == [[7, 8, 1, 2]]
    assert merged.interest_BN.tolist() == [[1, 0, 0, 1]]


def test_equal_interests_are_won_by_the_first() -> None:
    ids = torch.tensor([[[4, 2, 9]] * 3])
    merged = merge(ids, torch.tensor([[[3.0, 2.0, 1.0]] * 3]), 3)
    assert merged.interest_BN.tolist() == [[0, 0, 0]]
    assert merged.rank_BN.tolist() == [[0, 1, 2]]
    masked = merge(ids, torch.tensor([[[3.0, 2.0, 1.0]] * 3]), 3, mask_BK=torch.tensor([[False, True, True]]))
    assert masked.interest_BN.tolist() == [[1, 1, 1]]


def test_zero_vectors_give_one_list_in_item_order() -> None:
    merged = merge(torch.tensor([[[1, 2, 3], [1, 2, 3]]]), torch.zeros(1, 2, 3), 4)
    assert merged.id_BN.tolist() == [[1, 2, 3, -1]]


def test_one_interest_is_left_as_it_is() -> None:
    ids, scores = torch.tensor([[[5, 9, 2, -1]]]), torch.tensor([[[3.0, 2.0, 1.0, float("-inf")]]])
    merged = merge(ids, scores, 4)
    assert torch.equal(merged.id_BN, ids[:, 0])
    assert torch.equal(merged.score_BN, scores[:, 0])
    assert merged.rank_BN.tolist() == [[0, 1, 2, -1]]


@pytest.mark.parametrize("kind", ["max", "weighted", "diverse", "quota"])
def test_nothing_to_merge(kind: MergeKind) -> None:
    for shape in ((2, 0, 5), (2, 3, 0), (0, 2, 4)):
        ids, categories = torch.zeros(shape, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        merged = merge(
            ids,
            torch.zeros(shape),
            3,
            kind=kind,
            category_I=categories,
            diversity=0.5,
            weight_BK=torch.zeros(shape[:2]),
        )
        assert merged.id_BN.shape == (shape[0], 3)
        assert (merged.id_BN == -1).all()
    absent = merge(torch.ones(1, 1, 2, dtype=torch.int64), torch.ones(1, 1, 2), 2, mask_BK=torch.zeros(1, 1).bool())
    assert absent.id_BN.tolist() == [[-1, -1]]


def test_first_cuts_every_column() -> None:
    merged = merge(torch.tensor([[[5, 9, 2]]]), torch.tensor([[[3.0, 2.0, 1.0]]]), 3).first(2)
    assert [part.shape for part in (merged.id_BN, merged.score_BN, merged.interest_BN, merged.rank_BN)] == [(1, 2)] * 4


def test_bad_input_is_refused() -> None:
    ids = torch.ones(1, 1, 1, dtype=torch.int64)
    with pytest.raises(DataError, match="NaN"):
        merge(ids, torch.full((1, 1, 1), float("nan")), 1)
    with pytest.raises(DataError, match="31 bits"):
        merge(ids * 2**31, torch.ones(1, 1, 1), 1)
    with pytest.raises(ConfigError, match="at least one item"):
        merge(ids, torch.ones(1, 1, 1), 0)
    with pytest.raises(ConfigError, match="no such way"):
        merge(ids, torch.ones(1, 1, 1), 1, kind="mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs the items' categories"):
        merge(ids, torch.ones(1, 1, 1), 1, kind="diverse")
    with pytest.raises(ConfigError, match="at least 0"):
        merge(ids, torch.ones(1, 1, 1), 1, kind="diverse", category_I=torch.ones(2), diversity=-1.0)
