"""MIND: behaviour-to-interest routing with one shared map and label-aware attention (Li et al., CIKM 2019, 1904.08030).

Axes: B batch, L history length, K interests, D embedding, P width of the user profile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from gemirec.components.capsule import Routing, RoutingAxis, SharedMap, adaptive_mask
from gemirec.components.losses import MultiInterestLossConfig
from gemirec.errors import ConfigError
from gemirec.models.base import Histories, TrainBatch
from gemirec.models.common import Count, MultiInterestConfig, PositiveFloat, TableModel, user_features

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec


class MINDConfig(MultiInterestConfig, frozen=True, kw_only=True):
    """Fields of MIND."""

    adaptive: bool = True
    """Give a user ``max(1, min(K, floor(log2 length)))`` interests (paper); otherwise K (ComiRec's version)."""
    rounds: Count = 3
    """Routing rounds R."""
    routing_axis: RoutingAxis = "interests"
    """Axis of the routing softmax; the PyTorch ports take ``positions``."""
    logit_std: PositiveFloat = 1.0
    """Standard deviation of the initial routing logits, truncated at two of them. A shared map with equal logits would
    keep all capsules equal."""
    logit_seed: int = 0
    """Seed of the fixed initial logits (ours: one ``[K, L]`` matrix for all users; serving is then deterministic)."""
    redraw_logits: bool = False
    """Draw new initial logits for each example in training, as the released code does; serving keeps the fixed ones."""
    map_bias: bool = False
    """Give the shared map a bias (ComiRec's version has one, seemingly by accident)."""
    identity_map: bool = False
    """Start the map at the identity plus the draws (ours): capsules then begin in the space of the items."""
    projection: Literal["none", "relu", "mlp"] = "none"
    """After routing: nothing; one ReLU layer (ComiRec's version, for books); or a ReLU layer of width
    ``hidden_factor x dim`` and a linear one (paper: ReLU layers, sizes not given)."""
    hidden_factor: Count = 4
    """Hidden width of ``projection: mlp`` in multiples of ``dim`` (inferred)."""
    use_user_features: bool = False
    """Concatenate the user's profile to each capsule before the projection (paper)."""
    feature_dim: Count = 16
    """Width of each feature's embedding (inferred). Used with ``use_user_features``."""
    loss: MultiInterestLossConfig = MultiInterestLossConfig(readout="label_aware", power=10.0)
    """The retrieval loss; label-aware attention with power 10 (inferred: larger was better in the paper)."""


class MIND(TableModel):
    """Multi-interest extractor layer (algorithm 1), then label-aware attention in the loss (eq. 8)."""

    logit_KL: Tensor

    def __init__(self, config: MINDConfig, spec: DataSpec) -> None:
        if config.use_user_features and config.projection == "none":
            raise ConfigError(
                "a user profile needs a projection to enter the interests",
                got="use_user_features: true, projection: none",
                fix="set model.projection to relu or mlp",
            )
        super().__init__(config, spec)
        self.votes = SharedMap(config.dim, config.map_bias, config.identity_map)
        self.routing = Routing(config.rounds, config.routing_axis)
        generator = torch.Generator().manual_seed(config.logit_seed)
        self.register_buffer("logit_KL", self._draw((config.num_interests, config.max_length), generator))
        self.features = user_features(spec, config.feature_dim) if config.use_user_features else None
        self.projection = _projection(config, self.features.width if self.features else 0)

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, K, D]`` capsules and, with ``adaptive``, which of them exist."""
        mask_BL = histories.mask_BL
        mask_BK = adaptive_mask(mask_BL.sum(dim=1), self.config.num_interests) if self.config.adaptive else None
        logit_BKL = self.logit_KL[None]
        if self.config.redraw_logits and self.training:
            generator = histories.generator if isinstance(histories, TrainBatch) else None
            logit_BKL = self._draw((len(mask_BL), *self.logit_KL.shape), generator).to(mask_BL.device)
        interest_BKD = self.routing(self.votes(self.item_table(histories.item_BL)), logit_BKL, mask_BL, mask_BK)
        if self.features is not None:
            profile_BP = self.features(len(mask_BL), histories.user_categorical_BF, histories.user_numeric_BG)
            profile_BKP = profile_BP[:, None].expand(-1, interest_BKD.shape[1], -1)
            interest_BKD = torch.cat([interest_BKD, profile_BKP], dim=2)
        return self.projection(interest_BKD), mask_BK

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Draw routing logits ``shape`` from the truncated normal."""
        std = self.config.logit_std
        return nn.init.trunc_normal_(torch.empty(shape), std=std, a=-2 * std, b=2 * std, generator=generator)


def _projection(config: MINDConfig, profile_width: int) -> nn.Module:
    """Return what follows the routing, from capsule and profile to the interest."""
    width, hidden = config.dim + profile_width, config.hidden_factor * config.dim
    if config.projection == "none":
        return nn.Identity()
    if config.projection == "relu":
        return nn.Sequential(nn.Linear(width, config.dim), nn.ReLU())
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, config.dim))
