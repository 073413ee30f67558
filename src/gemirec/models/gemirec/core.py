"""GemiRec as it serves: items to interests, users to the generator's interests, both to vectors.

How it is trained is in :mod:`gemirec.models.gemirec.model`, with the paper's outline.

Axes: B batch, L history length, K interests, D embedding, E interest embedding, C levels, M interests, P labelled
positions, H generator's hidden width, X any leading axes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.cells import item_cells, user_cells
from gemirec.components.codes import all_codes, count_interests
from gemirec.components.decoder import InterestDecoder
from gemirec.components.selection import Selected, check_selection, limited_top_k, limited_top_k_of
from gemirec.errors import ConfigError
from gemirec.models.base import Histories, Interests
from gemirec.models.common import TableModel, widen
from gemirec.models.gemirec.config import GemiRecConfig
from gemirec.models.gemirec.parts import (
    build_category_vectors,
    build_dictionary,
    build_features,
    build_placeholder,
    profile_of,
    profile_width,
)
from gemirec.models.gemirec.tower import Fusion, Users, UserTower

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec

_LEAST_WEIGHT = 1e-4
"""Probabilities below count as this in a score."""


class ServedGemiRec(TableModel):
    """The parts, what they say of items and users, and nothing of how they learn.

    Attributes:
        dictionary: Items to interests, interests to embeddings.
        decoder: The generator of future interests; ``None`` with ``generator: history``.
        interest_N: ``[N + 1]`` int64 flat index of each item's interest at the last refresh; row 0 means nothing.
        phase: 0 before the dictionary is set, 1 after, 2 from the joint stage on.
    """

    category_N: Tensor
    popularity_N: Tensor
    code_MC: Tensor
    given_XC: Tensor
    interest_N: Tensor
    phase: Tensor
    joint_steps: Tensor

    def __init__(self, config: GemiRecConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.dictionary = build_dictionary(config, spec)
        sizes = self.dictionary.sizes
        self.num_interests = count_interests(sizes)
        self.epsilon = config.epsilon or None
        self.cell_weight = math.sqrt(config.cell_bonus)
        self.prior = nn.Parameter(torch.tensor(config.cell_prior)) if config.cell_prior else None
        self.limited = (1,) if config.limit_levels == "first" else None
        self._check_k(sizes)
        if config.history_share and config.generator == "decoder" and config.decoder.head != "flat":
            raise ConfigError(
                "the history's interests can be mixed into a flat head only: a factorised one has no list of them all",
                got=f"history_share {config.history_share}, decoder.head {config.decoder.head}",
                fix="set model.decoder.head=flat or model.history_share=0",
            )
        self.tower_features = build_features(spec, config.feature_dim, wanted=config.tower_features)
        self.generator_features = build_features(
            spec, config.feature_dim, wanted=config.generator_features and config.generator == "decoder"
        )
        self.tower = UserTower(config.tower, config.dim, profile_width(self.tower_features), config.max_length)
        self.fusion = Fusion(config.fusion, self.dictionary.width, config.dim)
        self.decoder = None
        if config.generator == "decoder":
            self.decoder = InterestDecoder(
                config.decoder, sizes, config.dim, profile_width(self.generator_features), config.max_length
            )
        self.category = build_category_vectors(config, spec)
        self.placeholder = build_placeholder(config, spec, self.dictionary.width)
        self._has_categories = spec.category_N is not None
        category_N = spec.category_N if self._has_categories else [0] * (spec.num_items + 1)
        self.register_buffer("category_N", torch.as_tensor(category_N, dtype=torch.int64), persistent=False)
        count_N = torch.as_tensor(spec.train_count_N, dtype=torch.float32)
        self.register_buffer("popularity_N", count_N / count_N.sum().clamp(min=1), persistent=False)
        self.register_buffer("code_MC", all_codes(sizes), persistent=False)
        self.register_buffer("given_XC", F.pad(self.code_MC, (0, 0, 0, 1), value=-1), persistent=False)
        self.register_buffer("interest_N", torch.zeros(spec.num_items + 1, dtype=torch.int64))
        self.register_buffer("phase", torch.zeros((), dtype=torch.int64))
        self.register_buffer("joint_steps", torch.zeros((), dtype=torch.int64))

    def _check_k(self, sizes: tuple[int, ...]) -> None:
        """Raise for a K that the dictionary or its limit cannot give."""
        wanted = self.config.num_interests - self.config.keep_user_vector
        if wanted > 0:
            check_selection(wanted, self.epsilon, sizes, self.limited)

    # --- vectors --------------------------------------------------------------------------------------------------

    def _items(self, item_ids: Tensor | None = None) -> Tensor:
        """Return raw item vectors, of all items without ids."""
        vector_XD: Tensor = self.item_table.weight if item_ids is None else self.item_table(item_ids)
        if self.category is None:
            return vector_XD
        category_XD: Tensor = self.category(self.category_N if item_ids is None else self.category_N[item_ids])
        return vector_XD + category_XD

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """Return item vectors ``[..., D]``, or ``[N + 1, D]`` without ids; normalised if the loss normalises.

        With ``cells``, one further coordinate for each cell (:mod:`gemirec.components.cells`).
        """
        raw_XD = self._items(item_ids)
        vector_XD = self._normalize(raw_XD)
        if self.config.cells == "none":
            return vector_XD
        interest_X = self.item_interests() if item_ids is None else self._interests_of(item_ids, raw_XD)
        cell_X = self.code_MC[interest_X, 0]
        real_X = torch.arange(len(cell_X), device=cell_X.device) > 0 if item_ids is None else item_ids > 0
        cell_X = torch.where(real_X, cell_X, -1)
        return torch.cat([vector_XD, item_cells(cell_X, self.dictionary.sizes[0], self.cell_weight)], dim=-1)

    def _with_cells(self, vector_BKD: Tensor, code_BKC: Tensor | None, weight_BK: Tensor | None = None) -> Tensor:
        """Append the coordinates of the cells to users' vectors; zero ones without codes and weights."""
        if self.config.cells == "none":
            return vector_BKD
        cells = self.dictionary.sizes[0]
        if code_BKC is None or weight_BK is None:
            return F.pad(vector_BKD, (0, cells))
        bonus_BK = torch.full_like(vector_BKD[:, :, 0], self.config.cell_bonus)
        if self.prior is not None:
            bonus_BK = bonus_BK + self.prior * weight_BK.clamp(min=_LEAST_WEIGHT).log()
        first, apart = self.config.keep_user_vector, self.config.cells == "apart"
        cell_BKM = user_cells(code_BKC[:, :, 0], bonus_BK, cells, self.cell_weight, user_first=first, apart=apart)
        return torch.cat([vector_BKD, cell_BKM.to(vector_BKD.dtype)], dim=2)

    @torch.no_grad()
    def _assign_all(self) -> Tensor:
        item_N = torch.arange(len(self.interest_N), device=self.interest_N.device)
        return self.dictionary.assign(item_N, self._items())

    @torch.no_grad()
    def item_interests(self) -> Tensor:
        """Return the flat index ``[N + 1]`` of every item's interest, as the model uses it now; row 0 means nothing."""
        return self.interest_N if self.config.refresh_every != 1 else self._assign_all()

    def _interests_of(self, item_X: Tensor, vector_XD: Tensor) -> Tensor:
        """Return the flat index ``[...]`` of the interests of some items."""
        if self.config.refresh_every != 1:
            return self.interest_N[item_X]
        return self.dictionary.assign(item_X, vector_XD)

    def users(self, histories: Histories) -> Users:
        """Return the user tower's vectors, zero for an empty history, and what else the fusion reads."""
        wide = widen(histories, self.max_length)
        item_BLD, mask_BL = self._items(wide.item_BL), wide.mask_BL
        return Users(self.tower.last(item_BLD, mask_BL, profile_of(self.tower_features, wide)), item_BLD, mask_BL)

    def interests(self, histories: Histories) -> Interests:
        """Return the fused vectors of the interests that the user is given; a zero one for an empty history."""
        if int(self.phase) < 2:
            found = super().interests(histories)
            return replace(found, vector_BKD=self._with_cells(found.vector_BKD, None))
        return self.fused(histories, self.select(self.state(histories)))

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, 1, D]``: the user fused with the placeholder, which is what stage 1 trains."""
        last_B1 = (histories.length_B - 1).clamp(min=0)[:, None]
        placeholder_BE = self._placeholder(histories.item_BL.gather(1, last_B1)[:, 0])
        fused_BKD = self.fusion(placeholder_BE[:, None], self.users(histories))
        return fused_BKD * (histories.length_B > 0)[:, None, None], None

    def fused(self, histories: Histories, chosen: Selected) -> Interests:
        """Return the vectors of given interests, which may come from a cache: the generator is not asked.

        Args:
            histories: The users' recent items.
            chosen: ``index_Bk`` ``[B, k]`` flat indices, -1 (behind the others) for none, and their log-probabilities.

        Returns:
            ``k`` interests, one more with ``keep_user_vector`` (code -1, first). Users without history, and users
            without any interest, have one vector.
        """
        users = self.users(histories)
        return self.given(self._fuse(self.code_MC[chosen.index_Bk.clamp(min=0)], users), chosen, users)

    def given(self, vector_BKD: Tensor, chosen: Selected, users: Users) -> Interests:
        """Return fused vectors ``[B, K, D]`` as the interests of users, some of which may be absent."""
        mask_BK, code_BKC, weight_BK = self._of(chosen)
        mask_BK = mask_BK & users.mask_BL[:, :1]  # padding stands behind: whoever has a history has a first item
        vector_BKD = self._with_cells(self._normalize(vector_BKD).float(), code_BKC, weight_BK) * mask_BK[:, :, None]
        # Whoever has no interest at all has one, which is zero. Not in place: gradients need the mask as it was.
        mask_BK = F.pad(mask_BK[:, 1:], (1, 0), value=True)
        return Interests(vector_BKD, mask_BK, weight_BK.float(), code_BKC)

    def _of(self, chosen: Selected) -> tuple[Tensor, Tensor, Tensor]:
        """Return which selected interests exist ``[B, K]``, their codes ``[B, K, C]`` and probabilities ``[B, K]``.

        With ``keep_user_vector`` the user's own vector comes first, with the probability that they leave to 1.
        """
        mask_BK, weight_BK = chosen.index_Bk >= 0, chosen.logp_Bk.exp()
        code_BKC = F.embedding(chosen.index_Bk % len(self.given_XC), self.given_XC)  # -1 is the last row
        if self.config.keep_user_vector:
            mask_BK = F.pad(mask_BK, (1, 0), value=True)
            code_BKC = F.pad(code_BKC, (0, 0, 1, 0), value=-1)
            weight_BK = torch.cat([1 - weight_BK.sum(dim=1, keepdim=True).clamp(max=1), weight_BK], dim=1)
        return mask_BK, code_BKC, weight_BK

    def _fuse(self, code_BKC: Tensor, users: Users) -> Tensor:
        """Return the vectors of interests ``[B, K, C]``, before them the user's own with ``keep_user_vector``."""
        embedding_BKE = self.dictionary.embed(code_BKC)
        if self.config.keep_user_vector:
            embedding_BKE = F.pad(embedding_BKE, (0, 0, 1, 0))
        fused_BKD: Tensor = self.fusion(embedding_BKE, users)
        return fused_BKD

    def _plain(self, users: Users) -> Tensor:
        """Return the users' own vectors ``[B, D]`` as they are compared with items: fused with no interest."""
        nothing_BKE = users.vector_BD.new_zeros(len(users.vector_BD), 1, self.dictionary.width)
        fused_BKD: Tensor = self.fusion(nothing_BKE, users)
        return fused_BKD[:, 0]

    # --- the generator --------------------------------------------------------------------------------------------

    def state(self, histories: Histories) -> Tensor:
        """Return what the generator knows of users: ``[B, H]``, and behind it, or alone, the history's ``[B, M]``."""
        wide = widen(histories, self.max_length)
        last_B = wide.length_B
        return self._states(wide, torch.arange(len(last_B), device=last_B.device), last_B)

    def _states(self, wide: Histories, row_P: Tensor, state_P: Tensor) -> Tensor:
        """Return what :meth:`state` does, after the first ``state_P`` items of rows ``row_P``."""
        parts = []
        if self.decoder is not None:
            parts.append(self._decoder_states(self.decoder, wide, row_P, state_P))
        if self.decoder is None or self.config.history_share:
            parts.append(self._history_log_probs(wide, row_P, state_P))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _decoder_states(self, decoder: InterestDecoder, wide: Histories, row_P: Tensor, state_P: Tensor) -> Tensor:
        """Return the decoder's states ``[P, H]``."""
        item_BLD = F.normalize(self._items(wide.item_BL).detach().float(), dim=-1) * self.config.dim**0.5
        state_BLH: Tensor = decoder(item_BLD, profile_of(self.generator_features, wide))
        return state_BLH[row_P, state_P]

    @torch.no_grad()
    def _history_log_probs(self, wide: Histories, row_P: Tensor, state_P: Tensor) -> Tensor:
        """Return ``log (n_m + p_m) / (n + 1)`` ``[P, M]``: n_m of n items in interest m, p its share of all events."""
        interest_BL = self._interests_of(wide.item_BL, self._items(wide.item_BL))
        prior_M = self.popularity_N.new_zeros(self.num_interests)
        prior_M.index_add_(0, self.item_interests(), self.popularity_N)
        read_PL = torch.arange(wide.item_BL.shape[1], device=row_P.device) < state_P[:, None]
        count_PM = prior_M.expand(len(row_P), -1).scatter_add(1, interest_BL[row_P], read_PL.float())
        return (count_PM / (1.0 + state_P[:, None])).log()

    def log_probs(self, state_PX: Tensor) -> Tensor:
        """Return the log-probabilities ``[P, M]`` of the next item's interest; ``state_PX`` from :meth:`state`."""
        if self.decoder is None:
            return state_PX
        share, width = self.config.history_share, self.config.decoder.hidden
        own_PM = self.decoder.log_probs(state_PX[:, :width])
        if state_PX.shape[1] == width:  # the decoder's state alone
            return own_PM
        return torch.logaddexp(math.log1p(-share) + own_PM, math.log(share) + state_PX[:, width:])

    @torch.no_grad()
    def select(self, state_PX: Tensor, k: int | None = None, epsilon: int | None = -1) -> Selected:
        """Return the most probable interests under the limit on repeated codes (METHODS 1.7).

        Args:
            state_PX: From :meth:`state`.
            k: Interests to select; ``None`` takes the config's.
            epsilon: The limit, ``None`` for none; -1 takes the config's.
        """
        k = self.config.num_interests - self.config.keep_user_vector if k is None else k
        epsilon = self.epsilon if epsilon == -1 else epsilon
        if k == 0:
            empty_P0 = state_PX.new_empty(len(state_PX), 0)
            return Selected(empty_P0.long(), empty_P0)
        if self.decoder is None or self.config.decoder.head == "flat":
            return limited_top_k(self.log_probs(state_PX).detach(), self.code_MC, k, epsilon, levels=self.limited)
        index_PX, logp_PX = self.decoder.top(state_PX, self.config.beam, self.config.beam)
        return limited_top_k_of(index_PX, logp_PX, self.dictionary.sizes, k, epsilon, levels=self.limited)

    def _placeholder(self, item_B: Tensor) -> Tensor:
        """Return what stands for the interest in stage 1, ``[B, E]``; ``item_B`` gives the category."""
        if isinstance(self.placeholder, nn.Embedding):
            row_B = self.category_N[item_B] if self.config.placeholder == "category" else torch.zeros_like(item_B)
            out_BE: Tensor = self.placeholder(row_B)
            return out_BE
        return self.item_table.weight.new_zeros(len(item_B), self.dictionary.width)
