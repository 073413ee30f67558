"""ComiRec-SA: K attention distributions over the history (Cen et al., KDD 2020, arXiv 2005.09347).

Axes: B batch, L history length, K interests, D embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from gemirec.components.attention import Positions, SelfAttention
from gemirec.models.base import Histories
from gemirec.models.common import Count, MultiInterestConfig, TableModel

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec


class ComiRecSAConfig(MultiInterestConfig, frozen=True, kw_only=True):
    """Fields of ComiRec-SA."""

    hidden_factor: Count = 4
    """Width of the attention's hidden layer in multiples of ``dim`` (paper: 4)."""
    positions: Positions = "oldest"
    """Learned positions in the attention logits; see :class:`~gemirec.components.attention.SelfAttention`."""


class ComiRecSA(TableModel):
    """``H = softmax_L( W2 tanh( W1 (X + P) ) ) X`` (eq. 5-6), trained through the interest nearest the target (eq. 7).

    Serving pools the nearest items of each interest (eq. 8); that is retrieval's part.
    """

    def __init__(self, config: ComiRecSAConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        hidden = config.hidden_factor * config.dim
        self.attention = SelfAttention(config.dim, config.num_interests, config.max_length, hidden, config.positions)

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, K, D]`` interests, all of which exist."""
        return self.attention(self.item_table(histories.item_BL), histories.mask_BL), None

    def attribution(self, histories: Histories) -> Tensor:
        """Return the attention ``[B, K, L]``."""
        return (
            self.attention.attention(self.item_table(histories.item_BL), histories.mask_BL) * histories.mask_BL[:, None]
        )
