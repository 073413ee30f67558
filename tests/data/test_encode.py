from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemirec.data.encode import IdCoder
from gemirec.errors import DataError

integers = st.integers(-(2**63), 2**63 - 1)
close = st.integers(-5, 5).flatmap(lambda low: st.integers(2**31 - 8 + low, 2**31 + 8))


@given(
    st.lists(st.lists(st.one_of(integers, close, st.integers(0, 20)), min_size=1, max_size=6), min_size=1, max_size=5)
)
def test_integers_round_trip(batches: list[list[int]]) -> None:
    coder = IdCoder("user_id")
    codes: list[Any] = [coder.add(pl.Series(batch, dtype=pl.Int64)) for batch in batches]
    ids = coder.finish(codes)
    assert [ids.gather(c).to_list() for c in codes] == batches
    assert ids.to_list() == sorted({n for batch in batches for n in batch})
    assert all(c.dtype == np.int32 for c in codes)


@given(st.lists(st.lists(st.text(max_size=20), min_size=1, max_size=6), min_size=1, max_size=5))
def test_strings_round_trip(batches: list[list[str]]) -> None:
    coder = IdCoder("user_id")
    codes: list[Any] = [coder.add(pl.Series(batch, dtype=pl.String)) for batch in batches]
    ids = coder.finish(codes)
    assert [ids.gather(c).to_list() for c in codes] == batches
    assert ids.n_unique() == len(ids)


def test_two_coders_do_not_share_codes() -> None:
    first, second = IdCoder("a"), IdCoder("b")
    first.add(pl.Series(["x", "y"]))
    codes = [second.add(pl.Series(["y"]))]
    assert second.finish(codes).to_list() == ["y"]


def test_sparse_integers_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemirec.data.encode._TABLE_LIMIT", 3)
    rng = np.random.default_rng(0)
    batches = [rng.integers(-(2**62), 2**62, 5) for _ in range(6)] + [rng.integers(0, 4, 5)]
    coder = IdCoder("user_id")
    codes: list[Any] = [coder.add(pl.Series(batch)) for batch in batches]
    ids = coder.finish(codes).to_numpy()
    assert all((ids[c] == batch).all() for c, batch in zip(codes, batches, strict=True))


def test_whole_floats_are_integers_fractions_are_not() -> None:
    coder = IdCoder("user_id")
    codes: list[Any] = [coder.add(pl.Series([2.0, 1.0])), coder.add(pl.Series([3], dtype=pl.UInt8))]
    assert coder.finish(codes).to_list() == [1, 2, 3]
    with pytest.raises(DataError, match=r"must be integers or strings\n  got: 1.5"):
        IdCoder("user_id").add(pl.Series([1.0, 1.5]))
    with pytest.raises(DataError, match=r"must be integers or strings\n  got: 1e\+18"):
        IdCoder("user_id").add(pl.Series([1e18]))
    with pytest.raises(DataError, match="must be integers or strings"):
        IdCoder("user_id").add(pl.Series([2**64 - 1], dtype=pl.UInt64))
    with pytest.raises(DataError, match="neither integers nor strings"):
        IdCoder("user_id").add(pl.Series([True]))
