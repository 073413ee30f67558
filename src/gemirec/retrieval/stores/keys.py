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
    from collections.abc import Iterable, Sequence

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
    parts = []
    for data, offsets in _texts(user_ids):
        length_X = np.diff(offsets)
        place_Y = np.arange(len(data)) - offsets[:-1].repeat(length_X)
        factor_P2 = _multipliers(int(length_X.max(initial=0)).bit_length())
        sum_Y2 = np.zeros((len(data) + 1, 2), dtype=np.uint64)
        np.cumsum((data + np.uint64(1))[:, None] * factor_P2[place_Y], axis=0, out=sum_Y2[1:])
        total_X2 = sum_Y2[offsets[1:]] - sum_Y2[offsets[:-1]]
        parts.append(splitmix64(total_X2 + length_X.astype(np.uint64)[:, None] * _GOLDEN))
    key_B2 = np.concatenate(parts) if len(parts) != 1 else parts[0]
    key_B2[key_B2[:, 0] == 0, 0] = 1
    if isinstance(user_ids, pl.Series):
        return Keys(key_B2, user_ids.is_not_null().to_numpy())
    return Keys(key_B2, np.array([name is not None for name in user_ids], dtype=np.bool_))


def _texts(user_ids: Sequence[object] | pl.Series) -> Iterable[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Return bytes and offsets of the ids' texts, in blocks: as columns in bulk, plainly for the few of a request."""
    if isinstance(user_ids, pl.Series) and len(user_ids):
        return text_blocks(user_ids)
    texts = [str(name).encode(errors="surrogatepass") for name in user_ids]
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return [(np.frombuffer(b"".join(texts), dtype=np.uint8), offsets)]


@lru_cache(maxsize=32)
def _multipliers(bits: int) -> NDArray[np.uint64]:
    """Return the odd multipliers of the first ``2^bits`` bytes of a text, ``[2^bits, 2]``."""
    return np.stack([odd_factors(seed, 2**bits) for seed in _SEEDS], axis=1)


def odd_factors(seed: int, count: int) -> NDArray[np.uint64]:
    """Return ``[count]`` odd multipliers drawn from a seed of 64 bits, the same on every machine."""
    place_P = np.arange(1, count + 1, dtype=np.uint64)
    return splitmix64(place_P * _GOLDEN + np.uint64(seed)) | np.uint64(1)
