from __future__ import annotations

import zlib

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from data_support import plain_hash
from gemirec.data.hashing import ORDER_SALT, crc32, mix, order_users, split_users, splitmix64


@given(st.lists(st.text(), min_size=1, max_size=30))
def test_crc32_equals_zlib(texts: list[str]) -> None:
    assert crc32(pl.Series(texts, dtype=pl.String)).tolist() == [zlib.crc32(text.encode()) for text in texts]


def test_crc32_of_a_slice_and_of_many_blocks() -> None:
    ids = pl.Series([f"user-{n}" * (n % 3) for n in range(70_000)])
    assert crc32(ids.slice(65_530, 100)).tolist() == [zlib.crc32(text.encode()) for text in ids[65_530:65_630]]
    assert int(crc32(ids)[69_999]) == zlib.crc32(ids[69_999].encode())


def test_splitmix64_gives_the_published_stream() -> None:
    state = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(int(x)) for x in splitmix64(state)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20, unique=True), st.integers(0, 9))
def test_users_are_in_the_order_of_their_hash(ids: list[int], seed: int) -> None:
    order, crc = order_users(pl.Series(ids), seed)
    assert [ids[n] for n in order] == sorted(ids, key=lambda user: (plain_hash(user, seed, ORDER_SALT), user))
    assert mix(crc, seed, 1).tolist() == [plain_hash(ids[n], seed, 1) for n in order]


def test_ids_with_one_crc_are_ordered_by_id() -> None:
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    for ids in (["plumless", "x", "buckeroo"], ["buckeroo", "plumless", "x"]):
        order, _ = order_users(pl.Series(ids), 1)
        found = [ids[n] for n in order if ids[n] != "x"]
        assert found == ["buckeroo", "plumless"]


@given(st.integers(1, 300), st.integers(0, 5))
def test_split_of_users_has_exact_counts(users: int, seed: int) -> None:
    crc = np.random.default_rng(users).integers(0, 2**32, users, dtype=np.uint32)
    count = np.bincount(split_users(crc, seed, (0.8, 0.1, 0.1)), minlength=3)
    assert count.tolist() == [int(users * 0.8), int(users * 0.9) - int(users * 0.8), users - int(users * 0.9)]
