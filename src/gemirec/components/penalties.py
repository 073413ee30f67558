"""Every regulariser by name: its settings, and what it needs of the other parts (formulas: ``regularizers.py``).

>>> sorted(PENALTIES)
['contrast', 'cosine', 'covariance', 'elementwise', 'orthogonality', 'partition']

Axes: B batch, L history length, K interests, D embedding, P pairs of neighbours, S negatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional as F

from gemirec.components.kinds import parse_part
from gemirec.components.regularizers import (
    Padding,
    Reduction,
    cosine_penalty,
    elementwise_penalty,
    interest_contrast,
    orthogonality_penalty,
    partition_contrast,
    routing_covariance,
)
from gemirec.components.roles import Count, NotNegative, Positive
from gemirec.config import Config
from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from gemirec.components.roles import Extracted, Extractor


@dataclass(frozen=True)
class Penalised:
    """What a regulariser may read of a training batch.

    Attributes:
        found: Of the extractor.
        extractor: The extractor itself, for its parameters.
        item_BLD: ``[B, L, D]`` item vectors, zero at padding.
        mask_BL: ``[B, L]`` bool, true at real items.
        weight_B: ``[B]`` example weights, or ``None``.
        look_up: Gives the vectors ``[n, D]`` of item ids ``[n]``.
        num_items: Items of the catalogue, from 1.
        generator: Source of draws, on the CPU.
    """

    found: Extracted
    extractor: Extractor
    item_BLD: Tensor
    mask_BL: Tensor
    weight_B: Tensor | None
    look_up: Callable[[Tensor], Tensor]
    num_items: int
    generator: torch.Generator | None


class PenaltyConfig(Config, frozen=True, kw_only=True):
    """Base of the regularisers' settings. ``kind`` stands beside them in a file and picks the function."""

    weight: NotNegative = 0.1
    """Weight of the term in the loss."""


class CosineConfig(PenaltyConfig, frozen=True, kw_only=True):
    """Mean cosine between a user's interests."""


class OrthogonalityConfig(PenaltyConfig, frozen=True, kw_only=True):
    """Squared cosines between a user's interests."""


class ContrastConfig(PenaltyConfig, frozen=True, kw_only=True):
    """InfoNCE between an interest and a perturbed copy of it; the user's other interests are the negatives."""

    temperature: Positive = 0.1
    """Divides the cosines."""
    view: Literal["dropout", "noise"] = "dropout"
    """The copy: numbers dropped at random, or Gaussian noise added."""
    strength: Positive = 0.1
    """Share of numbers that are dropped, or the noise's length as a share of the interest's."""


class CovarianceConfig(PenaltyConfig, frozen=True, kw_only=True):
    """REMI's routing regularisation: an interest must not live on one item. Needs routing weights."""

    padding: Padding = "masked"
    """Padding takes no part, or counts as in the release."""
    reduce: Reduction = "mean"
    """Mean over the batch, or the release's sum, whose strength grows with the batch."""


class ElementwiseConfig(PenaltyConfig, frozen=True, kw_only=True):
    """Products of the interests' parameters, element by element. Needs parameters of each interest's own."""


class PartitionConfig(PenaltyConfig, frozen=True, kw_only=True):
    """DisMIR's partition contrast on neighbours of the histories: items that occur together are drawn together."""

    temperature: Positive = 1.0
    """Divides the inner products (ports: 1)."""
    num_negatives: Count = 100
    """Uniform random items, shared by the batch (ports: 100)."""


def _contrast(config: ContrastConfig, batch: Penalised) -> Tensor:
    interest_BKD = batch.found.interest_BKD
    if config.view == "dropout":
        kept_BKD = torch.rand(interest_BKD.shape, generator=batch.generator) >= config.strength
        other_BKD = interest_BKD * kept_BKD.to(interest_BKD.device)
    else:
        noise_BKD = F.normalize(torch.randn(interest_BKD.shape, generator=batch.generator), dim=2)
        length_BK1 = interest_BKD.detach().norm(dim=2, keepdim=True)
        other_BKD = interest_BKD + config.strength * length_BK1 * noise_BKD.to(interest_BKD.device)
    return interest_contrast(interest_BKD, other_BKD, config.temperature, batch.found.mask_BK, batch.weight_B)


def _covariance(config: CovarianceConfig, batch: Penalised) -> Tensor:
    assert batch.found.weight_BKL is not None
    return routing_covariance(
        batch.found.weight_BKL,
        batch.mask_BL,
        batch.item_BLD.shape[2],
        config.padding,
        config.reduce,
        batch.found.mask_BK,
        batch.weight_B,
    )


def _elementwise(config: ElementwiseConfig, batch: Penalised) -> Tensor:
    parameter_KX = batch.extractor.interest_parameters()
    assert parameter_KX is not None
    return elementwise_penalty(parameter_KX)


def _partition(config: PartitionConfig, batch: Penalised) -> Tensor:
    both_BP = batch.mask_BL[:, :-1] & batch.mask_BL[:, 1:]
    if batch.weight_B is not None:
        both_BP = both_BP * batch.weight_B[:, None]
    device = batch.item_BLD.device
    drawn_S = torch.randint(1, batch.num_items + 1, (config.num_negatives,), generator=batch.generator).to(device)
    vector_PD, positive_PD = batch.item_BLD[:, :-1].flatten(0, 1), batch.item_BLD[:, 1:].flatten(0, 1)
    return partition_contrast(vector_PD, positive_PD, batch.look_up(drawn_S), config.temperature, both_BP.flatten())


PENALTIES: dict[str, tuple[type[PenaltyConfig], Callable[[Any, Penalised], Tensor]]] = {
    "cosine": (CosineConfig, lambda _, b: cosine_penalty(b.found.interest_BKD, b.found.mask_BK, b.weight_B)),
    "orthogonality": (
        OrthogonalityConfig,
        lambda _, b: orthogonality_penalty(b.found.interest_BKD, b.found.mask_BK, b.weight_B),
    ),
    "contrast": (ContrastConfig, _contrast),
    "covariance": (CovarianceConfig, _covariance),
    "elementwise": (ElementwiseConfig, _elementwise),
    "partition": (PartitionConfig, _partition),
}
"""``kind -> (settings, the term)``. Add a row to use a regulariser of your own."""


class Penalty:
    """One regulariser, checked against the extractor.

    Args:
        values: ``{"kind": NAME, **fields}``.
        extractor: Whose interests it reads.
        extractor_kind: Its name, for errors.

    Raises:
        ConfigError: An unknown kind, key or value, or an extractor that lacks what it needs.
    """

    def __init__(self, values: Mapping[str, Any], extractor: Extractor, extractor_kind: str) -> None:
        self.kind, self.config = parse_part("regularizer", values, {name: row[0] for name, row in PENALTIES.items()})
        if self.kind == "covariance" and not extractor.gives_weights:
            raise ConfigError(
                f"regularizer 'covariance' needs routing weights, extractor {extractor_kind!r} has none",
                got=f"extractor: {extractor_kind}, regularizer: covariance",
                fix="take extractor attention, routing, one_pass, graph or prototypes, or regularizer cosine, "
                "orthogonality, contrast or partition",
            )
        if self.kind == "elementwise" and extractor.interest_parameters() is None:
            raise ConfigError(
                f"regularizer 'elementwise' needs parameters of each interest's own, extractor {extractor_kind!r} "
                "shares all of them",
                got=f"extractor: {extractor_kind}, regularizer: elementwise",
                fix="give the extractor maps: interests or positions, take extractor attention, one_pass, prototypes "
                "or transform, or another regularizer",
            )

    def __call__(self, batch: Penalised) -> Tensor:
        """Return the term, a float32 scalar, without its weight."""
        return PENALTIES[self.kind][1](self.config, batch)
