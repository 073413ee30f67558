"""ComiRec's self-attentive extractor: K attention distributions over the history.

Axes: B batch, L history length, K interests, D embedding, A hidden width of the attention.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Positions = Literal["oldest", "newest", "none"]
_MASKED = -1e9
"""Logit at padding. Finite: a history without items gets uniform attention over zero vectors, hence zero interests."""


class SelfAttention(nn.Module):
    """``A = softmax_L( W2 tanh( W1 (X + P) + b1 ) )``, ``H = A X`` (ComiRec, arXiv 2005.09347, eq. 5-6).

    As in the released code, positions enter the logits only and not the values, and ``W1`` has a bias. Its bias on
    ``W2`` is left out: one number for a whole row of logits cancels in the softmax.

    Args:
        dim: Width of the item vectors.
        num_interests: K.
        max_length: Positions that can be told apart.
        hidden: Width of the hidden layer.
        positions: ``oldest`` counts from the oldest item of the window (ComiRec), ``newest`` from the most recent,
            ``none`` learns no positions.
        temperature: Logits are divided by this, ``softmax(. / tau)`` (survey, arXiv 2506.15284, section 3.2).
        power: gamma on the weights, renormalised, ``a^gamma / sum a^gamma``: 0 is mean pooling, a large one selects one
            item. It multiplies logits, so it undoes ``temperature`` where both are the same number.
        cosine: Logits are cosines between ``W2``'s rows and the hidden layer, times nothing: they need a temperature
            of about .1.
        gumbel: Scale of Gumbel noise on the logits in training, before the temperature; 0 for none.
    """

    def __init__(
        self,
        dim: int,
        num_interests: int,
        max_length: int,
        hidden: int,
        positions: Positions,
        *,
        temperature: float = 1.0,
        power: float = 1.0,
        cosine: bool = False,
        gumbel: float = 0.0,
    ) -> None:
        super().__init__()
        self.positions = positions
        self.sharpness = power / temperature
        self.cosine = cosine
        self.gumbel = gumbel
        self.inner = nn.Linear(dim, hidden)
        self.outer = nn.Linear(hidden, num_interests, bias=False)
        nn.init.xavier_uniform_(self.inner.weight)
        nn.init.zeros_(self.inner.bias)
        nn.init.xavier_uniform_(self.outer.weight)
        self.position_LD = None
        if positions != "none":
            self.position_LD = nn.Parameter(nn.init.xavier_uniform_(torch.empty(max_length, dim)))

    def logits(self, item_BLD: Tensor, mask_BL: Tensor, *, shifted: bool = False) -> Tensor:
        """Return the logits ``[B, K, L]`` float32, or the cosines; what stands at padding means nothing.

        Args:
            item_BLD: ``[B, L, D]`` item vectors.
            mask_BL: ``[B, L]`` bool, true at real items.
            shifted: Leave out a constant of each interest, which a softmax over the history does not see.
        """
        key_BLD = item_BLD
        if self.position_LD is not None and self.positions == "oldest":
            key_BLD = item_BLD + self.position_LD[: item_BLD.shape[1]]
        elif self.position_LD is not None:
            age_BL = mask_BL.sum(dim=1, keepdim=True) - 1 - torch.arange(mask_BL.shape[1], device=mask_BL.device)
            key_BLD = item_BLD + self.position_LD[age_BL.clamp(min=0)]
        weight = self.outer.weight
        if self.cosine:
            hidden_BLA = F.normalize(torch.tanh(self.inner(key_BLD)), dim=2)
            return F.linear(hidden_BLA, F.normalize(weight, dim=1)).transpose(1, 2).float()
        # tanh(z) = 2 sigmoid(2z) - 1: the same logits, with a sigmoid, which costs a sixth of a tanh on the CPU; the
        # constant is W2 (-1).
        doubled_BLA = F.linear(key_BLD, 2 * self.inner.weight, 2 * self.inner.bias)
        logit_BLK = F.linear(torch.sigmoid(doubled_BLA), 2 * weight, None if shifted else -weight.sum(dim=1))
        return logit_BLK.transpose(1, 2).float()

    def attention(self, item_BLD: Tensor, mask_BL: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the attention ``[B, K, L]``; rows sum to 1 over the history.

        Args:
            item_BLD: ``[B, L, D]`` item vectors.
            mask_BL: ``[B, L]`` bool, true at real items.
            generator: Source of the Gumbel noise, on the CPU; torch's global one if ``None``.
        """
        logit_BKL = self.logits(item_BLD, mask_BL, shifted=True)
        if self.gumbel > 0 and self.training:
            uniform_BKL = torch.rand(logit_BKL.shape, generator=generator).clamp(1e-20, 1 - 1e-7)
            logit_BKL = logit_BKL - self.gumbel * (-uniform_BKL.log()).log().to(logit_BKL.device)
        if self.sharpness != 1:
            logit_BKL = logit_BKL * self.sharpness
        return torch.softmax(logit_BKL.masked_fill(~mask_BL[:, None], _MASKED), dim=2)

    def forward(self, item_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the interests ``[B, K, D]``."""
        return self.attention(item_BLD, mask_BL).to(item_BLD.dtype) @ item_BLD
