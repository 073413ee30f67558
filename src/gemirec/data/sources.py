"""Logs and tables of any kind, opened as one lazy table ``user_id, item_id, timestamp`` (+ ``event, weight, split``).

A source is a path (Parquet, CSV, TSV, JSONL, RecBole ``.inter``, ComiRec text; a folder, a glob pattern or a list of
paths) or a table in memory (pandas, polars, Arrow, or anything that Narwhals knows).
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import narwhals as nw
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from gemirec.data.formats import FileFormat, file_format, list_files, open_text, translate_read_errors
from gemirec.data.options import Columns
from gemirec.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gemirec.data.options import Format

BATCH_ROWS = 131_072
_ALIASES = {
    "user": ("user", "userid", "uid", "user_idx", "visitorid", "reviewerid", "customer_id", "session_id"),
    "item": ("item", "itemid", "iid", "asin", "movieid", "product_id", "article_id", "video_id", "sku"),
    "timestamp": ("time", "ts", "date", "datetime", "unixreviewtime", "event_time", "timestamp_ms", "created_at"),
}


class Log:
    """An opened log.

    Attributes:
        name: Name of the file, folder or table.
        frame: Lazy table of the canonical columns that the log has.
        columns: Their names.
        rows: Number of rows where it is known without reading, else ``None``.
        time_ordered: False where the log has no time column: the order of the rows stands for it.
    """

    def __init__(
        self, name: str, frame: pl.LazyFrame, names: Mapping[str, str], *, rows: int | None, parquet: Sequence[Path]
    ) -> None:
        self.name = name
        self.rows = rows
        self.names = dict(names)
        self.columns = list(names)
        self.time_ordered = "timestamp" in names
        self.frame = frame.select(pl.col(old).alias(new) for new, old in names.items())
        self._parquet = list(parquet)

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[pl.DataFrame]:
        """Yield the log in order, at most about ``rows`` rows at a time, as canonical columns.

        Parquet is decoded page by page on the calling thread (Arrow): polars' reader decodes whole row groups ahead,
        which took 300 MB more on 9 M events. Everything else streams through polars.

        Raises:
            DataError: A file is cut, damaged, or a value does not fit its column.
        """
        if self._parquet:
            for path in self._parquet:
                yield from self._parquet_batches(path, rows)
            return
        with translate_read_errors(self.name):
            yield from self.frame.collect_batches(chunk_size=rows, lazy=True, engine="streaming")

    def _parquet_batches(self, path: Path, rows: int) -> Iterator[pl.DataFrame]:
        """Yield one Parquet file; ``pre_buffer`` off keeps the file's bytes out of memory."""
        with translate_read_errors(path), pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(rows, columns=list(self.names.values()), use_threads=False):
                frame = pl.from_arrow(batch, rechunk=False)
                assert isinstance(frame, pl.DataFrame)
                yield frame.select(pl.col(old).alias(new) for new, old in self.names.items())


def scan(source: Any, columns: Columns | None = None, *, format: Format = "auto") -> pl.LazyFrame:
    """Open a log as a lazy table of canonical columns.

    Args:
        source: Path, folder, glob pattern, list of paths, or table.
        columns: Names of the log's columns.
        format: Format of files; ``auto`` goes by their ending.

    Raises:
        DataError: A column is missing, or the file cannot be read.

    Example:
        >>> log = pl.DataFrame({"who": ["ann"], "what": [7], "when": [1]})
        >>> scan(log, Columns(user="who", item="what", timestamp="when")).collect_schema().names()
        ['user_id', 'item_id', 'timestamp']
    """
    return open_log(source, columns, format=format).frame


def open_log(
    source: Any,
    columns: Columns | None = None,
    *,
    format: Format = "auto",
    text_ids: bool = False,
    need: Sequence[str] = (),
) -> Log:
    """Open a log; see :func:`scan`. ``text_ids`` reads ids of text files as text; ``need`` lists required extras."""
    columns = columns or Columns()
    if not _are_paths(source):
        frame = in_memory(source)
        names = _resolve(frame.collect_schema().names(), columns, need, "the table")
        height = source.height if isinstance(source, pl.DataFrame) else None
        return Log("table", frame, names, rows=height, parquet=())
    files = list_files(source)
    kind = file_format(files, format)
    name = _log_name(source, files)
    if kind == "comirec":
        columns = Columns(user="user_id", item="item_id", timestamp="timestamp", split=columns.split)
    with translate_read_errors(name if len(files) > 1 else files[0]):
        if kind == "parquet":
            return _open_parquet(name, files, columns, need)
        wanted = {value for value in (columns.user, columns.item, columns.timestamp, columns.weight) if value}
        frame = open_text(files, kind, wanted, {columns.user, columns.item}, text_ids=text_ids)
        names = _resolve(frame.collect_schema().names(), columns, need, files[0])
    return Log(name, frame, names, rows=None, parquet=())


def _open_parquet(name: str, files: list[Path], columns: Columns, need: Sequence[str]) -> Log:
    """Open Parquet files; every file must have the columns, in types that agree."""
    rows, names, first_types = 0, {}, {}
    for number, path in enumerate(files):
        with translate_read_errors(path), pq.ParquetFile(path, pre_buffer=False) as file:
            schema, rows = file.schema_arrow, rows + file.metadata.num_rows
        if not number:
            names = _resolve(schema.names, columns, need, path)
            first_types = {new: _family(schema.field(old).type) for new, old in names.items()}
        for new, old in names.items():
            if old not in schema.names:
                raise _missing(new, old, schema.names, path)
            if _family(schema.field(old).type) != first_types[new]:
                raise DataError(
                    f"the column {old!r} has mixed types",
                    got=f"{first_types[new]} in {files[0]}, {schema.field(old).type} in {path}",
                    fix="write the files with one schema",
                )
    return Log(name, pl.scan_parquet(files, low_memory=True), names, rows=rows, parquet=files)


def _are_paths(source: Any) -> bool:
    """Tell paths from tables."""
    if isinstance(source, (list, tuple)):
        return all(isinstance(entry, (str, Path)) for entry in source)
    return isinstance(source, (str, Path))


def _family(dtype: pa.DataType) -> str:
    """Return the kind of values of an Arrow type; widths may differ between files, kinds may not."""
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    if pa.types.is_integer(dtype):
        return "integer"
    if pa.types.is_floating(dtype) or pa.types.is_decimal(dtype):
        return "number"
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype):
        return "string"
    return "date" if pa.types.is_temporal(dtype) else str(dtype)


def in_memory(table: Any) -> pl.LazyFrame:
    """Turn a table of any library into a lazy polars table.

    Raises:
        DataError: Not a table, or a column of mixed types.
    """
    if isinstance(table, pl.LazyFrame):
        return table
    if isinstance(table, pl.DataFrame):
        return table.lazy()
    try:
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        native = nw.from_native(table)
        eager = native.collect() if isinstance(native, nw.LazyFrame) else native
        return eager.to_polars().lazy()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DataError(
            "a column of the table has mixed types",
            got=str(error).splitlines()[0],
            fix="give every column one type, for example table['item_id'].astype(str)",
        ) from error
    except TypeError as error:
        raise DataError(
            "this is not a log: a path or a table is needed",
            got=type(table).__name__,
            fix="give a path, or a pandas, polars or Arrow table",
        ) from error


def _resolve(have: list[str], columns: Columns, need: Sequence[str], where: object) -> dict[str, str]:
    """Return ``canonical -> own`` names of the columns that are there.

    Raises:
        DataError: A needed column is missing, with the nearest name.
    """
    asked = {"user_id": columns.user, "item_id": columns.item, "timestamp": columns.timestamp}
    asked |= {"event": columns.event, "weight": columns.weight, "split": columns.split}
    names = {}
    for new, old in asked.items():
        if old is not None and old in have:
            names[new] = old
        elif new in ("user_id", "item_id") or new in need or (new == "timestamp" and _looks_missed(old, have)):
            raise _missing(new, old or new, have, where)
    return names


def _looks_missed(old: str | None, have: list[str]) -> bool:
    """Tell whether a missing time column is a mistake: it was named by the user, or another column looks like one."""
    return old is not None and (old != "timestamp" or bool(_near("timestamp", old, have)))


def _near(new: str, old: str, have: list[str]) -> list[str]:
    """Return the columns that may be meant by ``old``."""
    known = _ALIASES.get(new.removesuffix("_id"), ())
    alias = [name for name in have if name.lower() in known]
    lower = {name.lower(): name for name in have}
    close = [lower[name] for name in difflib.get_close_matches(old.lower(), lower, n=2, cutoff=0.7)]
    return list(dict.fromkeys(alias + close))


def _missing(new: str, old: str, have: list[str], where: object) -> DataError:
    """Return the error for a missing column."""
    near = _near(new, old, have)
    key = new.removesuffix("_id")
    guess = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    example = near[0] if near else "name"
    fix = f"{guess}set columns.{key}={example}"
    if new == "timestamp":
        fix += ", or columns.timestamp=null to take the order of the rows"
    if all(name.replace(".", "").isdigit() for name in have):
        fix = "the first line looks like data: write a line of names above it, or set format=comirec for user,item,rank"
    return DataError(f"the log has no column {old!r}", got=f"{where} with columns {', '.join(have)}", fix=fix)


def _log_name(source: Any, files: list[Path]) -> str:
    """Return a name for the dataset: of the folder where the file's own name says nothing."""
    path = Path(source) if isinstance(source, (str, Path)) else files[0]
    path = path.absolute()
    stem = path.name.split(".")[0]
    return path.parent.name if stem in ("interactions", "events", "log", "data", "train") and path.parent.name else stem


def read_table(source: Any, *, format: Format = "auto", what: str = "item table") -> pl.DataFrame:
    """Read a whole item or user table, every column as it is.

    Args:
        source: As for a log; RecBole's ``.item`` and ``.user`` too.
        format: Format of files.
        what: Name for errors.

    Raises:
        DataError: The table cannot be read or is empty.
    """
    if not _are_paths(source):
        table = in_memory(source).collect()
    else:
        files = list_files(source)
        kind: FileFormat = file_format(files, format)
        with translate_read_errors(files[0]):
            frame = (
                pl.scan_parquet(files) if kind == "parquet" else open_text(files, kind, set(), {"user_id", "item_id"})
            )
            table = frame.collect()
    if not table.height:
        raise DataError(
            f"the {what} is empty",
            got=source if isinstance(source, (str, Path)) else "0 rows",
            fix="leave it out, or give one with rows",
        )
    return table
