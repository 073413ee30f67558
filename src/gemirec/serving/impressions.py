"""The impression log: which list each user was served, by which variant, beside the events.

One SQLite file next to the event log (another file, so that an event's commit never waits for an impression's). A
served list is put into a queue in microseconds and written with others a moment later, on a thread of its own: at most
:data:`FLUSH_S` of lists are lost when the process is killed, what is written stays. The queue is finite. Lists beyond
it, or that the disk refuses, are dropped, and how many is written as soon as anything can be: a report says so.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gemirec.artifacts import check_format, translate_os_errors
from gemirec.errors import ArtifactError, GemirecError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import polars as pl

    from gemirec.serving.metrics import Metrics
    from gemirec.serving.split import Split, Variant
    from gemirec.serving.wire import RecommendAnswer

FORMAT_VERSION = 1
FLUSH_S = 0.2
"""Seconds between two commits."""
MOST_WAITING = 20_000
"""Most lists that wait: some 2 KB each with 200 items."""
READ_ROWS = 10_000
"""Lists read at once."""
_TABLES = f"""
CREATE TABLE split (number INTEGER PRIMARY KEY, share REAL NOT NULL, salt TEXT NOT NULL, UNIQUE (share, salt));
CREATE TABLE impression (
  number INTEGER PRIMARY KEY, split INTEGER NOT NULL, user_id TEXT NOT NULL, variant TEXT NOT NULL,
  version TEXT NOT NULL, source TEXT NOT NULL, shown REAL NOT NULL, items TEXT NOT NULL
);
CREATE TABLE lost (split INTEGER NOT NULL, variant TEXT NOT NULL, lists INTEGER NOT NULL, at REAL NOT NULL);
PRAGMA user_version = {FORMAT_VERSION};
"""
_INSERT = "INSERT INTO impression (split, user_id, variant, version, source, shown, items) VALUES (?, ?, ?, ?, ?, ?, ?)"
_encode = msgspec.json.Encoder().encode
logger = logging.getLogger("gemirec.serving")


def impressions_path(events: Path) -> Path:
    """Return the file of the impressions beside an event log.

    Example:
        >>> impressions_path(Path("run/events.sqlite")).as_posix()
        'run/events.impressions.sqlite'
    """
    return events.with_suffix(".impressions.sqlite")


class Row(NamedTuple):
    """A served list, in the order of the table's columns."""

    user_id: str
    variant: str
    version: str
    source: str
    shown: float
    items: bytes


class ImpressionLog:
    """The file of the impressions.

    Args:
        path: The SQLite file; made where there is none.

    Raises:
        ArtifactError: The file is something else, or of another format version.
        StorageError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._db = sqlite3.connect(path, timeout=10.0, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("BEGIN IMMEDIATE")  # two servers that start at once
            if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in filter(str.strip, _TABLES.split(";")):
                    self._db.execute(statement)
            self._db.commit()
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found != FORMAT_VERSION:
            check_format("impression log", found, path)

    def split(self, split: Split) -> int:
        """Return the number of a split in this log; users dealt by another share or salt are another experiment."""
        key = (split.share, split.salt)
        with self._errors(), self._db:
            self._db.execute("INSERT OR IGNORE INTO split (share, salt) VALUES (?, ?)", key)
            return int(self._db.execute("SELECT number FROM split WHERE share = ? AND salt = ?", key).fetchone()[0])

    def append(self, split: int, rows: Sequence[Row], lost: Counter[str]) -> None:
        """Write lists in one commit, and how many were lost before them.

        Raises:
            StorageError: The disk refuses; nothing is written.
        """
        gone = [(split, variant, lists, time.time()) for variant, lists in lost.items()]
        with self._errors(), self._db:
            self._db.executemany(_INSERT, ((split, *row[:-1], row.items.decode()) for row in rows))
            self._db.executemany("INSERT INTO lost VALUES (?, ?, ?, ?)", gone)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            fix = "free space on its disk, give the server the rights to it, or choose another place with --events"
            raise StorageError(
                "the impression log could not be read or written", got=f"{self.path}: {error}", fix=fix
            ) from error
        except sqlite3.DatabaseError as error:
            fix = "move the file away; a new one is begun"
            raise ArtifactError(
                "the impression log is damaged, or is none", got=f"{self.path}: {error}", fix=fix
            ) from error


class ImpressionWriter:
    """Takes served lists without delay and writes them a moment later.

    Args:
        log: Where to write.
        split: The experiment they belong to.
        metrics: What is counted.
        most_waiting: Most lists that wait.
    """

    def __init__(self, log: ImpressionLog, split: Split, metrics: Metrics, *, most_waiting: int = MOST_WAITING) -> None:
        self.log = log
        self._split = log.split(split)
        self._metrics = metrics
        self._most = most_waiting
        self._waiting: list[Row] = []
        self._lost: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._some, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write, name="gemirec-impressions", daemon=True)
        self._thread.start()

    def add(self, variant: Variant, answer: RecommendAnswer) -> None:
        """Take a served list; it is dropped, and counted, if too many wait."""
        items = _encode([str(item.item_id) for item in answer.items])
        row = Row(str(answer.user_id), variant, answer.version, answer.source, time.time(), items)
        with self._lock:
            if len(self._waiting) < self._most:
                self._waiting.append(row)
            else:
                self._drop([row])
        self._some.set()

    def stop(self) -> None:
        """Write what waits, and close the file."""
        self._stopping.set()
        self._some.set()
        self._thread.join()
        self.log.close()

    def _drop(self, rows: Sequence[Row]) -> None:
        self._lost.update(row.variant for row in rows)
        self._metrics.impressions("dropped", len(rows))

    def _write(self) -> None:
        """Write until told to stop."""
        while True:
            self._some.wait()
            last = self._stopping.wait(FLUSH_S)
            self._some.clear()
            with self._lock:
                rows, self._waiting = self._waiting, []
                lost, self._lost = self._lost, Counter()
            if rows or lost:
                self._append(rows, lost)
            if last:
                return

    def _append(self, rows: list[Row], lost: Counter[str]) -> None:
        """Write what was taken; what the disk refuses is dropped."""
        try:
            self.log.append(self._split, rows, lost)
        except GemirecError as error:
            logger.warning("impressions: %s", error)
            with self._lock:
                self._lost.update(lost)
                self._drop(rows)
        else:
            self._metrics.impressions("stored", len(rows))


class Impressions(NamedTuple):
    """What a report reads of an impression log.

    Attributes:
        lists: ``number, user_id, variant, version, source, shown`` (seconds since 1970) and ``items`` (ids as text).
        share: Share of the users that variant B was to have.
        salt: Name of the experiment.
        lost: Lists that were served and not logged.
    """

    lists: pl.DataFrame
    share: float
    salt: str
    lost: int


def read_impressions(events: str | Path, *, salt: str | None = None, top: int | None = None) -> Impressions:
    """Read the impressions beside an event log.

    Args:
        events: The event log.
        salt: Which experiment; ``None`` takes the one that was served last.
        top: Keep only so many items of each list: as many as users were shown.

    Raises:
        ArtifactError: There is no impression log, or no such experiment in it.
    """
    import polars as pl

    path = impressions_path(Path(events))
    if not path.is_file():
        fix = "serve two artifacts (gemirec serve A --split B), and give the event log of that server"
        raise ArtifactError("there are no impressions beside this event log", got=path, fix=fix)
    log = ImpressionLog(path)
    with log._errors(), contextlib.closing(log._db) as db:
        chosen = _chosen(db, salt)
        if chosen is None:
            known = ", ".join(name for (name,) in db.execute("SELECT DISTINCT salt FROM split"))
            fix = f"choose one of: {known}" if known else "serve users first"
            raise ArtifactError("the log has no impression of this experiment", got=f"{path}, salt {salt}", fix=fix)
        number, share, name = chosen
        lost = db.execute("SELECT coalesce(sum(lists), 0) FROM lost WHERE split = ?", (number,)).fetchone()[0]
        columns = ("number", "user_id", "variant", "version", "source", "shown")
        cursor = db.execute(f"SELECT {', '.join(columns)}, items FROM impression WHERE split = ?", (number,))
        blocks = []
        while rows := cursor.fetchmany(READ_ROWS):
            block = pl.DataFrame(rows, schema=[*columns, "items"], orient="row")
            items = pl.col("items").str.json_decode(pl.List(pl.String))
            blocks.append(block.with_columns(items if top is None else items.list.head(top)))
    return Impressions(pl.concat(blocks), share, name, lost)


def _chosen(db: sqlite3.Connection, salt: str | None) -> tuple[Any, ...] | None:
    """Return number, share and salt of the experiment that was served last, of those with this salt."""
    found: tuple[Any, ...] | None = db.execute(
        "SELECT split.number, share, salt FROM impression JOIN split ON impression.split = split.number "
        "WHERE coalesce(?, salt) = salt ORDER BY impression.number DESC LIMIT 1",
        (salt,),
    ).fetchone()
    return found
