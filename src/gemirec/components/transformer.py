"""A causal transformer over the history (SASRec, arXiv 1808.09781, section III).

Axes: B batch, L history length, D embedding, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.errors import ConfigError


def check_heads(heads: int, width: int, heads_field: str = "model.heads", width_field: str = "model.dim") -> None:
    """Raise if attention heads cannot share a width; the fields are named as the error shall call them.

    Raises:
        ConfigError: ``heads`` does not divide ``width``.
    """
    if width % heads:
        raise ConfigError(
            "the attention heads must divide the width",
            got=f"{heads_field} {heads}, {width_field} {width}",
            fix=f"choose {heads_field} so that {width_field} is a multiple of it",
        )


class Block(nn.Module):
    """Pre-norm causal self-attention and a two-layer network, each with a residual.

    Args:
        dim: D.
        heads: Attention heads; must divide ``dim``.
        hidden: Width of the network's hidden layer.
        dropout: Probability of dropping a unit, in attention weights and after both parts.
    """

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.network_norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, hidden)
        self.outer = nn.Linear(hidden, dim)
        for layer in (self.query_key_value, self.output, self.inner, self.outer):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, state_BLD: Tensor) -> Tensor:
        """Return the next states ``[B, L, D]``; position l sees positions up to l only."""
        batch, length, dim = state_BLD.shape
        mixed = self.query_key_value(self.attention_norm(state_BLD))
        query_BHLD, key_BHLD, value_BHLD = mixed.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        seen_BHLD = F.scaled_dot_product_attention(query_BHLD, key_BHLD, value_BHLD, dropout_p=drop, is_causal=True)
        seen_BLD = self.output(seen_BHLD.transpose(1, 2).reshape(batch, length, dim))
        state_BLD = state_BLD + F.dropout(seen_BLD, drop)
        hidden_BLD = F.relu(self.inner(self.network_norm(state_BLD)))
        return state_BLD + F.dropout(self.outer(hidden_BLD), drop)

    def last(self, state_BLD: Tensor, place_B: Tensor) -> Tensor:
        """Return the next state ``[B, D]`` of position ``place_B`` of each row alone, without dropout.

        What :meth:`forward` gives there in ``eval`` mode, up to rounding, at a third of its cost or less.
        """
        batch, length, dim = state_BLD.shape
        own_BD = state_BLD[torch.arange(batch, device=state_BLD.device), place_B]
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        query_BD = F.linear(self.attention_norm(own_BD), weight[:dim], bias[:dim])
        mixed_BLX = F.linear(self.attention_norm(state_BLD), weight[dim:], bias[dim:])
        key_BHLD, value_BHLD = mixed_BLX.view(batch, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen_BL = torch.arange(length, device=state_BLD.device) <= place_B[:, None]
        query_BH1D = query_BD.view(batch, self.heads, 1, -1)
        seen_BH1D = F.scaled_dot_product_attention(query_BH1D, key_BHLD, value_BHLD, attn_mask=seen_BL[:, None, None])
        own_BD = own_BD + self.output(seen_BH1D.reshape(batch, dim))
        out_BD: Tensor = own_BD + self.outer(F.relu(self.inner(self.network_norm(own_BD))))
        return out_BD


class CausalEncoder(nn.Module):
    """Learned positions, dropout, blocks and a last normalisation.

    Positions count from the oldest item of the window: histories are padded behind, so causality alone keeps padding
    out of every real position's state, and a prefix has the state it would have as a history of its own. (The released
    code pads in front and counts from there, so that there the most recent item keeps its place instead.)

    Args:
        dim: D.
        layers: Number of blocks.
        heads: Attention heads.
        hidden: Width of the blocks' hidden layer.
        dropout: Probability of dropping a unit.
        max_length: Positions that can be told apart.
        scale_input: Multiply item vectors by ``sqrt(D)`` before the positions are added, as the released code does.
    """

    def __init__(
        self, dim: int, *, layers: int, heads: int, hidden: int, dropout: float, max_length: int, scale_input: bool
    ) -> None:
        super().__init__()
        self.scale = dim**0.5 if scale_input else 1.0
        self.dropout = dropout
        self.position_LD = nn.Parameter(nn.init.xavier_uniform_(torch.empty(max_length, dim)))
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, item_BLD: Tensor) -> Tensor:
        """Return the states ``[B, L, D]`` of item vectors ``[B, L, D]``; states behind the last item mean nothing."""
        state_BLD = item_BLD * self.scale + self.position_LD[: item_BLD.shape[1]]
        state_BLD = F.dropout(state_BLD, self.dropout, self.training)
        for block in self.blocks:
            state_BLD = block(state_BLD)
        out: Tensor = self.norm(state_BLD)
        return out

    def last(self, item_BLD: Tensor, place_B: Tensor) -> Tensor:
        """Return the state ``[B, D]`` of position ``place_B`` of each row, without dropout: what serving needs."""
        state_BLD = item_BLD * self.scale + self.position_LD[: item_BLD.shape[1]]
        *blocks, top = self.blocks
        for block in blocks:
            state_BLD = block(state_BLD)
        assert isinstance(top, Block)
        out_BD: Tensor = self.norm(top.last(state_BLD, place_B))
        return out_BD
