"""Stores on the disk of one machine: a folder that holds a cache in generations, and names the one that is served.

::

    ROOT/current.json          the generation that is served; replaced by a rename
    ROOT/marks.bin             since when users have new events, for all generations
    ROOT/generations/NAME/     info.json and the values

A generation is filled beside the others and named when it is whole: a process that is killed meanwhile, or a disk that
is full, leaves the one before. A reader keeps the generation that it opened, also when the next one is named.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec
import numpy as np

from gemirec.artifacts import atomic_dir, atomic_file, check_format, read_json, translate_os_errors, write_json
from gemirec.errors import ArtifactError, StorageError
from gemirec.retrieval.stores.base import Bulk, InterestStore, Raw, Shelf, StoreInfo, fill, new_generation
from gemirec.retrieval.stores.table import SlotTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gemirec.retrieval.stores.codec import Records
    from gemirec.retrieval.stores.keys import Keys

Engine = Literal["memory_map", "lmdb"]
MARK = np.dtype([("written", "<i8")])
_SPARE = 1.6
"""Slots per user that is filled in: 0.6 for users who come later. Look-ups grow long above 0.9 of the slots taken."""
_FEWEST = 4096
_FILL_AGAIN = "fill the cache again: gemirec.retrieval.stores.fill_store"


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``info.json``."""

    engine: Engine
    slots: int
    users: int
    store: StoreInfo


class DiskShelf(Shelf, Protocol):
    """A shelf on the disk."""

    def flush(self) -> None:
        """Have the bytes written to the disk."""


class MapShelf:
    """Values in a :class:`~gemirec.retrieval.stores.table.SlotTable`.

    Args:
        values: The records.
        marks: The marks.
    """

    def __init__(self, values: SlotTable, marks: SlotTable) -> None:
        self._values, self._marks = values, marks

    def read(self, keys: Keys) -> Raw:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        key_B = keys.key_B2[:, 0]
        return Raw(*self._values.read(key_B), self._marks.read(key_B)[0]["written"])

    def write(self, keys: Keys, record_B: Records) -> None:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        self._values.write(keys.key_B2[:, 0], record_B)

    def mark(self, keys: Keys, micros: int) -> None:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        write_marks(self._marks, keys, micros)

    def flush(self) -> None:
        """Have the bytes written to the disk."""
        self._values.flush()

    def close(self) -> None:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        self._values.close()
        self._marks.close()


def write_marks(marks: SlotTable, keys: Keys, micros: int) -> None:
    """Keep the time of a mark."""
    mark_B = np.full(len(keys.key_B2), micros, dtype=np.int64).view(MARK)
    marks.write(keys.key_B2[:, 0], mark_B)


def fill_store(
    root: str | Path,
    bulk: Bulk,
    *,
    engine: Engine = "memory_map",
    spare_users: int = 0,
    marks: str | Path | None = None,
    switch: bool = True,
) -> StoreInfo:
    """Fill a new generation beside the one that is served, then name it in one step.

    Args:
        root: The folder; made if it is not there.
        bulk: The users. Without blocks the store is empty, and is filled by those who ask.
        engine: What keeps the values.
        spare_users: Further users that shall have room, beside 0.6 times those of ``bulk``.
        marks: File of the marks, where several roots share one; ``None`` keeps it in ``root``.
        switch: Name it. Otherwise it waits for :func:`switch_store`.

    Returns:
        The facts of the new generation.

    Raises:
        StorageError: The disk is full or refuses, or the folder is being filled by another process.
        GemirecError: The users cannot be read. Either way the generation before stays.
    """
    root = Path(root)
    info = msgspec.structs.replace(bulk.info, generation=new_generation(bulk.info.version))
    slots = max(_FEWEST, int(_SPARE * bulk.users) + spare_users + spare_users // 4)
    with translate_os_errors(root):
        (root / "generations").mkdir(parents=True, exist_ok=True)
    with alone(root, "generations"):
        _make_marks(_marks_path(root, marks), max(_FEWEST * 4, slots // 4))
        with atomic_dir(root / "generations" / info.generation) as folder:
            shelf = _new_shelf(folder, engine, slots, info, _marks_path(root, marks))
            with contextlib.closing(shelf):
                users = fill(shelf, bulk)
                shelf.flush()
            stored = _Stored(engine=engine, slots=slots, users=users, store=info)
            write_json(folder / "info.json", msgspec.to_builtins(stored))
        if switch:
            _name(root, info.generation)
    return info


def switch_store(root: str | Path, generation: str) -> None:
    """Name the generation that is served from now on; readers keep what they opened.

    Raises:
        ArtifactError: There is no such generation.
    """
    root = Path(root)
    _read_stored(root, generation)
    with alone(root, "generations"):
        _name(root, generation)


def open_store(
    root: str | Path,
    *,
    generation: str | None = None,
    ttl: float | None = None,
    marks: str | Path | None = None,
    clock: Callable[[], int] | None = None,
) -> InterestStore:
    """Open a store for reading and writing, from any number of processes.

    Args:
        root: The folder.
        generation: Which one; ``None`` takes the one that is named now.
        ttl: See :class:`~gemirec.retrieval.stores.base.InterestStore`.
        marks: As in :func:`fill_store`.
        clock: Microseconds since 1970.

    Raises:
        ArtifactError: There is no store, or it is damaged, cut or of another format version.
        MissingExtraError: It is kept in LMDB, which is not installed.
    """
    root = Path(root)
    generation = generation or served_generation(root)
    stored = _read_stored(root, generation)
    path = _marks_path(root, marks)
    if not path.exists():
        with alone(root, "generations"):
            _make_marks(path, max(_FEWEST * 4, stored.slots // 4))
    folder = root / "generations" / generation
    shelf = _open_shelf(folder, stored.engine, stored.slots, stored.store, path)
    return InterestStore(shelf, stored.store, ttl=ttl, clock=clock)


def served_generation(root: str | Path) -> str:
    """Return the name of the generation that is served.

    Raises:
        ArtifactError: There is none, or the pointer is damaged.
    """
    path = Path(root) / "current.json"
    value = read_json(path)
    check_format("interest store", value.get("format_version") if isinstance(value, dict) else None, path)
    name = value.get("generation")
    if not isinstance(name, str) or Path(name).name != name:
        raise ArtifactError("the pointer of the interest store is damaged", got=f"{path}: {value}", fix=_FILL_AGAIN)
    return name


def _read_stored(root: Path, generation: str) -> _Stored:
    """Return what a generation says of itself."""
    path = root / "generations" / generation / "info.json"
    value = read_json(path)
    try:
        stored = msgspec.convert(value, _Stored)
    except msgspec.ValidationError as error:
        raise ArtifactError("the interest store is damaged", got=f"{path}: {error}", fix=_FILL_AGAIN) from error
    check_format("interest store", stored.store.format_version, path)
    return stored


def _new_shelf(folder: Path, engine: Engine, slots: int, info: StoreInfo, marks: Path) -> DiskShelf:
    if engine == "memory_map":
        SlotTable.create(folder / "values.bin", slots, info.codec().dtype)
    return _open_shelf(folder, engine, slots, info, marks, new=True)


def _open_shelf(
    folder: Path, engine: Engine, slots: int, info: StoreInfo, marks: Path, *, new: bool = False
) -> DiskShelf:
    if engine == "lmdb":
        from gemirec.retrieval.stores.lmdb_shelf import LmdbShelf

        return LmdbShelf(folder, info.codec(), _open_marks(marks), new=new)
    values = SlotTable(folder / "values.bin", slots, info.codec().dtype)
    return MapShelf(values, _open_marks(marks))


def _open_marks(path: Path) -> SlotTable:
    """Return the table of marks, of whatever size it was made."""
    size, width = path.stat().st_size, 8 + MARK.itemsize
    if size == 0 or size % width:
        fix = "remove it; who was marked is then forgotten, so fill the cache again from a log that holds all events"
        raise ArtifactError("the marks of the cache are cut", got=f"{path}: {size} bytes", fix=fix)
    return SlotTable(path, size // width, MARK)


def _marks_path(root: Path, marks: str | Path | None) -> Path:
    return root / "marks.bin" if marks is None else Path(marks)


def _make_marks(path: Path, slots: int) -> None:
    """Make an empty table of marks if there is none."""
    if not path.exists():
        with atomic_file(path) as tmp:
            SlotTable.create(tmp, slots, MARK)


def _name(root: Path, generation: str) -> None:
    """Point at a generation, and remove those before the one that was served until now."""
    with contextlib.suppress(ArtifactError):
        before = served_generation(root)
        for folder in (root / "generations").iterdir():
            if folder.name < min(before, generation):
                shutil.rmtree(folder, ignore_errors=True)
    write_json(root / "current.json", {"format_version": 1, "generation": generation})


@contextlib.contextmanager
def alone(folder: Path, parts: str) -> Iterator[None]:
    """Hold a folder against other processes that write to it, and remove what those left that were killed.

    Where the system has no such locks, do without.

    Args:
        folder: It is there.
        parts: Name of the folder in it whose hidden entries are such remains.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with translate_os_errors(folder), (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            fix = "wait until it has ended, or end it: what is served stays"
            raise StorageError("another process is filling this folder", got=folder, fix=fix) from error
        for remains in (folder / parts).glob(".*"):
            shutil.rmtree(remains, ignore_errors=True)
        yield
