"""From interests to items: the one path that evaluation, recommendation and the server share.

Axes: B users, K interests, D embedding, R places of one interest's list, N places of the merged list, E seen items,
I items of the catalogue (entry 0 is padding).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gemirec.config import MergeConfig
from gemirec.errors import ConfigError, DataError
from gemirec.retrieval.merge import Merged, diversify, equal_quota, shared_quota
from gemirec.retrieval.merge import merge as merge_lists

if TYPE_CHECKING:
    from torch import Tensor

    from gemirec.models.base import Interests
    from gemirec.retrieval.index import ItemIndex


def retrieve(
    interests: Interests,
    index: ItemIndex,
    n: int,
    *,
    seen_E: Tensor | None = None,
    seen_offset_B1: Tensor | None = None,
    allow_ids: Tensor | None = None,
    merge: MergeConfig | None = None,
    category_I: Tensor | None = None,
    item_chunk: int = 2**20,
) -> Merged:
    """Return each user's ``n`` best items over all interests.

    Every existing interest is searched for ``n`` items (:func:`searched`), so that the merged list is exact; ``n``
    items leave, whatever K.

    Args:
        interests: What the model says of B users.
        index: Where the items are searched.
        n: Items per user, in all.
        seen_E: Item ids that a user must not get, one user after the other.
        seen_offset_B1: ``[B + 1]`` int64, start of each user's part of ``seen_E``.
        allow_ids: The only items that may be returned; ``None`` for all. To use one selection often, give
            ``index.restrict(allow_ids)`` as the index instead.
        merge: How the lists are merged; ``None`` takes each item's best score.
        category_I: ``[I]`` integer category of every item, 0 for none; ``diverse`` needs it.
        item_chunk: Most items scored at once.

    Raises:
        DataError: An interest vector that exists is not finite.
        ConfigError: The merge needs categories or weights that are not there, or names too many interests.

    Example:
        >>> from gemirec.models.base import Interests
        >>> from gemirec.retrieval.index import ExactIndex
        >>> index = ExactIndex(torch.tensor([[0.0, 0], [3, 0], [0, 2], [1, 1]]))
        >>> two = Interests(torch.eye(2)[None], torch.ones(1, 2, dtype=torch.bool))
        >>> merged = retrieve(two, index, 2)
        >>> merged.id_BN.tolist(), merged.interest_BN.tolist()
        ([[1, 2]], [[0, 1]])
        >>> retrieve(two, index, 1, merge=MergeConfig(kind="quota", quota=(0, 1))).id_BN.tolist()
        [[2]]
    """
    how = merge or MergeConfig()
    id_BKR, score_BKR = retrieve_lists(
        interests,
        index if allow_ids is None else index.restrict(allow_ids),
        searched(how, n),
        seen_E=seen_E,
        seen_offset_B1=seen_offset_B1,
        item_chunk=item_chunk,
    )
    return merged_as(how, interests, id_BKR, score_BKR, n, category_I)


def searched(how: MergeConfig, n: int) -> int:
    """Return how many items of each interest a merged list of ``n`` is made of.

    Example:
        >>> searched(MergeConfig(), 50), searched(MergeConfig(kind="diverse", pool=4), 50)
        (50, 200)
    """
    return n * how.pool if how.kind == "diverse" else n


def merged_as(
    how: MergeConfig,
    interests: Interests,
    id_BKR: Tensor,
    score_BKR: Tensor,
    n: int,
    category_I: Tensor | None = None,
    best: Merged | None = None,
) -> Merged:
    """Merge the lists of interests as they are merged at serving.

    Args:
        how: How.
        interests: The interests of B users.
        id_BKR: ``[B, K, R]`` their lists, best first; what lies behind :func:`searched` places is not read.
        score_BKR: ``[B, K, R]`` scores.
        n: Length of the merged lists.
        category_I: ``[I]`` category of every item, for ``diverse``.
        best: The lists merged by best score, if at hand, with as many places as are searched.

    Raises:
        ConfigError: The merge needs categories or weights that are not there, or names too many interests.
    """
    places, mask_BK = searched(how, n), interests.mask_BK.to(id_BKR.device)
    id_BKR, score_BKR = id_BKR[:, :, :places], score_BKR[:, :, :places]
    if how.kind == "quota":
        quota_BK = _quota(how, interests, n).to(id_BKR.device)
        return merge_lists(id_BKR, score_BKR, n, mask_BK=mask_BK, kind="quota", quota_BK=quota_BK)
    if how.kind == "weighted":
        weight_BK = needed_weights(interests, "a weighted merge", "max").to(id_BKR.device)
        return merge_lists(id_BKR, score_BKR, n, mask_BK=mask_BK, kind="weighted", weight_BK=weight_BK)
    best = best.first(places) if best is not None else merge_lists(id_BKR, score_BKR, places, mask_BK=mask_BK)
    if how.kind == "max":
        return best
    check_categories(how, category_I)
    assert category_I is not None
    return diversify(best, n, category_I, how.diversity)


def check_categories(how: MergeConfig, categories: object) -> None:
    """Raise if diverse lists are asked for and ``categories`` is ``None``.

    Raises:
        ConfigError: There are no categories.
    """
    if how.kind == "diverse" and categories is None:
        raise ConfigError(
            "diverse lists need the items' categories, and the data have none",
            got=f"merge.kind {how.kind}",
            fix="prepare the log with an item table that has a category column, or choose max or quota",
        )


def needed_weights(interests: Interests, what: str, instead: str) -> Tensor:
    """Return the weights ``[B, K]`` that a model gives its interests.

    Args:
        interests: What the model says.
        what: What needs them, for the error.
        instead: What works without them, for the error.

    Raises:
        ConfigError: The model gives none.
    """
    if interests.weight_BK is None:
        raise ConfigError(
            f"{what} needs a model that weighs its interests",
            got="a model without weights",
            fix=f"choose {instead}, or a model with weights: gemirec, mima, composed with calibrated",
        )
    return interests.weight_BK


def _quota(how: MergeConfig, interests: Interests, n: int) -> Tensor:
    """Return ``[B, K]`` the places of each interest."""
    mask_BK = interests.mask_BK
    if how.quota == "equal":
        return equal_quota(n, mask_BK)
    if how.quota == "weight":
        return shared_quota(n, needed_weights(interests, "a quota by weight", "quota equal or shares"), mask_BK)
    count = mask_BK.shape[1]
    if len(how.quota) > count:
        raise ConfigError(
            "a quota names more interests than the model has",
            got=f"{len(how.quota)} shares, {count} interests",
            fix=f"give at most {count} shares, or choose quota equal",
        )
    share_K = torch.tensor([*how.quota, *[0.0] * (count - len(how.quota))], device=mask_BK.device)
    return shared_quota(n, share_K.expand(mask_BK.shape), mask_BK)


def retrieve_lists(
    interests: Interests,
    index: ItemIndex,
    n: int,
    *,
    seen_E: Tensor | None = None,
    seen_offset_B1: Tensor | None = None,
    item_chunk: int = 2**20,
) -> tuple[Tensor, Tensor]:
    """Return the ``n`` best items of each interest apart; arguments as in :func:`retrieve`.

    Returns:
        ``([B, K, n] int64 ids, [B, K, n] float32 scores)``, -1 and -inf for missing places and absent interests.
    """
    users, count, _ = interests.vector_BKD.shape
    row_Q = interests.mask_BK.reshape(-1).nonzero()[:, 0]  # absent interests are not searched
    query_QD = interests.vector_BKD.detach().flatten(0, 1)[row_Q]
    if not bool(torch.isfinite(query_QD).all()):
        bad_Q = ~torch.isfinite(query_QD).all(dim=1)
        raise DataError(
            "interest vectors must be finite",
            got=f"{int(bad_Q.sum())} of {len(bad_Q)} vectors, the first in row {int(row_Q[bad_Q][0]) // count}",
            fix="look for a training that diverged, or for a history the model cannot read",
        )
    exclude_E, exclude_offset_Q1 = None, None
    if seen_E is not None and seen_offset_B1 is not None:
        exclude_E, exclude_offset_Q1 = _repeat_ragged(seen_E, seen_offset_B1, row_Q.to(seen_E.device) // count)
    id_QR, score_QR = index.search(
        query_QD, n, exclude_E=exclude_E, exclude_offset_Q1=exclude_offset_Q1, item_chunk=item_chunk
    )
    if len(row_Q) == users * count:
        return id_QR.view(users, count, n), score_QR.view(users, count, n)
    row_Q = row_Q.to(id_QR.device)
    id_XR = id_QR.new_full((users * count, n), -1).index_copy_(0, row_Q, id_QR)
    score_XR = score_QR.new_full((users * count, n), float("-inf")).index_copy_(0, row_Q, score_QR)
    return id_XR.view(users, count, n), score_XR.view(users, count, n)


def _repeat_ragged(value_E: Tensor, offset_B1: Tensor, row_Q: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ragged rows ``row_Q`` of a ragged array, one after the other: ``(values, [Q + 1] offsets)``."""
    size_Q = (offset_B1[1:] - offset_B1[:-1])[row_Q]
    out_Q1 = torch.cat([size_Q.new_zeros(1), torch.cumsum(size_Q, 0)])
    shift_X = torch.repeat_interleave(offset_B1[:-1][row_Q] - out_Q1[:-1], size_Q)
    return value_E[torch.arange(len(shift_X), device=value_E.device) + shift_X], out_Q1
