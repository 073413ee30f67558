"""ULIM: long histories split by category, the next category predicted, items searched inside it (Taobao, 2507.10097).

Only the abstract is known here: category-aware subsequences of a long history, dual (long- and short-term) interests in
each, a pointer-generator for the next category, then retrieval inside the top-K categories. Every formula here is ours.

How an interest comes to search its own category alone is the idea of :mod:`gemirec.components.cells`: items and
users' vectors get a coordinate for each category, and an inner product then is ``v.e + w^2`` inside it and ``v.e``
outside.

Axes: B batch, L history length, K categories of a user, D embedding, M categories (0: unknown), N items.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor, nn

from gemirec.components.attention import SelfAttention
from gemirec.components.cells import item_cells, user_cells
from gemirec.components.losses import MultiInterestLossConfig
from gemirec.components.pointer_generator import PointerGenerator
from gemirec.errors import ConfigError
from gemirec.models.base import Histories, Interests, LossTerms, TrainBatch
from gemirec.models.common import Count, MultiInterestConfig, PositiveFloat, TableModel, widen

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec

_MASKED = -1e9
_LEAST_CHANCE = 1e-4
"""Probabilities below count as this in a score."""
_TINY = 1e-9

Weight = Annotated[float, Meta(ge=0)]


class ULIMConfig(MultiInterestConfig, frozen=True, kw_only=True):
    """Fields of ULIM. All values are ours. ``loss.readout`` acts with ``train_categories: served`` alone."""

    max_length: Count = 100
    """Most recent events that the model reads of a history (paper: thousands)."""
    num_interests: Count = 4
    """K, the categories that are searched, each with one interest; at most the categories that have items."""
    short_length: Count = 10
    """Most recent events of the window that count as short-term."""
    hidden_factor: Count = 4
    """Hidden width of the attention that sums up the short-term events, in multiples of ``dim``."""
    search: Literal["category", "all"] = "category"
    """Which items an interest finds: those of its ``category`` before all others (paper), or ``all`` alike. The former
    widens vectors by one coordinate for each category."""
    category_bonus: PositiveFloat = 3.0
    """What ``search: category`` adds to the scores of the category's items. With unit vectors, more than 2 plus 9.2
    ``prior`` keeps every one of them ahead of every other item."""
    prior: Weight = 0.1
    """Weight of the log-probability of the category in the score, at serving and with ``train_categories: served``. The
    loss's temperature makes scores log-probabilities, ``p(category) p(item | category)``. With ``search: category``."""
    train_categories: Literal["target", "served"] = "target"
    """Whose interests the retrieval loss trains: that of the ``target``'s category, as if it had been predicted, or
    those of the K predicted ones, as ``served``."""
    train_search: Literal["category", "all"] = "category"
    """Candidates of the loss: with ``category`` those of other categories are as far behind as at serving, so that
    nearly all learning is inside one; with ``all`` none is. Acts with ``search: category``."""
    category_weight: Weight = 1.0
    """Weight of the loss of the next category."""
    category_gradient: Literal["joint", "apart"] = "joint"
    """What the loss of the next category trains: also the vectors that the interests are read from, or, ``apart`` from
    them, the pointer-generator alone."""
    loss: MultiInterestLossConfig = MultiInterestLossConfig(normalize=True, temperature=0.1)
    """The retrieval loss; unit vectors, so that a bonus can part the categories."""


class Window(NamedTuple):
    """A batch of histories as the parts read them.

    Attributes:
        item_BLD: ``[B, L, D]`` item vectors.
        key_BLD: ``[B, L, D]`` ``LayerNorm(sqrt(D) item + category + position)``, positions from the newest.
        class_BL: ``[B, L]`` int64 categories.
        mask_BL: ``[B, L]`` bool, real items.
        recent_BL: ``[B, L]`` bool, the short-term ones among them.
        state_BD: ``[B, D]`` the short-term ones summed up.
    """

    item_BLD: Tensor
    key_BLD: Tensor
    class_BL: Tensor
    mask_BL: Tensor
    recent_BL: Tensor
    state_BD: Tensor


class ULIM(TableModel):
    """Next categories by a pointer-generator, and for each ``h_c = g_c long_c + (1 - g_c) short_c + b_c``.

    ``long_c = sum_l softmax_l( (W c) . k_l / sqrt(D) ) e_l`` over the history's items of category c, or over all if it
    has none; ``short_c`` the same over the short-term ones with the user's state for the category's vector. The gate
    ``g_c = sigmoid( w . [s, c] + d )`` is 1 where there are none; ``b_c`` begins at zero.
    """

    category_N: Tensor

    def __init__(self, config: ULIMConfig, spec: DataSpec) -> None:
        category_N = _categories(config, spec)
        super().__init__(config, spec)
        dim, classes = config.dim, spec.num_categories + 1
        self.register_buffer("category_N", category_N, persistent=False)
        self.cell_weight = math.sqrt(config.category_bonus)
        std = dim**-0.5
        self.category_MD = nn.Parameter(nn.init.normal_(torch.empty(classes, dim), std=std))
        self.base_MD = nn.Parameter(torch.zeros(classes, dim))
        self.position_LD = nn.Parameter(nn.init.normal_(torch.empty(config.max_length, dim), std=std))
        self.key_norm = nn.LayerNorm(dim)
        self.short_attention = SelfAttention(dim, 1, config.max_length, config.hidden_factor * dim, "none")
        self.long_query = nn.Linear(dim, dim, bias=False)
        self.short_query = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Linear(2 * dim, 1)
        exists_M = torch.bincount(category_N[1:], minlength=classes) > 0
        self.next_category = PointerGenerator(dim, exists_M)

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, K, D]`` interests of the K most probable categories."""
        window = self._window(histories)
        return self._interests(window, self._top(self._chances(window))[0])[0], None

    def interests(self, histories: Histories) -> Interests:
        """Return the interests of the K most probable categories, these probabilities as their weights.

        With ``search: category``, vectors have one further coordinate for each category.
        """
        window = self._window(widen(histories, self.max_length))
        class_BK, chance_BK = self._top(self._chances(window))
        vector_BKD = self._normalize(self._interests(window, class_BK)[0]).float()
        full_B1 = window.mask_BL.any(dim=1, keepdim=True)
        vector_BKD = self._served(vector_BKD, class_BK, chance_BK) * full_B1[:, :, None]
        first_K = torch.arange(class_BK.shape[1], device=class_BK.device) == 0
        return Interests(vector_BKD, full_B1 | first_K, chance_BK)

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """Return item vectors ``[..., D]``, or ``[N + 1, D]`` without ids; normalised if the loss normalises.

        With ``search: category``, one further coordinate for each category.
        """
        vector_XD = super().item_vectors(item_ids)
        if self.config.search == "all":
            return vector_XD
        class_X = self.category_N if item_ids is None else self.category_N[item_ids]
        real_X = torch.arange(len(class_X), device=class_X.device) > 0 if item_ids is None else item_ids > 0
        cell_XM = item_cells(torch.where(real_X, class_X, -1), len(self.category_MD), self.cell_weight)
        return torch.cat([vector_XD, cell_XM], dim=-1)

    def attribution(self, histories: Histories) -> Tensor:
        """Return each item's share ``[B, K, L]`` of the long- and short-term parts of each interest."""
        window = self._window(widen(histories, self.max_length))
        return self._interests(window, self._top(self._chances(window))[0])[1]

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return ``retrieval`` and ``category``, the negative log-probability of the target's category."""
        window = self._window(widen(batch, self.max_length))
        chance_BM = self._chances(window)
        target_B1 = self.category_N[batch.target_B][:, None]
        chance_B = chance_BM.gather(1, target_B1)[:, 0].clamp(min=_TINY)
        terms = LossTerms()
        terms.add("retrieval", self._rank(window, chance_BM, target_B1, batch))
        loss_B, weight_B = -chance_B.log(), batch.weight_B
        loss = loss_B.mean() if weight_B is None else (loss_B * weight_B).sum() / weight_B.sum()
        terms.add("category", loss, self.config.category_weight)
        return terms

    def _rank(self, window: Window, chance_BM: Tensor, target_B1: Tensor, batch: TrainBatch) -> Tensor:
        """Return the retrieval loss; no gradient flows into the choice of categories and their probabilities."""
        class_BK, chance_BK = (target_B1, None)
        if self.config.train_categories == "served":
            class_BK, chance_BK = self._top(chance_BM)
        vector_BKD = self._normalize(self._interests(window, class_BK)[0])
        look_up = super().item_vectors
        if self.config.train_search == "category":
            vector_BKD, look_up = self._served(vector_BKD, class_BK, chance_BK), self.item_vectors
        loss = self.retrieval_loss
        return loss(vector_BKD, batch.target_B, look_up, weight_B=batch.weight_B, generator=batch.generator)

    def _window(self, histories: Histories) -> Window:
        mask_BL = histories.mask_BL
        class_BL = self.category_N[histories.item_BL]
        item_BLD = self.item_table(histories.item_BL)
        age_BL = mask_BL.sum(dim=1, keepdim=True) - 1 - torch.arange(mask_BL.shape[1], device=mask_BL.device)
        place_BLD = self.category_MD[class_BL] + self.position_LD[age_BL.clamp(min=0)]
        key_BLD = self.key_norm(item_BLD * item_BLD.shape[2] ** 0.5 + place_BLD)
        recent_BL = mask_BL & (age_BL < self.config.short_length)
        state_BD = self.short_attention(key_BLD, recent_BL)[:, 0]
        return Window(item_BLD, key_BLD, class_BL, mask_BL, recent_BL, state_BD)

    def _chances(self, window: Window) -> Tensor:
        """Return the probability ``[B, M]`` of each category to be next."""
        state_BD, key_BLD = window.state_BD, window.key_BLD
        if self.config.category_gradient == "apart":
            state_BD, key_BLD = state_BD.detach(), key_BLD.detach()
        chance_BM: Tensor = self.next_category(state_BD, key_BLD, window.class_BL, window.mask_BL)
        return chance_BM

    @torch.no_grad()
    def _top(self, chance_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return the K most probable categories ``[B, K]`` and their probabilities, without gradient."""
        chance_BK, class_BK = chance_BM.topk(self.config.num_interests, dim=1)
        return class_BK, chance_BK

    def _interests(self, window: Window, class_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``h`` ``[B, K, D]``, zero without history, and each item's share ``[B, K, L]`` of its two parts."""
        mask_B1L, state_B1D = window.mask_BL[:, None], window.state_BD[:, None]
        same_BKL = mask_B1L & (window.class_BL[:, None] == class_BK[:, :, None])
        category_BKD = self.category_MD[class_BK]
        long_BKL = torch.where(same_BKL.any(dim=2, keepdim=True), same_BKL, mask_B1L)
        short_BKL = same_BKL & window.recent_BL[:, None]
        long_BKL = _attend(self.long_query(category_BKD), window.key_BLD, long_BKL)
        has_BK1 = short_BKL.any(dim=2, keepdim=True)
        short_BKL = _attend(self.short_query(state_B1D), window.key_BLD, short_BKL)
        both_BKX = torch.cat([state_B1D.expand_as(category_BKD), category_BKD], dim=2)
        gate_BK1 = torch.where(has_BK1, torch.sigmoid(self.gate(both_BKX).float()), 1.0)
        share_BKL = gate_BK1 * long_BKL + (1 - gate_BK1) * short_BKL
        base_BKD = self.base_MD[class_BK] * mask_B1L.any(dim=2, keepdim=True)
        return share_BKL.to(window.item_BLD.dtype) @ window.item_BLD + base_BKD, share_BKL

    def _served(self, vector_BKD: Tensor, class_BK: Tensor, chance_BK: Tensor | None) -> Tensor:
        """Append the coordinates of the categories, with the prior where there are probabilities."""
        if self.config.search == "all":
            return vector_BKD
        bonus_BK = torch.full(class_BK.shape, self.config.category_bonus, device=class_BK.device)
        if chance_BK is not None:
            bonus_BK = bonus_BK + self.config.prior * chance_BK.clamp(min=_LEAST_CHANCE).log()
        classes = len(self.category_MD)
        cell_BKM = user_cells(class_BK, bonus_BK, classes, self.cell_weight, user_first=False, apart=False)
        return torch.cat([vector_BKD, cell_BKM.to(vector_BKD.dtype)], dim=2)


def _attend(query_BKD: Tensor, key_BLD: Tensor, mask_BKL: Tensor) -> Tensor:
    """Return the softmax of ``q . k / sqrt(D)`` over true places ``[B, K, L]`` float32, zero where there are none."""
    logit_BKL = (query_BKD @ key_BLD.transpose(1, 2)).float() * key_BLD.shape[2] ** -0.5
    return torch.softmax(logit_BKL.masked_fill(~mask_BKL, _MASKED), dim=2) * mask_BKL


def _categories(config: ULIMConfig, spec: DataSpec) -> Tensor:
    """Return ``[N + 1]`` int64 categories.

    Raises:
        ConfigError: The data have none, or fewer with items than interests are wanted.
    """
    if spec.category_N is None or spec.num_categories == 0:
        raise ConfigError(
            "ULIM splits histories by the items' categories, and the data have none",
            got="no category in the item table",
            fix="give items a category when preparing the data, or choose another model",
        )
    category_N = torch.as_tensor(spec.category_N, dtype=torch.int64)
    found = len(torch.unique(category_N[1:]))
    if config.num_interests > found:
        raise ConfigError(
            "more interests than categories that have items",
            got=f"num_interests {config.num_interests}, {found} categories",
            fix=f"set model.num_interests to {found} or fewer",
        )
    return category_N
