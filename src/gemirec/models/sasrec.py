"""SASRec-style causal transformer, one vector per user (Kang and McAuley, ICDM 2018, arXiv 1808.09781).

Axes: B batch, L history length, D embedding, P real positions of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from gemirec.components.decoder import future_targets
from gemirec.components.pooling import last_state
from gemirec.components.transformer import CausalEncoder, check_heads
from gemirec.models.base import Histories, LossTerms, TrainBatch
from gemirec.models.common import Count, Probability, TableModel, TableModelConfig, widen

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec


class SASRecConfig(TableModelConfig, frozen=True, kw_only=True):
    """Fields of SASRec."""

    layers: Count = 2
    """Blocks (paper: 2)."""
    heads: Count = 1
    """Attention heads (paper: 1); must divide ``dim``."""
    hidden_factor: Count = 1
    """Width of the blocks' hidden layer in multiples of ``dim`` (paper: 1)."""
    dropout: Probability = 0.2
    """Probability of dropping a unit (paper: .2 on dense data, .5 on sparse)."""
    scale_input: bool = True
    """Multiply item vectors by ``sqrt(dim)`` before positions are added (released code)."""
    all_positions: bool = True
    """Train every position of the window on the item after it, as the paper does; otherwise the last one only."""


class SASRec(TableModel):
    """The state of a causal encoder at the last item (section III).

    The paper's binary cross-entropy with one negative is replaced by the retrieval loss that every model here shares.
    """

    def __init__(self, config: SASRecConfig, spec: DataSpec) -> None:
        check_heads(config.heads, config.dim)
        super().__init__(config, spec)
        self.encoder = CausalEncoder(
            config.dim,
            layers=config.layers,
            heads=config.heads,
            hidden=config.hidden_factor * config.dim,
            dropout=config.dropout,
            max_length=config.max_length,
            scale_input=config.scale_input,
        )

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, 1, D]``; an empty history gives zero."""
        state_BLD = self.encoder(self.item_table(histories.item_BL))
        return last_state(state_BLD, histories.mask_BL)[:, None], None

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return the term ``retrieval``: over all real positions (eq. 7's sum), or over the last ones."""
        if not self.config.all_positions:
            return super().losses(batch, stage)
        wide = widen(batch, self.max_length)
        row_P, count_P, item_P, _ = future_targets(wide.item_BL, wide.length_B, batch.target_B)
        state_BLD = self.encoder(self.item_table(wide.item_BL))
        vector_PKD = self._normalize(state_BLD[row_P, count_P - 1])[:, None]
        weight_P = None if batch.weight_B is None else batch.weight_B[row_P]
        terms = LossTerms()
        terms.add("retrieval", self._retrieval(vector_PKD, None, item_P, weight_P, batch.generator))
        return terms
