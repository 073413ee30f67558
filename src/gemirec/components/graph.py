"""The graph of a history's own items, and its levels: each hop mixes an item with those that resemble it (MGNM).

Axes: B batch, L history length, D embedding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Hops = Literal["chained", "input"]


def adjacency(item_BLD: Tensor, mask_BL: Tensor, user_BD: Tensor | None = None) -> Tensor:
    """Return ``A_ij = sigmoid(x_i . x_j)`` ``[B, L, L]``, zero at padding (MGNM, arXiv 2205.01286).

    Args:
        item_BLD: ``[B, L, D]`` item vectors.
        mask_BL: ``[B, L]`` bool, true at real items.
        user_BD: ``[B, D]`` a user's vector inside the product, ``sigmoid((x_i * u) . x_j)``: the user-aware graph of
            the paper, switched off in its release. ``None`` for none.

    Example:
        >>> adjacency(torch.zeros(1, 2, 3), torch.tensor([[True, False]]))
        tensor([[[0.5000, 0.0000],
                 [0.0000, 0.0000]]])
    """
    left_BLD = item_BLD if user_BD is None else item_BLD * user_BD[:, None]
    edge_BLL = torch.sigmoid((left_BLD @ item_BLD.transpose(1, 2)).float())
    return edge_BLL * (mask_BL[:, :, None] & mask_BL[:, None])


def normalise_rows(edge_BLL: Tensor, mask_BL: Tensor) -> Tensor:
    """Return ``D^-1 (A + I)``: an edge to itself for each real item, then rows that sum to 1; padding stays zero."""
    looped_BLL = edge_BLL + torch.diag_embed(mask_BL.to(edge_BLL.dtype))
    return looped_BLL / looped_BLL.sum(dim=2, keepdim=True).clamp(min=1e-9)


class GraphLevels(nn.Module):
    """Levels ``x^0 = x``, ``x^l = LeakyReLU(A x^{l-1} W_l + b_l)`` of a history's graph (MGNM).

    The release applies every hop to ``x^0`` and has no weights beyond the first (``hops="input"`` is that reading,
    with weights for each hop).

    Args:
        dim: D.
        levels: Levels, the items themselves (level 0) counted; at least 1.
        hops: ``chained`` applies a hop to the level before it (paper), ``input`` to the items.
        normalise: Self-loops and rows that sum to 1. Without, a level's length grows with the history's.
        identity: Start each map at the identity plus the draws, so that levels begin in the space of the items (ours).
        slope: Slope of the LeakyReLU below zero (TensorFlow's default, .2).
    """

    def __init__(
        self,
        dim: int,
        levels: int,
        *,
        hops: Hops = "chained",
        normalise: bool = True,
        identity: bool = False,
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.hops, self.normalise, self.slope = hops, normalise, slope
        self.maps = nn.ModuleList(nn.Linear(dim, dim) for _ in range(levels - 1))
        for layer in self.maps:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
            if identity:
                layer.weight.data.add_(torch.eye(dim))

    def forward(self, item_BLD: Tensor, mask_BL: Tensor, edge_BLL: Tensor | None = None) -> list[Tensor]:
        """Return the levels, each ``[B, L, D]`` and zero at padding; the first is ``item_BLD`` itself.

        Args:
            item_BLD: ``[B, L, D]`` item vectors, zero at padding.
            mask_BL: ``[B, L]`` bool, true at real items.
            edge_BLL: ``[B, L, L]`` edges before normalisation; ``None`` takes :func:`adjacency`.
        """
        edge_BLL = adjacency(item_BLD, mask_BL) if edge_BLL is None else edge_BLL
        if self.normalise:
            edge_BLL = normalise_rows(edge_BLL, mask_BL)
        edge_BLL = edge_BLL.to(item_BLD.dtype)
        levels = [item_BLD]
        for layer in self.maps:
            source_BLD = levels[-1] if self.hops == "chained" else item_BLD
            next_BLD = F.leaky_relu(layer(edge_BLL @ source_BLD), self.slope)
            levels.append(next_BLD.masked_fill(~mask_BL[:, :, None], 0.0))
        return levels
