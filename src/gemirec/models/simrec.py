"""SimRec: item vectors that mix in those of co-occurring items, under ComiRec-SA (Liu et al., WSDM 2024, 2311.17374).

Items without attributes are given simulated ones: what an item is like is told by what it stands next to.

Axes: B batch, L history length, K interests, D embedding, N items (row 0 is padding), M an item and its neighbours,
U distinct items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional as F

from gemirec.components.attention import SelfAttention
from gemirec.components.embedding import ItemTable
from gemirec.components.mixing import mixed_rows
from gemirec.data.cooccurrence import Decay, cooccurrence
from gemirec.errors import ConfigError
from gemirec.models.base import Histories
from gemirec.models.comirec_sa import ComiRecSAConfig
from gemirec.models.common import Count, TableModel

if TYPE_CHECKING:
    from gemirec.data.cooccurrence import Neighbours
    from gemirec.data.dataset import Dataset, DataSpec


class SimRecConfig(ComiRecSAConfig, frozen=True, kw_only=True):
    """Fields of SimRec."""

    window: Count = 3
    """k: items at most so many positions apart co-occur (paper: 3, for Yelp 5)."""
    decay: Decay = "linear"
    """Weight of a pair at distance d: ``linear`` k - d + 1 (paper), ``none`` 1."""
    neighbours: Count = 20
    """Strongest neighbours of each item that are kept (ours; the paper keeps all): a lookup costs so many rows more."""
    identity: Literal["before", "after"] = "before"
    """The identity is added ``before`` the rows are normalised, so that an item seen often is all neighbours (paper),
    or ``after`` (an option of the release): the item counts as much as its neighbours together."""
    mix: Literal["replace", "sum", "concat"] = "replace"
    """The simulated attributes ``replace`` the item's vector (paper), are added to it (``sum``), or are one half of it
    (``concat``): both options of the release."""
    attribute_weight: Annotated[float, Meta(ge=0)] = 1.0
    """Weight of the attributes in ``mix: sum``."""


class SimRec(TableModel):
    """``x_i = (M E)_i``, ``M`` the row-normalised ``C + I``; interests by ComiRec-SA over these vectors.

    ``C`` is :func:`~gemirec.data.cooccurrence.cooccurrence`, cut to the strongest neighbours before it is normalised.
    Until :meth:`learn_from` is called no item has a neighbour and ``M`` is the identity.

    Attributes:
        item_table: ``E`` with ``mix: replace``; otherwise the items' own vectors.
        attribute_table: ``E`` with ``sum`` and ``concat``; ``None`` with ``replace``.
    """

    neighbour_NM: Tensor
    weight_NM: Tensor

    def __init__(self, config: SimRecConfig, spec: DataSpec) -> None:
        if config.mix == "concat" and config.dim % 2:
            raise ConfigError(
                "the two halves of concatenated item vectors must be equal",
                got=f"dim {config.dim}",
                fix="give an even model.dim, or choose mix: replace or sum",
            )
        super().__init__(config, spec)
        self.attribute_table = None
        if config.mix == "sum":
            self.attribute_table = ItemTable(spec.num_items, config.dim, config.item_init, config.item_std)
        elif config.mix == "concat":
            half = config.dim // 2
            self.item_table = ItemTable(spec.num_items, half, config.item_init, config.item_std)
            self.attribute_table = ItemTable(spec.num_items, half, config.item_init, config.item_std)
        hidden = config.hidden_factor * config.dim
        self.attention = SelfAttention(config.dim, config.num_interests, config.max_length, hidden, config.positions)
        neighbour_NM = torch.zeros(spec.num_items + 1, config.neighbours + 1, dtype=torch.int32)
        neighbour_NM[:, 0] = torch.arange(spec.num_items + 1)
        self.register_buffer("neighbour_NM", neighbour_NM)
        self.register_buffer(
            "weight_NM", (torch.arange(config.neighbours + 1) == 0).float().repeat(len(neighbour_NM), 1)
        )

    def learn_from(self, dataset: Dataset) -> None:
        """Take the neighbours from the training sequences."""
        config = self.config
        found = cooccurrence(dataset, window=config.window, decay=config.decay, max_neighbours=config.neighbours)
        self.neighbour_NM[:, 1:] = torch.from_numpy(found.id_NM)
        self.weight_NM.copy_(mixing_weights(found, config.identity))

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, K, D]`` interests, all of which exist."""
        return self.attention(self.embed(histories.item_BL), histories.mask_BL), None

    def attribution(self, histories: Histories) -> Tensor:
        """Return the attention ``[B, K, L]``."""
        mask_BL = histories.mask_BL
        weight_BKL = self.attention.attention(self.embed(histories.item_BL), mask_BL)
        return weight_BKL * mask_BL[:, None]

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """Return item vectors ``[..., D]``, or ``[N + 1, D]`` without ids; normalised if the loss normalises."""
        if item_ids is None:
            item_ids = torch.arange(len(self.neighbour_NM), device=self.neighbour_NM.device)
        return self._normalize(self.embed(item_ids))

    def embed(self, item_ids: Tensor) -> Tensor:
        """Return the raw vectors ``[..., D]`` of ``item_ids`` ``[...]``; zero for padding."""
        table = self.attribute_table or self.item_table
        # Popular items stand in many histories: each is mixed once.
        item_U, place = torch.unique(item_ids, return_inverse=True)
        weight_UM = self.weight_NM.index_select(0, item_U).to(table.weight.dtype)
        attribute = F.embedding(place, mixed_rows(table, self.neighbour_NM.index_select(0, item_U), weight_UM))
        if self.config.mix == "replace":
            return attribute
        if self.config.mix == "concat":
            return torch.cat([self.item_table(item_ids), attribute], dim=-1)
        summed: Tensor = self.item_table(item_ids) + self.config.attribute_weight * attribute
        return summed


def mixing_weights(found: Neighbours, identity: Literal["before", "after"]) -> Tensor:
    """Return the rows of ``M`` ``[N + 1, 1 + neighbours]``: the item itself first, then its neighbours.

    ``before``: ``(C + I) / sum``, so rows sum to 1. ``after``: ``C / sum + I``, so rows with neighbours sum to 2.
    """
    own_N1, weight_NM = torch.from_numpy(found.own_N)[:, None], torch.from_numpy(found.weight_NM)
    total_N1 = own_N1 + weight_NM.sum(dim=1, keepdim=True)
    if identity == "before":
        return torch.cat([own_N1 + 1, weight_NM], dim=1) / (total_N1 + 1)
    share_N1 = total_N1.clamp(min=1)
    return torch.cat([1 + own_N1 / share_N1, weight_NM / share_N1], dim=1)
