"""One positive for each interest: sets of positives, and their one-to-one matching with the interests.

Axes: B batch, L history length, K interests, J positives, M subsets of the interests (2^K).
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_INTERESTS = 12
"""Work and memory of :func:`optimal_matching` grow with 2 to the power of K."""
_UNUSED = -1


def positive_set(
    item_BL: Tensor, length_B: Tensor, target_B: Tensor, most: int, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is left of the windows, and the unique items of their ends with the targets behind them.

    ``min(most - 1, floor(share n))`` of a window's n items are held out. A repeated item counts once, where it stands
    nearest the target.

    Args:
        item_BL: ``[B, L]`` int64 items, oldest first, padding behind.
        length_B: ``[B]`` int64, real items of each.
        target_B: ``[B]`` int64, the item after them.
        most: J, most positives of a row, at least 1: then the target alone.
        share: Largest part of a window that is held out, at most 1.

    Returns:
        ``[B, L]`` int64 histories; ``[B, J]`` int64 positives, the target first and then backwards in time; ``[B, J]``
        bool, true at those that count.

    Example:
        >>> window_BL, length_B = torch.tensor([[7, 8, 9, 8, 0]]), torch.tensor([4])
        >>> parts = positive_set(window_BL, length_B, torch.tensor([5]), most=4, share=0.75)
        >>> [part.tolist() for part in parts]
        [[[7, 0, 0, 0, 0]], [[5, 8, 9, 8]], [[True, True, True, False]]]
    """
    held_B1 = (length_B * share).long().clamp(max=most - 1)[:, None]
    position_L = torch.arange(item_BL.shape[1], device=item_BL.device)
    history_BL = item_BL * (position_L < length_B[:, None] - held_B1)
    if most == 1 or item_BL.shape[1] == 0:
        return history_BL, target_B[:, None], torch.ones_like(target_B[:, None], dtype=torch.bool)
    back_J = torch.arange(1, most, device=item_BL.device)
    before_BJ = item_BL.gather(1, (length_B[:, None] - back_J).clamp(min=0))
    positive_BJ = torch.cat([target_B[:, None], before_BJ], dim=1)
    repeated_BJ = (positive_BJ[:, :, None] == positive_BJ[:, None, :]).tril(-1).any(dim=2)
    held_BJ = torch.arange(most, device=item_BL.device) <= held_B1
    return history_BL, positive_BJ, held_BJ & ~repeated_BJ


@torch.no_grad()
def optimal_matching(score_BKJ: Tensor, mask_BJ: Tensor) -> Tensor:
    """Return the interest of each positive, so that no two share one and the sum of scores is the largest.

    What the Hungarian method finds, exact, for all rows at once: ``best(first j positives, subset)`` is the largest sum
    that uses just the interests of the subset. No step loops over rows.

    Args:
        score_BKJ: ``[B, K, J]`` finite scores; K at most :data:`MAX_INTERESTS`.
        mask_BJ: ``[B, J]`` bool, true at the positives that count, at most K in a row.

    Returns:
        ``[B, J]`` int64 interests, -1 at positives that do not count.

    Example:
        >>> score_BKJ = torch.tensor([[[0.9, 0.8], [0.7, 0.1]]])
        >>> optimal_matching(score_BKJ, torch.tensor([[True, True]])).tolist()
        [[1, 0]]
        >>> optimal_matching(score_BKJ, torch.tensor([[True, False]])).tolist()
        [[0, -1]]
    """
    batch, interests, positives = score_BKJ.shape
    score_JKB = score_BKJ.permute(2, 1, 0).contiguous()  # rows last: every step below is over whole lines of memory
    best_MB = score_BKJ.new_full((2**interests, batch), -torch.inf)
    best_MB[0] = 0
    table = [best_MB]
    for j in range(positives):
        next_MB = torch.full_like(best_MB, -torch.inf)
        for k in range(interests):
            shape = (-1, 2, 2**k, batch)  # axis 1: without and with interest k
            with_XYB = next_MB.view(shape)[:, 1]
            torch.maximum(with_XYB, best_MB.view(shape)[:, 0] + score_JKB[j, k], out=with_XYB)
        best_MB = torch.where(mask_BJ[:, j], next_MB, best_MB)
        table.append(best_MB)
    return _trace(table, score_BKJ, mask_BJ)


def _trace(table: list[Tensor], score_BKJ: Tensor, mask_BJ: Tensor) -> Tensor:
    """Walk back from the best last subset of ``table`` (``[M, B]`` for each j) and read each positive's interest."""
    bit_K = 2 ** torch.arange(score_BKJ.shape[1], device=score_BKJ.device)
    subset_B = table[-1].argmax(dim=0)
    chosen_BJ = torch.full_like(mask_BJ, _UNUSED, dtype=torch.int64)
    for j in reversed(range(score_BKJ.shape[2])):
        has_BK = (subset_B[:, None] & bit_K) > 0
        sum_BK = table[j].gather(0, (subset_B & ~bit_K[:, None])).T + score_BKJ[:, :, j]
        interest_B = sum_BK.masked_fill(~has_BK, -torch.inf).argmax(dim=1)
        chosen_BJ[:, j] = torch.where(mask_BJ[:, j], interest_B, _UNUSED)
        subset_B = torch.where(mask_BJ[:, j], subset_B & ~bit_K[interest_B], subset_B)
    return chosen_BJ


@torch.no_grad()
def greedy_matching(score_BKJ: Tensor, mask_BJ: Tensor) -> Tensor:
    """Return the interest of each positive by taking the best pair that is still free, again and again.

    Arguments and result as those of :func:`optimal_matching`, for any K; the sum may be smaller.

    Example:
        >>> greedy_matching(torch.tensor([[[0.9, 0.8], [0.7, 0.1]]]), torch.tensor([[True, True]])).tolist()
        [[0, 1]]
    """
    batch, interests, positives = score_BKJ.shape
    row_B = torch.arange(batch, device=score_BKJ.device)
    free_BKJ = score_BKJ.masked_fill(~mask_BJ[:, None], -torch.inf)
    chosen_BJ = torch.full_like(mask_BJ, _UNUSED, dtype=torch.int64)
    for _ in range(min(interests, positives)):
        score_B, pair_B = free_BKJ.flatten(1).max(dim=1)
        k_B, j_B = pair_B // positives, pair_B % positives
        chosen_BJ[row_B, j_B] = torch.where(score_B > -torch.inf, k_B, chosen_BJ[row_B, j_B])
        free_BKJ[row_B, k_B] = -torch.inf
        free_BKJ[row_B, :, j_B] = -torch.inf
    return chosen_BJ
