"""File formats: which one a path is, and how each is opened as a lazy table or as record batches.

Every table comes out with the columns' own names (RecBole's ``name:type`` headers without the type).
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from gemirec.artifacts import translate_os_errors
from gemirec.errors import DataError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gemirec.data.options import Format

FileFormat = Literal["parquet", "csv", "tsv", "jsonl", "inter", "comirec"]
SUFFIXES: dict[str, FileFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".inter": "inter",
    ".item": "inter",
    ".user": "inter",
    ".txt": "comirec",
}
_COMPRESSED = (".gz", ".zst", ".zlib")
_SAMPLE_ROWS = 10_000
_INTEGER = r"^(0|-?[1-9]\d{0,17})$"


def list_files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files that a path, folder, glob pattern or list of these names, in name order.

    Raises:
        StorageError: Nothing there, or no rights.
        DataError: An empty list or folder.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    files: list[Path] = []
    for entry in sources:
        path = Path(entry)
        with translate_os_errors(path):
            if path.is_dir():
                files += _walk(path)
            elif path.exists():
                with path.open("rb"):  # rights are checked here, once, with the system's own words
                    files.append(path)
            elif any(sign in str(entry) for sign in "*?["):
                root = Path(path.anchor) if path.is_absolute() else Path()
                pattern = str(path.relative_to(root)) if path.is_absolute() else str(path)
                files += sorted(file for file in root.glob(pattern) if file.is_file())
            else:
                raise StorageError("the file or folder is not there", got=path, fix="check the spelling of the path")
    if not files:
        raise DataError("no file to read", got=source, fix="give a file, a folder with files, or a matching pattern")
    return files


def _walk(folder: Path) -> list[Path]:
    """Return the files of a folder and its sub-folders; hidden and marker files (``_SUCCESS``) are left out."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):  # iterdir raises where rglob would silently skip
        if path.name.startswith((".", "_")):
            continue
        found += _walk(path) if path.is_dir() else [path]
    return found


def file_format(files: list[Path], asked: Format) -> FileFormat:
    """Return the one format of ``files``.

    Raises:
        DataError: Unknown or several endings.
    """
    if asked != "auto":
        return asked
    found = set()
    for path in files:
        suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSED]
        suffix = suffixes[-1].lower() if suffixes else ""
        if suffix not in SUFFIXES:
            raise DataError(
                "the file's format is not known by its ending",
                got=path,
                fix=f"use one of {', '.join(SUFFIXES)}, or name the format (format=csv)",
            )
        found.add(SUFFIXES[suffix])
    if len(found) > 1:
        raise DataError("files of several formats", got=sorted(found), fix="give files of one format")
    return found.pop()


@contextlib.contextmanager
def translate_read_errors(where: object) -> Iterator[None]:
    """Turn what the readers raise into :class:`DataError` or :class:`StorageError` that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pl.exceptions.PolarsError) as error:
        raise _read_error(error, where) from error
    except OSError as error:
        if error.errno is not None:
            with translate_os_errors(str(where)):
                raise
        raise _read_error(error, where) from error  # Arrow's own I/O error: content, not the system


def _read_error(error: BaseException, where: object) -> DataError:
    """Say what to do about an error of a reader."""
    text = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    fix = "the file is cut, damaged or of another format: copy or write it again"
    if "parse" in text and "dtype" in text:
        fix = "ids of mixed types: prepare with id_type=string; timestamps and weights must be numbers"
    elif "empty" in text.lower() or "no data" in text.lower():
        return DataError("the file is empty", got=f"{where}: {text}", fix="give a file with events")
    return DataError("a file could not be read", got=f"{where}: {text}", fix=fix)


def open_text(
    files: list[Path], kind: FileFormat, wanted: set[str], ids: set[str], *, text_ids: bool = False
) -> pl.LazyFrame:
    """Open text files lazily.

    Args:
        files: Files of one format.
        kind: ``csv``, ``tsv``, ``jsonl``, ``inter`` or ``comirec``.
        wanted: Columns whose type matters; the others are read as text. Empty: all.
        ids: Columns of ids: integers or text, never fractions, in which long numbers would run together.
        text_ids: Read the ids as text whatever they hold.
    """
    if kind == "jsonl":
        overrides = dict.fromkeys(ids if text_ids else (), pl.String())
        return pl.scan_ndjson(files, infer_schema_length=_SAMPLE_ROWS, schema_overrides=overrides or None)
    if kind == "comirec":
        return _open_comirec(files, text_ids=text_ids)
    separator = "\t" if kind in ("tsv", "inter") else _separator(files[0])
    options: dict[str, Any] = {"separator": separator, "quote_char": None if kind == "inter" else '"'}
    sample = pl.read_csv(files[0], infer_schema=False, n_rows=_SAMPLE_ROWS, **options)
    names = {name: name.split(":")[0] if kind == "inter" else name for name in sample.columns}
    schema: dict[str, pl.DataType] = {}
    for name, short in names.items():
        schema[name] = _id_dtype(sample[name], text_ids) if short in ids else _text_dtype(sample[name])
    if wanted:
        schema = {name: dtype if names[name] in wanted else pl.String() for name, dtype in schema.items()}
    frame = pl.scan_csv(files, schema_overrides=schema, infer_schema=False, low_memory=True, **options)
    lists = [name for name in names if kind == "inter" and name.endswith("_seq")]
    return frame.with_columns(pl.col(name).str.split(" ") for name in lists).rename(names)


def _separator(path: Path) -> str:
    """Return the separator of a ``.csv`` file: a comma, unless only another sign divides its first line."""
    if path.suffix in _COMPRESSED:
        return ","
    with path.open("rb") as stream:
        line = stream.readline(65_536)
    return "," if b"," in line else next((sign for sign in ("\t", ";", "|") if sign.encode() in line), ",")


def _id_dtype(sample: pl.Series, as_text: bool) -> pl.DataType:
    """Return the type of an id column: integers if its first rows are such, text otherwise."""
    dtype = _text_dtype(sample)
    return pl.String() if as_text or dtype.is_float() else dtype


def _text_dtype(sample: pl.Series) -> pl.DataType:
    """Return the type of a text column by its first rows; ``007`` is text, because 7 would be another id."""
    values = sample.drop_nulls()
    if not len(values):
        return pl.String()
    if values.str.contains(_INTEGER).all():
        return pl.Int64()
    leading_zero = values.str.contains(r"^-?0\d").any()
    if not leading_zero and not values.cast(pl.Float64, strict=False).null_count():
        return pl.Float64()
    return pl.String()


def _open_comirec(files: list[Path], *, text_ids: bool) -> pl.LazyFrame:
    """Open ComiRec's ``user,item,rank[,timestamp]`` lines; files named ``..._train|valid|test`` give the split."""
    frames = []
    parts = [re.search(r"(train|valid|test)$", path.stem) for path in files]
    for path, part in zip(files, parts, strict=True):
        sample = pl.read_csv(path, has_header=False, infer_schema=False, n_rows=_SAMPLE_ROWS)
        if sample.width not in (3, 4):
            raise DataError(
                "a ComiRec file must have lines user,item,rank or user,item,rank,timestamp",
                got=f"{path}: {sample.width} fields",
                fix="name another format, for example format=csv",
            )
        names = ["user_id", "item_id", "rank", "timestamp"][: sample.width]
        series = [sample[column] for column in sample.columns]
        types = [_id_dtype(column, text_ids) for column in series[:2]] + [_text_dtype(column) for column in series[2:]]
        frame = pl.scan_csv(path, has_header=False, schema=dict(zip(names, types, strict=True)), low_memory=True)
        if sample.width == 3:
            frame = frame.rename({"rank": "timestamp"})
        if all(parts) and part is not None:
            frame = frame.with_columns(split=pl.lit(part.group(1)))
        frames.append(frame)
    return frames[0] if len(frames) == 1 else pl.concat(frames, how="vertical_relaxed")
