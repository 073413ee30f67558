"""What preparing a log means: every step once, in Narwhals, so that any of its engines can run it.

The row steps (:func:`drop_nulls`, :func:`keep_events`, :func:`keep_weights`) run batch by batch as they stand here. The
steps over the whole log run on one machine as NumPy kernels on integer codes (``filters``, ``ordering``, ``splits``),
several times faster and in bounded memory; tests hold the kernels equal to :func:`reference`, and an engine past one
machine runs these same functions.

Frames here have the canonical columns plus ``row`` (position in the log) and, where needed, ``user_hash`` and
``split_hash`` (:mod:`gemirec.data.hashing`, the one thing that Narwhals has no word for).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import narwhals as nw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from narwhals.typing import FrameT

    from gemirec.data.options import PrepareConfig

    Persist = Callable[[nw.LazyFrame[Any]], nw.LazyFrame[Any]]


def drop_nulls(frame: FrameT, columns: Sequence[str]) -> FrameT:
    """Leave out events without an id or a time."""
    return frame.drop_nulls(subset=list(columns))


def keep_events(frame: FrameT, events: Sequence[str]) -> FrameT:
    """Keep the events of the named kinds."""
    return frame.filter(nw.col("event").cast(nw.String).is_in(list(events)))


def keep_weights(frame: FrameT, minimum: float) -> FrameT:
    """Keep the events of at least this weight."""
    return frame.filter(nw.col("weight") >= minimum)


def drop_duplicates(frame: nw.LazyFrame[Any], policy: str) -> nw.LazyFrame[Any]:
    """Keep one event of each (user, item, time), or the first or last one of each (user, item)."""
    if policy == "keep":
        return frame
    keys = ["user_id", "item_id"] + (["timestamp"] if policy == "drop_exact" else [])
    number = nw.col("row").cum_count().over(keys, order_by=["timestamp", "row"])
    wanted = nw.col("copies") if policy == "keep_last" else nw.lit(1)
    numbered = frame.with_columns(number=number, copies=nw.len().over(keys))
    return numbered.filter(nw.col("number") == wanted).drop("number", "copies")


def keep_frequent(frame: nw.LazyFrame[Any], column: str, minimum: int) -> nw.LazyFrame[Any]:
    """Keep the events whose ``column`` value has at least ``minimum`` events."""
    return frame.with_columns(n=nw.len().over(column)).filter(nw.col("n") >= minimum).drop("n")


def one_pass(frame: nw.LazyFrame[Any], min_item: int, min_user: int) -> nw.LazyFrame[Any]:
    """Keep frequent items, counted over all events; then users with enough of what is left (ComiRec)."""
    return keep_frequent(keep_frequent(frame, "item_id", min_item), "user_id", min_user)


def k_core(frame: nw.LazyFrame[Any], min_item: int, min_user: int, persist: Persist | None = None) -> nw.LazyFrame[Any]:
    """Repeat the one pass until nothing goes: every item and user that stays has enough of those that stay.

    Args:
        frame: The events.
        min_item: Fewest events of an item.
        min_user: Fewest events of a user.
        persist: Keeps a round's result, so that the next does not compute it again (Spark: ``checkpoint``). Polars
            frames are collected.
    """
    persist = persist or _persist
    events = -1
    while True:
        frame = persist(one_pass(frame, min_item, min_user))
        left = int(frame.select(nw.len()).collect().item())
        if left == events:
            return frame
        events = left


def _persist(frame: nw.LazyFrame[Any]) -> nw.LazyFrame[Any]:
    """Collect polars frames; leave others to their engine."""
    return frame.collect().lazy() if frame.implementation.is_polars() else frame


def number_items(frame: nw.LazyFrame[Any]) -> nw.LazyFrame[Any]:
    """Return ``item_id, count, item``: items numbered from 1 by falling count, ties by id."""
    counts = (
        frame.group_by("item_id").agg(nw.len().alias("count")).with_columns(falling=-nw.col("count").cast(nw.Int64))
    )
    return (
        counts.with_row_index("item", order_by=["falling", "item_id"]).with_columns(nw.col("item") + 1).drop("falling")
    )


def number_users(frame: nw.LazyFrame[Any]) -> nw.LazyFrame[Any]:
    """Return ``user_id, length, user, split_rank``: users numbered from 0 by hash, ties by id."""
    users = frame.group_by("user_id", "user_hash", "split_hash").agg(nw.len().alias("length"))
    users = users.with_row_index("user", order_by=["user_hash", "user_id"])
    return users.with_row_index("split_rank", order_by=["split_hash", "user"])


def sequences(frame: nw.LazyFrame[Any]) -> nw.LazyFrame[Any]:
    """Return ``user, position, item, timestamp``: each user's events by time, ties in the order of the log."""
    numbered = frame.join(number_items(frame).select("item_id", "item"), on="item_id")
    numbered = numbered.join(number_users(frame).select("user_id", "user", "length", "split_rank"), on="user_id")
    position = nw.col("row").cum_count().over("user", order_by=["timestamp", "row"])
    return numbered.with_columns(position=position.cast(nw.Int64) - 1)


def reference(frame: nw.LazyFrame[Any], config: PrepareConfig, persist: Persist | None = None) -> nw.LazyFrame[Any]:
    """Run every step over the whole log; see :func:`sequences` for the result, :func:`k_core` for ``persist``."""
    columns = frame.collect_schema().names()
    frame = drop_nulls(frame, ["user_id", "item_id", "timestamp"])
    if config.events:
        frame = keep_events(frame, config.events)
    if config.min_weight is not None and "weight" in columns:
        frame = keep_weights(frame, config.min_weight)
    frame = drop_duplicates(frame, config.duplicates)
    if config.filter == "one_pass":
        frame = one_pass(frame, config.min_item, config.min_user)
    elif config.filter == "k_core":
        frame = k_core(frame, config.min_item, config.min_user, persist)
    return sequences(frame)
