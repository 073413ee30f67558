"""Extractors that route: capsules by agreement, over a graph's levels, and in one pass.

Axes: B batch, L history length, K interests, D embedding, G levels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from gemirec.components.capsule import (
    InterestMaps,
    LogitUpdate,
    PositionMaps,
    Routing,
    RoutingAxis,
    RoutingGradient,
    SharedMap,
    draw_logits,
)
from gemirec.components.gates import ProfileGate
from gemirec.components.graph import GraphLevels, Hops
from gemirec.components.one_pass import Collected, OnePassRouting
from gemirec.components.pooling import mean_pool
from gemirec.components.roles import Count, Extracted, Extractor, ExtractorConfig, Positive, Sizes
from gemirec.errors import ConfigError


class RoutingConfig(ExtractorConfig, frozen=True, kw_only=True):
    """Dynamic routing; the defaults are MIND's."""

    maps: Literal["shared", "interests", "positions"] = "shared"
    """Who has a map of its own: nobody (MIND), each interest (UMI), or each position and interest (ComiRec-DR)."""
    identity: bool = False
    """Start the maps at the identity plus the draws, so that capsules begin in the space of the items (ours)."""
    map_std: Positive = 1.0
    """Standard deviation of ``maps: positions`` (ComiRec's TensorFlow code: 1)."""
    rounds: Count = 3
    """Routing rounds R."""
    axis: RoutingAxis = "interests"
    """Axis of the routing softmax; the PyTorch ports take ``positions``."""
    gradient: RoutingGradient = "last"
    """Rounds that the gradient flows through; released code stops it before the last."""
    update: LogitUpdate = "add"
    """Agreement is added to the logits, or takes their place (UMI's release)."""
    logits: Literal["normal", "zero"] = "normal"
    """Where routing starts. ``normal``: one fixed draw for all users; ``zero`` needs maps that differ."""
    logit_std: Positive = 1.0
    """Standard deviation of ``logits: normal``, truncated at two of them."""
    logit_seed: int = 0
    """Seed of ``logits: normal``."""
    redraw_logits: bool = False
    """Draw ``logits: normal`` anew for each example in training, as released code does."""
    gate: Literal["none", "history"] = "none"
    """Weigh items by a gate (UMI). ``history``: it sees the item and the history's mean, which stands for the profile
    that the paper has."""


class RoutingExtractor(Extractor):
    """Votes, then routing by agreement; with ``gate``, UMI's gated capsules."""

    logit_KL: Tensor

    def __init__(self, config: RoutingConfig, sizes: Sizes) -> None:
        if config.maps == "shared" and config.logits == "zero" and sizes.num_interests > 1:
            raise ConfigError(
                "extractor 'routing' with one map for all interests and equal logits keeps them equal for ever",
                got="maps: shared, logits: zero",
                fix="set logits: normal, or maps: interests or positions",
            )
        super().__init__(sizes)
        self.config = config
        self.votes = _maps(config, sizes)
        self.routing = Routing(config.rounds, config.axis, config.gradient, config.update)
        shape, generator = (sizes.num_interests, sizes.max_length), torch.Generator().manual_seed(config.logit_seed)
        drawn = config.logits == "normal"
        logit_KL = draw_logits(shape, config.logit_std, generator) if drawn else torch.zeros(shape)
        self.register_buffer("logit_KL", logit_KL)
        self.gate = ProfileGate(sizes.dim, sizes.dim) if config.gate == "history" else None

    def forward(
        self,
        item_BLD: Tensor,
        mask_BL: Tensor,
        mask_BK: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Extracted:
        """Return capsules and their coupling coefficients; see :class:`~gemirec.components.roles.Extractor`."""
        logit_BKL = self.logit_KL[None, :, : item_BLD.shape[1]]
        if self.training and self.config.redraw_logits and self.config.logits == "normal":
            shape = (len(item_BLD), *logit_BKL.shape[1:])
            logit_BKL = draw_logits(shape, self.config.logit_std, generator).to(item_BLD.device)
        gate_BL = None if self.gate is None else self.gate(item_BLD, mean_pool(item_BLD, mask_BL))[:, :, 0]
        interest_BKD, weight_BKL = self.routing.route(self.votes(item_BLD), logit_BKL, mask_BL, mask_BK, gate_BL)
        return Extracted(interest_BKD, mask_BK, weight_BKL)

    def interest_parameters(self) -> Tensor | None:
        """Return each interest's maps; ``None`` with one map for all."""
        if isinstance(self.votes, InterestMaps):
            return self.votes.weight_KDD.flatten(1)
        if isinstance(self.votes, PositionMaps):
            length, dim, _ = self.votes.weight_LDE.shape
            weight_LDKE = self.votes.weight_LDE.view(length, dim, self.sizes.num_interests, dim)
            return weight_LDKE.permute(2, 0, 1, 3).flatten(1)
        return None


class GraphConfig(RoutingConfig, frozen=True, kw_only=True):
    """Capsules over the levels of the history's graph (MGNM); K interests for each level."""

    maps: Literal["shared", "interests", "positions"] = "positions"
    """Who has a map of its own, as in ``routing``; MGNM: each position and interest."""
    levels: Count = 2
    """Levels, the items themselves counted (MGNM: 4). The model has ``levels x num_interests`` interests."""
    hops: Hops = "chained"
    """Each hop starts from the level before (paper) or from the items (release)."""
    normalise: bool = True
    """Edges from each item to itself and rows that sum to 1."""


class GraphExtractor(Extractor):
    """``x^l = LeakyReLU(A x^{l-1} W_l)``; one capsule network, shared, routes every level (MGNM, arXiv 2205.01286)."""

    def __init__(self, config: GraphConfig, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.levels = config.levels
        self.graph = GraphLevels(
            sizes.dim, config.levels, hops=config.hops, normalise=config.normalise, identity=config.identity
        )
        self.capsules = RoutingExtractor(config, sizes)

    @property
    def num_interests(self) -> int:
        """Interests of all levels together."""
        return self.levels * self.sizes.num_interests

    def forward(
        self,
        item_BLD: Tensor,
        mask_BL: Tensor,
        mask_BK: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Extracted:
        """Return the capsules of every level, level by level; see :class:`~gemirec.components.roles.Extractor`.

        ``mask_BK`` holds for each level alike, ``[B, levels x K]``.
        """
        batch, levels = len(item_BLD), self.levels
        level_XLD = torch.cat(self.graph(item_BLD, mask_BL))  # X = G x B, all levels in one call
        mask_XK = None
        if mask_BK is not None:
            mask_XK = mask_BK.view(batch, levels, -1).transpose(0, 1).flatten(0, 1)
        found = self.capsules(level_XLD, mask_BL.repeat(levels, 1), mask_XK, generator)
        assert found.weight_BKL is not None

        def by_user(part_XKV: Tensor) -> Tensor:
            return part_XKV.view(levels, batch, *part_XKV.shape[1:]).transpose(0, 1).flatten(1, 2)

        return Extracted(by_user(found.interest_BKD), mask_BK, by_user(found.weight_BKL))


class OnePassConfig(ExtractorConfig, frozen=True, kw_only=True):
    """Routing without iterations (ours)."""

    identity: bool = False
    """Start the shared map at the identity plus the draws, so that votes begin in the space of the items."""
    axis: RoutingAxis = "interests"
    """Axis of the softmax: an item is shared out among interests, or an interest among positions."""
    temperature: Positive = 0.2
    """tau of the cosine between a vote and a prototype."""
    collect: Collected = "squash"
    """Squash the weighted sum as routing does, or take the weighted mean."""
    train_prototypes: bool = True
    """Train the prototypes; otherwise they stay orthogonal as drawn."""


class OnePassExtractor(Extractor):
    """One shared map and one softmax over prototypes; see :class:`~gemirec.components.one_pass.OnePassRouting`."""

    def __init__(self, config: OnePassConfig, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.votes = SharedMap(sizes.dim, bias=False, identity=config.identity)
        self.routing = OnePassRouting(
            sizes.dim,
            sizes.num_interests,
            axis=config.axis,
            temperature=config.temperature,
            collect=config.collect,
            train_prototypes=config.train_prototypes,
        )

    def forward(
        self,
        item_BLD: Tensor,
        mask_BL: Tensor,
        mask_BK: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Extracted:
        """Return interests and coupling coefficients; see :class:`~gemirec.components.roles.Extractor`."""
        interest_BKD, weight_BKL = self.routing(self.votes(item_BLD)[:, 0], mask_BL, mask_BK)
        return Extracted(interest_BKD, mask_BK, weight_BKL)

    def interest_parameters(self) -> Tensor:
        """Return the prototypes."""
        return self.routing.prototype_KD


def _maps(config: RoutingConfig, sizes: Sizes) -> nn.Module:
    """Return what turns items into votes."""
    if config.maps == "shared":
        return SharedMap(sizes.dim, bias=False, identity=config.identity)
    if config.maps == "interests":
        return InterestMaps(sizes.dim, sizes.num_interests, config.identity)
    return PositionMaps(sizes.dim, sizes.num_interests, sizes.max_length, config.map_std, config.identity)
