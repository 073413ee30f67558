"""Which items stand near which in the training sequences: each item's strongest neighbours, from all users at once.

The whole matrix is never built. Items are taken in ranges small enough that all their pairs fit a budget; each range is
one pass over the training events, after which only M neighbours of each of its items remain.

Axes: N items (row 0 is padding), M neighbours, E events, R ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from gemirec.data.dataset import TRAIN_END
from gemirec.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gemirec.data.dataset import Dataset

Decay = Literal["linear", "none"]
_PAIRS = 1 << 23
"""Pairs in memory at a time; about 60 bytes each while they are summed."""
_EVENTS = 1 << 20
"""Events read at a time."""


@dataclass(frozen=True)
class Neighbours:
    """The strongest neighbours of every item, the strongest first; equal ones by item index.

    Attributes:
        id_NM: ``[N + 1, M]`` int32 item indices, 0 where an item has fewer than M neighbours.
        weight_NM: ``[N + 1, M]`` float32 co-occurrence, 0 where there is no neighbour.
        own_N: ``[N + 1]`` float32 co-occurrence of an item with itself (repeats within the window).
    """

    id_NM: NDArray[np.int32]
    weight_NM: NDArray[np.float32]
    own_N: NDArray[np.float32]


def cooccurrence(
    dataset: Dataset,
    *,
    window: int = 3,
    decay: Decay = "linear",
    max_neighbours: int = 20,
    max_pairs: int = _PAIRS,
    block_events: int = _EVENTS,
) -> Neighbours:
    """Count how often items stand near each other in training users' sequences.

    ``C_ij = sum over positions p, q of one user, 0 < |p - q| <= k, holding i and j, of w(|p - q|)``, with
    ``w(d) = k - d + 1`` for ``linear`` decay (SimRec, arXiv 2311.17374) and 1 for ``none``; symmetric. Only training
    events are read, those before a user's ``train_end``.

    Args:
        dataset: The prepared dataset.
        window: k, positions on either side, at least 1.
        decay: How a pair's weight falls with its distance.
        max_neighbours: M, at least 1.
        max_pairs: Pairs that are held in memory at a time. One item's own pairs may pass it; they are summed in parts,
            so that memory stays bounded by it, by the number of items and by the longest sequence.
        block_events: Events that are read at a time.

    Raises:
        ConfigError: ``window`` or ``max_neighbours`` is below 1.
    """
    if window < 1 or max_neighbours < 1:
        raise ConfigError(
            "co-occurrence needs a window and neighbours",
            got=f"window {window}, max_neighbours {max_neighbours}",
            fix="give 1 or more of both",
        )
    width = dataset.num_items + 1
    id_NM = np.zeros((width, max_neighbours), dtype=np.int32)
    weight_NM = np.zeros((width, max_neighbours), dtype=np.float32)
    own_N = np.zeros(width, dtype=np.float32)
    edge_R1 = _ranges(_train_counts(dataset), 2 * window, max_pairs)
    for low, high in pairwise(edge_R1.tolist()):
        total = _Total(window, max_pairs)
        for event_E, user_E in _training_events(dataset, block_events):
            for pair, each in _pairs(event_E, user_E, window, decay, (low, high), width):
                total.add(pair, each)
        key, weight = total.summed()
        row, column = np.divmod(key, width)
        itself = row == column
        own_N[row[itself]] = weight[itself]
        _keep_strongest(row[~itself], column[~itself], weight[~itself], id_NM, weight_NM)
    return Neighbours(id_NM, weight_NM, own_N)


class _Total:
    """Sums the weights of keys; what is not summed yet passes a budget by no more than one addition.

    A key and its weight travel as one number, ``key * (window + 1) + weight``: sorting values is several times faster
    than sorting an index.
    """

    def __init__(self, window: int, max_pairs: int) -> None:
        self.base = window + 1
        self.max_pairs = max_pairs
        self.waiting: list[NDArray[np.int64]] = []
        self.pending = 0
        self.done = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)

    def add(self, key: NDArray[np.int64], weight: int) -> None:
        """Add ``weight`` to every one of ``key``; overwrites ``key``."""
        key *= self.base
        key += weight
        self.waiting.append(key)
        self.pending += len(key)
        if self.pending > self.max_pairs:
            self.summed()

    def summed(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the keys, ascending, each once, and their sums."""
        if self.pending:
            coded = np.concatenate(self.waiting)
            self.waiting, self.pending = [], 0
            coded.sort()
            key, weight = _sum_runs(*np.divmod(coded, self.base))
            if len(self.done[0]):
                key, weight = np.concatenate([self.done[0], key]), np.concatenate([self.done[1], weight])
                order = np.argsort(key, kind="stable")
                key, weight = _sum_runs(key[order], weight[order])
            self.done = key, weight
        return self.done


def _sum_runs(key: NDArray[np.int64], weight: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each of the ascending ``key`` once and the sum of its weights."""
    start = np.flatnonzero(np.diff(key, prepend=-1))
    return key[start], np.add.reduceat(weight, start)


def _pairs(
    event_E: NDArray[np.int64],
    user_E: NDArray[np.int64],
    window: int,
    decay: Decay,
    rows: tuple[int, int],
    width: int,
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yield ``i * width + j`` of every pair with i in ``rows``, and the weight of these pairs, distance by distance."""
    for distance in range(1, min(window, len(event_E) - 1) + 1):
        together = user_E[distance:] == user_E[:-distance]
        left, right = event_E[:-distance][together], event_E[distance:][together]
        for one, other in ((left, right), (right, left)):
            mine = (one >= rows[0]) & (one < rows[1])
            yield one[mine] * width + other[mine], window - distance + 1 if decay == "linear" else 1


def _keep_strongest(
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    weight: NDArray[np.int64],
    id_NM: NDArray[np.int32],
    weight_NM: NDArray[np.float32],
) -> None:
    """Write each row's M strongest columns into the tables; entries come sorted by row and column."""
    heaviest = int(weight.max(initial=0))
    order = np.argsort(row * (heaviest + 1) + (heaviest - weight), kind="stable")  # columns ascend already
    row, column, weight = row[order], column[order], weight[order]
    first = np.flatnonzero(np.diff(row, prepend=-1))
    rank = np.arange(len(row)) - np.repeat(first, np.diff(first, append=len(row)))
    kept = rank < id_NM.shape[1]
    id_NM[row[kept], rank[kept]] = column[kept]
    weight_NM[row[kept], rank[kept]] = weight[kept]


def _training_events(dataset: Dataset, block_events: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the training events of whole users, about ``block_events`` at a time, and each event's user."""
    for shard in dataset.shards:
        size_U = np.asarray(shard.bounds)[:, TRAIN_END].astype(np.int64)
        start_U, last_U = np.asarray(shard.offsets)[:-1], np.cumsum(size_U)
        total = int(last_U[-1]) if len(last_U) else 0
        cut = np.searchsorted(last_U, np.arange(block_events, total, block_events))
        edges = np.unique(np.concatenate([[0], cut + 1, [len(size_U)]]))
        for begin, end in pairwise(edges.tolist()):
            size, start = size_U[begin:end], start_U[begin:end]
            offset = np.cumsum(size) - size
            index_E = np.repeat(start - offset, size) + np.arange(size.sum())
            yield np.asarray(shard.events)[index_E].astype(np.int64), np.repeat(np.arange(end - begin), size)


def _train_counts(dataset: Dataset) -> NDArray[np.int64]:
    """Return ``[N + 1]`` training events per item."""
    count_N: NDArray[np.int64] = np.asarray(dataset.spec().train_count_N)
    return count_N


def _ranges(count_N: NDArray[np.int64], pairs_per_event: int, max_pairs: int) -> NDArray[np.int64]:
    """Return the edges of item ranges whose pairs fit ``max_pairs``; an item with more has a range of its own."""
    pair_N = np.cumsum(count_N * pairs_per_event)
    edges = [1]
    while edges[-1] < len(count_N):
        before = pair_N[edges[-1] - 1]
        edges.append(max(int(np.searchsorted(pair_N, before + max_pairs, side="right")), edges[-1] + 1))
    return np.array(edges)
