"""The event log: what users did since the model was trained, on the disk before it is acknowledged.

One SQLite file in WAL mode with ``synchronous=FULL``: a commit returns when the operating system says that the log is
on the disk, so an acknowledged event survives a killed process and a lost current. SQLite rather than a file that is
only appended to, because three more things are wanted of it: the events of one user by an index, an id that is stored
once, and a reader that never sees half a call. Calls that wait at the same time share one commit
(:class:`EventWriter`), for a disk can do only so many of them a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gemirec.artifacts import check_format, translate_os_errors
from gemirec.errors import ArtifactError, StorageError
from gemirec.serving.http import HttpError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import polars as pl

    from gemirec.serving.wire import Event

FORMAT_VERSION = 1
_MAGIC = b"SQLite format 3\0"
NOT_IN_HISTORIES = "impression"
"""The kind of event that says an item was shown, not that the user did anything."""
MOST_RECENT = 5000
"""Most events of one user that are added to a stored history."""
_TABLES = f"""
CREATE TABLE event (
  number INTEGER PRIMARY KEY, event_id TEXT UNIQUE, user_id TEXT NOT NULL, item_id TEXT NOT NULL, event TEXT NOT NULL,
  timestamp INTEGER, received REAL NOT NULL
);
CREATE INDEX of_user ON event (user_id, number) WHERE event <> '{NOT_IN_HISTORIES}';
CREATE TABLE trained (version TEXT PRIMARY KEY, after INTEGER NOT NULL);
PRAGMA user_version = {FORMAT_VERSION};
"""
_INSERT = (
    "INSERT OR IGNORE INTO event (event_id, user_id, item_id, event, timestamp, received) VALUES (?, ?, ?, ?, ?, ?)"
)
_RECENT = f"""
SELECT item_id FROM event WHERE user_id = ? AND number > ? AND event <> '{NOT_IN_HISTORIES}'
ORDER BY number DESC LIMIT {MOST_RECENT}
"""

_TRAINED = """
SELECT coalesce((SELECT after FROM trained WHERE version = ?), (SELECT max(after) FROM trained), 0)
"""

_LATELY = f"""
SELECT DISTINCT user_id FROM (SELECT * FROM event ORDER BY number DESC LIMIT 100000)
WHERE event <> '{NOT_IN_HISTORIES}' AND received >= (SELECT received FROM event ORDER BY number DESC LIMIT 1) - ?
"""


class Stored(NamedTuple):
    """What became of one call's events.

    Attributes:
        stored: New ones.
        duplicates: Those whose id was there.
        last: Number of the last event in the log.
    """

    stored: int
    duplicates: int
    last: int


class EventLog:
    """The events of all users, in the order of their arrival.

    Args:
        path: The SQLite file; made where there is none.

    Raises:
        ArtifactError: The file is something else, or of another format version.
        StorageError: It cannot be opened.

    Example:
        >>> import tempfile
        >>> from gemirec.serving.wire import Event
        >>> log = EventLog(Path(tempfile.mkdtemp()) / "events.sqlite")
        >>> log.append([[Event(user_id="eve", item_id=7, event_id="a"), Event(user_id="eve", item_id=9)]])
        [Stored(stored=2, duplicates=0, last=2)]
        >>> log.append([[Event(user_id="eve", item_id=7, event_id="a")]])
        [Stored(stored=0, duplicates=1, last=2)]
        >>> log.recent(["eve", "bob"])
        [['7', '9'], []]
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with translate_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            begin = b""
            if self.path.exists():
                with self.path.open("rb") as file:
                    begin = file.read(len(_MAGIC))
        if begin and begin != _MAGIC:  # SQLite would take a short file of anything for an empty one
            raise _damaged(self.path, f"begins with {begin!r}")
        with self._errors():
            self._write, self._read = self._connect(), self._connect()
            self._prepare()
        self._writing, self._reading = threading.Lock(), threading.Lock()

    def append(self, calls: Sequence[Sequence[Event]]) -> list[Stored]:
        """Store the events of several calls in one commit; when this returns they are on the disk, otherwise none is.

        Raises:
            StorageError: The disk refuses.
        """
        now, out = time.time(), []
        with self._writing, self._errors(), self._write:
            for events in calls:
                rows = [(e.event_id, str(e.user_id), str(e.item_id), e.event, e.timestamp, now) for e in events]
                stored = self._write.executemany(_INSERT, rows).rowcount
                last = self._write.execute("SELECT coalesce(max(number), 0) FROM event").fetchone()[0]
                out.append(Stored(stored, len(rows) - stored, last))
        return out

    def recent(self, users: Sequence[str], after: int = 0) -> list[list[str]]:
        """Return the item ids of each user's events behind number ``after``, oldest first, impressions left out.

        Raises:
            StorageError: The disk refuses.
        """
        with self._reading, self._errors():
            found = [self._read.execute(_RECENT, (user, after)).fetchall() for user in users]
        return [[item for (item,) in reversed(rows)] for rows in found]

    def lately(self, seconds: float = 60.0) -> list[str]:
        """Return the users of the last events: those that arrived so long before the last one."""
        with self._reading, self._errors():
            rows = self._read.execute(_LATELY, (seconds,)).fetchall()
        return [user for (user,) in rows]

    def trained_on(self, version: str) -> int:
        """Return the number of the last event that a version of the model was trained on.

        A version of which nothing was noted is taken to know what any other knows.
        """
        with self._reading, self._errors():
            return int(self._read.execute(_TRAINED, (version,)).fetchone()[0])

    def set_trained_on(self, version: str, after: int) -> None:
        """Note that a version of the model was trained on all events up to number ``after``."""
        with self._writing, self._errors(), self._write:
            self._write.execute("INSERT OR REPLACE INTO trained VALUES (?, ?)", (version, after))

    def close(self) -> None:
        """Close the file; what is in it stays."""
        with self._writing, self._reading:
            self._write.close()
            self._read.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=10.0, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _prepare(self) -> None:
        """Make the tables of a new file, check the version of an old one."""
        self._write.execute("BEGIN IMMEDIATE")  # two servers that start at once
        tables = self._write.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not tables:
            for statement in filter(str.strip, _TABLES.split(";")):
                self._write.execute(statement)
        self._write.commit()
        found = self._write.execute("PRAGMA user_version").fetchone()[0]
        if found != FORMAT_VERSION:
            check_format("event log", found, self.path)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(
                "the event log could not be read or written",
                got=f"{self.path}: {error}",
                fix="free space on its disk, give the server the rights to it, or choose another file with --events",
            ) from error
        except sqlite3.DatabaseError as error:
            raise _damaged(self.path, error) from error


def _damaged(path: Path, why: object) -> ArtifactError:
    return ArtifactError(
        "the event log is damaged, or is no event log",
        got=f"{path}: {why}",
        fix="move the file away (sqlite3 FILE .recover saves what can be read), and start again",
    )


def read_events(path: str | Path) -> pl.DataFrame:
    """Return an event log as a table that ``gemirec prepare`` reads, in the order of arrival.

    Returns:
        ``number``, ``event_id``, ``user_id``, ``item_id``, ``event``, ``timestamp`` (the client's, else the seconds at
        which the event arrived) and ``received`` (seconds since 1970).

    Raises:
        ArtifactError: The file is missing or something else.
    """
    import polars as pl

    path = Path(path)
    if not path.is_file():
        raise ArtifactError("the event log is missing", got=path, fix="point at the file given with --events")
    log = EventLog(path)
    schema = {"number": pl.Int64, "event_id": pl.String, "user_id": pl.String, "item_id": pl.String}
    schema |= {"event": pl.String, "timestamp": pl.Int64, "received": pl.Float64}
    with log._reading, log._errors():
        rows = log._read.execute(f"SELECT {', '.join(schema)} FROM event ORDER BY number").fetchall()
    log.close()
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return table.with_columns(pl.col("timestamp").fill_null(pl.col("received").cast(pl.Int64)))


class EventWriter:
    """Group commit: calls that arrive while the disk works share the next commit.

    Args:
        log: Where to write.
        group: Most events of one commit.
        most_waiting: Most events that wait; further calls are refused with 429.
    """

    def __init__(self, log: EventLog, *, group: int = 1000, most_waiting: int = 10_000) -> None:
        self.log = log
        self._group = group
        self._most = most_waiting
        self._waiting: list[tuple[list[Event], asyncio.Future[Stored]]] = []
        self._count = 0
        self._thread = ThreadPoolExecutor(1, "gemirec-events")
        self._running: asyncio.Task[None] | None = None

    async def store(self, events: list[Event]) -> Stored:
        """Store a call's events; returns when they are on the disk.

        Raises:
            HttpError: Too many wait (429).
            StorageError: The disk refuses.
        """
        if self._count and self._count + len(events) > self._most:
            raise HttpError(
                429,
                "too many events wait to be written",
                got=f"{self._count} waiting, {len(events)} more",
                fix="send them again after the seconds in Retry-After; the same event_id is stored once",
                headers={"retry-after": "1"},
            )
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self._waiting.append((events, future))
        self._count += len(events)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._write())
        return await future

    async def stop(self) -> None:
        """Write what waits, then let the thread go."""
        if self._running is not None:
            await self._running
        self._thread.shutdown()

    async def _write(self) -> None:
        """Write until nothing waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            size, calls = 0, 0
            while calls < len(self._waiting) and (not calls or size + len(self._waiting[calls][0]) <= self._group):
                size += len(self._waiting[calls][0])
                calls += 1
            taken, self._waiting = self._waiting[:calls], self._waiting[calls:]
            try:
                stored = await loop.run_in_executor(self._thread, self.log.append, [events for events, _ in taken])
            except Exception as error:
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), result in zip(taken, stored, strict=True):
                    if not future.done():
                        future.set_result(result)
            finally:
                self._count -= size
