"""The keys of users: 128 bits of an id's text, so that every store has keys of one width and any id is one.

The two halves are ``splitmix64(sum_i (byte_i + 1) m_i + length)`` modulo 2^64 with two sequences of odd multipliers
``m``: multilinear hashing (Lemire and Kaser, 2014, 1202.4961), worked out for all ids at once.

Axes: B users.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from gemirec.data.hashing import splitmix64, text_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SEEDS = 0x243F6A8885A308D3, 0x13198A2E03707344
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Keys(NamedTuple):
    """Keys of some users.

    Attributes:
        key_B2: ``[B, 2]`` uint64; the first half is never 0.
        known_B: ``[B]`` bool, false where there is no id.
    """

    key_B2: NDArray[np.uint64]
    known_B: NDArray[np.bool_]

    def take(self, row_R: NDArray[Any]) -> Keys:
        """Return the keys at rows ``[R]``, or those where a mask is true."""
        return Keys(self.key_B2[row_R], self.known_B[row_R])

    def texts(self) -> list[bytes]:
        """Return each key as 16 bytes."""
        flat = self.key_B2.astype("<u8").tobytes()
        return [flat[start : start + 16] for start in range(0, len(flat), 16)]


def user_keys(user_ids: Sequence[object] | pl.Series) -> Keys:
    """Return the keys of ids by their text: 12 and ``"12"`` are one user. ``None`` is nobody.

    Example:
        >>> keys = user_keys([12, "12", None, "eve"])
        >>> keys.known_B.tolist(), bool((keys.key_B2[0] == keys.key_B2[1]).all())
        ([True, True, False, True], True)
        >>> len(set(keys.texts()))
        3
    """
    if not isinstance(user_ids, pl.Series):
        user_ids = pl.Series([None if name is None else str(name) for name in user_ids], dtype=pl.String)
    key_B2 = np.empty((len(user_ids), 2), dtype=np.uint64)
    done = 0
    for data, offsets in text_blocks(user_ids):
        length_X = np.diff(offsets)
        place_Y = np.arange(len(data)) - np.repeat(offsets[:-1], length_X)
        factor_P2 = _multipliers(int(length_X.max(initial=0)).bit_length())
        for half in range(2):
            sum_Y1 = np.zeros(len(data) + 1, dtype=np.uint64)
            np.cumsum((data + np.uint64(1)) * factor_P2[place_Y, half], out=sum_Y1[1:])
            total_X = sum_Y1[offsets[1:]] - sum_Y1[offsets[:-1]]
            key_B2[done : done + len(length_X), half] = splitmix64(total_X + length_X.astype(np.uint64) * _GOLDEN)
        done += len(length_X)
    key_B2[key_B2[:, 0] == 0, 0] = 1
    return Keys(key_B2, user_ids.is_not_null().to_numpy())


@lru_cache(maxsize=32)
def _multipliers(bits: int) -> NDArray[np.uint64]:
    """Return the odd multipliers of the first ``2^bits`` bytes of a text, ``[2^bits, 2]``."""
    return np.stack([odd_factors(seed, 2**bits) for seed in _SEEDS], axis=1)


def odd_factors(seed: int, count: int) -> NDArray[np.uint64]:
    """Return ``[count]`` odd multipliers drawn from a seed of 64 bits, the same on every machine."""
    place_P = np.arange(1, count + 1, dtype=np.uint64)
    return splitmix64(place_P * _GOLDEN + np.uint64(seed)) | np.uint64(1)
