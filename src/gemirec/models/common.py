"""What the trained models share: one item table, one retrieval loss, vectors at serving as they are in training.

Axes: B batch, L history length, K interests, D embedding, N items, P width of the user profile.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional as F

from gemirec.components.embedding import Initialisation, ItemTable
from gemirec.components.features import UserFeatures
from gemirec.components.losses import LossConfig, MultiInterestLossConfig, RetrievalLoss
from gemirec.errors import ConfigError
from gemirec.models.base import Histories, Interests, LossTerms, ModelConfig, RetrievalModel, TrainBatch

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec

Count = Annotated[int, Meta(ge=1)]
Probability = Annotated[float, Meta(ge=0, lt=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]


class TableModelConfig(ModelConfig, frozen=True, kw_only=True):
    """Fields of every model with an item table."""

    dim: Count = 64
    """Width of item and interest vectors."""
    max_length: Count = 20
    """Most recent events that the model reads of a history."""
    item_init: Initialisation = "glorot_uniform"
    """Initialisation of the item table. ``glorot_uniform`` is the original ComiRec's and starts small; the PyTorch
    ports' ``kaiming_normal`` starts large and costs ComiRec-SA a third of its recall on small catalogues."""
    item_std: PositiveFloat = 0.02
    """Standard deviation of ``item_init: normal``."""
    loss: LossConfig = LossConfig()
    """The retrieval loss."""


class MultiInterestConfig(TableModelConfig, frozen=True, kw_only=True):
    """Fields of every model with several interests."""

    num_interests: Count = 4
    """K, the most interests of a user."""
    loss: MultiInterestLossConfig = MultiInterestLossConfig()
    """The retrieval loss and its readout."""


class TableModel(RetrievalModel):
    """A model whose interests come from the item vectors of the history; a subclass writes :meth:`encode`.

    Attributes:
        item_table: The only item vectors of the model, for histories, targets and negatives alike.
        retrieval_loss: The loss of ``config.loss``.
    """

    def __init__(self, config: TableModelConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.item_table = ItemTable(spec.num_items, config.dim, config.item_init, config.item_std)
        self.retrieval_loss = RetrievalLoss(config.loss, spec.train_count_N)

    @abstractmethod
    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return raw interests ``[B, K, D]`` and ``[B, K]`` bool (true where they exist), ``None`` if all do.

        ``histories`` is as wide as the model reads, so that padding to any width gives the same numbers, bit for bit.
        """

    def interests(self, histories: Histories) -> Interests:
        """Return the users' interests; an all-padding history has one zero interest unless the model reads more."""
        vector_BKD, mask_BK = self._encode(histories)
        vector_BKD = vector_BKD.float()
        if mask_BK is None:
            mask_BK = torch.ones(vector_BKD.shape[:2], dtype=torch.bool, device=vector_BKD.device)
        empty_B = ~histories.mask_BL.any(dim=1)
        first_K = torch.arange(vector_BKD.shape[1], device=vector_BKD.device) == 0
        return Interests(vector_BKD, torch.where(empty_B[:, None], first_K, mask_BK))

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """Return item vectors ``[..., D]``, or ``[N + 1, D]`` without ids; normalised if the loss normalises."""
        if item_ids is None:
            return self._normalize(self.item_table.weight)
        return self._normalize(self.item_table(item_ids))

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return the term ``retrieval``."""
        vector_BKD, mask_BK = self._encode(batch)
        terms = LossTerms()
        terms.add("retrieval", self._retrieval(vector_BKD, mask_BK, batch.target_B, batch.weight_B, batch.generator))
        return terms

    def _retrieval(
        self,
        vector_BKD: Tensor,
        mask_BK: Tensor | None,
        target_B: Tensor,
        weight_B: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Return the retrieval loss of interests ``[B, K, D]`` as :meth:`interests` gives them."""
        return self.retrieval_loss(
            vector_BKD, target_B, self.item_vectors, mask_BK=mask_BK, weight_B=weight_B, generator=generator
        )

    def _encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Encode windows of any width up to ``max_length`` and normalise as the loss does."""
        vector_BKD, mask_BK = self.encode(widen(histories, self.max_length))
        return self._normalize(vector_BKD), mask_BK

    def _normalize(self, vector: Tensor) -> Tensor:
        """L2-normalise the last axis if the loss does; a zero vector stays zero."""
        return F.normalize(vector.float(), dim=-1) if self.config.loss.normalize else vector


def widen(histories: Histories, max_length: int) -> Histories:
    """Pad windows on the right to ``max_length`` positions.

    Raises:
        ConfigError: They are wider than that already.
    """
    length = histories.item_BL.shape[1]
    if length == max_length:
        return histories
    if length > max_length:
        raise ConfigError(
            "a history window is wider than the model reads",
            got=f"{length} positions, max_length {max_length}",
            fix="cut each history to its most recent max_length events, or train with a larger model.max_length",
        )
    return replace(histories, item_BL=F.pad(histories.item_BL, (0, max_length - length)))


def user_features(spec: DataSpec, width: int) -> UserFeatures:
    """Return the encoder of the data's user features.

    Raises:
        ConfigError: The data have none.
    """
    if not spec.user_categorical_sizes and not spec.num_user_numeric:
        raise ConfigError(
            "the model wants user features and the data have none",
            got="use_user_features: true",
            fix="give a user table to prepare, or set model.use_user_features=false",
        )
    return UserFeatures(spec.user_categorical_sizes, spec.num_user_numeric, width)
