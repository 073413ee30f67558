"""Gates that a user's profile opens: on the items of a history, or on the profile's own fields (UMI).

Axes: B batch, X items or interests, D embedding, P width of the profile, O gates for each X.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ProfileGate(nn.Module):
    """``g = sigmoid( W2 relu( W1 [x; p] + b1 ) + b2 )``: one gate per item, or one per field and interest (UMI).

    Args:
        dim: D, width of ``x``.
        profile: P, width of ``p``.
        outputs: O; UMI has 1 for an item, and one for each field of the profile for an interest.
        hidden: Width of the hidden layer (UMI: 8).
        bias: Where ``b2`` starts. UMI's release starts at 0; a larger one starts with open gates.
    """

    def __init__(self, dim: int, profile: int, *, outputs: int = 1, hidden: int = 8, bias: float = 0.0) -> None:
        super().__init__()
        self.inner = nn.Linear(dim + profile, hidden)
        self.outer = nn.Linear(hidden, outputs)
        for layer, start in ((self.inner, 0.0), (self.outer, bias)):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.constant_(layer.bias, start)

    def forward(self, vector_BXD: Tensor, profile_BP: Tensor) -> Tensor:
        """Return the gates ``[B, X, O]`` of vectors ``[B, X, D]`` under profiles ``[B, P]``; each between 0 and 1."""
        profile_BXP = profile_BP[:, None].expand(-1, vector_BXD.shape[1], -1)
        hidden = torch.relu(self.inner(torch.cat([vector_BXD, profile_BXP], dim=2)))
        return torch.sigmoid(self.outer(hidden))
