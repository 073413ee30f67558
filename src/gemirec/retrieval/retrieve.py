"""From interests to items: the one path that evaluation, recommendation and the server share.

Axes: B users, K interests, D embedding, R places of one interest's list, N places of the merged list, E seen items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gemirec.errors import DataError
from gemirec.retrieval.merge import Merged, MergeKind, merge

if TYPE_CHECKING:
    from torch import Tensor

    from gemirec.models.base import Interests
    from gemirec.retrieval.index import ExactIndex


def retrieve(
    interests: Interests,
    index: ExactIndex,
    n: int,
    *,
    seen_E: Tensor | None = None,
    seen_offset_B1: Tensor | None = None,
    allow_ids: Tensor | None = None,
    kind: MergeKind = "max",
    item_chunk: int = 2**20,
) -> Merged:
    """Return each user's ``n`` best items over all interests.

    Every existing interest is searched for ``n`` items, so that the merged list is exact; ``n`` items
    leave, whatever K.

    Args:
        interests: What the model says of B users.
        index: Where the items are searched.
        n: Items per user, in all.
        seen_E: Item ids that a user must not get, one user after the other.
        seen_offset_B1: ``[B + 1]`` int64, start of each user's part of ``seen_E``.
        allow_ids: The only items that may be returned; ``None`` for all. To use one selection often, give
            ``index.restrict(allow_ids)`` as the index instead.
        kind: How the lists are merged.
        item_chunk: Most items scored at once.

    Raises:
        DataError: An interest vector that exists is not finite.

    Example:
        >>> from gemirec.models.base import Interests
        >>> from gemirec.retrieval.index import ExactIndex
        >>> index = ExactIndex(torch.tensor([[0.0, 0], [3, 0], [0, 2], [1, 1]]))
        >>> two = Interests(torch.eye(2)[None], torch.ones(1, 2, dtype=torch.bool))
        >>> merged = retrieve(two, index, 2)
        >>> merged.id_BN.tolist(), merged.interest_BN.tolist()
        ([[1, 2]], [[0, 1]])
    """
    id_BKR, score_BKR = retrieve_lists(
        interests,
        index if allow_ids is None else index.restrict(allow_ids),
        n,
        seen_E=seen_E,
        seen_offset_B1=seen_offset_B1,
        item_chunk=item_chunk,
    )
    return merge(id_BKR, score_BKR, n, mask_BK=interests.mask_BK.to(id_BKR.device), kind=kind)


def retrieve_lists(
    interests: Interests,
    index: ExactIndex,
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
