"""Interests as tuples of codes: their flat indices, the items of each, and whether the dictionary is healthy.

A dictionary of C sub-dictionaries ("levels") with M_1, ..., M_C codes has ``M_1 x ... x M_C`` interests. Levels are
counted from 1 in names and messages, as in the paper (GemiRec, arXiv 2510.14626); codes from 0.

The distance of two interests is that of the concatenations of their codes, so (METHODS 1.12)::

    |e_m - e_n|^2 = sum_c |e^c_{m_c} - e^c_{n_c}|^2  >=  sum over differing levels of delta_c^2

with ``delta_c`` the least distance of two codes of level c (:func:`separation`), and the least distance of two
interests is ``min_c delta_c``. No loss keeps ``delta_c`` away from 0; :func:`health` reports it.

Axes: N items, C levels, M interests (or codes of a level), W width of a code, Q queries, E items found,
X any leading axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from gemirec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_LEAST_ENTROPY = 0.1


def count_interests(sizes: Sequence[int]) -> int:
    """Return the number of interests, the product of the sizes.

    Raises:
        ConfigError: No level, a level without codes, or more interests than int64 counts.

    Example:
        >>> count_interests((32, 16, 8, 4))
        16384
    """
    total = math.prod(sizes)
    if not sizes or min(sizes) < 1 or total >= 2**63:
        raise ConfigError(
            "a dictionary needs a level or more, each with a code or more, and fewer than 2^63 interests",
            got=f"sizes {tuple(sizes)}",
            fix="set quantizer.sizes, for example to [32, 16, 8, 4]",
        )
    return total


def _strides(sizes: Sequence[int]) -> list[int]:
    """Return how far apart in the flat index neighbouring codes of each level are."""
    count_interests(sizes)
    return list(accumulate(reversed(sizes[1:]), lambda a, b: a * b, initial=1))[::-1]


def flat_index(code_XC: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the ``[...]`` int64 flat indices of code tuples ``[..., C]``; the first level is the most significant.

    Codes must lie in their levels' ranges; this is not checked, as it would stall a GPU.

    Raises:
        ConfigError: ``sizes`` is not a dictionary's, or of another number of levels.

    Example:
        >>> flat_index(torch.tensor([[0, 0, 1], [1, 2, 3]]), (2, 3, 4))
        tensor([ 1, 23])
    """
    if code_XC.shape[-1] != len(sizes):
        raise ConfigError(
            "the codes have another number of levels than the dictionary",
            got=f"codes {tuple(code_XC.shape)}, sizes {tuple(sizes)}",
            fix="take both from the same quantiser",
        )
    index_X = torch.zeros(code_XC.shape[:-1], dtype=torch.int64, device=code_XC.device)
    for level, stride in enumerate(_strides(sizes)):
        index_X = index_X + code_XC[..., level].to(torch.int64) * stride
    return index_X


def unflatten(index_X: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the ``[..., C]`` int64 code tuples of flat indices ``[...]``; the inverse of :func:`flat_index`.

    Example:
        >>> unflatten(torch.tensor([1, 23]), (2, 3, 4))
        tensor([[0, 0, 1],
                [1, 2, 3]])
    """
    codes = [index_X // stride % size for stride, size in zip(_strides(sizes), sizes, strict=True)]
    return torch.stack(codes, dim=-1).to(torch.int64)


def all_codes(sizes: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Return the ``[M, C]`` int64 code tuples of every interest; row m is the interest with flat index m.

    Example:
        >>> all_codes((2, 2)).tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    return unflatten(torch.arange(count_interests(sizes), device=device), sizes)


@dataclass(frozen=True)
class InterestItems:
    """The items of each interest, in compressed rows.

    Attributes:
        item_N: ``[N]`` int64 item ids (from 1), ordered by interest, then by id.
        offset_M1: ``[M + 1]`` int64: the items of interest m are ``item_N[offset_M1[m] : offset_M1[m + 1]]``.

    Example:
        >>> table = InterestItems.build(torch.tensor([0, 2, 0, 2]), num_interests=4)  # entry 0 is padding
        >>> table.items(2).tolist(), table.count_M.tolist()
        ([1, 3], [1, 0, 2, 0])
    """

    item_N: Tensor
    offset_M1: Tensor

    @classmethod
    def build(cls, interest_N1: Tensor, num_interests: int) -> InterestItems:
        """Build the table from each item's interest.

        Args:
            interest_N1: ``[N + 1]`` int64 flat index of each item's interest; entry 0 is padding and not read.
            num_interests: M; the table holds M + 1 offsets.

        Raises:
            DataError: An interest outside ``[0, M)``.
        """
        interest_N = interest_N1[1:]
        outside = (interest_N < 0) | (interest_N >= num_interests)
        if bool(outside.any()):
            raise DataError(
                "an item's interest is not in the dictionary",
                got=f"interest {int(interest_N[outside][0])} of {num_interests}",
                fix="assign the items anew with the dictionary that the table is for",
            )
        count_M = torch.bincount(interest_N, minlength=num_interests)
        return cls(interest_N.argsort(stable=True) + 1, F.pad(count_M.cumsum(0), (1, 0)))

    @property
    def count_M(self) -> Tensor:
        """``[M]`` int64, items of each interest."""
        return self.offset_M1.diff()

    def items(self, interest: int) -> Tensor:
        """Return the int64 ids of the items of one interest, ascending."""
        return self.item_N[int(self.offset_M1[interest]) : int(self.offset_M1[interest + 1])]

    def gather(self, interest_Q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the items of many interests: ``[E]`` ids, one interest after the other, and ``[Q + 1]`` offsets.

        Example:
            >>> table = InterestItems.build(torch.tensor([0, 2, 0, 2]), num_interests=4)
            >>> item_E, offset_Q1 = table.gather(torch.tensor([2, 1, 0]))
            >>> item_E.tolist(), offset_Q1.tolist()
            ([1, 3, 2], [0, 2, 2, 3])
        """
        start_Q = self.offset_M1[interest_Q]
        size_Q = self.offset_M1[interest_Q + 1] - start_Q
        offset_Q1 = F.pad(size_Q.cumsum(0), (1, 0))
        shift_E = torch.repeat_interleave(start_Q - offset_Q1[:-1], size_Q)
        return self.item_N[torch.arange(len(shift_E), device=shift_E.device) + shift_E], offset_Q1


def separation(codebooks: Iterable[Tensor]) -> tuple[float, ...]:
    """Return ``delta_c`` of each level: the least Euclidean distance of two of its codes, infinite for a single code.

    Args:
        codebooks: ``[M_c, W]`` codes of each level. Coinciding codes give 0 exactly.

    Example:
        >>> separation([torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[1.0, 1.0]])])
        (5.0, inf)
    """
    pairs = [F.pdist(codebook.detach().double()) for codebook in codebooks]
    return tuple(float(pair.min()) if len(pair) else math.inf for pair in pairs)


def health(code_NC: Tensor, codebooks: Iterable[Tensor], sizes: Sequence[int]) -> dict[str, float]:
    """Return how well the items use the dictionary.

    The paper reports a utilisation of 93.3 % without defining it; both readings are here.

    Args:
        code_NC: ``[N, C]`` int64 codes of the items, padding left out.
        codebooks: ``[M_c, W]`` codes of each level.
        sizes: M_c of each level.

    Returns:
        Names and values; c counts levels from 1.

        - ``utilisation_level_{c}``: share of the level's codes that an item uses; ``utilisation``: their mean.
        - ``utilisation_tuples``: share of all interests that an item uses (at most N over their number).
        - ``entropy_level_{c}``: entropy of the items over the level's codes, over its logarithm of M_c: 1 is even,
          0 is all on one code. 1 for a level of one code.
        - ``items_per_interest``: mean over the interests that are used.
        - ``collisions``: share of items that share their interest with another item.
        - ``min_distance_level_{c}``: ``delta_c`` of :func:`separation`; infinite for a level of one code.

    Example:
        >>> code_NC = torch.tensor([[0, 0], [0, 0], [1, 1]])
        >>> report = health(code_NC, [torch.eye(2), torch.eye(4)], (2, 4))
        >>> report["utilisation_level_2"], report["utilisation_tuples"], report["items_per_interest"]
        (0.5, 0.25, 1.5)
    """
    report: dict[str, float] = {}
    items = max(1, len(code_NC))
    for level, size in enumerate(sizes, start=1):
        share_M = torch.bincount(code_NC[:, level - 1], minlength=size).double() / items
        report[f"utilisation_level_{level}"] = float((share_M > 0).double().mean())
        entropy = float(torch.special.entr(share_M).sum())
        report[f"entropy_level_{level}"] = entropy / math.log(size) if size > 1 else 1.0
    report["utilisation"] = sum(report[f"utilisation_level_{c}"] for c in range(1, len(sizes) + 1)) / len(sizes)
    count_U = torch.unique(flat_index(code_NC, sizes), return_counts=True)[1]
    report["utilisation_tuples"] = len(count_U) / count_interests(sizes)
    report["items_per_interest"] = len(code_NC) / max(1, len(count_U))
    report["collisions"] = float(count_U[count_U > 1].sum()) / items
    report |= {f"min_distance_level_{c}": delta for c, delta in enumerate(separation(codebooks), start=1)}
    return report


def collapse_alarm(health: Mapping[str, float], least: float = 0.25) -> str | None:
    """Return one sentence that says which level of the dictionary has collapsed and how, or ``None``.

    The alarm rings when the mean utilisation is below ``least``, when the items of a level have an entropy below 0.1
    of the greatest, or when two codes of a level coincide.

    Args:
        health: What :func:`health` returned.
        least: Least mean utilisation.

    Example:
        >>> print(collapse_alarm(health(torch.zeros(9, 1, dtype=torch.int64), [torch.eye(8)], (8,))))
        the interest dictionary has collapsed: its levels use 12.5% of their codes on average (least 25.0%), level 1 \
the fewest, 12.5%
        >>> collapse_alarm(health(torch.arange(8)[:, None], [torch.eye(8)], (8,)))
    """
    prefix = "utilisation_level_"
    used = {int(name.removeprefix(prefix)): value for name, value in health.items() if name.startswith(prefix)}
    if health["utilisation"] < least:
        worst = min(used, key=lambda level: used[level])
        return (
            f"the interest dictionary has collapsed: its levels use {health['utilisation']:.1%} of their codes on "
            f"average (least {least:.1%}), level {worst} the fewest, {used[worst]:.1%}"
        )
    for level in used:
        if not health[f"entropy_level_{level}"] >= _LEAST_ENTROPY:
            return (
                f"level {level} of the interest dictionary has collapsed: almost all items have one code "
                f"(entropy {health[f'entropy_level_{level}']:.2f} of 1, least {_LEAST_ENTROPY})"
            )
        if not health[f"min_distance_level_{level}"] > 0:
            return (
                f"level {level} of the interest dictionary has collapsed: two of its codes are equal "
                f"(least distance {health[f'min_distance_level_{level}']:g})"
            )
    return None
