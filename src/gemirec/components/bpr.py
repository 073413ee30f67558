"""Bayesian personalised ranking against the hardest of a few negatives of each row.

Axes: B batch, K interests, D embedding, J negatives of a row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from gemirec.components.losses import MultiInterestLossConfig, read_out
from gemirec.components.regularizers import weighted_mean

if TYPE_CHECKING:
    from collections.abc import Callable

_NEVER = -1e30


class HardestNegativeLoss:
    """``-log sigmoid( (s_v - max_j s_j) / tau )``: called like :class:`~gemirec.components.losses.RetrievalLoss`.

    The negatives of a row are drawn uniformly, with replacement; those that are its own target do not count, and a row
    that drew nothing else costs 0.

    Args:
        config: Its ``readout``, ``power`` and ``temperature`` are read; its negatives are not.
        num_items: N.
        num_negatives: J.

    Example:
        >>> loss = HardestNegativeLoss(MultiInterestLossConfig(), num_items=9, num_negatives=4)
        >>> table = torch.zeros(10, 2)
        >>> loss(torch.zeros(1, 1, 2), torch.tensor([1]), lambda ids: table[ids])  # log 2
        tensor(0.6931)
    """

    def __init__(self, config: MultiInterestLossConfig, num_items: int, num_negatives: int) -> None:
        self.config = config
        self.num_items = num_items
        self.num_negatives = num_negatives

    def __call__(
        self,
        interest_BKD: Tensor,
        target_B: Tensor,
        look_up: Callable[[Tensor], Tensor],
        *,
        mask_BK: Tensor | None = None,
        weight_B: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw negatives and return the mean loss, a float32 scalar; 0 for a batch without rows.

        Args:
            interest_BKD: ``[B, K, D]`` interests, normalised if the loss normalises.
            target_B: ``[B]`` int64 positive items.
            look_up: Gives the vectors ``[n, D]`` of ids ``[n]``.
            mask_BK: ``[B, K]`` bool, true where an interest exists; ``None`` if all do.
            weight_B: ``[B]`` example weights; ``None`` for equal ones.
            generator: Source of the draws; torch's global one if ``None``.
        """
        if len(target_B) == 0:
            return interest_BKD.float().sum()
        shape = (len(target_B), self.num_negatives)
        drawn_BJ = torch.randint(1, self.num_items + 1, shape, generator=generator).to(target_B.device)
        item_BE = torch.cat([target_B[:, None], drawn_BJ], dim=1)
        vector_BED = look_up(item_BE.flatten()).view(*item_BE.shape, -1)
        with torch.autocast(target_B.device.type, enabled=False):
            score_BE = self._scores(interest_BKD.float(), vector_BED.float(), mask_BK)
        hardest_B = score_BE[:, 1:].masked_fill(drawn_BJ == target_B[:, None], _NEVER).amax(dim=1)
        loss_B = F.softplus((hardest_B - score_BE[:, 0]) / self.config.temperature)
        return weighted_mean(loss_B, weight_B)

    def _scores(self, interest_BKD: Tensor, vector_BED: Tensor, mask_BK: Tensor | None) -> Tensor:
        """Return ``[B, E]`` scores of the row's candidates, the target first, by the readout."""
        if self.config.readout == "best":
            score_BKE = interest_BKD @ vector_BED.transpose(1, 2)
            if mask_BK is not None:
                score_BKE = score_BKE.masked_fill(~mask_BK[:, :, None], _NEVER)
            return score_BKE.amax(dim=1)
        power = math.inf if self.config.readout == "hard" else self.config.power
        user_BD = read_out(interest_BKD, vector_BED[:, 0], mask_BK, power)
        return torch.einsum("bd,bed->be", user_BD, vector_BED)
