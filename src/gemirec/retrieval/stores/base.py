"""What every store of cached interests does, whatever keeps the bytes.

:class:`InterestStore` is the meaning: which users are found, whose interests are out of date, what is damaged. A
:class:`Shelf` keeps bytes: a memory map, LMDB, Redis, or a dictionary in memory.

A record is never changed in place to say that it is out of date. :meth:`InterestStore.mark_stale` notes the time, apart
from the record and from its version; a record is stale if its history was read no later than that. So a value that
was being worked out while an event arrived is stale as soon as it is written, and a version that was filled from an
older log knows of the events since.

Axes: B users.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import numpy as np
import polars as pl

from gemirec.artifacts import FORMAT_VERSION
from gemirec.errors import ConfigError, StorageError
from gemirec.retrieval.stores.codec import Codec, Layout, Records
from gemirec.retrieval.stores.keys import Keys, user_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Ids = Sequence[object] | pl.Series
Block = tuple[Ids, Records]
"""Ids of some users and their unsealed records."""


class StoreUnavailableError(StorageError):
    """The store cannot be reached at the moment. A caller goes on as if no user was in it."""


class StoreInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Which release the values of a store belong to, and how they are laid out.

    Attributes:
        version: :func:`~gemirec.retrieval.versions.model_version` of the model.
        layout: Of a record.
        dictionary_version: With ``indices``: :func:`~gemirec.retrieval.versions.dictionary_version`.
        epsilon: With ``indices``: most uses of one code of one level; ``None`` for no limit.
        model: Name, for readers.
        generation: Which filling of the store; set when it is made.
        format_version: Of the store.
    """

    version: str
    layout: Layout
    dictionary_version: str | None = None
    epsilon: int | None = None
    model: str = ""
    generation: str = ""
    format_version: int = FORMAT_VERSION

    def codec(self) -> Codec:
        """Return the codec of this version's records."""
        return Codec(self.layout, self.version)


class Bulk(NamedTuple):
    """What fills a store.

    Attributes:
        info: The version.
        users: How many there are, at least about.
        blocks: They, block by block.
    """

    info: StoreInfo
    users: int
    blocks: Iterable[Block]


class Raw(NamedTuple):
    """What a shelf has of some users.

    Attributes:
        record_B: ``[B]`` records, of whatever bytes there are.
        present_B: ``[B]`` bool, whether there are any.
        mark_B: ``[B]`` int64 microseconds of the last mark, 0 for none.
    """

    record_B: Records
    present_B: NDArray[np.bool_]
    mark_B: NDArray[np.int64]


class Shelf(Protocol):
    """Keeps the bytes of one version.

    May be used from several threads. A write is seen by all later reads of the same shelf; what a reader gets during
    one may be damaged, which the check finds.
    """

    def read(self, keys: Keys) -> Raw:
        """Return what there is."""

    def write(self, keys: Keys, record_B: Records) -> None:
        """Keep records, in place of earlier ones of the same users; of a user given twice the last one counts."""

    def mark(self, keys: Keys, micros: int) -> None:
        """Keep the time of a mark, for all versions."""

    def close(self) -> None:
        """Let go of files and connections."""


class Found(NamedTuple):
    """What a store knows of some users.

    Attributes:
        record_B: ``[B]`` records, zero where nothing is found.
        found_B: ``[B]`` bool: there, whole, of this version and no older than the store's ttl.
        stale_B: ``[B]`` bool: found, and marked since its history was read.
    """

    record_B: Records
    found_B: NDArray[np.bool_]
    stale_B: NDArray[np.bool_]


class InterestStore:
    """Cached interests of one version.

    Args:
        shelf: Where the bytes are.
        info: Whose they are.
        ttl: Seconds after which a value counts as missing, from the time its history was read; ``None`` for never.
        clock: Microseconds since 1970.

    Attributes:
        info: As given.
        ttl: As given.
        codec: Of its records.
        corrupt: Values met so far that did not pass their check, and were taken as missing.

    Raises:
        ConfigError: ttl is not above 0.

    Example:
        >>> import torch
        >>> from gemirec.components.selection import Selected
        >>> from gemirec.retrieval.stores.memory import memory_store
        >>> store = memory_store(StoreInfo(version="m", layout=Layout(kind="indices", k=1, entries=9)))
        >>> chosen = Selected(torch.tensor([[3], [4]]), torch.tensor([[-0.1], [-0.2]]))
        >>> store.set_many(["eve", 12], store.codec.pack_indices(chosen, written=store.now()))
        >>> store.mark_stale(["eve"])
        >>> found = store.get_many(["12", "bob", "eve"])
        >>> found.found_B.tolist(), found.stale_B.tolist(), found.record_B["index"][:, 0].tolist()
        ([True, False, True], [False, False, True], [4, 0, 3])
    """

    def __init__(
        self, shelf: Shelf, info: StoreInfo, *, ttl: float | None = None, clock: Callable[[], int] | None = None
    ) -> None:
        if ttl is not None and not ttl > 0:
            raise ConfigError("the ttl of a store must be above 0", got=ttl, fix="give seconds, or None for no limit")
        self.info = info
        self.ttl = ttl
        self.codec = info.codec()
        self.corrupt = 0
        self._shelf = shelf
        self._clock = clock or wall_micros
        self._lock = threading.Lock()

    @property
    def version(self) -> str:
        """Version of the model whose values these are."""
        return self.info.version

    def now(self) -> int:
        """Return the time in microseconds since 1970."""
        return self._clock()

    def get_many(self, user_ids: Ids) -> Found:
        """Return what is known of users, in their order; an id of ``None`` is nobody's.

        Raises:
            StoreUnavailableError: The store cannot be reached.
        """
        keys = user_keys(user_ids)
        raw = self._shelf.read(keys)
        record_B, mark_B = raw.record_B, raw.mark_B
        whole_B = self.codec.intact(record_B, keys.key_B2)
        broken_R = np.flatnonzero(raw.present_B & keys.known_B & ~whole_B)
        if len(broken_R):  # perhaps it was being written: look again
            part = keys.take(broken_R)
            record_B[broken_R], _, mark_B[broken_R] = self._shelf.read(part)
            whole_B[broken_R] = self.codec.intact(record_B[broken_R], part.key_B2)
            with self._lock:
                self.corrupt += int((~whole_B[broken_R]).sum())
        found_B = whole_B & keys.known_B
        if self.ttl is not None:
            found_B &= record_B["written"] > self.now() - round(1e6 * self.ttl)
        record_B[~found_B] = 0
        return Found(record_B, found_B, found_B & (mark_B >= record_B["written"]))

    def set_many(self, user_ids: Ids, record_B: Records) -> None:
        """Keep records, which are sealed here; those without an id are left out.

        Raises:
            StoreUnavailableError: The store cannot be reached.
            StorageError: It cannot be written: the disk is full.
        """
        keys = user_keys(user_ids)
        if not keys.known_B.all():
            keys, record_B = keys.take(keys.known_B), record_B[keys.known_B]
        if len(record_B):
            self.codec.seal(record_B, keys.key_B2)
            self._shelf.write(keys, record_B)

    def mark_stale(self, user_ids: Ids) -> None:
        """Say that users have new events: what was worked out from a history read up to now is stale.

        Raises:
            StoreUnavailableError: The store cannot be reached.
            StorageError: It cannot be written.
        """
        keys = user_keys(user_ids)
        if keys.known_B.any():
            self._shelf.mark(keys.take(keys.known_B), self.now())

    def close(self) -> None:
        """Let go of files and connections. Nothing is asked afterwards."""
        self._shelf.close()


def wall_micros() -> int:
    """Return the time in microseconds since 1970."""
    return time.time_ns() // 1000


def new_generation(version: str) -> str:
    """Return a name for a filling of a store; later ones sort behind earlier ones."""
    return f"{wall_micros():015x}-{version[:12]}"


def fill(shelf: Shelf, bulk: Bulk) -> int:
    """Write all users of a bulk; returns their number."""
    codec, users = bulk.info.codec(), 0
    for ids, record_B in bulk.blocks:
        keys = user_keys(ids)
        codec.seal(record_B, keys.key_B2)
        shelf.write(keys, record_B)
        users += len(record_B)
    return users
