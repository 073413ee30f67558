"""A Transformer decoder over learned queries that read a history (MIMA, arXiv 2609.12842; after DETR, 2005.12872).

Axes: B batch, L history length, Q queries, D embedding, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.attention import Positions

_MASKED = -1e9
"""Logit at padding. Finite: a history without items gets uniform attention over zero vectors."""


class QueryLayer(nn.Module):
    """Causal self-attention among the queries, cross-attention to the history, a two-layer network.

    Each has a normalisation before it and a residual around it.

    Args:
        dim: D.
        heads: Attention heads; must divide ``dim``.
        hidden: Width of the network's hidden layer.
        dropout: Probability of dropping a unit after each part, and in the self-attention's weights.
    """

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.self_norm = nn.LayerNorm(dim)
        self.self_query_key_value = nn.Linear(dim, 3 * dim)
        self.self_output = nn.Linear(dim, dim)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_query = nn.Linear(dim, dim)
        self.cross_key_value = nn.Linear(dim, 2 * dim)
        self.cross_output = nn.Linear(dim, dim)
        self.network_norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, hidden)
        self.outer = nn.Linear(hidden, dim)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, state_BQD: Tensor, memory_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next states ``[B, Q, D]`` and the cross-attention ``[B, Q, L]`` float32, averaged over heads.

        Args:
            state_BQD: ``[B, Q, D]`` states; query q sees queries up to q only.
            memory_BLD: ``[B, L, D]`` what is read.
            mask_BL: ``[B, L]`` bool, true at real items.
        """
        state_BQD = state_BQD + self._drop(self._among_queries(state_BQD))
        weight_BHQL, seen_BQD = self._read(state_BQD, memory_BLD, mask_BL)
        state_BQD = state_BQD + self._drop(seen_BQD)
        hidden_BQX = F.relu(self.inner(self.network_norm(state_BQD)))
        return state_BQD + self._drop(self.outer(hidden_BQX)), weight_BHQL.mean(dim=1)

    def _among_queries(self, state_BQD: Tensor) -> Tensor:
        mixed = self.self_query_key_value(self.self_norm(state_BQD))
        query, key, value = mixed.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        seen_BHQX = F.scaled_dot_product_attention(query, key, value, dropout_p=drop, is_causal=True)
        out_BQD: Tensor = self.self_output(seen_BHQX.transpose(1, 2).flatten(2))
        return out_BQD

    def _read(self, state_BQD: Tensor, memory_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        query_BHQX = self.cross_query(self.cross_norm(state_BQD)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        mixed = self.cross_key_value(memory_BLD)
        key_BHLX, value_BHLX = mixed.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logit_BHQL = (query_BHQX * query_BHQX.shape[-1] ** -0.5 @ key_BHLX.transpose(2, 3)).float()
        weight_BHQL = torch.softmax(logit_BHQL.masked_fill(~mask_BL[:, None, None], _MASKED), dim=3)
        seen_BHQX = weight_BHQL.to(value_BHLX.dtype) @ value_BHLX
        return weight_BHQL, self.cross_output(seen_BHQX.transpose(1, 2).flatten(2))

    def _drop(self, vector: Tensor) -> Tensor:
        return F.dropout(vector, self.dropout, self.training)


class QueryDecoder(nn.Module):
    """Learned queries, the same for every user, through layers that read the user's history.

    The history is read as ``LayerNorm(X sqrt(D) + P)``: how large the item vectors are does not matter, how they relate
    to the positions does (as in SASRec's code).

    Args:
        dim: D.
        queries: Q.
        layers: Number of layers.
        heads: Attention heads; must divide ``dim``.
        hidden: Width of the layers' hidden layer.
        dropout: Probability of dropping a unit.
        max_length: Positions that can be told apart.
        positions: ``oldest`` counts from the oldest item of the window, ``newest`` from the most recent one, ``none``
            learns no positions.

    Example:
        >>> decoder = QueryDecoder(8, 3, layers=1, heads=2, hidden=8, dropout=0.0, max_length=5, positions="newest")
        >>> state_BQD, weight_BQL = decoder(torch.zeros(2, 5, 8), torch.ones(2, 5, dtype=torch.bool))
        >>> state_BQD.shape, weight_BQL.shape
        (torch.Size([2, 3, 8]), torch.Size([2, 3, 5]))
    """

    def __init__(
        self,
        dim: int,
        queries: int,
        *,
        layers: int,
        heads: int,
        hidden: int,
        dropout: float,
        max_length: int,
        positions: Positions,
    ) -> None:
        super().__init__()
        self.positions = positions
        self.query_QD = nn.Parameter(nn.init.normal_(torch.empty(queries, dim)))
        self.position_LD = None
        if positions != "none":
            self.position_LD = nn.Parameter(nn.init.xavier_uniform_(torch.empty(max_length, dim)))
        self.memory_norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(QueryLayer(dim, heads, hidden, dropout) for _ in range(layers))

    def forward(self, item_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last states ``[B, Q, D]`` and the last layer's cross-attention ``[B, Q, L]`` float32.

        Args:
            item_BLD: ``[B, L, D]`` item vectors, oldest first, padding behind.
            mask_BL: ``[B, L]`` bool, true at real items.
        """
        memory_BLD = item_BLD * item_BLD.shape[2] ** 0.5
        if self.position_LD is not None and self.positions == "oldest":
            memory_BLD = memory_BLD + self.position_LD[: item_BLD.shape[1]]
        elif self.position_LD is not None:
            age_BL = mask_BL.sum(dim=1, keepdim=True) - 1 - torch.arange(mask_BL.shape[1], device=mask_BL.device)
            memory_BLD = memory_BLD + self.position_LD[age_BL.clamp(min=0)]
        memory_BLD = self.memory_norm(memory_BLD)
        state_BQD = self.query_QD.expand(len(item_BLD), -1, -1)
        weight_BQL = state_BQD.new_zeros(0)
        for layer in self.layers:
            state_BQD, weight_BQL = layer(state_BQD, memory_BLD, mask_BL)
        return state_BQD, weight_BQL
