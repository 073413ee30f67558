"""What other users say of an interest: co-occurring items, or their interests (DMI's collaborative information).

The abstract of DMI (arXiv 2502.05561) says "tailored collaborative information" and no more; both are our readings.
Either gives one vector per interest, worked out once per user and not per reverse step.

Axes: B batch, K interests, D embedding, M candidates, Q remembered interests, P new ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MASKED = -1e9


def attended(clean_BKD: Tensor, other_BMD: Tensor, mask_BM: Tensor) -> Tensor:
    """Return for each interest the mean of other vectors, weighted by ``softmax_M( x . o )``: ``[B, K, D]`` float32.

    Args:
        clean_BKD: ``[B, K, D]`` interests, directions times ``sqrt(D)``.
        other_BMD: ``[B, M, D]`` unit vectors.
        mask_BM: ``[B, M]`` bool, true at those that exist; a row without any gives zero.

    Returns:
        Means times ``sqrt(D)``, as long as interests are at most.

    Example:
        >>> attended(torch.tensor([[[8.0, 0.0]]]), torch.eye(2)[None], torch.tensor([[True, True]])).round(decimals=2)
        tensor([[[1.4100, 0.0000]]])
    """
    score_BKM = (clean_BKD @ other_BMD.transpose(1, 2)).float().masked_fill(~mask_BM[:, None], _MASKED)
    weight_BKM = torch.softmax(score_BKM, dim=2) * mask_BM[:, None]
    return math.sqrt(clean_BKD.shape[2]) * (weight_BKM.to(other_BMD.dtype) @ other_BMD).float()


class InterestMemory(nn.Module):
    """The interests of the users that were trained last, to find an interest's like in: first in, first out.

    What it holds lies in persistent buffers, so that a resumed run and a loaded model know it. Under data parallelism
    every process remembers its own users, and the first one's memory is kept.

    Args:
        size: Q, interests remembered.
        dim: D.
    """

    interest_QD: Tensor
    count: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("interest_QD", torch.zeros(size, dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def remember(self, interest_PD: Tensor) -> None:
        """Put the directions of interests ``[P, D]`` in the place of the oldest; of more than Q, the last Q."""
        size = len(self.interest_QD)
        new_PD = F.normalize(interest_PD.detach().float(), dim=1)[-size:]
        row_P = (self.count + torch.arange(len(new_PD), device=new_PD.device)) % size
        self.interest_QD = self.interest_QD.index_copy(0, row_P, new_PD)  # not in place: a backward may wait for it
        self.count += len(new_PD)

    def nearest(self, clean_BKD: Tensor, most: int) -> Tensor:
        """Return the attention-weighted mean ``[B, K, D]`` of the ``most`` remembered interests nearest to each one.

        Args:
            clean_BKD: ``[B, K, D]`` interests, directions times ``sqrt(D)``.
            most: Neighbours of an interest; there are fewer while the memory fills, and none give zero.

        Returns:
            As :func:`attended` does; the gradient goes through the weights.
        """
        known_Q = torch.arange(len(self.interest_QD), device=clean_BKD.device) < self.count
        score_BKQ = (clean_BKD.float() @ self.interest_QD.T).masked_fill(~known_Q, _MASKED)
        score_BKM, row_BKM = score_BKQ.topk(min(most, len(self.interest_QD)), dim=2)
        weight_BKM = torch.softmax(score_BKM, dim=2) * known_Q[row_BKM]
        return math.sqrt(clean_BKD.shape[2]) * torch.einsum("bkm,bkmd->bkd", weight_BKM, self.interest_QD[row_BKM])
