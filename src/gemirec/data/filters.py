"""Duplicates and the frequency filters, as NumPy kernels on integer codes held in batches.

Each equals the dataframe step of the same name in :mod:`gemirec.data.definition` (tests hold them so).

Axes: E events, U users, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gemirec.data.coded import count_codes, gather_ranges, range_edges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemirec.data.coded import CodedLog


@dataclass
class Kept:
    """Which users and items a filter keeps: an event stays if both do.

    Attributes:
        user_U: bool.
        item_N: bool.
        user_count_U: int64 surviving events of each user.
        item_count_N: int64 surviving events of each item.
        rounds: Passes over the log.
    """

    user_U: NDArray[np.bool_]
    item_N: NDArray[np.bool_]
    user_count_U: NDArray[np.int64]
    item_count_N: NDArray[np.int64]
    rounds: int


def one_pass(log: CodedLog, users: int, items: int, min_item: int, min_user: int) -> Kept:
    """ComiRec's filter: items by their count over all events, then users by their surviving events.

    Minima of 0 and 1 keep everything that occurs.
    """
    item_N = count_codes(log.item, items) >= max(min_item, 1)
    user_count_U = np.zeros(users, dtype=np.int64)
    for user, item in zip(log.user, log.item, strict=True):
        user_count_U += np.bincount(user[item_N[item]], minlength=users)
    user_U = user_count_U >= max(min_user, 1)
    item_count_N = np.zeros(items, dtype=np.int64)
    for user, item in zip(log.user, log.item, strict=True):
        item_count_N += np.bincount(item[user_U[user] & item_N[item]], minlength=items)
    user_count_U[~user_U] = 0
    return Kept(user_U, item_count_N > 0, user_count_U, item_count_N, 1)


def k_core(log: CodedLog, users: int, items: int, min_item: int, min_user: int) -> Kept:
    """Return the largest part of the log in which every item and every user has its minimum of events.

    Counts are corrected by the events that go instead of being taken again: the rounds after the first few touch
    almost nothing but the boolean look-ups.
    """
    user_count_U, item_count_N = count_codes(log.user, users), count_codes(log.item, items)
    user_U, item_N = np.ones(users, dtype=bool), np.ones(items, dtype=bool)
    alive = [np.ones(len(codes), dtype=bool) for codes in log.user]
    rounds = 0
    while True:
        user_gone_U = user_U & (user_count_U < max(min_user, 1))
        item_gone_N = item_N & (item_count_N < max(min_item, 1))
        if not user_gone_U.any() and not item_gone_N.any():
            return Kept(user_U, item_N, user_count_U, item_count_N, rounds)
        rounds += 1
        user_U &= ~user_gone_U
        item_N &= ~item_gone_N
        for user, item, live in zip(log.user, log.item, alive, strict=True):
            gone = np.flatnonzero((user_gone_U[user] | item_gone_N[item]) & live)
            live[gone] = False
            user_count_U -= np.bincount(user[gone], minlength=users)
            item_count_N -= np.bincount(item[gone], minlength=items)


def drop_duplicates(log: CodedLog, users: int, policy: str) -> None:
    """Leave out repeated events, in place, by the policy of :func:`gemirec.data.definition.drop_duplicates`.

    Users are taken in ranges of about a million events, so that the sort's memory does not grow with the log.
    """
    if policy == "keep":
        return
    count_U = count_codes(log.user, users)
    edges = range_edges(count_U)
    range_U = np.repeat(np.arange(len(edges) - 1, dtype=np.int32), np.diff(edges))
    gather_ranges(log, range_U, np.add.reduceat(count_U, edges[:-1]))
    log.keep([_distinct(*event, policy=policy) for event in zip(log.user, log.item, log.time, strict=True)])


def _distinct(user: NDArray[Any], item: NDArray[Any], time: NDArray[Any], *, policy: str) -> NDArray[np.bool_]:
    """Return ``[E]`` which events stay; the order of the arrays is the order of the log."""
    order = np.lexsort((time, item, user))  # stable: equal times stay in the order of the log
    user, item, time = user[order], item[order], time[order]
    same = (user[1:] == user[:-1]) & (item[1:] == item[:-1])
    if policy == "drop_exact":
        same &= time[1:] == time[:-1]
    edge = np.ones(min(len(user), 1), dtype=bool)
    kept = np.empty(len(user), dtype=bool)
    kept[order] = np.concatenate([~same, edge] if policy == "keep_last" else [edge, ~same])
    return kept
