"""Every accuracy and catalogue metric, from one merged list per user and the held-out targets.

Targets are a *set*: a repeated target counts once, in the numerator and in the denominator. Published code divides by
the raw number of targets while hits are unique, so that users who repeat cannot reach 1; that variant is
``recall_raw``.

With R the first n items of a user's list, G the targets in time order with repeats, U the set of them, h = ``|U & R|``
and ``gain(p) = 1 / log2(p + 2)`` for a place p counted from 0:

==================  ===================================================================================================
``recall@n``        h / ``|U|``
``recall_raw@n``    h / ``|G|`` (ComiRec, REMI, SimRec)
``hr@n``            1 if h > 0, else 0
``precision@n``     h / n, also where the list is shorter than n
``mrr@n``           1 / (1 + place of the first hit), 0 without hit
``ndcg@n``          sum of gain(place in R) over hits, divided by its largest value, that of min(n, ``|U|``) hits at the
                    head of the list (textbook)
``ndcg_hits@n``     the same sum divided by gain(0) + ... + gain(h - 1): the order of the hits only (ComiRec's master
                    branch, SimRec)
``ndcg_position@n``  sum of gain(place in G) over the entries of G that are in R, divided by gain(0) + ... for as many
                    entries (ComiRec's paper branch, Re4, CauseRec); says nothing of the list's order
``diversity@n``     share of unordered pairs of R with different categories; pairs with an unknown category do not count
``coverage@n``      share of the catalogue that is in any R
``gini@n``          Gini coefficient of how often each item of the catalogue is in an R: 0 equal, near 1 concentrated
==================  ===================================================================================================

Equal scores never help: where a target shares its score with other items, it is ranked behind those of them that are
not targets (:func:`rank_targets`).

Axes: B users, F places of the list (at least the largest n), E targets with repeats, T unique targets of a user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gemirec.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MISS = np.iinfo(np.int64).max
"""Rank of a target that is not in the list."""


@dataclass(frozen=True)
class TargetRanks:
    """Where the targets of B users stand in their lists; ranks count from 0, :data:`MISS` is not in the list.

    Attributes:
        users: B.
        user_T: ``[T]`` row of each unique target, ascending.
        item_T: ``[T]`` the unique target itself.
        rank_T: ``[T]`` rank of each unique target.
        user_E: ``[E]`` row of each target, repeats kept, ascending.
        place_E: ``[E]`` place of each target in its user's sequence of targets, from 0.
        rank_E: ``[E]`` rank of each target, repeats kept.
    """

    users: int
    user_T: NDArray[np.int64]
    item_T: NDArray[np.int64]
    rank_T: NDArray[np.int64]
    user_E: NDArray[np.int64]
    place_E: NDArray[np.int64]
    rank_E: NDArray[np.int64]


def rank_targets(
    id_BF: NDArray[np.int64],
    score_BF: NDArray[np.floating[Any]],
    target_E: NDArray[np.int64],
    target_offset_B1: NDArray[np.int64],
    *,
    complete: bool = False,
) -> TargetRanks:
    """Find every target in its user's list, breaking ties against the targets.

    Among items of equal score, wherever they stand, those that are not targets take the first of their places. Where
    the end of the list cuts such a group in two, others of the group are out of sight: its targets count as missed.
    Give a few places more than the largest n, so that this happens only to large groups.

    Args:
        id_BF: ``[B, F]`` item ids, unique in a row; below 1 is missing.
        score_BF: ``[B, F]`` scores; descending, unless the merge orders otherwise.
        target_E: ``[E]`` held-out items of row after row, in time order.
        target_offset_B1: ``[B + 1]`` start of each row's part of ``target_E``.
        complete: The lists hold every item there is: no group is cut.

    Raises:
        DataError: A row has no target.

    Example:
        >>> ids, scores = np.array([[4, 7, 9]]), np.array([[3.0, 2.0, 2.0]])
        >>> rank_targets(ids, scores, np.array([7, 1]), np.array([0, 2]), complete=True).rank_E.tolist()[:1]
        [2]
    """
    users = len(id_BF)
    size_B = np.diff(target_offset_B1)
    if len(size_B) != users or (size_B < 1).any():
        raise DataError("a user has no target", got=f"{int((size_B < 1).sum())} users", fix="rank users with targets")
    user_E = np.repeat(np.arange(users), size_B)
    stride = int(max(target_E.max(initial=0), id_BF.max(initial=0))) + 1
    key_T, inverse_E = np.unique(user_E * stride + target_E, return_inverse=True)
    key_BF = np.where(id_BF > 0, np.arange(users)[:, None] * stride + id_BF, -1)
    found_BF = np.minimum(np.searchsorted(key_T, key_BF), len(key_T) - 1) if len(key_T) else np.zeros_like(key_BF)
    hit_BF = key_T[found_BF] == key_BF if len(key_T) else np.zeros(key_BF.shape, dtype=np.bool_)
    rank_BF = _against_targets(id_BF, score_BF, hit_BF, complete)
    rank_T = np.full(len(key_T), MISS)
    rank_T[found_BF[hit_BF]] = rank_BF[hit_BF]
    return TargetRanks(
        users=users,
        user_T=key_T // stride,
        item_T=key_T % stride,
        rank_T=rank_T,
        user_E=user_E,
        place_E=np.arange(len(target_E)) - target_offset_B1[:-1][user_E],
        rank_E=rank_T[inverse_E.reshape(-1)],
    )


def _against_targets(
    id_BF: NDArray[np.int64], score_BF: NDArray[np.floating[Any]], hit_BF: NDArray[np.bool_], complete: bool
) -> NDArray[np.int64]:
    """Return the rank of every place once hits are moved behind the other items of their score."""
    places = id_BF.shape[1]
    rank_BF = np.tile(np.arange(places), (len(id_BF), 1))
    order_BF = np.argsort(np.where(id_BF > 0, -score_BF, np.inf), axis=1, kind="stable")  # brings equal ones together
    sorted_BF = np.take_along_axis(score_BF, order_BF, axis=1)
    tie_BF = np.zeros(id_BF.shape, dtype=np.bool_)  # tied with the one before
    tie_BF[:, 1:] = (sorted_BF[:, 1:] == sorted_BF[:, :-1]) & (np.take_along_axis(id_BF, order_BF, axis=1)[:, 1:] > 0)
    touched = tie_BF | np.pad(tie_BF[:, 1:], ((0, 0), (0, 1)))
    sorted_hit_BF = np.take_along_axis(hit_BF, order_BF, axis=1)
    rows = np.flatnonzero((touched & sorted_hit_BF).any(axis=1))
    if len(rows) == 0:
        return rank_BF
    place_RF, hit_RF = order_BF[rows], sorted_hit_BF[rows]
    start_RF = np.maximum.accumulate(np.where(tie_BF[rows], 0, np.arange(places)), axis=1)
    member_RF = np.argsort(2 * start_RF + hit_RF, axis=1, kind="stable")
    rank_RF = np.empty_like(place_RF)
    np.put_along_axis(rank_RF, np.take_along_axis(place_RF, member_RF, axis=1), place_RF, axis=1)
    if not complete:
        full_R = id_BF[rows, -1] > 0
        last_R1 = start_RF[place_RF == places - 1][:, None]  # the group that the list's end cuts
        cut_RF = touched[rows] & (start_RF == last_R1) & full_R[:, None] & hit_RF
        row_C, column_C = np.nonzero(cut_RF)
        rank_RF[row_C, place_RF[row_C, column_C]] = MISS
    rank_BF[rows] = rank_RF
    return rank_BF


def accuracy(ranks: TargetRanks, top_n: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Return the ``[B]`` accuracy metrics of the module's table, keyed like ``recall@20``.

    Example:
        >>> ids, scores = np.array([[4, 7, 9]]), np.array([[3.0, 2.0, 1.0]])
        >>> found = accuracy(rank_targets(ids, scores, np.array([7, 1]), np.array([0, 2])), [2])
        >>> float(found["recall@2"][0]), float(found["mrr@2"][0])
        (0.5, 0.5)
    """
    size_B = np.bincount(ranks.user_T, minlength=ranks.users)
    raw_B = np.bincount(ranks.user_E, minlength=ranks.users)
    ideal = np.concatenate([[0.0], np.cumsum(_gain(np.arange(max(*top_n, int(raw_B.max(initial=1)), 1))))])
    first_B = np.full(ranks.users, MISS)
    np.minimum.at(first_B, ranks.user_T, ranks.rank_T)
    out = {}
    for n in top_n:
        hit_T = ranks.rank_T < n
        hits_B = np.bincount(ranks.user_T[hit_T], minlength=ranks.users)
        dcg_B = np.bincount(ranks.user_T[hit_T], _gain(ranks.rank_T[hit_T]), ranks.users)
        hit_E = ranks.rank_E < n
        entries_B = np.bincount(ranks.user_E[hit_E], minlength=ranks.users)
        position_B = np.bincount(ranks.user_E[hit_E], _gain(ranks.place_E[hit_E]), ranks.users)
        out[f"recall@{n}"] = hits_B / size_B
        out[f"recall_raw@{n}"] = hits_B / raw_B
        out[f"hr@{n}"] = (hits_B > 0).astype(np.float64)
        out[f"ndcg@{n}"] = dcg_B / ideal[np.minimum(n, size_B)]
        out[f"ndcg_hits@{n}"] = dcg_B / ideal[np.maximum(hits_B, 1)]
        out[f"ndcg_position@{n}"] = position_B / ideal[np.maximum(entries_B, 1)]
        out[f"mrr@{n}"] = np.where(first_B < n, 1.0 / (np.minimum(first_B, n) + 1.0), 0.0)
        out[f"precision@{n}"] = hits_B / n
    return out


def _gain(place: NDArray[np.int64]) -> NDArray[np.float64]:
    gain: NDArray[np.float64] = 1.0 / np.log2(place + 2.0)
    return gain


def category_diversity(id_BN: NDArray[np.int64], category_N: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return ``[B]`` the share of unordered pairs of a list with different categories; NaN with fewer than two known.

    Args:
        id_BN: ``[B, n]`` item ids, below 1 is missing.
        category_N: ``[N + 1]`` category of each item, 0 unknown.

    Example:
        >>> category_diversity(np.array([[1, 2, 3, -1]]), np.array([0, 5, 5, 6])).round(3).tolist()
        [0.667]
    """
    code_BN = np.sort(np.where(id_BN > 0, category_N[np.maximum(id_BN, 0)], 0), axis=1)
    known_B = (code_BN > 0).sum(axis=1).astype(np.float64)
    place_N = np.arange(code_BN.shape[1])
    fresh_BN = np.ones(code_BN.shape, dtype=np.bool_)
    fresh_BN[:, 1:] = code_BN[:, 1:] != code_BN[:, :-1]
    before_BN = place_N - np.maximum.accumulate(np.where(fresh_BN, place_N, 0), axis=1)  # equal ones in front of it
    same_B = (before_BN * (code_BN > 0)).sum(axis=1)
    pairs_B = known_B * (known_B - 1) / 2
    share_B: NDArray[np.float64] = np.full(len(pairs_B), np.nan)
    np.divide(pairs_B - same_B, pairs_B, out=share_B, where=pairs_B > 0)
    return share_B


def coverage(exposure_N: NDArray[np.int64]) -> float:
    """Return the share of items that are in any list; ``exposure_N`` counts lists per item, without padding.

    Example:
        >>> coverage(np.array([3, 0, 1, 0]))
        0.5
    """
    return float(np.count_nonzero(exposure_N) / len(exposure_N))


def gini(exposure_N: NDArray[np.int64]) -> float:
    """Return the Gini coefficient of item exposure, items without exposure included; 0 if nothing was shown.

    ``G = sum_i (2 i - N - 1) x_i / (N sum_i x_i)`` with x ascending and i from 1.

    Example:
        >>> gini(np.array([1, 1, 1, 1])), gini(np.array([0, 0, 0, 4]))
        (0.0, 0.75)
    """
    total = float(exposure_N.sum())
    if total == 0:
        return 0.0
    size = len(exposure_N)
    weight_N = 2.0 * np.arange(1, size + 1) - size - 1
    return float((weight_N * np.sort(exposure_N)).sum() / (size * total))
