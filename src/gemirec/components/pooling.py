"""Poolings of a history into vectors.

Axes: B batch, L history length, D embedding.
"""

from __future__ import annotations

from torch import Tensor


def mean_pool(vector_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the mean ``[B, D]`` of the vectors at true positions; zero for a row without any.

    Args:
        vector_BLD: ``[B, L, D]`` vectors, zero at padding (as the item table's are): they are summed as they stand.
        mask_BL: ``[B, L]`` bool, true at real items.

    Example:
        >>> import torch
        >>> mean_pool(torch.tensor([[[1.0], [3.0], [0.0]]]), torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    return vector_BLD.sum(dim=1) / mask_BL.sum(dim=1, keepdim=True).clamp(min=1)


def last_state(vector_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the vectors ``[B, D]`` at each row's last true position; zero for a row without any."""
    length_B = mask_BL.sum(dim=1)
    last_B11 = (length_B - 1).clamp(min=0)[:, None, None].expand(-1, 1, vector_BLD.shape[2])
    return vector_BLD.gather(1, last_B11)[:, 0] * (length_B > 0)[:, None]
