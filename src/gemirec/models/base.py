"""The contract that every model keeps, and the small structs that travel through it.

Axes: B batch, L history length, K interests, D embedding, N items (row 0 of an ``N`` axis is padding),
C sub-dictionaries, F categorical and G numeric user features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from gemirec.config import Config

if TYPE_CHECKING:
    from gemirec.data.dataset import Dataset, DataSpec


class ModelConfig(Config, frozen=True, kw_only=True):
    """Fields that every model has."""

    dim: int = 64
    """Width of item and interest vectors."""
    max_length: int = 20
    """Most recent events that the model reads of a history."""


HistoriesT = TypeVar("HistoriesT", bound="Histories")


@dataclass(frozen=True)
class Histories:
    """A batch of histories, right-padded: position 0 is the oldest event of the window, 0 is padding.

    Attributes:
        item_BL: ``[B, L]`` int64 item indices; padding is 0 and stands only behind the real items.
        user_categorical_BF: ``[B, F]`` int64 codes, 0 unknown, or ``None`` if the data have none.
        user_numeric_BG: ``[B, G]`` float32 standardised numbers, 0 unknown, or ``None``.
    """

    item_BL: Tensor
    user_categorical_BF: Tensor | None = None
    user_numeric_BG: Tensor | None = None

    @property
    def mask_BL(self) -> Tensor:
        """``[B, L]`` bool, true at real items."""
        return self.item_BL != 0

    @property
    def length_B(self) -> Tensor:
        """``[B]`` int64, real items in each window."""
        return self.mask_BL.sum(dim=1)

    def to(self: HistoriesT, device: torch.device | str) -> HistoriesT:
        """Return a copy whose tensors lie on ``device``."""
        moved = {f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True)
class TrainBatch(Histories):
    """Histories with the item that came next.

    Attributes:
        target_B: ``[B]`` int64 next item.
        weight_B: ``[B]`` float32 weight of each example in the loss, or ``None`` for equal weights.
        generator: Source of every random draw of the step (negatives, routing noise); on the CPU, seeded per step.
    """

    target_B: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    weight_B: Tensor | None = None
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class Interests:
    """What a model says of a batch of users.

    Attributes:
        vector_BKD: ``[B, K, D]`` interest vectors; an item's score for an interest is their inner product.
        mask_BK: ``[B, K]`` bool, true where the interest exists (adaptive K); at least one per row.
        weight_BK: ``[B, K]`` float, the model's own weight of each interest, or ``None``.
        code_BKC: ``[B, K, C]`` int64 dictionary codes, or ``None`` for models without a dictionary.
    """

    vector_BKD: Tensor
    mask_BK: Tensor
    weight_BK: Tensor | None = None
    code_BKC: Tensor | None = None


@dataclass
class LossTerms:
    """Named loss terms and their weights, so that every term is logged apart.

    Example:
        >>> terms = LossTerms()
        >>> terms.add("retrieval", torch.tensor(2.0))
        >>> terms.add("routing", torch.tensor(0.5), weight=10.0)
        >>> float(terms.total())
        7.0
    """

    terms: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, weight: float = 1.0) -> None:
        """Add a scalar term; a name may be used once."""
        assert name not in self.terms, name
        self.terms[name] = value
        self.weights[name] = weight

    def total(self) -> Tensor:
        """Return the weighted sum, a scalar with gradient."""
        return torch.stack([value * self.weights[name] for name, value in self.terms.items()]).sum()


@dataclass(frozen=True)
class Stage:
    """One stage of training, as data.

    Attributes:
        name: For logs and checkpoints; given back to :meth:`RetrievalModel.losses`.
        share: This stage's share of ``training.steps``; shares of all stages are normalised to sum to 1.
        frozen: Prefixes of parameter names that do not train in this stage.
        on_start: Name of a method of the model called once, before the stage's first step, without gradient
            (k-means, for example); ``None`` for none. It gets no argument and must be deterministic.
    """

    name: str
    share: float = 1.0
    frozen: tuple[str, ...] = ()
    on_start: str | None = None


class RetrievalModel(nn.Module, ABC):
    """Base of every model: from histories to K interest vectors, compared with item vectors by inner product.

    A model is built from its config and a :class:`~gemirec.data.dataset.DataSpec` alone; all randomness of its
    initialisation comes from torch's global generator, which the caller seeds.
    """

    trainable: ClassVar[bool] = True
    """False for models without anything to learn by gradient (popularity)."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config: Any = config
        self.spec = spec

    @property
    def max_length(self) -> int:
        """Most recent events that the model reads."""
        return int(self.config.max_length)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of training, in order."""
        return (Stage("train"),)

    def learn_from(self, dataset: Dataset) -> None:
        """Take from the training events what no gradient teaches (co-occurrence, for example); by default nothing.

        Training calls it once, without gradient, before the first step of a new run. What is kept lies in persistent
        buffers of a size that config and spec fix, so that checkpoints and artifacts hold it: a resumed run and a
        loaded model do without the call. It must be deterministic, and a model that it was never called on must work.
        """

    @abstractmethod
    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """Return item vectors as they are compared at serving (normalised if the model normalises).

        Args:
            item_ids: ``[...]`` int64 item indices, or ``None`` for all, padding row 0 included.

        Returns:
            ``[..., D]`` or ``[N + 1, D]`` float32.
        """

    @abstractmethod
    def interests(self, histories: Histories) -> Interests:
        """Return the users' interests as they are compared at serving. Deterministic in ``eval`` mode."""

    @abstractmethod
    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return the loss terms of one batch in one stage."""

    def attribution(self, histories: Histories) -> Tensor | None:
        """Return how much each item of a history forms each interest, for explanations.

        Returns:
            ``[B, K, L]`` for the interests of :meth:`interests`, in the same order: at least 0, 0 at padding, each row
            summing to 1 where there is a history; ``None`` for models that have no such weights.
        """
        return None

    def diagnostics(self) -> dict[str, float]:
        """Return numbers about the model's inner state that training logs beside the losses; empty for most models."""
        return {}

    def alarm(self) -> str | None:
        """Return one sentence if the inner state has gone wrong (a collapsed dictionary), for training to report."""
        return None

    def forward(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return :meth:`losses`, so that wrappers that call modules (data parallelism) train any model."""
        return self.losses(batch, stage)
