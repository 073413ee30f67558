"""Item-space mean: the plain mean of the history's item vectors, with no parameter but the item table.

A control: with a good loss it equals the best multi-interest models on short histories, so any claim of theirs is
measured against it. It has no paper of its own; the loss with ``beta`` is REMI's (arXiv 2302.14532).

Axes: B batch, L history length, D embedding.
"""

from __future__ import annotations

from torch import Tensor

from gemirec.components.pooling import mean_pool
from gemirec.models.base import Histories
from gemirec.models.common import TableModel, TableModelConfig


class ItemMeanConfig(TableModelConfig, frozen=True, kw_only=True):
    """Fields of the item-space mean: those that every model has."""


class ItemMean(TableModel):
    """``h = mean_l(x_l)``: one vector in the space of the items themselves."""

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, 1, D]``; an empty history gives zero."""
        return mean_pool(self.item_table(histories.item_BL), histories.mask_BL)[:, None], None
