"""Popularity: every user gets the items with the most training events. The control that every table carries.

Axes: B batch, K interests (1), D embedding (1), N items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gemirec.config import Config
from gemirec.models.base import Histories, Interests, LossTerms, RetrievalModel, TrainBatch

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec


class PopularityConfig(Config, frozen=True, kw_only=True):
    """Popularity has nothing to set: no width, no history."""


class Popularity(RetrievalModel):
    """Item vectors of width 1 that hold the training count, and the user vector 1: the inner product is the count.

    float32 holds counts exactly up to 2^24; above, items whose counts differ by less than one part in 2^24 may tie.
    """

    trainable: ClassVar[bool] = False
    count_N1: Tensor

    def __init__(self, config: PopularityConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.register_buffer("count_N1", torch.tensor(spec.train_count_N, dtype=torch.float32)[:, None])

    @property
    def max_length(self) -> int:
        """One event: a window cannot be empty, and nothing of it is read."""
        return 1

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """Return counts ``[..., 1]``, or ``[N + 1, 1]`` without ids."""
        return self.count_N1 if item_ids is None else self.count_N1[item_ids]

    def interests(self, histories: Histories) -> Interests:
        """Return the vector 1 for every user."""
        vector_BKD = self.count_N1.new_ones(len(histories.item_BL), 1, 1)
        return Interests(vector_BKD, torch.ones(vector_BKD.shape[:2], dtype=torch.bool, device=vector_BKD.device))

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return ``-log`` of the targets' share of the training events, which has no gradient."""
        share_B = self.count_N1[batch.target_B, 0].clamp(min=1) / self.count_N1.sum().clamp(min=1)
        terms = LossTerms()
        terms.add("retrieval", -share_B.log().mean())
        return terms
