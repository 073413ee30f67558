"""Sparse interests: of a table of prototypes a user activates K, and the history is shared out among them (SINE).

Axes: B batch, L history length, K interests, D embedding, C prototypes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.attention import SelfAttention

_MASKED = -1e9


class Activated(NamedTuple):
    """The prototypes that each user activates.

    Attributes:
        index_BK: ``[B, K]`` int64 rows of the table, most active first.
        gate_BK: ``[B, K]`` ``sigmoid(s)``, between 0 and 1.
        prototype_BKD: ``[B, K, D]`` the prototypes themselves, not yet gated.
    """

    index_BK: Tensor
    gate_BK: Tensor
    prototype_BKD: Tensor


class SparsePrototypes(nn.Module):
    """SINE's interests (Tan et al., WSDM 2021, arXiv 2102.09267), as its released ``Model_SINE`` computes them.

    In order::

        z = attention pooling of X (positions in the logits);  s = z C^T;  the top K of s are active, gate sigmoid(s)
        P_kt = softmax_k( cos(x_t, c_k) / tau )
        a_k  = softmax_t( P_kt W2 tanh( W1 (x_t + p_t) ) );   h_k = sum_t a_kt x_t

    The choice of K has no gradient; the table learns through ``P`` and through the gates where those are used.

    Args:
        dim: D.
        num_prototypes: C, at least K (SINE: 10 to 50 on small data, 50 to 5000 on large).
        num_interests: K.
        max_length: Positions that can be told apart.
        hidden: Width of both attentions (SINE: 512 at D 128).
        temperature: tau (release: .07).
        cosine: Activate by cosines instead of inner products (``cate_norm`` of the release).
    """

    def __init__(
        self,
        dim: int,
        num_prototypes: int,
        num_interests: int,
        max_length: int,
        hidden: int,
        *,
        temperature: float = 0.07,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        self.temperature, self.cosine, self.num_interests = temperature, cosine, num_interests
        self.table_CD = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_prototypes, dim)))
        self.summary = SelfAttention(dim, 1, max_length, hidden, "oldest")
        self.attention = SelfAttention(dim, num_interests, max_length, hidden, "oldest")

    def activate(self, item_BLD: Tensor, mask_BL: Tensor) -> Activated:
        """Return the K prototypes of each user, and their gates, from the summary ``z`` of the history."""
        summary_BD = self.summary(item_BLD, mask_BL)[:, 0].float()
        table_CD = self.table_CD.float()
        with torch.autocast(table_CD.device.type, enabled=False):  # a rounded score would choose other prototypes
            if self.cosine:
                score_BC = F.normalize(summary_BD, dim=1) @ F.normalize(table_CD, dim=1).T
            else:
                score_BC = summary_BD @ table_CD.T
        top_BK, index_BK = score_BC.topk(self.num_interests, dim=1)
        return Activated(index_BK, torch.sigmoid(top_BK), F.embedding(index_BK, table_CD))

    def assign(
        self,
        item_BLD: Tensor,
        prototype_BKD: Tensor,
        mask_BK: Tensor | None = None,
        gate_BK: Tensor | None = None,
    ) -> Tensor:
        """Return ``P`` ``[B, K, L]``: how each item is shared out among prototypes; sums to 1 over k, padding too.

        Args:
            item_BLD: ``[B, L, D]`` item vectors.
            prototype_BKD: ``[B, K, D]`` prototypes.
            mask_BK: ``[B, K]`` bool; a prototype without an interest gets nothing. ``None`` if all have one.
            gate_BK: ``[B, K]`` gates that multiply the shares before they are normalised (ours): the activation then
                learns without SINE's aggregation. ``None`` as in SINE, whose gates act in the aggregation alone.
        """
        with torch.autocast(item_BLD.device.type, enabled=False):
            item_BLD, prototype_BKD = F.normalize(item_BLD.float(), dim=2), F.normalize(prototype_BKD.float(), dim=2)
            logit_BKL = prototype_BKD @ item_BLD.transpose(1, 2) / self.temperature
        if gate_BK is not None:
            logit_BKL = logit_BKL + gate_BK.log()[:, :, None]
        if mask_BK is not None:
            logit_BKL = logit_BKL.masked_fill(~mask_BK[:, :, None], _MASKED)
        return torch.softmax(logit_BKL, dim=1)

    def weights(self, item_BLD: Tensor, mask_BL: Tensor, assignment_BKL: Tensor) -> Tensor:
        """Return the attention ``a`` ``[B, K, L]``; rows sum to 1 over the history and are zero at padding."""
        logit_BKL = self.attention.logits(item_BLD, mask_BL) * assignment_BKL
        return torch.softmax(logit_BKL.masked_fill(~mask_BL[:, None], _MASKED), dim=2)

    def forward(
        self, item_BLD: Tensor, mask_BL: Tensor, mask_BK: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Activated]:
        """Return interests ``[B, K, D]``, weights ``[B, K, L]``, assignment ``[B, K, L]`` and prototypes.

        Args:
            item_BLD: ``[B, L, D]`` item vectors, zero at padding.
            mask_BL: ``[B, L]`` bool, true at real items.
            mask_BK: ``[B, K]`` bool, true at interests that exist; the others share no item. ``None`` if all do.
        """
        active = self.activate(item_BLD, mask_BL)
        assignment_BKL = self.assign(item_BLD, active.prototype_BKD, mask_BK)
        weight_BKL = self.weights(item_BLD, mask_BL, assignment_BKL)
        return weight_BKL.to(item_BLD.dtype) @ item_BLD, weight_BKL, assignment_BKL, active


class IntentFusion(nn.Module):
    """SINE's aggregation: the intention behind the history's activated prototypes weighs the interests.

    In order::

        x'_t = sum_k P_kt g_k c_k (+ x_t);  c_apt = attention pooling of x';  mu = W [mean_k h_k; c_apt] + b
        user = sum_k softmax_k(h_k . mu) h_k

    Args:
        dim: D.
        max_length: Positions that can be told apart.
        hidden: Width of the pooling attention.
        residual: Add the item itself to ``x'``.
    """

    def __init__(self, dim: int, max_length: int, hidden: int, *, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.pooling = SelfAttention(dim, 1, max_length, hidden, "oldest")
        self.intent = nn.Linear(2 * dim, dim)
        nn.init.xavier_uniform_(self.intent.weight)
        nn.init.zeros_(self.intent.bias)

    def fuse(
        self,
        interest_BKD: Tensor,
        imagined_BLD: Tensor,
        item_BLD: Tensor,
        mask_BL: Tensor,
        mask_BK: Tensor | None = None,
    ) -> Tensor:
        """Return the weight ``[B, K]`` of each interest; those of a row sum to 1.

        Args:
            interest_BKD: ``[B, K, D]`` interests.
            imagined_BLD: ``[B, L, D]`` what :func:`imagine` gives.
            item_BLD: ``[B, L, D]`` item vectors, zero at padding.
            mask_BL: ``[B, L]`` bool, true at real items.
            mask_BK: ``[B, K]`` bool, true at interests that exist; the others get 0. ``None`` if all do.
        """
        if self.residual:
            imagined_BLD = imagined_BLD + item_BLD
        context_BD = self.pooling(imagined_BLD * mask_BL[:, :, None], mask_BL)[:, 0]
        if mask_BK is None:
            mean_BD = interest_BKD.mean(dim=1)
        else:
            mean_BD = (interest_BKD * mask_BK[:, :, None]).sum(dim=1) / mask_BK.sum(dim=1, keepdim=True).clamp(min=1)
        intent_BD = self.intent(torch.cat([mean_BD, context_BD], dim=1))
        logit_BK = torch.einsum("bkd,bd->bk", interest_BKD, intent_BD).float()
        if mask_BK is not None:
            logit_BK = logit_BK.masked_fill(~mask_BK, _MASKED)
        return torch.softmax(logit_BK, dim=1)

    def forward(
        self, interest_BKD: Tensor, item_BLD: Tensor, mask_BL: Tensor, assignment_BKL: Tensor, active: Activated
    ) -> Tensor:
        """Return the user's one vector ``[B, D]``; arguments as :class:`SparsePrototypes` gives them."""
        weight_BK = self.fuse(interest_BKD, imagine(assignment_BKL, active).to(item_BLD.dtype), item_BLD, mask_BL)
        return torch.einsum("bk,bkd->bd", weight_BK.to(interest_BKD.dtype), interest_BKD)


def imagine(assignment_BKL: Tensor, active: Activated) -> Tensor:
    """Return ``sum_k P_kt g_k c_k`` ``[B, L, D]``: each item as the user's gated prototypes see it."""
    return assignment_BKL.transpose(1, 2) @ (active.gate_BK[:, :, None] * active.prototype_BKD)
