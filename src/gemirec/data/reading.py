"""Reads a log batch by batch: row steps, checks, integer codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import narwhals as nw
import numpy as np
import polars as pl

from gemirec.data.coded import CodedLog
from gemirec.data.definition import drop_nulls, keep_events, keep_weights
from gemirec.data.encode import IdCoder, TimeCoder
from gemirec.data.splits import LABELS
from gemirec.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gemirec.data.options import PrepareConfig
    from gemirec.data.sources import Log

_SHOWN_EVENTS = 20


@dataclass
class ReadLog:
    """A log read into integer codes.

    Attributes:
        coded: The events.
        user_ids: ``[U]`` ids by user code.
        item_ids: ``[N]`` ids by item code.
        rows: Events after each row step, in order.
        time_unit: What one unit of time is.
    """

    coded: CodedLog
    user_ids: pl.Series
    item_ids: pl.Series
    rows: dict[str, int]
    time_unit: str


@dataclass
class _Reader:
    """State while reading."""

    log: Log
    config: PrepareConfig
    users: IdCoder = field(init=False)
    items: IdCoder = field(init=False)
    times: TimeCoder = field(init=False)
    coded: CodedLog = field(default_factory=CodedLog)
    rows: dict[str, int] = field(default_factory=lambda: {"read": 0})
    kinds: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        names, as_string = self.log.names, self.config.id_type == "string"
        self.users = IdCoder(names["user_id"], as_string=as_string)
        self.items = IdCoder(names["item_id"], as_string=as_string)
        self.times = TimeCoder(names.get("timestamp", ""), allow_negative=self.config.allow_negative_times)

    def add(self, batch: pl.DataFrame) -> None:
        """Take one batch of canonical columns."""
        first_row = self.rows["read"]
        if "timestamp" not in batch.columns:
            times = pl.int_range(first_row, first_row + batch.height, dtype=pl.Int64, eager=True)
            batch = batch.with_columns(times.alias("timestamp"))
        self.rows["read"] += batch.height
        batch = self._row_steps(self._without_nulls(batch, first_row))
        if not batch.height:
            return
        coded = self.coded
        coded.user.append(self.users.add(batch["user_id"]))
        coded.item.append(self.items.add(batch["item_id"]))
        coded.time.append(self.times.add(batch["timestamp"]))
        if "weight" in batch.columns and self.config.keep_weights:
            coded.weight.append(batch["weight"].to_numpy().astype(np.float32))
        if "split" in batch.columns:
            coded.label.append(_labels(batch["split"], self.log.names["split"]))

    def _without_nulls(self, batch: pl.DataFrame, first_row: int) -> pl.DataFrame:
        """Check the columns that must not be empty; drop or refuse."""
        needed = ["user_id", "item_id", "timestamp"]
        floats = [name for name in needed if batch[name].dtype.is_float()]
        if floats:
            batch = batch.with_columns(pl.col(name).fill_nan(None) for name in floats)
        texts = [name for name in needed[:2] if batch[name].dtype == pl.String]
        if texts:  # an empty text is a missing id
            batch = batch.with_columns(pl.col(n).replace("", None) for n in texts if (batch[n] == "").any())
        if not sum(batch[name].null_count() for name in needed):
            return batch
        if self.config.nulls == "drop":
            kept: pl.DataFrame = drop_nulls(nw.from_native(batch), needed).to_native()
            return kept
        name = next(name for name in needed if batch[name].null_count())
        row = int(batch[name].is_null().arg_max() or 0)
        raise DataError(
            f"the log has events without {self.log.names[name]!r}",
            got=f"{self.log.name}, row {first_row + row}: {batch.row(row, named=True)}",
            fix="mend the log, or set nulls=drop to leave such events out",
        )

    def _row_steps(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Apply the filters that look at one event only, and count what they leave."""
        config = self.config
        if config.nulls == "drop":
            self._count("with ids and time", batch.height)
        if config.events:
            if len(self.kinds) < _SHOWN_EVENTS:
                self.kinds.update(map(str, batch["event"].unique().to_list()))
            batch = keep_events(nw.from_native(batch), config.events).to_native()
            self._count("of the kept kinds", batch.height)
        if "weight" in batch.columns:
            batch = batch.with_columns(_weights(batch["weight"], self.log.names["weight"]))
            if config.min_weight is not None:
                batch = keep_weights(nw.from_native(batch), config.min_weight).to_native()
                self._count("of enough weight", batch.height)
        return batch

    def _count(self, step: str, events: int) -> None:
        self.rows[step] = self.rows.get(step, 0) + events

    def check_not_empty(self) -> None:
        """Raise if no event is left.

        Raises:
            DataError: The log is empty, or the row filters left nothing.
        """
        if not self.rows["read"]:
            raise DataError("the log is empty", got=f"{self.log.name} (0 rows)", fix="give a log with events")
        if not self.coded.user:
            kinds = f"; kinds of events met: {', '.join(sorted(self.kinds)[:_SHOWN_EVENTS])}" if self.kinds else ""
            raise DataError(
                "no event is left after the filters on single events",
                got=f"events after each step: {self.rows}{kinds}",
                fix="loosen events, min_weight or nulls",
            )


def read_log(log: Log, config: PrepareConfig, progress: Callable[[str, float], None]) -> ReadLog:
    """Read the whole log.

    Args:
        log: The opened log.
        config: Row filters and what to do about nulls.
        progress: Told ``("read", fraction)``; the fraction stays 0 where the number of rows is not known beforehand.

    Raises:
        DataError: The log is empty or holds something that cannot be used.
    """
    reader = _Reader(log, config)
    progress("read", 0.0)
    for batch in log.batches():
        reader.add(batch)
        if log.rows:
            progress("read", min(reader.rows["read"] / log.rows, 1.0))
    reader.check_not_empty()
    user_ids = reader.users.finish(reader.coded.user)
    item_ids = reader.items.finish(reader.coded.item)
    reader.times.finish(reader.coded.time)
    unit = reader.times.unit if log.time_ordered else "row of the log"
    progress("read", 1.0)
    return ReadLog(reader.coded, user_ids, item_ids, reader.rows, unit)


def _weights(values: pl.Series, column: str) -> pl.Series:
    """Return weights as float64.

    Raises:
        DataError: A weight that is missing, not a finite number, or negative.
    """
    numbers = values.cast(pl.Float64, strict=False)
    wrong = numbers.is_null() | ~numbers.is_finite() | (numbers < 0)
    if wrong.any():
        raise DataError(
            f"the weights of {column!r} must be finite numbers of at least 0",
            got=repr(values.filter(wrong)[0]),
            fix="mend the column, or set columns.weight=null to do without weights",
        )
    return numbers


def _labels(values: pl.Series, column: str) -> Any:
    """Return ``[E]`` int8 split labels.

    Raises:
        DataError: Something else than train, valid or test.
    """
    text = values.cast(pl.String).str.to_lowercase()
    label = text.replace_strict(LABELS, default=None, return_dtype=pl.Int8)
    if label.null_count():
        raise DataError(
            f"the split column {column!r} must say train, valid or test",
            got=repr(values.filter(label.is_null())[0]),
            fix="mend the column, or set columns.split=null to make a split here",
        )
    return label.to_numpy()
