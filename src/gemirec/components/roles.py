"""The roles of the framework: extractor and aggregator, what they take and give (survey, arXiv 2506.15284, section 3).

*Representation* aggregation merges the interests into one vector, and its score is ``phi(H) . x``. *Recommendation*
aggregation scores an item with each interest and merges the scores, ``phi(H x^T)``. Serving is a nearest-neighbour
search, always the inner product of vectors and items, so an aggregator says which vectors are searched for: one for a
representation, K for the maximum of scores, and one for their mean, for the mean of scores is the score of the mean.

Axes: B batch, L history length, K interests, D embedding, X parameters of one interest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor, nn

from gemirec.config import Config

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
NEVER = -1e30
"""Logit of an interest that does not exist; finite, so that gradients are."""


@dataclass(frozen=True)
class Sizes:
    """What every extractor is built for.

    Attributes:
        dim: D, width of item and interest vectors.
        num_interests: K.
        max_length: L, positions that can be told apart.
    """

    dim: int
    num_interests: int
    max_length: int


@dataclass(frozen=True)
class Extracted:
    """What an extractor says of a batch of histories.

    Attributes:
        interest_BKD: ``[B, K, D]`` interests; zero for a history without items.
        mask_BK: ``[B, K]`` bool, true where an interest exists; ``None`` if all do.
        weight_BKL: ``[B, K, L]`` float32, how much each item formed each interest (attention or coupling), zero at
            padding; ``None`` if the extractor has no such weights.
        imagined_BLD: ``[B, L, D]`` each item as the prototypes see it that the user activates (SINE), or ``None``.
    """

    interest_BKD: Tensor
    mask_BK: Tensor | None = None
    weight_BKL: Tensor | None = None
    imagined_BLD: Tensor | None = None


class ExtractorConfig(Config, frozen=True, kw_only=True):
    """Base of the extractors' settings. ``kind`` stands beside them in a file and picks the class."""


class Extractor(nn.Module, ABC):
    """From item vectors to K interests. Deterministic in ``eval`` mode; draws in training come from ``generator``.

    Args of the constructor: the settings, and the :class:`Sizes`.
    """

    gives_weights: ClassVar[bool] = True
    """False if :attr:`Extracted.weight_BKL` is always ``None``."""
    gives_prototypes: ClassVar[bool] = False
    """True if :attr:`Extracted.imagined_BLD` is there."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes

    @abstractmethod
    def forward(
        self,
        item_BLD: Tensor,
        mask_BL: Tensor,
        mask_BK: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Extracted:
        """Return the interests.

        Args:
            item_BLD: ``[B, L, D]`` item vectors, zero at padding.
            mask_BL: ``[B, L]`` bool, true at real items.
            mask_BK: ``[B, K]`` bool, true at interests that exist, if that is known beforehand (a rule of the history's
                length); others come out zero.
            generator: Source of draws in training, on the CPU.
        """

    def interest_parameters(self) -> Tensor | None:
        """Return the parameters ``[K, X]`` that belong to one interest each; ``None`` if interests share them all."""
        return None

    @property
    def num_interests(self) -> int:
        """K of what :meth:`forward` returns."""
        return self.sizes.num_interests


@dataclass(frozen=True)
class Aggregated:
    """What is searched for.

    Attributes:
        vector_BKD: ``[B, K, D]`` vectors, K of the aggregator.
        mask_BK: ``[B, K]`` bool, true where one exists; ``None`` if all do.
        weight_BK: ``[B, K]`` factor of each vector, not yet in it; ``None`` for 1. It is multiplied in after
            normalisation, if there is one.
    """

    vector_BKD: Tensor
    mask_BK: Tensor | None = None
    weight_BK: Tensor | None = None


class AggregatorConfig(Config, frozen=True, kw_only=True):
    """Base of the aggregators' settings. ``kind`` stands beside them in a file and picks the class."""


class Aggregator(nn.Module, ABC):
    """From what an extractor says to the vectors that are served. Args: settings, sizes with the extractor's own K."""

    of_scores: ClassVar[bool] = False
    """True for recommendation aggregation: interests are normalised before, if the loss normalises."""
    uses_target: ClassVar[bool] = False
    """True if training merges by the target, which serving does not know; :meth:`train_vectors` then takes it."""
    needs_prototypes: ClassVar[bool] = False
    """True if :attr:`Extracted.imagined_BLD` is needed."""

    def __init__(self, config: Any, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes

    @abstractmethod
    def forward(self, found: Extracted, item_BLD: Tensor, mask_BL: Tensor) -> Aggregated:
        """Return what is served.

        Args:
            found: Of the extractor.
            item_BLD: ``[B, L, D]`` item vectors, zero at padding.
            mask_BL: ``[B, L]`` bool, true at real items.
        """

    def train_vectors(self, found: Extracted, target_BD: Tensor) -> Aggregated:
        """Return what is trained, if :attr:`uses_target`; ``target_BD`` ``[B, D]`` are the targets' vectors."""
        raise NotImplementedError


def hide(interest_BKD: Tensor, mask_BK: Tensor | None) -> Tensor:
    """Set interests that do not exist to zero."""
    return interest_BKD if mask_BK is None else interest_BKD * mask_BK[:, :, None]


def present(found: Extracted, missing: float) -> Tensor:
    """Return the interests ``[B, K, D]``, ``missing`` at those that do not exist."""
    if found.mask_BK is None:
        return found.interest_BKD
    return found.interest_BKD.masked_fill(~found.mask_BK[:, :, None], missing)


def mean_interest(found: Extracted) -> Tensor:
    """Return the mean ``[B, D]`` of the interests that exist."""
    if found.mask_BK is None:
        return found.interest_BKD.mean(dim=1)
    return present(found, 0.0).sum(dim=1) / found.mask_BK.sum(dim=1, keepdim=True).clamp(min=1)


def softmax_over(logit_BK: Tensor, mask_BK: Tensor | None) -> Tensor:
    """Return a float32 softmax over the interests that exist."""
    logit_BK = logit_BK.float()
    return torch.softmax(logit_BK if mask_BK is None else logit_BK.masked_fill(~mask_BK, NEVER), dim=1)


def weighted_sum(weight_BK: Tensor, interest_BKD: Tensor) -> Tensor:
    """Return ``sum_k w_k h_k`` ``[B, 1, D]``."""
    return torch.einsum("bk,bkd->bd", weight_BK.to(interest_BKD.dtype), interest_BKD)[:, None]


def two_layers(width: int, hidden: int, out: int) -> nn.Sequential:
    """Return a two-layer ReLU network."""
    network = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))
    for layer in (network[0], network[2]):
        assert isinstance(layer, nn.Linear)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return network
