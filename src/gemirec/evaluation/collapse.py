"""Collapse: whether a user's K interests differ, and whether they bring different items.

There is no agreed metric; these look at the same lists from several sides. For one user with the existing interests
q_1 .. q_K (K >= 2), their lists L_k of n items, the merged list R of n items, and ``cos`` the inner product of
L2-normalised vectors (0 for a zero vector):

==================  ===================================================================================================
``amr@n``           mean over i in R of cos(i, q) of the best interest minus that of the second best. AMR-*like*: the
                    formula behind the published AMR@N is not known, so the two must never be compared
``exclusive@n``     share of R that is in exactly one L_k (a diverse R can hold items that are in none)
``list_div@n``      1 - mean over pairs k < l of ``|L_k & L_l| / |L_k | L_l|``
``win_share@n``     largest share of R that one interest won (gave the best score; under a quota, the highest place)
``win_entropy@n``   entropy of the shares won, divided by log K: 1 equal, 0 all by one
``int_cos``         mean over pairs k < l of cos(q_k, q_l)
``effective_rank``  exp of the entropy of s / sum(s), s the singular values of the matrix of normalised interests: K for
                    orthogonal ones, 1 if all are equal
==================  ===================================================================================================

A user with one interest has no value (NaN). All but the last two take ``n`` from the lists of one search; every value
of a user is the same bits whatever users are in the block.

Axes: B users, K interests, D embedding, R places of one interest's list, N places of the merged list, X = K x R
entries of a user, P pairs of entries with the same item.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from gemirec.evaluation.ranking import Ranked

PER_LIST = ("amr", "exclusive", "list_div", "win_share", "win_entropy")
PER_USER = ("int_cos", "effective_rank")
_FETCHED = 2**20
"""Numbers of item vectors held at once."""


def collapse(ranked: Ranked, item_ND: Tensor, norm_N: Tensor, top_n: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Return the ``[B]`` metrics of the module's table for a block, keyed like ``amr@20`` and ``int_cos``.

    Args:
        ranked: The block's lists, with at least ``max(top_n)`` places.
        item_ND: ``[N + 1, D]`` item vectors, on the device of the lists.
        norm_N: ``[N + 1]`` float32 their Euclidean norms.
        top_n: List lengths.
    """
    mask_BK = ranked.interests.mask_BK.cpu().numpy()
    single_B = mask_BK.sum(axis=1) < 2
    names = [f"{name}@{n}" for n in top_n for name in PER_LIST] + [*PER_USER]
    if single_B.all():
        return {name: np.full(len(single_B), np.nan) for name in names}
    merged, longest = ranked.merged.first(max(top_n)), max(top_n)
    unit_BKD = unit_interests(ranked.interests.vector_BKD.detach().float().cpu().numpy(), mask_BK)
    interest_BN, rank_BN = merged.interest_BN.cpu().numpy(), merged.rank_BN.cpu().numpy()
    deepest = max(longest, int(rank_BN.max(initial=0)) + 1)  # diverse lists take items from behind place n
    found = {
        **_margins_of(merged.id_BN, unit_BKD, mask_BK, item_ND, norm_N, top_n),
        **overlaps(ranked.id_BKR[:, :, :deepest].cpu().numpy(), interest_BN, rank_BN, top_n),
        **wins(interest_BN, mask_BK, top_n),
        **spread(unit_BKD, mask_BK),
    }
    return {name: np.where(single_B, np.nan, found[name]) for name in names}


def item_norms(item_ND: Tensor) -> Tensor:
    """Return the ``[N + 1]`` float32 Euclidean norms of item vectors.

    Example:
        >>> item_norms(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).tolist()
        [0.0, 5.0]
    """
    norm_N: Tensor = torch.linalg.vector_norm(item_ND.detach(), dim=1, dtype=torch.float32)
    return norm_N


def unit_interests(vector_BKD: NDArray[np.float32], mask_BK: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return L2-normalised interests; zero where an interest is absent or a zero vector.

    Example:
        >>> unit_interests(np.array([[[3.0, 4.0], [9.0, 9.0]]], dtype=np.float32), np.array([[True, False]])).tolist()
        [[[0.6, 0.8], [0.0, 0.0]]]
    """
    kept_BKD = np.where(mask_BK[:, :, None], vector_BKD, 0.0).astype(np.float64)
    norm_BK = np.sqrt(_sum_last(kept_BKD * kept_BKD))
    return kept_BKD / np.where(norm_BK > 0, norm_BK, 1.0)[:, :, None]


def _margins_of(
    id_BN: Tensor,
    unit_BKD: NDArray[np.float64],
    mask_BK: NDArray[np.bool_],
    item_ND: Tensor,
    norm_N: Tensor,
    top_n: Sequence[int],
) -> dict[str, NDArray[np.float64]]:
    """Return :func:`margins` of listed items, whose vectors are fetched for a few users at a time."""
    step = max(1, _FETCHED // (id_BN.shape[1] * item_ND.shape[1]))
    parts = []
    for first in range(0, len(id_BN), step):
        rows = slice(first, first + step)
        row_RN = id_BN[rows].clamp_min(0)
        vector_XD = item_ND.detach().index_select(0, row_RN.flatten())
        vector_RND = vector_XD.float().cpu().numpy().reshape(*row_RN.shape, -1)
        present_RN, norm_RN = (id_BN[rows] > 0).cpu().numpy(), norm_N[row_RN].cpu().numpy()
        parts.append(margins(unit_BKD[rows], mask_BK[rows], vector_RND, norm_RN, present_RN, top_n))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def margins(
    unit_BKD: NDArray[np.float64],
    mask_BK: NDArray[np.bool_],
    vector_BND: NDArray[np.float32],
    norm_BN: NDArray[np.float32],
    present_BN: NDArray[np.bool_],
    top_n: Sequence[int],
) -> dict[str, NDArray[np.float64]]:
    """Return ``amr@n``: the mean distance, in cosine, between the best and the second-best interest of an item.

    Args:
        unit_BKD: ``[B, K, D]`` normalised interests.
        mask_BK: ``[B, K]`` which exist; at least two of a user that shall have a value.
        vector_BND: ``[B, N, D]`` vectors of the merged lists' items.
        norm_BN: ``[B, N]`` their norms.
        present_BN: ``[B, N]`` false at missing places.
        top_n: List lengths.

    Example:
        >>> user, item = np.eye(2)[None], np.array([[[0.6, 0.8]]], dtype=np.float32)
        >>> found = margins(user, np.ones((1, 2), bool), item, np.ones((1, 1), np.float32), np.ones((1, 1), bool), [1])
        >>> found["amr@1"].round(6).tolist()
        [0.2]
    """
    # NumPy multiplies a stack matrix by matrix, so that a user's bits do not depend on the others.
    score_BKN = np.matmul(unit_BKD.astype(np.float32), vector_BND.transpose(0, 2, 1))
    score_BKN[~mask_BK] = -np.inf
    best_BN = np.full(norm_BN.shape, -np.inf, dtype=np.float32)
    second_BN = best_BN
    for k in range(score_BKN.shape[1]):
        second_BN = np.maximum(second_BN, np.minimum(best_BN, score_BKN[:, k]))
        best_BN = np.maximum(best_BN, score_BKN[:, k])
    valid_BN = present_BN & (norm_BN > 0) & np.isfinite(second_BN)
    margin_BN = np.zeros(norm_BN.shape)
    np.subtract(best_BN, second_BN, out=margin_BN, where=valid_BN)
    np.divide(margin_BN, norm_BN, out=margin_BN, where=valid_BN)
    total_BN, size_BN = np.cumsum(margin_BN, axis=1), np.cumsum(present_BN, axis=1, dtype=np.int64)
    return {f"amr@{n}": _share(total_BN[:, n - 1], size_BN[:, n - 1]) for n in top_n}


def overlaps(
    id_BKR: NDArray[np.int64], interest_BN: NDArray[np.int64], rank_BN: NDArray[np.int64], top_n: Sequence[int]
) -> dict[str, NDArray[np.float64]]:
    """Return ``exclusive@n`` and ``list_div@n``.

    Args:
        id_BKR: ``[B, K, R]`` lists, unique in a row, missing places (below 1) at the end; all missing: absent interest.
        interest_BN: ``[B, N]`` interest that won each item of the merged list, -1 missing.
        rank_BN: ``[B, N]`` place of the item in the winner's list, below R.
        top_n: List lengths, none above R and N.

    Example:
        >>> lists = np.array([[[1, 2], [3, 1]]])
        >>> found = overlaps(lists, np.array([[0, 1]]), np.array([[0, 0]]), [1, 2])
        >>> found["exclusive@2"].tolist(), found["list_div@2"].round(3).tolist()
        ([0.5], [0.667])
    """
    users, interests, places = id_BKR.shape
    all_ = interests * places
    row_P, first_P, other_P = _same_item(id_BKR.reshape(users, -1))
    deepest_P = np.maximum(first_P % places, other_P % places)
    pair_P = (row_P * interests + first_P // places) * interests + other_P // places
    size_BK = (id_BKR > 0).sum(axis=2)
    exists_BK = size_BK > 0
    left, right = np.triu_indices(interests, k=1)
    both_BC = exists_BK[:, left] & exists_BK[:, right]
    present_BN = interest_BN >= 0
    entry_BN = np.where(present_BN, interest_BN * places + rank_BN, 0)
    out = {}
    for n in top_n:
        inside_P = deepest_P < n
        shared_BKK = np.bincount(pair_P[inside_P], minlength=users * interests**2).reshape(users, interests, interests)
        size = np.minimum(size_BK, n)
        common_BC = shared_BKK[:, left, right]
        jaccard_BC = common_BC / np.maximum(size[:, left] + size[:, right] - common_BC, 1)
        out[f"list_div@{n}"] = 1.0 - _share(_sum_last(jaccard_BC * both_BC), both_BC.sum(axis=1))
        # in how many lists the item of an entry is: its own, and those of its pairs
        within_P, beside_P = other_P % places < n, first_P % places < n
        entry_Q = np.concatenate([(row_P * all_ + first_P)[within_P], (row_P * all_ + other_P)[beside_P]])
        others_BX = np.bincount(entry_Q, minlength=users * all_).reshape(users, all_)
        lists_BN = (rank_BN[:, :n] < n) + np.take_along_axis(others_BX, entry_BN[:, :n], axis=1)
        alone_BN = present_BN[:, :n] & (lists_BN == 1)
        out[f"exclusive@{n}"] = _share(alone_BN.sum(axis=1), present_BN[:, :n].sum(axis=1))
    return out


def _same_item(id_BX: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return every pair of a user's entries that hold the same item: row, lower and higher entry number."""
    entries = id_BX.shape[1]
    bits = max(1, (entries - 1).bit_length())
    key_BX = np.sort((id_BX << bits) | np.arange(entries), axis=1)
    item_BX, entry_BX = key_BX >> bits, key_BX & ((1 << bits) - 1)
    parts = []
    for shift in range(1, entries):
        same_BY = (item_BX[:, shift:] == item_BX[:, :-shift]) & (item_BX[:, shift:] > 0)
        row_P, column_P = np.nonzero(same_BY)
        if len(row_P) == 0:
            break  # no item has more than ``shift`` entries
        parts.append((row_P, entry_BX[row_P, column_P], entry_BX[row_P, column_P + shift]))
    if not parts:
        parts = [(np.empty(0, dtype=np.int64),) * 3]
    row_P, first_P, other_P = (np.concatenate(column) for column in zip(*parts, strict=True))
    return row_P, first_P, other_P


def wins(
    interest_BN: NDArray[np.int64], mask_BK: NDArray[np.bool_], top_n: Sequence[int]
) -> dict[str, NDArray[np.float64]]:
    """Return ``win_share@n`` and ``win_entropy@n``.

    Args:
        interest_BN: ``[B, N]`` interest that won each item of the merged list, -1 missing.
        mask_BK: ``[B, K]`` which interests exist.
        top_n: List lengths.

    Example:
        >>> wins(np.array([[0, 1, 0, -1]]), np.ones((1, 2), bool), [4])["win_share@4"].round(3).tolist()
        [0.667]
    """
    users, interests = mask_BK.shape
    scale_B = np.log(np.maximum(mask_BK.sum(axis=1), 2))
    out = {}
    for n in top_n:
        row_W, place_W = np.nonzero(interest_BN[:, :n] >= 0)
        won_BK = np.bincount(row_W * interests + interest_BN[row_W, place_W], minlength=users * interests)
        won_BK = won_BK.reshape(users, interests)
        size_B = won_BK.sum(axis=1)
        share_BK = won_BK / np.maximum(size_B, 1)[:, None]
        out[f"win_share@{n}"] = _share(won_BK.max(axis=1), size_B)
        out[f"win_entropy@{n}"] = np.where(size_B > 0, _entropy(share_BK) / scale_B, np.nan)
    return out


def spread(unit_BKD: NDArray[np.float64], mask_BK: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """Return ``int_cos`` and ``effective_rank`` (Roy and Vetterli, EUSIPCO 2007) of normalised interests.

    Args:
        unit_BKD: ``[B, K, D]`` as :func:`unit_interests` gives them.
        mask_BK: ``[B, K]`` which exist.

    Example:
        >>> found = spread(np.eye(3)[None], np.ones((1, 3), bool))
        >>> found["int_cos"].tolist(), found["effective_rank"].round(6).tolist()
        ([0.0], [3.0])
    """
    gram_BKK = np.matmul(unit_BKD, unit_BKD.transpose(0, 2, 1))
    left, right = np.triu_indices(unit_BKD.shape[1], k=1)
    pairs_B = (mask_BK[:, left] & mask_BK[:, right]).sum(axis=1)
    # The eigenvalues of the Gram matrix are the squares of the singular values; absent interests add zeros.
    singular_BK = np.sqrt(np.maximum(np.linalg.eigvalsh(gram_BKK), 0.0))
    sum_B = _sum_last(singular_BK)
    share_BK = singular_BK / np.where(sum_B > 0, sum_B, 1.0)[:, None]
    return {
        "int_cos": _share(_sum_last(gram_BKK[:, left, right]), pairs_B),
        "effective_rank": np.where(sum_B > 0, np.exp(_entropy(share_BK)), np.nan),
    }


def _entropy(share_BK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of each row, in nats."""
    entropy_B: NDArray[np.float64] = 0.0 - _sum_last(share_BK * np.log(np.where(share_BK > 0, share_BK, 1.0)))
    return entropy_B


def _share(part_B: NDArray[Any], whole_B: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return ``part / whole``, NaN where the whole is 0."""
    share_B: NDArray[np.float64] = np.full(len(whole_B), np.nan)
    np.divide(part_B, whole_B, out=share_B, where=whole_B > 0)
    return share_B


def _sum_last(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum the last axis from left to right, in an order that does not depend on the other axes."""
    if value.shape[-1] == 0:
        return np.zeros(value.shape[:-1])
    total: NDArray[np.float64] = np.cumsum(value, axis=-1)[..., -1]
    return total
