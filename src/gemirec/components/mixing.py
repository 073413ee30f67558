"""Weighted sums of an item table's rows, with a gradient that names each row once.

Axes: N items (row 0 is padding), D embedding, U sums, M rows of a sum, R distinct rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

if TYPE_CHECKING:
    from gemirec.components.embedding import ItemTable


def mixed_rows(table: ItemTable, id_UM: Tensor, weight_UM: Tensor) -> Tensor:
    """Return ``sum_m w_um E[id_um]`` ``[U, D]``; padding, id 0, counts for nothing.

    It is ``F.embedding_bag`` with another gradient, sparse where the table's is: that function gives a row for each of
    the ``U M`` entries, or takes five times as long for a dense one.

    Args:
        table: E.
        id_UM: ``[U, M]`` integer rows of the table.
        weight_UM: ``[U, M]`` weights, which get no gradient.

    Example:
        >>> from gemirec.components.embedding import ItemTable
        >>> table = ItemTable(3, 1)
        >>> _ = table.weight.data.copy_(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
        >>> mixed_rows(table, torch.tensor([[1, 2], [3, 0]]), torch.tensor([[0.5, 0.5], [1.0, 1.0]])).tolist()
        [[1.5], [3.0]]
    """
    sparse = table.sparse and table.training
    mixed: Tensor = _MixedRows.apply(table.weight, id_UM, weight_UM, sparse)  # type: ignore[no-untyped-call]
    return mixed


class _MixedRows(torch.autograd.Function):
    """:func:`mixed_rows` of a table ``[N + 1, D]``."""

    @staticmethod
    def forward(ctx: Any, table_ND: Tensor, id_UM: Tensor, weight_UM: Tensor, sparse: bool) -> Tensor:
        ctx.save_for_backward(id_UM, weight_UM)
        ctx.shape, ctx.sparse = table_ND.shape, sparse
        # No padding_idx: the padding row is zero, and embedding_bag without it is five times as fast.
        return F.embedding_bag(id_UM, table_ND, mode="sum", per_sample_weights=weight_UM)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_UD: Tensor) -> tuple[Tensor, None, None, None]:
        id_UM, weight_UM = ctx.saved_tensors
        # The transposed sums: entries in the order of their rows, a bag for each row.
        sorted_E, order_E = id_UM.flatten().sort(stable=True)
        row_R, count_R = torch.unique_consecutive(sorted_E, return_counts=True)
        grad_RD = F.embedding_bag(
            order_E // id_UM.shape[1],
            grad_UD,
            count_R.cumsum(0) - count_R,
            mode="sum",
            per_sample_weights=weight_UM.flatten().index_select(0, order_E),
        )
        grad_RD = grad_RD.masked_fill_((row_R == 0)[:, None], 0.0)
        row_R = row_R.long()
        if ctx.sparse:
            grad_ND = torch.sparse_coo_tensor(row_R[None], grad_RD, ctx.shape, check_invariants=False)
        else:
            grad_ND = grad_RD.new_zeros(ctx.shape).index_copy_(0, row_R, grad_RD)
        return grad_ND, None, None, None
