from __future__ import annotations

import itertools
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_support import Event, as_frame, logs, plain_duplicates, plain_k_core, plain_one_pass
from gemirec.data import coded, definition, filters
from gemirec.data.coded import CodedLog, gather_ranges, range_edges


def code(rows: list[Event], batch: int) -> CodedLog:
    """Rows as integer codes, in batches; users are shifted to start at 0."""
    log = CodedLog()
    for start in range(0, len(rows), batch):
        part = np.array(rows[start : start + batch])
        log.user.append((part[:, 0] + 3).astype(np.int32))
        log.item.append(part[:, 1].astype(np.int32))
        log.time.append(part[:, 2].astype(np.int64))
    return log


def survivors(rows: list[Event], kept: filters.Kept) -> list[Event]:
    return [row for row in rows if kept.user_U[row[0] + 3] and kept.item_N[row[1]]]


def frame_of(rows: list[Event]) -> nw.LazyFrame[Any]:
    return nw.from_native(as_frame(rows).with_row_index("row").lazy())


def rows_of(frame: nw.LazyFrame[Any]) -> list[Event]:
    return frame.collect().to_native().sort("row").select("user_id", "item_id", "timestamp").rows()  # type: ignore[no-any-return]


@given(logs(), st.integers(1, 7), st.integers(0, 5), st.integers(0, 5))
def test_one_pass_equals_plain_python_and_the_definition(rows: list[Event], batch: int, item: int, user: int) -> None:
    kept = filters.one_pass(code(rows, batch), 6, 6, item, user)
    expected = plain_one_pass(rows, item, user)
    assert survivors(rows, kept) == expected
    assert rows_of(definition.one_pass(frame_of(rows), item, user)) == expected
    assert int(kept.user_count_U.sum()) == int(kept.item_count_N.sum()) == len(expected)


@given(logs(), st.integers(1, 7), st.integers(0, 5), st.integers(0, 5))
def test_k_core_equals_removal_one_by_one_and_the_definition(
    rows: list[Event], batch: int, item: int, user: int
) -> None:
    kept = filters.k_core(code(rows, batch), 6, 6, item, user)
    expected = plain_k_core(rows, item, user)
    assert survivors(rows, kept) == expected
    assert rows_of(definition.k_core(frame_of(rows), item, user)) == expected
    users = np.bincount([row[0] + 3 for row in expected], minlength=6)
    items = np.bincount([row[1] for row in expected], minlength=6)
    assert kept.user_count_U[kept.user_U].tolist() == users[users > 0].tolist() or not expected
    assert (kept.item_count_N == items).all()


@pytest.mark.parametrize("policy", ["keep", "drop_exact", "keep_first", "keep_last"])
@given(rows=logs(), batch=st.integers(1, 7))
def test_duplicates_equal_plain_python_and_the_definition(policy: str, rows: list[Event], batch: int) -> None:
    expected = rows if policy == "keep" else plain_duplicates(rows, policy)
    log = code(rows, batch)
    filters.drop_duplicates(log, 6, policy)
    found = [(u - 3, i, t) for u, i, t in zip(*map(np.concatenate, log.columns()), strict=True)]
    # events move into ranges of users; within a user the order of the log stays
    assert sorted(found, key=lambda row: row[0]) == sorted(expected, key=lambda row: row[0])
    assert rows_of(definition.drop_duplicates(frame_of(rows), policy)) == expected


@given(logs(), st.integers(1, 7), st.integers(1, 9))
def test_gather_ranges_keeps_the_order_of_the_log(rows: list[Event], batch: int, per_range: int) -> None:
    log = code(rows, batch)
    keep_item = np.array([True, False, True, True, True, True])
    left_out_user = 2
    rows = [row for row in rows if row[1] != 1 and row[0] + 3 != left_out_user]
    count = np.bincount([row[0] + 3 for row in rows], minlength=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coded, "BLOCK_EVENTS", per_range)
        edges = range_edges(count)
    range_U = np.repeat(np.arange(len(edges) - 1, dtype=np.int32), np.diff(edges))
    range_U[left_out_user] = -1
    gather_ranges(log, range_U, np.add.reduceat(count, edges[:-1]), keep_item)
    found = [list(zip(*(c[r].tolist() for c in log.columns()), strict=True)) for r in range(len(edges) - 1)]
    wanted = [(u + 3, i, t) for u, i, t in rows]
    expected = [[row for row in wanted if low <= row[0] < high] for low, high in itertools.pairwise(edges)]
    assert found == expected


def test_range_edges_never_hold_more_users_than_asked() -> None:
    edges = range_edges(np.ones(10, dtype=np.int64), most_users=4)
    assert edges.tolist() == [0, 4, 8, 10]


def test_event_and_weight_filters_are_the_definition_itself() -> None:
    frame = pl.DataFrame({"event": ["pv", "buy", None, "pv"], "weight": [1.0, 2.0, 3.0, 0.5]})
    assert definition.keep_events(nw.from_native(frame), ["pv"]).to_native().height == 2
    assert definition.keep_weights(nw.from_native(frame), 1.0).to_native()["weight"].to_list() == [1.0, 2.0, 3.0]
