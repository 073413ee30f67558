"""K lists to one: the one merge routine of evaluation, recommendation and serving.

Axes: B users, K interests, R places of one interest's list, N places of the merged list, X = K x R entries of a user,
I items of the catalogue (entry 0 is padding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from gemirec.errors import ConfigError, DataError
from gemirec.retrieval.topk import MAX_ITEMS, sort_key, sort_rows

if TYPE_CHECKING:
    from torch import Tensor

MergeKind = Literal["max", "weighted", "diverse", "quota"]
"""``max``: an item's score is its best score over the interests. ``weighted``: the same with scores times the weight of
their interest. ``diverse``: ``max``, less a penalty for each earlier item of the same category. ``quota``: every
interest fills places of its own."""
_LAST = 2**63 - 1
_MISSING = float("-inf")


@dataclass(frozen=True)
class Merged:
    """One list per user. Missing places are at the end: id -1, score -inf, interest -1, rank -1.

    Attributes:
        id_BN: ``[B, N]`` int64 item ids, unique in a row.
        score_BN: ``[B, N]`` float32, score of the item for the winning interest, without penalties, under ``weighted``
            times the interest's weight; descending, except under ``diverse``.
        interest_BN: ``[B, N]`` int64, the interest that won: that of the best score, the lowest of several equal ones;
            under ``quota`` the interest that ranks the item highest.
        rank_BN: ``[B, N]`` int64, place of the item in the winning interest's list, from 0.
    """

    id_BN: Tensor
    score_BN: Tensor
    interest_BN: Tensor
    rank_BN: Tensor

    def first(self, n: int) -> Merged:
        """Return the first ``n`` places."""
        return Merged(self.id_BN[:, :n], self.score_BN[:, :n], self.interest_BN[:, :n], self.rank_BN[:, :n])

    def take(self, place_BM: Tensor) -> Merged:
        """Return the places ``[B, M]`` of each list, in their order."""
        parts = (self.id_BN, self.score_BN, self.interest_BN, self.rank_BN)
        return Merged(*(part_BN.gather(1, place_BM) for part_BN in parts))


def merge(
    id_BKR: Tensor,
    score_BKR: Tensor,
    n: int,
    *,
    mask_BK: Tensor | None = None,
    kind: MergeKind = "max",
    category_I: Tensor | None = None,
    diversity: float = 0.0,
    quota_BK: Tensor | None = None,
    weight_BK: Tensor | None = None,
) -> Merged:
    """Merge each user's K lists into one of ``n`` unique items.

    Items are told apart by id, never by score.

    ``max`` orders by score, then by lower id. Lists need not be sorted and may repeat an item; the best of its entries
    counts, and among equal ones the lowest interest, then the lowest place.

    ``weighted`` is ``max`` over scores times the weight of their interest: an interest that matters little needs a
    better match for the same place. A score below 0 comes nearer to 0 by it.

    ``diverse`` is ComiRec's controllable aggregation (arXiv 2005.09347, section 3.4, greedy as in its released code):
    of the items of ``max`` the next is always the one of the largest ``score - diversity x (items of its category
    already taken)``; equal ones in the order of ``max``. Of all lists of ``n`` candidates it is one of the largest
    ``sum of scores - diversity x (pairs of items of one category)``: the more of a category is taken, the less its next
    item adds, so that no greedy step is regretted. The paper's objective is that with half this lambda, because it
    counts ordered pairs of different categories.

    ``quota`` gives every interest a number of places. An item belongs to the interest in whose list it stands highest
    (the lowest of several), each interest fills its places in the order of its list, which must be sorted, and places
    that an interest cannot fill go to the best remaining items by score. The result is ordered as under ``max``.

    Args:
        id_BKR: ``[B, K, R]`` integer item ids; 0 (padding) and below are missing.
        score_BKR: ``[B, K, R]`` float32 scores; -inf is missing.
        n: Length of the merged lists; more than K x R is allowed.
        mask_BK: ``[B, K]`` bool, false for interests that do not exist: their entries are missing.
        kind: How the lists are merged.
        category_I: ``[I]`` integer category of every item, for ``diverse``; at 0 and below an item has none and is
            neither penalised nor counted.
        diversity: ComiRec's lambda, at least 0, in the unit of the scores, for ``diverse``.
        quota_BK: ``[B, K]`` integer places of each interest, for ``quota``; ``None`` takes :func:`equal_quota`.
        weight_BK: ``[B, K]`` weight of each interest, for ``weighted``; an interest at 0 or below is left out, unless
            no interest of the user is above 0: then all weigh 1.

    Returns:
        The merged lists.

    Raises:
        DataError: A score or weight is NaN.
        ConfigError: ``n`` is less than 1, ``kind`` is unknown, or what it needs is missing.

    Example:
        >>> ids = torch.tensor([[[7, 3], [7, 8]]])
        >>> merged = merge(ids, torch.tensor([[[0.9, 0.5], [0.8, 0.5]]]), 4)
        >>> merged.id_BN.tolist(), merged.interest_BN.tolist()
        ([[7, 3, 8, -1]], [[0, 0, 1, -1]])
    """
    if n < 1:
        raise ConfigError("a merged list must hold at least one item", got=f"n = {n}", fix="ask for 1 or more")
    if kind not in get_args(MergeKind):
        raise ConfigError("no such way to merge", got=kind, fix=f"choose one of {', '.join(get_args(MergeKind))}")
    if kind == "weighted":
        score_BKR, mask_BK = _weighted(score_BKR, mask_BK, weight_BK)
    id_BX, score_BX, entry_BX = _by_item(id_BKR, score_BKR, mask_BK)
    users, count, places = id_BKR.shape
    if kind == "quota":
        if quota_BK is None:
            exists_BK = torch.ones(users, count, dtype=torch.bool) if mask_BK is None else mask_BK
            quota_BK = equal_quota(n, exists_BK.to(id_BX.device))
        score_BX, entry_BX = _highest_place(id_BX, score_BX, entry_BX, score_BKR)
        return _fill(_in_order(id_BX, score_BX, entry_BX, places, max(n, id_BX.shape[1])), n, places, quota_BK)
    score_BX, entry_BX = _best_of_each(id_BX, score_BX, entry_BX)
    if kind in ("max", "weighted"):
        return _in_order(id_BX, score_BX, entry_BX, places, n)
    if category_I is None or diversity < 0:
        raise ConfigError(
            "a diverse merge needs the items' categories and a lambda of at least 0",
            got="no categories" if category_I is None else f"diversity = {diversity}",
            fix="give category_I and diversity, or choose max",
        )
    merged = _in_order(id_BX, score_BX, entry_BX, places, max(n, id_BX.shape[1]))
    return diversify(merged, n, category_I, diversity)


def _weighted(score_BKR: Tensor, mask_BK: Tensor | None, weight_BK: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return scores times weights, and which interests take part."""
    if weight_BK is None:
        raise ConfigError(
            "a weighted merge needs the interests' weights", got="none", fix="give weight_BK, or choose max"
        )
    weight_BK = weight_BK.to(score_BKR.device, torch.float32)
    if bool(torch.isnan(weight_BK).any()):
        raise DataError("a weight is NaN", got=f"{int(torch.isnan(weight_BK).sum())} weights", fix="check the model")
    exists_BK = torch.ones_like(weight_BK, dtype=torch.bool) if mask_BK is None else mask_BK.to(score_BKR.device)
    above_BK = exists_BK & (weight_BK > 0)
    none_B1 = ~above_BK.any(dim=1, keepdim=True)
    taking_BK = torch.where(none_B1, exists_BK, above_BK)
    factor_BK = torch.where(above_BK, weight_BK, 1.0)
    return score_BKR * factor_BK[:, :, None], taking_BK


def equal_quota(n: int, mask_BK: Tensor) -> Tensor:
    """Divide ``n`` places equally among the interests that exist; what is left over goes to the first of them.

    Example:
        >>> equal_quota(5, torch.tensor([[True, False, True]]))
        tensor([[3, 0, 2]])
    """
    existing_B1 = mask_BK.sum(dim=1, keepdim=True).clamp(min=1)
    extra_BK = (mask_BK.cumsum(dim=1) <= n % existing_B1).to(torch.int64)
    return (n // existing_B1 + extra_BK) * mask_BK


def shared_quota(n: int, share_BK: Tensor, mask_BK: Tensor) -> Tensor:
    """Divide ``n`` places in proportion to shares: the whole parts first, the rest to the largest remainders.

    Args:
        n: Places.
        share_BK: ``[B, K]`` shares; below 0 counts as 0.
        mask_BK: ``[B, K]`` bool, false for interests that do not exist: theirs go to the others. A user of whose
            interests none has a share divides equally.

    Returns:
        ``[B, K]`` int64, each row summing to ``n`` where an interest exists; of equal remainders the lowest interest
        comes first, so that equal shares are :func:`equal_quota`.

    Example:
        >>> shared_quota(5, torch.tensor([[2.0, 1.0, 1.0]]), torch.tensor([[True, True, False]]))
        tensor([[3, 2, 0]])
    """
    share_BK = share_BK.to(torch.float64).clamp(min=0) * mask_BK
    share_BK = torch.where(share_BK.sum(dim=1, keepdim=True) > 0, share_BK, mask_BK.to(torch.float64))
    wanted_BK, total_B1 = n * share_BK, share_BK.sum(dim=1, keepdim=True).clamp(min=1e-300)
    rest_BK = torch.remainder(wanted_BK, total_B1)  # exact, unlike a quotient's fraction: equal ones stay equal
    whole_BK = ((wanted_BK - rest_BK) / total_B1).round()
    order_BK = torch.where(mask_BK, rest_BK, -1.0).argsort(dim=1, descending=True, stable=True)
    left_B1 = n - whole_BK.sum(dim=1, keepdim=True)
    extra_BK = torch.arange(mask_BK.shape[1], device=mask_BK.device) < left_B1
    return (whole_BK + torch.zeros_like(whole_BK).scatter_(1, order_BK, extra_BK.to(torch.float64))).long() * mask_BK


def diversify(merged: Merged, n: int, category_I: Tensor, diversity: float) -> Merged:
    """Return the ``n`` items that ComiRec's greedy rule takes from a list, in its order.

    Args:
        merged: The candidates, as :func:`merge` orders them under ``max``; ``n`` or more places.
        n: Items to take.
        category_I: As in :func:`merge`.
        diversity: As in :func:`merge`.

    Within a category the greedy rule takes items by score, so an item's penalty is known beforehand: lambda times its
    place in its category. Then every category is a descending list, and taking the best head of all lists, again and
    again, is one sort.
    """
    place_BX = torch.arange(merged.id_BN.shape[1], device=merged.id_BN.device).expand_as(merged.id_BN)
    category_BX = category_I.to(merged.id_BN.device)[merged.id_BN.clamp(min=0)].to(torch.int64)
    category_BX = category_BX.masked_fill(merged.id_BN < 0, 0).clamp(min=0)
    earlier_BX = _place_in_group(category_BX, place_BX).masked_fill(category_BX == 0, 0)
    value_BX = merged.score_BN - diversity * earlier_BX.to(torch.float32) + 0.0
    key_BX = sort_key(value_BX, place_BX).masked_fill(merged.id_BN < 0, _LAST)
    order_BX = sort_rows(key_BX)
    return merged.take(_places(order_BX, place_BX)[:, :n])


def _fill(merged: Merged, n: int, width: int, quota_BK: Tensor) -> Merged:
    """Return ``n`` items of a full list: first those within the quota of their interest, then the best of the rest."""
    place_BX = torch.arange(merged.id_BN.shape[1], device=merged.id_BN.device).expand_as(merged.id_BN)
    if not quota_BK.shape[1] or not place_BX.shape[1]:
        return merged.first(n)
    owner_BX = merged.interest_BN.clamp(min=0)
    entry_BX = (owner_BX * max(1, width) + merged.rank_BN).masked_fill(merged.id_BN < 0, MAX_ITEMS)
    own_BX = _place_in_group(owner_BX, entry_BX, missing_BX=merged.id_BN < 0)
    over_BX = (own_BX >= quota_BK.gather(1, owner_BX)) | (merged.id_BN < 0)
    chosen_BX = sort_rows((over_BX.to(torch.int64) << 31) | place_BX)[:, :n] & MAX_ITEMS
    return merged.take(sort_rows(chosen_BX))


def _place_in_group(group_BX: Tensor, order_BX: Tensor, missing_BX: Tensor | None = None) -> Tensor:
    """Return how many entries of the same group come before each entry; ``order_BX`` is distinct within a group."""
    width = group_BX.shape[1]
    column_BX = torch.arange(width, device=group_BX.device).expand_as(group_BX)
    # Two sorts of keys that hold a column below: by place in the order, then by group in that order.
    by_order_BX = sort_rows((order_BX << 31) | column_BX) & MAX_ITEMS
    group_BY = group_BX.gather(1, by_order_BX)
    if missing_BX is not None:
        group_BY = group_BY.masked_fill(missing_BX.gather(1, by_order_BX), MAX_ITEMS)
    key_BY = sort_rows((group_BY << 31) | column_BX)
    sorted_BY = key_BY >> 31
    first_BY = torch.searchsorted(sorted_BY, sorted_BY)
    place_BY = torch.empty_like(column_BX.contiguous()).scatter_(1, key_BY & MAX_ITEMS, column_BX - first_BY)
    return torch.empty_like(place_BY).scatter_(1, by_order_BX, place_BY)


def _places(key_BX: Tensor, place_BX: Tensor) -> Tensor:
    """Return the lower halves of sorted keys; a missing key keeps its place, behind all others."""
    return torch.where(key_BX == _LAST, place_BX, key_BX & 0xFFFF_FFFF)


def _in_order(id_BX: Tensor, best_BX: Tensor, entry_BX: Tensor, places: int, n: int) -> Merged:
    """Return the ``n`` best items, given the score of each item at one of its columns and -inf at the others."""
    # Columns ascend by id, so a column number breaks ties as the id would, and leads back to the entry.
    column_BX = torch.arange(id_BX.shape[1], device=id_BX.device).expand_as(id_BX)
    key_BX = sort_rows(sort_key(best_BX, column_BX).masked_fill(best_BX == _MISSING, _LAST))
    if key_BX.shape[1] < n:
        key_BX = torch.cat([key_BX, key_BX.new_full((len(id_BX), n - key_BX.shape[1]), _LAST)], dim=1)
    missing_BN = key_BX[:, :n] == _LAST
    column_BN = (key_BX[:, :n] & 0xFFFF_FFFF).masked_fill(missing_BN, 0)
    entry_BN = entry_BX.gather(1, column_BN) if id_BX.shape[1] else column_BN
    width = max(1, places)

    def pick(source_BX: Tensor, missing: float) -> Tensor:
        picked_BN = source_BX.gather(1, column_BN) if id_BX.shape[1] else column_BN.to(source_BX.dtype)
        return picked_BN.masked_fill(missing_BN, missing)

    return Merged(
        id_BN=pick(id_BX, -1),
        score_BN=pick(best_BX, _MISSING),
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


def _highest_place(id_BX: Tensor, score_BX: Tensor, entry_BX: Tensor, score_BKR: Tensor) -> tuple[Tensor, Tensor]:
    """Give the first entry of each id the entry of its highest place in any list, and that entry's score."""
    rank_BX = (entry_BX % max(1, score_BKR.shape[2])).to(torch.float32)
    place_BX, entry_BX = _best_of_each(id_BX, torch.where(score_BX == _MISSING, _MISSING, -rank_BX), entry_BX)
    own_BX = score_BKR.to(torch.float32).reshape(score_BX.shape).gather(1, entry_BX) + 0.0
    return torch.where(place_BX == _MISSING, _MISSING, own_BX), entry_BX


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
