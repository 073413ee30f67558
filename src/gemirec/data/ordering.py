"""Puts the events into their final order, cuts the split and writes the shards, about a million events at a time.

Axes: U users of the dataset in order, E events of one block, C codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gemirec.data import splits
from gemirec.data.coded import gather_ranges, range_edges
from gemirec.data.dataset import TEST_END, TRAIN_END, VALID_END
from gemirec.data.hashing import split_users
from gemirec.data.writer import ShardWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import polars as pl
    from numpy.typing import NDArray

    from gemirec.data.coded import CodedLog
    from gemirec.data.options import PrepareConfig
    from gemirec.data.writer import Fingerprint

_MOST_BLOCK_USERS = 1 << 15


@dataclass(frozen=True)
class Plan:
    """Where every user goes.

    Attributes:
        code_U: Code of every user, in the dataset's order.
        crc_U: CRC-32 of their ids.
        length_U: Their events.
        shard_users: ``[S]`` users of each shard.
        edges: ``[R + 1]`` first user of each block; no block crosses a shard.
        codes: Number of codes, users that are left out included.
    """

    code_U: NDArray[np.int64]
    crc_U: NDArray[np.uint32]
    length_U: NDArray[np.int64]
    shard_users: NDArray[np.int64]
    edges: NDArray[np.int64]
    codes: int

    @classmethod
    def of(
        cls, code_U: NDArray[np.int64], crc_U: NDArray[np.uint32], length_U: NDArray[np.int64], shards: int, codes: int
    ) -> Plan:
        """Cut the users into ``shards`` shards of equally many users, and these into blocks."""
        users = len(code_U)
        shard_users = np.diff(np.arange(shards + 1) * users // shards)
        edges, first = [np.zeros(1, dtype=np.int64)], 0
        for size in shard_users:
            edges.append(range_edges(length_U[first : first + size], _MOST_BLOCK_USERS)[1:] + first)
            first += int(size)
        return cls(code_U, crc_U, length_U, shard_users, np.concatenate(edges), codes)

    def ranges(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return ``[C]`` block of every code (-1: left out) and ``[R]`` events of each block."""
        range_C = np.full(self.codes, -1, dtype=np.int32)
        blocks = len(self.edges) - 1
        range_C[self.code_U] = np.repeat(np.arange(blocks, dtype=np.int32), np.diff(self.edges))
        return range_C, np.add.reduceat(self.length_U, self.edges[:-1])


class SplitMaker:
    """Cuts the sequences of one block after the other.

    Attributes:
        name: The split that is made: ``column`` wherever the log has its own.
        cuts: First time of valid and of test, for ``global_time``.
        users_without_history: Users left out of a held-out part because nothing comes before it.
    """

    def __init__(self, name: str, config: PrepareConfig, user_ids: pl.Series) -> None:
        self.name = name
        self.cuts: tuple[int, int] | None = None
        self.users_without_history = 0
        self._label_U: NDArray[np.int8] | None = None
        self._cut = config.evaluation_cut
        self._user_ids = user_ids
        self._leak = splits.LeakCheck() if config.check_time_leak or name == "global_time" else None

    @classmethod
    def of(
        cls,
        config: PrepareConfig,
        plan: Plan,
        times: list[NDArray[Any]],
        labels: list[NDArray[Any]],
        user_ids: pl.Series,
    ) -> SplitMaker:
        """Choose the split: the log's own column wins over the configuration."""
        maker = cls("column" if labels else config.split, config, user_ids)
        if maker.name == "users":
            maker._label_U = split_users(plan.crc_U, config.seed, config.fractions)
        elif maker.name == "global_time":
            maker.cuts = config.cut_times or splits.find_cuts(times, config.fractions)
        return maker

    def cut(self, first: int, length_U: NDArray[np.int64], time_E: Any, label_E: Any) -> NDArray[np.int32]:
        """Return the bounds ``[U, 5]`` of the block that starts at user ``first``."""
        if self._label_U is not None:
            bounds = splits.bounds_of_users(self._label_U[first : first + len(length_U)], length_U, self._cut)
        elif self.name == "leave_one_out":
            bounds = splits.bounds_leave_one_out(length_U)
        elif self.cuts is not None:
            bounds = splits.bounds_by_time(length_U, time_E, self.cuts)
        else:
            bounds = splits.bounds_by_label(length_U, label_E, self._cut, lambda u: self._user_ids[first + u])
        splits.check_bounds(bounds, length_U)
        if self._leak is not None:
            self._leak.add(bounds, length_U, time_E)
        covered = bounds[:, (TRAIN_END, VALID_END, TEST_END)].max(axis=1)
        self.users_without_history += int((covered < length_U).sum())
        return bounds

    def verify(self) -> None:
        """Raise if the future leaks into an earlier part."""
        if self._leak is not None:
            self._leak.verify()


@dataclass
class Written:
    """What was learnt while writing.

    Attributes:
        part_U: int8 bits of the parts in which a user is: 1 train, 2 valid, 4 test.
        train_count_N: ``[N + 1]`` training events of each item.
        events_per_split: Training events, validation targets, test targets.
    """

    part_U: NDArray[np.int8]
    train_count_N: NDArray[np.int64]
    events_per_split: dict[str, int]

    @property
    def users_per_split(self) -> dict[str, int]:
        """Users in each part."""
        return {name: int((self.part_U & bit > 0).sum()) for name, bit in (("train", 1), ("valid", 2), ("test", 4))}

    def add(
        self, first: int, bounds: NDArray[np.int32], length_U: NDArray[np.int64], item_E: NDArray[np.int32]
    ) -> None:
        """Take one block."""
        train_end, valid_start, valid_end, test_start, test_end = bounds.astype(np.int64).T
        part = (train_end > 0) * 1 + (valid_end > valid_start) * 2 + (test_end > test_start) * 4
        self.part_U[first : first + len(length_U)] = part
        position_E = np.arange(len(item_E)) - np.repeat(np.cumsum(length_U) - length_U, length_U)
        train = item_E[position_E < np.repeat(train_end, length_U)]
        self.train_count_N += np.bincount(train, minlength=len(self.train_count_N))
        self.events_per_split["train"] += len(train)
        self.events_per_split["valid"] += int((valid_end - valid_start).sum())
        self.events_per_split["test"] += int((test_end - test_start).sum())


def write_shards(
    folder: Path,
    log: CodedLog,
    plan: Plan,
    index_C: NDArray[np.int32],
    split: SplitMaker,
    fingerprint: Fingerprint,
    progress: Callable[[str, float], None],
) -> Written:
    """Order, split and write every event; the log is used up.

    Args:
        folder: The dataset's folder.
        log: The events.
        plan: Where every user goes.
        index_C: Item index of every item code, 0 where the item is left out.
        split: Cuts the sequences.
        fingerprint: Takes what is written.
        progress: Told the stages ``order`` and ``write``.

    Raises:
        DataError: The split column is not in order, or the future leaks.
    """
    progress("order", 0.0)
    range_C, sizes = plan.ranges()
    gather_ranges(log, range_C, sizes, index_C > 0)
    progress("order", 1.0)
    local_C = np.zeros(plan.codes, dtype=np.int32)
    local_C[plan.code_U] = np.arange(len(plan.code_U), dtype=np.int32)
    items = int(index_C.max())
    written = Written(
        np.zeros(len(plan.code_U), dtype=np.int8),
        np.zeros(items + 1, dtype=np.int64),
        {"train": 0, "valid": 0, "test": 0},
    )
    for column in log.columns():
        column.reverse()
    block, first_user = 0, 0
    for shard, users in enumerate(plan.shard_users):
        last_user = first_user + int(users)
        lengths = plan.length_U[first_user:last_user]
        path = folder / "shards" / f"{shard:05d}"
        with ShardWriter(path, lengths, weights=bool(log.weight), fingerprint=fingerprint) as writer:
            while plan.edges[block] < last_user:
                first, stop = int(plan.edges[block]), int(plan.edges[block + 1])
                columns = _ordered(log, local_C, first)
                item_E, length_U = index_C[columns["item"]], plan.length_U[first:stop]
                bounds = split.cut(first, length_U, columns["time"], columns.get("label"))
                written.add(first, bounds, length_U, item_E)
                writer.write(events=item_E, times=columns["time"], bounds=bounds, weights=columns.get("weight"))
                block += 1
                progress("write", block / len(sizes))
        first_user = last_user
    split.verify()
    return written


def _ordered(log: CodedLog, local_C: NDArray[np.int32], first: int) -> dict[str, NDArray[Any]]:
    """Take the next block from the log, sorted by user, then time; ties stay in the order of the log."""
    names = ("user", "item", "time", "weight", "label")
    columns = {name: getattr(log, name).pop() for name in names if getattr(log, name)}
    local_E = (local_C[columns.pop("user")] - first).astype(np.uint16)  # NumPy radix-sorts 16 bits
    time_E = columns["time"]
    if (time_E[1:] >= time_E[:-1]).all():
        order = np.argsort(local_E, kind="stable")
    else:
        order = np.argsort(time_E, kind="stable")
        order = order[np.argsort(local_E[order], kind="stable")]
    return {name: values[order] for name, values in columns.items()}
