"""Re4: interests that re-contrast, re-attend and re-construct their items (Zhang et al., WWW 2022, 2208.08011).

The *forward* flow makes interests out of items, by attention. Three *backward* losses go from the interests back to
the items: each interest shall point at the items that it attends to, be nearer to them than to others, and contain
enough to build them again. The paper's equations were not at hand; everything below is its released code.

Axes: B batch, L history length, K interests, D embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.attention import Positions, SelfAttention
from gemirec.components.regularizers import weighted_mean
from gemirec.models.base import Histories, LossTerms, TrainBatch
from gemirec.models.comirec_sa import ComiRecSAConfig
from gemirec.models.common import PositiveFloat, TableModel, widen

if TYPE_CHECKING:
    from gemirec.data.dataset import DataSpec

Cells = Literal["all", "positive"]
Weight = Annotated[float, Meta(ge=0)]
_NEVER = -1e9


class Re4Config(ComiRecSAConfig, frozen=True, kw_only=True):
    """Fields of Re4."""

    positions: Positions = "none"
    """Learned positions in the attention logits: none in Re4."""
    identity_maps: bool = False
    """Start ``W2`` and ``fc`` at the identity plus the draws (ours): interests then begin in the space of the items."""
    reattend_weight: Weight = 0.001
    """Weight of the re-attend loss (README of the release)."""
    recontrast_weight: Weight = 0.1
    """Weight of the re-contrast loss (README of the release)."""
    reconstruct_weight: Weight = 0.1
    """Weight of the re-construct loss (README of the release)."""
    gate_items: Annotated[int, Meta(ge=0)] = 0
    """An item belongs to an interest where the attention exceeds 1 / ``gate_items``; with 0, 1 / the history's own
    length (the release's ``--thre``, where -1 stands for our 0)."""
    contrast_temperature: PositiveFloat = 0.02
    """Temperature of the cosines in re-contrast (released code: 0.02)."""
    contrast_with: Literal["previous_row", "own"] = "previous_row"
    """Negatives of re-contrast: the history's own items and the other interests, and with ``previous_row`` also the
    items of the batch's row before (released code). ``own`` makes a row's loss independent of its batch."""
    cells: Cells = "all"
    """What re-contrast and re-construct average over: ``all`` cells (interest, position), those that do not count
    adding 0 (released code), or the ``positive`` ones, which is stronger and does not depend on padding."""
    stop_targets: bool = False
    """Stop the gradient through what the interests are held against: re-attend's target and the items to construct. The
    released code does not."""


class Re4(TableModel):
    """``A = softmax_L( W1' tanh(W1 X) )``, ``Z = A (X W2)``; users are served by ``tanh(fc(Z))``, losses act on ``Z``.

    Differences from the released code: Glorot initialisation (there all weights are drawn from N(0, 1)), a bias in the
    attention's inner layer as in ComiRec, and a user without history has zero interests instead of ``tanh(bias)``.
    """

    def __init__(self, config: Re4Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        dim, length = config.dim, config.max_length
        self.attention = SelfAttention(dim, config.num_interests, length, config.hidden_factor * dim, config.positions)
        self.value = nn.Linear(dim, dim, bias=False)
        self.scored = nn.Linear(dim, dim)
        self.builder = Builder(dim, length)
        nn.init.zeros_(self.scored.bias)
        for layer in (self.value, self.scored):
            nn.init.xavier_uniform_(layer.weight)
            if config.identity_maps:
                layer.weight.data.add_(torch.eye(dim))

    def encode(self, histories: Histories) -> tuple[Tensor, Tensor | None]:
        """Return ``[B, K, D]`` interests, all of which exist."""
        _, raw_BKD = self._attend(self.item_table(histories.item_BL), histories.mask_BL)
        return self._score(raw_BKD, histories.mask_BL), None

    def attribution(self, histories: Histories) -> Tensor:
        """Return the attention ``[B, K, L]``."""
        return self._attend(self.item_table(histories.item_BL), histories.mask_BL)[0] * histories.mask_BL[:, None]

    def losses(self, batch: TrainBatch, stage: str) -> LossTerms:
        """Return ``retrieval``, ``reattend``, ``recontrast`` and ``reconstruct``."""
        config, histories = self.config, widen(batch, self.max_length)
        mask_BL, weight_B = histories.mask_BL, batch.weight_B
        item_BLD = self.item_table(histories.item_BL)
        attention_BKL, raw_BKD = self._attend(item_BLD, mask_BL)
        vector_BKD = self._normalize(self._score(raw_BKD, mask_BL))
        terms = LossTerms()
        terms.add("retrieval", self._retrieval(vector_BKD, None, batch.target_B, weight_B, batch.generator))
        gate_BKL = owned(attention_BKL, mask_BL, config.gate_items)
        aim_BLD = item_BLD.detach() if config.stop_targets else item_BLD
        built_BKLD = self.builder(raw_BKD, mask_BL)
        with torch.autocast(item_BLD.device.type, enabled=False):  # exponentials and logarithms want float32
            item_BLD, raw_BKD = item_BLD.float(), raw_BKD.float()
            attend_B = reattend(attention_BKL, raw_BKD, item_BLD, mask_BL, stop_target=config.stop_targets)
            contrast_B = recontrast(
                raw_BKD,
                item_BLD,
                gate_BKL,
                mask_BL,
                temperature=config.contrast_temperature,
                previous_row=config.contrast_with == "previous_row",
                cells=config.cells,
            )
            construct_B = reconstruct(built_BKLD.float(), aim_BLD.float(), gate_BKL, cells=config.cells)
        terms.add("reattend", weighted_mean(attend_B, weight_B), config.reattend_weight)
        terms.add("recontrast", weighted_mean(contrast_B, weight_B), config.recontrast_weight)
        terms.add("reconstruct", weighted_mean(construct_B, weight_B), config.reconstruct_weight)
        return terms

    def _attend(self, item_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attention ``A`` ``[B, K, L]`` and the raw interests ``Z`` ``[B, K, D]``."""
        attention_BKL = self.attention.attention(item_BLD, mask_BL)
        raw_BKD: Tensor = self.value(attention_BKL.to(item_BLD.dtype) @ item_BLD)
        return attention_BKL, raw_BKD

    def _score(self, raw_BKD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the interests that score items ``[B, K, D]``; zero for an empty history."""
        return torch.tanh(self.scored(raw_BKD)) * mask_BL.any(dim=1)[:, None, None]


class Builder(nn.Module):
    """From an interest back to L item vectors: one dense layer to L slots, then additive attention among the slots.

    ``C = fc(z)``; slot l is ``sum_m softmax_m( (W3' tanh(W3 C))_lm ) W5 c_m`` over the slots m that hold real items.
    """

    def __init__(self, dim: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.slots = nn.Linear(dim, length * dim)
        self.inner = nn.Linear(dim, dim, bias=False)
        self.outer = nn.Linear(dim, length, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        for layer in (self.slots, self.inner, self.outer, self.value):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.slots.bias)

    def forward(self, raw_BKD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return ``[B, K, L, D]``; what stands at padding means nothing."""
        slot_BKLD = self.slots(raw_BKD).unflatten(2, (self.length, -1))
        logit_BKML = self.outer(torch.tanh(self.inner(slot_BKLD)))  # [.., m, l]: what slot m says to slot l
        weight_BKML = torch.softmax(logit_BKML.float().masked_fill(~mask_BL[:, None, :, None], _NEVER), dim=2)
        built_BKLD: Tensor = self.value(weight_BKML.transpose(2, 3).to(slot_BKLD.dtype) @ slot_BKLD)
        return built_BKLD


def owned(attention_BKL: Tensor, mask_BL: Tensor, gate_items: int) -> Tensor:
    """Return which items belong to which interest ``[B, K, L]``: attention above 1 / ``gate_items`` (0: the length)."""
    length_B = mask_BL.sum(dim=1).clamp(min=1) if gate_items == 0 else torch.full_like(mask_BL[:, 0].long(), gate_items)
    return (attention_BKL > 1 / length_B[:, None, None]) & mask_BL[:, None]


def reattend(attention_BKL: Tensor, raw_BKD: Tensor, item_BLD: Tensor, mask_BL: Tensor, *, stop_target: bool) -> Tensor:
    """Return ``[B]`` cross-entropies ``- sum_l P_kl log A_kl``, averaged over k, with ``P = softmax_L(Z X^T)``.

    An empty history costs 0.
    """
    score_BKL = (raw_BKD @ item_BLD.transpose(1, 2)).masked_fill(~mask_BL[:, None], _NEVER)
    target_BKL = torch.softmax(score_BKL, dim=2) * mask_BL[:, None]
    if stop_target:
        target_BKL = target_BKL.detach()
    return -(target_BKL * attention_BKL.clamp(min=1e-30).log()).sum(dim=2).mean(dim=1)


def recontrast(
    raw_BKD: Tensor,
    item_BLD: Tensor,
    gate_BKL: Tensor,
    mask_BL: Tensor,
    *,
    temperature: float,
    previous_row: bool,
    cells: Cells,
) -> Tensor:
    """Return ``[B]`` contrastive losses: cosines of each interest with its items against all that is not its own.

    For an item l that belongs to interest k, with ``e(y) = exp(cos(z_k, y) / tau)``::

        -log( e(x_l) / ( sum_m e(x_m) + sum_{j != k} e(z_j) + sum_m e(x'_m) ) )

    m over all items of the history, its own included; ``x'`` the items of the batch's row before.
    """
    interest_BKD, item_BLD = F.normalize(raw_BKD, dim=2), F.normalize(item_BLD, dim=2)
    itself_KK = torch.eye(raw_BKD.shape[1], dtype=torch.bool, device=raw_BKD.device)
    own_BKL = (interest_BKD @ item_BLD.transpose(1, 2) / temperature).masked_fill(~mask_BL[:, None], _NEVER)
    others_BKK = (interest_BKD @ interest_BKD.transpose(1, 2) / temperature).masked_fill(itself_KK, _NEVER)
    against = [own_BKL, others_BKK]
    if previous_row and len(raw_BKD) > 1:
        foreign_BLD, foreign_BL = item_BLD.roll(1, dims=0), mask_BL.roll(1, dims=0)
        foreign_BKL = interest_BKD @ foreign_BLD.transpose(1, 2) / temperature
        against.append(foreign_BKL.masked_fill(~foreign_BL[:, None], _NEVER))
    loss_BKL = torch.logsumexp(torch.cat(against, dim=2), dim=2, keepdim=True) - own_BKL
    return _average(loss_BKL, gate_BKL, cells)


def reconstruct(built_BKLD: Tensor, item_BLD: Tensor, gate_BKL: Tensor, *, cells: Cells) -> Tensor:
    """Return ``[B]`` squared errors of the built items, the mean over D, at the items that belong to an interest."""
    return _average((built_BKLD - item_BLD[:, None]).square().mean(dim=3), gate_BKL, cells)


def _average(loss_BKL: Tensor, gate_BKL: Tensor, cells: Cells) -> Tensor:
    """Return the mean ``[B]`` over a row's cells, or over those of the gate; 0 where the gate is shut everywhere."""
    loss_B = loss_BKL.masked_fill(~gate_BKL, 0.0).sum(dim=(1, 2))
    if cells == "all":
        return loss_B / (gate_BKL.shape[1] * gate_BKL.shape[2])
    return loss_B / gate_BKL.sum(dim=(1, 2)).clamp(min=1)
