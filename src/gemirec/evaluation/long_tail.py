"""Long tail: recall apart for popular, middling and rare items.

Items are ordered by their training events (ties by number) and cut into three groups that carry a third of the events
each: few popular items (``head``), more of middling popularity (``middle``), and the many rare ones (``tail``), which
take the items without any training event. For one user with the targets T_g of group g,

    recall_g@n = ``|R & T_g| / |T_g|``, R the first n items of the list; no value (NaN) where T_g is empty

SimRec's release reports recall by such groups too, cut by its own shares. Axes: B users, T unique targets of all users
(``group_N``: items, row 0 is padding).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gemirec.evaluation.metrics import TargetRanks

GROUPS = ("head", "middle", "tail")


def popularity_groups(train_count_N: NDArray[np.integer[Any]]) -> NDArray[np.int8]:
    """Return the group ``[N + 1]`` of each item: 0 head, 1 middle, 2 tail; -1 for padding.

    An item belongs to the third of the events in which its first event lies.

    Args:
        train_count_N: ``[N + 1]`` training events per item; entry 0 is padding.

    Example:
        >>> popularity_groups(np.array([0, 1, 6, 2, 3, 0])).tolist()
        [-1, 2, 0, 2, 1, 2]
    """
    count_N = train_count_N[1:].astype(np.int64)
    order_N = np.argsort(-count_N, kind="stable")
    before_N = np.concatenate([[0], np.cumsum(count_N[order_N])[:-1]]) if len(count_N) else count_N
    group_N = np.full(len(train_count_N), -1, dtype=np.int8)
    third = np.minimum(before_N * len(GROUPS) // max(1, int(count_N.sum())), len(GROUPS) - 1)
    group_N[1 + order_N] = np.where(count_N[order_N] > 0, third, len(GROUPS) - 1)
    return group_N


def group_recall(ranks: TargetRanks, group_N: NDArray[np.int8], top_n: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Return ``[B]`` ``recall_head@n``, ``recall_middle@n`` and ``recall_tail@n``.

    Args:
        ranks: Where the targets of B users stand.
        group_N: From :func:`popularity_groups`.
        top_n: List lengths.

    Example:
        >>> from gemirec.evaluation.metrics import rank_targets
        >>> lists, scores = np.array([[1, 2, 3]]), np.array([[3.0, 2.0, 1.0]])
        >>> ranks = rank_targets(lists, scores, np.array([1, 3, 4]), np.array([0, 3]))
        >>> found = group_recall(ranks, np.array([-1, 0, 0, 2, 2], dtype=np.int8), [3])
        >>> {name: value.tolist() for name, value in found.items()}
        {'recall_head@3': [1.0], 'recall_middle@3': [nan], 'recall_tail@3': [0.5]}
    """
    group_T = group_N[ranks.item_T]
    out = {}
    for n in top_n:
        for number, name in enumerate(GROUPS):
            mine_T = group_T == number
            size_B = np.bincount(ranks.user_T[mine_T], minlength=ranks.users)
            hits_B = np.bincount(ranks.user_T[mine_T & (ranks.rank_T < n)], minlength=ranks.users)
            out[f"recall_{name}@{n}"] = np.where(size_B > 0, hits_B / np.maximum(size_B, 1), np.nan)
    return out
