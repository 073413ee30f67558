from __future__ import annotations

import gzip
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from gemirec.data.options import Columns
from gemirec.data.prepare import PrepareConfig, prepare
from gemirec.data.sources import open_log, read_table, scan
from gemirec.errors import DataError, StorageError

TABLE = pl.DataFrame({"user_id": [1, 1, 2, 3], "item_id": ["a", "b", "a", "ü"], "timestamp": [5, 6, 7, 8]})
EXTRA = TABLE.with_columns(event=pl.lit("pv"), weight=pl.Series([1.0, 2.0, 3.5, 4.0]), noise=pl.lit("x"))


def read(log: Any, columns: Columns | None = None, **options: Any) -> pl.DataFrame:
    """What the batches hold; the lazy frame must hold the same."""
    opened = open_log(log, columns, **options)
    table = pl.concat(opened.batches(2))
    assert table.equals(opened.frame.collect())
    assert opened.rows in (None, table.height)
    return table


def write(kind: str, folder: Path, table: pl.DataFrame = EXTRA) -> Path:
    path = folder / f"log.{kind}"
    if kind == "parquet":
        table.write_parquet(path, row_group_size=3)
    elif kind in ("csv", "tsv"):
        table.write_csv(path, separator="," if kind == "csv" else "\t")
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(table.write_csv().encode()))
    elif kind == "jsonl":
        table.write_ndjson(path)
    else:
        types = {"user_id": "token", "item_id": "token", "timestamp": "float", "weight": "float"}
        table.rename({name: f"{name}:{types.get(name, 'token')}" for name in table.columns}).write_csv(
            path, separator="\t", quote_style="never"
        )
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "csv.gz", "jsonl", "inter"])
def test_every_format_gives_the_same_table(kind: str, tmp_path: Path) -> None:
    assert read(write(kind, tmp_path)).equals(EXTRA.drop("noise"))


@pytest.mark.parametrize(
    "convert",
    [
        lambda t: t,
        lambda t: t.lazy(),
        lambda t: t.to_arrow(),
        lambda t: t.to_arrow().to_batches()[0],
        lambda t: pd.DataFrame(t.to_dict(as_series=False)),
        lambda t: pd.DataFrame(t.to_dict(as_series=False)).astype({"item_id": "category"}),
    ],
)
def test_every_table_gives_the_same_table(convert: Any) -> None:
    assert read(convert(EXTRA)).with_columns(pl.col("item_id").cast(pl.String)).equals(EXTRA.drop("noise"))


def test_folder_pattern_and_list_of_files(tmp_path: Path) -> None:
    for n in range(3):
        TABLE.with_columns(pl.col("timestamp") + n).write_parquet(tmp_path / f"part-{n}.parquet")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".part.crc").touch()
    expected = pl.concat([TABLE.with_columns(pl.col("timestamp") + n) for n in range(3)])
    assert read(tmp_path).equals(expected)
    assert read(str(tmp_path / "part-*.parquet")).equals(expected)
    assert read([tmp_path / "part-2.parquet", tmp_path / "part-0.parquet"])["timestamp"].to_list()[:4] == [7, 8, 9, 10]


def test_widths_of_integers_may_differ_between_files(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    TABLE.with_columns(pl.col("user_id").cast(pl.Int16)).write_parquet(tmp_path / "log" / "0.parquet")
    TABLE.write_parquet(tmp_path / "log" / "1.parquet")
    dataset = prepare(tmp_path / "log", tmp_path / "d", config=PrepareConfig(filter="none", split="leave_one_out"))
    assert sorted(dataset.users["user_id"]) == [1, 2, 3]
    assert dataset.info.num_events == 8


def test_comirec_text(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("1,10,0\n1,11,1\n2,10,0\n")
    assert read(path).rows() == [(1, 10, 0), (1, 11, 1), (2, 10, 0)]
    path.write_text("1,10,0,900\n1,11,1,800\n")
    assert read(path).rows() == [(1, 10, 900), (1, 11, 800)]
    path.write_text("1,10\n")
    with pytest.raises(DataError, match="user,item,rank"):
        read(path)


def test_comirec_files_by_part_give_their_split(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    for first, part in enumerate(("train", "valid", "test")):
        lines = "".join(f"{first * 10 + u},{i},{i}\n" for u in range(2) for i in range(5))
        (tmp_path / "log" / f"beauty_{part}.txt").write_text(lines)
    dataset = prepare(tmp_path / "log", tmp_path / "d")
    assert dataset.info.users_per_split == {"train": 2, "valid": 2, "test": 2}
    assert dict(dataset.users.select("user_id", "split").iter_rows())[10] == "valid"
    assert dataset.info.raw["events_per_split"] == {"train": 10, "valid": 2, "test": 2}


def test_leading_zeros_make_ids_text(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n007,1,1\n7,2,2\n")
    assert read(path)["user_id"].to_list() == ["007", "7"]
    assert read(path)["item_id"].to_list() == [1, 2]
    assert open_log(path, text_ids=True).frame.collect()["item_id"].to_list() == ["1", "2"]


def test_long_numbers_are_text_not_fractions(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n12345678901234567891,1.0,1.5\n12345678901234567892,2,2\n")
    assert read(path).rows() == [("12345678901234567891", "1.0", 1.5), ("12345678901234567892", "2", 2.0)]


def test_a_file_without_names_says_so(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("1,2,3\n4,5,6\n")
    with pytest.raises(DataError, match="first line looks like data"):
        scan(path)


def test_semicolons_divide_where_there_is_no_comma(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id;item_id;timestamp\n1;2;3\n")
    assert read(path).rows() == [(1, 2, 3)]


def test_columns_are_renamed_and_a_missing_one_names_the_nearest() -> None:
    columns = Columns(user="who", item="what", timestamp="when", weight="noise")
    table = EXTRA.rename({"user_id": "who", "item_id": "what", "timestamp": "when"})
    assert scan(table, columns).collect_schema().names() == ["user_id", "item_id", "timestamp", "event", "weight"]
    cases = {
        "did you mean 'userid'": EXTRA.rename({"user_id": "userid"}),
        "did you mean 'asin'": EXTRA.rename({"item_id": "asin"}),
        "did you mean 'unixReviewTime'": EXTRA.rename({"timestamp": "unixReviewTime"}),
    }
    for text, broken in cases.items():
        with pytest.raises(DataError, match=text):
            scan(broken)
    with pytest.raises(DataError, match=r"no column 'when'.*\n.*columns user_id, .*\n.*columns.timestamp=null"):
        scan(EXTRA, Columns(timestamp="when"))


def test_without_times_the_order_of_the_rows_stands(tmp_path: Path) -> None:
    config = PrepareConfig(filter="none", split="leave_one_out")
    dataset = prepare(TABLE.drop("timestamp"), tmp_path / "d", config=config)
    assert sorted(dataset.shards[0].times.tolist()) == [0, 1, 2, 3]
    assert dataset.info.raw["time_unit"] == "row of the log"


@pytest.mark.parametrize(
    ("times", "expected", "unit"),
    [
        ([3, 1], [1, 3], "the log's unit"),
        ([3.0, 1.0], [1, 3], "the log's unit"),
        ([1.5, 1.25], [1_250_000, 1_500_000], "millionths of the log's unit"),
        (["30", "4"], [4, 30], "the log's unit"),
        (["2020-01-02T00:00:00", "1970-01-01T00:00:01"], [10**6, 1577923200 * 10**6], "microseconds since 1970"),
        ([datetime(1970, 1, 2), datetime(1970, 1, 1)], [0, 86_400 * 10**6], "microseconds since 1970"),
        ([datetime(1970, 1, 2).date(), datetime(1970, 1, 1).date()], [0, 86_400 * 10**6], "microseconds since 1970"),
    ],
)
def test_kinds_of_timestamps(times: list[Any], expected: list[int], unit: str, tmp_path: Path) -> None:
    log = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": times})
    dataset = prepare(log, tmp_path / "d", config=PrepareConfig(filter="none", split="leave_one_out"))
    assert dataset.shards[0].times.tolist() == expected
    assert dataset.info.raw["time_unit"] == unit


def test_fractions_in_a_later_batch_count_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemirec.data.sources.Log.batches", lambda self: iter(self.frame.collect().iter_slices(1)))
    log = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [2.0, 1.5]})
    dataset = prepare(log, tmp_path / "d", config=PrepareConfig(filter="none", split="leave_one_out"))
    assert dataset.shards[0].times.tolist() == [1_500_000, 2_000_000]


def test_whole_floats_are_integer_ids() -> None:
    pandas = pd.DataFrame({"user_id": [1.0, 2.0], "item_id": [3.0, 3.0], "timestamp": [1, 2]})
    log = open_log(pandas).frame.collect()
    assert log["user_id"].dtype == pl.Float64  # the coder turns them, see test_encode


def test_tables_of_items_read_like_logs(tmp_path: Path) -> None:
    path = tmp_path / "x.item"
    path.write_text("item_id:token\tclass:token_seq\tprice:float\n1\ta b\t2.5\n2\tc\t1.0\n")
    table = read_table(path)
    assert table.to_dict(as_series=False) == {"item_id": [1, 2], "class": [["a", "b"], ["c"]], "price": [2.5, 1.0]}
    assert read_table(pa.table({"item_id": [1]})).height == 1


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not there"):
        scan(tmp_path / "no.parquet")
    with pytest.raises(DataError, match="no file to read"):
        scan(str(tmp_path / "*.parquet"))
    with pytest.raises(DataError, match="no file to read"):
        scan(tmp_path)
    for thing in (42, [{"user_id": 1}]):
        with pytest.raises(DataError, match="a path or a table is needed"):
            scan(thing)
    (tmp_path / "log.xyz").touch()
    with pytest.raises(DataError, match="not known by its ending"):
        scan(tmp_path / "log.xyz")
    write("csv", tmp_path)
    (tmp_path / "log.xyz").unlink()
    write("parquet", tmp_path)
    with pytest.raises(DataError, match="several formats"):
        scan(tmp_path)
