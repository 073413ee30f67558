"""Which interests of a user are kept: the most probable, no code of which is taken too often (GemiRec, 2510.14626).

The paper fills a user's cache with the top K = 5 interests of the predicted distribution, where a code of any
sub-dictionary appears at most epsilon = 3 times. How the list is filled under that rule is not published; here it is
greedy: go through the interests by falling probability and take each one that the limit still admits.

Axes: B users, M interests, X candidates, C sub-dictionaries (levels, counted from 1 as in the paper; codes
from 0), k interests kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gemirec.components.codes import count_interests, unflatten
from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

_NEVER = float("-inf")
_FEW = 4
"""Candidates, per interest to keep, that are looked at before all interests are."""


class Selected(NamedTuple):
    """The interests kept, most probable first, missing ones last.

    Attributes:
        index_Bk: ``[B, k]`` int64 flat index of each interest, -1 where missing.
        logp_Bk: ``[B, k]`` log-probability as it was given, -inf where missing.
    """

    index_Bk: Tensor
    logp_Bk: Tensor


@torch.no_grad()
def limited_top_k(
    logp_BM: Tensor,
    code_MC: Tensor,
    k: int,
    epsilon: int | None,
    *,
    candidates: int | None = None,
    levels: Sequence[int] | None = None,
) -> Selected:
    """Keep the ``k`` most probable interests of each user, each code at most ``epsilon`` times.

    Exactly the greedy rule over all M interests, equal probabilities by ascending index. Most users need only their
    first ``candidates`` interests; those who run out of them are done again over all M.

    Args:
        logp_BM: ``[B, M]`` log-probabilities, not NaN; -inf is never taken.
        code_MC: ``[M, C]`` int64, the codes of each interest, at least 0.
        k: Interests to keep. Where fewer are admitted, the rest are missing.
        epsilon: Most uses of one code of one level; ``None`` for no limit (paper: 3).
        candidates: Interests that are looked at first; changes the speed, never the result.
        levels: Levels whose codes are limited; ``None`` for all (the paper).

    Raises:
        ConfigError: ``k`` or ``epsilon`` below 1, or a level that does not exist.

    Example:
        >>> logp_BM = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
        >>> code_MC = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> limited_top_k(logp_BM, code_MC, 2, 1).index_Bk
        tensor([[0, 3]])
        >>> limited_top_k(logp_BM, code_MC, 2, 1, levels=(1,)).index_Bk
        tensor([[0, 2]])
    """
    limited = _limited_levels(k, epsilon, code_MC.shape[1], levels)
    code_CM = code_MC.T[[level - 1 for level in limited]].contiguous()
    interests = logp_BM.shape[1]
    few = max(k, _FEW * k if candidates is None else candidates)
    if few >= interests:
        return _greedy(logp_BM, code_CM[:, None], k, epsilon)
    logp_BX, index_BX = ordered_top_k(logp_BM, few)
    place_Bk, chosen_Bk = _greedy(logp_BX, code_CM[:, index_BX], k, epsilon)
    index_Bk = _look_up(index_BX, place_Bk)
    short_R = torch.nonzero(index_Bk[:, -1] < 0)[:, 0]
    if len(short_R):
        index_Bk[short_R], chosen_Bk[short_R] = _greedy(logp_BM[short_R], code_CM[:, None], k, epsilon)
    return Selected(index_Bk, chosen_Bk)


@torch.no_grad()
def limited_top_k_of(
    index_BX: Tensor,
    logp_BX: Tensor,
    sizes: Sequence[int],
    k: int,
    epsilon: int | None,
    *,
    levels: Sequence[int] | None = None,
) -> Selected:
    """Keep interests by the rule of :func:`limited_top_k` from a list of candidates, as a beam search gives it.

    Args:
        index_BX: ``[B, X]`` int64 flat indices, distinct within a row, -1 where missing.
        logp_BX: ``[B, X]`` their log-probabilities; of equal ones the first in the row goes first.
        sizes: Codes of each level; the first level is the most significant digit of a flat index.
        k: Interests to keep.
        epsilon: Most uses of one code of one level; ``None`` for no limit.
        levels: Levels whose codes are limited; ``None`` for all.

    Raises:
        ConfigError: ``k`` or ``epsilon`` below 1, or a level that does not exist.

    Example:
        >>> index_BX, logp_BX = torch.tensor([[5, 4, 0, -1]]), torch.tensor([[-0.5, -1.0, -3.0, float("-inf")]])
        >>> limited_top_k_of(index_BX, logp_BX, (2, 3), 3, 1)
        Selected(index_Bk=tensor([[ 5,  0, -1]]), logp_Bk=tensor([[-0.5000, -3.0000,    -inf]]))
    """
    limited = _limited_levels(k, epsilon, len(sizes), levels)
    code_CBX = unflatten(index_BX.clamp(min=0), sizes).movedim(-1, 0)[[level - 1 for level in limited]]
    place_Bk, logp_Bk = _greedy(logp_BX.masked_fill(index_BX < 0, _NEVER), code_CBX, k, epsilon)
    return Selected(_look_up(index_BX, place_Bk), logp_Bk)


def ordered_top_k(value_XM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest values of each row and their columns, equal values by ascending column.

    ``torch.topk`` gives equal values in any order, and any of those that tie for the last place.

    Args:
        value_XM: ``[X, M]`` numbers, not NaN.
        k: List length; with more than M, only M columns are returned.

    Returns:
        ``([X, min(k, M)] values, [X, min(k, M)] int64 columns)``.

    Example:
        >>> ordered_top_k(torch.tensor([[1.0, 2.0, 2.0, 2.0]]), 2)[1]
        tensor([[1, 2]])
    """
    width = value_XM.shape[1]
    k = min(k, width)
    value_Xk, column_Xk = torch.topk(value_XM, min(k + 1, width), dim=1)
    tied_R = torch.nonzero(value_Xk[:, k - 1] == value_Xk[:, k])[:, 0] if k < width else value_Xk.new_empty(0)
    column_Xk = column_Xk[:, :k].sort(dim=1).values
    if len(tied_R):
        value_RM, last_R1 = value_XM[tied_R], value_Xk[tied_R, k - 1, None]
        above_RM, equal_RM = value_RM > last_R1, value_RM == last_R1
        room_R1 = k - above_RM.sum(dim=1, keepdim=True)
        taken_RM = above_RM | (equal_RM & (equal_RM.cumsum(dim=1) <= room_R1))
        column_Xk[tied_R] = torch.nonzero(taken_RM)[:, 1].view(-1, k)
    value_Xk, order_Xk = value_XM.gather(1, column_Xk).sort(dim=1, descending=True, stable=True)
    return value_Xk, column_Xk.gather(1, order_Xk)


def largest_k(sizes: Sequence[int], epsilon: int | None, levels: Sequence[int] | None = None) -> int:
    """Return the most interests that any set can hold with each code used at most ``epsilon`` times.

    It is ``min(M, epsilon * M_c)`` over the limited levels, M the number of tuples. Some set always attains it: walk
    the tuples along the diagonals ``(a + t, b + t, ...)``, each level modulo its size, diagonal after diagonal; after
    any number of steps the codes of a level have been used equally often, up to one.

    The greedy list can end sooner, when all tuples of the codes that are left are taken: sizes (3, 3) with epsilon 2
    admit 6, but after (0, 0), (0, 1), (1, 0), (1, 1), (2, 2) nothing is left. After t picks the list can go on for
    certain while the product of ``M_c - t // epsilon`` over the limited levels exceeds t: the paper's setting always
    fills its 5.

    Args:
        sizes: Codes of each level.
        epsilon: Most uses of one code; ``None`` for no limit.
        levels: Levels whose codes are limited; ``None`` for all.

    Raises:
        ConfigError: ``epsilon`` below 1, or a level that does not exist.

    Example:
        >>> largest_k((32, 16, 8, 4), 3)
        12
    """
    limited = _limited_levels(1, epsilon, len(sizes), levels)
    return min([count_interests(sizes), *((epsilon or 1) * sizes[level - 1] for level in limited)])


def check_selection(k: int, epsilon: int | None, sizes: Sequence[int], levels: Sequence[int] | None = None) -> None:
    """Refuse a number of interests that no list can reach under the limit.

    Args:
        k: Interests to keep.
        epsilon: Most uses of one code; ``None`` for no limit.
        sizes: Codes of each level.
        levels: Levels whose codes are limited; ``None`` for all.

    Raises:
        ConfigError: ``k`` exceeds :func:`largest_k`, ``k`` or ``epsilon`` is below 1, or a level does not exist.

    Example:
        >>> check_selection(5, 1, (32, 16, 8, 4))
        Traceback (most recent call last):
        gemirec.errors.ConfigError: the limit on repeated codes admits fewer interests than are asked for
          got: k = 5, epsilon = 1; level 4 has 4 codes, which makes 4 interests at most
          fix: take epsilon of 2 or more, or k of 4 or less
    """
    limited = _limited_levels(k, epsilon, len(sizes), levels)
    interests, most = count_interests(sizes), largest_k(sizes, epsilon, levels)
    if k > interests:
        raise ConfigError(
            "the dictionary has fewer interests than are asked for",
            got=f"k = {k}, {interests} interests of sizes {tuple(sizes)}",
            fix=f"take k of {most} or less, or larger sub-dictionaries",
        )
    if k > most:
        level = min(limited, key=lambda number: sizes[number - 1])
        codes = sizes[level - 1]
        raise ConfigError(
            "the limit on repeated codes admits fewer interests than are asked for",
            got=f"k = {k}, epsilon = {epsilon}; level {level} has {codes} codes, which makes {most} interests at most",
            fix=f"take epsilon of {-(-k // codes)} or more, or k of {most} or less",
        )


def _limited_levels(k: int, epsilon: int | None, count: int, levels: Sequence[int] | None) -> list[int]:
    """Return the levels that the limit holds for, none without a limit, after checking all numbers."""
    if k < 1:
        raise ConfigError("a user must keep at least one interest", got=f"k = {k}", fix="take k of 1 or more")
    if epsilon is not None and epsilon < 1:
        raise ConfigError(
            "the limit on repeated codes admits no interest at all",
            got=f"epsilon = {epsilon}",
            fix="take epsilon of 1 or more, or none for no limit",
        )
    limited = list(range(1, count + 1)) if levels is None else sorted(set(levels))
    if any(not 1 <= level <= count for level in limited):
        raise ConfigError(
            "the limit names a level that the dictionary does not have",
            got=f"levels {tuple(limited)}, {count} sub-dictionaries",
            fix=f"name levels from 1 to {count}",
        )
    return [] if epsilon is None else limited


def _greedy(logp_BX: Tensor, code_CBX: Tensor, k: int, epsilon: int | None) -> Selected:
    """Pick k columns per row, best open one first; ``code_CBX`` may have one row for all (``[C, 1, X]``)."""
    open_BX = logp_BX.clone()
    users = len(open_BX)
    place_Bk = torch.full((users, k), -1, dtype=torch.int64, device=open_BX.device)
    chosen_Bk = open_BX.new_full((users, k), _NEVER)
    picked_CBk = torch.full((len(code_CBX), users, k), -1, dtype=code_CBX.dtype, device=open_BX.device)
    for pick in range(k):
        chosen_B, place_B = open_BX.max(dim=1)  # the first of equal values
        chosen_Bk[:, pick] = chosen_B
        place_Bk[:, pick] = place_B.masked_fill(chosen_B == _NEVER, -1)
        open_BX.scatter_(1, place_B[:, None], _NEVER)
        for level, code_BX in enumerate(code_CBX):
            code_B1 = code_BX.expand(users, -1).gather(1, place_B[:, None])
            picked_CBk[level, :, pick] = code_B1[:, 0]
            used_B1 = (picked_CBk[level, :, : pick + 1] == code_B1).sum(dim=1, keepdim=True)
            spent_B1 = code_B1.masked_fill(used_B1 < (epsilon or 1), -1)
            if pick + 1 < k and bool((spent_B1 >= 0).any()):  # most picks spend no code, and a pass over X is the cost
                open_BX.masked_fill_(code_BX == spent_B1, _NEVER)
    return Selected(place_Bk, chosen_Bk)


def _look_up(index_BX: Tensor, place_Bk: Tensor) -> Tensor:
    """Return ``index_BX`` at the places, -1 where a place is -1."""
    return index_BX.gather(1, place_Bk.clamp(min=0)).masked_fill_(place_Bk < 0, -1)
