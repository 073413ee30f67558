from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemirec.data import splits
from gemirec.errors import DataError

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=20).map(lambda values: np.array(values, dtype=np.int64))


def in_order(bounds: np.ndarray, length_U: np.ndarray) -> None:
    """Parts do not overlap, targets follow a history of at least one event, training precedes what is held out."""
    for (train, valid_start, valid_end, test_start, test_end), length in zip(
        bounds.tolist(), length_U.tolist(), strict=True
    ):
        parts = [set(range(train)), set(range(valid_start, valid_end)), set(range(test_start, test_end))]
        assert sum(map(len, parts)) == len(set.union(*parts)) <= length
        assert all(max(early) < min(late) for early, late in itertools.pairwise(parts) if early and late)
        assert all(min(part) >= 1 for part in parts[1:] if part)


@given(lengths, st.integers(0, 99))
def test_user_split(length_U: np.ndarray, seed: int) -> None:
    label = np.random.default_rng(seed).integers(0, 3, len(length_U)).astype(np.int8)
    bounds = splits.bounds_of_users(label, length_U, 0.8)
    splits.check_bounds(bounds, length_U)
    in_order(bounds, length_U)
    for row, part, length in zip(bounds.tolist(), label, length_U.tolist(), strict=True):
        cut = int(0.8 * length)
        held = [cut, length] if cut else [0, 0]
        assert row == [[length, 0, 0, 0, 0], [0, *held, 0, 0], [0, 0, 0, *held]][part]


@given(lengths)
def test_leave_one_out(length_U: np.ndarray) -> None:
    bounds = splits.bounds_leave_one_out(length_U)
    splits.check_bounds(bounds, length_U)
    in_order(bounds, length_U)
    assert ((bounds[:, 4] - bounds[:, 3]) == (length_U >= 2)).all()
    assert ((bounds[:, 2] - bounds[:, 1]) == (length_U >= 3)).all()
    assert (bounds[:, 0] == np.maximum(length_U - 2, 1)).all()


@given(lengths, st.integers(0, 99), st.integers(0, 12), st.integers(0, 12))
def test_global_time_has_no_future_in_the_past(length_U: np.ndarray, seed: int, first: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    times = [np.sort(rng.integers(0, 20, n)) for n in length_U]
    cuts = (first, first + more)
    bounds = splits.bounds_by_time(length_U, np.concatenate(times), cuts)
    splits.check_bounds(bounds, length_U)
    in_order(bounds, length_U)
    for (train, valid_start, valid_end, test_start, test_end), time in zip(bounds.tolist(), times, strict=True):
        assert train == (time < cuts[0]).sum()
        assert (time[valid_start:valid_end] >= cuts[0]).all()
        assert (time[valid_start:valid_end] < cuts[1]).all()
        assert (time[test_start:test_end] >= cuts[1]).all()
        assert test_end in (0, len(time))
    check = splits.LeakCheck()
    check.add(bounds, length_U, np.concatenate(times))
    check.verify()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 5))
def test_cuts_take_the_asked_share_of_events(times: list[int], batch: int) -> None:
    parts = [np.array(times[n : n + batch]) for n in range(0, len(times), batch)]
    first, second = splits.find_cuts(parts, (0.6, 0.2, 0.2))
    ordered = sorted(times)
    assert first == ordered[min(int(len(times) * 0.6), len(times) - 1)]
    assert second == ordered[min(int(len(times) * 0.8), len(times) - 1)]
    assert sum(time < first for time in times) <= len(times) * 0.6


def test_leak_check_fails_loudly_on_bounds_that_leak() -> None:
    length_U, time_E = np.array([3, 3]), np.array([1, 2, 9, 3, 4, 5])
    check = splits.LeakCheck()
    check.add(splits.bounds_leave_one_out(length_U), length_U, time_E)  # trains at 1 and 3, validates at 2
    with pytest.raises(DataError, match=r"last train time 3, first valid time 2"):
        check.verify()
    check = splits.LeakCheck()
    check.add(np.array([[3, 0, 0, 0, 0]], dtype=np.int32), length_U[:1], time_E[:3])
    check.add(np.array([[0, 0, 0, 1, 3]], dtype=np.int32), length_U[1:], time_E[3:])  # across blocks
    with pytest.raises(DataError, match=r"last train time 9, first test time 4"):
        check.verify()


def test_labels_give_the_parts() -> None:
    length_U = np.array([4, 3, 5, 2, 2])
    label_E = np.array([0, 0, 1, 2, 0, 0, 0, 2, 2, 2, 2, 2, 1, 2, 0, 2], dtype=np.int8)
    bounds = splits.bounds_by_label(length_U, label_E, 0.8)
    assert bounds.tolist() == [
        [2, 2, 3, 3, 4],
        [3, 0, 0, 0, 0],
        [0, 0, 0, 4, 5],  # a user held out whole: history is the first floor(0.8 x 5)
        [0, 0, 0, 1, 2],  # nothing before the validation event: it is the test's history
        [1, 0, 0, 1, 2],
    ]


def test_labels_out_of_order_name_the_user() -> None:
    with pytest.raises(DataError, match=r"user 'u1' has a test event before a train event"):
        splits.bounds_by_label(np.array([1, 2]), np.array([2, 2, 0], dtype=np.int8), 0.8, lambda u: f"u{u}")


@pytest.mark.parametrize(
    "row", [[3, 2, 4, 0, 0], [0, 0, 2, 0, 0], [6, 0, 0, 0, 0], [1, 1, 3, 2, 4], [1, 0, 0, 4, 6], [-1, 0, 0, 0, 0]]
)
def test_check_bounds_refuses(row: list[int]) -> None:
    with pytest.raises(DataError, match="not in order"):
        splits.check_bounds(np.array([row], dtype=np.int32), np.array([5]))
