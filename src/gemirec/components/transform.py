"""Interests as nonlinear transforms of one vector of the user.

Axes: B batch, K interests, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InterestTransforms(nn.Module):
    """``h_j = LeakyReLU( u W_j + b_j )`` (survey, arXiv 2506.15284, section 3.2).

    Args:
        dim: D.
        num_interests: K.
        slope: Slope of the LeakyReLU below zero.
        identity: Start each map at the identity plus the draws, so that interests begin in the items' space (ours).
    """

    def __init__(self, dim: int, num_interests: int, slope: float = 0.01, identity: bool = False) -> None:
        super().__init__()
        self.slope = slope
        weight_KDD = torch.stack([nn.init.xavier_uniform_(torch.empty(dim, dim)) for _ in range(num_interests)])
        self.weight_KDD = nn.Parameter(weight_KDD + torch.eye(dim) if identity else weight_KDD)
        self.bias_KD = nn.Parameter(torch.zeros(num_interests, dim))

    def forward(self, user_BD: Tensor) -> Tensor:
        """Return the interests ``[B, K, D]`` of users ``[B, D]``."""
        interests, dim, _ = self.weight_KDD.shape
        flat_BE = user_BD @ self.weight_KDD.permute(1, 0, 2).reshape(dim, interests * dim)
        return F.leaky_relu(flat_BE.view(len(user_BD), interests, dim) + self.bias_KD, self.slope)
