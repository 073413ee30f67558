"""K lists to one: the one merge routine of evaluation, recommendation and serving.

Axes: B users, K interests, R places of one interest's list, N places of the merged list, X = K x R entries of a user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from gemirec.errors import ConfigError, DataError
from gemirec.retrieval.topk import MAX_ITEMS, sort_key, sort_rows

if TYPE_CHECKING:
    from torch import Tensor

MergeKind = Literal["max"]
"""``max``: an item's score is its best score over the interests."""
_LAST = 2**63 - 1


@dataclass(frozen=True)
class Merged:
    """One list per user. Missing places are at the end: id -1, score -inf, interest -1, rank -1.

    Attributes:
        id_BN: ``[B, N]`` int64 item ids, unique in a row.
        score_BN: ``[B, N]`` float32, best score of the item over the interests; descending.
        interest_BN: ``[B, N]`` int64, the interest that gave the best score; the lowest of several equal ones.
        rank_BN: ``[B, N]`` int64, place of the item in the winning interest's list, from 0.
    """

    id_BN: Tensor
    score_BN: Tensor
    interest_BN: Tensor
    rank_BN: Tensor

    def first(self, n: int) -> Merged:
        """Return the first ``n`` places."""
        return Merged(self.id_BN[:, :n], self.score_BN[:, :n], self.interest_BN[:, :n], self.rank_BN[:, :n])


def merge(
    id_BKR: Tensor, score_BKR: Tensor, n: int, *, mask_BK: Tensor | None = None, kind: MergeKind = "max"
) -> Merged:
    """Merge each user's K lists into one of ``n`` unique items.

    Items are told apart by id, never by score. Order: higher score first, then lower id. Lists need not be sorted
    and may repeat an item; the best of its entries counts, and among equal ones the lowest interest, then the lowest
    place.

    Args:
        id_BKR: ``[B, K, R]`` integer item ids; 0 (padding) and below are missing.
        score_BKR: ``[B, K, R]`` float32 scores; -inf is missing.
        n: Length of the merged lists; more than K x R is allowed.
        mask_BK: ``[B, K]`` bool, false for interests that do not exist: their entries are missing.
        kind: How the scores of one item are combined.

    Returns:
        The merged lists.

    Raises:
        DataError: A score is NaN.
        ConfigError: ``n`` is less than 1 or ``kind`` is unknown.

    Example:
        >>> ids = torch.tensor([[[7, 3], [7, 8]]])
        >>> merged = merge(ids, torch.tensor([[[0.9, 0.5], [0.8, 0.5]]]), 4)
        >>> merged.id_BN.tolist(), merged.interest_BN.tolist()
        ([[7, 3, 8, -1]], [[0, 0, 1, -1]])
    """
    if n < 1:
        raise ConfigError("a merged list must hold at least one item", got=f"n = {n}", fix="ask for 1 or more")
    if kind != "max":
        raise ConfigError("no such way to merge", got=kind, fix="choose max")
    users, _, places = id_BKR.shape
    id_BX, score_BX, entry_BX = _by_item(id_BKR, score_BKR, mask_BK)
    best_BX, entry_BX = _best_of_each(id_BX, score_BX, entry_BX)
    # Columns ascend by id, so a column number breaks ties as the id would, and leads back to the entry.
    column_BX = torch.arange(id_BX.shape[1], device=id_BX.device).expand_as(id_BX)
    dropped_BX = best_BX == float("-inf")
    key_BX = sort_rows(sort_key(best_BX, column_BX).masked_fill(dropped_BX, _LAST))
    if key_BX.shape[1] < n:
        key_BX = torch.cat([key_BX, key_BX.new_full((users, n - key_BX.shape[1]), _LAST)], dim=1)
    missing_BN = key_BX[:, :n] == _LAST
    column_BN = (key_BX[:, :n] & 0xFFFF_FFFF).masked_fill(missing_BN, 0)
    entry_BN = entry_BX.gather(1, column_BN) if id_BX.shape[1] else column_BN
    width = max(1, places)

    def pick(source_BX: Tensor, missing: float) -> Tensor:
        picked_BN = source_BX.gather(1, column_BN) if id_BX.shape[1] else column_BN.to(source_BX.dtype)
        return picked_BN.masked_fill(missing_BN, missing)

    return Merged(
        id_BN=pick(id_BX, -1),
        score_BN=pick(best_BX, float("-inf")),
        interest_BN=(entry_BN // width).masked_fill(missing_BN, -1),
        rank_BN=(entry_BN % width).masked_fill(missing_BN, -1),
    )


def _by_item(id_BKR: Tensor, score_BKR: Tensor, mask_BK: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``[B, X]`` ids (ascending), scores and entry numbers k x R + r (ascending within an id)."""
    users, entries = len(id_BKR), id_BKR.shape[1] * id_BKR.shape[2]
    if bool(torch.isnan(score_BKR).any()):
        raise DataError("a score is NaN", got=f"{int(torch.isnan(score_BKR).sum())} scores", fix="check the model")
    if max(entries, int(id_BKR.max()) if id_BKR.numel() else 0) > MAX_ITEMS:
        raise DataError("item ids must fit 31 bits", got=int(id_BKR.max()), fix="number the items from 1")
    missing_BKR = (id_BKR <= 0) | (score_BKR == float("-inf"))
    if mask_BK is not None:
        missing_BKR = missing_BKR | ~mask_BK[:, :, None]
    id_BX = id_BKR.to(torch.int64).masked_fill(missing_BKR, MAX_ITEMS + 1).reshape(users, entries)
    score_BX = score_BKR.to(torch.float32).masked_fill(missing_BKR, float("-inf")).reshape(users, entries)
    key_BX = sort_rows((id_BX << 31) | torch.arange(entries, device=id_BX.device))
    entry_BX = key_BX & MAX_ITEMS
    return key_BX >> 31, score_BX.gather(1, entry_BX) + 0.0, entry_BX


def _best_of_each(id_BX: Tensor, score_BX: Tensor, entry_BX: Tensor) -> tuple[Tensor, Tensor]:
    """Give the first entry of each id its best score and that score's first entry; the others get -inf."""
    best_BX, winner_BX = score_BX.clone(), entry_BX.clone()
    shift = 1
    while shift < id_BX.shape[1]:
        same_BY = id_BX[:, shift:] == id_BX[:, :-shift]
        better_BY = same_BY & (score_BX[:, shift:] > best_BX[:, :-shift])
        if not bool((same_BY & (score_BX[:, shift:] > float("-inf"))).any()):
            break  # no item has more than ``shift`` entries
        best_BX[:, :-shift] = torch.where(better_BY, score_BX[:, shift:], best_BX[:, :-shift])
        winner_BX[:, :-shift] = torch.where(better_BY, entry_BX[:, shift:], winner_BX[:, :-shift])
        shift += 1
    best_BX[:, 1:].masked_fill_(id_BX[:, 1:] == id_BX[:, :-1], float("-inf"))
    return best_BX, winner_BX
