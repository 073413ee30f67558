"""From ids and timestamps of any type to flat integer arrays, batch by batch.

Axes: E events of one batch, U distinct ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from gemirec.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

IdKind = Literal["integer", "string"]
_TABLE_LIMIT = 1 << 22


def id_kind(dtype: pl.DataType, column: str) -> IdKind:
    """Return how ids of ``dtype`` are coded; whole floats (pandas integers with gaps) count as integers.

    Raises:
        DataError: A type that cannot be an id.
    """
    if dtype.is_integer() or dtype.is_float() or dtype.is_decimal():
        return "integer"
    if isinstance(dtype, (pl.String, pl.Categorical, pl.Enum)):
        return "string"
    raise DataError(
        f"the ids of {column!r} are neither integers nor strings",
        got=f"a column of type {dtype}",
        fix="turn the column into integers or strings",
    )


class IdCoder:
    """Gives every distinct id of a column a code, in one pass over batches.

    Strings are coded at once by polars' categories: one hash per event. Integers are kept as they are until
    :meth:`finish`, which codes them with one table look-up where they are dense, by binary search otherwise.

    Args:
        column: Name for errors.
        as_string: Read integers as text too.
    """

    def __init__(self, column: str, *, as_string: bool = False) -> None:
        self.column = column
        self.kind: IdKind | None = "string" if as_string else None
        self._as_string = as_string
        self._dtype = pl.Categorical(pl.Categories.random())
        self._keep_alive = pl.Series([], dtype=self._dtype)
        self._low, self._high = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        self.events = 0
        self._distinct = 0

    def add(self, ids: pl.Series) -> NDArray[Any]:
        """Return ``[E]`` preliminary codes of a batch without nulls; keep them for :meth:`finish`.

        Raises:
            DataError: Integers in one batch and strings in another, or a fraction as an id.
        """
        kind = id_kind(ids.dtype, self.column)
        if self.kind is None:
            self.kind = kind
        elif kind != self.kind and not self._as_string:
            raise DataError(
                f"the ids of {self.column!r} are of mixed types",
                got=f"first {self.kind}s, then {kind}s (row {self.events}: {ids[0]!r})",
                fix="write them all in one type, or prepare with id_type=string",
            )
        self.events += len(ids)
        if kind == "integer":
            ids = self._whole(ids)
        if self.kind == "integer":
            return self._narrow(ids)
        codes = ids.cast(pl.String).cast(self._dtype).to_physical().to_numpy().astype(np.int32)
        self._distinct = max(self._distinct, int(codes.max(initial=-1)) + 1)
        return codes

    def _whole(self, ids: pl.Series) -> pl.Series:
        """Return ids as int64."""
        whole = ids.cast(pl.Int64, strict=False)
        wrong = whole.is_null()
        if not ids.dtype.is_integer():  # beyond 2^53 floats stand for several integers each
            wrong |= (whole.cast(ids.dtype) != ids) | (whole.abs() > 2**53)
        if wrong.any():
            raise DataError(
                f"the ids of {self.column!r} must be integers or strings",
                got=f"{ids.filter(wrong)[0]!r} in a column of type {ids.dtype}",
                fix="turn the column into integers of at most 64 bits, or strings",
            )
        return whole

    def _narrow(self, ids: pl.Series) -> NDArray[Any]:
        """Return int64 ids in 32 bits where they fit, and remember their range."""
        values = ids.to_numpy()
        if len(values):
            low, high = int(values.min()), int(values.max())
            self._low, self._high = min(self._low, low), max(self._high, high)
            if low >= -(2**31) and high < 2**31:
                return values.astype(np.int32)
        return values.copy()

    def finish(self, batches: list[NDArray[Any]]) -> pl.Series:
        """Turn preliminary codes into ``int32`` codes ``0..U-1``, in place in the list; return ``[U]`` ids by code."""
        if self.kind != "integer":
            return self._texts()
        if self._high < self._low:
            return pl.Series([], dtype=pl.Int64)
        span = self._high - self._low + 1
        if span <= max(_TABLE_LIMIT, 4 * self.events):
            ids = self._finish_dense(batches, span)
        else:
            ids = self._finish_sparse(batches)
        return pl.Series(ids)

    def _texts(self) -> pl.Series:
        """Return the strings in the order of their codes."""
        codes = pl.Series("id", np.arange(self._distinct, dtype=np.uint32)).to_frame()
        return codes.select(pl.col("id").cat.to(self._dtype).cast(pl.String)).to_series()

    def _finish_dense(self, batches: list[NDArray[Any]], span: int) -> NDArray[np.int64]:
        present = np.zeros(span, dtype=bool)
        for values in batches:
            present[self._from_low(values)] = True
        ids = np.flatnonzero(present)
        table = np.cumsum(present, dtype=np.int32)
        table -= 1
        for number, values in enumerate(batches):
            batches[number] = table[self._from_low(values)]
        return ids + self._low

    def _from_low(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values counted from the smallest one; 64 bits, because the difference may not fit in 32."""
        return values.astype(np.int64) - self._low if self._low else values

    def _finish_sparse(self, batches: list[NDArray[Any]]) -> NDArray[np.int64]:
        known, fresh, waiting = np.empty(0, dtype=np.int64), [], 0
        for values in batches:
            fresh.append(_sorted_distinct(values.astype(np.int64)))
            waiting += len(fresh[-1])
            if waiting > len(known) + _TABLE_LIMIT:  # merging seldom keeps the total work linear
                known, fresh, waiting = _sorted_distinct(np.concatenate([known, *fresh])), [], 0
        known = _sorted_distinct(np.concatenate([known, *fresh]))
        for number, values in enumerate(batches):
            batches[number] = np.searchsorted(known, values).astype(np.int32)
        return known


def _sorted_distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the distinct values, ascending; ``values`` is sorted in place. ``np.unique`` hashes: ten times slower."""
    values.sort()
    first = np.ones(len(values), dtype=bool)
    first[1:] = values[1:] != values[:-1]
    return values[first]


class TimeCoder:
    """Turns timestamps of any type into int64, batch by batch.

    Whole numbers stay as they are. Dates become microseconds since 1970. Fractions (seconds as floats) make every time
    of the log a number of millionths of the log's unit: rounding them would lose the order.

    Args:
        column: Name for errors.
        allow_negative: Accept times below 0.
    """

    def __init__(self, column: str, *, allow_negative: bool = False) -> None:
        self.column = column
        self._allow_negative = allow_negative
        self._fraction = False
        self._date: bool | None = None

    def add(self, times: pl.Series) -> NDArray[Any]:
        """Return ``[E]`` int64 or float64 times of a batch without nulls.

        Raises:
            DataError: Not a number or date, not finite, below 0, or numbers and dates in one log.
        """
        if isinstance(times.dtype, (pl.String, pl.Categorical, pl.Enum)):
            times = self._parse(times.cast(pl.String))
        dtype = times.dtype
        is_date = isinstance(dtype, (pl.Datetime, pl.Date))
        if is_date:
            values: NDArray[Any] = times.cast(pl.Datetime("us")).to_physical().to_numpy().copy()
        elif dtype.is_integer() or dtype.is_decimal() or dtype.is_float():
            values = self._numbers(times)
        else:
            raise self._wrong(f"a column of type {dtype}")
        if self._date is not None and self._date != is_date:
            raise self._wrong("numbers in some files, dates in others")
        self._date = is_date
        if len(values) and not self._allow_negative and values.min() < 0:
            raise DataError(
                f"a timestamp in {self.column!r} is negative",
                got=f"{values.min()}",
                fix="mend or drop these events; if they really lie before 1970, set allow_negative_times=true",
            )
        return values

    def _numbers(self, times: pl.Series) -> NDArray[Any]:
        if times.dtype.is_integer():
            whole = times.cast(pl.Int64, strict=False)
            if whole.null_count():
                raise self._wrong(f"{times.filter(whole.is_null())[0]}, beyond 64 bits")
            return whole.to_numpy().copy()
        values = times.cast(pl.Float64).to_numpy()
        finite = np.isfinite(values) & (np.abs(values) < 2**63)
        if not finite.all():
            raise self._wrong(f"{values[~finite][0]}")
        self._fraction |= bool((values != np.floor(values)).any())
        return values.copy()

    def _parse(self, text: pl.Series) -> pl.Series:
        """Read texts as numbers, or else as ISO dates."""
        for dtype in (pl.Int64, pl.Float64):
            numbers = text.cast(dtype, strict=False)
            if not numbers.null_count():
                return numbers
        try:
            return text.str.to_datetime(time_unit="us", strict=True)
        except pl.exceptions.PolarsError:
            wrong = text.filter(text.cast(pl.Float64, strict=False).is_null())
            raise self._wrong(repr(wrong[0])) from None

    def _wrong(self, got: str) -> DataError:
        return DataError(
            f"the timestamps of {self.column!r} are not numbers or dates",
            got=got,
            fix="give numbers (seconds, milliseconds, any one unit) or a date column; "
            "without times set columns.timestamp=null to take the order of the rows",
        )

    def finish(self, batches: list[NDArray[Any]]) -> None:
        """Turn every batch into int64, in place in the list."""
        for number, values in enumerate(batches):
            if self._fraction:
                batches[number] = np.rint(values * 1e6).astype(np.int64)
            elif values.dtype != np.int64:
                batches[number] = values.astype(np.int64)

    @property
    def unit(self) -> str:
        """What one unit of ``times.npy`` is, in terms of the log."""
        if self._date:
            return "microseconds since 1970"
        return "millionths of the log's unit" if self._fraction else "the log's unit"
