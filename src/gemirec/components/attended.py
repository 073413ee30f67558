"""Extractors without routing: attention over the history, sparse prototypes, transforms of one vector.

Axes: B batch, L history length, K interests, D embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from gemirec.components.attention import Positions, SelfAttention
from gemirec.components.pooling import last_state, mean_pool
from gemirec.components.prototypes import SparsePrototypes, imagine
from gemirec.components.roles import Count, Extracted, Extractor, ExtractorConfig, NotNegative, Positive, Sizes, hide
from gemirec.components.transform import InterestTransforms
from gemirec.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class AttentionConfig(ExtractorConfig, frozen=True, kw_only=True):
    """Additive self-attention; the defaults are ComiRec-SA's."""

    hidden_factor: Count = 4
    """Width of the hidden layer in multiples of ``dim``."""
    positions: Positions = "oldest"
    """Learned positions in the logits."""
    temperature: Positive = 1.0
    """tau: logits are divided by it."""
    power: NotNegative = 1.0
    """gamma on the weights: 0 is mean pooling, a large one hard selection."""
    cosine: bool = False
    """Cosines as logits; with a temperature of about .1."""
    gumbel: NotNegative = 0.0
    """Scale of Gumbel noise on the logits in training."""


class AttentionExtractor(Extractor):
    """K attention distributions over the history; see :class:`~gemirec.components.attention.SelfAttention`."""

    def __init__(self, config: AttentionConfig, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.attention = SelfAttention(
            sizes.dim,
            sizes.num_interests,
            sizes.max_length,
            config.hidden_factor * sizes.dim,
            config.positions,
            temperature=config.temperature,
            power=config.power,
            cosine=config.cosine,
            gumbel=config.gumbel,
        )

    def forward(
        self,
        item_BLD: Tensor,
        mask_BL: Tensor,
        mask_BK: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Extracted:
        """Return interests and attention; see :class:`~gemirec.components.roles.Extractor`."""
        weight_BKL = hide(self.attention.attention(item_BLD, mask_BL, generator) * mask_BL[:, None], mask_BK)
        return Extracted(weight_BKL.to(item_BLD.dtype) @ item_BLD, mask_BK, weight_BKL)

    def interest_parameters(self) -> Tensor:
        """Return each interest's query."""
        return self.attention.outer.weight


class PrototypesConfig(ExtractorConfig, frozen=True, kw_only=True):
    """Sparse prototypes (SINE)."""

    num_prototypes: Count = 50
    """Prototypes in the table (SINE: 10 to 50 on small data, 50 to 5000 on large)."""
    temperature: Positive = 0.07
    """tau of the assignment of items to prototypes (release: .07)."""
    cosine: bool = False
    """Activate prototypes by cosines instead of inner products."""
    hidden_factor: Count = 4
    """Width of the attentions' hidden layers in multiples of ``dim`` (release: 512 at 128)."""
    gate: Literal["assignment", "aggregator"] = "assignment"
    """Where a prototype's gate acts. ``aggregator``: as in SINE, in aggregator ``intent`` alone, which it then needs.
    ``assignment`` (ours): it also weighs the items' assignment, so that the activation learns with any aggregator."""


class PrototypesExtractor(Extractor):
    """The user's K prototypes, and what of the history each attends to."""

    gives_prototypes = True

    def __init__(self, config: PrototypesConfig, sizes: Sizes) -> None:
        if config.num_prototypes < sizes.num_interests:
            raise ConfigError(
                "extractor 'prototypes' has fewer prototypes than the model has interests",
                got=f"num_prototypes {config.num_prototypes}, num_interests {sizes.num_interests}",
                fix="raise extractor.num_prototypes or lower num_interests",
            )
        super().__init__(sizes)
        self.config = config
        self.sparse = SparsePrototypes(
            sizes.dim,
            config.num_prototypes,
            sizes.num_interests,
            sizes.max_length,
            config.hidden_factor * sizes.dim,
            temperature=config.temperature,
            cosine=config.cosine,
        )

    def forward(
        self,
        item_BLD: Tensor,
        mask_BL: Tensor,
        mask_BK: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Extracted:
        """Return interests, attention and the imagined items; see :class:`~gemirec.components.roles.Extractor`."""
        active = self.sparse.activate(item_BLD, mask_BL)
        gate_BK = active.gate_BK if self.config.gate == "assignment" else None
        assignment_BKL = self.sparse.assign(item_BLD, active.prototype_BKD, mask_BK, gate_BK)
        weight_BKL = hide(self.sparse.weights(item_BLD, mask_BL, assignment_BKL) * mask_BL[:, None], mask_BK)
        imagined_BLD = imagine(assignment_BKL, active).to(item_BLD.dtype)
        return Extracted(weight_BKL.to(item_BLD.dtype) @ item_BLD, mask_BK, weight_BKL, imagined_BLD)

    def interest_parameters(self) -> Tensor:
        """Return each interest's query; the prototypes belong to no interest in particular."""
        return self.sparse.attention.outer.weight


class TransformConfig(ExtractorConfig, frozen=True, kw_only=True):
    """Nonlinear transforms of one vector of the user."""

    pool: Literal["mean", "last"] = "mean"
    """The user's vector: the mean of the history's items, or the last item."""
    slope: NotNegative = 0.01
    """Slope of the LeakyReLU below zero."""
    identity: bool = False
    """Start each map at the identity plus the draws (ours)."""


class TransformExtractor(Extractor):
    """``h_j = LeakyReLU( u W_j + b_j )``: no item belongs to an interest in particular, so there are no weights."""

    gives_weights = False

    def __init__(self, config: TransformConfig, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.pool = config.pool
        self.transforms = InterestTransforms(sizes.dim, sizes.num_interests, config.slope, config.identity)

    def forward(
        self,
        item_BLD: Tensor,
        mask_BL: Tensor,
        mask_BK: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Extracted:
        """Return the interests; see :class:`~gemirec.components.roles.Extractor`."""
        user_BD = (mean_pool if self.pool == "mean" else last_state)(item_BLD, mask_BL)
        interest_BKD = self.transforms(user_BD) * mask_BL.any(dim=1)[:, None, None]
        return Extracted(hide(interest_BKD, mask_BK), mask_BK)

    def interest_parameters(self) -> Tensor:
        """Return each interest's map."""
        return self.transforms.weight_KDD.flatten(1)
