"""The hash by which users are ordered, sharded and split: any engine can compute it, so any engine gives one dataset.

``hash(id) = splitmix64((crc32(text of id) + salt * 2^32) + (seed + 1) * 0x9E3779B97F4A7C15)``, all modulo 2^64. Both
parts are in Spark SQL (``crc32``, 64-bit integer arithmetic). ``splitmix64`` is a bijection: two ids tie only if their
CRC-32 do, and ties are broken by the id itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

ORDER_SALT, SPLIT_SALT = 0, 1
_GOLDEN = 0x9E3779B97F4A7C15
_BLOCK = 65_536


def _crc_table() -> NDArray[np.uint32]:
    """Return the 256 remainders of the reflected polynomial 0xEDB88320."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0xEDB88320), table >> 1).astype(np.uint32)
    return table


_TABLE = _crc_table()


def text_blocks(ids: pl.Series) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Yield ``(bytes, offsets)`` of the ids' UTF-8 texts, some thousand ids at a time; integers are written decimal."""
    for start in range(0, len(ids), _BLOCK):
        array = ids.slice(start, _BLOCK).cast(pl.String).to_arrow().cast(pa.large_string())
        _, offset_buffer, data_buffer = array.buffers()
        offsets = np.frombuffer(offset_buffer, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
        data = np.frombuffer(data_buffer or b"", dtype=np.uint8)
        yield data[offsets[0] : offsets[-1]], offsets - offsets[0]


def crc32(ids: pl.Series) -> NDArray[np.uint32]:
    """Return ``[U]`` the CRC-32 of the text of every id, as ``zlib.crc32`` gives it.

    Example:
        >>> import zlib
        >>> int(crc32(pl.Series([42]))[0]) == zlib.crc32(b"42")
        True
    """
    parts = [np.empty(0, dtype=np.uint32)]
    for data, offsets in text_blocks(ids):
        start, length = offsets[:-1], np.diff(offsets)
        crc = np.full(len(start), 0xFFFFFFFF, dtype=np.uint32)
        for position in range(int(length.max(initial=0))):
            rows = np.flatnonzero(length > position)
            value = crc[rows]
            crc[rows] = _TABLE[(value ^ data[start[rows] + position]) & 0xFF] ^ (value >> 8)
        parts.append(~crc)
    return np.concatenate(parts)


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix 64 bits (Steele, Lea, Flood 2014, the finaliser of SplitMix64).

    Example:
        >>> hex(int(splitmix64(np.array([0x9E3779B97F4A7C15], dtype=np.uint64))[0]))
        '0xe220a8397b1dcdaf'
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix(crc: NDArray[np.uint32], seed: int, salt: int) -> NDArray[np.uint64]:
    """Return ``[U]`` the hash of the module docstring from the ids' CRC-32."""
    shift = np.uint64(((salt << 32) + (seed + 1) * _GOLDEN) % 2**64)
    return splitmix64(crc.astype(np.uint64) + shift)


def order_users(ids: pl.Series, seed: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Return the rows of ``ids`` (distinct) in the order of their hash, ties by id, and the CRC-32 in that order."""
    crc = crc32(ids)
    hashed = mix(crc, seed, ORDER_SALT)
    order = np.argsort(hashed, kind="stable")
    tied = np.flatnonzero(np.diff(hashed[order]) == 0)
    if len(tied):
        places = np.union1d(tied, tied + 1)
        table = pl.DataFrame({"hash": hashed[order[places]], "id": ids.gather(order[places]), "row": order[places]})
        order[places] = table.sort("hash", "id")["row"].to_numpy()
    return order, crc[order]


def split_users(crc_U: NDArray[np.uint32], seed: int, fractions: tuple[float, float, float]) -> NDArray[np.int8]:
    """Return ``[U]`` 0 train, 1 valid, 2 test for users in their hash order: ``floor`` of the cumulative shares.

    Example:
        >>> np.bincount(split_users(np.arange(25, dtype=np.uint32), 1, (0.8, 0.1, 0.1))).tolist()
        [20, 2, 3]
    """
    users = len(crc_U)
    order = np.argsort(mix(crc_U, seed, SPLIT_SALT), kind="stable")
    first = int(users * fractions[0])
    second = int(users * (fractions[0] + fractions[1]))
    label = np.full(users, 2, dtype=np.int8)
    label[order[:first]] = 0
    label[order[first:second]] = 1
    return label
