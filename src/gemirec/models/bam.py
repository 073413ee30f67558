"""BaM: the interest that learns from a target is drawn, not chosen (Towards True Multi-interest Recommendation, 2024).

IEEE BigData 2024. With the hard readout an interest that is ahead wins more targets and gets further ahead; drawing by
a softmax of the correlations lets every interest learn. Any extractor may stand below it.

Axes: B batch, L history length, K interests, D embedding, E width of the correlation maps, S candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.extractors import make_extractor
from gemirec.components.regularizers import weighted_mean
from gemirec.components.roles import Sizes
from gemirec.models.base import Histories, LossTerms, TrainBatch
from gemirec.models.common import Count, MultiInterestConfig, PositiveFloat, TableModel, widen

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec

_NEVER = -1e30


class BaMConfig(MultiInterestConfig, frozen=True, kw_only=True):
    """Fields of BaM."""

    extractor: dict[str, Any] = msgspec.field(default_factory=lambda: {"kind": "attention"})
    """The backbone, ``{kind: NAME, field: value}`` as in the model ``composed``: ``attention`` is ComiRec-SA,
    ``routing`` MIND or ComiRec-DR; with ``loss.beta`` come REMI's hard negatives (paper: MIND, ComiRec, REMI)."""
    selection: Literal["inner", "linear", "readout"] = "inner"
    """How the trained interest is found: drawn by inner products (BaM_p), drawn by inner products behind two fixed
    random maps (BaM_l), or not drawn: the loss's own readout, as before BaM."""
    sharpness: PositiveFloat = 1.0
    """T: correlations are multiplied by it before the softmax (paper: 1; 1.1 for Yelp). Cosines
    (``loss.normalize``) want about 10."""
    linear_dim: Count = 16
    """E, the width that ``selection: linear`` maps to (released code: 16)."""
    multi_interest_weight: Annotated[float, Meta(ge=0)] = 0.0
    """Weight of the multi-interest loss, a softmax over ``logsumexp_k(h_k . v)`` (release: 1 where switched on)."""


class BaM(TableModel):
    """Draw ``k ~ softmax( T corr(h_k, v) )`` for each example and train ``h_k`` alone (eq. 7-9); serve the best of all.

    In the released code no gradient reaches the two maps of BaM_l, because a draw has none: they stay as they were
    initialised. Here they are buffers, which says so.
    """

    interest_map_ED: Tensor
    item_map_ED: Tensor

    def __init__(self, config: BaMConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.extractor = make_extractor(config.extractor, Sizes(config.dim, config.num_interests, config.max_length))
        if config.selection == "linear":
            for name in ("interest_map_ED", "item_map_ED"):
                self.register_buffer(name, nn.init.kaiming_normal_(torch.empty(config.linear_dim, config.dim)))

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, K, D]`` interests and which of them exist."""
        generator = histories.generator if isinstance(histories, TrainBatch) else None
        found = self.extractor(self.item_table(histories.item_BL), histories.mask_BL, generator=generator)
        return found.interest_BKD, found.mask_BK

    def attribution(self, histories: Histories) -> Tensor | None:
        """Return the extractor's weights ``[B, K, L]``, rows summing to 1, if it has any."""
        wide = widen(histories, self.max_length)
        weight_BKL = self.extractor(self.item_table(wide.item_BL), wide.mask_BL).weight_BKL
        return None if weight_BKL is None else F.normalize(weight_BKL[:, :, : histories.item_BL.shape[1]], p=1, dim=2)

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return ``retrieval`` and, with a weight, ``multi_interest``."""
        vector_BKD, mask_BK = self._encode(batch)
        trained_BKD, trained_BK = vector_BKD, mask_BK
        if self.config.selection != "readout":
            chosen_B = self.draw(vector_BKD, self.item_vectors(batch.target_B), mask_BK, batch.generator)
            trained_BKD = vector_BKD[torch.arange(len(chosen_B), device=chosen_B.device), chosen_B][:, None]
            trained_BK = None
        terms = LossTerms()
        retrieval = self._retrieval(trained_BKD, trained_BK, batch.target_B, batch.weight_B, batch.generator)
        terms.add("retrieval", retrieval)
        if self.config.multi_interest_weight > 0:
            multi = self._multi_interest(vector_BKD, mask_BK, batch)
            terms.add("multi_interest", multi, self.config.multi_interest_weight)
        return terms

    @torch.no_grad()
    def draw(
        self,
        interest_BKD: Tensor,
        target_BD: Tensor,
        mask_BK: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw the interest ``[B]`` that each target trains.

        It takes one number from ``generator``, whatever the batch, so that the negatives behind it do not depend on K
        or B.
        """
        probability_BK = self.probabilities(interest_BKD, target_BD, mask_BK)
        seed = int(torch.randint(2**62, (1,), generator=generator))
        uniform_B1 = torch.rand(len(target_BD), 1, generator=torch.Generator().manual_seed(seed))
        passed_BK = uniform_B1.to(probability_BK.device) >= probability_BK.cumsum(dim=1)
        last_B = (probability_BK > 0).long().cumsum(dim=1).argmax(dim=1)  # where rounding leaves the sum below the draw
        return torch.minimum(passed_BK.sum(dim=1), last_B)

    def probabilities(self, interest_BKD: Tensor, target_BD: Tensor, mask_BK: Tensor | None = None) -> Tensor:
        """Return the chances ``[B, K]`` of the interests."""
        with torch.autocast(target_BD.device.type, enabled=False):
            interest_BKD, target_BD = interest_BKD.float(), target_BD.float()
            if self.config.selection == "linear":
                interest_BKD, target_BD = interest_BKD @ self.interest_map_ED.T, target_BD @ self.item_map_ED.T
            logit_BK = self.config.sharpness * torch.einsum("bkd,bd->bk", interest_BKD, target_BD)
        return torch.softmax(logit_BK if mask_BK is None else logit_BK.masked_fill(~mask_BK, _NEVER), dim=1)

    def _multi_interest(self, interest_BKD: Tensor, mask_BK: Tensor | None, batch: TrainBatch) -> Tensor:
        """Return the softmax over ``logsumexp_k(h_k . v / tau)`` (eq. 10-12), over candidates of its own.

        The loss's sampler, logQ and temperature are used; candidates that are the row's target never count, and REMI's
        weights (``loss.beta``) do not enter.
        """
        config, target_B = self.config.loss, batch.target_B
        drawn = self.retrieval_loss.sampler.sample(target_B, batch.generator)
        item_ED = self.item_vectors(torch.cat([target_B, drawn.id_S]))
        with torch.autocast(target_B.device.type, enabled=False):
            interest_BKD, item_ED = interest_BKD.float() / config.temperature, item_ED.float()
            positive_BK = torch.einsum("bkd,bd->bk", interest_BKD, item_ED[: len(target_B)])
            score_BKS = interest_BKD @ item_ED[len(target_B) :].T
            if mask_BK is not None:
                positive_BK = positive_BK.masked_fill(~mask_BK, _NEVER)
                score_BKS = score_BKS.masked_fill(~mask_BK[:, :, None], _NEVER)
            positive_B, score_BS = positive_BK.logsumexp(dim=1), score_BKS.logsumexp(dim=1)
            if config.log_q:
                positive_B, score_BS = positive_B - drawn.log_q_target_B, score_BS - drawn.log_q_S
            score_BS = score_BS.masked_fill(target_B[:, None] == drawn.id_S, _NEVER)
            return weighted_mean(F.softplus(score_BS.logsumexp(dim=1) - positive_B), batch.weight_B)
