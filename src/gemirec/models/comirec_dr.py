"""ComiRec-DR: dynamic routing with a map for each position and capsule (Cen et al., KDD 2020, arXiv 2005.09347).

Axes: B batch, L history length, K interests, D embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemirec.components.capsule import PositionMaps, Routing, RoutingAxis
from gemirec.models.base import Histories
from gemirec.models.common import Count, MultiInterestConfig, PositiveFloat, TableModel

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec


class ComiRecDRConfig(MultiInterestConfig, frozen=True, kw_only=True):
    """Fields of ComiRec-DR."""

    rounds: Count = 3
    """Routing rounds R (paper: 3)."""
    routing_axis: RoutingAxis = "interests"
    """Axis of the routing softmax. ``interests`` as in the paper and its TensorFlow code; the PyTorch ports take
    ``positions``, a divergence that changes results."""
    transform_std: PositiveFloat = 1.0
    """Standard deviation of the maps' normal initialisation (TensorFlow code: 1; the ports' is near .0025)."""
    identity_maps: bool = False
    """Start the maps at the identity plus the draws (ours): capsules then begin in the space of the items."""


class ComiRecDR(TableModel):
    """``u_kl = W_lk x_l``, routed from zero logits (algorithm 1); the distinct maps break the capsules' symmetry."""

    def __init__(self, config: ComiRecDRConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.votes = PositionMaps(
            config.dim, config.num_interests, config.max_length, config.transform_std, config.identity_maps
        )
        self.routing = Routing(config.rounds, config.routing_axis)

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, K, D]`` capsules, all of which exist."""
        vote_BKLD = self.votes(self.item_table(histories.item_BL))
        logit_BKL = torch.zeros(1, self.config.num_interests, self.max_length, device=vote_BKLD.device)
        return self.routing(vote_BKLD, logit_BKL, histories.mask_BL), None
