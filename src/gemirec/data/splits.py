"""Splits as bounds in every user's own sequence (see :mod:`gemirec.data.dataset` for their meaning), and their checks.

Axes: U users of one block in order, E their events one user after the other, oldest first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gemirec.data.dataset import TEST_END, TEST_START, TRAIN_END, VALID_END, VALID_START
from gemirec.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

LABELS = {"train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2, "testing": 2}
"""Accepted values of a split column, in lower case."""


def bounds_of_users(label_U: NDArray[np.int8], length_U: NDArray[np.int64], cut: float) -> NDArray[np.int32]:
    """Hold out whole users: a held-out user's history is its first ``floor(cut x length)`` events.

    A held-out user whose history would be empty (one event) is in no part.

    Example:
        >>> bounds_of_users(np.array([0, 1, 2], dtype=np.int8), np.array([5, 5, 9]), 0.8).tolist()
        [[5, 0, 0, 0, 0], [0, 4, 5, 0, 0], [0, 0, 0, 7, 9]]
    """
    bounds_U5 = np.zeros((len(length_U), 5), dtype=np.int32)
    cut_U = np.floor(cut * length_U).astype(np.int64)
    bounds_U5[label_U == 0, TRAIN_END] = length_U[label_U == 0]
    for label, start in ((1, VALID_START), (2, TEST_START)):
        rows = np.flatnonzero((label_U == label) & (cut_U > 0))
        bounds_U5[rows, start], bounds_U5[rows, start + 1] = cut_U[rows], length_U[rows]
    return bounds_U5


def bounds_leave_one_out(length_U: NDArray[np.int64]) -> NDArray[np.int32]:
    """The last event tests, the one before validates, the rest trains.

    Two events give one training event and a test; a single event trains.

    Example:
        >>> bounds_leave_one_out(np.array([1, 2, 4])).tolist()
        [[1, 0, 0, 0, 0], [1, 0, 0, 1, 2], [2, 2, 3, 3, 4]]
    """
    valid_U, test_U = length_U >= 3, length_U >= 2
    train_U = length_U - valid_U - test_U
    return _from_counts(train_U, valid_U.astype(np.int64), test_U.astype(np.int64))


def bounds_by_time(length_U: NDArray[np.int64], time_E: NDArray[np.int64], cuts: tuple[int, int]) -> NDArray[np.int32]:
    """Cut every sequence at two moments: ``time < cuts[0]`` trains, ``time < cuts[1]`` validates, the rest tests.

    A user with nothing before a part has no history there, and is not in it.
    """
    user_E = np.repeat(np.arange(len(length_U)), length_U)
    train_U = np.bincount(user_E[time_E < cuts[0]], minlength=len(length_U))
    before_U = np.bincount(user_E[time_E < cuts[1]], minlength=len(length_U))
    return _from_counts(train_U, before_U - train_U, length_U - before_U)


def bounds_by_label(
    length_U: NDArray[np.int64], label_E: NDArray[np.int8], cut: float, name_of: Any = str
) -> NDArray[np.int32]:
    """Take the log's own labels.

    A user all of whose events are held out in one part is a held-out user: its history is the first
    ``floor(cut x length)`` events, as in :func:`bounds_of_users`.

    Args:
        length_U: Events of each user.
        label_E: 0 train, 1 valid, 2 test.
        cut: Share of a held-out user's events that is its history.
        name_of: Gives the id of user u of the block, for the error.

    Raises:
        DataError: Some user has a training event after a held-out one, or a validation event after a test one.
    """
    users = len(length_U)
    user_E = np.repeat(np.arange(users), length_U)
    back = np.flatnonzero((np.diff(label_E) < 0) & (np.diff(user_E) == 0))
    if len(back):
        names = ("train", "valid", "test")
        first, second = names[label_E[back[0]]], names[label_E[back[0] + 1]]
        raise DataError(
            "the split column goes back in time",
            got=f"user {name_of(int(user_E[back[0]]))!r} has a {first} event before a {second} event "
            f"({len(np.unique(user_E[back]))} such users so far)",
            fix="label every user's events train, then valid, then test by time; mind ties in the timestamps",
        )
    count_U3 = np.bincount(user_E * 3 + label_E, minlength=3 * users).reshape(users, 3)
    bounds_U5 = _from_counts(count_U3[:, 0], count_U3[:, 1], count_U3[:, 2])
    for label in (1, 2):
        whole = np.flatnonzero((count_U3[:, label] == length_U) & (length_U > 0))
        held = np.full(len(whole), label, dtype=np.int8)
        bounds_U5[whole] = bounds_of_users(held, length_U[whole], cut)
    return bounds_U5


def _from_counts(
    train_U: NDArray[np.int64], valid_U: NDArray[np.int64], test_U: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Lay train, valid and test one after the other; a held-out part without any event before it is left empty."""
    bounds_U5 = np.zeros((len(train_U), 5), dtype=np.int32)
    bounds_U5[:, TRAIN_END] = train_U
    for start_U, count_U, column in ((train_U, valid_U, VALID_START), (train_U + valid_U, test_U, TEST_START)):
        rows = np.flatnonzero((start_U > 0) & (count_U > 0))
        bounds_U5[rows, column], bounds_U5[rows, column + 1] = start_U[rows], (start_U + count_U)[rows]
    return bounds_U5


def find_cuts(times: list[NDArray[np.int64]], fractions: tuple[float, float, float]) -> tuple[int, int]:
    """Return the first time of valid and of test: the times at which these shares of the events have passed.

    Events at the very moment of a cut go to the later part, so that a part may be a little larger than asked.

    Example:
        >>> find_cuts([np.arange(10)], (0.8, 0.1, 0.1))
        (8, 9)
    """
    flat = np.concatenate(times)
    first = min(int(len(flat) * fractions[0]), len(flat) - 1)
    second = min(int(len(flat) * (fractions[0] + fractions[1])), len(flat) - 1)
    flat.partition([first, second])
    return int(flat[first]), int(flat[second])


class LeakCheck:
    """Looks whether any training event is later than a held-out one, block by block.

    Bounds are checked against the times that are written, not against how they were made.
    """

    def __init__(self) -> None:
        self._last = [None, None, None]  # type: list[int | None]
        self._first = [None, None, None]  # type: list[int | None]

    def add(self, bounds_U5: NDArray[np.int32], length_U: NDArray[np.int64], time_E: NDArray[np.int64]) -> None:
        """Take one block."""
        position_E = np.arange(len(time_E)) - np.repeat(np.cumsum(length_U) - length_U, length_U)
        zero_U = np.zeros(len(length_U), dtype=np.int32)
        parts = (
            (zero_U, bounds_U5[:, TRAIN_END]),
            (bounds_U5[:, VALID_START], bounds_U5[:, VALID_END]),
            (bounds_U5[:, TEST_START], bounds_U5[:, TEST_END]),
        )
        for part, (start_U, end_U) in enumerate(parts):
            start_E, end_E = np.repeat(start_U, length_U), np.repeat(end_U, length_U)
            times = time_E[(position_E >= start_E) & (position_E < end_E)]
            if len(times):
                last, first = self._last[part], self._first[part]
                self._last[part] = int(times.max()) if last is None else max(last, int(times.max()))
                self._first[part] = int(times.min()) if first is None else min(first, int(times.min()))

    def verify(self) -> None:
        """Raise if the future leaks into an earlier part.

        Raises:
            DataError: The last training time is after the first validation or test time, or the last validation time
                after the first test time.
        """
        names = ("train", "valid", "test")
        for early, late in ((0, 1), (0, 2), (1, 2)):
            last, first = self._last[early], self._first[late]
            if last is not None and first is not None and last > first:
                raise DataError(
                    f"the split leaks the future: {names[early]} holds events after the first {names[late]} event",
                    got=f"last {names[early]} time {last}, first {names[late]} time {first}",
                    fix="split by split=global_time, or mend the split column; "
                    "if this is meant, set check_time_leak=false",
                )


def check_bounds(bounds_U5: NDArray[np.int32], length_U: NDArray[np.int64]) -> None:
    """Raise if parts overlap, targets precede history, or a bound lies outside its sequence."""
    train_U, start_U, end_U, test_U, stop_U = bounds_U5.T
    valid, test = end_U > start_U, stop_U > test_U
    good = (train_U <= length_U) & (end_U <= length_U) & (stop_U <= length_U) & (bounds_U5 >= 0).all(axis=1)
    good &= ~valid | ((start_U >= np.maximum(train_U, 1)) & (start_U < end_U))
    good &= ~test | ((test_U >= np.maximum(np.maximum(train_U, 1), np.where(valid, end_U, 0))) & (test_U < stop_U))
    if not good.all():
        user = int(np.flatnonzero(~good)[0])
        raise DataError(
            "the bounds of a split are not in order",
            got=f"user {user} of the block: {bounds_U5[user].tolist()} of {length_U[user]} events",
            fix="report this with the command that you ran",
        )
