"""Training windows and evaluation batches, cut from a prepared dataset at batch time.

Histories lie once on disk (:mod:`gemirec.data.dataset`); a window is a vectorised gather over the memory-mapped
shards. Nothing of size users x length is ever built: the sampler keeps about 16 bytes per training user.

Axes: B batch, L window length, C training users that have a window, E flat entries of ragged rows,
F categorical and G numeric user features. An axis ``B1`` holds B + 1 offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from gemirec.data.dataset import TEST_END, TEST_START, TRAIN_END, VALID_END, VALID_START
from gemirec.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gemirec.data.dataset import Dataset

_STREAM = 0x57494E44
"""Separates the sampler's random stream from others that start from the same seed."""


@dataclass(frozen=True)
class Windows:
    """One training batch.

    Attributes:
        item_BL: ``[B, L]`` int64, the last L events before the target, oldest first, 0 behind them.
        target_B: ``[B]`` int64, the event that came next.
        user_B: ``[B]`` int64, user indices of the dataset.
        weight_B: ``[B]`` float32, weight of the target's event, or ``None`` if the log had no weights.
        user_categorical_BF: ``[B, F]`` int64 codes, 0 unknown, or ``None``.
        user_numeric_BG: ``[B, G]`` float32 standardised numbers, or ``None``.
    """

    item_BL: Tensor
    target_B: Tensor
    user_B: Tensor
    weight_B: Tensor | None = None
    user_categorical_BF: Tensor | None = None
    user_numeric_BG: Tensor | None = None


@dataclass(frozen=True)
class EvalWindows:
    """One evaluation batch; row b of a ragged array is ``flat_E[offset_B1[b] : offset_B1[b + 1]]``.

    Attributes:
        user_B: ``[B]`` int64, user indices of the dataset.
        item_BL: ``[B, L]`` int64, the last L events of the history, oldest first, 0 behind them.
        target_E: ``[E]`` int64, held-out events, repeats kept, in time order.
        target_offset_B1: ``[B + 1]`` int64, offsets of ``target_E``.
        seen_E: ``[E']`` int64, the whole history, repeats kept, oldest first.
        seen_offset_B1: ``[B + 1]`` int64, offsets of ``seen_E``.
        user_categorical_BF: ``[B, F]`` int64 codes, 0 unknown, or ``None``.
        user_numeric_BG: ``[B, G]`` float32 standardised numbers, or ``None``.
    """

    user_B: Tensor
    item_BL: Tensor
    target_E: Tensor
    target_offset_B1: Tensor
    seen_E: Tensor
    seen_offset_B1: Tensor
    user_categorical_BF: Tensor | None = None
    user_numeric_BG: Tensor | None = None


class WindowSampler:
    """Draws training batches; batch ``step`` is a function of ``(dataset, arguments, step)`` and of nothing else.

    There is no state to save: training resumes by asking for the next step. A window is a target position ``k`` in
    ``[min_history, train_end)`` of one user, and the ``max_length`` events before it; validation and test events
    lie at or after ``train_end`` and are never read.

    ``users`` draws distinct users uniformly among those with ``train_end > min_history``, then ``k`` uniformly for
    each (ComiRec's scheme); where there are fewer such users than ``batch_size``, users are drawn with replacement.
    ``events`` draws ``(user, k)`` uniformly over all training positions, with replacement, so that long histories
    count more. Rows come in ascending order of users, which losses must not depend on.

    Args:
        dataset: The prepared dataset.
        batch_size: Rows per batch, at least 1.
        max_length: Window length L, at least 1.
        sampling: ``users`` or ``events``.
        min_history: Fewest events before a target, at least 1 (ComiRec: 4).
        seed: Non-negative seed. Processes of one run that shall see different windows take different seeds.

    Raises:
        ConfigError: An argument is out of its range.
        TrainingError: No user has a training window.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        max_length: int,
        sampling: Literal["users", "events"] = "users",
        min_history: int = 4,
        seed: int = 1,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("max_length", max_length, 1),
            ("min_history", min_history, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ConfigError(f"{name} is too small", got=value, fix=f"give {least} or more")
        if sampling not in ("users", "events"):
            raise ConfigError("no such sampling of windows", got=sampling, fix="choose users or events")
        self.batch_size = batch_size
        self.max_length = max_length
        self.min_history = min_history
        self._key = np.random.SeedSequence(seed, spawn_key=(_STREAM,)).generate_state(2, np.uint64)
        self._offset_L = np.arange(max_length)
        self._index_users(dataset)
        self._last_C = np.cumsum(self._train_end_C - min_history, dtype=np.int64) if sampling == "events" else None
        # Plain views: fancy indexing of the memmap subclass costs several microseconds more per call.
        self._events = [np.asarray(shard.events) for shard in dataset.shards]
        self._weights = [np.asarray(shard.weights) for shard in dataset.shards if shard.weights is not None]
        categorical, numeric = dataset.user_features()
        self._categorical = None if categorical is None else np.asarray(categorical)
        self._numeric = None if numeric is None else np.asarray(numeric)

    def _index_users(self, dataset: Dataset) -> None:
        """Keep where each usable user's events start and end; users stay in order, so shards are ranges of C."""
        user, start, end, first = [], [], [], [0]
        for shard in dataset.shards:
            train_end = np.asarray(shard.bounds)[:, TRAIN_END]
            local = np.flatnonzero(train_end > self.min_history)
            user.append((local + shard.first_user).astype(np.int32 if dataset.num_users < 2**31 else np.int64))
            start.append(np.asarray(shard.offsets)[local])
            end.append(train_end[local])
            first.append(first[-1] + len(local))
        if first[-1] == 0:
            longest = max((int(np.max(s.bounds[:, TRAIN_END], initial=0)) for s in dataset.shards), default=0)
            raise TrainingError(
                "no user has a training window",
                got=f"min_history {self.min_history}, longest training sequence {longest} events",
                fix="give users with longer histories, or lower training.min_history",
            )
        self._user_C = np.concatenate(user)
        self._start_C = np.concatenate(start)
        self._train_end_C = np.concatenate(end)
        self._first_S1 = np.array(first)

    @property
    def num_users(self) -> int:
        """Users with at least one training window."""
        return len(self._user_C)

    @property
    def num_windows(self) -> int:
        """Training windows in all: positions in ``[min_history, train_end)``, summed over users."""
        return int(self._train_end_C.sum(dtype=np.int64)) - self.min_history * self.num_users

    def windows(self, step: int) -> Windows:
        """Return batch ``step`` (0, 1, ...), always with ``batch_size`` rows."""
        # The step goes into the counter's high word: every step has 2**192 draws of its own.
        rng = np.random.Generator(np.random.Philox(key=self._key, counter=np.array([0, 0, 0, step], dtype=np.uint64)))
        row_B, position_B = self._draw(rng)
        start_B = self._start_C[row_B]
        length_B = np.minimum(position_B, self.max_length)
        index_BL = (start_B + position_B - length_B)[:, None] + self._offset_L
        target_index_B = start_B + position_B
        item_BL, target_B = np.empty(index_BL.shape, dtype=np.int32), np.empty(len(row_B), dtype=np.int32)
        weight_B = np.empty(len(row_B), dtype=np.float32) if self._weights else None
        edge_S1 = np.searchsorted(row_B, self._first_S1)
        for shard in np.flatnonzero(edge_S1[1:] > edge_S1[:-1]):
            rows = slice(edge_S1[shard], edge_S1[shard + 1])
            # Positions behind the target may leave the array: clip, they are overwritten with padding below.
            np.take(self._events[shard], index_BL[rows], out=item_BL[rows], mode="clip")
            np.take(self._events[shard], target_index_B[rows], out=target_B[rows], mode="clip")
            if weight_B is not None:
                np.take(self._weights[shard], target_index_B[rows], out=weight_B[rows], mode="clip")
        item_BL *= self._offset_L < length_B[:, None]
        user_B = self._user_C[row_B].astype(np.int64)
        categorical_BF, numeric_BG = _features_of(user_B, self._categorical, self._numeric)
        return Windows(
            item_BL=torch.from_numpy(item_BL.astype(np.int64)),
            target_B=torch.from_numpy(target_B.astype(np.int64)),
            user_B=torch.from_numpy(user_B),
            weight_B=None if weight_B is None else torch.from_numpy(weight_B),
            user_categorical_BF=categorical_BF,
            user_numeric_BG=numeric_BG,
        )

    def _draw(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows of C, ascending, and a target position for each."""
        count, size = self.num_users, self.batch_size
        if self._last_C is not None:
            window_B = np.sort(rng.integers(int(self._last_C[-1]), size=size))
            row_B = np.searchsorted(self._last_C, window_B, side="right")
            # Windows of a user end at its entry of the cumulative sum: count back from there.
            return row_B, window_B - self._last_C[row_B] + self._train_end_C[row_B]
        if size <= count:
            row_B = rng.choice(count, size=size, replace=False, shuffle=False)
        else:
            row_B = rng.integers(count, size=size)
        row_B.sort()
        return row_B, rng.integers(self.min_history, self._train_end_C[row_B])


def evaluation_batches(
    dataset: Dataset,
    split: Literal["valid", "test"],
    *,
    batch_size: int,
    max_length: int,
    users: NDArray[np.int64] | None = None,
) -> Iterator[EvalWindows]:
    """Yield the held-out users of ``split`` in batches.

    Args:
        dataset: The prepared dataset.
        split: ``valid`` or ``test``.
        batch_size: Users per batch; the last batch may be smaller.
        max_length: Window length L.
        users: User indices, in the order wanted; ``None`` takes every user of the split, ascending.

    Raises:
        ConfigError: No such split, a size below 1, or a user of ``users`` has no target in the split.
    """
    if split not in ("valid", "test"):
        raise ConfigError("this split cannot be evaluated", got=split, fix="choose valid or test")
    if batch_size < 1 or max_length < 1:
        raise ConfigError(
            "batch_size and max_length must be positive", got=f"{batch_size}, {max_length}", fix="give 1 or more"
        )
    chosen = dataset.users_in(split) if users is None else np.asarray(users, dtype=np.int64)
    return _evaluation_batches(dataset, split, chosen, batch_size, max_length)


def _evaluation_batches(
    dataset: Dataset, split: str, users: NDArray[np.int64], batch_size: int, max_length: int
) -> Iterator[EvalWindows]:
    cut, stop = (VALID_START, VALID_END) if split == "valid" else (TEST_START, TEST_END)
    features = dataset.user_features()
    for begin in range(0, len(users), batch_size):
        user_B = users[begin : begin + batch_size]
        bounds_B5 = dataset.bounds_of(user_B).astype(np.int64)
        history_B, size_B = bounds_B5[:, cut], bounds_B5[:, stop] - bounds_B5[:, cut]
        if (size_B <= 0).any():
            raise ConfigError(
                f"a user has nothing held out in {split}",
                got=f"user index {user_B[np.argmin(size_B)]}",
                fix=f"take users from dataset.users_in({split!r})",
            )
        seen_E, seen_offset_B1 = gather_events(dataset, user_B, np.zeros_like(history_B), history_B)
        target_E, target_offset_B1 = gather_events(dataset, user_B, history_B, size_B)
        categorical_BF, numeric_BG = _features_of(user_B, *features)
        yield EvalWindows(
            user_B=torch.from_numpy(user_B.copy()),
            item_BL=pad_histories(seen_E, seen_offset_B1, max_length),
            target_E=torch.from_numpy(target_E),
            target_offset_B1=torch.from_numpy(target_offset_B1),
            seen_E=torch.from_numpy(seen_E),
            seen_offset_B1=torch.from_numpy(seen_offset_B1),
            user_categorical_BF=categorical_BF,
            user_numeric_BG=numeric_BG,
        )


def pad_histories(flat_E: NDArray[Any], offset_B1: NDArray[np.int64], max_length: int) -> Tensor:
    """Return the last ``max_length`` entries of each ragged row, oldest first, right-padded with 0.

    Args:
        flat_E: ``[E]`` integers, rows one after the other.
        offset_B1: ``[B + 1]`` ascending offsets; row b is ``flat_E[offset_B1[b] : offset_B1[b + 1]]``.
        max_length: L, at least 1.

    Returns:
        ``[B, L]`` int64.

    Example:
        >>> pad_histories(np.array([7, 8, 9, 5]), np.array([0, 3, 3, 4]), max_length=2).tolist()
        [[8, 9], [0, 0], [5, 0]]
    """
    offset_B1 = np.asarray(offset_B1, dtype=np.int64)
    length_B = np.minimum(np.diff(offset_B1), max_length)
    position_L = np.arange(max_length)
    item_BL = np.zeros((len(length_B), max_length), dtype=np.int64)
    if len(flat_E):
        index_BL = (offset_B1[1:] - length_B)[:, None] + position_L
        np.multiply(np.take(flat_E, index_BL, mode="clip"), position_L < length_B[:, None], out=item_BL)
    return torch.from_numpy(item_BL)


def _ragged_index(start_B: NDArray[np.int64], size_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``start, start + 1, ..., start + size - 1`` of every row, one row after the other."""
    offset_B1 = np.concatenate([[0], np.cumsum(size_B)])
    return np.repeat(start_B - offset_B1[:-1], size_B) + np.arange(offset_B1[-1])


def gather_events(
    dataset: Dataset, user_B: NDArray[np.int64], first_B: NDArray[np.int64], size_B: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the events ``[first, first + size)`` of every user, flat (item indices), and their ``[B + 1]`` offsets."""
    offset_B1 = np.concatenate([[0], np.cumsum(size_B)])
    flat_E = np.empty(offset_B1[-1], dtype=np.int64)
    for shard, rows, local in dataset.by_shard(user_B):
        size, start = size_B[rows], shard.offsets[local] + first_B[rows]
        flat_E[_ragged_index(offset_B1[:-1][rows], size)] = np.asarray(shard.events)[_ragged_index(start, size)]
    return flat_E, offset_B1


def _features_of(
    user_B: NDArray[np.int64], categorical: NDArray[np.int32] | None, numeric: NDArray[np.float32] | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the feature rows of a batch: codes as int64, numbers as float32."""
    codes = None if categorical is None else torch.from_numpy(categorical[user_B].astype(np.int64))
    numbers = None if numeric is None else torch.from_numpy(np.asarray(numeric[user_B], dtype=np.float32))
    return codes, numbers
