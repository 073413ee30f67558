"""A hash table of records in one file that processes map into their memory.

S slots, open addressing: a key's home is ``(key >> 32) * S >> 32``, and it lies in the first slot from there that was
free. The file holds the S keys, then the S records. Nothing is ever freed. A key that finds no free slot within 256
slots of its home takes the place of the record that is oldest among the first 16: a cache may forget.

Processes write without locks. Two that take the same slot at once leave a key with the other's record, or with half of
one: the record's check finds it, and that user is missing. No content of the file can do more harm than that.

Axes: B keys, S slots, W slots looked at together, R keys that are still looked for.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from gemirec.artifacts import translate_os_errors
from gemirec.errors import ArtifactError
from gemirec.retrieval.stores.codec import Records

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_TOGETHER, _STEPS = 16, 16
_HALF = np.uint64(32)


class SlotTable:
    """A table in a file that :meth:`create` made.

    Args:
        path: The file.
        slots: S.
        dtype: Of a record; the field ``written`` is its age.

    Raises:
        ArtifactError: The file is missing or has another size.
        StorageError: It cannot be opened.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "table"
        >>> dtype = np.dtype([("written", "<i8")])
        >>> SlotTable.create(path, 64, dtype)
        >>> table = SlotTable(path, 64, dtype)
        >>> table.write(np.array([7, 9], dtype=np.uint64), np.array([(70,), (90,)], dtype=dtype))
        >>> record, there = table.read(np.array([9, 8], dtype=np.uint64))
        >>> record["written"].tolist(), there.tolist()
        ([90, 0], [True, False])
    """

    def __init__(self, path: Path, slots: int, dtype: np.dtype[Any]) -> None:
        fix = "fill the cache again; a file that was cut cannot be read"
        if not path.exists():
            raise ArtifactError("a file of the cache is missing", got=path, fix=fix)
        size, wanted = path.stat().st_size, _size(slots, dtype)
        if size != wanted:
            raise ArtifactError("a file of the cache is cut", got=f"{path}: {size} of {wanted} bytes", fix=fix)
        with translate_os_errors(path), path.open("r+b") as stream:
            self._map = mmap.mmap(stream.fileno(), wanted)
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_RANDOM)
        self._key_S = np.frombuffer(self._map, dtype="<u8", count=slots)
        self._record_S = np.frombuffer(self._map, dtype=dtype, count=slots, offset=8 * slots)
        self._slots = np.uint64(slots)
        self._place_W = np.arange(_TOGETHER)
        self._lock = threading.Lock()

    @staticmethod
    def create(path: Path, slots: int, dtype: np.dtype[Any]) -> None:
        """Make an empty table; all its bytes are taken on the disk, so that no later write can find it full.

        Raises:
            StorageError: The disk is full, or refuses otherwise.
        """
        with translate_os_errors(path), path.open("wb") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, _size(slots, dtype))
            else:
                for start in range(0, _size(slots, dtype), 2**20):
                    stream.write(bytes(min(2**20, _size(slots, dtype) - start)))

    @property
    def used(self) -> int:
        """Slots that are taken."""
        return int(np.count_nonzero(self._key_S))

    def read(self, key_B: NDArray[np.uint64]) -> tuple[Records, NDArray[np.bool_]]:
        """Return ``[B]`` records, zero where there is none, and whether there is one."""
        slot_B, _ = self._find(key_B)
        there_B = slot_B >= 0
        record_B = self._record_S[slot_B]
        record_B[~there_B] = 0
        return record_B, there_B

    def write(self, key_B: NDArray[np.uint64], record_B: Records) -> None:
        """Keep records of keys above 0; of a key given twice the last one counts."""
        last_R = len(key_B) - 1 - np.unique(key_B[::-1], return_index=True)[1]
        with self._lock:
            while len(last_R):
                slot_R, free_R = self._find(key_B[last_R])
                full_R = (slot_R < 0) & (free_R < 0)
                if full_R.any():
                    free_R[full_R] = self._oldest(key_B[last_R[full_R]])
                slot_R = np.where(slot_R < 0, free_R, slot_R)
                won_X = np.unique(slot_R, return_index=True)[1]  # one key a slot; the others look again
                slot_X, row_X = slot_R[won_X], last_R[won_X]
                self._record_S[slot_X] = record_B[row_X]
                self._key_S[slot_X] = key_B[row_X]
                last_R = np.delete(last_R, won_X)

    def flush(self) -> None:
        """Have the bytes written to the disk."""
        self._map.flush()

    def close(self) -> None:
        """Let go of the file. Nothing is asked afterwards."""
        del self._key_S, self._record_S
        with contextlib.suppress(BufferError):  # another thread is reading: the memory goes with its last reference
            self._map.close()

    def _find(self, key_B: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the slot of each key and, of those that have none, the first free one; -1 for none."""
        slot_B, free_B = np.full((2, len(key_B)), -1, dtype=np.int64)
        home_B1 = self._home(key_B)
        row_R = np.arange(len(key_B))
        for step in range(_STEPS):
            place_RW = (home_B1[row_R] + (step * _TOGETHER + self._place_W)) % int(self._slots)
            seen_RW = self._key_S[place_RW]
            same_RW, empty_RW = seen_RW == key_B[row_R, None], seen_RW == 0
            for wanted_RW, out_B in ((empty_RW, free_B), (same_RW, slot_B)):
                first_R = wanted_RW.argmax(axis=1)
                hit_X = np.flatnonzero(wanted_RW[np.arange(len(row_R)), first_R])
                out_B[row_R[hit_X]] = place_RW[hit_X, first_R[hit_X]]
            row_R = row_R[(slot_B[row_R] < 0) & (free_B[row_R] < 0)]
            if not len(row_R):
                break
        return slot_B, free_B

    def _oldest(self, key_X: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the slot of the oldest record near the home of each key."""
        place_XW = (self._home(key_X) + self._place_W) % int(self._slots)
        oldest_X = self._record_S["written"][place_XW].argmin(axis=1)
        out: NDArray[np.int64] = place_XW[np.arange(len(key_X)), oldest_X]
        return out

    def _home(self, key_B: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the first slot ``[B, 1]`` that each key looks at."""
        return (((key_B >> _HALF) * self._slots) >> _HALF).astype(np.int64)[:, None]


def _size(slots: int, dtype: np.dtype[Any]) -> int:
    return slots * (8 + dtype.itemsize)
