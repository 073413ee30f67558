"""A store in a dictionary: for tests, and for one process that may forget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from gemirec.retrieval.stores.base import Bulk, InterestStore, Raw, StoreInfo, fill, new_generation

if TYPE_CHECKING:
    from collections.abc import Callable

    from gemirec.retrieval.stores.codec import Codec, Records
    from gemirec.retrieval.stores.keys import Keys


class MemoryShelf:
    """Bytes in a dictionary.

    Attributes:
        values: Records by key.
        marks: Times of marks by key; may be shared by the shelves of several versions.
    """

    def __init__(self, codec: Codec, marks: dict[bytes, int] | None = None) -> None:
        self.values: dict[bytes, bytes] = {}
        self.marks: dict[bytes, int] = {} if marks is None else marks
        self._codec = codec

    def read(self, keys: Keys) -> Raw:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        names = keys.texts()
        record_B, present_B = self._codec.from_bytes([self.values.get(name) for name in names])
        mark_B = np.array([self.marks.get(name, 0) for name in names], dtype=np.int64)
        return Raw(record_B, present_B, mark_B)

    def write(self, keys: Keys, record_B: Records) -> None:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        self.values.update(zip(keys.texts(), (record.tobytes() for record in record_B), strict=True))

    def mark(self, keys: Keys, micros: int) -> None:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        self.marks.update(dict.fromkeys(keys.texts(), micros))

    def close(self) -> None:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""


def memory_store(
    info: StoreInfo,
    bulk: Bulk | None = None,
    *,
    ttl: float | None = None,
    marks: dict[bytes, int] | None = None,
    clock: Callable[[], int] | None = None,
) -> InterestStore:
    """Return a store in memory, filled if ``bulk`` is given."""
    info = msgspec.structs.replace(info, generation=new_generation(info.version))
    shelf = MemoryShelf(info.codec(), marks)
    if bulk is not None:
        fill(shelf, bulk)
    return InterestStore(shelf, info, ttl=ttl, clock=clock)
