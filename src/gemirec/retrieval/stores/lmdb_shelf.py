"""Values in LMDB, by way of comparison with the memory map: slower here, and its B-tree has no checksums."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from gemirec.errors import ArtifactError, MissingExtraError, StorageError
from gemirec.retrieval.stores.base import Raw

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gemirec.retrieval.stores.codec import Codec, Records
    from gemirec.retrieval.stores.keys import Keys
    from gemirec.retrieval.stores.table import SlotTable

_MOST_BYTES = 2**38
"""Address space that is set aside; the file grows with what it holds."""
_OPEN: dict[str, list[Any]] = {}
"""Environment and users of it, by folder: LMDB forbids to open one twice in a process."""
_GUARD = threading.Lock()


class LmdbShelf:
    """Values in one LMDB environment.

    Args:
        folder: Where.
        codec: Of the records.
        marks: The marks.
        new: Make it.

    Raises:
        ArtifactError: It is missing or damaged.
        MissingExtraError: lmdb is not installed.
    """

    def __init__(self, folder: Path, codec: Codec, marks: SlotTable, *, new: bool = False) -> None:
        self._folder, self._codec, self._marks = folder, codec, marks
        self._name = str(folder.resolve())
        with _GUARD:
            if self._name not in _OPEN:
                _OPEN[self._name] = [_open(folder, new=new), 0]
            self._environment = _OPEN[self._name][0]
            _OPEN[self._name][1] += 1

    def read(self, keys: Keys) -> Raw:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        with self._translated(), self._environment.begin() as transaction:
            values = [transaction.get(name) for name in keys.texts()]
        return Raw(*self._codec.from_bytes(values), self._marks.read(keys.key_B2[:, 0])[0]["written"])

    def write(self, keys: Keys, record_B: Records) -> None:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        pairs = sorted(
            zip(keys.texts(), (record.tobytes() for record in record_B), strict=True), key=lambda pair: pair[0]
        )
        with self._translated(), self._environment.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(pairs)

    def mark(self, keys: Keys, micros: int) -> None:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        from gemirec.retrieval.stores.embedded import write_marks

        write_marks(self._marks, keys, micros)

    def flush(self) -> None:
        """Have the bytes written to the disk."""
        with self._translated():
            self._environment.sync(True)

    def close(self) -> None:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        self._marks.close()
        with _GUARD:
            held = _OPEN[self._name]
            held[1] -= 1
            if not held[1]:
                del _OPEN[self._name]
                self._environment.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        import lmdb

        try:
            yield
        except lmdb.Error as error:
            fix = "free some disk space, or fill the cache again"
            raise StorageError("LMDB refuses", got=f"{self._folder}: {error}", fix=fix) from error


def _open(folder: Path, *, new: bool) -> Any:
    try:
        import lmdb
    except ImportError:
        raise MissingExtraError("serve", "lmdb") from None
    try:
        return lmdb.open(str(folder), map_size=_MOST_BYTES, create=new, readahead=False, sync=False, max_readers=1024)
    except lmdb.Error as error:
        fix = "fill the cache again"
        raise ArtifactError("the LMDB file is missing or damaged", got=f"{folder}: {error}", fix=fix) from error
