"""HSTU: a causal encoder whose attention is weighted point by point and gates what passes (arXiv 2402.17152, eq. 1-3).

Axes: B batch, L history length, D embedding, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPSILON = 1e-6
"""Of the normalisations, as in the released code."""


class HSTULayer(nn.Module):
    """One sequential transduction unit.

    It computes::

        U, V, Q, K = split( silu( W1 Norm(X) ) )
        A = silu( Q K' + r ) / n         at positions up to the own one, 0 behind it
        Y = X + W2 ( Norm(A V) * U ) + b

    There is no softmax: weights need not sum to 1, so that how often something occurs in a history is kept. ``r`` is a
    learned number for each distance of two positions. The released code adds one for each bucket of the time between
    them; histories carry no times here. Norms have nothing to learn and there is no bias in ``W1`` (released code).

    Args:
        dim: D.
        heads: Attention heads, each of width D / heads; must divide ``dim``.
        dropout: Probability of dropping a unit before ``W2``.
        max_length: n, and the distances that can be told apart.
    """

    def __init__(self, dim: int, heads: int, dropout: float, max_length: int) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.gate_value_query_key = nn.Linear(dim, 4 * dim, bias=False)
        self.output = nn.Linear(dim, dim)
        self.distance_L = nn.Parameter(nn.init.normal_(torch.empty(max_length), std=0.02))
        nn.init.normal_(self.gate_value_query_key.weight, std=0.02)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, state_BLD: Tensor) -> Tensor:
        """Return the next states ``[B, L, D]``; position l sees positions up to l only."""
        batch, length, dim = state_BLD.shape
        mixed = F.silu(self.gate_value_query_key(F.layer_norm(state_BLD, (dim,), eps=_EPSILON)))
        gate_BLD = mixed[:, :, :dim]
        value, query, key = mixed[:, :, dim:].view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen_BHLX = self._weights(query, key) @ value
        seen_BLD = F.layer_norm(seen_BHLX.transpose(1, 2).reshape(batch, length, dim), (dim,), eps=_EPSILON)
        out: Tensor = self.output(F.dropout(seen_BLD * gate_BLD, self.dropout, self.training))
        return state_BLD + out

    def _weights(self, query_BHLX: Tensor, key_BHLX: Tensor) -> Tensor:
        """Return ``A`` ``[B, H, L, L]``."""
        place_L = torch.arange(query_BHLX.shape[2], device=query_BHLX.device)
        distance_LL = place_L[:, None] - place_L
        logit_BHLL = query_BHLX @ key_BHLX.transpose(2, 3) + self.distance_L[distance_LL.clamp(min=0)]
        scale_LL = (distance_LL >= 0).to(logit_BHLL.dtype) / len(self.distance_L)
        return F.silu(logit_BHLL) * scale_LL


class HSTUEncoder(nn.Module):
    """Learned positions, dropout and layers; no normalisation at the end (the released code compares unit vectors).

    Positions count from the oldest item, and causality keeps padding, which stands behind, out of every real position's
    state: a prefix has the state that it would have as a history of its own.

    Args:
        dim: D.
        layers: Number of layers.
        heads: Attention heads; must divide ``dim``.
        dropout: Probability of dropping a unit, of the input too.
        max_length: Positions that can be told apart.

    Example:
        >>> encoder = HSTUEncoder(8, layers=2, heads=2, dropout=0.0, max_length=5)
        >>> encoder(torch.zeros(3, 4, 8)).shape
        torch.Size([3, 4, 8])
    """

    def __init__(self, dim: int, *, layers: int, heads: int, dropout: float, max_length: int) -> None:
        super().__init__()
        self.dropout = dropout
        std = dim**-0.5
        position_LD = nn.init.trunc_normal_(torch.empty(max_length, dim), std=std, a=-2 * std, b=2 * std)
        self.position_LD = nn.Parameter(position_LD)
        self.layers = nn.ModuleList(HSTULayer(dim, heads, dropout, max_length) for _ in range(layers))

    def forward(self, item_BLD: Tensor) -> Tensor:
        """Return the states ``[B, L, D]`` of item vectors ``[B, L, D]``; states behind the last item mean nothing."""
        state_BLD = item_BLD * item_BLD.shape[2] ** 0.5 + self.position_LD[: item_BLD.shape[1]]
        state_BLD = F.dropout(state_BLD, self.dropout, self.training)
        for layer in self.layers:
            state_BLD = layer(state_BLD)
        out: Tensor = state_BLD
        return out
