"""Every metric against a plain loop over users, repeats, ties and missing places included."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemirec.errors import DataError
from gemirec.evaluation.metrics import MISS, accuracy, category_diversity, coverage, gini, rank_targets

if TYPE_CHECKING:
    from numpy.typing import NDArray


def ragged(rows: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    flat = np.array([value for row in rows for value in row], dtype=np.int64)
    return flat, np.array([0, *np.cumsum([len(row) for row in rows])], dtype=np.int64)


def against_targets(listed: list[int], scores: list[float], targets: list[int], complete: bool) -> list[int]:
    """The list with each group of equal scores rearranged: others, then targets; 0 for a target that may be out."""
    out: list[int] = []
    for _, group in itertools.groupby(zip(listed, scores, strict=True), key=lambda entry: entry[1]):
        members = [item for item, _ in group]
        cut = not complete and members[-1] == listed[-1] and len(members) > 1
        hits = [item for item in members if item in targets]
        out += [item for item in members if item not in targets] + [0 if cut else item for item in hits]
    return out


def brute(listed: list[int], targets: list[int], n: int) -> dict[str, float]:
    """The table of the module, one user, word by word."""
    shown, unique = listed[:n], set(targets)
    hits = [place for place, item in enumerate(shown) if item in unique]
    dcg = sum(1 / math.log2(place + 2) for place in hits)
    entries = [place for place, item in enumerate(targets) if item in shown]

    def ideal(count: int) -> float:
        return sum(1 / math.log2(place + 2) for place in range(count))

    return {
        f"recall@{n}": len(hits) / len(unique),
        f"recall_raw@{n}": len(hits) / len(targets),
        f"hr@{n}": float(bool(hits)),
        f"ndcg@{n}": dcg / ideal(min(n, len(unique))),
        f"ndcg_hits@{n}": dcg / ideal(len(hits)) if hits else 0.0,
        f"ndcg_position@{n}": sum(1 / math.log2(p + 2) for p in entries) / ideal(len(entries)) if entries else 0.0,
        f"mrr@{n}": 1 / (hits[0] + 1) if hits else 0.0,
        f"precision@{n}": len(hits) / n,
    }


@st.composite
def users(draw: st.DrawFn) -> tuple[list[list[int]], list[list[float]], list[list[int]], int]:
    places = draw(st.integers(1, 8))
    lists, scores, targets = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.integers(0, places))
        items = draw(st.permutations(range(1, 13)))[:size]
        values = sorted(draw(st.lists(st.sampled_from([3.0, 2.0, 1.0, -1.0]), min_size=size, max_size=size)))[::-1]
        lists.append([*items, *[-1] * (places - size)])
        scores.append([*values, *[float("-inf")] * (places - size)])
        targets.append(draw(st.lists(st.integers(1, 14), min_size=1, max_size=9)))
    return lists, scores, targets, places


@settings(max_examples=300, deadline=None)
@given(users(), st.booleans(), st.lists(st.integers(1, 10), min_size=1, max_size=3, unique=True))
def test_accuracy_equals_a_plain_loop(
    case: tuple[list[list[int]], list[list[float]], list[list[int]], int], complete: bool, top_n: list[int]
) -> None:
    lists, scores, targets, places = case
    ranks = rank_targets(np.array(lists), np.array(scores), *ragged(targets), complete=complete)
    found = accuracy(ranks, top_n)
    for row, (listed, values, wanted) in enumerate(zip(lists, scores, targets, strict=True)):
        real = [item for item in listed if item > 0]
        seen = against_targets(real, values[: len(real)], wanted, complete or len(real) < places)
        for n in top_n:
            for name, value in brute(seen, wanted, n).items():
                assert found[name][row] == pytest.approx(value, abs=1e-12), (name, row)


@settings(max_examples=200, deadline=None)
@given(users(), st.booleans(), st.randoms(use_true_random=False))
def test_equal_scores_apart_in_the_list_exchange_their_places(
    case: tuple[list[list[int]], list[list[float]], list[list[int]], int], complete: bool, random: Any
) -> None:
    """Lists that are not in the order of their scores: of each score's places the targets get the last."""
    lists, scores, targets, places = case
    for listed, values in zip(lists, scores, strict=True):
        size = sum(item > 0 for item in listed)
        values[:size] = random.sample(values[:size], size)
    ranks = rank_targets(np.array(lists), np.array(scores), *ragged(targets), complete=complete)
    for row, (listed, values, wanted) in enumerate(zip(lists, scores, targets, strict=True)):
        size = sum(item > 0 for item in listed)
        expected = dict.fromkeys(wanted, MISS)
        for score in set(values[:size]):
            group = [place for place in range(size) if values[place] == score]
            order = sorted(group, key=lambda place: (listed[place] in wanted, place))
            cut = not complete and size == places and len(group) > 1 and group[-1] == places - 1
            expected |= {
                listed[member]: MISS if cut else place
                for place, member in zip(group, order, strict=True)
                if listed[member] in wanted
            }
        mine = ranks.user_T == row
        assert dict(zip(ranks.item_T[mine].tolist(), ranks.rank_T[mine].tolist(), strict=True)) == expected


def test_without_ties_the_order_is_the_list() -> None:
    ranks = rank_targets(
        np.array([[5, 3, 9, 1]]), np.array([[4.0, 3.0, 2.0, 1.0]]), np.array([9, 5, 8, 9]), np.array([0, 4])
    )
    assert ranks.rank_E.tolist() == [2, 0, MISS, 2]


def test_repeated_targets_count_once_and_perfect_is_one() -> None:
    """ComiRec divides by the raw count and caps a user who repeats; the set does not."""
    ids, scores = np.array([[5, 3, 9]]), np.array([[3.0, 2.0, 1.0]])
    found = accuracy(rank_targets(ids, scores, np.array([5, 5, 3, 5]), np.array([0, 4])), [3])
    assert found["recall@3"][0] == 1.0
    assert found["recall_raw@3"][0] == 0.5
    assert found["ndcg@3"][0] == pytest.approx(1.0)
    assert found["precision@3"][0] == pytest.approx(2 / 3)


def test_three_definitions_of_ndcg_differ() -> None:
    """One hit at place 1 (from 0) of the list, which is target number 0 of four."""
    ids, scores = np.array([[7, 5, 9]]), np.array([[3.0, 2.0, 1.0]])
    found = accuracy(rank_targets(ids, scores, np.array([5, 1, 2, 3]), np.array([0, 4])), [3])
    gain = 1 / math.log2(3)
    assert found["ndcg_hits@3"][0] == pytest.approx(gain)
    assert found["ndcg_position@3"][0] == 1.0
    assert found["ndcg@3"][0] == pytest.approx(gain / (1 + gain + 0.5))


def test_a_constant_model_gets_nothing_from_ties() -> None:
    """ReChorus put the target first among equal scores and reported a perfect hit rate for collapsed weights."""
    ids = np.tile(np.arange(1, 9), (4, 1))
    found = accuracy(rank_targets(ids, np.zeros((4, 8)), *ragged([[1], [4], [8], [50]])), [1, 5])
    assert all((value == 0).all() for value in found.values())
    shown = accuracy(rank_targets(ids, np.zeros((4, 8)), *ragged([[1], [4], [8], [50]]), complete=True), [1, 8])
    assert shown["hr@1"].tolist() == [0, 0, 0, 0]
    assert shown["hr@8"].tolist() == [1, 1, 1, 0]
    assert shown["mrr@8"].tolist() == [1 / 8, 1 / 8, 1 / 8, 0]


def test_a_user_without_target_is_refused() -> None:
    with pytest.raises(DataError, match="no target"):
        rank_targets(np.array([[1], [2]]), np.zeros((2, 1)), np.array([3]), np.array([0, 1, 1]))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(-1, 12), min_size=6, max_size=6), min_size=1, max_size=4),
    st.lists(st.integers(0, 4), min_size=13, max_size=13),
)
def test_diversity_equals_a_loop_over_pairs(lists: list[list[int]], categories: list[int]) -> None:
    found = category_diversity(np.array(lists), np.array(categories))
    for row, listed in enumerate(lists):
        known = [categories[item] for item in listed if item > 0 and categories[item] > 0]
        pairs = list(itertools.combinations(known, 2))
        if pairs:
            assert found[row] == pytest.approx(sum(a != b for a, b in pairs) / len(pairs))
        else:
            assert np.isnan(found[row])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_gini_equals_the_mean_absolute_difference(exposure: list[int]) -> None:
    """G = sum over all ordered pairs of |x_i - x_j| / (2 N^2 mean)."""
    x = np.array(exposure)
    expected = np.abs(x[:, None] - x).sum() / (2 * len(x) * x.sum()) if x.sum() else 0.0
    assert gini(x) == pytest.approx(expected)
    assert coverage(x) == sum(value > 0 for value in exposure) / len(exposure)
