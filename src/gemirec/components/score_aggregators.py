"""Aggregators of scores: an item is scored with each interest (survey, arXiv 2506.15284, section 3.3).

Axes: B batch, L history length, K interests, D embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from gemirec.components.roles import (
    Aggregated,
    Aggregator,
    AggregatorConfig,
    Count,
    Extracted,
    Sizes,
    mean_interest,
    softmax_over,
    two_layers,
    weighted_sum,
)
from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class MaxConfig(AggregatorConfig, frozen=True, kw_only=True):
    """An item's score is its best over the interests: all of them are searched for."""


class Max(Aggregator):
    """``y = max_k h_k . x``; the loss' readout says how it is trained."""

    of_scores = True

    def forward(self, found: Extracted, item_BLD: Tensor, mask_BL: Tensor) -> Aggregated:
        """Return the interests as they are."""
        return Aggregated(found.interest_BKD, found.mask_BK)


class MeanConfig(AggregatorConfig, frozen=True, kw_only=True):
    """An item's score is its mean over the interests."""


class Mean(Aggregator):
    """``y = mean_k h_k . x = (mean_k h_k) . x``: one vector serves it."""

    of_scores = True

    def forward(self, found: Extracted, item_BLD: Tensor, mask_BL: Tensor) -> Aggregated:
        """Return the mean of the interests that exist."""
        return Aggregated(mean_interest(found)[:, None])


class TargetConfig(AggregatorConfig, frozen=True, kw_only=True):
    """Target attention: the target says how much each interest's score counts."""

    serving: Literal["none", "max"] = "none"
    """Serving has no target. ``max``: search for all interests, as ``max`` does; ``none`` is refused."""


class Target(Aggregator):
    """``w_k = softmax_k( h_k . tanh(W x) )``, ``y = sum_k w_k h_k . x``.

    In training the target's weights score the shared negatives, too, as MIND's label-aware attention does (the survey's
    form would weigh anew for each candidate).
    """

    of_scores = True
    uses_target = True

    def __init__(self, config: TargetConfig, sizes: Sizes) -> None:
        if config.serving == "none":
            raise ConfigError(
                "aggregator 'target' weighs interests by the target, which serving by nearest neighbours does not know",
                got="aggregator: {kind: target, serving: none}",
                fix="set aggregator.serving: max to train with target attention and serve the best interest of each "
                "item, or choose max, mean, calibrated or a representation aggregator (concat, pool, base, intent)",
            )
        super().__init__(config, sizes)
        self.key = nn.Linear(sizes.dim, sizes.dim, bias=False)
        nn.init.xavier_uniform_(self.key.weight)

    def forward(self, found: Extracted, item_BLD: Tensor, mask_BL: Tensor) -> Aggregated:
        """Return the interests as they are."""
        return Aggregated(found.interest_BKD, found.mask_BK)

    def train_vectors(self, found: Extracted, target_BD: Tensor) -> Aggregated:
        """Return the one vector that the target's weights make of the interests."""
        logit_BK = torch.einsum("bkd,bd->bk", found.interest_BKD, torch.tanh(self.key(target_BD)))
        return Aggregated(weighted_sum(softmax_over(logit_BK, found.mask_BK), found.interest_BKD))


class CalibratedConfig(AggregatorConfig, frozen=True, kw_only=True):
    """Max, each interest's score times a learned weight (MIMA)."""

    hidden: Count = 32
    """Width of the routing head's hidden layer (inferred)."""
    rescale: bool = True
    """Multiply the weights by K, so that equal ones leave the scores as they are (ours); ranking is the same."""


class Calibrated(Aggregator):
    """``y = max_k pi_k h_k . x``, ``pi = softmax_k(MLP(sg[h_k]))`` (MIMA, arXiv 2609.12842).

    The head learns from the retrieval loss through ``pi`` alone; MIMA trains it by a hinge loss of its own.
    """

    of_scores = True

    def __init__(self, config: CalibratedConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.head = two_layers(sizes.dim, config.hidden, 1)

    def forward(self, found: Extracted, item_BLD: Tensor, mask_BL: Tensor) -> Aggregated:
        """Return the interests and their weights."""
        weight_BK = softmax_over(self.head(found.interest_BKD.detach())[:, :, 0], found.mask_BK)
        if self.config.rescale:
            existing = weight_BK.shape[1] if found.mask_BK is None else found.mask_BK.sum(dim=1, keepdim=True)
            weight_BK = weight_BK * existing
        return Aggregated(found.interest_BKD, found.mask_BK, weight_BK)
