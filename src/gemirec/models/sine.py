"""SINE: a user activates a few of many prototypes; their interests are merged into one vector (WSDM 2021, 2102.09267).

Axes: B batch, L history length, K interests, D embedding, C prototypes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional as F

from gemirec.components.prototypes import IntentFusion, SparsePrototypes
from gemirec.components.regularizers import weighted_mean
from gemirec.errors import ConfigError
from gemirec.models.base import Histories, LossTerms, TrainBatch
from gemirec.models.common import Count, PositiveFloat, TableModel, TableModelConfig, widen

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec


class SINEConfig(TableModelConfig, frozen=True, kw_only=True):
    """Fields of SINE."""

    num_prototypes: Count = 50
    """C, the pool of prototypes, shared by all users (released code: 10 to 50 on small data, 50 to 5000 on large)."""
    num_interests: Count = 4
    """K, the prototypes that a user activates (paper: 2 to 16). They are merged: serving has one vector per user."""
    hidden_factor: Count = 4
    """Width of the three attentions' hidden layers in multiples of ``dim`` (released code: 4)."""
    assignment_temperature: PositiveFloat = 0.07
    """tau of the items' assignment to prototypes by cosine (released code; the paper normalises layers instead)."""
    cosine_activation: bool = False
    """Activate prototypes by cosine instead of inner product (``cate_norm`` of the released code)."""
    residual: bool = False
    """Add the items themselves to the imagined sequence that weighs the interests (``cpt_feat`` of the release)."""
    separation: Literal["covariance", "interests"] = "covariance"
    """What is kept apart. ``covariance``: all prototypes, by the off-diagonal of their covariance (paper's idea; the
    form is RecBole's). ``interests``: a user's K interests, by their mean cosine (released code)."""
    separation_weight: Annotated[float, Meta(ge=0)] = 0.5
    """Weight of the separation (RecBole: .5 of ``covariance``; released code: 0 by default, tried up to .5, of
    ``interests``)."""


class SINE(TableModel):
    """Concept activation, intention assignment, attention, and aggregation to one vector (paper, section 3).

    One vector in training and at serving, so that no target chooses an interest and one query retrieves.
    """

    def __init__(self, config: SINEConfig, spec: DataSpec) -> None:
        if config.num_interests > config.num_prototypes:
            raise ConfigError(
                "a user cannot activate more prototypes than there are",
                got=f"num_interests {config.num_interests}, num_prototypes {config.num_prototypes}",
                fix="raise model.num_prototypes or lower model.num_interests",
            )
        super().__init__(config, spec)
        hidden = config.hidden_factor * config.dim
        self.prototypes = SparsePrototypes(
            config.dim,
            config.num_prototypes,
            config.num_interests,
            config.max_length,
            hidden,
            temperature=config.assignment_temperature,
            cosine=config.cosine_activation,
        )
        self.fusion = IntentFusion(config.dim, config.max_length, hidden, residual=config.residual)

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return the one vector ``[B, 1, D]``; an empty history gives zero."""
        return self._merge(histories)[0][:, None], None

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return ``retrieval`` and ``separation``."""
        user_BD, interest_BKD = self._merge(widen(batch, self.max_length))
        vector_BKD = self._normalize(user_BD)[:, None]
        terms = LossTerms()
        terms.add("retrieval", self._retrieval(vector_BKD, None, batch.target_B, batch.weight_B, batch.generator))
        if self.config.separation == "covariance":
            separation = prototype_covariance(self.prototypes.table_CD)
        else:
            separation = interest_cosine(interest_BKD, batch.weight_B)
        terms.add("separation", separation, self.config.separation_weight)
        return terms

    def _merge(self, histories: Histories) -> tuple[Tensor, Tensor]:
        """Return the user's vector ``[B, D]`` and the interests ``[B, K, D]`` that it is made of."""
        item_BLD, mask_BL = self.item_table(histories.item_BL), histories.mask_BL
        interest_BKD, _, assignment_BKL, active = self.prototypes(item_BLD, mask_BL)
        user_BD: Tensor = self.fusion(interest_BKD, item_BLD, mask_BL, assignment_BKL, active)
        return user_BD, interest_BKD


def prototype_covariance(prototype_CD: Tensor) -> Tensor:
    """Return ``(|M|_F^2 - |diag M|^2) / 2``, M ``[C, C]`` the covariance of the prototypes over their D numbers.

    Example:
        >>> prototype_covariance(torch.tensor([[1.0, -1.0], [2.0, -2.0]]))  # M = [[1, 2], [2, 4]]
        tensor(4.)
    """
    with torch.autocast(prototype_CD.device.type, enabled=False):
        centred_CD = prototype_CD.float() - prototype_CD.float().mean(dim=1, keepdim=True)
        covariance_CC = centred_CD @ centred_CD.T / centred_CD.shape[1]
    return (covariance_CC.square().sum() - covariance_CC.diagonal().square().sum()) / 2


def interest_cosine(interest_BKD: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """Return the mean over the batch of ``0.5 + sum_{i<j} cos(h_i, h_j) / (K (K - 1))``, between 0 and 1.

    Args:
        interest_BKD: ``[B, K, D]`` interests; a zero vector has cosine 0 with every other.
        weight_B: ``[B]`` weights of the rows in the mean; ``None`` for equal ones.

    Example:
        >>> interest_cosine(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))  # orthogonal interests
        tensor(0.5000)
    """
    direction_BKD = F.normalize(interest_BKD.float(), dim=2)
    count = direction_BKD.shape[1]
    both_B = direction_BKD.sum(dim=1).square().sum(dim=1) - direction_BKD.square().sum(dim=(1, 2))
    return weighted_mean(0.5 + both_B / (2 * max(count * (count - 1), 1)), weight_B)
