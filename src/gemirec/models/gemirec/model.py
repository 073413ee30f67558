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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gemirec.components.codes import collapse_alarm, unflatten
from gemirec.components.decoder import future_targets
from gemirec.models.base import Histories, LossTerms, Stage, TrainBatch
from gemirec.models.common import widen
from gemirec.models.gemirec.core import ServedGemiRec
from gemirec.models.gemirec.dictionary import LearnedDictionary
from gemirec.models.gemirec.parts import profile_of
from gemirec.models.gemirec.tower import Users

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


class GemiRec(ServedGemiRec):
    """The whole system as one model of the catalogue: the stages, and what each of them trains."""

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
        state_PH = self._decoder_states(self.decoder, wide, labels.row_P, labels.state_P)
        loss_P = self.decoder.loss(state_PH, unflatten(interest_P, self.dictionary.sizes))
        terms.add("generator", _mean(loss_P, labels.weight_P), self.config.generator_weight)

    def _add_retrieval(
        self, terms: LossTerms, wide: Histories, batch: TrainBatch, labels: Labels, users: Users
    ) -> None:
        """Add ``L_MIRM``, with the target's interest or with those that would be served."""
        labels, users = self._some(labels, users, batch)
        with torch.no_grad():
            if self.decoder is None:
                state_PX = self._states(wide, labels.row_P, labels.state_P)
            else:  # without the history's share: it gives away too well which old interest comes next
                state_PX = self._decoder_states(self.decoder, wide, labels.row_P, labels.state_P)
        if self.config.train_interests == "served":
            chosen = self.select(state_PX)
            mask_PK, code_PKC, weight_PK = self._of(chosen)
            vector_PKD = self._fuse(self.code_MC[chosen.index_Bk.clamp(min=0)], users)
            vector_PKD = self._with_cells(self._normalize(vector_PKD), code_PKC, weight_PK)
            loss = self._loss(vector_PKD, labels, batch, mask_PK=mask_PK)
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
        self, vector_PKD: Tensor, labels: Labels, batch: TrainBatch, *, negative_PJ: Tensor | None = None
    ) -> Tensor:
        """Return the retrieval loss of vectors before normalisation, on all items alike."""
        return self._loss(self._with_cells(self._normalize(vector_PKD), None), labels, batch, negative_PJ=negative_PJ)

    def _loss(
        self,
        vector_PKD: Tensor,
        labels: Labels,
        batch: TrainBatch,
        *,
        mask_PK: Tensor | None = None,
        negative_PJ: Tensor | None = None,
    ) -> Tensor:
        """Return the retrieval loss of vectors as they are served."""
        return self.retrieval_loss(
            vector_PKD,
            labels.item_P,
            self.item_vectors,
            mask_BK=mask_PK,
            weight_B=labels.weight_P if batch.weight_B is not None else None,
            generator=batch.generator,
            negative_BJ=negative_PJ,
        )


def _mean(loss_P: Tensor, weight_P: Tensor) -> Tensor:
    """Return the weighted mean, 0 without rows."""
    return (loss_P * weight_P).sum() / weight_P.sum().clamp(min=1e-12)


def _learns(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
