"""MIMA: a set of positives, matched one to one with the interests (Alibaba International, 2026, arXiv 2609.12842).

With one positive per example, one interest learns from it and the others are free to follow the same: the paper's cause
of collapse. MIMA takes up to K next items at once and gives each an interest of its own.

There is no released code; what the paper is not known to say is marked as inferred or ours (METHODS 5.1).

Axes: B batch, L history length, K interests, D embedding, J positives of a row, P pairs of a batch, S candidates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor, nn

from gemirec.components.attention import Positions
from gemirec.components.matching import MAX_INTERESTS, greedy_matching, optimal_matching, positive_set
from gemirec.components.query_decoder import QueryDecoder
from gemirec.components.transformer import check_heads
from gemirec.errors import ConfigError
from gemirec.models.base import Histories, Interests, LossTerms, TrainBatch
from gemirec.models.common import Count, MultiInterestConfig, Probability, TableModel, widen

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec

_NEVER = -1e30


class MIMAConfig(MultiInterestConfig, frozen=True, kw_only=True):
    """Fields of MIMA. ``loss.readout`` acts with ``matching: none`` alone: a matched pair has one interest."""

    layers: Count = 2
    """Layers of the decoder (paper: 2)."""
    heads: Count = 1
    """Attention heads (inferred); must divide ``dim``. The cross-attention that makes an interest is their mean."""
    hidden_factor: Count = 2
    """Width of the layers' hidden layer in multiples of ``dim`` (inferred)."""
    dropout: Probability = 0.1
    """Probability of dropping a unit in the decoder (inferred)."""
    positions: Positions = "newest"
    """Learned positions of the history, counted from the ``newest`` item (ours: training reads shorter histories than
    serving does), from the ``oldest``, or ``none``."""
    positives: Literal["window", "target"] = "window"
    """Where the set of positives comes from. The paper takes the items of one request, or on public data of one day,
    and reads what came strictly before. A training window has no times: ``window`` (ours) holds out its last items,
    which with the target are up to K unique positives, and reads the items before them; ``target`` takes the target
    alone and reads the whole window."""
    held_out: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """Largest part of a window that ``positives: window`` holds out (ours), so that short windows keep a history."""
    matching: Literal["hungarian", "greedy", "none"] = "hungarian"
    """How positives find their interests, by the scores and without gradient. ``hungarian``: one to one with the
    largest sum (paper). ``greedy``: best free pair first (the paper's ablation). ``none``: not one to one, every
    positive is an example for ``loss.readout`` (ours, to tell the matching's part from the set's)."""
    calibrate: bool = True
    """Multiply each interest by its routing weight at serving, so that a plain search by inner product ranks by
    ``pi_k (h_k . v)`` (paper)."""
    routing_hidden: Count = 64
    """Hidden width of the routing network (inferred)."""
    routing_weight: Annotated[float, Meta(ge=0)] = 1.0
    """Weight of the routing loss (inferred)."""
    margin: Annotated[float, Meta(ge=0)] = 0.1
    """Margin of the routing loss (inferred), in units of the calibrated score."""
    routing_gradient: Literal["routing", "score", "all"] = "score"
    """How far the routing loss reaches. ``score``: its network reads stopped states, while interests and items learn
    from the score they are in (our reading of the paper's stop-gradient; the last query then stays as it was drawn).
    ``routing``: the network alone. ``all``: also the decoder, through the states (both ours)."""


class Pairs(NamedTuple):
    """The positives of a batch, one after the other.

    Attributes:
        row_P: ``[P]`` int64 row of each.
        item_P: ``[P]`` int64 positive item.
        vector_PKD: ``[P, 1, D]`` its interest, or ``[P, K, D]`` all of the row's without matching.
    """

    row_P: Tensor
    item_P: Tensor
    vector_PKD: Tensor


class MIMA(TableModel):
    """K + 1 queries through a causal decoder: ``h_k = sum_l A_kl e_l``, and ``pi = softmax(MLP(.))`` from the last one.

    ``A`` is the last layer's cross-attention. The loss is ``L = mean over matched pairs of the sampled softmax +
    routing_weight * mean over positives of [margin - s(v+) + max_j s(v_j)]_+``, ``s(v) = max_k pi_k (h_k . v)``.
    Other positives of a row may be drawn as negatives of a pair, and none of them is a negative in the routing loss.
    """

    def __init__(self, config: MIMAConfig, spec: DataSpec) -> None:
        _check(config)
        super().__init__(config, spec)
        self.decoder = QueryDecoder(
            config.dim,
            config.num_interests + 1,
            layers=config.layers,
            heads=config.heads,
            hidden=config.hidden_factor * config.dim,
            dropout=config.dropout,
            max_length=config.max_length,
            positions=config.positions,
        )
        self.routing = nn.Sequential(
            nn.Linear(config.dim, config.routing_hidden),
            nn.ReLU(),
            nn.Linear(config.routing_hidden, config.num_interests),
        )

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, K, D]`` interests without their routing weights; all exist."""
        return self._read(histories)[0], None

    def interests(self, histories: Histories) -> Interests:
        """Return the interests, with ``calibrate`` multiplied by their routing weights; these stand beside them."""
        raw_BKD, state_BD = self._read(widen(histories, self.max_length))
        vector_BKD, weight_BK = self._normalize(raw_BKD).float(), self._route(state_BD)
        if self.config.calibrate:
            vector_BKD = vector_BKD * weight_BK[:, :, None]
        first_K = torch.arange(vector_BKD.shape[1], device=vector_BKD.device) == 0
        return Interests(vector_BKD, histories.mask_BL.any(dim=1)[:, None] | first_K, weight_BK)

    def attribution(self, histories: Histories) -> Tensor:
        """Return the cross-attention ``[B, K, L]`` that weighs the items."""
        _, weight_BQL = self.decoder(self.item_table(histories.item_BL), histories.mask_BL)
        return torch.mul(weight_BQL[:, :-1], histories.mask_BL[:, None])

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return ``retrieval``, over the pairs of positives and interests, and ``routing``."""
        wide = widen(batch, self.max_length)
        most = self.config.num_interests if self.config.positives == "window" else 1
        item_BL, positive_BJ, mask_BJ = positive_set(
            wide.item_BL, wide.length_B, batch.target_B, most, self.config.held_out
        )
        raw_BKD, state_BD = self._read(replace(wide, item_BL=item_BL))
        vector_BKD = self._normalize(raw_BKD)
        pairs = self._pair(vector_BKD, positive_BJ, mask_BJ)
        weight_P = None if batch.weight_B is None else batch.weight_B[pairs.row_P]
        terms = LossTerms()
        loss = self._retrieval(pairs.vector_PKD, None, pairs.item_P, weight_P, batch.generator)
        terms.add("retrieval", loss)
        if self.config.routing_weight > 0:
            own_BJ = positive_BJ.masked_fill(~mask_BJ, -1)
            loss_P = self._hinge(vector_BKD, state_BD, pairs, own_BJ, batch.generator)
            loss = loss_P.mean() if weight_P is None else (loss_P * weight_P).sum() / weight_P.sum()
            terms.add("routing", loss, self.config.routing_weight)
        return terms

    def _read(self, histories: Histories) -> tuple[Tensor, Tensor]:
        """Return raw interests ``[B, K, D]`` and the last query's state ``[B, D]``."""
        item_BLD = self.item_table(histories.item_BL)
        state_BQD, weight_BQL = self.decoder(item_BLD, histories.mask_BL)
        return weight_BQL[:, :-1].to(item_BLD.dtype) @ item_BLD, state_BQD[:, -1]

    def _route(self, state_BD: Tensor) -> Tensor:
        """Return ``pi`` ``[B, K]`` float32."""
        return torch.softmax(self.routing(state_BD).float(), dim=1)

    def _pair(self, vector_BKD: Tensor, positive_BJ: Tensor, mask_BJ: Tensor) -> Pairs:
        """Give every positive its interest."""
        row_P, place_P = torch.nonzero(mask_BJ, as_tuple=True)
        if self.config.matching == "none":
            return Pairs(row_P, positive_BJ[row_P, place_P], vector_BKD[row_P])
        with torch.no_grad():
            score_BKJ = (vector_BKD @ self.item_vectors(positive_BJ).transpose(1, 2)).float()
        match = optimal_matching if self.config.matching == "hungarian" else greedy_matching
        chosen_P = match(score_BKJ, mask_BJ)[row_P, place_P]
        return Pairs(row_P, positive_BJ[row_P, place_P], vector_BKD[row_P, chosen_P][:, None])

    def _hinge(
        self, vector_BKD: Tensor, state_BD: Tensor, pairs: Pairs, own_BJ: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return ``[P]``, how far each positive's calibrated score is from ``margin`` above the hardest negative's."""
        reach = self.config.routing_gradient
        weight_BK = self._route(state_BD if reach == "all" else state_BD.detach())
        id_S = self.retrieval_loss.sampler.sample(pairs.item_P, generator).id_S
        item_ED = self.item_vectors(torch.cat([pairs.item_P, id_S]))
        if reach == "routing":
            vector_BKD, item_ED = vector_BKD.detach(), item_ED.detach()
        with torch.autocast(id_S.device.type, enabled=False):
            scaled_BKD = vector_BKD.float() * weight_BK[:, :, None]
            positive_PD, negative_SD = item_ED.float().tensor_split([len(pairs.item_P)])
            own_P = torch.einsum("pkd,pd->pk", scaled_BKD[pairs.row_P], positive_PD).amax(dim=1)
            is_own_BS = (own_BJ[:, :, None] == id_S).any(dim=1)
            score_BS = (scaled_BKD @ negative_SD.T).amax(dim=1)
            hardest_B = score_BS.masked_fill(is_own_BS, _NEVER).amax(dim=1)
            return torch.relu(self.config.margin - own_P + hardest_B[pairs.row_P])


def _check(config: MIMAConfig) -> None:
    """Raise for widths and numbers that do not go together."""
    check_heads(config.heads, config.dim)
    if config.matching == "hungarian" and config.num_interests > MAX_INTERESTS:
        raise ConfigError(
            "too many interests for an exact matching",
            got=f"num_interests {config.num_interests}",
            fix=f"give {MAX_INTERESTS} or fewer, or set model.matching=greedy",
        )
