"""Oracles for the data tests: every step of preparation in plain Python, and a prepared dataset read back by id."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import polars as pl
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

    from gemirec.data.dataset import Dataset

Event = tuple[Any, Any, int]


def as_frame(rows: list[Event]) -> pl.DataFrame:
    """Events as a log."""
    return pl.DataFrame(
        {"user_id": [r[0] for r in rows], "item_id": [r[1] for r in rows], "timestamp": [r[2] for r in rows]},
        schema_overrides={"timestamp": pl.Int64},
    )


def logs(*, text: bool = False, users: int = 6, items: int = 6, most: int = 60) -> st.SearchStrategy[list[Event]]:
    """Small random logs with many ties and repeats."""
    user: st.SearchStrategy[Any] = st.integers(-3, users - 4)
    item: st.SearchStrategy[Any] = st.integers(0, items - 1)
    if text:
        user, item = user.map(lambda n: f"u{n}"), item.map(lambda n: "é" * n + "x")
    return st.lists(st.tuples(user, item, st.integers(0, 8)), min_size=1, max_size=most)


def plain_one_pass(rows: list[Event], min_item: int, min_user: int) -> list[Event]:
    """ComiRec's rule, as REFERENCE_CODE section 2 words it."""
    item_count = Counter(row[1] for row in rows)
    rows = [row for row in rows if item_count[row[1]] >= min_item]
    user_count = Counter(row[0] for row in rows)
    return [row for row in rows if user_count[row[0]] >= min_user]


def plain_k_core(rows: list[Event], min_item: int, min_user: int) -> list[Event]:
    """Remove one offender at a time until there is none: the k-core does not depend on the order of removal."""
    while True:
        users, items = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
        bad_users = [user for user, n in users.items() if n < min_user]
        bad_items = [item for item, n in items.items() if n < min_item]
        if bad_users:
            rows = [row for row in rows if row[0] != bad_users[0]]
        elif bad_items:
            rows = [row for row in rows if row[1] != bad_items[0]]
        else:
            return rows


def plain_duplicates(rows: list[Event], policy: str) -> list[Event]:
    """Keep the first or last of every group, in the order of the log."""
    key: Callable[[int], Any] = (lambda n: rows[n]) if policy == "drop_exact" else (lambda n: rows[n][:2])
    by_time = sorted(range(len(rows)), key=lambda n: (rows[n][2], n), reverse=policy == "keep_last")
    chosen: dict[Any, int] = {}
    for n in by_time:
        chosen.setdefault(key(n), n)
    return [rows[n] for n in sorted(chosen.values())]


def plain_sequences(rows: list[Event]) -> dict[Any, list[tuple[Any, int]]]:
    """Each user's (item, time), by time, ties in the order of the log."""
    out: dict[Any, list[tuple[Any, int]]] = {}
    for user, item, time in sorted(rows, key=lambda row: row[2]):
        out.setdefault(user, []).append((item, time))
    return out


def plain_hash(user: object, seed: int, salt: int) -> int:
    """The users' hash, in integers without bounds."""
    x = (zlib.crc32(str(user).encode()) + (salt << 32) + (seed + 1) * 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def stored_sequences(dataset: Dataset) -> dict[Any, list[tuple[Any, int]]]:
    """Each user's (item, time) as the dataset holds them, by the caller's own ids, in the dataset's order of users."""
    items, users = dataset.items["item_id"].to_list(), dataset.users["user_id"].to_list()
    out = {}
    for shard in dataset.shards:
        for local in range(shard.num_users):
            part = slice(int(shard.offsets[local]), int(shard.offsets[local + 1]))
            events = [items[index - 1] for index in shard.events[part].tolist()]
            out[users[shard.first_user + local]] = list(zip(events, shard.times[part].tolist(), strict=True))
    return out


def stored_bounds(dataset: Dataset) -> dict[Any, list[int]]:
    """Each user's bounds, by the caller's own id."""
    rows = [row for shard in dataset.shards for row in shard.bounds.tolist()]
    return dict(zip(dataset.users["user_id"].to_list(), rows, strict=True))
