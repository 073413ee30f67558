"""Evolution: whether the lists reach categories that the user has not met.

For one user with the categories H of the *whole* history and the set U of targets,

    T_new   = the targets of U whose category is known and not in H
    cur@n   = ``|R & T_new| / |T_new|``, R the first n items of the list; no value (NaN) where T_new is empty

As everywhere, a target that shares its score with other items ranks behind those of them that are no targets. The
published CUR@N has no known formula; this one has every property known of it.

Axes: B users, T unique targets of all users, E history events of all users (``category_N``: items, row 0 is padding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gemirec.evaluation.metrics import TargetRanks


@dataclass(frozen=True)
class NewTargets:
    """Targets in new categories.

    Attributes:
        targets_B: ``[B]`` int64, size of T_new.
        hits: List length n to ``[B]`` int64, how many of T_new are among the first n.
    """

    targets_B: NDArray[np.int64]
    hits: dict[int, NDArray[np.int64]]

    def recall(self) -> dict[str, NDArray[np.float64]]:
        """Return ``[B]`` ``cur@n``."""
        eligible_B = self.targets_B > 0
        size_B = np.where(eligible_B, self.targets_B, 1)
        return {f"cur@{n}": np.where(eligible_B, hits_B / size_B, np.nan) for n, hits_B in self.hits.items()}


def new_category_recall(
    ranks: TargetRanks,
    seen_E: NDArray[np.int64],
    seen_offset_B1: NDArray[np.int64],
    category_N: NDArray[np.integer[Any]],
    top_n: Sequence[int],
) -> NewTargets:
    """Count the targets in categories that are not in the history, and those of them that are in the lists.

    Args:
        ranks: Where the targets of B users stand.
        seen_E: Whole histories, one user after the other.
        seen_offset_B1: ``[B + 1]`` start of each user's part of ``seen_E``.
        category_N: ``[N + 1]`` category of each item, 0 unknown.
        top_n: List lengths.

    Example:
        >>> from gemirec.evaluation.metrics import rank_targets
        >>> lists, scores = np.array([[1, 2, 3]]), np.array([[3.0, 2.0, 1.0]])
        >>> ranks = rank_targets(lists, scores, np.array([1, 3, 4]), np.array([0, 3]))
        >>> new = new_category_recall(ranks, np.array([2]), np.array([0, 1]), np.array([0, 1, 1, 2, 3]), [2, 3])
        >>> new.targets_B.tolist(), {name: value.tolist() for name, value in new.recall().items()}
        ([2], {'cur@2': [0.0], 'cur@3': [0.5]})
    """
    stride = int(category_N.max(initial=0)) + 1
    user_E = np.repeat(np.arange(ranks.users), np.diff(seen_offset_B1))
    category_T = category_N[ranks.item_T].astype(np.int64)
    met_T = np.isin(ranks.user_T * stride + category_T, user_E * stride + category_N[seen_E])
    new_T = (category_T > 0) & ~met_T
    user_T, rank_T = ranks.user_T[new_T], ranks.rank_T[new_T]
    return NewTargets(
        targets_B=np.bincount(user_T, minlength=ranks.users),
        hits={n: np.bincount(user_T[rank_T < n], minlength=ranks.users) for n in top_n},
    )
