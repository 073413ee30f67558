"""The log as integer codes in batches, and the one way in which its events are moved: into ranges of users.

Axes: E events, U users, N items.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

BLOCK_EVENTS = 1 << 20
"""Events of a range of users that are sorted at once."""


@dataclass
class CodedLog:
    """The log as lists of arrays, one entry per batch; within a user always in the order of the log.

    Attributes:
        user: int32 user codes.
        item: int32 item codes.
        time: int64.
        weight: float32; empty if the log has none.
        label: int8 split labels (0 train, 1 valid, 2 test); empty if the log has none.
    """

    user: list[NDArray[Any]] = field(default_factory=list)
    item: list[NDArray[Any]] = field(default_factory=list)
    time: list[NDArray[Any]] = field(default_factory=list)
    weight: list[NDArray[Any]] = field(default_factory=list)
    label: list[NDArray[Any]] = field(default_factory=list)

    def columns(self) -> list[list[NDArray[Any]]]:
        """Return the lists that are in use."""
        return [c for c in (self.user, self.item, self.time, self.weight, self.label) if c]

    @property
    def events(self) -> int:
        """Number of events."""
        return sum(map(len, self.user))

    def keep(self, masks: Iterable[NDArray[np.bool_]]) -> None:
        """Leave out events, batch by batch, in place."""
        for number, mask in enumerate(masks):
            for column in self.columns():
                column[number] = column[number][mask]


def count_codes(batches: list[NDArray[Any]], size: int) -> NDArray[np.int64]:
    """Return ``[size]`` how often each code occurs."""
    total = np.zeros(size, dtype=np.int64)
    for codes in batches:
        total += np.bincount(codes, minlength=size)
    return total


def range_edges(count_U: NDArray[np.int64], most_users: int = 1 << 31) -> NDArray[np.int64]:
    """Return edges ``[R + 1]`` of consecutive ranges of users with about :data:`BLOCK_EVENTS` events each.

    Example:
        >>> range_edges(np.array([600_000, 600_000, 600_000, 5])).tolist()
        [0, 2, 4]
    """
    before_U = np.cumsum(count_U) - count_U
    number_U = before_U // BLOCK_EVENTS
    starts = np.flatnonzero((np.diff(number_U) != 0) | (np.diff(np.arange(len(count_U)) // most_users) != 0)) + 1
    return np.concatenate([[0], starts, [len(count_U)]]).astype(np.int64)


def gather_ranges(
    log: CodedLog, range_U: NDArray[np.int32], sizes: NDArray[np.int64], keep_item_N: NDArray[np.bool_] | None = None
) -> None:
    """Move events into ranges of users, in place: afterwards entry r of every list holds range r.

    A counting sort in two levels: each batch is sorted by range on its own, then its slices are appended to the
    ranges. Batches are freed as they are read, so that the peak is one copy of the log and a little.

    Args:
        log: The events.
        range_U: Range of every user code; -1 leaves the user out.
        sizes: ``[R]`` events of each range.
        keep_item_N: Leave out the events of other items.
    """
    narrow = range_U.astype(np.int16) if len(sizes) < 2**15 else range_U  # NumPy radix-sorts 16 bits: linear
    columns = log.columns()
    target = [[np.empty(size, dtype=column[0].dtype) for size in sizes] for column in columns]
    filled = np.zeros(len(sizes), dtype=np.int64)
    for column in columns:
        column.reverse()
    while log.user:
        batch = [column.pop() for column in columns]
        range_E = narrow[batch[0]]
        mask = range_E >= 0
        if keep_item_N is not None:
            mask &= keep_item_N[batch[1]]
        rows = np.flatnonzero(mask)
        range_E = range_E[rows]
        rows = rows[np.argsort(range_E, kind="stable")]
        counts = np.bincount(range_E, minlength=len(sizes))
        stops = np.cumsum(counts)
        for source, ranges in zip(batch, target, strict=True):
            values = source[rows]
            for r in np.flatnonzero(counts):
                ranges[r][filled[r] : filled[r] + counts[r]] = values[stops[r] - counts[r] : stops[r]]
        filled += counts
    assert (filled == sizes).all(), "the ranges' sizes must be the counts of their events"
    for column, ranges in zip(columns, target, strict=True):
        column.extend(ranges)
