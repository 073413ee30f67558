"""One normalised vector trained well: the control that every multi-interest claim needs.

L2-normalised vectors, in-batch InfoNCE with logQ correction and a low temperature. On ComiRec's protocol this alone
passes the published multi-interest numbers of 2020-2023.

Axes: B batch, L history length, D embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from gemirec.components.attention import Positions, SelfAttention
from gemirec.components.losses import LossConfig
from gemirec.components.pooling import mean_pool
from gemirec.models.base import Histories
from gemirec.models.common import Count, TableModel, TableModelConfig

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec


class SingleVectorConfig(TableModelConfig, frozen=True, kw_only=True):
    """Fields of the single-vector control."""

    pooling: Literal["attentive", "mean"] = "attentive"
    """``attentive``: ComiRec-SA's extractor with one interest. ``mean``: the plain mean."""
    hidden_factor: Count = 4
    """Width of the attention's hidden layer in multiples of ``dim``. Used by ``attentive``."""
    positions: Positions = "oldest"
    """Learned positions in the attention logits. Used by ``attentive``."""
    loss: LossConfig = LossConfig(negatives="in_batch", normalize=True, temperature=0.1)
    """The retrieval loss: one-way InfoNCE over the batch. tau = .1 as in the source of this control."""


class SingleVector(TableModel):
    """``h = A X`` with one attention row, or the mean; then ``h / |h|`` against ``v / |v|``."""

    def __init__(self, config: SingleVectorConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.attention = None
        if config.pooling == "attentive":
            hidden = config.hidden_factor * config.dim
            self.attention = SelfAttention(config.dim, 1, config.max_length, hidden, config.positions)

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, 1, D]``; an empty history gives zero."""
        item_BLD = self.item_table(histories.item_BL)
        if self.attention is None:
            return mean_pool(item_BLD, histories.mask_BL)[:, None], None
        return self.attention(item_BLD, histories.mask_BL), None
