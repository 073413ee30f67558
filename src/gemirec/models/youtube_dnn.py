"""YouTubeDNN: the mean of the history's item vectors through one dense layer (Covington et al., RecSys 2016).

Axes: B batch, L history length, D embedding, P width of the user profile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gemirec.components.pooling import mean_pool
from gemirec.models.base import Histories
from gemirec.models.common import Count, TableModel, TableModelConfig, user_features

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec


class YouTubeDNNConfig(TableModelConfig, frozen=True, kw_only=True):
    """Fields of YouTubeDNN."""

    use_user_features: bool = False
    """Concatenate the user's features to the mean, as the paper does; ComiRec's version has none."""
    feature_dim: Count = 16
    """Width of each feature's embedding (inferred; the paper does not give it). Used with ``use_user_features``."""


class YouTubeDNN(TableModel):
    """``h = W [mean_l(x_l); profile] + b``: one vector, no activation, as in ComiRec's version of the paper's tower."""

    def __init__(self, config: YouTubeDNNConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.features = user_features(spec, config.feature_dim) if config.use_user_features else None
        self.dense = nn.Linear(config.dim + (self.features.width if self.features else 0), config.dim)
        nn.init.xavier_uniform_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, 1, D]``; an empty history gives the profile's vector (the bias, without features)."""
        user_BD = mean_pool(self.item_table(histories.item_BL), histories.mask_BL)
        if self.features is not None:
            profile_BP = self.features(len(user_BD), histories.user_categorical_BF, histories.user_numeric_BG)
            user_BD = torch.cat([user_BD, profile_BP], dim=1)
        return self.dense(user_BD)[:, None], None
