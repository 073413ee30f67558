"""The exact index: item vectors, searched whole.

Axes: Q queries, N items (row 0 is padding), D embedding, K list length, E excluded pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gemirec.errors import DataError
from gemirec.retrieval.topk import exact_topk, largest_norm

if TYPE_CHECKING:
    from torch import Tensor


class ExactIndex:
    """Exact inner-product search over item vectors, on the device where they lie.

    Args:
        item_ND: ``[N + 1, D]`` float32 item vectors as a model gives them: row i is item i, row 0 is padding and is
            never returned. The tensor is kept, not copied.

    Raises:
        DataError: A value is not finite.

    Example:
        >>> index = ExactIndex(torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]]))
        >>> index.search(torch.tensor([[1.0, 0.5]]), 3)[0].tolist()
        [[1, 2, -1]]
    """

    def __init__(self, item_ND: Tensor) -> None:
        vector_ND = item_ND.detach().to(torch.float32)
        self._vector_ND = vector_ND[1:].contiguous()
        self._id_N: Tensor | None = None
        self._size = len(vector_ND)
        self._max_norm = largest_norm(self._vector_ND)
        if not self._max_norm < float("inf"):
            bad_N = ~torch.isfinite(self._vector_ND).all(dim=1)
            raise DataError(
                "item vectors must be finite",
                got=f"{int(bad_N.sum())} of {len(bad_N)} items, the first is item {int(bad_N.nonzero()[0, 0]) + 1}",
                fix="look for a training that diverged; lower its learning rate",
            )

    def __len__(self) -> int:
        """Items that can be returned."""
        return len(self._vector_ND)

    @property
    def device(self) -> torch.device:
        """Where the vectors lie and the search runs."""
        return self._vector_ND.device

    def restrict(self, allow_ids: Tensor) -> ExactIndex:
        """Return an index over ``allow_ids`` alone (any order, duplicates and unknown ids do no harm).

        Example:
            >>> index = ExactIndex(torch.eye(4)).restrict(torch.tensor([3, 1, 3, 99]))
            >>> index.search(torch.tensor([[0.0, 1.0, 2.0, 0.0]]), 3)[0].tolist()
            [[1, 3, -1]]
        """
        known_A = torch.unique(allow_ids.to(self.device, torch.int64))
        known_A = known_A[(known_A > 0) & (known_A < self._size)]
        if self._id_N is not None:
            known_A = known_A[torch.isin(known_A, self._id_N)]
        part = object.__new__(ExactIndex)
        part._vector_ND = self._vector_ND[self._position(known_A)]
        part._id_N = known_A
        part._size = self._size
        part._max_norm = self._max_norm
        return part

    def search(
        self,
        query_QD: Tensor,
        k: int,
        *,
        exclude_E: Tensor | None = None,
        exclude_offset_Q1: Tensor | None = None,
        item_chunk: int = 2**20,
    ) -> tuple[Tensor, Tensor]:
        """Return the ``k`` best items of each query.

        Args:
            query_QD: ``[Q, D]`` float32, finite.
            k: List length; may exceed the number of items.
            exclude_E: Item ids that a query must not get, one query after the other; ids that this index does not
                hold do no harm.
            exclude_offset_Q1: ``[Q + 1]`` int64, start of each query's part of ``exclude_E``.
            item_chunk: Most items scored at once.

        Returns:
            ``([Q, k] int64 item ids, [Q, k] float32 scores)``: higher score first, equal scores by ascending id; -1 and
            -inf where fewer than ``k`` items are left. The same bits for every Q and ``item_chunk``.

        Raises:
            DataError: A query is not finite or has another width than the items.
        """
        position_QK, score_QK = exact_topk(
            query_QD.detach().to(self.device, torch.float32).contiguous(),
            self._vector_ND,
            k,
            exclude_E=None if exclude_E is None else self._position(exclude_E.to(self.device)),
            exclude_offset_Q1=None if exclude_offset_Q1 is None else exclude_offset_Q1.to(self.device),
            item_chunk=item_chunk,
            max_norm=self._max_norm,
        )
        if self._id_N is None:
            return torch.where(position_QK >= 0, position_QK + 1, position_QK), score_QK
        if len(self._id_N) == 0:
            return position_QK, score_QK
        return torch.where(position_QK >= 0, self._id_N[position_QK.clamp_min(0)], position_QK), score_QK

    def score(self, query_QD: Tensor, item_Q: Tensor) -> Tensor:
        """Return the ``[Q]`` scores of given pairs, bit-equal to those of :meth:`search`."""
        from gemirec.retrieval.topk import canonical_score

        vector_QD = self._vector_ND[self._position(item_Q.to(self.device))]
        return canonical_score(query_QD.detach().to(self.device, torch.float32), vector_QD)

    def _position(self, item_ids: Tensor) -> Tensor:
        """Return the row of each item id, -1 for ids that are not held."""
        if self._id_N is None:
            known = (item_ids > 0) & (item_ids < self._size)
            return torch.where(known, item_ids.to(torch.int64) - 1, -1)
        if len(self._id_N) == 0:
            return torch.full_like(item_ids, -1, dtype=torch.int64)
        place = torch.searchsorted(self._id_N, item_ids.to(torch.int64)).clamp_max(len(self._id_N) - 1)
        return torch.where(self._id_N[place] == item_ids, place, -1)
