"""Routing without iterations: learned prototypes say at once which interest an item belongs to.

Axes: B batch, L history length, K interests, D embedding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemirec.components.capsule import Routing, RoutingAxis, squash

Collected = Literal["squash", "mean"]


class OnePassRouting(nn.Module):
    """Capsules in one pass (ours; an answer to the survey's open question of routing's cost, arXiv 2506.15284).

    Iterated routing starts from logits that know nothing of the items and lets agreement sharpen them. Here prototypes
    ``p_k``, which start orthogonal, take the place of the capsules of the round before::

        b_kl = cos(p_k, u_l) / tau;  c = softmax(b);  s_k = sum_l c_kl u_kl;  h_k = squash(s_k)

    So it is the last round of :class:`~gemirec.components.capsule.Routing` alone, its logits learned: the gradient
    flows through ``c``, nothing is drawn, and serving is deterministic. What it gives up: prototypes are shared by all
    users, so a user's items all near one prototype are not told apart; :class:`~gemirec.components.prototypes.
    SparsePrototypes` chooses prototypes by user instead.

    Args:
        dim: D.
        num_interests: K; beyond D the prototypes cannot all be orthogonal.
        axis: Axis of the softmax, as in :class:`~gemirec.components.capsule.Routing`.
        temperature: tau.
        collect: ``squash`` as in routing, or ``mean``: ``s_k / sum_l c_kl``, which keeps the items' length.
        train_prototypes: Train the prototypes; otherwise they stay as drawn.
    """

    prototype_KD: Tensor

    def __init__(
        self,
        dim: int,
        num_interests: int,
        *,
        axis: RoutingAxis = "interests",
        temperature: float = 0.2,
        collect: Collected = "squash",
        train_prototypes: bool = True,
    ) -> None:
        super().__init__()
        self.temperature, self.collect = temperature, collect
        self.routing = Routing(1, axis)
        prototype_KD = nn.init.orthogonal_(torch.empty(num_interests, dim))
        if train_prototypes:
            self.prototype_KD = nn.Parameter(prototype_KD)
        else:
            self.register_buffer("prototype_KD", prototype_KD)

    def forward(self, vote_BLD: Tensor, mask_BL: Tensor, mask_BK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the interests ``[B, K, D]`` and the weights ``c`` ``[B, K, L]``; a history without items gives zeros.

        Args:
            vote_BLD: ``[B, L, D]`` votes, the same for every interest.
            mask_BL: ``[B, L]`` bool, true at real items.
            mask_BK: ``[B, K]`` bool, true at interests that exist; missing ones take no part and come out zero.
        """
        with torch.autocast(vote_BLD.device.type, enabled=False):
            vote_BLD = vote_BLD.float()
            near_BKL = F.normalize(self.prototype_KD, dim=1) @ F.normalize(vote_BLD, dim=2).transpose(1, 2)
            weight_BKL = self.routing.coupling(near_BKL / self.temperature, mask_BL, mask_BK)
            sum_BKD = weight_BKL @ vote_BLD
        if self.collect == "squash":
            return squash(sum_BKD), weight_BKL
        return sum_BKD / weight_BKL.sum(dim=2, keepdim=True).clamp(min=1e-6), weight_BKL
