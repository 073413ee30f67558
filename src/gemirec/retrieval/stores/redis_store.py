"""A store in Redis, for many machines.

::

    PREFIX:current            JSON of the generation that is served
    PREFIX:generations        set of all generations, also of those whose filling was killed
    PREFIX:GENERATION:KEY     a record, with the store's ttl
    PREFIX:mark:KEY           microseconds of a user's last mark, for all generations

While Redis is away requests do not wait for it: after a failure the store says at once that it is not available, until
it tries again, after .1 s at first and twice as long each time, at most 5 s.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gemirec.artifacts import check_format
from gemirec.errors import ArtifactError, MissingExtraError
from gemirec.retrieval.stores.base import (
    Bulk,
    InterestStore,
    Raw,
    StoreInfo,
    StoreUnavailableError,
    fill,
    new_generation,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gemirec.retrieval.stores.codec import Records
    from gemirec.retrieval.stores.keys import Keys

TIMEOUT = 0.05
"""Seconds after which a connection or an answer is given up."""
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
_MARK_SECONDS = 30 * 86_400
"""Marks are kept so long if values are kept for ever."""


class Connection:
    """A connection that fails fast and, after a failure, does not try at once again.

    Args:
        url: ``redis://host:port/db``, ``rediss://`` for TLS, or ``unix://path``.
        timeout: Seconds.
        monotonic: Clock in seconds, for the waits.

    Raises:
        MissingExtraError: redis is not installed.
    """

    def __init__(self, url: str, *, timeout: float = TIMEOUT, monotonic: Callable[[], float] = time.monotonic) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise MissingExtraError("redis", "redis") from None
        # One fresh connection at once where the old one was cut; no more.
        limits = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 1)}
        self.client = redis.Redis.from_url(url, **limits)
        self._errors = (redis.RedisError, OSError)
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._wait, self._not_before = 0.0, -float("inf")

    @contextlib.contextmanager
    def ask(self) -> Iterator[Any]:
        """Yield the client for one exchange.

        Raises:
            StoreUnavailableError: It failed, or failed so lately that it is not tried.
        """
        if self._monotonic() < self._not_before:
            raise StoreUnavailableError("Redis was away a moment ago", got="not tried again yet", fix=_FIX)
        try:
            yield self.client
        except self._errors as error:
            with self._lock:
                self._wait = min(max(2 * self._wait, _FIRST_WAIT), _LONGEST_WAIT)
                self._not_before = self._monotonic() + self._wait
            raise StoreUnavailableError("Redis does not answer", got=error, fix=_FIX) from error
        self._wait = 0.0

    def close(self) -> None:
        """Let go of the connections."""
        self.client.close()


_FIX = "start Redis, or correct its url; until then interests are worked out on the spot"


class RedisShelf:
    """Values under the keys of one generation.

    Args:
        connection: To Redis.
        prefix: Of all keys.
        info: With the name of the generation.
        ttl: Seconds that Redis keeps a value; ``None`` for ever.
    """

    def __init__(self, connection: Connection, prefix: str, info: StoreInfo, ttl: float | None) -> None:
        self._connection, self._codec, self._ttl = connection, info.codec(), ttl
        self._value, self._mark = f"{prefix}:{info.generation}:".encode(), f"{prefix}:mark:".encode()

    def read(self, keys: Keys) -> Raw:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        names = keys.texts()
        asked = [self._value + name for name in names] + [self._mark + name for name in names]
        with self._connection.ask() as client:
            values = client.mget(asked) if asked else []
        record_B, present_B = self._codec.from_bytes(values[: len(names)])
        mark_B = np.array([_number(value) for value in values[len(names) :]], dtype=np.int64)
        return Raw(record_B, present_B, mark_B)

    def write(self, keys: Keys, record_B: Records) -> None:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        names = (self._value + name for name in keys.texts())
        pairs = dict(zip(names, (record.tobytes() for record in record_B), strict=True))
        self._set(pairs, self._ttl)

    def mark(self, keys: Keys, micros: int) -> None:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        value = str(micros).encode()
        self._set({self._mark + name: value for name in keys.texts()}, self._ttl or _MARK_SECONDS)

    def _set(self, pairs: dict[bytes, bytes], ttl: float | None) -> None:
        with self._connection.ask() as client:
            if ttl is None:
                client.mset(pairs)
                return
            pipe, millis = client.pipeline(transaction=False), max(1, round(1000 * ttl))
            for name, value in pairs.items():
                pipe.set(name, value, px=millis)
            pipe.execute()

    def close(self) -> None:
        """See :class:`~gemirec.retrieval.stores.base.Shelf`."""
        self._connection.close()


def fill_redis(
    url: str,
    bulk: Bulk,
    *,
    prefix: str = "gemirec",
    ttl: float | None = None,
    timeout: float = 10.0,
    switch: bool = True,
    keep: Iterable[str] = (),
) -> StoreInfo:
    """Fill a new generation beside the one that is served, then name it in one step.

    Generations before the one that was served until now are removed, and those whose filling was killed.

    Args:
        url: As in :class:`Connection`.
        bulk: The users.
        prefix: Of all keys.
        ttl: Seconds that Redis keeps a value; ``None`` for ever.
        timeout: Seconds for one block.
        switch: Name it.
        keep: Names of further generations that are in use.

    Returns:
        The facts of the new generation.

    Raises:
        StoreUnavailableError: Redis does not answer, or its memory is full. The generation before stays.
    """
    info = msgspec.structs.replace(bulk.info, generation=new_generation(bulk.info.version))
    connection = Connection(url, timeout=timeout)
    with contextlib.closing(RedisShelf(connection, prefix, info, ttl)) as shelf:
        with connection.ask() as client:
            current = client.get(f"{prefix}:current")
            before = _read_info(current, prefix).generation if current is not None else ""
            _remove(client, prefix, keep={before, *keep})
            client.sadd(f"{prefix}:generations", info.generation)
        fill(shelf, bulk)
        if switch:
            with connection.ask() as client:
                client.set(f"{prefix}:current", msgspec.json.encode(info))
    return info


def open_redis(
    url: str,
    *,
    info: StoreInfo | None = None,
    prefix: str = "gemirec",
    ttl: float | None = None,
    timeout: float = TIMEOUT,
    clock: Callable[[], int] | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> InterestStore:
    """Open a store in Redis.

    Args:
        url: As in :class:`Connection`.
        info: What is expected, with the name of its generation; Redis need not answer now. ``None`` asks which
            generation is served.
        prefix: Of all keys.
        ttl: See :class:`~gemirec.retrieval.stores.base.InterestStore`; Redis forgets values, too.
        timeout: Seconds after which an answer is given up: a request waits no longer.
        clock: Microseconds since 1970.
        monotonic: Clock in seconds, for the waits after a failure.

    Raises:
        ArtifactError: There is no store under the prefix, or it is damaged.
        StoreUnavailableError: Without ``info``: Redis does not answer.
        MissingExtraError: redis is not installed.
    """
    connection = Connection(url, timeout=timeout, monotonic=monotonic)
    if info is None:
        with connection.ask() as client:
            value = client.get(f"{prefix}:current")
        if value is None:
            fix = "fill one: gemirec.retrieval.stores.redis_store.fill_redis"
            raise ArtifactError("Redis holds no interest store", got=f"prefix {prefix}", fix=fix)
        info = _read_info(value, prefix)
    return InterestStore(RedisShelf(connection, prefix, info, ttl), info, ttl=ttl, clock=clock)


def _read_info(value: bytes, prefix: str) -> StoreInfo:
    try:
        info = msgspec.json.decode(value, type=StoreInfo)
    except msgspec.MsgspecError as error:
        raise ArtifactError("the interest store is damaged", got=f"{prefix}: {error}", fix="fill it again") from error
    check_format("interest store", info.format_version, f"{prefix}:current")
    return info


def _remove(client: Any, prefix: str, keep: set[str]) -> None:
    """Remove all generations but some."""
    for name in client.smembers(f"{prefix}:generations"):
        if name.decode() not in keep:
            found = client.scan_iter(match=f"{prefix}:{name.decode()}:*", count=10_000)
            while part := [key for _, key in zip(range(10_000), found, strict=False)]:
                client.unlink(*part)
            client.srem(f"{prefix}:generations", name)


def _number(value: bytes | None) -> int:
    """Return the time of a mark, 0 where it is missing or damaged."""
    return int(value) if value is not None and value.isdigit() and len(value) < 19 else 0
