"""Aggregators of representations: the interests become one vector (survey, arXiv 2506.15284, section 3.3).

Axes: B batch, L history length, K interests, D embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from gemirec.components.pooling import last_state, mean_pool
from gemirec.components.prototypes import IntentFusion
from gemirec.components.roles import (
    NEVER,
    Aggregated,
    Aggregator,
    AggregatorConfig,
    Count,
    Extracted,
    Sizes,
    mean_interest,
    present,
    softmax_over,
    two_layers,
    weighted_sum,
)

if TYPE_CHECKING:
    from torch import Tensor


class ConcatConfig(AggregatorConfig, frozen=True, kw_only=True):
    """Concatenation and a two-layer network."""

    hidden_factor: Count = 4
    """Width of the hidden layer in multiples of ``dim``."""


class Concat(Aggregator):
    """``u = W2 relu( W1 [h_1; ...; h_K] + b1 ) + b2``."""

    def __init__(self, config: ConcatConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.network = two_layers(sizes.num_interests * sizes.dim, config.hidden_factor * sizes.dim, sizes.dim)

    def forward(self, found: Extracted, item_BLD: Tensor, mask_BL: Tensor) -> Aggregated:
        """Return the one vector; zero without history, and interests that do not exist enter as zeros."""
        return _one(self.network(present(found, 0.0).flatten(1)), mask_BL)


class PoolConfig(AggregatorConfig, frozen=True, kw_only=True):
    """Pooling over the interests."""

    pool: Literal["mean", "max"] = "mean"
    """Mean or largest number of each dimension."""
    network: bool = False
    """A two-layer network behind the pooling."""
    hidden_factor: Count = 4
    """Width of its hidden layer in multiples of ``dim``. Used with ``network``."""


class Pool(Aggregator):
    """``u = mean_k h_k`` or ``max_k h_k`` by dimension, then a network if asked for."""

    def __init__(self, config: PoolConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.network = two_layers(sizes.dim, config.hidden_factor * sizes.dim, sizes.dim) if config.network else None

    def forward(self, found: Extracted, item_BLD: Tensor, mask_BL: Tensor) -> Aggregated:
        """Return the one vector; zero without history."""
        user_BD = mean_interest(found) if self.config.pool == "mean" else present(found, NEVER).amax(dim=1)
        return _one(user_BD if self.network is None else self.network(user_BD), mask_BL)


class BaseConfig(AggregatorConfig, frozen=True, kw_only=True):
    """Attention with a base interest."""

    base: Literal["mean", "last", "learned"] = "mean"
    """The base: the mean of the history's items, the last of them, or one vector learned for all."""
    identity: bool = False
    """Start ``W`` at the identity plus the draws (ours)."""


class Base(Aggregator):
    """``w_k = softmax_k( h_b W h_k )``, ``u = sum_k w_k h_k``."""

    def __init__(self, config: BaseConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.map = nn.Linear(sizes.dim, sizes.dim, bias=False)
        nn.init.xavier_uniform_(self.map.weight)
        if config.identity:
            self.map.weight.data.add_(torch.eye(sizes.dim))
        if config.base == "learned":
            self.base_1D = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, sizes.dim)))

    def forward(self, found: Extracted, item_BLD: Tensor, mask_BL: Tensor) -> Aggregated:
        """Return the one vector; zero without history."""
        if self.config.base == "learned":
            base_BD = self.base_1D.expand(len(item_BLD), -1)
        else:
            base_BD = (mean_pool if self.config.base == "mean" else last_state)(item_BLD, mask_BL)
        logit_BK = torch.einsum("bkd,bd->bk", found.interest_BKD, self.map(base_BD))
        return Aggregated(weighted_sum(softmax_over(logit_BK, found.mask_BK), found.interest_BKD))


class IntentConfig(AggregatorConfig, frozen=True, kw_only=True):
    """SINE's aggregation; needs extractor ``prototypes``."""

    hidden_factor: Count = 4
    """Width of the pooling attention's hidden layer in multiples of ``dim``."""
    residual: bool = True
    """Add the item itself to what the prototypes imagine of it."""


class Intent(Aggregator):
    """The intention behind the activated prototypes weighs the interests; one vector serves (SINE)."""

    needs_prototypes = True

    def __init__(self, config: IntentConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        hidden = config.hidden_factor * sizes.dim
        self.fusion = IntentFusion(sizes.dim, sizes.max_length, hidden, residual=config.residual)

    def forward(self, found: Extracted, item_BLD: Tensor, mask_BL: Tensor) -> Aggregated:
        """Return the one vector; zero without history."""
        assert found.imagined_BLD is not None
        weight_BK = self.fusion.fuse(found.interest_BKD, found.imagined_BLD, item_BLD, mask_BL, found.mask_BK)
        return Aggregated(weighted_sum(weight_BK, found.interest_BKD))


def _one(user_BD: Tensor, mask_BL: Tensor) -> Aggregated:
    """Return one vector per user, zero for a history without items, whatever the biases say."""
    return Aggregated((user_BD * mask_BL.any(dim=1)[:, None])[:, None])
