"""Writes the dataset folder piece by piece, fingerprinting what it writes.

Axes: U users of the whole dataset in order, E events of one block.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from gemirec.artifacts import translate_os_errors
from gemirec.data.hashing import text_blocks
from gemirec.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray


class NpyWriter:
    """Writes one ``.npy`` file of a known shape block by block; the array is never held whole.

    Args:
        path: The file.
        dtype: Type of the values.
        shape: Shape of the whole array.
    """

    def __init__(self, path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
        self._dtype = np.dtype(dtype)
        self._left = int(np.prod(shape)) * self._dtype.itemsize
        self._stream = path.open("wb")
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, header)

    def write(self, values: NDArray[Any]) -> memoryview:
        """Append ``values``; returns their bytes, for a hash."""
        data = np.ascontiguousarray(values, dtype=self._dtype).reshape(-1).view(np.uint8).data
        self._stream.write(data)
        self._left -= len(data)
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._stream.close()
        assert kind is not None or self._left == 0, "fewer or more values than the header says"


class Fingerprint:
    """SHA-256 over the content of a dataset: independent of shards, blocks and the engine that wrote it."""

    def __init__(self) -> None:
        self._parts: dict[str, Any] = {}

    def add(self, part: str, data: Any) -> None:
        """Append bytes or an array to the named part."""
        digest = self._parts.setdefault(part, hashlib.sha256())
        digest.update(data if isinstance(data, (bytes, memoryview)) else np.ascontiguousarray(data))

    def add_ids(self, part: str, ids: pl.Series) -> None:
        """Append ids: their type, lengths and texts."""
        self.add(part, b"integer" if ids.dtype.is_integer() else b"string")
        for data, offsets in text_blocks(ids):
            self.add(part, np.diff(offsets).astype("<i8"))
            self.add(part, data)

    def hexdigest(self) -> str:
        """Return the fingerprint of all parts."""
        lines = [f"{name} {digest.hexdigest()}" for name, digest in sorted(self._parts.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class ShardWriter:
    """Writes the arrays of one shard.

    Args:
        folder: ``shards/00000`` of the dataset; created.
        length_U: Events of each user of the shard.
        weights: Whether the log has weights.
        fingerprint: Takes everything that is written.
    """

    def __init__(self, folder: Path, length_U: NDArray[np.int64], *, weights: bool, fingerprint: Fingerprint) -> None:
        folder.mkdir(parents=True)
        users, events = len(length_U), int(length_U.sum())
        offsets = np.concatenate([[0], np.cumsum(length_U)]).astype(np.int64)
        with NpyWriter(folder / "offsets.npy", np.int64, offsets.shape) as writer:
            writer.write(offsets)
        fingerprint.add("lengths", length_U.astype("<i8"))
        self._fingerprint = fingerprint
        self._files = {
            "events": NpyWriter(folder / "events.npy", np.int32, (events,)),
            "times": NpyWriter(folder / "times.npy", np.int64, (events,)),
            "bounds": NpyWriter(folder / "bounds.npy", np.int32, (users, 5)),
        }
        if weights:
            self._files["weights"] = NpyWriter(folder / "weights.npy", np.float32, (events,))

    def write(self, **arrays: NDArray[Any] | None) -> None:
        """Append one block: ``events``, ``times``, ``bounds`` and, where the log has them, ``weights``."""
        for name, values in arrays.items():
            if values is not None:
                self._fingerprint.add(name, self._files[name].write(values))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        for writer in self._files.values():
            writer.__exit__(*error)


def write_array(path: Path, values: NDArray[Any]) -> None:
    """Write one whole array."""
    with NpyWriter(path, values.dtype, values.shape) as writer:
        writer.write(values)


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Write a Parquet table; polars' own input/output errors become :class:`~gemirec.errors.StorageError`."""
    try:
        with translate_os_errors(path), path.open("wb") as stream:
            table.write_parquet(stream)
    except pl.exceptions.PolarsError as error:
        raise StorageError(
            "a table could not be written", got=f"{path}: {error}", fix="free some disk space"
        ) from error
