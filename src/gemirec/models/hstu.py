"""HSTU as an encoder of histories: one vector per user, or K read from its states (Zhai et al., ICML 2024, 2402.17152).

The paper's generative recommender ranks actions too and scales to long logs; what is here is its encoder trained for
retrieval, as in the authors' public experiments beside SASRec.

Axes: B batch, L history length, K interests, D embedding, P trained positions of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemirec.components.attention import SelfAttention
from gemirec.components.decoder import future_targets
from gemirec.components.hstu import HSTUEncoder
from gemirec.components.losses import MultiInterestLossConfig
from gemirec.components.pooling import last_state
from gemirec.components.transformer import check_heads
from gemirec.models.base import Histories, LossTerms, TrainBatch
from gemirec.models.common import Count, MultiInterestConfig, Probability, TableModel, widen

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec


class HSTUConfig(MultiInterestConfig, frozen=True, kw_only=True):
    """Fields of HSTU. ``loss.readout`` acts with more than one interest."""

    num_interests: Count = 1
    """K. 1: the state at the last item (released code). More (ours): ComiRec-SA's attention, with K rows, over the
    states up to that item."""
    layers: Count = 2
    """Layers (released code: 2 on MovieLens-1M, 4 on Amazon Books, 8 and more in its large variants)."""
    heads: Count = 1
    """Attention heads (released code: 1 on MovieLens-1M, 4 on Books); must divide ``dim``."""
    dropout: Probability = 0.2
    """Probability of dropping a unit (released code: .2 on MovieLens-1M, .5 on Books)."""
    hidden_factor: Count = 4
    """Width of the hidden layer of the K rows in multiples of ``dim`` (ours). With ``num_interests`` above 1."""
    all_positions: bool = True
    """Train every position of the window on the item after it, as the paper does; otherwise the last one only."""
    loss: MultiInterestLossConfig = MultiInterestLossConfig(normalize=True, temperature=0.05)
    """The retrieval loss; unit vectors and a temperature of .05 (released code, with 128 to 512 negatives)."""


class HSTU(TableModel):
    """The state of a causal HSTU encoder at the last item; with K interests, ``h_k = sum_{j <= l} A_kj s_j``.

    The states carry the items themselves by the residual path, so that a weighted sum of them is in the items' space.
    """

    def __init__(self, config: HSTUConfig, spec: DataSpec) -> None:
        check_heads(config.heads, config.dim)
        super().__init__(config, spec)
        self.encoder = HSTUEncoder(
            config.dim,
            layers=config.layers,
            heads=config.heads,
            dropout=config.dropout,
            max_length=config.max_length,
        )
        self.attention = None
        if config.num_interests > 1:
            hidden = config.hidden_factor * config.dim
            self.attention = SelfAttention(config.dim, config.num_interests, config.max_length, hidden, "none")

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, K, D]``, all of which exist; an empty history gives zero."""
        mask_BL = histories.mask_BL
        state_BLD = self.encoder(self.item_table(histories.item_BL))
        if self.attention is None:
            return last_state(state_BLD, mask_BL)[:, None], None
        return self.attention(state_BLD, mask_BL) * mask_BL.any(dim=1)[:, None, None], None

    def attribution(self, histories: Histories) -> Tensor | None:
        """Return the attention ``[B, K, L]`` over the states at the items, ``None`` with one interest."""
        if self.attention is None:
            return None
        mask_BL = histories.mask_BL
        weight_BKL = self.attention.attention(self.encoder(self.item_table(histories.item_BL)), mask_BL)
        return weight_BKL * mask_BL[:, None]

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return the term ``retrieval``: over all real positions, or over the last ones."""
        if not self.config.all_positions:
            return super().losses(batch, stage)
        wide = widen(batch, self.max_length)
        row_P, count_P, item_P, _ = future_targets(wide.item_BL, wide.length_B, batch.target_B)
        state_BLD = self.encoder(self.item_table(wide.item_BL))
        vector_PKD = self._normalize(self._at_every_position(state_BLD)[row_P, count_P - 1])
        weight_P = None if batch.weight_B is None else batch.weight_B[row_P]
        terms = LossTerms()
        terms.add("retrieval", self._retrieval(vector_PKD, None, item_P, weight_P, batch.generator))
        return terms

    def _at_every_position(self, state_BLD: Tensor) -> Tensor:
        """Return the interests ``[B, L, K, D]`` of every prefix as a history of its own."""
        if self.attention is None:
            return state_BLD[:, :, None]
        batch, length, _ = state_BLD.shape
        seen_LL = torch.ones(length, length, dtype=torch.bool, device=state_BLD.device).tril()
        logit_BKL = self.attention.logits(state_BLD, seen_LL[-1:].expand(batch, -1), shifted=True)
        logit_BLKL = logit_BKL[:, None].masked_fill(~seen_LL[:, None], -torch.inf)
        weight_BXL = torch.softmax(logit_BLKL, dim=3).flatten(1, 2).to(state_BLD.dtype)
        return (weight_BXL @ state_BLD).view(batch, length, -1, state_BLD.shape[2])
