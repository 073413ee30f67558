"""GemiRec: interest dictionary, generated future interests, retriever (Wu et al., 2025, arXiv 2510.14626).

The paper's full text could not be read; what is known of it and what is inferred is in the config's docstrings. Three
modules, three stages:

- IDMM, :class:`~gemirec.models.gemirec.dictionary.LearnedDictionary`: every item has an interest, a tuple of codes;
- MIPDM, :class:`~gemirec.components.decoder.InterestDecoder`: a distribution over the user's next interest;
- MIRM: ``u_k = z_fusion(concat(e_k, u))`` for each interest k that the user is given.

1. ``retrieval``: the retriever alone, a placeholder for the interest. 2. ``dictionary``: k-means, then the dictionary's
loss alone. 3. ``joint``: ``0.2 L_IDMM + L_MIPDM + L_MIRM``.

Axes: B batch, L history length, K interests, D embedding, E interest embedding, C levels, M interests, P labelled
positions, J interest negatives, N items, F categorical and G numeric features, H generator's hidden width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.codes import all_codes, collapse_alarm, count_interests, unflatten
from gemirec.components.decoder import InterestDecoder, future_targets
from gemirec.components.selection import Selected, check_selection, limited_top_k, limited_top_k_of
from gemirec.models.base import Histories, Interests, LossTerms, Stage, TrainBatch
from gemirec.models.common import TableModel, widen
from gemirec.models.gemirec.config import GemiRecConfig
from gemirec.models.gemirec.dictionary import LearnedDictionary
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

RETRIEVAL, DICTIONARY, JOINT = "retrieval", "dictionary", "joint"


class Labels(NamedTuple):
    """Positions of a batch that are trained, and what follows each.

    Attributes:
        row_P: ``[P]`` row of the batch.
        state_P: ``[P]`` items read so far, at least 1.
        item_P: ``[P]`` an item that follows.
        weight_P: ``[P]`` weight in the loss.
    """

    row_P: Tensor
    state_P: Tensor
    item_P: Tensor
    weight_P: Tensor


class GemiRec(TableModel):
    """The whole system as one model of the catalogue.

    Attributes:
        dictionary: Items to interests, interests to embeddings.
        decoder: The generator of future interests; ``None`` with ``generator: history``.
        interest_N: ``[N + 1]`` int64 flat index of each item's interest at the last refresh; row 0 means nothing.
        phase: 0 before the dictionary is set, 1 after, 2 from the joint stage on.
    """

    category_N: Tensor
    popularity_N: Tensor
    code_MC: Tensor
    interest_N: Tensor
    phase: Tensor
    joint_steps: Tensor

    def __init__(self, config: GemiRecConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.dictionary = build_dictionary(config, spec)
        sizes = self.dictionary.sizes
        self.num_interests = count_interests(sizes)
        self.epsilon = config.epsilon or None
        self.limited = (1,) if config.limit_levels == "first" else None
        self._check_k(sizes)
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
        self.register_buffer("interest_N", torch.zeros(spec.num_items + 1, dtype=torch.int64))
        self.register_buffer("phase", torch.zeros((), dtype=torch.int64))
        self.register_buffer("joint_steps", torch.zeros((), dtype=torch.int64))

    def _check_k(self, sizes: tuple[int, ...]) -> None:
        """Raise for a K that the dictionary or its limit cannot give."""
        wanted = self.config.num_interests - self.config.keep_user_vector
        if wanted > 0:
            check_selection(wanted, self.epsilon, sizes, self.limited)

    # --- stages ---------------------------------------------------------------------------------------------------

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The paper's three stages; preset categories need no second one. What a stage does not train is frozen."""
        config = self.config
        parts = [name for name, module in self.named_children() if _learns(module)]
        later = tuple(name for name in parts if name in ("dictionary", "decoder", "generator_features"))
        apart = tuple(name for name in parts if name != "dictionary")
        fixed = config.dictionary == "learned" and not config.joint
        idle = tuple(name for name in parts if name == "placeholder" or (name == "dictionary" and fixed))
        stages = [
            Stage(RETRIEVAL, config.retrieval_share, frozen=later),
            Stage(DICTIONARY, config.dictionary_share, frozen=apart, on_start="start_dictionary"),
            Stage(JOINT, config.joint_share, frozen=idle, on_start="start_joint"),
        ]
        if config.dictionary == "categories":
            del stages[1]
        return tuple(stages)

    def start_dictionary(self) -> None:
        """Set the codes from the item vectors as they are (k-means), and assign every item."""
        generator = torch.Generator().manual_seed(torch.initial_seed())
        self.dictionary.initialise(self._items(), generator)
        self.phase.fill_(1)
        self.refresh()

    def start_joint(self) -> None:
        """Assign every item; from here on users are served the generator's interests."""
        if int(self.phase) == 0:
            self.start_dictionary()
        self.phase.fill_(2)
        self.refresh()

    def refresh(self) -> None:
        """Assign every item to its interest in the dictionary as it is now."""
        self.interest_N.copy_(self._assign_all())

    @torch.no_grad()
    def _assign_all(self) -> Tensor:
        item_N = torch.arange(len(self.interest_N), device=self.interest_N.device)
        return self.dictionary.assign(item_N, self._items())

    def diagnostics(self) -> dict[str, float]:
        """Return the dictionary's health (:func:`gemirec.components.codes.health`); nothing before it exists."""
        phase = int(self.phase)
        if phase == 0:
            return {}
        return self.dictionary.health(self.item_interests() if phase == 2 else self._assign_all())

    def alarm(self) -> str | None:
        """Return one sentence if the dictionary has collapsed."""
        found = self.diagnostics()
        return collapse_alarm(found) if found else None

    # --- vectors --------------------------------------------------------------------------------------------------

    def _items(self, item_ids: Tensor | None = None) -> Tensor:
        """Return raw item vectors, of all items without ids."""
        vector_XD: Tensor = self.item_table.weight if item_ids is None else self.item_table(item_ids)
        if self.category is None:
            return vector_XD
        category_XD: Tensor = self.category(self.category_N if item_ids is None else self.category_N[item_ids])
        return vector_XD + category_XD

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """Return item vectors ``[..., D]``, or ``[N + 1, D]`` without ids; normalised if the loss normalises."""
        return self._normalize(self._items(item_ids))

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
        item_BLD = self._items(wide.item_BL)
        vector_BD = self.tower.last(item_BLD, wide.mask_BL, profile_of(self.tower_features, wide))
        return Users(vector_BD, item_BLD, wide.mask_BL)

    def interests(self, histories: Histories) -> Interests:
        """Return the fused vectors of the interests that the user is given; a zero one for an empty history."""
        if int(self.phase) < 2:
            return super().interests(histories)
        return self.fused(histories, self.select(self.state(histories)))

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, 1, D]``: the user fused with the placeholder, which is what stage 1 trains."""
        last_B1 = (histories.length_B - 1).clamp(min=0)[:, None]
        placeholder_BE = self._placeholder(histories.item_BL.gather(1, last_B1)[:, 0])
        fused_BKD = self.fusion(placeholder_BE[:, None], self.users(histories))
        return fused_BKD * (histories.length_B > 0)[:, None, None], None

    def fused(self, histories: Histories, chosen: Selected) -> Interests:
        """Return the vectors of given interests: the online path, which reads the cached indices and no more.

        Args:
            histories: The users' recent items.
            chosen: ``index_Bk`` ``[B, k]`` flat indices, -1 for none, and their log-probabilities.

        Returns:
            ``k`` interests, one more with ``keep_user_vector`` (code -1, first). Users without history, and users
            without any interest, have one vector.
        """
        index_BK, logp_BK = chosen.index_Bk, chosen.logp_Bk
        users = self.users(histories)
        code_BKC = F.embedding(index_BK.clamp(min=0), self.code_MC)
        vector_BKD = self._fuse(code_BKC, users)
        mask_BK, weight_BK = index_BK >= 0, logp_BK.exp()
        code_BKC = torch.where(mask_BK[:, :, None], code_BKC, -1)
        if self.config.keep_user_vector:
            mask_BK = F.pad(mask_BK, (1, 0), value=True)
            weight_BK = torch.cat([1 - weight_BK.sum(dim=1, keepdim=True).clamp(max=1), weight_BK], dim=1)
            code_BKC = F.pad(code_BKC, (0, 0, 1, 0), value=-1)
        mask_BK = mask_BK & users.mask_BL.any(dim=1, keepdim=True)
        vector_BKD = self._normalize(vector_BKD).float() * mask_BK[:, :, None]
        nothing_B1 = ~mask_BK.any(dim=1, keepdim=True)  # whoever has no interest has one, and it is zero
        mask_BK = torch.cat([mask_BK[:, :1] | nothing_B1, mask_BK[:, 1:]], dim=1)
        return Interests(vector_BKD, mask_BK, weight_BK.float(), code_BKC)

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
        """Return what the generator knows of each user: ``[B, H]``, or counts of interests ``[B, M]``."""
        wide = widen(histories, self.max_length)
        last_B = wide.length_B
        return self._states(wide, torch.arange(len(last_B), device=last_B.device), last_B)

    def _states(self, wide: Histories, row_P: Tensor, state_P: Tensor) -> Tensor:
        """Return the generator's states after the first ``state_P`` items of rows ``row_P``."""
        if self.decoder is None:
            return self._history_log_probs(wide, row_P, state_P)
        item_BLD = F.normalize(self._items(wide.item_BL).detach().float(), dim=-1) * self.config.dim**0.5
        state_BLH: Tensor = self.decoder(item_BLD, profile_of(self.generator_features, wide))
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
        return state_PX if self.decoder is None else self.decoder.log_probs(state_PX)

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

    # --- losses ---------------------------------------------------------------------------------------------------

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return the terms of a stage: ``retrieval``; ``dictionary``; or those, ``generator`` and ``user``."""
        wide = widen(batch, self.max_length)
        labels = self._labels(wide, batch, 1, self.config.positions)
        terms = LossTerms()
        if stage == DICTIONARY:
            self._add_dictionary(terms, labels, batch, weight=1.0)
            return terms
        users = self._prefixes(wide, labels)
        if stage == RETRIEVAL:
            embedding_PE = self._placeholder(labels.item_P)
            terms.add("retrieval", self._rank(self.fusion(embedding_PE[:, None], users), labels, batch))
            return terms
        self._count_joint_step()
        if isinstance(self.dictionary, LearnedDictionary) and self.config.joint:
            self._add_dictionary(terms, labels, batch, weight=self.config.dictionary_weight)
        self._add_generator(terms, wide, batch)
        if self.config.user_weight:
            own_PKD = self._plain(users)[:, None]
            terms.add("user", self._rank(own_PKD, labels, batch), self.config.user_weight)
        self._add_retrieval(terms, wide, batch, labels, users)
        return terms

    def _prefixes(self, wide: Histories, labels: Labels) -> Users:
        """Return the user at each labelled position: who had read the items up to there and no more."""
        item_BLD = self._items(wide.item_BL)
        state_BLD = self.tower(item_BLD, profile_of(self.tower_features, wide))
        read_PL = torch.arange(item_BLD.shape[1], device=item_BLD.device) < labels.state_P[:, None]
        return Users(state_BLD[labels.row_P, labels.state_P - 1], item_BLD[labels.row_P], read_PL)

    def _labels(self, wide: Histories, batch: TrainBatch, window: int, positions: Any) -> Labels:
        """Return the labelled positions of a batch, weighted by the examples' weights."""
        row_P, state_P, item_P, weight_P = future_targets(
            wide.item_BL, wide.length_B, batch.target_B, window, positions
        )
        if batch.weight_B is not None:
            weight_P = weight_P * batch.weight_B[row_P]
        return Labels(row_P, state_P, item_P, weight_P)

    def _count_joint_step(self) -> None:
        """Assign the items anew every so many joint steps."""
        every = self.config.refresh_every
        if not self.training or every <= 1:
            return
        if int(self.joint_steps) % every == 0:
            self.refresh()
        self.joint_steps += 1

    def _add_dictionary(self, terms: LossTerms, labels: Labels, batch: TrainBatch, weight: float) -> None:
        """Add ``L_IDMM`` of the items that follow."""
        assert isinstance(self.dictionary, LearnedDictionary)
        quantized = self.dictionary.quantize(self._items(labels.item_P).detach())
        terms.add("dictionary", self.dictionary.quantizer.loss(quantized, labels.weight_P), weight)
        if self.training:
            self.dictionary.after_step(quantized, batch.generator)

    def _add_generator(self, terms: LossTerms, wide: Histories, batch: TrainBatch) -> None:
        """Add ``L_MIPDM``: minus the log-probability of the interest of what follows."""
        if self.decoder is None:
            return
        config = self.config.decoder
        labels = self._labels(wide, batch, config.window, config.positions)
        interest_P = self._interests_of(labels.item_P, self._items(labels.item_P))
        state_PH = self._states(wide, labels.row_P, labels.state_P)
        loss_P = self.decoder.loss(state_PH, unflatten(interest_P, self.dictionary.sizes))
        terms.add("generator", _mean(loss_P, labels.weight_P), self.config.generator_weight)

    def _add_retrieval(
        self, terms: LossTerms, wide: Histories, batch: TrainBatch, labels: Labels, users: Users
    ) -> None:
        """Add ``L_MIRM``, with the target's interest or with those that would be served."""
        labels, users = self._some(labels, users, batch)
        with torch.no_grad():
            state_PX = self._states(wide, labels.row_P, labels.state_P)
        if self.config.train_interests == "served":
            chosen = self.select(state_PX)
            vector_PKD, mask_PK = self._chosen(chosen, users)
            loss = self._rank(vector_PKD, labels, batch, mask_PK=mask_PK)
        else:
            target_PD = self._items(labels.item_P)
            own_P = self._interests_of(labels.item_P, target_PD)
            fused_PKD = self.fusion(self.dictionary.embed(self.code_MC[own_P])[:, None], users)
            score_PJ = self._interest_negatives(state_PX, own_P, users, self._normalize(target_PD), batch)
            loss = self._rank(fused_PKD, labels, batch, negative_PJ=score_PJ)
        terms.add("retrieval", loss, self.config.retrieval_weight)

    def _some(self, labels: Labels, users: Users, batch: TrainBatch) -> tuple[Labels, Users]:
        """Return the share ``interest_positions`` of the labelled positions, drawn by the batch's generator."""
        count = len(labels.row_P)
        kept = math.ceil(self.config.interest_positions * count)
        if kept == count:
            return labels, users
        row_Q = torch.randperm(count, generator=batch.generator)[:kept].sort().values.to(labels.row_P.device)
        return Labels(*(part[row_Q] for part in labels)), users.rows(row_Q)

    def _chosen(self, chosen: Selected, users: Users) -> tuple[Tensor, Tensor]:
        """Return the fused vectors ``[P, K, D]`` of selected interests and which of them exist."""
        mask_PK = chosen.index_Bk >= 0
        if self.config.keep_user_vector:
            mask_PK = F.pad(mask_PK, (1, 0), value=True)
        vector_PKD = self._fuse(self.code_MC[chosen.index_Bk.clamp(min=0)], users)
        return vector_PKD, mask_PK

    def _interest_negatives(
        self, state_PX: Tensor, own_P: Tensor, users: Users, target_PD: Tensor, batch: TrainBatch
    ) -> Tensor | None:
        """Return the scores ``[P, J]`` of the target under other interests, -1e30 at its own and at repeated ones."""
        config = self.config
        if not config.hard_negatives + config.easy_negatives:
            return None
        hard_PJ = self.select(state_PX, min(config.hard_negatives, self.num_interests), None).index_Bk
        shape = (len(own_P), config.easy_negatives)
        easy_PJ = torch.randint(self.num_interests, shape, generator=batch.generator).to(own_P.device)
        other_PJ = torch.cat([hard_PJ, easy_PJ], dim=1)
        fused_PJD = self._normalize(self.fusion(self.dictionary.embed(self.code_MC[other_PJ.clamp(min=0)]), users))
        score_PJ = torch.einsum("pjd,pd->pj", fused_PJD, target_PD)
        repeated_PJ = (other_PJ[:, :, None] == other_PJ[:, None, :]).tril(-1).any(dim=2)  # a union has each once
        return score_PJ.masked_fill((other_PJ == own_P[:, None]) | (other_PJ < 0) | repeated_PJ, -1e30)

    def _rank(
        self,
        vector_PKD: Tensor,
        labels: Labels,
        batch: TrainBatch,
        *,
        mask_PK: Tensor | None = None,
        negative_PJ: Tensor | None = None,
    ) -> Tensor:
        """Return the retrieval loss of vectors before normalisation."""
        return self.retrieval_loss(
            self._normalize(vector_PKD),
            labels.item_P,
            self.item_vectors,
            mask_BK=mask_PK,
            weight_B=labels.weight_P if batch.weight_B is not None else None,
            generator=batch.generator,
            negative_BJ=negative_PJ,
        )

    def _placeholder(self, item_B: Tensor) -> Tensor:
        """Return what stands for the interest in stage 1, ``[B, E]``; ``item_B`` gives the category."""
        if isinstance(self.placeholder, nn.Embedding):
            row_B = self.category_N[item_B] if self.config.placeholder == "category" else torch.zeros_like(item_B)
            out_BE: Tensor = self.placeholder(row_B)
            return out_BE
        return self.item_table.weight.new_zeros(len(item_B), self.dictionary.width)


def _mean(loss_P: Tensor, weight_P: Tensor) -> Tensor:
    """Return the weighted mean, 0 without rows."""
    return (loss_P * weight_P).sum() / weight_P.sum().clamp(min=1e-12)


def _learns(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
